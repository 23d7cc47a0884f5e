//! `apply`: the pipeline, read from top to bottom. While the server serves: detect, preflight, stage,
//! backup. While it is down: stop, backup-final, swap, verify, relaunch. Then health and commit, or
//! the rollback.
//! Refuses to go on after any error: before the stop it ends, after it it rolls back.

pub mod ownership;
pub mod install;
pub mod run;
pub mod fetch;
pub mod bundle;
// crate::ports
pub mod server;
pub mod escape;
pub mod owner;
pub mod plan;
pub mod staging;
// crate::backup
pub mod swap;
// crate::verify
pub mod hooks;
pub mod health;
pub mod rollback;
pub mod recover;
mod databases;
mod detect;
mod hooking;
mod late;
mod notes;
mod preflight;
mod record;
mod session;
mod source;
mod unchanged;
mod way_back;

pub use detect::{Survey, default_start_file, described, detect, may_stop};
pub use notes::{Note, moved_aside, notes, replaced_data};
pub use preflight::{Prepared, kept_bundle, no_bundle, preflight};
pub use session::{MOST_FAILURES, begin, conclude, recover_first};
pub use source::{Origin, fetch_to};

use crate::backup::{self, Backup};
use crate::base::error::Failure;
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::base::report::{Finished, Stage};
use crate::state::history;
use crate::state::journal::{Journal, Record};
use crate::system::{LaunchSpec, ProcessId, Said, Unit, processes};
use crate::verify;
use anyhow::{Context as _, Result};
use health::Before;
use install::Install;
use preflight::{counted, is_whole};
use record::{extend_receipt, finish_backup, open_journal, write_receipt};
use run::Run;
use server::Launched;
use session::OWN_FAULT;
use staging::Staged;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use unchanged::{nothing_to_do, skip_changes, unchanged};
use way_back::{code_of, roll_back};

/// What `apply` and `plan` are asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// A zip; not looked at when a saved version is given.
    pub bundle: PathBuf,
    pub origin: Origin,
    /// What the bundle is called where it was fetched to another place than the one that was named.
    pub named: Option<String>,
    /// The certificate of that server is not verified.
    pub insecure: bool,
    /// The backup to go back to (`restore`).
    pub saved: Option<Saved>,
    pub port: Option<u16>,
    /// What the legacy server takes for its port: the very last guess.
    pub legacy_port: Option<u16>,
    pub set: Vec<(String, String)>,
    pub wait: Option<Duration>,
    pub reinstall: bool,
    pub partial: bool,
    pub allow_downgrade: bool,
    /// Skip a bundle that failed here twice by its own fault.
    pub unattended: bool,
    pub no_start: bool,
    pub stop_foreign: bool,
    pub force_data: bool,
    pub health_url: Option<String>,
    pub health_timeout: Option<Duration>,
    pub sha256: Option<String>,
    /// Heals only: nothing is removed (`verify --repair`).
    pub heal: bool,
    /// The server is neither stopped nor started (`verify --repair --no-restart`).
    pub in_place: bool,
}

/// A backup that takes the part of the bundle.
#[derive(Debug, Clone)]
pub struct Saved {
    pub dir: PathBuf,
    pub record: backup::Record,
    /// Data of the users is put back, too.
    pub data: bool,
    /// Nothing but these files and folders; empty: all.
    pub only: Vec<RelPath>,
}

impl Request {
    /// What it is called in records: a restore is an update, too.
    fn command(&self) -> &'static str {
        if self.saved.is_some() { "restore" } else { "apply" }
    }

    /// The bundle as it was named, for errors.
    fn shown(&self) -> String {
        self.named.clone().unwrap_or_else(|| self.bundle.display().to_string())
    }

    /// Only a part of a version is put back: the installed version keeps its name.
    fn is_partly(&self) -> bool {
        self.saved.as_ref().is_some_and(|s| !s.only.is_empty())
    }
}

/// Runs the update. The `Finished` says how it ended, whatever happened.
pub fn apply(install: &Install, run: &mut Run, request: &Request) -> Finished {
    let mut finished = Finished::default();
    let outcome = apply_locked(install, run, request, &mut finished);
    conclude(install, run, &mut finished, outcome);
    finished
}

