//! Whose files and processes: the server comes back as its own user, and nothing of the caller's stays
//! in its install. Run as root it uses another user for the server, else the caller himself.
#![cfg(target_os = "linux")]

mod kit;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::process::Command;

use kit::{Bundle, Install};

/// `nobody` on every Linux; the groups are ids that need no entry anywhere.
const USER: u32 = 65534;
const GROUPS: &str = "4711,65534";

fn uid() -> u32 {
    fs::metadata("/proc/self").unwrap().uid()
}

/// The lines of `/proc/PID/status` that say who a process is.
fn identity(pid: u64) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let wanted = |line: &&str| ["Uid:", "Gid:", "Groups:"].iter().any(|name| line.starts_with(name));
    status.lines().filter(wanted).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

fn give_away(install: &Install) {
    fs::set_permissions(install.scratch(), fs::Permissions::from_mode(0o755)).unwrap();
    for item in walkdir::WalkDir::new(&install.root) {
        lchown(item.unwrap().path(), Some(USER), Some(USER)).unwrap();
    }
}

/// Starts the server of an install as `USER` with `GROUPS` where we may, else as ourselves.
fn start(install: &Install) -> u32 {
    let server = install.scratch().join("standin");
    fs::copy(kit::standin(), &server).unwrap();
    let mut command = if uid() == 0 {
        give_away(install);
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--groups", GROUPS]).arg(server);
        command
    } else {
        Command::new(server)
    };
    command.arg("run.py").env("PORT", install.port.to_string());
    install.start_command(command);
    fs::metadata(&install.root).unwrap().uid()
}

/// All but the log that the caller's own shell opened for the first server.
fn assert_owned(install: &Install, owner: u32) {
    for item in walkdir::WalkDir::new(&install.root) {
        let item = item.unwrap();
        if item.file_name() == "server.log" {
            continue;
        }
        assert_eq!(item.metadata().unwrap().uid(), owner, "the owner of {}", item.path().display());
    }
}

#[test]
fn the_server_comes_back_as_its_own_user_and_the_install_stays_his() {
    let install = Install::new();
    let owner = start(&install);
    assert_eq!(owner, if uid() == 0 { USER } else { uid() });
    let before = identity(install.pid());
    install.apply(&install.bundle("2.0")).expect(0);
    assert_eq!(install.version(), "2.0");
    assert_eq!(identity(install.pid()), before);
    assert_owned(&install, owner);
}

#[test]
fn after_a_rollback_too() {
    let install = Install::new();
    let owner = start(&install);
    let before = identity(install.pid());
    install.apply(&Bundle::release("2.0", "EXIT = 1\n")).expect(3);
    assert_eq!(install.version(), "1.0");
    assert_eq!(identity(install.pid()), before);
    assert_owned(&install, owner);
}

#[test]
fn after_a_refusal_too() {
    let install = Install::new();
    let owner = start(&install);
    install.apply(&Bundle::release("2.0", "").file("../../evil.txt", "x")).expect(6);
    assert_eq!(install.version(), "1.0");
    assert_owned(&install, owner);
}
