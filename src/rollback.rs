//! Rollback: the way back from any failure after the stop, by the journal alone; `recover` takes the
//! same way after a kill. Data first, then code, the start file last.
//! Refuses to drop anything: what the new version wrote goes to the backup's `after/`.

use crate::backup;
use crate::error::Failure;
use crate::fsx;
use crate::hooks::{self, Before};
pub use crate::journal::DataBack;
use crate::journal::{Journal, Moves, Record};
use crate::os::{Facts, Kind, files};
use crate::ownership::{Databases, MEMBERS, member};
use crate::path::{InstallRoot, RelPath};
use crate::staging;
use crate::swap;
use crate::verify;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// The folder of the backup that this update made.
pub fn backup_dir(root: &InstallRoot, journal: &Journal) -> PathBuf {
    root.join(&journal.begin.backup_dir).join(&journal.begin.backup)
}

/// Brings the tree back to the old version. After `data-restored` no data is ever put back again. Returns the large
/// files that nobody saved and that were altered since the stop.
pub fn undo(root: &InstallRoot, journal: &mut Journal, data: DataBack) -> Result<Vec<RelPath>> {
    let dir = backup_dir(root, journal);
    let start_file = journal.begin.start_file.clone();
    staging::release_reserve(&root.own())?;
    let mut altered = Vec::new();
    if let Some(mut moves) = journal.moves().cloned() {
        let restored = journal.has(|r| matches!(r, Record::DataRestored));
        let before = journal.hooking().map(|_| Before::load(&root.own())).transpose()?;
        // From here on the tree of a version that was started is no longer whole.
        if !restored && journal.starting().is_some() && journal.undoing() != Some(data) {
            journal.append(Record::Undoing { data })?;
        }
        if let Some(before) = &before {
            before.mend_folders(root, &swap::after(&dir))?;
            let made = made_by_hooks(root, before, &moves)?;
            swap::hide_start_file(root, &moves, &start_file, &dir)?;
            let databases = backup::load(&dir).map(|record| record.databases()).unwrap_or_default();
            let with_data = data == DataBack::Restored && !restored;
            take_away_made(root, before, &made, with_data.then_some(&databases), &dir)?;
        }
        if data == DataBack::Restored && !restored {
            let record = backup::load(&dir).map_err(|e| backup_lost(root, &dir, &e))?;
            swap::hide_start_file(root, &moves, &start_file, &dir)?;
            data_back(root, &dir, &record, &moves)?;
            journal.append(Record::DataRestored)?;
        }
        if data == DataBack::Kept {
            moves.moves.retain(|m| !m.data);
        }
        swap::undo(root, &moves, &start_file, &dir)?;
        if before.is_some() {
            program_back(root, &dir, &start_file, data)?;
        }
        if data == DataBack::Restored
            && let Ok(record) = backup::load(&dir)
        {
            folders_back(root, &record)?;
            altered = verify::altered_unsaved(root, &record)?;
        }
        swap::undo_start(root, &moves, &start_file, &dir)?;
    }
    journal.append(Record::RolledBack)?;
    Ok(altered)
}

/// Makes folders again that were removed, and gives those back their owner and mode that were changed.
fn folders_back(root: &InstallRoot, record: &backup::Record) -> Result<()> {
    for folder in &record.folders {
        let path = root.join(&folder.path);
        let is = fsx::facts(&path)?;
        if is.is_none() {
            fs_err::create_dir(&path)?;
        }
        let same = is.is_some_and(|is| (is.mode, is.owner) == (folder.mode, folder.owner));
        // Where something else took its place, that is a file of somebody's, which stays.
        if same || is.is_some_and(|is| is.kind != Kind::Folder) {
            continue;
        }
        match files::set_owner(&path, folder.owner) {
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {}
            given => given.with_context(|| format!("giving {} its owner", folder.path))?,
        }
        files::set_mode(&path, folder.mode).with_context(|| format!("setting the mode of {}", folder.path))?;
    }
    Ok(())
}

/// Without the backup nobody but a person can say that what is there now is good enough.
fn backup_lost(root: &InstallRoot, dir: &std::path::Path, e: &anyhow::Error) -> Failure {
    let message = format!("the backup from which data and program are put back is gone or damaged: {e:#}");
    Failure::operator("backup-lost", message).at(dir.display()).remedy(format!(
        "bring its folder back and type: updater recover --root '{0}'; or go on with the data as they are now: updater \
         recover --data keep --root '{0}'",
        root.path().display()
    ))
}

/// What hooks made: as it was kept at their end, or looked for now, once, before anything moves (where they had not
/// ended nobody else can have made anything). What the swap moved is not theirs.
fn made_by_hooks(root: &InstallRoot, before: &Before, moves: &Moves) -> Result<Vec<RelPath>> {
    let own = root.own();
    let mut made = match hooks::load_made(&own)? {
        Some(made) => made,
        None => {
            let made = before.made(root)?;
            hooks::store_made(&own, &made)?;
            made
        }
    };
    made.retain(|path| !moves.moves.iter().any(|m| m.path.is_within(path)));
    Ok(made)
}

