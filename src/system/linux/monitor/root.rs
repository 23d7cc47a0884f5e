//! Root's half: starts the child, answers what it asks for, passes signals on, and gives back its exit code.
//! Refuses to read anything below the install; refuses every request that is not for the install's user.

use super::{Answer, Ask, Verb};
use crate::roles::{Given, Role};
use crate::system::linux::{accounts, escape, ourselves, processes, systemd::Systemd};
use crate::system::service::{Job, ServiceManager as _};
use crate::system::starts::{Running, Starter as _, SuspendedServer};
use crate::system::{Credentials, LaunchSpec, Owner, Unit, interrupt, is_passed_on};
use rustix::event::{PollFd, PollFlags};
use rustix::io::FdFlags;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::time::Duration;

/// The most lines of a journal that are handed out at once.
const MOST_LINES: usize = 1000;

/// The longest request, in bytes: a held start with the largest command line and environment that Linux takes (2 MiB,
/// execve(2)), each byte of it written as six characters at worst.
const LONGEST_REQUEST: usize = 12 << 20;

/// How much of a request is read at once, in bytes.
const CHUNK: usize = 64 << 10;

/// How long the child may take to take an answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// The most programs that wait for their release at a time, and that are started for one update: it holds one server, and
/// its hooks run one after the other, pip some ten times at most.
const MOST_HELD: usize = 8;
const MOST_STARTED: usize = 256;

/// The most processes of a server that the child may ask about at once.
const MOST_PROCESSES: usize = 4096;

/// The longest wait between two looks.
const POLL_MS: i64 = 50;

/// Runs the command line as the user, and gives back its exit code; None: it was ended by a signal.
/// `bound`: the one unit that may be controlled. `kept`: further handles that the child gets.
pub fn run(
    args: &[OsString],
    user: Owner,
    bound: Option<&str>,
    bundle: Option<File>,
    kept: &[i32],
) -> io::Result<Option<u8>> {
    let signals = processes::Signals::install()?;
    let (account, home) = account(user)?;
    let who = Credentials { umask: processes::own_ids()?.umask, ..account };
    let (ours, theirs) = UnixStream::pair()?;
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
    if let Some(bundle) = &bundle {
        rustix::io::fcntl_setfd(bundle, FdFlags::empty())?;
    }
    let given = Given { socket: theirs.as_raw_fd(), bundle: bundle.as_ref().map(File::as_raw_fd) };
    let then = Box::new(Role::parse(args.to_vec()));
    let mut command = ourselves(&Role::BecomeOwner { who: serde_json::to_string(&who)?, given, then });
    command.env_clear().envs(environment(&who, &home));
    inherit(kept, FdFlags::empty())?;
    let child = command.spawn();
    drop((theirs, bundle));
    // Programs that we start for the child get none of them.
    inherit(kept, FdFlags::CLOEXEC)?;
    let mut child = child?;
    let mut server = PrivilegedServer {
        allowed: allowed_groups(&who)?,
        who,
        bound: bound.map(str::to_string),
        ..PrivilegedServer::default()
    };
    server.serve(&ours, &mut child, &signals)?;
    let status = child.wait()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).filter(|_| status.signal().is_none()))
}

/// Lets further children have these handles of ours, or no longer.
fn inherit(numbers: &[i32], flags: FdFlags) -> io::Result<()> {
    for number in numbers {
        // SAFETY: the caller owns the handle and keeps it open while this runs.
        let handle = unsafe { BorrowedFd::borrow_raw(*number) };
        rustix::io::fcntl_setfd(handle, flags)?;
    }
    Ok(())
}

fn environment(who: &Credentials, home: &str) -> Vec<(OsString, OsString)> {
    let mut all: Vec<_> = std::env::vars_os().filter(|(name, _)| is_passed_on(name)).collect();
    for (name, value) in [("HOME", home), ("USER", &who.user), ("LOGNAME", &who.user)] {
        all.push((name.into(), value.into()));
    }
    all
}

