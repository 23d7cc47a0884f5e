//! The stages `stop` and `backup-final`: the journal begins, the server ends, and the backup becomes whole. From here on the
//! value that travels owns the journal, and a failure goes to the rollback with it.

use super::preflight::Prepared;
use super::record::{finish_backup, open_journal};
use super::stage::Staged;
use crate::backup::{self, Backup};
use crate::base::report::Stage;
use crate::state::journal::{Journal, Record};
use crate::system::Notice;
use crate::update::install::Install;
use crate::update::rollback::{self, Interrupted};
use crate::update::run::Run;
use crate::update::server;
use crate::update::staging::StagedFile;
use anyhow::Result;
use std::time::Instant;

/// The journal is open, and the server still serves.
pub struct Stopping<'a> {
    staged: Staged<'a>,
    journal: Journal,
}

impl Stopping<'_> {
    /// The id of the bundle's content, and its version.
    pub(super) fn content(&self) -> (String, String) {
        let bundle = &self.staged.prepared.bundle;
        (bundle.content_id.clone(), bundle.version.clone())
    }
}

/// The server is stopped, and the backup is whole.
pub struct Stopped<'a> {
    pub prepared: Prepared<'a>,
    pub files: Vec<StagedFile>,
    pub backup: Backup,
    /// What the backup holds.
    pub record: backup::Record,
    pub journal: Journal,
    pub stopped_at: Instant,
}

/// Opens the journal: the last thing before the stop. Errors (exit 1): nothing was stopped, and nothing is left behind.
pub(super) fn begin<'a>(install: &Install, run: &mut Run, staged: Staged<'a>) -> Result<Stopping<'a>> {
    install.root.check()?;
    let opened = run.check_signals().and_then(|()| open_journal(install, run, &staged.prepared, &staged.backup));
    match opened {
        Ok(journal) => Ok(Stopping { staged, journal }),
        Err(e) => Err(rollback::sweep_after(install, run, e)),
    }
}

/// Stops the server and completes the backup.
pub(super) fn stop<'a>(
    install: &Install,
    run: &mut Run,
    stopping: Stopping<'a>,
) -> Result<Stopped<'a>, Box<Interrupted>> {
    let Stopping { mut staged, mut journal } = stopping;
    run.is_down = true;
    // Whoever is named at the end runs then.
    (run.summary.pid, run.summary.port) = (None, None);
    let stopped_at = Instant::now();
    let done = end_server(install, run, &staged.prepared, &mut journal)
        .and_then(|()| complete_backup(install, run, &mut staged, &mut journal));
    run.summary.backup = install.backups().join(&staged.backup.id).is_dir().then(|| staged.backup.id.clone());
    match done {
        Ok(record) => {
            let Staged { prepared, files, backup } = staged;
            Ok(Stopped { prepared, files, backup, record, journal, stopped_at })
        }
        Err(cause) => Err(Interrupted::new(journal, stopped_at, cause)),
    }
}

fn end_server(install: &Install, run: &mut Run, prepared: &Prepared, journal: &mut Journal) -> Result<()> {
    // Whoever is signalled with the server must not pass that on to us.
    run.notify(Notice::Stopping);
    run.start(Stage::Stop, "stopping the server");
    journal.append(Record::Stopping)?;
    let detection = prepared.detection;
    let server = detection.server.iter().filter(|_| !prepared.request.is_in_place());
    for running in server.chain(&detection.foreign) {
        server::stop(running, install.settings.server.stop_timeout, &mut || run.check_signals_after_stop())?;
    }
    run.done(Stage::Stop, if detection.server.is_some() { "the port is free" } else { "nothing ran" });
    Ok(())
}

fn complete_backup(
    install: &Install,
    run: &mut Run,
    staged: &mut Staged,
    journal: &mut Journal,
) -> Result<backup::Record> {
    run.start(Stage::BackupFinal, "saving what changed since");
    let record = finish_backup(install, run, &mut staged.prepared, &mut staged.backup)?;
    staged.prepared.hooks.changes.refresh(&install.root)?;
    journal.append(Record::BackupWhole)?;
    run.done(Stage::BackupFinal, &format!("{} is whole", staged.backup.id));
    run.check_signals_after_stop()?;
    Ok(record)
}
