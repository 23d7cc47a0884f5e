//! What was written between the plan and the end of the stop, by the server as it ended or by anybody: judged again, and
//! staged again where another thing is to arrive.
//! Refuses to let the plan's older look decide over what users wrote since.

use super::preflight::Prepared;
use super::record::write_receipt;
use crate::base::error::Code;
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::system::files;
use crate::update::install::Install;
use crate::update::plan::Action;
use crate::update::run::Run;
use crate::update::staging::{self, StagedFile};
use anyhow::Result;

/// Brings what waits to arrive up to date, and the receipt-to-be with it. Names what stays because of it.
pub(super) fn stage_again(
    install: &Install,
    run: &mut Run,
    prepared: &mut Prepared,
    staged: &mut Vec<StagedFile>,
) -> Result<()> {
    let noted = prepared.plan.changed_here.len();
    let (again, mut positions) = prepared.plan_again(install)?;
    for path in &again {
        fsx::remove_own_file(&staging::staged_path(&install.root, &prepared.plan.annexes, path))?;
        staged.retain(|one| one.path != *path);
    }
    let arrives = |action: Action| !matches!(action, Action::Keep | Action::Unchanged | Action::Remove);
    let actions = prepared.plan.actions.iter().enumerate();
    let anew = actions.filter(|(_, planned)| arrives(planned.action) && again.contains(&planned.path));
    positions.extend(anew.map(|(at, _)| at));
    staged.extend(staging::write_late(&prepared.ownership, &mut prepared.bundle, &prepared.plan, &positions)?);
    start_file_again(install, &prepared.detection.start_file, staged)?;
    if again.is_empty() {
        return Ok(());
    }
    let stays: Vec<RelPath> = prepared
        .plan
        .changed_here
        .iter()
        .skip(noted)
        .chain(&prepared.plan.held_back)
        .filter(|p| again.contains(p))
        .cloned()
        .collect();
    if !stays.is_empty() {
        run.report.warn_of(Code::ChangedHere, "written until the server had stopped, so it stays", &stays);
    }
    if !prepared.request.is_partly() {
        write_receipt(install, prepared, staged)?;
    }
    Ok(())
}

/// A start file that does not change arrives as a copy of itself: of what it is now.
fn start_file_again(install: &Install, start_file: &RelPath, staged: &mut [StagedFile]) -> Result<()> {
    let live = install.root.join(start_file);
    let Some(one) = staged.iter_mut().find(|one| one.path == *start_file && one.is_copy) else { return Ok(()) };
    let Some(metadata) = fsx::metadata(&live)?
        .filter(|metadata| metadata.mtime != one.metadata.mtime || metadata.size != one.metadata.size)
    else {
        return Ok(());
    };
    let to = staging::staged_path(&install.root, &[], start_file);
    fsx::remove_own_file(&to)?;
    one.sha256 = fsx::copy(&live, &to, &metadata)?;
    one.metadata = files::metadata(&to)?;
    Ok(())
}