/// The user as the system's accounts have him, and his home; one without an account has the group of his folder alone,
/// unless that is root's. Errors: they cannot be asked. To guess then could give him a group that is not his.
fn account(user: Owner) -> io::Result<(Credentials, String)> {
    let of = |gid, groups, name, home| (Credentials { uid: user.uid, gid, groups, umask: 0o022, user: name }, home);
    Ok(match accounts::account(user.uid)? {
        Some(account) => of(account.gid, accounts::groups(&account)?, account.name, account.home),
        None => {
            let gid = if user.gid == 0 { user.uid } else { user.gid };
            of(gid, vec![gid], user.uid.to_string(), "/".to_string())
        }
    })
}

/// Root gave these groups to the user before: by his account, or to a process of his.
fn allowed_groups(who: &Credentials) -> io::Result<BTreeSet<u32>> {
    let mut all: BTreeSet<u32> = who.groups.iter().copied().collect();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that ends meanwhile has nothing to say.
        if let Ok(Some(is)) = processes::credentials_if_wholly(pid, who.uid) {
            all.extend(is.groups);
            all.insert(is.gid);
        }
    }
    Ok(all)
}

/// What the child has under way with us.
#[derive(Default)]
struct PrivilegedServer {
    who: Credentials,
    allowed: BTreeSet<u32>,
    bound: Option<String>,
    next: u32,
    held: BTreeMap<u32, SuspendedServer>,
    running: BTreeMap<u32, Running>,
    jobs: BTreeMap<u32, Job>,
}

