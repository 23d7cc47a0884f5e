//! The shelf: all backups of an install, listed, and the oldest taken away. Their order is that of their running
//! numbers, never of a clock.
//! Refuses to take the newest whole one away, and to leave half of one behind: a backup leaves the
//! shelf by one rename and is deleted elsewhere.

use super::record::{Damage, Kind, Record, damage, files_below, load, time};
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::dir::StateDir;
use crate::system::{self, files, trust};
use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// One backup as `updater backups` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    pub id: String,
    /// RFC 3339, UTC.
    pub created: String,
    /// The running number; 0 where none was given.
    pub number: u64,
    pub kind: Kind,
    pub from_version: Option<String>,
    pub to_version: Option<String>,
    pub files: u64,
    pub bytes: u64,
    pub data_bytes: u64,
    /// What it takes on its volume beside what older backups hold, too.
    pub bytes_on_disk: u64,
    /// How many files of the users' gave way to the update and lie in `aside/`.
    pub aside: u64,
    /// It has a record and every file of it, by size, or by hash where that was asked.
    pub whole: bool,
    /// The files that are not what was saved.
    pub damaged: Vec<Damage>,
}

/// A backup that was taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    pub id: String,
    pub bytes: u64,
    /// What lay in its `aside/`.
    pub aside: Vec<RelPath>,
}

/// What is spared when backups are taken away, beside the newest whole one.
pub struct Spare<'a> {
    /// The one just made, or just named as the way back.
    pub ids: &'a [&'a str],
    /// Those that hold what users wrote and nothing else holds: what gave way, and what was there before the first
    /// receipt.
    pub users: bool,
}

/// All whole backups, newest first, with their folders.
pub fn list(backups: &Path) -> Result<Vec<(PathBuf, Record)>> {
    let mut all: Vec<_> =
        folders(backups)?.into_iter().filter_map(|dir| Some((dir.clone(), load(&dir).ok()?))).collect();
    all.sort_by(|(_, a), (_, b)| (b.number, &b.created, &b.id).cmp(&(a.number, &a.created, &a.id)));
    Ok(all)
}

/// The running number of the backup that is made next.
pub fn next_number(backups: &Path) -> Result<u64> {
    Ok(list(backups)?.first().map_or(0, |(_, record)| record.number).saturating_add(1))
}

/// Every folder on the shelf that is a backup, newest first; `hash`: each file is hashed again.
pub fn list_all(backups: &Path, hash: bool) -> Result<Vec<Listed>> {
    let mut all = Vec::new();
    for dir in folders(backups)? {
        let has_record = match fsx::exists(&dir.join("backup.json")) {
            // Somebody's folder, closed to us.
            Err(e) if fsx::is_denied(&e) => false,
            exists => exists?,
        };
        let named = dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("update_backup_"));
        if has_record || named {
            all.push((listed(&dir, hash)?, dir));
        }
    }
    all.sort_by(|(a, _), (b, _)| (b.number, &b.created, &b.id).cmp(&(a.number, &a.created, &a.id)));
    // What several share is counted where it came first.
    let mut seen = BTreeSet::new();
    for (one, dir) in all.iter_mut().rev() {
        one.bytes_on_disk = bytes_on_disk(dir, &mut seen);
    }
    Ok(all.into_iter().map(|(one, _)| one).collect())
}

