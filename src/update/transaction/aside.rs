//! What somebody wrote and has to give way: set aside in a folder of the backup, never dropped.

use super::rename;
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::dir::StateDir;
use crate::state::journal::Moves;
use crate::system::{FileType, files};
use crate::update::staging::annex;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// The name under which a copy is made in `after/`.
const PART: &str = ".updater-part";

/// What a failed version left, beside the files of a backup.
pub fn after(backup: &Path) -> PathBuf {
    backup.join("after")
}

/// What of the users' gave way to an update, beside the files of a backup.
pub fn aside(backup: &Path) -> PathBuf {
    backup.join("aside")
}

/// The place for `path` below `folder`; a name that is taken, by a file where a folder is needed, too, gets a number.
fn free_place(folder: &Path, path: &RelPath) -> Result<PathBuf> {
    let (mut to, whole) = (folder.to_path_buf(), path.to_path());
    let mut parts = whole.components().peekable();
    while let Some(part) = parts.next() {
        let is_last = parts.peek().is_none();
        let is_taken = |place: &Path| -> Result<bool> {
            Ok(fsx::metadata(place)?.is_some_and(|metadata| is_last || metadata.kind != FileType::Folder))
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
    if fsx::metadata(live)?.is_some_and(|metadata| metadata.kind == FileType::Folder && metadata.mode & 0o700 != 0o700)
    {
        fsx::make_writable(live)?;
    }
    match files::rename_new(live, &to) {
        // A preserved folder may be a link or a mount that leads to another volume.
        Err(e) if e.kind() == std::io::ErrorKind::CrossesDevices => {
            // Under its name only once it is whole.
            let part = after.join(PART);
            fsx::remove_own_file(&part)?;
            let metadata = files::metadata(live).with_context(|| format!("looking at {}", live.display()))?;
            fsx::copy(live, &part, &metadata)?;
            rename(&part, &to)?;
            fsx::sync_parent(&to)?;
            fsx::remove_file(live)?;
        }
        done => done.with_context(|| format!("moving {} to {}", live.display(), to.display()))?,
    }
    fsx::sync_parent(&to)
}

/// After the end of an update: what gave way on another volume goes to the backup's `after/`, as on this one.
pub(super) fn bring_home(state: &StateDir, moves: &Moves, after: &Path) -> Result<()> {
    annex::bring_home(state, moves, &|from, path| {
        // Cut off when it was there already: the copy is whole, and goes under no second name.
        if fsx::has_sha256(&after.join(path.to_path()), &fsx::sha256_of(from)?)? {
            return fsx::remove_own_file(from);
        }
        set_aside(from, after, path)
    })?;
    fsx::remove_own_file(&after.join(PART))
}
