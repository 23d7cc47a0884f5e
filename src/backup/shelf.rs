//! The shelf: all backups of an install, listed, and the oldest taken away.
//! Refuses to take the newest whole one away, and to leave half of one behind: a backup leaves the
//! shelf by one rename and is deleted elsewhere.

use super::record::{Damage, Record, damage, load, time};
use crate::fsx;
use crate::os::{Kind, files};
use crate::path::RelPath;
use anyhow::{Context, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// One backup as `updater backups` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    pub id: String,
    /// RFC 3339, UTC.
    pub created: String,
    /// `apply`, `restore`, `failed`, or `legacy`: no record of ours.
    pub kind: String,
    pub from_version: Option<String>,
    pub to_version: Option<String>,
    pub files: u64,
    pub bytes: u64,
    pub data_bytes: u64,
    /// It has a record and every file of it, by size, or by hash where that was asked.
    pub whole: bool,
    /// The files that are not what was saved.
    pub damaged: Vec<Damage>,
}

/// All whole backups, newest first, with their folders.
pub fn list(backups: &Path) -> Result<Vec<(PathBuf, Record)>> {
    let mut all: Vec<_> = folders(backups)?.into_iter().filter_map(|dir| Some((load(&dir).ok()?, dir))).collect();
    all.sort_by(|(a, _), (b, _)| (&b.created, &b.id).cmp(&(&a.created, &a.id)));
    Ok(all.into_iter().map(|(record, dir)| (dir, record)).collect())
}

/// Every folder on the shelf that is a backup, newest first; `hash`: each file is hashed again.
pub fn list_all(backups: &Path, hash: bool) -> Result<Vec<Listed>> {
    let mut all = Vec::new();
    for dir in folders(backups)? {
        let has_record = fsx::exists(&dir.join("backup.json"))?;
        let named = dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("update_backup_"));
        if has_record || named {
            all.push(listed(&dir, hash)?);
        }
    }
    all.sort_by(|a, b| (&b.created, &b.id).cmp(&(&a.created, &a.id)));
    Ok(all)
}

fn folders(backups: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    if fsx::exists(backups)? {
        for item in fs_err::read_dir(backups)? {
            let dir = item?.path();
            if fsx::facts(&dir)?.is_some_and(|facts| facts.kind == Kind::Folder) {
                all.push(dir);
            }
        }
    }
    Ok(all)
}

fn listed(dir: &Path, hash: bool) -> Result<Listed> {
    let id = dir.file_name().context("a backup has a name")?.to_string_lossy().into_owned();
    let Ok(record) = load(dir) else { return unrecorded(dir, id) };
    let damaged = damage(dir, &record, hash)?;
    let size = |data: bool| record.files.iter().filter(|l| l.data == data).map(|l| l.facts.size).sum::<u64>();
    Ok(Listed {
        id,
        created: record.created.clone(),
        kind: record.kind.clone(),
        from_version: record.from_version.clone(),
        to_version: record.to_version.clone(),
        files: record.files.len() as u64,
        bytes: size(false) + size(true),
        data_bytes: size(true),
        whole: damaged.is_empty(),
        damaged,
    })
}

/// A folder without a record that can be read: of the old updater, or of ours and damaged. It never counts as whole.
fn unrecorded(dir: &Path, id: String) -> Result<Listed> {
    let (mut count, mut bytes) = (0, 0);
    for item in walkdir::WalkDir::new(dir).into_iter().flatten().filter(|item| !item.file_type().is_dir()) {
        count += 1;
        bytes += item.metadata().map_or(0, |m| m.len());
    }
    let facts = files::facts(dir).with_context(|| format!("looking at {}", dir.display()))?;
    let record = RelPath::from_disk("backup.json".as_ref()).filter(|_| dir.join("backup.json").exists());
    Ok(Listed {
        id,
        created: time(facts.mtime),
        kind: if record.is_some() { "apply" } else { "legacy" }.into(),
        from_version: None,
        to_version: None,
        files: count,
        bytes,
        data_bytes: 0,
        whole: false,
        damaged: record.into_iter().map(|path| Damage { path, what: "modified" }).collect(),
    })
}

/// Marks the backup of an update that was rolled back: its version was never left. Where there is none, nothing happens.
pub fn mark_failed(dir: &Path) -> Result<()> {
    let Ok(record) = load(dir) else { return Ok(()) };
    Record { kind: "failed".into(), ..record }.store(dir)
}

/// Takes the oldest whole backups beyond `keep` away, those of failed updates counted apart, so that no
/// number of failures costs a good one; the newest always stays. Returns their ids.
pub fn prune(own: &Path, backups: &Path, keep: u32) -> Result<Vec<String>> {
    let mut gone = Vec::new();
    let (failed, good): (Vec<_>, Vec<_>) = list(backups)?.into_iter().partition(|(_, record)| record.kind == "failed");
    let beyond = keep.max(1) as usize;
    for (dir, record) in good.into_iter().skip(beyond).chain(failed.into_iter().skip(beyond)) {
        discard(own, &dir)?;
        gone.push(record.id);
    }
    clear_discarded(own)?;
    Ok(gone)
}

/// Where what is to be deleted lies, out of everybody's sight.
fn discarded(own: &Path) -> PathBuf {
    own.join("discard")
}

fn discard(own: &Path, dir: &Path) -> Result<()> {
    let to = discarded(own).join(dir.file_name().context("a backup has a name")?);
    fsx::make_folders(&discarded(own))?;
    fsx::remove_own_tree(&to)?;
    files::rename_new(dir, &to).with_context(|| format!("taking {} away", dir.display()))?;
    fsx::sync_parent(dir)
}

/// Deletes what was taken from the shelf. What was cut off here is deleted by the next command.
pub fn clear_discarded(own: &Path) -> Result<()> {
    fsx::remove_own_tree(&discarded(own))
}
