//! What hooks may write: each file or folder judged before anything is touched, and made such that every rollback
//! can put it back.
//! Refuses what could not be put back: links, other volumes, a folder in which data and program are mixed, and the
//! places of the updater's own.
//!
//! A folder of data needs nothing here: the backup holds it. Anything else (an environment, what a build makes) is
//! copied beside the running server; the swap puts the copy in place of the original, and the hooks work in the copy.
//! So the way back is a rename of the very original, even on a full disk. Made anew after the stop is only what
//! changed since the copy.

use crate::backup;
use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::journal::Exchange;
use crate::state::root::InstallRoot;
use crate::system::{FileMetadata, FileType, files};
use crate::update::install::Install;
use crate::update::ownership::{Class, Databases, Ownership, Rules};
use anyhow::{Context as _, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What is at or below a path: relative to it, so that the thing itself is the empty path.
type Seen = BTreeMap<PathBuf, FileMetadata>;

/// Everything that the hooks of one update may write.
#[derive(Debug, Default)]
pub struct Changes {
    /// Folders and files of the users' data.
    data: BTreeSet<RelPath>,
    copied: Vec<Copied>,
}

/// What is exchanged for a copy.
#[derive(Debug)]
struct Copied {
    exchange: Exchange,
    /// The original as it was copied, and when that was.
    original: Seen,
    at: i64,
    /// The copy, before any hook wrote in it.
    copy: Seen,
}

impl Changes {
    /// Judges these paths. Errors: one of them cannot be put back (exit 1), or is none that a hook may name (exit 2).
    pub(super) fn judge(install: &Install, paths: &BTreeSet<RelPath>, start_file: &RelPath) -> Result<Changes> {
        let ownership = install.ownership(None);
        let rules = &ownership.rules;
        let mut all = Changes::default();
        for path in paths {
            let path = &topmost_missing(&install.root, path)?;
            let metadata = fsx::metadata(&install.root.join(path))?;
            let is_folder = metadata.is_none_or(|metadata| metadata.kind == FileType::Folder);
            let holds_backups =
                RelPath::parse(&install.settings.backup.dir).is_ok_and(|backups| backups.is_within(path));
            match named(&ownership, path, is_folder)? {
                Some(Class::Environment) | None if holds_backups => return Err(own_place(path).into()),
                Some(Class::Own) => return Err(own_place(path).into()),
                Some(Class::Data) => {
                    if rules.is_skipped(path, is_folder) {
                        return Err(bad(path, "[backup] skip leaves it out, so no rollback could put it back")
                            .remedy("take it out of [backup] skip, or out of the hook's changes")
                            .into());
                    }
                    nothing_skipped_below(install, path, rules)?;
                    all.data.insert(path.clone());
                }
                class => {
                    if start_file.is_within(path) {
                        let why =
                            format!("it holds {start_file}, which starts the server and must stay away meanwhile");
                        return Err(bad(path, &why).remedy("name the folder below it that the hook writes").into());
                    }
                    can_be_exchanged(&ownership, path, metadata.as_ref())?;
                    let exchange = Exchange {
                        path: path.clone(),
                        slot: all.copied.len(),
                        old: metadata.is_some(),
                        disposable: class == Some(Class::Environment),
                    };
                    all.copied.push(Copied { exchange, original: Seen::new(), at: 0, copy: Seen::new() });
                }
            }
        }
        all.drop_nested();
        Ok(all)
    }

    /// What lies in another one is put back with it.
    fn drop_nested(&mut self) {
        let paths: Vec<RelPath> = self.copied.iter().map(|one| one.exchange.path.clone()).collect();
        let within = |path: &RelPath| paths.iter().any(|other| path != other && path.is_within(other));
        self.copied.retain(|one| !within(&one.exchange.path));
    }

    /// Forgets what none of these paths names any more.
    pub(super) fn keep_only(&mut self, named: &BTreeSet<RelPath>) {
        let holds = |path: &RelPath| named.iter().any(|named| named.is_within(path));
        self.copied.retain(|one| holds(&one.exchange.path));
        self.data.retain(holds);
    }

    /// The users' data that hooks may write.
    pub fn data(&self) -> impl Iterator<Item = &RelPath> {
        self.data.iter()
    }

    /// True when hooks may write there; with a database all that belongs to it.
    pub fn may_write(&self, path: &RelPath) -> bool {
        let main = Databases::default().main_of(path);
        let named = |one: &RelPath| path.is_within(one) || main.as_ref() == Some(one);
        self.data.iter().chain(self.copied.iter().map(|one| &one.exchange.path)).any(named)
    }

    /// What the swap puts copies in place of.
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.copied.iter().map(|one| one.exchange.clone()).collect()
    }

    /// The bytes that the copies take.
    pub(super) fn size(&self, root: &InstallRoot) -> Result<u64> {
        let mut sum = 0;
        for one in self.copied.iter().filter(|one| one.exchange.old) {
            let top = root.join(&one.exchange.path);
            for (path, metadata) in seen(&top)? {
                // One that vanished meanwhile needs no room.
                sum += files::allocated(&place(&top, &path)).map_or(0, |bytes| bytes.min(metadata.size));
            }
        }
        Ok(sum)
    }

    /// Makes the copies, while the server serves, and flushes them. `tick` may stop it between two files.
    pub fn copy(&mut self, root: &InstallRoot, tick: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        for one in self.copied.iter_mut().filter(|one| one.exchange.old) {
            let (from, to) = (root.join(&one.exchange.path), root.state().copy(one.exchange.slot));
            if let Some(parent) = to.parent() {
                fsx::make_folders(parent)?;
            }
            one.original = seen(&from)?;
            let mut gone = Vec::new();
            for (path, metadata) in &one.original {
                tick()?;
                if !copy_one(&place(&from, path), &place(&to, path), metadata)? {
                    gone.push(path.clone());
                }
            }
            for path in gone {
                one.original.remove(&path);
            }
            dress_folders(&to, &one.original)?;
            one.at = fsx::now_nanos();
            files::sync_tree(to.parent().unwrap_or(&to)).context("flushing a copy")?;
            one.copy = seen(&to)?;
        }
        Ok(())
    }

    /// After the stop: brings the copies up to date with what the server still wrote. What did not change costs one look.
    pub fn refresh(&mut self, root: &InstallRoot) -> Result<()> {
        for one in self.copied.iter_mut().filter(|one| one.exchange.old) {
            let (from, to) = (root.join(&one.exchange.path), root.state().copy(one.exchange.slot));
            let now = seen(&from)?;
            let racy = |metadata: &FileMetadata| metadata.mtime.max(metadata.ctime) > one.at - backup::RACY_NANOS;
            let stands = |path: &PathBuf, metadata: &FileMetadata| {
                one.original.get(path).is_some_and(|was| match metadata.kind {
                    FileType::Folder => was.kind == FileType::Folder,
                    _ => fsx::is_unchanged(was, metadata) && !racy(metadata),
                })
            };
            // Folders whose owner, mode or time has to be set again: those that changed, and those in which we write.
            let changed =
                |path: &&PathBuf| one.original.get(*path).is_none_or(|was| !fsx::is_unchanged(was, &now[*path]));
            let folders = now.iter().filter(|(_, metadata)| metadata.kind == FileType::Folder).map(|(path, _)| path);
            let mut touched: BTreeSet<PathBuf> = folders.filter(changed).cloned().collect();
            let gone = |path: &&PathBuf| now.get(*path).is_none_or(|metadata| !stands(path, metadata));
            touched.extend(one.original.keys().filter(gone).filter_map(|path| path.parent()).map(Path::to_path_buf));
            touched.extend(
                now.iter().filter(|(p, f)| !stands(p, f)).filter_map(|(p, _)| p.parent()).map(Path::to_path_buf),
            );
            for folder in touched.iter().map(|folder| place(&to, folder)).filter(|folder| folder.is_dir()) {
                fsx::make_writable(&folder)?;
            }
            // Deepest first, so that a folder is empty when its turn comes.
            for path in one.original.keys().rev().filter(gone) {
                remove(&place(&to, path))?;
                one.copy.remove(path);
            }
            for (path, metadata) in now.iter().filter(|(path, metadata)| !stands(path, metadata)) {
                copy_one(&place(&from, path), &place(&to, path), metadata)?;
                if metadata.kind == FileType::File {
                    files::sync_file(&place(&to, path)).context("flushing a copy")?;
                }
                one.copy.extend(fsx::metadata(&place(&to, path))?.map(|metadata| (path.clone(), metadata)));
            }
            let dressed = now.iter().filter(|(path, _)| touched.contains(*path));
            dress_folders(&to, &dressed.map(|(path, metadata)| (path.clone(), *metadata)).collect())?;
            for folder in touched.iter().filter(|folder| now.contains_key(*folder)) {
                files::sync_folder(&place(&to, folder)).context("flushing a copy")?;
                one.copy.extend(fsx::metadata(&place(&to, folder))?.map(|metadata| (folder.clone(), metadata)));
            }
        }
        Ok(())
    }

    /// Flushes what the hooks wrote, so that a power cut after the commit finds it.
    pub fn flush(&self, root: &InstallRoot, saved: &[backup::Line]) -> Result<()> {
        for one in &self.copied {
            flush_changed(&root.join(&one.exchange.path), &one.copy)?;
        }
        for path in &self.data {
            let lines = saved.iter().filter(|line| line.path.is_within(path));
            let below = |line: &backup::Line| line.path.strip(path).map_or_else(PathBuf::new, |rest| rest.to_path());
            flush_changed(&root.join(path), &lines.map(|line| (below(line), line.metadata)).collect())?;
        }
        Ok(())
    }
}

