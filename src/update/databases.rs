//! The databases before and after an update: whole, and no row of the watched tables lost.
//! Refuses to open one that is live: everything is asked of clones.

use super::Prepared;
use crate::base::error::Failure;
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::system::Facts;
use crate::update::context::Context;
use crate::update::ownership::member;
use crate::verify::{self, Database};
use anyhow::Result;
use std::path::Path;

/// How often a database that is being written is looked at again before nothing counts as proven.
const LOOKS: usize = 20;

/// Preflight: a database that is damaged already must not be blamed on the update.
pub(super) fn whole_already(cx: &Context, main: &RelPath) -> Result<()> {
    let damaged = Failure::failed("database-damaged", format!("the database {main} is damaged already, before the update"))
        .at(main)
        .remedy("mend it first, or go on all the same with --force-data; if it is no SQLite file, take it out of [verify] sqlite");
    judge(cx, main, &[], |found| (!found.ok).then(|| damaged.clone()))
}

/// A busy database may be cloned in the middle of a write, so `fault` counts only in files that stood still.
fn judge(cx: &Context, main: &RelPath, tables: &[String], fault: impl Fn(&Database) -> Option<Failure>) -> Result<()> {
    let scratch = cx.scratch()?;
    for _ in 0..LOOKS {
        let was = facts(cx, main)?;
        let found = verify::check_database(cx.root.path(), main, tables, &scratch)?;
        let Some(failure) = fault(&found) else { return Ok(()) };
        if was == facts(cx, main)? {
            return Err(failure.into());
        }
    }
    Ok(())
}

fn facts(cx: &Context, main: &RelPath) -> Result<[Option<Facts>; 3]> {
    let of = |ending| fsx::facts(&cx.root.join(&member(main, ending)));
    Ok([of("")?, of("-wal")?, of("-journal")?])
}

/// After the new version answered: each database is as whole as at the stop, and has no fewer rows in the watched
/// tables. How it was then tells the backup's copy, so that nothing of this costs outage.
pub(super) fn kept(cx: &Context, prepared: &Prepared, backup: &Path) -> Result<()> {
    let scratch = cx.scratch()?;
    let tables = &cx.settings.verify.tables;
    for main in &prepared.watched_databases(cx)? {
        let was = verify::check_database(backup, main, tables, &scratch)?;
        // Damaged already (`--force-data`), or not there: nothing is to be judged.
        if !was.ok || was.size == 0 {
            continue;
        }
        let gone = || !fsx::facts(&cx.root.join(main)).is_ok_and(|facts| facts.is_some_and(|f| f.size > 0));
        judge(cx, main, tables, |is| lost(&was, is, gone()))?;
    }
    Ok(())
}

fn lost(was: &Database, is: &Database, gone: bool) -> Option<Failure> {
    let path = &was.path;
    if !is.ok || gone {
        return Some(
            Failure::failed("database-damaged", format!("the new version damaged the database {path}"))
                .at(path)
                .remedy("mend the bundle, then apply it again"),
        );
    }
    let fewer = was.tables.iter().map(|(table, rows)| (table, *rows, is.tables.get(table).copied().unwrap_or(0)));
    let (table, rows, left) = fewer.into_iter().find(|(_, rows, left)| left < rows)?;
    let message = format!("the new version lost rows of {table} in {path}: {rows} before, {left} after");
    Some(
        Failure::failed("rows-lost", message)
            .at(path)
            .remedy("mend the bundle, or take the table out of [verify] tables, then apply it again"),
    )
}
