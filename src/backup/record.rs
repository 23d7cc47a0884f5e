//! The record of a backup: what it holds, and whether it still holds it.
//! Refuses to change anything but its own file.
#![deny(clippy::indexing_slicing, clippy::string_slice, clippy::arithmetic_side_effects)]

use crate::app::ENVIRONMENT_MARK;
use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::journal::Folder;
use crate::system::{self, Attributes, FileMetadata, files, interrupt};
use crate::update::bundle::{self, Entry, Saved};
use crate::update::ownership::{Databases, Rules};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The version of this format. 1 is read, too: it holds neither folders nor what was changed here.
pub const FORMAT: u32 = 2;

/// What a backup was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Apply,
    Restore,
    /// Before a repair: it holds the damaged tree.
    Repair,
    /// Of an update that was rolled back: its version was never left.
    Failed,
    /// No record of ours.
    Legacy,
}

impl Kind {
    /// The word of the contract.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Apply => "apply",
            Kind::Restore => "restore",
            Kind::Repair => "repair",
            Kind::Failed => "failed",
            Kind::Legacy => "legacy",
        }
    }
}

/// One file or link of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub path: RelPath,
    pub sha256: String,
    /// True for data of the users, false for a file that the version ships.
    pub data: bool,
    /// The metadata of the original when it was saved.
    #[serde(rename = "facts")]
    pub metadata: FileMetadata,
    /// What the release shipped, where that is not what was saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Where it is saved, where that is not its own path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<RelPath>,
}

impl Line {
    /// Where it is saved, relative to the backup.
    pub fn saved_at(&self) -> &RelPath {
        self.place.as_ref().unwrap_or(&self.path)
    }
}

/// A data folder at the top that is a link to a folder: what lies behind it is saved under its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Linked {
    pub path: RelPath,
    /// The bytes of the target, in hex: it need be no text.
    target: String,
}

impl Linked {
    pub(super) fn new(path: &RelPath, target: &Path) -> Linked {
        let bytes = files::path_to_bytes(target).unwrap_or_default();
        Linked { path: path.clone(), target: fsx::hex(&bytes) }
    }

    /// Where the link leads.
    pub fn target(&self) -> PathBuf {
        let digits = self.target.as_bytes().chunks_exact(2).filter_map(|pair| std::str::from_utf8(pair).ok());
        let bytes: Vec<u8> = digits.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect();
        files::path_from_bytes(&bytes)
    }
}

/// A large file that was not saved, as it was at the stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    pub path: RelPath,
    #[serde(rename = "facts")]
    pub metadata: FileMetadata,
    /// Access lists and other attributes, names and values in hex. None: nobody wrote them down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attributes: Option<BTreeMap<String, String>>,
}

impl Watched {
    /// A file as it is now; `live` is where it lies.
    pub(super) fn new(path: &RelPath, metadata: FileMetadata, live: &Path) -> Watched {
        // One that vanishes meanwhile has none.
        let attributes = files::attributes(live).ok().map(|all| {
            let pairs = all.iter().map(|(name, value)| (fsx::hex(name), fsx::hex(value)));
            pairs.collect()
        });
        Watched { path: path.clone(), metadata, attributes }
    }

    /// The attributes that were written down.
    pub fn attributes(&self) -> Option<Attributes> {
        let pairs = self.attributes.as_ref()?.iter();
        pairs.map(|(name, value)| Some((fsx::from_hex(name)?, fsx::from_hex(value)?))).collect()
    }
}

/// `backup.json`: it is there, and parses, only when the backup is whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub format: u32,
    pub id: String,
    /// The running number, by which backups are ordered; 0 in format 1, which had none.
    #[serde(default)]
    pub number: u64,
    /// RFC 3339, UTC.
    pub created: String,
    pub kind: Kind,
    pub update_id: String,
    pub from_version: Option<String>,
    pub to_version: Option<String>,
    pub start_file: RelPath,
    /// The content id of the saved version, where a receipt told it.
    pub content_id: Option<String>,
    /// It was made when nobody knew what the installed version had shipped.
    #[serde(default)]
    pub is_first: bool,
    pub files: Vec<Line>,
    #[serde(default)]
    pub folders: Vec<Folder>,
    #[serde(default)]
    pub linked: Vec<Linked>,
    #[serde(default)]
    pub watched: Vec<Watched>,
    /// The databases that their contents alone tell.
    #[serde(default)]
    pub databases: Vec<RelPath>,
}

impl Record {
    /// Writes the record into the backup's folder, flushed.
    pub(super) fn store(&self, dir: &Path) -> Result<()> {
        fsx::write_atomic(&dir.join("backup.json"), &serde_json::to_vec_pretty(self)?)
    }

