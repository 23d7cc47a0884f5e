//! The line between the first process and the one outside: a socket of a folder in which both meet. Over it the
//! caller's words, folder, environment and standard handles leave; back comes what the first one must know.
//! Refuses strangers: the other end must be of our own user, or root's. Refuses to wait for ever.
//!
//! `send` starts our own executable as `Role::Depart` (a session of its own) or has a service manager start it as
//! `Role::Arrive`; that one takes everything over and turns into `Role::Outside`, which is told the line
//! and the update's id (`roles` draws it). The environment is handed over the line, not as a property of a unit, which everybody may
//! read.

use crate::roles::Role;
use crate::system::linux::{monitor, ourselves, processes};
use crate::system::{EscapeRoute, Handoff, Notice, interrupt};
use rustix::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::FdFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the process outside may take to get in touch.
const ARRIVAL: Duration = Duration::from_secs(15);

/// The longest wait between two looks.
const POLL: Duration = Duration::from_millis(5);

/// The request that the helper's path unit waits for, in the folder where both meet.
const REQUEST: &str = "helper";

/// What the names of our sockets begin with; the pid follows.
const SOCKET: &str = "escape-";

/// What goes over the line besides the handles.
#[derive(Serialize, Deserialize)]
struct Words {
    argv: Vec<Vec<u8>>,
    cwd: Vec<u8>,
    env: Vec<(Vec<u8>, Vec<u8>)>,
    update_id: String,
}

/// The process outside, as the first one knows it.
#[derive(Debug)]
pub struct RemoteUpdater {
    handle: Option<processes::Handle>,
    pid: u32,
    line: UnixStream,
    heard: Vec<u8>,
}

/// Sends this process's work out by `way`. When this returns the other one has everything it needs.
/// Errors: it could not be started, or did not get in touch.
pub fn send(way: &EscapeRoute, handoff: &Handoff) -> io::Result<RemoteUpdater> {
    forget_the_dead(handoff.place);
    let name = format!("{SOCKET}{}", std::process::id());
    let folder = File::open(handoff.place)?;
    // A socket's path may have 107 bytes: this one is short wherever the folder lies.
    let short = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
    let listener = UnixListener::bind(&short)?;
    let met = meet(way, handoff, &listener, &short, &name);
    let _ = std::fs::remove_file(&short);
    if met.is_err() && *way == EscapeRoute::Helper {
        // Nobody is left to whom a helper that comes late could be of use.
        let _ = std::fs::remove_file(handoff.place.join(REQUEST));
    }
    let (line, pid) = met?;
    hand_over(&line, handoff)?;
    let id = processes::identity(pid)?;
    let handle = id.map(processes::Handle::open).transpose()?.flatten();
    line.set_nonblocking(true)?;
    Ok(RemoteUpdater { handle, pid, line, heard: Vec::new() })
}

