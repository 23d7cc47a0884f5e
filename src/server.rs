//! The server of an install as processes: which ones belong to it, the tree they form, how it was
//! started, and its end.
//! Refuses to guess: a process that is not provably of the install is a bystander and is never signalled;
//! neither are we, our children, or the processes above us (unless they are the server that started us).

use crate::error::Failure;
use crate::os::files;
use crate::os::processes::{self, Handle};
use crate::os::{self, Credentials, LaunchSpec, ProcessId};
use crate::path::InstallRoot;
use crate::ports::{self, Listener};
use anyhow::Context;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};
use sysinfo::{Pid, ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System, UpdateKind};

/// Programs that stand in a folder because a person does; by standing there they make nothing ours.
const SHELLS: [&str; 14] =
    ["sh", "bash", "dash", "zsh", "fish", "ksh", "cmd", "powershell", "pwsh", "login", "su", "sudo", "screen", "sshd"];
/// More of them, matched by how the name starts (`tmux: server`, `sshd-session`).
const SHELL_STARTS: [&str; 4] = ["tmux", "screen", "sshd", "systemd"];
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
/// Interpreter options that take the next argument with them.
const WITH_VALUE: [&str; 3] = ["-W", "-X", "--check-hash-based-pycs"];
/// How long the ports may stay taken after the last process has ended.
const PORTS_FREE: Duration = Duration::from_secs(10);
/// The longest single wait; between two of them the caller is asked.
const POLL: Duration = Duration::from_millis(10);
/// How often children started meanwhile are looked for (a scan of all processes costs milliseconds).
const RESCAN: Duration = Duration::from_millis(100);

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

/// What the snapshot holds of one process.
#[derive(Debug, Clone)]
struct Entry {
    parent: Option<u32>,
    argv: Vec<String>,
    cwd: Option<PathBuf>,
    exe: Option<PathBuf>,
    /// Whole seconds: good enough to tell a parent from a later process of its pid.
    started: u64,
}

/// How surely a process is of an install.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tie {
    None,
    /// It merely works in the folder.
    Place,
    /// Its script or executable lies there.
    Program,
}

/// A snapshot of all processes.
#[derive(Debug)]
pub struct Table {
    all: HashMap<u32, Entry>,
    children: HashMap<u32, Vec<u32>>,
    listening: BTreeSet<u32>,
    me: u32,
    above_us: BTreeSet<u32>,
}

impl Table {
    /// Reads all processes; `listeners` tells which of them listen. Errors: the system does not tell.
    pub fn read(listeners: &[Listener]) -> anyhow::Result<Table> {
        let mut system = System::new().map_err(|error| anyhow::anyhow!("reading the processes: {error}"))?;
        let what = ProcessRefreshKind::nothing()
            .with_cmd(UpdateKind::Always)
            .with_cwd(UpdateKind::Always)
            .with_exe(UpdateKind::Always);
        system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
        let mut all = HashMap::new();
        for (pid, process) in system.processes() {
            let ended = matches!(process.status(), ProcessStatus::Zombie | ProcessStatus::Dead);
            if ended || process.thread_kind().is_some() {
                continue;
            }
            let text = |part: &std::ffi::OsString| part.to_string_lossy().into_owned();
            let entry = Entry {
                parent: process.parent().map(Pid::as_u32),
                argv: process.cmd().iter().map(text).collect(),
                cwd: process.cwd().map(Path::to_path_buf),
                exe: process.exe().map(Path::to_path_buf),
                started: process.start_time(),
            };
            all.insert(pid.as_u32(), entry);
        }
        Ok(Table::of(all, listeners, std::process::id()))
    }

    fn of(mut all: HashMap<u32, Entry>, listeners: &[Listener], me: u32) -> Table {
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
        let mut table = Table { all, children, listening, me, above_us: BTreeSet::new() };
        table.above_us = table.ancestors(me).into_iter().collect();
        table
    }

