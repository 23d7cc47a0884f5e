//! Backups: a whole version each, files under their own paths and `backup.json`, the record that
//! makes it whole. Pass 1 copies while the server serves; pass 2, after the stop, trusts only files
//! that did not change since, and compares database sets by content. A backup is made in staging and
//! moved among the others by one rename, so no half of one ever lies there.
//! Refuses to open a database in place, and to delete the newest whole backup.

mod record;
mod shelf;

pub use record::{Damage, FORMAT, Line, Record, damage, legacy, load};
pub use shelf::{Listed, clear_discarded, list, list_all, mark_failed, prune};

use crate::fsx;
use crate::os::{Facts, Kind, files};
use crate::path::{InstallRoot, RelPath};
use crate::plan::Plan;
use crate::preserve::{Class, Preserve, database_set};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A file written this shortly before its copy may have changed without its times showing it.
pub const RACY_NANOS: i64 = 2_000_000_000;

/// A backup that is being made.
pub struct Backup {
    pub id: String,
    /// Where it is made.
    dir: PathBuf,
    /// Where it goes when it is whole.
    home: PathBuf,
    lines: BTreeMap<RelPath, Line>,
    /// When pass 1 ended.
    seeded_at: i64,
}

/// `update_backup_YYYYMMDD_HHMMSS` in local time, with a suffix where one of that name exists.
pub fn new_id(backups: &Path) -> Result<String> {
    let stamp = jiff::ZonedDateTime::now().strftime("%Y%m%d_%H%M%S").to_string();
    let mut id = format!("update_backup_{stamp}");
    let mut n = 1;
    while fsx::exists(&backups.join(&id))? {
        n += 1;
        id = format!("update_backup_{stamp}_{n}");
    }
    Ok(id)
}

/// All preserved data of an install: path and facts. Links are entries; a preserved top-level name
/// that is a link to a folder counts as that folder.
pub fn data_files(root: &InstallRoot, preserve: &Preserve, skip: &Preserve) -> Result<Vec<(RelPath, Facts)>> {
    let mut all = Vec::new();
    collect(root.path(), None, preserve, skip, &mut all)?;
    Ok(all)
}

fn collect(
    folder: &Path,
    at: Option<&RelPath>,
    preserve: &Preserve,
    skip: &Preserve,
    all: &mut Vec<(RelPath, Facts)>,
) -> Result<()> {
    let mut names: Vec<_> = match fs_err::read_dir(folder) {
        Ok(read) => read.collect::<std::io::Result<_>>()?,
        // A folder that vanished meanwhile holds nothing.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    names.sort_by_key(|n| n.file_name());
    for name in names {
        let path = match at {
            Some(at) => at.child(&name.file_name()),
            None => RelPath::from_disk(name.file_name().as_ref()),
        };
        let path = path.with_context(|| format!("the name {} cannot be used", name.path().display()))?;
        let Some(facts) = fsx::facts(&name.path())? else { continue };
        let class = preserve.class_of(&path, facts.kind == Kind::Folder);
        if matches!(class, Some(Class::Own | Class::Environment))
            || skip.class_of(&path, facts.kind == Kind::Folder).is_some()
        {
            continue;
        }
        let linked = at.is_none() && class == Some(Class::Data) && facts.kind == Kind::Link && name.path().is_dir();
        match facts.kind {
            Kind::Folder => collect(&name.path(), Some(&path), preserve, skip, all)?,
            _ if linked => collect(&name.path(), Some(&path), preserve, skip, all)?,
            Kind::Other => {}
            // The shared memory of a database is rebuilt from its log; an old one would only mislead.
            _ if path.text().to_lowercase().ends_with("-shm") && database_set(&path).is_some() => {}
            _ if class == Some(Class::Data) => all.push((path, facts)),
            _ => {}
        }
    }
    Ok(())
}

/// Pass 1: copies the version and the data while the server serves, for the backup `home`.
pub fn seed(
    root: &InstallRoot,
    home: &Path,
    plan: &Plan,
    data: &[(RelPath, Facts)],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Backup> {
    let id = home.file_name().context("a backup has a name")?.to_string_lossy().into_owned();
    let dir = root.own().join("staging/backup");
    fsx::make_folders(&dir)?;
    let mut backup = Backup { id, dir, home: home.to_path_buf(), lines: BTreeMap::new(), seeded_at: 0 };
    let shipped = plan.live.iter().map(|(path, live)| (path, live.facts, false));
    let all: Vec<_> = shipped.chain(data.iter().map(|(path, facts)| (path, *facts, true))).collect();
    for (n, (path, facts, is_data)) in all.iter().enumerate() {
        backup.save(root, path, facts, *is_data)?;
        progress(n as u64 + 1, all.len() as u64);
    }
    backup.seeded_at = fsx::now_nanos();
    Ok(backup)
}

impl Backup {
    fn place(&self, path: &RelPath) -> PathBuf {
        self.dir.join(path.to_path())
    }

    /// Copies one file; one that vanishes meanwhile is simply not there.
    fn save(&mut self, root: &InstallRoot, path: &RelPath, facts: &Facts, data: bool) -> Result<()> {
        let to = self.place(path);
        fsx::remove_own_file(&to)?;
        match fsx::copy(&root.join(path), &to, facts) {
            Ok(sha256) => {
                let line = Line { path: path.clone(), sha256, data, facts: *facts };
                self.lines.insert(path.clone(), line);
                Ok(())
            }
            Err(_) if !fsx::exists(&root.join(path))? => fsx::remove_own_file(&to),
            Err(e) => Err(e),
        }
    }

    /// Pass 2, after the stop: every file again, by identity, database sets by
    /// content; then the record, and the backup in its place.
    pub fn finish(&mut self, root: &InstallRoot, live: &[(RelPath, Facts, bool)], record: Record) -> Result<Record> {
        let there: BTreeMap<&RelPath, ()> = live.iter().map(|(path, ..)| (path, ())).collect();
        let vanished: Vec<RelPath> = self.lines.keys().filter(|p| !there.contains_key(p)).cloned().collect();
        for path in vanished {
            fsx::remove_own_file(&self.place(&path))?;
            self.lines.remove(&path);
        }
        for (path, facts, data) in live {
            let known = self.lines.get(path);
            let racy = facts.mtime.max(facts.ctime) > self.seeded_at - RACY_NANOS;
            let by_content = facts.kind == Kind::File && (racy || database_set(path).is_some());
            match known {
                Some(line) if fsx::is_unchanged(&line.facts, facts) && !by_content => {}
                Some(line) if facts.kind == Kind::File && line.facts.kind == Kind::File => {
                    let to = self.place(path);
                    let changed = fsx::update_copy(&root.join(path), &to, facts)?;
                    let sha256 = if changed { fsx::sha256_of(&to)? } else { line.sha256.clone() };
                    fsx::dress(&to, facts)?;
                    self.lines.insert(path.clone(), Line { path: path.clone(), sha256, data: *data, facts: *facts });
                }
                _ => self.save(root, path, facts, *data)?,
            }
        }
        for item in walkdir::WalkDir::new(&self.dir) {
            let item = item?;
            if item.file_type().is_dir() {
                files::sync_folder(item.path()).with_context(|| format!("flushing {}", item.path().display()))?;
            }
        }
        let record = Record { id: self.id.clone(), files: self.lines.values().cloned().collect(), ..record };
        record.store(&self.dir)?;
        files::rename_new(&self.dir, &self.home).with_context(|| format!("placing the backup {}", self.id))?;
        fsx::sync_parent(&self.home)?;
        fsx::sync_parent(&self.dir)?;
        Ok(record)
    }
}