/// Sockets whose process was killed before it could take them away.
fn forget_the_dead(place: &Path) {
    for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(SOCKET)?.parse().ok());
        if pid.is_some_and(|pid| matches!(processes::identity(pid), Ok(None))) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn meet(
    way: &EscapeRoute,
    handoff: &Handoff,
    listener: &UnixListener,
    short: &str,
    name: &str,
) -> io::Result<(UnixStream, u32)> {
    std::fs::set_permissions(short, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    let mut starter = start(way, handoff, name)?;
    let begun = Instant::now();
    loop {
        match listener.accept() {
            Ok((line, _)) => {
                if let Some(pid) = trusted(line.as_fd(), true)? {
                    line.set_nonblocking(false)?;
                    return Ok((line, pid));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if let Some(child) = starter.as_mut()
            && let Some(status) = child.try_wait()?
            && !status.success()
        {
            let mut said = String::new();
            if let Some(mut err) = child.stderr.take() {
                err.read_to_string(&mut said)?;
            }
            let said = said.trim().replace('\n', "; ");
            return Err(io::Error::other(if said.is_empty() { format!("it ended with {status}") } else { said }));
        }
        // Whoever comes now finds the socket gone, and ends.
        interrupt::check()?;
        if begun.elapsed() >= ARRIVAL {
            let text = format!("it did not get in touch within {} s", ARRIVAL.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        std::thread::sleep(POLL);
    }
}

/// The pid of the other end. None: it is a stranger's.
fn trusted(line: BorrowedFd, or_root: bool) -> io::Result<Option<u32>> {
    let peer = rustix::net::sockopt::socket_peercred(line)?;
    let own = peer.uid == rustix::process::geteuid() || or_root && peer.uid.is_root();
    Ok(own.then(|| peer.pid.as_raw_nonzero().get().unsigned_abs()))
}

/// Has our executable started outside. The child is whatever tells when that fails.
fn start(way: &EscapeRoute, handoff: &Handoff, name: &str) -> io::Result<Option<Child>> {
    let mut command = match way {
        EscapeRoute::Session => {
            let mut command = ourselves(&Role::Depart { socket: name.into() });
            command.current_dir(handoff.place);
            command
        }
        EscapeRoute::Transient { of_user } => {
            let exe = std::env::current_exe()?;
            let mut command = Command::new("systemd-run");
            let own = rustix::process::geteuid();
            if *of_user {
                command.arg("--user").env("XDG_RUNTIME_DIR", format!("/run/user/{}", own.as_raw()));
            } else if !own.is_root() {
                command.args([
                    format!("--uid={}", own.as_raw()),
                    format!("--gid={}", rustix::process::getegid().as_raw()),
                ]);
            }
            command.args(["--quiet", "--collect", "--no-ask-password", "--service-type=exec"]);
            // A server of no unit that it starts outlives it.
            command.arg("--property=KillMode=process");
            command.arg(format!("--unit=updater-{}", handoff.update_id.to_lowercase()));
            command.arg("--working-directory").arg(handoff.place).arg("--").arg(exe);
            command.args(Role::Arrive { socket: name.into() }.words());
            command
        }
        EscapeRoute::Helper => {
            let request = handoff.place.join(REQUEST);
            let fresh = handoff.place.join(format!("{REQUEST}.{}.tmp", std::process::id()));
            std::fs::write(&fresh, name)?;
            std::fs::rename(&fresh, &request)?;
            return Ok(None);
        }
    };
    if *way != EscapeRoute::Session {
        // A Ctrl-C at the terminal is not meant for it; who leads no group may lead a session.
        command.process_group(0);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().map(Some)
}

fn hand_over(line: &UnixStream, handoff: &Handoff) -> io::Result<()> {
    let bytes = |text: &OsStr| text.as_bytes().to_vec();
    let words = Words {
        argv: handoff.argv.iter().map(|word| bytes(word)).collect(),
        cwd: bytes(handoff.cwd.as_os_str()),
        env: std::env::vars_os().map(|(name, value)| (bytes(&name), bytes(&value))).collect(),
        update_id: handoff.update_id.to_string(),
    };
    let (stdin, stdout, stderr) = (rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr());
    let null = File::open("/dev/null")?;
    let handles = match handoff.outputs {
        Some([out, err]) => [null.as_fd(), out.as_fd(), err.as_fd()],
        None => [stdin, stdout, stderr],
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&handles)) {
        return Err(io::Error::other("the standard handles cannot be handed over"));
    }
    let flags = rustix::net::SendFlags::empty();
    rustix::net::sendmsg(line, &[io::IoSlice::new(b"h")], &mut control, flags)?;
    let mut text = serde_json::to_vec(&words)?;
    text.push(b'\n');
    (&*line).write_all(&text)
}

impl RemoteUpdater {
    /// The pid of the process outside, as the system told it over the line.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it says within `limit`; None: nothing yet.
    pub fn hear(&mut self, limit: Duration) -> io::Result<Option<Notice>> {
        let begun = Instant::now();
        loop {
            match self.heard.as_slice() {
                [b'b', ..] => {
                    self.heard.remove(0);
                    return Ok(Some(Notice::Begun));
                }
                [b's', ..] => {
                    self.heard.remove(0);
                    return Ok(Some(Notice::Stopping));
                }
                [b'e', code, ..] => return Ok(Some(Notice::Ended(*code))),
                _ => {}
            }
            let mut more = [0; 16];
            match (&self.line).read(&mut more) {
                Ok(0) => return Ok(Some(Notice::Lost)),
                Ok(count) => self.heard.extend(more.iter().take(count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && begun.elapsed() >= limit => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(POLL),
                Err(_) => return Ok(Some(Notice::Lost)),
            }
        }
    }

    /// Passes an interrupt (SIGINT) on.
    pub fn interrupt(&self) -> io::Result<()> {
        self.handle.as_ref().map_or(Ok(()), processes::Handle::interrupt)
    }

    /// Passes a request to end (SIGTERM) on.
    pub fn ask_to_end(&self) -> io::Result<()> {
        self.handle.as_ref().map_or(Ok(()), processes::Handle::ask_to_end)
    }
}

/// What our executable does as `Role::Depart`: leads a session of its own, in which the next one has
/// no terminal and no parent of ours.
pub fn depart(name: &OsStr) -> io::Result<()> {
    rustix::process::setsid()?;
    let mut command = ourselves(&Role::Arrive { socket: name.to_os_string() });
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map(drop)
}

/// What our executable does as `Role::Arrive` in the folder where both meet: takes over what the
/// first one handed out, and goes on as if it had been called so. Without a name the helper's request has it.
pub fn arrive(name: Option<&OsStr>, place: &Path) -> io::Result<Infallible> {
    let name = match name {
        Some(name) => PathBuf::from(name),
        None => {
            let request = place.join(REQUEST);
            let name = std::fs::read(&request)?;
            // Whatever becomes of it: it must not start us again.
            std::fs::remove_file(&request)?;
            PathBuf::from(OsString::from_vec(name))
        }
    };
    let folder = File::open(place)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    let line = UnixStream::connect(short.join(name.file_name().unwrap_or_default()))?;
    if trusted(line.as_fd(), false)?.is_none() {
        return Err(io::Error::other("the other end belongs to another user"));
    }
    let handles = receive_handles(&line)?;
    let mut text = Vec::new();
    let mut reader = BufReader::new(line.try_clone()?);
    reader.read_until(b'\n', &mut text)?;
    let words: Words = serde_json::from_slice(&text)?;
    let [stdin, stdout, stderr] = &handles;
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(stdout)?;
    rustix::stdio::dup2_stderr(stderr)?;
    let cwd = PathBuf::from(OsString::from_vec(words.cwd));
    if std::env::set_current_dir(&cwd).is_err() {
        std::env::set_current_dir("/")?;
    }
    // The one handle that the next program gets beside the standard ones.
    rustix::io::fcntl_setfd(&line, FdFlags::empty())?;
    let text = OsString::from_vec;
    let argv = words.argv.into_iter().map(text).collect();
    let role = Role::Outside { line: line.as_raw_fd(), update_id: words.update_id, words: argv };
    let mut command = ourselves(&monitor::handed_on(role)?);
    command.arg0("updater").env_clear().envs(words.env.into_iter().map(|(name, value)| (text(name), text(value))));
    Err(command.exec())
}

fn receive_handles(line: &UnixStream) -> io::Result<[OwnedFd; 3]> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    rustix::net::recvmsg(line, &mut [io::IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut handles = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            handles.extend(rights);
        }
    }
    handles.try_into().map_err(|_| io::Error::other("the standard handles were not handed over"))
}

/// The other end of the line: the one outside tells the first one how far it is. Nobody may be there to hear it.
#[derive(Debug)]
pub struct ControlSocket(UnixStream);

impl ControlSocket {
    /// The line that `arrive` left open under this number. To be called first, once.
    pub fn taken(number: RawFd) -> io::Result<ControlSocket> {
        // SAFETY: called at the start with the number that our own `arrive` put into the command line; nothing else
        // in this process owns the handle. A number that is not open fails in the next call.
        let line = unsafe { UnixStream::from_raw_fd(number) };
        rustix::io::fcntl_setfd(&line, FdFlags::CLOEXEC)?;
        Ok(ControlSocket(line))
    }

    pub fn notify(&self, notice: Notice) {
        let _ = match notice {
            Notice::Begun => (&self.0).write_all(b"b"),
            Notice::Stopping => (&self.0).write_all(b"s"),
            Notice::Ended(code) => (&self.0).write_all(&[b'e', code]),
            Notice::Lost => Ok(()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_ends_the_wait_for_one_that_never_arrives() {
        let folder = tempfile::tempdir().unwrap();
        let handoff = Handoff { argv: &[], cwd: Path::new("/"), update_id: "1", place: folder.path(), outputs: None };
        let _signals = processes::Signals::install().unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
        // No helper is installed that would look at the request.
        let begun = Instant::now();
        let ended = interrupt::during(|| send(&EscapeRoute::Helper, &handoff)).unwrap_err();
        assert_eq!(ended.to_string(), "stopped by a signal");
        assert!(begun.elapsed() < ARRIVAL / 3, "{:?}", begun.elapsed());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left that could start one later");
    }
}
