//! `verify --repair`: the installed bundle applied again to what is damaged, as a small update of its own.

use super::check::no_receipt;
use crate::base::error::{Code, Failure};
use crate::base::path::RelPath;
use crate::base::report::{Finished, Outcome};
use crate::state::receipt;
use crate::update::bundle::{Bundle, Expected, Limits};
use crate::update::install::Install;
use crate::update::run::{self, Run};
use crate::update::server;
use crate::update::{self, Accept, Mode, Request, ServerOptions, Source, Zip};
use crate::verify;
use anyhow::{Context as _, Result};
use std::collections::BTreeSet;
use std::time::Duration;

/// `verify --repair`: the installed bundle applied again to what is damaged, as a small update of its own.
pub fn repair(
    install: &Install,
    run: &mut Run,
    from: Option<&std::path::Path>,
    no_restart: bool,
    wait: Option<Duration>,
) -> Finished {
    let outcome = heal(install, run, from, no_restart, wait);
    update::conclude(install, run, outcome)
}

fn heal(
    install: &Install,
    run: &mut Run,
    from: Option<&std::path::Path>,
    no_restart: bool,
    wait: Option<Duration>,
) -> Result<Outcome> {
    // Before the lock: where nothing was installed, nothing is made.
    receipt::load(install.state())?.ok_or_else(no_receipt)?;
    let _lock = update::begin(install, run, wait)?;
    update::recover_first(install, run)?;
    let request = run::interruptible(|| repair_request(install, from, no_restart))?;
    let damaged = run::interruptible(|| damaged(install))?;
    let outcome = update::pipeline(install, run, &request)?;
    for path in &damaged {
        run.report.healed(&path.to_string(), "bundle");
    }
    Ok(if outcome == Outcome::Applied || !damaged.is_empty() { Outcome::Repaired } else { outcome })
}

fn repair_request(install: &Install, from: Option<&std::path::Path>, no_restart: bool) -> Result<Request> {
    let receipt = receipt::load(install.state())?.ok_or_else(no_receipt)?;
    let bundle = match from {
        Some(path) => path.to_path_buf(),
        None => install.state().bundle(),
    };
    let limits = Limits { max_size: install.settings.bundle.max_size, max_files: install.settings.bundle.max_files };
    // The run itself judges it for this install.
    let must_start = receipt.files.iter().any(|line| line.path == receipt.start_file);
    let expected = Expected::of_installed(&install.root, &receipt.start_file, must_start);
    let opened = Bundle::open(&bundle, &expected, &limits);
    let opened = match from {
        Some(_) => opened.context("opening the bundle to heal from")?,
        None => opened.map_err(|e| {
            Failure::failed(Code::NoBundle, format!("the kept bundle cannot be used: {e:#}"))
                .at(".updater/bundle.zip")
                .remedy("give the installed version's bundle: updater verify --repair --from BUNDLE")
        })?,
    };
    if opened.content_id != receipt.content_id {
        return Err(Failure::refused(Code::OtherContent, "this bundle is not the one that is installed")
            .at(bundle.display())
            .remedy("give the installed version's bundle with --from, or apply the new one with updater apply")
            .into());
    }
    let no_start = server::find(&install.root)?.is_none();
    Ok(Request {
        source: Source::Zip(Zip::file(bundle)),
        mode: Mode::Repair { restart: !no_restart },
        server: ServerOptions { no_start, ..ServerOptions::default() },
        accept: Accept::default(),
        set: Vec::new(),
        wait: None,
    })
}

/// What is damaged now, for the `healed` events.
fn damaged(install: &Install) -> Result<BTreeSet<RelPath>> {
    let receipt = receipt::load(install.state())?.ok_or_else(no_receipt)?;
    let mut kept = update::kept_bundle(install, &receipt)?;
    let found = verify::installed(&install.ownership(Some(&receipt)), &receipt, &mut kept, true)?;
    Ok(found.modified.into_iter().chain(found.missing).collect())
}
