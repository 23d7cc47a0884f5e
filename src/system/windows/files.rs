//! Facts and primitives of files on Windows: what an entry is, its read-only mark and time, flushes, block
//! clones, room on the volume, renames that say whether they replace.
//! Refuses to follow a link at the end of a path. Ownership is inherited from the folder and never set.

use crate::system::{Credentials, Facts, Kind, Owner};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::windows::ffi::OsStrExt;
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::AsRawHandle;
use std::path::{Path, PathBuf};
use std::time::Duration;
use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_INVALID_FUNCTION, ERROR_INVALID_HANDLE, ERROR_INVALID_PARAMETER, ERROR_LOCK_VIOLATION,
    ERROR_NOT_SAME_DEVICE, ERROR_NOT_SUPPORTED, ERROR_SHARING_VIOLATION, ERROR_TOO_MANY_LINKS, FILETIME, GENERIC_WRITE,
};
use windows_sys::Win32::Storage::FileSystem::{
    BY_HANDLE_FILE_INFORMATION, FILE_ALLOCATION_INFO, FILE_ATTRIBUTE_READONLY, FILE_BASIC_INFO,
    FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_OPEN_REPARSE_POINT, FILE_READ_ATTRIBUTES, FILE_WRITE_ATTRIBUTES,
    FileAllocationInfo, FileBasicInfo, GetDiskFreeSpaceExW, GetFileInformationByHandle, GetFileInformationByHandleEx,
    MOVEFILE_REPLACE_EXISTING, MOVEFILE_WRITE_THROUGH, MoveFileExW, SetFileInformationByHandle, SetFileTime,
};
use windows_sys::Win32::System::IO::DeviceIoControl;
use windows_sys::Win32::System::Ioctl::{DUPLICATE_EXTENTS_DATA, FSCTL_DUPLICATE_EXTENTS_TO_FILE};

/// FILETIME of 1970-01-01, in its units of 100 ns since 1601.
const UNIX_EPOCH: i64 = 116_444_736_000_000_000;
/// How often a rename is tried while another program holds the file, and the pause between.
const RENAME_TRIES: u32 = 20;
const RENAME_PAUSE: Duration = Duration::from_millis(250);

/// The bytes of a path, `/` between its parts. None when it is not Unicode.
pub fn path_to_bytes(path: &Path) -> Option<Vec<u8>> {
    Some(path.to_str()?.replace('\\', "/").into_bytes())
}

/// The path of these bytes.
pub fn path_from_bytes(bytes: &[u8]) -> PathBuf {
    PathBuf::from(String::from_utf8_lossy(bytes).replace('/', "\\"))
}

/// A text as the system wants it. Errors: it holds a NUL.
pub(super) fn wide(text: &OsStr) -> io::Result<Vec<u16>> {
    let mut units: Vec<u16> = text.encode_wide().collect();
    if units.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the text holds a NUL"));
    }
    units.push(0);
    Ok(units)
}

/// The answer of a call that gives 0 when it failed.
pub(super) fn check(result: i32) -> io::Result<()> {
    if result == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// True when the system gave one of these error numbers.
pub(super) fn is_one_of(error: &io::Error, codes: &[u32]) -> bool {
    error.raw_os_error().is_some_and(|code| codes.contains(&(code as u32)))
}

/// Opens the entry itself, also a folder or a link.
fn open_entry(path: &Path, access: u32) -> io::Result<File> {
    let flags = FILE_FLAG_BACKUP_SEMANTICS | FILE_FLAG_OPEN_REPARSE_POINT;
    OpenOptions::new().access_mode(access).custom_flags(flags).open(path)
}

/// Names that Windows takes for devices, whatever their extension.
/// Source: "Naming Files, Paths, and Namespaces", Microsoft Learn.
const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "conin$", "conout$"];
/// The permission bits that a file has here: the read-only mark.
pub const MODE_BITS: u32 = 0o222;

/// Why this system cannot hold a file of this name. None: it can.
/// Source: "Naming Files, Paths, and Namespaces", Microsoft Learn.
pub fn bad_name(part: &str) -> Option<&'static str> {
    if part.contains([':', '<', '>', '"', '|', '?', '*']) {
        return Some("the name holds one of : < > \" | ? *");
    }
    if part.ends_with(['.', ' ']) {
        return Some("a part ends with a dot or a space");
    }
    let stem = part.split('.').next().unwrap_or(part).trim_end().to_lowercase();
    let numbered = (stem.starts_with("com") || stem.starts_with("lpt"))
        && stem.chars().count() == 4
        && stem.chars().last().is_some_and(|c| c.is_ascii_digit() || "\u{b9}\u{b2}\u{b3}".contains(c));
    let is_device = DEVICES.contains(&stem.as_str()) || numbered;
    is_device.then_some("the name is a Windows device")
}

