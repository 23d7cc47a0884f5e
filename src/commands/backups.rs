//! `backups`: what the way back could be taken from.
//! Takes no lock and changes nothing.

use super::shown::{Shown, known, problem_lines};
use super::status::interrupted;
use crate::backup::{self, Kind, Listed};
use crate::base::error::ErrorRecord;
use crate::update::install::Install;
use anyhow::Result;
use serde::Serialize;

/// The answer of `backups`.
#[derive(Debug, Serialize)]
pub struct Backups {
    /// Newest first.
    backups: Vec<Listed>,
    problems: Vec<ErrorRecord>,
}

/// Lists them; `check` hashes every saved file again. The second: nothing is found wrong.
pub fn backups(install: &Install, check: bool) -> Result<(Backups, bool)> {
    let all = backup::list_all(&install.backups(), check)?;
    let whole = all.iter().all(|b| b.damaged.is_empty() && (b.whole || b.kind == Kind::Legacy));
    let problems = interrupted(install)?.1.into_iter().collect();
    Ok((Backups { backups: all, problems }, !check || whole))
}

impl Shown for Backups {
    fn lines(&self) -> Vec<String> {
        let mut lines = list(&self.backups);
        if lines.is_empty() {
            lines.push(NONE.into());
        }
        lines.extend(problem_lines(&self.problems));
        lines
    }
}

/// What is said where there is nothing to list.
pub const NONE: &str = "no backups yet";

/// Backups in words.
pub fn list(backups: &[Listed]) -> Vec<String> {
    let mut lines = Vec::new();
    for one in backups {
        let state = match (one.whole, one.kind) {
            (true, _) => "whole",
            (false, Kind::Legacy) => "no record",
            (false, _) => "DAMAGED",
        };
        let (from, to) = (known(one.from_version.as_ref()), known(one.to_version.as_ref()));
        let size = format!("{} files, {} bytes", one.files, one.bytes);
        lines.push(format!("{}  {:<7}  {from} -> {to}  {size}, {state}", one.id, one.kind.word()));
        if one.aside > 0 {
            lines.push(format!("  {} files of the users' that gave way lie in its aside/", one.aside));
        }
        lines.extend(one.damaged.iter().map(|damage| format!("  {} {}", damage.what, damage.path)));
    }
    lines
}
