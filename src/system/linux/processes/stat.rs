//! Who runs under a pid, and its place in the tree, by `/proc/PID/stat`.
//! Refuses to take a process that is hidden for one that is gone.

use crate::system::ProcessId;
use std::io;

/// True for the errors by which /proc says that a process is gone.
fn is_gone(error: &io::Error) -> bool {
    let esrch = rustix::io::Errno::SRCH.raw_os_error();
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(esrch)
}

/// The error of a process that may not be looked at, with the reason where the mount of /proc is it: anybody may read
/// what is asked for here, unless other users' processes are hidden. `PermissionDenied` then.
pub(in crate::system::linux) fn not_shown(pid: u32, error: io::Error) -> io::Error {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let why = match hidepid_in(&mounts) {
        Some(how) if error.kind() == io::ErrorKind::PermissionDenied => {
            format!("process {pid} is another user's, and the system hides those (/proc is mounted with hidepid={how})")
        }
        _ => format!("process {pid} cannot be looked at: {error}"),
    };
    io::Error::new(error.kind(), why)
}

/// How /proc hides processes, by the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)): a number, or a word since
/// Linux 5.8. None: it does not.
fn hidepid_in(mountinfo: &str) -> Option<&str> {
    // The last one lies on top.
    let is_it = |line: &&str| line.split(' ').nth(4) == Some("/proc");
    let (_, options) = mountinfo.lines().rfind(is_it)?.split_once(" - ")?;
    let how = options.split(' ').nth(2)?.split(',').find_map(|option| option.strip_prefix("hidepid="))?;
    (!["0", "off"].contains(&how)).then_some(how)
}

/// The fields of `/proc/PID/stat` that matter here.
pub(super) struct Stat {
    pub(super) state: char,
    pub(super) parent: u32,
    session: u32,
    start: u64,
}

pub(super) fn stat(pid: u32) -> io::Result<Option<Stat>> {
    let bytes = match std::fs::read(format!("/proc/{pid}/stat")) {
        Ok(bytes) => bytes,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(not_shown(pid, error)),
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

/// Errors: the list of processes cannot be read, or does not hold this process.
pub fn list_is_readable() -> io::Result<()> {
    let unreadable =
        |error: io::Error| io::Error::new(error.kind(), format!("the list of processes cannot be read: {error}"));
    let own = identity(std::process::id()).map_err(unreadable)?;
    own.ok_or_else(|| io::Error::other("the list of processes does not hold this process"))?;
    std::fs::read_dir("/proc").map(drop).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_does_not_confuse_the_identity() {
        let stat = parse_stat("7 (a) R 1 (x y)) S 42 7 7 0 -1 4 5 6 7 8 9 10 11 12 20 0 1 0 987 1 1").unwrap();
        assert_eq!((stat.state, stat.parent, stat.start), ('S', 42, 987));
        assert!(parse_stat("7 (a").is_none());
    }

    #[test]
    fn a_mount_that_hides_processes_is_known_by_its_option() {
        let line = |options: &str| format!("21 27 0:20 / /proc rw,relatime shared:5 - proc proc rw{options}\n");
        assert_eq!(hidepid_in(&line(",hidepid=noaccess")), Some("noaccess"));
        assert_eq!(hidepid_in(&line(",gid=4,hidepid=2")), Some("2"));
        for options in ["", ",hidepid=0", ",hidepid=off"] {
            assert_eq!(hidepid_in(&(line(",hidepid=1") + &line(options))), None, "{options}");
        }
    }
}
