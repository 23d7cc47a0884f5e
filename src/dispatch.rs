//! From a parsed command line to a command and its exit code.
//! Refuses to know what the commands do.

use crate::base::error::{self, Code, Failure};
use crate::base::net::{Url, url};
use crate::base::report::{self, Finished, Reporter, Stage};
use crate::cli::{self, Cli, Command, Ended};
use crate::commands::adopt;
use crate::commands::doctor;
use crate::commands::follow;
use crate::commands::init;
use crate::commands::inspect::{self, Asking};
use crate::commands::shim;
use crate::restore;
use crate::state::history;
use crate::state::root::InstallRoot;
use crate::state::settings::Settings;
use crate::system::{self, SystemPart, monitor, processes};
use crate::update::authority;
use crate::update::escape::{self, Outside};
use crate::update::fetch;
use crate::update::install::Install;
use crate::update::recover;
use crate::update::run::{self, Run};
use crate::update::{self, Accept, Mode, Origin, Request, ServerOptions, Source, Zip};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The hidden half of a start: becomes the server.
pub fn launch() -> ExitCode {
    match processes::run_held() {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(127),
    }
}

/// Not even the inherited handles could be closed.
pub fn cannot_begin(e: &std::io::Error) -> ExitCode {
    let failure = Failure::failed(Code::InheritedHandles, format!("what the caller left open cannot be closed: {e}"));
    Reporter::new(report::Options::default()).error(&error::record(&failure.into()));
    ExitCode::from(1)
}

/// A step on the way out of the caller; the one that follows tells the rest.
pub fn stepped(done: std::io::Result<()>) -> ExitCode {
    let Err(e) = done else { return ExitCode::SUCCESS };
    let failure = Failure::failed(Code::EscapeFailed, format!("the updater that was to run outside: {e}"));
    Reporter::new(report::Options::default()).error(&error::record(&failure.into()));
    ExitCode::from(1)
}

/// Help, version, or a usage error.
pub fn ended(ended: Ended) -> u8 {
    match ended {
        Ended::Text(text) => {
            Reporter::new(report::Options::default()).line(text.trim_end());
            0
        }
        Ended::Usage { failure, json, events } => {
            let options = report::Options { json, ..report::Options::default() };
            usage(&mut Reporter::new(options), &failure.into(), events)
        }
    }
}

/// Reports an error that came before the command could begin.
fn usage(report: &mut Reporter, e: &anyhow::Error, events: bool) -> u8 {
    let (record, code) = (error::record(e), error::class(e) as u8);
    if report.options().json && events {
        report.begin(history::new_update_id(), &[]);
        report.finished(&Finished {
            outcome: "failed".into(),
            exit_code: code,
            error: Some(record),
            ..Finished::default()
        });
    } else if report.options().json {
        report.object(&cli::error_object(&record));
    } else {
        report.error(&record);
    }
    code
}

/// Runs the command and returns the exit code of the contract.
pub fn run(cli: &Cli, outside: &Outside) -> u8 {
    let mut options = cli.global.report();
    let cwd = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    options.log_file = options.log_file.map(|path| cwd.join(path));
    // Until it is clear who acts, nothing is opened: root must not write where others may have put a link.
    let mut early = Reporter::new(report::Options { log_file: None, ..options.clone() });
    let writes_events = cli.command.writes_events();
    // Resolved once: whatever its name comes to mean later, this folder is meant.
    let root = match root(cli, &cwd) {
        Ok(root) => root,
        Err(e) => return usage(&mut Reporter::new(options), &e, writes_events),
    };
    match elsewhere(cli, &root, &cwd, outside, &mut early) {
        Ok(None) => {}
        Ok(Some(code)) => return code,
        Err(e) => return usage(&mut early, &e, writes_events),
    }
    let (install, mut run, warnings) = match prepare(cli, root, Reporter::new(options.clone()), &cwd, outside) {
        Ok(both) => both,
        Err(e) => return usage(&mut Reporter::new(options), &e, writes_events),
    };
    // The caller's folder may lie in what is replaced.
    if install.root.enter().is_err() {
        let failure =
            Failure::failed(Code::NoAccess, "the install cannot be entered").at(install.root.path().display());
        return usage(&mut early, &failure.into(), writes_events);
    }
    let done = if cli.command.reads_only() {
        run::interruptible(|| command(&install, &mut run, cli, &cwd, &warnings))
    } else {
        command(&install, &mut run, cli, &cwd, &warnings)
    };
    match done {
        Ok(code) => code,
        Err(e) => usage(&mut run.report, &e, cli.command.writes_events()),
    }
}

