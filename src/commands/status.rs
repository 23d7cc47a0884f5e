//! `status`: what is installed, runs, is under way, was interrupted.
//! Takes no lock and changes nothing, not even `.updater/`.

use super::shown::{ServerShown, ServerState, Shown, known, problem_lines};
use crate::backup;
use crate::base::error::{self, Code, ErrorRecord, Failure};
use crate::base::net::Protocol;
use crate::state::baseline::HealthBaseline;
use crate::state::history;
use crate::state::journal::{self, Found, Journal};
use crate::state::receipt::{self, Receipt};
use crate::update;
use crate::update::health;
use crate::update::install::Install;
use crate::update::server::{self, Running};
use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

/// How the answer of the server is found out.
pub enum Asking<'a> {
    /// By asking it.
    Now,
    /// It is known from earlier in this run; None: not at all.
    Known(Option<&'a HealthBaseline>),
}

/// The answer of `status`, which `status.json` keeps, too.
#[derive(Debug, Serialize)]
pub struct Status {
    root: String,
    installed: Option<Installed>,
    server: ServerShown,
    /// As the updater that is under way writes it.
    pub under_way: Value,
    interrupted: Option<String>,
    /// The `finished` event of the last run.
    last: Option<Value>,
    backups: usize,
    warnings: Vec<ErrorRecord>,
    /// Only in `status.json`; what is printed gets it elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Installed {
    version: String,
    content_id: String,
    applied_at: String,
    files: usize,
}

impl Installed {
    fn of(receipt: &Receipt) -> Installed {
        Installed {
            version: receipt.version.clone(),
            content_id: receipt.content_id.clone(),
            applied_at: receipt.applied_at.clone(),
            files: receipt.files.len(),
        }
    }
}

/// The server as it is shown.
pub(super) fn server_shown(install: &Install, server: Option<&Running>, asking: &Asking) -> Result<ServerShown> {
    let Some(running) = server else { return Ok(ServerShown::only(ServerState::Stopped)) };
    let asked = match asking {
        Asking::Known(_) => None,
        Asking::Now => {
            let path = install.settings.server.health.as_deref();
            Some(health::measure_while(&running.listeners, None, path)?)
        }
    };
    let answer = asked.as_ref().or(if let Asking::Known(known) = asking { *known } else { None });
    let is_healthy = |answer: &HealthBaseline| answer.status.is_some_and(|s| (200..400).contains(&s));
    Ok(ServerShown {
        state: ServerState::Running,
        pid: running.processes.first().map(|p| p.id.pid),
        port: answer.and_then(|answer| answer.asked_port).or(running.ports.first().copied()),
        protocol: answer.and_then(|answer| answer.protocol),
        healthy: answer.map(is_healthy),
        managed_by: running.managed_by.as_ref().map(|unit| unit.name.clone()),
    })
}

/// What an interrupted or unreadable journal means to a reader: the id of the update, where it is known, and the problem.
pub fn interrupted(install: &Install) -> Result<(Option<String>, Option<ErrorRecord>)> {
    let problem = |failure: Failure| error::record(&failure.into());
    Ok(match Journal::find(install.state())? {
        Found::Nothing => (None, None),
        Found::Open(journal) => {
            let id = journal.begin.update_id.clone();
            let failure = Failure::failed(Code::Interrupted, format!("the update {id} was interrupted"))
                .remedy(format!("type: updater recover --root '{}'", install.root.path().display()));
            (Some(id), Some(problem(failure)))
        }
        Found::Unreadable(reason) => (None, Some(problem(journal::blocked(install.state(), &reason)))),
    })
}

/// Looks at all of it. Errors: it cannot be read.
pub fn status(install: &Install, asking: &Asking) -> Result<Status> {
    let receipt = receipt::load(install.state())?;
    let kept = history::read_status(install.state()).unwrap_or(Value::Null);
    let under_way = Some(kept["under_way"].clone()).filter(is_alive).unwrap_or(Value::Null);
    let (interrupted, problem) = if under_way.is_null() { interrupted(install)? } else { (None, None) };
    let server = server::find(&install.root);
    let mut warnings: Vec<ErrorRecord> = problem.into_iter().collect();
    for bad in history::known_bad(install.state(), update::MOST_FAILURES) {
        let message =
            format!("{} failed here {} times by its own fault: unattended runs skip it", bad.version, bad.count);
        let failure = Failure::failed(Code::KnownBad, message)
            .remedy("apply a mended bundle, or try this one once more with --retry-failed");
        warnings.push(error::record(&failure.into()));
    }
    let elsewhere = if matches!(server, Ok(None)) { server::elsewhere(&install.root)? } else { None };
    let server = match elsewhere.map_or(server, |failure| Err(failure.into())) {
        Ok(found) => server_shown(install, found.as_ref(), asking)?,
        Err(e) => {
            warnings.push(error::record(&e));
            ServerShown::only(ServerState::Unknown)
        }
    };
    Ok(Status {
        root: install.root.path().display().to_string(),
        installed: receipt.as_ref().map(Installed::of),
        server,
        under_way,
        interrupted,
        last: history::Last::read(install.state()).map(|last| last.0),
        backups: backup::list(&install.backups())?.len(),
        warnings,
        schema: None,
    })
}

/// A status file outlives a killed updater; its process tells.
fn is_alive(under_way: &Value) -> bool {
    history::who(under_way)
        .is_some_and(|who| matches!(crate::system::processes::identity(who.pid), Ok(Some(is)) if is == who))
}

impl Shown for Status {
    fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("root:      {}", self.root)];
        lines.push(match &self.installed {
            None => "installed: nothing by this program yet".into(),
            Some(installed) => {
                format!("installed: {} ({} files, {})", installed.version, installed.files, installed.applied_at)
            }
        });
        let server = &self.server;
        lines.push(match server.state {
            ServerState::Running => format!(
                "server:    running, process {}, port {}, {}",
                server.pid.map_or_else(|| "null".to_string(), |pid| pid.to_string()),
                known(server.port),
                known(server.protocol.map(Protocol::scheme))
            ),
            ServerState::Stopped => "server:    stopped".into(),
            ServerState::Unknown => "server:    unknown".into(),
        });
        if !self.under_way.is_null() {
            let stage = self.under_way["stage"].as_str();
            lines.push(format!("under way: {} at {} percent", known(stage), self.under_way["percent"]));
        }
        if let Some(last) = &self.last {
            let reason = last["error"]["message"].as_str().map_or(String::new(), |reason| format!(": {reason}"));
            lines.push(format!("last:      {}{reason}", known(last["outcome"].as_str())));
        }
        lines.push(format!("backups:   {}", self.backups));
        lines.extend(problem_lines(&self.warnings));
        lines
    }
}
