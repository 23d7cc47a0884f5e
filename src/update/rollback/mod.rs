//! Rollback: the way back from any failure after the stop, by the journal alone; `recover` takes the
//! same way after a kill. Data first, then code, the start file last.
//! Refuses to drop anything: what the new version wrote goes to the backup's `after/`.

mod data;
mod folders;
mod interrupted;
mod log;
mod server;

pub use interrupted::{Attempt, Interrupted, code_of, roll_back};
pub use server::{baseline, end_started, refuse_outsiders, start_new, start_old};

use crate::backup;
use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::dir::StateDir;
pub use crate::state::journal::DataPolicy;
use crate::state::journal::{Journal, Moves, Phase, Record};
use crate::state::receipt;
use crate::state::root::InstallRoot;
use crate::update::hooks::{self, TreeSnapshot};
use crate::update::install::Install;
use crate::update::ownership::{Databases, MEMBERS, member};
use crate::update::run::Run;
use crate::update::staging::{self, annex};
use crate::update::transaction::{self, Transaction};
use crate::verify;
use anyhow::Result;
use std::path::PathBuf;

/// The folder of the backup that this update made.
pub fn backup_dir(root: &InstallRoot, journal: &Journal) -> PathBuf {
    root.join(&journal.begin.backup_dir).join(&journal.begin.backup)
}

/// Brings the tree back to the old version. After `data-restored` no data is ever put back again. Returns the large
/// files that nobody saved and that were altered since the stop.
pub fn undo(root: &InstallRoot, journal: &mut Journal, data: DataPolicy) -> Result<Vec<RelPath>> {
    staging::release_reserve(root.state())?;
    let altered = match Transaction::of(root, journal) {
        Some(transaction) => undo_moves(root, journal, transaction, data)?,
        None => Vec::new(),
    };
    journal.append(Record::RolledBack)?;
    Ok(altered)
}

/// Folders first, then what hooks made, then data, then code, the start file last.
fn undo_moves(
    root: &InstallRoot,
    journal: &mut Journal,
    mut transaction: Transaction,
    data: DataPolicy,
) -> Result<Vec<RelPath>> {
    annex::require(transaction.moves())?;
    let dir = &backup_dir(root, journal);
    let progress = journal.progress();
    let restored = progress.is_data_restored();
    let before = progress.hooks.as_ref().map(|_| TreeSnapshot::load(root.state())).transpose()?;
    // From here on the tree of a version that was started is no longer whole.
    if !restored && progress.started.is_some() && progress.phase != Phase::Undoing(data) {
        journal.append(Record::Undoing { data })?;
    }
    let loaded = backup::load(dir);
    let record = loaded.as_ref().ok();
    // Whatever the new version made of the folders, nothing is written or moved through it.
    let may_be_altered = progress.started.is_some() || before.is_some();
    if may_be_altered {
        folders::mend(root, record, transaction.moves(), data, dir)?;
    }
    let puts_data_back = data == DataPolicy::Restored && !restored;
    if let Some(before) = &before {
        undo_hooks(root, before, &transaction, record.filter(|_| puts_data_back), puts_data_back)?;
    }
    if puts_data_back {
        let record = loaded.as_ref().map_err(|e| backup_lost(root, dir, e))?;
        transaction.withdraw_start_file()?;
        data::restore_data(root, dir, record, transaction.moves())?;
        journal.append(Record::DataRestored)?;
    }
    if data == DataPolicy::Kept {
        transaction.keep_data();
    }
    transaction.undo()?;
    if before.is_some() {
        data::restore_program(root, dir, transaction.start_file(), data)?;
    }
    let is_start = |path: &RelPath| path == transaction.start_file();
    data::restore_moved(root, dir, record, transaction.moves(), &|path| !is_start(path))?;
    let mut altered = Vec::new();
    if let Some(record) = record.filter(|_| may_be_altered) {
        // Also where this way back was cut off after the data: what comes after it was not done.
        if data == DataPolicy::Restored || restored {
            altered = verify::altered_unsaved(root, record)?;
            data::restore_watched_metadata(root, record)?;
        }
        folders::put_back(root, dir, record, transaction.moves(), data)?;
    }
    transaction.undo_start()?;
    data::restore_moved(root, dir, record, transaction.moves(), &is_start)?;
    Ok(altered)
}

