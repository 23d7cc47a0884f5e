//! Staging: everything that will arrive, written, dressed, flushed and hashed again on the target's
//! volume while the server still serves.
//! Refuses to touch anything outside `.updater/staging`, and, on other volumes, outside of annexes.

pub mod annex;

use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::dir::StateDir;
use crate::state::journal::Annex;
use crate::state::root::InstallRoot;
use crate::system::{FileMetadata, FileType, Owner, files, remedies};
use crate::update::bundle::{Bundle, Entry};
use crate::update::ownership::Ownership;
use crate::update::plan::{self, Action, Plan, Planned};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// One file that waits to arrive.
#[derive(Debug, Clone)]
pub struct StagedFile {
    pub path: RelPath,
    pub sha256: String,
    pub metadata: FileMetadata,
    /// It is a copy of what lies there, staged only so that it arrives last.
    pub is_copy: bool,
}

/// Where an arrival waits: on the volume where it will lie.
pub fn staged_path(root: &InstallRoot, annexes: &[Annex], path: &RelPath) -> PathBuf {
    let annex = Annex::among(annexes, path);
    annex.map_or_else(|| root.state().staged_tree(), annex::waiting).join(path.to_path())
}

/// An attribute of a file that its successor cannot have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    pub path: RelPath,
    pub attribute: String,
}

/// Everything that waits, and what of it is not as it was.
#[derive(Debug, Default)]
pub struct Written {
    pub staged: Vec<StagedFile>,
    pub lost: Vec<Lost>,
}

