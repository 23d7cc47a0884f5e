//! The census: one walk over the install that gives every file of the version and of the users its class.
//! Refuses to follow links, but for a data folder at the top that is one.

use super::{Class, Databases, MEMBERS, Ownership, member};
use crate::base::fsx;
use crate::base::head::Head;
use crate::base::path::RelPath;
use crate::system::{FileMetadata, FileType, interrupt};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// SQLite's smallest page, and so its smallest database, in bytes. Source: sqlite.org/fileformat2.html.
const SMALLEST_DATABASE: u64 = 512;
/// How deep folders may lie in each other: far more than a path of 4,096 bytes can name.
const DEEPEST: usize = 2_100;

/// A file or link of the version or of the users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    pub metadata: FileMetadata,
    /// `Shipped` or `Data`.
    pub class: Class,
}

/// What lies in an install, but for what is the updater's own, environments and what is volatile.
#[derive(Debug, Default)]
pub struct Census {
    pub items: BTreeMap<RelPath, Item>,
    /// Every folder that was looked into, outermost first.
    pub folders: Vec<(RelPath, FileMetadata)>,
    pub databases: Databases,
    /// Files and folders that this user may not read, and why.
    pub unreadable: Vec<(RelPath, String)>,
}

impl Census {
    /// The files of one class.
    pub fn of(&self, class: Class) -> impl Iterator<Item = (&RelPath, &FileMetadata)> {
        self.items.iter().filter(move |(_, item)| item.class == class).map(|(path, item)| (path, &item.metadata))
    }
}

/// One file that was met, before its class is known.
struct Met {
    metadata: FileMetadata,
    /// It lies in an environment in which a version has files.
    in_environment: bool,
}

impl Ownership {
    /// Looks at everything in the install. `before`: an earlier census, whose findings count where nothing changed.
    /// Errors: something cannot be read, but for what this user has no right to.
    pub fn census(&self, before: Option<&Census>) -> Result<Census> {
        let mut census = Census::default();
        let (mut met, mut environments) = (BTreeMap::new(), Vec::new());
        let mut waiting: Vec<(Option<RelPath>, PathBuf, bool)> = vec![(None, self.root.path().to_path_buf(), false)];
        while let Some((at, folder, in_environment)) = waiting.pop() {
            anyhow::ensure!(
                at.as_ref().is_none_or(|at| at.ancestors().len() < DEEPEST),
                "folders lie too deep in each other at {}",
                folder.display()
            );
            let names = match names_in(&folder) {
                Ok(names) => names,
                Err(e) if may_not(&e) && at.is_some() => {
                    census.unreadable.extend(at.map(|at| (at, e.to_string())));
                    continue;
                }
                Err(e) if may_not(&e) => return Err(fsx::closed(&folder, e)),
                Err(e) => return Err(e).with_context(|| format!("reading {}", folder.display())),
            };
            for name in names {
                interrupt::check()?;
                let full = folder.join(&name);
                let path = at.as_ref().map_or_else(|| RelPath::from_disk(name.as_ref()), |at| at.child(&name));
                let path = path.with_context(|| format!("the name {} cannot be used", full.display()))?;
                let metadata = match fsx::metadata(&full) {
                    Ok(Some(metadata)) => metadata,
                    Ok(None) => continue,
                    Err(e) if fsx::is_denied(&e) => {
                        census.unreadable.push((path, format!("{e:#}")));
                        continue;
                    }
                    Err(e) => return Err(e),
                };
                if self.is_own(&path, Some(&metadata)) {
                    continue;
                }
                let leads = metadata.kind == FileType::Folder || self.is_linked_data(&path, &metadata, &full);
                if !leads {
                    met.insert(path, Met { metadata, in_environment });
                    continue;
                }
                if self.rules.profile.is_cache(&path) && !self.has_shipped_below(&path) {
                    continue;
                }
                let is_environment = match self.is_environment(&path) {
                    Ok(is_environment) => is_environment,
                    Err(e) if fsx::is_denied(&e) => {
                        census.unreadable.push((path, format!("{e:#}")));
                        continue;
                    }
                    Err(e) => return Err(e),
                };
                if is_environment && !self.has_shipped_below(&path) {
                    continue;
                }
                if in_environment || is_environment {
                    environments.push(path.clone());
                }
                census.folders.push((path.clone(), metadata));
                waiting.push((Some(path), full, in_environment || is_environment));
            }
        }
        census.folders.sort_by(|a, b| a.0.cmp(&b.0));
        census.databases = self.databases(&met, before, &mut census.unreadable)?;
        self.classify(met, &mut census)?;
        // Of an environment only what holds files of the version counts.
        let holds = |folder: &RelPath| census.items.keys().any(|path| path.is_within(folder));
        environments.retain(|folder| !holds(folder));
        census.folders.retain(|(path, _)| !environments.contains(path));
        Ok(census)
    }