fn folders(backups: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    if fsx::exists(backups)? {
        for name in fsx::names(backups)? {
            let dir = backups.join(name);
            let is_folder = fsx::metadata(&dir)?.is_some_and(|metadata| metadata.kind == system::FileType::Folder);
            // Where root works and others may write on the shelf, what is not root's is no backup.
            if is_folder && (!trust::is_guarded() || trust::of_one(&dir)?.is_none()) {
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
    let size = |data: bool| record.files.iter().filter(|l| l.data == data).map(|l| l.metadata.size).sum::<u64>();
    Ok(Listed {
        id,
        created: record.created.clone(),
        number: record.number,
        kind: record.kind,
        from_version: record.from_version.clone(),
        to_version: record.to_version.clone(),
        files: record.files.len() as u64,
        bytes: size(false) + size(true),
        data_bytes: size(true),
        bytes_on_disk: 0,
        aside: files_below(&dir.join("aside")),
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
    let metadata = files::metadata(dir).with_context(|| format!("looking at {}", dir.display()))?;
    let record = RelPath::from_disk("backup.json".as_ref()).filter(|_| dir.join("backup.json").exists());
    Ok(Listed {
        id,
        created: time(metadata.mtime),
        number: 0,
        kind: if record.is_some() { Kind::Apply } else { Kind::Legacy },
        from_version: None,
        to_version: None,
        files: count,
        bytes,
        data_bytes: 0,
        bytes_on_disk: 0,
        aside: files_below(&dir.join("aside")),
        whole: false,
        damaged: record.into_iter().map(|path| Damage { path, what: "modified" }).collect(),
    })
}

/// What a folder takes on its volume, but for files that were `seen` under another name.
fn bytes_on_disk(dir: &Path, seen: &mut BTreeSet<(u64, u64)>) -> u64 {
    let files = walkdir::WalkDir::new(dir).into_iter().flatten().filter(|item| item.file_type().is_file());
    let mut sum = 0;
    for item in files {
        let Ok(metadata) = files::metadata(item.path()) else { continue };
        if metadata.links < 2 || seen.insert((metadata.volume, metadata.inode)) {
            sum += files::allocated(item.path()).unwrap_or(0);
        }
    }
    sum
}

/// Marks the backup of an update that was rolled back: its version was never left. Where there is none, nothing happens.
pub fn mark_failed(dir: &Path) -> Result<()> {
    let Ok(record) = load(dir) else { return Ok(()) };
    // What gave way is back, so only the folders in which it lay are left.
    remove_empty_folders(&dir.join("aside"));
    Record { kind: Kind::Failed, ..record }.store(dir)
}

/// Removes a folder and those below it, as far as they are empty.
fn remove_empty_folders(folder: &Path) {
    for item in walkdir::WalkDir::new(folder).contents_first(true).into_iter().flatten() {
        if item.file_type().is_dir() {
            // One that holds something stays.
            let _ = std::fs::remove_dir(item.path());
        }
    }
}

/// Takes the oldest whole backups beyond `keep` away, those of failed updates and of repairs counted apart, so that no
/// number of them costs a good one; the newest whole one always stays.
pub fn prune(state: &StateDir, backups: &Path, keep: u32, spare: &Spare) -> Result<Vec<Pruned>> {
    let all = list(backups)?;
    let is_whole = |(dir, record): &&(PathBuf, Record)| damage(dir, record, false).is_ok_and(|found| found.is_empty());
    let newest_whole = all.iter().find(is_whole).map(|(_, record)| record.id.clone());
    let is_spared = |dir: &Path, record: &Record| {
        newest_whole.as_ref() == Some(&record.id)
            || spare.ids.contains(&record.id.as_str())
            || (spare.users && (record.is_first || files_below(&dir.join("aside")) > 0))
    };
    let mut gone = Vec::new();
    for kinds in [&[Kind::Apply, Kind::Restore, Kind::Legacy][..], &[Kind::Failed], &[Kind::Repair]] {
        let of_kind = all.iter().filter(|(_, record)| kinds.contains(&record.kind));
        for (dir, record) in of_kind.skip(keep.max(1) as usize).filter(|(dir, record)| !is_spared(dir, record)) {
            let bytes = bytes_on_disk(dir, &mut BTreeSet::new());
            let aside = names_below(&dir.join("aside"));
            discard(state, dir)?;
            gone.push(Pruned { id: record.id.clone(), bytes, aside });
        }
    }
    clear_discarded(state)?;
    Ok(gone)
}

fn names_below(folder: &Path) -> Vec<RelPath> {
    let items = walkdir::WalkDir::new(folder).sort_by_file_name().into_iter().flatten();
    let files = items.filter(|item| !item.file_type().is_dir());
    files.filter_map(|item| RelPath::from_disk(item.path().strip_prefix(folder).ok()?)).collect()
}

/// Where what is to be deleted lies, out of everybody's sight.
fn discarded(state: &StateDir) -> PathBuf {
    state.discarded()
}

fn discard(state: &StateDir, dir: &Path) -> Result<()> {
    let to = discarded(state).join(dir.file_name().context("a backup has a name")?);
    fsx::make_folders(&discarded(state))?;
    fsx::remove_own_tree(&to)?;
    files::rename_new(dir, &to).with_context(|| format!("taking {} away", dir.display()))?;
    fsx::sync_parent(dir)
}

/// Deletes what was taken from the shelf. What was cut off here is deleted by the next command.
pub fn clear_discarded(state: &StateDir) -> Result<()> {
    fsx::remove_own_tree(&discarded(state))
}
