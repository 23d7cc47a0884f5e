//! `restore`: an update whose bundle is a backup; and `backups prune`.
//! Refuses a backup that is not whole, and old code on a database that it does not know.

use crate::backup::{self, Kind, Listed, Record};
use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::base::report::{Finished, Outcome};
use crate::commands::backups;
use crate::commands::shown::Shown;
use crate::state::receipt;
use crate::update::install::Install;
use crate::update::ownership::{MEMBERS, member};
use crate::update::run::{self, Run};
use crate::update::staging;
use crate::update::{self, Accept, Mode, Request, Saved, ServerOptions, Source};
use crate::verify::{self, Contents};
use anyhow::{Context as _, Result};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// What `restore` is asked for.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// None: the newest backup of another version.
    pub id: Option<String>,
    /// Data of the users goes back, too.
    pub data: bool,
    /// Code alone, whatever the databases look like.
    pub code_only: bool,
    /// Nothing but these.
    pub only: Vec<String>,
    /// A folder of the old updater, without a record.
    pub legacy: bool,
    /// Nobody is asked.
    pub yes: bool,
    pub server: ServerOptions,
    pub accept: Accept,
    /// How long another updater is waited for.
    pub wait: Option<Duration>,
}

/// Runs the restore. The `Finished` says how it ended, whatever happened.
pub fn restore(install: &Install, run: &mut Run, wanted: &RestoreOptions) -> Finished {
    let outcome = restore_locked(install, run, wanted);
    update::conclude(install, run, outcome)
}

fn restore_locked(install: &Install, run: &mut Run, wanted: &RestoreOptions) -> Result<Outcome> {
    let only = paths(&wanted.only)?;
    if wanted.id.is_some() {
        // Before the lock: a mistyped id makes nothing.
        choose(install, wanted)?;
    }
    let _lock = update::begin(install, run, wanted.wait)?;
    update::recover_first(install, run)?;
    let (dir, record) = run::interruptible(|| choose(install, wanted))?;
    let mut saved = Saved { dir, record, data: wanted.data, only };
    complete(install, &mut saved)?;
    if !saved.data && !wanted.code_only {
        let judged = run::interruptible(|| same_schemas(install, run, &saved));
        staging::clear(install.state())?;
        judged?;
    }
    let words = format!("restore {} (version {})", saved.record.id, saved.record.version());
    if wanted.id.is_none() {
        run.report.line(&words);
        if !wanted.yes && !run.report.confirm("go on?") {
            return Err(Failure::failed(
                Code::NotConfirmed,
                "nothing was changed: the question was not answered with y",
            )
            .remedy(format!("type: updater restore {}", saved.record.id))
            .into());
        }
    }
    let data = if saved.data { " --data" } else { "" };
    let request = Request {
        source: Source::Backup(Box::new(saved)),
        mode: Mode::Update { reinstall: false, unattended: false },
        server: wanted.server.clone(),
        accept: wanted.accept,
        set: Vec::new(),
        wait: wanted.wait,
    };
    let outcome = update::pipeline(install, run, &request)?;
    if let Some(id) = &run.summary.backup {
        let root = install.root.path().display();
        run.report.line(&format!("to undo this, type: updater restore {id}{data} --root '{root}'"));
    }
    Ok(if outcome == Outcome::Applied { Outcome::Restored } else { outcome })
}

fn paths(names: &[String]) -> Result<Vec<RelPath>> {
    let parse = |name: &String| {
        RelPath::parse(name.strip_suffix('/').unwrap_or(name)).map_err(|e| {
            Failure::usage(Code::BadPath, format!("--only {name}: {e}"))
                .remedy("give a path inside the install, as updater backups shows it")
                .into()
        })
    };
    names.iter().map(parse).collect()
}

