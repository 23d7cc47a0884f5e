//! Annexes: where data of the users lies on another volume than the install, what is put back there waits on that volume,
//! in a private folder of ours, and what gives way goes there, so that both are renames. The folder is written down
//! before it is made, and goes when nothing of the users' is left in it.
//! Refuses a folder that others own or may write in: what is staged there is ours alone.

use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::dir::StateDir;
use crate::state::journal::{Annex, Moves};
use crate::state::root::InstallRoot;
use crate::system::files;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// The annex for `path`, where the folder that it lies in is on another volume. Reads only. Errors: `other-volume`, the
/// folder that leads to that volume is not the install's own.
pub fn of(root: &InstallRoot, update_id: &str, path: &RelPath) -> Result<Option<Annex>> {
    let own = mount(root.path())?;
    let mut found: Option<(RelPath, PathBuf, (u64, u64))> = None;
    for above in path.ancestors().into_iter().rev() {
        // Through a link: what counts is where the files lie.
        let full = match fs_err::canonicalize(root.join(&above)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            full => full?,
        };
        let is = mount(&full)?;
        match &found {
            None if is == own => return Ok(None),
            Some((_, _, lowest)) if *lowest != is => break,
            _ => found = Some((above, full, is)),
        }
    }
    let Some((top, full, _)) = found else { return Ok(None) };
    refuse_others(root, &top, &full)?;
    Ok(Some(Annex { folder: full.join(format!(".updater-annex-{update_id}")), top }))
}

fn mount(path: &Path) -> Result<(u64, u64)> {
    files::mount(path).with_context(|| format!("looking at {}", path.display()))
}

fn refuse_others(root: &InstallRoot, top: &RelPath, full: &Path) -> Result<()> {
    let (owner, is) = (fsx::owner_of(root.path())?, files::metadata(full).context("looking at a data folder")?);
    let place = full.display();
    let (why, remedy) = match is.owner.uid == owner.uid {
        true if is.mode & 0o002 == 0 => return Ok(()),
        true => ("may be written by everybody", format!("close it to others: chmod o-w '{place}'")),
        false => (
            "belongs to another user",
            format!("give it to the owner of the install: chown {} '{place}'; or restore without --data", owner.uid),
        ),
    };
    let message = format!("{top} lies on another volume and {why}, so nothing can be put back there safely");
    Err(Failure::failed(Code::OtherVolume, message).at(place).remedy(remedy).into())
}

/// Writes the annex down and makes it. Nothing is done where that was done before.
pub fn make(state: &StateDir, annex: &Annex) -> Result<()> {
    let mut all = recorded(state)?;
    if all.contains(&annex.folder) {
        return Ok(());
    }
    all.push(annex.folder.clone());
    record(state, &all)?;
    // Never one that is there: it could be anybody's.
    anyhow::ensure!(!fsx::exists(&annex.folder)?, "{} is there already", annex.folder.display());
    files::private_folder(&annex.folder).with_context(|| format!("creating {}", annex.folder.display()))?;
    fsx::inherit_owner(&annex.folder)?;
    for folder in [waiting(annex), originals(annex)] {
        fsx::make_folder(&folder)?;
        fsx::inherit_owner(&folder)?;
    }
    files::sync_folder(&annex.folder).context("flushing an annex")?;
    fsx::sync_parent(&annex.folder)
}

/// What waits to arrive on that volume lies below it.
pub fn waiting(annex: &Annex) -> PathBuf {
    annex.folder.join("new")
}

/// What gives way on that volume goes below it.
pub fn originals(annex: &Annex) -> PathBuf {
    annex.folder.join("old")
}

/// Before an undo: an annex that cannot be seen holds what has to go back. Errors (exit 4): its volume is missing.
pub fn require(moves: &Moves) -> Result<()> {
    match moves.annexes.iter().find(|annex| !annex.folder.is_dir()) {
        Some(annex) => Err(missing(&annex.top, &annex.folder).into()),
        None => Ok(()),
    }
}

fn missing(top: &RelPath, folder: &Path) -> Failure {
    let message = format!("the volume to which {top} leads is missing, or {} on it", folder.display());
    Failure::operator(Code::VolumeMissing, message).at(folder.display()).remedy("mount that volume again")
}

/// After the last state of an update, in either direction: what gave way goes home to the backup's `after`, by copies
/// that may be cut off anywhere. Errors (exit 4): the volume is missing.
pub fn bring_home(state: &StateDir, moves: &Moves, put: &dyn Fn(&Path, &RelPath) -> Result<()>) -> Result<()> {
    for annex in &moves.annexes {
        if !annex.folder.is_dir() {
            if is_away(state, &annex.folder)? {
                return Err(missing(&annex.top, &annex.folder).into());
            }
            continue;
        }
        for intent in moves.moves.iter().filter(|m| m.old && moves.annex(&m.path) == Some(annex)) {
            let from = originals(annex).join(intent.path.to_path());
            if fsx::exists(&from)? {
                put(&from, &intent.path)?;
            }
        }
    }
    Ok(())
}

/// Removes the annexes of runs that have ended, and what waits in them. One that holds anything that gave way stays, and
/// so does one whose volume is missing: both are still written down.
pub fn clear(state: &StateDir) -> Result<()> {
    let all = recorded(state)?;
    if all.is_empty() {
        return fsx::remove_own_file(&state.annexes());
    }
    let mut left = Vec::new();
    for folder in all {
        if folder.is_dir() {
            fsx::remove_own_tree(&folder.join("new"))?;
            if holds_files(&folder)? {
                left.push(folder);
                continue;
            }
            fsx::remove_own_tree(&folder)?;
            fsx::sync_parent(&folder)?;
        } else if is_away(state, &folder)? {
            left.push(folder);
        }
    }
    if left.is_empty() { fsx::remove_own_file(&state.annexes()) } else { record(state, &left) }
}

fn holds_files(folder: &Path) -> Result<bool> {
    for item in walkdir::WalkDir::new(folder) {
        if !item.with_context(|| format!("looking into {}", folder.display()))?.file_type().is_dir() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// True where the volume of an annex is not there: the folder above it is missing, or one of the install's own volume.
fn is_away(state: &StateDir, folder: &Path) -> Result<bool> {
    let Some(above) = folder.parent().filter(|above| above.is_dir()) else { return Ok(true) };
    Ok(mount(above)? == mount(state.path())?)
}

/// The annexes of a run as they are written down: full paths, so that no link is needed to find them.
fn recorded(state: &StateDir) -> Result<Vec<PathBuf>> {
    match fsx::read(&state.annexes(), fsx::RECORD) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        bytes => serde_json::from_slice(&bytes?).with_context(|| format!("reading {}", state.annexes().display())),
    }
}

fn record(state: &StateDir, all: &[PathBuf]) -> Result<()> {
    fsx::write_atomic(&state.annexes(), &serde_json::to_vec(all)?)
}
