//! The plan: what an update does to each path, decided once by reading alone.
//! Refuses to write: `plan` and `apply` share it, so they cannot differ.

use crate::bundle::{Bundle, Entry};
use crate::carry;
use crate::error::Failure;
use crate::fsx;
use crate::merge;
use crate::os::{Facts, Kind, files};
use crate::path::{InstallRoot, RelPath};
use crate::preserve::{self, Class, Rules};
use crate::receipt::Receipt;
use anyhow::{Context, Result};
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
    pub live: Option<Facts>,
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
    pub facts: Facts,
    pub sha256: String,
}

pub struct Plan {
    /// Sorted by path.
    pub actions: Vec<Planned>,
    /// Bundle files that a preserve rule keeps out although they differ.
    pub held_back: Vec<RelPath>,
    /// How many entries of the bundle lie in the updater's own places.
    pub left_out: usize,
    /// Everything unpreserved that the version owns now.
    pub live: BTreeMap<RelPath, Live>,
    /// Folders of the version that nothing will be left in.
    pub emptied: Vec<(RelPath, Facts)>,
    pub set_changes: bool,
    /// Databases that are put back whole: what their saved set lacks leaves.
    pub sets: BTreeSet<RelPath>,
}

/// Why a file of the version before is removed.
const NO_LONGER: &str = "the bundle no longer ships it";

/// What is at a path, without ever looking through a link.
enum Look {
    Missing,
    There(Facts),
    /// A part of the path above is no folder.
    Behind(RelPath),
}

