//! The contents of the way back: what was altered or deleted since the stop is put back from the backup, by hash.
//! Refuses to drop what stands in the way: it goes to the backup's `after/`.

use crate::backup;
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::journal::{DataPolicy, Moves};
use crate::state::root::InstallRoot;
use crate::system::{FileMetadata, FileType, files};
use crate::update::ownership::member;
use crate::update::transaction;
use anyhow::{Context, Result};
use std::collections::BTreeSet;

/// Puts back what was altered or deleted: whole database sets, and single files, also of the version where the swap
/// did not move them. Newer files stay.
pub(super) fn restore_data(
    root: &InstallRoot,
    dir: &std::path::Path,
    record: &backup::Record,
    moves: &Moves,
) -> Result<()> {
    let after = transaction::after(dir);
    let databases = record.databases();
    // What the swap itself merged or added is the undo's, not ours.
    let swapped: BTreeSet<&RelPath> = moves.moves.iter().map(|m| &m.path).collect();
    let mut sets = BTreeSet::new();
    for line in record.files.iter().filter(|l| !swapped.contains(&l.path)) {
        if let Some(main) = databases.main_of(&line.path) {
            sets.insert(main);
        } else if differs(root, dir, line)? {
            restore_file(root, dir, line, &after)?;
        }
    }
    sets.extend(moves.moves.iter().filter_map(|m| databases.main_of(&m.path)));
    for main in sets {
        restore_database_set(root, dir, record, &main, &swapped)?;
    }
    Ok(())
}

/// Hooks may have written anywhere: what they altered of the old version beside what the swap moved is put back, and
/// what they deleted of the users'. What of the users' was altered may have been so by the users.
pub(super) fn restore_program(
    root: &InstallRoot,
    dir: &std::path::Path,
    start_file: &RelPath,
    data: DataPolicy,
) -> Result<()> {
    let record = match backup::load(dir) {
        // Somebody decided to go on without it.
        Err(_) if data == DataPolicy::Kept => return Ok(()),
        loaded => loaded.map_err(|e| super::backup_lost(root, dir, &e))?,
    };
    let is_gone = |line: &backup::Line| fsx::exists(&root.join(&line.path)).is_ok_and(|is_there| !is_there);
    for line in record.files.iter().filter(|l| l.path != *start_file && (!l.data || is_gone(l))) {
        if differs(root, dir, line)? {
            restore_file(root, dir, line, &transaction::after(dir))?;
        }
    }
    Ok(())
}

/// The name under which data waits to take its place.
const DATA_BACK: &str = ".updater-data-back";

/// Whether the contents differ. Where only owner, mode or access lists do, they are set again.
fn differs(root: &InstallRoot, dir: &std::path::Path, line: &backup::Line) -> Result<bool> {
    let live = root.join(&line.path);
    Ok(match fsx::metadata(&live)? {
        None => true,
        Some(is) if fsx::is_unchanged(&line.metadata, &is) => false,
        // A link and a file may hold the same bytes.
        Some(is) if is.kind != line.metadata.kind => true,
        Some(_) if !fsx::has_sha256(&live, &line.sha256)? => true,
        Some(is) => {
            let saved = dir.join(line.saved_at().to_path());
            let same = || files::same_attributes(&live, &saved).unwrap_or(true);
            let dress = |metadata: &FileMetadata| (metadata.mode, metadata.owner, metadata.mtime);
            if dress(&is) != dress(&line.metadata) || !same() {
                fsx::copy_metadata(&saved, &live, &line.metadata)?;
            }
            false
        }
    })
}

