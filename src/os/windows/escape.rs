//! What ties this process to the servers: whether ending them would end us as well.
//! Refuses to move out by itself; that is the pipeline's decision.

use super::processes;
use crate::os::ProcessId;
use std::io;

/// Why ending these processes would end us: `process tree`, `job of an ancestor`, `service X`. None: it would not.
pub fn tied_to(servers: &[ProcessId]) -> io::Result<Option<String>> {
    let own = std::process::id();
    let mut at = Some(own);
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
            // Ending a parent alone ends no child here, but the tree is ended as one, and so is a job.
            let why = if processes::in_job()? { "job of an ancestor" } else { "process tree" };
            return Ok(Some(why.to_string()));
        }
        at = processes::parent(pid)?;
    }
    let Some(unit) = super::service::unit_of(own)? else { return Ok(None) };
    for server in servers {
        if super::service::unit_of(server.pid)?.as_ref() == Some(&unit) {
            return Ok(Some(format!("service {unit}")));
        }
    }
    Ok(None)
}
