//! The swap: originals to the trash, arrivals from staging, by renames alone; and its exact undo.
//! Refuses to copy, to overwrite, and to decide when: the journal names every move before the first.
//!
//! A rename never replaces anything (`system::files::rename_new`), so whatever appeared meanwhile is an
//! error and not a loss. Where each thing lies tells how far a move came, so both directions can be
//! cut off anywhere and begun again.

use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::dir::StateDir;
use crate::state::journal::{Arrival, Away, Exchange, Folder, Intent, Moves};
use crate::state::root::InstallRoot;
use crate::system::{Kind, files};
use crate::update::ownership::{MEMBERS, Rules, member};
use crate::update::plan::{Action, Plan};
use crate::update::staging::{self, Staged, annex};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Names every move, and has a place for each on its volume. Called after the stop: what the old version compiled meanwhile is found too.
pub fn intend(root: &InstallRoot, plan: &Plan, staged: &[Staged], rules: &Rules) -> Result<Moves> {
    let mut moves = Moves::default();
    let give_way: BTreeSet<&RelPath> = plan.changes().filter(|p| p.aside).map(|p| &p.path).collect();
    let replaced: BTreeSet<&RelPath> = plan.changes().filter(|p| p.saved_data).map(|p| &p.path).collect();
    let away_of = |path: &RelPath| match () {
        () if give_way.contains(path) => Away::Aside,
        () if replaced.contains(path) => Away::After,
        () => Away::Trash,
    };
    for one in staged {
        moves.moves.push(Intent {
            data: rules.is_data(&one.path, false),
            path: one.path.clone(),
            old: fsx::exists(&root.join(&one.path))? && !is_behind_or_folder(root, &one.path, rules)?,
            new: Some(Arrival { sha256: one.sha256.clone(), size: one.facts.size }),
            away: away_of(&one.path),
        });
    }
    let leaves =
        |path: &RelPath, data: bool, away: Away| Intent { path: path.clone(), old: true, new: None, data, away };
    let removed = plan.changes().filter(|p| p.action == Action::Remove).map(|p| &p.path).chain(&plan.caches);
    let removed = removed.map(|path| (path, Away::Trash));
    for (path, away) in removed.chain(plan.aside.iter().map(|one| (&one.path, Away::Aside))) {
        if fsx::exists(&root.join(path))? {
            moves.moves.push(leaves(path, false, away));
        }
    }
    // A log beside a database that is put back without it would be replayed into it.
    let arrives: BTreeSet<&RelPath> = staged.iter().map(|s| &s.path).collect();
    for path in plan.sets.iter().flat_map(|main| MEMBERS.map(|ending| member(main, ending))) {
        if !arrives.contains(&path) && fsx::exists(&root.join(&path))? {
            moves.moves.push(leaves(&path, true, Away::After));
        }
    }
    let parents: BTreeSet<RelPath> = moves.moves.iter().flat_map(|m| m.path.ancestors()).collect();
    let arriving: BTreeSet<RelPath> = staged.iter().flat_map(|s| s.path.ancestors()).collect();
    for path in parents {
        match fsx::facts(&root.join(&path))? {
            Some(f) if f.kind == Kind::Folder => {
                moves.touched.push(Folder::of(&path, &f));
            }
            Some(_) if is_data_folder(root, &path, rules) => {}
            _ if arriving.contains(&path) => moves.make.push(path),
            _ => {}
        }
    }
    for (path, f) in &plan.emptied {
        moves.remove.push(Folder::of(path, f));
    }
    // Only those that are used: an undo needs every one that is named.
    let used: BTreeSet<&RelPath> = moves.moves.iter().filter_map(|m| Some(&plan.annex(&m.path)?.top)).collect();
    moves.annexes = plan.annexes.iter().filter(|annex| used.contains(&annex.top)).cloned().collect();
    moves.annexes.iter().try_for_each(|annex| annex::make(root.state(), annex))?;
    Ok(moves)
}

