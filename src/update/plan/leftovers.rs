//! What happens to what the bundle lacks: the version's own leaves, the users' stays, and what must not stay gives way.

use super::entries::{Planner, behind_link, in_the_way};
use super::{Action, Aside, Look, NO_LONGER, Plan, PlanInput, Planned, look};
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::receipt::Line;
use crate::system::{FileMetadata, FileType};
use crate::update::bundle::Bundle;
use crate::update::ownership::{Class, Ownership};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};

/// Adds to a plan of all entries what happens to everything else.
pub(super) fn complete(input: &PlanInput, bundle: &Bundle, planner: Planner) -> Result<Plan> {
    let mut plan = planner.plan;
    let ownership = input.ownership;
    if !input.heal {
        removals(input, bundle, &mut plan)?;
        cleaned(input, &mut plan)?;
        if ownership.is_first {
            first(input, &mut plan)?;
        }
    }
    plan.aside.sort_by(|a, b| a.path.cmp(&b.path));
    plan.aside.dedup_by(|a, b| a.path == b.path);
    emptied(input, bundle, &mut plan)?;
    Ok(plan)
}

/// What the receipt lists and the bundle lacks leaves, if it is as it was installed.
fn removals(input: &PlanInput, bundle: &Bundle, plan: &mut Plan) -> Result<()> {
    let ownership = input.ownership;
    let brought: BTreeSet<RelPath> = bundle.entries.iter().map(|e| ownership.rules.key(&e.path)).collect();
    for line in ownership.lines() {
        let key = ownership.rules.key(&line.path);
        if brought.contains(&key) || input.saved_data.contains(&line.path) {
            continue;
        }
        match look(&ownership.root, &line.path)? {
            Look::There(metadata) if matches!(metadata.kind, FileType::File | FileType::Link) => {
                let planned = removal(input, plan, line, metadata)?;
                plan.actions.extend(planned);
            }
            Look::Behind(link, FileType::Link) if is_program_line(ownership, line) => {
                return Err(behind_link(&line.path, &link).into());
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_program_line(ownership: &Ownership, line: &Line) -> bool {
    !ownership.rules.is_data(&line.path, false) && ownership.rules.profile.is_program(&line.path, Default::default())
}

/// The same for one that was to leave, after the stop.
pub(super) fn again(input: &PlanInput, plan: &mut Plan, was: &Planned) -> Result<Planned> {
    let kept = Planned { action: Action::Keep, reason: "written since the plan was made".into(), ..was.clone() };
    let metadata = fsx::metadata(&input.ownership.root.join(&was.path))?;
    let (Some(line), Some(metadata)) = (input.ownership.line(&was.path), metadata) else { return Ok(kept) };
    // What it held when the plan was made says nothing any more.
    plan.shipped.remove(&was.path);
    Ok(removal(input, plan, line, metadata)?.unwrap_or(kept))
}

/// None: it stays, because somebody changed it, or because it holds settings of this install.
fn removal(input: &PlanInput, plan: &mut Plan, line: &Line, metadata: FileMetadata) -> Result<Option<Planned>> {
    let ownership = input.ownership;
    if line.carried || ownership.rules.is_carried(&line.path) || ownership.is_own(&line.path, Some(&metadata)) {
        return Ok(None);
    }
    // Who knows whether a version shipped it.
    if ownership.is_assumed && !ownership.is_program(&line.path)? {
        return Ok(None);
    }
    if let Some(main) = input.census.databases.main_of(&line.path)
        && ownership.is_touched_set(&main)?
    {
        return Ok(None);
    }
    let is_released = match plan.shipped.get(&line.path) {
        Some(live) => live.sha256 == line.sha256,
        None => ownership.is_released(&line.path, &metadata)?,
    };
    if !is_released {
        plan.changed_here.push(line.path.clone());
        return Ok(None);
    }
    // One that lies in the way of a file of the bundle was counted among what gives way before it was known to leave.
    plan.aside.retain(|one| one.path != line.path);
    Ok(Some(Planned { live: Some(metadata), ..Planned::new(Action::Remove, &line.path, NO_LONGER) }))
}

/// Unknown program files where `[clean] paths` wants none.
fn cleaned(input: &PlanInput, plan: &mut Plan) -> Result<()> {
    let ownership = input.ownership;
    for (path, metadata) in input.census.of(Class::Data) {
        let is_wanted =
            ownership.rules.is_cleaned(path) && metadata.kind == FileType::File && !ownership.is_bundled(path);
        let is_known = ownership.line(path).is_some() || input.census.databases.main_of(path).is_some();
        if is_wanted && !is_known && *path != *input.start_file && ownership.is_program(path)? {
            plan.aside.push(Aside { path: path.clone(), reason: "[clean] paths names it" });
        }
    }
    Ok(())
}

/// Before the first receipt: what would be loaded in place of a new file, and what an old updater planted, give way.
/// Counts the program files that stay although the bundle lacks them.
fn first(input: &PlanInput, plan: &mut Plan) -> Result<()> {
    let ownership = input.ownership;
    let profile = ownership.rules.profile;
    let new: Vec<RelPath> = plan.actions.iter().filter(|p| p.action == Action::Add).map(|p| p.path.clone()).collect();
    let candidates: Vec<&RelPath> = input
        .census
        .of(Class::Data)
        .filter(|(path, metadata)| metadata.kind == FileType::File && !ownership.rules.is_data(path, false))
        .map(|(path, _)| path)
        .filter(|path| !ownership.is_bundled(path))
        .collect();
    for path in &candidates {
        if new.iter().any(|new| profile.shadows(path, new)) {
            plan.aside.push(Aside { path: (*path).clone(), reason: "it would be loaded in place of a new file" });
        }
    }
    for path in planted(input, &candidates)? {
        plan.aside.push(Aside { path, reason: "a copy that an old updater left" });
    }
    let aside: BTreeSet<&RelPath> = plan.aside.iter().map(|one| &one.path).collect();
    let stay = candidates.iter().filter(|path| !aside.contains(*path));
    plan.unknown_stay = Some(stay.filter(|path| profile.is_program(path, Default::default())).count());
    Ok(())
}

/// Files that equal another one of the same name in the install, where the profile knows of such litter. An empty one
/// is never one.
fn planted(input: &PlanInput, candidates: &[&RelPath]) -> Result<Vec<RelPath>> {
    let ownership = input.ownership;
    let mut by_hash: BTreeMap<String, usize> = BTreeMap::new();
    let mut all = Vec::new();
    for (path, item) in &input.census.items {
        if ownership.rules.profile.may_be_litter(path) && item.metadata.kind == FileType::File && item.metadata.size > 0
        {
            let hash = fsx::sha256_of(&ownership.root.join(path))?;
            *by_hash.entry(hash.clone()).or_default() += 1;
            all.push((path.clone(), hash));
        }
    }
    let is_equal = |hash: &String| by_hash.get(hash).is_some_and(|count| *count > 1);
    all.retain(|(path, hash)| candidates.contains(&path) && is_equal(hash));
    Ok(all.into_iter().map(|(path, _)| path).collect())
}

/// Folders in which nothing is left once everything is away, the deepest first. A folder in the way of a file must be
/// among them. Errors: it would not be empty.
fn emptied(input: &PlanInput, bundle: &Bundle, plan: &mut Plan) -> Result<()> {
    let ownership = input.ownership;
    let leave = plan.actions.iter().filter(|p| p.action == Action::Remove).map(|p| p.path.clone());
    let gone: BTreeSet<RelPath> = leave.chain(plan.aside.iter().map(|one| one.path.clone())).collect();
    let named: BTreeSet<RelPath> = bundle.entries.iter().flat_map(|e| e.path.ancestors()).collect();
    let in_the_way_of: Vec<&RelPath> = plan.changes().filter(|p| p.entry.is_some()).map(|p| &p.path).collect();
    let blocked = |folder: &RelPath| in_the_way_of.binary_search(&folder).is_ok();
    let (mut away, mut all, mut caches) = (gone.clone(), Vec::new(), Vec::new());
    let candidates = input.census.folders.iter().rev().filter(|(folder, metadata)| {
        let holds = |folder: &RelPath| gone.iter().any(|path| path.is_within(folder));
        let is_blocked = blocked(folder) || folder.ancestors().iter().any(blocked);
        metadata.kind == FileType::Folder
            && !named.contains(folder)
            && !input.saved_folders.contains(folder)
            && (is_blocked || (holds(folder) && !ownership.rules.is_data(folder, true)))
    });
    for (folder, metadata) in candidates {
        let (mut is_empty, mut found) = (true, Vec::new());
        for child in fsx::names(&ownership.root.join(folder))? {
            let Some(child) = folder.child(&child) else {
                is_empty = false;
                continue;
            };
            let is_cache = ownership.rules.profile.is_cache(&child);
            is_empty &= is_cache || away.contains(&child);
            found.extend(is_cache.then_some(child));
        }
        if is_empty {
            away.insert(folder.clone());
            all.push((folder.clone(), *metadata));
            caches.append(&mut found);
        } else if blocked(folder) {
            return Err(in_the_way(&ownership.root, folder).into());
        }
    }
    (plan.emptied, plan.caches) = (all, caches);
    Ok(())
}
