//! Users and their groups, as the system's name service knows them: LDAP and SSSD accounts count. It is asked by
//! `getent`, in every build, because a program that is linked statically cannot ask it by itself. Where there is no
//! `getent`, /etc/passwd and /etc/group are all that is known.
//! Refuses to take silence for an answer: a `getent` that fails or does not answer in time is an error, and never an
//! account without groups or a user without an account.

use rustix::event::{PollFd, PollFlags, Timespec};
use std::collections::HashMap;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Where `getent` lies, never found by a PATH of others: the FHS, the same before /usr was merged, and NixOS.
const PLACES: [&str; 3] = ["/usr/bin/getent", "/bin/getent", "/run/current-system/sw/bin/getent"];

/// How long it may take. A directory that is away answers in this time, or is taken for silent.
const ANSWER: Duration = Duration::from_secs(10);

/// The longest answer, in bytes: 65536 groups (NGROUPS_MAX of `limits.h`), each a number of ten digits and a space.
const LONGEST: usize = 1 << 20;

/// How often an ended child is looked for, once it has closed its output.
const POLL: Duration = Duration::from_millis(2);

/// The exit codes of getent(1): the key is unknown; the database is.
const UNKNOWN_KEY: i32 = 2;
const UNKNOWN_DATABASE: i32 = 1;

/// One user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    /// The primary group.
    pub gid: u32,
    pub home: String,
}

/// What was found out, for the rest of the process: a directory that is away is waited for once.
type Known = HashMap<u32, Result<Option<Account>, (io::ErrorKind, String)>>;

static KNOWN: Mutex<Option<Known>> = Mutex::new(None);

/// The account of this user. None: nobody has this number. Errors: the name service fails or does not answer.
pub fn account(uid: u32) -> io::Result<Option<Account>> {
    let broken = || io::Error::other("the accounts that were read cannot be used");
    let mut known = KNOWN.lock().map_err(|_| broken())?;
    let known = known.get_or_insert_with(HashMap::new);
    let found = known
        .entry(uid)
        .or_insert_with(|| Source::of_this_system().account(uid).map_err(|e| (e.kind(), e.to_string())));
    found.clone().map_err(|(kind, why)| io::Error::new(kind, why))
}

/// The name of this user. None: there is none, or it cannot be found out.
pub fn user_name(uid: u32) -> Option<String> {
    account(uid).ok().flatten().map(|account| account.name)
}

/// The groups of a user, the primary one among them. Errors: the name service fails or does not answer.
pub fn groups(account: &Account) -> io::Result<Vec<u32>> {
    Source::of_this_system().groups(account)
}

/// Who is asked.
enum Source {
    Getent {
        program: PathBuf,
        /// Stand before the database; none for the real one.
        words: Vec<String>,
        limit: Duration,
    },
    Files {
        passwd: PathBuf,
        group: PathBuf,
    },
}

impl Source {
    fn of_this_system() -> Source {
        match PLACES.iter().map(Path::new).find(|place| place.exists()) {
            Some(program) => Source::Getent { program: program.to_path_buf(), words: Vec::new(), limit: ANSWER },
            None => Source::files(),
        }
    }

    fn files() -> Source {
        Source::Files { passwd: "/etc/passwd".into(), group: "/etc/group".into() }
    }

    fn account(&self, uid: u32) -> io::Result<Option<Account>> {
        let text = match self {
            Source::Files { passwd, .. } => read(passwd)?,
            Source::Getent { .. } => match self.ask("passwd", &uid.to_string())? {
                Answer::Text(text) => text,
                Answer::UnknownKey => return Ok(None),
                Answer::UnknownDatabase => return Source::files().account(uid),
            },
        };
        let found = text.lines().find_map(|line| account_in(line, uid));
        match (self, found) {
            (Source::Getent { .. }, None) => {
                Err(odd(format!("getent passwd {uid} answered what is no account of this user")))
            }
            (_, found) => Ok(found),
        }
    }

