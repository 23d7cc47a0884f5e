//! The command line as types, and which folder is the root.
//! Refuses to do anything: the commands act, `report` writes.

use crate::base::error::{Code, ErrorRecord, Failure};
use crate::base::fsx;
use crate::base::net::url::masked;
use crate::base::report::{self, Color, ascii};
use crate::roles;
use crate::state::root::InstallRoot;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
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

/// The root that was given, or else the nearest folder upwards from `cwd`, then from the folder of
/// `exe`, that looks like an install. Errors: usage, with the places that were searched.
pub fn find_root(cli_root: Option<&Path>, cwd: &Path, exe: &Path) -> anyhow::Result<InstallRoot> {
    let remedy = "give --root DIR, the folder that holds the server";
    if let Some(given) = cli_root {
        let named = cwd.join(given);
        let full = fs_err::canonicalize(&named)
            .map_err(|e| Failure::usage(Code::NoRoot, format!("the root cannot be used: {e}")).remedy(remedy))?;
        if !may_be_root(&full) {
            let message = format!("{} is a backup or lies in .updater, so it is not an install", full.display());
            return Err(Failure::usage(Code::NoRoot, message).at(full.display()).remedy(remedy).into());
        }
        return InstallRoot::resolve(&named);
    }
    let mut searched: Vec<PathBuf> = Vec::new();
    let exe = fs_err::canonicalize(exe).unwrap_or_else(|_| exe.to_path_buf());
    for start in [Some(cwd), exe.parent()].into_iter().flatten() {
        let start = fs_err::canonicalize(start).unwrap_or_else(|_| start.to_path_buf());
        for folder in start.ancestors() {
            if searched.iter().any(|seen| seen == folder) {
                continue;
            }
            if may_be_root(folder) && looks_like_root(folder) {
                return InstallRoot::resolve(folder);
            }
            searched.push(folder.to_path_buf());
        }
    }
    let places: Vec<String> = searched.iter().map(|place| place.display().to_string()).collect();
    let message = format!("no install found (.updater/, updater.toml or run.py); searched: {}", places.join(", "));
    Err(Failure::usage(Code::NoRoot, message).remedy(remedy).into())
}

fn looks_like_root(folder: &Path) -> bool {
    folder.join(".updater").is_dir() || folder.join("updater.toml").is_file() || folder.join("run.py").is_file()
}

fn may_be_root(folder: &Path) -> bool {
    let own = folder.components().any(|part| part.as_os_str().eq_ignore_ascii_case(".updater"));
    !own && !is_backup(folder)
}

