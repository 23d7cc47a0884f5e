//! `doctor`: everything that an update would stumble over, each with its remedy, and what is worth knowing before.
//! Refuses to change anything, and to stop at the first finding.

use crate::backup::{self, Selection};
use crate::base::error::{self, ErrorRecord};
use crate::base::fsx;
use crate::commands::shim;
use crate::commands::shown::Shown;
use crate::commands::status;
use crate::state::history;
use crate::state::receipt;
use crate::system::{EscapeRoute, FileType, SystemPart, Unit, boot, files, processes, remedies};
use crate::update::escape;
use crate::update::hooks;
use crate::update::install::Install;
use crate::update::ownership::Class;
use crate::update::run::Run;
use crate::update::{self, Detection, ServerOptions};
use crate::verify;
use anyhow::{Context as _, Result};
use serde::Serialize;
use std::time::Instant;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Warning,
    Problem,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Problem => "problem",
        }
    }
}

/// What one check found.
struct Found {
    state: State,
    message: String,
    remedy: Option<String>,
}

fn fine(message: impl Into<String>) -> Found {
    Found { state: State::Ok, message: message.into(), remedy: None }
}

fn warning(message: impl Into<String>, remedy: impl Into<String>) -> Found {
    Found { state: State::Warning, message: message.into(), remedy: Some(remedy.into()) }
}

fn problem(message: impl Into<String>, remedy: impl Into<String>) -> Found {
    Found { state: State::Problem, message: message.into(), remedy: Some(remedy.into()) }
}

fn problem_of(record: ErrorRecord) -> Found {
    Found { state: State::Problem, message: record.message, remedy: record.remedy }
}

/// One check, as it is shown.
#[derive(Debug, Serialize)]
struct Check {
    code: &'static str,
    state: State,
    message: String,
    remedy: Option<String>,
    /// How long it took, in milliseconds.
    ms: u64,
}

/// The answer of `doctor`: all findings, in the order in which they are looked for.
#[derive(Debug, Serialize)]
pub struct Checks {
    pub ok: bool,
    checks: Vec<Check>,
}

impl Checks {
    /// Looks, and keeps what was found and how long that took. An error is a problem of its own.
    fn look(&mut self, code: &'static str, look: impl FnOnce() -> Result<Found>) {
        let begun = Instant::now();
        let found = look().unwrap_or_else(|e| problem_of(error::record(&e)));
        self.ok &= found.state != State::Problem;
        let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let Found { state, message, remedy } = found;
        self.checks.push(Check { code, state, message, remedy, ms });
    }
}

/// Looks at everything; `wrong_settings` is what is wrong with the settings file.
pub fn doctor(install: &Install, run: &Run, wrong_settings: &[String]) -> Result<Checks> {
    let mut checks = Checks { ok: true, checks: Vec::new() };
    checks.look("trust", || Ok(trust(install)));
    checks.look("settings", || Ok(settings(wrong_settings)));
    checks.look("interrupted", || interrupted(install));
    checks.look("access", || access(install));
    let mut detection = None;
    checks.look("server", || {
        let found = update::detect(install, &ServerOptions::default(), &[])?;
        Ok(served(detection.insert(found)))
    });
    if let Some(detection) = &detection {
        checks.look("answer", || Ok(answer(detection)));
        checks.look("stop", || stop(install, detection));
        checks.look("start", || Ok(start(detection)));
        checks.look("from-inside", || Ok(from_inside(install, detection)));
        checks.look("hooks", || hooks(install, run, detection));
        checks.look("boot-recovery", || Ok(boot_recovery(install, detection)));
    }
    checks.look("shim", || drop_in(install));
    checks.look("tree", || tree(install));
    checks.look("data", || data(install));
    checks.look("databases", || databases(install, run));
    checks.look("space", || space(install));
    checks.look("backups", || backups(install));
    checks.look("known-bad", || Ok(known_bad(install)));
    run.check_signals()?;
    Ok(checks)
}

fn trust(install: &Install) -> Found {
    let legacy = shim::is_legacy(install) || shim::is_installed(install);
    let more =
        if legacy { "; the legacy server passes on whatever address an unauthenticated request names" } else { "" };
    warning(
        format!("bundles are not authenticated: whoever gives the file or the address decides what runs{more}"),
        "let nobody reach the server's update endpoint but those who may install code, and give --sha256 where the hash \
         is known from elsewhere",
    )
}

fn settings(wrong: &[String]) -> Found {
    match wrong {
        [] => fine("the settings can be used"),
        wrong => {
            problem(wrong.join("; "), "correct updater.toml: until then every command but recover ends with exit 2")
        }
    }
}

fn interrupted(install: &Install) -> Result<Found> {
    let (_, found) = status::interrupted(install)?;
    Ok(found.map_or_else(|| fine("no update was cut off"), problem_of))
}

