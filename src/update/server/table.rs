//! All processes, and which of them belong to an install.
//! Refuses to guess: what is not provably of the install is a bystander.

use super::claim;
use crate::ports::Listener;
use crate::state::root::InstallRoot;
use crate::system::process_table;
pub(super) use crate::system::process_table::Entry;
use crate::system::{ProcessId, ancestry, files, processes, programs};
use anyhow::Context;
use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::path::{Component, Path, PathBuf};

/// Programs whose first plain argument is the program that really runs.
const INTERPRETERS: [&str; 11] =
    ["python", "pythonw", "pypy", "py", "node", "ruby", "perl", "php", "waitress-serve", "gunicorn", "uwsgi"];

/// Programs that only start and watch another one: standing in the root above a server, they are its top.
const RUNNERS: [&str; 14] = [
    "uv",
    "pipenv",
    "poetry",
    "hatch",
    "pdm",
    "honcho",
    "foreman",
    "overmind",
    "supervisord",
    "gunicorn",
    "uwsgi",
    "uvicorn",
    "hypercorn",
    "waitress-serve",
];

/// Programs, themselves scripts, that import the application of the folder which they stand in.
const APPLICATION_RUNNERS: [&str; 7] =
    ["gunicorn", "uvicorn", "hypercorn", "daphne", "flask", "waitress-serve", "uwsgi"];

/// Interpreter options that take the next argument with them.
const WITH_VALUE: [&str; 3] = ["-W", "-X", "--check-hash-based-pycs"];

/// One process, as the operator knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub id: ProcessId,
    pub parent: Option<u32>,
    pub argv: Vec<String>,
    pub cwd: Option<PathBuf>,
    pub exe: Option<PathBuf>,
    pub user: String,
}

/// How surely a process is of an install.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tie {
    None,
    /// It merely works in the folder.
    Place,
    /// Its script or executable lies there.
    Program,
}

/// A snapshot of all processes.
#[derive(Debug)]
pub struct Table {
    pub(super) all: HashMap<u32, Entry>,
    children: HashMap<u32, Vec<u32>>,
    pub(super) listening: BTreeSet<u32>,
    /// Port and process of each listener.
    ports: BTreeSet<(u16, u32)>,
    /// The ports that are said to be those of the install's server, once they were asked for.
    claimed: OnceCell<BTreeSet<u16>>,
    me: u32,
    above_us: BTreeSet<u32>,
}

impl Table {
    /// Reads all processes; `listeners` tells which of them listen. Errors: the system does not tell.
    pub fn read(listeners: &[Listener]) -> anyhow::Result<Table> {
        let all = process_table::read().context("reading the processes")?;
        Ok(Table::of(all, listeners, std::process::id()))
    }

    pub(super) fn of(mut all: HashMap<u32, Entry>, listeners: &[Listener], me: u32) -> Table {
        let starts: HashMap<u32, u64> = all.iter().map(|(pid, entry)| (*pid, entry.started)).collect();
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for (pid, entry) in &mut all {
            let own = entry.started;
            // Windows keeps the pid of a dead parent, and another process may have it by now.
            entry.parent = entry.parent.filter(|p| p != pid && starts.get(p).is_some_and(|start| *start <= own));
            if let Some(parent) = entry.parent {
                children.entry(parent).or_default().push(*pid);
            }
        }
        let listening = listeners.iter().flat_map(|l| l.pids.iter().copied()).collect();
        let ports = listeners.iter().flat_map(|l| l.pids.iter().map(|pid| (l.port, *pid))).collect();
        let (claimed, above_us) = (OnceCell::new(), BTreeSet::new());
        let mut table = Table { all, children, listening, ports, claimed, me, above_us };
        table.above_us = table.ancestors(me).into_iter().collect();
        table
    }

    /// The pids above `pid`, nearest first.
    pub(super) fn ancestors(&self, pid: u32) -> Vec<u32> {
        let parent = |pid: u32| Ok::<_, Infallible>(self.parent(pid));
        ancestry::above(pid, parent).filter_map(Result::ok).collect()
    }

    /// True when `pid` is `top` or lies below it.
    pub fn descends(&self, pid: u32, top: u32) -> bool {
        self.all.contains_key(&pid) && (pid == top || self.ancestors(pid).contains(&top))
    }

    /// True while `pid` runs (at the time of the snapshot).
    pub fn holds(&self, pid: u32) -> bool {
        self.all.contains_key(&pid)
    }

    /// Everything below `top`, parents before children; we and what we started are left out.
    pub(super) fn below(&self, top: u32) -> Vec<u32> {
        let mut found = Vec::new();
        let mut open = vec![top];
        while let Some(pid) = open.pop() {
            for child in self.children.get(&pid).into_iter().flatten() {
                if *child != self.me && *child != top && !found.contains(child) {
                    found.push(*child);
                    open.push(*child);
                }
            }
        }
        // What lies between the server and us is ours to keep, unless it holds a port.
        found.retain(|pid| !self.above_us.contains(pid) || self.listening.contains(pid));
        found
    }

