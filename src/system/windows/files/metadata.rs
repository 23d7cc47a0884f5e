//! What an entry is: its kind, owner, mode and times, and a folder that is held open.
//! Refuses to follow a link at the end of a path.

use super::{check, open_entry};
use crate::system::{Credentials, FileMetadata, FileType, Owner};
use std::fs::File;
use std::io;
use std::os::windows::io::AsRawHandle;
use std::path::{Path, PathBuf};
use windows_sys::Win32::Foundation::FILETIME;
use windows_sys::Win32::Storage::FileSystem::{
    BY_HANDLE_FILE_INFORMATION, FILE_ATTRIBUTE_READONLY, FILE_BASIC_INFO, FILE_READ_ATTRIBUTES, FILE_WRITE_ATTRIBUTES,
    FileBasicInfo, GetFileInformationByHandle, GetFileInformationByHandleEx, SetFileTime,
};

/// FILETIME of 1970-01-01, in its units of 100 ns since 1601.
const UNIX_EPOCH: i64 = 116_444_736_000_000_000;

/// What stands at `path`; a link is described, not followed.
pub fn metadata(path: &Path) -> io::Result<FileMetadata> {
    metadata_of(&open_entry(path, FILE_READ_ATTRIBUTES)?)
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
        let is = metadata(path)?;
        if is.kind != FileType::Folder {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Folder { path: path.to_path_buf(), id: (is.volume, is.inode) })
    }

    /// True when it still is what stands at `path`.
    pub fn is_at(&self, path: &Path) -> io::Result<bool> {
        let there = metadata(path)?;
        Ok(self.id == (there.volume, there.inode))
    }

    /// Makes it the working folder.
    pub fn enter(&self) -> io::Result<()> {
        std::env::set_current_dir(&self.path)
    }
}

/// The volume on which a folder lies; the second number is of other systems.
pub fn mount(path: &Path) -> io::Result<(u64, u64)> {
    Ok((metadata(path)?.volume, 0))
}

/// This program, and the files that are open as its standard output and error.
pub fn own_files() -> Vec<FileMetadata> {
    use std::os::windows::io::AsHandle;
    let exe = std::env::current_exe().ok().and_then(|exe| metadata(&exe).ok());
    let outputs =
        [std::io::stdout().as_handle().try_clone_to_owned(), std::io::stderr().as_handle().try_clone_to_owned()];
    let outputs = outputs.into_iter().filter_map(|handle| metadata_of(&File::from(handle.ok()?)).ok());
    exe.into_iter().chain(outputs).filter(|metadata| metadata.kind == FileType::File).collect()
}

/// What this open file is.
pub fn metadata_of(file: &File) -> io::Result<FileMetadata> {
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
        t if t.is_symlink() => FileType::Link,
        t if t.is_dir() => FileType::Folder,
        t if t.is_file() => FileType::File,
        _ => FileType::Other,
    };
    let join = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
    let nanos = |time: i64| time.saturating_sub(UNIX_EPOCH).saturating_mul(100);
    Ok(FileMetadata {
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

/// Ownership is inherited here; verifies only that the entry exists and can be opened.
pub fn set_owner(path: &Path, _owner: Owner) -> io::Result<()> {
    open_entry(path, FILE_READ_ATTRIBUTES).map(drop)
}

/// Sets or clears the read-only mark of a file by the owner's write bit. Folders: nothing to set.
/// Errors: the entry is a link.
pub fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    match metadata(path)?.kind {
        FileType::Link => Err(io::Error::new(io::ErrorKind::InvalidInput, "a link has no mode of its own")),
        FileType::Folder => Ok(()),
        FileType::File | FileType::Other => {
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

/// How many bytes the file takes on its volume, at most.
pub fn allocated(path: &Path) -> io::Result<u64> {
    Ok(std::fs::symlink_metadata(path)?.len())
}

/// Why names in this folder, or this file itself, cannot be moved. Never known here before it is tried.
pub fn obstacle(_path: &Path) -> io::Result<Option<&'static str>> {
    Ok(None)
}

/// Whether the file can be opened for writing by us, who start the server as its own user or not at all.
pub fn may_write(path: &Path, _user: &Credentials) -> bool {
    std::fs::OpenOptions::new().append(true).open(path).is_ok()
}
