//! Processes on Linux: who they are, held handles, signals, credentials, and a start that is held until
//! its identity is on record.
//! Refuses to act on a bare pid: a signal goes through a pidfd whose identity was checked.
//!
//! The held start: `hold` starts our own executable with `__launch`, its stdin and stdout being pipes to us.
//! It prepares everything, says `ready`, waits for one byte and turns into the server by exec, so that pid and
//! start time stay. The end of its stdin (our death) ends it.

use super::monitor::{self, Answer, Ask};
use crate::os::{CommandLine, Credentials, LaunchSpec, ProcessId};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The hidden argument by which our own executable becomes a held server.
const LAUNCH: &str = "__launch";

/// True for the errors by which /proc says that a process is gone.
fn is_gone(error: &io::Error) -> bool {
    let esrch = rustix::io::Errno::SRCH.raw_os_error();
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(esrch)
}

/// The fields of `/proc/PID/stat` that matter here.
struct Stat {
    state: char,
    parent: u32,
    session: u32,
    start: u64,
}

fn stat(pid: u32) -> io::Result<Option<Stat>> {
    let bytes = match std::fs::read(format!("/proc/{pid}/stat")) {
        Ok(bytes) => bytes,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let odd = || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat is not understood"));
    parse_stat(&String::from_utf8_lossy(&bytes)).ok_or_else(odd).map(Some)
}

/// A process may put anything into its name, also `)`: the fields begin after the last one.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // rest begins with field 3 (proc_pid_stat(5)).
    let field = |number: usize| fields.get(number - 3).copied();
    Some(Stat {
        state: field(3)?.chars().next()?,
        parent: field(4)?.parse().ok()?,
        session: field(6)?.parse().ok()?,
        start: field(22)?.parse().ok()?,
    })
}

/// Who runs under this pid now. None: nobody, or only a dead process that was not yet collected.
pub fn identity(pid: u32) -> io::Result<Option<ProcessId>> {
    let alive = stat(pid)?.filter(|stat| !matches!(stat.state, 'Z' | 'X' | 'x'));
    Ok(alive.map(|stat| ProcessId { pid, start: stat.start }))
}

/// The pid of the parent. None: it has none, or the process is gone.
pub fn parent(pid: u32) -> io::Result<Option<u32>> {
    Ok(stat(pid)?.map(|stat| stat.parent).filter(|pid| *pid != 0))
}

/// The pid of the leader of its session. None: the process is gone, or the leader lies outside of what we see.
pub fn session(pid: u32) -> io::Result<Option<u32>> {
    Ok(stat(pid)?.map(|stat| stat.session).filter(|leader| *leader != 0))
}

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
    let text = std::fs::read(format!("/proc/{pid}/status"))?;
    let text = String::from_utf8_lossy(&text);
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
    Ok(Credentials { uid, gid, groups, umask, user: user_name(uid).unwrap_or_else(|| uid.to_string()) })
}

/// Under which identity we run.
pub fn own_credentials() -> io::Result<Credentials> {
    credentials(std::process::id())
}

/// The fields of a user's line in /etc/passwd; users of other sources have none.
fn account_line(uid: u32) -> Option<Vec<String>> {
    let text = std::fs::read("/etc/passwd").ok()?;
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines().map(|line| line.split(':').map(str::to_string).collect::<Vec<_>>());
    lines.find(|parts| parts.get(2).and_then(|number| number.parse().ok()) == Some(uid))
}

pub(super) fn user_name(uid: u32) -> Option<String> {
    account_line(uid)?.into_iter().next()
}

/// His primary group.
pub(super) fn group_of(uid: u32) -> Option<u32> {
    account_line(uid)?.get(3)?.parse().ok()
}

pub(super) fn home_of(uid: u32) -> Option<String> {
    account_line(uid)?.into_iter().nth(5)
}

