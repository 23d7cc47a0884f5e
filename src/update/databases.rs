//! The databases before and after an update: whole, and no row of the watched tables lost.
//! Refuses to open one that is live: everything is asked of clones.

use super::preflight::Prepared;
use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::system::FileMetadata;
use crate::update::install::Install;
use crate::update::ownership::member;
use crate::update::run::Run;
use crate::verify::{self, Database};
use anyhow::Result;
use std::path::Path;

/// How often a database that is being written is looked at again before nothing counts as proven.
const LOOKS: usize = 20;

/// Preflight: a database that is damaged already must not be blamed on the update.
pub(super) fn whole_already(install: &Install, run: &Run, main: &RelPath) -> Result<()> {
    let damaged = Failure::failed(Code::DatabaseDamaged, format!("the database {main} is damaged already, before the update"))
        .at(main)
        .remedy("mend it first, or go on all the same with --force-data; if it is no SQLite file, take it out of [verify] sqlite");
    judge(install, run, main, &[], |found| (!found.ok).then(|| damaged.clone()))
}

/// A busy database may be cloned in the middle of a write, so `fault` counts only in files that stood still.
fn judge(
    install: &Install,
    run: &Run,
    main: &RelPath,
    tables: &[String],
    fault: impl Fn(&Database) -> Option<Failure>,
) -> Result<()> {
    let scratch = run.scratch(install)?;
    for _ in 0..LOOKS {
        let was = metadata(install, main)?;
        let found = verify::check_database(install.root.path(), main, tables, &scratch)?;
        let Some(failure) = fault(&found) else { return Ok(()) };
        if was == metadata(install, main)? {
            return Err(failure.into());
        }
    }
    Ok(())
}

fn metadata(install: &Install, main: &RelPath) -> Result<[Option<FileMetadata>; 3]> {
    let of = |ending| fsx::metadata(&install.root.join(&member(main, ending)));
    Ok([of("")?, of("-wal")?, of("-journal")?])
}

/// After the new version answered: each database is as whole as at the stop, and has no fewer rows in the watched
/// tables. How it was then tells the backup's copy, so that nothing of this costs outage.
pub(super) fn kept(install: &Install, run: &Run, prepared: &Prepared, backup: &Path) -> Result<()> {
    let scratch = run.scratch(install)?;
    let tables = &install.settings.verify.tables;
    for main in &prepared.watched_databases(install)? {
        let was = verify::check_database(backup, main, tables, &scratch)?;
        // Damaged already (`--force-data`), or not there: nothing is to be judged.
        if !was.ok || was.size == 0 {
            continue;
        }
        let gone =
            || !fsx::metadata(&install.root.join(main)).is_ok_and(|metadata| metadata.is_some_and(|f| f.size > 0));
        judge(install, run, main, tables, |is| lost(&was, is, gone()))?;
    }
    Ok(())
}

fn lost(was: &Database, is: &Database, gone: bool) -> Option<Failure> {
    let path = &was.path;
    if !is.ok || gone {
        return Some(
            Failure::failed(Code::DatabaseDamaged, format!("the new version damaged the database {path}"))
                .at(path)
                .remedy("mend the bundle, then apply it again"),
        );
    }
    let fewer = was.tables.iter().map(|(table, rows)| (table, *rows, is.tables.get(table).copied().unwrap_or(0)));
    let (table, rows, left) = fewer.into_iter().find(|(_, rows, left)| left < rows)?;
    let message = format!("the new version lost rows of {table} in {path}: {rows} before, {left} after");
    Some(
        Failure::failed(Code::RowsLost, message)
            .at(path)
            .remedy("mend the bundle, or take the table out of [verify] tables, then apply it again"),
    )
}
