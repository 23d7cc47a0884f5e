//! The stages `relaunch` and `health`: the new version starts, and proves itself.

use super::databases;
use super::preflight::Prepared;
use super::swap::Swapped;
use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::report::Stage;
use crate::state::journal::{Journal, Record};
use crate::system::{LaunchSpec, ProcessId, Unit, processes, starts};
use crate::update::health;
use crate::update::install::Install;
use crate::update::rollback::{Attempt, Interrupted};
use crate::update::run::Run;
use crate::update::server::{self, Launched};
use anyhow::{Context as _, Result};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

/// The new version was started, or stays stopped on purpose.
pub struct Started<'a> {
    prepared: Prepared<'a>,
    backup_id: String,
    journal: Journal,
    stopped_at: Instant,
    /// None: it stays stopped.
    attempt: Option<Attempt>,
}

/// The new version is what stands from now on.
pub struct Healthy<'a> {
    pub prepared: Prepared<'a>,
    pub backup_id: String,
    pub journal: Journal,
    pub stopped_at: Instant,
    /// None: it stays stopped.
    pub answer: Option<health::Healthy>,
}

/// Starts the new version, unless it is to stay stopped.
pub(super) fn start<'a>(
    install: &Install,
    run: &mut Run,
    swapped: Swapped<'a>,
) -> Result<Started<'a>, Box<Interrupted>> {
    let Swapped { prepared, backup, mut journal, stopped_at } = swapped;
    let request = prepared.request;
    let stays = request.server.no_start || request.is_in_place();
    let Some(launch) = prepared.detection.new_launch.as_ref().filter(|_| !stays) else {
        skip(run, "the server stays stopped");
        return Ok(Started { prepared, backup_id: backup.id, journal, stopped_at, attempt: None });
    };
    run.start(Stage::Relaunch, "starting the new version");
    let logs = BTreeSet::from([&launch.stdout, &launch.stderr]);
    let length = |log: &PathBuf| (log.clone(), std::fs::metadata(log).map_or(0, |data| data.len()));
    let logs = logs.into_iter().map(length).collect();
    let mut attempt = Attempt { launched: None, logs, since: Some(fsx::now_nanos()) };
    match launch_journaled(install, run, &prepared, launch, &mut journal) {
        Ok(launched) => {
            let shown = launched.as_ref().map_or("started".to_string(), |new| format!("process {}", new.id().pid));
            run.done(Stage::Relaunch, &shown);
            attempt.launched = launched;
            Ok(Started { prepared, backup_id: backup.id, journal, stopped_at, attempt: Some(attempt) })
        }
        Err(cause) => Err(Interrupted::new(journal, stopped_at, cause).after(attempt)),
    }
}

/// Starts the server so that the journal knows of it before it runs. None: a service manager started it, and its main
/// process is not known.
fn launch_journaled(
    install: &Install,
    run: &Run,
    prepared: &Prepared,
    launch: &LaunchSpec,
    journal: &mut Journal,
) -> Result<Option<Launched>> {
    let boot = processes::boot_id().context("reading the boot id")?;
    if let Some(unit) = &prepared.detection.service {
        journal.append(Record::Starting { boot: boot.clone(), process: None })?;
        let running = start_unit(install, run, prepared, unit)?;
        if let Some(running) = &running {
            journal.append(Record::Starting { boot, process: Some(running.id()) })?;
        }
        return Ok(running);
    }
    let held = starts::start_suspended(launch).map_err(|e| cannot_start(launch, &e))?;
    journal.append(Record::Starting { boot, process: Some(held.id()) })?;
    Ok(Some(Launched::Child(held.release().map_err(|e| cannot_start(launch, &e))?)))
}

/// Waits until the new version answers as it should, and commits to it.
pub(super) fn prove<'a>(
    install: &Install,
    run: &mut Run,
    started: Started<'a>,
) -> Result<Healthy<'a>, Box<Interrupted>> {
    let Started { prepared, backup_id, mut journal, stopped_at, mut attempt } = started;
    let answer = match &mut attempt {
        None => Ok(None),
        Some(attempt) => prove_health(install, run, &prepared, &backup_id, attempt).map(Some),
    };
    match answer.and_then(|answer| journal.append(Record::Committed).map(|()| answer)) {
        Ok(answer) => {
            if answer.is_some() {
                run.done(Stage::Health, "it answers as well as before");
            }
            Ok(Healthy { prepared, backup_id, journal, stopped_at, answer })
        }
        Err(cause) => Err(Interrupted::new(journal, stopped_at, cause).after(attempt.unwrap_or_default())),
    }
}

