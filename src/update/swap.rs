//! The stages `swap` and `verify`, and the arrival of the start file, with which the new version can start.

use super::late;
use super::preflight::Prepared;
use super::stop::Stopped;
use crate::backup::Backup;
use crate::base::error::{Code, Failure};
use crate::base::path::RelPath;
use crate::base::report::Stage;
use crate::state::journal::{Journal, Moves, Record};
use crate::update::hook_stage;
use crate::update::install::Install;
use crate::update::rollback::Interrupted;
use crate::update::run::Run;
use crate::update::server;
use crate::update::staging::StagedFile;
use crate::update::transaction::{self, Transaction};
use crate::verify::{self, Arrival};
use anyhow::Result;
use std::time::Instant;

/// The tree is the new version's, verified, and what hooks had to do is done. Nothing was started.
pub struct Swapped<'a> {
    pub prepared: Prepared<'a>,
    pub backup: Backup,
    pub journal: Journal,
    pub stopped_at: Instant,
}

/// Moves the new version in, verifies it, runs the hooks, and lets the start file arrive.
pub(super) fn swap<'a>(
    install: &Install,
    run: &mut Run,
    stopped: Stopped<'a>,
) -> Result<Swapped<'a>, Box<Interrupted>> {
    let Stopped { mut prepared, mut files, backup, record, mut journal, stopped_at } = stopped;
    let done = name_moves(install, run, &mut prepared, &mut files, &mut journal).and_then(|moves| {
        let start_file = &prepared.detection.start_file;
        let transaction = Transaction::new(&install.root, moves, start_file, &install.backups().join(&backup.id));
        transaction.apply(prepared.request.saved().map(|saved| saved.dir.as_path()))?;
        run.done(Stage::Swap, &format!("{} moves", transaction.moves().moves.len()));
        let arrival = Arrival { files: &files, record: &record, moves: transaction.moves(), start_file };
        check(install, run, &arrival)?;
        hook_stage::run_hooks(install, run, &prepared, &arrival, &mut journal)?;
        run.check_signals_after_stop()?;
        // The last move of the swap: from here on the new version can start.
        transaction.finish()?;
        journal.append(Record::Swapped)
    });
    match done {
        Ok(()) => Ok(Swapped { prepared, backup, journal, stopped_at }),
        Err(cause) => Err(Interrupted::new(journal, stopped_at, cause)),
    }
}

/// Judges again what was written since the plan, and names every move in the journal.
fn name_moves(
    install: &Install,
    run: &mut Run,
    prepared: &mut Prepared,
    files: &mut Vec<StagedFile>,
    journal: &mut Journal,
) -> Result<Moves> {
    run.start(Stage::Swap, "moving the new version in");
    if let Some(again) = server::find(&install.root)?.filter(|_| !prepared.request.is_in_place()) {
        let pid = again.processes.first().map_or(0, |p| p.id.pid);
        return Err(Failure::failed(
            Code::ServerReturned,
            format!("something started the server again (process {pid})"),
        )
        .remedy("stop what respawns it, then update")
        .into());
    }
    late::stage_again(install, run, prepared, files)?;
    let mut moves = transaction::intend(&install.root, &prepared.plan, files, &prepared.ownership.rules)?;
    let saved = prepared.request.saved();
    if let Some(saved) = saved.filter(|_| !prepared.request.is_partly()) {
        transaction::intend_folders(&install.root, &mut moves, &saved.record.folders, saved.data)?;
    }
    let known = saved.iter().flat_map(|saved| &saved.record.folders);
    moves.saved_folders = known.filter(|folder| moves.make.contains(&folder.path)).cloned().collect();
    transaction::intend_exchanges(&install.root, &mut moves, prepared.hooks.changes.exchanges())?;
    journal.append(Record::Swapping { moves: moves.clone() })?;
    Ok(moves)
}

/// The stage `verify`: what arrived is what was staged, and the data is as the backup has it.
fn check(install: &Install, run: &mut Run, arrival: &Arrival) -> Result<()> {
    run.start(Stage::Verify, "checking what arrived");
    verify::arrived(&install.root, arrival, &critical(install)?)?;
    run.done(Stage::Verify, "whole");
    Ok(())
}

fn critical(install: &Install) -> Result<Vec<RelPath>> {
    let parse = |name: &String| {
        RelPath::parse(name)
            .map_err(|e| Failure::usage(Code::BadSettings, format!("[verify] critical {name}: {e}")).into())
    };
    install.settings.verify.critical.iter().map(parse).collect()
}
