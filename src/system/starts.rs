//! The contract of suspended starts: a program is prepared up to its last step, its identity goes on record, and only
//! then does it run. Until then the end of this process ends it, so that no server runs that nobody could know of.
//! Refuses to decide when to release it.

use super::{LaunchSpec, ProcessId, platform};
use std::fmt::Debug;
use std::io;

/// Prepares programs: this process does it by itself, or root's half does.
pub trait Starter {
    /// Prepares a server up to the last step. Errors: what the preparation says, or no such program.
    fn start_suspended(&self, spec: &LaunchSpec) -> io::Result<SuspendedServer>;
}

/// A program that is ready to start and waits for its release.
pub trait SuspendedStart: Debug {
    /// Who the server will be: pid and start time stay when it is released.
    fn id(&self) -> ProcessId;

    /// Lets it become the server. Errors: the program could not be executed; nothing runs then.
    fn release(self: Box<Self>) -> io::Result<Running>;
}

/// A program that was started.
pub trait StartedProcess: Debug {
    fn id(&self) -> ProcessId;

    /// How it ended (`exit code 1`, `signal 9`); None while it runs.
    fn exited(&mut self) -> io::Result<Option<String>>;
}

/// Dropped, it ends, and nothing was started.
pub type SuspendedServer = Box<dyn SuspendedStart>;

/// Dropped, it goes on running.
pub type Running = Box<dyn StartedProcess>;

/// Prepares a server as `Starter::start_suspended` says it. In a child of root's half (`monitor`), root prepares it.
pub fn start_suspended(spec: &LaunchSpec) -> io::Result<SuspendedServer> {
    platform::starter().start_suspended(spec)
}
