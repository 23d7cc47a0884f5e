//! Whose file is it? Every path below the root belongs to one class, decided here and asked by plan, backup, swap,
//! verify, rollback, restore, hooks and doctor alike. What no version shipped belongs to the users.
//! Refuses to change anything, and to decide what is done with a file: that is the plan's.
//!
//! | class | what an update does |
//! | --- | --- |
//! | own | never writes it from a bundle, never moves it |
//! | environment | never touches it, never saves it |
//! | volatile | leaves it where it lies, never saves it |
//! | data | keeps it, saves it, puts it back on a rollback |
//! | shipped | replaces or removes it by the base rule |

mod census;
mod databases;
mod rules;

pub use census::{Census, Item};
pub use databases::{Databases, MEMBERS, member};
pub use rules::{OwnPlaces, Rules, matcher};

use crate::app::ENVIRONMENT_MARK;
use crate::base::fsx;
use crate::base::head::Head;
use crate::base::path::RelPath;
use crate::state::receipt::{Line, Receipt};
use crate::state::root::InstallRoot;
use crate::system::{FileMetadata, FileType, files};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;

/// Whose a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The updater's.
    Own,
    /// Of an environment, which the packages step and hooks alone may change.
    Environment,
    /// Written by the running program, of no lasting worth.
    Volatile,
    /// The users'.
    Data,
    /// The version's.
    Shipped,
}

/// What one install's files are, by its rules, by what the receipt says that we installed, and, before the first
/// receipt, by what the bundle holds.
pub struct Ownership {
    pub root: InstallRoot,
    pub rules: Rc<Rules>,
    /// What the receipt lists, by its name as the volume compares names.
    lines: BTreeMap<RelPath, Line>,
    /// True when nobody knows what the installed version shipped.
    pub is_first: bool,
    /// The receipt is of a version of which nobody knows what it shipped.
    pub is_assumed: bool,
    /// What the bundle holds, by its name as the volume compares names.
    bundled: BTreeSet<RelPath>,
    /// This program, and the files that are open as its output.
    ours: Vec<FileMetadata>,
    /// Where the output of the server goes.
    outputs: Vec<PathBuf>,
}

