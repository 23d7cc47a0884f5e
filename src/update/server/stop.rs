//! The end of a server: asked politely, then killed, by the handles held since detection.
//! Refuses to signal a process that is not held, and to return before its ports are free.

use super::Running;
use super::table::Table;
use super::unit::stop_unit;
use crate::base::error::{Code, Failure};
use crate::ports::{self, Listener};
use crate::system::ProcessId;
use crate::system::processes::{self, Handle};
use anyhow::Context;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long the ports may stay taken after the last process has ended.
const PORTS_FREE: Duration = Duration::from_secs(10);

/// The longest single wait; between two of them the caller is asked.
const POLL: Duration = Duration::from_millis(10);

/// How often children started meanwhile are looked for (a scan of all processes costs milliseconds).
const RESCAN: Duration = Duration::from_millis(100);

/// Refuses before anything is changed when the server cannot be signalled by us, or when somebody who is not of the
/// install would keep one of its ports after it.
pub fn may_stop(running: &Running) -> anyhow::Result<()> {
    if let Some((port, pid)) = shared(running) {
        let table = Table::read(&running.listeners)?;
        let message = format!("port {port} is also held by {}, which is not of this install", table.describe(pid));
        return Err(Failure::failed(Code::PortShared, message)
            .remedy("end that process: it would keep the port when the server has ended")
            .into());
    }
    // The service manager ends it, and was asked (`may_control`).
    if running.managed_by.is_some() {
        return Ok(());
    }
    for (process, handle) in running.processes.iter().zip(&running.handles) {
        let pid = process.id.pid;
        if !handle.may_signal().with_context(|| format!("asking whether process {pid} can be ended"))? {
            let message = format!("the server (pid {pid}, user {}) may not be ended by us", process.user);
            return Err(Failure::failed(Code::CannotSignal, message)
                .remedy(format!("run as user {} or as the administrator", process.user))
                .into());
        }
    }
    Ok(())
}

/// A port of the server and who holds it, too, without being of it.
fn shared(running: &Running) -> Option<(u16, u32)> {
    let is_of_it = |pid: &u32| running.processes.iter().any(|process| process.id.pid == *pid);
    let strangers = running.listeners.iter().filter_map(|l| Some((l.port, *l.pids.iter().find(|pid| !is_of_it(pid))?)));
    strangers.into_iter().next()
}

/// Ends the whole tree: asks politely, waits `timeout` (calling `tick` at least every 10 ms), then kills;
/// afterwards waits until its ports are free. A unit is stopped as one, and its leftovers likewise. Children started meanwhile are ended too.
/// Errors: what `tick` says, a process that cannot be ended, a port that stays taken (its holder is named).
pub fn stop(running: &Running, timeout: Duration, tick: &mut dyn FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    if let Some(unit) = &running.managed_by {
        stop_unit(unit, timeout, tick)?;
    }
    let started = Instant::now();
    let mut late = Latecomers::default();
    // What was started since detection is held while its parents still show whose it is.
    late.scan(running, false)?;
    for handle in &running.handles {
        end(handle, false)?;
    }
    let mut scanned = Instant::now();
    let mut killed: BTreeSet<u32> = BTreeSet::new();
    loop {
        tick()?;
        let force = started.elapsed() >= timeout;
        let alive = first_alive(running, &late)?;
        if scanned.elapsed() >= RESCAN || alive.is_none() {
            late.scan(running, force)?;
            scanned = Instant::now();
        }
        let Some(alive) = first_alive(running, &late)? else { break };
        if force {
            for handle in running.handles.iter().chain(&late.handles) {
                if handle.is_alive()? && killed.insert(handle.id().pid) {
                    end(handle, true)?;
                }
            }
            if started.elapsed() >= timeout + PORTS_FREE {
                let message = format!("process {} does not end, not even when killed", alive.id().pid);
                return Err(Failure::failed(Code::StopFailed, message).into());
            }
        }
        alive.wait(POLL).with_context(|| format!("waiting for process {}", alive.id().pid))?;
    }
    wait_for_ports(&running.listeners, tick)
}

/// What appeared in the tree after it was found.
#[derive(Default)]
struct Latecomers {
    handles: Vec<Handle>,
}

impl Latecomers {
    /// Looks for children of the tree that are not held yet, holds them and asks them to end.
    fn scan(&mut self, running: &Running, force: bool) -> anyhow::Result<()> {
        let table = Table::read(&running.listeners)?;
        let known: Vec<ProcessId> = running.ids().into_iter().chain(self.handles.iter().map(Handle::id)).collect();
        for member in &known {
            // A pid whose process has ended may belong to a stranger by now.
            if processes::identity(member.pid)? != Some(*member) {
                continue;
            }
            for pid in table.below(member.pid) {
                let id = processes::identity(pid)?.filter(|id| !known.contains(id));
                let is_held = id.is_some_and(|id| self.handles.iter().any(|handle| handle.id() == id));
                if let Some(id) = id.filter(|_| !is_held)
                    && let Some(handle) = Handle::open(id)?
                {
                    end(&handle, force)?;
                    self.handles.push(handle);
                }
            }
        }
        Ok(())
    }
}

fn end(handle: &Handle, force: bool) -> anyhow::Result<()> {
    let asked = if force { handle.kill() } else { handle.ask_to_end() };
    asked.with_context(|| format!("ending process {}", handle.id().pid))
}

fn first_alive<'a>(running: &'a Running, late: &'a Latecomers) -> anyhow::Result<Option<&'a Handle>> {
    for handle in running.handles.iter().chain(&late.handles) {
        if handle.is_alive().with_context(|| format!("asking for process {}", handle.id().pid))? {
            return Ok(Some(handle));
        }
    }
    Ok(None)
}

fn wait_for_ports(were: &[Listener], tick: &mut dyn FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let until = Instant::now() + PORTS_FREE;
    // Another address is another's affair, whatever its port.
    let is_same = |l: &Listener| were.iter().any(|was| (was.address, was.port) == (l.address, l.port));
    loop {
        let held: Vec<Listener> = ports::listeners()?.into_iter().filter(is_same).collect();
        let Some(first) = held.first() else { return Ok(()) };
        if Instant::now() >= until {
            let table = Table::read(&held)?;
            let owner = match first.pids.first() {
                Some(pid) => table.describe(*pid),
                None => "a process that we may not see".to_string(),
            };
            let message = format!("port {} stays taken after the stop: it is held by {owner}", first.port);
            return Err(Failure::failed(Code::PortHeld, message)
                .remedy("end that process; if something restarts the server, stop it there")
                .into());
        }
        tick()?;
        std::thread::sleep(POLL);
    }
}
