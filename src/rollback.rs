//! Rollback: the way back from any failure after the stop, by the journal alone; `recover` takes the
//! same way after a kill. Data first, then code, the start file last.
//! Refuses to drop anything: what the new version wrote goes to the backup's `after/`.

use crate::backup;
use crate::fsx;
pub use crate::journal::DataBack;
use crate::journal::{Journal, Moves, Record};
use crate::os::{Facts, Kind, files};
use crate::path::{InstallRoot, RelPath};
use crate::preserve::{MEMBERS, Preserve, database_set, member};
use crate::staging;
use crate::swap;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// The folder of the backup that this update made.
pub fn backup_dir(root: &InstallRoot, journal: &Journal) -> PathBuf {
    root.join(&journal.begin.backup_dir).join(&journal.begin.backup)
}

/// Brings the tree back to the old version. After `data-restored` no data is ever put back again.
pub fn undo(root: &InstallRoot, journal: &mut Journal, data: DataBack) -> Result<()> {
    let dir = backup_dir(root, journal);
    let after = dir.join("after");
    let start_file = journal.begin.start_file.clone();
    staging::release_reserve(&root.own())?;
    if let Some(mut moves) = journal.moves().cloned() {
        let restored = journal.has(|r| matches!(r, Record::DataRestored));
        // From here on the tree of a version that was started is no longer whole.
        if !restored && journal.starting().is_some() && journal.undoing() != Some(data) {
            journal.append(Record::Undoing { data })?;
        }
        if data == DataBack::Restored && !restored {
            let record = backup::load(&dir).context("the data cannot be put back")?;
            swap::hide_start_file(root, &moves, &start_file, &after)?;
            take_away_made(root, journal, &record, &moves, &after)?;
            data_back(root, &dir, &record, &moves)?;
            journal.append(Record::DataRestored)?;
        }
        if data == DataBack::Kept {
            moves.moves.retain(|m| !m.data);
        }
        swap::undo(root, &moves, &start_file, &after)?;
        if journal.hooking().is_some() {
            program_back(root, &dir, &start_file)?;
        }
        swap::undo_start(root, &moves, &start_file, &after)?;
    }
    journal.append(Record::RolledBack)?;
    Ok(())
}

/// What hooks made among the data is no user's: it goes to `after`, so that the old version finds what it left.
fn take_away_made(
    root: &InstallRoot,
    journal: &Journal,
    record: &backup::Record,
    moves: &Moves,
    after: &std::path::Path,
) -> Result<()> {
    let made = match (journal.made(), journal.hooking()) {
        (Some(made), _) => made.to_vec(),
        // Cut off while they ran: nobody else can have written meanwhile.
        (None, Some((_, data))) => made_in(root, data, record, moves)?,
        (None, None) => Vec::new(),
    };
    for path in made {
        let set = database_set(&path).filter(|main| *main == path);
        let members = set.iter().flat_map(|main| MEMBERS.map(|ending| member(main, ending)));
        for path in members.chain([path.clone()]) {
            if fsx::exists(&root.join(&path))? {
                swap::set_aside(&root.join(&path), after, &path)?;
            }
        }
    }
    Ok(())
}

/// The files below `data` that were not there at the stop, and that no move of the swap brought. A part of a database
/// of which another part was there belongs to that, and goes back with it.
pub fn made_in(root: &InstallRoot, data: &[RelPath], record: &backup::Record, moves: &Moves) -> Result<Vec<RelPath>> {
    let mut known: BTreeSet<&RelPath> = record.files.iter().map(|line| &line.path).collect();
    known.extend(moves.moves.iter().filter(|m| m.new.is_some()).map(|m| &m.path));
    let own = Preserve::new(false, &[], false)?;
    let mut made = BTreeSet::new();
    for top in data {
        for item in walkdir::WalkDir::new(root.join(top)).follow_links(false) {
            let item = match item {
                Ok(item) => item,
                Err(e) if e.io_error().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound) => continue,
                Err(e) => return Err(e).with_context(|| format!("reading {top}")),
            };
            let is_folder = item.file_type().is_dir();
            let Some(path) = item.path().strip_prefix(root.path()).ok().and_then(RelPath::from_disk) else { continue };
            let of_known = database_set(&path)
                .is_some_and(|main| MEMBERS.iter().any(|ending| known.contains(&member(&main, ending))));
            if !is_folder && !known.contains(&path) && !of_known && own.class_of(&path, false).is_none() {
                made.insert(path);
            }
        }
    }
    Ok(made.into_iter().collect())
}

/// Puts data back that was altered or deleted: whole database sets, and single files. Newer files stay.
fn data_back(root: &InstallRoot, dir: &std::path::Path, record: &backup::Record, moves: &Moves) -> Result<()> {
    let after = dir.join("after");
    // What the swap itself merged or added is the undo's, not ours.
    let swapped: BTreeSet<&RelPath> = moves.moves.iter().map(|m| &m.path).collect();
    let mut sets = BTreeSet::new();
    for line in record.files.iter().filter(|l| l.data && !swapped.contains(&l.path)) {
        if let Some(main) = database_set(&line.path) {
            sets.insert(main);
        } else if differs(root, line)? {
            put_back(root, dir, line, &after)?;
        }
    }
    sets.extend(moves.moves.iter().filter(|m| m.data).filter_map(|m| database_set(&m.path)));
    for main in sets {
        set_back(root, dir, record, &main, &swapped)?;
    }
    Ok(())
}

