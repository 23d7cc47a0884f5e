//! What an entry is: its kind, owner, mode and times, and a folder that is held open.
//! Refuses to follow a link at the end of a path.

use super::super::trust::anchored;
use crate::system::{Credentials, FileMetadata, FileType, Owner};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// What stands at `path`; a link is described, not followed.
pub fn metadata(path: &Path) -> io::Result<FileMetadata> {
    let path = &*anchored(path)?;
    std::fs::symlink_metadata(path).map(|data| facts_from(&data))
}

/// The volume on which a folder lies, and the mount by which it is reached: renames stay within both. (Before Linux 5.8
/// no mount is told, and one that binds a folder of the same volume is not noticed.)
pub fn mount(path: &Path) -> io::Result<(u64, u64)> {
    let seen = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID);
    let told = seen.ok().filter(|seen| seen.stx_mask & StatxFlags::MNT_ID.bits() != 0);
    Ok((metadata(path)?.volume, told.map_or(0, |seen| seen.stx_mnt_id)))
}

/// What this open file is.
pub fn metadata_of(file: &File) -> io::Result<FileMetadata> {
    file.metadata().map(|data| facts_from(&data))
}

/// A folder that is held open, whatever becomes of its name.
#[derive(Debug)]
pub struct Folder(File);

impl Folder {
    /// Errors: there is no folder at `path`; a link is none.
    pub fn open(path: &Path) -> io::Result<Folder> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Folder(rustix::fs::open(path, flags, Mode::empty())?.into()))
    }

    /// True when it still is what stands at `path`.
    pub fn is_at(&self, path: &Path) -> io::Result<bool> {
        let (is, there) = (self.0.metadata()?, std::fs::symlink_metadata(path)?);
        Ok((is.dev(), is.ino()) == (there.dev(), there.ino()))
    }

    /// Makes it the working folder.
    pub fn enter(&self) -> io::Result<()> {
        std::env::set_current_dir(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// This program, and the files that are open as its standard output and error.
pub fn own_files() -> Vec<FileMetadata> {
    let places = ["/proc/self/exe", "/proc/self/fd/1", "/proc/self/fd/2"];
    let all = places.iter().filter_map(|place| std::fs::metadata(place).ok());
    all.filter(Metadata::is_file).map(|data| facts_from(&data)).collect()
}

fn facts_from(data: &Metadata) -> FileMetadata {
    let kind = match data.file_type() {
        t if t.is_file() => FileType::File,
        t if t.is_dir() => FileType::Folder,
        t if t.is_symlink() => FileType::Link,
        _ => FileType::Other,
    };
    let nanos = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
    FileMetadata {
        kind,
        size: data.size(),
        mode: data.mode() & 0o7777,
        owner: Owner { uid: data.uid(), gid: data.gid() },
        mtime: nanos(data.mtime(), data.mtime_nsec()),
        ctime: nanos(data.ctime(), data.ctime_nsec()),
        volume: data.dev(),
        inode: data.ino(),
        links: data.nlink(),
    }
}

/// Gives the entry (a link itself) to `owner`. The system may clear setuid bits: set the mode afterwards.
pub fn set_owner(path: &Path, owner: Owner) -> io::Result<()> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(owner.uid), rustix::fs::Gid::from_raw(owner.gid));
    let entry = anchored(path)?;
    let (folder, name) = entry.at();
    Ok(rustix::fs::chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Sets the permission bits. Errors: the entry is a link.
pub fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    let entry = anchored(path)?;
    let (folder, name) = entry.at();
    let held = rustix::fs::openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let held = File::from(held);
    if held.metadata()?.file_type().is_symlink() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a link has no mode of its own"));
    }
    // fchmod refuses an O_PATH handle; its name under /proc leads to the same entry, whatever was renamed since.
    Ok(rustix::fs::chmod(format!("/proc/self/fd/{}", held.as_raw_fd()), Mode::from_raw_mode(mode & 0o7777))?)
}

/// Sets the time of the last change of content (nanoseconds since 1970) of the entry, a link itself; the
/// time of the last reading stays.
pub fn set_mtime(path: &Path, mtime: i64) -> io::Result<()> {
    let entry = anchored(path)?;
    let (folder, name) = entry.at();
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec {
            tv_sec: mtime.div_euclid(1_000_000_000),
            tv_nsec: mtime.rem_euclid(1_000_000_000),
        },
    };
    Ok(rustix::fs::utimensat(folder, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// How many bytes the file takes on its volume: a sparse one takes less than its size.
pub fn allocated(path: &Path) -> io::Result<u64> {
    let path = &*anchored(path)?;
    use std::os::unix::fs::MetadataExt;
    // In units of 512 bytes, whatever the volume's blocks are (stat(3type)).
    Ok(std::fs::symlink_metadata(path)?.blocks() * 512)
}

/// Why names in this folder, or this file itself, cannot be moved; None where nothing speaks against it.
pub fn obstacle(path: &Path) -> io::Result<Option<&'static str>> {
    let path = &*anchored(path)?;
    let kind = metadata(path)?.kind;
    if kind == FileType::Folder {
        match rustix::fs::access(path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK) {
            Ok(()) => {}
            Err(Errno::ROFS) => return Ok(Some("its volume is read-only")),
            Err(Errno::ACCESS | Errno::PERM) => return Ok(Some("this user may not write in it")),
            Err(error) => return Err(error.into()),
        }
    }
    if !matches!(kind, FileType::File | FileType::Folder) {
        return Ok(None);
    }
    // A file that may not be read is found out elsewhere; a volume without such flags has none.
    let Ok(file) = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path) else {
        return Ok(None);
    };
    Ok(match rustix::fs::ioctl_getflags(&file) {
        Ok(flags) if flags.contains(rustix::fs::IFlags::IMMUTABLE) => Some("it is immutable (chattr +i)"),
        Ok(flags) if flags.contains(rustix::fs::IFlags::APPEND) => Some("it is append-only (chattr +a)"),
        _ => None,
    })
}

/// Whether `user` may write to the file, by modes and owners alone: an access list may allow more.
/// False where the system does not tell.
pub fn may_write(path: &Path, user: &Credentials) -> bool {
    let may = |path: &Path, bit: u32| {
        std::fs::metadata(path).is_ok_and(|m| {
            let shift = match () {
                () if m.uid() == user.uid => 6,
                () if m.gid() == user.gid || user.groups.contains(&m.gid()) => 3,
                () => 0,
            };
            m.mode() >> shift & bit != 0
        })
    };
    user.uid == 0 || may(path, 2) && path.ancestors().skip(1).all(|folder| may(folder, 1))
}
