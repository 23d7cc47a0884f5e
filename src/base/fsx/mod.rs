//! Durable file work on top of `system::files`: atomic writes, hashing copies, folders with the right owner.
//! Refuses decisions: which file is copied where is the caller's.

mod copies;
mod metadata;

pub use copies::{clone_file, copy, copy_bytes, copy_contents, copy_scratch, same_bytes, update_copy};
pub use metadata::{apply_folder_metadata, apply_metadata, copy_metadata, inherit_owner, owner_of, reduced_mode};

use crate::base::error::{Code, Failure};
use crate::base::head::{HEAD_BYTES, Head};
use crate::system::{FileMetadata, FileType, files, interrupt};
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The metadata of `path`, or None where nothing is. Errors: anything but "not found".
pub fn metadata(path: &Path) -> Result<Option<FileMetadata>> {
    match files::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(closed(path.parent().unwrap_or(path), e)),
        Err(e) => Err(e).with_context(|| format!("looking at {}", path.display())),
    }
}

/// The most that is read of a settings file, `.env`, or the marks and notes of our own, in bytes.
pub const SMALL: u64 = 1 << 20;
/// The most that is read of a program file that is looked into (`run.py`, a shim), in bytes.
pub const PROGRAM: u64 = 16 << 20;
/// The most that is read of a record of ours (journal, receipt, backup): some 1,000 bytes for each of the files that a
/// bundle may hold at most.
pub const RECORD: u64 = 1 << 28;

/// Names the path and what was done with it; the kind of the error stays.
fn named<T>(what: &str, path: &Path, done: io::Result<T>) -> io::Result<T> {
    done.map_err(|e| io::Error::new(e.kind(), format!("failed to {what} `{}`: {e}", path.display())))
}

/// The contents of an ordinary file that holds at most `limit` bytes. It is opened without waiting for anybody; a link
/// at the end of the path is followed, unless others could have made it where root works.
/// Errors: it is no file, or larger.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let read = || {
        let file = files::open_to_read(path)?;
        let mut bytes = Vec::new();
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            let text = format!("it holds more than {limit} bytes, which is too much for what it is to be");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        Ok(bytes)
    };
    named("read", path, read())
}

/// The same. None: it has more than `most`.
pub fn read_at_most(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    match read(path, most) {
        Err(e) if e.kind() == io::ErrorKind::FileTooLarge => Ok(None),
        read => read.map(Some),
    }
}

/// The names in a folder, in the order of the system.
pub fn names(folder: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    named("list", folder, files::names(folder))
}

/// The target of a link.
pub fn link_target(path: &Path) -> io::Result<PathBuf> {
    named("read the link", path, files::link_target(path))
}

pub fn make_folder(path: &Path) -> io::Result<()> {
    named("make the folder", path, files::make_folder(path))
}

/// Removes a file, or a link itself. Errors: nothing is there.
pub fn remove_file(path: &Path) -> io::Result<()> {
    named("remove", path, files::remove_file(path))
}

/// Removes an empty folder.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    named("remove the folder", path, files::remove_folder(path))
}

/// Opens an ordinary file for reading, without waiting for anybody. Errors: anything else stands there, also a link.
pub fn open(path: &Path) -> io::Result<File> {
    named("open", path, files::open_plain(path))
}

/// Creates a file that nothing stands in the place of, for its owner alone to read and write.
pub fn create_new(path: &Path) -> io::Result<File> {
    named("create", path, files::create_new(path))
}

/// The failure of looking into a folder that we may not enter or read; those above it may be closed, too.
pub fn closed(folder: &Path, e: io::Error) -> anyhow::Error {
    let may_not = |folder: &&Path| files::metadata(folder).is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied);
    let folder = folder.ancestors().find(|folder| !may_not(folder)).unwrap_or(folder);
    let failure = Failure::failed(Code::UnreadableData, format!("the folder {} is closed to us", folder.display()))
        .at(folder.display())
        .remedy(format!(
            "let its owner in (chmod u+rwx '{0}'), or give it to the owner of the install (chown)",
            folder.display()
        ));
    anyhow::Error::new(e).context(failure)
}

