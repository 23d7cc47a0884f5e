//! What a volume does for files: flushes, shared contents, room.
//! Refuses to fail where a volume merely lacks something: it says so.

use super::metadata::metadata;
use super::{check, is_one_of, wide};
use crate::system::FileType;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::AsRawHandle;
use std::path::Path;
use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_INVALID_FUNCTION, ERROR_INVALID_HANDLE, ERROR_INVALID_PARAMETER, ERROR_NOT_SUPPORTED,
    GENERIC_WRITE,
};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_ALLOCATION_INFO, FILE_FLAG_BACKUP_SEMANTICS, FileAllocationInfo, GetDiskFreeSpaceExW,
    SetFileInformationByHandle,
};
use windows_sys::Win32::System::IO::DeviceIoControl;
use windows_sys::Win32::System::Ioctl::{DUPLICATE_EXTENTS_DATA, FSCTL_DUPLICATE_EXTENTS_TO_FILE};

/// Whether files share their contents where they are copied is only known once it is tried.
pub fn may_clone(_path: &Path) -> io::Result<bool> {
    Ok(false)
}

/// Flushes a folder. Where the volume flushes no folders, the renames here are written through anyway.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    if metadata(path)?.kind == FileType::File {
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
