//! The server of an install as processes: which ones belong to it, the tree they form, how it was
//! started, and its end.
//! Refuses to guess: a process that is not provably of the install is a bystander and is never signalled;
//! neither are we, our children, or the processes above us (unless they are the server that started us).

mod claim;
mod launch;
mod respawn;
mod stop;
mod table;
mod unit;

pub use claim::written as written_ports;
pub use launch::guess_launch;
pub use respawn::refuse_respawners;
pub use stop::{may_stop, stop};
pub use table::{Process, Table, belongs, plain};
pub use unit::{Launched, may_control, start_unit, stop_unit};

use crate::base::error::{Code, Failure};
use crate::ports::{self, Listener};
use crate::state::root::InstallRoot;
use crate::system::processes::{self, Handle};
use crate::system::{LaunchSpec, ProcessId, Unit, files, remedies, service};
use anyhow::Context;
use launch::captured_launch;
use std::collections::BTreeSet;
use table::{Entry, Tie};

/// The running server of an install.
#[derive(Debug)]
pub struct Running {
    /// The root of the tree first.
    pub processes: Vec<Process>,
    /// Ascending, each once.
    pub ports: Vec<u16>,
    pub listeners: Vec<Listener>,
    pub launch: LaunchSpec,
    /// The unit that is stopped and started in place of its processes.
    pub managed_by: Option<Unit>,
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
    match the_top(&table, &listeners, root)? {
        Some(top) => gather(&table, listeners, top, root),
        None => Ok(None),
    }
}

/// Holds the tree below `top`. None: it ended meanwhile.
fn gather(table: &Table, listeners: Vec<Listener>, top: u32, root: &InstallRoot) -> anyhow::Result<Option<Running>> {
    let mut members = vec![top];
    members.extend(table.below(top));
    // What left the tree and still holds a socket of it ends with the server, if it is of this install.
    let theirs = listeners.iter().filter(|l| l.pids.iter().any(|pid| members.contains(pid))).flat_map(|l| &l.pids);
    let heirs: BTreeSet<u32> = theirs.copied().filter(|pid| belongs(table, *pid, root)).collect();
    members.extend(heirs.into_iter().filter(|pid| !members.contains(pid)).collect::<Vec<_>>());
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
    let managed_by = service::manager().unit_of(top).with_context(|| format!("finding the unit of process {top}"))?;
    let ports = ports.into_iter().collect();
    Ok(Some(Running { processes: found, ports, listeners: of_tree, launch, managed_by, handles }))
}

/// The top of the one tree that listens. A tree of the install's own program wins over what merely works
/// in the folder.
fn the_top(table: &Table, listeners: &[Listener], root: &InstallRoot) -> anyhow::Result<Option<u32>> {
    let owners = table.listening.iter().copied().filter(|pid| table.is_fair(*pid));
    let tied: Vec<(u32, Tie)> = owners.map(|pid| (pid, table.tie_with_parents(pid, root))).collect();
    let best = tied.iter().map(|(_, tie)| *tie).max().unwrap_or(Tie::None);
    if best == Tie::None {
        return Ok(None);
    }
    let chosen = tied.iter().filter(|(_, tie)| *tie == best);
    let tops: BTreeSet<u32> = chosen.map(|(pid, _)| table.top(*pid, root)).collect();
    let mut outer: Vec<u32> = tops.iter().copied().filter(|pid| !table.is_below_any(*pid, &tops)).collect();
    // One that left the tree and holds nothing but sockets of an older one is its heir, no server of its own.
    let sockets = |top: u32| -> BTreeSet<usize> {
        let of_top = |l: &Listener| l.pids.iter().any(|pid| table.descends(*pid, top));
        listeners.iter().enumerate().filter(|(_, l)| of_top(l)).map(|(at, _)| at).collect()
    };
    let born = |pid: u32| processes::identity(pid).ok().flatten().map_or(u64::MAX, |id| id.start);
    let all = outer.clone();
    let inherits = |one: u32, other: u32| {
        one != other && (born(other), other) < (born(one), one) && sockets(one).is_subset(&sockets(other))
    };
    outer.retain(|one| !all.iter().any(|other| inherits(*one, *other)));
    match outer.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        several => {
            let named: Vec<String> = several.iter().map(|pid| table.describe(*pid)).collect();
            let message = format!("several servers of this install run: {}", named.join("; "));
            Err(Failure::failed(Code::SeveralServers, message)
                .at(root.path().display())
                .remedy("end all but one of them, then try again")
                .into())
        }
    }
}