/// What stands at `path`; a link is described, not followed.
pub fn facts(path: &Path) -> io::Result<Facts> {
    facts_of(&open_entry(path, FILE_READ_ATTRIBUTES)?)
}

/// A folder that is known by its number on its volume, whatever becomes of its name.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    id: (u64, u64),
}

impl Folder {
    /// Errors: there is no folder at `path`; a link is none.
    pub fn open(path: &Path) -> io::Result<Folder> {
        let is = facts(path)?;
        if is.kind != Kind::Folder {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Folder { path: path.to_path_buf(), id: (is.volume, is.inode) })
    }

    /// True when it still is what stands at `path`.
    pub fn is_at(&self, path: &Path) -> io::Result<bool> {
        let there = facts(path)?;
        Ok(self.id == (there.volume, there.inode))
    }

    /// Makes it the working folder.
    pub fn enter(&self) -> io::Result<()> {
        std::env::set_current_dir(&self.path)
    }
}

/// The volume on which a folder lies; the second number is of other systems.
pub fn mount(path: &Path) -> io::Result<(u64, u64)> {
    Ok((facts(path)?.volume, 0))
}

/// This program, and the files that are open as its standard output and error.
pub fn own_files() -> Vec<Facts> {
    use std::os::windows::io::AsHandle;
    let exe = std::env::current_exe().ok().and_then(|exe| facts(&exe).ok());
    let outputs =
        [std::io::stdout().as_handle().try_clone_to_owned(), std::io::stderr().as_handle().try_clone_to_owned()];
    let outputs = outputs.into_iter().filter_map(|handle| facts_of(&File::from(handle.ok()?)).ok());
    exe.into_iter().chain(outputs).filter(|facts| facts.kind == Kind::File).collect()
}

/// What this open file is.
pub fn facts_of(file: &File) -> io::Result<Facts> {
    let mut info = BY_HANDLE_FILE_INFORMATION::default();
    // SAFETY: the handle is open while `file` lives; `info` is ours and of the type asked for.
    check(unsafe { GetFileInformationByHandle(file.as_raw_handle(), &mut info) })?;
    let mut times = FILE_BASIC_INFO::default();
    let size = size_of::<FILE_BASIC_INFO>() as u32;
    let at = (&raw mut times).cast();
    // SAFETY: as above; `at` points to `size` bytes of ours, the type that FileBasicInfo fills.
    check(unsafe { GetFileInformationByHandleEx(file.as_raw_handle(), FileBasicInfo, at, size) })?;
    let file_type = file.metadata()?.file_type();
    let kind = match file_type {
        t if t.is_symlink() => Kind::Link,
        t if t.is_dir() => Kind::Folder,
        t if t.is_file() => Kind::File,
        _ => Kind::Other,
    };
    let join = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
    let nanos = |time: i64| time.saturating_sub(UNIX_EPOCH).saturating_mul(100);
    Ok(Facts {
        kind,
        size: join(info.nFileSizeHigh, info.nFileSizeLow),
        mode: if info.dwFileAttributes & FILE_ATTRIBUTE_READONLY != 0 { 0o444 } else { 0o644 },
        owner: Owner::default(),
        mtime: nanos(times.LastWriteTime),
        ctime: nanos(times.ChangeTime),
        volume: u64::from(info.dwVolumeSerialNumber),
        inode: join(info.nFileIndexHigh, info.nFileIndexLow),
        links: u64::from(info.nNumberOfLinks),
    })
}

/// Access lists are inherited here, so both have the same.
pub fn same_attributes(_one: &Path, _other: &Path) -> io::Result<bool> {
    Ok(true)
}

/// Access lists are inherited here.
pub fn attributes(_path: &Path) -> io::Result<crate::system::Attributes> {
    Ok(Default::default())
}

/// Access lists are inherited here: nothing is given, and nothing is lost.
pub fn give_attributes(_to: &Path, _wanted: &crate::system::Attributes) -> io::Result<Vec<String>> {
    Ok(Vec::new())
}

/// Access lists are inherited here: nothing is given, and nothing is lost.
pub fn copy_attributes(_from: &Path, _to: &Path) -> io::Result<Vec<String>> {
    Ok(Vec::new())
}

/// Every folder passes its access list on here, without our help.
pub fn has_default_list(_folder: &Path) -> io::Result<bool> {
    Ok(false)
}

/// Access lists are inherited here.
pub fn inherit_list(_folder: &Path, _file: &Path) -> io::Result<()> {
    Ok(())
}

