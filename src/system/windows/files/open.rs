//! Opening and making ordinary files.
//! Refuses pipes, devices and sockets, and to wait for anybody; logs may be devices.

use super::metadata::{metadata, metadata_of};
use crate::system::FileType;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::windows::fs::OpenOptionsExt;
use std::path::Path;
use windows_sys::Win32::Storage::FileSystem::FILE_FLAG_OPEN_REPARSE_POINT;

/// Opens a log for appending, creating it. Errors: a link stands there.
pub fn open_log(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().append(true).create(true).custom_flags(FILE_FLAG_OPEN_REPARSE_POINT).open(path)?;
    if metadata_of(&file)?.kind == FileType::Link { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(file) }
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

/// Opens an ordinary file for reading. Errors: anything else stands there, also a link.
pub fn open_plain(path: &Path) -> io::Result<File> {
    if metadata(path)?.kind == FileType::File { File::open(path) } else { Err(no_file()) }
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
    if metadata(path)?.kind != FileType::File {
        return Err(no_file());
    }
    OpenOptions::new().read(true).write(true).open(path)
}