/// Has the work done by another process, where this one may not do it itself. None: it is done here.
fn elsewhere(
    cli: &Cli,
    root: &InstallRoot,
    cwd: &Path,
    outside: &Outside,
    report: &mut Reporter,
) -> Result<Option<u8>> {
    if outside.line.is_none()
        && !monitor::is_monitored()
        && let Some(code) = leave(cli, root, cwd, report)?
    {
        return Ok(Some(code));
    }
    as_owner(cli, root, cwd, outside)
}

/// The install that the command is for. Errors (exit 2): there is none.
fn root(cli: &Cli, cwd: &Path) -> Result<InstallRoot> {
    let exe = std::env::current_exe().context("finding this program")?;
    Ok(cli::find_root(cli.global.root.as_deref(), cwd, &exe)?.claiming(cli.command.port()))
}

/// Has the work done outside of what would end with the server, where that is needed. None: it is done here.
fn leave(cli: &Cli, root: &InstallRoot, cwd: &Path, report: &mut Reporter) -> Result<Option<u8>> {
    let Some(detach) = cli.command.leaves() else { return Ok(None) };
    let Some(way) = escape::way(root, detach)? else { return Ok(None) };
    let argv: Vec<OsString> = std::env::args_os().skip(1).collect();
    escape::leave(root, &way, &escape::Caller { argv: &argv, cwd, detach }, report).map(Some)
}

/// Has the work done by a child of the install's owner, where root runs it for him. None: it is done here.
fn as_owner(cli: &Cli, root: &InstallRoot, cwd: &Path, outside: &Outside) -> Result<Option<u8>> {
    if is_of_the_system(&cli.command) {
        return Ok(None);
    }
    let argv: Vec<OsString> = std::env::args_os().skip(1).collect();
    let bundle = match &cli.command {
        Command::Apply(args) | Command::Plan(args) => args.bundle.as_ref().map(|bundle| cwd.join(bundle)),
        Command::Adopt(args) => Some(cwd.join(&args.bundle)),
        _ => None,
    };
    let bound = match &cli.command {
        Command::Helper(helper) => Some(helper.unit.as_str()),
        _ => None,
    };
    let task = authority::Task {
        argv: &argv,
        bundle: bundle.as_deref(),
        stops: cli.command.leaves().is_some(),
        bound,
        kept: &outside.handles(),
    };
    authority::delegate(root, &task)
}

/// True for what writes units of the system, which are root's to write.
fn is_of_the_system(command: &Command) -> bool {
    matches!(command, Command::Init(args) if args.boot_recovery || args.systemd_helper)
}

/// What a command is given, and what is wrong with the settings where that may be.
fn prepare(
    cli: &Cli,
    root: InstallRoot,
    report: Reporter,
    cwd: &Path,
    outside: &Outside,
) -> Result<(Install, Run, Vec<String>)> {
    let config = settings_place(cli, root.path(), cwd);
    let strict = !matches!(cli.command, Command::Recover(_) | Command::Doctor);
    if !is_of_the_system(&cli.command) {
        authority::guard(&root, &config)?;
    }
    let (settings, mut warnings) = Settings::load(&config, strict)?;
    let signals = processes::Signals::install().context("watching for signals")?;
    let claimed = root.claimed_port().or(settings.server.port);
    let root = root.claiming(claimed);
    let run = Run {
        report,
        signals,
        update_id: outside.update_id.clone().unwrap_or_else(history::new_update_id),
        summary: Finished::default(),
        under_way: None,
        is_down: false,
        has_said: false,
        baseline: None,
        line: outside.line.clone(),
    };
    let install = if strict {
        Install::new(root, settings)?
    } else {
        let (install, wrong) = Install::lenient(root, settings)?;
        warnings.extend(wrong);
        install
    };
    Ok((install, run, warnings))
}

fn settings_place(cli: &Cli, root: &Path, cwd: &Path) -> PathBuf {
    cli.global.config.as_ref().map_or_else(|| root.join("updater.toml"), |config| cwd.join(config))
}

