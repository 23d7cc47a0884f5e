//! Processes on Linux: who they are, held handles, signals, credentials; in `held`, the start of a server.
//! Refuses to act on a bare pid: a signal goes through a pidfd whose identity was checked.

mod suspended;
mod network;
mod stat;

pub use network::{ports_elsewhere, stands_in, users_listening};
pub(super) use stat::not_shown;
pub use stat::{identity, list_is_readable, parent, session};
pub(super) use suspended::become_user;
pub use suspended::{OwnChildren, exec_when_released};

use self::stat::stat;
use super::accounts::user_name;
use crate::system::{CommandLine, Credentials, Owner, ProcessId};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A process held so that no later one of the same pid can be meant.
#[derive(Debug)]
pub struct Handle {
    id: ProcessId,
    fd: OwnedFd,
}

impl Handle {
    /// None: it is gone, or the pid belongs to another process by now.
    pub fn open(id: ProcessId) -> io::Result<Option<Handle>> {
        let Some(pid) = i32::try_from(id.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let fd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok((identity(id.pid)? == Some(id)).then_some(Handle { id, fd }))
    }

    /// Who is held.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// True when the system lets us signal it (also when it has ended: then there is nothing to forbid).
    pub fn may_signal(&self) -> io::Result<bool> {
        let Some(pid) = i32::try_from(self.id.pid).ok().and_then(Pid::from_raw) else { return Ok(true) };
        match rustix::process::test_kill_process(pid) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(true),
            // Asked by pid: the answer counts only while the process lives.
            Err(rustix::io::Errno::PERM) => Ok(!self.is_alive()?),
            Err(error) => Err(error.into()),
        }
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks it to end (SIGTERM). Ok when it has ended already.
    pub fn ask_to_end(&self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    /// Interrupts it (SIGINT). Ok when it has ended already.
    pub fn interrupt(&self) -> io::Result<()> {
        self.signal(Signal::INT)
    }

    /// Ends it (SIGKILL). Ok when it has ended already.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL)
    }

    /// Waits for its end, `limit` at most; true when it has ended.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let begin = Instant::now();
        loop {
            let left = limit.saturating_sub(begin.elapsed());
            let time = rustix::event::Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            match rustix::event::poll(&mut fds, Some(&time)) {
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// True while it runs.
    pub fn is_alive(&self) -> io::Result<bool> {
        Ok(!self.wait(Duration::ZERO)?)
    }
}

/// Under which identity a process runs (the effective one).
pub fn credentials(pid: u32) -> io::Result<Credentials> {
    let ids = ids(pid)?;
    Ok(Credentials { user: user_name(ids.uid).unwrap_or(ids.user), ..ids })
}

/// The same, with the number of the user in place of its name: nobody is asked for that.
fn ids(pid: u32) -> io::Result<Credentials> {
    let text = std::fs::read(format!("/proc/{pid}/status"))?;
    credentials_in(pid, &String::from_utf8_lossy(&text))
}

/// The same, from the text of `/proc/PID/status`.
fn credentials_in(pid: u32, text: &str) -> io::Result<Credentials> {
    let odd = |key: &str| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/status: no usable {key}"));
    let line = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let number = |key: &str| {
        let text = line(key).and_then(|line| line.split_ascii_whitespace().nth(1));
        text.and_then(|text| text.parse::<u32>().ok()).ok_or_else(|| odd(key))
    };
    let (uid, gid) = (number("Uid")?, number("Gid")?);
    let groups = line("Groups").ok_or_else(|| odd("Groups"))?.split_ascii_whitespace();
    let groups = groups.map(|id| id.parse().map_err(|_| odd("Groups"))).collect::<io::Result<_>>()?;
    let umask = line("Umask").and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).ok_or_else(|| odd("Umask"))?;
    Ok(Credentials { uid, gid, groups, umask, user: uid.to_string() })
}

/// The number of the user as whom we run.
pub fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Our numbers, asking nobody for the user's name.
pub(super) fn own_ids() -> io::Result<Credentials> {
    ids(std::process::id())
}

/// Under which identity we run.
pub fn own_credentials() -> io::Result<Credentials> {
    credentials(std::process::id())
}

/// The identity of a process all of whose user ids are `uid`, and which got none of its groups from a program: all its
/// group ids are the same, and the system lets its user look into it, as it does not with a process that a set-id
/// program was (proc(5), `/proc/pid`: the files belong to root then). None: another's, or gone.
pub(super) fn credentials_if_wholly(pid: u32, uid: u32) -> io::Result<Option<Credentials>> {
    // Read once: the pid may be given to another process meanwhile.
    let text = std::fs::read(format!("/proc/{pid}/status"))?;
    let text = String::from_utf8_lossy(&text);
    let ids = |key: &str| -> Vec<u32> {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.into_iter().flat_map(str::split_ascii_whitespace).filter_map(|id| id.parse().ok()).collect()
    };
    let (uids, gids) = (ids("Uid:"), ids("Gid:"));
    let is_plain = gids.len() == 4 && gids.iter().all(|gid| gids.first() == Some(gid));
    let is_his = uids.len() == 4 && uids.iter().all(|id| *id == uid);
    let may_look = std::fs::metadata(format!("/proc/{pid}/environ")).is_ok_and(|is| is.uid() == uid);
    if is_his && is_plain && may_look { credentials_in(pid, &text).map(Some) } else { Ok(None) }
}

/// True for a process of neither `owner` nor our own user, which no unit of the system started. False where that cannot
/// be told.
pub fn is_strangers(pid: u32, owner: Owner) -> bool {
    let Ok(is) = ids(pid) else { return false };
    let is_known = is.uid == owner.uid || is.uid == rustix::process::geteuid().as_raw();
    let of_the_system = || {
        crate::system::service::manager().unit_of(pid).is_ok_and(|unit| unit.is_some_and(|unit| unit.user.is_none()))
    };
    !is_known && !of_the_system()
}

/// Its command line and environment. Errors: they may not be read, or a part is no UTF-8 and could not be
/// given back as it is (`InvalidData`, naming the part).
pub fn command_of(pid: u32) -> io::Result<CommandLine> {
    let words = |what: &str| -> io::Result<Vec<String>> {
        let bytes = std::fs::read(format!("/proc/{pid}/{what}"))?;
        let whole = bytes.strip_suffix(&[0]).unwrap_or(&bytes);
        if whole.is_empty() && bytes.is_empty() {
            return Ok(Vec::new());
        }
        let text = |word: &[u8]| {
            let name = String::from_utf8_lossy(word).into_owned();
            let error = || io::Error::new(io::ErrorKind::InvalidData, format!("'{name}' is not UTF-8"));
            String::from_utf8(word.to_vec()).map_err(|_| error())
        };
        whole.split(|b| *b == 0).map(text).collect()
    };
    let pair = |word: String| word.split_once('=').map(|(name, value)| (name.to_string(), value.to_string()));
    Ok(CommandLine { argv: words("cmdline")?, env: words("environ")?.into_iter().filter_map(pair).collect() })
}

/// Every process whose environment, as it was started with it, holds this variable, and every one of the session that
/// `leader` led; those of others, which we may not look into, are left out.
pub fn marked(name: &str, value: &str, leader: Option<u32>) -> io::Result<Vec<ProcessId>> {
    let wanted = format!("{name}={value}").into_bytes();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let is_marked = || environment_of(pid).is_some_and(|all| all.split(|byte| *byte == 0).any(|one| one == wanted));
        let is_led = || match session(pid) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
            led => led.map(|led| led == leader),
        };
        if leader.is_some() && is_led()? || is_marked() {
            found.extend(identity(pid)?);
        }
    }
    Ok(found)
}

