//! The record of a backup: what it holds, and whether it still holds it.
//! Refuses to change anything but its own file.

use crate::bundle::{self, Entry};
use crate::error::Failure;
use crate::fsx;
use crate::os::{Facts, Kind, files};
use crate::path::RelPath;
use crate::preserve::{Class, Preserve};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

pub const FORMAT: u32 = 1;

/// One file or link of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub path: RelPath,
    pub sha256: String,
    /// True for preserved data, false for a file that the version ships.
    pub data: bool,
    /// The facts of the original when it was saved.
    pub facts: Facts,
}

/// `backup.json`: it is there, and parses, only when the backup is whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub format: u32,
    pub id: String,
    /// RFC 3339, UTC.
    pub created: String,
    /// `apply`, `restore`, `failed` or `legacy`.
    pub kind: String,
    pub update_id: String,
    pub from_version: Option<String>,
    pub to_version: Option<String>,
    pub start_file: RelPath,
    /// The content id of the saved version, where a receipt told it.
    pub content_id: Option<String>,
    pub files: Vec<Line>,
}

impl Record {
    /// Writes the record into the backup's folder, flushed.
    pub(super) fn store(&self, dir: &Path) -> Result<()> {
        fsx::write_atomic(&dir.join("backup.json"), &serde_json::to_vec_pretty(self)?)
    }

    /// The saved files as entries of a bundle; `data`: those of the users, too.
    pub fn entries(&self, dir: &Path, data: bool) -> Vec<Entry> {
        let wanted = self.files.iter().filter(|line| data || !line.data);
        wanted.map(|l| Entry::saved(dir, &l.path, &l.facts, &l.sha256, l.data)).collect()
    }

    /// The saved version: its name, or where none is known the beginning of its content id.
    pub fn version(&self) -> String {
        let unnamed = || bundle::content_id_of(&self.entries(Path::new(""), false))[..12].to_string();
        self.from_version.clone().unwrap_or_else(unnamed)
    }
}

/// The record of a backup. Errors: there is none (the backup is not whole), or it cannot be read.
pub fn load(dir: &Path) -> Result<Record> {
    let path = dir.join("backup.json");
    let record: Record =
        serde_json::from_slice(&fs_err::read(&path)?).with_context(|| format!("reading {}", path.display()))?;
    anyhow::ensure!(
        record.format == FORMAT,
        "{} has format {}, this program knows {FORMAT}",
        path.display(),
        record.format
    );
    Ok(record)
}

/// What is wrong with a saved file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    pub path: RelPath,
    /// `missing` or `modified`.
    pub what: &'static str,
}

/// Holds the files of a backup against its record: kind and size, or by `hash`.
pub fn damage(dir: &Path, record: &Record, hash: bool) -> Result<Vec<Damage>> {
    let mut all = Vec::new();
    for line in &record.files {
        let saved = dir.join(line.path.to_path());
        let same = match fsx::facts(&saved)? {
            None => {
                all.push(Damage { path: line.path.clone(), what: "missing" });
                continue;
            }
            Some(is) if is.kind != line.facts.kind => false,
            Some(is) if is.kind == Kind::File && is.size != line.facts.size => false,
            // A file that cannot be read (a failing disk) is not whole either.
            Some(_) => !hash || fsx::sha256_of(&saved).is_ok_and(|sum| sum == line.sha256),
        };
        if !same {
            all.push(Damage { path: line.path.clone(), what: "modified" });
        }
    }
    Ok(all)
}

/// The record that a backup folder of the old updater would have: everything in it, judged by its name.
/// Nothing tells whether it is whole; that it holds the start file is the least.
pub fn legacy(dir: &Path, preserve: &Preserve, start_file: &RelPath) -> Result<Record> {
    let id = dir.file_name().context("a backup has a name")?.to_string_lossy().into_owned();
    let mut lines = Vec::new();
    let mut walk = walkdir::WalkDir::new(dir).min_depth(1).sort_by_file_name().into_iter();
    while let Some(item) = walk.next() {
        let item = item.with_context(|| format!("reading the backup {id}"))?;
        let relative = item.path().strip_prefix(dir)?;
        let path =
            RelPath::from_disk(relative).with_context(|| format!("the name {} cannot be used", relative.display()))?;
        let folder = item.file_type().is_dir();
        let class = preserve.class_of(&path, folder);
        if matches!(class, Some(Class::Own | Class::Environment)) || path.is_cache() {
            if folder {
                walk.skip_current_dir();
            }
            continue;
        }
        let facts = files::facts(item.path()).with_context(|| format!("looking at {path}"))?;
        if !matches!(facts.kind, Kind::File | Kind::Link) {
            continue;
        }
        let sha256 = fsx::sha256_of(item.path())?;
        lines.push(Line { path, sha256, data: class == Some(Class::Data), facts });
    }
    if !lines.iter().any(|l| l.path == *start_file) {
        let message = format!("the folder {id} does not hold {start_file}, so it is no backup of the whole server");
        let remedy = "choose another one; updater backups lists them";
        return Err(Failure::refused("no-start-file", message).at(dir.display()).remedy(remedy).into());
    }
    let facts: Facts = files::facts(dir).with_context(|| format!("looking at {}", dir.display()))?;
    Ok(Record {
        format: FORMAT,
        id,
        created: time(facts.mtime),
        kind: "legacy".into(),
        update_id: String::new(),
        from_version: None,
        to_version: None,
        start_file: start_file.clone(),
        content_id: None,
        files: lines,
    })
}

/// RFC 3339, UTC, from nanoseconds since 1970.
pub(super) fn time(nanos: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_default().to_string()
}
