//! The system's part of recovery on Windows: not built yet.
//! Refuses everything, and says so before anything is written.

use crate::system::{BootPlan, SystemPart};
use std::io;
use std::path::PathBuf;

const NOT_BUILT: &str = "recovery at boot is not built for Windows yet";

fn unsupported() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, NOT_BUILT)
}

/// Why nothing can be installed here, in words.
pub fn refusal() -> Option<String> {
    Some(NOT_BUILT.to_string())
}

/// Nothing lies anywhere.
pub fn places(_part: SystemPart, _name: &str) -> [PathBuf; 2] {
    [PathBuf::new(), PathBuf::new()]
}

/// Errors: always, `Unsupported`.
pub fn texts(_part: SystemPart, _plan: &BootPlan) -> io::Result<[String; 2]> {
    Err(unsupported())
}

/// Errors: always, `Unsupported`.
pub fn enable(_part: SystemPart, _name: &str) -> io::Result<()> {
    Err(unsupported())
}

/// Errors: always, `Unsupported`.
pub fn disable(_part: SystemPart, _name: &str) -> io::Result<()> {
    Err(unsupported())
}

/// Errors: always, `Unsupported`.
pub fn reload() -> io::Result<()> {
    Err(unsupported())
}
