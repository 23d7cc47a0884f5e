//! An install of another user's, as root sees it; without root it is our own.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::process::{Child, Command, ExitStatus};

use super::{Install, standin};

/// `nobody` on every Linux.
pub const NOBODY: u32 = 65534;

pub fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Gives everything in the install to that user.
pub fn give_away(install: &Install) {
    fs::set_permissions(install.scratch(), fs::Permissions::from_mode(0o755)).unwrap();
    let owned = walkdir::WalkDir::new(&install.root).into_iter().map(Result::unwrap);
    for item in owned {
        let data = item.path().symlink_metadata().unwrap();
        lchown(item.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        if !data.is_symlink() {
            // The system clears setuid bits with a change of the owner.
            fs::set_permissions(item.path(), data.permissions()).unwrap();
        }
    }
}

/// Gives the install away and starts its server as its owner, where we may.
pub fn start(install: &Install) -> u32 {
    if !is_root() {
        return install.start();
    }
    give_away(install);
    let (server, user) = (install.scratch().join("standin"), NOBODY.to_string());
    fs::copy(standin(), &server).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]).arg(server);
    command.arg("run.py").env("PORT", install.port.to_string());
    install.start_command(command)
}

/// The other half of an updater that works for another user's install: its child of the same program. A server that it
/// started is none.
pub fn other_half(updater: u32) -> Option<u32> {
    let is_half = |entry: &fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let is_ours = line.starts_with(b"updater\0") || line.starts_with(env!("CARGO_BIN_EXE_updater").as_bytes());
        (parent == updater && is_ours).then(|| entry.file_name().to_str()?.parse().ok())?
    };
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| is_half(&entry))
}

/// Kills both halves at once.
pub fn kill_both(updater: &mut Child, other: Option<u32>) -> ExitStatus {
    updater.kill().unwrap();
    if let Some(pid) = other.and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
        // It may have ended by itself.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    updater.wait().unwrap()
}