/// The identity of a process all of whose user ids are `uid`. None: another's, or gone.
pub(super) fn credentials_if_wholly(pid: u32, uid: u32) -> io::Result<Option<Credentials>> {
    let text = std::fs::read(format!("/proc/{pid}/status"))?;
    let text = String::from_utf8_lossy(&text);
    let ids = text.lines().find_map(|line| line.strip_prefix("Uid:"));
    let wholly = ids.is_some_and(|ids| ids.split_ascii_whitespace().all(|id| id.parse() == Ok(uid)));
    if wholly { credentials(pid).map(Some) } else { Ok(None) }
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

/// A server that is ready to start and waits for its release. Dropped, or when we die, it ends.
#[derive(Debug)]
pub struct Held {
    id: ProcessId,
    /// None once it was handed on.
    parts: Option<Parts>,
}

#[derive(Debug)]
enum Parts {
    Own {
        child: Child,
        go: ChildStdin,
        status: BufReader<ChildStdout>,
    },
    /// Root holds it for us, under this number.
    Roots(u32),
}

/// Prepares a server up to the last step. Errors: what the preparation says, or no such program.
pub fn hold(spec: &LaunchSpec) -> io::Result<Held> {
    match monitor::ask(&Ask::Hold(Box::new(spec.clone()))) {
        Ok(Some(Answer::Held(number, id))) => return Ok(Held { id, parts: Some(Parts::Roots(number)) }),
        // A server that lacks a group is better than none.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            let spec = LaunchSpec { credentials: None, ..spec.clone() };
            return hold_with(Path::new("/proc/self/exe"), &[LAUNCH], &spec);
        }
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    hold_with(Path::new("/proc/self/exe"), &[LAUNCH], spec)
}

fn hold_with(program: &Path, args: &[&str], spec: &LaunchSpec) -> io::Result<Held> {
    let mut line = serde_json::to_vec(spec)?;
    line.push(b'\n');
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let (Some(go), Some(status)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("the held process has no pipes"));
    };
    let pid = child.id();
    let parts = Parts::Own { child, go, status: BufReader::new(status) };
    // From here on an early return drops `held`, and with it the child.
    let mut held = Held { id: ProcessId { pid, start: 0 }, parts: Some(parts) };
    let Some(Parts::Own { go, status, .. }) = held.parts.as_mut() else {
        return Err(io::Error::other("the held process is lost"));
    };
    // A child that ended already has said why; a broken pipe would only hide that.
    let written = go.write_all(&line);
    let mut answer = String::new();
    status.read_line(&mut answer)?;
    if answer != "ready\n" {
        status.read_to_string(&mut answer)?;
        written?;
        return Err(launch_error(&answer));
    }
    held.id = identity(pid)?.ok_or_else(|| launch_error(""))?;
    Ok(held)
}

fn launch_error(answer: &str) -> io::Error {
    let text = answer.trim().strip_prefix("error: ").unwrap_or(answer.trim());
    let text = if text.is_empty() { "it ended before it was ready" } else { text };
    io::Error::other(format!("the server could not be started: {text}"))
}

impl Held {
    /// Who the server will be: pid and start time stay when it is released.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Lets it become the server. Errors: the program could not be executed; nothing runs then.
    pub fn release(mut self) -> io::Result<Running> {
        let (mut child, mut go, mut status) = match self.parts.take() {
            Some(Parts::Own { child, go, status }) => (child, go, status),
            Some(Parts::Roots(number)) => {
                monitor::ask(&Ask::Release(number))?;
                return Ok(Running { id: self.id, watch: Watch::Roots(number) });
            }
            None => return Err(io::Error::other("the held process is lost")),
        };
        let released = go.write_all(b"g");
        drop(go);
        let mut answer = String::new();
        // Ends with the exec, which closes the pipe, or with the process.
        let read = status.read_to_string(&mut answer);
        if answer.is_empty() && released.is_ok() && read.is_ok() {
            return Ok(Running { id: self.id, watch: Watch::Own(child) });
        }
        child.kill()?;
        child.wait()?;
        released?;
        read?;
        Err(launch_error(&answer))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Nothing to report to from here; the end of its stdin ends it in any case.
        match self.parts.take() {
            Some(Parts::Own { mut child, .. }) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Some(Parts::Roots(number)) => {
                let _ = monitor::ask(&Ask::Drop(number));
            }
            None => {}
        }
    }
}

/// A server that we started. Dropping this leaves it running.
#[derive(Debug)]
pub struct Running {
    id: ProcessId,
    watch: Watch,
}

#[derive(Debug)]
enum Watch {
    Own(Child),
    /// Root is its parent.
    Roots(u32),
}

