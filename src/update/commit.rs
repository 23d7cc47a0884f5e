//! The stage `commit`: receipt and kept bundle get into place, and what only the update needed goes.
//! Refuses to fail: the new version stands and serves, and a journal that stays is closed by the next command.

use super::millis;
use super::notes::{moved_aside, replaced_data};
use super::start::Healthy;
use crate::backup;
use crate::base::error::Code;
use crate::base::report::Stage;
use crate::state::history;
use crate::state::journal::Journal;
use crate::update::install::Install;
use crate::update::rollback;
use crate::update::run::Run;
use anyhow::Result;

pub(super) fn commit(install: &Install, run: &mut Run, healthy: Healthy) {
    let Healthy { prepared, backup_id, journal, stopped_at, answer } = healthy;
    let was_running = prepared.detection.server.is_some();
    if let Some(answer) = answer {
        (run.summary.pid, run.summary.port) = (Some(answer.pid), Some(answer.port));
        run.summary.downtime_ms = was_running.then(|| millis(answer.first_answer - stopped_at));
    } else if prepared.request.is_in_place() {
        let first = prepared.detection.server.as_ref().and_then(|s| s.processes.first());
        run.summary.pid = first.map(|p| p.id.pid);
        run.summary.port = run.summary.pid.and(prepared.detection.baseline.asked_port);
    }
    // What it failed of before is mended; that it is remembered harms nobody.
    let _ = history::forgive(install.state(), &prepared.bundle.content_id);
    run.start(Stage::Commit, "closing");
    let source = prepared.request.saved().map(|saved| saved.record.id.as_str());
    let spared: Vec<&str> = [Some(backup_id.as_str()), source].into_iter().flatten().collect();
    if let Err(e) = close(install, run, journal, &spared) {
        run.report.warning(Code::NotCleanedUp, &format!("the update is done, but cleaning up failed: {e:#}"), None);
    }
    let aside = moved_aside(install, &prepared.plan, Some(&backup_id));
    for note in aside.into_iter().chain(replaced_data(install, &prepared.plan, &backup_id)) {
        run.report.warn_of(note.code, &note.message, &note.paths);
    }
    run.done(Stage::Commit, &format!("the old version is in {}/{backup_id}", install.settings.backup.dir));
}

/// Puts receipt and kept bundle into place, removes trash and journal, and prunes old backups but for these.
fn close(install: &Install, run: &mut Run, journal: Journal, spared: &[&str]) -> Result<()> {
    rollback::clean_up(&install.root, journal)?;
    let spare = backup::Spare { ids: spared, users: true };
    for pruned in backup::prune(install.state(), &install.backups(), install.settings.backup.keep, &spare)? {
        run.report.pruned(&pruned.id, pruned.bytes);
    }
    Ok(())
}
