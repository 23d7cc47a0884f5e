//! `recover`: finishes or undoes an interrupted update by its journal, and nothing else.
//! Refuses to touch data that anybody may have written outside our watch, and to try more than three
//! times by itself.

use crate::backup;
use crate::base::error::{self, Class, Code, Failure};
use crate::base::path::RelPath;
use crate::base::report::Running::{Down, Unknown, Up};
use crate::base::report::{Direction, Finished, Outcome, Stage, Stands};
use crate::state::baseline::HealthBaseline;
use crate::state::history;
use crate::state::journal::{self, Away, Found, HooksBegun, Journal, Phase, Progress, Record};
use crate::state::lock::Lock;
use crate::state::receipt;
use crate::system::{processes, service};
use crate::update::health;
use crate::update::hooks;
use crate::update::install::Install;
use crate::update::rollback::{self, DataPolicy};
use crate::update::run::Run;
use crate::update::server;
use anyhow::{Context as _, Result};
use std::time::Duration;

/// What the operator decided, and how far to go.
#[derive(Debug, Clone, Copy, Default)]
pub struct RecoverOptions {
    /// `--data keep|backup`: whether data goes back to the backup's.
    pub data: Option<Data>,
    /// `--boot`: mend files and start nothing.
    pub boot: bool,
    /// A person asked: the count of automatic tries does not bind.
    pub by_hand: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    Keep,
    Backup,
}

/// What was settled.
pub struct Resolution {
    pub interrupted_id: String,
    pub direction: Direction,
    /// False after `--boot`: the files are whole, the journal waits for the proof of health.
    pub is_proven: bool,
    /// The owner of the port at the end, and the port. None: nothing of ours is known to run.
    pub pid: Option<u32>,
    pub port: Option<u16>,
    /// What stands, as far as that is known without asking anybody.
    pub stands: Stands,
    pub backup: Option<String>,
    pub from_version: Option<String>,
    pub to_version: Option<String>,
}

impl Resolution {
    /// How this run ended after all.
    pub fn finished(self) -> Finished {
        let (from, to) = (self.from_version, self.to_version);
        let (from_version, to_version) = if self.direction == Direction::New { (from, to) } else { (to, from) };
        let outcome = Outcome::Recovered;
        let stands = Some(self.stands);
        Finished {
            outcome,
            pid: self.pid,
            port: self.port,
            stands,
            backup: self.backup,
            from_version,
            to_version,
            ..Finished::default()
        }
    }
}

/// The most times that recovery is tried without a person.
const TRIES: usize = 3;

/// The command: settles what was interrupted, and says so.
pub fn recover(install: &Install, run: &mut Run, choice: RecoverOptions, wait: Option<Duration>) -> Finished {
    let mut finished = Finished::default();
    match resolve_locked(install, run, choice, wait) {
        Ok(done) => {
            finished = match done {
                Some(resolution) => resolution.finished(),
                None => Finished { outcome: Outcome::NothingToDo, ..Finished::default() },
            };
            if finished.stands.is_none() {
                finished.stands = Some(if choice.boot { stands_unasked(install) } else { stands(install) });
            }
        }
        Err(e) => {
            let class = error::class(&e);
            finished.exit_code = class as u8;
            finished.outcome = Outcome::of(class);
            finished.error = Some(error::record(&e));
            finished.stands = Some(if choice.boot { stands_unasked(install) } else { stands(install) });
            run.report.fail_current(&format!("{e:#}"));
        }
    }
    run.report.finished(&finished);
    finished
}

/// None: nothing was interrupted.
fn resolve_locked(
    install: &Install,
    run: &mut Run,
    choice: RecoverOptions,
    wait: Option<Duration>,
) -> Result<Option<Resolution>> {
    if !crate::base::fsx::exists(install.state().path())? {
        run.report.stage_skipped(Stage::Rollback, "nothing was interrupted");
        return Ok(None);
    }
    let _lock = Lock::take(install.state(), wait, &mut || run.check_signals())?;
    if matches!(Journal::find(install.state())?, Found::Nothing) {
        // What was killed before its journal began: nothing refers to it.
        if let Some(id) = history::left_under_way(install.state()) {
            hooks::kill_leftovers(&id)?;
        }
        rollback::sweep(install.state())?;
        run.report.stage_skipped(Stage::Rollback, "nothing was interrupted");
        return Ok(None);
    }
    run.start(Stage::Rollback, "settling an interrupted update");
    let Some(done) = resolve(install, run, choice)? else { return Ok(None) };
    let proven = if done.is_proven { "" } else { "; its health is proven once its server was started" };
    let how = if done.direction == Direction::New { "the update was finished" } else { "the update was undone" };
    run.done(Stage::Rollback, &format!("{how}: the {} version stands{proven}", done.direction.word()));
    run.report.recovered(&done.interrupted_id, done.direction);
    Ok(Some(done))
}

