//! The contract of suspended starts: a program is prepared up to its last step, its identity goes on record, and only
//! then does it run. Until then the end of this process ends it, so that no server runs that nobody could know of.
//! Refuses to decide when to release it.

use super::{LaunchSpec, ProcessId, platform};
use serde::{Deserialize, Serialize};
use std::fmt::{self, Debug};
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

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// Only its service manager knows.
    Unknown,
}

impl Exit {
    /// True where it says that all went well.
    pub fn is_success(self) -> bool {
        self == Exit::Code(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => write!(f, "signal {signal}"),
            Exit::Unknown => f.write_str("a code that only its service knows"),
        }
    }
}

/// A program that was started.
pub trait StartedProcess: Debug {
    fn id(&self) -> ProcessId;

    /// How it ended; None while it runs.
    fn exited(&mut self) -> io::Result<Option<Exit>>;
}

/// Dropped, it ends, and nothing was started.
pub type SuspendedServer = Box<dyn SuspendedStart>;

/// Dropped, it goes on running.
pub type Running = Box<dyn StartedProcess>;

/// Prepares a server as `Starter::start_suspended` says it. In a child of root's half (`monitor`), root prepares it.
pub fn start_suspended(spec: &LaunchSpec) -> io::Result<SuspendedServer> {
    platform::starter().start_suspended(spec)
}