fn command(install: &Install, run: &mut Run, cli: &Cli, cwd: &Path, warnings: &[String]) -> Result<u8> {
    match &cli.command {
        Command::Apply(args) if !args.dry_run => {
            let request = request(args, cwd)?;
            run.report.begin(run.update_id.clone(), &Stage::PIPELINE);
            let finished = update::apply(install, run, &request);
            Ok(end(install, run, &finished))
        }
        Command::Apply(args) | Command::Plan(args) => {
            let (object, code) = inspect::plan(install, run, &request(args, cwd)?)?;
            show(run, &object, inspect::plan_text);
            Ok(code)
        }
        Command::Status(args) => {
            let object = inspect::status(install, &Asking::Now)?;
            if args.follow && !object["under_way"].is_null() {
                return follow::follow(install, run, &object["under_way"]);
            }
            show(run, &object, inspect::status_text);
            Ok(0)
        }
        Command::Verify(args) if args.repair => {
            let from = args.from.as_ref().map(|from| local(from, cwd)).transpose()?;
            run.report.begin(run.update_id.clone(), &Stage::PIPELINE);
            let finished = inspect::repair(install, run, from.as_deref(), args.no_restart, args.wait);
            Ok(end(install, run, &finished))
        }
        Command::Verify(_) => {
            let (object, whole) = inspect::verify(install, run)?;
            show(run, &object, inspect::verify_text);
            Ok(u8::from(!whole))
        }
        Command::Backups(args) => match &args.action {
            None => {
                let (object, whole) = inspect::backups(install, args.check)?;
                show(run, &object, inspect::backups_text);
                Ok(u8::from(!whole))
            }
            Some(cli::BackupsAction::Prune { keep, wait }) => {
                let object = restore::prune(install, run, *keep, *wait)?;
                show(run, &object, inspect::backups_text);
                Ok(0)
            }
        },
        Command::Restore(args) => {
            run.report.begin(run.update_id.clone(), &Stage::PIPELINE);
            let wanted = restore::Wanted {
                id: args.id.clone(),
                data: args.data,
                code_only: args.code_only,
                only: args.only.clone(),
                legacy: args.legacy,
                yes: args.yes,
                server: server_options(&args.run),
                accept: Accept { damaged_data: args.run.force_data, ..Accept::default() },
                wait: args.run.wait,
            };
            let finished = restore::restore(install, run, &wanted);
            Ok(end(install, run, &finished))
        }
        Command::Recover(args) => {
            if args.boot && args.data.is_some() {
                return Err(Failure::usage(
                    Code::Usage,
                    "--boot mends files only, so there is no --data to decide with it",
                )
                .remedy("decide it without --boot: updater recover --data keep or --data backup")
                .into());
            }
            let choice = recover::Choice {
                data: args.data.map(|d| match d {
                    cli::Data::Keep => recover::Data::Keep,
                    cli::Data::Backup => recover::Data::Backup,
                }),
                boot: args.boot,
                by_hand: !args.boot && !args.if_needed,
            };
            if args.if_needed && !run.report.options().json && !recover::is_needed(install)? {
                return Ok(0);
            }
            run.report.begin(run.update_id.clone(), &[Stage::Rollback]);
            for warning in warnings {
                run.report.warning(Code::BadSettings, warning, Some("updater.toml"));
            }
            let finished = recover::recover(install, run, choice, args.run.wait);
            // At boot the service manager waits for us: it must not be asked who runs.
            Ok(if args.boot { end_unasked(install, run, &finished) } else { end(install, run, &finished) })
        }
        Command::Adopt(args) => {
            let done = adopt::adopt(install, run, &local(args.bundle.as_os_str(), cwd)?, args.wait);
            adopt::closed(install, run);
            show(run, &done?, adopt::text);
            Ok(0)
        }
        Command::Init(args) if args.boot_recovery || args.systemd_helper => {
            let part = if args.boot_recovery { SystemPart::BootRecovery } else { SystemPart::Helper };
            let done = if args.remove { init::remove_part(install, part) } else { init::install_part(install, part) }?;
            show(run, &done, init::part_text);
            Ok(0)
        }
        Command::Init(args) => {
            let place = settings_place(cli, install.root.path(), cwd);
            let done = init::settings(install, &place, args.force)?;
            show(run, &done, init::settings_text);
            Ok(0)
        }
        Command::Doctor => {
            let (object, ok) = doctor::doctor(install, run, warnings)?;
            show(run, &object, doctor::text);
            Ok(u8::from(!ok))
        }
        Command::Shim(args) => {
            let done = if args.remove { shim::remove(install) } else { shim::install(install) }?;
            show(run, &done, shim::text);
            Ok(0)
        }
        Command::Helper(_) => {
            let Err(e) = if monitor::is_monitored() {
                system::escape::arrive(None, install.state().path())
            } else {
                Err(std::io::Error::other("root does this for the owner of an install"))
            };
            Err(Failure::failed(Code::EscapeFailed, format!("nobody was found who asked for an update: {e}")).into())
        }
        Command::Launch(_) => Err(Failure::usage(Code::Usage, "this command is the updater's own").into()),
    }
}

