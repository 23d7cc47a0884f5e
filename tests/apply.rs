//! The built updater against real servers: what `apply` and its neighbours promise, one test each.

mod kit;

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::process::Stdio;

use kit::{Bundle, Install, Output, ping};
use serde_json::{Value, json};

const BROKEN: &str = "EXIT = 1\n";

// ---- a good update ----

#[test]
fn a_good_bundle_updates_the_running_server_on_its_port_with_its_environment() {
    let install = Install::adopted();
    let before = install.answer();
    let output = install.apply(&install.bundle("2.0")).expect(0);
    let after = install.answer();

    assert_eq!(output.outcome(), "applied");
    assert_eq!(after["version"], "2.0");
    assert_ne!(after["pid"], before["pid"]);
    for same in ["argv", "mark", "root"] {
        assert_eq!(after[same], before[same], "{same}");
    }
    let finished = output.finished();
    assert_eq!(finished["port"], install.port);
    assert_eq!(finished["pid"], after["pid"]);
    assert!(finished["downtime_ms"].as_u64().is_some(), "{finished}");
    assert_eq!(install.read("app/core.py"), "# core of 2.0\n");
    assert!(!install.exists("app/old.py"), "a file that the release dropped is still there");
    let backup = finished["backup"].as_str().unwrap();
    assert_eq!(install.read(&format!("backups/{backup}/app/core.py")), "# core of 1.0\n");
    assert_eq!(install.read(&format!("backups/{backup}/app/old.py")), "# gone in 2.0\n");
    assert!(install.exists(&format!("backups/{backup}/backup.json")));
}

#[test]
fn the_same_content_again_is_already_current_and_the_server_is_not_touched() {
    let install = Install::running();
    install.apply(&install.bundle("2.0")).expect(0);
    let pid = install.pid();
    let again = install.apply(&install.bundle("2.0")).expect(0);
    assert_eq!(again.outcome(), "already-current");
    assert_eq!(again.finished()["downtime_ms"], Value::Null);
    assert_eq!(install.pid(), pid);
}

#[test]
fn a_stopped_server_is_updated_and_started_as_the_settings_say() {
    let install = Install::new();
    install.write_settings("");
    install.apply(&install.bundle("2.0")).expect(0);
    assert_eq!(install.version(), "2.0");
}

#[test]
fn preserved_data_stays_and_nothing_of_a_database_set_is_added() {
    let install = Install::running();
    let kept = ["uploads/a.txt", ".env", "config/settings.json"];
    let before: Vec<String> = kept.iter().map(|path| install.read(path)).collect();
    let bundle = install
        .bundle("2.0")
        .file("uploads/a.txt", "shipped\n")
        .file("uploads/shipped.txt", "new\n")
        .file(".env", "SECRET=2\n")
        .file("config/settings.json", "{}\n")
        .file("instance/app.db", "not a database")
        .file("instance/app.db-wal", "a foreign log")
        .file("instance/app.db-journal", "a foreign journal");
    install.apply(&bundle).expect(0);

    let after: Vec<String> = kept.iter().map(|path| install.read(path)).collect();
    assert_eq!(after, before);
    assert_eq!(install.read("uploads/shipped.txt"), "new\n");
    assert!(!install.exists("instance/app.db-journal"));
    assert_eq!(install.note(), "old row");
}

#[test]
fn the_application_settings_get_new_keys_and_keep_their_values() {
    let install = Install::running();
    let bundle = install.bundle("2.0").file("app_config.json", "{\"name\": \"shipped\", \"added\": 1}\n");
    install.apply(&bundle).expect(0);
    let merged: Value = serde_json::from_str(&install.read("app_config.json")).unwrap();
    assert_eq!(merged, json!({"name": "mine", "added": 1}));
}