fn prove_health(
    install: &Install,
    run: &mut Run,
    prepared: &Prepared,
    backup_id: &str,
    attempt: &mut Attempt,
) -> Result<health::Healthy> {
    run.start(Stage::Health, "waiting for its answer");
    let old: Vec<ProcessId> = prepared.detection.server.iter().flat_map(|s| s.processes.iter().map(|p| p.id)).collect();
    let healthy = wait_until_healthy(install, run, prepared, &old, &mut attempt.launched)?;
    databases::kept(install, run, prepared, &install.backups().join(backup_id))?;
    Ok(healthy)
}

/// The content is installed already: a server that is stopped is started, where that is wanted.
pub(super) fn start_stopped(install: &Install, run: &mut Run, prepared: &Prepared) -> Result<()> {
    let launch = match (&prepared.detection.server, &prepared.detection.new_launch) {
        (None, Some(launch)) if !prepared.request.server.no_start => launch,
        _ => {
            skip(run, "the server was not stopped");
            return Ok(());
        }
    };
    run.start(Stage::Relaunch, "starting the server");
    let mut running = match &prepared.detection.service {
        Some(unit) => start_unit(install, run, prepared, unit)?,
        None => {
            let held = starts::start_suspended(launch).map_err(|e| cannot_start(launch, &e))?;
            Some(Launched::Child(held.release().map_err(|e| cannot_start(launch, &e))?))
        }
    };
    run.done(Stage::Relaunch, "started");
    run.start(Stage::Health, "waiting for its answer");
    let healthy = wait_until_healthy(install, run, prepared, &[], &mut running)?;
    (run.summary.pid, run.summary.port) = (Some(healthy.pid), Some(healthy.port));
    run.done(Stage::Health, "healthy");
    Ok(())
}

/// Reports that nothing is started.
pub(super) fn skip(run: &mut Run, why: &str) {
    run.report.stage_skipped(Stage::Relaunch, why);
    run.report.stage_skipped(Stage::Health, why);
}

fn wait_until_healthy(
    install: &Install,
    run: &Run,
    prepared: &Prepared,
    old: &[ProcessId],
    running: &mut Option<Launched>,
) -> Result<health::Healthy> {
    let check = health::HealthCheck {
        baseline: &prepared.detection.expected,
        root: &install.root,
        old,
        timeout: patience(install, prepared),
        soak: install.settings.server.soak,
    };
    let running = running.as_mut().map(|r| r as &mut dyn health::Started);
    check.wait_until_healthy(running, &mut || run.check_signals_after_stop())
}

fn start_unit(install: &Install, run: &Run, prepared: &Prepared, unit: &Unit) -> Result<Option<Launched>> {
    server::start_unit(unit, patience(install, prepared), &mut || run.check_signals_after_stop())
}

/// How long the new version may take to answer.
fn patience(install: &Install, prepared: &Prepared) -> std::time::Duration {
    prepared.request.server.health_timeout.unwrap_or(install.settings.server.health_timeout)
}

/// Before the stop: a suspended start that is never released proves user, folder, program and logs of the running
/// server while it still serves. Errors (`cannot-start`, exit 1): one of these cannot be had.
pub(super) fn try_start(prepared: &Prepared) -> Result<()> {
    let detection = prepared.detection;
    let launch = detection.new_launch.as_ref().filter(|_| detection.server.is_some() && detection.service.is_none());
    if let Some(launch) = launch.filter(|_| !prepared.plan.is_empty()) {
        drop(starts::start_suspended(launch).map_err(|e| cannot_start(launch, &e))?);
    }
    Ok(())
}

fn cannot_start(launch: &LaunchSpec, e: &std::io::Error) -> Failure {
    let program = launch.argv.first().map_or("", String::as_str);
    Failure::failed(Code::CannotStart, format!("{program} cannot be started: {e}"))
        .at(launch.cwd.display())
        .remedy("set [server] command in updater.toml to the command that starts the server")
}
