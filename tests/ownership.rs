//! Whose file is it: what users wrote on real layouts, through updates, rollbacks, restores and pruning. The rules are
//! told in `docs/ownership.md`.

mod kit;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use kit::{Bundle, Install, Output};
use serde_json::{Value, json};

const QUICK: &str = "[server]\nsoak = \"50ms\"\n";

/// A version that writes and deletes at its start, and fails.
fn vandal(lines: &str) -> Bundle {
    Bundle::release("3.0", &format!("{lines}EXIT = 1\n"))
}

fn running(settings: &str) -> Install {
    let install = Install::new();
    install.write("updater.toml", format!("{QUICK}{settings}"));
    install.start();
    install
}

fn adopted(settings: &str) -> Install {
    let install = running(settings);
    install.adopt();
    install
}

fn backup_of(output: &Output) -> String {
    output.finished()["backup"].as_str().unwrap().to_string()
}

/// The paths that warnings of this code name.
fn named(output: &Output, code: &str) -> BTreeSet<String> {
    let events = output.events();
    let of_code = events.iter().filter(|e| e["event"] == "warning" && e["code"] == code);
    of_code.filter_map(|e| e["path"].as_str().map(String::from)).collect()
}

fn set(paths: &[&str]) -> BTreeSet<String> {
    paths.iter().map(|path| path.to_string()).collect()
}

fn database(path: &Path, rows: usize) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let db = rusqlite::Connection::open(path).unwrap();
    db.execute_batch("CREATE TABLE IF NOT EXISTS t(x); DELETE FROM t").unwrap();
    for row in 0..rows {
        db.execute("INSERT INTO t VALUES(?1)", [row as i64]).unwrap();
    }
}

fn rows(path: &Path) -> i64 {
    rusqlite::Connection::open(path).unwrap().query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
}

/// The bytes of a database with so many rows.
fn database_bytes(rows: usize) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    database(&folder.path().join("x"), rows);
    fs::read(folder.path().join("x")).unwrap()
}

// ---- uploads and other files of users' in the version's folders ----

#[test]
fn uploads_below_a_shipped_folder_stay_through_every_update_and_all_pruning() {
    for known in [false, true] {
        let install = running("[backup]\nkeep = 1\n");
        install.write("app/static/style.css", "css\n");
        if known {
            let first = install.save(&Bundle::first().file("app/static/style.css", "css\n"));
            install.updater(&["adopt", first.to_str().unwrap()]).expect(0);
        }
        let theirs =
            ["app/static/uploads/photo.jpg", "app/deep/er/new/folder.txt", "users.json", "app/plugins/mine.py"];
        for path in theirs {
            install.write(path, format!("theirs: {path}"));
        }
        let before: Vec<_> = theirs.iter().map(|path| kit::File::of(&install.root.join(path))).collect();
        for version in ["2.0", "2.1", "2.2", "2.3", "2.4", "2.5"] {
            install.apply(&Bundle::release(version, "").file("app/static/style.css", version)).expect(0);
        }
        let after: Vec<_> = theirs.iter().map(|path| kit::File::of(&install.root.join(path))).collect();
        assert_eq!(after, before, "known: {known}");
        let last = install.updater(&["backups", "--json"]).expect(0).object()["backups"][0].clone();
        let saved = install.root.join("backups").join(last["id"].as_str().unwrap());
        assert_eq!(fs::read_to_string(saved.join("users.json")).unwrap(), "theirs: users.json");
    }
}

#[test]
fn a_file_of_the_users_at_a_path_that_a_release_begins_to_ship_stays_and_is_named() {
    let install = adopted("");
    install.write("app/static/logo.png", "theirs");
    install.write("app/static/same.png", "the same");
    let release = |version| {
        Bundle::release(version, "").file("app/static/logo.png", "ours").file("app/static/same.png", "the same")
    };
    let output = install.apply(&release("2.0")).expect(0);
    assert_eq!(named(&output, "held-back"), set(&["app/static/logo.png"]));
    assert_eq!(install.read("app/static/logo.png"), "theirs");
    // What was the same is the release's from now on; the other never is.
    install.apply(&Bundle::release("2.1", "")).expect(0);
    assert!(install.exists("app/static/logo.png") && !install.exists("app/static/same.png"));
}

#[test]
fn a_shipped_seed_that_the_server_writes_stays_whatever_releases_bring() {
    let install = running("");
    install.write("app/users.json", "[]");
    let with = |version: &str, seed: &str| Bundle::release(version, "").file("app/users.json", seed);
    let first = install.save(&Bundle::first().file("app/users.json", "[]"));
    install.updater(&["adopt", first.to_str().unwrap()]).expect(0);
    install.write("app/users.json", "[\"ann\"]");
    // The release did not change it, then it does, then it drops it.
    let output = install.apply(&with("2.0", "[]")).expect(0);
    assert_eq!(named(&output, "changed-here"), set(&["app/users.json"]));
    let output = install.apply(&with("2.1", "[{}]")).expect(0);
    assert_eq!(named(&output, "not-taken"), set(&["app/users.json"]));
    let verify = install.updater(&["verify", "--json"]).expect(0).object();
    assert_eq!((&verify["whole"], &verify["changed_here"]), (&json!(true), &json!(["app/users.json"])));
    // The base is the release's, so the same release again changes nothing of it.
    let output = install.apply(&with("2.2", "[{}]")).expect(0);
    assert_eq!(named(&output, "changed-here"), set(&["app/users.json"]));
    let output = install.apply(&Bundle::release("2.3", "")).expect(0);
    assert_eq!(named(&output, "changed-here"), set(&["app/users.json"]));
    assert_eq!(install.read("app/users.json"), "[\"ann\"]");
}

