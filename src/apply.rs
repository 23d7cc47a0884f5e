//! `apply`: the pipeline, read from top to bottom. While the server serves: detect, preflight, stage,
//! backup. While it is down: stop, backup-final, swap, verify, relaunch. Then health and commit, or
//! the rollback.
//! Refuses to go on after any error: before the stop it ends, after it it rolls back.

use crate::backup::{self, Backup};
use crate::bundle::{Bundle, Limits};
use crate::carry;
use crate::context::{Context, UnderWay};
use crate::error::{self, Class, Failure};
use crate::fsx;
use crate::health::{self, Before};
use crate::history;
use crate::journal::{self, Begin, Journal, Measure, Record};
use crate::lock::Lock;
use crate::net::Protocol;
use crate::os::{self, LaunchSpec, ProcessId, files, processes};
use crate::path::{InstallRoot, RelPath};
use crate::plan::{self, Action, Plan};
use crate::receipt::{self, Receipt};
use crate::recover;
use crate::report::{Finished, Stage};
use crate::rollback;
use crate::server::{self, Running};
use crate::staging::{self, Staged};
use crate::swap;
use crate::verify;
use crate::version;
use anyhow::{Context as _, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What `apply` and `plan` are asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub bundle: PathBuf,
    pub port: Option<u16>,
    pub set: Vec<(String, String)>,
    pub wait: Option<Duration>,
    pub reinstall: bool,
    pub partial: bool,
    pub allow_downgrade: bool,
    /// Skip a bundle that failed here twice by its own fault.
    pub unattended: bool,
    pub no_start: bool,
    pub stop_foreign: bool,
    pub force_data: bool,
    pub health_url: Option<String>,
    pub health_timeout: Option<Duration>,
    pub sha256: Option<String>,
    /// Heals only: nothing is removed (`verify --repair`).
    pub heal: bool,
    /// The server is neither stopped nor started (`verify --repair --no-restart`).
    pub in_place: bool,
}

/// What detection found, by reading alone.
pub struct Survey {
    pub server: Option<Running>,
    /// A stranger on the port that `--stop-foreign` allows to stop. It is not started again.
    pub foreign: Option<Running>,
    /// How it starts again; None with `--no-start` where nothing runs.
    pub launch: Option<LaunchSpec>,
    pub start_file: RelPath,
    /// How it answers now: the measure of the old version.
    pub before: Before,
    /// How it must answer afterwards.
    pub expected: Before,
    pub receipt: Option<Receipt>,
}

/// What preflight decided.
pub struct Prepared {
    pub bundle: Bundle,
    pub plan: Plan,
    pub data: Vec<(RelPath, os::Facts)>,
    pub needed: u64,
}

/// Runs the update. The `Finished` says how it ended, whatever happened.
pub fn apply(cx: &mut Context, request: &Request) -> Finished {
    let mut finished = Finished::default();
    let outcome = run(cx, request, &mut finished);
    conclude(cx, &mut finished, outcome);
    finished
}

/// How often a bundle may fail by its own fault before an unattended run skips it.
const MOST_FAILURES: u64 = 2;

/// The failures that the bundle itself caused, by their codes.
const OWN_FAULT: [&str; 6] =
    ["health-exited", "health-timeout", "health-status", "health-port", "cannot-start", "critical-missing"];

/// Turns the end of a run into its `finished` record.
pub fn conclude(cx: &mut Context, finished: &mut Finished, outcome: Result<&'static str>) {
    match outcome {
        Ok(word) => {
            finished.outcome = word.to_string();
            finished.exit_code = 0;
        }
        Err(e) => {
            let class = error::class(&e);
            finished.exit_code = class as u8;
            finished.error = Some(error::record(&e));
            finished.outcome = match class {
                Class::Refused => "refused",
                Class::RolledBack => "rolled-back",
                Class::NeedsOperator => "needs-operator",
                _ => "failed",
            }
            .to_string();
            cx.report.fail_current(&format!("{e:#}"));
        }
    }
    cx.report.finished(finished);
}

/// The pipeline without its last word, for `verify --repair`.
pub fn apply_quietly(cx: &mut Context, request: &Request, finished: &mut Finished) -> Result<&'static str> {
    run(cx, request, finished)
}

