//! The reading commands `plan`, `status` and `verify`, and `verify --repair`.
//! The reading ones take no lock and change nothing, not even `.updater/`.

use crate::backup;
use crate::base::error::{self, Code, ErrorRecord, Failure};
use crate::base::path::RelPath;
use crate::base::report::Finished;
use crate::state::baseline::HealthBaseline;
use crate::state::history;
use crate::state::journal::{self, Found, Journal};
use crate::state::receipt;
use crate::system::Way;
use crate::update::escape;
use crate::update::health;
use crate::update::hooks::Hooks;
use crate::update::install::Install;
use crate::update::ownership::Class;
use crate::update::run::{self, Run};
use crate::update::server::{self, Running};
use crate::update::{self, Accept, Mode, Prepared, Request, ServerOptions, Source, Zip};
use crate::verify;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// How the answer of the server is found out.
pub enum Asking<'a> {
    /// By asking it.
    Now,
    /// It is known from earlier in this run; None: not at all.
    Known(Option<&'a HealthBaseline>),
}

/// The `server` object of `status` and `plan`.
fn server_object(install: &Install, server: Option<&Running>, asking: &Asking) -> Result<Value> {
    let Some(running) = server else {
        return Ok(json!({
            "state": "stopped", "pid": null, "port": null, "protocol": null, "healthy": null, "managed_by": null,
        }));
    };
    let asked = match asking {
        Asking::Known(_) => None,
        Asking::Now => {
            let path = install.settings.server.health.as_deref();
            Some(health::measure_while(&running.listeners, None, path)?)
        }
    };
    let answer = asked.as_ref().or(if let Asking::Known(known) = asking { *known } else { None });
    let is_healthy = |answer: &HealthBaseline| answer.status.is_some_and(|s| (200..400).contains(&s));
    Ok(json!({
        "state": "running",
        "pid": running.processes.first().map(|p| p.id.pid),
        "port": answer.and_then(|answer| answer.asked_port).or(running.ports.first().copied()),
        "protocol": answer.and_then(|answer| answer.protocol),
        "healthy": answer.map(is_healthy),
        "managed_by": running.managed_by.as_ref().map(|unit| &unit.name),
    }))
}

/// What an interrupted or unreadable journal means to a reader.
pub fn interrupted(install: &Install) -> Result<(Value, Option<ErrorRecord>)> {
    let problem = |failure: Failure| error::record(&failure.into());
    Ok(match Journal::find(install.state())? {
        Found::Nothing => (Value::Null, None),
        Found::Open(journal) => {
            let failure =
                Failure::failed(Code::Interrupted, format!("the update {} was interrupted", journal.begin.update_id))
                    .remedy(format!("type: updater recover --root '{}'", install.root.path().display()));
            (json!(journal.begin.update_id), Some(problem(failure)))
        }
        Found::Unreadable(reason) => (Value::Null, Some(problem(journal::blocked(install.state(), &reason)))),
    })
}

/// `status`: what is installed, runs, is under way, was interrupted. Always exit 0 when it can be read.
pub fn status(install: &Install, asking: &Asking) -> Result<Value> {
    let receipt = receipt::load(install.state())?;
    let kept = history::read_status(install.state()).unwrap_or(Value::Null);
    let under_way = Some(kept["under_way"].clone()).filter(is_alive).unwrap_or(Value::Null);
    let (interrupted, problem) = if under_way.is_null() { interrupted(install)? } else { (Value::Null, None) };
    let server = server::find(&install.root);
    let mut warnings: Vec<ErrorRecord> = problem.into_iter().collect();
    for bad in history::known_bad(install.state(), update::MOST_FAILURES) {
        let message =
            format!("{} failed here {} times by its own fault: unattended runs skip it", bad.version, bad.count);
        let failure = Failure::failed(Code::KnownBad, message)
            .remedy("apply a mended bundle, or try this one once more with --retry-failed");
        warnings.push(error::record(&failure.into()));
    }
    let elsewhere = if matches!(server, Ok(None)) { server::elsewhere(&install.root)? } else { None };
    let server = match elsewhere.map_or(server, |failure| Err(failure.into())) {
        Ok(found) => server_object(install, found.as_ref(), asking)?,
        Err(e) => {
            warnings.push(error::record(&e));
            json!({"state": "unknown", "pid": null, "port": null, "protocol": null, "healthy": null, "managed_by": null})
        }
    };
    Ok(json!({
        "root": install.root.path().display().to_string(),
        "installed": receipt.as_ref().map(|r| json!({
            "version": r.version, "content_id": r.content_id, "applied_at": r.applied_at, "files": r.files.len(),
        })),
        "server": server,
        "under_way": under_way,
        "interrupted": interrupted,
        "last": history::Last::read(install.state()).map(|l| l.0),
        "backups": backup::list(&install.backups())?.len(),
        "warnings": warnings,
    }))
}

