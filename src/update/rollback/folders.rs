//! The folders of the way back: each is a folder again before anything is moved or written in it, so that nothing is
//! ever reached through a link that the failed version put in its place.
//! Refuses to drop what stands there: it goes to the backup's `after/`.

use crate::backup;
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::journal::{DataPolicy, Folder, Moves};
use crate::state::root::InstallRoot;
use crate::system::{FileType, Owner, files};
use crate::update::transaction;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::Path;

/// Makes every folder of the record a folder again that its owner may use, and every linked data folder the same link.
/// Where data is kept as it is, only what lies above the moves of code.
pub(super) fn mend(
    root: &InstallRoot,
    record: Option<&backup::Record>,
    moves: &Moves,
    data: DataPolicy,
    dir: &Path,
) -> Result<()> {
    let after = transaction::after(dir);
    let above = above_moves(moves);
    let linked: BTreeSet<&RelPath> = record.iter().flat_map(|record| record.linked.iter().map(|l| &l.path)).collect();
    for link in record.iter().flat_map(|record| &record.linked).filter(|_| data != DataPolicy::Kept) {
        relink(root, link, &after)?;
    }
    // What the swap itself made or takes away is the undo's to make and to remove.
    let removed = moves.remove.iter().map(|folder| &folder.path);
    let undos: BTreeSet<&RelPath> = moves.make.iter().chain(removed).collect();
    // A file of the version that took a folder's place is the undo's, too.
    let arrives = |path: &RelPath| moves.moves.iter().any(|m| m.path == *path && m.new.is_some());
    let is_wanted = |path: &RelPath| data != DataPolicy::Kept || above.contains(path);
    for folder in known(record, &above).iter().filter(|folder| is_wanted(&folder.path)) {
        if linked.iter().any(|link| folder.path.is_within(link)) {
            continue;
        }
        if !arrives(&folder.path) && !stands(root, &folder.path, &after)? && !undos.contains(&folder.path) {
            let live = root.join(&folder.path);
            fsx::make_folder(&live)?;
            fsx::apply_folder_metadata(&live, folder.owner, folder.mode | 0o700)?;
        }
    }
    for path in undos.iter().filter(|path| !arrives(path)) {
        stands(root, path, &after)?;
    }
    Ok(())
}

/// The folders above what the moves of code move.
fn above_moves(moves: &Moves) -> BTreeSet<RelPath> {
    moves.moves.iter().filter(|m| !m.data).flat_map(|m| m.path.ancestors()).collect()
}

/// True when a folder stands at the path; the failed version may have closed it, so its owner may use it from here on.
/// Anything else that stands there is set aside.
fn stands(root: &InstallRoot, path: &RelPath, after: &Path) -> Result<bool> {
    let live = root.join(path);
    match fsx::metadata(&live)? {
        None => Ok(false),
        Some(is) if is.kind == FileType::Folder => match fsx::make_writable(&live) {
            // Another user's, which we may or may not use as it is.
            Err(e) if fsx::is_denied(&e) => Ok(true),
            opened => opened.map(|()| true),
        },
        Some(_) => transaction::set_aside(&live, after, path).map(|()| false),
    }
}

/// The folders of the old version and of the users, outermost first. A record of format 1 tells none; then those above
/// the moves.
fn known(record: Option<&backup::Record>, above: &BTreeSet<RelPath>) -> Vec<Folder> {
    match record.filter(|record| record.format > 1) {
        Some(record) => record.folders.clone(),
        None => {
            let plain = |path: &RelPath| Folder {
                path: path.clone(),
                mode: 0o755,
                owner: Owner::default(),
                mtime: 0,
                place: None,
            };
            above.iter().map(plain).collect()
        }
    }
}

/// Makes a data folder the link again that it was.
fn relink(root: &InstallRoot, link: &backup::Linked, after: &Path) -> Result<()> {
    let live = root.join(&link.path);
    let is = fsx::metadata(&live)?;
    let wanted = link.target();
    if is.is_some_and(|is| is.kind == FileType::Link) && fsx::link_target(&live)? == wanted {
        return Ok(());
    }
    if is.is_some() {
        transaction::set_aside(&live, after, &link.path)?;
    }
    files::make_link(&wanted, &live).with_context(|| format!("linking {} again", link.path))?;
    fsx::sync_parent(&live)
}

/// Gives every folder its owner, mode and access lists back; where data is kept as it is, those above the moves of code.
pub(super) fn put_back(
    root: &InstallRoot,
    dir: &Path,
    record: &backup::Record,
    moves: &Moves,
    data: DataPolicy,
) -> Result<()> {
    let above = above_moves(moves);
    let is_wanted = |path: &RelPath| data != DataPolicy::Kept || above.contains(path);
    // The deepest first: one that is closed again hides those in it.
    for folder in record.folders.iter().rev().filter(|folder| is_wanted(&folder.path)) {
        let live = root.join(&folder.path);
        let Some(is) = fsx::metadata(&live)?.filter(|is| is.kind == FileType::Folder) else { continue };
        if (is.mode, is.owner) != (folder.mode, folder.owner) {
            fsx::apply_folder_metadata(&live, folder.owner, folder.mode)?;
        }
        let saved = dir.join(folder.saved_at().to_path());
        if fsx::exists(&saved)? && !files::same_attributes(&saved, &live).unwrap_or(true) {
            files::copy_attributes(&saved, &live).with_context(|| format!("setting attributes of {}", folder.path))?;
            files::set_mode(&live, folder.mode).with_context(|| format!("setting the mode of {}", folder.path))?;
        }
    }
    Ok(())
}
