//! The server on a way back: the new version's is ended, the old version's is started by its own launch spec, as the journal
//! tells both.
//! Refuses to end or to overwrite what somebody else started meanwhile.

use super::undecided;
use crate::base::error::{Code, Failure};
use crate::state::baseline::HealthBaseline;
use crate::state::journal::{Journal, Record};
use crate::system::{ProcessId, ancestry, processes, starts};
use crate::update::health;
use crate::update::install::Install;
use crate::update::server::{self, Launched};
use anyhow::{Context as _, Result};
use std::time::Duration;

/// How long a process that was killed may take to be gone.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// Before data is put back: a server of this install that somebody else started on the new tree writes data
/// that must not be replaced. Errors (exit 4): there is one.
pub fn refuse_outsiders(install: &Install, journal: &Journal) -> Result<()> {
    let (Some(start), Some(running)) = (journal.progress().started, server::find(&install.root)?) else {
        return Ok(());
    };
    if journal.begin.service.is_some() && running.managed_by == journal.begin.service {
        return Ok(());
    }
    let above_us = ancestors(std::process::id())?;
    for one in &running.processes {
        // A daemon of ours has left us: it belongs to what adopts orphans, and that is above us, too.
        let above = ancestors(one.id.pid)?;
        let ours = start.process.is_none_or(|p| one.id == p || above.contains(&p.pid));
        if !ours && above.first().is_some_and(|parent| !above_us.contains(parent)) {
            let failure = undecided(install);
            let message = format!(
                "{}: process {} was not started by this update; end what started it",
                failure.message, one.id.pid
            );
            return Err(Failure { message, ..failure }.into());
        }
    }
    Ok(())
}

/// The processes above this one, the nearest first.
fn ancestors(pid: u32) -> Result<Vec<u32>> {
    ancestry::ancestors(pid).collect::<Result<_, _>>().context("looking at the processes")
}

/// Stops every process of the new version, whether this update started it or, once its hooks had run, somebody else.
pub fn end_started(install: &Install, journal: &Journal) -> Result<()> {
    let timeout = Duration::from_millis(journal.begin.stop_timeout_ms);
    let progress = journal.progress();
    if progress.started.is_none() && progress.hooks.is_none() {
        return Ok(());
    }
    // Whether it runs or is about to be respawned.
    if let Some(unit) = &journal.begin.service {
        server::stop_unit(unit, timeout, &mut || Ok(()))?;
    }
    if let Some(running) = server::find(&install.root)? {
        server::stop(&running, timeout, &mut || Ok(()))?;
    }
    progress.started.and_then(|start| start.process).map_or(Ok(()), |process| end_process(process, timeout))
}

/// Ends one process by identity, politely first. A reused pid is another process and is left alone.
fn end_process(process: ProcessId, timeout: Duration) -> Result<()> {
    let Some(handle) = processes::Handle::open(process).context("looking at the started server")? else {
        return Ok(());
    };
    handle.ask_to_end().context("ending the started server")?;
    if !handle.wait(timeout).context("waiting for the started server")? {
        handle.kill().context("ending the started server")?;
        handle.wait(KILL_WAIT).context("waiting for the started server")?;
    }
    Ok(())
}

/// Starts the old version again where one ran before, by its own launch spec, and judges it by its own answer before.
/// Errors (exit 4): it does not come back.
pub fn start_old(install: &Install, journal: &mut Journal) -> Result<Option<health::Healthy>> {
    if !journal.begin.should_run() {
        return Ok(None);
    }
    let root = install.root.path().display();
    let failed = |e: anyhow::Error| {
        Failure::operator(
            Code::OldNotStarted,
            format!("the files of the old version are whole, but its server does not come back: {e:#}"),
        )
        .at(&root)
        .remedy(format!("start the server by hand and read its log, then type: updater recover --root '{root}'"))
    };
    let baseline = baseline(journal.begin.before.old.as_ref())?;
    let healthy = launch_old(install, journal).and_then(|started| wait(install, journal, &baseline, started));
    Ok(Some(healthy.map_err(failed)?))
}

/// Starts the old version, unless it runs or is about to.
fn launch_old(install: &Install, journal: &mut Journal) -> Result<Option<Launched>> {
    if journal.begin.service.is_some() {
        return start_unit(install, journal);
    }
    let Some(launch) = journal.begin.old_launch().cloned() else { return Ok(None) };
    if is_starting(journal)? || server::find(&install.root)?.is_some() {
        return Ok(None);
    }
    let held = starts::start_suspended(&launch)?;
    let boot = processes::boot_id().context("reading the boot id")?;
    // The journal knows of it before it runs.
    journal.append(Record::StartingOld { boot, process: held.id() })?;
    Ok(Some(Launched::Child(held.release()?)))
}

/// Starts the new version, unless it runs, by its own launch spec, and judges it.
pub fn start_new(install: &Install, journal: &Journal) -> Result<health::Healthy> {
    let baseline = baseline(journal.begin.before.new.as_ref())?;
    let started = match (&journal.begin.service, journal.begin.new_launch()) {
        (Some(_), _) => start_unit(install, journal)?,
        (None, Some(launch)) if server::find(&install.root)?.is_none() => {
            Some(Launched::Child(starts::start_suspended(launch)?.release()?))
        }
        _ => None,
    };
    wait(install, journal, &baseline, started)
}

/// What a version is measured by, from the journal. Errors: the journal has none.
pub fn baseline(of_version: Option<&HealthBaseline>) -> Result<HealthBaseline> {
    of_version.cloned().context("the journal does not tell how the server answered")
}

/// Has the journal's unit started, unless somebody started the server without it. One that runs may be about to end:
/// the service manager knows.
fn start_unit(install: &Install, journal: &Journal) -> Result<Option<Launched>> {
    let Some(unit) = &journal.begin.service else { return Ok(None) };
    let running = server::find(&install.root)?;
    if running.as_ref().is_some_and(|r| r.managed_by.as_ref() != Some(unit)) {
        return Ok(None);
    }
    server::start_unit(unit, Duration::from_millis(journal.begin.health_timeout_ms), &mut || Ok(()))
}

/// Whether the old version that was started last still lives, though it may not listen yet.
fn is_starting(journal: &Journal) -> Result<bool> {
    let Some(start) = journal.progress().started_old else { return Ok(false) };
    let Some(process) = start.process else { return Ok(false) };
    let same_boot = processes::boot_id().context("reading the boot id")? == start.boot;
    let is = processes::identity(process.pid).context("looking at the started server")?;
    Ok(same_boot && is == Some(process))
}

fn wait(
    install: &Install,
    journal: &Journal,
    baseline: &HealthBaseline,
    mut started: Option<Launched>,
) -> Result<health::Healthy> {
    let check = health::HealthCheck {
        baseline,
        root: &install.root,
        old: &[],
        timeout: Duration::from_millis(journal.begin.health_timeout_ms),
        soak: Duration::from_millis(journal.begin.soak_ms),
    };
    let started = started.as_mut().map(|s| s as &mut dyn health::Started);
    check.wait_until_healthy(started, &mut || Ok(()))
}
