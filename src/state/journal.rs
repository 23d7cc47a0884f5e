//! The journal: what this update intends and how far it came, one flushed line a state, from which
//! alone an interrupted update is finished or undone.
//! Refuses to interpret: `recover` and `rollback` decide what a state means.
//!
//! `.updater/journal`: lines of `SUM JSON`, SUM being the first 16 hex digits of the JSON's SHA-256.
//! A last line that is torn was never acted on (each line is flushed before what it announces), so it
//! is dropped; damage anywhere else makes the journal unreadable, which is never taken for "none".
#![deny(
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use crate::base::error::Failure;
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::dir::StateDir;
use crate::system::{LaunchSpec, ProcessId, Unit, files};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
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
    /// How the server starts again; None: it is left stopped.
    pub launch: Option<LaunchSpec>,
    pub was_running: bool,
    /// The unit through which it is stopped and started; None: its processes themselves.
    #[serde(default)]
    pub service: Option<Unit>,
    pub before: Measure,
    pub stop_timeout_ms: u64,
    pub health_timeout_ms: u64,
    pub soak_ms: u64,
}

/// How the server answered before the stop.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Measure {
    pub old: Option<serde_json::Value>,
    /// What the new version must give (differs when a port or protocol setting is changed).
    pub new: Option<serde_json::Value>,
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
    pub fn of(path: &RelPath, facts: &crate::system::Facts) -> Folder {
        Folder { path: path.clone(), mode: facts.mode, owner: facts.owner, mtime: facts.mtime, place: None }
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
pub enum DataBack {
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
        data: DataBack,
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

/// An open journal.
pub struct Journal {
    file: File,
    path: PathBuf,
    pub begin: Begin,
    pub records: Vec<Record>,
}

/// What lies in an install.
pub enum Found {
    Nothing,
    Open(Box<Journal>),
    /// Torn in the middle, foreign, newer: the reason.
    Unreadable(String),
}

/// Room for the records of a way back, in bytes.
const AFTER_ERROR: u64 = 16 * 1024;

fn line(record: &Record) -> Result<Vec<u8>> {
    let json = serde_json::to_string(record)?;
    Ok(format!("{:.16} {json}\n", fsx::sha256(json.as_bytes())).into_bytes())
}

impl Journal {
    /// Begins a journal. `reserve` bytes are set aside for it, so that a full disk cannot stop it later.
    /// Errors: a journal is there already, or the disk is full.
    pub fn create(state: &StateDir, begin: Begin, reserve: u64) -> Result<Self> {
        let path = state.journal();
        anyhow::ensure!(!fsx::exists(&path)?, "{} is there already", path.display());
        let fresh = state.new_journal();
        fsx::remove_own_file(&fresh)?;
        let mut file = files::open_private(&fresh).with_context(|| format!("creating {}", fresh.display()))?;
        files::preallocate(&file, reserve).context("reserving space for the journal")?;
        let record = Record::Begin(Box::new(begin.clone()));
        file.write_all(&line(&record)?)?;
        file.sync_all()?;
        files::rename_new(&fresh, &path).context("placing the journal")?;
        fsx::sync_parent(&path)?;
        Ok(Self { file, path, begin, records: vec![record] })
    }

    /// Appends a state; it is on the disk when this returns.
    pub fn append(&mut self, record: Record) -> Result<()> {
        let name = || format!("writing the journal {}", self.path.display());
        let good = self.file.stream_position().with_context(name)?;
        let written = self.file.write_all(&line(&record)?).and_then(|()| self.file.sync_data());
        if let Err(e) = written {
            // A record that is torn would make those after it unreadable. (Where even this fails, it is noticed.)
            let _ = self.file.set_len(good).and_then(|()| self.file.seek(SeekFrom::Start(good)));
            let _ = files::preallocate(&self.file, good.saturating_add(AFTER_ERROR));
            return Err(e).with_context(name);
        }
        self.records.push(record);
        Ok(())
    }

    /// Reads the journal of an install; changes nothing.
    pub fn find(state: &StateDir) -> Result<Found> {
        if fsx::exists(&state.journal_marker())? {
            return Ok(Found::Unreadable(
                String::from_utf8_lossy(&fsx::read(&state.journal_marker(), fsx::SMALL)?).trim().to_string(),
            ));
        }
        let path = state.journal();
        let bytes = match fsx::read(&path, fsx::RECORD) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(e) => return Ok(Found::Unreadable(format!("it cannot be read: {e}"))),
        };
        let (records, good) = match parse(&bytes) {
            Ok(parsed) => parsed,
            Err(reason) => return Ok(Found::Unreadable(reason)),
        };
        let begin = match records.first() {
            Some(Record::Begin(begin)) if (1..=FORMAT).contains(&begin.format) => (**begin).clone(),
            Some(Record::Begin(begin)) => {
                let known = format!("this program knows those up to {FORMAT}");
                return Ok(Found::Unreadable(format!("its format is {}, {known}", begin.format)));
            }
            _ => return Ok(Found::Unreadable("its first record is missing".into())),
        };
        let mut file = files::open_to_change(&path).with_context(|| format!("opening {}", path.display()))?;
        file.seek(SeekFrom::Start(good as u64))?;
        Ok(Found::Open(Box::new(Self { file, path, begin, records })))
    }

    /// Cuts off a torn last line, so that the next record starts on a line of its own.
    pub fn trim(&mut self) -> Result<()> {
        let good = self.file.stream_position()?;
        if self.file.metadata()?.len() != good {
            self.file.set_len(good)?;
            self.file.sync_all()?;
        }
        Ok(())
    }

    /// Closes the journal: nothing is under way any more.
    pub fn close(self) -> Result<()> {
        // A new version may have taken the whole folder away.
        fsx::remove_own_file(&self.path)?;
        if fsx::exists(self.path.parent().unwrap_or(&self.path))? { fsx::sync_parent(&self.path) } else { Ok(()) }
    }

    pub fn moves(&self) -> Option<&Moves> {
        self.records.iter().find_map(|r| match r {
            Record::Swapping { moves } => Some(moves),
            _ => None,
        })
    }
    /// The start of the new version: the boot, and who it was as far as that is known.
    pub fn starting(&self) -> Option<(&str, Option<ProcessId>)> {
        self.records.iter().rev().find_map(|r| match r {
            Record::Starting { boot, process } => Some((boot.as_str(), *process)),
            _ => None,
        })
    }
    /// The last start of the old version.
    pub fn starting_old(&self) -> Option<(&str, ProcessId)> {
        self.records.iter().rev().find_map(|r| match r {
            Record::StartingOld { boot, process } => Some((boot.as_str(), *process)),
            _ => None,
        })
    }
    /// The boot in which hooks began, and the data that they may write.
    pub fn hooking(&self) -> Option<(&str, &[RelPath])> {
        self.records.iter().find_map(|r| match r {
            Record::Hooking { boot, data } => Some((boot.as_str(), data.as_slice())),
            _ => None,
        })
    }
    /// What was decided about the data when the way back from a started version began.
    pub fn undoing(&self) -> Option<DataBack> {
        self.records.iter().rev().find_map(|r| match r {
            Record::Undoing { data } => Some(*data),
            _ => None,
        })
    }
    pub fn has(&self, wanted: fn(&Record) -> bool) -> bool {
        self.records.iter().any(wanted)
    }
    /// The recoveries that were tried and cut off or failed.
    pub fn attempts(&self) -> usize {
        let count = |wanted: fn(&&Record) -> bool| self.records.iter().filter(wanted).count();
        count(|r| matches!(r, Record::Attempt)).saturating_sub(count(|r| matches!(r, Record::Undecided)))
    }
}

/// The good records and the length of their bytes.
fn parse(bytes: &[u8]) -> std::result::Result<(Vec<Record>, usize), String> {
    let (mut records, mut at) = (Vec::new(), 0);
    let mut rest = bytes;
    while !rest.is_empty() {
        let end = rest.iter().position(|b| *b == b'\n');
        let (line, behind) = end.and_then(|end| rest.split_at_checked(end)).unwrap_or((rest, &[]));
        let behind = behind.strip_prefix(b"\n").unwrap_or_default();
        match end.and_then(|_| read_line(line)) {
            Some(record) => {
                records.push(record);
                rest = behind;
                at = bytes.len().saturating_sub(rest.len());
            }
            // Only the last line may be torn.
            None if behind.iter().all(|b| *b == 0) => break,
            None => return Err(format!("its record {} is damaged", records.len().saturating_add(1))),
        }
    }
    if records.is_empty() { Err("it holds no whole record".into()) } else { Ok((records, at)) }
}

fn read_line(line: &[u8]) -> Option<Record> {
    let text = std::str::from_utf8(line).ok()?;
    let (sum, json) = text.split_once(' ')?;
    (fsx::sha256(json.as_bytes()).get(..16) == Some(sum)).then(|| serde_json::from_str(json).ok())?
}

/// Sets an unreadable journal aside and leaves a marker; the failure names the command that clears it.
pub fn set_aside(state: &StateDir, reason: &str) -> Result<Failure> {
    let (path, marker) = (state.journal(), state.journal_marker());
    if fsx::exists(&path)? {
        let stamp = jiff::Timestamp::now().as_second();
        let aside = state.journal_set_aside(stamp);
        fsx::write_atomic(&marker, reason.as_bytes())?;
        files::rename_new(&path, &aside).with_context(|| format!("setting {} aside", path.display()))?;
        fsx::sync_parent(&path)?;
    }
    Ok(blocked(state, reason))
}

/// The failure that every changing command ends with while an unreadable journal waits for an operator.
pub fn blocked(state: &StateDir, reason: &str) -> Failure {
    let root = state.root().display();
    let remedy = if state.journal_marker().exists() {
        format!(
            "whether the tree is whole tells updater verify, and updater restore brings the newest backup back; both work again once you type: rm '{}'",
            state.journal_marker().display()
        )
    } else {
        format!("type: updater recover --root '{root}' (it sets the journal aside and says how to go on)")
    };
    let message = format!("an update was interrupted and its journal cannot be used: {reason}");
    Failure::operator("journal-unreadable", message).at(".updater/journal").remedy(remedy)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::string_slice
)]
mod tests {
    use super::*;
    use std::path::Path;

