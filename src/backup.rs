//! Backups: a whole version each, files under their own paths and `backup.json`, the record that
//! makes it whole. Pass 1 copies while the server serves; pass 2, after the stop, trusts only files
//! that did not change since, and compares database sets by content. A backup is made in staging and
//! moved among the others by one rename, so no half of one ever lies there.
//! Refuses to open a database in place, to link to the live tree, and to delete the newest whole backup.

mod record;
mod selection;
mod shelf;

pub use record::{Damage, FORMAT, Kind, Line, Linked, Record, Watched, damage, files_below, legacy, load};
pub use selection::{How, Previous, Selected, Selection, refuse_unreadable};
pub use shelf::{Listed, Pruned, Spare, clear_discarded, list, list_all, mark_failed, next_number, prune};

use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::journal::Folder;
use crate::state::root::InstallRoot;
use crate::system::{self, FileMetadata, files, interrupt};
use crate::update::ownership::{Census, Class, Item};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A file written this shortly before its copy may have changed without its times showing it.
pub const RACY_NANOS: i64 = 2_000_000_000;

/// What lies in a backup's folder beside the files of the install.
const BESIDE: [&str; 3] = ["aside", "after", "backup.json"];

/// A backup that is being made.
pub struct Backup {
    pub id: String,
    /// Where it is made.
    dir: PathBuf,
    /// Where it goes when it is whole.
    home: PathBuf,
    lines: BTreeMap<RelPath, Line>,
    /// The files that are another name of a file in the backup before: they are never written.
    linked: BTreeSet<RelPath>,
    /// Large files that stay in place unsaved.
    watched: BTreeMap<RelPath, FileMetadata>,
    /// Top names of the install that a backup's own names take, and what they are saved as.
    renamed: BTreeMap<RelPath, RelPath>,
    /// When pass 1 ended.
    seeded_at: i64,
}

/// What lies in the install after the stop, as the backup has to hold it.
pub struct Live<'a> {
    pub census: &'a Census,
    /// What the release shipped where something else lies.
    pub bases: &'a BTreeMap<RelPath, String>,
    pub selection: &'a Selection,
}

/// `update_backup_YYYYMMDD_HHMMSS` in local time, with a suffix where one of that name exists.
pub fn new_id(backups: &Path) -> Result<String> {
    let stamp = jiff::ZonedDateTime::now().strftime("%Y%m%d_%H%M%S").to_string();
    let mut id = format!("update_backup_{stamp}");
    let mut n = 1;
    while fsx::exists(&backups.join(&id))? {
        n += 1;
        id = format!("update_backup_{stamp}_{n}");
    }
    Ok(id)
}

