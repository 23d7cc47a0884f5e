//! Verification: arrivals by identity right after the swap, the installed tree by hash against the
//! receipt, databases on scratch clones.
//! Refuses to open a live database or one in a backup: SQLite would change it.

use crate::app::carry;
use crate::backup;
use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::journal::Moves;
use crate::state::receipt::{Line, Receipt};
use crate::state::root::InstallRoot;
use crate::system::{FileType, interrupt};
use crate::update::bundle::Bundle;
use crate::update::ownership::{Class, Databases, Ownership, member};
use crate::update::staging::{self, StagedFile};
use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What an installed tree is, held against its receipt.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Findings {
    pub checked: usize,
    /// Program files that were changed: damage.
    pub modified: Vec<RelPath>,
    /// Shipped files that are gone: damage.
    pub missing: Vec<RelPath>,
    /// Other shipped files that differ: somebody's settings, say.
    pub changed_here: Vec<RelPath>,
    pub unknown: Vec<RelPath>,
}

impl Findings {
    pub fn is_whole(&self) -> bool {
        self.modified.is_empty() && self.missing.is_empty()
    }
}

/// Where a file of the new version lies after the swap: the start file still waits for the rest to be proven.
fn place(root: &InstallRoot, path: &RelPath, start_file: &RelPath) -> Result<PathBuf> {
    let waiting = staging::staged_path(root, &[], path);
    Ok(if path == start_file && fsx::exists(&waiting)? { waiting } else { root.join(path) })
}

/// The first arrival that is not the very file that was hashed in staging. None: all are.
pub fn altered_arrival(root: &InstallRoot, staged: &[StagedFile], start_file: &RelPath) -> Result<Option<RelPath>> {
    for one in staged {
        let live = place(root, &one.path, start_file)?;
        let is = fsx::metadata(&live)?;
        let same = is.is_some_and(|f| {
            (f.inode, f.size, f.mtime, f.kind)
                == (one.metadata.inode, one.metadata.size, one.metadata.mtime, one.metadata.kind)
        });
        if !same && !fsx::has_sha256(&live, &one.sha256)? {
            return Ok(Some(one.path.clone()));
        }
    }
    Ok(None)
}

/// The first saved file that is not what the server left, of those that `counts`. None: all are.
pub fn altered_data(
    root: &InstallRoot,
    record: &backup::Record,
    counts: &dyn Fn(&RelPath) -> bool,
) -> Result<Option<RelPath>> {
    for line in record.files.iter().filter(|l| counts(&l.path)) {
        let is = fsx::metadata(&root.join(&line.path))?;
        if is.is_some_and(|is| fsx::is_unchanged(&line.metadata, &is)) {
            continue;
        }
        let same = is.is_some_and(|is| (is.mode, is.owner) == (line.metadata.mode, line.metadata.owner));
        if !same || !fsx::has_sha256(&root.join(&line.path), &line.sha256)? {
            return Ok(Some(line.path.clone()));
        }
    }
    // A log beside a database is a part of what it holds.
    let databases = record.databases();
    let known: BTreeSet<&RelPath> = record.files.iter().map(|line| &line.path).collect();
    let mains = record.files.iter().filter_map(|l| databases.main_of(&l.path)).filter(|main| counts(main));
    for main in mains.collect::<BTreeSet<_>>() {
        for path in ["-wal", "-journal"].map(|ending| member(&main, ending)).iter().filter(|path| !known.contains(path))
        {
            if fsx::metadata(&root.join(path))?
                .is_some_and(|metadata| metadata.kind == FileType::File && metadata.size > 0)
            {
                return Ok(Some(path.clone()));
            }
        }
    }
    Ok(None)
}

/// The large files that were not saved and are no longer what they were at the stop. Of one that has its size and time
/// again, the time of its last change tells that somebody wrote in it, or dressed it otherwise.
pub fn altered_unsaved(root: &InstallRoot, record: &backup::Record) -> Result<Vec<RelPath>> {
    let mut altered = Vec::new();
    for watched in &record.watched {
        let is = fsx::metadata(&root.join(&watched.path))?;
        let look = |metadata: &crate::system::FileMetadata| {
            (metadata.kind, metadata.size, metadata.mtime, metadata.ctime, metadata.inode)
        };
        if is.as_ref().map(look) != Some(look(&watched.metadata)) {
            altered.push(watched.path.clone());
        }
    }
    Ok(altered)
}

/// What a swap brought, and what it must have left alone.
#[derive(Clone, Copy)]
pub struct Arrival<'a> {
    /// Every file that arrived.
    pub files: &'a [StagedFile],
    /// What the backup holds.
    pub record: &'a backup::Record,
    pub moves: &'a Moves,
    /// It waits in staging until all else is proven.
    pub start_file: &'a RelPath,
}