    fn begin(root: &Path) -> Begin {
        Begin {
            format: FORMAT,
            update_id: "u".into(),
            command: "apply".into(),
            root: root.into(),
            backup: "b".into(),
            backup_dir: RelPath::parse("backups").unwrap(),
            from_version: None,
            to_version: None,
            start_file: RelPath::parse("run.py").unwrap(),
            launch: None,
            was_running: false,
            service: None,
            before: Measure::default(),
            stop_timeout_ms: 1,
            health_timeout_ms: 1,
            soak_ms: 1,
        }
    }

    fn written(records: Vec<Record>) -> (tempfile::TempDir, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(&StateDir::at(folder.path()), begin(folder.path()), 4096).unwrap();
        for record in records {
            journal.append(record).unwrap();
        }
        let bytes = std::fs::read(folder.path().join("journal")).unwrap();
        (folder, bytes)
    }

    #[test]
    fn a_journal_torn_at_any_byte_gives_back_only_whole_records() {
        let (folder, bytes) = written(vec![Record::Stopping, Record::BackupWhole]);
        let whole_first = bytes.iter().position(|b| *b == b'\n').unwrap() + 1;
        for cut in 0..bytes.len() {
            std::fs::write(folder.path().join("journal"), &bytes[..cut]).unwrap();
            match Journal::find(&StateDir::at(folder.path())).unwrap() {
                Found::Open(mut journal) => {
                    assert!(cut >= whole_first);
                    journal.trim().unwrap();
                    journal.append(Record::Committed).unwrap();
                    drop(journal);
                    let Found::Open(again) = Journal::find(&StateDir::at(folder.path())).unwrap() else {
                        panic!("cut {cut}")
                    };
                    assert!(matches!(again.records.last(), Some(Record::Committed)));
                }
                Found::Unreadable(_) => assert!(cut < whole_first),
                Found::Nothing => panic!("a torn journal was taken for none"),
            }
        }
    }

