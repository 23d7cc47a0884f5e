//! The contract of service managers: a unit is stopped and started as a whole, in place of its processes.
//! Refuses to wait by itself: a request is a `Job` that the pipeline looks at as long as it likes.
//! Another service manager is one file below `linux/` or `windows/` that implements `ServiceManager`, and one line in
//! that folder's `service_manager`.

use super::{ProcessId, Unit, platform};
use std::fmt::Debug;
use std::io;

/// A program that keeps servers running as units. Every method answers within a bound of its own.
pub trait ServiceManager {
    /// The unit that would be stopped to stop this process. None: it belongs to none.
    fn unit_of(&self, pid: u32) -> io::Result<Option<Unit>>;

    /// The unit that an operator calls so.
    fn named(&self, name: &str) -> Unit;

    /// Every process of the unit that this process belongs to.
    fn members_of(&self, pid: u32) -> io::Result<Vec<u32>>;

    /// Why nobody may stop and start this unit by hand now, in words. None: whoever has the right may.
    fn obstacle(&self, unit: &Unit) -> io::Result<Option<String>>;

    /// Why the service manager does not let this process control the unit, in words. Changes nothing.
    fn denial(&self, unit: &Unit) -> io::Result<Option<String>>;

    /// Why this process may not stop and start this unit, in words. None: it may. Changes nothing.
    fn refusal(&self, unit: &Unit) -> io::Result<Option<String>> {
        match self.obstacle(unit)? {
            None => self.denial(unit),
            obstacle => Ok(obstacle),
        }
    }

    /// Whether the unit's programs run as this user, as the service manager says it. The inner error: as whom they run.
    fn runs_as(&self, unit: &Unit, uid: u32) -> io::Result<Result<(), String>>;

    /// Begins to stop the unit. The job ends when the unit has stopped.
    fn stop(&self, unit: &Unit) -> io::Result<Job>;

    /// Kills all processes of the unit (a stop under way then ends).
    fn kill(&self, unit: &Unit) -> io::Result<Job>;

    /// Begins to start the unit, however many failed starts were counted. The job ends when the unit has started.
    fn start(&self, unit: &Unit) -> io::Result<Job>;

    /// The main process of the unit. None: it has none now.
    fn main_process(&self, unit: &Unit) -> io::Result<Option<ProcessId>>;

    /// True when the unit has ended and the service manager will not start it again by itself.
    fn has_failed(&self, unit: &Unit) -> io::Result<bool>;

    /// The last `count` lines that the unit's programs and the service manager wrote to its journal since then
    /// (nanoseconds since 1970). Empty: nothing, there is no journal, or this process may not read it.
    fn recent_output(&self, unit: &Unit, since: i64, count: usize) -> io::Result<Vec<String>>;

    /// True while the whole system goes down: nothing may be started then.
    fn is_shutting_down(&self) -> bool;
}

/// A request to the service manager under way.
pub trait ServiceRequest: Debug {
    /// None while it is under way; then what the service manager wrote, as the error when the request failed.
    fn ended(&mut self) -> io::Result<Option<Result<String, String>>>;
}

/// Dropped, it is not looked at any more; what the service manager was asked for goes on.
pub type Job = Box<dyn ServiceRequest>;

/// The service manager of this system. In a child of root's half (`monitor`), root makes the requests to the system's.
pub fn manager() -> &'static dyn ServiceManager {
    platform::service_manager()
}
