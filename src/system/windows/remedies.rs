//! What an operator types on Windows, as parts of the remedies of errors.
//! Refuses to type anything: this is text for people.

use crate::system::Unit;

/// Stops this service.
pub fn stop_service(unit: &Unit) -> String {
    format!("sc stop {unit}")
}

/// Asks the service manager about this service, or about all.
pub fn ask_about(unit: Option<&Unit>) -> String {
    unit.map_or_else(|| "sc query".to_string(), |unit| format!("sc query {unit}"))
}

/// Networks are not told apart by process here.
pub fn enter_network(_pid: u32) -> String {
    "updater ...".to_string()
}

/// Puts a user into a group.
pub fn join_group() -> &'static str {
    "net localgroup GROUP USER /add"
}

/// Runs this command with all rights.
pub fn as_root(command: &str) -> String {
    format!("{command}, in a console of an administrator")
}

/// For a user to whom the processes of others are not shown.
pub const SEE_PROCESSES: &str = "run the updater as an administrator";

/// For an updater that would end with the server and cannot leave it.
pub const LEAVE_THE_SERVER: &str =
    "start the updater from outside the server: from a console of your own, or a scheduled task";
