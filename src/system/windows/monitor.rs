//! Whose install it is makes no difference on Windows: what is made in a folder inherits its rights.
//! Refuses to become somebody else.

use crate::roles::{Given, Role};
use crate::system::Owner;
use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io;

/// Never on this system.
pub fn is_monitored() -> bool {
    false
}

/// Never on this system.
pub fn handed_bundle() -> Option<File> {
    None
}

/// Nothing is to be taken on this system.
pub fn take(_given: Given) -> Vec<i32> {
    Vec::new()
}

/// Always an error on this system.
pub fn descend(_who: &str, _given: Given, _then: Box<Role>) -> io::Result<Infallible> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

/// Always an error on this system.
pub fn run(
    _args: &[OsString],
    _user: Owner,
    _bound: Option<&str>,
    _bundle: Option<File>,
    _kept: &[i32],
) -> io::Result<Option<u8>> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}