/// Writes every arrival of the plan. `start_file` is staged even when it does not change: it leaves
/// first and arrives last, so that a mixed tree cannot start.
pub fn write(
    ownership: &Ownership,
    bundle: &mut Bundle,
    plan: &Plan,
    start_file: &RelPath,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Written> {
    let root = &ownership.root;
    let tree = root.state().staged_tree();
    fsx::make_folders(&tree)?;
    let todo: Vec<&Planned> = plan.changes().filter(|p| p.action != Action::Remove).collect();
    let mut written = Written::default();
    for (n, planned) in todo.iter().enumerate() {
        stage(ownership, bundle, planned, &slot(root, plan, &planned.path)?, &mut written)?;
        progress(n as u64 + 1, todo.len() as u64)?;
    }
    if !written.staged.iter().any(|s| s.path == *start_file)
        && let Some(metadata) = fsx::metadata(&root.join(start_file))?
    {
        let to = tree.join(start_file.to_path());
        let sha256 = fsx::copy(&root.join(start_file), &to, &metadata)?;
        written.staged.push(StagedFile {
            path: start_file.clone(),
            sha256,
            metadata: files::metadata(&to)?,
            is_copy: true,
        });
    }
    sync_all(&tree, plan)?;
    Ok(written)
}

/// Stages what turned out after the stop to be needed, too: the actions at these positions.
pub fn write_late(ownership: &Ownership, bundle: &mut Bundle, plan: &Plan, late: &[usize]) -> Result<Vec<StagedFile>> {
    let tree = ownership.root.state().staged_tree();
    let mut written = Written::default();
    for at in late {
        let planned = &plan.actions[*at];
        stage(ownership, bundle, planned, &slot(&ownership.root, plan, &planned.path)?, &mut written)?;
    }
    sync_all(&tree, plan)?;
    Ok(written.staged)
}

/// Where one arrival is written; its annex is made first, where it has one.
fn slot(root: &InstallRoot, plan: &Plan, path: &RelPath) -> Result<PathBuf> {
    if let Some(annex) = plan.annex(path) {
        annex::make(root.state(), annex)?;
    }
    Ok(staged_path(root, &plan.annexes, path))
}

/// Writes one arrival with its metadata, flushes it and hashes it again.
fn stage(
    ownership: &Ownership,
    bundle: &mut Bundle,
    planned: &Planned,
    to: &Path,
    written: &mut Written,
) -> Result<()> {
    let index = planned.entry.context("an arrival has an entry")?;
    let entry = bundle.entries[index].clone();
    if let Some(parent) = to.parent() {
        fs_err::create_dir_all(parent)?;
    }
    let sha256 = if let Some(target) = &entry.link {
        // A saved one byte for byte: its target need be no text.
        let target = match bundle.saved_file(index) {
            Some(saved) => fsx::link_target(&saved)?,
            None => PathBuf::from(&**target),
        };
        files::make_link(&target, to).with_context(|| format!("staging the link {}", entry.path))?;
        give_owner(&ownership.root, &entry, planned, to)?;
        entry.sha256.to_string()
    } else {
        let mut file = fsx::create_new(to)?;
        let sha256 = write_contents(bundle, planned, index, &mut file)?;
        give_owner(&ownership.root, &entry, planned, to)?;
        let mode = plan::mode_of(&entry, planned.live.as_ref());
        files::set_mode(to, mode).with_context(|| format!("setting the mode of {}", entry.path))?;
        let lost = give_attributes(&ownership.root, bundle, planned, index, to)?;
        written.lost.extend(lost.into_iter().map(|attribute| Lost { path: planned.path.clone(), attribute }));
        // An access list brings the old file's mode with it.
        if files::metadata(to)?.mode != mode {
            files::set_mode(to, mode).with_context(|| format!("setting the mode of {}", entry.path))?;
        }
        give_time(&entry, planned.live.as_ref(), to)?;
        file.sync_all()?;
        sha256
    };
    if fsx::sha256_of(to)? != sha256 {
        return Err(Failure::failed(Code::BadWrite, format!("{} was not written as it should be", entry.path))
            .at(&entry.path)
            .remedy("check the disk, then try again")
            .into());
    }
    written.staged.push(StagedFile {
        path: planned.path.clone(),
        sha256,
        metadata: files::metadata(to)?,
        is_copy: false,
    });
    Ok(())
}

/// Writes the bytes; returns the hash that they must have.
fn write_contents(bundle: &mut Bundle, planned: &Planned, index: usize, file: &mut File) -> Result<String> {
    if let Some(content) = &planned.content {
        file.write_all(content)?;
        return Ok(fsx::sha256(content));
    }
    match bundle.saved_file(index) {
        Some(saved) => fsx::copy_contents(&saved, file)?,
        None => bundle.copy_entry(index, file)?,
    }
    Ok(bundle.entries[index].sha256.to_string())
}

fn give_owner(root: &InstallRoot, entry: &Entry, planned: &Planned, to: &Path) -> Result<()> {
    let owner = match (entry.owner(), planned.live) {
        (Some(owner), _) => owner,
        (None, Some(live)) => live.owner,
        (None, None) => nearest_folder(root, &planned.path)?.1.owner,
    };
    if files::metadata(to)?.owner != owner {
        // A new file only takes after its folder; one that is replaced keeps its owner.
        let is_new = entry.owner().is_none() && planned.live.is_none();
        match files::set_owner(to, owner) {
            Err(e) if is_new && e.kind() == std::io::ErrorKind::PermissionDenied => {}
            given => given.map_err(|e| cannot_own(&entry.path, owner, &e))?,
        }
    }
    Ok(())
}

/// Access lists, capabilities, labels: of the file that is replaced or put back; a new one takes what its folder gives.
/// Returns those that could not be given.
fn give_attributes(
    root: &InstallRoot,
    bundle: &Bundle,
    planned: &Planned,
    index: usize,
    to: &Path,
) -> Result<Vec<String>> {
    let live = planned.live.filter(|live| live.kind == FileType::File).map(|_| root.join(&planned.path));
    let given = match bundle.saved_file(index).or(live) {
        Some(from) => files::copy_attributes(&from, to),
        None => {
            let (folder, _) = nearest_folder(root, &planned.path)?;
            files::inherit_list(&folder, to).map(|()| Vec::new())
        }
    };
    given.with_context(|| format!("setting the attributes of {}", planned.path))
}

/// Written files get the time of staging, and what is put back its own; never size and second of what they replace, so
/// that no stale compiled form is believed.
fn give_time(entry: &Entry, live: Option<&FileMetadata>, to: &Path) -> Result<()> {
    const SECOND: i64 = 1_000_000_000;
    let FileMetadata { mtime: is, size, .. } = files::metadata(to)?;
    let wanted = entry.mtime().unwrap_or(is);
    // A compiled form is held against both: PEP 552.
    let looks_same =
        |live: &FileMetadata| live.size == size && live.mtime.div_euclid(SECOND) == wanted.div_euclid(SECOND);
    let is_same = live.is_some_and(looks_same);
    let wanted = if is_same && !entry.data { wanted + SECOND } else { wanted };
    if wanted != is {
        files::set_mtime(to, wanted).with_context(|| format!("setting the time of {}", entry.path))?;
    }
    Ok(())
}

fn cannot_own(path: &RelPath, owner: Owner, e: &std::io::Error) -> Failure {
    let (uid, gid) = (owner.uid, owner.gid);
    Failure::failed(Code::CannotOwn, format!("{path} cannot be given to its owner (user {uid}, group {gid}): {e}"))
        .at(path)
        .remedy(format!(
            "put the owner of the install into the group {gid} ({}), or give the file to a group of his",
            remedies::join_group()
        ))
}

/// The nearest folder that exists above `path`.
fn nearest_folder(root: &InstallRoot, path: &RelPath) -> Result<(PathBuf, FileMetadata)> {
    for above in path.ancestors().iter().rev() {
        let full = root.join(above);
        if let Some(metadata) = fsx::metadata(&full)?.filter(|metadata| metadata.kind == FileType::Folder) {
            return Ok((full, metadata));
        }
    }
    Ok((root.path().to_path_buf(), files::metadata(root.path()).context("looking at the install")?))
}

fn sync_all(tree: &Path, plan: &Plan) -> Result<()> {
    fsx::sync_folders(tree)?;
    plan.annexes.iter().filter(|annex| annex.folder.is_dir()).try_for_each(|annex| fsx::sync_folders(&annex.folder))
}

/// Sets room aside, so that a full disk cannot stop the way back. Errors: there is none.
pub fn reserve(state: &StateDir, bytes: u64) -> Result<()> {
    let path = state.reserve();
    let file = files::open_private(&path).with_context(|| format!("creating {}", path.display()))?;
    files::preallocate(&file, bytes).context("setting room aside for the way back")
}

/// Gives the room back: whoever calls this needs it now.
pub fn release_reserve(state: &StateDir) -> Result<()> {
    fsx::remove_own_file(&state.reserve())
}

/// Removes what an earlier run may have left; nothing in it is the only copy (see `rollback::undo`).
pub fn clear(state: &StateDir) -> Result<()> {
    fsx::remove_own_tree(&state.staging())
}