pub fn exists(path: &Path) -> Result<bool> {
    Ok(metadata(path)?.is_some())
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The bytes that were written as hex. None: it is none.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = text.chars().map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    let pairs = digits.chunks_exact(2);
    pairs
        .remainder()
        .is_empty()
        .then(|| pairs.map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | *digit as u8)).collect())
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// True when a file (or link) holds exactly this. False where anything else stands there, whatever it is, or something
/// that we have no right to read.
pub fn has_sha256(path: &Path, wanted: &str) -> Result<bool> {
    let kind = metadata(path)?.map(|metadata| metadata.kind);
    if !matches!(kind, Some(FileType::File | FileType::Link)) {
        return Ok(false);
    }
    match sha256_of(path) {
        Err(e) if is_denied(&e) => Ok(false),
        sum => Ok(sum? == wanted),
    }
}

/// True when the system said that we have no right to something.
pub fn is_denied(e: &anyhow::Error) -> bool {
    let denied = |cause: &io::Error| cause.kind() == io::ErrorKind::PermissionDenied;
    e.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(denied))
}

/// How a file begins. None: it is no file, or gone.
pub fn head(path: &Path) -> Result<Option<Head>> {
    if !metadata(path)?.is_some_and(|metadata| metadata.kind == FileType::File) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let file = match open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    file.take(HEAD_BYTES as u64).read_to_end(&mut bytes).with_context(|| format!("reading {}", path.display()))?;
    Ok(Some(Head::of(&bytes)))
}

/// True when the volume of `folder` takes names that differ in case alone for one. Told by a name that is there;
/// false where none has a letter.
pub fn folds_case(folder: &Path) -> Result<bool> {
    for name in names(folder)? {
        let Some(text) = name.to_str() else { continue };
        let swap = |c: char| if c.is_ascii_uppercase() { c.to_ascii_lowercase() } else { c.to_ascii_uppercase() };
        let other: String = text.chars().map(swap).collect();
        if other != text
            && let Some(same) = is_one_name(folder, name.as_ref(), other.as_ref())?
        {
            return Ok(same);
        }
    }
    Ok(false)
}

/// Whether the volume takes `other` for `name`, which is there. None: that cannot be told by this one.
fn is_one_name(folder: &Path, name: &Path, other: &Path) -> Result<Option<bool>> {
    let (is, twin) = (metadata(&folder.join(name))?, metadata(&folder.join(other))?);
    // Another name of the same file is no proof.
    let tells = is.is_some_and(|is| is.kind != FileType::File || is.links == 1);
    let same = is.zip(twin).is_some_and(|(is, twin)| (is.volume, is.inode) == (twin.volume, twin.inode));
    Ok(tells.then_some(same))
}

/// True when the volume of `folder` takes composed and decomposed characters for one. Told by a name that is there; where
/// none tells, by whether it folds case: a folder of ext4 that folds case does both, and no release needs twins.
pub fn merges_forms(folder: &Path) -> Result<bool> {
    use unicode_normalization::UnicodeNormalization;
    for name in names(folder)? {
        let Some(text) = name.to_str().filter(|text| !text.is_ascii()) else { continue };
        let (composed, apart): (String, String) = (text.nfc().collect(), text.nfd().collect());
        let Some(other) = [composed, apart].into_iter().find(|form| form != text) else { continue };
        if let Some(same) = is_one_name(folder, name.as_ref(), other.as_ref())? {
            return Ok(same);
        }
    }
    folds_case(folder)
}

/// SHA-256 of a file's contents; of a link, of its target's text. Errors: it is anything else; a pipe without a writer
/// would be waited for.
pub fn sha256_of(path: &Path) -> Result<String> {
    match files::metadata(path).with_context(|| format!("looking at {}", path.display()))?.kind {
        FileType::Link => return Ok(sha256(&link_bytes(path)?)),
        FileType::Other => anyhow::bail!("{} is no file", path.display()),
        FileType::File | FileType::Folder => {}
    }
    let mut file = open(path)?;
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hex(&sum.finalize()));
        }
        interrupt::check()?;
        sum.update(&buffer[..n]);
    }
}

/// The target of a link, byte for byte.
fn link_bytes(path: &Path) -> Result<Vec<u8>> {
    let target = link_target(path)?;
    Ok(files::path_to_bytes(&target).unwrap_or_else(|| target.to_string_lossy().into_owned().into_bytes()))
}