    /// True when no rule protects `pid`: it is not us, and not above us without listening. (A server that
    /// we started ourselves is below us and stays a server.)
    pub(super) fn is_fair(&self, pid: u32) -> bool {
        pid != self.me && (!self.above_us.contains(&pid) || self.listening.contains(&pid))
    }

    /// How `pid` itself is tied to the root, not looking at its parents' ties.
    pub(super) fn tie(&self, pid: u32, root: &InstallRoot) -> Tie {
        let Some(entry) = self.all.get(&pid) else { return Tie::None };
        if entry.programs().iter().any(|program| lies_in(program, root.path())) {
            return Tie::Program;
        }
        let stands = entry.cwd.as_deref().is_some_and(|cwd| lies_in(cwd, root.path()));
        if stands && (entry.runs_module() || entry.runs_application()) {
            return Tie::Program;
        }
        let foreign = || self.ancestors(pid).iter().any(|above| self.is_of_another(*above, root));
        let is_known = || !is_strangers(pid, root.path()) || self.is_claimed(pid, root);
        let counts = stands && !entry.is_shell() && !foreign() && is_known();
        if counts { Tie::Place } else { Tie::None }
    }

    /// True where it listens on a port that is said to be the server's.
    fn is_claimed(&self, pid: u32, root: &InstallRoot) -> bool {
        let mut own = self.ports.iter().filter(|(_, of)| *of == pid).map(|(port, _)| port).peekable();
        own.peek().is_some() && {
            let claimed = self.claimed.get_or_init(|| claim::ports(root));
            own.any(|port| claimed.contains(port))
        }
    }

    /// True when the program of `pid` lies in an install that is not this one.
    pub(super) fn is_of_another(&self, pid: u32, root: &InstallRoot) -> bool {
        let programs = self.all.get(&pid).map(Entry::programs).unwrap_or_default();
        programs.iter().any(|p| !lies_in(p, root.path()) && p.ancestors().skip(1).any(is_install))
    }

    pub(super) fn tie_with_parents(&self, pid: u32, root: &InstallRoot) -> Tie {
        let own = self.tie(pid, root);
        if own != Tie::None || !self.listening.contains(&pid) {
            return own;
        }
        // A listening child of one that runs the install's code counts, wherever it stands.
        let parent = self.all.get(&pid).and_then(|entry| entry.parent);
        let of_ours = parent.is_some_and(|p| self.tie(p, root) == Tie::Program && self.is_fair(p));
        if of_ours && !self.is_of_another(pid, root) { Tie::Program } else { Tie::None }
    }

    /// The highest process of the unbroken line above `pid` that is of the install.
    pub(super) fn top(&self, pid: u32, root: &InstallRoot) -> u32 {
        let mut top = pid;
        for above in self.ancestors(pid) {
            let Some(entry) = self.all.get(&above) else { break };
            let counts = match self.tie(above, root) {
                Tie::Program => true,
                Tie::Place => self.listening.contains(&above) || RUNNERS.contains(&entry.name().as_str()),
                Tie::None => false,
            };
            if !counts || !self.is_fair(above) {
                break;
            }
            top = above;
        }
        top
    }

    /// The process with its unmistakable identity. None: it is gone.
    pub fn process(&self, pid: u32) -> anyhow::Result<Option<Process>> {
        let Some(entry) = self.all.get(&pid) else { return Ok(None) };
        let Some(id) = processes::identity(pid).with_context(|| format!("reading process {pid}"))? else {
            return Ok(None);
        };
        let user = processes::credentials(pid).map(|c| c.user).unwrap_or_else(|_| "unknown".to_string());
        let Entry { parent, argv, cwd, exe, .. } = entry.clone();
        Ok(Some(Process { id, parent, argv, cwd, exe, user }))
    }

    /// The pids that belong to the install and were not there before (`old`).
    pub fn newcomers(&self, root: &InstallRoot, old: &[ProcessId]) -> Vec<u32> {
        let fresh = |pid: u32| {
            let id = processes::identity(pid).ok().flatten();
            id.is_some_and(|id| !old.contains(&id))
        };
        let mut new: Vec<u32> = self.all.keys().copied().filter(|pid| belongs(self, *pid, root)).collect();
        new.retain(|pid| fresh(*pid));
        new.sort_unstable();
        new
    }
}

impl Table {
    pub(super) fn is_below_any(&self, pid: u32, tops: &BTreeSet<u32>) -> bool {
        self.ancestors(pid).iter().any(|above| tops.contains(above))
    }

    pub(super) fn parent(&self, pid: u32) -> Option<u32> {
        self.all.get(&pid)?.parent
    }

    pub(super) fn is_called(&self, pid: u32, name: &str) -> bool {
        self.all.get(&pid).is_some_and(|entry| entry.name() == name)
    }

    /// `pid 12 (user web, command python run.py)`
    pub(super) fn describe(&self, pid: u32) -> String {
        let user = processes::credentials(pid).map(|c| c.user).unwrap_or_else(|_| "unknown".to_string());
        let command = self.all.get(&pid).map(|entry| entry.argv.join(" ")).unwrap_or_default();
        format!("pid {pid} (user {user}, command {command})")
    }
}

