//! One command of the command line each. `verify.rs` and `restore.rs` lie at the top of the sources.

pub mod adopt;
pub mod inspect;
pub mod follow;
pub mod init;
pub mod shim;
pub mod doctor;
