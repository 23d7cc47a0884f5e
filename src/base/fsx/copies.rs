//! Copies of files: whole or by reflink, flushed, with holes kept, and what makes one the equal of its original again.

use super::metadata::{apply_metadata, copy_metadata};
use super::{create_new, exists, link_target, make_folders, named, open, remove_file, sha256_of};
use crate::system::{FileMetadata, FileType, files, interrupt};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Copies one file or link with its mode, owner and time (reflink where the volume can) and flushes it.
/// Returns the SHA-256 of what was written.
pub fn copy(from: &Path, to: &Path, metadata: &FileMetadata) -> Result<String> {
    if let Some(parent) = to.parent() {
        make_folders(parent)?;
    }
    if metadata.kind == FileType::Link {
        let target = link_target(from)?;
        files::make_link(&target, to).with_context(|| format!("linking {}", to.display()))?;
        apply_metadata(to, metadata)?;
        return sha256_of(to);
    }
    let mut target = create_new(to)?;
    copy_contents(from, &mut target)?;
    finish_copy(from, to, metadata, &target)
}

/// The same for a file whose contents the volume shares. Ok(None): it cannot; nothing is left.
pub fn clone_file(from: &Path, to: &Path, metadata: &FileMetadata) -> Result<Option<String>> {
    if let Some(parent) = to.parent() {
        make_folders(parent)?;
    }
    let source = open(from)?;
    let target = create_new(to)?;
    if files::clone_contents(&source, &target).with_context(|| format!("cloning {}", from.display()))? {
        return finish_copy(from, to, metadata, &target).map(Some);
    }
    drop(target);
    remove_file(to)?;
    Ok(None)
}

fn finish_copy(from: &Path, to: &Path, metadata: &FileMetadata, target: &File) -> Result<String> {
    // What was written counts, not what was read.
    let sum = sha256_of(to)?;
    copy_metadata(from, to, metadata)?;
    target.sync_all()?;
    Ok(sum)
}

/// True when both files hold the same bytes. False where one cannot be read: then nothing is known.
pub fn same_bytes(one: &Path, other: &Path) -> bool {
    let (Ok(mut one), Ok(mut other)) = (open(one), open(other)) else { return false };
    let size = |file: &File| file.metadata().map(|data| data.len()).ok();
    if size(&one).is_none() || size(&one) != size(&other) {
        return false;
    }
    let (mut left, mut right) = (vec![0; 256 * 1024], vec![0; 256 * 1024]);
    loop {
        let (Ok(()), Ok(count)) = (interrupt::check(), one.read(&mut left)) else { return false };
        if count == 0 {
            return true;
        }
        if other.read_exact(&mut right[..count]).is_err() || left[..count] != right[..count] {
            return false;
        }
    }
}

/// With `holes` what is all zeros is left out, so that a sparse file stays one.
pub fn copy_bytes(from: &mut File, to: &mut File, holes: bool) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut size = 0;
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            // A hole at the end is only there once the length is set.
            if holes {
                to.set_len(size)?;
            }
            return Ok(());
        }
        interrupt::check()?;
        size += n as u64;
        if holes && buffer[..n].iter().all(|byte| *byte == 0) {
            to.seek(SeekFrom::Current(n as i64))?;
        } else {
            to.write_all(&buffer[..n])?;
        }
    }
}

/// Copies contents into an empty file, by reflink where the volume can; a sparse file stays sparse. Unflushed.
pub fn copy_contents(from: &Path, to: &mut File) -> Result<()> {
    let mut source = named("open", from, files::open_to_read(from))?;
    if files::clone_contents(&source, to).with_context(|| format!("cloning {}", from.display()))? {
        return Ok(());
    }
    let holes = files::allocated(from)? < source.metadata()?.len();
    copy_bytes(&mut source, to, holes).with_context(|| format!("copying {}", from.display()))
}

/// Copies contents for scratch. Missing: Ok(false).
pub fn copy_scratch(from: &Path, to: &Path) -> Result<bool> {
    if !exists(from)? {
        return Ok(false);
    }
    let mut target = create_new(to)?;
    copy_contents(from, &mut target).map(|()| true)
}

/// Makes the copy equal to the source, writing only the parts that differ, and returns whether any did.
pub fn update_copy(from: &Path, to: &Path, metadata: &FileMetadata) -> Result<bool> {
    let mut source = open(from)?;
    let mut copy = named("open", to, files::open_to_change(to))?;
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let (mut at, mut changed) = (0u64, false);
    loop {
        let n = fill(&mut source, &mut a)?;
        let m = fill(&mut copy, &mut b)?;
        if n == 0 {
            break;
        }
        interrupt::check()?;
        if n != m || a[..n] != b[..m] {
            changed = true;
            copy.seek(SeekFrom::Start(at))?;
            copy.write_all(&a[..n])?;
        }
        at += n as u64;
        copy.seek(SeekFrom::Start(at))?;
    }
    if copy.metadata()?.len() != at {
        changed = true;
        copy.set_len(at)?;
    }
    if changed {
        apply_metadata(to, metadata)?;
        copy.sync_all()?;
    }
    Ok(changed)
}

fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match from.read(&mut buffer[n..])? {
            0 => break,
            k => n += k,
        }
    }
    Ok(n)
}