#[test]
fn a_seed_that_was_written_before_the_first_receipt_stays_and_an_untouched_one_is_replaced() {
    let install = Install::new();
    install.write("updater.toml", QUICK);
    for (path, age) in [("run.py", 100), ("app/users.json", 10), ("app/words.txt", 200)] {
        if path != "run.py" {
            install.write(path, "mine");
        }
        let time = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
        fs::File::options().write(true).open(install.root.join(path)).unwrap().set_modified(time).unwrap();
    }
    install.start();
    let output =
        install.apply(&Bundle::release("2.0", "").file("app/users.json", "new").file("app/words.txt", "new")).expect(0);
    assert_eq!(named(&output, "not-taken"), set(&["app/users.json"]));
    assert_eq!((install.read("app/users.json"), install.read("app/words.txt")), ("mine".into(), "new".into()));
}

// ---- the base rule for program files ----

#[test]
fn an_edited_program_file_gives_way_to_aside_by_name_and_is_never_pruned_by_an_update() {
    let install = adopted("[backup]\nkeep = 1\n");
    install.write("app/core.py", "# hotfix\n");
    let bundle = install.save(&install.bundle("2.0"));
    let plan = install.updater(&["plan", bundle.to_str().unwrap(), "--json"]).expect(0).object();
    assert_eq!((&plan["moved_aside"], &plan["changed_here"]), (&json!(["app/core.py"]), &json!(["app/core.py"])));
    let output = install.apply_with(&bundle, &[]).expect(0);
    assert_eq!(named(&output, "moved-aside"), set(&["app/core.py"]));
    let aside = install.root.join("backups").join(backup_of(&output)).join("aside/app/core.py");
    assert_eq!(fs::read_to_string(&aside).unwrap(), "# hotfix\n");
    assert_eq!(install.read("app/core.py"), "# core of 2.0\n");
    for version in ["2.1", "2.2", "2.3"] {
        install.apply(&install.bundle(version)).expect(0);
    }
    assert!(aside.exists(), "an update pruned what gave way");
    let backups = install.updater(&["backups", "--json"]).expect(0).object();
    let counts: Vec<_> = backups["backups"].as_array().unwrap().iter().map(|b| b["aside"].as_u64().unwrap()).collect();
    assert_eq!(counts, [0, 1]);
    let pruned = install.updater(&["backups", "prune", "--keep", "1", "--json"]).expect(0).object();
    assert_eq!(pruned["aside"][0]["paths"], json!(["app/core.py"]));
    assert!(!aside.exists());
}

#[test]
fn an_edit_that_no_release_touches_stays_and_a_repair_keeps_a_copy_of_it() {
    let install = adopted("");
    install.write("app/__init__.py", "# package, edited\n");
    let output = install.apply(&install.bundle("2.0")).expect(0);
    assert_eq!(named(&output, "changed-here"), set(&["app/__init__.py"]));
    assert_eq!(install.read("app/__init__.py"), "# package, edited\n");
    // Damage means a changed program file.
    let verify = install.updater(&["verify", "--json"]).expect(1).object();
    assert_eq!(verify["modified"], json!(["app/__init__.py"]));
    let repaired = install.updater(&["verify", "--repair", "--json"]).expect(0);
    assert_eq!((repaired.outcome().as_str(), install.read("app/__init__.py").as_str()), ("repaired", "# package\n"));
    let backup = install.root.join("backups").join(backup_of(&repaired));
    assert_eq!(fs::read_to_string(backup.join("aside/app/__init__.py")).unwrap(), "# package, edited\n");
    // The repair's backup holds the damaged tree, so no restore takes it by itself.
    let kinds = install.updater(&["backups", "--json"]).expect(0).object();
    assert_eq!(kinds["backups"][0]["kind"], "repair");
    install.updater(&["restore", "--yes", "--json"]).expect(0);
    assert_eq!((install.version().as_str(), install.read("app/core.py").as_str()), ("1.0", "# core of 1.0\n"));
}

#[test]
fn what_somebody_edited_is_never_removed_and_comes_through_a_restore() {
    let install = adopted("");
    install.write("app/old.py", "# edited by hand\n");
    let first = install.apply(&install.bundle("2.0")).expect(0);
    assert_eq!(named(&first, "changed-here"), set(&["app/old.py"]));
    assert_eq!(install.read("app/old.py"), "# edited by hand\n");
    // Back, and forth again: the edit is still an edit.
    install.updater(&["restore", &backup_of(&first), "--json"]).expect(0);
    assert_eq!(install.read("app/old.py"), "# edited by hand\n");
    let again = install.apply(&install.bundle("2.0")).expect(0);
    assert_eq!(named(&again, "changed-here"), set(&["app/old.py"]));
    assert_eq!(install.read("app/old.py"), "# edited by hand\n");
}

