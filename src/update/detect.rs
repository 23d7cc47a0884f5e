//! Detect: the server, how it answers, how it starts. Reading only.
//! Refuses what cannot end well: a stranger on the port, several servers.

use crate::base::error::{Code, Failure};
use crate::base::net::Protocol;
use crate::base::path::RelPath;
use crate::state::baseline::HealthBaseline;
use crate::state::receipt::{self, Receipt};
use crate::state::root::InstallRoot;
use crate::system::{self, LaunchSpec, Unit, trust};
use crate::update::authority;
use crate::update::health;
use crate::update::install::Install;
use crate::update::request::ServerOptions;
use crate::update::server::{self, Running};
use anyhow::Result;
use std::path::{Path, PathBuf};

/// What detection found, by reading alone.
pub struct Detection {
    pub server: Option<Running>,
    /// What is believed about the port of a server that does not run.
    pub port_source: Option<&'static str>,
    /// A stranger on the port that `--stop-foreign` allows to stop. It is not started again.
    pub foreign: Option<Running>,
    /// How the old version starts again; None: nothing ran, or it is left stopped.
    pub old_launch: Option<LaunchSpec>,
    /// How the new version starts: differs where `--set` changes a port. None with `--no-start` where nothing runs.
    pub new_launch: Option<LaunchSpec>,
    /// The unit that starts it in our place.
    pub service: Option<Unit>,
    pub start_file: RelPath,
    /// How it answers now: what the old version is measured by.
    pub baseline: HealthBaseline,
    /// How the new version must answer.
    pub expected: HealthBaseline,
    pub receipt: Option<Receipt>,
}

