//! Facts and primitives of files on Linux: what an entry is, its owner, mode and time, flushes, reflinks,
//! room on the volume, renames that say whether they replace.
//! Refuses to follow a link at the end of a path, except where its target is asked for by an open file.

use super::trust::{Anchored, anchored};
use crate::system::{Attributes, Credentials, Facts, Kind, Owner};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags, StatxFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags,
};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The bytes of a path, `/` between its parts. Never None on Linux.
pub fn path_to_bytes(path: &Path) -> Option<Vec<u8>> {
    Some(path.as_os_str().as_bytes().to_vec())
}

/// The path of these bytes.
pub fn path_from_bytes(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// The permission bits that a file has here.
pub const MODE_BITS: u32 = 0o7777;

/// Why this system cannot hold a file of this name. None: it can.
pub fn bad_name(_part: &str) -> Option<&'static str> {
    None
}

/// What stands at `path`; a link is described, not followed.
pub fn facts(path: &Path) -> io::Result<Facts> {
    let path = &*anchored(path)?;
    std::fs::symlink_metadata(path).map(|data| facts_from(&data))
}

/// The volume on which a folder lies, and the mount by which it is reached: renames stay within both. (Before Linux 5.8
/// no mount is told, and one that binds a folder of the same volume is not noticed.)
pub fn mount(path: &Path) -> io::Result<(u64, u64)> {
    let seen = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID);
    let told = seen.ok().filter(|seen| seen.stx_mask & StatxFlags::MNT_ID.bits() != 0);
    Ok((facts(path)?.volume, told.map_or(0, |seen| seen.stx_mnt_id)))
}