/// What stands in the install by its records, and whether its server runs.
pub fn stands(install: &Install) -> Stands {
    let server = match server::find(&install.root) {
        Ok(Some(_)) => Up,
        Ok(None) => Down,
        Err(_) => Unknown,
    };
    Stands { server, ..stands_unasked(install) }
}

/// The same without a look at any process.
fn stands_unasked(install: &Install) -> Stands {
    let state = install.state();
    let version = match Journal::find(state) {
        Ok(Found::Nothing) => receipt::load(state).ok().flatten().map(|receipt| receipt.version),
        Ok(Found::Open(journal)) => match journal.progress().phase {
            Phase::Committed => journal.begin.to_version.clone(),
            Phase::RolledBack => journal.begin.from_version.clone(),
            _ => None,
        },
        _ => None,
    };
    Stands { version, server: Unknown }
}

/// Settles an interrupted update, if there is one. The caller holds the lock.
pub fn resolve(install: &Install, run: &mut Run, choice: RecoverOptions) -> Result<Option<Resolution>> {
    let state = install.state();
    let mut journal = match Journal::find(state)? {
        Found::Nothing => return Ok(None),
        Found::Unreadable(reason) => return Err(journal::set_aside(state, &reason)?.into()),
        Found::Open(journal) => *journal,
    };
    let id = journal.begin.update_id.clone();
    let done = journal.trim().and_then(|()| resolve_open(install, run, journal, choice));
    done.map(Some).map_err(|e| unresolved(install, &id, e))
}

/// What stands is in the middle, so nothing less than an operator is needed.
fn unresolved(install: &Install, id: &str, e: anyhow::Error) -> anyhow::Error {
    if error::class(&e) != Class::Failed {
        return e;
    }
    let failure = e.downcast_ref::<Failure>();
    let usual = format!("remove the cause, then type: updater recover --root '{}'", install.root.path().display());
    let remedy = failure.and_then(|f| f.remedy.clone()).map_or(usual.clone(), |own| format!("{own}; {usual}"));
    let code = failure.map_or(Code::RecoveryFailed, |f| f.code);
    Failure::operator(code, format!("the interrupted update {id} could not be settled: {e:#}"))
        .at(install.root.path().display())
        .remedy(remedy)
        .into()
}

fn resolve_open(install: &Install, run: &mut Run, mut journal: Journal, choice: RecoverOptions) -> Result<Resolution> {
    if choice.boot && is_whole(install, &journal)? {
        return boot(install, journal);
    }
    if journal.progress().attempts >= TRIES && !choice.by_hand {
        return Err(Failure::operator(
            Code::RecoveryFailed,
            format!("recovery was tried {TRIES} times without success"),
        )
        .at(install.root.path().display())
        .remedy(format!("remove the cause, then type: updater recover --root '{}'", install.root.path().display()))
        .into());
    }
    journal.append(Record::Attempt)?;
    let direction = match decide(install, run, &mut journal, choice) {
        Err(e) if e.downcast_ref::<Failure>().is_some_and(|failure| failure.code == rollback::UNDECIDED) => {
            journal.append(Record::Undecided)?;
            return Err(e);
        }
        decided => decided?,
    };
    // Going down, the system starts nothing any more; the next boot does.
    if choice.boot || direction == Direction::Old && service::manager().is_shutting_down() {
        return boot(install, journal);
    }
    let mut resolution = resolution(install, &journal, direction);
    resolution.stands.server = Down;
    if direction == Direction::New {
        tell_aside(run, &journal);
    }
    if direction == Direction::Old {
        let healthy = rollback::start_old(install, &mut journal)?;
        (resolution.pid, resolution.port) = (healthy.as_ref().map(|h| h.pid), healthy.as_ref().map(|h| h.port));
    } else if let Some(running) = server::find(&install.root)? {
        resolution.pid = running.processes.first().map(|p| p.id.pid);
        resolution.port = resolution.pid.and(running.ports.first().copied());
    }
    if resolution.pid.is_some() {
        resolution.stands.server = Up;
    }
    rollback::clean_up(&install.root, journal)?;
    Ok(resolution)
}