fn flush_changed(top: &Path, before: &Seen) -> Result<()> {
    for (path, metadata) in seen(top)? {
        let is_same = before.get(&path).is_some_and(|was| fsx::is_unchanged(was, &metadata));
        let full = place(top, &path);
        match metadata.kind {
            _ if is_same => {}
            FileType::File => files::sync_file(&full).with_context(|| format!("flushing {}", full.display()))?,
            FileType::Folder => files::sync_folder(&full).with_context(|| format!("flushing {}", full.display()))?,
            _ => {}
        }
    }
    Ok(())
}

/// What is not saved could not be put back.
fn nothing_skipped_below(install: &Install, path: &RelPath, rules: &Rules) -> Result<()> {
    for (below, metadata) in seen(&install.root.join(path))? {
        let full = RelPath::from_disk(&place(&path.to_path(), &below));
        if let Some(full) =
            full.filter(|full| rules.is_skipped(full, metadata.kind == FileType::Folder) && !Databases::is_named(full))
        {
            return Err(bad(path, &format!("[backup] skip leaves out {full}, so no rollback could put that back"))
                .remedy("name only what lies beside it, or take it out of [backup] skip")
                .into());
        }
    }
    Ok(())
}

fn bad(path: &RelPath, why: &str) -> Failure {
    Failure::usage(Code::BadHook, format!("a hook cannot change {path}: {why}")).at(path)
}