/// Right after the swap: every arrival is the very file that was hashed in staging, every critical
/// file is there, and what was saved and not moved is what the server left.
pub fn arrived(root: &InstallRoot, arrival: &Arrival, critical: &[RelPath]) -> Result<()> {
    let Arrival { files, record, moves, start_file } = *arrival;
    if let Some(path) = altered_arrival(root, files, start_file)? {
        return Err(Failure::failed(Code::BadFile, format!("{path} is not what was staged")).at(&path).into());
    }
    for path in critical {
        if !fsx::exists(&place(root, path, start_file)?)? {
            return Err(Failure::failed(
                Code::CriticalMissing,
                format!("the critical file {path} is missing after the swap"),
            )
            .at(path)
            .remedy("the bundle must hold it, or it must be taken out of [verify] critical")
            .into());
        }
    }
    let moved: BTreeSet<&RelPath> = moves.moves.iter().map(|m| &m.path).collect();
    if let Some(path) = altered_data(root, record, &|path| !moved.contains(path))? {
        return Err(Failure::failed(Code::DataChanged, format!("{path} changed while the server was stopped"))
            .at(&path)
            .remedy("find out what else writes there, and try again")
            .into());
    }
    Ok(())
}

/// Holds the installed tree against the receipt. `quick` compares size and time alone, and looks for nothing unknown.
pub fn installed(
    ownership: &Ownership,
    receipt: &Receipt,
    kept_bundle: &mut Option<Bundle>,
    quick: bool,
) -> Result<Findings> {
    let mut findings = Findings::default();
    for line in &receipt.files {
        interrupt::check()?;
        findings.checked += 1;
        match standing(ownership, receipt, line, kept_bundle, quick)? {
            Standing::Whole => {}
            Standing::Missing => findings.missing.push(line.path.clone()),
            Standing::Modified => findings.modified.push(line.path.clone()),
            Standing::ChangedHere => findings.changed_here.push(line.path.clone()),
        }
    }
    if !quick {
        findings.unknown = unknown(ownership, receipt)?;
    }
    Ok(findings)
}

/// What became of a shipped file.
enum Standing {
    Whole,
    Missing,
    /// A program file was changed.
    Modified,
    ChangedHere,
}

fn standing(
    ownership: &Ownership,
    receipt: &Receipt,
    line: &Line,
    kept_bundle: &mut Option<Bundle>,
    quick: bool,
) -> Result<Standing> {
    let path = ownership.root.join(&line.path);
    // At a data path the users decide what becomes of a file, and so they do of a database.
    let is_users = ownership.rules.is_data(&line.path, false) || line.is_database || Databases::is_named(&line.path);
    let Some(metadata) = fsx::metadata(&path)? else {
        return Ok(if is_users { Standing::Whole } else { Standing::Missing });
    };
    let is_plain = matches!(metadata.kind, FileType::File | FileType::Link);
    let by_look = metadata.size == line.size && metadata.mtime == line.mtime;
    if is_users || (is_plain && quick && by_look) || fsx::has_sha256(&path, &line.sha256)? {
        return Ok(Standing::Whole);
    }
    if is_plain && differs_in_settings_alone(ownership, line, kept_bundle)? {
        return Ok(Standing::Whole);
    }
    let is_program = line.path == receipt.start_file || !is_plain || ownership.is_program(&line.path)?;
    Ok(if is_program { Standing::Modified } else { Standing::ChangedHere })
}

/// A carried file whose only difference lies in the settings that the operator may change.
fn differs_in_settings_alone(ownership: &Ownership, line: &Line, kept: &mut Option<Bundle>) -> Result<bool> {
    if ownership.rules.merge.contains(&line.path) {
        return Ok(true);
    }
    let (Some(names), Some(bundle)) = (ownership.rules.carry.get(&line.path), kept) else { return Ok(false) };
    let Some(index) = bundle.entries.iter().position(|e| e.path == line.path) else { return Ok(false) };
    let Some(live) = fsx::read_at_most(&ownership.root.join(&line.path), carry::MAX_SIZE)? else { return Ok(false) };
    if bundle.entries.get(index).is_none_or(|entry| entry.size > carry::MAX_SIZE) {
        return Ok(false);
    }
    let shipped = bundle.read_entry(index, carry::MAX_SIZE)?;
    Ok(carry::differs_in_settings_alone(&shipped, &live, names))
}

/// Files inside the version's folders that no version shipped and no rule names.
fn unknown(ownership: &Ownership, receipt: &Receipt) -> Result<Vec<RelPath>> {
    let known: BTreeSet<&RelPath> = receipt.files.iter().map(|l| &l.path).collect();
    let tops: BTreeSet<RelPath> =
        receipt.files.iter().filter(|l| l.path.parent().is_some()).map(|l| l.path.top()).collect();
    let census = ownership.census(None)?;
    let is_unknown = |path: &RelPath| {
        !known.contains(path)
            && path.parent().is_some()
            && tops.contains(&path.top())
            && !ownership.rules.is_data(path, false)
            && census.databases.main_of(path).is_none()
    };
    Ok(census.of(Class::Data).map(|(path, _)| path).filter(|path| is_unknown(path)).cloned().collect())
}