    fn groups(&self, account: &Account) -> io::Result<Vec<u32>> {
        let Account { name, gid, .. } = account;
        let mut all = match self {
            Source::Files { group, .. } => groups_in(&read(group)?, name),
            // An option to getent, whatever it would make of it.
            Source::Getent { .. } if name.starts_with('-') => return Err(odd(format!("{name} is no name of a user"))),
            Source::Getent { .. } => match self.ask("initgroups", name)? {
                Answer::Text(text) => initgroups_in(&text, name)
                    .ok_or_else(|| odd(format!("getent initgroups {name} answered what is no list of groups")))?,
                // To this database every name is known, be it without a group.
                Answer::UnknownKey => return Err(odd(format!("getent initgroups does not know {name}"))),
                Answer::UnknownDatabase => return Source::files().groups(account),
            },
        };
        all.push(*gid);
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// Runs `getent` to its end, within `limit` and `LONGEST`. Errors: it fails, or exceeds one of them.
    fn ask(&self, database: &str, key: &str) -> io::Result<Answer> {
        let Source::Getent { program, words, limit } = self else { return Ok(Answer::UnknownDatabase) };
        let failed = |why: String| {
            io::Error::other(format!("asking for the users of this system (getent {database} {key}): {why}"))
        };
        let mut command = Command::new(program);
        command.args(words).args([database, key]).env_clear().env("LC_ALL", "C").current_dir("/").process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = Bounded(command.spawn().map_err(|e| failed(e.to_string()))?);
        let until = Instant::now() + *limit;
        let mut text = Vec::new();
        if let Some(mut out) = child.0.stdout.take() {
            while let Some(more) = read_until(&mut out, until).map_err(|e| failed(e.to_string()))? {
                text.extend(more);
                if text.len() > LONGEST {
                    return Err(failed(format!("it answered more than {LONGEST} bytes")));
                }
            }
        }
        let status = loop {
            match child.0.try_wait()? {
                Some(status) => break status,
                None if Instant::now() >= until => return Err(failed(silent().to_string())),
                None => std::thread::sleep(POLL),
            }
        };
        match status.code() {
            Some(0) => {
                String::from_utf8(text).map(Answer::Text).map_err(|_| failed("it answered what is no text".into()))
            }
            Some(UNKNOWN_KEY) => Ok(Answer::UnknownKey),
            Some(UNKNOWN_DATABASE) => Ok(Answer::UnknownDatabase),
            _ => Err(failed(format!("it ended with {status}"))),
        }
    }
}

enum Answer {
    Text(String),
    UnknownKey,
    UnknownDatabase,
}

/// A child that does not outlive the question.
struct Bounded(Child);

impl Drop for Bounded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it does not answer")
}

/// The next piece of its output; None: its end. Errors: nothing comes until then.
fn read_until(out: &mut ChildStdout, until: Instant) -> io::Result<Option<Vec<u8>>> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let time =
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match rustix::event::poll(&mut [PollFd::new(&*out, PollFlags::IN)], Some(&time)) {
            Ok(0) if left.is_zero() => return Err(silent()),
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut piece = vec![0; 4096];
        let count = out.read(&mut piece)?;
        piece.truncate(count);
        // Past the limit also where something comes all the time.
        return if count > 0 && left.is_zero() { Err(silent()) } else { Ok((count > 0).then_some(piece)) };
    }
}

fn read(path: &Path) -> io::Result<String> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(io::Error::new(error.kind(), format!("reading {}: {error}", path.display()))),
    }
}