/// Whether this user may do it at all.
fn access(install: &Install) -> Result<Found> {
    let own = processes::own_credentials().context("finding out who we are")?;
    let owner = fsx::owner_of(install.root.path())?;
    if own.uid != 0 && own.uid != owner.uid {
        return Ok(problem(
            format!("the install belongs to user {}, and this is {}", owner.uid, own.user),
            "run the updater as the owner of the install, or as root",
        ));
    }
    for folder in [install.root.path().to_path_buf(), install.state().path().to_path_buf(), install.backups()] {
        let reason = if folder.exists() { files::obstacle(&folder)? } else { None };
        if let Some(reason) = reason {
            return Ok(problem(format!("nothing can be moved in {}: {reason}", folder.display()), "lift that"));
        }
    }
    Ok(fine(format!("{} may update it", own.user)))
}

fn served(detection: &Detection) -> Found {
    let told = update::described(detection);
    if detection.server.is_some() {
        return fine(told);
    }
    let command = detection.new_launch.as_ref().map(|launch| launch.argv.join(" ")).unwrap_or_default();
    warning(
        format!("{told}: an update would start it by `{command}`"),
        "start the server first: how a running one was started is known for certain",
    )
}

fn answer(detection: &Detection) -> Found {
    let before = &detection.baseline;
    match (before.status, before.protocol) {
        _ if detection.server.is_none() => fine("a stopped server is not asked; after an update it must answer well"),
        (Some(status), Some(protocol)) if status < 400 => fine(format!("{} over {protocol}: {status}", before.path)),
        (Some(status), Some(protocol)) => warning(
            format!(
                "{} over {protocol} answers {status}: an update may not answer worse, and cannot be judged better",
                before.path
            ),
            "set [server] health to a path that tells whether the server is well",
        ),
        _ => warning(
            format!("the server does not answer to {}: after an update it would have to", before.path),
            "set [server] health to a path that it answers",
        ),
    }
}

fn stop(install: &Install, detection: &Detection) -> Result<Found> {
    let way = escape::way(&install.root, false)?;
    update::may_stop(detection, &install.root, way == Some(EscapeRoute::Helper))?;
    let how = way.map_or(String::new(), |way| format!(", by an updater that moves out first ({})", way.word()));
    Ok(match detection.service.as_ref().filter(|_| detection.server.is_some()) {
        Some(unit) => fine(format!("it is stopped and started as {unit}{how}")),
        None if detection.server.is_some() => fine(format!("it can be stopped{how}")),
        None => fine("nothing is to be stopped"),
    })
}

fn start(detection: &Detection) -> Found {
    match &detection.new_launch {
        Some(launch) => fine(format!("it starts by `{}` in {}", launch.argv.join(" "), launch.cwd.display())),
        None => warning("how the server starts is not known", "set [server] command in updater.toml"),
    }
}

fn hooks(install: &Install, run: &Run, detection: &Detection) -> Result<Found> {
    let missing = hooks::check(install, run, detection.new_launch.as_ref(), &detection.start_file)?;
    let count = install.settings.hooks.before_stop.len() + install.settings.hooks.after_swap.len();
    Ok(match missing.as_slice() {
        [] => fine(format!("{count} hooks of the settings can run")),
        missing => warning(
            format!("not there now: {}", missing.join(", ")),
            "let the bundle bring it, or correct `run` in updater.toml",
        ),
    })
}

/// The unit of the system that the server belongs to, where there is one.
fn system_unit(detection: &Detection) -> Option<&Unit> {
    detection.service.as_ref().filter(|unit| unit.user.is_none())
}

/// Whether the server itself may start an update of it.
fn from_inside(install: &Install, detection: &Detection) -> Found {
    let is_roots =
        detection.new_launch.as_ref().and_then(|launch| launch.credentials.as_ref()).is_some_and(|who| who.uid == 0);
    let Some(unit) = system_unit(detection).filter(|_| !is_roots) else {
        return fine("an update that the server itself starts moves out of it first");
    };
    let [path, _] = boot::places(SystemPart::Helper, &escape::unit_name(install.root.path()));
    if path.exists() {
        return fine(format!("an update that {unit} itself starts is run by the helper"));
    }
    warning(
        format!("{unit} may not update itself: an update that it starts would end with it, and is refused"),
        format!("if it is to, type once: {}", installing(install, SystemPart::Helper)),
    )
}

/// What installs this part of the system, typed by root.
fn installing(install: &Install, part: SystemPart) -> String {
    remedies::as_root(&format!("updater --root '{}' init {}", install.root.path().display(), part.option()))
}

fn boot_recovery(install: &Install, detection: &Detection) -> Found {
    if let Some(why) = boot::refusal() {
        return fine(format!("{why}; after a power cut the next command recovers"));
    }
    let [unit, _] = boot::places(SystemPart::BootRecovery, &escape::unit_name(install.root.path()));
    match (unit.exists(), system_unit(detection)) {
        (true, _) => fine("an update that the power cuts off is mended at boot"),
        (false, _) => warning(
            "after a power cut in the middle of an update the server stays down until somebody recovers",
            format!("type once: {}", installing(install, SystemPart::BootRecovery)),
        ),
    }
}