/// Adds what hooks may write to the moves.
pub fn intend_exchanges(root: &InstallRoot, moves: &mut Moves, exchanges: Vec<Exchange>) -> Result<()> {
    for path in exchanges.iter().flat_map(|one| one.path.ancestors()) {
        if let Some(f) = fsx::facts(&root.join(&path))?.filter(|f| f.kind == Kind::Folder)
            && !moves.touched.iter().any(|folder| folder.path == path)
        {
            moves.touched.push(Folder::of(&path, &f));
        }
    }
    moves.exchanges = exchanges;
    Ok(())
}

/// Adds the folders of a saved version that are to be there again: those whose place a file of the installed version
/// leaves, and with `all` every one that is missing.
pub fn intend_folders(root: &InstallRoot, moves: &mut Moves, folders: &[Folder], all: bool) -> Result<()> {
    let leaves =
        |moves: &Moves, path: &RelPath| moves.moves.iter().any(|m| m.path == *path && m.old && m.new.is_none());
    for path in folders.iter().map(|folder| &folder.path) {
        let is_vacated = leaves(moves, path) || path.ancestors().iter().any(|above| leaves(moves, above));
        let stands = fsx::facts(&root.join(path))?;
        let is_wanted = if stands.is_some() { leaves(moves, path) } else { all || is_vacated };
        if !is_wanted || moves.make.contains(path) {
            continue;
        }
        let above = path.parent();
        let is_made = above.as_ref().is_some_and(|above| moves.make.contains(above));
        let place = above.as_ref().map_or_else(|| root.path().to_path_buf(), |above| root.join(above));
        let Some(is) = fsx::facts(&place)?.filter(|is| !is_made && is.kind == Kind::Folder) else {
            // What stands above it stays, and it has no place.
            moves.make.extend(is_made.then(|| path.clone()));
            continue;
        };
        if let Some(above) = above.filter(|above| !moves.touched.iter().any(|one| one.path == *above)) {
            moves.touched.push(Folder::of(&above, &is));
        }
        moves.make.push(path.clone());
    }
    moves.make.sort();
    Ok(())
}

/// True where what lies at `path` is none of the file's own: seen through something that leaves, or a folder that is
/// emptied for it. A data folder at the top may be a link.
fn is_behind_or_folder(root: &InstallRoot, path: &RelPath, rules: &Rules) -> Result<bool> {
    for above in path.ancestors() {
        let full = root.join(&above);
        if !is_data_folder(root, &above, rules) && fsx::facts(&full)?.is_some_and(|f| f.kind != Kind::Folder) {
            return Ok(true);
        }
    }
    Ok(fsx::facts(&root.join(path))?.is_some_and(|f| f.kind == Kind::Folder))
}

/// A data folder at the top, also one that is a link to a folder.
fn is_data_folder(root: &InstallRoot, path: &RelPath, rules: &Rules) -> bool {
    path.parent().is_none() && rules.is_data(path, false) && root.join(path).is_dir()
}

/// Makes the folders in which the originals will lie, before the stop.
pub fn make_trash(state: &StateDir) -> Result<()> {
    fsx::make_folders(&state.trash())?;
    fsx::make_folders(&state.originals()).map(drop)
}

/// What a failed version left, beside the files of a backup.
pub fn after(backup: &Path) -> PathBuf {
    backup.join("after")
}

/// What of the users' gave way to an update, beside the files of a backup.
pub fn aside(backup: &Path) -> PathBuf {
    backup.join("aside")
}

/// Where an original goes. From an annex it goes on to its place in the backup after the end.
fn original_place(root: &InstallRoot, moves: &Moves, intent: &Intent, backup: &Path) -> PathBuf {
    if let Some(annex) = moves.annex(&intent.path) {
        return annex::originals(annex).join(intent.path.to_path());
    }
    let folder = match intent.away {
        Away::Trash => root.state().trash(),
        Away::Aside => aside(backup),
        Away::After => after(backup),
    };
    folder.join(intent.path.to_path())
}

