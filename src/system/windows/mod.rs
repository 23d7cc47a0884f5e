//! The contract of `os` on this system. Refuses policy.
pub mod boot;
pub mod escape;
pub mod files;
pub mod monitor;
pub mod processes;
pub mod remedies;
pub mod service;
pub mod trust;
