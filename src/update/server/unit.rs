//! A server that belongs to a unit of the service manager: stopped and started through it, so that nothing
//! respawns it in the middle.
//! Refuses to wait without a bound, and to stop a unit that runs more than this install.

use super::Running;
use super::table::{Table, belongs};
use crate::base::error::{Code, Failure};
use crate::state::root::InstallRoot;
use crate::system::service::{self, Job};
use crate::system::starts::Exit;
use crate::system::{ProcessId, Unit, processes, remedies, starts};
use anyhow::Context;
use std::time::{Duration, Instant};

/// The longest wait between two looks at a request.
const POLL: Duration = Duration::from_millis(10);

/// How long a unit may take to end once it was killed.
const KILLED: Duration = Duration::from_secs(10);

/// How long a started unit may take to tell its main process.
const MAIN: Duration = Duration::from_secs(1);

/// A server that was started: by us, or by its unit.
#[derive(Debug)]
pub enum Launched {
    Child(starts::Running),
    Managed { unit: Unit, id: ProcessId },
}

impl Launched {
    /// Who it is.
    pub fn id(&self) -> ProcessId {
        match self {
            Launched::Child(child) => child.id(),
            Launched::Managed { id, .. } => *id,
        }
    }

    /// How it ended; None while it runs.
    pub fn exited(&mut self) -> std::io::Result<Option<Exit>> {
        match self {
            Launched::Child(child) => child.exited(),
            Launched::Managed { id, .. } => {
                let lives = processes::identity(id.pid)? == Some(*id);
                Ok((!lives).then_some(Exit::Unknown))
            }
        }
    }
}

/// Refuses before anything is changed when the server belongs to a unit that we may not stop and start, or
/// that runs something else, too. A server of no unit is fine.
pub fn may_control(running: &Running, root: &InstallRoot) -> anyhow::Result<()> {
    let Some(unit) = &running.managed_by else { return Ok(()) };
    if let Some(why) = service::manager().refusal(unit).with_context(|| format!("asking for the service {unit}"))? {
        let message = format!("the server belongs to the service {unit}, which we may not stop and start: {why}");
        return Err(Failure::failed(Code::Managed, message)
            .remedy(format!(
                "run the updater as root, or stop the service, update, and start it: {}",
                remedies::stop_service(unit)
            ))
            .into());
    }
    let Some(top) = running.processes.first().map(|p| p.id.pid) else { return Ok(()) };
    let table = Table::read(&running.listeners)?;
    let above = table.ancestors(top);
    let members = service::manager().members_of(top).with_context(|| format!("reading the processes of {unit}"))?;
    let ours = |pid: &u32| table.descends(*pid, top) || above.contains(pid) || belongs(&table, *pid, root);
    match members.iter().find(|pid| table.holds(**pid) && !ours(pid)) {
        None => Ok(()),
        Some(other) => {
            let message = format!("the service {unit} runs more than this server: {}", table.describe(*other));
            Err(Failure::failed(Code::UnitShared, message)
                .remedy("stop the server by what started it, update, and start it again")
                .into())
        }
    }
}

/// Stops the unit: politely, and after `timeout` by a kill. Ok when it has stopped already.
/// Errors: what `tick` says, what the service manager says, a unit that does not end.
pub fn stop_unit(unit: &Unit, timeout: Duration, tick: &mut dyn FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let failed =
        |said: &str| Failure::failed(Code::StopFailed, format!("the service {unit} cannot be stopped: {said}"));
    let mut job = service::manager().stop(unit).map_err(|e| failed(&e.to_string()))?;
    let begun = Instant::now();
    let mut kill: Option<Job> = None;
    loop {
        tick()?;
        match job.ended().map_err(|e| failed(&e.to_string()))? {
            Some(Ok(_)) => return Ok(()),
            Some(Err(said)) => return Err(failed(&said).into()),
            None => {}
        }
        if begun.elapsed() >= timeout && kill.is_none() {
            kill = Some(service::manager().kill(unit).map_err(|e| failed(&e.to_string()))?);
        }
        if begun.elapsed() >= timeout + KILLED {
            return Err(failed("it does not end, not even when killed").into());
        }
        std::thread::sleep(POLL);
    }
}

/// Starts the unit; Ok when it runs already. None: it runs, and has no main process that could be watched.
/// Errors (`cannot-start`, `health-exited`): it does not start within `timeout`, or ends at once; what `tick` says.
pub fn start_unit(
    unit: &Unit,
    timeout: Duration,
    tick: &mut dyn FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Option<Launched>> {
    let failed = |said: &str| {
        Failure::failed(Code::CannotStart, format!("the service {unit} cannot be started: {said}"))
            .remedy(format!("see what the service manager says: {}", remedies::ask_about(Some(unit))))
    };
    let mut job = service::manager().start(unit).map_err(|e| failed(&e.to_string()))?;
    let begun = Instant::now();
    loop {
        tick()?;
        match job.ended().map_err(|e| failed(&e.to_string()))? {
            Some(Ok(_)) => break,
            Some(Err(said)) => return Err(failed(&said).into()),
            None if begun.elapsed() >= timeout => {
                return Err(failed(&format!("it is not up after {} s", timeout.as_secs())).into());
            }
            None => std::thread::sleep(POLL),
        }
    }
    let begun = Instant::now();
    loop {
        let main = service::manager().main_process(unit).map_err(|e| failed(&e.to_string()))?;
        if let Some(id) = main {
            return Ok(Some(Launched::Managed { unit: unit.clone(), id }));
        }
        if service::manager().has_failed(unit).map_err(|e| failed(&e.to_string()))? {
            let message = format!("the new server ended at once, and its service {unit} has given up");
            return Err(Failure::failed(Code::HealthExited, message).into());
        }
        if begun.elapsed() >= MAIN {
            return Ok(None);
        }
        tick()?;
        std::thread::sleep(POLL);
    }
}
