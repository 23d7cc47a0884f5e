//! Every move of a swap, named before the first is made.
//! Refuses to move anything; it makes the annexes, which an undo needs on the disk.

use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::journal::{Arrival, Away, Exchange, Folder, Intent, Moves};
use crate::state::root::InstallRoot;
use crate::system::FileType;
use crate::update::ownership::{MEMBERS, Rules, member};
use crate::update::plan::{Action, Plan};
use crate::update::staging::{StagedFile, annex};
use anyhow::Result;
use std::collections::BTreeSet;

/// Names every move, and has a place for each on its volume. Called after the stop: what the old version compiled meanwhile is found too.
pub fn intend(root: &InstallRoot, plan: &Plan, staged: &[StagedFile], rules: &Rules) -> Result<Moves> {
    let mut moves = Moves::default();
    let give_way: BTreeSet<&RelPath> = plan.changes().filter(|p| p.aside).map(|p| &p.path).collect();
    let replaced: BTreeSet<&RelPath> = plan.changes().filter(|p| p.saved_data).map(|p| &p.path).collect();
    let away_of = |path: &RelPath| match () {
        () if give_way.contains(path) => Away::Aside,
        () if replaced.contains(path) => Away::After,
        () => Away::Trash,
    };
    for one in staged {
        moves.moves.push(Intent {
            data: rules.is_data(&one.path, false),
            path: one.path.clone(),
            old: fsx::exists(&root.join(&one.path))? && !is_behind_or_folder(root, &one.path, rules)?,
            new: Some(Arrival { sha256: one.sha256.clone(), size: one.metadata.size }),
            away: away_of(&one.path),
        });
    }
    let leaves =
        |path: &RelPath, data: bool, away: Away| Intent { path: path.clone(), old: true, new: None, data, away };
    let removed = plan.changes().filter(|p| p.action == Action::Remove).map(|p| &p.path).chain(&plan.caches);
    let removed = removed.map(|path| (path, Away::Trash));
    for (path, away) in removed.chain(plan.aside.iter().map(|one| (&one.path, Away::Aside))) {
        if fsx::exists(&root.join(path))? {
            moves.moves.push(leaves(path, false, away));
        }
    }
    // A log beside a database that is put back without it would be replayed into it.
    let arrives: BTreeSet<&RelPath> = staged.iter().map(|s| &s.path).collect();
    for path in plan.sets.iter().flat_map(|main| MEMBERS.map(|ending| member(main, ending))) {
        if !arrives.contains(&path) && fsx::exists(&root.join(&path))? {
            moves.moves.push(leaves(&path, true, Away::After));
        }
    }
    let parents: BTreeSet<RelPath> = moves.moves.iter().flat_map(|m| m.path.ancestors()).collect();
    let arriving: BTreeSet<RelPath> = staged.iter().flat_map(|s| s.path.ancestors()).collect();
    for path in parents {
        match fsx::metadata(&root.join(&path))? {
            Some(f) if f.kind == FileType::Folder => {
                moves.touched.push(Folder::of(&path, &f));
            }
            Some(_) if is_data_folder(root, &path, rules) => {}
            _ if arriving.contains(&path) => moves.make.push(path),
            _ => {}
        }
    }
    for (path, f) in &plan.emptied {
        moves.remove.push(Folder::of(path, f));
    }
    // Only those that are used: an undo needs every one that is named.
    let used: BTreeSet<&RelPath> = moves.moves.iter().filter_map(|m| Some(&plan.annex(&m.path)?.top)).collect();
    moves.annexes = plan.annexes.iter().filter(|annex| used.contains(&annex.top)).cloned().collect();
    moves.annexes.iter().try_for_each(|annex| annex::make(root.state(), annex))?;
    Ok(moves)
}

/// Adds what hooks may write to the moves.
pub fn intend_exchanges(root: &InstallRoot, moves: &mut Moves, exchanges: Vec<Exchange>) -> Result<()> {
    for path in exchanges.iter().flat_map(|one| one.path.ancestors()) {
        if let Some(f) = fsx::metadata(&root.join(&path))?.filter(|f| f.kind == FileType::Folder)
            && !moves.touched.iter().any(|folder| folder.path == path)
        {
            moves.touched.push(Folder::of(&path, &f));
        }
    }
    moves.exchanges = exchanges;
    Ok(())
}

/// Adds the folders of a saved version that are to be there again: those whose place a file of the installed version
/// leaves, and with `all` every one that is missing.
pub fn intend_folders(root: &InstallRoot, moves: &mut Moves, folders: &[Folder], all: bool) -> Result<()> {
    let leaves =
        |moves: &Moves, path: &RelPath| moves.moves.iter().any(|m| m.path == *path && m.old && m.new.is_none());
    for path in folders.iter().map(|folder| &folder.path) {
        let is_vacated = leaves(moves, path) || path.ancestors().iter().any(|above| leaves(moves, above));
        let stands = fsx::metadata(&root.join(path))?;
        let is_wanted = if stands.is_some() { leaves(moves, path) } else { all || is_vacated };
        if !is_wanted || moves.make.contains(path) {
            continue;
        }
        let above = path.parent();
        let is_made = above.as_ref().is_some_and(|above| moves.make.contains(above));
        let place = above.as_ref().map_or_else(|| root.path().to_path_buf(), |above| root.join(above));
        let Some(is) = fsx::metadata(&place)?.filter(|is| !is_made && is.kind == FileType::Folder) else {
            // What stands above it stays, and it has no place.
            moves.make.extend(is_made.then(|| path.clone()));
            continue;
        };
        if let Some(above) = above.filter(|above| !moves.touched.iter().any(|one| one.path == *above)) {
            moves.touched.push(Folder::of(&above, &is));
        }
        moves.make.push(path.clone());
    }
    moves.make.sort();
    Ok(())
}

/// True where what lies at `path` is none of the file's own: seen through something that leaves, or a folder that is
/// emptied for it. A data folder at the top may be a link.
fn is_behind_or_folder(root: &InstallRoot, path: &RelPath, rules: &Rules) -> Result<bool> {
    for above in path.ancestors() {
        let full = root.join(&above);
        if !is_data_folder(root, &above, rules) && fsx::metadata(&full)?.is_some_and(|f| f.kind != FileType::Folder) {
            return Ok(true);
        }
    }
    Ok(fsx::metadata(&root.join(path))?.is_some_and(|f| f.kind == FileType::Folder))
}

/// A data folder at the top, also one that is a link to a folder.
fn is_data_folder(root: &InstallRoot, path: &RelPath, rules: &Rules) -> bool {
    path.parent().is_none() && rules.is_data(path, false) && root.join(path).is_dir()
}
