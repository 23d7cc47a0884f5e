//! The one contract between the pipeline and the systems it runs on. Everything that differs between
//! Linux and Windows stands below this folder; no other module asks which system it is on.
//! Refuses policy: these are primitives, and the pipeline decides.
//!
//! `contract` names what both folders give, with its type, so that a build of either system finds what the other has
//! alone.
//!
//! | room | what it gives |
//! | --- | --- |
//! | `files` | metadata of a file, names as bytes, owner, mode and time, flushes, reflinks, free space |
//! | `processes` | identity, held handles, signals, credentials |
//! | `starts` | the suspended start of a server (a trait: by this process, or by root's half) |
//! | `service` | service managers: a unit's stop and start (a trait: systemd, Windows services, root's half around one) |
//! | `boot` | the units that mend an install at boot and prove its health after |
//! | `monitor` | root's half, where root works for the install of another user |
//! | `escape` | what ties this process to another one, and the ways out |
//! | `interrupt` | whether somebody asked this process to end, for long work |
//! | `sockets` | who listens on which port |
//! | `ancestry` | the line of parents above a process |
//! | `process_table` | all processes at once |
//! | `remedies` | what an operator types here |
//! | `programs` | programs known by name on every system |
//! | `trust` | who beside root has a say in a path; a way to a file that nobody can bend |

use serde::{Deserialize, Serialize};

mod contract;
pub mod interrupt;
pub mod ancestry;
pub mod process_table;
pub mod programs;
pub mod service;
pub mod sockets;
pub mod starts;

#[cfg(unix)]
mod linux;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
use linux as platform;
#[cfg(unix)]
pub use linux::{boot, escape, files, monitor, processes, remedies, trust};
#[cfg(windows)]
use windows as platform;
#[cfg(windows)]
pub use windows::{boot, escape, files, monitor, processes, remedies, trust};

/// What a directory entry is; links are never followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileType {
    File,
    Folder,
    Link,
    Other,
}

/// Who owns a file, in the system's numbers (0, 0 on Windows, where ownership is inherited).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// The variables of root's environment that a program gets which is another user's, or which works in an install that
/// another user's server runs in: what is root's secret stays root's, and nothing loads code.
const PASSED_ON: [&str; 13] = [
    "PATH",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TERM",
    "NO_COLOR",
    "PORT",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
];
const PASSED_ON_STARTS: [&str; 3] = ["LC_", "UPDATER_", "PIP_"];

/// True for a variable that root passes on.
pub fn is_passed_on(name: &std::ffi::OsStr) -> bool {
    let is_one = |name: &str| PASSED_ON.contains(&name) || PASSED_ON_STARTS.iter().any(|start| name.starts_with(start));
    name.to_str().is_some_and(is_one)
}

/// Who beside root has a say in what lies at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Distrust {
    /// This part of it is another user's.
    OfAnother { place: std::path::PathBuf, owner: Owner },
    /// This part of it is root's, and its group or others may write there.
    Writable { place: std::path::PathBuf },
}

impl Distrust {
    pub fn place(&self) -> &std::path::Path {
        match self {
            Distrust::OfAnother { place, .. } | Distrust::Writable { place } => place,
        }
    }
}

/// What the system says of one directory entry. Times in nanoseconds since 1970 (UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMetadata {
    pub kind: FileType,
    pub size: u64,
    /// Permission bits (0o7777); on Windows 0o644, or 0o444 when read-only.
    pub mode: u32,
    pub owner: Owner,
    pub mtime: i64,
    pub ctime: i64,
    pub volume: u64,
    pub inode: u64,
    pub links: u64,
}

/// Access lists and other extended attributes of an entry, names and values as the system stores them (none on Windows,
/// where access lists are inherited).
pub type Attributes = std::collections::BTreeMap<Vec<u8>, Vec<u8>>;

