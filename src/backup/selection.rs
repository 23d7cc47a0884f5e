//! The selection: how each file of an install is saved, decided by reading alone, so that its room can be asked for
//! before anything is written.
//! Refuses to save: that is the backup's.

use super::{Line, RACY_NANOS, Record, shelf};
use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::root::InstallRoot;
use crate::system::{FileMetadata, FileType, files, interrupt};
use crate::update::ownership::{Census, Class, Rules};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// One backup in so many holds copies of its own of everything, so that one spoiled file cannot spoil them all.
const OWN_COPIES_EVERY: u64 = 5;

/// How a file is saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    Copy,
    /// As another name of the copy in the backup before, if that still has this hash.
    Link {
        copy: PathBuf,
        sha256: String,
    },
    /// Where the volume shares contents; else it is watched.
    Clone,
    /// Not at all: it stays in place, and a rollback tells whether it changed.
    Watch,
}

/// One file and how it is saved.
#[derive(Debug, Clone)]
pub struct Selected {
    pub path: RelPath,
    pub metadata: FileMetadata,
    /// It is the users'.
    pub data: bool,
    pub how: How,
    /// What it takes on its volume, in bytes.
    allocated: u64,
}

impl Selected {
    /// The bytes that saving it writes.
    pub fn cost(&self) -> u64 {
        if self.how == How::Copy { self.allocated } else { 0 }
    }
}

/// The backup before, whose copies of unchanged files are shared.
pub struct Previous {
    dir: PathBuf,
    /// When it was made, in nanoseconds since 1970.
    made: i64,
    lines: BTreeMap<RelPath, Line>,
}

impl Previous {
    /// The newest backup with a record. None: there is none.
    pub fn newest(backups: &Path) -> Result<Option<Previous>> {
        Ok(shelf::list(backups)?.into_iter().next().map(|(dir, record)| Previous::of(dir, record)))
    }

    fn of(dir: PathBuf, record: Record) -> Previous {
        let made = record
            .created
            .parse::<jiff::Timestamp>()
            .map_or(i64::MIN, |at| i64::try_from(at.as_nanosecond()).unwrap_or(i64::MIN));
        Previous { dir, made, lines: record.files.into_iter().map(|line| (line.path.clone(), line)).collect() }
    }

    /// The copy of a file that was not touched since.
    fn copy_of(&self, path: &RelPath, metadata: &FileMetadata) -> Option<How> {
        let line = self.lines.get(path)?;
        let is_old = metadata.mtime.max(metadata.ctime) < self.made.saturating_sub(RACY_NANOS);
        let fits = is_old && metadata.kind == FileType::File && fsx::is_unchanged(&line.metadata, metadata);
        fits.then(|| How::Link { copy: self.dir.join(line.saved_at().to_path()), sha256: line.sha256.clone() })
    }
}

/// All files of an install and how they are saved.
pub struct Selection {
    pub files: Vec<Selected>,
    /// The bytes that pass 1 writes.
    pub bytes: u64,
    /// What databases take, which is what putting them back takes.
    pub databases: u64,
    pub number: u64,
    rules: Rc<Rules>,
}

impl Selection {
    /// Decides. `free`: the room on the volume, in bytes, within which a backup may have copies of its own.
    pub fn choose(
        root: &InstallRoot,
        rules: &Rc<Rules>,
        census: &Census,
        backups: &Path,
        free: u64,
    ) -> Result<Selection> {
        let number = shelf::next_number(backups)?;
        let mut selection = Selection { files: Vec::new(), bytes: 0, databases: 0, number, rules: rules.clone() };
        let previous = Previous::newest(backups)?;
        for (path, item) in &census.items {
            interrupt::check()?;
            // One that vanished meanwhile needs no room.
            let allocated = files::allocated(&root.join(path)).map_or(0, |bytes| bytes.min(item.metadata.size));
            let is_database = census.databases.main_of(path).is_some();
            let data = item.class == Class::Data;
            let how = selection.how(path, &item.metadata, (data, is_database), previous.as_ref());
            if is_database && how == How::Copy {
                selection.databases += allocated;
            }
            selection.files.push(Selected { path: path.clone(), metadata: item.metadata, data, how, allocated });
        }
        if selection.number.is_multiple_of(OWN_COPIES_EVERY) {
            selection.own_copies(free);
        }
        selection.bytes = selection.files.iter().map(Selected::cost).sum();
        Ok(selection)
    }