fn request(args: &cli::Apply, cwd: &Path) -> Result<Request> {
    let Some(bundle) = &args.bundle else {
        return Err(Failure::usage(Code::NoBundle, "no bundle was named")
            .remedy("give the path of a bundle: updater apply BUNDLE")
            .into());
    };
    let path = cwd.join(bundle);
    let typed = bundle.to_string_lossy();
    let origin = if fetch::is_url(&typed) {
        Origin::Url { url: source_url(&typed)?, insecure: args.insecure }
    } else if system::files::open_to_read(&path).is_err() && monitor::handed_bundle().is_some() {
        Origin::Handed
    } else {
        Origin::File
    };
    let named = match &origin {
        Origin::File => None,
        Origin::Url { url, .. } => Some(url.to_string()),
        Origin::Handed => Some(path.display().to_string()),
    };
    let zip = Zip { path, origin, named, sha256: args.sha256.clone() };
    Ok(Request {
        source: Source::Zip(zip),
        mode: Mode::Update { reinstall: args.reinstall, unattended: args.unattended && !args.retry_failed },
        server: ServerOptions { legacy_port: args.legacy_port, ..server_options(&args.run) },
        accept: Accept { partial: args.partial, downgrade: args.allow_downgrade, damaged_data: args.run.force_data },
        set: args.set.clone(),
        wait: args.run.wait,
    })
}

/// A bundle that must lie on this machine. Errors (exit 2): it is an address.
fn local(typed: &OsStr, cwd: &Path) -> Result<PathBuf> {
    let text = typed.to_string_lossy();
    if fetch::is_url(&text) {
        let message = format!("this command does not download: {}", url::shown(&text));
        return Err(Failure::usage(Code::UnsupportedSource, message)
            .remedy("save the bundle to a file and give its path")
            .into());
    }
    Ok(cwd.join(typed))
}

/// The address of a bundle. Errors (exit 2): none that a bundle can be taken from.
fn source_url(typed: &str) -> Result<Url> {
    let shown = url::shown(typed);
    let is_web = ["http://", "https://"].iter().any(|scheme| typed.to_ascii_lowercase().starts_with(scheme));
    if !is_web {
        return Err(Failure::usage(Code::UnsupportedSource, format!("a bundle cannot be taken from {shown}"))
            .remedy("give a path, or an http:// or https:// URL")
            .into());
    }
    Url::parse(typed).map_err(|why| {
        Failure::usage(Code::BadUrl, format!("{shown} cannot be asked: {why}"))
            .at(&shown)
            .remedy("write it like https://example.org/site.zip")
            .into()
    })
}

fn server_options(run: &cli::Run) -> ServerOptions {
    ServerOptions {
        port: run.port,
        legacy_port: None,
        no_start: run.no_start,
        stop_foreign: run.stop_foreign,
        health_url: run.health_url.clone(),
        health_timeout: run.health_timeout,
    }
}

/// What an event command leaves behind: the last outcome, `status.json`, words for people.
fn end(install: &Install, run: &mut Run, finished: &Finished) -> u8 {
    // Whoever gave up waiting for the lock leaves the words of the one that holds it alone.
    let has_waited_only = run.under_way.is_none() && processes::was_asked_to_end();
    if install.state().path().is_dir() && finished.exit_code != 5 && !has_waited_only {
        if let Some(last) = run.report.last_finished() {
            let _ = history::Last::write(install.state(), &last);
        }
        // Before the stop nothing has changed since the server was asked, if it was.
        let is_known = !run.is_down && finished.exit_code != 0;
        let asking = if is_known { Asking::Known(run.baseline.as_ref()) } else { Asking::Now };
        if let Ok(mut status) = inspect::status(install, &asking) {
            status["schema"] = json!(1);
            status["under_way"] = Value::Null;
            run.close_status(install, &status);
        }
    }
    finished.exit_code
}

/// The same without a look at the server.
fn end_unasked(install: &Install, run: &mut Run, finished: &Finished) -> u8 {
    if let Some(last) =
        run.report.last_finished().filter(|_| install.state().path().is_dir() && finished.exit_code != 5)
    {
        let _ = history::Last::write(install.state(), &last);
        if let Some(mut status) = history::read_status(install.state()) {
            status["under_way"] = Value::Null;
            status["last"] = last;
            run.close_status(install, &status);
        }
    }
    finished.exit_code
}

fn show(run: &mut Run, object: &Value, text: fn(&Value) -> Vec<String>) {
    if run.report.options().json {
        run.report.object(object);
    } else {
        for line in text(object) {
            run.report.line(&line);
        }
    }
}