    /// The pids above `pid`, nearest first.
    fn ancestors(&self, pid: u32) -> Vec<u32> {
        let mut above = Vec::new();
        let mut at = self.all.get(&pid).and_then(|entry| entry.parent);
        while let Some(next) = at.filter(|next| *next != pid && !above.contains(next)) {
            above.push(next);
            at = self.all.get(&next).and_then(|entry| entry.parent);
        }
        above
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
    fn below(&self, top: u32) -> Vec<u32> {
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
    fn is_fair(&self, pid: u32) -> bool {
        pid != self.me && (!self.above_us.contains(&pid) || self.listening.contains(&pid))
    }

    /// How `pid` itself is tied to the root, not looking at its parents' ties.
    fn tie(&self, pid: u32, root: &Path) -> Tie {
        let Some(entry) = self.all.get(&pid) else { return Tie::None };
        if entry.programs().iter().any(|program| lies_in(program, root)) {
            return Tie::Program;
        }
        let stands = entry.cwd.as_deref().is_some_and(|cwd| lies_in(cwd, root));
        if stands && entry.runs_module() {
            return Tie::Program;
        }
        let foreign = || self.ancestors(pid).iter().any(|above| self.is_of_another(*above, root));
        if stands && !entry.is_shell() && !foreign() { Tie::Place } else { Tie::None }
    }

    /// True when the program of `pid` lies in an install that is not this one.
    fn is_of_another(&self, pid: u32, root: &Path) -> bool {
        let programs = self.all.get(&pid).map(Entry::programs).unwrap_or_default();
        programs.iter().any(|p| !lies_in(p, root) && p.ancestors().skip(1).any(is_install))
    }

    fn tie_with_parents(&self, pid: u32, root: &Path) -> Tie {
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
    fn top(&self, pid: u32, root: &Path) -> u32 {
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

impl Entry {
    /// The bare name of the program: no folder, no `.exe`, no version (`python3.12` is `python`).
    fn name(&self) -> String {
        let first = self.argv.first().map(String::as_str).unwrap_or_default();
        let shown = first.rsplit(['/', '\\']).next().unwrap_or_default().to_lowercase();
        let plain = shown.strip_suffix(".exe").unwrap_or(&shown).trim_start_matches('-');
        plain.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.').to_string()
    }

    fn is_interpreter(&self) -> bool {
        INTERPRETERS.contains(&self.name().as_str())
    }

    fn is_shell(&self) -> bool {
        let name = self.name();
        SHELLS.contains(&name.as_str()) || SHELL_STARTS.iter().any(|start| name.starts_with(start))
    }

    /// The first plain argument of an interpreter or shell, past its options. None with `-c` or `-m`.
    fn script(&self) -> Option<&str> {
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
    fn runs_module(&self) -> bool {
        let mut options = self.argv.iter().skip(1).take_while(|a| a.starts_with('-') && a.as_str() != "-c");
        self.is_interpreter() && options.any(|a| a.starts_with("-m") || (is_inline(a) && a.ends_with('m')))
    }

    /// Where its executable and its script lie: as started, resolved against its working folder.
    fn programs(&self) -> Vec<PathBuf> {
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
        found
    }
}

/// `-c`, `-m` and bundles that end with them (`-uc`, `-Bm`).
fn is_inline(argument: &str) -> bool {
    let short = argument.starts_with('-') && !argument.starts_with("--");
    short && argument.len() <= 5 && argument.ends_with(['c', 'm'])
}

/// A path without `.` and `..`, not following links (a venv's python must stay in the venv).
fn plain(path: &Path) -> PathBuf {
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

/// True when `path` is `root` or below it, and not in another install nested there.
fn lies_in(path: &Path, root: &Path) -> bool {
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
fn is_install(folder: &Path) -> bool {
    folder.join(".updater").is_dir() || (folder.join("run.py").is_file() && folder.join("app").is_dir())
}

/// True when the process is of the install: its script or executable lies under the root, or it works
/// there and descends from no other install, or it listens and is a child of such a process.
pub fn belongs(table: &Table, pid: u32, root: &InstallRoot) -> bool {
    table.is_fair(pid) && table.tie_with_parents(pid, root.path()) != Tie::None
}

/// The running server of an install.
#[derive(Debug)]
pub struct Running {
    /// The root of the tree first.
    pub processes: Vec<Process>,
    /// Ascending, each once.
    pub ports: Vec<u16>,
    pub listeners: Vec<Listener>,
    pub launch: LaunchSpec,
    pub managed_by: Option<String>,
    /// One per process, held from detection to the kill.
    pub handles: Vec<Handle>,
}

impl Running {
    /// The identities of all its processes.
    pub fn ids(&self) -> Vec<ProcessId> {
        self.processes.iter().map(|process| process.id).collect()
    }
}

/// The running server of the install. None: nothing of it listens. Errors: several servers run, or the
/// system does not tell.
pub fn find(root: &InstallRoot) -> anyhow::Result<Option<Running>> {
    let listeners = ports::listeners()?;
    let table = Table::read(&listeners)?;
    match the_top(&table, root)? {
        Some(top) => gather(&table, listeners, top, root),
        None => Ok(None),
    }
}

/// The tree of a server that is known by its identity (one that we started, listening or not).
/// None: it has ended. Errors: the system does not tell.
pub fn tree_of(id: ProcessId, root: &InstallRoot) -> anyhow::Result<Option<Running>> {
    let listeners = ports::listeners()?;
    let table = Table::read(&listeners)?;
    let now = processes::identity(id.pid).with_context(|| format!("reading process {}", id.pid))?;
    if now == Some(id) { gather(&table, listeners, id.pid, root) } else { Ok(None) }
}

/// Holds the tree below `top`. None: it ended meanwhile.
fn gather(table: &Table, listeners: Vec<Listener>, top: u32, root: &InstallRoot) -> anyhow::Result<Option<Running>> {
    let mut members = vec![top];
    members.extend(table.below(top));
    let mut found = Vec::new();
    let mut handles = Vec::new();
    for pid in &members {
        let Some(process) = table.process(*pid)? else { continue };
        if let Some(handle) = Handle::open(process.id).with_context(|| format!("holding process {pid}"))? {
            found.push(process);
            handles.push(handle);
        }
    }
    if found.first().is_none_or(|first| first.id.pid != top) {
        return Ok(None);
    }
    let of_tree: Vec<Listener> =
        listeners.into_iter().filter(|l| l.pids.iter().any(|pid| members.contains(pid))).collect();
    let ports: BTreeSet<u16> = of_tree.iter().map(|l| l.port).collect();
    let launch = captured_launch(table, top, root)?;
    let managed_by = os::service::unit_of(top).with_context(|| format!("finding the unit of process {top}"))?;
    let ports = ports.into_iter().collect();
    Ok(Some(Running { processes: found, ports, listeners: of_tree, launch, managed_by, handles }))
}

/// The top of the one tree that listens. A tree of the install's own program wins over what merely works
/// in the folder.
fn the_top(table: &Table, root: &InstallRoot) -> anyhow::Result<Option<u32>> {
    let owners = table.listening.iter().copied().filter(|pid| table.is_fair(*pid));
    let tied: Vec<(u32, Tie)> = owners.map(|pid| (pid, table.tie_with_parents(pid, root.path()))).collect();
    let best = tied.iter().map(|(_, tie)| *tie).max().unwrap_or(Tie::None);
    if best == Tie::None {
        return Ok(None);
    }
    let chosen = tied.iter().filter(|(_, tie)| *tie == best);
    let tops: BTreeSet<u32> = chosen.map(|(pid, _)| table.top(*pid, root.path())).collect();
    let outer: Vec<u32> = tops.iter().copied().filter(|pid| !table.is_below_any(*pid, &tops)).collect();
    match outer.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        several => {
            let named: Vec<String> = several.iter().map(|pid| table.describe(*pid)).collect();
            let message = format!("several servers of this install run: {}", named.join("; "));
            Err(Failure::failed("several-servers", message)
                .at(root.path().display())
                .remedy("end all but one of them, then try again")
                .into())
        }
    }
}

impl Table {
    fn is_below_any(&self, pid: u32, tops: &BTreeSet<u32>) -> bool {
        self.ancestors(pid).iter().any(|above| tops.contains(above))
    }

    /// `pid 12 (user web, command python run.py)`
    fn describe(&self, pid: u32) -> String {
        let user = processes::credentials(pid).map(|c| c.user).unwrap_or_else(|_| "unknown".to_string());
        let command = self.all.get(&pid).map(|entry| entry.argv.join(" ")).unwrap_or_default();
        format!("pid {pid} (user {user}, command {command})")
    }
}

/// The tree of the stranger that holds `port`. None: nobody does. Errors: the system does not tell.
pub fn owner_tree(port: u16, root: &InstallRoot) -> anyhow::Result<Option<Running>> {
    let listeners = ports::listeners()?;
    let table = Table::read(&listeners)?;
    let owner = listeners.iter().filter(|l| l.port == port).flat_map(|l| &l.pids).find(|pid| table.is_fair(**pid));
    owner.map_or(Ok(None), |pid| gather(&table, listeners.clone(), *pid, root))
}

/// How the process was started, from what the system still knows.
fn captured_launch(table: &Table, pid: u32, root: &InstallRoot) -> anyhow::Result<LaunchSpec> {
    let entry = table.all.get(&pid).with_context(|| format!("process {pid} has ended"))?;
    let hidden = |what: &str| {
        Failure::failed("launch-hidden", format!("the {what} of the server (pid {pid}) cannot be read"))
            .remedy("run as the user of the server, or as the administrator")
    };
    let cwd = entry.cwd.clone().ok_or_else(|| hidden("working folder"))?;
    let read = match processes::command_of(pid) {
        Ok(read) => read,
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            let message = format!("the server (pid {pid}) cannot be started again exactly as it was: {e}");
            return Err(Failure::failed("launch-not-text", message)
                .remedy("start the server with a plain command line and environment, then try again")
                .into());
        }
        Err(_) => return Err(hidden("command line or environment").into()),
    };
    if read.argv.is_empty() {
        return Err(hidden("command line").into());
    }
    let [out_default, err_default] = default_outputs(root);
    let credentials = processes::credentials(pid).with_context(|| format!("reading the user of process {pid}"))?;
    // A log that another user opened for the server (a shell of root's) cannot be opened by it again.
    let [out, err] = processes::outputs(pid).map(|log| log.filter(|path| files::may_write(path, &credentials)));
    Ok(LaunchSpec {
        argv: read.argv,
        cwd,
        env: read.env,
        stdout: out.unwrap_or(out_default),
        stderr: err.unwrap_or(err_default),
        credentials: Some(credentials),
    })
}

/// Where a server's output goes when its former target is not known.
fn default_outputs(root: &InstallRoot) -> [PathBuf; 2] {
    let instance = root.path().join("instance");
    let folder = if instance.is_dir() { instance } else { root.own().join("log") };
    [folder.join("server_update_stdout.log"), folder.join("server_update_stderr.log")]
}

/// The failure that says who holds `port`, when that is not this install. None: it is free or ours.
/// Errors: the system does not tell.
pub fn foreign_owner(port: u16, root: &InstallRoot) -> anyhow::Result<Option<Failure>> {
    let listeners = ports::listeners()?;
    let held: Vec<&Listener> = listeners.iter().filter(|l| l.port == port).collect();
    if held.is_empty() {
        return Ok(None);
    }
    let table = Table::read(&listeners)?;
    let ours = the_top(&table, root).ok().flatten();
    let is_ours = |pid: u32| belongs(&table, pid, root) || ours.is_some_and(|top| table.descends(pid, top));
    let foreign = held.iter().find(|l| !l.pids.iter().any(|pid| is_ours(*pid)));
    Ok(foreign.map(|listener| {
        let owner = match listener.pids.first() {
            Some(pid) => table.describe(*pid),
            None => "a process that we may not see".to_string(),
        };
        Failure::failed("port-foreign", format!("port {port} is held by {owner}, which is not of this install"))
            .at(root.path().display())
            .remedy("end that process, name another port with --port, or allow its end with --stop-foreign")
    }))
}

/// How to start a server that does not run: the command of the settings, else the install's own python
/// with `run.py`. Errors: there is no `run.py` either, or the owner of the root is hidden.
pub fn guess_launch(
    root: &InstallRoot,
    settings_command: Option<&[String]>,
    env: &BTreeMap<String, String>,
) -> anyhow::Result<LaunchSpec> {
    let argv = match settings_command.filter(|command| !command.is_empty()) {
        Some(command) => anchored(command, root),
        None => vec![python_of(root), "run.py".to_string()],
    };
    if settings_command.is_none_or(<[String]>::is_empty) && !root.path().join("run.py").is_file() {
        return Err(Failure::failed("no-launch", "how the server is started is not known: there is no run.py")
            .at(root.path().display())
            .remedy("set `command` in updater.toml")
            .into());
    }
    let text = |part: std::ffi::OsString| part.to_string_lossy().into_owned();
    let mut whole: Vec<(String, String)> = std::env::vars_os().map(|(k, v)| (text(k), text(v))).collect();
    whole.retain(|(name, _)| !env.contains_key(name));
    whole.extend(env.iter().map(|(name, value)| (name.clone(), value.clone())));
    let [stdout, stderr] = default_outputs(root);
    let credentials = credentials_of_owner(root)?;
    Ok(LaunchSpec { argv, cwd: root.path().to_path_buf(), env: whole, stdout, stderr, credentials })
}

/// A program given relative to the root becomes absolute; a bare name is left to PATH.
fn anchored(command: &[String], root: &InstallRoot) -> Vec<String> {
    let mut argv = command.to_vec();
    if let Some(first) = argv.first_mut() {
        let path = Path::new(first.as_str());
        if path.is_relative() && path.components().count() > 1 {
            *first = plain(&root.path().join(path)).to_string_lossy().into_owned();
        }
    }
    argv
}

fn python_of(root: &InstallRoot) -> String {
    let known = [".venv/bin/python", "venv/bin/python", ".venv/Scripts/python.exe", "venv/Scripts/python.exe"];
    let mut paths = known.iter().map(|relative| root.path().join(relative));
    let found = paths.find(|path| path.is_file());
    found.map_or_else(|| "python3".to_string(), |path| path.to_string_lossy().into_owned())
}

/// The owner of the root, when we are the administrator and he is somebody else.
fn credentials_of_owner(root: &InstallRoot) -> anyhow::Result<Option<Credentials>> {
    let owner = os::files::facts(root.path()).with_context(|| format!("reading {}", root.path().display()))?.owner;
    let own = processes::own_credentials().context("reading our own user")?;
    if own.uid != 0 || owner.uid == 0 {
        return Ok(None);
    }
    let (uid, gid) = (owner.uid, owner.gid);
    Ok(Some(Credentials { uid, gid, groups: vec![gid], umask: 0o022, user: uid.to_string() }))
}

/// Refuses before anything is changed when the server cannot be signalled by us.
pub fn may_stop(running: &Running) -> anyhow::Result<()> {
    for (process, handle) in running.processes.iter().zip(&running.handles) {
        let pid = process.id.pid;
        if !handle.may_signal().with_context(|| format!("asking whether process {pid} can be ended"))? {
            let message = format!("the server (pid {pid}, user {}) may not be ended by us", process.user);
            return Err(Failure::failed("cannot-signal", message)
                .remedy(format!("run as user {} or as the administrator", process.user))
                .into());
        }
    }
    Ok(())
}

/// Ends the whole tree: asks politely, waits `timeout` (calling `tick` at least every 10 ms), then kills;
/// afterwards waits until its ports are free. Children started meanwhile are ended too.
/// Errors: what `tick` says, a process that cannot be ended, a port that stays taken (its holder is named).
pub fn stop(running: &Running, timeout: Duration, tick: &mut dyn FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut late = Latecomers::default();
    // What was started since detection is held while its parents still show whose it is.
    late.scan(running, false)?;
    for handle in &running.handles {
        end(handle, false)?;
    }
    let mut scanned = Instant::now();
    let mut killed: BTreeSet<u32> = BTreeSet::new();
    loop {
        tick()?;
        let force = started.elapsed() >= timeout;
        let alive = first_alive(running, &late)?;
        if scanned.elapsed() >= RESCAN || alive.is_none() {
            late.scan(running, force)?;
            scanned = Instant::now();
        }
        let Some(alive) = first_alive(running, &late)? else { break };
        if force {
            for handle in running.handles.iter().chain(&late.handles) {
                if handle.is_alive()? && killed.insert(handle.id().pid) {
                    end(handle, true)?;
                }
            }
            if started.elapsed() >= timeout + PORTS_FREE {
                let message = format!("process {} does not end, not even when killed", alive.id().pid);
                return Err(Failure::failed("stop-failed", message).into());
            }
        }
        alive.wait(POLL).with_context(|| format!("waiting for process {}", alive.id().pid))?;
    }
    wait_for_ports(&running.ports, tick)
}

/// What appeared in the tree after it was found.
#[derive(Default)]
struct Latecomers {
    handles: Vec<Handle>,
}

impl Latecomers {
    /// Looks for children of the tree that are not held yet, holds them and asks them to end.
    fn scan(&mut self, running: &Running, force: bool) -> anyhow::Result<()> {
        let table = Table::read(&running.listeners)?;
        let known: Vec<ProcessId> = running.ids().into_iter().chain(self.handles.iter().map(Handle::id)).collect();
        for member in &known {
            // A pid whose process has ended may belong to a stranger by now.
            if processes::identity(member.pid)? != Some(*member) {
                continue;
            }
            for pid in table.below(member.pid) {
                let id = processes::identity(pid)?.filter(|id| !known.contains(id));
                let is_held = id.is_some_and(|id| self.handles.iter().any(|handle| handle.id() == id));
                if let Some(id) = id.filter(|_| !is_held)
                    && let Some(handle) = Handle::open(id)?
                {
                    end(&handle, force)?;
                    self.handles.push(handle);
                }
            }
        }
        Ok(())
    }
}

fn end(handle: &Handle, force: bool) -> anyhow::Result<()> {
    let asked = if force { handle.kill() } else { handle.ask_to_end() };
    asked.with_context(|| format!("ending process {}", handle.id().pid))
}

fn first_alive<'a>(running: &'a Running, late: &'a Latecomers) -> anyhow::Result<Option<&'a Handle>> {
    for handle in running.handles.iter().chain(&late.handles) {
        if handle.is_alive().with_context(|| format!("asking for process {}", handle.id().pid))? {
            return Ok(Some(handle));
        }
    }
    Ok(None)
}

fn wait_for_ports(ports: &[u16], tick: &mut dyn FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let until = Instant::now() + PORTS_FREE;
    loop {
        let held: Vec<Listener> = ports::listeners()?.into_iter().filter(|l| ports.contains(&l.port)).collect();
        let Some(first) = held.first() else { return Ok(()) };
        if Instant::now() >= until {
            let table = Table::read(&held)?;
            let owner = match first.pids.first() {
                Some(pid) => table.describe(*pid),
                None => "a process that we may not see".to_string(),
            };
            let message = format!("port {} stays taken after the stop: it is held by {owner}", first.port);
            return Err(Failure::failed("port-held", message)
                .remedy("end that process; if something restarts the server, stop it there")
                .into());
        }
        tick()?;
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    const SERVE: &str = "import http.server,os\n\
        http.server.ThreadingHTTPServer(('127.0.0.1',int(os.environ['PORT'])),http.server.SimpleHTTPRequestHandler)\
        .serve_forever()\n";

    /// A child that is ended with the test, by its own handle.
    struct Ended(Child);
    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn install(text: &str) -> (tempfile::TempDir, InstallRoot) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("app")).unwrap();
        std::fs::create_dir(folder.path().join("instance")).unwrap();
        std::fs::write(folder.path().join("run.py"), text).unwrap();
        let root = InstallRoot::resolve(folder.path()).unwrap();
        (folder, root)
    }

    fn free_port() -> u16 {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    fn start(root: &InstallRoot, command: &[&str], port: u16) -> Ended {
        let mut child = Command::new(command[0]);
        child.args(&command[1..]).current_dir(root.path()).env("PORT", port.to_string());
        Ended(child.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn wait_listening(port: u16) {
        let until = Instant::now() + Duration::from_secs(20);
        while ports::is_free(port).unwrap() {
            assert!(Instant::now() < until, "nothing listens on {port}");
            std::thread::sleep(POLL);
        }
    }

    #[test]
    fn the_server_is_found_and_stopped_and_bystanders_live() {
        let (_a, ours) = install(SERVE);
        let (_b, theirs) = install(SERVE);
        let (port, other) = (free_port(), free_port());
        let server = start(&ours, &["python3", "run.py"], port);
        let mut bystander = start(&theirs, &["python3", "run.py"], other);
        let mut reader = start(&ours, &["tail", "-f", "run.py"], port);
        wait_listening(port);
        wait_listening(other);
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();

        let running = find(&ours).unwrap().unwrap();
        assert_eq!(running.ids().iter().map(|id| id.pid).collect::<Vec<_>>(), [server.0.id()]);
        assert_eq!(running.ports, [port]);
        // The first one may be the program that a wrapper on PATH turned into.
        assert_eq!(running.launch.argv[1..], ["run.py"]);
        assert_eq!(running.launch.cwd, ours.path());
        assert!(running.launch.env.contains(&("PORT".to_string(), port.to_string())));
        assert!(foreign_owner(port, &ours).unwrap().is_none());
        assert_eq!(foreign_owner(other, &ours).unwrap().unwrap().code, "port-foreign");
        may_stop(&running).unwrap();

        stop(&running, Duration::from_secs(10), &mut || Ok(())).unwrap();
        assert!(ports::is_free(port).unwrap());
        assert!(find(&ours).unwrap().is_none());
        assert!(bystander.0.try_wait().unwrap().is_none());
        assert!(reader.0.try_wait().unwrap().is_none());
        assert!(find(&theirs).unwrap().is_some());
        drop(client);
    }

    #[test]
    fn the_children_of_a_server_that_ignores_the_polite_signal_end_too() {
        let (_a, root) = install(&format!(
            "import signal,subprocess\nsignal.signal(signal.SIGTERM,signal.SIG_IGN)\n\
             subprocess.Popen(['sleep','600'],cwd='/')\n{SERVE}"
        ));
        let port = free_port();
        let _server = start(&root, &["python3", "-u", "run.py"], port);
        wait_listening(port);
        let running = find(&root).unwrap().unwrap();
        assert_eq!(running.processes.len(), 2);
        stop(&running, Duration::from_millis(300), &mut || Ok(())).unwrap();
        for handle in &running.handles {
            assert!(!handle.is_alive().unwrap());
        }
    }

    #[test]
    fn two_servers_of_one_install_are_refused() {
        let (_a, root) = install(SERVE);
        let (first, second) = (free_port(), free_port());
        let _one = start(&root, &["python3", "run.py"], first);
        let _two = start(&root, &["python3", "run.py"], second);
        wait_listening(first);
        wait_listening(second);
        let error = find(&root).unwrap_err();
        assert_eq!(crate::error::record(&error).code, "several-servers");
    }

    fn entry(parent: u32, cwd: &str, argv: &[&str]) -> Entry {
        let argv = argv.iter().map(|part| part.to_string()).collect();
        Entry { parent: Some(parent), argv, cwd: Some(cwd.into()), exe: None, started: 1 }
    }

    fn listener(pids: &[u32]) -> Listener {
        Listener { address: std::net::Ipv4Addr::LOCALHOST.into(), port: 1, pids: pids.to_vec() }
    }

    #[test]
    fn shells_and_editors_above_a_server_are_left_alone() {
        let (_a, root) = install("");
        let here = root.path().to_str().unwrap().to_string();
        let all = HashMap::from([
            (10, entry(1, &here, &["vim", "run.py"])),
            (11, entry(10, &here, &["bash"])),
            (12, entry(11, &here, &["python3", "-W", "ignore", "run.py"])),
            (13, entry(12, "/", &["worker"])),
            (14, entry(12, &here, &["updater", "apply"])),
            (15, entry(14, &here, &["unzip"])),
        ]);
        let table = Table::of(all, &[listener(&[12])], 14);
        assert_eq!(the_top(&table, &root).unwrap(), Some(12));
        assert_eq!(table.below(12), [13]);
        assert!(!belongs(&table, 14, &root) && !belongs(&table, 11, &root));
    }

    #[test]
    fn a_nested_or_foreign_install_is_not_ours() {
        let (_a, root) = install("");
        let (_b, other) = install("");
        let nested = root.path().join("copy");
        std::fs::create_dir_all(nested.join(".updater")).unwrap();
        let (here, there) = (root.path().to_str().unwrap(), other.path().to_str().unwrap());
        let all = HashMap::from([
            (10, entry(1, nested.to_str().unwrap(), &["python3", "run.py"])),
            (11, entry(1, there, &["python3", "run.py"])),
            (12, entry(11, here, &["worker"])),
            (13, entry(1, here, &["python3.12", "-m", "waitress"])),
        ]);
        let table = Table::of(all, &[listener(&[10, 11, 12, 13])], 99);
        let ours: Vec<bool> = (10..14).map(|pid| belongs(&table, pid, &root)).collect();
        assert_eq!(ours, [false, false, false, true]);
    }

    #[test]
    fn the_guess_prefers_the_settings_then_the_venv() {
        let (_a, root) = install("");
        let env = BTreeMap::from([("PORT".to_string(), "81".to_string())]);
        assert_eq!(guess_launch(&root, None, &env).unwrap().argv, ["python3", "run.py"]);
        let python = root.path().join(".venv/bin/python");
        std::fs::create_dir_all(python.parent().unwrap()).unwrap();
        std::fs::write(&python, "").unwrap();
        let guess = guess_launch(&root, None, &env).unwrap();
        assert_eq!(guess.argv[0], python.to_str().unwrap());
        assert!(guess.env.contains(&("PORT".to_string(), "81".to_string())));
        let command = ["bin/serve".to_string(), "-x".to_string()];
        let argv = guess_launch(&root, Some(&command), &env).unwrap().argv;
        assert_eq!(argv, [root.path().join("bin/serve").to_str().unwrap(), "-x"]);
    }
}
