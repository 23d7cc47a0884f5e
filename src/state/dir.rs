//! The state directory `.updater` of an install: every path in it, once.
//! Refuses to touch the disk.

use crate::base::path::STATE_DIR;
use std::path::{Path, PathBuf};

/// The state directory of one install.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// That of the install at `root`.
    pub fn of(root: &Path) -> StateDir {
        StateDir(root.join(STATE_DIR))
    }

    /// One that lies elsewhere, for tests of a single room.
    pub fn at(place: &Path) -> StateDir {
        StateDir(place.to_path_buf())
    }

    /// The root of the install.
    pub fn root(&self) -> &Path {
        self.0.parent().unwrap_or(&self.0)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The file that a changing command holds locked.
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// What an update that is under way intends and how far it came.
    pub fn journal(&self) -> PathBuf {
        self.0.join("journal")
    }

    /// A journal before its first record is on the disk.
    pub fn new_journal(&self) -> PathBuf {
        self.0.join("journal.new")
    }

    /// A marker: the reason for which a journal was set aside. It stays until an operator removes it.
    pub fn journal_marker(&self) -> PathBuf {
        self.0.join("journal.blocked")
    }

    /// A journal that could not be read, set aside at this time (seconds since 1970).
    pub fn journal_set_aside(&self, seconds: i64) -> PathBuf {
        self.0.join(format!("journal.set-aside-{seconds}"))
    }

    /// What the installed version shipped.
    pub fn receipt(&self) -> PathBuf {
        self.0.join("receipt.json")
    }

    /// The installed bundle, kept for repairs.
    pub fn bundle(&self) -> PathBuf {
        self.0.join("bundle.zip")
    }

    /// What dashboards poll.
    pub fn status(&self) -> PathBuf {
        self.0.join("status.json")
    }

    /// The outcome of the last run.
    pub fn last(&self) -> PathBuf {
        self.0.join("last.json")
    }

    /// The bundles that failed here by their own fault.
    pub fn failures(&self) -> PathBuf {
        self.0.join("failures.json")
    }

    /// The folder with the events of each run.
    pub fn events(&self) -> PathBuf {
        self.0.join("events")
    }

    /// The events of one run, a JSON object a line.
    pub fn events_of(&self, update_id: &str) -> PathBuf {
        self.events().join(format!("{update_id}.jsonl"))
    }

    /// The folder with the logs of each run, and of a server without a folder for them.
    pub fn logs(&self) -> PathBuf {
        self.0.join("log")
    }

    /// The log of one run, for people.
    pub fn log_of(&self, update_id: &str) -> PathBuf {
        self.logs().join(format!("{update_id}.log"))
    }

    /// The folder for bundles that are fetched, with what is there of an interrupted one.
    pub fn downloads(&self) -> PathBuf {
        self.0.join("downloads")
    }

    /// The folder for all that belongs to the update under way and to nothing later.
    pub fn staging(&self) -> PathBuf {
        self.0.join("staging")
    }

    /// The folder in which the new version waits, at the paths where it will lie.
    pub fn staged_tree(&self) -> PathBuf {
        self.staging().join("tree")
    }

    /// The receipt of the version that waits.
    pub fn staged_receipt(&self) -> PathBuf {
        self.staging().join("receipt.json")
    }

    /// The bundle of the version that waits.
    pub fn staged_bundle(&self) -> PathBuf {
        self.staging().join("bundle.zip")
    }

    /// The backup before its record is on the disk.
    pub fn staged_backup(&self) -> PathBuf {
        self.staging().join("backup")
    }

    /// The copy, number `slot`, of a folder or file that hooks may write.
    pub fn copy(&self, slot: usize) -> PathBuf {
        self.staging().join("copies").join(slot.to_string())
    }

    /// Room that is set aside for a way back on a full disk.
    pub fn reserve(&self) -> PathBuf {
        self.staging().join("reserve")
    }

    /// The folder that hooks work in.
    pub fn hooks_work(&self) -> PathBuf {
        self.staging().join("hooks")
    }

    /// The tree as it was before hooks began.
    pub fn before_hooks(&self) -> PathBuf {
        self.staging().join("before-hooks.json")
    }

    /// What hooks made.
    pub fn made_by_hooks(&self) -> PathBuf {
        self.staging().join("made-by-hooks.json")
    }

    /// The folder for originals that a swap replaced, until its update has ended.
    pub fn trash(&self) -> PathBuf {
        self.0.join("trash")
    }

    /// The folder for originals that were moved whole: what hooks may write, and folders that are left empty.
    pub fn originals(&self) -> PathBuf {
        self.0.join("originals")
    }

    /// The original, number `slot`, of what hooks may write.
    pub fn original(&self, slot: usize) -> PathBuf {
        self.originals().join(slot.to_string())
    }

    /// Folder number `at` of those that a swap removes.
    pub fn removed_folder(&self, at: usize) -> PathBuf {
        self.originals().join(format!("folder-{at}"))
    }

    /// The list of annexes, the private folders on other volumes.
    pub fn annexes(&self) -> PathBuf {
        self.0.join("annexes.json")
    }

    /// The folder for backups that are about to be deleted.
    pub fn discarded(&self) -> PathBuf {
        self.0.join("discard")
    }
}
