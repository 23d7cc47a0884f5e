//! The stage `rollback`: from an update that was interrupted after the stop, back to the old version, and what is said of it.
//! Refuses to call anything whole that was not brought back.

use super::server::{end_started, refuse_outsiders, start_old};
use super::{DataPolicy, altered_words, clean_up, tell_altered, tidy, undo};
use crate::base::error::{self, Class, Code, Failure};
use crate::base::path::RelPath;
use crate::base::report::Stage;
use crate::state::journal::Journal;
use crate::system::service;
use crate::update::install::Install;
use crate::update::run::Run;
use crate::update::server::Launched;
use std::path::PathBuf;
use std::time::Instant;

/// An update that cannot go on after the stop: what its rollback needs.
pub struct Interrupted {
    pub journal: Journal,
    pub stopped_at: Instant,
    /// Why it cannot go on.
    pub cause: anyhow::Error,
    pub attempt: Attempt,
}

/// What is known of the new version's start when it has to be undone.
#[derive(Default)]
pub struct Attempt {
    /// None: it has not come so far, or a service manager started it.
    pub launched: Option<Launched>,
    /// Where its logs ended before it was started, and when that was (nanoseconds since 1970).
    pub logs: Vec<(PathBuf, u64)>,
    pub since: Option<i64>,
}

impl Interrupted {
    /// An update that was interrupted before the new version was started.
    pub fn new(journal: Journal, stopped_at: Instant, cause: anyhow::Error) -> Box<Interrupted> {
        Box::new(Interrupted { journal, stopped_at, cause, attempt: Attempt::default() })
    }

    /// The same, after this start.
    pub fn after(self: Box<Self>, attempt: Attempt) -> Box<Interrupted> {
        Box::new(Interrupted { attempt, ..*self })
    }
}

/// Undoes the update and starts the old version again. Returns the failure that the run ends with:
/// class 3 when the old version is whole and the server as before, else 4.
pub fn roll_back(install: &Install, run: &mut Run, interrupted: Interrupted) -> anyhow::Error {
    let Interrupted { mut journal, stopped_at, cause, attempt } = interrupted;
    let record = error::record(&cause);
    run.report.fail_current(&record.message);
    show_log(run, &journal, &attempt);
    run.start(Stage::Rollback, &format!("going back to the old version: {}", record.message));
    let altered = match bring_back(install, &mut journal, attempt) {
        Ok(altered) => altered,
        Err(e) => {
            run.report.stage_failed(Stage::Rollback, &format!("{e:#}"));
            return needs_operator(install, &record, &e);
        }
    };
    tell_altered(run, &altered);
    if service::manager().is_shutting_down() {
        return at_shutdown(install, run, &journal, &cause, &record);
    }
    // Where the old server does not come back, the journal stays open, and `recover` goes on from here.
    let healthy = match start_old(install, &mut journal) {
        Ok(healthy) => healthy,
        Err(e) => {
            run.report.stage_failed(Stage::Rollback, &format!("{e:#}"));
            if let Err(e) = tidy(&install.root, &journal) {
                run.report.warning(Code::NotCleanedUp, &format!("cleaning up failed: {e:#}"), None);
            }
            return needs_operator(install, &record, &e);
        }
    };
    let was_running = journal.begin.was_running;
    if let Err(e) = clean_up(&install.root, journal) {
        run.report.stage_failed(Stage::Rollback, &format!("{e:#}"));
        return needs_operator(install, &record, &e);
    }
    run.report.stage_done(Stage::Rollback, "the old version is back");
    (run.summary.pid, run.summary.port) = (healthy.as_ref().map(|h| h.pid), healthy.as_ref().map(|h| h.port));
    let outage = healthy.filter(|_| was_running).map(|h| h.first_answer - stopped_at);
    run.summary.downtime_ms = outage.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let how = if altered.is_empty() {
        "the old version is back and the server is as it was before".to_string()
    } else {
        format!("the old version is back, but not all is as before: {}", altered_words(&altered))
    };
    anyhow::Error::new(Failure {
        class: Class::RolledBack,
        code: code_of(&cause),
        message: format!("{}; {how}", record.message),
        path: record.path,
        remedy: record.remedy.or_else(|| Some("mend the bundle, then apply it again".into())),
    })
}

/// Ends what runs of the new version, and brings the files back. Returns what nobody had saved and is not as it was.
fn bring_back(install: &Install, journal: &mut Journal, attempt: Attempt) -> anyhow::Result<Vec<RelPath>> {
    let progress = journal.progress();
    // A service manager may have started it although its request failed.
    let asked = journal.begin.service.is_some() && progress.started.is_some();
    let ran = attempt.launched.is_some() || asked;
    let data = if ran || progress.hooks.is_some() { DataPolicy::Restored } else { DataPolicy::Untouched };
    if ran {
        refuse_outsiders(install, journal)?;
    }
    end_started(install, journal)?;
    undo(&install.root, journal, data)
}

/// The system goes down, so nothing is started: the files are mended, and the journal stays open until
/// somebody has seen the old version well.
fn at_shutdown(
    install: &Install,
    run: &mut Run,
    journal: &Journal,
    cause: &anyhow::Error,
    record: &error::ErrorRecord,
) -> anyhow::Error {
    if let Err(e) = tidy(&install.root, journal) {
        run.report.stage_failed(Stage::Rollback, &format!("{e:#}"));
        return needs_operator(install, record, &e);
    }
    run.report.stage_done(Stage::Rollback, "the old version is back; nothing is started, because the system goes down");
    let message = format!("{}; the system goes down, so the old version is back and not started", record.message);
    Failure::new(Class::RolledBack, code_of(cause), message)
        .remedy("apply the bundle again when the system is up")
        .into()
}

/// How much of it is shown, in lines.
const TAIL: usize = 20;

/// The end of what the new version itself said since it was started: in its files, or as a unit in the journal.
fn show_log(run: &mut Run, journal: &Journal, new: &Attempt) {
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    if let (Some(unit), Some(since)) = (&journal.begin.service, new.since) {
        all.push((
            format!("journal of {unit}"),
            service::manager().recent_output(unit, since, TAIL).unwrap_or_default(),
        ));
    }
    for (file, from) in &new.logs {
        all.push((format!("log {}", file.display()), super::log::tail(file, *from, TAIL).unwrap_or_default()));
    }
    for (name, lines) in all.iter().filter(|(_, lines)| !lines.is_empty()) {
        let message = format!("the new server's {name} ends so:\n  {}", lines.join("\n  "));
        run.report.warning(Code::ServerLog, &message, None);
    }
}

pub fn code_of(cause: &anyhow::Error) -> Code {
    cause.downcast_ref::<Failure>().map_or(Code::Io, |f| f.code)
}

pub fn needs_operator(install: &Install, cause: &error::ErrorRecord, e: &anyhow::Error) -> anyhow::Error {
    let code = e.downcast_ref::<Failure>().map_or(Code::RollbackFailed, |f| f.code);
    let own_remedy = e.downcast_ref::<Failure>().and_then(|f| f.remedy.clone());
    let usual = format!("remove the cause, then type: updater recover --root '{}'", install.root.path().display());
    Failure::operator(code, format!("the update failed ({}) and going back did not succeed: {e:#}", cause.message))
        .at(install.root.path().display())
        .remedy(own_remedy.unwrap_or(usual))
        .into()
}
