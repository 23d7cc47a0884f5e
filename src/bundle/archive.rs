//! The zip of a bundle: opened once, every entry read through and held against its limits.
//! Refuses encrypted, special and lying entries.

use super::names::{self, MAX_TARGET, Named};
use super::{Entry, Expected, Limits, refused};
use crate::app::{HEAD_BYTES, Head};
use crate::error::Failure;
use crate::fsx;
use crate::path::RelPath;
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// The file type bits of a Unix mode, and those of a link and a plain file (POSIX `sys/stat.h`).
const TYPE: u32 = 0o170_000;
const LINK: u32 = 0o120_000;
const PLAIN: u32 = 0o100_000;

pub(super) struct Archive {
    archive: zip::ZipArchive<BufReader<File>>,
    /// The same open file, for the copy that is kept.
    raw: File,
}

impl Archive {
    /// Opens a zip and reads all of it once. Returns its entries, and how many files were passed over.
    pub(super) fn open(path: &Path, expected: &Expected, limits: &Limits) -> Result<(Self, Vec<Entry>, usize)> {
        let name = expected.named.map_or_else(|| path.display().to_string(), str::to_string);
        let file = fs_err::File::open(path).map_err(|e| {
            Failure::failed("no-bundle", format!("the bundle cannot be opened: {e}"))
                .at(&name)
                .remedy("give the path of a bundle that you may read")
        })?;
        let file = file.into_file();
        let raw = file.try_clone().context("keeping the bundle open")?;
        let mut archive = zip::ZipArchive::new(BufReader::new(file))
            .map_err(|e| refused("bad-zip", &name, format!("{name} is not a whole zip file: {e}")))?;
        if archive.is_empty() {
            return Err(refused("empty-bundle", &name, format!("{name} holds nothing")));
        }
        if archive.len() as u64 > limits.max_files.saturating_mul(2) {
            return Err(refused(
                "too-many-files",
                &name,
                format!("{name} holds {} entries, more than [bundle] max_files", archive.len()),
            ));
        }
        let (kept, skipped) = names::layout(&names::read(&mut archive)?, expected, &name)?;
        names::check_conflicts(&kept, expected.folds_case)?;
        let mut this = Self { archive, raw };
        let entries = this.read_all(&kept, limits)?;
        Ok((this, entries, skipped))
    }

    /// The contents of an entry.
    pub(super) fn open_entry(&mut self, entry: &Entry) -> Result<impl Read> {
        self.archive.by_index(entry.index).with_context(|| format!("unpacking {}", entry.path))
    }

    fn read_all(&mut self, kept: &[Named], limits: &Limits) -> Result<Vec<Entry>> {
        let (mut total, mut entries) = (0u64, Vec::new());
        for (index, path, folder) in kept {
            if *folder {
                continue;
            }
            if entries.len() as u64 >= limits.max_files {
                return Err(refused(
                    "too-many-files",
                    &path.to_string(),
                    "the bundle holds more files than [bundle] max_files",
                ));
            }
            let entry = self.read_one(*index, path, limits.max_size.saturating_sub(total))?;
            total += entry.size;
            entries.push(entry);
        }
        if entries.is_empty() {
            return Err(refused("empty-bundle", "", "the bundle holds no file"));
        }
        Ok(entries)
    }

    fn read_one(&mut self, index: usize, path: &RelPath, room: u64) -> Result<Entry> {
        let name = path.to_string();
        let (mode, has_mode) = {
            let raw = self
                .archive
                .by_index_raw(index)
                .map_err(|e| refused("bad-zip", &name, format!("{path} cannot be read: {e}")))?;
            if raw.encrypted() {
                return Err(refused("encrypted", &name, format!("{path} is encrypted")));
            }
            // Others than Unix have no such modes; what the library makes of their attributes says nothing.
            let own = raw.unix_mode().filter(|mode| raw.system() == zip::System::Unix && mode & 0o777 != 0);
            (raw.unix_mode().unwrap_or(0o644), own.is_some())
        };
        let is_link = mode & TYPE == LINK;
        if !is_link && mode & TYPE != 0 && mode & TYPE != PLAIN {
            return Err(refused("special-file", &name, format!("{path} is no ordinary file")));
        }
        let mut file = self
            .archive
            .by_index(index)
            .map_err(|e| refused("bad-zip", &name, format!("{path} cannot be unpacked: {e}")))?;
        let declared = file.size();
        if declared > room {
            return Err(refused("too-large", &name, "the bundle is larger than [bundle] max_size"));
        }
        let mut sum = Sha256::new();
        let (mut target, mut head) = (Vec::new(), Vec::new());
        let (mut size, mut buffer) = (0u64, vec![0; 128 * 1024]);
        loop {
            let n = file.read(&mut buffer).map_err(|e| refused("bad-zip", &name, format!("{path} is damaged: {e}")))?;
            if n == 0 {
                break;
            }
            size += n as u64;
            if size > declared || size > room {
                return Err(refused("lying-size", &name, format!("{path} is larger than the zip says")));
            }
            sum.update(&buffer[..n]);
            head.extend_from_slice(&buffer[..n.min(HEAD_BYTES.saturating_sub(head.len()))]);
            if is_link && size <= MAX_TARGET {
                target.extend_from_slice(&buffer[..n]);
            }
        }
        if size != declared {
            return Err(refused("lying-size", &name, format!("{path} has {size} bytes, the zip says {declared}")));
        }
        let link = if is_link { Some(names::link_target(path, &target, size)?) } else { None };
        let sha256 = fsx::hex(&sum.finalize());
        Ok(Entry {
            path: path.clone(),
            mode: fsx::reduced_mode(mode),
            has_mode,
            head: Head::of(&head),
            size,
            sha256,
            link,
            owner: None,
            data: false,
            base: None,
            mtime: None,
            place: None,
            index,
        })
    }

    /// Of the zip file itself, in bytes.
    pub(super) fn size(&self) -> Result<u64> {
        Ok(self.raw.metadata().context("looking at the bundle")?.len())
    }

    /// Copies the zip file itself, through the same handle.
    pub(super) fn copy_raw(&mut self, out: &mut File) -> Result<()> {
        // Both handles share one position, so it is put back.
        let name = "copying the bundle";
        let at = self.raw.stream_position().context(name)?;
        self.raw.seek(SeekFrom::Start(0)).context(name)?;
        std::io::copy(&mut self.raw, out).context(name)?;
        self.raw.seek(SeekFrom::Start(at)).context(name)?;
        Ok(())
    }
}