/// Writes `bytes` so that after a power cut either the old or the new contents are there.
/// The file gets mode 0600 and the owner of its folder.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().context("a file has a name")?.to_os_string();
    name.push(".new");
    let fresh = path.with_file_name(name);
    let _ = files::remove_file(&fresh);
    let mut file = files::open_private(&fresh).with_context(|| format!("creating {}", fresh.display()))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.with_context(|| format!("writing {}", fresh.display()))?;
    inherit_owner(&fresh)?;
    files::rename_over(&fresh, path).with_context(|| format!("replacing {}", path.display()))?;
    sync_parent(path)
}

/// Flushes a folder and every folder below it.
pub fn sync_folders(tree: &Path) -> Result<()> {
    for item in walkdir::WalkDir::new(tree) {
        interrupt::check()?;
        let item = item?;
        if item.file_type().is_dir() {
            files::sync_folder(item.path()).with_context(|| format!("flushing {}", item.path().display()))?;
        }
    }
    Ok(())
}

pub fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().context("a file lies in a folder")?;
    files::sync_folder(parent).with_context(|| format!("flushing {}", parent.display()))
}

/// Makes every missing folder down to `folder`, each with the owner of the one above; flushed by the caller.
pub fn make_folders(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    let missing: Vec<_> = folder.ancestors().take_while(|f| !f.exists()).map(Path::to_path_buf).collect();
    for one in missing.into_iter().rev() {
        make_folder(&one)?;
        inherit_owner(&one)?;
        made.push(one);
    }
    Ok(made)
}

/// A file that is being written, read line by line as it grows.
#[derive(Debug)]
pub struct LineTail {
    file: File,
    /// The beginning of a line whose end was not written yet.
    rest: Vec<u8>,
}

impl LineTail {
    pub fn open(path: &Path) -> Result<LineTail> {
        Ok(LineTail { file: open(path)?, rest: Vec::new() })
    }

    /// The lines since the last look, without their ends; `all`: also one that has no end. A carriage return, by which
    /// progress is drawn over itself, ends a line, too.
    pub fn more(&mut self, all: bool) -> Result<Vec<Vec<u8>>> {
        self.file.read_to_end(&mut self.rest).context("reading what is being written")?;
        let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
        let whole = if all { self.rest.len() } else { self.rest.iter().rposition(is_end).map_or(0, |at| at + 1) };
        let bytes: Vec<u8> = self.rest.drain(..whole).collect();
        Ok(bytes.split(is_end).filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect())
    }
}

/// Removes a tree that this program made; missing is fine. Links are removed, never followed.
pub fn remove_own_tree(path: &Path) -> Result<()> {
    let remove = || named("remove", path, files::remove_tree(path));
    let removed = match remove() {
        // Folders that even their owner may not write in are made such that he may.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            open_folders(path)?;
            remove()
        }
        removed => removed,
    };
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Into::into),
    }
}

/// Lets the owner read, write and enter a folder and all below it; links are not followed.
fn open_folders(folder: &Path) -> Result<()> {
    make_writable(folder)?;
    for name in names(folder)? {
        let path = folder.join(name);
        if metadata(&path)?.is_some_and(|is| is.kind == FileType::Folder) {
            open_folders(&path)?;
        }
    }
    Ok(())
}

/// Lets the owner read, write and enter this folder.
pub fn make_writable(folder: &Path) -> Result<()> {
    let name = || format!("setting the mode of {}", folder.display());
    let mode = files::metadata(folder).with_context(name)?.mode;
    if mode & 0o700 == 0o700 { Ok(()) } else { files::set_mode(folder, mode | 0o700).with_context(name) }
}

pub fn remove_own_file(path: &Path) -> Result<()> {
    match remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Into::into),
    }
}

/// True when a file is the very one that `metadata` described: nothing wrote, replaced or touched it.
pub fn is_unchanged(was: &FileMetadata, is: &FileMetadata) -> bool {
    (was.inode, was.volume, was.size, was.mtime, was.ctime, was.kind)
        == (is.inode, is.volume, is.size, is.mtime, is.ctime, is.kind)
}

/// Now, in nanoseconds since 1970.
pub fn now_nanos() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}
