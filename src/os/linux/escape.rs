//! What ties this process to the servers: whether ending them would end us as well.
//! Refuses to move out by itself; that is the pipeline's decision.

use super::{processes, service};
use crate::os::ProcessId;
use std::io;

/// Why ending these processes would end us: `process tree`, `systemd unit X`. None: it would not.
pub fn tied_to(servers: &[ProcessId]) -> io::Result<Option<String>> {
    let own = std::process::id();
    tied(own, servers)
}

fn tied(pid: u32, servers: &[ProcessId]) -> io::Result<Option<String>> {
    let mut at = Some(pid);
    let mut seen = Vec::new();
    while let Some(pid) = at {
        // A pid that is reused while we walk could make a circle.
        if seen.contains(&pid) {
            break;
        }
        seen.push(pid);
        if let Some(id) = processes::identity(pid)?
            && servers.contains(&id)
        {
            return Ok(Some("process tree".to_string()));
        }
        at = processes::parent(pid)?;
    }
    let Some(own) = service::unit_of(pid)? else { return Ok(None) };
    for server in servers {
        if processes::identity(server.pid)? == Some(*server) && service::unit_of(server.pid)?.as_ref() == Some(&own) {
            return Ok(Some(format!("systemd unit {own}")));
        }
    }
    Ok(None)
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
        assert_eq!(tied(child.id(), &[own]).unwrap().as_deref(), Some("process tree"));
        let stale = ProcessId { start: own.start + 1, ..own };
        assert_ne!(tied(child.id(), &[stale]).unwrap().as_deref(), Some("process tree"));
        assert_ne!(tied_to(&[id]).unwrap().as_deref(), Some("process tree"));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