#[test]
fn the_port_of_the_start_file_is_carried_and_its_line_ends_stay() {
    let install = Install::new();
    let text = |port: u16, version: &str| {
        format!("# start\r\nPORT = {port}  # port\r\nVERSION = \"{version}\"\r\nREQUIRE = \"app/core.py\"\r\n")
    };
    install.write("run.py", text(install.port, "1.0"));
    install.start_with(&[]);
    let bundle = install.bundle("2.0").file("run.py", text(8080, "2.0"));
    install.apply(&bundle).expect(0);
    assert_eq!(install.version(), "2.0");
    assert_eq!(install.read("run.py"), text(install.port, "2.0"));
}

#[test]
fn a_setting_given_on_the_command_line_is_written() {
    let install = Install::running();
    install.write("run.py", kit::script("1.0", "USE_POSTGRES = False\n"));
    let bundle = install.save(&Bundle::release("2.0", "USE_POSTGRES = False\n"));
    install.apply_with(&bundle, &["--set", "USE_POSTGRES=True"]).expect(0);
    assert!(install.read("run.py").contains("USE_POSTGRES = True\n"), "{}", install.read("run.py"));
    assert_eq!(install.version(), "2.0");
}

#[test]
fn a_closed_standard_output_does_not_stop_an_update() {
    let install = Install::running();
    let bundle = install.save(&install.bundle("2.0"));
    let mut child = install
        .command(&["apply", bundle.to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(install.version(), "2.0");
}

// ---- rollback ----

#[test]
fn new_code_that_exits_at_start_is_rolled_back_to_the_very_same_tree() {
    let install = Install::running();
    let before = install.tree();
    let output = install.apply(&Bundle::release("2.0", BROKEN)).expect(3);
    assert_eq!(output.outcome(), "rolled-back");
    assert_eq!(install.version(), "1.0");
    assert_same(&install, &before);
}

#[test]
fn data_that_a_failed_version_altered_is_put_back_and_what_it_added_stays() {
    let install = Install::running();
    let more = "SQL = \"UPDATE notes SET text = 'new row'\"\n\
                WRITE = \"uploads/a.txt=altered\"\n\
                WRITE = \"uploads/b.txt=added\"\n\
                ANSWER = 500\n";
    let bundle = install.save(&Bundle::release("2.0", more));
    install.apply_with(&bundle, &["--health-timeout", "3s"]).expect(3);
    assert_eq!(install.version(), "1.0");
    assert_eq!(install.note(), "old row");
    assert_eq!(install.read("uploads/a.txt"), "old upload\n");
    assert_eq!(install.read("uploads/b.txt"), "added");
    assert_eq!(install.read("app/core.py"), "# core of 1.0\n");
}

#[test]
fn a_version_without_a_file_that_the_settings_call_critical_is_rolled_back_before_it_starts() {
    let install = Install::adopted();
    install.write("updater.toml", "[verify]\ncritical = [\"app/old.py\"]\n");
    let before = install.tree();
    let output = install.apply(&install.bundle("2.0")).expect(3);
    assert_eq!(output.error_code(), "critical-missing");
    assert!(output.finished()["error"].to_string().contains("app/old.py"), "{output:?}");
    assert!(!output.stdout.contains("\"stage\":\"relaunch\",\"state\":\"done\""), "{output:?}");
    assert_eq!(install.version(), "1.0");
    assert_same(&install, &before);
}

#[test]
fn as_many_backups_are_kept_as_the_settings_say_and_a_failure_costs_no_good_one() {
    let install = Install::adopted();
    install.write("updater.toml", "[server]\nsoak = \"0s\"\n[backup]\nkeep = 2\n");
    for version in ["2.0", "2.1", "2.2"] {
        install.apply(&install.bundle(version)).expect(0);
    }
    let last = install.apply(&install.bundle("2.3")).expect(0).finished();
    let list = || {
        let mut ids: Vec<String> = fs::read_dir(install.root.join("backups"))
            .unwrap()
            .map(|item| item.unwrap().file_name().into_string().unwrap())
            .collect();
        ids.sort();
        ids
    };
    let good = list();
    assert_eq!(good.len(), 2, "{good:?}");
    assert!(good.contains(&last["backup"].as_str().unwrap().to_string()));
    install.apply(&Bundle::release("3.0", BROKEN)).expect(3);
    assert!(good.iter().all(|id| list().contains(id)), "{good:?} {:?}", list());
}

#[test]
fn a_stopped_server_stays_stopped_after_a_rollback() {
    let install = Install::new();
    install.write_settings("");
    let before = install.tree();
    install.apply(&Bundle::release("2.0", BROKEN)).expect(3);
    assert!(ping(install.port).is_none());
    assert_same(&install, &before);
}

#[test]
fn a_start_command_that_ends_at_once_with_success_is_no_server() {
    let install = Install::new();
    let port = install.port;
    install.write("updater.toml", format!("[server]\nport = {port}\ncommand = ['python3', '-c', 'pass', 'run.py']\n"));
    let output = install.apply(&install.bundle("2.0")).expect(3);
    assert_eq!(output.error_code(), "health-exited");
    assert_eq!(install.read("app/core.py"), "# core of 1.0\n");
}

#[test]
fn an_unattended_run_skips_a_bundle_that_failed_here_twice_until_told_otherwise() {
    let install = Install::running();
    let bundle = install.save(&Bundle::release("2.0", BROKEN));
    for _ in 0..2 {
        install.apply_with(&bundle, &["--unattended"]).expect(3);
    }
    let pid = install.pid();
    let skipped = install.apply_with(&bundle, &["--unattended"]).expect(0);
    assert_eq!(skipped.outcome(), "skipped");
    assert_eq!(install.pid(), pid);
    install.apply_with(&bundle, &["--unattended", "--retry-failed"]).expect(3);
    install.apply_with(&install.save(&install.bundle("2.1")), &["--unattended"]).expect(0);
}

// ---- refusals ----

#[test]
fn a_lower_version_is_refused_unless_it_is_wanted() {
    let install = Install::running();
    let of = |version: &str| {
        let manifest = json!({"version": version}).to_string();
        install.save(&install.bundle(version).file("updater-manifest.json", manifest))
    };
    install.apply_with(&of("2.10.0"), &[]).expect(0);
    let refused = install.apply_with(&of("2.9.0"), &[]).expect(6);
    assert_eq!(refused.error_code(), "downgrade");
    assert_eq!(install.version(), "2.10.0");
    install.apply_with(&of("2.9.0"), &["--allow-downgrade"]).expect(0);
    assert_eq!(install.version(), "2.9.0");
}

#[test]
fn a_bundle_beside_the_install_may_be_typed_from_inside() {
    let install = Install::running();
    let bundle = install.save(&install.bundle("2.0"));
    let name = bundle.file_name().unwrap().to_str().unwrap();
    fs::rename(&bundle, install.root.join("..").join(name)).unwrap();
    for arguments in [["plan", "--json"], ["apply", "--json"]] {
        let typed = format!("../{name}");
        let mut command = install.command(&[arguments[0], &typed, arguments[1]]);
        command.current_dir(&install.root);
        kit::run(command).expect(0);
    }
    assert_eq!(install.version(), "2.0");
    // One inside of it, by a way that climbs.
    install.write("uploads/x/y.txt", "");
    fs::write(install.root.join("uploads/next.zip"), install.bundle("3.0").bytes()).unwrap();
    let mut command = install.command(&["apply", "x/../next.zip", "--json"]);
    command.current_dir(install.root.join("uploads"));
    kit::run(command).expect(0);
    assert_eq!(install.version(), "3.0");
}

#[test]
fn health_may_be_asked_at_another_path_and_a_bad_url_is_a_usage_error() {
    let install = Install::running();
    let bundle = install.save(&install.bundle("2.0"));
    let output = install.apply_with(&bundle, &["--health-url", "ftp://127.0.0.1/"]).expect(2);
    assert_eq!(output.error_code(), "bad-health-url");
    assert_eq!(install.version(), "1.0");
    let url = format!("http://127.0.0.1:{}/api/sync/ping", install.port);
    install.apply_with(&bundle, &["--health-url", &url]).expect(0);
    assert_eq!(install.version(), "2.0");
}

#[test]
fn a_truncated_bundle_is_refused_and_nothing_changes() {
    let bytes = Bundle::release("2.0", "").bytes();
    assert_refused(&bytes[..bytes.len() / 2]);
}

#[test]
fn a_bundle_with_a_second_top_level_name_is_refused_and_the_name_is_told() {
    let output = assert_refused(&Bundle::release("2.0", "").raw("stray.txt", "x").bytes());
    assert!(output.finished()["error"].to_string().contains("stray.txt"), "{output:?}");
}

#[test]
fn a_bundle_that_climbs_out_of_the_root_is_refused_and_the_entry_is_told() {
    let output = assert_refused(&Bundle::release("2.0", "").file("../../evil.txt", "x").bytes());
    assert!(output.finished()["error"].to_string().contains("evil.txt"), "{output:?}");
}

#[test]
fn a_bundle_without_the_start_file_is_refused() {
    let mut bundle = Bundle::release("2.0", "");
    bundle.files.retain(|name, _| !name.ends_with("/run.py"));
    assert_refused(&bundle.bytes());
}

#[test]
fn a_bundle_of_another_program_is_refused_unless_it_is_taken_for_a_part() {
    let install = Install::running();
    let mut other = Bundle::release("2.0", "");
    other.files.retain(|name, _| !name.contains("/app/"));
    let other = install.save(&other.file("blog/core.py", "# a blog\n"));
    let output = install.apply_with(&other, &[]).expect(6);
    assert_eq!(output.error_code(), "other-app");
    assert_eq!(install.version(), "1.0");
    install.apply_with(&other, &["--partial"]).expect(0);
    assert_eq!((install.version().as_str(), install.exists("app/core.py")), ("2.0", true));
}

#[test]
fn a_bundle_that_does_not_exist_fails_before_anything_changes() {
    let install = Install::running();
    let pid = install.pid();
    install.apply_with(&install.scratch().join("none.zip"), &[]).expect(1);
    assert_eq!(install.pid(), pid);
}

#[test]
fn a_second_updater_ends_with_5_while_the_lock_is_held() {
    let install = Install::running();
    fs::create_dir_all(install.root.join(".updater")).unwrap();
    let lock = fs::File::create(install.root.join(".updater/lock")).unwrap();
    lock.lock().unwrap();
    let pid = install.pid();
    install.apply(&install.bundle("2.0")).expect(5);
    assert_eq!(install.pid(), pid);
    lock.unlock().unwrap();
    install.apply(&install.bundle("2.0")).expect(0);
}

// ---- bystanders ----

#[test]
fn an_updater_that_waits_goes_on_when_the_first_has_ended_and_names_it_when_it_does_not() {
    let install = Install::running();
    install.write("updater.toml", "[server]\nsoak = \"2s\"\n");
    let (first, second) = (install.save(&install.bundle("2.0")), install.save(&install.bundle("3.0")));
    let mut command = install.command(&["apply", first.to_str().unwrap()]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !install.exists(".updater/journal") {
        assert!(child.try_wait().unwrap().is_none(), "the first ended too early");
        std::thread::yield_now();
    }
    let refused = install.apply_with(&second, &[]).expect(5);
    let message = refused.finished()["error"]["message"].as_str().unwrap().to_string();
    assert!(message.contains(&format!("pid {}, since ", child.id())), "{message}");
    install.apply_with(&second, &["--wait", "60s"]).expect(0);
    assert!(child.wait().unwrap().success());
    assert_eq!(install.version(), "3.0");
}

#[test]
fn a_foreign_owner_of_the_port_is_refused_and_lives_on() {
    let stranger = Install::running();
    let mut install = Install::new();
    install.port = stranger.port;
    install.write_settings("");
    let before = install.tree();
    let pid = stranger.pid();
    let output = install.apply(&install.bundle("2.0")).expect(1);
    assert_eq!(output.error_code(), "port-foreign");
    assert!(output.finished()["error"].to_string().contains(&pid.to_string()), "{output:?}");
    assert_eq!(stranger.pid(), pid);
    assert_same(&install, &before);
}

#[test]
fn a_foreign_owner_is_stopped_only_when_that_is_asked_for() {
    let stranger = Install::running();
    let mut install = Install::new();
    install.port = stranger.port;
    install.write_settings("");
    install.apply_with(&install.save(&install.bundle("2.0")), &["--stop-foreign"]).expect(0);
    let answer = install.answer();
    assert_eq!(answer["root"].as_str(), install.root.to_str());
    assert_eq!(answer["version"], "2.0");
}

#[test]
fn a_server_of_another_install_and_a_client_of_the_port_live_on() {
    let neighbour = Install::running();
    let install = Install::running();
    let pid = neighbour.pid();
    // This process is the client: were clients killed, the test itself would end here.
    let mut client = TcpStream::connect(("127.0.0.1", install.port)).unwrap();
    client.write_all(b"GET / HTTP/1.0\r\n").unwrap();
    install.apply(&install.bundle("2.0")).expect(0);
    assert_eq!(install.version(), "2.0");
    assert_eq!(neighbour.pid(), pid);
}

// ---- reading commands ----

#[test]
fn a_plan_changes_nothing_and_counts_what_it_would_do() {
    let install = Install::running();
    // Nobody knows what 1.0 shipped, so what the bundle lacks stays.
    let (before, pid) = (install.tree(), install.pid());
    let bundle = install.save(&install.bundle("2.0").file("uploads/a.txt", "shipped\n"));
    let plan = install.updater(&["plan", bundle.to_str().unwrap(), "--json"]).expect(0).object();
    assert_eq!(plan["schema"], 1);
    let expected = json!({
        "add": 1, "replace": 2, "remove": 0, "keep": 1, "merge": 0, "carry": 0, "unchanged": 1,
    });
    let counts = &plan["counts"];
    // The start file is counted as carried or as replaced; either way it is counted once.
    let changed = |counts: &Value| counts["replace"].as_u64().unwrap() + counts["carry"].as_u64().unwrap();
    assert_eq!(changed(counts), changed(&expected), "{counts}");
    for name in ["add", "remove", "keep", "merge", "unchanged"] {
        assert_eq!(counts[name], expected[name], "{name} of {counts}");
    }
    for field in ["bundle", "actions", "held_back", "server", "launch", "escape", "space", "problems", "warnings"] {
        assert!(plan.get(field).is_some(), "no {field} in {plan}");
    }
    assert_eq!(plan["problems"], json!([]));
    assert!(!install.exists(".updater"), "a reading command made .updater");
    assert_eq!(install.pid(), pid);
    assert_same(&install, &before);
}

#[test]
fn status_tells_what_is_installed_and_what_runs() {
    let install = Install::running();
    install.apply(&install.bundle("2.0")).expect(0);
    let status = install.updater(&["status", "--json"]).expect(0).object();
    assert_eq!(status["schema"], 1);
    assert_eq!(status["server"]["state"], "running");
    assert_eq!(status["server"]["port"], install.port);
    assert_eq!(status["server"]["pid"], install.pid());
    assert_eq!(status["server"]["protocol"], "http");
    assert_eq!(status["server"]["healthy"], true);
    assert_eq!(status["under_way"], Value::Null);
    assert_eq!(status["interrupted"], Value::Null);
    assert_eq!(status["last"]["outcome"], "applied");
    assert_eq!(status["backups"], 1);
    assert!(status["installed"]["content_id"].is_string(), "{status}");
}

#[test]
fn verify_without_a_receipt_says_so() {
    let install = Install::running();
    let output = install.updater(&["verify", "--json"]).expect(1);
    assert!(output.stdout.contains("no-receipt"), "{output:?}");
}

#[test]
fn verify_finds_what_is_modified_or_missing_and_repair_heals_it() {
    let install = Install::adopted();
    install.apply(&install.bundle("2.0")).expect(0);
    let whole = install.updater(&["verify", "--json"]).expect(0).object();
    assert_eq!(whole["whole"], true, "{whole}");
    assert_eq!(whole["schema"], 1);

    install.write("app/core.py", "# touched\n");
    fs::remove_file(install.root.join("app/new.py")).unwrap();
    install.write("app/stray.py", "# stray\n");
    let found = install.updater(&["verify", "--json"]).expect(1).object();
    assert_eq!(found["whole"], false);
    assert_eq!(found["modified"], json!(["app/core.py"]));
    assert_eq!(found["missing"], json!(["app/new.py"]));
    assert_eq!(found["unknown"], json!(["app/stray.py"]));

    let repair = install.updater(&["verify", "--repair", "--json"]).expect(0);
    assert_eq!(repair.outcome(), "repaired");
    assert_eq!(install.read("app/core.py"), "# core of 2.0\n");
    assert_eq!(install.read("app/new.py"), "# new in 2.0\n");
    assert_eq!(install.version(), "2.0");
    install.updater(&["verify"]).expect(0);
}

#[test]
fn recover_has_nothing_to_do_on_a_whole_install() {
    let install = Install::running();
    let pid = install.pid();
    install.updater(&["recover", "--if-needed"]).expect(0);
    assert_eq!(install.pid(), pid);
}

// ---- events ----

#[test]
fn events_are_numbered_without_a_gap_and_name_each_stage_once() {
    let install = Install::running();
    check_stream(&install.apply(&install.bundle("2.0")).expect(0), 100);
    check_stream(&install.apply(&Bundle::release("3.0", BROKEN)).expect(3), 99);
}

fn check_stream(output: &Output, most: u64) {
    let events = output.events();
    let id = &events[0]["update_id"];
    let mut percent = 0;
    let mut ended = Vec::new();
    for (index, event) in events.iter().enumerate() {
        assert_eq!(event["schema"], 1, "{event}");
        assert_eq!(event["seq"], index as u64 + 1, "{event}");
        assert_eq!(&event["update_id"], id, "{event}");
        if let Some(now) = event["percent"].as_u64() {
            assert!(now >= percent && now <= most, "percent {now} after {percent}: {event}");
            percent = now;
        }
        if event["event"] == "stage" && event["state"] != "started" {
            ended.push(event["stage"].as_str().unwrap().to_string());
        }
    }
    assert_eq!(events.iter().filter(|event| event["event"] == "finished").count(), 1);
    assert_eq!(events.last().unwrap()["event"], "finished");
    let mut once = ended.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), ended.len(), "a stage ended twice: {ended:?}");
    if most == 100 {
        let stages = "fetch detect preflight stage backup stop backup-final swap verify hooks relaunch health commit";
        assert_eq!(ended, stages.split(' ').collect::<Vec<_>>());
        assert_eq!(percent, 100);
    }
}

// ---- helpers ----

/// Applies the bytes as a bundle: exit 6, the tree and the server as they were.
fn assert_refused(bundle: &[u8]) -> Output {
    let install = Install::running();
    let (before, pid) = (install.tree(), install.pid());
    let path = install.scratch().join("refused.zip");
    fs::write(&path, bundle).unwrap();
    let output = install.apply_with(&path, &[]).expect(6);
    assert_eq!(output.outcome(), "refused");
    assert_eq!(install.pid(), pid);
    assert!(!install.scratch().join("evil.txt").exists());
    assert_same(&install, &before);
    output
}

fn assert_same(install: &Install, before: &kit::Tree) {
    let after = install.tree();
    let differing: Vec<_> = before
        .0
        .keys()
        .chain(after.0.keys())
        .filter(|name| before.0.get(*name) != after.0.get(*name))
        .map(|name| (name, before.0.get(name), after.0.get(name)))
        .collect();
    assert!(differing.is_empty(), "the tree differs: {differing:#?}");
}