impl Ownership {
    /// The ownership of an install. `bundled`: what the bundle at hand holds, if there is one. `trusts_assumed`: a
    /// receipt that was only assumed counts, too.
    pub fn new<'a>(
        root: &InstallRoot,
        rules: &Rc<Rules>,
        receipt: Option<&Receipt>,
        bundled: impl Iterator<Item = &'a RelPath>,
        trusts_assumed: bool,
    ) -> Ownership {
        let known = receipt.filter(|receipt| trusts_assumed || !receipt.assumed);
        let lines = known.iter().flat_map(|receipt| &receipt.files);
        Ownership {
            root: root.clone(),
            lines: lines.map(|line| (rules.key(&line.path), line.clone())).collect(),
            is_first: known.is_none(),
            is_assumed: receipt.is_some_and(|receipt| receipt.assumed),
            bundled: bundled.map(|path| rules.key(path)).collect(),
            ours: files::own_files(),
            outputs: Vec::new(),
            rules: rules.clone(),
        }
    }

    /// The same, where the output of the server goes to these files.
    pub fn with_outputs(self, outputs: impl Iterator<Item = PathBuf>) -> Ownership {
        Ownership { outputs: outputs.collect(), ..self }
    }

    /// What the receipt says of this path.
    pub fn line(&self, path: &RelPath) -> Option<&Line> {
        self.lines.get(&self.rules.key(path))
    }

    /// All that the receipt lists.
    pub fn lines(&self) -> impl Iterator<Item = &Line> {
        self.lines.values()
    }

    /// True when the bundle holds a file of this name.
    pub fn is_bundled(&self, path: &RelPath) -> bool {
        self.bundled.contains(&self.rules.key(path))
    }

    /// True when a version shipped a file of this name here, as far as anybody knows.
    pub fn is_shipped(&self, path: &RelPath) -> bool {
        if self.is_first { self.is_bundled(path) } else { self.line(path).is_some() }
    }

    /// True for a place of the updater's own: by its name, or because it is this very program or its output.
    pub fn is_own(&self, path: &RelPath, metadata: Option<&FileMetadata>) -> bool {
        let is = |metadata: &FileMetadata| {
            self.ours.iter().any(|own| (own.volume, own.inode) == (metadata.volume, metadata.inode))
        };
        self.rules.is_own(path) || metadata.is_some_and(is)
    }

    /// The class of what lies at `path`, outside of environments. `is_database`: it belongs to a database set that is
    /// not as we installed it.
    pub fn class_of(&self, path: &RelPath, metadata: &FileMetadata, is_database: bool) -> Result<Class> {
        if self.is_own(path, Some(metadata)) {
            return Ok(Class::Own);
        }
        if metadata.kind == FileType::Other {
            return Ok(Class::Volatile);
        }
        let is_shipped = self.is_shipped(path);
        if !is_shipped && !is_database && !self.rules.is_named(path) && self.is_volatile(path) {
            return Ok(Class::Volatile);
        }
        if is_database {
            return Ok(Class::Data);
        }
        let by_rule = self.rules.is_data(path, false);
        Ok(if is_shipped && (!by_rule || self.is_released(path, metadata)?) { Class::Shipped } else { Class::Data })
    }

    fn is_volatile(&self, path: &RelPath) -> bool {
        self.rules.is_volatile(path) || self.outputs.iter().any(|output| *output == self.root.join(path))
    }

    /// True when the file there is byte for byte what the receipt says that we installed.
    pub fn is_released(&self, path: &RelPath, metadata: &FileMetadata) -> Result<bool> {
        let Some(line) = self.line(path) else { return Ok(false) };
        if metadata.kind == FileType::Folder || metadata.kind == FileType::Other {
            return Ok(false);
        }
        let same_size = metadata.kind == FileType::Link || metadata.size == line.size;
        Ok(same_size && fsx::has_sha256(&self.root.join(path), &line.sha256)?)
    }

    /// True when any part of the database set `main` is there that is not what we installed.
    pub fn is_touched_set(&self, main: &RelPath) -> Result<bool> {
        for ending in MEMBERS {
            let path = member(main, ending);
            if let Some(metadata) = fsx::metadata(&self.root.join(&path))?
                && !self.is_released(&path, &metadata)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// True when a folder holds an environment. Where a version has files in it, those are shipped all the same.
    pub fn is_environment(&self, path: &RelPath) -> Result<bool> {
        if self.rules.profile.is_version_control(path.name().as_bytes()) {
            return Ok(true);
        }
        if fsx::metadata(&self.root.join(path).join(ENVIRONMENT_MARK))?.is_some_and(|f| f.kind == FileType::File) {
            return Ok(true);
        }
        Ok(self.rules.profile.is_environment_name(path.name().as_bytes()) && !self.has_shipped_below(path))
    }

    /// True below an environment that no version shipped: it is the users', with all that is in it.
    pub fn is_in_users_environment(&self, path: &RelPath) -> Result<bool> {
        for above in path.ancestors() {
            let mark = above.child(ENVIRONMENT_MARK.as_ref());
            let is_shipped = mark.is_some_and(|mark| self.line(&mark).is_some());
            let is_there =
                fsx::metadata(&self.root.join(&above))?.is_some_and(|metadata| metadata.kind == FileType::Folder);
            if is_there && !is_shipped && self.is_environment(&above)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// True when receipt or bundle have a file below this folder.
    fn has_shipped_below(&self, folder: &RelPath) -> bool {
        let key = self.rules.key(folder).with_ending("/");
        let next = |first: Option<&RelPath>| first.is_some_and(|path| path.as_bytes().starts_with(key.as_bytes()));
        next(self.lines.range(key.clone()..).next().map(|(path, _)| path))
            || next(self.bundled.range(key.clone()..).next())
    }

    /// True when the file at `path` is a part of a program. Only a file whose name does not tell is looked into.
    pub fn is_program(&self, path: &RelPath) -> Result<bool> {
        if self.rules.profile.is_program(path, Head::Plain) {
            return Ok(true);
        }
        let head = fsx::head(&self.root.join(path))?;
        Ok(self.rules.profile.is_program(path, head.unwrap_or_default()))
    }
}