fn drop_in(install: &Install) -> Result<Found> {
    Ok(match (shim::is_installed(install), shim::is_legacy(install)) {
        (true, _) if !shim::is_current(install)? => {
            warning("the drop-in names another program or root than this", "type: updater shim")
        }
        (true, _) => fine("the legacy server calls this program"),
        (false, true) => {
            warning("this looks like a legacy server, and its own updater would still be used", "type: updater shim")
        }
        (false, false) => fine("no legacy server"),
    })
}

fn tree(install: &Install) -> Result<Found> {
    let Some(receipt) = receipt::load(install.state())? else {
        return Ok(fine("nothing was installed by this program yet"));
    };
    let mut kept = update::kept_bundle(install, &receipt)?;
    let found = verify::installed(&install.ownership(Some(&receipt)), &receipt, &mut kept, true)?;
    let mut wrong = found.modified.iter().chain(&found.missing);
    Ok(match wrong.next() {
        None if found.changed_here.is_empty() => {
            fine(format!("{} files are as version {} was installed", found.checked, receipt.version))
        }
        None => fine(format!(
            "{} files of version {}; changed here, and kept by an update: {}",
            found.checked,
            receipt.version,
            found.changed_here.len()
        )),
        Some(first) => problem(
            format!("{first} and {} others are not as they were installed", wrong.count()),
            "see all with updater verify; heal them with updater verify --repair",
        ),
    })
}

/// What users wrote must be readable to be saved.
fn data(install: &Install) -> Result<Found> {
    let receipt = receipt::load(install.state())?;
    let ownership = install.ownership(receipt.as_ref());
    let census = ownership.census(None)?;
    let mut unreadable: Vec<String> = census.unreadable.iter().map(|(path, _)| path.to_string()).collect();
    for (path, metadata) in census.of(Class::Data).filter(|(_, metadata)| metadata.kind == FileType::File) {
        let may = files::open_to_read(&install.root.join(path));
        if metadata.size > 0 && may.is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied) {
            unreadable.push(path.to_string());
        }
    }
    let count = census.of(Class::Data).count();
    Ok(match unreadable.first() {
        None => fine(format!("{count} files that no version shipped stay and are saved")),
        Some(first) => problem(
            format!("{first} and {} others cannot be read, so they cannot be saved", unreadable.len() - 1),
            "give them to the owner of the install (chown), or leave them in place unsaved ([backup] skip)",
        ),
    })
}

fn databases(install: &Install, run: &Run) -> Result<Found> {
    let receipt = receipt::load(install.state())?;
    let census = install.ownership(receipt.as_ref()).census(None)?;
    let scratch = run.scratch(install)?;
    let mut names = Vec::new();
    for main in install.databases(&census.databases, census.items.keys()) {
        let found = verify::check_database(install.root.path(), &main, &[], &scratch)?;
        if !found.ok {
            return Ok(problem(
                format!("the database {main} is damaged"),
                "mend it; an update would be refused, but for --force-data",
            ));
        }
        names.push(main.to_string());
    }
    Ok(fine(match names.as_slice() {
        [] => "no database is watched".to_string(),
        names => format!("whole: {}", names.join(", ")),
    }))
}

/// A backup and the same again for a new version: what an update of everything would need.
fn space(install: &Install) -> Result<Found> {
    let receipt = receipt::load(install.state())?;
    let ownership = install.ownership(receipt.as_ref());
    let census = ownership.census(None)?;
    let free = files::free_space(install.root.path()).context("asking for free space")?;
    let selection = Selection::choose(&install.root, &ownership.rules, &census, &install.backups(), free)?;
    let code: u64 = census.of(Class::Shipped).map(|(_, metadata)| metadata.size).sum();
    let needed = 2 * code + selection.bytes + selection.databases;
    let told = format!("{free} bytes are free, and an update of everything would need about {needed}");
    Ok(if free < needed {
        problem(told, "free space, or lower [backup] keep and type updater backups prune")
    } else {
        fine(told)
    })
}

fn backups(install: &Install) -> Result<Found> {
    let all = backup::list_all(&install.backups(), false)?;
    let damaged: Vec<&str> = all.iter().filter(|b| !b.damaged.is_empty()).map(|b| b.id.as_str()).collect();
    Ok(if damaged.is_empty() {
        fine(format!("{} backups", all.len()))
    } else {
        warning(format!("damaged: {}", damaged.join(", ")), "see what is wrong with them: updater backups --check")
    })
}

fn known_bad(install: &Install) -> Found {
    let bad = history::known_bad(install.state(), update::MOST_FAILURES);
    let names: Vec<&str> = bad.iter().map(|failed| failed.version.as_str()).collect();
    if names.is_empty() {
        return fine("no bundle failed twice by its own fault");
    }
    warning(
        format!("{} failed here twice by its own fault: unattended runs skip it", names.join(", ")),
        "apply a mended bundle, or try it once more with --retry-failed",
    )
}

impl Shown for Checks {
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for check in &self.checks {
            lines.push(format!("{:<8} {}: {}", check.state.word(), check.code, check.message));
            lines.extend(check.remedy.iter().map(|remedy| format!("           remedy: {remedy}")));
        }
        let verdict = if self.ok { "nothing stands in the way of an update" } else { "an update would fail" };
        lines.push(verdict.into());
        lines
    }
}