/// Where a folder goes that is removed, whole with its metadata; `at` is its position among those.
fn removed_folder(root: &InstallRoot, at: usize) -> PathBuf {
    root.state().originals().join(format!("folder-{at}"))
}

/// Carries out the moves: all originals away (the start file first), then all arrivals but the start file.
/// `backup`: the folder of this update's backup.
/// `saved`: the backup that is restored, where one is.
pub fn carry_out(
    root: &InstallRoot,
    moves: &Moves,
    start_file: &RelPath,
    backup: &Path,
    saved: Option<&Path>,
) -> Result<()> {
    let mut order: Vec<&Intent> = moves.moves.iter().collect();
    order.sort_by_key(|m| m.path != *start_file);
    let (first, rest): (Vec<&Intent>, Vec<&Intent>) =
        order.iter().filter(|m| m.old).partition(|m| m.path == *start_file);
    for intent in first {
        take_away(root, moves, intent, backup)?;
        fsx::sync_parent(&root.join(start_file))?;
        fsx::sync_parent(&original_place(root, moves, intent, backup))?;
    }
    // Before the rest, which may lie in what is exchanged.
    exchange(root, &moves.exchanges)?;
    for intent in rest {
        take_away(root, moves, intent, backup)?;
    }
    for (at, folder) in moves.remove.iter().enumerate() {
        let live = root.join(&folder.path);
        // What appeared in it meanwhile stays, and so does the folder.
        if fsx::names(&live)?.is_empty() {
            rename(&live, &removed_folder(root, at))?;
        }
    }
    for path in &moves.make {
        let known = moves.saved_folders.iter().find(|folder| folder.path == *path);
        let live = root.join(path);
        make_folder(&live, known).with_context(|| format!("making the folder {path}"))?;
        let original = saved.zip(known).map(|(saved, known)| saved.join(known.saved_at().to_path()));
        if let Some(original) = original.filter(|original| original.is_dir()) {
            files::copy_attributes(&original, &live).with_context(|| format!("setting attributes of {path}"))?;
        }
    }
    order.reverse();
    for intent in order.iter().filter(|m| m.new.is_some() && m.path != *start_file) {
        rename(&staging::waiting(root, &moves.annexes, &intent.path), &root.join(&intent.path))?;
    }
    flush(root, moves)?;
    flush_annexes(moves)?;
    for (away, folder) in [(Away::Aside, aside(backup)), (Away::After, after(backup))] {
        if moves.moves.iter().any(|m| m.old && m.away == away && moves.annex(&m.path).is_none()) {
            flush_tree(&folder)?;
            fsx::sync_parent(&folder)?;
        }
    }
    flush_tree(&root.state().originals())?;
    flush_tree(&root.state().trash())
}

/// Makes a folder of the new version. It takes what the one above gives: owner, group, access list; one that was saved
/// has its own owner and mode.
fn make_folder(folder: &Path, saved: Option<&Folder>) -> Result<()> {
    fsx::make_folder(folder)?;
    if let Some(saved) = saved {
        return fsx::dress_folder(folder, saved.owner, saved.mode);
    }
    fsx::adopt(folder)?;
    let above = folder.parent().context("a folder of the install lies in one")?;
    if !files::has_default_list(above)? {
        // A folder's set-group-id bit is passed on, too.
        files::set_mode(folder, 0o755 | files::facts(above)?.mode & 0o2000)?;
    }
    Ok(())
}

/// The end of the swap: the start file arrives, and the tree can start.
pub fn complete(root: &InstallRoot, moves: &Moves, start_file: &RelPath) -> Result<()> {
    if moves.moves.iter().any(|m| m.path == *start_file && m.new.is_some()) {
        rename(&staging::waiting(root, &moves.annexes, start_file), &root.join(start_file))?;
        fsx::sync_parent(&root.join(start_file))?;
    }
    Ok(())
}

