//! What an update does when there is nothing to change.
//! Refuses to touch a server that runs; one that is stopped is started.

use super::preflight::Prepared;
use super::record::write_receipt;
use super::{Request, Survey, cannot_start, judge, start_unit};
use crate::base::fsx;
use crate::base::report::{Finished, Stage};
use crate::state::receipt;
use crate::system::processes;
use crate::update::install::Install;
use crate::update::run::Run;
use crate::update::server::Launched;
use crate::update::staging;
use crate::verify;
use anyhow::Result;

pub(super) fn skip_changes(run: &mut Run) {
    for stage in
        [Stage::Stage, Stage::Backup, Stage::Stop, Stage::BackupFinal, Stage::Swap, Stage::Verify, Stage::Hooks]
    {
        run.report.stage_skipped(stage, "nothing to change");
    }
}

/// The same bundle again, byte for byte, beside a running server and a tree that is whole by size and time: what a
/// schedule meets most of the time, told without unpacking anything.
pub(super) fn nothing_to_do(install: &Install, request: &Request, survey: &Survey) -> Result<bool> {
    let asks_more = request.saved.is_some()
        || request.reinstall
        || request.heal
        || request.in_place
        || request.sha256.is_some()
        || !request.set.is_empty();
    let Some(receipt) = survey.receipt.as_ref().filter(|_| !asks_more && survey.server.is_some()) else {
        return Ok(false);
    };
    if !fsx::same_bytes(&request.bundle, &install.state().bundle()) {
        return Ok(false);
    }
    Ok(verify::installed(&install.ownership(Some(receipt))?, receipt, &mut None, true)?.is_whole())
}

/// The content is installed already: the server is not touched, but started where it is stopped.
pub(super) fn unchanged(
    install: &Install,
    run: &mut Run,
    request: &Request,
    survey: Survey,
    mut prepared: Prepared,
    finished: &mut Finished,
) -> Result<&'static str> {
    skip_changes(run);
    if !request.is_partly() && survey.receipt.as_ref().is_none_or(|r| r.content_id != prepared.bundle.content_id) {
        fs_err::create_dir_all(install.state().staging())?;
        write_receipt(install, request, &survey, &mut prepared, &[])?;
        receipt::place_staged(install.state())?;
        staging::clear(install.state())?;
    }
    match (&survey.server, &survey.launch) {
        (None, Some(launch)) if !request.no_start => {
            run.start(Stage::Relaunch, "starting the server");
            let mut running = match &survey.service {
                Some(unit) => start_unit(install, run, request, unit)?,
                None => {
                    let held = processes::hold(launch).map_err(|e| cannot_start(launch, &e))?;
                    Some(Launched::Child(held.release().map_err(|e| cannot_start(launch, &e))?))
                }
            };
            run.done(Stage::Relaunch, "started");
            run.start(Stage::Health, "waiting for its answer");
            let healthy = judge(install, run, request, &survey.expected, &[], &mut running)?;
            (finished.pid, finished.port) = (Some(healthy.pid), Some(healthy.port));
            run.done(Stage::Health, "healthy");
        }
        _ => {
            run.report.stage_skipped(Stage::Relaunch, "the server was not stopped");
            run.report.stage_skipped(Stage::Health, "the server was not stopped");
        }
    }
    run.start(Stage::Commit, "closing");
    run.done(Stage::Commit, "this content is installed already");
    Ok("already-current")
}
