//! `plan`: what `apply` would do, and what it would stumble over.
//! Takes no lock and changes nothing, not even `.updater/`.

use super::shown::{Counted, ServerShown, Shown, known, problem_lines};
use super::status::{Asking, interrupted, server_shown};
use crate::base::error::{self, Code, ErrorRecord};
use crate::base::path::RelPath;
use crate::state::history;
use crate::state::journal::{self, Found, Journal};
use crate::system::{EscapeRoute, files};
use crate::update::escape;
use crate::update::hooks::{Hooks, PlannedHook, When};
use crate::update::install::Install;
use crate::update::ownership::Class;
use crate::update::plan::{Action, Counts, Planned};
use crate::update::run::Run;
use crate::update::server::{self, Running};
use crate::update::{self, Detection, Note, Prepared, Request, Source};
use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;

/// The answer of `plan`.
#[derive(Debug, Serialize)]
pub struct PlanShown {
    bundle: Option<BundleShown>,
    from_version: Option<String>,
    to_version: Option<String>,
    counts: Counts,
    actions: Vec<Planned>,
    held_back: Vec<RelPath>,
    /// What no version shipped.
    stays: Counted,
    changed_here: Vec<RelPath>,
    moved_aside: Vec<RelPath>,
    not_taken: Vec<RelPath>,
    not_saved: Counted,
    outage: Outage,
    server: PlannedServer,
    launch: Option<LaunchShown>,
    hooks: Vec<PlannedHook>,
    escape: &'static str,
    space: Vec<Space>,
    problems: Vec<ErrorRecord>,
    warnings: Vec<Warning>,
}

#[derive(Debug, Serialize)]
struct BundleShown {
    version: String,
    content_id: String,
    files: usize,
    bytes: u64,
    /// The key that signed it; nothing checks signatures yet.
    signed_by: Option<String>,
}

/// How long the server was down the last time, and what makes it longer now.
#[derive(Debug, Serialize)]
struct Outage {
    last_ms: Value,
    why_longer: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct PlannedServer {
    #[serde(flatten)]
    server: ServerShown,
    /// Those that are stopped.
    processes: Vec<ProcessShown>,
}

#[derive(Debug, Serialize)]
struct ProcessShown {
    pid: u32,
    command: String,
    user: String,
}

#[derive(Debug, Serialize)]
struct LaunchShown {
    argv: Vec<String>,
    cwd: String,
    user: Option<String>,
    via: String,
}

#[derive(Debug, Serialize)]
struct Space {
    volume: String,
    needed: u64,
    free: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Warning {
    code: Code,
    message: String,
    path: Option<String>,
}

impl Warning {
    fn of(note: Note) -> Warning {
        let path = if let [path] = &note.paths[..] { Some(path.to_string()) } else { None };
        Warning { code: note.code, message: note.message, path }
    }
}

/// What stands in the way, and the worst exit code of it.
#[derive(Default)]
struct Problems {
    all: Vec<ErrorRecord>,
    worst: u8,
}

impl Problems {
    fn note(&mut self, e: &anyhow::Error) {
        self.worst = self.worst.max(error::class(e) as u8);
        self.all.push(error::record(e));
    }