fn run(cx: &mut Context, request: &Request, finished: &mut Finished) -> Result<&'static str> {
    let path = std::path::absolute(&request.bundle).context("finding the bundle")?;
    if !path.is_file() {
        return Err(no_bundle(&path).into());
    }
    let _lock = begin(cx, request.wait)?;
    recover_first(cx)?;
    cx.start(Stage::Fetch, "opening the bundle");
    cx.done(Stage::Fetch, "the bundle is a local file");

    cx.start(Stage::Detect, "looking for the server");
    let survey = detect(cx, request)?;
    finished.from_version = survey.receipt.as_ref().map(|r| r.version.clone());
    finished.port = survey.before.asked_port.or(survey.expected.asked_port);
    finished.pid = survey.server.as_ref().and_then(|s| s.processes.first()).map(|p| p.id.pid);
    cx.done(Stage::Detect, &described(&survey));
    cx.check_signals()?;

    cx.start(Stage::Preflight, "checking the bundle and the install");
    let mut prepared = preflight(cx, request, &survey)?;
    finished.to_version = Some(prepared.bundle.version.clone());
    if prepared.plan.left_out > 0 {
        cx.report.warning("own-left-out", &left_out(&prepared.plan), None);
    }
    cx.done(Stage::Preflight, &counted(&prepared.plan));
    cx.check_signals()?;

    if request.unattended && history::failures(&cx.own(), &prepared.bundle.content_id) >= MOST_FAILURES {
        let message = "this bundle failed here twice by its own fault; --retry-failed tries it again";
        cx.report.warning("known-bad", message, None);
        return Ok("skipped");
    }

    let same = survey.receipt.as_ref().is_some_and(|r| r.content_id == prepared.bundle.content_id);
    if prepared.plan.is_empty() || (same && !request.reinstall && !prepared.plan.set_changes && is_whole(cx, &survey)?)
    {
        return unchanged(cx, request, survey, prepared, finished);
    }
    let repaired = same && !request.reinstall && !prepared.plan.set_changes;
    update(cx, request, survey, &mut prepared, finished)?;
    Ok(if repaired { "repaired" } else { "applied" })
}

/// Takes the lock and opens the logs of this run.
pub fn begin(cx: &mut Context, wait: Option<Duration>) -> Result<Lock> {
    let own = cx.own();
    files::private_folder(&own).with_context(|| format!("creating {}", own.display()))?;
    fsx::adopt(&own)?;
    let lock = Lock::take(&own, wait)?;
    let id = cx.update_id.clone();
    for name in ["events", "log"] {
        files::private_folder(&own.join(name)).with_context(|| format!("creating {name}"))?;
    }
    cx.report.events_to(&own.join(format!("events/{id}.jsonl")));
    cx.report.log_to(&own.join(format!("log/{id}.log")));
    let human = cx.root.path().join("instance");
    if human.is_dir() {
        let log = human.join("update_log.txt");
        // The log of the newest update alone; a caller may hold it open as our output, so it is cut, not replaced.
        if let Ok(file) = std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(&log) {
            drop(file);
            let _ = fsx::adopt(&log);
        }
        cx.report.log_to(&log);
    }
    cx.under_way = Some(UnderWay { update_id: id, started_at: jiff::Timestamp::now().to_string() });
    history::prune(&own, 20);
    Ok(lock)
}

/// Finishes or undoes what an earlier run left, before any work of this one.
pub fn recover_first(cx: &mut Context) -> Result<()> {
    if let Some(done) = recover::settle(cx, recover::Choice::default())? {
        cx.report.recovered(&done.interrupted_id, done.direction);
    }
    Ok(())
}

fn no_bundle(path: &std::path::Path) -> Failure {
    Failure::failed("no-bundle", format!("{} does not exist or is no file", path.display()))
        .at(path.display())
        .remedy("give the path of a bundle (a zip file)")
}

fn described(survey: &Survey) -> String {
    match &survey.server {
        Some(server) => {
            let pid = server.processes.first().map_or(0, |p| p.id.pid);
            let ports: Vec<String> = server.ports.iter().map(u16::to_string).collect();
            format!("the server is process {pid} on port {}", ports.join(", "))
        }
        None => "the server is not running".into(),
    }
}

/// The one warning about bundle entries in the updater's own places.
pub fn left_out(plan: &Plan) -> String {
    format!("{} files of the bundle lie in the updater's own places and are left out", plan.left_out)
}

fn counted(plan: &Plan) -> String {
    let c = plan.counts();
    format!(
        "{} to add, {} to replace, {} to remove, {} to carry, {} to merge, {} kept, {} unchanged",
        c.add, c.replace, c.remove, c.carry, c.merge, c.keep, c.unchanged
    )
}

// ---------------------------------------------------------------- detect

/// Finds the server, how it answers and how it starts. Reads only.
pub fn detect(cx: &Context, request: &Request) -> Result<Survey> {
    let root = &cx.root;
    let receipt = receipt::load(&cx.own())?;
    let server = server::find(root)?;
    let mut foreign = None;
    let target = request.health_url.as_ref().or(cx.settings.server.health.as_ref());
    let target = target.map(|text| health::Target::parse(text)).transpose()?;
    let health = target.as_ref().map(|t| t.path.as_str());
    let (launch, start_file, before) = match &server {
        Some(running) => {
            let ids: Vec<ProcessId> = running.processes.iter().map(|p| p.id).collect();
            if let Some(tie) = os::escape::tied_to(&ids).context("finding out what ties us to the server")? {
                return Err(Failure::failed(
                    "would-end-us",
                    format!("stopping the server would end this updater: {tie}"),
                )
                .remedy("start the updater from outside the server: from a shell of your own, or a scheduled task")
                .into());
            }
            if let Some(unit) = &running.managed_by {
                return Err(Failure::failed(
                    "managed",
                    format!("the server belongs to the service {unit}, which would start it again in the middle"),
                )
                .remedy(format!("stop it first, update, and start it: systemctl stop {unit}"))
                .into());
            }
            server::may_stop(running)?;
            let start = start_file(root, &running.launch);
            // `--port` says which port health asks only where the server listens on it.
            let asked = target.as_ref().and_then(|t| t.port).or(request.port).filter(|p| running.ports.contains(p));
            let before = health::measure(&running.listeners, asked, health, health::PATIENCE);
            (Some(running.launch.clone()), start, before)
        }
        None => {
            let port = stopped_port(cx, request, receipt.as_ref())?;
            let launch = if request.no_start { None } else { Some(stopped_launch(cx, port)?) };
            if let (Some(port), false) = (port, request.no_start)
                && let Some(failure) = server::foreign_owner(port, root)?
            {
                if !request.stop_foreign {
                    return Err(failure.into());
                }
                foreign = server::owner_tree(port, root)?;
            }
            let start = launch.as_ref().map_or_else(default_start_file, |l| start_file(root, l));
            let before = Before {
                running: false,
                ports: port.into_iter().collect(),
                asked_port: port,
                protocol: None,
                path: health.unwrap_or("/api/sync/ping").to_string(),
                status: None,
            };
            (launch, start, before)
        }
    };
    let (launch, expected) = with_set(launch, &before, &request.set)?;
    Ok(Survey { server, foreign, launch, start_file, before, expected, receipt })
}