/// Whether files share their contents where they are copied is only known once it is tried.
pub fn may_clone(_path: &Path) -> io::Result<bool> {
    Ok(false)
}

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

/// Ownership is inherited here; verifies only that the entry exists and can be opened.
pub fn set_owner(path: &Path, _owner: Owner) -> io::Result<()> {
    open_entry(path, FILE_READ_ATTRIBUTES).map(drop)
}

/// Sets or clears the read-only mark of a file by the owner's write bit. Folders: nothing to set.
/// Errors: the entry is a link.
pub fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    match facts(path)?.kind {
        Kind::Link => Err(io::Error::new(io::ErrorKind::InvalidInput, "a link has no mode of its own")),
        Kind::Folder => Ok(()),
        Kind::File | Kind::Other => {
            let mut permissions = std::fs::symlink_metadata(path)?.permissions();
            permissions.set_readonly(mode & 0o200 == 0);
            std::fs::set_permissions(path, permissions)
        }
    }
}

/// Sets the time of the last change of content (nanoseconds since 1970) of the entry, a link itself; the
/// time of the last reading stays.
pub fn set_mtime(path: &Path, mtime: i64) -> io::Result<()> {
    let file = open_entry(path, FILE_WRITE_ATTRIBUTES)?;
    let units = mtime.div_euclid(100).saturating_add(UNIX_EPOCH);
    let time = FILETIME { dwLowDateTime: units as u32, dwHighDateTime: (units >> 32) as u32 };
    // SAFETY: the handle is open while `file` lives; null leaves a time as it is.
    check(unsafe { SetFileTime(file.as_raw_handle(), std::ptr::null(), std::ptr::null(), &time) })
}

/// Flushes a folder. Where the volume flushes no folders, the renames here are written through anyway.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    if facts(path)?.kind == Kind::File {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let unable = [ERROR_ACCESS_DENIED, ERROR_INVALID_FUNCTION, ERROR_INVALID_HANDLE, ERROR_NOT_SUPPORTED];
    let flush = || {
        let flags = FILE_FLAG_BACKUP_SEMANTICS;
        OpenOptions::new().access_mode(GENERIC_WRITE).custom_flags(flags).open(path)?.sync_all()
    };
    match flush() {
        Err(error) if is_one_of(&error, &unable) => Ok(()),
        done => done,
    }
}

/// The longest path that a call takes (32,767 UTF-16 units with the `\\?\` prefix, which needs a few itself).
/// Source: "Maximum Path Length Limitation", Microsoft Learn.
pub const MAX_PATH: usize = 32_000;

/// Flushes one file; one that may only be read cannot be flushed, and stays so.
pub fn sync_file(path: &Path) -> io::Result<()> {
    if std::fs::metadata(path)?.permissions().readonly() {
        return Ok(());
    }
    OpenOptions::new().write(true).open(path)?.sync_all()
}

/// Flushes everything below `folder`, file by file.
pub fn sync_tree(folder: &Path) -> io::Result<()> {
    for item in walkdir::WalkDir::new(folder) {
        let item = item?;
        if item.file_type().is_file() {
            sync_file(item.path())?;
        }
    }
    Ok(())
}

/// True for a path that is another file to each process; there is none here.
pub fn is_per_process(_path: &Path) -> bool {
    false
}

/// How many bytes the file takes on its volume, at most.
pub fn allocated(path: &Path) -> io::Result<u64> {
    Ok(std::fs::symlink_metadata(path)?.len())
}

/// Why names in this folder, or this file itself, cannot be moved. Never known here before it is tried.
pub fn obstacle(_path: &Path) -> io::Result<Option<&'static str>> {
    Ok(None)
}

/// Shares the contents of `src` with `dst` (ReFS). Ok(false): the volume cannot; `dst` is empty.
pub fn clone_contents(src: &File, dst: &File) -> io::Result<bool> {
    let size = src.metadata()?.len();
    dst.set_len(size)?;
    if size == 0 {
        return Ok(true);
    }
    // The length must be whole clusters; ReFS has clusters of 4 KiB or 64 KiB.
    for cluster in [4096, 65536] {
        let data = DUPLICATE_EXTENTS_DATA {
            FileHandle: src.as_raw_handle(),
            SourceFileOffset: 0,
            TargetFileOffset: 0,
            ByteCount: i64::try_from(size.next_multiple_of(cluster)).unwrap_or(i64::MAX),
        };
        let (at, length) = ((&raw const data).cast(), size_of::<DUPLICATE_EXTENTS_DATA>() as u32);
        let (code, mut returned) = (FSCTL_DUPLICATE_EXTENTS_TO_FILE, 0);
        let (none, now) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: both handles are open; `at` points to `length` bytes of ours; no output is asked for.
        let done = unsafe { DeviceIoControl(dst.as_raw_handle(), code, at, length, none, 0, &mut returned, now) };
        if done != 0 {
            return Ok(true);
        }
    }
    dst.set_len(0)?;
    Ok(false)
}

