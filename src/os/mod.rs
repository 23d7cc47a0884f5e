//! The one contract between the pipeline and the systems it runs on. Everything that differs between
//! Linux and Windows stands below this folder; no other module asks which system it is on.
//! Refuses policy: these are primitives, and the pipeline decides.
//!
//! | room | what it gives |
//! | --- | --- |
//! | `files` | facts of a file, names as bytes, owner, mode and time, flushes, reflinks, free space |
//! | `processes` | identity, held handles, signals, credentials, held start of a server |
//! | `service` | which service manager unit a process belongs to, its stop and start |
//! | `boot` | the units that mend an install at boot and prove its health after |
//! | `escape` | what ties this process to another one |

use serde::{Deserialize, Serialize};

#[cfg(unix)]
mod linux;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
pub use linux::{boot, escape, files, processes, service};
#[cfg(windows)]
pub use windows::{boot, escape, files, processes, service};

/// What a directory entry is; links are never followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
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

/// What the system says of one directory entry. Times in nanoseconds since 1970 (UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub kind: Kind,
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

/// What is installed so that an interrupted update is mended at boot.
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
