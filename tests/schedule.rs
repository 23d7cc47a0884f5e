//! Nobody watches: no terminal, no home, no environment, closed standard handles; what failed by its own fault is
//! not tried for ever, and `status` keeps saying so.
#![cfg(unix)]

mod kit;

use std::fs;
use std::process::{Command, Stdio};

use kit::{Bundle, Install, Output, run};
use serde_json::Value;

/// The updater as a scheduler starts it: an empty environment, a folder that is not its own.
fn scheduled(install: &Install, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_updater"));
    command.arg("--root").arg(&install.root).args(arguments).env_clear().current_dir("/");
    run(command)
}

fn warning(install: &Install) -> Option<Value> {
    let status = install.updater(&["status", "--json"]).expect(0).object();
    status["warnings"].as_array().unwrap().iter().find(|warning| warning["code"] == "known-bad").cloned()
}

#[test]
fn an_empty_environment_suffices() {
    let install = Install::running();
    install.write_settings("");
    let bundle = install.save(&install.bundle("2.0"));
    let arguments = ["apply", bundle.to_str().unwrap(), "--json", "--unattended"];
    assert_eq!(scheduled(&install, &arguments).expect(0).outcome(), "applied");
    let pid = install.pid();
    assert_eq!(scheduled(&install, &arguments).expect(0).outcome(), "already-current");
    assert_eq!(install.pid(), pid, "a server that is well was touched");
    install.stop();
    assert_eq!(scheduled(&install, &arguments).expect(0).outcome(), "already-current");
    assert_eq!(install.version(), "2.0", "a stopped server was not started");
    install.write("app/core.py", "# damaged\n");
    assert_eq!(scheduled(&install, &arguments).expect(0).outcome(), "repaired");
    assert_eq!(install.read("app/core.py"), "# core of 2.0\n");
}

#[test]
fn closed_standard_handles_do_no_harm() {
    let install = Install::running();
    let bundle = install.save(&install.bundle("2.0"));
    let line = format!(
        "exec '{}' --root '{}' apply '{}' <&- >&- 2>&-",
        env!("CARGO_BIN_EXE_updater"),
        install.root.display(),
        bundle.display()
    );
    let mut child = Command::new("sh").args(["-c", &line]).stdin(Stdio::null()).spawn().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(install.version(), "2.0");
    // Nothing of ours was taken for an output: every file is what it should be.
    assert_eq!(install.read("app/core.py"), "# core of 2.0\n");
    let events = fs::read_dir(install.root.join(".updater/events")).unwrap().next().unwrap().unwrap();
    for line in fs::read_to_string(events.path()).unwrap().lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    }
}

#[test]
fn a_bundle_that_failed_twice_by_its_own_fault_is_skipped_and_status_keeps_saying_so() {
    let install = Install::running();
    let bad = install.save(&Bundle::release("2.0", "EXIT = 1\n"));
    let arguments = ["apply", bad.to_str().unwrap(), "--json", "--unattended"];
    for _ in 0..2 {
        assert_eq!(warning(&install), None);
        install.updater(&arguments).expect(3);
    }
    let pid = install.pid();
    let skipped = install.updater(&arguments).expect(0);
    assert_eq!(skipped.outcome(), "skipped");
    assert_eq!(install.pid(), pid);
    let seen = warning(&install).expect("status says nothing of it");
    assert!(seen["message"].as_str().unwrap().contains("2 times") && seen["remedy"].is_string(), "{seen}");
    // Another bundle does not forgive it; only its own success does.
    install.apply(&install.bundle("2.1")).expect(0);
    assert!(warning(&install).is_some());
    install.updater(&[&arguments[..], &["--retry-failed"]].concat()).expect(3);
    assert!(warning(&install).unwrap()["message"].as_str().unwrap().contains("3 times"));
}

#[test]
fn what_the_bundle_is_not_to_blame_for_does_not_count() {
    let install = Install::running();
    let bundle = install.save(&install.bundle("2.0"));
    let lock = fs::create_dir_all(install.root.join(".updater"))
        .and_then(|()| fs::File::create(install.root.join(".updater/lock")))
        .unwrap();
    lock.lock().unwrap();
    for _ in 0..3 {
        install.apply_with(&bundle, &["--unattended"]).expect(5);
    }
    drop(lock);
    for _ in 0..3 {
        let url = format!("http://127.0.0.1:{}/a.zip", kit::free_port());
        install.updater(&["apply", &url, "--json", "--unattended"]).expect(1);
    }
    assert_eq!(warning(&install), None);
    install.apply_with(&bundle, &["--unattended"]).expect(0);
    assert_eq!(install.version(), "2.0");
}

#[test]
fn a_success_forgives() {
    let install = Install::running();
    install.write("instance/switch.txt", "");
    let bundle = install.save(&Bundle::release("2.0", "REQUIRE = \"uploads/wanted.txt\"\n"));
    let arguments = ["apply", bundle.to_str().unwrap(), "--json", "--unattended"];
    for _ in 0..2 {
        install.updater(&arguments).expect(3);
    }
    assert!(warning(&install).is_some());
    install.write("uploads/wanted.txt", "");
    install.updater(&[&arguments[..], &["--retry-failed"]].concat()).expect(0);
    assert_eq!((install.version().as_str(), warning(&install)), ("2.0", None));
}

#[test]
fn logs_and_events_are_kept_by_count() {
    let install = Install::running();
    let bundle = install.save(&install.bundle("2.0"));
    for _ in 0..24 {
        install.apply_with(&bundle, &[]).expect(0);
    }
    for folder in ["events", "log"] {
        let count = fs::read_dir(install.root.join(".updater").join(folder)).unwrap().count();
        assert!(count <= 21, "{count} files in {folder}");
    }
}