/// A status file outlives a killed updater; its process tells.
fn is_alive(under_way: &Value) -> bool {
    history::who(under_way)
        .is_some_and(|who| matches!(crate::system::processes::identity(who.pid), Ok(Some(is)) if is == who))
}

/// `plan`: what `apply` would do. The exit code is the one with which `apply` would end before the stop.
pub fn plan(install: &Install, run: &mut Run, request: &Request) -> Result<(Value, u8)> {
    let mut problems: Vec<ErrorRecord> = Vec::new();
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
    let mut worst = 0u8;
    let mut note = |e: anyhow::Error, problems: &mut Vec<ErrorRecord>| {
        worst = worst.max(error::class(&e) as u8);
        problems.push(error::record(&e));
    };
    match Journal::find(install.state())? {
        // `apply` settles it first.
        Found::Nothing | Found::Open(_) => problems.extend(interrupted(install)?.1),
        Found::Unreadable(reason) => note(journal::blocked(install.state(), &reason).into(), &mut problems),
    }
    let detection = match update::detect(install, &request.server, &request.set) {
        Ok(detection) => Some(detection),
        Err(e) if error::class(&e) == error::Class::Failed => {
            note(e, &mut problems);
            None
        }
        Err(e) => return Err(e),
    };
    let way = escape::way(&install.root, false).unwrap_or_else(|e| {
        note(e, &mut problems);
        None
    });
    if let Some(detection) = &detection
        && let Err(e) = update::may_stop(detection, &install.root, way == Some(Way::Helper))
    {
        note(e, &mut problems);
    }
    let prepared =
        match detection.as_ref().map(|s| missing.map_or_else(|| update::preflight(install, run, request, s), Err)) {
            Some(Ok(prepared)) => Some(prepared),
            Some(Err(e)) => {
                note(e, &mut problems);
                None
            }
            None => None,
        };
    let found = server::find(&install.root).ok().flatten();
    let mut server = server_object(install, found.as_ref(), &Asking::Now)?;
    server["processes"] = found
        .iter()
        .flat_map(|r| &r.processes)
        .map(|p| json!({"pid": p.id.pid, "command": p.argv.join(" "), "user": p.user}))
        .collect();
    let from = detection.as_ref().and_then(|s| s.receipt.as_ref()).map(|r| r.version.clone());
    let plan = prepared.as_ref().map(|p| &p.plan);
    let bundle = prepared.as_ref().map(|p| &p.bundle);
    let volume = install.root.path().display().to_string();
    let free = crate::system::files::free_space(install.root.path()).ok();
    // What was looked at after a signal is no finding.
    run.check_signals()?;
    let mut warnings = Vec::new();
    let aside = plan.and_then(|plan| update::moved_aside(install, plan, None));
    let notes = prepared.as_ref().map(|prepared| update::notes(install, prepared)).transpose()?;
    for note in aside.into_iter().chain(notes.unwrap_or_default()) {
        let path = if let [path] = &note.paths[..] { Some(path.to_string()) } else { None };
        warnings.push(json!({"code": note.code, "message": note.message, "path": path}));
    }
    let hooks = prepared.as_ref().map(|p| &p.hooks);
    for (code, text) in hooks.iter().flat_map(|hooks| &hooks.warnings) {
        warnings.push(json!({"code": code, "message": text, "path": null}));
    }
    let object = json!({
        "bundle": bundle.map(|b| json!({
            "version": b.version, "content_id": b.content_id, "files": b.entries.len(),
            "bytes": b.entries.iter().map(|e| e.size).sum::<u64>(), "signed_by": null,
        })),
        "from_version": from,
        "to_version": bundle.map(|b| b.version.clone()),
        "counts": plan.map(|p| p.counts()).unwrap_or_default(),
        "actions": plan.map(|p| p.actions.iter().collect::<Vec<_>>()).unwrap_or_default(),
        "held_back": plan.map(|p| p.held_back.clone()).unwrap_or_default(),
        "stays": counted(prepared.as_ref().map(stays).unwrap_or_default()),
        "changed_here": plan.map(|p| p.changed_here.clone()).unwrap_or_default(),
        "moved_aside": plan.map(|p| p.moved_aside()).unwrap_or_default(),
        "not_taken": plan.map(|p| p.not_taken.clone()).unwrap_or_default(),
        "not_saved": counted(prepared.as_ref().map(|p| not_saved(install, p)).transpose()?.unwrap_or_default()),
        "outage": outage(install, hooks),
        "server": server,
        "launch": detection.as_ref().and_then(|s| s.new_launch.as_ref()).map(|l| json!({
            "argv": l.argv, "cwd": l.cwd.display().to_string(),
            "user": l.credentials.as_ref().map(|c| c.user.clone()), "via": detection.as_ref().and_then(|s| s.service.as_ref()).map_or("process".to_string(), |unit| format!("service {unit}")),
        })),
        "hooks": hooks.map(|hooks| hooks.shown(&install.root)).unwrap_or_default(),
        "escape": way.map_or("none", |way| way.word()),
        "space": prepared.as_ref().map(|p| vec![json!({"volume": volume, "needed": p.needed, "free": free})]).unwrap_or_default(),
        "problems": problems,
        "warnings": warnings,
    });
    Ok((object, worst))
}

