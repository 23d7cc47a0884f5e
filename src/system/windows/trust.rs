//! What the administrator may believe and follow. Windows has no root that acts for other users of an install: the
//! access lists of its folders are theirs, and nothing is done with more rights than those of who started us.
//! Refuses to judge: here nobody else has a say.

use crate::system::Distrust;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

/// Nobody that would have to be named.
pub fn distrust(_path: &Path) -> io::Result<Option<Distrust>> {
    Ok(None)
}

/// Nothing is guarded here.
pub fn guard(_root: &Path, _closed: &Path, _is_own: fn(&OsStr) -> bool) -> io::Result<()> {
    Ok(())
}

/// Nothing is guarded here.
pub fn is_guarded() -> bool {
    false
}

/// Nobody that would have to be named.
pub fn of_one(_path: &Path) -> io::Result<Option<Distrust>> {
    Ok(None)
}

/// A path to an entry, as it is.
#[derive(Debug)]
pub struct Anchored(PathBuf);

impl std::ops::Deref for Anchored {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.0
    }
}

/// The way to `path`, which is the path.
pub fn anchored(path: &Path) -> io::Result<Anchored> {
    Ok(Anchored(path.to_path_buf()))
}