/// Puts the copies in place of what hooks may write; the originals go away whole.
fn exchange(root: &InstallRoot, exchanges: &[Exchange]) -> Result<()> {
    let state = root.state();
    for one in exchanges.iter().filter(|one| one.old) {
        let (live, original) = (root.join(&one.path), state.original(one.slot));
        rename(&live, &original)?;
        // On the disk first: whatever comes back after a power cut, the original is where an undo looks for it.
        fsx::sync_parent(&original)?;
        fsx::sync_parent(&live)?;
        rename(&state.copy(one.slot), &live)?;
        fsx::sync_parent(&live)?;
    }
    Ok(())
}

/// Puts the originals back, however far their exchange came. What takes their place now was written by hooks and the
/// new version.
fn exchange_back(root: &InstallRoot, exchanges: &[Exchange], after: &Path) -> Result<()> {
    let state = root.state();
    for one in exchanges {
        let (live, original) = (root.join(&one.path), state.original(one.slot));
        // Without an original out there, what lies in the tree is it; unless there was none.
        if one.old && !fsx::exists(&original)? {
            continue;
        }
        if fsx::exists(&live)? {
            let slot = state.copy(one.slot);
            if one.disposable && !fsx::exists(&slot)? {
                rename_making(&live, &slot)?
            } else {
                set_aside(&live, after, &one.path)?
            }
        }
        if one.old {
            // The swap may have taken folders above it away.
            if let Some(parent) = live.parent() {
                fsx::make_folders(parent)?;
            }
            rename(&original, &live)?;
        }
        if live.parent().is_some_and(Path::exists) {
            fsx::sync_parent(&live)?;
        }
    }
    Ok(())
}

/// Moves an original out of the tree.
fn take_away(root: &InstallRoot, moves: &Moves, intent: &Intent, backup: &Path) -> Result<()> {
    let to = original_place(root, moves, intent, backup);
    if let Some(parent) = to.parent() {
        fsx::make_folders(parent)?;
    }
    rename(&root.join(&intent.path), &to)
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    files::rename_new(from, to).with_context(|| format!("moving {} to {}", from.display(), to.display()))
}

/// Takes the start file away again, so that nothing can start while the rest goes back.
pub fn hide_start_file(root: &InstallRoot, moves: &Moves, start_file: &RelPath, backup: &Path) -> Result<()> {
    match moves.moves.iter().find(|m| m.path == *start_file) {
        Some(intent) => {
            remove_arrival(root, moves, intent, backup)?;
            let live = root.join(start_file);
            let is_away = !intent.old || fsx::exists(&original_place(root, moves, intent, backup))?;
            // One that waits has not arrived, so what stands there is somebody's own.
            if is_away && fsx::exists(&staging::waiting(root, &moves.annexes, start_file))? && fsx::exists(&live)? {
                set_aside(&live, &after(backup), start_file)?;
            }
            Ok(())
        }
        None => Ok(()),
    }
}

/// Moves an arrival out of the tree: back to staging when it is as it was shipped, else to `after`,
/// so that nothing that somebody wrote is lost.
fn remove_arrival(root: &InstallRoot, moves: &Moves, intent: &Intent, backup: &Path) -> Result<()> {
    let (live, slot) = (root.join(&intent.path), staging::waiting(root, &moves.annexes, &intent.path));
    let original_is_away = !intent.old || fsx::exists(&original_place(root, moves, intent, backup))?;
    if !original_is_away || fsx::exists(&slot)? || !fsx::exists(&live)? {
        return Ok(());
    }
    let as_shipped = match &intent.new {
        Some(new) => fsx::holds(&live, &new.sha256)?,
        None => false,
    };
    if as_shipped { rename_making(&live, &slot) } else { set_aside(&live, &after(backup), &intent.path) }
}

fn rename_making(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fsx::make_folders(parent)?;
    }
    rename(from, to)
}