fn default_start_file() -> RelPath {
    RelPath::parse("run.py").unwrap_or_else(|_| unreachable!("a constant name"))
}

/// The script of the launch spec that lies in the install; else the executable; else the default.
fn start_file(root: &InstallRoot, launch: &LaunchSpec) -> RelPath {
    let inside = |text: &String| {
        let full = fsx_canonical(&launch.cwd.join(text))?;
        RelPath::from_disk(full.strip_prefix(root.path()).ok()?)
    };
    let scripts = launch.argv.iter().skip(1).filter(|a| !a.starts_with('-')).find_map(inside);
    let program = || launch.argv.first().filter(|a| a.contains(['/', '\\'])).and_then(inside);
    scripts.or_else(program).unwrap_or_else(default_start_file)
}

fn fsx_canonical(path: &std::path::Path) -> Option<PathBuf> {
    let full = std::fs::canonicalize(path).ok()?;
    full.is_file().then_some(full)
}

/// The order of belief when nothing listens: `--port`, settings, last receipt, `.env`, `run.py`.
fn stopped_port(cx: &Context, request: &Request, receipt: Option<&Receipt>) -> Result<Option<u16>> {
    let from_file = |name: &str, key: &str| -> Option<u16> {
        let bytes = std::fs::read(cx.root.path().join(name)).ok()?;
        if name == ".env" {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let mut line = text.lines().filter_map(|l| l.trim().trim_start_matches("export ").split_once('='));
            return line.rfind(|(k, _)| k.trim() == key)?.1.trim().trim_matches(['"', '\'']).parse().ok();
        }
        carry::assignment(&bytes, key)?.trim().parse().ok()
    };
    let port = request
        .port
        .or(cx.settings.server.port)
        .or_else(|| cx.settings.server.env.get("PORT")?.parse().ok())
        .or_else(|| receipt?.ports.first().copied())
        .or_else(|| from_file(".env", "PORT"))
        .or_else(|| from_file("run.py", "PORT"));
    if port.is_none() && !request.no_start {
        return Err(Failure::failed(
            "no-port",
            "no server of this install runs, and nothing says on which port it belongs",
        )
        .remedy("name the port with --port N, or update without starting with --no-start")
        .into());
    }
    Ok(port)
}

fn stopped_launch(cx: &Context, port: Option<u16>) -> Result<LaunchSpec> {
    let mut env = cx.settings.server.env.clone();
    if let Some(port) = port {
        env.entry("PORT".into()).or_insert_with(|| port.to_string());
    }
    server::guess_launch(&cx.root, cx.settings.server.command.as_deref(), &env)
}

/// What `--set` of a port or protocol changes in what is started and expected.
fn with_set(
    launch: Option<LaunchSpec>,
    before: &Before,
    set: &[(String, String)],
) -> Result<(Option<LaunchSpec>, Before)> {
    let (mut launch, mut expected) = (launch, before.clone());
    for (name, value) in set {
        match name.as_str() {
            "PORT" => {
                let port: u16 = value.parse().map_err(|_| {
                    Failure::usage("bad-port", format!("--set PORT={value}: {value} is no port"))
                        .remedy("give a number from 1 to 65535")
                })?;
                expected.ports = vec![port];
                expected.asked_port = Some(port);
                for (key, old) in launch.iter_mut().flat_map(|l| &mut l.env) {
                    if key == "PORT" {
                        old.clone_from(value);
                    }
                }
            }
            "USE_WAITRESS" => {
                expected.protocol =
                    Some(if value.eq_ignore_ascii_case("true") { Protocol::Http } else { Protocol::Https });
            }
            _ => {}
        }
    }
    Ok((launch, expected))
}

// ---------------------------------------------------------------- preflight

