//! The names in folders: made, listed, renamed, removed, links among them.
//! Refuses to replace anything by a rename, unless it is asked for.

use super::super::trust::anchored;
use super::metadata::metadata;
use crate::system::FileType;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// The target of a link.
pub fn link_target(path: &Path) -> io::Result<PathBuf> {
    std::fs::read_link(&*anchored(path)?)
}

/// Makes a folder.
pub fn make_folder(path: &Path) -> io::Result<()> {
    let entry = anchored(path)?;
    let (folder, name) = entry.at();
    Ok(rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(0o777))?)
}

/// Removes a file, or a link itself.
pub fn remove_file(path: &Path) -> io::Result<()> {
    let entry = anchored(path)?;
    let (folder, name) = entry.at();
    Ok(rustix::fs::unlinkat(folder, name, AtFlags::empty())?)
}

/// Removes an empty folder.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    let entry = anchored(path)?;
    let (folder, name) = entry.at();
    Ok(rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)?)
}

/// Removes a folder and all below it; links are removed, never followed.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    std::fs::remove_dir_all(&*anchored(path)?)
}

/// The names in a folder, in the order of the system. A link at the end of the path is followed, unless others could have
/// made it where root works.
pub fn names(folder: &Path) -> io::Result<Vec<OsString>> {
    let folder = anchored(folder)?;
    let names = |path: &Path| std::fs::read_dir(path)?.map(|item| Ok(item?.file_name())).collect();
    if folder.may_follow()? {
        return names(&folder);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = rustix::fs::open(&*folder, flags, Mode::empty())?;
    names(format!("/proc/self/fd/{}", held.as_raw_fd()).as_ref())
}

/// Makes a second name for a file. Ok(false): the volume or the system does not allow it.
pub fn link_file(from: &Path, to: &Path) -> io::Result<bool> {
    let (from, to) = (anchored(from)?, anchored(to)?);
    let ((from_folder, from_name), (to_folder, to_name)) = (from.at(), to.at());
    match rustix::fs::linkat(from_folder, from_name, to_folder, to_name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::PERM | Errno::ACCESS | Errno::MLINK | Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Renames. Errors: `AlreadyExists` when anything stands at `to`.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (anchored(from)?, anchored(to)?);
    let ((from_folder, from_name), (to_folder, to_name)) = (from.at(), to.at());
    match rustix::fs::renameat_with(from_folder, from_name, to_folder, to_name, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // This volume does not know the flag: look first. Only the lock's holder writes here.
        Err(Errno::INVAL | Errno::NOSYS) => match std::fs::symlink_metadata(&*to) {
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(rustix::fs::renameat(from_folder, from_name, to_folder, to_name)?)
            }
            Err(error) => Err(error),
        },
        Err(error) => Err(error.into()),
    }
}

/// Renames, replacing what stands at `to` in one step.
pub fn rename_over(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (anchored(from)?, anchored(to)?);
    let ((from_folder, from_name), (to_folder, to_name)) = (from.at(), to.at());
    Ok(rustix::fs::renameat(from_folder, from_name, to_folder, to_name)?)
}

/// Makes a symbolic link `at` that says `target`.
pub fn make_link(target: &Path, at: &Path) -> io::Result<()> {
    let entry = anchored(at)?;
    let (folder, name) = entry.at();
    Ok(rustix::fs::symlinkat(target, folder, name)?)
}

/// Makes a folder that only its owner may enter. Ok if a folder is there. Errors: something else is.
pub fn private_folder(path: &Path) -> io::Result<()> {
    let entry = anchored(path)?;
    let (folder, name) = entry.at();
    match rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(0o700)) {
        Err(Errno::EXIST) if metadata(path)?.kind == FileType::Folder => Ok(()),
        done => Ok(done?),
    }
}