/// The backup that is meant. Errors: there is none (exit 1), it has no record or is damaged (exit 6).
fn choose(install: &Install, wanted: &RestoreOptions) -> Result<(PathBuf, Record)> {
    let backups = install.backups();
    let Some(id) = &wanted.id else {
        if wanted.legacy {
            return Err(Failure::usage(Code::NoId, "--legacy needs the name of a folder")
                .remedy("updater backups lists them")
                .into());
        }
        return newest_other(install);
    };
    let name = RelPath::parse(id).ok().filter(|name| name.parent().is_none());
    let dir = name.map(|name| backups.join(name.to_path()));
    let Some(dir) = dir.filter(|dir| dir.is_dir()) else {
        return Err(Failure::failed(Code::NoBackup, format!("there is no backup {id}"))
            .at(backups.display())
            .remedy("updater backups lists them")
            .into());
    };
    if fsx::exists(&dir.join("backup.json"))? {
        let record = backup::load(&dir).map_err(|e| {
            Failure::refused(Code::BackupDamaged, format!("the record of the backup {id} cannot be read: {e:#}"))
                .at(dir.join("backup.json").display())
                .remedy("restore another backup; updater backups --check lists which are whole")
        })?;
        return Ok((dir, record));
    }
    if !wanted.legacy {
        return Err(Failure::refused(
            Code::NoRecord,
            format!("the backup {id} has no record, so nothing tells whether it is whole"),
        )
        .at(dir.display())
        .remedy(format!("if the old updater made it, look through it, then type: updater restore {id} --legacy"))
        .into());
    }
    let start_file = receipt::load(install.state())?.map_or_else(update::default_start_file, |r| r.start_file);
    let record = backup::legacy(&dir, &install.rules, &start_file)?;
    Ok((dir, record))
}

/// The newest whole backup of an applied update whose version is not the installed one.
fn newest_other(install: &Install) -> Result<(PathBuf, Record)> {
    let installed = receipt::load(install.state())?;
    for (dir, record) in backup::list(&install.backups())? {
        let version = record.version();
        let is_installed = installed.as_ref().is_some_and(|r| r.version == version);
        if record.kind == Kind::Apply && !is_installed && backup::damage(&dir, &record, false)?.is_empty() {
            return Ok((dir, record));
        }
    }
    Err(Failure::failed(Code::NoBackup, "there is no whole backup of an applied update to another version")
        .at(install.backups().display())
        .remedy("updater backups lists what there is; updater restore ID takes one of them")
        .into())
}

/// `--only`: each path must be saved; a database is put back whole; data that is named is meant.
fn complete(install: &Install, saved: &mut Saved) -> Result<()> {
    let (rules, databases) = (&install.rules, saved.record.databases());
    let mut all: BTreeSet<RelPath> = saved.only.iter().cloned().collect();
    for path in &saved.only {
        let lines = || saved.record.files.iter().filter(|l| l.path.is_within(path));
        if lines().next().is_none() {
            return Err(Failure::failed(
                Code::NotInBackup,
                format!("the backup {} does not hold {path}", saved.record.id),
            )
            .at(path)
            .remedy("give a path inside the install that was saved")
            .into());
        }
        saved.data |= lines().any(|l| l.data) || rules.is_data(path, false);
        if let Some(main) = databases.main_of(path) {
            all.extend(MEMBERS.map(|ending| member(&main, ending)));
        }
    }
    saved.only = all.into_iter().collect();
    Ok(())
}