/// Opens and judges the bundle, makes the plan, and finds every problem. Reads only.
pub fn preflight(cx: &Context, request: &Request, survey: &Survey) -> Result<Prepared> {
    let limits = Limits { max_size: cx.settings.bundle.max_size, max_files: cx.settings.bundle.max_files };
    let path = std::path::absolute(&request.bundle)?;
    if !path.is_file() {
        return Err(no_bundle(&path).into());
    }
    if let Some(wanted) = &request.sha256 {
        let is = fsx::sha256_of(&path)?;
        if !is.eq_ignore_ascii_case(wanted) {
            return Err(Failure::refused("bad-checksum", format!("the bundle's SHA-256 is {is}, not {wanted}"))
                .at(path.display())
                .into());
        }
    }
    let mut bundle = Bundle::open(&path, &survey.start_file, &limits)?;
    judge_origin(cx, request, survey, &bundle)?;
    let owner = fsx::owner_of(cx.root.path())?;
    let me = processes::own_credentials().context("finding out who we are")?;
    if me.uid != 0 && owner.uid != me.uid {
        return Err(Failure::failed(
            "not-owner",
            format!("the install belongs to user {}, and we run as {}", owner.uid, me.user),
        )
        .at(cx.root.path().display())
        .remedy("run the updater as the owner of the install, or as root")
        .into());
    }
    let mut plan = plan::build(&cx.root, &mut bundle, survey.receipt.as_ref(), &cx.rules(&request.set)?)?;
    if request.heal {
        plan.keep_unknown();
    }
    let data = backup::data_files(&cx.root, &cx.preserve()?, &cx.skipped()?)?;
    let arriving: u64 = plan.changes().filter_map(|p| Some(bundle.entries.get(p.entry?)?.size)).sum();
    let saved: u64 = plan.live.values().map(|l| l.facts.size).chain(data.iter().map(|(_, f)| f.size)).sum();
    let bundle_size = files::facts(&path).map(|f| f.size).unwrap_or(0);
    let needed = arriving + saved + bundle_size + journal_size(&plan);
    let free = files::free_space(cx.root.path()).context("asking for free space")?;
    if free < needed {
        return Err(Failure::failed(
            "no-space",
            format!("{} bytes are needed and {free} are free: {} are missing", needed, needed - free),
        )
        .at(cx.root.path().display())
        .remedy("free space on the volume of the install, or lower [backup] keep")
        .into());
    }
    if !request.force_data {
        for main in cx.databases(&data)? {
            check_before(cx, &main)?;
        }
    }
    Ok(Prepared { bundle, plan, data, needed })
}

/// A database that is damaged already must not be blamed on the update. A busy one may be cloned in
/// the middle of a write, so only a verdict on a file that stood still counts.
fn check_before(cx: &Context, main: &RelPath) -> Result<()> {
    let scratch = std::env::temp_dir().join(format!("updater-check-{}", std::process::id()));
    for _ in 0..3 {
        let was = fsx::facts(&cx.root.join(main))?;
        if verify::check_database(&cx.root, main, &[], &scratch)?.ok {
            return Ok(());
        }
        if was == fsx::facts(&cx.root.join(main))? {
            return Err(Failure::failed(
                "database-damaged",
                format!("the database {main} is damaged already, before the update"),
            )
            .at(main)
            .remedy("mend it first, or go on all the same with --force-data; if it is no SQLite file, take it out of [verify] sqlite")
            .into());
        }
    }
    Ok(())
}

/// Whether the bundle is for this program, and no older than what is installed.
fn judge_origin(cx: &Context, request: &Request, survey: &Survey, bundle: &Bundle) -> Result<()> {
    if let (Some(wanted), Some(is)) = (&cx.settings.bundle.app, &bundle.app)
        && wanted != is
    {
        return Err(Failure::refused(
            "other-app",
            format!("the bundle is of the program {is}, and this install is of {wanted}"),
        )
        .at(request.bundle.display())
        .remedy("check that this is the right bundle")
        .into());
    }
    if !request.partial {
        same_program(cx, bundle)?;
    }
    let from = survey.receipt.as_ref().map(|r| r.version.as_str()).unwrap_or_default();
    if !request.allow_downgrade && version::is_downgrade(from, &bundle.version) {
        return Err(Failure::refused(
            "downgrade",
            format!("the bundle is version {}, and {from} is installed", bundle.version),
        )
        .at(request.bundle.display())
        .remedy("to go back on purpose, add --allow-downgrade")
        .into());
    }
    Ok(())
}

/// The bundle of another program shares no folder with the installed one.
fn same_program(cx: &Context, bundle: &Bundle) -> Result<()> {
    let folders: BTreeSet<RelPath> =
        bundle.entries.iter().filter(|e| e.path.parent().is_some()).map(|e| e.path.top()).collect();
    let preserve = cx.preserve()?;
    let mut own: Vec<&RelPath> = folders.iter().filter(|f| preserve.class_of(f, true).is_none()).collect();
    own.retain(|f| cx.root.join(f).is_dir());
    let has_folders = folders.iter().any(|f| preserve.class_of(f, true).is_none());
    if has_folders && own.is_empty() {
        return Err(Failure::refused("other-app", "the bundle shares no folder with the installed program")
            .at(cx.root.path().display())
            .remedy("check that this is the right bundle; --partial accepts it all the same")
            .into());
    }
    Ok(())
}

