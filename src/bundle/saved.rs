//! A saved version as a bundle: its files lie under their own names in the folder of a backup.
//! Refuses a file that is not what the record says.

use super::{Entry, MANIFEST, Manifest};
use crate::error::Failure;
use crate::fsx;
use crate::os::{Facts, Kind};
use crate::path::RelPath;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::Write;
use std::path::Path;

impl Entry {
    /// An entry of a saved version; `facts` are those of the original.
    pub fn saved(dir: &Path, path: &RelPath, facts: &Facts, sha256: &str, data: bool) -> Entry {
        let link = match facts.kind {
            // A damaged backup may hold something else here; the check says so.
            Kind::Link => std::fs::read_link(dir.join(path.to_path())).ok().map(|t| t.to_string_lossy().into_owned()),
            _ => None,
        };
        Entry {
            path: path.clone(),
            mode: facts.mode,
            size: facts.size,
            sha256: sha256.to_string(),
            link,
            owner: Some(facts.owner),
            data,
            index: 0,
        }
    }
}

/// Hashes every file. Errors: the first that is damaged or missing, by name (exit 6).
pub(super) fn check<'a>(dir: &Path, entries: impl Iterator<Item = &'a Entry>) -> Result<()> {
    for entry in entries {
        if fsx::exists(&dir.join(entry.path.to_path()))?
            && fsx::sha256_of(&dir.join(entry.path.to_path()))? == entry.sha256
        {
            continue;
        }
        let message = format!("the backup {} is damaged: {} is not what was saved", dir.display(), entry.path);
        return Err(Failure::refused("backup-damaged", message)
            .at(&entry.path)
            .remedy("restore another backup; updater backups --check lists which are whole")
            .into());
    }
    Ok(())
}

/// Makes a zip of a saved version, data left out.
pub(super) fn write_zip(dir: &Path, entries: &[Entry], version: &str, out: &mut File) -> Result<()> {
    let name = "keeping the restored version";
    let mut zip = zip::ZipWriter::new(out);
    let options = |entry: &Entry| {
        let plain = zip::write::SimpleFileOptions::default();
        // Above 4 GiB a zip needs the longer form of its sizes (APPNOTE.TXT 4.3.9.2).
        plain.unix_permissions(entry.mode).large_file(entry.size >= u64::from(u32::MAX))
    };
    zip.start_file(MANIFEST, zip::write::SimpleFileOptions::default()).context(name)?;
    let manifest = Manifest { version: Some(version.to_string()), app: None };
    zip.write_all(&serde_json::to_vec(&manifest)?).context(name)?;
    for entry in entries.iter().filter(|e| !e.data) {
        match &entry.link {
            Some(target) => zip.add_symlink(entry.path.text(), target, options(entry)).context(name)?,
            None => {
                zip.start_file(entry.path.text(), options(entry)).context(name)?;
                let mut from = fs_err::File::open(dir.join(entry.path.to_path()))?;
                std::io::copy(&mut from, &mut zip).context(name)?;
            }
        }
    }
    zip.finish().context(name)?;
    Ok(())
}
