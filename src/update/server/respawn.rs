//! Who would start the server again in the middle: a supervisor, a loop of a shell, a container.
//! Refuses to be sure where it cannot be: what is not recognised here is noticed after the stop, and rolled back.

use super::Running;
use super::table::{Entry, Table};
use crate::base::error::{Code, Failure};
use crate::base::fsx;
use std::path::Path;

/// Programs that start again what ends, and how each is told not to.
const SUPERVISORS: [(&str, &str); 12] = [
    ("supervisord", "stop it there (supervisorctl stop NAME), update, and start it there again"),
    ("runsv", "stop it there (sv down NAME), update, and start it there again (sv up NAME)"),
    ("supervise", "stop it there (svc -d NAME), update, and start it there again (svc -u NAME)"),
    ("s6-supervise", "stop it there (s6-svc -d NAME), update, and start it there again (s6-svc -u NAME)"),
    ("circusd", "stop it there (circusctl stop NAME), update, and start it there again"),
    ("pm2", "stop it there (pm2 stop NAME), update, and start it there again"),
    ("monit", "stop it there (monit stop NAME), update, and start it there again"),
    ("forever", "stop it there (forever stop NAME), update, and start it there again"),
    ("tini", CONTAINER),
    ("dumb-init", CONTAINER),
    ("docker-init", CONTAINER),
    ("catatonit", CONTAINER),
];

const CONTAINER: &str = "the container ends with its server: build the new version into its image, and start it anew";

/// Refuses before anything is changed where something is known to start the server again. A unit of the service
/// manager is stopped as one and needs no such care.
pub fn refuse_respawners(running: &Running) -> anyhow::Result<()> {
    let Some(top) = running.processes.first().filter(|_| running.managed_by.is_none()) else { return Ok(()) };
    let refused = |what: String, remedy: &str| {
        Err(Failure::failed(
            Code::Respawned,
            format!("{what} would start the server again in the middle of the update"),
        )
        .remedy(remedy)
        .into())
    };
    if top.id.pid == 1 {
        return refused("the server is process 1 of a container, which".to_string(), CONTAINER);
    }
    let table = Table::read(&running.listeners)?;
    let Some(parent) = table.parent(top.id.pid).filter(|parent| table.is_fair(*parent)) else { return Ok(()) };
    let Some(entry) = table.all.get(&parent) else { return Ok(()) };
    if let Some((_, remedy)) = SUPERVISORS.iter().find(|(name, _)| is_named(entry, name)) {
        return refused(table.describe(parent), remedy);
    }
    let server: Vec<&str> = top.argv.iter().filter_map(|word| base(word)).collect();
    if loops_around(entry, &server) {
        return refused(table.describe(parent), "end that loop, update, and start it again");
    }
    Ok(())
}

fn base(word: &str) -> Option<&str> {
    Path::new(word).file_name()?.to_str()
}

/// By its own name, or by the script that an interpreter runs; `pm2` calls itself `PM2 v5: God Daemon`.
fn is_named(entry: &Entry, name: &str) -> bool {
    let script = entry.script().and_then(base);
    let first = entry.argv.first().map(|word| word.to_lowercase()).unwrap_or_default();
    entry.name() == name || script == Some(name) || first.starts_with(&format!("{name} "))
}

/// A shell whose script, or text after `-c`, names the server between the `do` and the `done` of a loop.
fn loops_around(entry: &Entry, server: &[&str]) -> bool {
    if !entry.is_shell() {
        return false;
    }
    let inline =
        entry.argv.iter().position(|word| word.starts_with('-') && !word.starts_with("--") && word.ends_with('c'));
    let text = match (inline, entry.script(), &entry.cwd) {
        (Some(at), _, _) => entry.argv.get(at + 1).cloned(),
        (None, Some(script), Some(cwd)) => {
            fsx::read(&cwd.join(script), fsx::PROGRAM).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        }
        _ => None,
    };
    text.is_some_and(|text| is_looped(&text, server))
}

/// Shell is not parsed: words are counted, outside of comments.
fn is_looped(text: &str, server: &[&str]) -> bool {
    let without_comments = text.lines().map(|line| line.split(" #").next().unwrap_or(line));
    let lines = without_comments.filter(|line| !line.trim_start().starts_with('#'));
    let is_gap = |c: char| c.is_whitespace() || ";&|(){}\"'".contains(c);
    let mut depth = 0usize;
    for word in lines.flat_map(|line| line.split(is_gap)) {
        match word {
            "do" => depth += 1,
            "done" => depth = depth.saturating_sub(1),
            word if depth > 0 && base(word).is_some_and(|name| server.contains(&name)) => return true,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_loop_around_the_server_counts() {
        let server = ["python3", "run.py"];
        assert!(is_looped("while true; do python3 run.py; done", &server));
        assert!(is_looped("#!/bin/sh\nuntil false\ndo\n  /srv/x/.venv/bin/python3 run.py\n  sleep 1\ndone\n", &server));
        assert!(!is_looped("for f in *.sh; do . $f; done\nexec python3 run.py\n", &server));
        assert!(!is_looped("# while true; do python3 run.py; done\npython3 run.py\n", &server));
        assert!(!is_looped("python3 run.py", &server));
    }
}
