//! Systems that are set up otherwise, each made for one process in a mount namespace of its own: one that hides
//! processes, one whose users come from a directory. Only root can make them; elsewhere these tests say that they were
//! not tried.
#![cfg(target_os = "linux")]

mod kit;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use kit::Install;
use kit::owner::{NOBODY, give_away, is_root};

/// True where a mount in a namespace of its own can be made and is seen by nobody else. It says so where not.
fn may_mount() -> bool {
    let mounts = || fs::read_to_string("/proc/mounts").unwrap();
    let before = mounts();
    let try_out = ["-m", "sh", "-c", "mount -t proc -o hidepid=1 proc /proc && grep -q hidepid= /proc/mounts"];
    let is_made = is_root() && Command::new("unshare").args(try_out).status().is_ok_and(|status| status.success());
    assert_eq!(mounts(), before, "the mount of the namespace is seen outside of it");
    if !is_made {
        eprintln!("WARNING: no mount namespace can be made here (root, unshare, Linux 5.8): NOT TRIED");
    }
    is_made
}

/// The updater in a namespace that `prepare`, a line of shell, has set up.
fn inside(install: &Install, prepare: &str, as_user: Option<u32>, words: &[&str]) -> Command {
    let tool = install.scratch().join("updater");
    fs::copy(env!("CARGO_BIN_EXE_updater"), &tool).unwrap();
    let user = as_user.map_or_else(String::new, |id| format!("setpriv --reuid {id} --regid {id} --clear-groups"));
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &format!("{prepare} && exec {user} \"$@\""), "sh"]);
    command.arg(tool).arg("--root").arg(&install.root).args(words);
    command
}

#[test]
fn where_processes_are_hidden_an_update_names_the_mount_option_and_the_remedy() {
    if !may_mount() {
        return;
    }
    let install = Install::new();
    kit::owner::start(&install);
    let bundle = install.save(&install.bundle("2.0"));
    fs::set_permissions(&bundle, fs::Permissions::from_mode(0o644)).unwrap();
    let before = install.pid();
    let bundle = bundle.to_str().unwrap();
    let hide = "mount -t proc -o hidepid=1 proc /proc";
    let output = kit::run(inside(&install, hide, Some(NOBODY), &["apply", bundle, "--json"])).expect(1);
    let error = output.finished()["error"].clone();
    assert_eq!(error["code"], "processes-hidden", "{error}");
    assert!(error["message"].as_str().unwrap().contains("hidepid=noaccess"), "{error}");
    assert!(error["remedy"].as_str().unwrap().contains("remount,hidepid=0 /proc"), "{error}");
    assert_eq!((install.pid(), install.version().as_str()), (before, "1.0"));
    // Root sees them all, and so does everybody where they are not hidden.
    kit::run(inside(&install, hide, None, &["apply", bundle])).expect(0);
    assert_eq!(install.version(), "2.0");
}

/// A `getent` in whose directory the owner of the install is `scout`.
fn directory(install: &Install, initgroups: &str) -> String {
    let script = install.scratch().join("getent");
    let user = format!("scout:x:{NOBODY}:{NOBODY}:A Scout:/nonexistent:/bin/sh");
    let text = format!("#!/bin/sh\ncase $1 in passwd) echo '{user}';; initgroups) {initgroups};; esac\n");
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let real = fs::canonicalize("/usr/bin/getent").unwrap();
    format!("mount --bind '{}' '{}'", script.display(), real.display())
}

#[test]
fn the_groups_of_a_user_of_a_directory_are_his_under_root_too() {
    if !may_mount() {
        return;
    }
    let install = Install::new();
    install.write("cache/made.txt", "old\n");
    let hook = "id -G >cache/made.txt; echo $USER >>cache/made.txt";
    install.write(
        "updater.toml",
        format!("[server]\nsoak = \"50ms\"\n[[hooks.after_swap]]\nrun = [\"sh\", \"-c\", \"{hook}\"]\nchanges = [\"cache\"]\n"),
    );
    give_away(&install);
    let bundle = install.save(&install.bundle("2.0"));
    let ask = directory(&install, "echo scout 4711 4712");
    kit::run(inside(&install, &ask, None, &["apply", bundle.to_str().unwrap(), "--no-start"])).expect(0);
    assert_eq!(install.read("cache/made.txt"), format!("{NOBODY} 4711 4712\nscout\n"));
}

#[test]
fn a_directory_that_fails_gives_the_owner_no_rights_and_nothing_is_changed() {
    if !may_mount() {
        return;
    }
    let install = Install::new();
    give_away(&install);
    let bundle = install.save(&install.bundle("2.0"));
    let ask = directory(&install, "exit 3");
    let output =
        kit::run(inside(&install, &ask, None, &["apply", bundle.to_str().unwrap(), "--no-start", "--json"])).expect(1);
    let text = format!("{output:?}");
    assert!(text.contains("getent initgroups scout"), "{text}");
    assert!(install.read("run.py").contains("1.0") && !install.exists(".updater/receipt.json"), "it was changed");
}