/// Reserves room for `size` bytes without changing the file's size; Ok where the volume cannot reserve.
pub fn preallocate(file: &File, size: u64) -> io::Result<()> {
    // Less than the file holds would cut it off.
    if size <= file.metadata()?.len() {
        return Ok(());
    }
    let info = FILE_ALLOCATION_INFO { AllocationSize: i64::try_from(size).unwrap_or(i64::MAX) };
    let (at, length) = ((&raw const info).cast(), size_of::<FILE_ALLOCATION_INFO>() as u32);
    // SAFETY: the handle is open; `at` points to `length` bytes of ours, the type of FileAllocationInfo.
    let done = check(unsafe { SetFileInformationByHandle(file.as_raw_handle(), FileAllocationInfo, at, length) });
    match done {
        Err(error) if is_one_of(&error, &[ERROR_NOT_SUPPORTED, ERROR_INVALID_FUNCTION, ERROR_INVALID_PARAMETER]) => {
            Ok(())
        }
        done => done,
    }
}

/// Bytes that this user may still write on the volume of `path` (a folder, or a file in one).
pub fn free_space(path: &Path) -> io::Result<u64> {
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    let name = wide(folder.as_os_str())?;
    let mut free = 0;
    // SAFETY: `name` ends with 0 and lives over the call; null for the numbers that are not asked for.
    check(unsafe { GetDiskFreeSpaceExW(name.as_ptr(), &mut free, std::ptr::null_mut(), std::ptr::null_mut()) })?;
    Ok(free)
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
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && facts(path)?.kind == Kind::Folder => Ok(()),
        done => done,
    }
}

/// Opens a log for appending, creating it. Errors: a link stands there.
pub fn open_log(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().append(true).create(true).custom_flags(FILE_FLAG_OPEN_REPARSE_POINT).open(path)?;
    if facts_of(&file)?.kind == Kind::Link { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(file) }
}

/// Opens for reading and writing, creating it; the contents stay. Errors: a link stands there.
pub fn open_private(path: &Path) -> io::Result<File> {
    let flags = FILE_FLAG_OPEN_REPARSE_POINT;
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(flags).open(path)?;
    if file.metadata()?.file_type().is_symlink() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a link stands there"));
    }
    Ok(file)
}
/// Whether the file can be opened for writing by us, who start the server as its own user or not at all.
pub fn may_write(path: &Path, _user: &Credentials) -> bool {
    std::fs::OpenOptions::new().append(true).open(path).is_ok()
}

/// Opens an ordinary file for reading. Errors: anything else stands there, also a link.
pub fn open_plain(path: &Path) -> io::Result<File> {
    if facts(path)?.kind == Kind::File { File::open(path) } else { Err(no_file()) }
}

/// The same, following a link at the end of the path.
pub fn open_to_read(path: &Path) -> io::Result<File> {
    if std::fs::metadata(path)?.is_file() { File::open(path) } else { Err(no_file()) }
}

fn no_file() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is no ordinary file")
}

/// Creates a file that nothing stands in the place of.
pub fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).open(path)
}

/// Opens an ordinary file for reading and writing; its contents stay. Errors: anything else stands there.
pub fn open_to_change(path: &Path) -> io::Result<File> {
    if facts(path)?.kind != Kind::File {
        return Err(no_file());
    }
    OpenOptions::new().read(true).write(true).open(path)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_windows_cannot_hold() {
        for name in ["a:b", "con", "Con.txt", "NUL", "aux.tar.gz", "com1", "LPT9.log", "a.", "a ", "a?b", "com\u{b9}"] {
            assert!(bad_name(name).is_some(), "{name:?}");
        }
        for name in ["company.txt", ".env", "..a", "conx"] {
            assert_eq!(bad_name(name), None, "{name:?}");
        }
    }

    #[test]
    fn names_that_windows_cannot_hold() {
        for name in ["a:b", "con", "Con.txt", "NUL", "aux.tar.gz", "com1", "LPT9.log", "a.", "a ", "a?b", "com\u{b9}"] {
            assert!(bad_name(name).is_some(), "{name:?}");
        }
        for name in ["company.txt", ".env", "..a", "conx"] {
            assert_eq!(bad_name(name), None, "{name:?}");
        }
    }
}