fn counted((count, bytes): (u64, u64)) -> Value {
    json!({"count": count, "bytes": bytes})
}

/// How many files no version shipped, and their bytes.
fn stays(prepared: &Prepared) -> (u64, u64) {
    let aside = prepared.plan.moved_aside();
    let stay = prepared.census.of(Class::Data).filter(|(path, _)| !aside.contains(path));
    stay.fold((0, 0), |(count, bytes), (_, facts)| (count + 1, bytes + facts.size))
}

/// How many large files are only watched, and their bytes.
fn not_saved(install: &Install, prepared: &Prepared) -> Result<(u64, u64)> {
    let all = prepared.selection.not_saved(&install.root)?;
    Ok((all.len() as u64, all.iter().map(|(_, bytes)| bytes).sum()))
}

/// How long the server was down the last time, and what makes it longer now.
fn outage(install: &Install, hooks: Option<&Hooks>) -> Value {
    let last_ms = history::Last::read(install.state()).map(|last| last.0["downtime_ms"].clone()).unwrap_or(Value::Null);
    let longer = hooks.filter(|hooks| hooks.run_after_swap()).map(|_| "hooks run while the server is down");
    json!({"last_ms": last_ms, "why_longer": longer})
}

/// What `verify` found, and whether all is well.
pub fn verify(install: &Install, run: &Run) -> Result<(Value, bool)> {
    let receipt = receipt::load(install.state())?.ok_or_else(no_receipt)?;
    let ownership = install.ownership(Some(&receipt));
    let mut kept = update::kept_bundle(install, &receipt)?;
    let found = verify::installed(&ownership, &receipt, &mut kept, false)?;
    let mut databases = Vec::new();
    let census = ownership.census(None)?;
    let scratch = run.scratch(install)?;
    for main in install.databases(&census.databases, census.items.keys()) {
        databases.push(verify::check_database(install.root.path(), &main, &install.settings.verify.tables, &scratch)?);
    }
    let whole = found.is_whole() && databases.iter().all(|d| d.ok);
    let (_, problem) = interrupted(install)?;
    let object = json!({
        "whole": whole,
        "checked": found.checked,
        "modified": found.modified,
        "missing": found.missing,
        "changed_here": found.changed_here,
        "unknown": found.unknown,
        "databases": databases,
        "problems": problem.into_iter().collect::<Vec<_>>(),
    });
    Ok((object, whole))
}

