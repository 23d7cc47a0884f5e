//! What ties this process to the servers (whether ending them would end us as well), and the ways out: a session
//! of its own, a transient unit, the helper's unit.
//! Refuses to decide when to leave; that is the pipeline's decision. Refuses to leave half: a process that did
//! not get in touch from outside has not left.

mod control_socket;

pub use control_socket::{ControlSocket, RemoteUpdater, arrive, depart, send};

use super::monitor::{self, Answer, Ask};
use super::{boot, processes, systemd};
use crate::system::service;
use crate::system::{EscapeRoute, ProcessId, Tie, ancestry};
use std::io;
use std::path::{Path, PathBuf};

/// Why ending these processes would end us. None: it would not.
pub fn tied_to(servers: &[ProcessId]) -> io::Result<Option<Tie>> {
    // Root's half is our parent, of our session and our unit, and sees what may be hidden from us.
    match monitor::ask(&Ask::TiedTo(servers.to_vec())) {
        Ok(Some(Answer::TiedTo(tie))) => return Ok(tie),
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
        _ => {}
    }
    tied(std::process::id(), servers)
}

fn tied(own: u32, servers: &[ProcessId]) -> io::Result<Option<Tie>> {
    // The strongest first: who leaves the unit leaves the tree, too.
    if let Some(unit) = service::manager().unit_of(own)? {
        for server in servers {
            if is(*server)? && service::manager().unit_of(server.pid)?.as_ref() == Some(&unit) {
                return Ok(Some(Tie::Unit(unit)));
            }
        }
    }
    if ancestry::is_below(own, servers)? {
        return Ok(Some(Tie::Tree));
    }
    let leader = processes::session(own)?;
    let leads = |server: &&ProcessId| leader == Some(server.pid);
    Ok(match servers.iter().find(leads) {
        Some(server) if is(*server)? => Some(Tie::Session),
        _ => None,
    })
}

fn is(id: ProcessId) -> io::Result<bool> {
    Ok(processes::identity(id.pid)? == Some(id))
}

/// The way out of what ties us, or, where nothing does, away from the caller. The inner error: there is none, in
/// words. `helper` is the name of the install's helper unit.
pub fn way_out(tie: Option<&Tie>, helper: &str) -> io::Result<Result<EscapeRoute, String>> {
    let own = rustix::process::geteuid();
    match tie {
        Some(Tie::Unit(_)) if own.is_root() => Ok(Ok(EscapeRoute::Transient { of_user: false })),
        Some(Tie::Unit(unit)) if unit.user == Some(own.as_raw()) => Ok(Ok(EscapeRoute::Transient { of_user: true })),
        Some(Tie::Unit(unit)) => {
            if boot::helper_answers(helper) {
                return Ok(Ok(EscapeRoute::Helper));
            }
            // Who may control the unit may usually start another one.
            Ok(match service::manager().refusal(unit)? {
                None => Ok(EscapeRoute::Transient { of_user: false }),
                Some(why) => Err(format!("a unit of our own outside of {unit} cannot be started by us: {why}")),
            })
        }
        // A session of a terminal or a job of cron ends by itself; a unit of root's own outlives both.
        None if own.is_root() && systemd::is_there() => Ok(Ok(EscapeRoute::Transient { of_user: false })),
        Some(Tie::Tree | Tie::Session) | None => Ok(Ok(EscapeRoute::Session)),
    }
}

/// A folder in which nobody but root has a say, where the process that asks and the one outside may meet. None: we are
/// not root, or there is no such folder.
pub fn roots_meeting_place() -> Option<PathBuf> {
    let run = Path::new("/run");
    (processes::own_uid() == 0 && run.is_dir()).then(|| run.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn an_ancestor_ties_and_a_child_does_not() {
        let own = processes::identity(std::process::id()).unwrap().unwrap();
        let mut child = Command::new("sleep").arg("30").spawn().unwrap();
        let id = processes::identity(child.id()).unwrap().unwrap();
        assert_eq!(tied(child.id(), &[own]).unwrap(), Some(Tie::Tree));
        let stale = ProcessId { start: own.start + 1, ..own };
        assert_ne!(tied(child.id(), &[stale]).unwrap(), Some(Tie::Tree));
        assert_ne!(tied_to(&[id]).unwrap(), Some(Tie::Tree));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn the_leader_of_the_session_ties() {
        // The shell that leads the session leaves its sleep to init.
        let mut leader = Command::new("setsid");
        let mut leader = leader.args(["sh", "-c", "sh -c 'sleep 30 & echo $!'; read x"]);
        leader = leader.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut leader = leader.spawn().unwrap();
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(leader.stdout.take().unwrap()), &mut line).unwrap();
        let orphan = processes::identity(line.trim().parse().unwrap()).unwrap().unwrap();
        let top = processes::session(orphan.pid).unwrap().unwrap();
        let id = processes::identity(top).unwrap().unwrap();
        // Until the shell between them has ended, it descends from the leader.
        let begun = std::time::Instant::now();
        let mut found = tied(orphan.pid, &[id]).unwrap();
        while found == Some(Tie::Tree) && begun.elapsed() < std::time::Duration::from_secs(10) {
            std::thread::sleep(std::time::Duration::from_millis(5));
            found = tied(orphan.pid, &[id]).unwrap();
        }
        processes::Handle::open(orphan).unwrap().unwrap().kill().unwrap();
        leader.kill().unwrap();
        leader.wait().unwrap();
        assert_eq!(found, Some(Tie::Session));
    }
}
