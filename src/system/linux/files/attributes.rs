//! Access lists and other extended attributes of an entry.
//! Refuses to lose one in silence: those that cannot be given are named.

use super::super::trust::anchored;
use super::metadata::{metadata, set_mode};
use crate::system::{Attributes, FileType};
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

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
    let metadata = metadata(to)?;
    let is_closed = metadata.kind != FileType::Link && metadata.mode & 0o200 == 0;
    if is_closed && set_mode(to, metadata.mode | 0o200).is_ok() {
        let lost = exchange_attributes(to, wanted, &is);
        set_mode(to, metadata.mode)?;
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
    let mode = metadata(file)?.mode;
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
