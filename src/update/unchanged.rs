//! What an update does when there is nothing to change.
//! Refuses to touch a server that runs; one that is stopped is started.

use super::preflight::Prepared;
use super::record::write_receipt;
use super::{Request, Survey, cannot_start, judge, start_unit};
use crate::base::fsx;
use crate::base::report::{Finished, Stage};
use crate::system::{files, processes};
use crate::update::context::Context;
use crate::update::server::Launched;
use crate::update::staging;
use crate::verify;
use anyhow::{Context as _, Result};

pub(super) fn skip_changes(cx: &mut Context) {
    for stage in
        [Stage::Stage, Stage::Backup, Stage::Stop, Stage::BackupFinal, Stage::Swap, Stage::Verify, Stage::Hooks]
    {
        cx.report.stage_skipped(stage, "nothing to change");
    }
}

/// The same bundle again, byte for byte, beside a running server and a tree that is whole by size and time: what a
/// schedule meets most of the time, told without unpacking anything.
pub(super) fn nothing_to_do(cx: &Context, request: &Request, survey: &Survey) -> Result<bool> {
    let asks_more = request.saved.is_some()
        || request.reinstall
        || request.heal
        || request.in_place
        || request.sha256.is_some()
        || !request.set.is_empty();
    let Some(receipt) = survey.receipt.as_ref().filter(|_| !asks_more && survey.server.is_some()) else {
        return Ok(false);
    };
    if !fsx::same_bytes(&request.bundle, &cx.own().join("bundle.zip")) {
        return Ok(false);
    }
    Ok(verify::installed(&cx.ownership(Some(receipt))?, receipt, &mut None, true)?.is_whole())
}

/// The content is installed already: the server is not touched, but started where it is stopped.
pub(super) fn unchanged(
    cx: &mut Context,
    request: &Request,
    survey: Survey,
    mut prepared: Prepared,
    finished: &mut Finished,
) -> Result<&'static str> {
    skip_changes(cx);
    if !request.is_partly() && survey.receipt.as_ref().is_none_or(|r| r.content_id != prepared.bundle.content_id) {
        fs_err::create_dir_all(cx.own().join("staging"))?;
        write_receipt(cx, request, &survey, &mut prepared, &[])?;
        for (from, to) in [("staging/receipt.json", "receipt.json"), ("staging/bundle.zip", "bundle.zip")] {
            files::rename_over(&cx.own().join(from), &cx.own().join(to)).with_context(|| format!("placing {to}"))?;
        }
        staging::clear(&cx.own())?;
    }
    match (&survey.server, &survey.launch) {
        (None, Some(launch)) if !request.no_start => {
            cx.start(Stage::Relaunch, "starting the server");
            let mut running = match &survey.service {
                Some(unit) => start_unit(cx, request, unit)?,
                None => {
                    let held = processes::hold(launch).map_err(|e| cannot_start(launch, &e))?;
                    Some(Launched::Child(held.release().map_err(|e| cannot_start(launch, &e))?))
                }
            };
            cx.done(Stage::Relaunch, "started");
            cx.start(Stage::Health, "waiting for its answer");
            let healthy = judge(cx, request, &survey.expected, &[], &mut running)?;
            (finished.pid, finished.port) = (Some(healthy.pid), Some(healthy.port));
            cx.done(Stage::Health, "healthy");
        }
        _ => {
            cx.report.stage_skipped(Stage::Relaunch, "the server was not stopped");
            cx.report.stage_skipped(Stage::Health, "the server was not stopped");
        }
    }
    cx.start(Stage::Commit, "closing");
    cx.done(Stage::Commit, "this content is installed already");
    Ok("already-current")
}
