//! What an update writes down: the receipt-to-be, the journal's first record, the backup's record.
//! Refuses to decide anything.

use super::preflight::{journal_size, reserve_size};
use super::{Prepared, Request, Survey, millis};
use crate::backup::{self, Backup};
use crate::context::Context;
use crate::error::Failure;
use crate::fsx;
use crate::journal::{self, Begin, Journal, Measure};
use crate::os::files;
use crate::path::RelPath;
use crate::plan::Action;
use crate::receipt::{self, Receipt};
use crate::staging::{self, Staged};
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;

/// Writes the receipt-to-be and keeps the bundle beside it; the commit puts both in place.
pub(super) fn write_receipt(cx: &Context, survey: &Survey, prepared: &mut Prepared, staged: &[Staged]) -> Result<()> {
    let mut lines = Vec::new();
    let preserve = cx.preserve()?;
    let staged: BTreeMap<&RelPath, &Staged> = staged.iter().map(|s| (&s.path, s)).collect();
    for planned in &prepared.plan.actions {
        let Some(entry) = planned.entry.and_then(|i| prepared.bundle.entries.get(i)) else { continue };
        // Data belongs to the users once it is there.
        if matches!(planned.action, Action::Keep | Action::Merge | Action::Remove)
            || preserve.class_of(&planned.path, false).is_some()
        {
            continue;
        }
        let arriving = staged.get(&planned.path);
        let facts = match (arriving, planned.live) {
            (Some(staged), _) => staged.facts,
            (None, Some(live)) => live,
            (None, None) => continue,
        };
        let known = prepared.plan.live.get(&planned.path).map(|l| l.sha256.clone());
        let sha256 = arriving.map(|s| s.sha256.clone()).or(known).unwrap_or_else(|| entry.sha256.clone());
        lines.push(receipt::Line {
            path: planned.path.clone(),
            size: facts.size,
            carried: sha256 != entry.sha256,
            sha256,
            mode: facts.mode,
            mtime: facts.mtime,
        });
    }
    let receipt = Receipt {
        format: receipt::FORMAT,
        version: prepared.bundle.version.clone(),
        content_id: prepared.bundle.content_id.clone(),
        applied_at: jiff::Timestamp::now().to_string(),
        start_file: survey.start_file.clone(),
        ports: survey.expected.ports.clone(),
        files: lines,
    };
    let staging = cx.own().join("staging");
    receipt::store(&staging.join("receipt.json"), &receipt)?;
    let kept = staging.join("bundle.zip");
    let mut file = files::open_private(&kept).with_context(|| format!("creating {}", kept.display()))?;
    prepared.bundle.keep(&mut file)?;
    file.sync_all().context("flushing the kept bundle")
}

pub(super) fn open_journal(
    cx: &Context,
    request: &Request,
    survey: &Survey,
    prepared: &Prepared,
    saved: &Backup,
) -> Result<Journal> {
    let settings = &cx.settings.server;
    let begin = Begin {
        format: journal::FORMAT,
        update_id: cx.update_id.clone(),
        command: request.command().into(),
        root: cx.root.path().to_path_buf(),
        backup: saved.id.clone(),
        backup_dir: RelPath::parse(&cx.settings.backup.dir)
            .map_err(|e| Failure::usage("bad-settings", format!("[backup] dir: {e}")))?,
        from_version: survey.receipt.as_ref().map(|r| r.version.clone()),
        to_version: Some(prepared.bundle.version.clone()),
        start_file: survey.start_file.clone(),
        launch: survey.server.as_ref().map(|s| s.launch.clone()).or_else(|| survey.launch.clone()),
        was_running: survey.server.is_some(),
        service: survey.service.clone(),
        before: Measure {
            old: Some(serde_json::to_value(&survey.before)?),
            new: Some(serde_json::to_value(&survey.expected)?),
        },
        stop_timeout_ms: millis(settings.stop_timeout),
        health_timeout_ms: millis(request.health_timeout.unwrap_or(settings.health_timeout)),
        soak_ms: millis(settings.soak),
    };
    staging::reserve(&cx.own(), reserve_size(cx, &prepared.data)?)?;
    Journal::create(&cx.own(), begin, journal_size(&prepared.plan))
}

pub(super) fn finish_backup(
    cx: &Context,
    request: &Request,
    survey: &Survey,
    prepared: &Prepared,
    saved: &mut Backup,
    preserve: &crate::preserve::Preserve,
) -> Result<backup::Record> {
    let mut live = Vec::new();
    for path in prepared.plan.live.keys() {
        if let Some(facts) = fsx::facts(&cx.root.join(path))? {
            live.push((path.clone(), facts, false));
        }
    }
    let data = backup::data_files(&cx.root, preserve, &cx.skipped()?)?;
    live.extend(data.into_iter().map(|(path, facts)| (path, facts, true)));
    let record = backup::Record {
        format: backup::FORMAT,
        id: saved.id.clone(),
        created: jiff::Timestamp::now().to_string(),
        kind: request.command().into(),
        update_id: cx.update_id.clone(),
        from_version: survey.receipt.as_ref().map(|r| r.version.clone()),
        to_version: Some(prepared.bundle.version.clone()),
        start_file: survey.start_file.clone(),
        content_id: survey.receipt.as_ref().map(|r| r.content_id.clone()),
        files: Vec::new(),
    };
    saved.finish(&cx.root, &live, record)
}
