//! The stage `hooks`: what runs between the swap and the start, and that it wrote only what it named.
//! Refuses to start a version on anything else.

use super::preflight::Prepared;
use crate::base::error::Code;
use crate::base::path::RelPath;
use crate::base::report::Stage;
use crate::state::journal::{Journal, Record};
use crate::state::receipt;
use crate::system::processes;
use crate::update::hooks::{self, TreeSnapshot};
use crate::update::install::Install;
use crate::update::run::Run;
use crate::verify::{self, Arrival};
use anyhow::{Context as _, Result};

/// Runs the hooks after the swap and holds the install against what they may have changed. Errors: one failed, or
/// wrote elsewhere; the rollback follows.
pub(super) fn run_hooks(
    install: &Install,
    run: &mut Run,
    prepared: &Prepared,
    arrival: &Arrival,
    journal: &mut Journal,
) -> Result<()> {
    if !prepared.hooks.run_after_swap() {
        run.report.stage_skipped(Stage::Hooks, "none");
        return Ok(());
    }
    run.start(Stage::Hooks, "running the hooks");
    let Arrival { files: staged, record, moves, start_file } = *arrival;
    let changes = &prepared.hooks.changes;
    let boot = processes::boot_id().context("reading the boot id")?;
    let data: Vec<RelPath> = changes.data().cloned().collect();
    let files = prepared.plan.shipped.keys().chain(staged.iter().map(|one| &one.path));
    let before = TreeSnapshot::take(&install.root, &data, files, &moves.exchanges, &journal.begin.backup_dir)?;
    before.store(install.state())?;
    journal.append(Record::Hooking { boot, data: data.clone() })?;
    prepared.hooks.after_swap(install, run, start_file)?;
    let program = "which belongs to the new version: what is installed would no longer be what was shipped";
    let shipped = "let it write under names that the bundle does not ship";
    let altered = match verify::altered_arrival(&install.root, staged, start_file)? {
        None => altered_program(install, prepared, start_file)?,
        altered => altered,
    };
    if let Some(path) = altered {
        return Err(hooks::strayed(Code::HookChangedProgram, &path, program).remedy(shipped).into());
    }
    let brought = |path: &RelPath| moves.moves.iter().any(|m| m.path == *path);
    if let Some(path) = verify::altered_data(&install.root, record, &|path| !brought(path) && !changes.may_write(path))?
    {
        return Err(hooks::strayed(Code::HookChangedData, &path, "which belongs to the users").into());
    }
    changes.flush(&install.root, &record.files)?;
    let made = before.made(&install.root)?;
    let unnamed: Vec<String> = made.iter().filter(|path| !changes.may_write(path)).map(RelPath::to_string).collect();
    if !unnamed.is_empty() {
        let text = format!("hooks made what they do not name in `changes`: {}", unnamed.join(", "));
        run.report.warning(Code::HookMade, &text, unnamed.first().map(String::as_str));
    }
    hooks::store_made(install.state(), &made)?;
    journal.append(Record::Hooked)?;
    run.done(Stage::Hooks, "done");
    Ok(())
}

/// What is not as the receipt of the new version will say it.
fn altered_program(install: &Install, prepared: &Prepared, start_file: &RelPath) -> Result<Option<RelPath>> {
    let Some(mut wanted) = receipt::load_staged(install.state())? else { return Ok(None) };
    wanted.files.retain(|line| line.path != *start_file);
    // A restore of a part leaves what was altered before as it was.
    let found = verify::installed(&install.ownership(Some(&wanted)), &wanted, &mut None, true)?;
    let was_so = |path: &RelPath| {
        prepared.plan.actions.iter().any(|p| p.path == *path && p.action == crate::update::plan::Action::Keep)
    };
    Ok(found.modified.into_iter().chain(found.missing).find(|path| !was_so(path)))
}