/// `backups`, newest first; `check` hashes every saved file again. The second: nothing is found wrong.
pub fn backups(install: &Install, check: bool) -> Result<(Value, bool)> {
    let all = backup::list_all(&install.backups(), check)?;
    let whole = all.iter().all(|b| b.damaged.is_empty() && (b.whole || b.kind == backup::Kind::Legacy));
    let (_, problem) = interrupted(install)?;
    Ok((json!({"backups": all, "problems": problem.into_iter().collect::<Vec<_>>()}), !check || whole))
}

fn no_receipt() -> Failure {
    Failure::failed(Code::NoReceipt, "nothing was installed by this program yet, so there is nothing to compare with")
        .remedy("apply a bundle first: updater apply BUNDLE")
}

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
) -> Result<&'static str> {
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
    Ok(if outcome == "applied" || !damaged.is_empty() { "repaired" } else { outcome })
}

fn repair_request(install: &Install, from: Option<&std::path::Path>, no_restart: bool) -> Result<Request> {
    let receipt = receipt::load(install.state())?.ok_or_else(no_receipt)?;
    let bundle = match from {
        Some(path) => path.to_path_buf(),
        None => install.state().bundle(),
    };
    let limits = crate::update::bundle::Limits {
        max_size: install.settings.bundle.max_size,
        max_files: install.settings.bundle.max_files,
    };
    // The run itself judges it for this install.
    let must_start = receipt.files.iter().any(|line| line.path == receipt.start_file);
    let expected = crate::update::bundle::Expected::of_installed(&install.root, &receipt.start_file, must_start);
    let opened = crate::update::bundle::Bundle::open(&bundle, &expected, &limits);
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

// ---------------------------------------------------------------- words for people

fn text(value: &Value) -> String {
    match value {
        Value::Null => "unknown".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn problem_lines(object: &Value, key: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for problem in object[key].as_array().into_iter().flatten() {
        lines.push(format!("problem: {}", text(&problem["message"])));
        if let Some(remedy) = problem["remedy"].as_str() {
            lines.push(format!("  remedy: {remedy}"));
        }
    }
    lines
}

/// `status` in words.
pub fn status_text(status: &Value) -> Vec<String> {
    let mut lines = vec![format!("root:      {}", text(&status["root"]))];
    lines.push(match &status["installed"] {
        Value::Null => "installed: nothing by this program yet".into(),
        installed => format!(
            "installed: {} ({} files, {})",
            text(&installed["version"]),
            installed["files"],
            text(&installed["applied_at"])
        ),
    });
    let server = &status["server"];
    lines.push(match server["state"].as_str() {
        Some("running") => format!(
            "server:    running, process {}, port {}, {}",
            server["pid"],
            text(&server["port"]),
            text(&server["protocol"])
        ),
        state => format!("server:    {}", state.unwrap_or("unknown")),
    });
    if !status["under_way"].is_null() {
        lines.push(format!(
            "under way: {} at {} percent",
            text(&status["under_way"]["stage"]),
            status["under_way"]["percent"]
        ));
    }
    if !status["last"].is_null() {
        let reason = &status["last"]["error"]["message"];
        let reason = if reason.is_null() { String::new() } else { format!(": {}", text(reason)) };
        lines.push(format!("last:      {}{reason}", text(&status["last"]["outcome"])));
    }
    lines.push(format!("backups:   {}", status["backups"]));
    lines.extend(problem_lines(status, "warnings"));
    lines
}

/// `plan` in words.
pub fn plan_text(plan: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for action in plan["actions"].as_array().into_iter().flatten() {
        let word = text(&action["action"]);
        if word != "unchanged" {
            lines.push(format!("{word:<8} {}  ({})", text(&action["path"]), text(&action["reason"])));
        }
    }
    for path in plan["moved_aside"].as_array().into_iter().flatten() {
        let is_entry = |action: &Value| action["path"] == *path;
        if !plan["actions"].as_array().into_iter().flatten().any(is_entry) {
            lines.push(format!("aside    {}  (it gives way; the backup's aside/ will hold it)", text(path)));
        }
    }
    let count = |of: &Value| format!("{} files, {} bytes", of["count"], of["bytes"]);
    lines.push(format!("stays:    {} that no version shipped", count(&plan["stays"])));
    lines.push(format!("version:  {} -> {}", text(&plan["from_version"]), text(&plan["to_version"])));
    for process in plan["server"]["processes"].as_array().into_iter().flatten() {
        lines.push(format!(
            "stops:    process {} ({}, {})",
            process["pid"],
            text(&process["user"]),
            text(&process["command"])
        ));
    }
    if !plan["launch"].is_null() {
        let argv: Vec<String> = plan["launch"]["argv"].as_array().into_iter().flatten().map(text).collect();
        lines.push(format!("starts:   {}", argv.join(" ")));
    }
    for hook in plan["hooks"].as_array().into_iter().flatten() {
        let argv: Vec<String> = hook["run"].as_array().into_iter().flatten().map(text).collect();
        let when = if hook["hook"] == "before_stop" { "before the stop" } else { "while it is down" };
        lines.push(format!("hook:     {} ({when})", argv.join(" ")));
    }
    for warning in plan["warnings"].as_array().into_iter().flatten() {
        lines.push(format!("warning:  {}", text(&warning["message"])));
    }
    lines.extend(problem_lines(plan, "problems"));
    lines
}

/// `backups` in words.
pub fn backups_text(object: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for id in object["pruned"].as_array().into_iter().flatten() {
        for aside in object["aside"].as_array().into_iter().flatten().filter(|aside| aside["backup"] == *id) {
            for path in aside["paths"].as_array().into_iter().flatten() {
                lines.push(format!("taken away with {}: {}", text(id), text(path)));
            }
        }
        lines.push(format!("taken away: {}", text(id)));
    }
    for one in object["backups"].as_array().into_iter().flatten() {
        let state = match (one["whole"] == true, one["kind"] == "legacy") {
            (true, _) => "whole",
            (false, true) => "no record",
            (false, false) => "DAMAGED",
        };
        lines.push(format!(
            "{}  {:<7}  {} -> {}  {} files, {} bytes, {state}",
            text(&one["id"]),
            text(&one["kind"]),
            text(&one["from_version"]),
            text(&one["to_version"]),
            one["files"],
            one["bytes"],
        ));
        if one["aside"].as_u64().is_some_and(|count| count > 0) {
            lines.push(format!("  {} files of the users' that gave way lie in its aside/", one["aside"]));
        }
        for damage in one["damaged"].as_array().into_iter().flatten() {
            lines.push(format!("  {} {}", text(&damage["what"]), text(&damage["path"])));
        }
    }
    if lines.is_empty() {
        lines.push("no backups yet".into());
    }
    lines.extend(problem_lines(object, "problems"));
    lines
}

/// `verify` in words.
pub fn verify_text(found: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for (kind, word) in
        [("modified", "modified"), ("missing", "missing"), ("changed_here", "changed"), ("unknown", "unknown")]
    {
        for path in found[kind].as_array().into_iter().flatten() {
            lines.push(format!("{word:<8} {}", text(path)));
        }
    }
    for database in found["databases"].as_array().into_iter().flatten().filter(|d| d["ok"] == false) {
        lines.push(format!("damaged  {}", text(&database["path"])));
    }
    let verdict = if found["whole"] == true { "whole" } else { "not whole; to heal it type: updater verify --repair" };
    lines.push(format!("{} files checked: {verdict}", found["checked"]));
    lines.extend(problem_lines(found, "problems"));
    lines
}
