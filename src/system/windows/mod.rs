//! The contract of `os` on this system. Refuses policy.
pub mod boot;
pub mod escape;
pub mod files;
pub mod monitor;
pub mod processes;
pub mod remedies;
mod services;
pub mod trust;

/// The service manager that Windows has.
pub(super) fn service_manager() -> &'static dyn super::service::ServiceManager {
    &services::WindowsServices
}

/// Starts by this process.
pub(super) fn starter() -> &'static dyn super::starts::Starter {
    &processes::OwnChildren
}