    /// A data folder at the top that is a link to a folder counts as that folder.
    fn is_linked_data(&self, path: &RelPath, metadata: &FileMetadata, full: &Path) -> bool {
        metadata.kind == FileType::Link && path.parent().is_none() && self.rules.is_data(path, false) && full.is_dir()
    }

    fn classify(&self, met: BTreeMap<RelPath, Met>, census: &mut Census) -> Result<()> {
        let mut touched: BTreeMap<RelPath, bool> = BTreeMap::new();
        for (path, Met { metadata, in_environment }) in met {
            interrupt::check()?;
            let is_shipped = self.is_shipped(&path);
            if in_environment && !is_shipped {
                continue;
            }
            let main = census.databases.main_of(&path);
            let is_database = match main {
                None => false,
                // Before the first receipt nothing is known to be as it was installed.
                Some(main) => match touched.get(&main) {
                    Some(known) => *known,
                    None => *touched.entry(main.clone()).or_insert(self.is_touched_set(&main)?),
                },
            };
            // The shared memory of a database is rebuilt from its log; an old one would only mislead.
            if is_database && path.text().to_ascii_lowercase().ends_with("-shm") {
                continue;
            }
            let class = self.class_of(&path, &metadata, is_database)?;
            if matches!(class, Class::Data | Class::Shipped) {
                census.items.insert(path, Item { metadata, class });
            }
        }
        Ok(())
    }

    /// The databases that only their contents tell.
    fn databases(
        &self,
        met: &BTreeMap<RelPath, Met>,
        before: Option<&Census>,
        unreadable: &mut Vec<(RelPath, String)>,
    ) -> Result<Databases> {
        let known: BTreeSet<&RelPath> = before.iter().flat_map(|census| census.databases.by_contents()).collect();
        let mut found = Vec::new();
        for (path, Met { metadata, in_environment }) in met {
            interrupt::check()?;
            let too_small = metadata.kind != FileType::File || metadata.size < SMALLEST_DATABASE;
            if too_small || *in_environment || Databases::is_named(path) || self.is_untouched(path, metadata) {
                continue;
            }
            let was = before.and_then(|census| census.items.get(path));
            if was.is_some_and(|was| fsx::is_unchanged(&was.metadata, metadata)) {
                found.extend(known.contains(path).then(|| path.clone()));
                continue;
            }
            match fsx::head(&self.root.join(path)) {
                Ok(Some(Head::Sqlite)) => found.push(path.clone()),
                Ok(_) => {}
                Err(e) if fsx::is_denied(&e) => {
                    unreadable.push((path.clone(), format!("{e:#}")));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(Databases::with(found))
    }

    /// As the receipt has it, by size and time.
    fn is_untouched(&self, path: &RelPath, metadata: &FileMetadata) -> bool {
        self.line(path)
            .is_some_and(|line| (line.size, line.mtime) == (metadata.size, metadata.mtime) && !line.is_database)
    }

    /// The files of the set `main` that are there.
    pub fn members_there(&self, main: &RelPath) -> Result<Vec<RelPath>> {
        let mut there = Vec::new();
        for path in MEMBERS.map(|ending| member(main, ending)) {
            if fsx::exists(&self.root.join(&path))? {
                there.push(path);
            }
        }
        Ok(there)
    }
}

/// The names in a folder, sorted; a folder that vanished meanwhile holds none.
fn names_in(folder: &Path) -> std::io::Result<Vec<std::ffi::OsString>> {
    let mut names = match fsx::names(folder) {
        Ok(names) => names,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    names.sort();
    Ok(names)
}

fn may_not(e: &std::io::Error) -> bool {
    e.kind() == std::io::ErrorKind::PermissionDenied
}
