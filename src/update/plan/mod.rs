//! The plan: what an update does to each path, decided once by reading alone.
//! Refuses to write: `plan` and `apply` share it, so they cannot differ.
//!
//! `entries` decides over what the bundle holds, `base` is the base rule, `leftovers` decides over what it lacks, and
//! `late` judges again what was written until the stop.

mod base;
mod entries;
mod late;
mod leftovers;

use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::journal::Annex;
use crate::state::root::InstallRoot;
use crate::system::{FileMetadata, FileType, interrupt};
use crate::update::bundle::{Bundle, Entry};
use crate::update::ownership::{Census, Databases, MEMBERS, Ownership, member};
use anyhow::Result;
pub use base::mode_of;
use entries::Planner;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Add,
    Replace,
    Remove,
    Keep,
    Merge,
    Carry,
    Unchanged,
}

impl Action {
    /// The word for it, in JSON too.
    pub fn word(self) -> &'static str {
        match self {
            Action::Add => "add",
            Action::Replace => "replace",
            Action::Remove => "remove",
            Action::Keep => "keep",
            Action::Merge => "merge",
            Action::Carry => "carry",
            Action::Unchanged => "unchanged",
        }
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Planned {
    pub action: Action,
    pub path: RelPath,
    pub reason: String,
    /// The position of the entry in the bundle.
    #[serde(skip)]
    pub entry: Option<usize>,
    /// The bytes to install, where they are not the bundle's own.
    #[serde(skip)]
    pub content: Option<Vec<u8>>,
    /// What lies there now.
    #[serde(skip)]
    pub live: Option<FileMetadata>,
    /// What lies there was changed here, so it gives way to the backup's `aside/`.
    #[serde(skip)]
    pub aside: bool,
    /// The receipt lists it as a file of the new version, with the release's hash as its base.
    #[serde(skip)]
    pub listed: bool,
    /// Saved data takes the place of what lies there, which goes to the backup's `after/`.
    #[serde(skip)]
    pub saved_data: bool,
}

impl Planned {
    /// An action at a path where nothing is known to lie.
    fn new(action: Action, path: &RelPath, reason: &str) -> Planned {
        Planned {
            action,
            path: path.clone(),
            reason: reason.into(),
            entry: None,
            content: None,
            live: None,
            aside: false,
            listed: false,
            saved_data: false,
        }
    }
}

/// Something of the users' that gives way, beside what the bundle's entries replace.
#[derive(Debug, Clone)]
pub struct Aside {
    pub path: RelPath,
    pub reason: &'static str,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub add: usize,
    pub replace: usize,
    pub remove: usize,
    pub keep: usize,
    pub merge: usize,
    pub carry: usize,
    pub unchanged: usize,
}

/// A file of the install that the version owns.
#[derive(Debug, Clone)]
pub struct Live {
    pub metadata: FileMetadata,
    pub sha256: String,
}

/// What the plan is made from, beside the bundle.
pub struct PlanInput<'a> {
    pub ownership: &'a Ownership,
    pub census: &'a Census,
    pub start_file: &'a RelPath,
    /// `--set`: assignments for the first carried file.
    pub set: &'a [(String, String)],
    /// Heals only: nothing is removed, and what damaged the program is put right.
    pub heal: bool,
    /// What a saved version holds as data of the users: it is not lacking.
    pub saved_data: &'a BTreeSet<RelPath>,
    /// The folders of a saved version: they stay, also empty.
    pub saved_folders: &'a BTreeSet<RelPath>,
    /// Opens the installed bundle, where it was kept: reading it takes a while, and it is seldom asked for.
    pub kept: &'a dyn Fn() -> Result<Option<Bundle>>,
}

#[derive(Default)]
pub struct Plan {
    /// Sorted by path.
    pub actions: Vec<Planned>,
    /// Bundle files that are kept out although they differ: the users' lie there, or the place is theirs.
    pub held_back: Vec<RelPath>,
    /// Shipped files that somebody changed here.
    pub changed_here: Vec<RelPath>,
    /// Bundle files that are kept out because the one that lies there was changed here.
    pub not_taken: Vec<RelPath>,
    /// What of the users' gives way beside what is replaced.
    pub aside: Vec<Aside>,
    /// Bundle files in the updater's own places, but for logs.
    pub left_out: Vec<RelPath>,
    /// Everything that the version owns now.
    pub shipped: BTreeMap<RelPath, Live>,
    /// Folders of the version that nothing will be left in, the deepest first, and the caches in them.
    pub emptied: Vec<(RelPath, FileMetadata)>,
    pub caches: Vec<RelPath>,
    pub set_changes: bool,
    /// Databases that are put back whole: what their saved set lacks leaves.
    pub sets: BTreeSet<RelPath>,
    /// Where saved data lies on other volumes: the private folders in which it is exchanged there.
    pub annexes: Vec<Annex>,
    /// Nobody knows what the version before shipped: how many program files stay though the bundle lacks them.
    pub unknown_stay: Option<usize>,
}

