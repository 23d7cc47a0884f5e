//! What an update does when there is nothing to change.
//! Refuses to touch a server that runs; one that is stopped is started.

use super::detect::Detection;
use super::preflight::Prepared;
use super::record::write_receipt;
use super::request::{Mode, Request};
use super::start;
use crate::base::fsx;
use crate::base::report::Stage;
use crate::state::receipt;
use crate::update::install::Install;
use crate::update::run::Run;
use crate::update::staging;
use crate::verify;
use anyhow::Result;

fn skip_changes(run: &mut Run) {
    for stage in
        [Stage::Stage, Stage::Backup, Stage::Stop, Stage::BackupFinal, Stage::Swap, Stage::Verify, Stage::Hooks]
    {
        run.report.stage_skipped(stage, "nothing to change");
    }
}

/// The same bundle again, byte for byte, beside a running server and a tree that is whole by size and time: what a
/// schedule meets most of the time, told without unpacking anything.
pub(super) fn nothing_to_do(install: &Install, request: &Request, detection: &Detection) -> Result<bool> {
    let asks_more = matches!(request.mode, Mode::Repair { .. } | Mode::Update { reinstall: true, .. });
    let Some(zip) = request.zip().filter(|zip| !asks_more && zip.sha256.is_none() && request.set.is_empty()) else {
        return Ok(false);
    };
    let Some(receipt) = detection.receipt.as_ref().filter(|_| detection.server.is_some()) else { return Ok(false) };
    if !fsx::same_bytes(&zip.path, &install.state().bundle()) {
        return Ok(false);
    }
    Ok(verify::installed(&install.ownership(Some(receipt)), receipt, &mut None, true)?.is_whole())
}

/// Ends an update that has nothing to do, beside a running server.
pub(super) fn end(run: &mut Run) {
    run.summary.to_version.clone_from(&run.summary.from_version);
    run.done(Stage::Preflight, "this very bundle is installed, and the tree is whole");
    skip_changes(run);
    start::skip(run, "the server was not stopped");
    close(run);
}

/// The content is installed already: the server is not touched, but started where it is stopped.
pub(super) fn unchanged(install: &Install, run: &mut Run, mut prepared: Prepared) -> Result<()> {
    skip_changes(run);
    let installed = prepared.detection.receipt.as_ref().map(|receipt| &receipt.content_id);
    if !prepared.request.is_partly() && installed != Some(&prepared.bundle.content_id) {
        fs_err::create_dir_all(install.state().staging())?;
        write_receipt(install, &mut prepared, &[])?;
        receipt::place_staged(install.state())?;
        staging::clear(install.state())?;
    }
    start::start_stopped(install, run, &prepared)?;
    close(run);
    Ok(())
}

fn close(run: &mut Run) {
    run.start(Stage::Commit, "closing");
    run.done(Stage::Commit, "this content is installed already");
}