fn resolution(install: &Install, journal: &Journal, direction: Direction) -> Resolution {
    let begin = &journal.begin;
    let version = if direction == Direction::New { begin.to_version.clone() } else { begin.from_version.clone() };
    // One that was never whole is not there.
    let has_backup = backup::load(&rollback::backup_dir(&install.root, journal)).is_ok();
    Resolution {
        interrupted_id: journal.begin.update_id.clone(),
        direction,
        is_proven: true,
        pid: None,
        port: None,
        stands: Stands { version, server: Unknown },
        backup: has_backup.then(|| begin.backup.clone()),
        from_version: journal.begin.from_version.clone(),
        to_version: journal.begin.to_version.clone(),
    }
}

/// Whether the files are wholly of one version, so that nothing is left to mend in them. (A new version
/// that was started is whole, too, until its undo begins: it was verified before.)
fn is_whole(install: &Install, journal: &Journal) -> Result<bool> {
    Ok(match journal.progress().phase {
        Phase::Committed | Phase::RolledBack | Phase::Starting => true,
        Phase::Undoing(data) => !goes_on(install, journal, data)?,
        _ => false,
    })
}

/// Whether the undo of a started version goes on as it was decided. Putting data back goes on only while the start file
/// is away: so nothing can have run and written since.
fn goes_on(install: &Install, journal: &Journal, data: DataPolicy) -> Result<bool> {
    let is_away = !crate::base::fsx::exists(&install.root.join(&journal.begin.start_file))?;
    Ok(data != DataPolicy::Restored || is_away)
}

/// What the boot leaves once the files are whole: the journal stays open where a server should run, because
/// nobody has seen it well. Looks at no process, so that no service manager can be waited for.
fn boot(install: &Install, journal: Journal) -> Result<Resolution> {
    let phase = journal.progress().phase;
    let (committed, undone) = (phase == Phase::Committed, phase == Phase::RolledBack);
    let mut resolution = resolution(install, &journal, if undone { Direction::Old } else { Direction::New });
    resolution.is_proven = committed || undone && !journal.begin.should_run();
    if resolution.is_proven {
        rollback::clean_up(&install.root, journal)?;
    } else if undone {
        rollback::tidy(&install.root, &journal)?;
    }
    Ok(resolution)
}

/// True when `recover` has something to do; changes nothing.
pub fn is_needed(install: &Install) -> Result<bool> {
    Ok(!matches!(Journal::find(install.state())?, Found::Nothing))
}

/// Finishes (`new`) or undoes (`old`) the update. This is the table of `docs/architecture.md`.
fn decide(install: &Install, run: &mut Run, journal: &mut Journal, choice: RecoverOptions) -> Result<Direction> {
    let progress = journal.progress();
    if !matches!(progress.phase, Phase::Committed | Phase::RolledBack) {
        // What a hook left running must not write into what is put back.
        hooks::kill_leftovers(&journal.begin.update_id)?;
    }
    match progress.phase {
        Phase::Committed => Ok(Direction::New),
        Phase::RolledBack => Ok(Direction::Old),
        Phase::DataRestored => undo(install, run, journal, choice, DataPolicy::Untouched),
        Phase::Stopping | Phase::BackupWhole | Phase::Swapping | Phase::Hooks | Phase::Swapped => {
            let data = after_hooks(install, &progress, journal, choice)?;
            undo(install, run, journal, choice, data)
        }
        Phase::Undoing(data) if choice.data.is_none() && goes_on(install, journal, data)? => {
            undo(install, run, journal, choice, data)
        }
        Phase::Starting | Phase::Undoing(_) => resolve_started(install, run, journal, choice),
    }
}

