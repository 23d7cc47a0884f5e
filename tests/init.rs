//! `init`: the settings it writes, and what it refuses where recovery at boot cannot be installed.

mod kit;

use kit::Install;

#[test]
fn the_settings_tell_what_runs_and_are_not_overwritten() {
    let install = Install::running();
    let done = install.updater(&["init", "--json"]).expect(0).object();
    assert_eq!((&done["port"], &done["schema"]), (&install.port.into(), &1.into()));
    let text = install.read("updater.toml");
    assert!(text.contains(&format!("\nport = {}\n", install.port)) && text.contains("run.py"), "{text}");
    install.write("updater.toml", "[server]\nport = 1\n");
    let refused = install.updater(&["init"]).expect(1);
    assert!(refused.stderr.contains("--force"), "{refused:?}");
    assert_eq!(install.read("updater.toml"), "[server]\nport = 1\n");
    install.updater(&["init", "--force"]).expect(0);
    assert_eq!(install.read("updater.toml"), text);
    install.updater(&["init", "--remove"]).expect(2);
    // What it wrote serves an update.
    install.apply(&install.bundle("2.0")).expect(0);
    assert_eq!(install.version(), "2.0");
}

#[test]
fn without_a_service_manager_recovery_at_boot_is_refused_with_a_remedy() {
    if std::path::Path::new("/run/systemd/system").exists() {
        // There it is the business of scripts/test-systemd, in a box: never on a developer's own system.
        return;
    }
    let install = Install::new();
    for more in [&["init", "--boot-recovery", "--json"][..], &["init", "--boot-recovery", "--remove", "--json"]] {
        let error = install.updater(more).expect(1).object()["error"].clone();
        assert_eq!(error["code"], "no-service-manager");
        assert!(error["remedy"].as_str().unwrap().contains("recover --boot"));
    }
}