#[test]
fn settings_files_keep_their_settings_and_are_never_removed() {
    let install = adopted("");
    install.apply(&install.bundle("2.0").file("app_config.json", "{\"name\": \"ours\", \"new\": 1}")).expect(0);
    let merged = "{\n  \"name\": \"mine\",\n  \"new\": 1\n}\n";
    assert_eq!(install.read("app_config.json"), merged);
    let output = install.apply(&install.bundle("2.1")).expect(0);
    assert_eq!(install.read("app_config.json"), merged, "a bundle without it took it away");
    install.updater(&["restore", &backup_of(&output), "--json"]).expect(0);
    assert_eq!(install.read("app_config.json"), merged);
    // A port that the operator changed is carried; other edits of his give way.
    let port = install.read("run.py").replace("PORT = 8080", "PORT = 9090");
    install.write("run.py", &port);
    let output = install.apply(&install.bundle("2.2")).expect(0);
    assert!(named(&output, "moved-aside").is_empty(), "{output:?}");
    assert!(install.read("run.py").contains("PORT = 9090"));
    install.write("run.py", format!("{}# by hand\n", install.read("run.py")));
    let output = install.apply(&install.bundle("2.3")).expect(0);
    assert_eq!(named(&output, "moved-aside"), set(&["run.py"]));
}

// ---- databases ----

#[test]
fn a_release_with_a_placeholder_in_the_data_folder_leaves_databases_of_any_name() {
    let install = adopted("");
    for name in ["data/orders.db3", "data/old.sdb", "data/ledger"] {
        database(&install.root.join(name), 2);
    }
    install.write("data/customers.json", "{}");
    let foreign = database_bytes(7);
    let mut bundle = install.bundle("2.0").file("data/.gitkeep", "");
    for name in ["data/orders.db3", "data/old.sdb", "data/ledger", "data/ledger-wal"] {
        bundle = bundle.file(name, &foreign);
    }
    let output = install.apply(&bundle).expect(0);
    let held = set(&["data/orders.db3", "data/old.sdb", "data/ledger", "data/ledger-wal"]);
    assert_eq!(named(&output, "held-back"), held);
    for name in ["data/orders.db3", "data/old.sdb", "data/ledger"] {
        assert_eq!(rows(&install.root.join(name)), 2, "{name}");
    }
    assert!(install.exists("data/customers.json") && install.exists("data/.gitkeep"));
    assert!(!install.exists("data/ledger-wal"));
}

#[test]
fn a_shipped_database_is_replaced_while_nobody_wrote_in_it_and_then_never_again() {
    let install = adopted("");
    let with = |version: &str, rows: usize| Bundle::release(version, "").file("app/geo.db", database_bytes(rows));
    let path = install.root.join("app/geo.db");
    install.apply(&with("2.0", 1)).expect(0);
    install.apply(&with("2.1", 2)).expect(0);
    assert_eq!(rows(&path), 2);
    database(&path, 9);
    let output = install.apply(&with("2.2", 3)).expect(0);
    assert_eq!((named(&output, "held-back"), rows(&path)), (set(&["app/geo.db"]), 9));
    // Nor is it removed.
    install.apply(&install.bundle("2.3")).expect(0);
    assert_eq!(rows(&path), 9);
    // An untouched one leaves with the release that drops it.
    install.apply(&install.bundle("2.4").file("app/more.db", database_bytes(1))).expect(0);
    install.apply(&install.bundle("2.5")).expect(0);
    assert!(!install.exists("app/more.db"));
}

#[test]
fn a_missing_database_is_added_in_data_folders_only_on_request_and_never_with_a_log() {
    let keys = database_bytes(4);
    let bundle =
        |version: &str| Bundle::release(version, "").file("instance/apis.db", &keys).file("app/seed.db", &keys);
    let install = adopted("");
    let output = install.apply(&bundle("2.0")).expect(0);
    assert_eq!(named(&output, "held-back"), set(&["instance/apis.db"]));
    assert!(!install.exists("instance/apis.db") && install.exists("app/seed.db"));
    let install = adopted("[preserve]\nadd_databases = true\n");
    install.apply(&bundle("2.0")).expect(0);
    assert!(install.exists("instance/apis.db"));
    // Half of it lies in the log, so it is none.
    let torn = bundle("2.1").file("app/torn.db", &keys).file("app/torn.db-wal", "log").file("app/torn.db-shm", "");
    let output = install.apply(&torn).expect(0);
    assert!(named(&output, "held-back").is_superset(&set(&["app/torn.db", "app/torn.db-wal"])), "{output:?}");
    assert!(!install.exists("app/torn.db") && !install.exists("app/torn.db-wal") && !install.exists("app/torn.db-shm"));
}

// ---- environments, volatile files, own places ----

#[test]
fn environments_are_the_users_unless_a_version_ships_them() {
    let install = adopted("");
    install.write(".venv/pyvenv.cfg", "home = /usr\n");
    install.write(".venv/lib/site.py", "mine");
    install.write("plugins/a/.venv/pyvenv.cfg", "home = /usr\n");
    install.write("plugins/a/.venv/big.bin", "mine");
    install.write("web/node_modules/x/index.js", "theirs");
    install.write("env/local.txt", "mine");
    let bundle = |version: &str| {
        let bundle = Bundle::release(version, "").file(".venv/lib/site.py", "ours").file(".venv/lib/more.py", "ours");
        bundle.file("web/node_modules/y/index.js", version).file("plugins/a/code.py", version)
    };
    let output = install.apply(&bundle("2.0")).expect(0);
    assert_eq!(named(&output, "held-back"), set(&[".venv/lib/site.py", ".venv/lib/more.py"]));
    assert_eq!(install.read(".venv/lib/site.py"), "mine");
    assert!(!install.exists(".venv/lib/more.py"));
    let output = install.apply(&bundle("2.1")).expect(0);
    assert_eq!(install.read("web/node_modules/y/index.js"), "2.1", "what a version ships is the version's");
    assert_eq!(install.read("web/node_modules/x/index.js"), "theirs", "and the rest is left alone");
    let saved = install.root.join("backups").join(backup_of(&output));
    for path in [".venv", "plugins/a/.venv", "env"] {
        assert!(!saved.join(path).exists(), "{path} was saved");
        assert!(install.exists(path), "{path} is gone");
    }
}