/// The bare name of the program: no folder, no `.exe`, no version (`python3.12` is `python`).
fn name_of(argv: &[String]) -> String {
    let first = argv.first().map(String::as_str).unwrap_or_default();
    let shown = first.rsplit(['/', '\\']).next().unwrap_or_default().to_lowercase();
    let plain = shown.strip_suffix(".exe").unwrap_or(&shown).trim_start_matches('-');
    plain.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.').to_string()
}

impl Process {
    /// True for a shell, be it that it only runs a wrapper script.
    pub fn is_shell(&self) -> bool {
        programs::is_shell(&name_of(&self.argv))
    }
}

impl Entry {
    pub(super) fn name(&self) -> String {
        name_of(&self.argv)
    }

    pub(super) fn is_interpreter(&self) -> bool {
        INTERPRETERS.contains(&self.name().as_str())
    }

    pub(super) fn is_shell(&self) -> bool {
        programs::is_shell(&self.name())
    }

    /// The first plain argument of an interpreter or shell, past its options. None with `-c` or `-m`.
    pub(super) fn script(&self) -> Option<&str> {
        if !self.is_interpreter() && !self.is_shell() {
            return None;
        }
        let mut rest = self.argv.iter().skip(1);
        while let Some(argument) = rest.next() {
            if WITH_VALUE.contains(&argument.as_str()) {
                rest.next();
            } else if is_inline(argument) {
                return None;
            } else if !argument.starts_with('-') {
                return Some(argument);
            }
        }
        None
    }

    /// True for an interpreter with `-m module`: the code comes from where it stands.
    pub(super) fn runs_module(&self) -> bool {
        let mut options = self.argv.iter().skip(1).take_while(|a| a.starts_with('-') && a.as_str() != "-c");
        self.is_interpreter() && options.any(|a| a.starts_with("-m") || (is_inline(a) && a.ends_with('m')))
    }

    /// True for a runner that is given an application (`gunicorn app:app`): the code comes from where it stands.
    fn runs_application(&self) -> bool {
        let script = self.script().and_then(|script| script.rsplit(['/', '\\']).next());
        script.is_some_and(|script| APPLICATION_RUNNERS.contains(&script.trim_end_matches(".exe")))
    }

    /// Where its executable and its script lie: as started, resolved against its working folder.
    pub(super) fn programs(&self) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = self.exe.iter().cloned().collect();
        let at = |path: &str| match (&self.cwd, Path::new(path).is_absolute()) {
            (_, true) => Some(plain(Path::new(path))),
            (Some(cwd), false) => Some(plain(&cwd.join(path))),
            (None, false) => None,
        };
        // A bare argv[0] was found through PATH and says nothing.
        let first = self.argv.first().filter(|first| first.contains(['/', '\\']));
        found.extend(first.and_then(|first| at(first)));
        found.extend(self.script().and_then(at));
        found.retain(|path| !files::is_per_process(path));
        found
    }
}

/// `-c`, `-m` and bundles that end with them (`-uc`, `-Bm`).
fn is_inline(argument: &str) -> bool {
    let short = argument.starts_with('-') && !argument.starts_with("--");
    short && argument.len() <= 5 && argument.ends_with(['c', 'm'])
}

/// A path without `.` and `..`, not following links (a venv's python must stay in the venv).
pub fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

/// True for a process of a user who neither owns the install nor runs us, and which no unit of the system started: that
/// it stands in the folder makes it nobody's server.
pub(super) fn is_strangers(pid: u32, root: &Path) -> bool {
    files::metadata(root).is_ok_and(|folder| processes::is_strangers(pid, folder.owner))
}

/// True when `path` is `root` or below it, and not in another install nested there.
pub(super) fn lies_in(path: &Path, root: &Path) -> bool {
    let is_below = |path: &Path| {
        let nested = |folder: &&Path| folder.starts_with(root) && *folder != root;
        path.starts_with(root) && !path.ancestors().take_while(nested).any(is_install)
    };
    if is_below(path) {
        return true;
    }
    let folder = path.parent().and_then(|folder| std::fs::canonicalize(folder).ok());
    let resolved = folder.zip(path.file_name()).map(|(folder, name)| folder.join(name));
    resolved.is_some_and(|resolved| is_below(&resolved))
        || std::fs::canonicalize(path).is_ok_and(|resolved| is_below(&resolved))
}

/// True for a folder that looks like the root of an install.
pub(super) fn is_install(folder: &Path) -> bool {
    folder.join(".updater").is_dir() || (folder.join("run.py").is_file() && folder.join("app").is_dir())
}

/// True when the process is of the install: its script or executable lies under the root, or it works
/// there and descends from no other install, or it listens and is a child of such a process.
pub fn belongs(table: &Table, pid: u32, root: &InstallRoot) -> bool {
    table.is_fair(pid) && table.tie_with_parents(pid, root) != Tie::None
}