/// The failure that names a server of the install which listens in another network namespace (a container, a unit with
/// `PrivateNetwork=`): from here its port can be neither asked nor judged. None: there is none.
/// Errors: the system does not tell.
pub fn elsewhere(root: &InstallRoot) -> anyhow::Result<Option<Failure>> {
    let table = Table::read(&[])?;
    let folder = files::metadata(root.path()).with_context(|| format!("looking at {}", root.path().display()))?;
    let mut pids: Vec<u32> = table.all.keys().copied().filter(|pid| table.is_fair(*pid)).collect();
    pids.sort_unstable();
    for pid in pids {
        let is_shell = table.all.get(&pid).is_none_or(Entry::is_shell);
        let is_ours = table.tie(pid, root) != Tie::None
            || !is_shell && processes::stands_in(pid, &folder) && !table::is_strangers(pid, root.path());
        if !is_ours {
            continue;
        }
        let ports = processes::ports_elsewhere(pid).with_context(|| format!("looking at the network of {pid}"))?;
        if let Some(port) = ports.first() {
            let message = format!(
                "the server runs in another network namespace: {} listens on port {port} there, which cannot be asked \
                 from here",
                table.describe(pid)
            );
            return Ok(Some(Failure::failed(Code::OtherNamespace, message).at(root.path().display()).remedy(format!(
                "run the updater in that network ({}), or stop the server, update with --no-start, and start it again; a \
                 container gets the new version by its image",
                remedies::enter_network(pid)
            ))));
        }
    }
    Ok(None)
}

/// The tree of the stranger that holds `port`. None: nobody does. Errors: the system does not tell.
pub fn owner_tree(port: u16, root: &InstallRoot) -> anyhow::Result<Option<Running>> {
    let listeners = ports::listeners()?;
    let table = Table::read(&listeners)?;
    let owner = listeners.iter().filter(|l| l.port == port).flat_map(|l| &l.pids).find(|pid| table.is_fair(**pid));
    owner.map_or(Ok(None), |pid| gather(&table, listeners.clone(), *pid, root))
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
    let ours = the_top(&table, &listeners, root).ok().flatten();
    let is_ours = |pid: u32| belongs(&table, pid, root) || ours.is_some_and(|top| table.descends(pid, top));
    let foreign = held.iter().find(|l| !l.pids.iter().any(|pid| is_ours(*pid)));
    Ok(foreign.map(|listener| {
        let usual = "end that process, name another port with --port, or allow its end with --stop-foreign";
        let (owner, remedy) = match listener.pids.first() {
            // Docker listens for its containers; its end would not free the port for ours.
            Some(pid) if table.is_called(*pid, "docker-proxy") => {
                (table.describe(*pid), "the server runs in a container: run the updater inside of it")
            }
            Some(pid) => (table.describe(*pid), usual),
            None => match processes::users_listening(port).as_slice() {
                [] => ("a process that we may not see".to_string(), "run as that process's user, or as root"),
                users => {
                    let who = format!("a process of the user {}, into which we may not look", users.join(" and "));
                    (
                        who,
                        "run as that user, or as root; if it is no server of this install, end it or name another port",
                    )
                }
            },
        };
        Failure::failed(Code::PortForeign, format!("port {port} is held by {owner}, which is not of this install"))
            .at(root.path().display())
            .remedy(remedy)
    }))
}

#[cfg(test)]
mod tests {
    use super::table::Entry;
    use super::*;
    use std::collections::{BTreeMap, HashMap};
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

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
            std::thread::sleep(Duration::from_millis(10));
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
        assert_eq!(foreign_owner(other, &ours).unwrap().unwrap().code, Code::PortForeign);
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
        assert_eq!(crate::base::error::record(&error).code, "several-servers");
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
        assert_eq!(the_top(&table, &[listener(&[12])], &root).unwrap(), Some(12));
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
    fn a_script_that_is_a_handle_makes_nobody_ours() {
        use std::os::fd::AsRawFd;
        let (_a, root) = install("");
        // Under this name we would find a file of the install.
        let ours = std::fs::File::open(root.path().join("run.py")).unwrap();
        let name = format!("/dev/fd/{}", ours.as_raw_fd());
        let table = Table::of(HashMap::from([(10, entry(1, "/", &["bash", &name]))]), &[listener(&[10])], 99);
        assert!(!belongs(&table, 10, &root));
    }

    #[test]
    fn the_guess_prefers_the_settings_then_the_venv() {
        let (_a, root) = install("");
        let env = BTreeMap::from([("PORT".to_string(), "81".to_string())]);
        assert_eq!(guess_launch(&root, None, &env, None).unwrap().argv, ["python3", "run.py"]);
        let python = root.path().join(".venv/bin/python");
        std::fs::create_dir_all(python.parent().unwrap()).unwrap();
        std::fs::write(&python, "").unwrap();
        let guess = guess_launch(&root, None, &env, None).unwrap();
        assert_eq!(guess.argv[0], python.to_str().unwrap());
        assert!(guess.env.contains(&("PORT".to_string(), "81".to_string())));
        let command = ["bin/serve".to_string(), "-x".to_string()];
        let argv = guess_launch(&root, Some(&command), &env, None).unwrap().argv;
        assert_eq!(argv, [root.path().join("bin/serve").to_str().unwrap(), "-x"]);
    }
}
