//! Begin and end of every changing command: the lock and the logs, what an earlier run left, and the outcome.
//! Refuses to begin beside another one, and to end without saying how.

use crate::base::error;
use crate::base::fsx;
use crate::base::report::{Finished, Outcome, Reporter, Stage};
use crate::state::history;
use crate::state::lock::Lock;
use crate::system::{FileType, Notice, files};
use crate::update::hooks;
use crate::update::install::Install;
use crate::update::recover;
use crate::update::rollback;
use crate::update::run::{Run, UnderWay};
use anyhow::{Context as _, Result};
use std::time::Duration;

/// Takes the lock and opens the logs of this run.
pub fn begin(install: &Install, run: &mut Run, wait: Option<Duration>) -> Result<Lock> {
    let state = install.state();
    files::private_folder(state.path()).with_context(|| format!("creating {}", state.path().display()))?;
    let lock = Lock::take(state, wait, &mut || run.check_signals())?;
    install.root.check()?;
    // Hooks before the stop run before there is a journal.
    if let Some(id) = history::left_under_way(state) {
        hooks::kill_leftovers(&id)?;
    }
    let id = run.update_id.clone();
    for folder in [state.events(), state.logs()] {
        files::private_folder(&folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    run.report.events_to(&state.events_of(&id));
    run.report.log_to(&state.log_of(&id));
    let human = install.root.path().join("instance");
    if human.is_dir() {
        let log = human.join("update_log.txt");
        // The log of the newest update alone; a caller may hold it open as our output, so it is cut, not replaced. The
        // server's user may write in that folder: a link there, or another name of some file, is left alone.
        let is_own =
            |file: &std::fs::File| files::metadata_of(file).is_ok_and(|f| f.kind == FileType::File && f.links == 1);
        if let Some(file) = files::open_log(&log).ok().filter(is_own).filter(|file| file.set_len(0).is_ok()) {
            let _ = fsx::inherit_owner(&log);
            run.report.log_into(file);
        }
    }
    run.under_way =
        Some(UnderWay { update_id: id, started_at: jiff::Timestamp::now().to_string(), state: state.clone() });
    history::prune(state, history::KEEP);
    run.keep_status();
    run.notify(Notice::Begun);
    Ok(lock)
}

/// Finishes or undoes what an earlier run left, before any work of this one.
pub fn recover_first(install: &Install, run: &mut Run) -> Result<()> {
    if let Some(done) = recover::resolve(install, run, recover::RecoverOptions::default())? {
        run.report.recovered(&done.interrupted_id, done.direction);
        let events = install.state().events_of(&done.interrupted_id);
        let mut theirs = Reporter::resumed(&done.interrupted_id, &events, &[Stage::Rollback]);
        theirs.stage_started(Stage::Rollback, "settled by the next command");
        theirs.finished(&done.finished());
    }
    // Without a journal nothing refers to what an earlier run may have left.
    rollback::sweep(install.state())
}

/// How often a bundle may fail by its own fault before an unattended run skips it.
pub const MOST_FAILURES: u64 = 2;

/// Turns the end of a run into its `finished` record.
pub fn conclude(install: &Install, run: &mut Run, outcome: Result<Outcome>) -> Finished {
    let mut finished = std::mem::take(&mut run.summary);
    match outcome {
        Ok(outcome) => {
            finished.outcome = outcome;
            finished.exit_code = 0;
        }
        Err(e) => {
            let class = error::class(&e);
            finished.exit_code = class as u8;
            finished.error = Some(error::record(&e));
            finished.outcome = Outcome::of(class);
            run.report.fail_current(&format!("{e:#}"));
        }
    }
    finished.stands = Some(recover::stands(install));
    if finished.outcome == Outcome::Skipped {
        finished.reason = Some("known-bad".into());
    }
    run.report.finished(&finished);
    finished
}