/// True for a folder with the record of a backup. An application may have a file of that name; then its folder has
/// `.updater/`, which no backup holds, or the file is plainly another one.
fn is_backup(folder: &Path) -> bool {
    let record = folder.join("backup.json");
    if fs_err::symlink_metadata(&record).is_err() || folder.join(".updater").is_dir() {
        return false;
    }
    let object =
        fsx::read(&record, fsx::RECORD).ok().and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
    object.is_none_or(|object| object.get("update_id").is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn read(line: &str) -> Result<Cli, Ended> {
        parse(std::iter::once("updater").chain(line.split_whitespace()).map(OsString::from))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn apply_takes_its_options() {
        let cli = read("apply a.zip --json --set PORT=8081 --set A=b=c --wait 2m --port 8081 --sha256 AB --root /x");
        assert!(matches!(cli, Err(Ended::Usage { json: true, events: true, .. })));
        let cli = read("apply a.zip --json --set PORT=8081 --set A=b=c --wait 2m --port 8081 --root /x -v").unwrap();
        let Command::Apply(apply) = &cli.command else { panic!("not apply") };
        assert_eq!(apply.set, [("PORT".into(), "8081".into()), ("A".into(), "b=c".into())]);
        assert_eq!(apply.run.wait, Some(Duration::from_secs(120)));
        assert_eq!(cli.global.root.as_deref(), Some(Path::new("/x")));
        assert!(cli.command.writes_events() && cli.global.report().verbose);
    }

    #[test]
    fn the_legacy_call_is_an_update() {
        let cli = read("--zip-url http://x/a.zip --port 8080 --use-waitress --root /x").unwrap();
        let Command::Apply(apply) = &cli.command else { panic!("not apply") };
        assert_eq!(apply.bundle.as_deref(), Some("http://x/a.zip".as_ref()));
        assert_eq!((apply.run.port, apply.legacy_port), (None, Some(8080)));
        assert_eq!(apply.set, [("USE_WAITRESS".into(), "True".into())]);
        let cli = read("--zip-url=a.zip --port=1").unwrap();
        assert!(matches!(&cli.command, Command::Apply(apply) if apply.set.is_empty()));
        for line in ["--zip-url", "--zip-url x --port 0", "--zip-url x --prot 1", "--zip-url x apply"] {
            assert!(matches!(read(line), Err(Ended::Usage { events: true, .. })), "{line}");
        }
    }

    #[test]
    fn every_command_is_there() {
        for line in [
            "plan",
            "plan a.zip --dry-run",
            "status --json",
            "verify --repair --from x.zip --no-restart",
            "recover --if-needed --boot --data keep",
            "init --force",
            "init --boot-recovery --remove",
            "init --systemd-helper --remove",
            "status --follow --json",
            "shim --remove",
            "doctor --json",
            "apply x.zip --detach",
            "__launch --port x",
            "--color never status -q",
        ] {
            assert!(read(line).is_ok(), "{line}");
        }
        for line in [
            "",
            "aply",
            "apply --prot 1",
            "apply --port 0",
            "apply --wait 5",
            "verify --from x",
            "recover --data both",
            "init --remove",
            "init --force --boot-recovery",
            "init --systemd-helper --boot-recovery",
            "apply --set x",
            "apply --zzz=\u{e9}",
        ] {
            let Err(Ended::Usage { failure, .. }) = read(line) else { panic!("{line} was accepted") };
            assert!(failure.message.is_ascii(), "{line}");
        }
    }

    #[test]
    fn help_and_version_are_no_errors() {
        for line in ["--help", "-V", "apply --help", "help recover"] {
            let Err(Ended::Text(text)) = read(line) else { panic!("{line}") };
            assert!(text.is_ascii() && text.ends_with('\n') && !text.contains("__launch"));
        }
        let error = ErrorRecord { code: Code::Usage.to_string(), message: "x".into(), path: None, remedy: None };
        assert_eq!(
            report::ascii_json(&error_object(&error)),
            r#"{"error":{"code":"usage","message":"x","path":null,"remedy":null}}"#
        );
    }

    #[test]
    fn the_nearest_root_is_found_and_a_backup_never() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().canonicalize().unwrap();
        let make = |name: &str| {
            let path = top.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        };
        make("web/run.py");
        make("web/.updater/staging/x/run.py");
        make("web/backups/one/run.py");
        make("web/backups/one/backup.json");
        make("other/bin/updater");
        let exe = top.join("other/bin/updater");
        for cwd in ["web", "web/backups/one", "web/.updater/staging/x", "web/.updater"] {
            assert_eq!(find_root(None, &top.join(cwd), &exe).unwrap().path(), top.join("web"), "{cwd}");
        }
        // An application's own file of that name.
        make("web/backup.json");
        assert_eq!(find_root(None, &top.join("web"), &exe).unwrap().path(), top.join("web"));
        let own = top.join("web/.updater/updater");
        assert_eq!(find_root(None, &top.join("other"), &own).unwrap().path(), top.join("web"));
        assert_eq!(find_root(Some(Path::new("../web")), &top.join("other"), &exe).unwrap().path(), top.join("web"));
        for given in ["web/backups/one", "web/.updater", "nowhere"] {
            let error = find_root(Some(Path::new(given)), &top, &exe).unwrap_err();
            assert_eq!(crate::base::error::record(&error).code, "no-root");
        }
        let error = find_root(None, &top.join("other"), &exe).unwrap_err();
        assert!(error.to_string().contains(&format!("searched: {}, ", top.join("other").display())));
        assert_eq!(crate::base::error::class(&error) as i32, 2);
    }
}
