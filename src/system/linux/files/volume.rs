//! What a volume does for files: flushes, shared contents, room.
//! Refuses to fail where a volume merely lacks something: it says so.

use super::super::trust::anchored;
use super::open::open_plain;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::Path;

/// Flushes a folder, so that the names in it survive a power cut.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    let entry = anchored(path)?;
    let (folder, name) = entry.at();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let follow = if entry.may_follow()? { OFlags::empty() } else { OFlags::NOFOLLOW };
    Ok(rustix::fs::fsync(rustix::fs::openat(folder, name, flags | follow, Mode::empty())?)?)
}

/// Flushes one file.
pub fn sync_file(path: &Path) -> io::Result<()> {
    open_plain(path)?.sync_all()
}

/// Flushes everything below `folder`: here by one call for its whole volume, which costs more where others write
/// much, and far less than a flush of every file.
pub fn sync_tree(folder: &Path) -> io::Result<()> {
    let folder = &*anchored(folder)?;
    Ok(rustix::fs::syncfs(File::open(folder)?)?)
}

/// Shares the contents of `src` with `dst` (a reflink). Ok(false): the volume cannot; nothing was written.
pub fn clone_contents(src: &File, dst: &File) -> io::Result<bool> {
    match rustix::fs::ioctl_ficlone(dst, src) {
        Ok(()) => Ok(true),
        Err(
            Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::INVAL | Errno::PERM | Errno::NOSYS | Errno::TXTBSY,
        ) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// True when files on the volume of `path` are likely to share their contents where they are copied. Source: the
/// numbers of btrfs, XFS and bcachefs in `linux/magic.h`; an XFS that was made without `reflink` cannot.
pub fn may_clone(path: &Path) -> io::Result<bool> {
    const CLONING: [u64; 3] = [0x9123_683e, 0x5846_5342, 0xca45_1a4e];
    let kind = rustix::fs::statfs(path)?.f_type as u64;
    Ok(CLONING.contains(&kind))
}

/// Reserves room for `size` bytes without changing the file's size; Ok where the volume cannot reserve.
pub fn preallocate(file: &File, size: u64) -> io::Result<()> {
    if size == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, size) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Bytes that this user may still write on the volume of `path`.
pub fn free_space(path: &Path) -> io::Result<u64> {
    let volume = rustix::fs::statvfs(path)?;
    Ok(volume.f_bavail.saturating_mul(volume.f_frsize))
}