/// One database, checked on a clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Database {
    pub path: RelPath,
    pub ok: bool,
    pub tables: BTreeMap<String, i64>,
    /// Of the main file, in bytes.
    #[serde(skip)]
    pub size: u64,
}

/// Clones a database below `base`, an install or a backup (main file, write-ahead log and rollback journal, never the shared memory) into a
/// private folder of its own in `scratch`, runs `quick_check` and counts the rows of `tables`; the clone is deleted.
/// A file that is no database at all (empty or another format) counts as damaged unless it is empty.
pub fn check_database(base: &Path, main: &RelPath, tables: &[String], scratch: &Path) -> Result<Database> {
    let mut found = Database { path: main.clone(), ok: true, tables: BTreeMap::new(), size: 0 };
    let live = base.join(main.to_path());
    match fsx::metadata(&live)? {
        Some(metadata) if metadata.size > 0 && metadata.kind == FileType::File => found.size = metadata.size,
        _ => return Ok(found),
    }
    match on_clone(&live, scratch, |clone| examine(clone, tables))? {
        Ok(counts) => found.tables = counts,
        Err(_) => found.ok = false,
    }
    Ok(found)
}

/// Clones a database set into a private folder of its own, lets `look` open the clone, and deletes it.
/// Errors: the clone cannot be made; inside: what `look` says.
fn on_clone<T>(main: &Path, scratch: &Path, look: impl FnOnce(&Path) -> Result<T>) -> Result<Result<T>> {
    let folder = tempfile::Builder::new().prefix("updater-check-").tempdir_in(scratch);
    let folder = folder.with_context(|| format!("making a folder in {}", scratch.display()))?;
    let clone = folder.path().join("clone.db");
    for ending in ["", "-wal", "-journal"] {
        let (mut from, mut to) = (main.to_path_buf().into_os_string(), clone.clone().into_os_string());
        from.push(ending);
        to.push(ending);
        anyhow::ensure!(
            fsx::copy_scratch(Path::new(&from), Path::new(&to))? || !ending.is_empty(),
            "{} is gone",
            main.display()
        );
    }
    let seen = look(&clone);
    folder.close().context("removing the clone of a database")?;
    Ok(seen)
}

/// What a database holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Tables, indexes, views and triggers, with their SQL.
    pub schema: BTreeMap<String, String>,
    /// Rows of each table.
    pub rows: BTreeMap<String, i64>,
}

/// Schema and row counts of a database, live or saved, read from a clone. Errors: it is damaged.
pub fn contents(main: &Path, scratch: &Path) -> Result<Contents> {
    on_clone(main, scratch, |clone| {
        let db = open(clone)?;
        let mut found = Contents::default();
        // What SQLite keeps for itself is no schema of the program's.
        let mut ask = db.prepare(
            "SELECT type, name, ifnull(sql, '') FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
        )?;
        let mut rows = ask.query([])?;
        while let Some(row) = rows.next()? {
            let (kind, name, sql): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            if kind == "table" {
                found.rows.insert(name.clone(), count(&db, &name)?);
            }
            found.schema.insert(format!("{kind} {name}"), sql);
        }
        Ok(found)
    })?
}

/// Opens a clone, such that long work on it ends when somebody asks us to end.
fn open(clone: &Path) -> Result<rusqlite::Connection> {
    /// How many steps of its machine SQLite makes between two looks: some milliseconds at most.
    const STEPS: i32 = 10_000;
    let mut db = rusqlite::Connection::open(clone)?;
    db.progress_handler(STEPS, Some(|| interrupt::check().is_err()))?;
    Ok(db)
}

fn count(db: &rusqlite::Connection, table: &str) -> Result<i64> {
    let quoted = table.replace('"', "\"\"");
    Ok(db.query_row(&format!("SELECT count(*) FROM \"{quoted}\""), [], |row| row.get(0))?)
}

/// Row counts of the wanted tables. Errors: the database is damaged.
fn examine(clone: &Path, tables: &[String]) -> Result<BTreeMap<String, i64>> {
    let db = open(clone)?;
    let verdict: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    anyhow::ensure!(verdict == "ok", "{verdict}");
    let mut counts = BTreeMap::new();
    for table in tables {
        let there: i64 =
            db.query_row("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?1", [table], |row| {
                row.get(0)
            })?;
        if there > 0 {
            counts.insert(table.clone(), count(&db, table)?);
        }
    }
    Ok(counts)
}