#[test]
fn what_a_running_program_leaves_stays_and_is_no_data() {
    let install = adopted("");
    install.write("run.pid", "4711");
    install.write("logs/app.log", "line\n");
    install.write("logs/app.log.1", "line\n");
    let failing = vandal("WRITE = \"logs/app.log=changed\"\nREMOVE = \"run.pid\"\n");
    let output = install.apply(&failing).expect(3);
    assert!(output.finished()["error"]["message"].as_str().unwrap().contains("as it was before"), "{output:?}");
    assert_eq!(install.read("logs/app.log"), "changed", "a log was put back");
    let saved = install.root.join("backups").join(backup_of(&output));
    assert!(!saved.join("logs/app.log").exists() && !saved.join("run.pid").exists());
    // One that a version ships is the version's.
    install.apply(&install.bundle("2.0").file("docs/example.log", "shipped")).expect(0);
    install.apply(&install.bundle("2.1")).expect(0);
    assert!(!install.exists("docs/example.log") && install.exists("logs/app.log.1"));
}

#[test]
fn only_our_own_places_are_ours() {
    let install = adopted("");
    install.write("backups/dump.sql", "of the server's own");
    let bundle = install
        .bundle("2.0")
        .file("app/instance/plugins/a/manifest.json", "{}")
        .file("app/instance/update_log.txt", "of the developer's")
        .file("instance/server_update_stdout.log", "of the developer's")
        .file(".Updater/journal", "evil")
        .file("UPDATER.toml", "evil");
    let output = install.apply(&bundle).expect(0);
    assert!(install.exists("app/instance/plugins/a/manifest.json"));
    assert!(!install.exists(".Updater/journal") && !install.exists("UPDATER.toml"));
    assert!(!install.exists("app/instance/update_log.txt"));
    assert_eq!(named(&output, "own-left-out"), set(&[".Updater/journal", "UPDATER.toml"]));
    let saved = install.root.join("backups").join(backup_of(&output));
    assert_eq!(fs::read_to_string(saved.join("backups/dump.sql")).unwrap(), "of the server's own");
}

#[cfg(unix)]
#[test]
fn a_link_at_the_place_of_our_log_is_left_alone() {
    let install = adopted("");
    let precious = install.scratch().join("precious.txt");
    let log = install.root.join("instance/update_log.txt");
    for is_hard in [false, true] {
        fs::write(&precious, "precious").unwrap();
        let _ = fs::remove_file(&log);
        let made = if is_hard { fs::hard_link(&precious, &log) } else { std::os::unix::fs::symlink(&precious, &log) };
        made.unwrap();
        install.apply(&install.bundle("2.0")).expect(0);
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    }
}

// ---- before the first receipt ----

#[test]
fn before_the_first_receipt_what_would_shadow_new_code_gives_way_and_the_rest_stays() {
    let install = running("");
    install.write("app/routes/__init__.py", "# old package\n");
    install.write("app/routes/theirs.txt", "theirs");
    install.write("app/models/__init__.py", "# package\n");
    install.write("app/empty/__init__.py", "");
    let bundle = install.bundle("2.0").file("app/routes.py", "# new module\n");
    let output = install.apply(&bundle).expect(0);
    // The old updater planted copies of one `__init__.py`; those equal another one of the install.
    assert_eq!(named(&output, "moved-aside"), set(&["app/models/__init__.py", "app/routes/__init__.py"]));
    assert!(install.exists("app/routes.py") && install.exists("app/routes/theirs.txt"));
    assert!(install.exists("app/empty/__init__.py") && install.exists("app/old.py"));
    let aside = install.root.join("backups").join(backup_of(&output)).join("aside");
    assert_eq!(fs::read_to_string(aside.join("app/routes/__init__.py")).unwrap(), "# old package\n");
    let events = output.events();
    let told = events.iter().find(|e| e["code"] == "before-receipt").expect("nothing is said of what stays");
    assert!(told["message"].as_str().unwrap().contains("updater adopt"), "{told}");
}

#[test]
fn one_file_that_stays_is_told_as_one_and_two_as_two() {
    for (more, words) in [
        (None, "so 1 program file that the bundle lacks stays; `updater verify` lists it"),
        (Some("app/other.py"), "so 2 program files that the bundle lacks stay; `updater verify` lists them"),
    ] {
        let install = running("");
        more.iter().for_each(|path| install.write(path, "# other\n"));
        let bundle = install.save(&install.bundle("2.0"));
        let plan = install.updater(&["plan", bundle.to_str().unwrap(), "--json"]).expect(0).object();
        assert!(plan["warnings"].to_string().contains(words), "{plan}");
    }
}

