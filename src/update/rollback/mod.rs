//! Rollback: the way back from any failure after the stop, by the journal alone; `recover` takes the
//! same way after a kill. Data first, then code, the start file last.
//! Refuses to drop anything: what the new version wrote goes to the backup's `after/`.

mod data;
mod folders;

use crate::backup;
use crate::base::error::Failure;
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::dir::StateDir;
pub use crate::state::journal::DataBack;
use crate::state::journal::{Journal, Moves, Record};
use crate::state::receipt;
use crate::state::root::InstallRoot;
use crate::update::hooks::{self, Before};
use crate::update::ownership::{Databases, MEMBERS, member};
use crate::update::staging::{self, annex};
use crate::update::swap;
use crate::verify;
use anyhow::Result;
use std::path::PathBuf;

/// The folder of the backup that this update made.
pub fn backup_dir(root: &InstallRoot, journal: &Journal) -> PathBuf {
    root.join(&journal.begin.backup_dir).join(&journal.begin.backup)
}

/// Brings the tree back to the old version. After `data-restored` no data is ever put back again. Returns the large
/// files that nobody saved and that were altered since the stop.
pub fn undo(root: &InstallRoot, journal: &mut Journal, data: DataBack) -> Result<Vec<RelPath>> {
    let dir = backup_dir(root, journal);
    let start_file = journal.begin.start_file.clone();
    staging::release_reserve(root.state())?;
    let mut altered = Vec::new();
    if let Some(mut moves) = journal.moves().cloned() {
        annex::require(&moves)?;
        let restored = journal.has(|r| matches!(r, Record::DataRestored));
        let before = journal.hooking().map(|_| Before::load(root.state())).transpose()?;
        // From here on the tree of a version that was started is no longer whole.
        if !restored && journal.starting().is_some() && journal.undoing() != Some(data) {
            journal.append(Record::Undoing { data })?;
        }
        let record = backup::load(&dir);
        // Whatever the new version made of the folders, nothing is written or moved through it.
        let may_be_altered = journal.starting().is_some() || before.is_some();
        if may_be_altered {
            folders::mend(root, record.as_ref().ok(), &moves, data, &dir)?;
        }
        if let Some(before) = &before {
            before.mend_folders(root, &swap::after(&dir))?;
            let made = made_by_hooks(root, before, &moves)?;
            swap::hide_start_file(root, &moves, &start_file, &dir)?;
            let databases = record.as_ref().map(backup::Record::databases).unwrap_or_default();
            let with_data = data == DataBack::Restored && !restored;
            take_away_made(root, before, &made, with_data.then_some(&databases), &dir)?;
        }
        if data == DataBack::Restored && !restored {
            let record = record.as_ref().map_err(|e| backup_lost(root, &dir, e))?;
            swap::hide_start_file(root, &moves, &start_file, &dir)?;
            data::put_all_back(root, &dir, record, &moves)?;
            journal.append(Record::DataRestored)?;
        }
        if data == DataBack::Kept {
            moves.moves.retain(|m| !m.data);
        }
        swap::undo(root, &moves, &start_file, &dir)?;
        if before.is_some() {
            data::program_back(root, &dir, &start_file, data)?;
        }
        let is_start = |path: &RelPath| *path == start_file;
        data::moved_back(root, &dir, record.as_ref().ok(), &moves, &|path| !is_start(path))?;
        if may_be_altered && let Ok(record) = &record {
            // Also where this way back was cut off after the data: what comes after it was not done.
            if data == DataBack::Restored || restored {
                altered = verify::altered_unsaved(root, record)?;
                data::watched_back(root, record)?;
            }
            folders::put_back(root, &dir, record, &moves, data)?;
        }
        swap::undo_start(root, &moves, &start_file, &dir)?;
        data::moved_back(root, &dir, record.as_ref().ok(), &moves, &is_start)?;
    }
    journal.append(Record::RolledBack)?;
    Ok(altered)
}

/// Without the backup nobody but a person can say that what is there now is good enough.
pub(super) fn backup_lost(root: &InstallRoot, dir: &std::path::Path, e: &anyhow::Error) -> Failure {
    let message = format!("the backup from which data and program are put back is gone or damaged: {e:#}");
    Failure::operator("backup-lost", message).at(dir.display()).remedy(format!(
        "bring its folder back and type: updater recover --root '{0}'; or go on with the data as they are now: updater \
         recover --data keep --root '{0}'",
        root.path().display()
    ))
}

/// What hooks made: as it was kept at their end, or looked for now, once, before anything moves (where they had not
/// ended nobody else can have made anything). What the swap moved is not theirs.
fn made_by_hooks(root: &InstallRoot, before: &Before, moves: &Moves) -> Result<Vec<RelPath>> {
    let state = root.state();
    let mut made = match hooks::load_made(state)? {
        Some(made) => made,
        None => {
            let made = before.made(root)?;
            hooks::store_made(state, &made)?;
            made
        }
    };
    made.retain(|path| !moves.moves.iter().any(|m| m.path.is_within(path)));
    Ok(made)
}

/// What hooks made is no user's: it goes to `after`, so that the old version finds what it left. With `data` None
/// what they made among the data stays; else these are the databases.
fn take_away_made(
    root: &InstallRoot,
    before: &Before,
    made: &[RelPath],
    data: Option<&Databases>,
    backup: &std::path::Path,
) -> Result<()> {
    let after = &swap::after(backup);
    for path in made.iter().filter(|path| data.is_some() || !before.is_data(path)) {
        // The shared memory and the logs of a database that was made belong to it, whoever wrote them.
        let set = data.and_then(|databases| databases.main_of(path)).filter(|main| main == path);
        let members = set.iter().flat_map(|main| MEMBERS.map(|ending| member(main, ending)));
        for path in members.chain([path.clone()]) {
            if fsx::exists(&root.join(&path))? {
                swap::set_aside(&root.join(&path), after, &path)?;
            }
        }
    }
    Ok(())
}

/// Cleans up after a finished update, in either direction. Called only once the journal says so.
pub fn clean_up(root: &InstallRoot, journal: Journal) -> Result<()> {
    tidy(root, &journal)?;
    journal.close()
}

/// The same, but the journal stays open: what stands is whole, and its health is not proven yet.
pub fn tidy(root: &InstallRoot, journal: &Journal) -> Result<()> {
    let state = root.state();
    let committed = journal.has(|r| matches!(r, Record::Committed));
    if let Some(moves) = journal.moves().filter(|moves| !moves.annexes.is_empty()) {
        swap::bring_home(state, moves, &backup_dir(root, journal))?;
    }
    if committed {
        receipt::place_staged(state)?;
    } else {
        backup::mark_failed(&backup_dir(root, journal))?;
    }
    sweep(state)
}

/// Removes what runs that have ended left in `.updater`. Called only when no journal refers to it.
pub fn sweep(state: &StateDir) -> Result<()> {
    fsx::remove_own_tree(&state.trash())?;
    fsx::remove_own_tree(&state.originals())?;
    staging::clear(state)?;
    annex::clear(state)?;
    backup::clear_discarded(state)?;
    fsx::remove_own_tree(&state.downloads())?;
    // Files that were never renamed into their places.
    // A new version may have taken all of it away.
    if !fsx::exists(state.path())? {
        return Ok(());
    }
    for name in fsx::names(state.path())? {
        let path = state.path().join(name);
        if path.extension().is_some_and(|ending| ending == "new" || ending == "tmp") {
            fsx::remove_own_file(&path)?;
        }
    }
    Ok(())
}
