//! The way back from a failure after the stop, and what is said of it.
//! Refuses to call anything whole that was not brought back.

use super::{NewVersion, Survey, millis};
use crate::base::error::{self, Class, Failure};
use crate::base::report::{Finished, Stage};
use crate::state::journal::Journal;
use crate::system::service;
use crate::update::health::{self};
use crate::update::install::Install;
use crate::update::recover;
use crate::update::rollback::{self, DataBack};
use crate::update::run::Run;
use std::time::Instant;

/// Undoes the update and starts the old version again. Returns the failure that the run ends with:
/// class 3 when the old version is whole and the server as before, else 4.
pub(super) fn roll_back(
    install: &Install,
    run: &mut Run,
    survey: &Survey,
    mut journal: Journal,
    new: NewVersion,
    cause: anyhow::Error,
    finished: &mut Finished,
    stopped_at: Instant,
) -> anyhow::Error {
    let record = error::record(&cause);
    run.report.fail_current(&record.message);
    show_log(run, survey, &new);
    let started = new.launched;
    run.start(Stage::Rollback, &format!("going back to the old version: {}", record.message));
    // A unit may have started it although its request failed.
    let asked = survey.service.is_some() && journal.starting().is_some();
    let ran = started.is_some() || asked;
    let data = if ran || journal.hooking().is_some() { DataBack::Restored } else { DataBack::Untouched };
    let outsiders = if ran { recover::refuse_outsiders(install, &journal) } else { Ok(()) };
    let undone = outsiders
        .and_then(|()| recover::end_started(install, &journal))
        .and_then(|()| rollback::undo(&install.root, &mut journal, data));
    drop(started);
    let altered = match undone {
        Ok(altered) => altered,
        Err(e) => {
            run.report.stage_failed(Stage::Rollback, &format!("{e:#}"));
            return needs_operator(install, &record, &e);
        }
    };
    recover::tell_altered(run, &altered);
    if service::is_shutting_down() {
        return at_shutdown(install, run, &journal, &cause, &record);
    }
    // Where the old server does not come back, the journal stays open, and `recover` goes on from here.
    let healthy = match recover::start_old(install, &mut journal) {
        Ok(healthy) => healthy,
        Err(e) => {
            run.report.stage_failed(Stage::Rollback, &format!("{e:#}"));
            if let Err(e) = rollback::tidy(&install.root, &journal) {
                run.report.warning("not-cleaned-up", &format!("cleaning up failed: {e:#}"), None);
            }
            return needs_operator(install, &record, &e);
        }
    };
    if let Err(e) = rollback::clean_up(&install.root, journal) {
        run.report.stage_failed(Stage::Rollback, &format!("{e:#}"));
        return needs_operator(install, &record, &e);
    }
    run.report.stage_done(Stage::Rollback, "the old version is back");
    (finished.pid, finished.port) = (healthy.as_ref().map(|h| h.pid), healthy.as_ref().map(|h| h.port));
    finished.downtime_ms = healthy.filter(|_| survey.server.is_some()).map(|h| millis(h.first_answer - stopped_at));
    let how = if altered.is_empty() {
        "the old version is back and the server is as it was before".to_string()
    } else {
        format!("the old version is back, but not all is as before: {}", recover::altered_words(&altered))
    };
    anyhow::Error::new(Failure {
        class: Class::RolledBack,
        code: code_of(&cause),
        message: format!("{}; {how}", record.message),
        path: record.path,
        remedy: record.remedy.or_else(|| Some("mend the bundle, then apply it again".into())),
    })
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
    if let Err(e) = rollback::tidy(&install.root, journal) {
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
fn show_log(run: &mut Run, survey: &Survey, new: &NewVersion) {
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    if let (Some(unit), Some(since)) = (&survey.service, new.since) {
        all.push((format!("journal of {unit}"), service::said_since(unit, since, TAIL).unwrap_or_default()));
    }
    for (file, from) in &new.logs {
        all.push((format!("log {}", file.display()), health::tail(file, *from, TAIL).unwrap_or_default()));
    }
    for (name, lines) in all.iter().filter(|(_, lines)| !lines.is_empty()) {
        let message = format!("the new server's {name} ends so:\n  {}", lines.join("\n  "));
        run.report.warning("server-log", &message, None);
    }
}

pub(super) fn code_of(cause: &anyhow::Error) -> &'static str {
    cause.downcast_ref::<Failure>().map_or("io", |f| f.code)
}

pub(super) fn needs_operator(install: &Install, cause: &error::ErrorRecord, e: &anyhow::Error) -> anyhow::Error {
    let code = e.downcast_ref::<Failure>().map_or("rollback-failed", |f| f.code);
    let own_remedy = e.downcast_ref::<Failure>().and_then(|f| f.remedy.clone());
    let usual = format!("remove the cause, then type: updater recover --root '{}'", install.root.path().display());
    Failure::operator(code, format!("the update failed ({}) and going back did not succeed: {e:#}", cause.message))
        .at(install.root.path().display())
        .remedy(own_remedy.unwrap_or(usual))
        .into()
}
