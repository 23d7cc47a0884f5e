//! `recover`: finishes or undoes an interrupted update by its journal, and nothing else.
//! Refuses to touch data that anybody may have written outside our watch, and to try more than three
//! times by itself.

use crate::backup;
use crate::base::error::{self, Class, Failure};
use crate::base::path::RelPath;
use crate::base::report::Running::{Down, Unknown, Up};
use crate::base::report::{Finished, Stage, Stands};
use crate::state::history;
use crate::state::journal::{self, Away, Found, Journal, Record};
use crate::state::lock::Lock;
use crate::state::receipt;
use crate::system::{ProcessId, processes, service};
use crate::update::health::{self, Before};
use crate::update::hooks;
use crate::update::install::Install;
use crate::update::rollback::{self, DataBack};
use crate::update::run::Run;
use crate::update::server::{self, Launched};
use anyhow::{Context as _, Result};
use std::time::Duration;

/// What the operator decided, and how far to go.
#[derive(Debug, Clone, Copy, Default)]
pub struct Choice {
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

/// A person has to say what becomes of the data.
const UNDECIDED: &str = "data-undecided";

/// What was settled.
pub struct Settled {
    pub interrupted_id: String,
    /// `old` or `new`.
    pub direction: &'static str,
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

impl Settled {
    /// How this run ended after all.
    pub fn finished(self) -> Finished {
        let (from, to) = (self.from_version, self.to_version);
        let (from_version, to_version) = if self.direction == "new" { (from, to) } else { (to, from) };
        let outcome = "recovered".to_string();
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
pub fn recover(install: &Install, run: &mut Run, choice: Choice, wait: Option<Duration>) -> Finished {
    let mut finished = Finished::default();
    let outcome = settle_alone(install, run, choice, wait, &mut finished);
    match outcome {
        Ok(done) => {
            finished.outcome = if done { "recovered" } else { "nothing-to-do" }.into();
            if finished.stands.is_none() {
                finished.stands = Some(if choice.boot { stands_unasked(install) } else { stands(install) });
            }
        }
        Err(e) => {
            let class = error::class(&e);
            finished.exit_code = class as u8;
            finished.outcome = if class == Class::NeedsOperator { "needs-operator" } else { "failed" }.into();
            finished.error = Some(error::record(&e));
            finished.stands = Some(if choice.boot { stands_unasked(install) } else { stands(install) });
            run.report.fail_current(&format!("{e:#}"));
        }
    }
    run.report.finished(&finished);
    finished
}

/// False: nothing was interrupted.
fn settle_alone(
    install: &Install,
    run: &mut Run,
    choice: Choice,
    wait: Option<Duration>,
    finished: &mut Finished,
) -> Result<bool> {
    if !crate::base::fsx::exists(install.state().path())? {
        run.report.stage_skipped(Stage::Rollback, "nothing was interrupted");
        return Ok(false);
    }
    let _lock = Lock::take(install.state(), wait, &mut || run.check_signals())?;
    if matches!(Journal::find(install.state())?, Found::Nothing) {
        // What was killed before its journal began: nothing refers to it.
        if let Some(id) = history::left_under_way(install.state()) {
            hooks::end_left(&id)?;
        }
        rollback::sweep(install.state())?;
        run.report.stage_skipped(Stage::Rollback, "nothing was interrupted");
        return Ok(false);
    }
    run.start(Stage::Rollback, "settling an interrupted update");
    let Some(done) = settle(install, run, choice)? else { return Ok(false) };
    let proven = if done.is_proven { "" } else { "; its health is proven once its server was started" };
    let how = if done.direction == "new" { "the update was finished" } else { "the update was undone" };
    run.done(Stage::Rollback, &format!("{how}: the {} version stands{proven}", done.direction));
    run.report.recovered(&done.interrupted_id, done.direction);
    *finished = done.finished();
    Ok(true)
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
        Ok(Found::Open(journal)) if journal.has(|r| matches!(r, Record::Committed)) => journal.begin.to_version.clone(),
        Ok(Found::Open(journal)) if journal.has(|r| matches!(r, Record::RolledBack)) => {
            journal.begin.from_version.clone()
        }
        _ => None,
    };
    Stands { version, server: Unknown }
}

/// Names what a rollback could not put back, because nobody had saved it.
pub fn tell_altered(run: &mut Run, altered: &[RelPath]) {
    if !altered.is_empty() {
        run.report.warn_of("not-put-back", &altered_words(altered), altered);
    }
}

/// The same in words.
pub fn altered_words(altered: &[RelPath]) -> String {
    let names: Vec<String> = altered.iter().take(3).map(RelPath::to_string).collect();
    let more =
        if altered.len() > names.len() { format!(" and {} more", altered.len() - names.len()) } else { String::new() };
    format!("{}{more} changed since the stop and had not been saved", names.join(", "))
}

/// Settles an interrupted update, if there is one. The caller holds the lock.
pub fn settle(install: &Install, run: &mut Run, choice: Choice) -> Result<Option<Settled>> {
    let state = install.state();
    let mut journal = match Journal::find(state)? {
        Found::Nothing => return Ok(None),
        Found::Unreadable(reason) => return Err(journal::set_aside(state, &reason)?.into()),
        Found::Open(journal) => *journal,
    };
    let id = journal.begin.update_id.clone();
    let done = journal.trim().and_then(|()| settle_open(install, run, journal, choice));
    done.map(Some).map_err(|e| unsettled(install, &id, e))
}

/// What stands is in the middle, so nothing less than an operator is needed.
fn unsettled(install: &Install, id: &str, e: anyhow::Error) -> anyhow::Error {
    if error::class(&e) != Class::Failed {
        return e;
    }
    let failure = e.downcast_ref::<Failure>();
    let usual = format!("remove the cause, then type: updater recover --root '{}'", install.root.path().display());
    let remedy = failure.and_then(|f| f.remedy.clone()).map_or(usual.clone(), |own| format!("{own}; {usual}"));
    let code = failure.map_or("recovery-failed", |f| f.code);
    Failure::operator(code, format!("the interrupted update {id} could not be settled: {e:#}"))
        .at(install.root.path().display())
        .remedy(remedy)
        .into()
}

fn settle_open(install: &Install, run: &mut Run, mut journal: Journal, choice: Choice) -> Result<Settled> {
    if choice.boot && is_whole(install, &journal)? {
        return boot(install, journal);
    }
    if journal.attempts() >= TRIES && !choice.by_hand {
        return Err(Failure::operator("recovery-failed", format!("recovery was tried {TRIES} times without success"))
            .at(install.root.path().display())
            .remedy(format!("remove the cause, then type: updater recover --root '{}'", install.root.path().display()))
            .into());
    }
    journal.append(Record::Attempt)?;
    let direction = match decide(install, run, &mut journal, choice) {
        Err(e) if e.downcast_ref::<Failure>().is_some_and(|failure| failure.code == UNDECIDED) => {
            journal.append(Record::Undecided)?;
            return Err(e);
        }
        decided => decided?,
    };
    // Going down, the system starts nothing any more; the next boot does.
    if choice.boot || direction == "old" && service::is_shutting_down() {
        return boot(install, journal);
    }
    let mut settled = settled(install, &journal, direction);
    settled.stands.server = Down;
    if direction == "new" {
        tell_aside(run, &journal);
    }
    if direction == "old" {
        let healthy = start_old(install, &mut journal)?;
        (settled.pid, settled.port) = (healthy.as_ref().map(|h| h.pid), healthy.as_ref().map(|h| h.port));
    } else if let Some(running) = server::find(&install.root)? {
        settled.pid = running.processes.first().map(|p| p.id.pid);
        settled.port = settled.pid.and(running.ports.first().copied());
    }
    if settled.pid.is_some() {
        settled.stands.server = Up;
    }
    rollback::clean_up(&install.root, journal)?;
    Ok(settled)
}

fn settled(install: &Install, journal: &Journal, direction: &'static str) -> Settled {
    let begin = &journal.begin;
    let version = if direction == "new" { begin.to_version.clone() } else { begin.from_version.clone() };
    // One that was never whole is not there.
    let has_backup = backup::load(&rollback::backup_dir(&install.root, journal)).is_ok();
    Settled {
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
    let ended = journal.has(|r| matches!(r, Record::Committed | Record::RolledBack));
    let restored = journal.has(|r| matches!(r, Record::DataRestored));
    Ok(ended || journal.starting().is_some() && !restored && undo_begun(install, journal)?.is_none())
}

/// How the undo of a started version goes on, if it has begun to move anything. Putting data back goes on only
/// while the start file is away: so nothing can have run and written since it was decided.
fn undo_begun(install: &Install, journal: &Journal) -> Result<Option<DataBack>> {
    let is_away = !crate::base::fsx::exists(&install.root.join(&journal.begin.start_file))?;
    Ok(journal.undoing().filter(|data| *data != DataBack::Restored || is_away))
}

/// What the boot leaves once the files are whole: the journal stays open where a server should run, because
/// nobody has seen it well. Looks at no process, so that no service manager can be waited for.
fn boot(install: &Install, journal: Journal) -> Result<Settled> {
    let committed = journal.has(|r| matches!(r, Record::Committed));
    let undone = journal.has(|r| matches!(r, Record::RolledBack));
    let mut settled = settled(install, &journal, if undone { "old" } else { "new" });
    settled.is_proven = committed || undone && !should_run(&journal);
    if settled.is_proven {
        rollback::clean_up(&install.root, journal)?;
    } else if undone {
        rollback::tidy(&install.root, &journal)?;
    }
    Ok(settled)
}

/// Whether the old version's server ran, and so has to run again.
fn should_run(journal: &Journal) -> bool {
    journal.begin.was_running && journal.begin.launch.is_some()
}

/// True when `recover` has something to do; changes nothing.
pub fn is_needed(install: &Install) -> Result<bool> {
    Ok(!matches!(Journal::find(install.state())?, Found::Nothing))
}

/// Finishes (`new`) or undoes (`old`), by the rules of the journal's last state.
fn decide(install: &Install, run: &mut Run, journal: &mut Journal, choice: Choice) -> Result<&'static str> {
    if journal.has(|r| matches!(r, Record::Committed)) {
        return Ok("new");
    }
    if journal.has(|r| matches!(r, Record::RolledBack)) {
        return Ok("old");
    }
    let starting = journal.starting().map(|(boot, process)| (boot.to_string(), process));
    let restored = journal.has(|r| matches!(r, Record::DataRestored));
    // What a hook left running must not write into what is put back.
    hooks::end_left(&journal.begin.update_id)?;
    let Some((boot, process)) = starting.filter(|_| !restored) else {
        let data = if restored { DataBack::Untouched } else { after_hooks(install, journal, choice)? };
        if !choice.boot {
            end_started(install, journal)?;
        }
        undo(install, run, journal, data)?;
        return Ok("old");
    };
    if let Some(data) = undo_begun(install, journal)?.filter(|_| choice.data.is_none()) {
        if !choice.boot {
            end_started(install, journal)?;
        }
        undo(install, run, journal, data)?;
        return Ok("old");
    }
    let same_boot = processes::boot_id().context("reading the boot id")? == boot;
    let expected: Before = measure(&journal.begin.before.new)?;
    // After a boot the service manager may be about to start it: there is time to wait for its answer.
    if choice.data.is_none() && !same_boot && start(install, journal, &expected, false).is_ok() {
        journal.append(Record::Committed)?;
        return Ok("new");
    }
    let running = server::find(&install.root)?;
    // One that is older than our start runs old code, whatever started it.
    let is_new = |running: &server::Running| {
        let first = running.processes.first();
        !same_boot || process.is_none_or(|process| first.is_some_and(|first| first.id.start >= process.start))
    };
    let healthy = running.as_ref().filter(|running| is_new(running)).is_some_and(|r| is_healthy(&expected, r));
    if choice.data != Some(Data::Backup) && healthy {
        journal.append(Record::Committed)?;
        return Ok("new");
    }
    let is_other = |p: &server::Process| process.is_none_or(|process| p.id != process && p.parent != Some(process.pid));
    let unwatched = !same_boot || running.iter().flat_map(|r| &r.processes).any(is_other);
    let data = match choice.data {
        Some(Data::Backup) => DataBack::Restored,
        Some(Data::Keep) => DataBack::Kept,
        None if unwatched => {
            return Err(undecided(install).into());
        }
        None => DataBack::Restored,
    };
    end_started(install, journal)?;
    undo(install, run, journal, data)?;
    Ok("old")
}

/// Names what gave way to an update that was finished after all: the run that moved it could not.
fn tell_aside(run: &mut Run, journal: &Journal) {
    let moved = journal.moves().into_iter().flat_map(|moves| &moves.moves).filter(|m| m.old && m.away == Away::Aside);
    let paths: Vec<RelPath> = moved.map(|intent| intent.path.clone()).collect();
    if !paths.is_empty() {
        let place = format!("{}/{}/aside", journal.begin.backup_dir, journal.begin.backup);
        run.report.warn_of("moved-aside", &format!("written here, and gave way; to be found in {place}"), &paths);
    }
}

fn undo(install: &Install, run: &mut Run, journal: &mut Journal, data: DataBack) -> Result<()> {
    let altered = rollback::undo(&install.root, journal, data)?;
    tell_altered(run, &altered);
    Ok(())
}

fn undecided(install: &Install) -> Failure {
    let root = install.root.path().display();
    Failure::operator(
        UNDECIDED,
        "the new version was started and may have run outside our watch; putting data back could lose what users wrote",
    )
    .at(&root)
    .remedy(format!(
        "type: updater recover --root '{root}' --data keep (old code, data as it is now) or --data backup (old code, data as at the stop)"
    ))
}

/// Before data is put back: a server of this install that somebody else started on the new tree writes data
/// that must not be replaced. Errors (exit 4): there is one.
pub fn refuse_outsiders(install: &Install, journal: &Journal) -> Result<()> {
    let (Some((_, process)), Some(running)) = (journal.starting(), server::find(&install.root)?) else { return Ok(()) };
    if journal.begin.service.is_some() && running.managed_by == journal.begin.service {
        return Ok(());
    }
    let above_us = ancestors(std::process::id())?;
    for one in &running.processes {
        // A daemon of ours has left us: it belongs to what adopts orphans, and that is above us, too.
        let above = ancestors(one.id.pid)?;
        let ours = process.is_none_or(|p| one.id == p || above.contains(&p.pid));
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
    let mut all = Vec::new();
    let mut at = pid;
    while let Some(parent) = processes::parent(at).context("looking at the processes")?.filter(|p| !all.contains(p)) {
        all.push(parent);
        at = parent;
    }
    Ok(all)
}

/// What becomes of the data where hooks may have changed them, and nothing was started by us. While the start file
/// is away nothing else can have. Errors (exit 4): it was there, and who knows.
fn after_hooks(install: &Install, journal: &Journal, choice: Choice) -> Result<DataBack> {
    let Some((boot, data)) = journal.hooking() else { return Ok(DataBack::Untouched) };
    match choice.data {
        Some(Data::Keep) => return Ok(DataBack::Kept),
        Some(Data::Backup) => return Ok(DataBack::Restored),
        None => {}
    }
    if !crate::base::fsx::exists(&install.root.join(&journal.begin.start_file))? {
        return Ok(DataBack::Restored);
    }
    if data.is_empty() {
        return Ok(DataBack::Untouched);
    }
    let same_boot = processes::boot_id().context("reading the boot id")? == boot;
    if same_boot && !choice.boot && server::find(&install.root)?.is_none() {
        return Ok(DataBack::Restored);
    }
    Err(undecided(install).into())
}

fn measure(value: &Option<serde_json::Value>) -> Result<Before> {
    serde_json::from_value(value.clone().unwrap_or_default()).context("the journal's measure of health cannot be read")
}

/// One look, without waiting: it owns the ports and answers as well as it should.
fn is_healthy(expected: &Before, running: &server::Running) -> bool {
    expected.ports.iter().all(|p| running.ports.contains(p))
        && health::answers_as_well(
            expected,
            &health::measure(&running.listeners, expected.asked_port, Some(&expected.path), health::PATIENCE),
        )
}

/// Ends the new version that this update started, or somebody once its hooks had run: whatever of it still runs.
pub fn end_started(install: &Install, journal: &Journal) -> Result<()> {
    let timeout = Duration::from_millis(journal.begin.stop_timeout_ms);
    let process = match (journal.starting(), journal.hooking()) {
        (Some((_, process)), _) => process,
        (None, Some(_)) => None,
        (None, None) => return Ok(()),
    };
    // Whether it runs or is about to be respawned.
    if let Some(unit) = &journal.begin.service {
        server::stop_unit(unit, timeout, &mut || Ok(()))?;
    }
    if let Some(running) = server::find(&install.root)? {
        server::stop(&running, timeout, &mut || Ok(()))?;
    }
    process.map_or(Ok(()), |process| end_process(process, timeout))
}

/// Ends one process by identity, politely first. A reused pid is another process and is left alone.
fn end_process(process: ProcessId, timeout: Duration) -> Result<()> {
    let Some(handle) = processes::Handle::open(process).context("looking at the started server")? else {
        return Ok(());
    };
    handle.ask_to_end().context("ending the started server")?;
    if !handle.wait(timeout).context("waiting for the started server")? {
        handle.kill().context("ending the started server")?;
        handle.wait(Duration::from_secs(10)).context("waiting for the started server")?;
    }
    Ok(())
}

/// Starts the old version again where one ran before, and judges it by its own answer before.
/// Errors (exit 4): it does not come back.
pub fn start_old(install: &Install, journal: &mut Journal) -> Result<Option<health::Healthy>> {
    if !should_run(journal) {
        return Ok(None);
    }
    let before = measure(&journal.begin.before.old)?;
    let root = install.root.path().display();
    let failed = |e: anyhow::Error| {
        Failure::operator(
            "old-not-started",
            format!("the files of the old version are whole, but its server does not come back: {e:#}"),
        )
        .at(&root)
        .remedy(format!("start the server by hand and read its log, then type: updater recover --root '{root}'"))
    };
    Ok(Some(start(install, journal, &before, true).map_err(failed)?))
}

/// Starts the server that the journal tells of, unless it runs, and judges it. One that an interrupted recovery started,
/// and that does not listen yet, is waited for.
fn start(install: &Install, journal: &mut Journal, expected: &Before, is_old: bool) -> Result<health::Healthy> {
    let begin = journal.begin.clone();
    let judge = health::Judge {
        timeout: Duration::from_millis(begin.health_timeout_ms),
        soak: Duration::from_millis(begin.soak_ms),
    };
    let running = server::find(&install.root)?;
    let mut started = match (&begin.service, &begin.launch) {
        // Somebody started it without its unit.
        (Some(unit), _) if running.as_ref().is_some_and(|r| r.managed_by.as_ref() != Some(unit)) => None,
        // One that runs may be about to end: the manager knows.
        (Some(unit), _) => server::start_unit(unit, judge.timeout, &mut || Ok(()))?,
        (None, Some(_)) if is_old && is_starting(journal)? => None,
        (None, Some(launch)) if running.is_none() => {
            let held = processes::hold(launch)?;
            if is_old {
                let boot = processes::boot_id().context("reading the boot id")?;
                journal.append(Record::StartingOld { boot, process: held.id() })?;
            }
            Some(Launched::Child(held.release()?))
        }
        _ => None,
    };
    let started = started.as_mut().map(|s| s as &mut dyn health::Started);
    judge.judge(expected, &install.root, &[], started, &mut || Ok(()))
}

/// Whether the old version that was started last still lives.
fn is_starting(journal: &Journal) -> Result<bool> {
    let Some((boot, process)) = journal.starting_old() else { return Ok(false) };
    let same_boot = processes::boot_id().context("reading the boot id")? == boot;
    let is = processes::identity(process.pid).context("looking at the started server")?;
    Ok(same_boot && is == Some(process))
}
