//! The stages `stage` and `backup`: the new version waits beside the old one, and a first copy of what must be preserved is
//! made, while the server serves.

use super::preflight::Prepared;
use super::record::{extend_receipt, write_receipt};
use crate::backup::{self, Backup};
use crate::base::error::Code;
use crate::base::fsx;
use crate::base::report::Stage;
use crate::update::install::Install;
use crate::update::rollback;
use crate::update::run::{self, Run};
use crate::update::staging::{self, StagedFile};
use crate::update::transaction;
use anyhow::Result;

/// The new version waits in staging, and the first pass of the backup is made. The server still serves.
pub struct Staged<'a> {
    pub prepared: Prepared<'a>,
    /// Every file that arrives.
    pub files: Vec<StagedFile>,
    pub backup: Backup,
}

/// Stages the new version and begins the backup. Errors (exit 1): nothing of it is left behind.
pub(super) fn stage<'a>(install: &Install, run: &mut Run, mut prepared: Prepared<'a>) -> Result<Staged<'a>> {
    let staged = run::interruptible(|| {
        let files = write_files(install, run, &mut prepared)?;
        Ok((files, begin_backup(install, run, &mut prepared)?))
    });
    match staged {
        Ok((files, backup)) => Ok(Staged { prepared, files, backup }),
        Err(e) => Err(rollback::sweep_after(install, run, e)),
    }
}

fn write_files(install: &Install, run: &mut Run, prepared: &mut Prepared) -> Result<Vec<StagedFile>> {
    run.start(Stage::Stage, "writing the new files");
    let start_file = &prepared.detection.start_file;
    let Prepared { ownership, bundle, plan, .. } = &mut *prepared;
    let (report, signals) = (&mut run.report, &run.signals);
    let mut progress = |done, total| {
        report.progress(Stage::Stage, done, total, "files");
        run::check(signals)
    };
    let staging::Written { staged, lost } = staging::write(ownership, bundle, plan, start_file, &mut progress)?;
    for lost in lost {
        let message = format!("{} cannot keep its attribute {}", lost.path, lost.attribute);
        run.report.warning(Code::MetadataLost, &message, Some(&lost.path.to_string()));
    }
    if prepared.request.is_partly() {
        extend_receipt(install, prepared, &staged)?;
    } else {
        write_receipt(install, prepared, &staged)?;
    }
    transaction::make_trash(install.state())?;
    prepared.hooks.before_stop(install, run, &staged, &prepared.plan)?;
    run.summary.bytes_staged = staged.iter().map(|s| s.metadata.size).sum();
    run.summary.files_changed = prepared.plan.changes().count() as u64;
    run.done(Stage::Stage, &format!("{} files wait", staged.len()));
    run.check_signals()?;
    Ok(staged)
}

fn begin_backup(install: &Install, run: &mut Run, prepared: &mut Prepared) -> Result<Backup> {
    run.start(Stage::Backup, "saving the installed version and the data");
    let backups = install.backups();
    fsx::make_folders(&backups)?;
    let dir = backups.join(backup::new_id(&backups)?);
    let (report, signals) = (&mut run.report, &run.signals);
    let mut progress = |done, total| {
        report.progress(Stage::Backup, done, total, "bytes");
        run::check(signals)
    };
    let saved = backup::seed(&install.root, &dir, &prepared.census, &prepared.selection, &mut progress)?;
    prepared.hooks.changes.copy(&install.root, &mut || run.check_signals())?;
    run.done(Stage::Backup, &format!("first pass into {}", saved.id));
    Ok(saved)
}
