//! What an operator types on Linux, as parts of the remedies of errors.
//! Refuses to type anything: this is text for people.

use crate::system::Unit;

/// Stops this unit.
pub fn stop_service(unit: &Unit) -> String {
    format!("systemctl stop {unit}")
}

/// Asks the service manager about this unit, or about all.
pub fn ask_about(unit: Option<&Unit>) -> String {
    unit.map_or_else(|| "systemctl status".to_string(), |unit| format!("systemctl status {unit}"))
}

/// Runs the updater in the network of this process.
pub fn enter_network(pid: u32) -> String {
    format!("nsenter --target {pid} --net updater ...")
}

/// Puts a user into a group.
pub fn join_group() -> &'static str {
    "usermod -aG"
}

/// Runs this command as root.
pub fn as_root(command: &str) -> String {
    format!("sudo {command}")
}

/// For a user to whom the processes of others are not shown.
pub const SEE_PROCESSES: &str = "run the updater as root, or let this user see all processes: make him a member of the \
                                 group that the mount names (gid=), or type as root: mount -o remount,hidepid=0 /proc";

/// For an updater that would end with the server and cannot leave it.
pub const LEAVE_THE_SERVER: &str = "let root install the helper once: updater init --systemd-helper; or start the updater \
                                    from outside the server: from a shell of your state, or a scheduled task";
