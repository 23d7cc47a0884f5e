//! From a parsed command line to a command and its exit code.
//! Refuses to know what the commands do.

use crate::base::error::{self, Code, Failure};
use crate::base::report::{self, Finished, Outcome, Reporter, Stage};
use crate::cli::{self, Cli, Command, Ended};
use crate::commands::adopt;
use crate::commands::backups;
use crate::commands::check;
use crate::commands::doctor;
use crate::commands::finish;
use crate::commands::follow;
use crate::commands::init;
use crate::commands::plan;
use crate::commands::repair;
use crate::commands::shim;
use crate::commands::shown::show;
use crate::commands::status::{self, Asking};
use crate::requests;
use crate::restore;
use crate::state::history;
use crate::state::root::InstallRoot;
use crate::state::settings::Settings;
use crate::system::{self, SystemPart, monitor, processes};
use crate::update;
use crate::update::authority;
use crate::update::escape::{self, Outside};
use crate::update::install::Install;
use crate::update::recover;
use crate::update::run::{self, Run};
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The hidden half of a start: becomes the server.
pub fn launch() -> ExitCode {
    match processes::exec_when_released() {
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
            outcome: Outcome::Failed,
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
    options.log_file = options.log_file.map(|path| requests::typed_path(&cwd, &path));
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
        Command::Apply(args) | Command::Plan(args) => {
            args.bundle.as_ref().map(|bundle| requests::typed_path(cwd, bundle))
        }
        Command::Adopt(args) => Some(requests::typed_path(cwd, &args.bundle)),
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
    cli.global.config.as_ref().map_or_else(|| root.join("updater.toml"), |config| requests::typed_path(cwd, config))
}

fn command(install: &Install, run: &mut Run, cli: &Cli, cwd: &Path, warnings: &[String]) -> Result<u8> {
    match &cli.command {
        Command::Apply(args) if !args.dry_run => {
            let request = requests::apply(args, cwd)?;
            run.report.begin(run.update_id.clone(), &Stage::PIPELINE);
            let finished = update::apply(install, run, &request);
            Ok(finish::end(install, run, &finished))
        }
        Command::Apply(args) | Command::Plan(args) => {
            let (planned, code) = plan::plan(install, run, &requests::apply(args, cwd)?)?;
            show(&mut run.report, &planned)?;
            Ok(code)
        }
        Command::Status(args) => {
            let status = status::status(install, &Asking::Now)?;
            if args.follow && !status.under_way.is_null() {
                return follow::follow(install, run, &status.under_way);
            }
            show(&mut run.report, &status)?;
            Ok(0)
        }
        Command::Verify(args) if args.repair => {
            let from = args.from.as_ref().map(|from| requests::local(from, cwd)).transpose()?;
            run.report.begin(run.update_id.clone(), &Stage::PIPELINE);
            let finished = repair::repair(install, run, from.as_deref(), args.no_restart, args.wait);
            Ok(finish::end(install, run, &finished))
        }
        Command::Verify(_) => {
            let found = check::check(install, run)?;
            show(&mut run.report, &found)?;
            Ok(u8::from(!found.whole))
        }
        Command::Backups(args) => backups_command(install, run, args),
        Command::Restore(args) => {
            run.report.begin(run.update_id.clone(), &Stage::PIPELINE);
            let wanted = requests::restore(args);
            let finished = restore::restore(install, run, &wanted);
            Ok(finish::end(install, run, &finished))
        }
        Command::Recover(args) => recover_command(install, run, args, warnings),
        Command::Adopt(args) => {
            let done = adopt::adopt(install, run, &requests::local(args.bundle.as_os_str(), cwd)?, args.wait);
            adopt::closed(install, run);
            show_object(run, &done?, adopt::text);
            Ok(0)
        }
        Command::Init(args) if args.boot_recovery || args.systemd_helper => {
            let part = if args.boot_recovery { SystemPart::BootRecovery } else { SystemPart::Helper };
            let done = if args.remove { init::remove_part(install, part) } else { init::install_part(install, part) }?;
            show_object(run, &done, init::part_text);
            Ok(0)
        }
        Command::Init(args) => {
            let place = settings_place(cli, install.root.path(), cwd);
            let done = init::settings(install, &place, args.force)?;
            show_object(run, &done, init::settings_text);
            Ok(0)
        }
        Command::Doctor => {
            let checks = doctor::doctor(install, run, warnings)?;
            show(&mut run.report, &checks)?;
            Ok(u8::from(!checks.ok))
        }
        Command::Shim(args) => {
            let done = if args.remove { shim::remove(install) } else { shim::install(install) }?;
            show(&mut run.report, &done)?;
            Ok(0)
        }
        Command::Helper(_) => helper_command(install),
        Command::Launch(_) => Err(Failure::usage(Code::Usage, "this command is the updater's own").into()),
    }
}

/// `backups`, and `backups prune`.
fn backups_command(install: &Install, run: &mut Run, args: &cli::Backups) -> Result<u8> {
    if let Some(cli::BackupsAction::Prune { keep, wait }) = &args.action {
        let pruned = restore::prune(install, run, *keep, *wait)?;
        show(&mut run.report, &pruned)?;
        return Ok(0);
    }
    let (listed, whole) = backups::backups(install, args.check)?;
    show(&mut run.report, &listed)?;
    Ok(u8::from(!whole))
}

/// `recover`, with what is wrong with the settings as warnings: it must work all the same.
fn recover_command(install: &Install, run: &mut Run, args: &cli::Recover, warnings: &[String]) -> Result<u8> {
    let choice = requests::recover(args)?;
    if args.if_needed && !run.report.options().json && !recover::is_needed(install)? {
        return Ok(0);
    }
    run.report.begin(run.update_id.clone(), &[Stage::Rollback]);
    for warning in warnings {
        run.report.warning(Code::BadSettings, warning, Some("updater.toml"));
    }
    let finished = recover::recover(install, run, choice, args.run.wait);
    // At boot the service manager waits for us: it must not be asked who runs.
    Ok(if args.boot { finish::unasked(install, run, &finished) } else { finish::end(install, run, &finished) })
}

/// The helper unit of root's: meets whoever asked for an update, and becomes the updater that was asked for.
fn helper_command(install: &Install) -> Result<u8> {
    let Err(e) = if monitor::is_monitored() {
        system::escape::arrive(None, install.state().path())
    } else {
        Err(std::io::Error::other("root does this for the owner of an install"))
    };
    Err(Failure::failed(Code::EscapeFailed, format!("nobody was found who asked for an update: {e}")).into())
}

fn show_object(run: &mut Run, object: &Value, text: fn(&Value) -> Vec<String>) {
    if run.report.options().json {
        run.report.object(object);
    } else {
        for line in text(object) {
            run.report.line(&line);
        }
    }
}
