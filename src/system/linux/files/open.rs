//! Opening and making ordinary files.
//! Refuses pipes, devices and sockets, and to wait for anybody; logs may be devices.

use super::super::trust::{Anchored, anchored};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::Path;

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