fn own_place(path: &RelPath) -> Failure {
    bad(path, "it is a place of the updater's own").remedy("take it out of the hook's changes in updater.toml")
}

/// The topmost of the folders above `path` that does not exist (it would be made, too); else `path`.
fn topmost_missing(root: &InstallRoot, path: &RelPath) -> Result<RelPath> {
    for above in path.ancestors() {
        if !fsx::exists(&root.join(&above))? {
            return Ok(above);
        }
    }
    Ok(path.clone())
}

/// The class that the name of a path gives it, or the environment that it lies in. None: the version's, or the users'
/// in the version's folders.
fn named(ownership: &Ownership, path: &RelPath, is_folder: bool) -> Result<Option<Class>> {
    if ownership.rules.is_own(path) {
        return Ok(Some(Class::Own));
    }
    for folder in path.ancestors().iter().chain(is_folder.then_some(path)) {
        if ownership.is_environment(folder)? {
            return Ok(Some(Class::Environment));
        }
    }
    Ok(ownership.rules.is_data(path, is_folder).then_some(Class::Data))
}

/// Whether a copy can take the place of what is there: a rename within one volume, of one thing.
fn can_be_exchanged(ownership: &Ownership, path: &RelPath, metadata: Option<&FileMetadata>) -> Result<()> {
    let root = &ownership.root;
    let refused = |path: &RelPath, why: &str| {
        Failure::failed(Code::HookPlace, format!("a hook changes {path}, which could not be put back: {why}"))
            .at(path)
            .remedy("name a folder of the install's own in the hook's changes, or set [hooks] defaults = false")
    };
    let volume = files::metadata(root.path()).context("looking at the install")?.volume;
    for above in path.ancestors() {
        if fsx::metadata(&root.join(&above))?.is_some_and(|metadata| metadata.kind != FileType::Folder) {
            return Err(refused(path, &format!("{above} is no folder")).into());
        }
    }
    match metadata {
        None => return Ok(()),
        Some(metadata) if !matches!(metadata.kind, FileType::File | FileType::Folder) => {
            return Err(refused(path, "it is a link").into());
        }
        Some(metadata) if metadata.volume != volume => return Err(refused(path, "it lies on another volume").into()),
        Some(_) => {}
    }
    if let Some(reason) = files::obstacle(&root.join(path)).with_context(|| format!("looking at {path}"))? {
        return Err(refused(path, reason).into());
    }
    let is_environment = named(ownership, path, true)? == Some(Class::Environment);
    let ours = files::own_files();
    for (below, metadata) in seen(&root.join(path))? {
        if ours.iter().any(|own| (own.volume, own.inode) == (metadata.volume, metadata.inode)) {
            return Err(refused(path, &format!("{} in it is this program or its output", below.display())).into());
        }
        if metadata.volume != volume {
            return Err(refused(path, &format!("{} lies on another volume", below.display())).into());
        }
        let Some(full) = RelPath::from_disk(&place(&path.to_path(), &below)).filter(|_| !is_environment) else {
            continue;
        };
        match named(ownership, &full, metadata.kind == FileType::Folder)? {
            None => {}
            Some(Class::Own) => return Err(own_place(&full).into()),
            Some(_) => {
                let why = format!("it holds {full}, which is preserved");
                return Err(bad(path, &why).remedy("name the folder below it that the hook writes").into());
            }
        }
    }
    Ok(())
}

