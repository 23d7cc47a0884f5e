//! What an update writes down: the receipt-to-be, the journal's first record, the backup's record.
//! Refuses to decide anything.

use super::millis;
use super::preflight::Prepared;
use super::preflight::{journal_size, reserve_size};
use crate::backup::{self, Backup};
use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::head::Head;
use crate::base::path::RelPath;
use crate::state::journal::{self, Baselines, Begin, Journal};
use crate::state::receipt::{self, Receipt};
use crate::system::files;
use crate::update::bundle::Entry;
use crate::update::install::Install;
use crate::update::ownership::Census;
use crate::update::plan::{Action, Planned};
use crate::update::run::Run;
use crate::update::staging::{self, StagedFile};
use anyhow::{Context as _, Result};
use std::collections::{BTreeMap, BTreeSet};

/// Writes the receipt-to-be and keeps the bundle beside it; the commit puts both in place.
pub(super) fn write_receipt(install: &Install, prepared: &mut Prepared, staged: &[StagedFile]) -> Result<()> {
    let staged: BTreeMap<&RelPath, &StagedFile> = staged.iter().map(|s| (&s.path, s)).collect();
    let mut lines = Vec::new();
    for planned in prepared.plan.actions.iter().filter(|planned| planned.listed) {
        let Some(entry) = planned.entry.and_then(|i| prepared.bundle.entries.get(i)) else { continue };
        lines.extend(line(install, prepared, planned, entry, staged.get(&planned.path).copied())?);
    }
    let before = prepared.detection.receipt.as_ref();
    let receipt = Receipt {
        format: receipt::FORMAT,
        version: prepared.bundle.version.clone(),
        content_id: prepared.bundle.content_id.clone(),
        applied_at: jiff::Timestamp::now().to_string(),
        start_file: prepared.detection.start_file.clone(),
        ports: prepared.detection.expected.ports.clone(),
        user: prepared
            .detection
            .new_launch
            .as_ref()
            .and_then(|launch| launch.credentials.clone())
            .or_else(|| before.and_then(|receipt| receipt.user.clone())),
        assumed: match prepared.request.saved() {
            Some(saved) => saved.record.is_uncertain(),
            None => prepared.request.is_repair() && before.is_some_and(|receipt| receipt.assumed),
        },
        files: lines,
    };
    let staging = install.state().staging();
    receipt::store(&staging.join("receipt.json"), &receipt)?;
    let kept = staging.join("bundle.zip");
    let mut file = files::open_private(&kept).with_context(|| format!("creating {}", kept.display()))?;
    prepared.bundle.keep(&mut file)?;
    file.sync_all().context("flushing the kept bundle")
}

/// Where only a part of a version is put back, the installed one keeps its receipt; what comes back that it lacks is
/// listed, too, so that it is nobody's but ours.
pub(super) fn extend_receipt(install: &Install, prepared: &Prepared, staged: &[StagedFile]) -> Result<()> {
    let Some(mut receipt) = prepared.detection.receipt.clone() else { return Ok(()) };
    for planned in prepared.plan.actions.iter().filter(|planned| planned.action == Action::Add && planned.listed) {
        let Some(entry) = planned.entry.and_then(|i| prepared.bundle.entries.get(i)) else { continue };
        let arriving = staged.iter().find(|one| one.path == planned.path);
        if !receipt.files.iter().any(|line| line.path == planned.path) {
            receipt.files.extend(line(install, prepared, planned, entry, arriving)?);
        }
    }
    receipt.format = receipt::FORMAT;
    receipt::store(&install.state().staged_receipt(), &receipt)
}

/// What the receipt says of one entry. None: nothing of it is there.
fn line(
    install: &Install,
    prepared: &Prepared,
    planned: &Planned,
    entry: &Entry,
    arriving: Option<&StagedFile>,
) -> Result<Option<receipt::Line>> {
    let Some(metadata) = arriving.map(|staged| staged.metadata).or(planned.live) else { return Ok(None) };
    let known = prepared.plan.shipped.get(&planned.path).map(|live| live.sha256.clone());
    let is = match arriving.map(|staged| staged.sha256.clone()).or(known) {
        Some(sha256) => sha256,
        None => fsx::sha256_of(&install.root.join(&planned.path))?,
    };
    // Of a file with settings of the install the base is what was written, not what the bundle holds.
    let has_settings = prepared.ownership.rules.is_carried(&planned.path) && planned.action != Action::Keep;
    let sha256 = if has_settings { is.clone() } else { entry.base().to_string() };
    let is_base = is == sha256;
    Ok(Some(receipt::Line {
        path: planned.path.clone(),
        size: if is_base { metadata.size } else { entry.size },
        carried: has_settings && sha256 != entry.sha256,
        sha256,
        mode: metadata.mode,
        mtime: if is_base { metadata.mtime } else { 0 },
        is_database: entry.head == Head::Sqlite,
    }))
}