    /// How a file is saved that is `data` of the users, or a part of a database.
    fn how(
        &self,
        path: &RelPath,
        metadata: &FileMetadata,
        (data, is_database): (bool, bool),
        previous: Option<&Previous>,
    ) -> How {
        if self.is_watched_only(path, metadata, data, is_database) {
            return How::Watch;
        }
        if is_database {
            return How::Copy;
        }
        let link = previous.and_then(|previous| previous.copy_of(path, metadata));
        let otherwise = if self.is_large(metadata, data, is_database) { How::Clone } else { How::Copy };
        link.unwrap_or(otherwise)
    }

    /// Copies in place of links, if there is room for all of them.
    fn own_copies(&mut self, free: u64) {
        let is_small = |one: &Selected| !one.data || one.metadata.size <= self.rules.max_file;
        let linked = |one: &&mut Selected| matches!(one.how, How::Link { .. });
        let all: u64 = self.files.iter().map(|one| one.allocated).sum();
        if all.saturating_mul(2) > free {
            return;
        }
        let small: Vec<bool> = self.files.iter().map(is_small).collect();
        for (one, small) in self.files.iter_mut().zip(small).filter(|(one, _)| linked(one)) {
            if small {
                one.how = How::Copy;
            }
        }
    }

    /// A data file above `[backup] max_file`. A database is saved whatever its size.
    pub fn is_large(&self, metadata: &FileMetadata, data: bool, is_database: bool) -> bool {
        data && !is_database && metadata.kind == FileType::File && metadata.size > self.rules.max_file
    }

    /// A data file that `[backup] skip` keeps in place. A database is saved whatever is set.
    pub fn is_watched_only(&self, path: &RelPath, metadata: &FileMetadata, data: bool, is_database: bool) -> bool {
        data && !is_database && metadata.kind == FileType::File && self.rules.is_skipped(path, false)
    }

    /// How many files are not going to be saved, and their bytes, as far as that can be told before it is tried.
    pub fn not_saved(&self, root: &InstallRoot) -> Result<Vec<(RelPath, u64)>> {
        let may_clone = files::may_clone(root.path()).context("asking what the volume can do")?;
        let is_lost = |one: &&Selected| one.how == How::Watch || (one.how == How::Clone && !may_clone);
        Ok(self.files.iter().filter(is_lost).map(|one| (one.path.clone(), one.metadata.size)).collect())
    }
}

/// Errors: something of the users' cannot be read, so that it could not be put back, and no setting leaves it in place.
pub fn refuse_unreadable(root: &InstallRoot, rules: &Rules, census: &Census) -> Result<()> {
    let is_left = |path: &RelPath| rules.is_skipped(path, true) || rules.is_skipped(path, false);
    match census.unreadable.iter().find(|(path, _)| !is_left(path)) {
        Some((path, why)) => Err(unreadable(root, path, why).into()),
        None => Ok(()),
    }
}

fn unreadable(root: &InstallRoot, path: &RelPath, why: &str) -> Failure {
    Failure::failed(Code::UnreadableData, format!("{path} cannot be read, so it could not be put back: {why}"))
        .at(path)
        .remedy(format!(
            "let its owner in (chmod u+rwX), give it to the owner of the install (chown), or leave it in place unsaved \
             ([backup] skip): {}",
            root.join(path).display()
        ))
}