#[test]
fn the_backup_from_before_the_first_receipt_is_never_pruned_by_an_update_and_brings_that_state_back() {
    let install = running("[backup]\nkeep = 1\n");
    install.write("app/notes.txt", "edited\n");
    let before = install.tree();
    let first = backup_of(&install.apply(&install.bundle("2.0")).expect(0));
    for version in ["2.1", "2.2", "2.3"] {
        install.apply(&install.bundle(version)).expect(0);
    }
    install.updater(&["restore", &first, "--json"]).expect(0);
    let same = |tree: &kit::Tree| {
        tree.0.iter().map(|(name, file)| (name.clone(), (file.hash.clone(), file.mode))).collect::<Vec<_>>()
    };
    assert_eq!(same(&install.tree()), same(&before));
    // And nobody knows again what that version shipped, so nothing of it is taken for ours.
    install.apply(&install.bundle("2.0")).expect(0);
    assert!(install.exists("app/old.py") && install.exists("app/notes.txt"));
}

#[test]
fn adopting_tells_the_versions_files_from_the_users() {
    let install = running("");
    install.write("app/mine.py", "# mine\n");
    install.write("app/core.py", "# hotfix\n");
    let bundle = install.save(&Bundle::first().file("app/gone.py", "# deleted here\n").file("app/more.py", "# more\n"));
    install.write("app/more.py", "# more\n");
    let done = install.updater(&["adopt", bundle.to_str().unwrap(), "--json"]).expect(0).object();
    assert_eq!(done["schema"], 1);
    assert_eq!(
        (&done["same"], &done["differs"], &done["missing"]),
        (&json!(4), &json!(["app/core.py"]), &json!(["app/gone.py"]))
    );
    assert_eq!(done["recovered"], Value::Null);
    assert_eq!(install.version(), "1.0", "adopting is no update");
    install.apply(&install.bundle("2.0")).expect(0);
    assert!(install.exists("app/mine.py") && !install.exists("app/old.py") && !install.exists("app/more.py"));
    // The bundle of another version is none to adopt.
    let other = running("");
    let foreign = Bundle { top: "x/".into(), files: Default::default() };
    let foreign = (0..9).fold(foreign.file("run.py", "# other\n"), |b, n| b.file(&format!("app/{n}.py"), "# other\n"));
    let refused = other.updater(&["adopt", other.save(&foreign).to_str().unwrap(), "--json"]).expect(6).object();
    assert_eq!(refused["error"]["code"], "not-this-version");
    assert!(!other.exists(".updater/receipt.json"));
}

#[test]
fn clean_paths_move_unknown_program_files_aside_and_nothing_else() {
    let install = adopted("[clean]\npaths = [\"/app/\"]\n");
    install.write("app/stray.py", "# stray\n");
    install.write("app/photo.jpg", "theirs");
    install.write("app/.env", "SECRET=1");
    database(&install.root.join("app/some.db"), 1);
    let output = install.apply(&install.bundle("2.0")).expect(0);
    assert_eq!(named(&output, "moved-aside"), set(&["app/stray.py"]));
    assert!(!install.exists("app/stray.py"));
    for path in ["app/photo.jpg", "app/.env", "app/some.db"] {
        assert!(install.exists(path), "{path} is gone");
    }
}

#[test]
fn a_file_in_the_way_of_a_folder_and_the_reverse_give_way() {
    let install = adopted("");
    install.write("app/tools", "a file of theirs");
    install.write("lib/helper/theirs.txt", "theirs");
    install.write("lib/helper/deep/more.txt", "theirs");
    let bundle = install.bundle("2.0").file("app/tools/a.py", "# a\n").file("lib/helper", "a file of ours");
    let output = install.apply(&bundle).expect(0);
    assert_eq!(named(&output, "moved-aside"), set(&["app/tools", "lib/helper/deep/more.txt", "lib/helper/theirs.txt"]));
    assert_eq!((install.read("app/tools/a.py"), install.read("lib/helper")), ("# a\n".into(), "a file of ours".into()));
    let aside = install.root.join("backups").join(backup_of(&output)).join("aside");
    assert_eq!(fs::read_to_string(aside.join("lib/helper/deep/more.txt")).unwrap(), "theirs");
    // A rollback brings such a tree back as it was.
    let install = adopted("");
    install.write("app/tools", "a file of theirs");
    install.write("lib/helper/theirs.txt", "theirs");
    let before = install.tree();
    install.apply(&vandal("").file("app/tools/a.py", "# a\n").file("lib/helper", "ours")).expect(3);
    assert_eq!(install.tree(), before);
}

// ---- rollback ----

#[test]
fn a_rollback_puts_back_whatever_the_failed_version_altered_or_deleted_wherever_it_lies() {
    let install = adopted("");
    let theirs = ["data/state.json", "data/blob.bin", "users.json", "app/static/uploads/a.png", "new/deep/folder/x"];
    for path in theirs {
        install.write(path, format!("theirs: {path}"));
    }
    install.write("app/seed.json", "[]");
    let before = install.tree();
    let mut lines = String::from("WRITE = \"made/by/it.txt=new\"\n");
    for path in ["data/state.json", "users.json", "app/seed.json"] {
        lines += &format!("WRITE = \"{path}=altered\"\n");
    }
    for path in ["data/blob.bin", "app/static/uploads/a.png", "new/deep/folder/x"] {
        lines += &format!("REMOVE = \"{path}\"\n");
    }
    let output = install.apply(&vandal(&lines)).expect(3);
    let finished = output.finished();
    assert!(finished["error"]["message"].as_str().unwrap().contains("as it was before"), "{finished}");
    assert_eq!(finished["stands"]["server"], "up");
    let mut after = install.tree();
    assert!(after.0.remove("made/by/it.txt").is_some(), "newer files stay");
    assert_eq!(after, before);
    let kept = install.root.join("backups").join(backup_of(&output)).join("after/users.json");
    assert_eq!(fs::read_to_string(kept).unwrap(), "altered");
}

