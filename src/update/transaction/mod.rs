//! The swap of one version for another: originals to the trash, arrivals from staging, by renames alone; and its exact undo.
//! Refuses to copy, to overwrite, and to decide when: the journal names every move before the first.
//!
//! A rename never replaces anything (`system::files::rename_new`), so whatever appeared meanwhile is an
//! error and not a loss. Where each thing lies tells how far a move came, so both directions can be
//! cut off anywhere and begun again. Nothing is undone because a value is dropped.

mod aside;
mod exchange;
mod intend;

pub use aside::{after, aside, set_aside};
pub use intend::{intend, intend_exchanges, intend_folders};

use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::dir::StateDir;
use crate::state::journal::{Away, Exchange, Folder, Intent, Journal, Moves};
use crate::state::root::InstallRoot;
use crate::system::{FileType, files};
use crate::update::staging;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The moves of one update, between the tree, staging, the trash and the update's backup.
pub struct Transaction<'a> {
    root: &'a InstallRoot,
    moves: Moves,
    /// It leaves first and arrives last, so that a tree in between cannot start.
    start_file: RelPath,
    /// The folder of this update's backup, which takes what users wrote and gives way.
    backup: PathBuf,
}

impl<'a> Transaction<'a> {
    pub fn new(root: &'a InstallRoot, moves: Moves, start_file: &RelPath, backup: &Path) -> Transaction<'a> {
        Transaction { root, moves, start_file: start_file.clone(), backup: backup.to_path_buf() }
    }

    /// The one that a journal names. None: it was cut off before its moves were named, so none was made.
    pub fn of(root: &'a InstallRoot, journal: &Journal) -> Option<Transaction<'a>> {
        let backup = root.join(&journal.begin.backup_dir).join(&journal.begin.backup);
        Some(Transaction::new(root, journal.moves()?.clone(), &journal.begin.start_file, &backup))
    }

    pub fn moves(&self) -> &Moves {
        &self.moves
    }

    pub fn start_file(&self) -> &RelPath {
        &self.start_file
    }

    /// The folder of the backup for what a failed version left.
    pub fn after(&self) -> PathBuf {
        after(&self.backup)
    }

    /// Leaves data as it is now: its moves are not undone.
    pub fn keep_data(&mut self) {
        self.moves.moves.retain(|m| !m.data);
    }

    /// Carries out the moves: all originals away (the start file first), then all arrivals but the start file.
    /// `saved`: the backup that is restored, where one is.
    pub fn apply(&self, saved: Option<&Path>) -> Result<()> {
        let is_start = |intent: &&Intent| intent.path == self.start_file;
        let leaving = self.moves.moves.iter().filter(|m| m.old);
        for intent in leaving.clone().filter(is_start) {
            self.take_away(intent)?;
            fsx::sync_parent(&self.root.join(&self.start_file))?;
            fsx::sync_parent(&self.original_place(intent))?;
        }
        // Before the rest, which may lie in what is exchanged.
        exchange::exchange(self.root, &self.moves.exchanges)?;
        for intent in leaving.filter(|intent| !is_start(intent)) {
            self.take_away(intent)?;
        }
        for (at, folder) in self.moves.remove.iter().enumerate() {
            let live = self.root.join(&folder.path);
            // What appeared in it meanwhile stays, and so does the folder.
            if fsx::names(&live)?.is_empty() {
                rename(&live, &self.root.state().removed_folder(at))?;
            }
        }
        self.make_folders(saved)?;
        let arriving = self.moves.moves.iter().rev().filter(|m| m.new.is_some());
        for intent in arriving.filter(|intent| !is_start(intent)) {
            rename(&self.waiting(&intent.path), &self.root.join(&intent.path))?;
        }
        self.flush()?;
        flush_annexes(&self.moves)?;
        for (away, folder) in [(Away::Aside, aside(&self.backup)), (Away::After, self.after())] {
            if self.moves.moves.iter().any(|m| m.old && m.away == away && self.moves.annex(&m.path).is_none()) {
                fsx::sync_folders(&folder)?;
                fsx::sync_parent(&folder)?;
            }
        }
        fsx::sync_folders(&self.root.state().originals())?;
        fsx::sync_folders(&self.root.state().trash())
    }

    /// The end of the swap: the start file arrives, and the tree can start.
    pub fn finish(&self) -> Result<()> {
        if self.moves.moves.iter().any(|m| m.path == self.start_file && m.new.is_some()) {
            rename(&self.waiting(&self.start_file), &self.root.join(&self.start_file))?;
            fsx::sync_parent(&self.root.join(&self.start_file))?;
        }
        Ok(())
    }

    /// Undoes the moves, however far they came: arrivals out, originals back, all but the start file.
    pub fn undo(&self) -> Result<()> {
        self.withdraw_start_file()?;
        for one in &self.moves.exchanges {
            // An exchange that was cut off between its two renames leaves its path empty. It is undone first: other
            // moves may lie inside.
            if self.is_half(one)? {
                exchange::undo(self.root, std::slice::from_ref(one), &self.after())?;
            }
        }
        for intent in &self.moves.moves {
            if !self.folder_is_back(&intent.path)? {
                self.remove_arrival(intent)?;
            }
        }
        for path in self.moves.make.iter().rev() {
            let folder = self.root.join(path);
            if fsx::metadata(&folder)?.is_some_and(|f| f.kind == FileType::Folder) {
                empty_made_folder(path, &folder, &self.after())?;
            }
        }
        for (at, folder) in self.moves.remove.iter().enumerate().rev() {
            self.bring_folder_back(at, folder)?;
        }
        for intent in self.moves.moves.iter().filter(|m| m.old && m.path != self.start_file) {
            self.put_back(intent)?;
        }
        // Moves inside an exchanged folder were undone in the copy; now the original takes its place.
        exchange::undo(self.root, &self.moves.exchanges, &self.after())?;
        flush_annexes(&self.moves)?;
        self.flush()
    }

    /// The end of an undo: the old start file is back, and the tree can start; the folders get their times back.
    pub fn undo_start(&self) -> Result<()> {
        if let Some(start) = self.moves.moves.iter().find(|m| m.old && m.path == self.start_file) {
            self.put_back(start)?;
        }
        self.flush()?;
        for folder in self.moves.touched.iter().chain(&self.moves.remove) {
            let path = self.root.join(&folder.path);
            if fsx::exists(&path)? {
                let name = || format!("setting the time of {}", folder.path);
                files::set_mtime(&path, folder.mtime).with_context(name)?;
            }
        }
        Ok(())
    }

    /// Takes the start file away again, so that nothing can start while the rest goes back.
    pub fn withdraw_start_file(&self) -> Result<()> {
        let Some(intent) = self.moves.moves.iter().find(|m| m.path == self.start_file) else { return Ok(()) };
        self.remove_arrival(intent)?;
        let live = self.root.join(&self.start_file);
        let is_away = !intent.old || fsx::exists(&self.original_place(intent))?;
        // One that waits has not arrived, so what stands there is somebody's own.
        if is_away && fsx::exists(&self.waiting(&self.start_file))? && fsx::exists(&live)? {
            set_aside(&live, &self.after(), &self.start_file)?;
        }
        Ok(())
    }

    /// After the end of an update: what gave way on another volume goes to the backup's `after/`, as on this one.
    pub fn bring_home(&self) -> Result<()> {
        if self.moves.annexes.is_empty() {
            return Ok(());
        }
        aside::bring_home(self.root.state(), &self.moves, &self.after())
    }

    /// The place in which an arrival waits.
    fn waiting(&self, path: &RelPath) -> PathBuf {
        staging::staged_path(self.root, &self.moves.annexes, path)
    }

    /// The place to which an original goes. From an annex it goes on to the backup after the end.
    fn original_place(&self, intent: &Intent) -> PathBuf {
        if let Some(annex) = self.moves.annex(&intent.path) {
            return staging::annex::originals(annex).join(intent.path.to_path());
        }
        let folder = match intent.away {
            Away::Trash => self.root.state().trash(),
            Away::Aside => aside(&self.backup),
            Away::After => self.after(),
        };
        folder.join(intent.path.to_path())
    }

    /// Moves an original out of the tree.
    fn take_away(&self, intent: &Intent) -> Result<()> {
        rename_making(&self.root.join(&intent.path), &self.original_place(intent))
    }

    /// Moves an original back; what stands in its place is set aside.
    fn put_back(&self, intent: &Intent) -> Result<()> {
        let (original, live) = (self.original_place(intent), self.root.join(&intent.path));
        if !fsx::exists(&original)? {
            return Ok(());
        }
        if fsx::exists(&live)? {
            set_aside(&live, &self.after(), &intent.path)?;
        }
        rename_making(&original, &live)
    }

    /// Moves an arrival out of the tree: back to staging where it is as it was shipped, else to `after`,
    /// so that nothing that somebody wrote is lost.
    fn remove_arrival(&self, intent: &Intent) -> Result<()> {
        let (live, slot) = (self.root.join(&intent.path), self.waiting(&intent.path));
        let original_is_away = !intent.old || fsx::exists(&self.original_place(intent))?;
        if !original_is_away || fsx::exists(&slot)? || !fsx::exists(&live)? {
            return Ok(());
        }
        let as_shipped = match &intent.new {
            Some(new) => fsx::has_sha256(&live, &new.sha256)?,
            None => false,
        };
        if as_shipped { rename_making(&live, &slot) } else { set_aside(&live, &self.after(), &intent.path) }
    }

    /// True for an exchange that was cut off between its two renames: the original is away, and nothing took its place.
    fn is_half(&self, one: &Exchange) -> Result<bool> {
        let original = self.root.state().original(one.slot);
        Ok(one.old && fsx::exists(&original)? && !fsx::exists(&self.root.join(&one.path))?)
    }

    /// True where a folder gave way to an arrival at its path and stands there again, or has not left: then no arrival does.
    fn folder_is_back(&self, path: &RelPath) -> Result<bool> {
        let Some(at) = self.moves.remove.iter().position(|folder| folder.path == *path) else { return Ok(false) };
        let is_folder = fsx::metadata(&self.root.join(path))?.is_some_and(|f| f.kind == FileType::Folder);
        Ok(is_folder && !fsx::exists(&self.root.state().removed_folder(at))?)
    }

    /// Puts a removed folder back, number `at` of those; one that was lost is made again.
    fn bring_folder_back(&self, at: usize, folder: &Folder) -> Result<()> {
        let (path, original) = (self.root.join(&folder.path), self.root.state().removed_folder(at));
        if fsx::exists(&path)? {
            return Ok(());
        }
        if fsx::exists(&original)? {
            return rename(&original, &path);
        }
        fsx::make_folder(&path)?;
        fsx::apply_folder_metadata(&path, folder.owner, folder.mode)
    }

    /// Makes the folders of the new version; those of a saved one with the attributes that it had.
    fn make_folders(&self, saved: Option<&Path>) -> Result<()> {
        for path in &self.moves.make {
            let known = self.moves.saved_folders.iter().find(|folder| folder.path == *path);
            let live = self.root.join(path);
            make_folder(&live, known).with_context(|| format!("making the folder {path}"))?;
            let original = saved.zip(known).map(|(saved, known)| saved.join(known.saved_at().to_path()));
            if let Some(original) = original.filter(|original| original.is_dir()) {
                files::copy_attributes(&original, &live).with_context(|| format!("setting attributes of {path}"))?;
            }
        }
        Ok(())
    }

    /// Flushes every folder of the tree that the moves touch.
    fn flush(&self) -> Result<()> {
        files::sync_folder(self.root.path()).context("flushing the install")?;
        let made = self.moves.make.iter().cloned();
        let folders: BTreeSet<RelPath> = self.moves.moves.iter().filter_map(|m| m.path.parent()).chain(made).collect();
        let parents = self.moves.exchanges.iter().filter_map(|one| one.path.parent());
        for folder in folders.into_iter().chain(parents) {
            let path = self.root.join(&folder);
            if fsx::metadata(&path)?.is_some_and(|f| f.kind == FileType::Folder) {
                files::sync_folder(&path).with_context(|| format!("flushing {folder}"))?;
            }
        }
        Ok(())
    }
}

/// Makes the folders in which the originals will lie, before the stop.
pub fn make_trash(state: &StateDir) -> Result<()> {
    fsx::make_folders(&state.trash())?;
    fsx::make_folders(&state.originals()).map(drop)
}

/// Makes a folder of the new version. It takes what the one above gives: owner, group, access list; one that was saved
/// has its own owner and mode.
fn make_folder(folder: &Path, saved: Option<&Folder>) -> Result<()> {
    fsx::make_folder(folder)?;
    if let Some(saved) = saved {
        return fsx::apply_folder_metadata(folder, saved.owner, saved.mode);
    }
    fsx::inherit_owner(folder)?;
    let above = folder.parent().context("a folder of the install lies in one")?;
    if !files::has_default_list(above)? {
        // A folder's set-group-id bit is passed on, too.
        files::set_mode(folder, 0o755 | files::metadata(above)?.mode & 0o2000)?;
    }
    Ok(())
}

/// Empties a folder that the swap made: what is in it now was written by the new version.
fn empty_made_folder(path: &RelPath, folder: &Path, after: &Path) -> Result<()> {
    // The new version may have closed it.
    fsx::make_writable(folder)?;
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

/// Moves something to a place where nothing lies. Errors: something does, or the folder of that place is missing.
fn rename(from: &Path, to: &Path) -> Result<()> {
    files::rename_new(from, to).with_context(|| format!("moving {} to {}", from.display(), to.display()))
}

/// The same, and makes the folders above that place first.
fn rename_making(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fsx::make_folders(parent)?;
    }
    rename(from, to)
}

fn flush_annexes(moves: &Moves) -> Result<()> {
    moves.annexes.iter().try_for_each(|annex| fsx::sync_folders(&annex.folder))
}