/// The place for `path` below `folder`; a name that is taken, by a file where a folder is needed, too, gets a number.
fn free_place(folder: &Path, path: &RelPath) -> Result<PathBuf> {
    let (mut to, whole) = (folder.to_path_buf(), path.to_path());
    let mut parts = whole.components().peekable();
    while let Some(part) = parts.next() {
        let is_last = parts.peek().is_none();
        let is_taken = |place: &Path| -> Result<bool> {
            Ok(fsx::facts(place)?.is_some_and(|facts| is_last || facts.kind != Kind::Folder))
        };
        let (plain, mut n) = (to.join(part), 1);
        to.push(part);
        while is_taken(&to)? {
            n += 1;
            let mut numbered = plain.clone().into_os_string();
            numbered.push(format!(".{n}"));
            to = numbered.into();
        }
    }
    Ok(to)
}

/// Moves something that somebody wrote to the backup's `after/`; a name that is taken gets a number.
pub fn set_aside(live: &Path, after: &Path, path: &RelPath) -> Result<()> {
    let to = free_place(after, path)?;
    if let Some(parent) = to.parent() {
        fsx::make_folders(parent)?;
    }
    // To move a folder its owner must be able to write in it.
    if fsx::facts(live)?.is_some_and(|facts| facts.kind == Kind::Folder && facts.mode & 0o700 != 0o700) {
        fsx::open_folder(live)?;
    }
    match files::rename_new(live, &to) {
        // A preserved folder may be a link or a mount that leads to another volume.
        Err(e) if e.kind() == std::io::ErrorKind::CrossesDevices => {
            // Under its name only once it is whole.
            let part = after.join(PART);
            fsx::remove_own_file(&part)?;
            let facts = files::facts(live).with_context(|| format!("looking at {}", live.display()))?;
            fsx::copy(live, &part, &facts)?;
            rename(&part, &to)?;
            fsx::sync_parent(&to)?;
            fsx::remove_file(live)?;
        }
        done => done.with_context(|| format!("moving {} to {}", live.display(), to.display()))?,
    }
    fsx::sync_parent(&to)
}

/// The name under which a copy is made in `after/`.
const PART: &str = ".updater-part";

/// After the end of an update: what gave way on another volume goes to the backup's `after/`, as on this one.
pub fn bring_home(state: &StateDir, moves: &Moves, backup: &Path) -> Result<()> {
    let after = after(backup);
    annex::bring_home(state, moves, &|from, path| {
        // Cut off when it was there already: the copy is whole, and goes under no second name.
        if fsx::holds(&after.join(path.to_path()), &fsx::sha256_of(from)?)? {
            return fsx::remove_own_file(from);
        }
        set_aside(from, &after, path)
    })?;
    fsx::remove_own_file(&after.join(PART))
}

/// Undoes the moves, however far they came: arrivals out, originals back, all but the start file.
pub fn undo(root: &InstallRoot, moves: &Moves, start_file: &RelPath, backup: &Path) -> Result<()> {
    let after = &after(backup);
    hide_start_file(root, moves, start_file, backup)?;
    // One that was cut off between its two renames: nothing else in it was moved yet, or all of it is moved back.
    let is_half = |one: &Exchange| -> Result<bool> {
        let original = root.state().original(one.slot);
        Ok(one.old && fsx::exists(&original)? && !fsx::exists(&root.join(&one.path))?)
    };
    for one in &moves.exchanges {
        if is_half(one)? {
            exchange_back(root, std::slice::from_ref(one), after)?;
        }
    }
    for intent in &moves.moves {
        if !folder_is_back(root, moves, &intent.path)? {
            remove_arrival(root, moves, intent, backup)?;
        }
    }
    for path in moves.make.iter().rev() {
        let folder = root.join(path);
        if fsx::facts(&folder)?.is_some_and(|f| f.kind == Kind::Folder) {
            empty_made_folder(path, &folder, after)?;
        }
    }
    for (at, folder) in moves.remove.iter().enumerate().rev() {
        let (path, original) = (root.join(&folder.path), removed_folder(root, at));
        if fsx::exists(&path)? {
            continue;
        }
        if fsx::exists(&original)? {
            rename(&original, &path)?;
        } else {
            fsx::make_folder(&path)?;
            fsx::dress_folder(&path, folder.owner, folder.mode)?;
        }
    }
    for intent in moves.moves.iter().filter(|m| m.old && m.path != *start_file) {
        put_back(root, moves, intent, backup)?;
    }
    // Moves within what hooks may write were undone in the copy: it goes as it came.
    exchange_back(root, &moves.exchanges, after)?;
    flush_annexes(moves)?;
    flush(root, moves)
}

