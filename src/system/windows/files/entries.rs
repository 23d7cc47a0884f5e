//! The names in folders: made, listed, renamed, removed, links among them.
//! Refuses to replace anything by a rename, unless it is asked for.

use super::metadata::metadata;
use super::{check, is_one_of, wide};
use crate::system::FileType;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_INVALID_FUNCTION, ERROR_INVALID_PARAMETER, ERROR_LOCK_VIOLATION, ERROR_NOT_SAME_DEVICE,
    ERROR_NOT_SUPPORTED, ERROR_SHARING_VIOLATION, ERROR_TOO_MANY_LINKS,
};
use windows_sys::Win32::Storage::FileSystem::{MOVEFILE_REPLACE_EXISTING, MOVEFILE_WRITE_THROUGH, MoveFileExW};

/// How often a rename is tried while another program holds the file, and the pause between.
const RENAME_TRIES: u32 = 20;
const RENAME_PAUSE: Duration = Duration::from_millis(250);

/// Makes a second name for a file. Ok(false): the volume or the system does not allow it.
pub fn link_file(from: &Path, to: &Path) -> io::Result<bool> {
    let unable = [
        ERROR_ACCESS_DENIED,
        ERROR_INVALID_FUNCTION,
        ERROR_NOT_SUPPORTED,
        ERROR_INVALID_PARAMETER,
        ERROR_NOT_SAME_DEVICE,
        ERROR_TOO_MANY_LINKS,
    ];
    match std::fs::hard_link(from, to) {
        Ok(()) => Ok(true),
        Err(error) if is_one_of(&error, &unable) => Ok(false),
        Err(error) => Err(error),
    }
}

fn move_file(from: &Path, to: &Path, flags: u32) -> io::Result<()> {
    let (from, to) = (wide(from.as_os_str())?, wide(to.as_os_str())?);
    // SAFETY: both names end with 0 and live over the call.
    check(unsafe { MoveFileExW(from.as_ptr(), to.as_ptr(), flags | MOVEFILE_WRITE_THROUGH) })
}

/// Renames. Errors: `AlreadyExists` when anything stands at `to`.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    move_file(from, to, 0)
}

/// Renames, replacing what stands at `to`; waits a bounded time for a program that holds the file.
pub fn rename_over(from: &Path, to: &Path) -> io::Result<()> {
    let held = [ERROR_ACCESS_DENIED, ERROR_SHARING_VIOLATION, ERROR_LOCK_VIOLATION];
    let mut tries = 1;
    loop {
        match move_file(from, to, MOVEFILE_REPLACE_EXISTING) {
            Err(error) if is_one_of(&error, &held) && tries < RENAME_TRIES => {
                tries += 1;
                std::thread::sleep(RENAME_PAUSE);
            }
            done => return done,
        }
    }
}

/// Makes a symbolic link `at` that says `target`; of a folder if a folder is there now.
pub fn make_link(target: &Path, at: &Path) -> io::Result<()> {
    let full = at.parent().unwrap_or(Path::new("")).join(target);
    if full.is_dir() {
        std::os::windows::fs::symlink_dir(target, at)
    } else {
        std::os::windows::fs::symlink_file(target, at)
    }
}

/// Makes a folder; who may enter it is inherited. Ok if a folder is there. Errors: something else is.
pub fn private_folder(path: &Path) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && metadata(path)?.kind == FileType::Folder => {
            Ok(())
        }
        done => done,
    }
}

/// The target of a link.
pub fn link_target(path: &Path) -> io::Result<PathBuf> {
    std::fs::read_link(path)
}

/// Makes a folder.
pub fn make_folder(path: &Path) -> io::Result<()> {
    std::fs::create_dir(path)
}

/// Removes a file, or a link itself.
pub fn remove_file(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path)
}

/// Removes an empty folder.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    std::fs::remove_dir(path)
}

/// Removes a folder and all below it; links are removed, never followed.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    std::fs::remove_dir_all(path)
}

/// The names in a folder, in the order of the system.
pub fn names(folder: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    std::fs::read_dir(folder)?.map(|item| Ok(item?.file_name())).collect()
}
