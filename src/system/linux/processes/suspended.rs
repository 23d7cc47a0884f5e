//! A start that is held until its identity is on record.
//! Refuses to let a server run that nobody could know of: the end of its orders (our death) ends it.
//!
//! `start_suspended` starts our own executable as `Role::ExecServer`, its stdin and stdout being pipes to us. It prepares everything,
//! says `ready`, waits for one byte and turns into the server by exec, so that pid and start time stay.

use super::{identity, own_ids};
use crate::roles::Role;
use crate::system::linux::ourselves;
use crate::system::starts::Exit;
use crate::system::starts::{Running, StartedProcess, Starter, SuspendedServer, SuspendedStart};
use crate::system::{Credentials, LaunchSpec, ProcessId};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Starts that this process makes by itself, as the parent of what it starts.
#[derive(Debug)]
pub struct OwnChildren;

impl Starter for OwnChildren {
    fn start_suspended(&self, spec: &LaunchSpec) -> io::Result<SuspendedServer> {
        Ok(Box::new(start_suspended_with(ourselves(&Role::ExecServer), spec)?))
    }
}

/// A child that waits for its release. Dropped, or when we die, it ends.
#[derive(Debug)]
struct Suspended {
    id: ProcessId,
    /// None once it was handed on.
    parts: Option<Parts>,
}

#[derive(Debug)]
struct Parts {
    child: Child,
    go: ChildStdin,
    status: BufReader<ChildStdout>,
}

fn start_suspended_with(mut command: Command, spec: &LaunchSpec) -> io::Result<Suspended> {
    let mut line = serde_json::to_vec(spec)?;
    line.push(b'\n');
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let (Some(go), Some(status)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("the held process has no pipes"));
    };
    let pid = child.id();
    let parts = Parts { child, go, status: BufReader::new(status) };
    // From here on an early return drops `held`, and with it the child.
    let mut held = Suspended { id: ProcessId { pid, start: 0 }, parts: Some(parts) };
    let Some(Parts { go, status, .. }) = held.parts.as_mut() else {
        return Err(io::Error::other("the held process is lost"));
    };
    // A child that ended already has said why; a broken pipe would only hide that.
    let written = go.write_all(&line);
    let answer = answer(status)?;
    if answer != "ready\n" {
        written?;
        return Err(launch_error(&answer));
    }
    held.id = identity(pid)?.ok_or_else(|| launch_error(""))?;
    Ok(held)
}

/// How long the preparation may take: it opens two logs and looks for a program.
const PREPARATION: Duration = Duration::from_secs(60);

/// The longest answer of a held process that is read, in bytes.
const LONGEST_ANSWER: u64 = 64 << 10;

/// The one line that it says. Errors: it says nothing in time.
fn answer(status: &mut BufReader<ChildStdout>) -> io::Result<String> {
    let begun = Instant::now();
    loop {
        let left = PREPARATION.saturating_sub(begun.elapsed());
        let time =
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::new(status.get_ref(), PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&time)) {
            Ok(0) if left.is_zero() => {
                let text = format!("the server could not be prepared within {} s", PREPARATION.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => break,
            Err(error) => return Err(error.into()),
        }
    }
    // It writes its line whole, then waits, or ends.
    let mut line = String::new();
    status.take(LONGEST_ANSWER).read_line(&mut line)?;
    Ok(line)
}

fn launch_error(answer: &str) -> io::Error {
    let text = answer.trim().strip_prefix("error: ").unwrap_or(answer.trim());
    let text = if text.is_empty() { "it ended before it was ready" } else { text };
    io::Error::other(format!("the server could not be started: {text}"))
}

impl SuspendedStart for Suspended {
    fn id(&self) -> ProcessId {
        self.id
    }

    fn release(mut self: Box<Self>) -> io::Result<Running> {
        let Some(Parts { mut child, mut go, mut status }) = self.parts.take() else {
            return Err(io::Error::other("the held process is lost"));
        };
        let released = go.write_all(b"g");
        drop(go);
        let mut answer = String::new();
        // Ends with the exec, which closes the pipe, or with the process.
        let read = status.read_to_string(&mut answer);
        if answer.is_empty() && released.is_ok() && read.is_ok() {
            return Ok(Box::new(Started { id: self.id, child }));
        }
        child.kill()?;
        child.wait()?;
        released?;
        read?;
        Err(launch_error(&answer))
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        if let Some(mut parts) = self.parts.take() {
            // Nothing to report to from here; the end of its stdin ends it in any case.
            let _ = parts.child.kill();
            let _ = parts.child.wait();
        }
    }
}

/// A child that was released. Dropping this leaves it running.
#[derive(Debug)]
struct Started {
    id: ProcessId,
    child: Child,
}

impl StartedProcess for Started {
    fn id(&self) -> ProcessId {
        self.id
    }

    fn exited(&mut self) -> io::Result<Option<Exit>> {
        Ok(self.child.try_wait()?.map(|status| match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => Exit::Unknown,
        }))
    }
}

/// The other side of `start_suspended`: what our executable does as `Role::ExecServer`, before any thread.
/// Returns only when its pipes are unusable.
pub fn exec_when_released() -> io::Result<Infallible> {
    let status = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    let orders = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    exec_when_released_on(File::from(orders), File::from(status))
}

fn exec_when_released_on(orders: File, mut status: File) -> io::Result<Infallible> {
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
    let log = |path: &Path| open_log(path).map_err(said(path));
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

/// Opens the target of a server's output without waiting for a reader. Errors: it is a pipe, a socket or a folder.
fn open_log(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
    let file = OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path)?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_char_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
    }
    // The server must not find its output non-blocking.
    let flags = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    Ok(file)
}

/// Takes on the identity of the server. Errors: we may not.
pub(in crate::system::linux) fn become_user(wanted: &Credentials) -> io::Result<()> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(wanted.umask & 0o777));
    let own = own_ids()?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::linux::processes::Handle;
    use std::os::fd::BorrowedFd;

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
        let Err(error) = exec_when_released_on(File::from(orders), File::from(status));
        panic!("{error}");
    }

    fn held(spec: &LaunchSpec) -> io::Result<Box<Suspended>> {
        let name = "system::linux::processes::suspended::tests::held_child";
        let own = std::env::current_exe().unwrap();
        // With SIGHUP and SIGINT ignored, as under nohup.
        let script = format!(
            "trap '' HUP INT; export UPDATER_HELD_CHILD=1; exec 3>&1 >/dev/null; \
             exec '{}' {name} --exact --ignored --nocapture --test-threads=1",
            own.display()
        );
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script]);
        start_suspended_with(command, spec).map(Box::new)
    }

    fn spec(dir: &Path, argv: &[&str]) -> LaunchSpec {
        LaunchSpec {
            argv: argv.iter().map(|arg| arg.to_string()).collect(),
            cwd: dir.to_path_buf(),
            env: vec![("PATH".into(), "/nowhere:/usr/bin:/bin".into()), ("ONLY".into(), "this one".into())],
            stdout: dir.join("out.log"),
            stderr: dir.join("err.log"),
            credentials: Some(Credentials { umask: 0o027, ..own_ids().unwrap() }),
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
        assert_eq!(running.exited().unwrap(), Some(Exit::Signal(9)));
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
        let Some(Parts { mut child, go, status }) = held.parts.take() else { panic!("not ours") };
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
        crate::system::files::set_mode(&broken, 0o755).unwrap();
        let held = held(&LaunchSpec { argv: vec!["./broken".into()], ..good }).unwrap();
        assert!(held.release().is_err(), "exec fails, and it is said");
    }
}