/// Why a file of the version before is removed.
const NO_LONGER: &str = "the bundle no longer ships it";

/// What is at a path, without ever looking through a link.
enum Look {
    Missing,
    There(FileMetadata),
    /// A part of the path above is no folder.
    Behind(RelPath, FileType),
}

impl Plan {
    /// The annex through which `path` is exchanged, where it lies on another volume.
    pub fn annex(&self, path: &RelPath) -> Option<&Annex> {
        Annex::among(&self.annexes, path)
    }
    pub fn changes(&self) -> impl Iterator<Item = &Planned> {
        self.actions.iter().filter(|p| !matches!(p.action, Action::Keep | Action::Unchanged))
    }
    /// Every path whose bytes of the users' go to the backup's `aside/`.
    pub fn moved_aside(&self) -> Vec<RelPath> {
        let replaced = self.changes().filter(|p| p.aside).map(|p| p.path.clone());
        let mut all: Vec<_> = replaced.chain(self.aside.iter().map(|one| one.path.clone())).collect();
        all.sort();
        all
    }
    /// Leaves in place what the bundle does not know: healing removes nothing.
    pub fn keep_unknown(&mut self) {
        self.actions.retain(|p| p.action != Action::Remove);
        self.emptied.clear();
        self.caches.clear();
    }
    /// Leaves to hooks what lies where they write, but for what the version before shipped.
    pub fn keep_for_hooks(&mut self, places: &[RelPath]) {
        let is_theirs = |path: &RelPath| places.iter().any(|place| path.is_within(place));
        self.emptied.retain(|(path, _)| !is_theirs(path) && !places.iter().any(|place| place.is_within(path)));
        self.aside.retain(|one| !is_theirs(&one.path));
        let emptied = &self.emptied;
        self.caches.retain(|cache| emptied.iter().any(|(path, _)| cache.is_within(path)));
    }
    /// Leaves everything as it is that lies outside of these files and folders.
    pub fn keep_all_but(&mut self, only: &[RelPath]) {
        let within = |path: &RelPath| only.iter().any(|o| path.is_within(o));
        self.actions.retain(|p| within(&p.path) || p.action != Action::Remove);
        for planned in self.actions.iter_mut().filter(|p| !within(&p.path)) {
            planned.action = Action::Keep;
            planned.reason = "not asked for".into();
        }
        for list in [&mut self.held_back, &mut self.changed_here, &mut self.not_taken] {
            list.retain(within);
        }
        self.aside.retain(|one| within(&one.path));
        self.emptied.retain(|(path, _)| within(path));
        self.caches.retain(within);
        self.sets.retain(within);
    }
    pub fn is_empty(&self) -> bool {
        self.changes().next().is_none() && self.aside.is_empty()
    }
    pub fn counts(&self) -> Counts {
        let mut c = Counts::default();
        for planned in &self.actions {
            match planned.action {
                Action::Add => c.add += 1,
                Action::Replace => c.replace += 1,
                Action::Remove => c.remove += 1,
                Action::Keep => c.keep += 1,
                Action::Merge => c.merge += 1,
                Action::Carry => c.carry += 1,
                Action::Unchanged => c.unchanged += 1,
            }
        }
        c
    }
}

fn look(root: &InstallRoot, path: &RelPath) -> Result<Look> {
    let metadata = |path: &RelPath| {
        fsx::metadata(&root.join(path)).map_err(|e| match fsx::is_denied(&e) {
            true => closed(root, path).into(),
            false => e,
        })
    };
    for above in path.ancestors() {
        match metadata(&above)? {
            None => return Ok(Look::Missing),
            Some(metadata) if metadata.kind == FileType::Folder => {}
            Some(metadata) => return Ok(Look::Behind(above, metadata.kind)),
        }
    }
    Ok(metadata(path)?.map_or(Look::Missing, Look::There))
}

/// The folder above is closed to us, and `[backup] skip` names it: else the update had ended before.
fn closed(root: &InstallRoot, path: &RelPath) -> Failure {
    Failure::failed(Code::UnreadableData, format!("nobody can tell what lies at {path}: its folder is closed"))
        .at(path)
        .remedy(format!(
            "let the owner of the install enter the folders above it (chmod u+rwx): {}",
            root.join(path).display()
        ))
}