/// Room for every move that the journal may have to name.
fn journal_size(plan: &Plan) -> u64 {
    let names: u64 = plan.actions.iter().map(|p| p.path.as_bytes().len() as u64 + 256).sum();
    names * 2 + 64 * 1024
}

fn is_whole(cx: &Context, survey: &Survey) -> Result<bool> {
    let Some(receipt) = &survey.receipt else { return Ok(false) };
    let rules = cx.rules(&[])?;
    let mut kept = None;
    let quick = verify::installed(&cx.root, receipt, &rules.preserve, &rules.carry, &mut kept, true)?;
    // A file whose settings alone were changed by the operator is whole; that needs the kept bundle.
    if quick.is_whole() {
        return Ok(true);
    }
    let mut kept = kept_bundle(cx, receipt)?;
    Ok(verify::installed(&cx.root, receipt, &rules.preserve, &rules.carry, &mut kept, true)?.is_whole())
}

/// The installed bundle, kept for repairs.
pub fn kept_bundle(cx: &Context, receipt: &Receipt) -> Result<Option<Bundle>> {
    let path = cx.own().join("bundle.zip");
    let limits = Limits { max_size: u64::MAX, max_files: u64::MAX };
    Ok(Bundle::open(&path, &receipt.start_file, &limits).ok().filter(|b| b.content_id == receipt.content_id))
}

// ---------------------------------------------------------------- nothing to change

/// The content is installed already: the server is not touched, but started where it is stopped.
fn unchanged(
    cx: &mut Context,
    request: &Request,
    survey: Survey,
    mut prepared: Prepared,
    finished: &mut Finished,
) -> Result<&'static str> {
    for stage in
        [Stage::Stage, Stage::Backup, Stage::Stop, Stage::BackupFinal, Stage::Swap, Stage::Verify, Stage::Hooks]
    {
        cx.report.stage_skipped(stage, "nothing to change");
    }
    if survey.receipt.as_ref().is_none_or(|r| r.content_id != prepared.bundle.content_id) {
        fs_err::create_dir_all(cx.own().join("staging"))?;
        write_receipt(cx, &survey, &mut prepared, &[])?;
        for (from, to) in [("staging/receipt.json", "receipt.json"), ("staging/bundle.zip", "bundle.zip")] {
            files::rename_over(&cx.own().join(from), &cx.own().join(to)).with_context(|| format!("placing {to}"))?;
        }
        staging::clear(&cx.own())?;
    }
    match (&survey.server, &survey.launch) {
        (None, Some(launch)) if !request.no_start => {
            cx.start(Stage::Relaunch, "starting the server");
            let held = processes::hold(launch).map_err(|e| cannot_start(launch, &e))?;
            let mut running = held.release().map_err(|e| cannot_start(launch, &e))?;
            cx.done(Stage::Relaunch, "started");
            cx.start(Stage::Health, "waiting for its answer");
            let healthy = judge(cx, request, &survey.expected, &[], &mut running)?;
            (finished.pid, finished.port) = (Some(healthy.pid), Some(healthy.port));
            cx.done(Stage::Health, "healthy");
        }
        _ => {
            cx.report.stage_skipped(Stage::Relaunch, "the server was not stopped");
            cx.report.stage_skipped(Stage::Health, "the server was not stopped");
        }
    }
    cx.start(Stage::Commit, "closing");
    fsx::give_tree(&cx.own(), fsx::owner_of(cx.root.path())?)?;
    cx.done(Stage::Commit, "this content is installed already");
    Ok("already-current")
}

fn cannot_start(launch: &LaunchSpec, e: &std::io::Error) -> Failure {
    let program = launch.argv.first().map_or("", String::as_str);
    Failure::failed("cannot-start", format!("{program} cannot be started: {e}"))
        .at(launch.cwd.display())
        .remedy("set [server] command in updater.toml to the command that starts the server")
}

pub fn judge(
    cx: &Context,
    request: &Request,
    expected: &Before,
    old: &[ProcessId],
    running: &mut processes::Running,
) -> Result<health::Healthy> {
    let timeout = request.health_timeout.unwrap_or(cx.settings.server.health_timeout);
    let judge = health::Judge { timeout, soak: cx.settings.server.soak };
    judge.judge(expected, &cx.root, old, Some(running), &mut || cx.check_signals_after_stop())
}

// ---------------------------------------------------------------- the update