impl PrivilegedServer {
    /// Answers until the child has gone.
    fn serve(&mut self, line: &UnixStream, child: &mut Child, signals: &processes::Signals) -> io::Result<()> {
        line.set_nonblocking(true)?;
        let mut open: Vec<u8> = Vec::new();
        let id = processes::identity(child.id())?;
        let handle = id.map(processes::Handle::open).transpose()?.flatten();
        let mut passed = 0;
        loop {
            // A Ctrl-C at the terminal reaches the child by itself; this comes from elsewhere.
            while passed < signals.terminations() {
                passed += 1;
                handle.as_ref().map_or(Ok(()), processes::Handle::ask_to_end)?;
            }
            let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: POLL_MS * 1_000_000 };
            let mut fds = [PollFd::new(line, PollFlags::IN)];
            match rustix::event::poll(&mut fds, Some(&wait)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {
                    if child.try_wait()?.is_some() {
                        return Ok(());
                    }
                    continue;
                }
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            let mut more = vec![0; CHUNK];
            match (&*line).read(&mut more) {
                // Its end, or a way of ending that we are told by its status.
                Ok(0) => return Ok(()),
                Ok(count) => open.extend(more.iter().take(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => return Ok(()),
            }
            while let Some(end) = open.iter().position(|byte| *byte == b'\n') {
                let text: Vec<u8> = open.drain(..=end).collect();
                if !self.reply(line, &text)? {
                    return Ok(());
                }
            }
            if open.len() > LONGEST_REQUEST {
                let why = format!("a request to root's half was longer than {LONGEST_REQUEST} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
        }
    }

    /// Answers one request. False: the child does not take the answer, so nothing more is done for it.
    fn reply(&mut self, line: &UnixStream, text: &[u8]) -> io::Result<bool> {
        let answer = match serde_json::from_slice(text) {
            Ok(ask) => self.answer(ask).unwrap_or_else(|error| Answer::Failed(error.to_string())),
            Err(error) => Answer::Failed(format!("root does not understand this request: {error}")),
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        line.set_nonblocking(false)?;
        line.set_write_timeout(Some(ANSWER_TIME))?;
        // A child that has gone meanwhile is seen by its end.
        let is_told = (&*line).write_all(&text).is_ok();
        line.set_nonblocking(true)?;
        Ok(is_told)
    }

    fn answer(&mut self, ask: Ask) -> io::Result<Answer> {
        let unknown = || io::Error::other("root has nothing under this number");
        Ok(match ask {
            Ask::Hold(spec) => {
                if self.held.len() >= MOST_HELD || self.running.len() >= MOST_STARTED {
                    return Err(io::Error::other("root's half starts no more programs for this update"));
                }
                let held = processes::OwnChildren.start_suspended(&self.checked(*spec)?)?;
                let (number, id) = (self.number(), held.id());
                self.held.insert(number, held);
                Answer::Held(number, id)
            }
            Ask::Release(number) => {
                let running = self.held.remove(&number).ok_or_else(unknown)?.release()?;
                self.running.insert(number, running);
                Answer::Done
            }
            Ask::Drop(number) => {
                self.held.remove(&number);
                Answer::Done
            }
            Ask::Exited(number) => Answer::Exited(self.running.get_mut(&number).ok_or_else(unknown)?.exited()?),
            Ask::TiedTo(servers) if servers.len() > MOST_PROCESSES => {
                return Err(io::Error::other(format!("root's half looks at {MOST_PROCESSES} processes at most")));
            }
            Ask::TiedTo(servers) => Answer::TiedTo(escape::tied_to(&servers)?),
            // Asked before the stop alone.
            Ask::Refusal(unit) => interrupt::during(|| {
                Ok::<_, io::Error>(match self.unit(&unit)? {
                    Ok(unit) => Answer::Refusal(Systemd.refusal(&unit)?),
                    Err(why) => Answer::Refusal(Some(why)),
                })
            })?,
            Ask::Begin(unit, verb) => {
                if self.jobs.len() >= MOST_HELD {
                    return Err(io::Error::other("root's half has too many requests to the service manager under way"));
                }
                let unit = self.unit(&unit)?.map_err(io::Error::other)?;
                let job = match verb {
                    Verb::Stop => Systemd.stop(&unit)?,
                    Verb::Start => Systemd.start(&unit)?,
                    Verb::Kill => Systemd.kill(&unit)?,
                };
                let number = self.number();
                self.jobs.insert(number, job);
                Answer::Job(number)
            }
            Ask::Said(unit, since, count) => {
                let unit = self.unit(&unit)?.map_err(io::Error::other)?;
                Answer::Said(Systemd.recent_output(&unit, since, count.min(MOST_LINES))?)
            }
            Ask::IsShuttingDown => Answer::IsShuttingDown(Systemd.is_shutting_down()),
            Ask::Ended(number) => {
                let ended = self.jobs.get_mut(&number).ok_or_else(unknown)?.ended()?;
                if ended.is_some() {
                    self.jobs.remove(&number);
                }
                Answer::Ended(ended)
            }
        })
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    /// The start as this user and with no groups but his, whatever the child says.
    fn checked(&self, mut spec: LaunchSpec) -> io::Result<LaunchSpec> {
        let asked = spec.credentials.take().unwrap_or_else(|| self.who.clone());
        if asked.uid != self.who.uid {
            let text = format!("root starts programs of this install as {} alone", self.who.user);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        let stranger = asked.groups.iter().chain([&asked.gid]).find(|group| !self.allowed.contains(group)).copied();
        if let Some(group) = stranger {
            let text = format!("the user {} is not in the group {group}", self.who.user);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        spec.credentials = Some(Credentials { user: self.who.user.clone(), ..asked });
        Ok(spec)
    }

    /// The unit, if the user's programs run in it. The inner error: why root leaves it alone.
    fn unit(&self, name: &str) -> io::Result<Result<Unit, String>> {
        let plain = |c: char| c.is_ascii_alphanumeric() || ":_.@-\\".contains(c);
        if !name.ends_with(".service") || name.starts_with('-') || !name.chars().all(plain) {
            return Ok(Err(format!("{name} is no name of a service")));
        }
        if let Some(bound) = self.bound.as_deref().filter(|bound| *bound != name) {
            return Ok(Err(format!("this helper is bound to {bound}")));
        }
        let unit = Unit::system(name);
        let judged = Systemd.runs_as(&unit, self.who.uid)?;
        Ok(judged
            .map(|()| unit)
            .map_err(|user| format!("it runs as {user}, and the install belongs to {}", self.who.user)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// A number in the count of suspended starts: nothing of it is asked for.
    #[derive(Debug)]
    struct Nobody;

    impl crate::system::starts::SuspendedStart for Nobody {
        fn id(&self) -> crate::system::ProcessId {
            unreachable!("nobody asks who it is")
        }
        fn release(self: Box<Self>) -> io::Result<Running> {
            unreachable!("nobody releases it")
        }
    }

    fn server() -> PrivilegedServer {
        let who = Credentials { uid: 4711, gid: 4712, groups: vec![4712], umask: 0o022, user: "scout".into() };
        PrivilegedServer { allowed: BTreeSet::from([4712, 4713]), who, ..PrivilegedServer::default() }
    }

    fn spec(uid: u32, gid: u32, groups: &[u32]) -> LaunchSpec {
        LaunchSpec {
            argv: vec!["true".into()],
            cwd: "/".into(),
            env: Vec::new(),
            stdout: "/dev/null".into(),
            stderr: "/dev/null".into(),
            credentials: Some(Credentials { uid, gid, groups: groups.to_vec(), umask: 0, user: "root".into() }),
        }
    }

    #[test]
    fn a_start_is_of_the_user_and_his_groups_alone() {
        let server = server();
        let good = server.checked(spec(4711, 4712, &[4713])).unwrap().credentials.unwrap();
        assert_eq!((good.uid, good.user.as_str()), (4711, "scout"));
        let nobody = LaunchSpec { credentials: None, ..spec(0, 0, &[]) };
        assert_eq!(server.checked(nobody).unwrap().credentials.unwrap().uid, 4711);
        for bad in [spec(0, 4712, &[]), spec(4711, 0, &[]), spec(4711, 4712, &[0]), spec(4710, 4712, &[])] {
            assert!(server.checked(bad).is_err());
        }
    }

    /// Serves what `write` sends from the child's side, until its end.
    fn serve(write: impl FnOnce(UnixStream) + Send + 'static) -> (io::Result<()>, PrivilegedServer) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || write(theirs));
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let signals = processes::Signals::install().unwrap();
        let mut server = server();
        let served = server.serve(&ours, &mut child, &signals);
        child.kill().unwrap();
        child.wait().unwrap();
        drop(ours);
        writer.join().unwrap();
        (served, server)
    }

    #[test]
    fn a_request_may_come_in_pieces_and_has_an_end() {
        let (served, _) = serve(|mut line| {
            for piece in ["\"IsShutt", "ingDown\"\n\"IsShuttingDown\"\n"] {
                line.write_all(piece.as_bytes()).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
            line.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answers = String::new();
            line.read_to_string(&mut answers).unwrap();
            assert_eq!(answers.matches("IsShuttingDown").count(), 2, "{answers}");
        });
        served.unwrap();
        let (served, _) = serve(|mut line| {
            // The other end stops listening in the middle.
            let _ = (0..20).try_for_each(|_| line.write_all(&vec![b'x'; 1 << 20]));
        });
        assert_eq!(served.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn held_starts_have_a_bound() {
        let mut server = server();
        for _ in 0..MOST_HELD {
            // What is held needs root to become the user: only the count matters here.
            let number = server.number();
            server.held.insert(number, Box::new(Nobody));
        }
        let refused = server.answer(Ask::Hold(Box::new(spec(4711, 4712, &[4713])))).unwrap_err();
        assert!(refused.to_string().contains("no more programs"), "{refused}");
    }

    #[test]
    fn an_owner_without_an_account_never_gets_the_group_of_root() {
        let of = |gid| account(Owner { uid: 4_000_111, gid }).unwrap().0.groups;
        assert_eq!((of(0), of(4713)), (vec![4_000_111], vec![4713]));
    }

    #[test]
    fn a_unit_has_a_plain_name_and_the_bound_one_if_any() {
        let mut server = server();
        for name in ["web", "-x.service", "../x.service", "a b.service", "x.service/y"] {
            assert!(server.unit(name).unwrap().is_err(), "{name}");
        }
        server.bound = Some("web.service".into());
        assert!(server.unit("ssh.service").unwrap().unwrap_err().contains("bound to web.service"));
    }
}
