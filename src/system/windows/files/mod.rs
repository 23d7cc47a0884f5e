//! Files on Windows, by kind of question: `metadata`, `attributes`, `open`, `entries`, `volume`. Here: names as bytes, and
//! what every call into the system needs.
//! Refuses to follow a link at the end of a path. Ownership is inherited from the folder and never set.

mod attributes;
mod entries;
mod metadata;
mod open;
mod volume;

pub use attributes::{attributes, copy_attributes, give_attributes, has_default_list, inherit_list, same_attributes};
pub use entries::{
    link_file, link_target, make_folder, make_link, names, private_folder, remove_file, remove_folder, remove_tree,
    rename_new, rename_over,
};
pub use metadata::{
    Folder, allocated, may_write, metadata, metadata_of, mount, obstacle, own_files, set_mode, set_mtime, set_owner,
};
pub use open::{create_new, open_log, open_plain, open_private, open_to_change, open_to_read};
pub use volume::{clone_contents, free_space, may_clone, preallocate, sync_file, sync_folder, sync_tree};

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::windows::ffi::OsStrExt;
use std::os::windows::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use windows_sys::Win32::Storage::FileSystem::{FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_OPEN_REPARSE_POINT};

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

/// The longest path that a call takes (32,767 UTF-16 units with the `\\?\` prefix, which needs a few itself).
/// Source: "Maximum Path Length Limitation", Microsoft Learn.
pub const MAX_PATH: usize = 32_000;

/// True for a path that is another file to each process; there is none here.
pub fn is_per_process(_path: &Path) -> bool {
    false
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
}
