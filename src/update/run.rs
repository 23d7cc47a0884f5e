//! One run of the program: what it reports, the signals that ask it to end, and how far it is.
//! Refuses to hold state of an update; that is the journal's.

use crate::base::error::{Code, Failure};
use crate::base::report::{Finished, Reporter, Stage};
use crate::state::baseline::HealthBaseline;
use crate::state::dir::StateDir;
use crate::state::history;
use crate::system::escape::ControlSocket;
use crate::system::processes::{self, Signals};
use crate::system::{Notice, files, interrupt};
use crate::update::install::Install;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::rc::Rc;

pub struct Run {
    pub report: Reporter,
    pub signals: Signals,
    pub update_id: String,
    /// What was found out and done so far, for the `finished` event.
    pub summary: Finished,
    /// The update under way, for `status.json`.
    pub under_way: Option<UnderWay>,
    /// The server was stopped: one SIGINT no longer ends the run.
    pub is_down: bool,
    /// That was said.
    pub has_said: bool,
    /// How the server answered when this run looked for it; None: it has not looked yet.
    pub baseline: Option<HealthBaseline>,
    /// To the first process, where this one runs outside of what it was called by.
    pub line: Option<Rc<ControlSocket>>,
}

pub struct UnderWay {
    pub update_id: String,
    pub started_at: String,
    /// The state directory of the install.
    pub state: StateDir,
}

/// Ends with exit 1 when SIGINT or SIGTERM came before the stop.
pub fn check(signals: &Signals) -> Result<()> {
    if signals.interrupts() + signals.terminations() > 0 {
        return Err(interrupted());
    }
    Ok(())
}

fn interrupted() -> anyhow::Error {
    Failure::failed(Code::Interrupted, "stopped by a signal before anything was changed").into()
}

/// Runs work that changes nothing but what may be thrown away: once SIGINT or SIGTERM came, it ends at its next
/// `interrupt::check`. Errors (exit 1): it was so ended, or failed after a signal; what `work` says.
pub fn interruptible<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    interrupt::during(work).map_err(|e| if processes::was_asked_to_end() { interrupted() } else { e })
}

impl Run {
    /// The folder in which databases are cloned: on the install's own volume in a run that changes it, the
    /// system's temporary folder in one that only reads.
    pub fn scratch(&self, install: &Install) -> Result<PathBuf> {
        if self.under_way.is_none() {
            return Ok(std::env::temp_dir());
        }
        let folder = install.state().staging();
        files::private_folder(&folder).with_context(|| format!("creating {}", folder.display()))?;
        Ok(folder)
    }

    /// Reports the begin of a stage, and keeps it in `status.json`.
    pub fn start(&mut self, stage: Stage, message: &str) {
        self.report.stage_started(stage, message);
        if self.is_down && !self.has_said && self.signals.interrupts() == 1 {
            self.has_said = true;
            let message =
                "the server is stopped, so the update goes on; interrupt once more to go back to the old version";
            self.report.warning(Code::Interrupted, message, None);
        }
        self.keep_status();
    }

    /// Tells the first process how far this one is, where there is one.
    pub fn notify(&self, notice: Notice) {
        if let Some(line) = &self.line {
            line.notify(notice);
        }
    }

    /// Reports the end of a stage.
    pub fn done(&mut self, stage: Stage, message: &str) {
        self.report.stage_done(stage, message);
    }

    /// Ends with exit 1 when SIGINT or SIGTERM came before the stop.
    pub fn check_signals(&self) -> Result<()> {
        check(&self.signals)
    }

    /// After the stop only a second SIGINT or a SIGTERM asks for a rollback.
    pub fn check_signals_after_stop(&self) -> Result<()> {
        if self.signals.interrupts() > 1 || self.signals.terminations() > 0 {
            return Err(Failure::failed(Code::Interrupted, "stopped by a signal").into());
        }
        Ok(())
    }

    /// A dashboard may poll this file; that it cannot be written is no reason to fail an update.
    pub fn keep_status(&self) {
        let Some(under_way) = &self.under_way else { return };
        let mut status = history::read_status(&under_way.state).unwrap_or_else(|| json!({"schema": 1}));
        let (name, percent) = self.report.legacy_stage();
        status["under_way"] = json!({
            "update_id": under_way.update_id,
            "pid": std::process::id(),
            // With it the pid is ours and no later process's.
            "process_start": processes::identity(std::process::id()).ok().flatten().map(|id| id.start),
            "stage": self.report.stage_now().map(Stage::word),
            "percent": self.report.percent(),
            "started_at": under_way.started_at,
            "legacy_stage": {"name": name, "percent": percent},
        });
        let _ = history::write_status(&under_way.state, &status);
    }

    /// Writes what `status` says, as far as it is known without asking the server.
    pub fn close_status(&mut self, install: &Install, status: &Value) {
        self.under_way = None;
        let _ = history::write_status(install.state(), status);
    }
}
