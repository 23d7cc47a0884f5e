//! All processes of this machine at once, by the crate `sysinfo`: what tells an operator which program one is.
//! Refuses to be an identity: it counts whole seconds. Who is signalled is known by `processes::identity`.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use sysinfo::{Pid, ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System, UpdateKind};

/// What the snapshot holds of one process.
#[derive(Debug, Clone)]
pub struct Entry {
    pub parent: Option<u32>,
    pub argv: Vec<String>,
    pub cwd: Option<PathBuf>,
    pub exe: Option<PathBuf>,
    /// When it was started, in whole seconds since 1970: good enough to tell a parent from a later process of its pid.
    pub started: u64,
}

/// Every process that has not ended, by its pid; threads are left out. Errors: the system does not tell.
pub fn read() -> io::Result<HashMap<u32, Entry>> {
    let mut system = System::new().map_err(|error| io::Error::other(error.to_string()))?;
    let what = ProcessRefreshKind::nothing()
        .with_cmd(UpdateKind::Always)
        .with_cwd(UpdateKind::Always)
        .with_exe(UpdateKind::Always);
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
    let mut all = HashMap::new();
    for (pid, process) in system.processes() {
        let ended = matches!(process.status(), ProcessStatus::Zombie | ProcessStatus::Dead);
        if ended || process.thread_kind().is_some() {
            continue;
        }
        let text = |part: &OsString| part.to_string_lossy().into_owned();
        let entry = Entry {
            parent: process.parent().map(Pid::as_u32),
            argv: process.cmd().iter().map(text).collect(),
            cwd: process.cwd().map(Path::to_path_buf),
            exe: process.exe().map(Path::to_path_buf),
            started: process.start_time(),
        };
        all.insert(pid.as_u32(), entry);
    }
    Ok(all)
}