    /// The saved files as entries of a bundle; `data`: those of the users, too.
    pub fn entries(&self, dir: &Path, data: bool) -> Vec<Entry> {
        let wanted = self.files.iter().filter(|line| data || !line.data);
        wanted.map(|line| Entry::saved(dir, &Saved::from(line))).collect()
    }

    /// The databases among its files.
    pub fn databases(&self) -> Databases {
        Databases::with(self.databases.iter().cloned())
    }

    /// True when nobody knows for certain which of its files a version shipped. Format 1 took everything for shipped
    /// that no rule named.
    pub fn is_uncertain(&self) -> bool {
        self.is_first || self.format < 2 || self.content_id.is_none()
    }

    /// The saved version: its name, or where none is known the beginning of its content id.
    pub fn version(&self) -> String {
        let unnamed = || format!("{:.12}", bundle::content_id_of(&self.entries(Path::new(""), false)));
        self.from_version.clone().unwrap_or_else(unnamed)
    }
}

impl<'a> From<&'a Line> for Saved<'a> {
    fn from(line: &'a Line) -> Saved<'a> {
        Saved {
            path: &line.path,
            place: line.saved_at(),
            metadata: &line.metadata,
            sha256: &line.sha256,
            base: line.base.as_deref(),
            data: line.data,
        }
    }
}

/// The record of a backup. Errors: there is none (the backup is not whole), or it cannot be read.
pub fn load(dir: &Path) -> Result<Record> {
    let path = dir.join("backup.json");
    let record: Record = serde_json::from_slice(&fsx::read(&path, fsx::RECORD)?)
        .with_context(|| format!("reading {}", path.display()))?;
    anyhow::ensure!(
        (1..=FORMAT).contains(&record.format),
        "{} has format {}, this program knows those up to {FORMAT}",
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
        interrupt::check()?;
        let saved = dir.join(line.saved_at().to_path());
        let same = match fsx::metadata(&saved)? {
            None => {
                all.push(Damage { path: line.path.clone(), what: "missing" });
                continue;
            }
            Some(is) if is.kind != line.metadata.kind => false,
            Some(is) if is.kind == system::FileType::File && is.size != line.metadata.size => false,
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
pub fn legacy(dir: &Path, rules: &Rules, start_file: &RelPath) -> Result<Record> {
    let id = dir.file_name().context("a backup has a name")?.to_string_lossy().into_owned();
    let mut lines = Vec::new();
    let mut walk = walkdir::WalkDir::new(dir).min_depth(1).sort_by_file_name().into_iter();
    while let Some(item) = walk.next() {
        let item = item.with_context(|| format!("reading the backup {id}"))?;
        let relative = item.path().strip_prefix(dir)?;
        let path =
            RelPath::from_disk(relative).with_context(|| format!("the name {} cannot be used", relative.display()))?;
        let is_folder = item.file_type().is_dir();
        let is_environment = is_folder
            && (item.path().join(ENVIRONMENT_MARK).exists()
                || rules.profile.is_environment_name(path.name().as_bytes()));
        if rules.is_own(&path) || is_environment || rules.profile.is_cache(&path) {
            if is_folder {
                walk.skip_current_dir();
            }
            continue;
        }
        let metadata = files::metadata(item.path()).with_context(|| format!("looking at {path}"))?;
        if !matches!(metadata.kind, system::FileType::File | system::FileType::Link) {
            continue;
        }
        let sha256 = fsx::sha256_of(item.path())?;
        let data = rules.is_data(&path, false);
        lines.push(Line { path, sha256, data, metadata, base: None, place: None });
    }
    if !lines.iter().any(|l| l.path == *start_file) {
        let message = format!("the folder {id} does not hold {start_file}, so it is no backup of the whole server");
        let remedy = "choose another one; updater backups lists them";
        return Err(Failure::refused(Code::NoStartFile, message).at(dir.display()).remedy(remedy).into());
    }
    let metadata: FileMetadata = files::metadata(dir).with_context(|| format!("looking at {}", dir.display()))?;
    Ok(Record {
        format: FORMAT,
        id,
        number: 0,
        created: time(metadata.mtime),
        kind: Kind::Legacy,
        update_id: String::new(),
        from_version: None,
        to_version: None,
        start_file: start_file.clone(),
        content_id: None,
        is_first: true,
        files: lines,
        folders: Vec::new(),
        linked: Vec::new(),
        watched: Vec::new(),
        databases: Vec::new(),
    })
}

/// How many files lie below a folder; 0 where there is none.
pub fn files_below(folder: &Path) -> u64 {
    let items = walkdir::WalkDir::new(folder).into_iter().flatten();
    items.filter(|item| !item.file_type().is_dir()).count() as u64
}

/// RFC 3339, UTC, from nanoseconds since 1970.
pub(super) fn time(nanos: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_default().to_string()
}