impl Running {
    /// Who it is.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// How it ended (`exit code 1`, `signal 9`); None while it runs.
    pub fn exited(&mut self) -> io::Result<Option<String>> {
        let child = match &mut self.watch {
            Watch::Own(child) => child,
            Watch::Roots(number) => {
                return match monitor::ask(&Ask::Exited(*number))? {
                    Some(Answer::Exited(how)) => Ok(how),
                    _ => Err(io::Error::other("root's half gave no answer")),
                };
            }
        };
        Ok(child.try_wait()?.map(|status| match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => status.to_string(),
        }))
    }
}

/// The other side of `hold`: what our executable does when started with `__launch`, before any thread.
/// Returns only when its pipes are unusable.
pub fn run_held() -> io::Result<Infallible> {
    let status = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    let orders = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    run_held_on(File::from(orders), File::from(status))
}

fn run_held_on(orders: File, mut status: File) -> io::Result<Infallible> {
    let Err(error) = launch(BufReader::new(orders), &mut status);
    let text = format!("error: {error}").replace('\n', " ");
    // Nobody may be there to read it.
    let _ = writeln!(status, "{text}");
    std::process::exit(127);
}

fn launch(mut orders: BufReader<File>, status: &mut File) -> io::Result<Infallible> {
    let mut line = String::new();
    if orders.read_line(&mut line)? == 0 || !line.ends_with('\n') {
        std::process::exit(1);
    }
    let spec: LaunchSpec = serde_json::from_str(&line)?;
    let Some(name) = spec.argv.first() else { return Err(io::Error::other("the command is empty")) };
    rustix::process::setsid()?;
    if let Some(wanted) = &spec.credentials {
        become_user(wanted)?;
    }
    let said = |what: &Path| {
        let what = what.display().to_string();
        move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
    };
    std::env::set_current_dir(&spec.cwd).map_err(said(&spec.cwd))?;
    let log = |path: &Path| OpenOptions::new().append(true).create(true).mode(0o644).open(path).map_err(said(path));
    let (stdout, stderr) = (log(&spec.stdout)?, log(&spec.stderr)?);
    let null = File::open("/dev/null")?;
    let program = find_program(name, &spec).map_err(said(Path::new(name)))?;
    let mut command = Command::new(program);
    command.arg0(name).args(&spec.argv[1..]).env_clear();
    command.envs(spec.env.iter().map(|(key, value)| (key, value)));

    status.write_all(b"ready\n")?;
    let mut go = [0];
    if orders.read(&mut go)? == 0 || go != *b"g" {
        std::process::exit(1);
    }
    default_signals()?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&stdout)?;
    rustix::stdio::dup2_stderr(&stderr)?;
    // All other handles of ours are close-on-exec, the pipes too.
    Err(command.exec())
}

