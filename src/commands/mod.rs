//! One command of the command line each. `verify.rs` and `restore.rs` lie at the top of the sources.

pub mod shown;
pub mod status;
pub mod plan;
pub mod check;
pub mod repair;
pub mod backups;
pub mod finish;
pub mod adopt;
pub mod follow;
pub mod init;
pub mod shim;
pub mod doctor;