/// What this open file is.
pub fn facts_of(file: &File) -> io::Result<Facts> {
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
pub fn own_files() -> Vec<Facts> {
    let places = ["/proc/self/exe", "/proc/self/fd/1", "/proc/self/fd/2"];
    let all = places.iter().filter_map(|place| std::fs::metadata(place).ok());
    all.filter(Metadata::is_file).map(|data| facts_from(&data)).collect()
}

fn facts_from(data: &Metadata) -> Facts {
    let kind = match data.file_type() {
        t if t.is_file() => Kind::File,
        t if t.is_dir() => Kind::Folder,
        t if t.is_symlink() => Kind::Link,
        _ => Kind::Other,
    };
    let nanos = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
    Facts {
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

/// The longest list of attribute names, and the longest value, in bytes (XATTR_LIST_MAX and XATTR_SIZE_MAX of
/// `linux/limits.h`).
const MAX_ATTRIBUTES: usize = 65_536;
/// The access lists of POSIX, as extended attributes. Source: acl(5), `linux/posix_acl_xattr.h`.
const ACCESS_LIST: &str = "system.posix_acl_access";
const DEFAULT_LIST: &str = "system.posix_acl_default";

/// The extended attributes of an entry: access lists, capabilities, labels, those of users. Empty where the volume
/// has none.
pub fn attributes(path: &Path) -> io::Result<Attributes> {
    let path = &*anchored(path)?;
    let mut names = vec![0; MAX_ATTRIBUTES];
    let length = match rustix::fs::llistxattr(path, names.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.into()),
    };
    let mut all = BTreeMap::new();
    let names = names.get(..length).unwrap_or_default();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; MAX_ATTRIBUTES];
        match rustix::fs::lgetxattr(path, name, value.as_mut_slice()) {
            Ok(length) => {
                value.truncate(length);
                all.insert(name.to_vec(), value);
            }
            // Gone meanwhile, or not ours to read.
            Err(Errno::NODATA | Errno::ACCESS | Errno::PERM | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all)
}

/// True when both have the same extended attributes.
pub fn same_attributes(one: &Path, other: &Path) -> io::Result<bool> {
    Ok(attributes(one)? == attributes(other)?)
}

/// Gives `to` the extended attributes of `from`, and no other. Set the owner and the mode before: the system clears
/// capabilities with them. Returns the names of those that could not be given.
pub fn copy_attributes(from: &Path, to: &Path) -> io::Result<Vec<String>> {
    give_attributes(to, &attributes(from)?)
}

/// Gives `to` these attributes, and no other; the same.
pub fn give_attributes(to: &Path, wanted: &Attributes) -> io::Result<Vec<String>> {
    let is = attributes(to)?;
    if *wanted == is {
        return Ok(Vec::new());
    }
    // Attributes of users' are written like contents, so not even its owner sets them where he may not write.
    let facts = facts(to)?;
    let is_closed = facts.kind != Kind::Link && facts.mode & 0o200 == 0;
    if is_closed && set_mode(to, facts.mode | 0o200).is_ok() {
        let lost = exchange_attributes(to, wanted, &is);
        set_mode(to, facts.mode)?;
        return lost;
    }
    exchange_attributes(to, wanted, &is)
}

/// Sets what `to` lacks of the attributes that are `wanted`, and takes away what `is` there beside them.
fn exchange_attributes(to: &Path, wanted: &Attributes, is: &Attributes) -> io::Result<Vec<String>> {
    let to = &*anchored(to)?;
    for name in is.keys().filter(|name| !wanted.contains_key(*name)) {
        match rustix::fs::lremovexattr(to, name.as_slice()) {
            // A label that the system gives by itself stays.
            Ok(()) | Err(Errno::PERM | Errno::ACCESS | Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut lost = Vec::new();
    // An access list may close the file to its owner, so it comes after what is written like contents.
    let is_list = |name: &[u8]| name == ACCESS_LIST.as_bytes();
    let (lists, others): (Vec<_>, Vec<_>) = wanted.iter().partition(|(name, _)| is_list(name));
    let missing = others.into_iter().chain(lists).filter(|(name, value)| is.get(*name) != Some(value));
    for (name, value) in missing {
        match rustix::fs::lsetxattr(to, name.as_slice(), value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL) => {
                lost.push(String::from_utf8_lossy(name).into_owned());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(lost)
}

/// True when the folder has a default access list, which what is made in it takes.
pub fn has_default_list(folder: &Path) -> io::Result<bool> {
    Ok(attributes(folder)?.contains_key(DEFAULT_LIST.as_bytes()))
}

/// Gives a new file what `folder` gives to what is made in it: its default access list, limited by the file's mode.
pub fn inherit_list(folder: &Path, file: &Path) -> io::Result<()> {
    let Some(mut list) = attributes(folder)?.remove(DEFAULT_LIST.as_bytes()) else { return Ok(()) };
    let mode = facts(file)?.mode;
    let file = &*anchored(file)?;
    // A header of 4 bytes, then entries of a tag and permissions (2 bytes each, little-endian) and an id of 4 bytes.
    let (owner, group, mask, other) = (0x01, 0x04, 0x10, 0x20);
    let entries = |list: &[u8]| list.get(4..).unwrap_or_default().chunks_exact(8).map(|e| e[0]).collect::<Vec<u8>>();
    let has_mask = entries(&list).contains(&mask);
    for entry in list.get_mut(4..).unwrap_or_default().chunks_exact_mut(8) {
        let limit = match entry[0] {
            tag if tag == owner => mode >> 6,
            tag if tag == mask || (tag == group && !has_mask) => mode >> 3,
            tag if tag == other => mode,
            _ => continue,
        };
        entry[2] &= (limit & 7) as u8;
    }
    match rustix::fs::lsetxattr(file, ACCESS_LIST, &list, XattrFlags::empty()) {
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
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

/// Opens an ordinary file for reading, without waiting for anybody. Errors: anything else stands there, also a link.
pub fn open_plain(path: &Path) -> io::Result<File> {
    open_ordinary(&anchored(path)?, OFlags::RDONLY | OFlags::NOFOLLOW)
}

/// The same, following a link at the end of the path, unless others could have made it where root works.
pub fn open_to_read(path: &Path) -> io::Result<File> {
    let entry = anchored(path)?;
    let follow = if entry.may_follow()? { OFlags::empty() } else { OFlags::NOFOLLOW };
    open_ordinary(&entry, OFlags::RDONLY | follow)
}

/// Opens, or with `CREATE` makes for its owner alone, an ordinary file, without waiting for anybody.
fn open_ordinary(entry: &Anchored, flags: OFlags) -> io::Result<File> {
    let (folder, name) = entry.at();
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file: File = match rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o600)) {
        // A socket, a pipe that nobody reads, or a device that has no driver.
        Err(Errno::NXIO) => return Err(no_file()),
        opened => opened?.into(),
    };
    if file.metadata()?.is_file() { Ok(file) } else { Err(no_file()) }
}

fn no_file() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is no ordinary file")
}

/// Creates a file that nothing stands in the place of, for its owner alone to read and write.
pub fn create_new(path: &Path) -> io::Result<File> {
    open_ordinary(&anchored(path)?, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
}

/// Opens an ordinary file for reading and writing; its contents stay. Errors: anything else stands there.
pub fn open_to_change(path: &Path) -> io::Result<File> {
    open_ordinary(&anchored(path)?, OFlags::RDWR | OFlags::NOFOLLOW)
}

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

/// The longest path that a call takes, in bytes (PATH_MAX of `limits.h`, without the final zero).
pub const MAX_PATH: usize = 4095;

/// True for a path that is another file to each process: `/dev/fd/3` of a server is, to us, one of ours.
pub fn is_per_process(path: &Path) -> bool {
    ["/dev", "/proc"].iter().any(|own| path.starts_with(own))
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
    let kind = facts(path)?.kind;
    if kind == Kind::Folder {
        match rustix::fs::access(path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK) {
            Ok(()) => {}
            Err(Errno::ROFS) => return Ok(Some("its volume is read-only")),
            Err(Errno::ACCESS | Errno::PERM) => return Ok(Some("this user may not write in it")),
            Err(error) => return Err(error.into()),
        }
    }
    if !matches!(kind, Kind::File | Kind::Folder) {
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
        Err(Errno::EXIST) if facts(path)?.kind == Kind::Folder => Ok(()),
        done => Ok(done?),
    }
}

/// Opens for reading and writing, creating with mode 0600; the contents stay. Errors: a link, or no file, stands there.
pub fn open_private(path: &Path) -> io::Result<File> {
    open_ordinary(&anchored(path)?, OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW)
}

/// Opens a log for appending, creating with mode 0640. Errors: a link stands there, or a pipe that nobody reads.
pub fn open_log(path: &Path) -> io::Result<File> {
    let entry = anchored(path)?;
    let (folder, name) = entry.at();
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o640))?.into())
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn facts_describe_a_link_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("f"), dir.path().join("l"));
        std::fs::write(&file, "abc").unwrap();
        make_link(Path::new("f"), &link).unwrap();
        assert_eq!(facts(&file).unwrap().kind, Kind::File);
        assert_eq!(facts(&file).unwrap().size, 3);
        assert_eq!(facts(&link).unwrap().kind, Kind::Link);
        assert_eq!(facts(dir.path()).unwrap().kind, Kind::Folder);
        assert_eq!(facts(Path::new("/dev/null")).unwrap().kind, Kind::Other);
        assert_eq!(facts_of(&File::open(&link).unwrap()).unwrap(), facts(&file).unwrap());
    }

    #[test]
    fn mode_time_and_owner_never_pass_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("f"), dir.path().join("l"));
        std::fs::write(&file, "abc").unwrap();
        make_link(Path::new("f"), &link).unwrap();
        set_mode(&file, 0o640).unwrap();
        set_mtime(&file, -1_500_000_000).unwrap();
        let before = facts(&file).unwrap();
        assert_eq!((before.mode, before.mtime), (0o640, -1_500_000_000));
        assert!(set_mode(&link, 0o777).is_err());
        set_mtime(&link, 77).unwrap();
        set_owner(&link, facts(&link).unwrap().owner).unwrap();
        assert_eq!(facts(&link).unwrap().mtime, 77);
        assert_eq!(facts(&file).unwrap(), before);
    }

    #[test]
    fn renames_say_whether_they_replace() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, "a").unwrap();
        std::fs::write(&b, "b").unwrap();
        assert_eq!(rename_new(&a, &b).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&b).unwrap(), b"b");
        rename_over(&a, &b).unwrap();
        assert_eq!(std::fs::read(&b).unwrap(), b"a");
        rename_new(&b, &a).unwrap();
        sync_folder(dir.path()).unwrap();
        assert!(sync_folder(&a).is_err());
    }

    #[test]
    fn private_things_are_private_and_keep_their_contents() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, file) = (dir.path().join("d"), dir.path().join("f"));
        private_folder(&folder).unwrap();
        private_folder(&folder).unwrap();
        assert_eq!(facts(&folder).unwrap().mode, 0o700);
        open_private(&file).unwrap().write_all(b"abc").unwrap();
        assert_eq!(facts_of(&open_private(&file).unwrap()).unwrap().size, 3);
        assert_eq!(facts(&file).unwrap().mode, 0o600);
        assert!(private_folder(&file).is_err());
        make_link(Path::new("f"), &dir.path().join("l")).unwrap();
        assert!(open_private(&dir.path().join("l")).is_err());
    }

    #[test]
    fn room_and_clones() {
        let dir = tempfile::tempdir().unwrap();
        assert!(free_space(dir.path()).unwrap() > 0);
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, "abc").unwrap();
        let to = File::create(&b).unwrap();
        preallocate(&to, 1 << 20).unwrap();
        assert_eq!(facts(&b).unwrap().size, 0);
        let cloned = clone_contents(&File::open(&a).unwrap(), &to).unwrap();
        assert_eq!(std::fs::read(&b).unwrap(), if cloned { &b"abc"[..] } else { b"" });
        let odd = path_from_bytes(b"a/\xff");
        assert_eq!(path_to_bytes(&odd).unwrap(), b"a/\xff");
    }
}
