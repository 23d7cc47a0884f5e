//! One program of a hook, from its start to its end and that of all it started.
//! Refuses to wait for ever, to wait for who merely holds its output open, and to leave anything of it running.

use crate::base::fsx;
use crate::system::{LaunchSpec, processes, starts};
use anyhow::{Context, Result};
use std::path::Path;
use std::time::{Duration, Instant};

/// The variable by which everything that a hook starts is known, even after our own death: the update's id.
pub(super) const MARK: &str = "UPDATER_HOOK";

/// The longest wait between two looks.
const POLL: Duration = Duration::from_millis(20);
/// How long what was killed may take to be gone.
const GONE: Duration = Duration::from_secs(10);

/// What is run, and how.
#[derive(Debug)]
pub(super) struct Task<'a> {
    pub argv: Vec<String>,
    pub cwd: &'a Path,
    /// Whole, `MARK` among it.
    pub env: &'a [(String, String)],
    /// A file of our own for what it writes.
    pub output: &'a Path,
    pub timeout: Duration,
    pub update_id: &'a str,
}

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Well,
    /// In words: `exit code 1`.
    Badly(String),
    /// It was still running after its time.
    Late,
}

/// Runs it to its end; `tick` is given what it wrote since the last look, line by line, and may stop it.
/// It has no terminal and no handle of ours, and runs as the owner of the install, who we are.
/// Errors: it cannot be started; what it left running cannot be ended; what `tick` says.
pub(super) fn run(task: &Task, tick: &mut dyn FnMut(&[String]) -> Result<()>) -> Result<Ended> {
    let spec = LaunchSpec {
        argv: task.argv.clone(),
        cwd: task.cwd.to_path_buf(),
        env: task.env.to_vec(),
        stdout: task.output.to_path_buf(),
        stderr: task.output.to_path_buf(),
        credentials: None,
    };
    let started = starts::start_suspended(&spec).and_then(|held| held.release());
    let mut running = started.with_context(|| format!("starting {}", task.argv.join(" ")))?;
    let mut output = fsx::LineTail::open(task.output)?;
    let begun = Instant::now();
    let ended = loop {
        // Asked first: what it wrote before its end is read after.
        let how = running.exited().context("waiting for a hook")?;
        let told = output.more(how.is_some()).and_then(|lines| tick(&shown(lines)));
        match how {
            _ if told.is_err() => break told.map(|()| Ended::Late),
            Some(how) if how.is_success() => break Ok(Ended::Well),
            Some(how) => break Ok(Ended::Badly(how.to_string())),
            None if begun.elapsed() >= task.timeout => break Ok(Ended::Late),
            None => std::thread::sleep(POLL),
        }
    };
    kill_leftovers(task.update_id, Some(running.id().pid))?;
    ended
}

/// What is worth showing of the lines.
fn shown(lines: Vec<Vec<u8>>) -> Vec<String> {
    let lines = lines.iter().map(|line| String::from_utf8_lossy(line).trim_end().to_string());
    lines.filter(|line| !line.is_empty()).collect()
}

/// Ends whatever hooks of this update left running: in the background, after their time, or after our own death;
/// `leader`: the process that led the session of one. Errors: something of it does not end.
pub(super) fn kill_leftovers(update_id: &str, leader: Option<u32>) -> Result<()> {
    let own = std::process::id();
    let begun = Instant::now();
    loop {
        let mut left = processes::marked(MARK, update_id, leader).context("looking for what a hook started")?;
        left.retain(|id| id.pid != own);
        if left.is_empty() {
            return Ok(());
        }
        anyhow::ensure!(begun.elapsed() < GONE, "process {}, which a hook started, does not end", left[0].pid);
        for id in left {
            if let Some(handle) = processes::Handle::open(id).context("looking at what a hook started")? {
                handle.kill().context("ending what a hook started")?;
                handle.wait(POLL).context("ending what a hook started")?;
            }
        }
    }
}