/// Hooks may have written anywhere: what they altered of the old version beside what the swap moved is put back.
fn program_back(root: &InstallRoot, dir: &std::path::Path, start_file: &RelPath) -> Result<()> {
    let record = backup::load(dir).context("the program cannot be put back")?;
    for line in record.files.iter().filter(|l| !l.data && l.path != *start_file) {
        if differs(root, line)? {
            put_back(root, dir, line, &dir.join("after"))?;
        }
    }
    Ok(())
}

/// The name under which data waits to take its place.
const DATA_BACK: &str = ".updater-data-back";

fn differs(root: &InstallRoot, line: &backup::Line) -> Result<bool> {
    Ok(match fsx::facts(&root.join(&line.path))? {
        None => true,
        Some(is) if fsx::is_unchanged(&line.facts, &is) => false,
        Some(is) if is.kind == Kind::Folder => true,
        Some(_) => fsx::sha256_of(&root.join(&line.path))? != line.sha256,
    })
}

/// A database and its log only make sense together: one changed member puts the whole set back, and
/// the shared memory, which is rebuilt from them, is taken away. A set of which the swap moved a member
/// counts as changed; that member is the undo's.
fn set_back(
    root: &InstallRoot,
    dir: &std::path::Path,
    record: &backup::Record,
    main: &RelPath,
    swapped: &BTreeSet<&RelPath>,
) -> Result<()> {
    let after = &dir.join("after");
    let (mut changed, mut saved, mut extra) = (false, Vec::new(), Vec::new());
    for ending in ["", "-wal", "-journal"] {
        let path = member(main, ending);
        if swapped.contains(&path) {
            changed = true;
            continue;
        }
        match record.files.iter().find(|l| l.data && l.path == path) {
            Some(line) => {
                changed |= differs(root, line)?;
                saved.push(line);
            }
            None if fsx::exists(&root.join(&path))? => {
                // An empty log left by a clean close says nothing.
                let empty = fsx::facts(&root.join(&path))?.is_some_and(|f| f.size == 0);
                changed |= !empty;
                extra.push(path);
            }
            None => {}
        }
    }
    if !changed {
        return Ok(());
    }
    if !swapped.contains(&member(main, "-shm")) {
        extra.push(member(main, "-shm"));
    }
    for path in &extra {
        if fsx::exists(&root.join(path))? {
            swap::set_aside(&root.join(path), after, path)?;
        }
    }
    for line in saved {
        if differs(root, line)? {
            put_back(root, dir, line, after)?;
        }
    }
    Ok(())
}

/// Copies the saved file beside its place (on its volume, whichever that is), moves the altered one to
/// `after/`, and the copy into its place. A copy that is cut off is made again by the next try.
fn put_back(root: &InstallRoot, dir: &std::path::Path, line: &backup::Line, after: &std::path::Path) -> Result<()> {
    let live = root.join(&line.path);
    let copy = live.with_file_name(DATA_BACK);
    fsx::remove_own_file(&copy)?;
    let saved = dir.join(line.path.to_path());
    let facts = Facts {
        kind: line.facts.kind,
        ..files::facts(&saved).with_context(|| format!("looking at {}", saved.display()))?
    };
    let sum = fsx::copy(&saved, &copy, &facts)?;
    anyhow::ensure!(sum == line.sha256, "the backup's {} is damaged", line.path);
    fsx::dress(&copy, &line.facts)?;
    if fsx::exists(&live)? {
        swap::set_aside(&live, after, &line.path)?;
    }
    if let Some(parent) = live.parent() {
        fsx::make_folders(parent)?;
    }
    files::rename_new(&copy, &live).with_context(|| format!("putting {} back", line.path))?;
    fsx::sync_parent(&live)
}

/// Cleans up after a finished update, in either direction. Called only once the journal says so.
pub fn clean_up(root: &InstallRoot, journal: Journal) -> Result<()> {
    tidy(root, &journal)?;
    journal.close()
}

/// The same, but the journal stays open: what stands is whole, and its health is not proven yet.
pub fn tidy(root: &InstallRoot, journal: &Journal) -> Result<()> {
    let own = root.own();
    let committed = journal.has(|r| matches!(r, Record::Committed));
    if committed {
        for (from, to) in [("staging/receipt.json", "receipt.json"), ("staging/bundle.zip", "bundle.zip")] {
            if fsx::exists(&own.join(from))? {
                files::rename_over(&own.join(from), &own.join(to)).with_context(|| format!("placing {to}"))?;
            }
        }
        fsx::sync_parent(&own.join("receipt.json"))?;
    } else {
        backup::mark_failed(&backup_dir(root, journal))?;
    }
    sweep(&own)
}

/// Removes what runs that have ended left in `.updater`. Called only when no journal refers to it.
pub fn sweep(own: &std::path::Path) -> Result<()> {
    fsx::remove_own_tree(&staging::trash(own))?;
    fsx::remove_own_tree(&staging::originals(own))?;
    staging::clear(own)?;
    backup::clear_discarded(own)?;
    fsx::remove_own_tree(&own.join("downloads"))?;
    // Files that were never renamed into their places.
    for item in fs_err::read_dir(own)? {
        let path = item?.path();
        if path.extension().is_some_and(|ending| ending == "new" || ending == "tmp") {
            fsx::remove_own_file(&path)?;
        }
    }
    Ok(())
}