impl Plan {
    pub fn changes(&self) -> impl Iterator<Item = &Planned> {
        self.actions.iter().filter(|p| !matches!(p.action, Action::Keep | Action::Unchanged))
    }
    /// Leaves in place what the bundle does not know: healing removes nothing.
    pub fn keep_unknown(&mut self) {
        self.actions.retain(|p| p.action != Action::Remove);
        self.emptied.clear();
    }
    /// Leaves to hooks what lies where they write, but for what the version before shipped.
    pub fn keep_for_hooks(&mut self, places: &[RelPath]) {
        let is_theirs = |path: &RelPath| places.iter().any(|place| path.is_within(place));
        self.actions.retain(|p| p.action != Action::Remove || p.reason == NO_LONGER || !is_theirs(&p.path));
        self.emptied.retain(|(path, _)| !is_theirs(path) && !places.iter().any(|place| place.is_within(path)));
    }
    /// Leaves everything as it is that lies outside of these files and folders.
    pub fn keep_all_but(&mut self, only: &[RelPath]) {
        let within = |path: &RelPath| only.iter().any(|o| path.is_within(o));
        self.actions.retain(|p| within(&p.path) || p.action != Action::Remove);
        for planned in self.actions.iter_mut().filter(|p| !within(&p.path)) {
            planned.action = Action::Keep;
            planned.reason = "not asked for".into();
        }
        self.emptied.retain(|(path, _)| within(path));
        self.sets.retain(within);
    }
    pub fn is_empty(&self) -> bool {
        self.changes().next().is_none()
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
    for above in path.ancestors() {
        match fsx::facts(&root.join(&above))? {
            None => return Ok(Look::Missing),
            Some(facts) if facts.kind == Kind::Folder => {}
            Some(_) => return Ok(Look::Behind(above)),
        }
    }
    Ok(fsx::facts(&root.join(path))?.map_or(Look::Missing, Look::There))
}

/// What an update of `root` to `bundle` does. Errors: a file cannot be read, a setting cannot be carried.
pub fn build(root: &InstallRoot, bundle: &mut Bundle, receipt: Option<&Receipt>, rules: &Rules) -> Result<Plan> {
    let tops: BTreeSet<RelPath> = bundle.entries.iter().map(|e| e.path.top()).collect();
    let named: BTreeSet<RelPath> = bundle.entries.iter().flat_map(|e| e.path.ancestors()).collect();
    // This program and the files of our output, which a caller may have opened anywhere, stay where they are.
    let ours = files::own_files();
    let (live, folders) = owned(root, &tops, receipt, rules, &ours)?;
    let mut plan = Plan {
        actions: Vec::new(),
        held_back: Vec::new(),
        left_out: 0,
        live,
        emptied: Vec::new(),
        set_changes: false,
        sets: BTreeSet::new(),
    };
    let set_target = rules.carry.keys().next().cloned();
    for index in 0..bundle.entries.len() {
        let entry = bundle.entries[index].clone();
        let class = match look(root, &entry.path)? {
            Look::There(facts) if is_ours(&facts, &ours) => Some(Class::Own),
            _ => rules.preserve.class_of(&entry.path, false),
        };
        let planned = match class {
            Some(Class::Data) if entry.data => restored(root, index, &entry)?,
            Some(class) => preserved(root, bundle, index, &entry, class, rules, &mut plan)?,
            None => shipped(root, bundle, index, &entry, rules, set_target.as_ref(), &mut plan)?,
        };
        plan.actions.push(planned);
    }
    whole_sets(root, bundle, &mut plan)?;
    let in_bundle: BTreeSet<&RelPath> = bundle.entries.iter().map(|e| &e.path).collect();
    let from_receipt: BTreeSet<&RelPath> = receipt.iter().flat_map(|r| r.files.iter().map(|l| &l.path)).collect();
    let mut removed = Vec::new();
    for (path, live) in &plan.live {
        if in_bundle.contains(path) || !(from_receipt.contains(path) || is_in_named(path, &named, &in_bundle)) {
            continue;
        }
        let reason = if from_receipt.contains(path) { NO_LONGER } else { "not part of the bundle" };
        removed.push(Planned {
            action: Action::Remove,
            path: path.clone(),
            reason: reason.into(),
            entry: None,
            content: None,
            live: Some(live.facts),
        });
    }
    let gone: BTreeSet<RelPath> = removed.iter().map(|p| p.path.clone()).collect();
    plan.emptied = emptied(root, &folders, &named, &gone)?;
    plan.actions.append(&mut removed);
    plan.actions.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(plan)
}

fn is_ours(facts: &Facts, ours: &[Facts]) -> bool {
    ours.iter().any(|own| (own.volume, own.inode) == (facts.volume, facts.inode))
}

/// Inside a folder that the bundle names, or in the way of such a folder.
fn is_in_named(path: &RelPath, named: &BTreeSet<RelPath>, in_bundle: &BTreeSet<&RelPath>) -> bool {
    named.contains(path)
        || path.ancestors().iter().any(|above| named.contains(&above.top()) || in_bundle.contains(above))
}

type Owned = (BTreeMap<RelPath, Live>, Vec<(RelPath, Facts)>);

/// Every unpreserved file (and folder) below the names of the bundle and of the receipt.
fn owned(
    root: &InstallRoot,
    tops: &BTreeSet<RelPath>,
    receipt: Option<&Receipt>,
    rules: &Rules,
    ours: &[Facts],
) -> Result<Owned> {
    let mut tops = tops.clone();
    let mut wanted = BTreeSet::new();
    for line in receipt.iter().flat_map(|r| &r.files) {
        if !tops.contains(&line.path.top()) {
            wanted.insert(line.path.clone());
        }
    }
    tops.extend(wanted.iter().map(RelPath::top));
    let (mut live, mut folders) = (BTreeMap::new(), Vec::new());
    for top in &tops {
        let from_receipt_alone = wanted.iter().any(|w| w.is_within(top));
        let walk = walkdir::WalkDir::new(root.join(top)).follow_links(false).follow_root_links(false);
        let mut walk = walk.sort_by_file_name().into_iter();
        while let Some(item) = walk.next() {
            let item = match item {
                Ok(item) => item,
                Err(e) if e.io_error().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound) => continue,
                Err(e) => return Err(e).context("reading the install"),
            };
            let relative = item.path().strip_prefix(root.path())?;
            let path = RelPath::from_disk(relative)
                .with_context(|| format!("the name {} cannot be used", relative.display()))?;
            let is_folder = item.file_type().is_dir();
            if rules.preserve.class_of(&path, is_folder).is_some() || path.is_cache() {
                if is_folder {
                    walk.skip_current_dir();
                }
                continue;
            }
            let facts = files::facts(item.path()).with_context(|| format!("looking at {path}"))?;
            if is_ours(&facts, ours) {
                continue;
            }
            match facts.kind {
                Kind::Folder => folders.push((path, facts)),
                Kind::Other => {}
                _ if from_receipt_alone && !wanted.contains(&path) => {}
                _ => {
                    let sha256 = fsx::sha256_of(item.path())?;
                    live.insert(path, Live { facts, sha256 });
                }
            }
        }
    }
    Ok((live, folders))
}

/// Folders in which nothing is left once `gone` is away, deepest first.
fn emptied(
    root: &InstallRoot,
    folders: &[(RelPath, Facts)],
    named: &BTreeSet<RelPath>,
    gone: &BTreeSet<RelPath>,
) -> Result<Vec<(RelPath, Facts)>> {
    let mut away: BTreeSet<RelPath> = gone.clone();
    let mut emptied = Vec::new();
    for (folder, facts) in folders.iter().rev() {
        if named.contains(folder) || !gone.iter().any(|g| g.is_within(folder)) {
            continue;
        }
        let mut all_gone = true;
        for child in fs_err::read_dir(root.join(folder))? {
            let child = folder.child(&child?.file_name());
            all_gone &= child.is_some_and(|child| away.contains(&child) || child.is_cache());
        }
        if all_gone {
            away.insert(folder.clone());
            emptied.push((folder.clone(), *facts));
        }
    }
    Ok(emptied)
}

