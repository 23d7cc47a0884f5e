//! What a changing command leaves behind for those who look later: the last outcome and `status.json`.
//! Refuses to fail: how the command ended is decided already.

use crate::base::report::Finished;
use crate::commands::status::{self, Asking};
use crate::state::history;
use crate::system::processes;
use crate::update::install::Install;
use crate::update::run::Run;
use serde_json::Value;

/// What an event command leaves behind: the last outcome, `status.json`, words for people.
pub fn end(install: &Install, run: &mut Run, finished: &Finished) -> u8 {
    // Whoever gave up waiting for the lock leaves the words of the one that holds it alone.
    let has_waited_only = run.under_way.is_none() && processes::was_asked_to_end();
    if install.state().path().is_dir() && finished.exit_code != 5 && !has_waited_only {
        if let Some(last) = run.report.last_finished() {
            let _ = history::Last::write(install.state(), &last);
        }
        // Before the stop nothing has changed since the server was asked, if it was.
        let is_known = !run.is_down && finished.exit_code != 0;
        let asking = if is_known { Asking::Known(run.baseline.as_ref()) } else { Asking::Now };
        if let Ok(mut status) = status::status(install, &asking) {
            (status.schema, status.under_way) = (Some(1), Value::Null);
            if let Ok(status) = serde_json::to_value(status) {
                run.close_status(install, &status);
            }
        }
    }
    finished.exit_code
}

/// The same without a look at the server.
pub fn unasked(install: &Install, run: &mut Run, finished: &Finished) -> u8 {
    if let Some(last) =
        run.report.last_finished().filter(|_| install.state().path().is_dir() && finished.exit_code != 5)
    {
        let _ = history::Last::write(install.state(), &last);
        if let Some(mut status) = history::read_status(install.state()) {
            status["under_way"] = Value::Null;
            status["last"] = last;
            run.close_status(install, &status);
        }
    }
    finished.exit_code
}