/// Waits for the lock, settles what was interrupted, and runs the stages.
fn apply_locked(install: &Install, run: &mut Run, request: &Request, finished: &mut Finished) -> Result<&'static str> {
    if request.origin == Origin::File {
        let path = std::path::absolute(&request.bundle).context("finding the bundle")?;
        if !path.is_file() {
            return Err(no_bundle(&path).into());
        }
    }
    let _lock = begin(install, run, request.wait)?;
    recover_first(install, run)?;
    pipeline(install, run, request, finished)
}

/// The stages, one after the other. The caller holds the lock, and nothing is interrupted.
pub fn pipeline(install: &Install, run: &mut Run, request: &Request, finished: &mut Finished) -> Result<&'static str> {
    run.start(Stage::Fetch, "opening the bundle");
    let mut fetched = request.clone();
    let downloads = install.state().downloads();
    let told = match (&request.saved, &request.origin) {
        (Some(saved), _) => format!("the backup {}", saved.record.id),
        (None, Origin::File) => "the bundle is a local file".to_string(),
        (None, Origin::Handed) => "the bundle is a local file of root's".to_string(),
        (None, Origin::Url(url)) => format!("downloaded from {url}"),
    };
    fetched.bundle = fetch_to(install, run, request, &downloads)?;
    run.done(Stage::Fetch, &told);
    let request = &fetched;

    run.start(Stage::Detect, "looking for the server");
    let survey = detect(install, run, request)?;
    for victim in survey.server.iter().chain(&survey.foreign) {
        escape::prove_outside(victim, &install.root)?;
    }
    may_stop(&survey, &install.root, false)?;
    finished.from_version = survey.receipt.as_ref().map(|r| r.version.clone());
    finished.port = survey.before.asked_port.or(survey.expected.asked_port);
    finished.pid = survey.server.as_ref().and_then(|s| s.processes.first()).map(|p| p.id.pid);
    run.done(Stage::Detect, &described(&survey));
    run.check_signals()?;

    run.start(Stage::Preflight, "checking the bundle and the install");
    if nothing_to_do(install, request, &survey)? {
        finished.to_version.clone_from(&finished.from_version);
        run.done(Stage::Preflight, "this very bundle is installed, and the tree is whole");
        skip_changes(run);
        run.report.stage_skipped(Stage::Relaunch, "the server was not stopped");
        run.report.stage_skipped(Stage::Health, "the server was not stopped");
        run.start(Stage::Commit, "closing");
        run.done(Stage::Commit, "this content is installed already");
        return Ok("already-current");
    }
    let prepared = preflight(install, run, request, &survey);
    // What databases were cloned into.
    staging::clear(install.state())?;
    let mut prepared = prepared?;
    finished.to_version =
        if request.is_partly() { finished.from_version.clone() } else { Some(prepared.bundle.version.clone()) };
    if !prepared.plan.is_empty() {
        try_start(&survey)?;
    }
    for note in notes(install, &prepared)? {
        run.report.warn_of(note.code, &note.message, &note.paths);
    }
    for (code, text) in &prepared.hooks.warnings {
        run.report.warning(code, text, None);
    }
    run.done(Stage::Preflight, &counted(&prepared.plan));
    run.check_signals()?;

    if request.unattended && history::failures(install.state(), &prepared.bundle.content_id) >= MOST_FAILURES {
        let message = "this bundle failed here twice by its own fault; --retry-failed tries it again";
        run.report.warning("known-bad", message, None);
        return Ok("skipped");
    }

    let installed = survey.receipt.as_ref().is_some_and(|r| r.content_id == prepared.bundle.content_id);
    let same = installed && request.saved.is_none();
    if prepared.plan.is_empty()
        || (same && !request.reinstall && !prepared.plan.set_changes && is_whole(install, &survey)?)
    {
        return unchanged(install, run, request, survey, prepared, finished);
    }
    let repaired = same && !request.reinstall && !prepared.plan.set_changes;
    update(install, run, request, survey, &mut prepared, finished)?;
    Ok(if repaired { "repaired" } else { "applied" })
}

/// A held start that is never released: user, folder, program and logs of the running server are proven
/// before it is stopped.
fn try_start(survey: &Survey) -> Result<()> {
    if let Some(launch) = survey.launch.as_ref().filter(|_| survey.server.is_some() && survey.service.is_none()) {
        drop(processes::hold(launch).map_err(|e| cannot_start(launch, &e))?);
    }
    Ok(())
}