#[test]
fn files_in_a_folder_that_has_the_name_of_a_log_are_the_users() {
    let install = adopted("");
    for path in ["uploads/2026.log/march.txt", "app/run.pid/notes.txt", "app/today.log"] {
        install.write(path, "theirs");
    }
    let lines = "REMOVE = \"uploads/2026.log/march.txt\"\nWRITE = \"app/run.pid/notes.txt=altered\"\n";
    let output = install.apply(&vandal(lines)).expect(3);
    assert_eq!(install.read("uploads/2026.log/march.txt"), "theirs");
    assert_eq!(install.read("app/run.pid/notes.txt"), "theirs");
    let saved = install.root.join("backups").join(backup_of(&output));
    assert!(saved.join("app/run.pid/notes.txt").exists() && !saved.join("app/today.log").exists());
}

#[test]
fn a_large_file_never_blocks_an_update_and_a_rollback_says_that_it_changed() {
    let install = adopted("[backup]\nmax_file = \"1 MB\"\nskip = [\"/media/\"]\n");
    install.write("videos/long.mp4", vec![7; 1_500_000]);
    install.write("media/small.mp3", "song");
    database(&install.root.join("media/index.db"), 3);
    let bundle = install.save(&install.bundle("2.0"));
    let plan = install.updater(&["plan", bundle.to_str().unwrap(), "--json"]).expect(0).object();
    if plan["not_saved"]["count"] == 1 {
        eprintln!("this volume shares contents, so the large file is saved");
        return;
    }
    assert_eq!(plan["not_saved"], json!({"count": 2, "bytes": 1_500_004}));
    let output = install.apply_with(&bundle, &[]).expect(0);
    assert_eq!(named(&output, "not-saved"), set(&["media/small.mp3", "videos/long.mp4"]));
    let saved = install.root.join("backups").join(backup_of(&output));
    assert!(!saved.join("videos/long.mp4").exists() && !saved.join("media/small.mp3").exists());
    assert!(saved.join("media/index.db").exists(), "a database is saved whatever is set");

    let output = install.apply(&vandal("WRITE = \"videos/long.mp4=cut\"\n")).expect(3);
    let message = output.finished()["error"]["message"].as_str().unwrap().to_string();
    assert!(message.contains("videos/long.mp4") && !message.contains("as it was before"), "{message}");
    assert_eq!(named(&output, "not-put-back"), set(&["videos/long.mp4"]));
}

