//! Metadata of files and folders, read from one and given to another.

use crate::system::{self, FileMetadata, FileType, files};
use anyhow::{Context, Result};
use std::io;
use std::path::Path;

/// Makes `to` the equal of `from`, which has these metadata: owner, mode, access lists and other attributes, time.
/// Returns the attributes that could not be kept.
pub fn copy_metadata(from: &Path, to: &Path, metadata: &FileMetadata) -> Result<Vec<String>> {
    apply_metadata(to, metadata)?;
    let lost = files::copy_attributes(from, to).with_context(|| format!("setting attributes of {}", to.display()))?;
    files::set_mtime(to, metadata.mtime).with_context(|| format!("setting the time of {}", to.display()))?;
    Ok(lost)
}

/// Gives a folder its owner, where we may, and its mode.
pub fn apply_folder_metadata(folder: &Path, owner: system::Owner, mode: u32) -> Result<()> {
    let name = || format!("setting owner and mode of {}", folder.display());
    if files::metadata(folder).with_context(name)?.owner != owner {
        match files::set_owner(folder, owner) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
            done => done.with_context(name)?,
        }
    }
    files::set_mode(folder, mode).with_context(name)
}

/// Sets owner, mode and time of a file from `metadata`. Somebody else's file that we may read and not give away
/// becomes ours: its content counts.
pub fn apply_metadata(path: &Path, metadata: &FileMetadata) -> Result<()> {
    let name = || format!("setting owner, mode and time of {}", path.display());
    if files::metadata(path).with_context(name)?.owner != metadata.owner {
        match files::set_owner(path, metadata.owner) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
            done => done.with_context(name)?,
        }
    }
    if metadata.kind == FileType::File {
        files::set_mode(path, metadata.mode).with_context(name)?;
    }
    files::set_mtime(path, metadata.mtime).with_context(name)
}

/// Gives `path` the owner of the folder that it lies in, where we may: else what we make stays ours.
pub fn inherit_owner(path: &Path) -> Result<()> {
    let parent = path.parent().context("a file lies in a folder")?;
    let wanted = files::metadata(parent).with_context(|| format!("looking at {}", parent.display()))?.owner;
    let is = files::metadata(path).with_context(|| format!("looking at {}", path.display()))?.owner;
    if is != wanted {
        match files::set_owner(path, wanted) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
            done => done.with_context(|| format!("giving {} its owner", path.display()))?,
        }
    }
    Ok(())
}

/// The owner of the folder.
pub fn owner_of(path: &Path) -> Result<system::Owner> {
    Ok(files::metadata(path).with_context(|| format!("looking at {}", path.display()))?.owner)
}

/// The mode bits that a bundle may set: 0755 or 0644.
pub fn reduced_mode(mode: u32) -> u32 {
    if mode & 0o111 != 0 { 0o755 } else { 0o644 }
}
