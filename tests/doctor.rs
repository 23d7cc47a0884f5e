//! `doctor`: what it finds on installs that are well, and on those that are not; that it changes nothing.
#![cfg(unix)]

mod kit;

use std::fs;

use kit::{Bundle, Install, Output};
use serde_json::Value;

/// The check of that name; what is looked at depends on the system, so others may be there.
fn check(output: &Output, code: &str) -> Value {
    let object = output.object();
    let all = object["checks"].as_array().unwrap();
    let found: Vec<&Value> = all.iter().filter(|check| check["code"] == code).collect();
    assert_eq!(found.len(), 1, "{code}: {object:#}");
    found[0].clone()
}

#[track_caller]
fn assert_found(output: &Output, code: &str, state: &str, words: &str) {
    let found = check(output, code);
    assert_eq!(found["state"], state, "{found:#}");
    assert!(found["message"].as_str().unwrap().contains(words), "{found:#}");
    assert_eq!(found["remedy"].is_null(), state == "ok", "{found:#}");
}

fn doctor(install: &Install) -> Output {
    let before = (install.tree(), install.exists(".updater"));
    let output = install.updater(&["doctor", "--json"]);
    assert_eq!((install.tree(), install.exists(".updater")), before, "doctor changed something");
    let object = output.object();
    assert_eq!(object["schema"], 1);
    let problems = object["checks"].as_array().unwrap().iter().filter(|check| check["state"] == "problem").count();
    assert_eq!(object["ok"], problems == 0);
    assert_eq!(output.code, i32::from(problems > 0), "{object:#}");
    for check in object["checks"].as_array().unwrap() {
        assert!(check["ms"].is_u64(), "{check}");
    }
    output
}

#[test]
fn an_install_that_is_well_is_told_so_and_what_is_worth_knowing_first() {
    let install = Install::running();
    let output = doctor(&install);
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(output.object()["checks"][0]["code"], "trust");
    assert_found(&output, "trust", "warning", "not authenticated");
    assert_found(&output, "server", "ok", &format!("on port {}", install.port));
    assert_found(&output, "answer", "ok", "http: 200");
    assert_found(&output, "databases", "ok", "instance/app.db");
    assert_found(&output, "shim", "ok", "no legacy server");
    let words = install.updater(&["doctor"]).expect(0).stdout;
    assert!(words.starts_with("warning  trust: "), "{words}");
    assert!(words.ends_with("nothing stands in the way of an update\n"), "{words}");
    install.apply(&install.bundle("2.0")).expect(0);
    assert_found(&doctor(&install), "tree", "ok", "4 files are as version");
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let install = Install::running();
    install.apply(&install.bundle("2.0")).expect(0);
    install.stop();
    install.write("app/core.py", "# touched\n");
    install.write("instance/app.db", "no database any more");
    install.write("app/utils/remote_updater.py", "# the legacy updater\n");
    let backup = fs::read_dir(install.root.join("backups")).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(backup.join("app/old.py")).unwrap();
    install.write("updater.toml", "[server]\nprot = 1\n");
    let output = doctor(&install);
    assert_eq!(output.code, 1);
    assert_found(&output, "settings", "problem", "unknown key; the nearest known one is port");
    assert_found(&output, "server", "warning", "the server is not running");
    assert_found(&output, "tree", "problem", "app/core.py and 0 others");
    assert_found(&output, "databases", "problem", "instance/app.db is damaged");
    assert_found(&output, "backups", "warning", backup.file_name().unwrap().to_str().unwrap());
    assert_found(&output, "shim", "warning", "legacy server");
    install.write("updater.toml", "[[hooks.after_swap]]\nrun = [\"scripts/none.sh\"]\nchanges = [\"instance\"]\n");
    assert_found(&doctor(&install), "hooks", "warning", "scripts/none.sh");
    install.write("updater.toml", "[[hooks.after_swap]]\nrun = [\"sh\"]\nchanges = [\"backups\"]\n");
    assert_found(&doctor(&install), "hooks", "problem", "a hook cannot change backups");
    assert!(check(&output, "trust")["message"].as_str().unwrap().contains("unauthenticated request"));
}

#[test]
fn a_bundle_that_failed_twice_and_an_update_that_was_cut_off_are_told() {
    let install = Install::running();
    install.write("updater.toml", "[server]\nsoak = \"100ms\"\n");
    for _ in 0..2 {
        install.apply(&Bundle::release("2.0", "EXIT = 1\n").file("VERSION", "2.0\n")).expect(3);
    }
    assert_found(&doctor(&install), "known-bad", "warning", "2.0 failed here twice");
    fs::write(install.root.join(".updater/journal"), "torn").unwrap();
    assert_found(&doctor(&install), "interrupted", "problem", "cannot be used");
}

#[test]
fn a_stranger_on_the_port_is_named() {
    let install = Install::new();
    let stranger = std::net::TcpListener::bind(("127.0.0.1", install.port)).unwrap();
    install.write_settings("");
    let output = doctor(&install);
    assert_found(&output, "server", "problem", &format!("pid {}", std::process::id()));
    drop(stranger);
    // The drop-in of another root is not ours.
    fs::create_dir_all(install.root.join("app")).unwrap();
    install.updater(&["shim"]).expect(0);
    assert_found(&doctor(&install), "shim", "ok", "calls this program");
    let place = install.root.join("app/remote_updater.py");
    fs::write(&place, fs::read_to_string(&place).unwrap().replace("ROOT = \"", "ROOT = \"/elsewhere")).unwrap();
    assert_found(&doctor(&install), "shim", "warning", "another program or root");
}