fn odd(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// A line of passwd(5), if it is of this user.
fn account_in(line: &str, uid: u32) -> Option<Account> {
    let parts: Vec<&str> = line.split(':').collect();
    let [name, _, number, gid, _, home, ..] = parts.as_slice() else { return None };
    let is_one = !name.is_empty() && number.parse() == Ok(uid);
    is_one.then(|| Some(Account { name: name.to_string(), gid: gid.parse().ok()?, home: home.to_string() }))?
}

/// The groups of group(5) that name this user.
fn groups_in(text: &str, name: &str) -> Vec<u32> {
    let group = |line: &str| {
        let parts: Vec<&str> = line.split(':').collect();
        let [_, _, number, members] = parts.as_slice() else { return None };
        members.split(',').any(|member| member == name).then(|| number.parse().ok())?
    };
    text.lines().filter_map(group).collect()
}

/// `alice                27 100 10001`. None: it is something else.
fn initgroups_in(text: &str, name: &str) -> Option<Vec<u32>> {
    let numbers = text.strip_prefix(name)?;
    if !numbers.starts_with(char::is_whitespace) && !numbers.is_empty() || text.trim_end().contains('\n') {
        return None;
    }
    numbers.split_ascii_whitespace().map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `getent` that does what this script does; its database and key are `$1` and `$2`.
    fn scripted(script: &str, limit: Duration) -> Source {
        let words = vec!["-c".to_string(), script.to_string(), "getent".to_string()];
        Source::Getent { program: "/bin/sh".into(), words, limit }
    }

    const LONG: Duration = Duration::from_secs(30);

    fn alice() -> Account {
        Account { name: "alice".into(), gid: 10001, home: "/home/alice".into() }
    }

    #[test]
    fn a_user_of_a_directory_has_a_name_and_all_groups() {
        let source = scripted(
            "case $1 in passwd) echo 'alice:x:10002:10001:Alice, of the directory:/home/alice:/bin/sh';;
             initgroups) echo \"$2                 27 100 27\";; esac",
            LONG,
        );
        assert_eq!(source.account(10002).unwrap(), Some(alice()));
        assert_eq!(source.groups(&alice()).unwrap(), [27, 100, 10001]);
        // Somebody else's line is no answer.
        assert!(source.account(0).is_err());
        assert_eq!(scripted("exit 2", LONG).account(10002).unwrap(), None);
    }

    #[test]
    fn no_answer_is_no_right() {
        let failing =
            ["exit 3", "kill -9 $$", "echo", "echo bob 1 2", "echo alice 1 x", "echo alice 1; echo alice 2", "exit 2"];
        for script in failing {
            let source = scripted(script, LONG);
            assert!(source.groups(&alice()).is_err(), "{script}");
            assert!(script == "exit 2" || source.account(10002).is_err(), "{script}");
        }
        let option = Account { name: "-s".into(), ..alice() };
        assert!(scripted("echo -- -s 0", LONG).groups(&option).is_err());
    }

    #[test]
    fn a_directory_that_is_away_or_endless_is_waited_for_a_bounded_time_and_ended() {
        for script in ["exec sleep 60", "exec >&-; exec sleep 60", "while :; do echo; sleep 0.01; done"] {
            let begun = Instant::now();
            let error = scripted(script, Duration::from_millis(200)).groups(&alice()).unwrap_err();
            assert!(error.to_string().contains("it does not answer"), "{script}: {error}");
            assert!(begun.elapsed() < Duration::from_secs(20), "{script}");
        }
        let error = scripted("exec yes", LONG).account(10002).unwrap_err();
        assert!(error.to_string().contains("more than 1048576 bytes"), "{error}");
    }

    #[test]
    fn nothing_of_our_environment_reaches_it() {
        let source = scripted("test -z \"$CARGO_MANIFEST_DIR\" && test $PWD = / && exit 2; exit 3", LONG);
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
        assert_eq!(source.account(10002).unwrap(), None);
    }

    #[test]
    fn without_it_the_files_count() {
        let dir = tempfile::tempdir().unwrap();
        let (passwd, group) = (dir.path().join("passwd"), dir.path().join("group"));
        std::fs::write(&passwd, "root:x:0:0::/root:/bin/sh\nalice:x:10002:10001::/home/alice:/bin/sh\n").unwrap();
        std::fs::write(&group, "adm:x:4:bob,alice\nsudo:x:27:malice\nweb:x:5:alice\n").unwrap();
        let source = Source::Files { passwd, group };
        assert_eq!(source.account(10002).unwrap(), Some(alice()));
        assert_eq!(source.account(10003).unwrap(), None);
        assert_eq!(source.groups(&alice()).unwrap(), [4, 5, 10001]);
    }

    #[test]
    fn this_system_knows_root() {
        let root = account(0).unwrap().unwrap();
        assert_eq!((root.name.as_str(), root.gid), ("root", 0));
        assert!(groups(&root).unwrap().contains(&0));
        assert_eq!(account(4_000_111).unwrap(), None);
    }
}