/// The variables with which it was started. None: it has ended, or is not ours to look into.
fn environment_of(pid: u32) -> Option<Vec<u8>> {
    let read = |what: &str| std::fs::read(format!("/proc/{pid}/{what}")).ok();
    // In the middle of its exec a process has neither variables nor words; kernel threads (whose parent is process 2)
    // and dead ones never have any.
    let is_between = || {
        let stat = stat(pid).ok().flatten();
        let is_program =
            stat.is_some_and(|stat| stat.parent != 2 && pid != 2 && !matches!(stat.state, 'Z' | 'X' | 'x'));
        is_program && read("cmdline").is_some_and(|words| words.is_empty())
    };
    for _ in 0..EXEC_LOOKS {
        let all = read("environ")?;
        if !all.is_empty() || !is_between() {
            return Some(all);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Some(Vec::new())
}

/// How often a process in the middle of its exec is looked at again, with a pause of a millisecond.
const EXEC_LOOKS: u32 = 100;

/// Where its standard output and error go, each where it is a regular file that still has its name.
pub fn outputs(pid: u32) -> [Option<PathBuf>; 2] {
    [1, 2].map(|number| {
        let fd = format!("/proc/{pid}/fd/{number}");
        let path = std::fs::read_link(&fd).ok()?;
        let (open, named) = (std::fs::metadata(&fd).ok()?, std::fs::symlink_metadata(&path).ok()?);
        let same = open.dev() == named.dev() && open.ino() == named.ino();
        (same && named.is_file()).then_some(path)
    })
}

/// A name of this run of the system; another after every boot.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_string())
}

static INTERRUPTS: AtomicUsize = AtomicUsize::new(0);
static TERMINATIONS: AtomicUsize = AtomicUsize::new(0);

/// The signals that came, counted and not acted on. SIGHUP does nothing any more; SIGPIPE is ignored by std.
#[derive(Debug)]
pub struct Signals(());

impl Signals {
    /// Takes the signals over, for the rest of the process.
    pub fn install() -> io::Result<Signals> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        // Not SIG_IGN, which every program that we start would inherit.
        signal_hook::flag::register(SIGHUP, Arc::new(AtomicBool::new(false)))?;
        for (signal, count) in [(SIGINT, &INTERRUPTS), (SIGTERM, &TERMINATIONS)] {
            let action = move || {
                count.fetch_add(1, Ordering::SeqCst);
            };
            // SAFETY: the action only adds to an atomic, which a signal handler may do; it cannot panic.
            unsafe { signal_hook::low_level::register(signal, action) }?;
        }
        Ok(Signals(()))
    }

    /// How many SIGINT came.
    pub fn interrupts(&self) -> usize {
        INTERRUPTS.load(Ordering::SeqCst)
    }

    /// How many SIGTERM came.
    pub fn terminations(&self) -> usize {
        TERMINATIONS.load(Ordering::SeqCst)
    }
}

