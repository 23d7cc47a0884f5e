//! Staging: everything that will arrive, written, dressed, flushed and hashed again on the target's
//! volume while the server still serves.
//! Refuses to touch anything outside `.updater/staging`.

use crate::bundle::Bundle;
use crate::error::Failure;
use crate::fsx;
use crate::os::{Facts, Kind, Owner, files};
use crate::path::{InstallRoot, RelPath};
use crate::plan::{Action, Plan, Planned};
use anyhow::{Context, Result};
use std::io::Write;
use std::path::{Path, PathBuf};

/// One file that waits to arrive.
#[derive(Debug, Clone)]
pub struct Staged {
    pub path: RelPath,
    pub sha256: String,
    pub facts: Facts,
}

/// The folder that holds what waits to arrive.
pub fn tree(own: &Path) -> PathBuf {
    own.join("staging/tree")
}

/// Where the originals go.
pub fn trash(own: &Path) -> PathBuf {
    own.join("trash")
}

/// The copy that takes the place of what hooks may write; `slot` is its number in the journal.
pub fn copy_of(own: &Path, slot: usize) -> PathBuf {
    own.join("staging/copies").join(slot.to_string())
}

/// Where the original of such a copy goes.
pub fn original_of(own: &Path, slot: usize) -> PathBuf {
    originals(own).join(slot.to_string())
}

/// Where the originals of all such copies go.
pub fn originals(own: &Path) -> PathBuf {
    own.join("originals")
}

/// Writes every arrival of the plan. `start_file` is staged even when it does not change: it leaves
/// first and arrives last, so that a mixed tree cannot start.
pub fn write(
    root: &InstallRoot,
    bundle: &mut Bundle,
    plan: &Plan,
    start_file: &RelPath,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<Staged>> {
    let tree = tree(&root.own());
    fsx::make_folders(&tree)?;
    let todo: Vec<&Planned> = plan.changes().filter(|p| p.action != Action::Remove).collect();
    let mut staged = Vec::new();
    for (n, planned) in todo.iter().enumerate() {
        staged.push(stage(root, bundle, planned, &tree)?);
        progress(n as u64 + 1, todo.len() as u64);
    }
    if !staged.iter().any(|s| s.path == *start_file)
        && let Some(facts) = fsx::facts(&root.join(start_file))?
    {
        let to = tree.join(start_file.to_path());
        let sha256 = fsx::copy(&root.join(start_file), &to, &facts)?;
        staged.push(Staged { path: start_file.clone(), sha256, facts: files::facts(&to)? });
    }
    sync_folders(&tree)?;
    Ok(staged)
}

/// Stages what turned out after the stop to be needed, too: the actions at these positions.
pub fn write_late(root: &InstallRoot, bundle: &mut Bundle, plan: &Plan, late: &[usize]) -> Result<Vec<Staged>> {
    let tree = tree(&root.own());
    let staged = late.iter().map(|at| stage(root, bundle, &plan.actions[*at], &tree)).collect::<Result<Vec<_>>>()?;
    sync_folders(&tree)?;
    Ok(staged)
}

fn stage(root: &InstallRoot, bundle: &mut Bundle, planned: &Planned, tree: &Path) -> Result<Staged> {
    let index = planned.entry.context("an arrival has an entry")?;
    let entry = bundle.entries[index].clone();
    let to = tree.join(planned.path.to_path());
    if let Some(parent) = to.parent() {
        fs_err::create_dir_all(parent)?;
    }
    let sha256 = if let Some(target) = &entry.link {
        files::make_link(Path::new(target), &to).with_context(|| format!("staging the link {}", entry.path))?;
        entry.sha256.clone()
    } else {
        let mut file = fs_err::OpenOptions::new().write(true).create_new(true).open(&to)?;
        let sha256 = match &planned.content {
            Some(content) => {
                file.write_all(content)?;
                fsx::sha256(content)
            }
            // What it holds is hashed below.
            None => {
                match bundle.saved_file(index) {
                    Some(saved) => fsx::copy_contents(&saved, file.file_mut())?,
                    None => bundle.copy_entry(index, &mut file)?,
                }
                entry.sha256.clone()
            }
        };
        let keep = matches!(planned.action, Action::Merge | Action::Carry);
        let mode = planned.live.filter(|_| keep).map_or(entry.mode, |live| live.mode);
        files::set_mode(&to, mode).with_context(|| format!("setting the mode of {}", entry.path))?;
        file.sync_all()?;
        sha256
    };
    let owner = match (entry.owner, planned.live) {
        (Some(owner), _) => owner,
        (None, Some(live)) => live.owner,
        (None, None) => folder_owner(root, &planned.path)?,
    };
    if files::facts(&to)?.owner != owner {
        // A new file only takes after its folder; one that is replaced keeps its owner.
        let is_new = entry.owner.is_none() && planned.live.is_none();
        match files::set_owner(&to, owner) {
            Err(e) if is_new && e.kind() == std::io::ErrorKind::PermissionDenied => {}
            given => given.map_err(|e| cannot_own(&entry.path, owner, &e))?,
        }
    }
    if fsx::sha256_of(&to)? != sha256 {
        return Err(Failure::failed("bad-write", format!("{} was not written as it should be", entry.path))
            .at(&entry.path)
            .remedy("check the disk, then try again")
            .into());
    }
    Ok(Staged { path: planned.path.clone(), sha256, facts: files::facts(&to)? })
}

fn cannot_own(path: &RelPath, owner: Owner, e: &std::io::Error) -> Failure {
    let (uid, gid) = (owner.uid, owner.gid);
    Failure::failed("cannot-own", format!("{path} cannot be given to its owner (user {uid}, group {gid}): {e}"))
        .at(path)
        .remedy(format!(
            "put the owner of the install into the group {gid} (usermod -aG), or give the file to a group of his"
        ))
}

/// The owner of the nearest folder that exists above `path`.
fn folder_owner(root: &InstallRoot, path: &RelPath) -> Result<Owner> {
    for above in path.ancestors().iter().rev() {
        if let Some(facts) = fsx::facts(&root.join(above))?
            && facts.kind == Kind::Folder
        {
            return Ok(facts.owner);
        }
    }
    fsx::owner_of(root.path())
}

fn sync_folders(tree: &Path) -> Result<()> {
    for item in walkdir::WalkDir::new(tree) {
        let item = item?;
        if item.file_type().is_dir() {
            files::sync_folder(item.path()).with_context(|| format!("flushing {}", item.path().display()))?;
        }
    }
    Ok(())
}

/// Sets room aside, so that a full disk cannot stop the way back. Errors: there is none.
pub fn reserve(own: &Path, bytes: u64) -> Result<()> {
    let path = own.join(RESERVE);
    let file = files::open_private(&path).with_context(|| format!("creating {}", path.display()))?;
    files::preallocate(&file, bytes).context("setting room aside for the way back")
}

/// Gives the room back: whoever calls this needs it now.
pub fn release_reserve(own: &Path) -> Result<()> {
    fsx::remove_own_file(&own.join(RESERVE))
}

const RESERVE: &str = "staging/reserve";

/// Removes what an earlier run may have left; nothing in it is the only copy (see `rollback::undo`).
pub fn clear(own: &Path) -> Result<()> {
    fsx::remove_own_tree(&own.join("staging"))
}