/// Takes on the identity of the server. Errors: we may not.
pub(super) fn become_user(wanted: &Credentials) -> io::Result<()> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(wanted.umask & 0o777));
    let own = own_credentials()?;
    let sorted = |groups: &[u32]| {
        let mut groups = groups.to_vec();
        groups.sort_unstable();
        groups
    };
    let same_groups = sorted(&own.groups) == sorted(&wanted.groups);
    if same_groups && (own.uid, own.gid) == (wanted.uid, wanted.gid) {
        return Ok(());
    }
    // The calls below change one thread: with others, the process would keep its rights in part.
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("the identity must be changed before any thread starts"));
    }
    let denied = |error: rustix::io::Errno| {
        let error = io::Error::from(error);
        io::Error::new(error.kind(), format!("cannot become the user {}: {error}", wanted.user))
    };
    if !same_groups {
        let groups: Vec<_> = wanted.groups.iter().map(|id| rustix::process::Gid::from_raw(*id)).collect();
        rustix::thread::set_thread_groups(&groups).map_err(denied)?;
    }
    let (uid, gid) = (rustix::process::Uid::from_raw(wanted.uid), rustix::process::Gid::from_raw(wanted.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(denied)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(denied)
}

/// The file of the program: a name with `/` is a path (from the working folder), another is looked up in the
/// PATH of the server's own environment.
fn find_program(name: &str, spec: &LaunchSpec) -> io::Result<PathBuf> {
    let runs = |path: &Path| path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    if name.contains('/') {
        return if runs(Path::new(name)) { Ok(name.into()) } else { Err(not_a_program(Path::new(name))) };
    }
    let path = spec.env.iter().find(|(key, _)| key == "PATH").map_or("/usr/local/bin:/usr/bin:/bin", |(_, path)| path);
    let mut places = path.split(':').map(|place| Path::new(if place.is_empty() { "." } else { place }).join(name));
    let missing = || io::Error::new(io::ErrorKind::NotFound, "not found in the PATH of the server");
    places.find(|place| runs(place)).map(|place| Path::new(".").join(place)).ok_or_else(missing)
}

fn not_a_program(path: &Path) -> io::Error {
    match std::fs::metadata(path) {
        Err(error) => error,
        Ok(_) => io::Error::new(io::ErrorKind::PermissionDenied, "not an executable file"),
    }
}

/// Ignored signals stay ignored over exec (we may run under nohup), handled ones return to their default:
/// so each gets a handler here, which the exec takes away. std resets SIGPIPE and the mask itself.
fn default_signals() -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    Ok(())
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
    use std::os::fd::BorrowedFd;

    fn sleeper() -> (Child, ProcessId) {
        let child = Command::new("sleep").arg("30").spawn().unwrap();
        let id = identity(child.id()).unwrap().unwrap();
        (child, id)
    }

    #[test]
    fn a_hostile_name_does_not_confuse_the_identity() {
        let stat = parse_stat("7 (a) R 1 (x y)) S 42 7 7 0 -1 4 5 6 7 8 9 10 11 12 20 0 1 0 987 1 1").unwrap();
        assert_eq!((stat.state, stat.parent, stat.start), ('S', 42, 987));
        assert!(parse_stat("7 (a").is_none());
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
        let file = File::create(&path).unwrap();
        let mut child = Command::new("sleep").arg("30").stdout(file).stderr(Stdio::null()).spawn().unwrap();
        assert_eq!(outputs(child.id()), [Some(path.clone()), None]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(outputs(child.id()), [None, None]);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Not a test: what `held` starts, with its status pipe as handle 3 (stdout belongs to the test harness).
    #[test]
    #[ignore = "the child of the tests below"]
    fn held_child() {
        if std::env::var_os("UPDATER_HELD_CHILD").is_none() {
            return;
        }
        // SAFETY: the shell that started us opened 3, and nothing here closes it.
        let three = unsafe { BorrowedFd::borrow_raw(3) };
        let status = rustix::io::fcntl_dupfd_cloexec(three, 4).unwrap();
        rustix::io::fcntl_setfd(three, rustix::io::FdFlags::CLOEXEC).unwrap();
        let orders = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 4).unwrap();
        let Err(error) = run_held_on(File::from(orders), File::from(status));
        panic!("{error}");
    }

    fn held(spec: &LaunchSpec) -> io::Result<Held> {
        let name = "os::linux::processes::tests::held_child";
        let own = std::env::current_exe().unwrap();
        // With SIGHUP and SIGINT ignored, as under nohup.
        let script = format!(
            "trap '' HUP INT; export UPDATER_HELD_CHILD=1; exec 3>&1 >/dev/null; \
             exec '{}' {name} --exact --ignored --nocapture --test-threads=1",
            own.display()
        );
        hold_with(Path::new("/bin/sh"), &["-c", &script], spec)
    }

    fn spec(dir: &Path, argv: &[&str]) -> LaunchSpec {
        LaunchSpec {
            argv: argv.iter().map(|arg| arg.to_string()).collect(),
            cwd: dir.to_path_buf(),
            env: vec![("PATH".into(), "/nowhere:/usr/bin:/bin".into()), ("ONLY".into(), "this one".into())],
            stdout: dir.join("out.log"),
            stderr: dir.join("err.log"),
            credentials: Some(Credentials { umask: 0o027, ..own_credentials().unwrap() }),
        }
    }

    #[test]
    fn a_released_server_is_the_same_process_in_its_own_world() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::write(root.join("out.log"), "before\n").unwrap();
        // What the caller of the tests left open is not ours to judge; `close_inherited` is for the real start.
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        let open = open.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let inherited: Vec<String> = open
            .filter(|fd| fd.parse::<i32>().unwrap() > 2)
            .filter(|fd| {
                let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
                let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or("02000000").trim();
                u32::from_str_radix(flags, 8).unwrap() & 0o2000000 == 0
            })
            .collect();
        let script = "pwd; umask; echo \"$ONLY $1 $HOME\"; ls /proc/$$/fd; grep ^SigIgn /proc/$$/status; exec sleep 30";
        let held = held(&spec(&root, &["sh", "-c", script, "x", "a b"])).unwrap();
        let id = held.id();
        assert_eq!(identity(id.pid).unwrap(), Some(id));
        assert_eq!(std::fs::read_to_string(root.join("out.log")).unwrap(), "before\n", "nothing ran yet");
        let mut running = held.release().unwrap();
        assert_eq!(running.id(), id);
        let handle = Handle::open(id).unwrap().unwrap();
        let mut text = String::new();
        for _ in 0..200 {
            text = std::fs::read_to_string(root.join("out.log")).unwrap();
            if text.contains("SigIgn") {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let want = format!("before\n{}\n0027\nthis one a b \n", root.display());
        assert!(text.starts_with(&want), "{text}");
        let fds: Vec<&str> = text[want.len()..].lines().take_while(|line| !line.starts_with("SigIgn")).collect();
        let ours: Vec<&str> = fds.into_iter().filter(|fd| !inherited.iter().any(|other| other == fd)).collect();
        assert_eq!(ours, ["0", "1", "2"], "no other handle is left");
        let ignored = text.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
        // Signals 32 and 33 belong to the C library.
        let ignored = u64::from_str_radix(ignored, 16).unwrap() & 0x7fff_ffff;
        assert_eq!(ignored, 0, "no signal stays ignored");
        assert_eq!(identity(id.pid).unwrap(), Some(id), "pid and start time stay");
        assert_eq!(running.exited().unwrap(), None);
        handle.kill().unwrap();
        assert!(handle.wait(Duration::from_secs(10)).unwrap());
        assert_eq!(running.exited().unwrap().as_deref(), Some("signal 9"));
    }

    #[test]
    fn a_dropped_server_never_runs() {
        let dir = tempfile::tempdir().unwrap();
        let held = held(&spec(dir.path(), &["touch", "ran"])).unwrap();
        let handle = Handle::open(held.id()).unwrap().unwrap();
        drop(held);
        assert!(handle.wait(Duration::ZERO).unwrap());
        assert!(!dir.path().join("ran").exists());
    }

    #[test]
    fn the_end_of_its_orders_ends_it_without_a_kill() {
        let dir = tempfile::tempdir().unwrap();
        let mut held = held(&spec(dir.path(), &["touch", "ran"])).unwrap();
        let Some(Parts::Own { mut child, go, status }) = held.parts.take() else { panic!("not ours") };
        // What our death does: the system closes our ends.
        drop((go, status));
        assert_eq!(child.wait().unwrap().code(), Some(1));
        assert!(!dir.path().join("ran").exists());
    }

    #[test]
    fn what_cannot_start_is_said_before_the_release() {
        let dir = tempfile::tempdir().unwrap();
        let good = spec(dir.path(), &["true"]);
        for (bad, why) in [
            (LaunchSpec { argv: vec!["no-such-program".into()], ..good.clone() }, "PATH"),
            (LaunchSpec { argv: vec!["bin/none".into()], ..good.clone() }, "bin/none"),
            (LaunchSpec { argv: vec![], ..good.clone() }, "empty"),
            (LaunchSpec { cwd: dir.path().join("gone"), ..good.clone() }, "gone"),
            (LaunchSpec { stdout: dir.path().join("no/folder"), ..good.clone() }, "no/folder"),
        ] {
            let error = held(&bad).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let broken = dir.path().join("broken");
        std::fs::write(&broken, "#!/no/such/interpreter\n").unwrap();
        crate::os::files::set_mode(&broken, 0o755).unwrap();
        let held = held(&LaunchSpec { argv: vec!["./broken".into()], ..good }).unwrap();
        assert!(held.release().is_err(), "exec fails, and it is said");
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