/// A database and its log only make sense together: one changed member puts the whole set back, and
/// the shared memory, which is rebuilt from them, is taken away. A set of which the swap moved a member
/// counts as changed; that member is the undo's.
fn restore_database_set(
    root: &InstallRoot,
    dir: &std::path::Path,
    record: &backup::Record,
    main: &RelPath,
    swapped: &BTreeSet<&RelPath>,
) -> Result<()> {
    let after = &transaction::after(dir);
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
            // A folder of such a name is none of the database's.
            None if fsx::metadata(&root.join(&path))?.is_some_and(|f| f.kind == FileType::File) => {
                // An empty log left by a clean close says nothing.
                let empty = fsx::metadata(&root.join(&path))?.is_some_and(|f| f.size == 0);
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
            transaction::set_aside(&root.join(path), after, path)?;
        }
    }
    for line in saved {
        if differs(root, dir, line)? {
            restore_file(root, dir, line, after)?;
        }
    }
    Ok(())
}

/// Copies the saved file beside its place (on its volume, whichever that is), moves the altered one to
/// `after/`, and the copy into its place. A copy that is cut off is made again by the next try.
fn restore_file(root: &InstallRoot, dir: &std::path::Path, line: &backup::Line, after: &std::path::Path) -> Result<()> {
    let live = root.join(&line.path);
    let copy = live.with_file_name(DATA_BACK);
    fsx::remove_own_file(&copy)?;
    let saved = dir.join(line.saved_at().to_path());
    let metadata = FileMetadata {
        kind: line.metadata.kind,
        ..files::metadata(&saved).with_context(|| format!("looking at {}", saved.display()))?
    };
    let sum = fsx::copy(&saved, &copy, &metadata)?;
    anyhow::ensure!(sum == line.sha256, "the backup's {} is damaged", line.path);
    fsx::copy_metadata(&saved, &copy, &line.metadata)?;
    if fsx::exists(&live)? {
        transaction::set_aside(&live, after, &line.path)?;
    }
    if let Some(parent) = live.parent() {
        fsx::make_folders(parent)?;
    }
    files::rename_new(&copy, &live).with_context(|| format!("putting {} back", line.path))?;
    fsx::sync_parent(&live)
}

/// Holds what the swap moved against the backup once it is back: an original that is gone, or was never brought back
/// because the new version took it away, is put back from its copy. Errors (exit 4): there is none.
pub(super) fn restore_moved(
    root: &InstallRoot,
    dir: &std::path::Path,
    record: Option<&backup::Record>,
    moves: &Moves,
    counts: &dyn Fn(&RelPath) -> bool,
) -> Result<()> {
    for path in moves.moves.iter().filter(|m| m.old && counts(&m.path)).map(|m| &m.path) {
        let line = record.and_then(|record| record.files.iter().find(|line| line.path == *path));
        let live = fsx::metadata(&root.join(path))?;
        let Some(line) = line else {
            // Caches are in no backup, and the program makes them again.
            if live.is_none() && record.is_none() {
                return Err(super::backup_lost(root, dir, &anyhow::anyhow!("{path} is gone")).into());
            }
            continue;
        };
        let look = |metadata: &FileMetadata| (metadata.kind, metadata.inode, metadata.size, metadata.mtime);
        if live.as_ref().map(look) != Some(look(&line.metadata)) && differs(root, dir, line)? {
            restore_file(root, dir, line, &transaction::after(dir))?;
        }
    }
    Ok(())
}

/// Gives large files that nobody saved their owner, mode, access lists and other attributes back.
pub(super) fn restore_watched_metadata(root: &InstallRoot, record: &backup::Record) -> Result<()> {
    for watched in &record.watched {
        let path = root.join(&watched.path);
        let Some(is) = fsx::metadata(&path)? else { continue };
        // A number is given to another file once its own is gone.
        if (is.inode, is.kind) != (watched.metadata.inode, watched.metadata.kind) {
            continue;
        }
        if (is.mode, is.owner) != (watched.metadata.mode, watched.metadata.owner) {
            fsx::apply_metadata(&path, &FileMetadata { mtime: is.mtime, ..watched.metadata })?;
        }
        if let Some(wanted) = watched.attributes() {
            files::give_attributes(&path, &wanted)
                .with_context(|| format!("setting attributes of {}", watched.path))?;
        }
    }
    Ok(())
}
