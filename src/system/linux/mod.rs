//! The contract of `os` on this system. Refuses policy.
mod accounts;
pub mod boot;
pub mod escape;
pub mod files;
pub mod monitor;
pub mod processes;
pub mod remedies;
pub mod service;
pub mod trust;

/// Our own executable in another role. It is this very file, also where its name means another one by now.
fn ourselves(role: &crate::roles::Role) -> std::process::Command {
    let mut command = std::process::Command::new("/proc/self/exe");
    command.args(role.words());
    command
}