/// True once a signal came that asks this process to end.
pub fn was_asked_to_end() -> bool {
    INTERRUPTS.load(Ordering::SeqCst) > 0 || TERMINATIONS.load(Ordering::SeqCst) > 0
}

/// Closes every handle that our caller left open, but the three standard ones and `kept`: an inherited listening
/// socket would keep the port. To be called first, while nothing of ours is open and no thread runs.
pub fn close_inherited(kept: &[i32]) -> io::Result<()> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        open.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    for fd in open {
        // The listing's own handle is among them, closed by now.
        if fd > 2 && !kept.contains(&fd) && std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok() {
            // SAFETY: called before anything of ours was opened, so nobody in this process owns this handle.
            unsafe { rustix::io::close(fd) };
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    fn sleeper() -> (Child, ProcessId) {
        let child = Command::new("sleep").arg("30").spawn().unwrap();
        let id = identity(child.id()).unwrap().unwrap();
        (child, id)
    }

    #[test]
    fn a_handle_means_one_process_only() {
        let (mut child, id) = sleeper();
        assert_eq!(parent(id.pid).unwrap(), Some(std::process::id()));
        assert!(Handle::open(ProcessId { start: id.start + 1, ..id }).unwrap().is_none());
        let handle = Handle::open(id).unwrap().unwrap();
        assert!(handle.is_alive().unwrap() && handle.may_signal().unwrap());
        assert!(!handle.wait(Duration::from_millis(30)).unwrap());
        handle.ask_to_end().unwrap();
        assert!(handle.wait(Duration::from_secs(10)).unwrap());
        assert_eq!(identity(id.pid).unwrap(), None, "a zombie runs nothing");
        child.wait().unwrap();
        handle.kill().unwrap();
        assert!(handle.may_signal().unwrap() && !handle.is_alive().unwrap());
        assert!(Handle::open(id).unwrap().is_none());
    }

    #[test]
    fn facts_of_ourselves() {
        let own = own_credentials().unwrap();
        assert_eq!(own.uid, rustix::process::geteuid().as_raw());
        assert!(!own.user.is_empty() && own.umask <= 0o777);
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
    }

    #[test]
    fn a_command_line_is_read_word_for_word() {
        let mut command = Command::new("sleep");
        let mut child = command.args(["30", "0"]).env_clear().env("A", "x=y z").env("E", "").spawn().unwrap();
        let read = loop {
            let read = command_of(child.id()).unwrap();
            if read.argv.first().is_some_and(|first| first == "sleep") {
                break read;
            }
        };
        assert_eq!(read.argv, ["sleep", "30", "0"]);
        assert_eq!(read.env, [("A".into(), "x=y z".into()), ("E".into(), String::new())]);
        child.kill().unwrap();
        child.wait().unwrap();
        let mut child = Command::new("sh").args(["-c", "read x", "", ""]).stdin(Stdio::piped()).spawn().unwrap();
        // spawn returns a moment before the kernel shows the new command line.
        let read = loop {
            let read = command_of(child.id()).unwrap();
            if read.argv.first().is_some_and(|first| first == "sh") {
                break read;
            }
        };
        assert_eq!(read.argv, ["sh", "-c", "read x", "", ""]);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn outputs_are_named_while_they_exist() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("out");
        let file = std::fs::File::create(&path).unwrap();
        let mut child = Command::new("sleep").arg("30").stdout(file).stderr(Stdio::null()).spawn().unwrap();
        assert_eq!(outputs(child.id()), [Some(path.clone()), None]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(outputs(child.id()), [None, None]);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn signals_are_counted() {
        let signals = Signals::install().unwrap();
        let before = (signals.interrupts(), signals.terminations());
        let own = rustix::process::getpid();
        for signal in [Signal::HUP, Signal::INT, Signal::TERM] {
            rustix::process::kill_process(own, signal).unwrap();
        }
        for _ in 0..200 {
            if signals.interrupts() > before.0 && signals.terminations() > before.1 {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the signals were not counted");
    }
}