/// What hooks made is no user's: it goes to `after`, so that the old version finds what it left. With `data` None
/// what they made among the data stays; else these are the databases.
fn take_away_made(
    root: &InstallRoot,
    before: &Before,
    made: &[RelPath],
    data: Option<&Databases>,
    backup: &std::path::Path,
) -> Result<()> {
    let after = &swap::after(backup);
    for path in made.iter().filter(|path| data.is_some() || !before.is_data(path)) {
        // The shared memory and the logs of a database that was made belong to it, whoever wrote them.
        let set = data.and_then(|databases| databases.main_of(path)).filter(|main| main == path);
        let members = set.iter().flat_map(|main| MEMBERS.map(|ending| member(main, ending)));
        for path in members.chain([path.clone()]) {
            if fsx::exists(&root.join(&path))? {
                swap::set_aside(&root.join(&path), after, &path)?;
            }
        }
    }
    Ok(())
}

/// Puts back what was altered or deleted: whole database sets, and single files, also of the version where the swap
/// did not move them. Newer files stay.
fn data_back(root: &InstallRoot, dir: &std::path::Path, record: &backup::Record, moves: &Moves) -> Result<()> {
    let after = swap::after(dir);
    let databases = record.databases();
    // What the swap itself merged or added is the undo's, not ours.
    let swapped: BTreeSet<&RelPath> = moves.moves.iter().map(|m| &m.path).collect();
    let mut sets = BTreeSet::new();
    for line in record.files.iter().filter(|l| !swapped.contains(&l.path)) {
        if let Some(main) = databases.main_of(&line.path) {
            sets.insert(main);
        } else if differs(root, dir, line)? {
            put_back(root, dir, line, &after)?;
        }
    }
    sets.extend(moves.moves.iter().filter(|m| m.data).filter_map(|m| databases.main_of(&m.path)));
    for main in sets {
        set_back(root, dir, record, &main, &swapped)?;
    }
    Ok(())
}

/// Hooks may have written anywhere: what they altered of the old version beside what the swap moved is put back, and
/// what they deleted of the users'. What of the users' was altered may have been so by the users.
fn program_back(root: &InstallRoot, dir: &std::path::Path, start_file: &RelPath, data: DataBack) -> Result<()> {
    let record = match backup::load(dir) {
        // Somebody decided to go on without it.
        Err(_) if data == DataBack::Kept => return Ok(()),
        loaded => loaded.map_err(|e| backup_lost(root, dir, &e))?,
    };
    let is_gone = |line: &backup::Line| fsx::exists(&root.join(&line.path)).is_ok_and(|is_there| !is_there);
    for line in record.files.iter().filter(|l| l.path != *start_file && (!l.data || is_gone(l))) {
        if differs(root, dir, line)? {
            put_back(root, dir, line, &swap::after(dir))?;
        }
    }
    Ok(())
}

/// The name under which data waits to take its place.
const DATA_BACK: &str = ".updater-data-back";

/// Whether the contents differ. Where only owner, mode or access lists do, they are set again.
fn differs(root: &InstallRoot, dir: &std::path::Path, line: &backup::Line) -> Result<bool> {
    let live = root.join(&line.path);
    Ok(match fsx::facts(&live)? {
        None => true,
        Some(is) if fsx::is_unchanged(&line.facts, &is) => false,
        Some(_) if !fsx::holds(&live, &line.sha256)? => true,
        Some(is) => {
            let saved = dir.join(line.saved_at().to_path());
            let same = || files::same_attributes(&live, &saved).unwrap_or(true);
            if (is.mode, is.owner) != (line.facts.mode, line.facts.owner) || !same() {
                fsx::dress_like(&saved, &live, &line.facts)?;
            }
            false
        }
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
    let after = &swap::after(dir);
    let (mut changed, mut saved, mut extra) = (false, Vec::new(), Vec::new());
    for ending in ["", "-wal", "-journal"] {
        let path = member(main, ending);
        if swapped.contains(&path) {
            changed = true;
            continue;
        }
        match record.files.iter().find(|l| l.path == path) {
            Some(line) => {
                changed |= differs(root, dir, line)?;
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
        if differs(root, dir, line)? {
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
    let saved = dir.join(line.saved_at().to_path());
    let facts = Facts {
        kind: line.facts.kind,
        ..files::facts(&saved).with_context(|| format!("looking at {}", saved.display()))?
    };
    let sum = fsx::copy(&saved, &copy, &facts)?;
    anyhow::ensure!(sum == line.sha256, "the backup's {} is damaged", line.path);
    fsx::dress_like(&saved, &copy, &line.facts)?;
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
