//! The stage `hooks`: what runs between the swap and the start, and that it wrote only what it named.
//! Refuses to start a version on anything else.

use super::Prepared;
use crate::backup;
use crate::context::Context;
use crate::hooks;
use crate::journal::{Journal, Moves, Record};
use crate::os::processes;
use crate::path::RelPath;
use crate::receipt;
use crate::rollback;
use crate::staging::Staged;
use crate::verify;
use anyhow::{Context as _, Result};

/// Runs the hooks after the swap and holds the install against what they may have changed. Errors: one failed, or
/// wrote elsewhere; the rollback follows.
pub(super) fn run_hooks(
    cx: &mut Context,
    prepared: &Prepared,
    staged: &[Staged],
    moves: &Moves,
    record: &backup::Record,
    start_file: &RelPath,
    journal: &mut Journal,
) -> Result<()> {
    let changes = &prepared.hooks.changes;
    let boot = processes::boot_id().context("reading the boot id")?;
    let data: Vec<RelPath> = changes.data().cloned().collect();
    journal.append(Record::Hooking { boot, data: data.clone() })?;
    prepared.hooks.after_swap(cx)?;
    let program = "which belongs to the new version: what is installed would no longer be what was shipped";
    if let Some(path) = verify::altered_arrival(&cx.root, staged, start_file)? {
        return Err(hooks::strayed("hook-changed-program", &path, program).into());
    }
    if let Some(path) = altered_program(cx, prepared, start_file)? {
        return Err(hooks::strayed("hook-changed-program", &path, program).into());
    }
    let brought = |path: &RelPath| moves.moves.iter().any(|m| m.path == *path);
    if let Some(path) = verify::altered_data(&cx.root, &record.files, &|path| !brought(path) && !changes.hold(path))? {
        return Err(hooks::strayed("hook-changed-data", &path, "which belongs to the users").into());
    }
    changes.flush(&cx.root, &record.files)?;
    let made = rollback::made_in(&cx.root, &data, record, moves)?;
    journal.append(Record::Hooked { made })
}

/// What is not as the receipt of the new version will say it.
fn altered_program(cx: &Context, prepared: &Prepared, start_file: &RelPath) -> Result<Option<RelPath>> {
    let Some(mut wanted) = receipt::load(&cx.own().join("staging"))? else { return Ok(None) };
    wanted.files.retain(|line| line.path != *start_file);
    // A restore of a part leaves what was altered before as it was.
    let rules = cx.rules(&[])?;
    let found = verify::installed(&cx.root, &wanted, &rules.preserve, &rules.carry, &mut None, true)?;
    let was_so =
        |path: &RelPath| prepared.plan.actions.iter().any(|p| p.path == *path && p.action == crate::plan::Action::Keep);
    Ok(found.modified.into_iter().chain(found.missing).find(|path| !was_so(path)))
}