/// Pass 1: saves the version and the data while the server serves, for the backup `home`.
pub fn seed(
    root: &InstallRoot,
    home: &Path,
    census: &Census,
    selection: &Selection,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Backup> {
    let id = home.file_name().context("a backup has a name")?.to_string_lossy().into_owned();
    let dir = root.state().staged_backup();
    fsx::make_folders(dir.parent().context("staging has a folder above it")?)?;
    files::private_folder(&dir).with_context(|| format!("creating {}", dir.display()))?;
    fsx::inherit_owner(&dir)?;
    let mut backup = Backup {
        id,
        dir,
        home: home.to_path_buf(),
        lines: BTreeMap::new(),
        linked: BTreeSet::new(),
        watched: BTreeMap::new(),
        renamed: renamed(census),
        seeded_at: 0,
    };
    let mut done = 0;
    for one in &selection.files {
        backup.take(root, one)?;
        done += one.cost();
        progress(done, selection.bytes)?;
    }
    // While the server still serves; after the stop only what changed is done again.
    backup.folders(root, census)?;
    backup.seeded_at = fsx::now_nanos();
    Ok(backup)
}

/// Top names that would collide with a backup's own, and the first free name for each.
fn renamed(census: &Census) -> BTreeMap<RelPath, RelPath> {
    let paths = census.items.keys().chain(census.folders.iter().map(|(path, _)| path));
    let tops: BTreeSet<RelPath> = paths.map(RelPath::top).collect();
    let mut all = BTreeMap::new();
    for top in tops.iter().filter(|top| BESIDE.iter().any(|own| top.name().eq_ignore_ascii_case(own))) {
        let mut to = top.with_ending(".saved");
        while tops.contains(&to) || all.values().any(|taken| *taken == to) {
            to = to.with_ending(".saved");
        }
        all.insert(top.clone(), to);
    }
    all
}

impl Backup {
    /// Where a file of the install is saved, relative to the backup.
    fn slot(&self, path: &RelPath) -> RelPath {
        let top = path.top();
        match (self.renamed.get(&top), path.strip(&top)) {
            (Some(other), Some(rest)) => other.join(&rest),
            (Some(other), None) => other.clone(),
            (None, _) => path.clone(),
        }
    }

    fn place(&self, path: &RelPath) -> PathBuf {
        self.dir.join(self.slot(path).to_path())
    }

    fn line(&self, path: &RelPath, metadata: &FileMetadata, data: bool, sha256: String) -> Line {
        let slot = self.slot(path);
        let place = (slot != *path).then_some(slot);
        Line { path: path.clone(), sha256, data, metadata: *metadata, base: None, place }
    }

    /// Saves one file as it was chosen.
    fn take(&mut self, root: &InstallRoot, one: &Selected) -> Result<()> {
        match &one.how {
            How::Watch => {
                self.watched.insert(one.path.clone(), one.metadata);
                Ok(())
            }
            How::Link { copy, sha256 } => {
                if self.link(root, one, copy, sha256)? {
                    return Ok(());
                }
                self.save(root, &one.path, &one.metadata, one.data)
            }
            How::Clone => self.clone_or_watch(root, &one.path, &one.metadata),
            How::Copy => self.save(root, &one.path, &one.metadata, one.data),
        }
    }

    /// Makes another name of the copy in the backup before, once that was read and found good. Ok(false): it is not.
    fn link(&mut self, root: &InstallRoot, one: &Selected, copy: &Path, sha256: &str) -> Result<bool> {
        let to = self.place(&one.path);
        let is_good = fsx::metadata(copy)?.is_some_and(|is| {
            (is.kind, is.size, is.mode, is.owner, is.mtime)
                == (one.metadata.kind, one.metadata.size, one.metadata.mode, one.metadata.owner, one.metadata.mtime)
        });
        let live = root.join(&one.path);
        let attributes = || files::same_attributes(&live, copy).unwrap_or(false);
        if !is_good || !attributes() || !fsx::has_sha256(copy, sha256).unwrap_or(false) {
            return Ok(false);
        }
        if let Some(parent) = to.parent() {
            fsx::make_folders(parent)?;
        }
        if !files::link_file(copy, &to).with_context(|| format!("linking {}", to.display()))? {
            return Ok(false);
        }
        self.linked.insert(one.path.clone());
        self.lines.insert(one.path.clone(), self.line(&one.path, &one.metadata, one.data, sha256.to_string()));
        Ok(true)
    }

    /// A large file: saved where that costs no room, else only watched.
    fn clone_or_watch(&mut self, root: &InstallRoot, path: &RelPath, metadata: &FileMetadata) -> Result<()> {
        self.forget(path)?;
        match fsx::clone_file(&root.join(path), &self.place(path), metadata) {
            Ok(Some(sha256)) => {
                self.lines.insert(path.clone(), self.line(path, metadata, true, sha256));
            }
            Ok(None) => {
                self.watched.insert(path.clone(), *metadata);
            }
            Err(_) if !fsx::exists(&root.join(path))? => {}
            Err(e) => return Err(unreadable(path, &e)),
        }
        Ok(())
    }

    /// Copies one file; one that vanishes meanwhile is simply not there.
    fn save(&mut self, root: &InstallRoot, path: &RelPath, metadata: &FileMetadata, data: bool) -> Result<()> {
        self.forget(path)?;
        let to = self.place(path);
        match fsx::copy(&root.join(path), &to, metadata) {
            Ok(sha256) => {
                self.lines.insert(path.clone(), self.line(path, metadata, data, sha256));
                Ok(())
            }
            Err(_) if !fsx::exists(&root.join(path))? => fsx::remove_own_file(&to),
            Err(e) => Err(unreadable(path, &e)),
        }
    }

    /// Takes back what was saved or watched under this name.
    fn forget(&mut self, path: &RelPath) -> Result<()> {
        fsx::remove_own_file(&self.place(path))?;
        self.lines.remove(path);
        self.linked.remove(path);
        self.watched.remove(path);
        Ok(())
    }

    /// Pass 2, after the stop: every file again, by identity, database sets by content; then the record, and the
    /// backup in its place.
    pub fn finish(&mut self, root: &InstallRoot, live: &Live, record: Record) -> Result<Record> {
        let census = live.census;
        let known: Vec<RelPath> = self.lines.keys().chain(self.watched.keys()).cloned().collect();
        for path in known.iter().filter(|path| !census.items.contains_key(*path)) {
            self.forget(path)?;
        }
        for (path, item) in &census.items {
            self.again(root, live, path, item)?;
        }
        let (linked, folders) = self.folders(root, census)?;
        fsx::sync_folders(&self.dir)?;
        for line in self.lines.values_mut() {
            line.base = live.bases.get(&line.path).filter(|base| **base != line.sha256).cloned();
        }
        let record = Record {
            id: self.id.clone(),
            files: self.lines.values().cloned().collect(),
            folders,
            linked,
            watched: self
                .watched
                .iter()
                .map(|(path, metadata)| Watched::new(path, *metadata, &root.join(path)))
                .collect(),
            ..record
        };
        record.store(&self.dir)?;
        files::rename_new(&self.dir, &self.home).with_context(|| format!("placing the backup {}", self.id))?;
        fsx::sync_parent(&self.home)?;
        fsx::sync_parent(&self.dir)?;
        Ok(record)
    }

    /// Makes every folder of the install in the backup, with its owner, mode and access lists, but that its owner may
    /// always enter it; of a data folder that is a link the target is kept.
    fn folders(&self, root: &InstallRoot, census: &Census) -> Result<(Vec<Linked>, Vec<Folder>)> {
        let (mut linked, mut folders) = (Vec::new(), Vec::new());
        for (path, metadata) in &census.folders {
            interrupt::check()?;
            let (live, to) = (root.join(path), self.place(path));
            fsx::make_folders(&to)?;
            if metadata.kind == system::FileType::Link {
                linked.push(Linked::new(path, &fsx::link_target(&live)?));
                continue;
            }
            let slot = self.slot(path);
            folders.push(Folder { place: (slot != *path).then_some(slot), ..Folder::of(path, metadata) });
            let is = files::metadata(&to)?;
            if (is.owner, is.mode) != (metadata.owner, metadata.mode | 0o700) {
                fsx::apply_folder_metadata(&to, metadata.owner, metadata.mode | 0o700)?;
            }
            if !files::same_attributes(&live, &to).unwrap_or(true) {
                files::copy_attributes(&live, &to).with_context(|| format!("setting attributes of {path}"))?;
            }
        }
        Ok((linked, folders))
    }

    /// Brings what was saved of one file up to date.
    fn again(&mut self, root: &InstallRoot, live: &Live, path: &RelPath, item: &Item) -> Result<()> {
        let (metadata, data) = (&item.metadata, item.class == Class::Data);
        let selection = live.selection;
        let is_database = live.census.databases.main_of(path).is_some();
        if selection.is_watched_only(path, metadata, data, is_database) {
            self.forget(path)?;
            self.watched.insert(path.clone(), *metadata);
            return Ok(());
        }
        let racy = metadata.mtime.max(metadata.ctime) > self.seeded_at - RACY_NANOS;
        let by_content = metadata.kind == system::FileType::File && (racy || is_database);
        let was = self.lines.get(path).map(|line| line.metadata).or(self.watched.get(path).copied());
        let is_same = was.is_some_and(|was| fsx::is_unchanged(&was, metadata));
        let is_large = selection.is_large(metadata, data, is_database);
        match self.lines.get_mut(path) {
            Some(line) if is_same && !by_content => {
                line.data = data;
                Ok(())
            }
            None if is_same && is_large => Ok(()),
            _ if is_large => self.clone_or_watch(root, path, metadata),
            Some(line) if metadata.kind == system::FileType::File && line.metadata.kind == system::FileType::File => {
                self.compare(root, path, metadata, data)
            }
            _ => self.save(root, path, metadata, data),
        }
    }

    /// Makes the copy of a file that may have changed its equal.
    fn compare(&mut self, root: &InstallRoot, path: &RelPath, metadata: &FileMetadata, data: bool) -> Result<()> {
        let (live, to) = (root.join(path), self.place(path));
        let Some(line) = self.lines.get(path) else { return self.save(root, path, metadata, data) };
        let known = line.sha256.clone();
        if self.linked.contains(path) {
            // The other name of this file is another backup's.
            let same = fsx::is_unchanged(&line.metadata, metadata) && fsx::same_bytes(&live, &to);
            return if same { Ok(()) } else { self.save(root, path, metadata, data) };
        }
        if files::metadata(&to)?.mode & 0o200 == 0 {
            // The copy of a file that nobody may write; it gets its mode again below.
            files::set_mode(&to, 0o600).with_context(|| format!("opening the copy of {path}"))?;
        }
        let changed = fsx::update_copy(&live, &to, metadata)?;
        let sha256 = if changed { fsx::sha256_of(&to)? } else { known };
        fsx::copy_metadata(&live, &to, metadata)?;
        self.lines.insert(path.clone(), self.line(path, metadata, data, sha256));
        Ok(())
    }
}

/// Users' data that cannot be read cannot be saved. (An error of another kind is the disk's.)
fn unreadable(path: &RelPath, e: &anyhow::Error) -> anyhow::Error {
    Failure::failed(Code::CannotSave, format!("{path} cannot be saved: {e:#}"))
        .at(path)
        .remedy("let the user of the updater read it, or name it in [backup] skip to leave it in place unsaved")
        .into()
}
