//! The tree as it was when the hooks began: so that an undo finds its way through whatever they made of it.
//! Refuses to hold contents: those are the backup's and the swap's.
//!
//! It lies in staging, flushed before the journal says that hooks begin: every thing below the data that they may write,
//! and the folders of the version with what lies in them directly.

use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::dir::StateDir;
use crate::state::journal::Exchange;
use crate::state::root::InstallRoot;
use crate::system::{FileMetadata, FileType, files};
use crate::update::ownership::{Databases, MEMBERS, OwnPlaces, member};
use crate::update::transaction;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What was where.
#[derive(Debug, Serialize, Deserialize)]
pub struct TreeSnapshot {
    data: Vec<RelPath>,
    /// Folders of the version.
    folders: BTreeSet<RelPath>,
    /// Not looked into: the backups, and what is exchanged, which goes back as a whole.
    beside: Vec<RelPath>,
    entries: Vec<(RelPath, FileMetadata)>,
}

fn place(state: &StateDir) -> PathBuf {
    state.before_hooks()
}

fn place_of_made(state: &StateDir) -> PathBuf {
    state.made_by_hooks()
}

impl TreeSnapshot {
    /// Looks. `data`: what hooks may write of it; `files`: those of the version.
    pub fn take<'a>(
        root: &InstallRoot,
        data: &'a [RelPath],
        files: impl Iterator<Item = &'a RelPath>,
        exchanges: &'a [Exchange],
        backups: &'a RelPath,
    ) -> Result<TreeSnapshot> {
        let exchanged = exchanges.iter().map(|one| &one.path);
        let folders = files.chain(data).chain(exchanged.clone()).flat_map(RelPath::ancestors).collect();
        let beside = exchanged.chain([backups]).cloned().collect();
        let mut before = TreeSnapshot { data: data.to_vec(), folders, beside, entries: Vec::new() };
        before.entries = before.seen(root)?.into_iter().collect();
        Ok(before)
    }

    /// Keeps it, flushed.
    pub fn store(&self, state: &StateDir) -> Result<()> {
        fsx::write_atomic(&place(state), &serde_json::to_vec(self)?)
    }

    /// Errors: it cannot be read, so that nothing is known of what hooks made.
    pub fn load(state: &StateDir) -> Result<TreeSnapshot> {
        let bytes = fsx::read(&place(state), fsx::RECORD)?;
        serde_json::from_slice(&bytes).with_context(|| format!("reading {}", place(state).display()))
    }

    /// All that is there now.
    fn seen(&self, root: &InstallRoot) -> Result<BTreeMap<RelPath, FileMetadata>> {
        let mut all = BTreeMap::new();
        let own = OwnPlaces::new(&[])?;
        let is_left_out = |path: &RelPath| {
            path.parts().any(|part| part == b"__pycache__")
                || own.contain(path)
                || self.beside.iter().any(|beside| path.is_within(beside))
        };
        let folders = self.folders.iter().map(|folder| (root.join(folder), 1));
        let data = self.data.iter().map(|path| (root.join(path), usize::MAX));
        for (top, depth) in folders.chain(data).chain([(root.path().to_path_buf(), 1)]) {
            let mut walk = walkdir::WalkDir::new(&top).max_depth(depth).follow_root_links(false).into_iter();
            while let Some(item) = walk.next() {
                // What cannot be looked into is mended from above, by the folder that is known.
                let Ok(item) = item else { continue };
                let Some(path) = item.path().strip_prefix(root.path()).ok().and_then(RelPath::from_disk) else {
                    continue;
                };
                let is_folder = item.file_type().is_dir();
                if is_left_out(&path) {
                    if is_folder {
                        walk.skip_current_dir();
                    }
                    continue;
                }
                all.extend(fsx::metadata(item.path())?.map(|metadata| (path, metadata)));
            }
        }
        Ok(all)
    }

    /// What was not there before, each thing once: what lies in a folder that is new goes with it. A part of a database
    /// that was there belongs to that.
    pub fn made(&self, root: &InstallRoot) -> Result<Vec<RelPath>> {
        let databases = Databases::default();
        let known: BTreeSet<&RelPath> = self.entries.iter().map(|(path, _)| path).collect();
        let of_known = |path: &RelPath| {
            let main = databases.main_of(path);
            main.is_some_and(|main| MEMBERS.iter().any(|ending| known.contains(&member(&main, ending))))
        };
        let new: BTreeSet<RelPath> =
            self.seen(root)?.into_keys().filter(|path| !known.contains(path) && !of_known(path)).collect();
        Ok(new.iter().filter(|path| !path.ancestors().iter().any(|above| new.contains(above))).cloned().collect())
    }

    /// True where this is among the data that hooks may write.
    pub fn is_data(&self, path: &RelPath) -> bool {
        self.data.iter().any(|data| path.is_within(data))
    }

    /// Makes every folder a folder again, with its owner and mode, so that what lay in it can go back. What stands in
    /// its place is set aside.
    pub fn mend_folders(&self, root: &InstallRoot, after: &Path) -> Result<()> {
        for (path, was) in self.entries.iter().filter(|(_, metadata)| metadata.kind == FileType::Folder) {
            let live = root.join(path);
            let is = fsx::metadata(&live)?;
            if is.is_some_and(|is| is.kind != FileType::Folder) {
                transaction::set_aside(&live, after, path)?;
            }
            if is.is_none_or(|is| is.kind != FileType::Folder) {
                fsx::make_folder(&live)?;
            }
            if is.is_none_or(|is| (is.kind, is.mode, is.owner) != (was.kind, was.mode, was.owner)) {
                files::set_mode(&live, was.mode).with_context(|| format!("setting the mode of {path}"))?;
                fsx::apply_metadata(&live, was)?;
            }
        }
        Ok(())
    }
}

/// Keeps what hooks made, flushed: from then on others may make something, too.
pub fn store_made(state: &StateDir, made: &[RelPath]) -> Result<()> {
    fsx::write_atomic(&place_of_made(state), &serde_json::to_vec(made)?)
}

/// What hooks made, where it was kept. None: it was not yet.
pub fn load_made(state: &StateDir) -> Result<Option<Vec<RelPath>>> {
    let place = place_of_made(state);
    if !fsx::exists(&place)? {
        return Ok(None);
    }
    serde_json::from_slice(&fsx::read(&place, fsx::RECORD)?)
        .map(Some)
        .with_context(|| format!("reading {}", place.display()))
}