/// Takes away what hooks made, among the data only where that is put back.
fn undo_hooks(
    root: &InstallRoot,
    before: &TreeSnapshot,
    transaction: &Transaction,
    record: Option<&backup::Record>,
    with_data: bool,
) -> Result<()> {
    before.mend_folders(root, &transaction.after())?;
    let made = made_by_hooks(root, before, transaction.moves())?;
    transaction.withdraw_start_file()?;
    let databases = record.map(backup::Record::databases).unwrap_or_default();
    take_away_made(root, before, &made, with_data.then_some(&databases), &transaction.after())
}

/// Without the backup nobody but a person can say that what is there now is good enough.
pub(super) fn backup_lost(root: &InstallRoot, dir: &std::path::Path, e: &anyhow::Error) -> Failure {
    let message = format!("the backup from which data and program are put back is gone or damaged: {e:#}");
    Failure::operator(Code::BackupLost, message).at(dir.display()).remedy(format!(
        "bring its folder back and type: updater recover --root '{0}'; or go on with the data as they are now: updater \
         recover --data keep --root '{0}'",
        root.path().display()
    ))
}

/// What hooks made: as it was kept at their end, or looked for now, once, before anything moves (where they had not
/// ended nobody else can have made anything). What the swap moved is not theirs.
fn made_by_hooks(root: &InstallRoot, before: &TreeSnapshot, moves: &Moves) -> Result<Vec<RelPath>> {
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
    before: &TreeSnapshot,
    made: &[RelPath],
    data: Option<&Databases>,
    after: &std::path::Path,
) -> Result<()> {
    for path in made.iter().filter(|path| data.is_some() || !before.is_data(path)) {
        // The shared memory and the logs of a database that was made belong to it, whoever wrote them.
        let set = data.and_then(|databases| databases.main_of(path)).filter(|main| main == path);
        let members = set.iter().flat_map(|main| MEMBERS.map(|ending| member(main, ending)));
        for path in members.chain([path.clone()]) {
            if fsx::exists(&root.join(&path))? {
                transaction::set_aside(&root.join(&path), after, &path)?;
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
    if let Some(transaction) = Transaction::of(root, journal) {
        transaction.bring_home()?;
    }
    if journal.progress().phase == Phase::Committed {
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

/// Removes what an update left that ends before its stop, and gives its failure back. Where even this cannot be removed,
/// the next command does it: the cause is what is told.
pub fn sweep_after(install: &Install, run: &mut Run, cause: anyhow::Error) -> anyhow::Error {
    if let Err(e) = sweep(install.state()) {
        run.report.warning(Code::NotCleanedUp, &format!("what was staged could not be removed: {e:#}"), None);
    }
    cause
}

/// A person has to say what becomes of the data.
pub const UNDECIDED: Code = Code::DataUndecided;

/// The failure where data may have been written outside our watch.
pub fn undecided(install: &Install) -> Failure {
    let root = install.root.path().display();
    Failure::operator(
        UNDECIDED,
        "the new version was started and may have run outside our watch; putting data back could lose what users wrote",
    )
    .at(&root)
    .remedy(format!(
        "type: updater recover --root '{root}' --data keep (old code, data as it is now) or --data backup (old code, data as at the stop)"
    ))
}

/// Names what a rollback could not put back, because nobody had saved it.
pub fn tell_altered(run: &mut Run, altered: &[RelPath]) {
    if !altered.is_empty() {
        run.report.warn_of(Code::NotPutBack, &altered_words(altered), altered);
    }
}

/// The same in words.
pub fn altered_words(altered: &[RelPath]) -> String {
    let names: Vec<String> = altered.iter().take(3).map(RelPath::to_string).collect();
    let more =
        if altered.len() > names.len() { format!(" and {} more", altered.len() - names.len()) } else { String::new() };
    format!("{}{more} changed since the stop and had not been saved", names.join(", "))
}