/// From staging to the commit. Any error after the stop comes back as a rollback's outcome.
fn update(
    cx: &mut Context,
    request: &Request,
    survey: Survey,
    prepared: &mut Prepared,
    finished: &mut Finished,
) -> Result<()> {
    let own = cx.own();
    cx.start(Stage::Stage, "writing the new files");
    // Without a journal nothing refers to what an earlier run may have left here.
    staging::clear(&own)?;
    fsx::remove_own_tree(&staging::trash(&own))?;
    let before_stop = stage_and_seed(cx, &survey, prepared);
    let (staged, mut saved) = match before_stop {
        Ok(done) => done,
        Err(e) => {
            staging::clear(&own)?;
            return Err(e);
        }
    };
    finished.bytes_staged = staged.iter().map(|s| s.facts.size).sum();
    finished.files_changed = prepared.plan.changes().count() as u64;

    let ready = cx.check_signals().and_then(|()| open_journal(cx, request, &survey, prepared, &saved));
    let mut journal = match ready {
        Ok(journal) => journal,
        Err(e) => {
            saved.discard()?;
            staging::clear(&own)?;
            return Err(e);
        }
    };
    finished.backup = Some(saved.id.clone());

    cx.is_down = true;
    let stopped_at = Instant::now();
    let mut started = None;
    let result = down(cx, request, &survey, prepared, &staged, &mut saved, &mut journal, &mut started);
    match result {
        Ok(healthy) => {
            if let Some(healthy) = healthy {
                (finished.pid, finished.port) = (Some(healthy.pid), Some(healthy.port));
                finished.downtime_ms = survey.server.as_ref().map(|_| millis(healthy.first_answer - stopped_at));
            } else {
                finished.pid = None;
            }
        }
        Err(e) => {
            if OWN_FAULT.contains(&code_of(&e)) {
                // Going back matters more than counting.
                let _ = history::count_failure(&own, &prepared.bundle.content_id);
            }
            return Err(roll_back(cx, &survey, journal, started, e, finished, stopped_at));
        }
    }

    // Committed: nothing below may fail the update. A journal that stays is closed by the next command.
    cx.start(Stage::Commit, "closing");
    if let Err(e) = close(cx, journal) {
        cx.report.warning("not-cleaned-up", &format!("the update is done, but cleaning up failed: {e:#}"), None);
    }
    cx.done(Stage::Commit, &format!("the old version is in {}/{}", cx.settings.backup.dir, saved.id));
    Ok(())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn stage_and_seed(cx: &mut Context, survey: &Survey, prepared: &mut Prepared) -> Result<(Vec<Staged>, Backup)> {
    let report = &mut cx.report;
    let mut progress = |done, total| report.progress(Stage::Stage, done, total, "files");
    let staged = staging::write(&cx.root, &mut prepared.bundle, &prepared.plan, &survey.start_file, &mut progress)?;
    write_receipt(cx, survey, prepared, &staged)?;
    swap::make_trash(&cx.own())?;
    cx.done(Stage::Stage, &format!("{} files wait", staged.len()));
    cx.check_signals()?;
    cx.start(Stage::Backup, "saving the installed version and the data");
    let backups = cx.backups();
    fsx::make_folders(&backups)?;
    let dir = backups.join(backup::new_id(&backups)?);
    let report = &mut cx.report;
    let mut progress = |done, total| report.progress(Stage::Backup, done, total, "files");
    let saved = backup::seed(&cx.root, &dir, &prepared.plan, &prepared.data, &mut progress);
    match saved {
        Ok(saved) => {
            cx.done(Stage::Backup, &format!("first pass into {}", saved.id));
            Ok((staged, saved))
        }
        Err(e) => {
            backup::discard_unfinished(&dir)?;
            Err(e)
        }
    }
}

/// Writes the receipt-to-be and keeps the bundle beside it; the commit puts both in place.
fn write_receipt(cx: &Context, survey: &Survey, prepared: &mut Prepared, staged: &[Staged]) -> Result<()> {
    let mut lines = Vec::new();
    let preserve = cx.preserve()?;
    let staged: BTreeMap<&RelPath, &Staged> = staged.iter().map(|s| (&s.path, s)).collect();
    for planned in &prepared.plan.actions {
        let Some(entry) = planned.entry.and_then(|i| prepared.bundle.entries.get(i)) else { continue };
        // Data belongs to the users once it is there.
        if matches!(planned.action, Action::Keep | Action::Merge | Action::Remove)
            || preserve.class_of(&planned.path, false).is_some()
        {
            continue;
        }
        let arriving = staged.get(&planned.path);
        let facts = match (arriving, planned.live) {
            (Some(staged), _) => staged.facts,
            (None, Some(live)) => live,
            (None, None) => continue,
        };
        let known = prepared.plan.live.get(&planned.path).map(|l| l.sha256.clone());
        let sha256 = arriving.map(|s| s.sha256.clone()).or(known).unwrap_or_else(|| entry.sha256.clone());
        lines.push(receipt::Line {
            path: planned.path.clone(),
            size: facts.size,
            carried: sha256 != entry.sha256,
            sha256,
            mode: facts.mode,
            mtime: facts.mtime,
        });
    }
    let receipt = Receipt {
        format: receipt::FORMAT,
        version: prepared.bundle.version.clone(),
        content_id: prepared.bundle.content_id.clone(),
        applied_at: jiff::Timestamp::now().to_string(),
        start_file: survey.start_file.clone(),
        ports: survey.expected.ports.clone(),
        files: lines,
    };
    let staging = cx.own().join("staging");
    receipt::store(&staging.join("receipt.json"), &receipt)?;
    let kept = staging.join("bundle.zip");
    let mut file = files::open_private(&kept).with_context(|| format!("creating {}", kept.display()))?;
    prepared.bundle.copy_raw(&mut file)?;
    file.sync_all()?;
    fsx::adopt(&kept)
}

fn open_journal(
    cx: &Context,
    request: &Request,
    survey: &Survey,
    prepared: &Prepared,
    saved: &Backup,
) -> Result<Journal> {
    let settings = &cx.settings.server;
    let begin = Begin {
        format: journal::FORMAT,
        update_id: cx.update_id.clone(),
        command: "apply".into(),
        root: cx.root.path().to_path_buf(),
        backup: saved.id.clone(),
        backup_dir: RelPath::parse(&cx.settings.backup.dir)
            .map_err(|e| Failure::usage("bad-settings", format!("[backup] dir: {e}")))?,
        from_version: survey.receipt.as_ref().map(|r| r.version.clone()),
        to_version: Some(prepared.bundle.version.clone()),
        start_file: survey.start_file.clone(),
        launch: survey.server.as_ref().map(|s| s.launch.clone()).or_else(|| survey.launch.clone()),
        was_running: survey.server.is_some(),
        before: Measure {
            old: Some(serde_json::to_value(&survey.before)?),
            new: Some(serde_json::to_value(&survey.expected)?),
        },
        stop_timeout_ms: millis(settings.stop_timeout),
        health_timeout_ms: millis(request.health_timeout.unwrap_or(settings.health_timeout)),
        soak_ms: millis(settings.soak),
    };
    Journal::create(&cx.own(), begin, journal_size(&prepared.plan))
}

/// Everything that happens while the server is down, and the new version's start.
#[allow(clippy::too_many_arguments)]
fn down(
    cx: &mut Context,
    request: &Request,
    survey: &Survey,
    prepared: &Prepared,
    staged: &[Staged],
    saved: &mut Backup,
    journal: &mut Journal,
    started: &mut Option<processes::Running>,
) -> Result<Option<health::Healthy>> {
    let preserve = cx.preserve()?;
    cx.start(Stage::Stop, "stopping the server");
    journal.append(Record::Stopping)?;
    if let Some(server) = survey.server.as_ref().filter(|_| !request.in_place) {
        server::stop(server, cx.settings.server.stop_timeout, &mut || cx.check_signals_after_stop())?;
    }
    if let Some(foreign) = &survey.foreign {
        server::stop(foreign, cx.settings.server.stop_timeout, &mut || cx.check_signals_after_stop())?;
    }
    cx.done(Stage::Stop, if survey.server.is_some() { "the port is free" } else { "nothing ran" });

    cx.start(Stage::BackupFinal, "saving what changed since");
    let record = finish_backup(cx, survey, prepared, saved, &preserve)?;
    journal.append(Record::BackupWhole)?;
    cx.done(Stage::BackupFinal, &format!("{} is whole", saved.id));
    cx.check_signals_after_stop()?;

    cx.start(Stage::Swap, "moving the new version in");
    if let Some(again) = server::find(&cx.root)?.filter(|_| !request.in_place) {
        let pid = again.processes.first().map_or(0, |p| p.id.pid);
        return Err(Failure::failed("server-returned", format!("something started the server again (process {pid})"))
            .remedy("stop what respawns it, then update")
            .into());
    }
    let moves = swap::intend(&cx.root, &prepared.plan, staged, &preserve)?;
    journal.append(Record::Swapping { moves: moves.clone() })?;
    swap::carry_out(&cx.root, &moves, &survey.start_file)?;
    journal.append(Record::Swapped)?;
    cx.done(Stage::Swap, &format!("{} moves", moves.moves.len()));

    cx.start(Stage::Verify, "checking what arrived");
    let merged: BTreeSet<RelPath> = staged.iter().map(|s| s.path.clone()).collect();
    let critical = critical(cx)?;
    verify::arrived(&cx.root, staged, &critical, &record.files, &merged)?;
    cx.done(Stage::Verify, "whole");
    cx.report.stage_skipped(Stage::Hooks, "none");
    cx.check_signals_after_stop()?;

    let launch = match &survey.launch {
        Some(launch) if !request.no_start && !request.in_place => launch,
        _ => {
            cx.report.stage_skipped(Stage::Relaunch, "the server stays stopped");
            cx.report.stage_skipped(Stage::Health, "the server stays stopped");
            journal.append(Record::Committed)?;
            return Ok(None);
        }
    };
    cx.start(Stage::Relaunch, "starting the new version");
    let held = processes::hold(launch).map_err(|e| cannot_start(launch, &e))?;
    let boot = processes::boot_id().context("reading the boot id")?;
    journal.append(Record::Starting { boot, process: held.id() })?;
    let running = started.insert(held.release().map_err(|e| cannot_start(launch, &e))?);
    cx.done(Stage::Relaunch, &format!("process {}", running.id().pid));

    cx.start(Stage::Health, "waiting for its answer");
    let old: Vec<ProcessId> = survey.server.iter().flat_map(|s| s.processes.iter().map(|p| p.id)).collect();
    let healthy = judge(cx, request, &survey.expected, &old, running)?;
    journal.append(Record::Committed)?;
    cx.done(Stage::Health, "it answers as well as before");
    Ok(Some(healthy))
}

fn critical(cx: &Context) -> Result<Vec<RelPath>> {
    let parse = |name: &String| {
        RelPath::parse(name)
            .map_err(|e| Failure::usage("bad-settings", format!("[verify] critical {name}: {e}")).into())
    };
    cx.settings.verify.critical.iter().map(parse).collect()
}

fn finish_backup(
    cx: &Context,
    survey: &Survey,
    prepared: &Prepared,
    saved: &mut Backup,
    preserve: &crate::preserve::Preserve,
) -> Result<backup::Record> {
    let mut live = Vec::new();
    for path in prepared.plan.live.keys() {
        if let Some(facts) = fsx::facts(&cx.root.join(path))? {
            live.push((path.clone(), facts, false));
        }
    }
    let data = backup::data_files(&cx.root, preserve, &cx.skipped()?)?;
    live.extend(data.into_iter().map(|(path, facts)| (path, facts, true)));
    let record = backup::Record {
        format: backup::FORMAT,
        id: saved.id.clone(),
        created: jiff::Timestamp::now().to_string(),
        kind: "apply".into(),
        update_id: cx.update_id.clone(),
        from_version: survey.receipt.as_ref().map(|r| r.version.clone()),
        to_version: Some(prepared.bundle.version.clone()),
        start_file: survey.start_file.clone(),
        content_id: survey.receipt.as_ref().map(|r| r.content_id.clone()),
        files: Vec::new(),
    };
    saved.finish(&cx.root, &live, record)
}

/// After the commit: receipt and kept bundle in place, trash and journal gone, old backups pruned.
pub fn close(cx: &mut Context, journal: Journal) -> Result<()> {
    rollback::clean_up(&cx.root, journal)?;
    backup::prune(&cx.backups(), cx.settings.backup.keep)?;
    let owner = fsx::owner_of(cx.root.path())?;
    fsx::give_tree(&cx.own(), owner)?;
    fsx::adopt(&cx.backups())
}

// ---------------------------------------------------------------- the way back

/// Undoes the update and starts the old version again. Returns the failure that the run ends with:
/// class 3 when the old version is whole and the server as before, else 4.
fn roll_back(
    cx: &mut Context,
    survey: &Survey,
    mut journal: Journal,
    started: Option<processes::Running>,
    cause: anyhow::Error,
    finished: &mut Finished,
    stopped_at: Instant,
) -> anyhow::Error {
    let record = error::record(&cause);
    cx.report.fail_current(&record.message);
    if started.is_some() {
        show_log(cx, &journal);
    }
    cx.start(Stage::Rollback, &format!("going back to the old version: {}", record.message));
    let was_started = started.is_some();
    let undone = recover::end_started(cx, &journal).and_then(|()| rollback::undo(&cx.root, &mut journal, was_started));
    drop(started);
    if let Err(e) = undone {
        cx.report.stage_failed(Stage::Rollback, &format!("{e:#}"));
        return needs_operator(cx, &record, &e);
    }
    let healthy = recover::start_old(cx, &journal);
    let cleaned =
        rollback::clean_up(&cx.root, journal).and_then(|()| fsx::give_tree(&cx.own(), fsx::owner_of(cx.root.path())?));
    match healthy.and_then(|h| cleaned.map(|()| h)) {
        Ok(healthy) => {
            cx.report.stage_done(Stage::Rollback, "the old version is back");
            finished.pid = healthy.as_ref().map(|h| h.pid);
            finished.downtime_ms =
                healthy.filter(|_| survey.server.is_some()).map(|h| millis(h.first_answer - stopped_at));
            anyhow::Error::new(Failure {
                class: Class::RolledBack,
                code: code_of(&cause),
                message: format!("{}; the old version is back and the server is as it was before", record.message),
                path: record.path,
                remedy: record.remedy.or_else(|| Some("mend the bundle, then apply it again".into())),
            })
        }
        Err(e) => {
            cx.report.stage_failed(Stage::Rollback, &format!("{e:#}"));
            needs_operator(cx, &record, &e)
        }
    }
}

/// The end of what the new version itself said.
fn show_log(cx: &mut Context, journal: &Journal) {
    let Some(launch) = &journal.begin.launch else { return };
    let files = BTreeSet::from([&launch.stdout, &launch.stderr]);
    for file in files {
        let lines = health::tail(file, 0, 20).unwrap_or_default();
        if !lines.is_empty() {
            cx.report.note(&format!("the last lines of {}:", file.display()));
        }
        for line in lines {
            cx.report.note(&format!("  {line}"));
        }
    }
}

fn code_of(cause: &anyhow::Error) -> &'static str {
    cause.downcast_ref::<Failure>().map_or("io", |f| f.code)
}

fn needs_operator(cx: &Context, cause: &error::ErrorRecord, e: &anyhow::Error) -> anyhow::Error {
    let code = e.downcast_ref::<Failure>().map_or("rollback-failed", |f| f.code);
    Failure::operator(code, format!("the update failed ({}) and going back did not succeed: {e:#}", cause.message))
        .at(cx.root.path().display())
        .remedy(format!("remove the cause, then type: updater recover --root '{}'", cx.root.path().display()))
        .into()
}