    #[test]
    fn damage_before_the_last_line_is_unreadable_and_blocks_until_cleared() {
        let (folder, mut bytes) = written(vec![Record::Stopping, Record::BackupWhole]);
        bytes[30] ^= 1;
        std::fs::write(folder.path().join("journal"), &bytes).unwrap();
        let Found::Unreadable(reason) = Journal::find(&StateDir::at(folder.path())).unwrap() else {
            panic!("damage was accepted")
        };
        let failure = set_aside(&StateDir::at(folder.path()), &reason).unwrap();
        assert_eq!(failure.class as i32, 4);
        assert!(matches!(Journal::find(&StateDir::at(folder.path())).unwrap(), Found::Unreadable(_)));
        std::fs::remove_file(StateDir::at(folder.path()).journal_marker()).unwrap();
        assert!(matches!(Journal::find(&StateDir::at(folder.path())).unwrap(), Found::Nothing));
    }

    #[test]
    fn a_journal_of_before_units_is_read() {
        let (folder, _) = written(vec![]);
        let text = std::fs::read_to_string(folder.path().join("journal")).unwrap();
        let first = text.lines().next().unwrap().split_once(' ').unwrap().1.replace(",\"service\":null", "");
        assert!(!first.contains("service"));
        let starting = r#"{"state":"starting","boot":"b","process":{"pid":7,"start":9}}"#;
        let whole = [first.as_str(), starting].map(|l| format!("{} {l}\n", &fsx::sha256(l.as_bytes())[..16])).concat();
        std::fs::write(folder.path().join("journal"), whole).unwrap();
        let Found::Open(journal) = Journal::find(&StateDir::at(folder.path())).unwrap() else {
            panic!("an old journal is refused")
        };
        assert_eq!(journal.begin.service, None);
        assert_eq!(journal.starting(), Some(("b", Some(ProcessId { pid: 7, start: 9 }))));
    }

    #[test]
    fn a_newer_format_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let newer = Begin { format: FORMAT + 1, ..begin(folder.path()) };
        Journal::create(&StateDir::at(folder.path()), newer, 4096).unwrap();
        assert!(matches!(Journal::find(&StateDir::at(folder.path())).unwrap(), Found::Unreadable(_)));
    }
}
