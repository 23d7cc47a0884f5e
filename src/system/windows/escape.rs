//! What ties this process to the servers: whether ending them would end us as well.
//! Refuses to move out: on this system an updater that is tied says so and changes nothing.

use crate::system::{EscapeRoute, Handoff, Notice, ProcessId, Tie, ancestry, service};
use std::convert::Infallible;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why ending these processes would end us. None: it would not.
pub fn tied_to(servers: &[ProcessId]) -> io::Result<Option<Tie>> {
    let own = std::process::id();
    // Ending a parent alone ends no child here, but the tree is ended as one, and so is a job.
    if ancestry::is_below(own, servers)? {
        return Ok(Some(Tie::Tree));
    }
    let Some(unit) = service::manager().unit_of(own)? else { return Ok(None) };
    for server in servers {
        if service::manager().unit_of(server.pid)?.as_ref() == Some(&unit) {
            return Ok(Some(Tie::Unit(unit)));
        }
    }
    Ok(None)
}

/// Always the inner error, in words: there is no way out on this system yet.
pub fn way_out(_tie: Option<&Tie>, _helper: &str) -> io::Result<Result<EscapeRoute, String>> {
    Ok(Err("an updater cannot move out of its caller on this system".to_string()))
}

fn unsupported() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "an updater cannot move out of its caller on this system")
}

/// There is no root here.
pub fn roots_meeting_place() -> Option<PathBuf> {
    None
}

/// The process outside; there is none on this system.
#[derive(Debug)]
pub struct RemoteUpdater(Infallible);

/// Always an error on this system.
pub fn send(_way: &EscapeRoute, _errand: &Handoff) -> io::Result<RemoteUpdater> {
    Err(unsupported())
}

impl RemoteUpdater {
    pub fn pid(&self) -> u32 {
        match self.0 {}
    }
    pub fn hear(&mut self, _limit: Duration) -> io::Result<Option<Notice>> {
        match self.0 {}
    }
    pub fn interrupt(&self) -> io::Result<()> {
        match self.0 {}
    }
    pub fn ask_to_end(&self) -> io::Result<()> {
        match self.0 {}
    }
}

/// Always an error on this system.
pub fn depart(_name: &OsStr) -> io::Result<()> {
    Err(unsupported())
}

/// Always an error on this system.
pub fn arrive(_name: Option<&OsStr>, _place: &Path) -> io::Result<Infallible> {
    Err(unsupported())
}

/// The line to a first process; there is none on this system.
#[derive(Debug)]
pub struct ControlSocket(Infallible);

impl ControlSocket {
    /// Always an error on this system.
    pub fn taken(_number: i32) -> io::Result<ControlSocket> {
        Err(unsupported())
    }
    pub fn notify(&self, _notice: Notice) {
        match self.0 {}
    }
}