pub(super) fn open_journal(install: &Install, run: &Run, prepared: &Prepared, saved: &Backup) -> Result<Journal> {
    let detection = prepared.detection;
    let settings = &install.settings.server;
    let begin = Begin {
        format: journal::FORMAT,
        update_id: run.update_id.clone(),
        command: prepared.request.command().into(),
        root: install.root.path().to_path_buf(),
        backup: saved.id.clone(),
        backup_dir: RelPath::parse(&install.settings.backup.dir)
            .map_err(|e| Failure::usage(Code::BadSettings, format!("[backup] dir: {e}")))?,
        from_version: prepared.detection.receipt.as_ref().map(|r| r.version.clone()),
        to_version: Some(prepared.bundle.version.clone()),
        start_file: prepared.detection.start_file.clone(),
        launch: detection.old_launch.clone(),
        new_launch: detection.new_launch.clone().filter(|launch| Some(launch) != detection.old_launch.as_ref()),
        was_running: detection.server.is_some(),
        service: detection.service.clone(),
        before: Baselines { old: Some(detection.baseline.clone()), new: Some(detection.expected.clone()) },
        stop_timeout_ms: millis(settings.stop_timeout),
        health_timeout_ms: millis(prepared.request.server.health_timeout.unwrap_or(settings.health_timeout)),
        soak_ms: millis(settings.soak),
    };
    staging::reserve(install.state(), reserve_size(&prepared.selection))?;
    Journal::create(install.state(), begin, journal_size(&prepared.plan))
}

/// The databases that their contents alone tell: those that lie there, and those that the bundle brings.
fn databases(prepared: &Prepared, census: &Census) -> Vec<RelPath> {
    let brought = prepared.bundle.entries.iter().filter(|entry| entry.head == Head::Sqlite).map(|entry| &entry.path);
    let all: BTreeSet<&RelPath> = census.databases.by_contents().chain(brought).collect();
    all.into_iter().cloned().collect()
}

/// What the backup is made for. One of the same content holds a damaged tree.
fn kind(prepared: &Prepared) -> backup::Kind {
    match prepared.request.saved() {
        Some(_) => backup::Kind::Restore,
        None if prepared.heal && !prepared.plan.set_changes => backup::Kind::Repair,
        None => backup::Kind::Apply,
    }
}

/// Pass 2 of the backup, and its record.
pub(super) fn finish_backup(
    install: &Install,
    run: &Run,
    prepared: &mut Prepared,
    saved: &mut Backup,
) -> Result<backup::Record> {
    let census = prepared.ownership.census(Some(&prepared.census)).context("looking at the install")?;
    let lines = prepared.ownership.lines();
    let bases: BTreeMap<RelPath, String> = lines.map(|line| (line.path.clone(), line.sha256.clone())).collect();
    let record = backup::Record {
        format: backup::FORMAT,
        id: saved.id.clone(),
        number: prepared.selection.number,
        created: jiff::Timestamp::now().to_string(),
        kind: kind(prepared),
        update_id: run.update_id.clone(),
        from_version: prepared.detection.receipt.as_ref().map(|r| r.version.clone()),
        to_version: Some(prepared.bundle.version.clone()),
        start_file: prepared.detection.start_file.clone(),
        content_id: prepared.detection.receipt.as_ref().map(|r| r.content_id.clone()),
        is_first: prepared.ownership.is_first || prepared.ownership.is_assumed,
        files: Vec::new(),
        folders: Vec::new(),
        linked: Vec::new(),
        watched: Vec::new(),
        databases: databases(prepared, &census),
    };
    let live = backup::Live { census: &census, bases: &bases, selection: &prepared.selection };
    let record = saved.finish(&install.root, &live, record)?;
    prepared.census = census;
    Ok(record)
}
