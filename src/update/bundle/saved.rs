//! A saved version as a bundle: its files lie under their own names in the folder of a backup.
//! Refuses a file that is not what the record says.

use super::{Entry, Identity, KeptFile, MANIFEST, MAX_MANIFEST, MAX_VERSION, Manifest, VERSION, too_large};
use crate::base::digest::Digest;
use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::head::Head;
use crate::base::path::RelPath;
use crate::system::{FileMetadata, FileType};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// A file as the record of a backup tells of it.
pub struct Saved<'a> {
    pub path: &'a RelPath,
    /// Where it lies in the backup.
    pub place: &'a RelPath,
    /// The metadata of the original.
    pub metadata: &'a FileMetadata,
    pub sha256: &'a str,
    /// What the release shipped, where that is not what was saved.
    pub base: Option<&'a str>,
    pub data: bool,
}

impl Entry {
    /// An entry of a saved version.
    pub fn saved(dir: &Path, saved: &Saved) -> Entry {
        let Saved { path, place, metadata, sha256, base, data } = *saved;
        let file = dir.join(place.to_path());
        // A damaged backup may hold something else here; the check says so.
        let link = match metadata.kind {
            FileType::Link => fsx::link_target(&file).ok().map(|target| target.to_string_lossy().into_owned()),
            _ => None,
        };
        let head = if metadata.kind == FileType::File { fsx::head(&file).ok().flatten() } else { None };
        Entry {
            path: path.clone(),
            mode: metadata.mode,
            has_mode: true,
            head: head.unwrap_or(Head::Plain),
            size: metadata.size,
            // One of a damaged record is no file's: the check says so.
            sha256: Digest::of_hex(sha256).unwrap_or_default(),
            link: link.map(String::into_boxed_str),
            data,
            saved: Some(Box::new(KeptFile {
                owner: metadata.owner,
                base: base.map(|base| Digest::of_hex(base).unwrap_or_default()),
                mtime: metadata.mtime,
                place: (place != path).then(|| place.clone()),
            })),
            stored: super::directory::Stored::default(),
        }
    }
}

impl Entry {
    /// Where the file of a saved version lies.
    pub(super) fn saved_in(&self, dir: &Path) -> PathBuf {
        let place = self.saved.as_ref().and_then(|saved| saved.place.as_ref());
        dir.join(place.unwrap_or(&self.path).to_path())
    }
}

/// Hashes every file. Errors: the first that is damaged or missing, by name (exit 6).
pub(super) fn check<'a>(dir: &Path, entries: impl Iterator<Item = &'a Entry>) -> Result<()> {
    for entry in entries {
        if fsx::has_sha256(&entry.saved_in(dir), &entry.sha256.to_string())? {
            continue;
        }
        let message = format!("the backup {} is damaged: {} is not what was saved", dir.display(), entry.path);
        return Err(Failure::refused(Code::BackupDamaged, message)
            .at(&entry.path)
            .remedy("restore another backup; updater backups --check lists which are whole")
            .into());
    }
    Ok(())
}

/// What the saved version says that it is.
pub(super) fn identity(dir: &Path, entries: &[Entry]) -> Result<Identity> {
    let find = |name: &str| entries.iter().find(|entry| entry.path.as_bytes() == name.as_bytes());
    if let Some(entry) = find(MANIFEST) {
        if entry.size > MAX_MANIFEST {
            return Err(too_large(&entry.path, entry.size, MAX_MANIFEST));
        }
        return Identity::of_manifest(fsx::open(&entry.saved_in(dir))?.take(MAX_MANIFEST));
    }
    let Some(entry) = find(VERSION).filter(|entry| entry.size <= MAX_VERSION) else { return Ok(Identity::default()) };
    let mut bytes = Vec::new();
    fsx::open(&entry.saved_in(dir))?.take(MAX_VERSION).read_to_end(&mut bytes)?;
    Ok(Identity::of_version_file(&bytes))
}

/// Makes a zip of a saved version, data left out.
pub(super) fn write_zip(dir: &Path, entries: &[Entry], version: &str, out: &mut File) -> Result<()> {
    let name = "keeping the restored version";
    let mut zip = zip::ZipWriter::new(out);
    let options = |entry: &Entry| {
        let plain = zip::write::SimpleFileOptions::default();
        // Above 4 GiB a zip needs the longer form of its sizes (APPNOTE.TXT 4.3.9.2).
        // A set-id bit of an installed file is no part of a bundle.
        plain.unix_permissions(entry.mode & 0o777).large_file(entry.size >= u64::from(u32::MAX))
    };
    zip.start_file(MANIFEST, zip::write::SimpleFileOptions::default()).context(name)?;
    let manifest = Manifest { version: Some(version.to_string()), app: None };
    zip.write_all(&serde_json::to_vec(&manifest)?).context(name)?;
    for entry in entries.iter().filter(|e| !e.data) {
        match &entry.link {
            Some(target) => zip.add_symlink(entry.path.text(), &**target, options(entry)).context(name)?,
            None => {
                zip.start_file(entry.path.text(), options(entry)).context(name)?;
                let mut from = fsx::open(&entry.saved_in(dir))?;
                std::io::copy(&mut from, &mut zip).context(name)?;
            }
        }
    }
    zip.finish().context(name)?;
    Ok(())
}