/// What an update to `bundle` does. Errors: a file cannot be read, a setting cannot be carried, something stands in the way.
pub fn build(input: &PlanInput, bundle: &mut Bundle) -> Result<Plan> {
    let mut planner = Planner::new(input)?;
    for index in 0..bundle.entries.len() {
        interrupt::check()?;
        let planned = planner.entry(bundle, index)?;
        planner.plan.actions.push(planned);
    }
    whole_sets(input, bundle, &mut planner.plan)?;
    let mut plan = leftovers::complete(input, bundle, planner)?;
    plan.actions.sort_by(|a, b| a.path.cmp(&b.path));
    for list in [&mut plan.held_back, &mut plan.changed_here, &mut plan.not_taken] {
        list.sort();
        list.dedup();
    }
    Ok(plan)
}

/// The databases among these entries and in the install.
fn databases(census: &Census, bundle: &Bundle) -> Databases {
    let is_database = |e: &&Entry| e.head == crate::base::head::Head::Sqlite;
    let found = bundle.entries.iter().filter(is_database).map(|e| e.path.clone());
    Databases::with(found.chain(census.databases.by_contents().cloned()))
}

/// The members of a database only make sense together: where one differs, or one is there that was not
/// saved, the whole set is put back.
fn whole_sets(input: &PlanInput, bundle: &Bundle, plan: &mut Plan) -> Result<()> {
    let root = &input.ownership.root;
    let databases = databases(input.census, bundle);
    let saved: BTreeSet<&RelPath> = bundle.entries.iter().filter(|e| e.data).map(|e| &e.path).collect();
    let mains: BTreeSet<RelPath> = saved.iter().filter_map(|path| databases.main_of(path)).collect();
    for main in mains {
        let is_member = |p: &Planned| databases.main_of(&p.path).as_ref() == Some(&main) && saved.contains(&p.path);
        let members: Vec<Action> = plan.actions.iter().filter(|p| is_member(p)).map(|p| p.action).collect();
        if members.contains(&Action::Keep) {
            continue;
        }
        if members.iter().any(|a| *a != Action::Unchanged) || has_more(root, &main, &saved)? {
            for planned in plan.actions.iter_mut().filter(|p| is_member(p) && p.action == Action::Unchanged) {
                planned.action = Action::Replace;
                planned.reason = "its database is put back whole".into();
            }
            plan.sets.insert(main);
        }
    }
    Ok(())
}

/// A member of the set that says something and was not saved. (An empty log says nothing.)
fn has_more(root: &InstallRoot, main: &RelPath, saved: &BTreeSet<&RelPath>) -> Result<bool> {
    for ending in MEMBERS.into_iter().filter(|ending| *ending != "-shm") {
        let path = member(main, ending);
        if !saved.contains(&path) && fsx::metadata(&root.join(&path))?.is_some_and(|f| f.size > 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// After the stop: what was written since the plan was made is judged again. Returns the paths whose action is another
/// one now, or has other contents.
pub fn plan_again(input: &PlanInput, bundle: &mut Bundle, plan: &mut Plan) -> Result<Vec<RelPath>> {
    late::plan_again(input, bundle, plan)
}

/// After the stop: saved data that was the same when the plan was made and no longer is, now to be put back.
/// Returns the positions of these actions.
pub fn recheck_data(input: &PlanInput, bundle: &Bundle, plan: &mut Plan) -> Result<Vec<usize>> {
    let root = &input.ownership.root;
    let was_same: Vec<usize> =
        (0..plan.actions.len()).filter(|i| plan.actions[*i].action == Action::Unchanged).collect();
    for at in &was_same {
        let Some((index, entry)) = plan.actions[*at].entry.and_then(|i| Some((i, bundle.entries.get(i)?))) else {
            continue;
        };
        if !entry.data {
            continue;
        }
        let is = fsx::metadata(&root.join(&entry.path))?;
        let touched = match (plan.actions[*at].live, is) {
            (Some(was), Some(is)) => !fsx::is_unchanged(&was, &is),
            _ => true,
        };
        if touched {
            plan.actions[*at] = entries::restored(root, index, entry, &input.ownership.rules)?;
        }
    }
    whole_sets(input, bundle, plan)?;
    Ok(was_same.into_iter().filter(|i| plan.actions[*i].action != Action::Unchanged).collect())
}