    /// The value; None: why there is none is noted.
    fn keep<T>(&mut self, done: Result<T>) -> Option<T> {
        done.map_err(|e| self.note(&e)).ok()
    }
}

/// Looks at all of it. The exit code is the one with which `apply` would end before the stop.
pub fn plan(install: &Install, run: &mut Run, request: &Request) -> Result<(PlanShown, u8)> {
    let mut problems = Problems::default();
    let scratch = tempfile::tempdir().context("making a temporary folder")?;
    let mut fetched = request.clone();
    let place = scratch.path().join("bundle");
    let missing = match request.zip().map(|zip| update::fetch_to(install, run, zip, &place)) {
        Some(Ok(zip)) => {
            fetched.source = Source::Zip(zip);
            None
        }
        Some(Err(e)) => Some(e),
        None => None,
    };
    let (run, request) = (&*run, &fetched);
    match Journal::find(install.state())? {
        // `apply` settles it first.
        Found::Nothing | Found::Open(_) => problems.all.extend(interrupted(install)?.1),
        Found::Unreadable(reason) => problems.note(&journal::blocked(install.state(), &reason).into()),
    }
    let detection = match update::detect(install, &request.server, &request.set) {
        Err(e) if error::class(&e) != error::Class::Failed => return Err(e),
        detected => problems.keep(detected),
    };
    let way = problems.keep(escape::way(&install.root, false)).flatten();
    if let Some(detection) = &detection {
        problems.keep(update::may_stop(detection, &install.root, way == Some(EscapeRoute::Helper)));
    }
    let judge = |detection| missing.map_or_else(|| update::preflight(install, run, request, detection), Err);
    let prepared = detection.as_ref().and_then(|detection| problems.keep(judge(detection)));
    let found = server::find(&install.root).ok().flatten();
    let server = server_shown(install, found.as_ref(), &Asking::Now)?;
    // What was looked at after a signal is no finding.
    run.check_signals()?;
    let processes = processes(found.as_ref());
    let shown = PlanShown {
        from_version: detection.as_ref().and_then(|s| s.receipt.as_ref()).map(|r| r.version.clone()),
        server: PlannedServer { server, processes },
        launch: detection.as_ref().and_then(launch),
        escape: way.map_or("none", |way| way.word()),
        problems: problems.all,
        ..of_bundle(install, prepared.as_ref())?
    };
    Ok((shown, problems.worst))
}

/// What is known by the bundle alone; empty where there is none.
fn of_bundle(install: &Install, prepared: Option<&Prepared>) -> Result<PlanShown> {
    let plan = prepared.map(|p| &p.plan);
    let bundle = prepared.map(|p| &p.bundle);
    let volume = install.root.path().display().to_string();
    let free = files::free_space(install.root.path()).ok();
    let space = prepared.map(|p| Space { volume, needed: p.needed, free });
    let hooks = prepared.map(|p| &p.hooks);
    Ok(PlanShown {
        bundle: bundle.map(|b| BundleShown {
            version: b.version.clone(),
            content_id: b.content_id.clone(),
            files: b.entries.len(),
            bytes: b.entries.iter().map(|e| e.size).sum(),
            signed_by: None,
        }),
        from_version: None,
        to_version: bundle.map(|b| b.version.clone()),
        counts: plan.map(|p| p.counts()).unwrap_or_default(),
        actions: plan.map(|p| p.actions.clone()).unwrap_or_default(),
        held_back: plan.map(|p| p.held_back.clone()).unwrap_or_default(),
        stays: prepared.map(stays).unwrap_or_default(),
        changed_here: plan.map(|p| p.changed_here.clone()).unwrap_or_default(),
        moved_aside: plan.map(|p| p.moved_aside()).unwrap_or_default(),
        not_taken: plan.map(|p| p.not_taken.clone()).unwrap_or_default(),
        not_saved: prepared.map(|p| not_saved(install, p)).transpose()?.unwrap_or_default(),
        outage: outage(install, hooks),
        server: PlannedServer { server: ServerShown::only(super::shown::ServerState::Unknown), processes: Vec::new() },
        launch: None,
        hooks: hooks.map(|hooks| hooks.shown(&install.root)).unwrap_or_default(),
        escape: "none",
        space: space.into_iter().collect(),
        problems: Vec::new(),
        warnings: prepared.map(|p| warnings(install, p)).transpose()?.unwrap_or_default(),
    })
}

fn processes(found: Option<&Running>) -> Vec<ProcessShown> {
    let all = found.into_iter().flat_map(|running| &running.processes);
    all.map(|p| ProcessShown { pid: p.id.pid, command: p.argv.join(" "), user: p.user.clone() }).collect()
}

fn launch(detection: &Detection) -> Option<LaunchShown> {
    let launch = detection.new_launch.as_ref()?;
    let via = detection.service.as_ref().map_or("process".to_string(), |unit| format!("service {unit}"));
    Some(LaunchShown {
        argv: launch.argv.clone(),
        cwd: launch.cwd.display().to_string(),
        user: launch.credentials.as_ref().map(|c| c.user.clone()),
        via,
    })
}

fn warnings(install: &Install, prepared: &Prepared) -> Result<Vec<Warning>> {
    let aside = update::moved_aside(install, &prepared.plan, None);
    let notes = aside.into_iter().chain(update::notes(install, prepared)?).map(Warning::of);
    let hooks = prepared.hooks.warnings.iter();
    let hooks = hooks.map(|(code, text)| Warning { code: *code, message: text.clone(), path: None });
    Ok(notes.chain(hooks).collect())
}

/// How many files no version shipped, and their bytes.
fn stays(prepared: &Prepared) -> Counted {
    let aside = prepared.plan.moved_aside();
    let stay = prepared.census.of(Class::Data).filter(|(path, _)| !aside.contains(path));
    stay.fold(Counted::default(), |sum, (_, metadata)| Counted {
        count: sum.count + 1,
        bytes: sum.bytes + metadata.size,
    })
}

/// How many large files are only watched, and their bytes.
fn not_saved(install: &Install, prepared: &Prepared) -> Result<Counted> {
    let all = prepared.selection.not_saved(&install.root)?;
    Ok(Counted { count: all.len() as u64, bytes: all.iter().map(|(_, bytes)| bytes).sum() })
}

fn outage(install: &Install, hooks: Option<&Hooks>) -> Outage {
    let last_ms = history::Last::read(install.state()).map(|last| last.0["downtime_ms"].clone()).unwrap_or(Value::Null);
    let longer = hooks.filter(|hooks| hooks.run_after_swap()).map(|_| "hooks run while the server is down");
    Outage { last_ms, why_longer: longer }
}

impl Shown for PlanShown {
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for planned in self.actions.iter().filter(|planned| planned.action != Action::Unchanged) {
            lines.push(format!("{:<8} {}  ({})", planned.action.word(), planned.path, planned.reason));
        }
        for path in self.moved_aside.iter().filter(|path| !self.actions.iter().any(|one| one.path == **path)) {
            lines.push(format!("aside    {path}  (it gives way; the backup's aside/ will hold it)"));
        }
        let Counted { count, bytes } = self.stays;
        lines.push(format!("stays:    {count} files, {bytes} bytes that no version shipped"));
        let versions = (known(self.from_version.as_ref()), known(self.to_version.as_ref()));
        lines.push(format!("version:  {} -> {}", versions.0, versions.1));
        for process in &self.server.processes {
            lines.push(format!("stops:    process {} ({}, {})", process.pid, process.user, process.command));
        }
        lines.extend(self.launch.iter().map(|launch| format!("starts:   {}", launch.argv.join(" "))));
        for hook in &self.hooks {
            let when = if hook.when == When::BeforeStop { "before the stop" } else { "while it is down" };
            lines.push(format!("hook:     {} ({when})", hook.run.join(" ")));
        }
        lines.extend(self.warnings.iter().map(|warning| format!("warning:  {}", warning.message)));
        lines.extend(problem_lines(&self.problems));
        lines
    }
}