/// Old code on a database with another schema fails late, or writes what the new code cannot read.
/// Errors (exit 6): a schema differs; both ways out, and what each loses.
fn same_schemas(install: &Install, run: &Run, saved: &Saved) -> Result<()> {
    let lines: Vec<_> = saved.record.files.iter().filter(|l| l.data).collect();
    let place = |main: &RelPath| lines.iter().find(|l| l.path == *main).map(|l| l.saved_at().to_path());
    let scratch = run.scratch(install)?;
    for main in install.databases(&saved.record.databases(), lines.iter().map(|l| &l.path)) {
        let Some(place) = place(&main) else { continue };
        let (live, kept) = (install.root.join(&main), saved.dir.join(place));
        if !fsx::exists(&live)? || !fsx::exists(&kept)? {
            continue;
        }
        // A damaged database has no schema to compare; preflight judges it.
        let (Ok(now), Ok(then)) = (verify::contents(&live, &scratch), verify::contents(&kept, &scratch)) else {
            continue;
        };
        if now.schema != then.schema {
            let id = &saved.record.id;
            let message = format!(
                "the database {main} has another schema than in the backup {id}: {}; rows {}",
                differences(&now, &then),
                rows(&now, &then)
            );
            return Err(Failure::refused(Code::SchemaDiffers, message)
                .at(&main)
                .remedy(format!(
                    "type: updater restore {id} --data (the databases go back, too: rows written since are lost, though kept in the new backup), \
                     or updater restore {id} --code-only (no row is lost, but the old code must cope with the new schema)"
                ))
                .into());
        }
    }
    Ok(())
}

fn differences(now: &Contents, then: &Contents) -> String {
    let mut all = Vec::new();
    for (name, text) in &now.schema {
        match then.schema.get(name) {
            None => all.push(format!("{name} is new")),
            Some(old) if old != text => all.push(format!("{name} is changed")),
            Some(_) => {}
        }
    }
    all.extend(then.schema.keys().filter(|n| !now.schema.contains_key(*n)).map(|n| format!("{n} is gone")));
    all.join(", ")
}

fn rows(now: &Contents, then: &Contents) -> String {
    let tables: BTreeSet<&String> = now.rows.keys().chain(then.rows.keys()).collect();
    let count =
        |contents: &Contents, table: &String| contents.rows.get(table).map_or("no table".into(), i64::to_string);
    let lines = tables.iter().map(|t| format!("{t}: {} now, {} in the backup", count(now, t), count(then, t)));
    lines.collect::<Vec<_>>().join("; ")
}

/// The answer of `backups prune`.
#[derive(Debug, Serialize)]
pub struct Pruned {
    pruned: Vec<String>,
    /// What users wrote, and went with them.
    aside: Vec<PrunedAside>,
    /// Those that are left.
    backups: Vec<Listed>,
}

#[derive(Debug, Serialize)]
struct PrunedAside {
    backup: String,
    paths: Vec<RelPath>,
}

impl Shown for Pruned {
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for id in &self.pruned {
            let paths = self.aside.iter().filter(|aside| aside.backup == *id).flat_map(|aside| &aside.paths);
            lines.extend(paths.map(|path| format!("taken away with {id}: {path}")));
            lines.push(format!("taken away: {id}"));
        }
        lines.extend(backups::list(&self.backups));
        if lines.is_empty() {
            lines.push(backups::NONE.into());
        }
        lines
    }
}

/// `backups prune`: takes the oldest backups away, never the newest whole one. Those that hold what gave way to an
/// update go with them: nothing else takes them away.
pub fn prune(install: &Install, run: &mut Run, keep: Option<u32>, wait: Option<Duration>) -> Result<Pruned> {
    let nothing = !fsx::exists(install.state().path())? && backup::list(&install.backups())?.is_empty();
    let gone = if nothing {
        Vec::new()
    } else {
        let _lock = update::begin(install, run, wait)?;
        update::recover_first(install, run)?;
        let keep = keep.unwrap_or(install.settings.backup.keep);
        let spare = backup::Spare { ids: &[], users: false };
        backup::prune(install.state(), &install.backups(), keep, &spare).context("pruning the backups")?
    };
    let aside = gone.iter().filter(|one| !one.aside.is_empty());
    let aside = aside.map(|one| PrunedAside { backup: one.id.clone(), paths: one.aside.clone() }).collect();
    let pruned = gone.into_iter().map(|one| one.id).collect();
    Ok(Pruned { pruned, aside, backups: backup::list_all(&install.backups(), false)? })
}