/// Finds the server, how it answers and how it starts. Reads only.
pub fn detect(install: &Install, options: &ServerOptions, set: &[(String, String)]) -> Result<Detection> {
    let root = &install.root;
    let receipt = receipt::load(install.state())?;
    let server = server::find(root)?;

    let mut foreign = None;
    let mut port_source = None;
    let target = options.health_url.as_ref().or(install.settings.server.health.as_ref());
    let target = target.map(|text| health::Target::parse(text)).transpose()?;
    let health = target.as_ref().map(|t| t.path.as_str());
    let (launch, start_file, before) = match &server {
        Some(running) => {
            let start = running_start_file(root, running);
            // `--port` says which port health asks only where the server listens on it.
            let asked = target.as_ref().and_then(|t| t.port).or(options.port).filter(|p| running.ports.contains(p));
            let before = health::measure_while(&running.listeners, asked, health)?;
            (Some(running.launch.clone()), start, before)
        }
        None => {
            if let Some(failure) = server::elsewhere(root)? {
                return Err(failure.into());
            }
            let believed = stopped_port(install, options, receipt.as_ref())?;
            port_source = believed.map(|(_, source)| source);
            let port = believed.map(|(port, _)| port);
            let launch = if options.no_start { None } else { Some(stopped_launch(install, port, receipt.as_ref())?) };
            if let (Some(port), false) = (port, options.no_start)
                && let Some(failure) = server::foreign_owner(port, root)?
            {
                if !options.stop_foreign {
                    return Err(failure.into());
                }
                foreign = server::owner_tree(port, root)?;
            }
            if let Some(launch) = &launch {
                authority::may_start(install, launch)?;
            }
            let start = launch.as_ref().map_or_else(default_start_file, |l| start_file(root, l));
            let before = HealthBaseline {
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
    let service = match &server {
        Some(running) => running.managed_by.clone(),
        None => install
            .settings
            .server
            .service
            .as_deref()
            .filter(|_| launch.is_some())
            .map(|name| system::service::manager().named(name)),
    };
    let (new_launch, expected) = with_set(launch.clone(), &before, set)?;
    Ok(Detection {
        server,
        port_source,
        foreign,
        old_launch: launch,
        new_launch,
        service,
        start_file,
        baseline: before,
        expected,
        receipt,
    })
}

/// Refuses what we may not stop and start. `by_helper`: root's half will, and checks for itself.
pub fn may_stop(detection: &Detection, root: &InstallRoot, by_helper: bool) -> Result<()> {
    for running in detection.server.iter().chain(&detection.foreign).filter(|_| !by_helper) {
        server::may_control(running, root)?;
        server::refuse_respawners(running)?;
        server::may_stop(running)?;
    }
    Ok(())
}

/// Where nothing tells how the server starts.
pub fn default_start_file() -> RelPath {
    RelPath::parse("run.py").unwrap_or_else(|_| unreachable!("a constant name"))
}

/// The program behind a wrapper script, where there is one: the wrapper may be the operator's own.
fn running_start_file(root: &InstallRoot, running: &Running) -> RelPath {
    let behind =
        running.processes.iter().filter(|p| !p.is_shell()).find_map(|p| inside(root, p.cwd.as_ref()?, &p.argv));
    behind.unwrap_or_else(|| start_file(root, &running.launch))
}

/// The script of the launch spec that lies in the install; else the executable; else the default.
pub(super) fn start_file(root: &InstallRoot, launch: &LaunchSpec) -> RelPath {
    inside(root, &launch.cwd, &launch.argv).unwrap_or_else(default_start_file)
}

fn inside(root: &InstallRoot, cwd: &Path, argv: &[String]) -> Option<RelPath> {
    let inside = |text: &String| {
        let full = fsx_canonical(&cwd.join(text))?;
        RelPath::from_disk(full.strip_prefix(root.path()).ok()?)
    };
    let scripts = argv.iter().skip(1).filter(|a| !a.starts_with('-')).find_map(inside);
    let program = || argv.first().filter(|a| a.contains(['/', '\\'])).and_then(inside);
    scripts.or_else(program)
}

pub(super) fn fsx_canonical(path: &std::path::Path) -> Option<PathBuf> {
    let full = std::fs::canonicalize(path).ok()?;
    full.is_file().then_some(full)
}

/// The order of belief when nothing listens, and which of them won: `--port`, settings, last receipt, `.env`,
/// `run.py`, and what a legacy server calls its port.
fn stopped_port(
    install: &Install,
    options: &ServerOptions,
    receipt: Option<&Receipt>,
) -> Result<Option<(u16, &'static str)>> {
    let settings = &install.settings.server;
    let [of_env, of_program] = server::written_ports(&install.root);
    let sources = [
        (options.port, "--port"),
        (settings.port, "[server] port"),
        (settings.env.get("PORT").and_then(|port| port.parse().ok()), "[server] env"),
        (receipt.and_then(|r| r.ports.first().copied()), "the last update"),
        of_env,
        of_program,
        (options.legacy_port, "the caller's --port"),
    ];
    let port = sources.into_iter().find_map(|(port, source)| Some((port?, source)));
    if port.is_none() && !options.no_start {
        return Err(Failure::failed(
            Code::NoPort,
            "no server of this install runs, and nothing says on which port it belongs",
        )
        .remedy("name the port with --port N, or update without starting with --no-start")
        .into());
    }
    Ok(port)
}

/// How a server is started that does not run: where root works, as the user as whom it ran.
fn stopped_launch(install: &Install, port: Option<u16>, receipt: Option<&Receipt>) -> Result<LaunchSpec> {
    let mut env = install.settings.server.env.clone();
    if let Some(port) = port {
        env.entry("PORT".into()).or_insert_with(|| port.to_string());
    }
    let user = receipt.and_then(|receipt| receipt.user.as_ref()).filter(|user| trust::is_guarded() && user.uid != 0);
    server::guess_launch(&install.root, install.settings.server.command.as_deref(), &env, user)
}

/// What `--set` of a port or protocol changes in what is started and expected.
pub(super) fn with_set(
    launch: Option<LaunchSpec>,
    before: &HealthBaseline,
    set: &[(String, String)],
) -> Result<(Option<LaunchSpec>, HealthBaseline)> {
    let (mut launch, mut expected) = (launch, before.clone());
    for (name, value) in set {
        match name.as_str() {
            "PORT" => {
                let port: u16 = value.parse().map_err(|_| {
                    Failure::usage(Code::BadPort, format!("--set PORT={value}: {value} is no port"))
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

/// What was found, in words.
pub fn described(detection: &Detection) -> String {
    match &detection.server {
        Some(server) => {
            let pid = server.processes.first().map_or(0, |p| p.id.pid);
            let ports: Vec<String> = server.ports.iter().map(u16::to_string).collect();
            format!("the server is process {pid} on port {}", ports.join(", "))
        }
        None => match (detection.baseline.asked_port, detection.port_source) {
            (Some(port), Some(source)) => format!("the server is not running; port {port} by {source}"),
            _ => "the server is not running".into(),
        },
    }
}
