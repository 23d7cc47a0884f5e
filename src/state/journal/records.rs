//! What the journal says: its records, and all that they name.
//! Refuses to know how they are stored, and what they mean together.
#![deny(clippy::indexing_slicing, clippy::string_slice, clippy::arithmetic_side_effects)]

use crate::base::path::RelPath;
use crate::state::baseline::HealthBaseline;
use crate::system::{LaunchSpec, ProcessId, Unit};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The version of this format. Those before it are read: 2 brought what hooks may write, 3 what gives way,
/// 4 annexes.
pub const FORMAT: u32 = 4;

/// All that an undo needs and cannot find out later.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Begin {
    pub format: u32,
    pub update_id: String,
    pub command: String,
    pub root: PathBuf,
    /// The folder's name below `backups`.
    pub backup: String,
    pub backup_dir: RelPath,
    pub from_version: Option<String>,
    pub to_version: Option<String>,
    pub start_file: RelPath,
    /// How the server of the old version starts again; None: it is left stopped.
    pub launch: Option<LaunchSpec>,
    /// How the server of the new version starts, where that differs (`--set` changed its port, for example).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_launch: Option<LaunchSpec>,
    pub was_running: bool,
    /// The unit through which it is stopped and started; None: its processes themselves.
    #[serde(default)]
    pub service: Option<Unit>,
    pub before: Baselines,
    pub stop_timeout_ms: u64,
    pub health_timeout_ms: u64,
    pub soak_ms: u64,
}

/// What the server of each version is measured by.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Baselines {
    /// How it answered before the stop.
    pub old: Option<HealthBaseline>,
    /// What the new version must give (differs where `--set` changes a port or protocol).
    pub new: Option<HealthBaseline>,
}

impl Begin {
    /// How the server of the old version is started again.
    pub fn old_launch(&self) -> Option<&LaunchSpec> {
        self.launch.as_ref()
    }

    /// How the server of the new version is started.
    pub fn new_launch(&self) -> Option<&LaunchSpec> {
        self.new_launch.as_ref().or(self.launch.as_ref())
    }

    /// Whether a server of the old version ran, and so has to run again.
    pub fn should_run(&self) -> bool {
        self.was_running && self.launch.is_some()
    }
}

/// One move of the swap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    pub path: RelPath,
    /// Something lies there now and goes to the trash.
    pub old: bool,
    /// What arrives from staging.
    pub new: Option<Arrival>,
    /// It is data of the users (a restore puts it back, a bundle adds or merges it).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub data: bool,
    /// Where what lies there goes.
    #[serde(default, skip_serializing_if = "Away::is_trash")]
    pub away: Away,
}

/// Where an original goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Away {
    /// Thrown away after the commit: a backup holds it.
    #[default]
    Trash,
    /// The backup's `aside/`: users wrote it, and it gives way to the version.
    Aside,
    /// The backup's `after/`: saved data takes its place.
    After,
}

impl Away {
    fn is_trash(&self) -> bool {
        *self == Away::Trash
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    pub sha256: String,
    pub size: u64,
}

/// What hooks may write, exchanged for a copy of it: the original waits outside of the tree, whole, until the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    pub path: RelPath,
    /// The number of the copy and of the original in `.updater`.
    pub slot: usize,
    /// Something lies there now; else hooks make it.
    pub old: bool,
    /// An undo throws what it takes away: an environment can be made again, anything else is kept.
    pub disposable: bool,
}

/// A private folder on another volume of the install, for what is exchanged there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Annex {
    /// The folder of the install that leads to that volume.
    pub top: RelPath,
    /// By its full name, so that it is found whatever becomes of a link.
    pub folder: PathBuf,
}

impl Annex {
    /// The one of these for `path`: that of the volume nearest to it.
    pub fn among<'a>(all: &'a [Annex], path: &RelPath) -> Option<&'a Annex> {
        all.iter().filter(|annex| path.is_within(&annex.top)).max_by_key(|annex| annex.top.ancestors().len())
    }
}

/// A folder that the swap makes or removes, with what is needed to make it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folder {
    pub path: RelPath,
    pub mode: u32,
    pub owner: crate::system::Owner,
    pub mtime: i64,
    /// Where a backup holds it, where that is not its own path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<RelPath>,
}

impl Folder {
    /// A folder as it is.
    pub fn of(path: &RelPath, metadata: &crate::system::FileMetadata) -> Folder {
        Folder { path: path.clone(), mode: metadata.mode, owner: metadata.owner, mtime: metadata.mtime, place: None }
    }

    /// Where a backup holds it.
    pub fn saved_at(&self) -> &RelPath {
        self.place.as_ref().unwrap_or(&self.path)
    }
}

/// Every move of the swap, named before the first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moves {
    pub moves: Vec<Intent>,
    pub make: Vec<RelPath>,
    pub remove: Vec<Folder>,
    /// Folders whose time an undo puts back.
    pub touched: Vec<Folder>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exchanges: Vec<Exchange>,
    /// Folders of a saved version, which are made with their own owner and mode.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub saved_folders: Vec<Folder>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub annexes: Vec<Annex>,
}

impl Moves {
    /// The annex through which `path` is exchanged, where it lies on another volume.
    pub fn annex(&self, path: &RelPath) -> Option<&Annex> {
        Annex::among(&self.annexes, path)
    }
}

/// What a way back does with the data of the users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataPolicy {
    /// Only what the swap itself moved: the new version was not started.
    Untouched,
    /// What the new version changed is put back.
    Restored,
    /// It stays as it is now.
    Kept,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Record {
    Begin(Box<Begin>),
    Stopping,
    BackupWhole,
    Swapping {
        moves: Moves,
    },
    /// Hooks are about to run on the new tree; the start file is still away. From here these data may have changed.
    Hooking {
        boot: String,
        data: Vec<RelPath>,
    },
    /// They have run; what they made is kept in staging.
    Hooked,
    Swapped,
    /// The new version is about to run: from here data may have changed.
    Starting {
        boot: String,
        /// None: the service manager starts it, so that there is nobody before it runs; a second record
        /// then names the main process.
        #[serde(default)]
        process: Option<ProcessId>,
    },
    /// The way back from a started version begins; what becomes of the data is decided.
    Undoing {
        data: DataPolicy,
    },
    DataRestored,
    RolledBack,
    /// The old version is about to run again: whoever finds it starts no second one.
    StartingOld {
        boot: String,
        process: ProcessId,
    },
    Committed,
    /// An automatic recovery began (at most three).
    Attempt,
    /// It ended with a question to a person, and so counts as none.
    Undecided,
}