/// True where a folder gave way to an arrival at its path and stands there again, or has not left: then no arrival does.
fn folder_is_back(root: &InstallRoot, moves: &Moves, path: &RelPath) -> Result<bool> {
    let Some(at) = moves.remove.iter().position(|folder| folder.path == *path) else { return Ok(false) };
    let is_folder = fsx::facts(&root.join(path))?.is_some_and(|f| f.kind == Kind::Folder);
    Ok(is_folder && !fsx::exists(&removed_folder(root, at))?)
}

/// The end of an undo: the old start file is back, and the tree can start; the folders get their times back.
pub fn undo_start(root: &InstallRoot, moves: &Moves, start_file: &RelPath, backup: &Path) -> Result<()> {
    if let Some(start) = moves.moves.iter().find(|m| m.old && m.path == *start_file) {
        put_back(root, moves, start, backup)?;
    }
    flush(root, moves)?;
    for folder in moves.touched.iter().chain(&moves.remove) {
        let path = root.join(&folder.path);
        if fsx::exists(&path)? {
            files::set_mtime(&path, folder.mtime).with_context(|| format!("setting the time of {}", folder.path))?;
        }
    }
    Ok(())
}

/// Moves an original back; what stands in its place is set aside.
fn put_back(root: &InstallRoot, moves: &Moves, intent: &Intent, backup: &Path) -> Result<()> {
    let (saved, live) = (original_place(root, moves, intent, backup), root.join(&intent.path));
    if !fsx::exists(&saved)? {
        return Ok(());
    }
    if fsx::exists(&live)? {
        set_aside(&live, &after(backup), &intent.path)?;
    }
    if let Some(parent) = live.parent() {
        fsx::make_folders(parent)?;
    }
    rename(&saved, &live)
}

/// Empties a folder that the swap made: what is in it now was written by the new version.
fn empty_made_folder(path: &RelPath, folder: &Path, after: &Path) -> Result<()> {
    // The new version may have closed it.
    fsx::open_folder(folder)?;
    for child in fsx::names(folder)? {
        if let Some(name) = path.child(&child) {
            if name.name() == "__pycache__" {
                fsx::remove_own_tree(&folder.join(&child))?;
            } else {
                set_aside(&folder.join(&child), after, &name)?;
            }
        }
    }
    fsx::remove_folder(folder)?;
    Ok(())
}

/// Flushes every folder of the tree that the moves touch.
fn flush(root: &InstallRoot, moves: &Moves) -> Result<()> {
    files::sync_folder(root.path()).context("flushing the install")?;
    let folders: BTreeSet<RelPath> =
        moves.moves.iter().filter_map(|m| m.path.parent()).chain(moves.make.iter().cloned()).collect();
    let parents = moves.exchanges.iter().filter_map(|one| one.path.parent());
    for folder in folders.into_iter().chain(parents) {
        let path = root.join(&folder);
        if fsx::facts(&path)?.is_some_and(|f| f.kind == Kind::Folder) {
            files::sync_folder(&path).with_context(|| format!("flushing {folder}"))?;
        }
    }
    Ok(())
}

fn flush_annexes(moves: &Moves) -> Result<()> {
    moves.annexes.iter().try_for_each(|annex| flush_tree(&annex.folder))
}

fn flush_tree(tree: &Path) -> Result<()> {
    for item in walkdir::WalkDir::new(tree) {
        let item = item?;
        if item.file_type().is_dir() {
            files::sync_folder(item.path()).with_context(|| format!("flushing {}", item.path().display()))?;
        }
    }
    Ok(())
}