/// What is at `top` and below it, folders before what they hold. Nothing there: empty.
fn seen(top: &Path) -> Result<Seen> {
    let mut all = Seen::new();
    for item in walkdir::WalkDir::new(top).follow_links(false).follow_root_links(false) {
        let item = match item {
            Ok(item) => item,
            Err(e) if e.io_error().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound) => continue,
            Err(e) => return Err(e).with_context(|| format!("reading {}", top.display())),
        };
        let path = item.path().strip_prefix(top)?.to_path_buf();
        all.extend(fsx::metadata(item.path())?.map(|metadata| (path, metadata)));
    }
    Ok(all)
}

/// `top` itself for the empty path, which a plain join would give a slash at its end.
fn place(top: &Path, path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { top.to_path_buf() } else { top.join(path) }
}

/// Copies one thing, a folder without what it holds. Unflushed. False: it is gone, or nothing that can be copied.
fn copy_one(from: &Path, to: &Path, metadata: &FileMetadata) -> Result<bool> {
    match metadata.kind {
        FileType::Folder => fsx::make_folder(to)?,
        FileType::Link => {
            let target = match fsx::link_target(from) {
                Ok(target) => target,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
                Err(e) => return Err(e.into()),
            };
            files::make_link(&target, to).with_context(|| format!("linking {}", to.display()))?;
            fsx::apply_metadata(to, metadata)?;
        }
        FileType::File => match fsx::copy_scratch(from, to) {
            Ok(true) => fsx::apply_metadata(to, metadata)?,
            Ok(false) => return Ok(false),
            Err(_) if !fsx::exists(from)? => {
                fsx::remove_own_file(to)?;
                return Ok(false);
            }
            Err(e) => return Err(e),
        },
        // A socket or pipe belongs to a process, not to the tree.
        FileType::Other => return Ok(false),
    }
    Ok(true)
}

/// Owner, mode and time of folders, once all that they hold is there.
fn dress_folders(to: &Path, all: &Seen) -> Result<()> {
    for (path, metadata) in all.iter().rev().filter(|(_, metadata)| metadata.kind == FileType::Folder) {
        let full = place(to, path);
        files::set_mode(&full, metadata.mode).with_context(|| format!("setting the mode of {}", full.display()))?;
        fsx::apply_metadata(&full, metadata)?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match fsx::metadata(path)? {
        Some(metadata) if metadata.kind == FileType::Folder => fsx::remove_own_tree(path),
        _ => fsx::remove_own_file(path),
    }
}