#[cfg(unix)]
#[test]
fn a_rollback_finds_the_way_through_whatever_became_of_folders_and_writes_through_no_foreign_link() {
    let outside = tempfile::tempdir().unwrap();
    let foreign = outside.path().to_str().unwrap();
    for shell in [
        "rm -r app",
        "rm -r uploads; echo x >uploads",
        "rm -rf .updater/trash",
        &format!("rm -r uploads app; ln -s {foreign} uploads; ln -s {foreign} app"),
        "chmod 700 app; chmod 755 uploads/private; touch -d 2001-01-01 uploads/a.txt",
        "rm uploads/link; ln -s elsewhere uploads/link",
        "rm uploads/a.txt; ln -s target uploads/a.txt",
    ] {
        let install = adopted("");
        install.write("uploads/private/secret", "secret");
        std::os::unix::fs::symlink("a.txt", install.root.join("uploads/link")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(install.root.join("uploads/private"), mode).unwrap();
        let before = install.tree();
        let folder_mode = |path: &str| {
            use std::os::unix::fs::MetadataExt;
            fs::metadata(install.root.join(path)).unwrap().mode()
        };
        let modes = ["app", "uploads", "uploads/private"].map(folder_mode);
        let output = install.apply(&vandal(&format!("SHELL = \"{shell}\"\n"))).expect(3);
        assert_eq!(install.tree(), before, "{shell}");
        assert_eq!(["app", "uploads", "uploads/private"].map(folder_mode), modes, "{shell}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "{shell}: something was written outside");
        assert_eq!((install.version().as_str(), output.finished()["stands"]["server"].as_str()), ("1.0", Some("up")));
    }
}

#[cfg(unix)]
#[test]
fn a_data_folder_that_is_a_link_is_the_same_link_after_a_rollback_and_restored_through() {
    let shared = tempfile::tempdir().unwrap();
    let install = running("");
    fs::remove_dir_all(install.root.join("uploads")).unwrap();
    std::os::unix::fs::symlink(shared.path(), install.root.join("uploads")).unwrap();
    install.write("uploads/a.txt", "shared");
    install.adopt();
    install.apply(&vandal("SHELL = \"rm uploads/a.txt uploads; mkdir uploads\"\n")).expect(3);
    assert_eq!(fs::read_link(install.root.join("uploads")).unwrap(), shared.path());
    assert_eq!(fs::read_to_string(shared.path().join("a.txt")).unwrap(), "shared");
    let backup = backup_of(&install.apply(&install.bundle("2.0")).expect(0));
    fs::write(shared.path().join("a.txt"), "later").unwrap();
    let output = install.updater(&["restore", &backup, "--data", "--json"]).expect(0);
    assert_eq!(fs::read_to_string(shared.path().join("a.txt")).unwrap(), "shared");
    assert_eq!(named(&output, "data-replaced"), set(&["uploads/a.txt"]));
    let after = install.root.join("backups").join(backup_of(&output)).join("after/uploads/a.txt");
    assert_eq!(fs::read_to_string(after).unwrap(), "later");
}

#[cfg(unix)]
#[test]
fn what_is_written_after_the_plan_and_before_the_end_of_the_stop_is_judged_again() {
    let script =
        "echo late >app/seed.json; echo late >app/gone.json; echo '{\\\"k\\\": \\\"late\\\"}' >app_config.json";
    let hook = format!("[[hooks.before_stop]]\nrun = [\"sh\", \"-c\", \"cd $UPDATER_ROOT; {script}\"]\n");
    let install = running(&hook);
    let first = Bundle::first().file("app/seed.json", "1").file("app/gone.json", "1");
    for path in ["app/seed.json", "app/gone.json"] {
        install.write(path, "1");
    }
    install.updater(&["adopt", install.save(&first).to_str().unwrap()]).expect(0);
    let bundle = install.bundle("2.0").file("app/seed.json", "2").file("app_config.json", "{\"new\": 1}");
    let output = install.apply(&bundle).expect(0);
    assert_eq!((install.read("app/seed.json"), install.read("app/gone.json")), ("late\n".into(), "late\n".into()));
    let config: Value = serde_json::from_str(&install.read("app_config.json")).unwrap();
    assert_eq!((&config["k"], &config["new"]), (&json!("late"), &json!(1)));
    assert_eq!(named(&output, "changed-here"), set(&["app/gone.json", "app/seed.json"]));
    // The receipt tells the release's, so the next update still knows the edit.
    let verify = install.updater(&["verify", "--json"]).expect(0).object();
    assert_eq!(verify["changed_here"], json!(["app/seed.json"]));
}

#[test]
fn a_release_may_drop_a_watched_database_that_nobody_wrote_in_and_a_restore_brings_it_back() {
    let install = adopted("[preserve]\nadd_databases = true\n");
    install.apply(&install.bundle("2.0").file("instance/geo.db", database_bytes(2))).expect(0);
    let dropped = install.apply(&install.bundle("2.1")).expect(0);
    assert!(!install.exists("instance/geo.db"));
    install.write("updater.toml", QUICK);
    install.updater(&["restore", &backup_of(&dropped), "--json"]).expect(0);
    assert_eq!(rows(&install.root.join("instance/geo.db")), 2);
}

#[test]
fn a_restore_with_data_brings_a_folder_back_where_a_release_had_put_a_file() {
    let install = adopted("");
    install.write("app/tools/mine.txt", "mine");
    let first = install.apply(&install.bundle("2.0").file("app/tools", "a file of ours")).expect(0);
    assert_eq!(named(&first, "moved-aside"), set(&["app/tools/mine.txt"]));
    install.updater(&["restore", &backup_of(&first), "--data", "--json"]).expect(0);
    assert_eq!(install.read("app/tools/mine.txt"), "mine");
}

// ---- backups ----

#[test]
fn a_backup_costs_the_change_and_a_spoiled_copy_is_named_in_every_backup_that_shares_it() {
    let install = adopted("");
    install.write("docs/manual.pdf", vec![1; 300_000]);
    // Older than what could still be in the middle of being written.
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    fs::File::options().write(true).open(install.root.join("docs/manual.pdf")).unwrap().set_modified(old).unwrap();
    install.apply(&install.bundle("2.0")).expect(0);
    std::thread::sleep(std::time::Duration::from_millis(2200));
    let second = backup_of(&install.apply(&install.bundle("2.1")).expect(0));
    let third = backup_of(&install.apply(&install.bundle("2.2")).expect(0));
    let saved = |id: &str| install.root.join("backups").join(id).join("docs/manual.pdf");
    let list = || install.updater(&["backups", "--check", "--json"]).object();
    let before = list();
    let numbers: Vec<_> = before["backups"].as_array().unwrap().iter().map(|b| b["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [3, 2, 1]);
    let on_disk = |at: usize| before["backups"][at]["bytes_on_disk"].as_u64().unwrap();
    if !is_same_file(&saved(&second), &saved(&third)) {
        eprintln!("this volume shares contents in another way");
        return;
    }
    assert!(on_disk(0) < 300_000, "the newest backup takes {} bytes", on_disk(0));
    // A change in place must not reach the older copies.
    install.write("docs/manual.pdf", vec![2; 300_000]);
    install.apply(&install.bundle("2.3")).expect(0);
    assert_eq!(fs::read(saved(&third)).unwrap(), vec![1; 300_000]);
    fs::write(saved(&third), "spoiled").unwrap();
    let damaged: BTreeSet<String> = list()["backups"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|b| b["whole"] == false)
        .map(|b| b["id"].as_str().unwrap().to_string())
        .collect();
    assert!(damaged.contains(&second) && damaged.contains(&third), "{damaged:?}");
}

#[cfg(unix)]
fn is_same_file(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(one).unwrap().ino() == fs::metadata(other).unwrap().ino()
}

#[cfg(not(unix))]
fn is_same_file(_: &Path, _: &Path) -> bool {
    false
}

#[test]
fn names_of_the_install_that_a_backup_uses_itself_are_saved_under_others_and_come_back() {
    let install = adopted("");
    install.write("aside/mine.txt", "mine");
    install.write("after", "and mine");
    let output = install.apply(&vandal("REMOVE = \"aside/mine.txt\"\nREMOVE = \"after\"\n"));
    let output = output.expect(3);
    assert_eq!(install.read("aside/mine.txt"), "mine");
    assert_eq!(install.read("after"), "and mine");
    let saved = install.root.join("backups").join(backup_of(&output));
    assert_eq!(fs::read_to_string(saved.join("aside.saved/mine.txt")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(saved.join("after.saved")).unwrap(), "and mine");
    install.updater(&["backups", "--check"]).expect(0);
}

#[test]
fn what_is_pruned_is_told_and_the_newest_whole_backup_never_is() {
    let install = adopted("[backup]\nkeep = 1\n");
    let first = backup_of(&install.apply(&install.bundle("2.0")).expect(0));
    let output = install.apply(&install.bundle("2.1")).expect(0);
    let pruned: Vec<_> = output.events().into_iter().filter(|e| e["event"] == "pruned").collect();
    assert_eq!((pruned.len(), pruned[0]["backup"].as_str().unwrap()), (1, first.as_str()));
    assert!(pruned[0]["bytes"].as_u64().unwrap() > 0);

    let install = adopted("");
    let whole = backup_of(&install.apply(&install.bundle("2.0")).expect(0));
    let damaged = backup_of(&install.apply(&install.bundle("2.1")).expect(0));
    fs::remove_file(install.root.join("backups").join(&damaged).join("run.py")).unwrap();
    install.updater(&["backups", "prune", "--keep", "1", "--json"]).expect(0);
    assert!(install.root.join("backups").join(&whole).join("backup.json").exists());
}

// ---- metadata, links and bundles as people make them ----

#[cfg(unix)]
#[test]
fn a_zip_without_unix_modes_leaves_scripts_executable_and_no_zip_opens_a_tight_file() {
    use std::os::unix::fs::PermissionsExt;
    let install = adopted("");
    let chmod = |path: &str, mode: u32| {
        fs::set_permissions(install.root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    let mode = |path: &str| fs::metadata(install.root.join(path)).unwrap().permissions().mode() & 0o7777;
    chmod("app/core.py", 0o755);
    chmod("app/__init__.py", 0o600);
    // The kit's zips carry 0644 for everything: nobody may execute, and who may read stays.
    install.apply(&install.bundle("2.0")).expect(0);
    assert_eq!((mode("app/core.py"), mode("app/__init__.py")), (0o644, 0o600));
    chmod("app/core.py", 0o755);
    // A system without such modes: bytes 5 and 38..42 of each directory entry tell the system and its attributes.
    let mut bytes = install.bundle("2.1").bytes();
    let heads: Vec<usize> = (0..bytes.len() - 4).filter(|at| bytes[*at..].starts_with(b"PK\x01\x02")).collect();
    for at in heads {
        bytes[at + 5] = 0;
        bytes[at + 38..at + 42].copy_from_slice(&[0x20, 0, 0, 0]);
    }
    let path = install.scratch().join("plain.zip");
    fs::write(&path, bytes).unwrap();
    install.apply_with(&path, &[]).expect(0);
    assert_eq!((install.read("app/core.py"), mode("app/core.py")), ("# core of 2.1\n".into(), 0o755));
}

#[cfg(unix)]
#[test]
fn links_of_the_users_stay_and_code_behind_one_ends_the_update_before_it_begins() {
    use std::os::unix::fs::symlink;
    let install = adopted("");
    let shared = install.scratch().join("shared");
    fs::create_dir_all(shared.join("uploads")).unwrap();
    fs::write(shared.join("uploads/photo.jpg"), "picture").unwrap();
    fs::write(shared.join("local.py"), "KEY = 'mine'\n").unwrap();
    fs::create_dir(install.root.join("public")).unwrap();
    symlink(shared.join("uploads"), install.root.join("public/uploads")).unwrap();
    symlink(shared.join("local.py"), install.root.join("app/local.py")).unwrap();
    let bundle = install.bundle("2.0").file("public/uploads/.gitkeep", "").file("app/local.py", "KEY = 'default'\n");
    let output = install.apply(&bundle).expect(0);
    assert_eq!(named(&output, "held-back"), set(&["app/local.py", "public/uploads/.gitkeep"]));
    assert_eq!(install.read("app/local.py"), "KEY = 'mine'\n");
    assert_eq!(fs::read_dir(shared.join("uploads")).unwrap().count(), 1);
    let pid = install.pid();
    let output = install.apply(&install.bundle("2.1").file("public/uploads/code.py", "# code\n")).expect(1);
    assert_eq!((output.error_code().as_str(), install.pid()), ("code-behind-link", pid));
}

#[test]
fn litter_of_desktops_does_not_count() {
    let install = adopted("");
    let bundle = install.bundle("2.0").raw(".DS_Store", "x").raw("Thumbs.db", "x").file("app/._core.py", "x");
    install.apply(&bundle.raw("__MACOSX/site/._run.py", "x")).expect(0);
    assert!(install.exists("app/new.py") && !install.exists("app/._core.py") && !install.exists("Thumbs.db"));
}

#[cfg(unix)]
#[test]
fn names_that_only_another_system_cannot_hold_are_installed() {
    let install = adopted("");
    let names = ["app/static/con.svg", "app/tests/12:30.json", "app/README", "app/Readme"];
    let bundle = names.iter().fold(install.bundle("2.0"), |bundle, name| bundle.file(name, name));
    install.apply(&bundle).expect(0);
    for name in names {
        assert_eq!(install.read(name), *name);
    }
}
