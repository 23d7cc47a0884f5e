//! What the reading commands answer: one typed value each, which is JSON for programs and lines for people.

use crate::base::error::ErrorRecord;
use crate::base::net::Protocol;
use crate::base::report::Reporter;
use anyhow::Result;
use serde::Serialize;

/// An answer of a reading command.
pub trait Shown: Serialize {
    /// The answer in words.
    fn lines(&self) -> Vec<String>;
}

/// Prints an answer as the command line asks for it.
pub fn show(report: &mut Reporter, answer: &impl Shown) -> Result<()> {
    if report.options().json {
        report.object(&serde_json::to_value(answer)?);
    } else {
        for line in answer.lines() {
            report.line(&line);
        }
    }
    Ok(())
}

/// The server, as `status` and `plan` show it.
#[derive(Debug, Serialize)]
pub struct ServerShown {
    pub state: ServerState,
    pub pid: Option<u32>,
    pub port: Option<u16>,
    pub protocol: Option<Protocol>,
    pub healthy: Option<bool>,
    /// The service that it belongs to.
    pub managed_by: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerState {
    Running,
    Stopped,
    Unknown,
}

impl ServerShown {
    /// One of which nothing more is known.
    pub fn only(state: ServerState) -> ServerShown {
        ServerShown { state, pid: None, port: None, protocol: None, healthy: None, managed_by: None }
    }
}

/// A number of files and their bytes.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Counted {
    pub count: u64,
    pub bytes: u64,
}

/// Something that may be unknown, in words.
pub fn known(value: Option<impl std::fmt::Display>) -> String {
    value.map_or_else(|| "unknown".to_string(), |value| value.to_string())
}

/// Problems in words, each with its remedy.
pub fn problem_lines(problems: &[ErrorRecord]) -> Vec<String> {
    let lines = |problem: &ErrorRecord| {
        let remedy = problem.remedy.iter().map(|remedy| format!("  remedy: {remedy}"));
        std::iter::once(format!("problem: {}", problem.message)).chain(remedy).collect::<Vec<_>>()
    };
    problems.iter().flat_map(lines).collect()
}
