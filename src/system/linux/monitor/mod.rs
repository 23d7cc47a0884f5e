//! Root and the owner of an install: run by root for the install of another user, all reading and file work is
//! done by a child with that user's ids. Root keeps what only root can do: to start a program as that user with all
//! his groups, and to stop and start his unit.
//! Refuses to trust the child: whatever it asks for is checked by root against the system, not against anything
//! that the user wrote. (Signals need no root: the user may signal his own processes, and no others.)
//!
//! Root starts our own executable as `Role::BecomeOwner`, which takes on the user's ids and turns into
//! `Role::Monitored`; both are told the number of the socket to root and that of a bundle that root opened (`roles`
//! draws it).

mod forward;
mod root;

pub(super) use forward::Monitored;
pub use root::run;

use crate::roles::{Given, Role};
use crate::system::starts::Exit;
use crate::system::{Credentials, LaunchSpec, ProcessId, Tie, interrupt};
use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

/// How often a wait for root's half looks for signals.
const LOOK: Duration = Duration::from_millis(20);

/// What the child may ask for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// A held start; the number names it from then on.
    Hold(Box<LaunchSpec>),
    Release(u32),
    /// A held start is given up.
    Drop(u32),
    /// How a released one ended.
    Exited(u32),
    /// Why the end of these processes would end root's half.
    TiedTo(Vec<ProcessId>),
    /// Why this unit may not be controlled.
    Refusal(String),
    /// A request to the service manager; the number names it from then on.
    Begin(String, Verb),
    Ended(u32),
    /// The last lines that this unit wrote to the journal since then (nanoseconds since 1970).
    Said(String, i64, usize),
    /// Whether the system goes down: at its end the service manager answers root alone.
    IsShuttingDown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Verb {
    Stop,
    Start,
    Kill,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Held(u32, ProcessId),
    Done,
    Exited(Option<Exit>),
    TiedTo(Option<Tie>),
    Refusal(Option<String>),
    Job(u32),
    IsShuttingDown(bool),
    Said(Vec<String>),
    Ended(Option<Result<String, String>>),
    Failed(String),
}

/// The socket to root, in a process that was started by a monitor.
static MONITOR: OnceLock<Mutex<BufReader<UnixStream>>> = OnceLock::new();

/// The bundle that root opened, until somebody takes it.
static BUNDLE: Mutex<Option<File>> = Mutex::new(None);

/// True in a child that root watches over.
pub fn is_monitored() -> bool {
    MONITOR.get().is_some()
}

/// The bundle that root opened because its owner alone may read it.
pub fn handed_bundle() -> Option<File> {
    BUNDLE.lock().ok()?.as_ref()?.try_clone().ok()
}

/// Takes over what root's half left open. To be called first. Gives back the handles to keep.
pub fn take(given: Given) -> Vec<RawFd> {
    let open = |number: &RawFd| std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok();
    let mut kept = Vec::new();
    if let Some(number) = Some(given.socket).filter(open) {
        // SAFETY: called at the start with the number that our own `descend` put into the command line; it is open, and
        // nothing else in this process owns it.
        let line = unsafe { UnixStream::from_raw_fd(number) };
        if rustix::io::fcntl_setfd(&line, FdFlags::CLOEXEC).is_ok()
            && MONITOR.set(Mutex::new(BufReader::new(line))).is_ok()
        {
            kept.push(number);
        }
    }
    if let Some(number) = given.bundle.filter(open) {
        // SAFETY: as above, for the second number.
        let file = unsafe { File::from_raw_fd(number) };
        if rustix::io::fcntl_setfd(&file, FdFlags::CLOEXEC).is_ok()
            && let Ok(mut bundle) = BUNDLE.lock()
        {
            *bundle = Some(file);
            kept.push(number);
        }
    }
    kept
}

/// The role of the program which this process turns into, with the monitor handed on to it; the socket stays open then.
pub(super) fn handed_on(role: Role) -> io::Result<Role> {
    let Some(monitor) = MONITOR.get() else { return Ok(role) };
    let lost = || io::Error::other("the monitor cannot be handed on");
    let line = monitor.lock().map_err(|_| lost())?;
    rustix::io::fcntl_setfd(line.get_ref(), FdFlags::empty())?;
    let given = Given { socket: line.get_ref().as_raw_fd(), bundle: None };
    Ok(Role::Monitored { given, then: Box::new(role) })
}

/// Asks root. None: nobody watches over this process, and it acts by itself.
pub(super) fn ask(what: &Ask) -> io::Result<Option<Answer>> {
    let Some(monitor) = MONITOR.get() else { return Ok(None) };
    let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "root's half of this updater is gone");
    let mut line = monitor.lock().map_err(|_| io::Error::other("root's half of this updater cannot be asked"))?;
    let mut text = serde_json::to_vec(what)?;
    text.push(b'\n');
    line.get_mut().write_all(&text).map_err(gone)?;
    let answer = answer(&mut line)?.ok_or_else(|| gone(io::Error::from(io::ErrorKind::UnexpectedEof)))?;
    match serde_json::from_slice(&answer)? {
        Answer::Failed(why) => Err(io::Error::other(why)),
        answer => Ok(Some(answer)),
    }
}

/// The next line from root's half, which bounds how long it works on it; None: it is gone. Errors: somebody asked us to
/// end, where that is looked at; the line is closed then, because what comes next would be taken for another answer.
fn answer(line: &mut BufReader<UnixStream>) -> io::Result<Option<Vec<u8>>> {
    line.get_ref().set_read_timeout(Some(LOOK))?;
    let mut answer = Vec::new();
    loop {
        match line.read_until(b'\n', &mut answer) {
            Ok(_) => return Ok(Some(answer).filter(|answer| answer.ends_with(b"\n"))),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        }
        if let Err(e) = interrupt::check() {
            line.get_ref().shutdown(Shutdown::Both)?;
            return Err(e);
        }
    }
}

/// What our executable does as `Role::BecomeOwner`, started by root: becomes the user and goes on as
/// `Role::Monitored`, a fresh program of his.
pub fn descend(who: &str, given: Given, then: Box<Role>) -> io::Result<Infallible> {
    let who: Credentials = serde_json::from_str(who)?;
    super::processes::become_user(&who)?;
    Err(super::ourselves(&Role::Monitored { given, then }).arg0("updater").exec())
}