/// The new version was or is being started: it is kept where it is healthy, and else undone.
fn resolve_started(
    install: &Install,
    run: &mut Run,
    journal: &mut Journal,
    choice: RecoverOptions,
) -> Result<Direction> {
    let Some(start) = journal.progress().started else { anyhow::bail!("the journal names no start") };
    let same_boot = processes::boot_id().context("reading the boot id")? == start.boot;
    // After a boot the service manager may be about to start it: there is time to wait for its answer.
    if choice.data.is_none() && !same_boot && rollback::start_new(install, journal).is_ok() {
        journal.append(Record::Committed)?;
        return Ok(Direction::New);
    }
    let running = server::find(&install.root)?;
    // One that is older than our start runs old code, whatever started it.
    let is_new = |running: &server::Running| {
        let first = running.processes.first();
        !same_boot || start.process.is_none_or(|process| first.is_some_and(|first| first.id.start >= process.start))
    };
    let expected = rollback::baseline(journal.begin.before.new.as_ref())?;
    let healthy = running.as_ref().filter(|running| is_new(running)).is_some_and(|r| is_healthy(&expected, r));
    if choice.data != Some(Data::Backup) && healthy {
        journal.append(Record::Committed)?;
        return Ok(Direction::New);
    }
    let is_other =
        |p: &server::Process| start.process.is_none_or(|process| p.id != process && p.parent != Some(process.pid));
    let unwatched = !same_boot || running.iter().flat_map(|r| &r.processes).any(is_other);
    let data = match choice.data {
        Some(Data::Backup) => DataPolicy::Restored,
        Some(Data::Keep) => DataPolicy::Kept,
        None if unwatched => return Err(rollback::undecided(install).into()),
        None => DataPolicy::Restored,
    };
    rollback::end_started(install, journal)?;
    put_back(install, run, journal, data)
}

/// Names what gave way to an update that was finished after all: the run that moved it could not.
fn tell_aside(run: &mut Run, journal: &Journal) {
    let moved = journal.moves().into_iter().flat_map(|moves| &moves.moves).filter(|m| m.old && m.away == Away::Aside);
    let paths: Vec<RelPath> = moved.map(|intent| intent.path.clone()).collect();
    if !paths.is_empty() {
        let place = format!("{}/{}/aside", journal.begin.backup_dir, journal.begin.backup);
        run.report.warn_of(Code::MovedAside, &format!("written here, and gave way; to be found in {place}"), &paths);
    }
}

/// Ends what runs of the new version, and brings the old one back. At boot nothing of it runs, and no service manager is
/// asked.
fn undo(
    install: &Install,
    run: &mut Run,
    journal: &mut Journal,
    choice: RecoverOptions,
    data: DataPolicy,
) -> Result<Direction> {
    if !choice.boot {
        rollback::end_started(install, journal)?;
    }
    put_back(install, run, journal, data)
}

fn put_back(install: &Install, run: &mut Run, journal: &mut Journal, data: DataPolicy) -> Result<Direction> {
    let altered = rollback::undo(&install.root, journal, data)?;
    rollback::tell_altered(run, &altered);
    Ok(Direction::Old)
}

/// What becomes of the data where hooks may have changed them, and nothing was started by us. While the start file
/// is away nothing else can have. Errors (exit 4): it was there, and who knows.
fn after_hooks(
    install: &Install,
    progress: &Progress,
    journal: &Journal,
    choice: RecoverOptions,
) -> Result<DataPolicy> {
    let Some(HooksBegun { boot, data }) = &progress.hooks else { return Ok(DataPolicy::Untouched) };
    match choice.data {
        Some(Data::Keep) => return Ok(DataPolicy::Kept),
        Some(Data::Backup) => return Ok(DataPolicy::Restored),
        None => {}
    }
    if !crate::base::fsx::exists(&install.root.join(&journal.begin.start_file))? {
        return Ok(DataPolicy::Restored);
    }
    if data.is_empty() {
        return Ok(DataPolicy::Untouched);
    }
    let same_boot = processes::boot_id().context("reading the boot id")? == *boot;
    if same_boot && !choice.boot && server::find(&install.root)?.is_none() {
        return Ok(DataPolicy::Restored);
    }
    Err(rollback::undecided(install).into())
}

/// One look, without waiting: it owns the ports and answers as well as it should.
fn is_healthy(expected: &HealthBaseline, running: &server::Running) -> bool {
    expected.ports.iter().all(|p| running.ports.contains(p))
        && health::answers_as_well(
            expected,
            &health::measure(&running.listeners, expected.asked_port, Some(&expected.path), health::PATIENCE),
        )
}