fn planned(action: Action, entry: &Entry, index: usize, live: Option<Facts>, reason: &str) -> Planned {
    Planned { action, path: entry.path.clone(), reason: reason.into(), entry: Some(index), content: None, live }
}

/// What happens to an entry at a preserved path.
fn preserved(
    root: &InstallRoot,
    bundle: &mut Bundle,
    index: usize,
    entry: &Entry,
    class: Class,
    rules: &Rules,
    plan: &mut Plan,
) -> Result<Planned> {
    match class {
        Class::Own => {
            plan.left_out += 1;
            return Ok(planned(Action::Keep, entry, index, None, "a place of the updater's own"));
        }
        Class::Environment => return Ok(planned(Action::Keep, entry, index, None, "an environment is never touched")),
        Class::Data => {}
    }
    let facts = match look(root, &entry.path)? {
        Look::Behind(link) => {
            plan.held_back.push(entry.path.clone());
            let reason = format!("{link} is no folder here");
            return Ok(planned(Action::Keep, entry, index, None, &reason));
        }
        Look::Missing => {
            if let Some(set) = preserve::database_set(&entry.path)
                && set_exists(root, &set)?
            {
                plan.held_back.push(entry.path.clone());
                return Ok(planned(Action::Keep, entry, index, None, "a part of this database exists"));
            }
            if is_elsewhere(root, &entry.path)? {
                plan.held_back.push(entry.path.clone());
                return Ok(planned(Action::Keep, entry, index, None, "its folder lies on another volume"));
            }
            return Ok(planned(Action::Add, entry, index, None, "new in a preserved folder"));
        }
        Look::There(facts) => facts,
    };
    if rules.merge.contains(&entry.path) && facts.kind == Kind::File && entry.link.is_none() {
        let live = fs_err::read(root.join(&entry.path))?;
        let new = bundle.read_entry(index)?;
        let merged = merge::merge_json(&live, &new).map_err(|e| {
            Failure::failed("bad-json", format!("{} cannot be merged: {e}", entry.path))
                .at(&entry.path)
                .remedy("correct the file, or take it out of [preserve] merge_json")
        })?;
        return Ok(match merged {
            Some(content) => Planned {
                content: Some(content),
                ..planned(Action::Merge, entry, index, Some(facts), "new keys are added, existing values kept")
            },
            None => planned(Action::Keep, entry, index, Some(facts), "it holds every key already"),
        });
    }
    if facts.kind != Kind::File || facts.size != entry.size || fsx::sha256_of(&root.join(&entry.path))? != entry.sha256
    {
        plan.held_back.push(entry.path.clone());
    }
    Ok(planned(Action::Keep, entry, index, Some(facts), "preserved"))
}

/// What happens to saved data that is put back.
fn restored(root: &InstallRoot, index: usize, entry: &Entry) -> Result<Planned> {
    let facts = match look(root, &entry.path)? {
        Look::Behind(above) => {
            return Err(Failure::failed("cannot-restore", format!("{above} is no folder here"))
                .at(&entry.path)
                .remedy(format!("make {above} a folder again, or restore without --data"))
                .into());
        }
        Look::Missing => return Ok(planned(Action::Add, entry, index, None, "saved data")),
        Look::There(facts) => facts,
    };
    if facts.kind == Kind::Folder {
        return Err(Failure::failed(
            "folder-in-the-way",
            format!("{} is a folder here and a file in the backup", entry.path),
        )
        .at(&entry.path)
        .remedy(format!("move the folder away: mv '{0}' '{0}.old'", root.join(&entry.path).display()))
        .into());
    }
    let same = (facts.kind == Kind::Link) == entry.link.is_some()
        && (entry.link.is_some() || (facts.mode == entry.mode && facts.size == entry.size))
        && fsx::sha256_of(&root.join(&entry.path))? == entry.sha256;
    let action = if same { Action::Unchanged } else { Action::Replace };
    Ok(planned(action, entry, index, Some(facts), if same { "same content" } else { "saved data" }))
}

