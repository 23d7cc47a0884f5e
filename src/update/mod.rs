//! The update: the pipeline, read from top to bottom. While the server serves: fetch, detect, preflight, stage,
//! backup. While it is down: stop, backup-final, swap, verify, hooks, relaunch. Then health and commit, or the rollback.
//! Refuses to go on after any error: before the stop it ends, after the stop it rolls back.
//!
//! What travels is a value of its own after each stage, so that none can be called out of order:
//!
//! | stage | function | takes | gives |
//! | --- | --- | --- | --- |
//! | fetch | `source::fetch` | `Request` | `Request` |
//! | detect | `detect::detect` | `ServerOptions` | `Detection` |
//! | preflight | `preflight::preflight` | `Request`, `Detection` | `Prepared` |
//! | stage, backup | `stage::stage` | `Prepared` | `Staged` |
//! | (journal) | `stop::begin` | `Staged` | `Stopping` |
//! | stop, backup-final | `stop::stop` | `Stopping` | `Stopped` |
//! | swap, verify, hooks | `swap::swap` | `Stopped` | `Swapped` |
//! | relaunch | `start::start` | `Swapped` | `Started` |
//! | health | `start::prove` | `Started` | `Healthy` |
//! | commit | `commit::commit` | `Healthy` | |
//! | rollback | `rollback::roll_back` | `Interrupted` | |
//!
//! From `Stopping` on the value owns the journal; `Interrupted` carries it to the rollback.

pub mod ownership;
pub mod install;
pub mod run;
pub mod fetch;
pub mod bundle;
// crate::ports
pub mod server;
pub mod escape;
pub mod authority;
pub mod plan;
pub mod staging;
// crate::backup
pub mod transaction;
// crate::verify
pub mod hooks;
pub mod health;
pub mod rollback;
pub mod recover;
mod request;
mod source;
mod detect;
mod databases;
mod preflight;
mod record;
mod notes;
mod late;
mod stage;
mod stop;
mod hook_stage;
mod swap;
mod start;
mod commit;
mod unchanged;
mod session;

pub use detect::{Detection, default_start_file, described, detect, may_stop};
pub use notes::{Note, moved_aside, notes, replaced_data};
pub use preflight::{Prepared, kept_bundle, no_bundle, preflight};
pub use request::{Accept, Mode, Origin, Request, Saved, ServerOptions, Source, Zip};
pub use session::{MOST_FAILURES, begin, conclude, recover_first};
pub use source::fetch_to;

use crate::base::error::Code;
use crate::base::report::{Finished, Outcome, Stage};
use crate::state::history;
use anyhow::{Context as _, Result};
use install::Install;
use rollback::Interrupted;
use run::Run;
use start::Healthy;
use std::time::Duration;
use stop::Stopping;

/// Runs the update. The `Finished` says how it ended, whatever happened.
pub fn apply(install: &Install, run: &mut Run, request: &Request) -> Finished {
    let outcome = apply_locked(install, run, request);
    conclude(install, run, outcome)
}

/// Waits for the lock, settles what was interrupted, and runs the stages.
fn apply_locked(install: &Install, run: &mut Run, request: &Request) -> Result<Outcome> {
    if let Some(zip) = request.zip().filter(|zip| zip.origin == Origin::File) {
        let path = std::path::absolute(&zip.path).context("finding the bundle")?;
        if !path.is_file() {
            return Err(no_bundle(&path).into());
        }
    }
    let _lock = begin(install, run, request.wait)?;
    recover_first(install, run)?;
    pipeline(install, run, request)
}

/// The stages, one after the other. The caller holds the lock, and nothing is interrupted. Returns the outcome.
pub fn pipeline(install: &Install, run: &mut Run, request: &Request) -> Result<Outcome> {
    let request = &run::interruptible(|| source::fetch(install, run, request))?;
    let detection = &run::interruptible(|| look(install, run, request))?;
    run.check_signals()?;
    run.start(Stage::Preflight, "checking the bundle and the install");
    if run::interruptible(|| unchanged::nothing_to_do(install, request, detection))? {
        unchanged::end(run);
        return Ok(Outcome::AlreadyCurrent);
    }
    let prepared = preflight::stage(install, run, request, detection)?;
    run.check_signals()?;
    if is_known_bad(install, run, &prepared) {
        return Ok(Outcome::Skipped);
    }
    let heals = prepared.heals_content();
    if prepared.plan.is_empty() || heals && run::interruptible(|| preflight::is_whole(install, detection))? {
        unchanged::unchanged(install, run, prepared)?;
        return Ok(Outcome::AlreadyCurrent);
    }
    let staged = stage::stage(install, run, prepared)?;
    let stopping = stop::begin(install, run, staged)?;
    let (content_id, version) = stopping.content();
    match outage(install, run, stopping) {
        Ok(healthy) => commit::commit(install, run, healthy),
        Err(interrupted) => {
            if rollback::code_of(&interrupted.cause).is_bundles_fault() {
                // Going back matters more than counting.
                let _ = history::count_failure(install.state(), &content_id, &version);
            }
            return Err(rollback::roll_back(install, run, *interrupted));
        }
    }
    Ok(if heals { Outcome::Repaired } else { Outcome::Applied })
}

/// From the stop to the proof of health.
fn outage<'a>(install: &Install, run: &mut Run, stopping: Stopping<'a>) -> Result<Healthy<'a>, Box<Interrupted>> {
    let stopped = stop::stop(install, run, stopping)?;
    let swapped = swap::swap(install, run, stopped)?;
    let started = start::start(install, run, swapped)?;
    start::prove(install, run, started)
}

/// The stage `detect`: what serves, how it answers, and that it may be stopped by us.
fn look(install: &Install, run: &mut Run, request: &Request) -> Result<Detection> {
    run.start(Stage::Detect, "looking for the server");
    let detection = detect::detect(install, &request.server, &request.set)?;
    run.baseline = Some(detection.baseline.clone());
    for victim in detection.server.iter().chain(&detection.foreign) {
        escape::prove_outside(victim, &install.root)?;
    }
    detect::may_stop(&detection, &install.root, false)?;
    run.summary.from_version = detection.receipt.as_ref().map(|r| r.version.clone());
    run.summary.port = detection.baseline.asked_port.or(detection.expected.asked_port);
    run.summary.pid = detection.server.as_ref().and_then(|s| s.processes.first()).map(|p| p.id.pid);
    run.done(Stage::Detect, &detect::described(&detection));
    Ok(detection)
}

/// Whether an unattended run skips this bundle, which is said.
fn is_known_bad(install: &Install, run: &mut Run, prepared: &Prepared) -> bool {
    let is_unattended = matches!(prepared.request.mode, Mode::Update { unattended: true, .. });
    let is_bad = is_unattended && history::failures(install.state(), &prepared.bundle.content_id) >= MOST_FAILURES;
    if is_bad {
        let message = "this bundle failed here twice by its own fault; --retry-failed tries it again";
        run.report.warning(Code::KnownBad, message, None);
    }
    is_bad
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
