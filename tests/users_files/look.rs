//! What lies in an install, as the system tells it: the oracle's eyes. Nothing here knows the updater but for the names
//! of its own places.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The longest attribute value and list of names, in bytes (`linux/limits.h`).
const MAX_ATTRIBUTES: usize = 65_536;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Folder,
    Link,
    /// A pipe, a socket.
    Other,
}

/// All that is known of one entry.
#[derive(Clone, PartialEq, Eq)]
pub struct Seen {
    pub kind: Kind,
    /// The contents of a file, the target of a link. None: it may not be read.
    pub bytes: Option<Vec<u8>>,
    pub size: u64,
    pub mode: u32,
    pub owner: (u32, u32),
    /// Nanoseconds since 1970.
    pub modified: i128,
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    pub inode: u64,
    pub links: u64,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let start: Vec<u8> = self.bytes.iter().flatten().take(24).copied().collect();
        let names: Vec<_> = self.attributes.keys().map(|name| String::from_utf8_lossy(name)).collect();
        let (kind, size, mode) = (self.kind, self.size, self.mode);
        write!(f, "{kind:?} of {size} bytes {:?}, mode {mode:o}, ", String::from_utf8_lossy(&start))?;
        write!(
            f,
            "owner {:?}, time {}, inode {} ({} names), {names:?}",
            self.owner, self.modified, self.inode, self.links
        )
    }
}

/// Everything below a folder by its path, as bytes.
pub type Snapshot = BTreeMap<Vec<u8>, Seen>;

pub fn path_of(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// The folders above a path, the nearest first.
pub fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at])
}

pub fn is_below(path: &[u8], folder: &[u8]) -> bool {
    above(path).any(|one| one == folder)
}

pub fn name_of(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap()
}

/// The updater's own, and what the server and its database keep for themselves.
fn is_own(path: &[u8]) -> bool {
    let logs = path.starts_with(b"instance/server_update_") || path == b"instance/update_log.txt";
    let server = path.starts_with(b"instance/app.db") || path == b"instance/server.log";
    logs || server || path == b".updater" || path == b"updater.toml" || path.starts_with(b"backups/update_backup_")
}

/// The install as it lies on the disk, without what is in no way the users'.
pub fn snapshot(root: &Path) -> Snapshot {
    let mut all = Snapshot::new();
    let mut waiting = vec![Vec::new()];
    while let Some(folder) = waiting.pop() {
        let Ok(read) = fs::read_dir(root.join(path_of(&folder))) else { continue };
        for item in read {
            let name = item.unwrap().file_name().into_vec();
            let path = if folder.is_empty() { name } else { [&folder[..], b"/", &name].concat() };
            if is_own(&path) {
                continue;
            }
            // Nobody may enter its folder, so nothing is known of it.
            let Some(seen) = look(&root.join(path_of(&path))) else { continue };
            if seen.kind == Kind::Folder {
                waiting.push(path.clone());
            }
            // The updater makes it where there is none.
            if path != b"backups" {
                all.insert(path, seen);
            }
        }
    }
    all
}

/// One entry; None: there is none, or none any more.
pub fn look(path: &Path) -> Option<Seen> {
    let data = fs::symlink_metadata(path).ok()?;
    let kind = match data.file_type() {
        kind if kind.is_file() => Kind::File,
        kind if kind.is_dir() => Kind::Folder,
        kind if kind.is_symlink() => Kind::Link,
        kind => {
            assert!(kind.is_fifo() || kind.is_socket(), "{}", path.display());
            Kind::Other
        }
    };
    let bytes = match kind {
        Kind::File => fs::read(path).ok(),
        Kind::Link => Some(fs::read_link(path).ok()?.into_os_string().into_vec()),
        Kind::Folder | Kind::Other => Some(Vec::new()),
    };
    Some(Seen {
        kind,
        bytes,
        size: if kind == Kind::File { data.size() } else { 0 },
        mode: if kind == Kind::Link { 0 } else { data.mode() & 0o7777 },
        owner: (data.uid(), data.gid()),
        modified: i128::from(data.mtime()) * 1_000_000_000 + i128::from(data.mtime_nsec()),
        attributes: attributes(path),
        inode: data.ino(),
        links: data.nlink(),
    })
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; MAX_ATTRIBUTES];
    let length = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap_or(0);
    let mut all = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; MAX_ATTRIBUTES];
        if let Ok(length) = rustix::fs::lgetxattr(path, name, value.as_mut_slice()) {
            value.truncate(length);
            all.insert(name.to_vec(), value);
        }
    }
    all
}

/// The folders of the backups that are there.
pub fn backups(root: &Path) -> Vec<PathBuf> {
    let Ok(read) = fs::read_dir(root.join("backups")) else { return Vec::new() };
    let mut all: Vec<PathBuf> = read.map(|item| item.unwrap().path()).collect();
    all.retain(|path| path.file_name().unwrap().as_bytes().starts_with(b"update_backup_"));
    all.sort();
    all
}

/// What lies in the `aside/` or `after/` of any backup for a path: under its own name, or with a number behind it where
/// that was taken.
pub fn set_aside(root: &Path, kind: &str, path: &[u8]) -> Vec<Seen> {
    let mut found = Vec::new();
    for backup in backups(root) {
        let below = snapshot(&backup.join(kind));
        let is_meant = |name: &[u8]| name == path || name.starts_with(&[path, b"."].concat());
        found.extend(below.into_iter().filter(|(name, _)| is_meant(name)).map(|(_, seen)| seen));
    }
    found
}

/// True when a file of these contents lies anywhere in the `aside/` or `after/` of a backup.
pub fn holds_aside(root: &Path, wanted: &dyn Fn(&Seen) -> bool) -> bool {
    let kinds = ["aside", "after"];
    backups(root).iter().any(|backup| kinds.iter().any(|kind| snapshot(&backup.join(kind)).values().any(wanted)))
}