/// The members of a database only make sense together: where one differs, or one is there that was not
/// saved, the whole set is put back.
fn whole_sets(root: &InstallRoot, bundle: &Bundle, plan: &mut Plan) -> Result<()> {
    let saved: BTreeSet<&RelPath> = bundle.entries.iter().filter(|e| e.data).map(|e| &e.path).collect();
    let mains: BTreeSet<RelPath> = saved.iter().filter_map(|path| preserve::database_set(path)).collect();
    for main in mains {
        let is_member =
            |p: &Planned| preserve::database_set(&p.path).as_ref() == Some(&main) && saved.contains(&p.path);
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
    for ending in ["", "-wal", "-journal"] {
        let path = preserve::member(main, ending);
        if !saved.contains(&path) && fsx::facts(&root.join(&path))?.is_some_and(|f| f.size > 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// After the stop: saved data that was the same when the plan was made and no longer is, now to be put back.
/// Returns the positions of these actions.
pub fn recheck_data(root: &InstallRoot, bundle: &Bundle, plan: &mut Plan) -> Result<Vec<usize>> {
    let was_same: Vec<usize> =
        (0..plan.actions.len()).filter(|i| plan.actions[*i].action == Action::Unchanged).collect();
    for at in &was_same {
        let Some((index, entry)) = plan.actions[*at].entry.and_then(|i| Some((i, bundle.entries.get(i)?))) else {
            continue;
        };
        if !entry.data {
            continue;
        }
        let is = fsx::facts(&root.join(&entry.path))?;
        let touched = match (plan.actions[*at].live, is) {
            (Some(was), Some(is)) => !fsx::is_unchanged(&was, &is),
            _ => true,
        };
        if touched {
            plan.actions[*at] = restored(root, index, entry)?;
        }
    }
    whole_sets(root, bundle, plan)?;
    Ok(was_same.into_iter().filter(|i| plan.actions[*i].action != Action::Unchanged).collect())
}

/// Nothing can be moved to a folder that is a mount of another volume.
fn is_elsewhere(root: &InstallRoot, path: &RelPath) -> Result<bool> {
    let own = files::facts(root.path()).context("looking at the install")?.volume;
    for above in path.ancestors().iter().rev() {
        if let Some(facts) = fsx::facts(&root.join(above))? {
            return Ok(facts.volume != own);
        }
    }
    Ok(false)
}

fn set_exists(root: &InstallRoot, main: &RelPath) -> Result<bool> {
    for ending in preserve::MEMBERS {
        if fsx::exists(&root.join(&preserve::member(main, ending)))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What happens to an entry that the version owns.
fn shipped(
    root: &InstallRoot,
    bundle: &mut Bundle,
    index: usize,
    entry: &Entry,
    rules: &Rules,
    set_target: Option<&RelPath>,
    plan: &mut Plan,
) -> Result<Planned> {
    let live = match look(root, &entry.path)? {
        Look::There(facts) if facts.kind != Kind::Folder => facts,
        // A folder in the way is emptied by the removals; what is preserved in it is in the way for good.
        Look::There(_) => {
            return Err(Failure::failed(
                "folder-in-the-way",
                format!("{} is a folder here and a file in the bundle", entry.path),
            )
            .at(&entry.path)
            .remedy(format!("move the folder away: mv '{0}' '{0}.old'", root.join(&entry.path).display()))
            .into());
        }
        Look::Behind(above) if rules.preserve.class_of(&above, false).is_some() => {
            plan.held_back.push(entry.path.clone());
            return Ok(planned(Action::Keep, entry, index, None, &format!("{above} is preserved and no folder")));
        }
        Look::Missing | Look::Behind(_) => return Ok(planned(Action::Add, entry, index, None, "new")),
    };
    let carried = rules.carry.get(&entry.path);
    if let Some(names) = carried.filter(|_| live.kind == Kind::File && entry.link.is_none()) {
        let old = fs_err::read(root.join(&entry.path))?;
        let new = bundle.read_entry(index)?;
        let set: &[(String, String)] = if set_target == Some(&entry.path) { &rules.set } else { &[] };
        let done = carry::carry(&new, &old, names, set).map_err(|e| {
            Failure::failed("cannot-carry", format!("the settings of {} cannot be carried over: {e}", entry.path))
                .at(&entry.path)
                .remedy("write the assignment on one line at the start of the line, or drop it from [preserve] carry")
        })?;
        let without = carry::carry(&old, &old, names, set).map(|c| c.bytes != old).unwrap_or(true);
        plan.set_changes |= !set.is_empty() && without;
        if done.bytes == old {
            return Ok(planned(Action::Unchanged, entry, index, Some(live), "same content"));
        }
        return Ok(Planned {
            content: Some(done.bytes),
            ..planned(Action::Carry, entry, index, Some(live), "new content with the settings of this install")
        });
    }
    let known = plan.live.get(&entry.path);
    let same = known.is_some_and(|l| l.sha256 == entry.sha256 && (l.facts.kind == Kind::Link) == entry.link.is_some());
    if same && (entry.link.is_some() || live.mode == entry.mode) {
        return Ok(planned(Action::Unchanged, entry, index, Some(live), "same content"));
    }
    Ok(planned(Action::Replace, entry, index, Some(live), if same { "other mode" } else { "new content" }))
}
