//! `verify`: whether the installed version and its databases are whole.
//! Takes no lock and changes nothing, not even `.updater/`.

use super::shown::{Shown, problem_lines};
use super::status::interrupted;
use crate::base::error::{Code, ErrorRecord, Failure};
use crate::base::path::RelPath;
use crate::state::receipt;
use crate::update;
use crate::update::install::Install;
use crate::update::run::Run;
use crate::verify::{self, Database};
use anyhow::Result;
use serde::Serialize;

/// The answer of `verify`.
#[derive(Debug, Serialize)]
pub struct Check {
    pub whole: bool,
    checked: usize,
    modified: Vec<RelPath>,
    missing: Vec<RelPath>,
    changed_here: Vec<RelPath>,
    unknown: Vec<RelPath>,
    databases: Vec<Database>,
    problems: Vec<ErrorRecord>,
}

/// Holds the install against its receipt, and checks clones of its databases.
pub fn check(install: &Install, run: &Run) -> Result<Check> {
    let receipt = receipt::load(install.state())?.ok_or_else(no_receipt)?;
    let ownership = install.ownership(Some(&receipt));
    let mut kept = update::kept_bundle(install, &receipt)?;
    let found = verify::installed(&ownership, &receipt, &mut kept, false)?;
    let mut databases = Vec::new();
    let census = ownership.census(None)?;
    let scratch = run.scratch(install)?;
    for main in install.databases(&census.databases, census.items.keys()) {
        databases.push(verify::check_database(install.root.path(), &main, &install.settings.verify.tables, &scratch)?);
    }
    Ok(Check {
        whole: found.is_whole() && databases.iter().all(|d| d.ok),
        checked: found.checked,
        modified: found.modified,
        missing: found.missing,
        changed_here: found.changed_here,
        unknown: found.unknown,
        databases,
        problems: interrupted(install)?.1.into_iter().collect(),
    })
}

pub(super) fn no_receipt() -> Failure {
    Failure::failed(Code::NoReceipt, "nothing was installed by this program yet, so there is nothing to compare with")
        .remedy("apply a bundle first: updater apply BUNDLE")
}

impl Shown for Check {
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let kinds = [
            (&self.modified, "modified"),
            (&self.missing, "missing"),
            (&self.changed_here, "changed"),
            (&self.unknown, "unknown"),
        ];
        for (paths, word) in kinds {
            lines.extend(paths.iter().map(|path| format!("{word:<8} {path}")));
        }
        let damaged = self.databases.iter().filter(|database| !database.ok);
        lines.extend(damaged.map(|database| format!("damaged  {}", database.path)));
        let verdict = if self.whole { "whole" } else { "not whole; to heal it type: updater verify --repair" };
        lines.push(format!("{} files checked: {verdict}", self.checked));
        lines.extend(problem_lines(&self.problems));
        lines
    }
}