/// A process that cannot be confused with a later one of the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: u32,
    /// Linux: field 22 of `/proc/PID/stat` (clock ticks since boot). Windows: FILETIME of creation.
    pub start: u64,
}

/// Under which identity a process runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub umask: u32,
    /// The name of the user, or the number as text.
    pub user: String,
}

/// A unit of the service manager: what is stopped and started in place of its processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    pub name: String,
    /// Whose own service manager it belongs to; None: the system's.
    #[serde(default)]
    pub user: Option<u32>,
}

impl Unit {
    /// A unit of the system's service manager.
    pub fn system(name: &str) -> Unit {
        Unit { name: name.to_string(), user: None }
    }
}

impl std::fmt::Display for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// Why the end of a server would end us, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tie {
    /// We descend from it.
    Tree,
    /// It leads our session: its end hangs up our terminal.
    Session,
    /// The service manager ends all that belongs to its unit (or Windows service).
    Unit(Unit),
}

impl std::fmt::Display for Tie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Tie::Tree => f.write_str("the server is above it in the process tree"),
            Tie::Session => f.write_str("the server leads its session"),
            Tie::Unit(unit) => write!(f, "both belong to the service {unit}"),
        }
    }
}

/// How a process gets out of what ends with the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EscapeRoute {
    /// A session of its own, adopted by init.
    Session,
    /// A transient unit of the system's service manager, or of our own user's.
    Transient { of_user: bool },
    /// The unit that `init --systemd-helper` installed.
    Helper,
}

impl EscapeRoute {
    /// The word of `plan` for it.
    pub fn word(&self) -> &'static str {
        match self {
            EscapeRoute::Session => "session",
            EscapeRoute::Transient { .. } => "systemd-run",
            EscapeRoute::Helper => "systemd-helper",
        }
    }
}

/// What the process outside is to do, and for whom.
#[derive(Debug)]
pub struct Handoff<'a> {
    /// The command line without the program.
    pub argv: &'a [std::ffi::OsString],
    /// The caller's folder.
    pub cwd: &'a std::path::Path,
    pub update_id: &'a str,
    /// A folder of ours in which both processes meet.
    pub place: &'a std::path::Path,
    /// Where its standard output and error go; None: to ours.
    pub outputs: Option<&'a [std::fs::File; 2]>,
}

/// What the process outside tells the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// It holds the lock.
    Begun,
    /// The server is about to be stopped, and all that belongs to it may be signalled.
    Stopping,
    /// It ended with this exit code.
    Ended(u8),
    /// It ended without a word.
    Lost,
}

/// What root may install of the system for an install.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SystemPart {
    /// Mends an interrupted update at boot.
    BootRecovery,
    /// Runs updates outside the server's unit for a user who may not leave it.
    Helper,
}

impl SystemPart {
    /// The option of `init` that installs it.
    pub fn option(self) -> &'static str {
        match self {
            SystemPart::BootRecovery => "--boot-recovery",
            SystemPart::Helper => "--systemd-helper",
        }
    }
}

/// What a part of the system is installed for.
#[derive(Debug, Clone)]
pub struct BootPlan {
    pub root: std::path::PathBuf,
    /// The program that is run.
    pub exe: std::path::PathBuf,
    /// Whose start waits for the mending; None: not known.
    pub server: Option<Unit>,
}

/// The command line and environment of a running process, word for word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    pub argv: Vec<String>,
    /// In order; hidden Windows variables such as `=C:` included.
    pub env: Vec<(String, String)>,
}

/// How a server is started: what it was, captured before the stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// argv[0] decides which program runs: it alone shows a venv.
    pub argv: Vec<String>,
    pub cwd: std::path::PathBuf,
    /// The whole environment, in order.
    pub env: Vec<(String, String)>,
    pub stdout: std::path::PathBuf,
    pub stderr: std::path::PathBuf,
    /// None: ours.
    pub credentials: Option<Credentials>,
}