fn cannot_start(launch: &LaunchSpec, e: &std::io::Error) -> Failure {
    let program = launch.argv.first().map_or("", String::as_str);
    Failure::failed("cannot-start", format!("{program} cannot be started: {e}"))
        .at(launch.cwd.display())
        .remedy("set [server] command in updater.toml to the command that starts the server")
}

pub fn judge(
    install: &Install,
    run: &Run,
    request: &Request,
    expected: &Before,
    old: &[ProcessId],
    running: &mut Option<Launched>,
) -> Result<health::Healthy> {
    let timeout = request.health_timeout.unwrap_or(install.settings.server.health_timeout);
    let judge = health::Judge { timeout, soak: install.settings.server.soak };
    let running = running.as_mut().map(|r| r as &mut dyn health::Started);
    judge.judge(expected, &install.root, old, running, &mut || run.check_signals_after_stop())
}

fn start_unit(install: &Install, run: &Run, request: &Request, unit: &Unit) -> Result<Option<Launched>> {
    let timeout = request.health_timeout.unwrap_or(install.settings.server.health_timeout);
    server::start_unit(unit, timeout, &mut || run.check_signals_after_stop())
}

/// From staging to the commit. Any error after the stop comes back as a rollback's outcome.
fn update(
    install: &Install,
    run: &mut Run,
    request: &Request,
    survey: Survey,
    prepared: &mut Prepared,
    finished: &mut Finished,
) -> Result<()> {
    let state = install.state();
    run.start(Stage::Stage, "writing the new files");
    let before_stop = stage_and_seed(install, run, request, &survey, prepared);
    let (staged, mut saved) = match before_stop {
        Ok(done) => done,
        Err(e) => {
            rollback::sweep(state)?;
            return Err(e);
        }
    };
    finished.bytes_staged = staged.iter().map(|s| s.facts.size).sum();
    finished.files_changed = prepared.plan.changes().count() as u64;

    install.root.check()?;
    let ready = run.check_signals().and_then(|()| open_journal(install, run, request, &survey, prepared, &saved));
    let mut journal = match ready {
        Ok(journal) => journal,
        Err(e) => {
            rollback::sweep(state)?;
            return Err(e);
        }
    };

    run.is_down = true;
    // Whoever is named at the end runs then.
    (finished.pid, finished.port) = (None, None);
    let stopped_at = Instant::now();
    let mut new = NewVersion::default();
    let result = down(install, run, request, &survey, prepared, staged, &mut saved, &mut journal, &mut new);
    finished.backup = install.backups().join(&saved.id).is_dir().then(|| saved.id.clone());
    match result {
        Ok(healthy) => {
            if let Some(healthy) = healthy {
                (finished.pid, finished.port) = (Some(healthy.pid), Some(healthy.port));
                finished.downtime_ms = survey.server.as_ref().map(|_| millis(healthy.first_answer - stopped_at));
            } else if request.in_place {
                finished.pid = survey.server.as_ref().and_then(|s| s.processes.first()).map(|p| p.id.pid);
                finished.port = finished.pid.and(survey.before.asked_port);
            }
        }
        Err(e) => {
            if OWN_FAULT.contains(&code_of(&e)) {
                // Going back matters more than counting.
                let _ = history::count_failure(state, &prepared.bundle.content_id, &prepared.bundle.version);
            }
            return Err(roll_back(install, run, &survey, journal, new, e, finished, stopped_at));
        }
    }

    // What it failed of before is mended; that it is remembered harms nobody.
    let _ = history::forgive(state, &prepared.bundle.content_id);
    // Committed: nothing below may fail the update. A journal that stays is closed by the next command.
    run.start(Stage::Commit, "closing");
    let source = request.saved.as_ref().map(|saved| saved.record.id.as_str());
    if let Err(e) =
        close(install, run, journal, &[Some(saved.id.as_str()), source].into_iter().flatten().collect::<Vec<_>>())
    {
        run.report.warning("not-cleaned-up", &format!("the update is done, but cleaning up failed: {e:#}"), None);
    }
    let aside = moved_aside(install, &prepared.plan, Some(&saved.id));
    for note in aside.into_iter().chain(replaced_data(install, &prepared.plan, &saved.id)) {
        run.report.warn_of(note.code, &note.message, &note.paths);
    }
    run.done(Stage::Commit, &format!("the old version is in {}/{}", install.settings.backup.dir, saved.id));
    Ok(())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn stage_and_seed(
    install: &Install,
    run: &mut Run,
    request: &Request,
    survey: &Survey,
    prepared: &mut Prepared,
) -> Result<(Vec<Staged>, Backup)> {
    let report = &mut run.report;
    let signals = &run.signals;
    let mut progress = |done, total| {
        report.progress(Stage::Stage, done, total, "files");
        run::check(signals)
    };
    let Prepared { ownership, bundle, plan, .. } = prepared;
    let staging::Written { staged, lost } = staging::write(ownership, bundle, plan, &survey.start_file, &mut progress)?;
    for lost in lost {
        let message = format!("{} cannot keep its attribute {}", lost.path, lost.attribute);
        run.report.warning("metadata-lost", &message, Some(&lost.path.to_string()));
    }
    if request.is_partly() {
        extend_receipt(install, survey, prepared, &staged)?;
    } else {
        write_receipt(install, request, survey, prepared, &staged)?;
    }
    swap::make_trash(install.state())?;
    prepared.hooks.before_stop(install, run, &staged, &prepared.plan)?;
    run.done(Stage::Stage, &format!("{} files wait", staged.len()));
    run.check_signals()?;
    run.start(Stage::Backup, "saving the installed version and the data");
    let backups = install.backups();
    fsx::make_folders(&backups)?;
    let dir = backups.join(backup::new_id(&backups)?);
    let report = &mut run.report;
    let signals = &run.signals;
    let mut progress = |done, total| {
        report.progress(Stage::Backup, done, total, "bytes");
        run::check(signals)
    };
    let saved = backup::seed(&install.root, &dir, &prepared.census, &prepared.selection, &mut progress)?;
    prepared.hooks.changes.copy(&install.root, &mut || run.check_signals())?;
    run.done(Stage::Backup, &format!("first pass into {}", saved.id));
    Ok((staged, saved))
}

/// What is known of the new version's start when it has to be undone.
#[derive(Default)]
struct NewVersion {
    launched: Option<Launched>,
    /// Where its logs ended before it was started, and when that was (nanoseconds since 1970).
    logs: Vec<(PathBuf, u64)>,
    since: Option<i64>,
}

/// Everything that happens while the server is down, and the new version's start.
#[allow(clippy::too_many_arguments)]
fn down(
    install: &Install,
    run: &mut Run,
    request: &Request,
    survey: &Survey,
    prepared: &mut Prepared,
    mut staged: Vec<Staged>,
    saved: &mut Backup,
    journal: &mut Journal,
    new: &mut NewVersion,
) -> Result<Option<health::Healthy>> {
    // Whoever is signalled with the server must not pass that on to us.
    run.say(Said::Stopping);
    run.start(Stage::Stop, "stopping the server");
    journal.append(Record::Stopping)?;
    if let Some(server) = survey.server.as_ref().filter(|_| !request.in_place) {
        server::stop(server, install.settings.server.stop_timeout, &mut || run.check_signals_after_stop())?;
    }
    if let Some(foreign) = &survey.foreign {
        server::stop(foreign, install.settings.server.stop_timeout, &mut || run.check_signals_after_stop())?;
    }
    run.done(Stage::Stop, if survey.server.is_some() { "the port is free" } else { "nothing ran" });

    run.start(Stage::BackupFinal, "saving what changed since");
    let record = finish_backup(install, run, request, survey, prepared, saved)?;
    prepared.hooks.changes.refresh(&install.root)?;
    journal.append(Record::BackupWhole)?;
    run.done(Stage::BackupFinal, &format!("{} is whole", saved.id));
    run.check_signals_after_stop()?;

    run.start(Stage::Swap, "moving the new version in");
    if let Some(again) = server::find(&install.root)?.filter(|_| !request.in_place) {
        let pid = again.processes.first().map_or(0, |p| p.id.pid);
        return Err(Failure::failed("server-returned", format!("something started the server again (process {pid})"))
            .remedy("stop what respawns it, then update")
            .into());
    }
    late::stage_again(install, run, request, survey, prepared, &mut staged)?;
    let mut moves = swap::intend(&install.root, &prepared.plan, &staged, &prepared.ownership.rules)?;
    if let Some(saved) = request.saved.as_ref().filter(|_| !request.is_partly()) {
        swap::intend_folders(&install.root, &mut moves, &saved.record.folders, saved.data)?;
    }
    let known = request.saved.iter().flat_map(|saved| &saved.record.folders);
    moves.saved_folders = known.filter(|folder| moves.make.contains(&folder.path)).cloned().collect();
    swap::intend_exchanges(&install.root, &mut moves, prepared.hooks.changes.exchanges())?;
    journal.append(Record::Swapping { moves: moves.clone() })?;
    let source = request.saved.as_ref().map(|saved| saved.dir.as_path());
    swap::carry_out(&install.root, &moves, &survey.start_file, &install.backups().join(&saved.id), source)?;
    run.done(Stage::Swap, &format!("{} moves", moves.moves.len()));

    run.start(Stage::Verify, "checking what arrived");
    let moved: BTreeSet<RelPath> = moves.moves.iter().map(|m| m.path.clone()).collect();
    let critical = critical(install)?;
    verify::arrived(&install.root, &staged, &critical, &record, &moved, &survey.start_file)?;
    run.done(Stage::Verify, "whole");

    if prepared.hooks.run_after_swap() {
        run.start(Stage::Hooks, "running the hooks");
        hooking::run_hooks(install, run, prepared, &staged, &moves, &record, &survey.start_file, journal)?;
        run.done(Stage::Hooks, "done");
    } else {
        run.report.stage_skipped(Stage::Hooks, "none");
    }
    run.check_signals_after_stop()?;
    // The last move of the swap: from here on the new version can start.
    swap::complete(&install.root, &moves, &survey.start_file)?;
    journal.append(Record::Swapped)?;

    let launch = match &survey.launch {
        Some(launch) if !request.no_start && !request.in_place => launch,
        _ => {
            run.report.stage_skipped(Stage::Relaunch, "the server stays stopped");
            run.report.stage_skipped(Stage::Health, "the server stays stopped");
            journal.append(Record::Committed)?;
            return Ok(None);
        }
    };
    run.start(Stage::Relaunch, "starting the new version");
    let logs = BTreeSet::from([&launch.stdout, &launch.stderr]);
    new.logs = logs.into_iter().map(|log| (log.clone(), std::fs::metadata(log).map_or(0, |data| data.len()))).collect();
    new.since = Some(fsx::now_nanos());
    let started = &mut new.launched;
    let boot = processes::boot_id().context("reading the boot id")?;
    if let Some(unit) = &survey.service {
        journal.append(Record::Starting { boot: boot.clone(), process: None })?;
        *started = start_unit(install, run, request, unit)?;
        if let Some(running) = started {
            journal.append(Record::Starting { boot, process: Some(running.id()) })?;
        }
    } else {
        let held = processes::hold(launch).map_err(|e| cannot_start(launch, &e))?;
        journal.append(Record::Starting { boot, process: Some(held.id()) })?;
        *started = Some(Launched::Child(held.release().map_err(|e| cannot_start(launch, &e))?));
    }
    let shown = started.as_ref().map_or("started".to_string(), |running| format!("process {}", running.id().pid));
    run.done(Stage::Relaunch, &shown);

    run.start(Stage::Health, "waiting for its answer");
    let old: Vec<ProcessId> = survey.server.iter().flat_map(|s| s.processes.iter().map(|p| p.id)).collect();
    let healthy = judge(install, run, request, &survey.expected, &old, started)?;
    databases::kept(install, run, prepared, &install.backups().join(&saved.id))?;
    journal.append(Record::Committed)?;
    run.done(Stage::Health, "it answers as well as before");
    Ok(Some(healthy))
}

fn critical(install: &Install) -> Result<Vec<RelPath>> {
    let parse = |name: &String| {
        RelPath::parse(name)
            .map_err(|e| Failure::usage("bad-settings", format!("[verify] critical {name}: {e}")).into())
    };
    install.settings.verify.critical.iter().map(parse).collect()
}

/// After the commit: receipt and kept bundle in place, trash and journal gone, old backups pruned but for these.
pub fn close(install: &Install, run: &mut Run, journal: Journal, spared: &[&str]) -> Result<()> {
    rollback::clean_up(&install.root, journal)?;
    let spare = backup::Spare { ids: spared, users: true };
    for pruned in backup::prune(install.state(), &install.backups(), install.settings.backup.keep, &spare)? {
        run.report.pruned(&pruned.id, pruned.bytes);
    }
    Ok(())
}
