//! The contract of `os` on this system. Refuses policy.
mod accounts;
pub mod boot;
pub mod escape;
pub mod files;
pub mod monitor;
pub mod processes;
pub mod remedies;
mod systemd;
pub mod trust;

/// systemd, and root's half before it. Another service manager of Linux would be chosen here.
pub(super) fn service_manager() -> &'static dyn super::service::ServiceManager {
    &monitor::Monitored(systemd::Systemd)
}

/// Starts by this process, and root's half before it.
pub(super) fn starter() -> &'static dyn super::starts::Starter {
    &monitor::Monitored(processes::OwnChildren)
}

/// Our own executable in another role. It is this very file, also where its name means another one by now.
fn ourselves(role: &crate::roles::Role) -> std::process::Command {
    let mut command = std::process::Command::new("/proc/self/exe");
    command.args(role.words());
    command
}
