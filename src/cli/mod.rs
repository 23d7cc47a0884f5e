//! The command line as types, and which folder is the root.
//! Refuses to do anything: the commands act, `report` writes.

mod root;

pub use root::find_root;

use crate::base::error::{Code, ErrorRecord, Failure};
use crate::base::net::url::masked;
use crate::base::report::{self, Color, ascii};
use crate::roles;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

pub use crate::state::settings::duration;

/// Updates an installed web server in place and cannot leave it broken
#[derive(Debug, Parser)]
#[command(name = "updater", version, propagate_version = true, subcommand_required = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The install; default: the nearest folder upwards with .updater/, updater.toml or run.py
    #[arg(long, global = true, value_name = "DIR", env = "UPDATER_ROOT")]
    pub root: Option<PathBuf>,
    /// The settings; default: updater.toml in the root
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write JSON: events, one a line, or one object
    #[arg(long, global = true)]
    pub json: bool,
    /// Write nothing but errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Say more
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub verbose: bool,
    /// Append the human log to this file, too
    #[arg(long, global = true, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// When to colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: When,
}

impl Global {
    /// How these options want the run reported.
    pub fn report(&self) -> report::Options {
        report::Options {
            json: self.json,
            quiet: self.quiet,
            verbose: self.verbose,
            color: match self.color {
                When::Auto => Color::Auto,
                When::Always => Color::Always,
                When::Never => Color::Never,
            },
            log_file: self.log_file.clone(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum When {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Update the install to a bundle
    Apply(Apply),
    /// Say what apply would do; nothing under the root changes
    Plan(Apply),
    /// Say what is installed, running, under way, interrupted
    Status(Status),
    /// Hold the installed tree against its receipt
    Verify(Verify),
    /// List the backups, or take the oldest away
    Backups(Backups),
    /// Go back to a backup
    Restore(Restore),
    /// Finish or undo an interrupted update
    Recover(Recover),
    /// Write the receipt of the version that is installed already, from its own bundle
    Adopt(Adopt),
    /// Write updater.toml from what is detected, or install the system's part
    Init(Init),
    /// Say what an update would stumble over, each with its remedy
    Doctor,
    /// Install the drop-in through which an unmodified legacy server calls this program
    Shim(Shim),
    /// Run what a process inside a unit has asked for
    #[command(name = roles::HELPER, hide = true)]
    Helper(Helper),
    /// Start a server on behalf of an update
    #[command(name = roles::LAUNCH, hide = true)]
    Launch(Launch),
}

impl Command {
    /// How a command that stops and starts the server was asked to leave its caller; None: it does neither.
    pub fn leaves(&self) -> Option<bool> {
        match self {
            Command::Apply(apply) => (!apply.dry_run).then_some(apply.run.detach),
            Command::Restore(restore) => Some(restore.run.detach),
            // At boot the service manager waits for us, and nothing is stopped.
            Command::Recover(recover) => (!recover.boot).then_some(recover.run.detach),
            Command::Verify(verify) => verify.repair.then_some(false),
            _ => None,
        }
    }

    /// True for what changes nothing, and ends once somebody asks us to end.
    pub fn reads_only(&self) -> bool {
        match self {
            Command::Apply(apply) => apply.dry_run,
            Command::Verify(verify) => !verify.repair,
            Command::Backups(backups) => backups.action.is_none(),
            Command::Plan(_) | Command::Status(_) | Command::Doctor => true,
            _ => false,
        }
    }

    /// The port that `--port` says the server listens on.
    pub fn port(&self) -> Option<u16> {
        match self {
            Command::Apply(apply) | Command::Plan(apply) => apply.run.port,
            Command::Restore(restore) => restore.run.port,
            Command::Recover(recover) => recover.run.port,
            _ => None,
        }
    }

    /// True when `--json` makes the command write events instead of one object.
    pub fn writes_events(&self) -> bool {
        match self {
            Command::Apply(apply) => !apply.dry_run,
            Command::Verify(verify) => verify.repair,
            Command::Recover(_) | Command::Restore(_) => true,
            _ => false,
        }
    }
}

#[derive(Debug, Clone, Default, Args)]
pub struct Apply {
    /// A path, or an http:// or https:// URL
    pub bundle: Option<OsString>,
    /// The same as the command plan
    #[arg(long)]
    pub dry_run: bool,
    /// A setting to write into the carried settings file (repeatable)
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    pub set: Vec<(String, String)>,
    /// Accept the same content again
    #[arg(long)]
    pub reinstall: bool,
    /// Accept a bundle that looks like another program
    #[arg(long)]
    pub partial: bool,
    /// Accept a lower version
    #[arg(long)]
    pub allow_downgrade: bool,
    /// Accept an unsigned bundle
    #[arg(long)]
    pub allow_unsigned: bool,
    /// For schedules: do not try a bundle again that failed here twice by its own fault
    #[arg(long)]
    pub unattended: bool,
    /// Try such a bundle all the same
    #[arg(long)]
    pub retry_failed: bool,
    /// Do not verify the certificate of the server that the bundle comes from
    #[arg(long)]
    pub insecure: bool,
    /// What the legacy server takes for its port
    #[arg(skip)]
    pub legacy_port: Option<u16>,
    /// What the bundle must hash to
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    pub sha256: Option<String>,
    #[command(flatten)]
    pub run: Run,
}

/// What every command takes that stops and starts the server.
#[derive(Debug, Clone, Default, Args)]
pub struct Run {
    /// The port, when nothing of the install listens; which one health asks, when several do
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Return at once; the update goes on outside the caller's tree, session, and control group
    #[arg(long)]
    pub detach: bool,
    /// Wait for the lock (500ms, 15s, 2m) instead of exit 5
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub wait: Option<Duration>,
    /// Stop the owner of the port even if it is not of this install
    #[arg(long)]
    pub stop_foreign: bool,
    /// Leave the server stopped at the end
    #[arg(long)]
    pub no_start: bool,
    /// What tells that the server is well
    #[arg(long, value_name = "URL-or-PATH")]
    pub health_url: Option<String>,
    /// How long the server may take to be well
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub health_timeout: Option<Duration>,
    /// Go on although a database was already damaged before
    #[arg(long)]
    pub force_data: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Status {
    /// Show the update under way as it goes on, and end with its exit code
    #[arg(long)]
    pub follow: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Verify {
    /// Put back what is modified or missing
    #[arg(long)]
    pub repair: bool,
    /// Where to take it from
    #[arg(long, value_name = "BUNDLE", requires = "repair")]
    pub from: Option<OsString>,
    /// Heal in place, without a restart
    #[arg(long, requires = "repair")]
    pub no_restart: bool,
    /// Wait for the lock (500ms, 15s, 2m) instead of exit 5
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "repair")]
    pub wait: Option<Duration>,
}

#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Backups {
    /// Hash every saved file again
    #[arg(long)]
    pub check: bool,
    #[command(subcommand)]
    pub action: Option<BackupsAction>,
}

#[derive(Debug, Clone, Subcommand)]
pub enum BackupsAction {
    /// Take the oldest backups away, never the newest whole one
    Prune {
        /// How many stay; default: [backup] keep
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        keep: Option<u32>,
        /// Wait for the lock (500ms, 15s, 2m) instead of exit 5
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        wait: Option<Duration>,
    },
}

#[derive(Debug, Clone, Args)]
pub struct Restore {
    /// The backup; default: the newest of an applied update from another version
    pub id: Option<String>,
    /// Put the data of the users back, too
    #[arg(long, conflicts_with = "code_only")]
    pub data: bool,
    /// Insist on code alone, even where a database has another schema
    #[arg(long)]
    pub code_only: bool,
    /// Put only this file or folder back (repeatable)
    #[arg(long, value_name = "PATH")]
    pub only: Vec<String>,
    /// Take a folder of the old Python updater, which has no record
    #[arg(long)]
    pub legacy: bool,
    /// Ask nobody
    #[arg(short, long)]
    pub yes: bool,
    #[command(flatten)]
    pub run: Run,
}

#[derive(Debug, Clone, Args)]
pub struct Recover {
    /// Say nothing when nothing was interrupted
    #[arg(long)]
    pub if_needed: bool,
    /// Mend files and start nothing
    #[arg(long)]
    pub boot: bool,
    /// Decide what recover may not decide alone
    #[arg(long, value_name = "WHICH")]
    pub data: Option<Data>,
    #[command(flatten)]
    pub run: Run,
}

#[derive(Debug, Clone, Args)]
pub struct Adopt {
    /// The bundle of the installed version: a path
    pub bundle: PathBuf,
    /// Wait for the lock (500ms, 15s, 2m) instead of exit 5
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub wait: Option<Duration>,
}

#[derive(Debug, Clone, Args)]
pub struct Shim {
    /// Take it away again
    #[arg(long)]
    pub remove: bool,
}

#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("part").args(["boot_recovery", "systemd_helper"]))]
pub struct Init {
    /// Replace settings that are there
    #[arg(long, conflicts_with_all = ["boot_recovery", "systemd_helper"])]
    pub force: bool,
    /// Install what mends an interrupted update at boot, before the server starts (as root)
    #[arg(long)]
    pub boot_recovery: bool,
    /// Install what runs updates outside the server's unit for a user who may not leave it (as root)
    #[arg(long, conflicts_with = "boot_recovery")]
    pub systemd_helper: bool,
    /// Take it away again
    #[arg(long, requires = "part")]
    pub remove: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Data {
    Keep,
    Backup,
}

#[derive(Debug, Clone, Args)]
pub struct Helper {
    /// The one unit that it may stop and start
    pub unit: String,
}

#[derive(Debug, Clone, Args)]
pub struct Launch {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub rest: Vec<OsString>,
}

/// The call of the legacy server, with only the program changed.
#[derive(Debug, Parser)]
#[command(name = "updater", version, about = "Updates as the legacy updater did")]
struct Legacy {
    #[command(flatten)]
    global: Global,
    /// The bundle
    #[arg(long, value_name = "URL")]
    zip_url: OsString,
    /// The port, where nothing else tells it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// The new version serves with waitress
    #[arg(long)]
    use_waitress: bool,
}

impl From<Legacy> for Cli {
    fn from(call: Legacy) -> Cli {
        let waitress = ("USE_WAITRESS".to_string(), "True".to_string());
        let apply = Apply {
            bundle: Some(call.zip_url),
            set: call.use_waitress.then_some(waitress).into_iter().collect(),
            legacy_port: call.port,
            ..Apply::default()
        };
        Cli { global: call.global, command: Command::Apply(apply) }
    }
}

/// Why there is no command to run.
#[derive(Debug)]
pub enum Ended {
    /// Help or version: to stdout, exit 0.
    Text(String),
    /// A usage error, exit 2, and how it is to be reported.
    Usage { failure: Failure, json: bool, events: bool },
}

/// Reads the command line; the first argument is the program's name.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, Ended> {
    let args: Vec<OsString> = args.into_iter().collect();
    let is_legacy = args.iter().any(|arg| arg.to_str().is_some_and(|arg| arg.split('=').next() == Some("--zip-url")));
    let parsed = if is_legacy { Legacy::try_parse_from(&args).map(Cli::from) } else { Cli::try_parse_from(&args) };
    let error = match parsed {
        Ok(cli) => return Ok(cli),
        Err(error) => error,
    };
    let text = ascii(&error.render().to_string());
    if !error.use_stderr() {
        return Err(Ended::Text(text));
    }
    let message = masked(text.trim().strip_prefix("error: ").unwrap_or(text.trim()));
    let before_dashes = || args.iter().skip(1).take_while(|arg| *arg != "--");
    let has = |word: &str| before_dashes().any(|arg| arg == word);
    let command = before_dashes().filter_map(|arg| arg.to_str()).find(|arg| {
        ["apply", "plan", "status", "verify", "backups", "restore", "recover", "init", "doctor", "shim"].contains(arg)
    });
    let events = match command {
        _ if is_legacy => true,
        Some("apply") => !has("--dry-run"),
        Some("verify") => has("--repair"),
        Some("recover" | "restore") => true,
        _ => false,
    };
    let failure = Failure::usage(Code::Usage, message).remedy("updater --help lists commands and options");
    Err(Ended::Usage { failure, json: has("--json"), events })
}

/// The one object of a usage error: `{"error": ..}` (the reporter puts `schema` before it).
pub fn error_object(error: &ErrorRecord) -> serde_json::Value {
    serde_json::json!({ "error": error })
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if is_name(name) && !value.contains(['\n', '\r', '\0']) => {
            Ok((name.to_string(), value.to_string()))
        }
        _ => Err("write it as NAME=VALUE, on one line".to_string()),
    }
}

fn is_name(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && name.starts_with(|c: char| !c.is_ascii_digit())
}

fn sha256(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.chars().all(|c| c.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("a SHA-256 has 64 hexadecimal digits".to_string())
    }
}

#[cfg(test)]
mod tests;
