//! What a child of root's half leaves to root: the suspended start of a program with all the groups of its user, and
//! requests about units of the system. `Monitored` wraps whatever does so by itself, and asks root first.
//! Refuses to decide what root may do: root's half checks every request (`root`).

use super::{Answer, Ask, Verb, ask};
use crate::system::service::{Job, ServiceManager, ServiceRequest};
use crate::system::starts::Exit;
use crate::system::starts::{Running, StartedProcess, Starter, SuspendedServer, SuspendedStart};
use crate::system::{LaunchSpec, ProcessId, Unit};
use std::io;

/// Asks root's half, where there is one, and does by itself what nobody watches over.
#[derive(Debug)]
pub struct Monitored<S>(pub S);

fn no_answer() -> io::Error {
    io::Error::other("root's half gave no answer")
}

impl<S: ServiceManager> Monitored<S> {
    /// A unit of a user's own service manager obeys that user, so root is not asked about it.
    fn begin(&self, unit: &Unit, verb: Verb) -> io::Result<Job> {
        if unit.user.is_none()
            && let Some(Answer::Job(number)) = ask(&Ask::Begin(unit.name.clone(), verb))?
        {
            return Ok(Box::new(RootsJob(number)));
        }
        match verb {
            Verb::Stop => self.0.stop(unit),
            Verb::Start => self.0.start(unit),
            Verb::Kill => self.0.kill(unit),
        }
    }
}

impl<S: ServiceManager> ServiceManager for Monitored<S> {
    fn unit_of(&self, pid: u32) -> io::Result<Option<Unit>> {
        self.0.unit_of(pid)
    }

    fn named(&self, name: &str) -> Unit {
        self.0.named(name)
    }

    fn members_of(&self, pid: u32) -> io::Result<Vec<u32>> {
        self.0.members_of(pid)
    }

    fn obstacle(&self, unit: &Unit) -> io::Result<Option<String>> {
        self.0.obstacle(unit)
    }

    fn denial(&self, unit: &Unit) -> io::Result<Option<String>> {
        if unit.user.is_none()
            && let Some(Answer::Refusal(why)) = ask(&Ask::Refusal(unit.name.clone()))?
        {
            return Ok(why);
        }
        self.0.denial(unit)
    }

    fn runs_as(&self, unit: &Unit, uid: u32) -> io::Result<Result<(), String>> {
        self.0.runs_as(unit, uid)
    }

    fn stop(&self, unit: &Unit) -> io::Result<Job> {
        self.begin(unit, Verb::Stop)
    }

    fn kill(&self, unit: &Unit) -> io::Result<Job> {
        self.begin(unit, Verb::Kill)
    }

    fn start(&self, unit: &Unit) -> io::Result<Job> {
        self.begin(unit, Verb::Start)
    }

    fn main_process(&self, unit: &Unit) -> io::Result<Option<ProcessId>> {
        self.0.main_process(unit)
    }

    fn has_failed(&self, unit: &Unit) -> io::Result<bool> {
        self.0.has_failed(unit)
    }

    fn recent_output(&self, unit: &Unit, since: i64, count: usize) -> io::Result<Vec<String>> {
        if unit.user.is_none()
            && let Some(Answer::Said(lines)) = ask(&Ask::Said(unit.name.clone(), since, count))?
        {
            return Ok(lines);
        }
        self.0.recent_output(unit, since, count)
    }

    fn is_shutting_down(&self) -> bool {
        // At the end of the system the service manager answers root alone.
        match ask(&Ask::IsShuttingDown) {
            Ok(Some(Answer::IsShuttingDown(is))) => is,
            _ => self.0.is_shutting_down(),
        }
    }
}

/// A request that root made, under this number.
#[derive(Debug)]
struct RootsJob(u32);

impl ServiceRequest for RootsJob {
    fn ended(&mut self) -> io::Result<Option<Result<String, String>>> {
        match ask(&Ask::Ended(self.0))? {
            Some(Answer::Ended(ended)) => Ok(ended),
            _ => Err(no_answer()),
        }
    }
}

impl<S: Starter> Starter for Monitored<S> {
    fn start_suspended(&self, spec: &LaunchSpec) -> io::Result<SuspendedServer> {
        match ask(&Ask::Hold(Box::new(spec.clone()))) {
            Ok(Some(Answer::Held(number, id))) => Ok(Box::new(RootsStart { id, number, is_released: false })),
            // A server that lacks a group is better than none.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.0.start_suspended(&LaunchSpec { credentials: None, ..spec.clone() })
            }
            Err(error) => Err(error),
            Ok(_) => self.0.start_suspended(spec),
        }
    }
}

/// A suspended start that root holds, under this number.
#[derive(Debug)]
struct RootsStart {
    id: ProcessId,
    number: u32,
    is_released: bool,
}

impl SuspendedStart for RootsStart {
    fn id(&self) -> ProcessId {
        self.id
    }

    fn release(mut self: Box<Self>) -> io::Result<Running> {
        // Root gives it up by itself where the release fails.
        self.is_released = true;
        ask(&Ask::Release(self.number))?;
        Ok(Box::new(RootsChild { id: self.id, number: self.number }))
    }
}

impl Drop for RootsStart {
    fn drop(&mut self) {
        if !self.is_released {
            // Nothing to report to from here; root gives it up at our end in any case.
            let _ = ask(&Ask::Drop(self.number));
        }
    }
}

/// A program whose parent is root's half, under this number.
#[derive(Debug)]
struct RootsChild {
    id: ProcessId,
    number: u32,
}

impl StartedProcess for RootsChild {
    fn id(&self) -> ProcessId {
        self.id
    }

    fn exited(&mut self) -> io::Result<Option<Exit>> {
        match ask(&Ask::Exited(self.number))? {
            Some(Answer::Exited(how)) => Ok(how),
            _ => Err(no_answer()),
        }
    }
}
