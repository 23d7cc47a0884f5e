//! The journal: what this update intends and how far it came, one flushed line a state, from which
//! alone an interrupted update is finished or undone.
//! Refuses to interpret: `recover` and `rollback` decide what a state means.
//!
//! `.updater/journal`: lines of `SUM JSON`, SUM being the first 16 hex digits of the JSON's SHA-256.
//! A last line that is torn was never acted on (each line is flushed before what it announces), so it
//! is dropped; damage anywhere else makes the journal unreadable, which is never taken for "none".
#![deny(clippy::indexing_slicing, clippy::string_slice, clippy::arithmetic_side_effects)]

mod progress;
mod records;

use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::state::dir::StateDir;
use crate::system::files;
use anyhow::{Context, Result};
pub use progress::{HooksBegun, Phase, Progress, Start};
pub use records::{
    Annex, Arrival, Away, Baselines, Begin, DataPolicy, Exchange, FORMAT, Folder, Intent, Moves, Record,
};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;

/// An open journal.
pub struct Journal {
    file: File,
    path: PathBuf,
    /// A record that could not be written could not be cut off either: no further one would be read.
    is_torn: bool,
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
        Ok(Self { file, path, is_torn: false, begin, records: vec![record] })
    }

    /// Appends a state; it is on the disk when this returns.
    pub fn append(&mut self, record: Record) -> Result<()> {
        let name = || format!("writing the journal {}", self.path.display());
        anyhow::ensure!(
            !self.is_torn,
            "{} ends in a torn record, so nothing more is written to it",
            self.path.display()
        );
        let good = self.file.stream_position().with_context(name)?;
        let written = self.file.write_all(&line(&record)?).and_then(|()| self.file.sync_data());
        if let Err(e) = written {
            // A record that is torn would make those after it unreadable.
            let cut = self.file.set_len(good).and_then(|()| self.file.seek(SeekFrom::Start(good)));
            self.is_torn = cut.is_err();
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
            Err(e) if is_of_the_system(&e) => return Err(e).with_context(|| format!("reading {}", path.display())),
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
        Ok(Found::Open(Box::new(Self { file, path, is_torn: false, begin, records })))
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

    /// Every move of the swap, once they are named.
    pub fn moves(&self) -> Option<&Moves> {
        self.records.iter().find_map(|r| match r {
            Record::Swapping { moves } => Some(moves),
            _ => None,
        })
    }
    /// How far the update came, told by all records together.
    pub fn progress(&self) -> Progress {
        Progress::of(&self.records)
    }
}

/// True for an error that says nothing of the journal itself: it may be whole, and the next try may read it (EIO, EMFILE).
fn is_of_the_system(e: &std::io::Error) -> bool {
    e.raw_os_error().is_some()
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
    Failure::operator(Code::JournalUnreadable, message).at(".updater/journal").remedy(remedy)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::string_slice)]
mod tests {
    use super::*;
    use crate::base::path::RelPath;
    use crate::system::ProcessId;
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
            new_launch: None,
            was_running: false,
            service: None,
            before: Baselines::default(),
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
        assert_eq!(
            journal.progress().started,
            Some(Start { boot: "b".into(), process: Some(ProcessId { pid: 7, start: 9 }) })
        );
    }

    #[test]
    fn a_newer_format_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let newer = Begin { format: FORMAT + 1, ..begin(folder.path()) };
        Journal::create(&StateDir::at(folder.path()), newer, 4096).unwrap();
        assert!(matches!(Journal::find(&StateDir::at(folder.path())).unwrap(), Found::Unreadable(_)));
    }

    #[test]
    fn an_error_of_the_system_is_no_damage_of_the_journal() {
        // EIO, EMFILE
        for number in [5, 24] {
            assert!(is_of_the_system(&std::io::Error::from_raw_os_error(number)));
        }
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::at(folder.path());
        std::fs::create_dir(state.journal()).unwrap();
        assert!(matches!(Journal::find(&state).unwrap(), Found::Unreadable(_)));
    }

    #[test]
    fn nothing_is_written_after_a_record_that_could_not_be_cut_off() {
        let (folder, bytes) = written(vec![Record::Stopping]);
        let state = StateDir::at(folder.path());
        let Found::Open(mut journal) = Journal::find(&state).unwrap() else { panic!("not read") };
        // Neither written nor cut off: it is open for reading alone.
        journal.file = File::open(state.journal()).unwrap();
        journal.file.seek(SeekFrom::End(0)).unwrap();
        assert!(journal.append(Record::BackupWhole).is_err());
        assert!(journal.is_torn);
        journal.file = File::options().append(true).open(state.journal()).unwrap();
        assert!(journal.append(Record::BackupWhole).unwrap_err().to_string().contains("torn record"));
        assert_eq!(std::fs::read(state.journal()).unwrap(), bytes);
    }
}
