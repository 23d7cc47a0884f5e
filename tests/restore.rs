//! `restore` and `backups`: every backup brings its version back, from every later state.

mod kit;

use std::collections::BTreeMap;
use std::fs;

use kit::{Bundle, Install, Output};
use serde_json::Value;

/// An install with short waits and room for many backups, its server running.
fn install() -> Install {
    let install = Install::running();
    install.write("updater.toml", "[server]\nsoak = \"50ms\"\n[backup]\nkeep = 50\n[verify]\ntables = [\"notes\"]\n");
    install
}

/// A release with a file that no other has.
fn release(version: &str) -> Bundle {
    Bundle::release(version, "").file(&format!("app/only_{}/part.py", &version[..1]), "# part\n")
}

fn backup_of(output: &Output) -> String {
    output.finished()["backup"].as_str().unwrap().to_string()
}

fn restore(install: &Install, more: &[&str]) -> Output {
    let mut arguments = vec!["restore", "--json"];
    arguments.extend(more);
    install.updater(&arguments)
}

/// Content and mode of the program's own files.
fn program(install: &Install) -> BTreeMap<String, (String, u32)> {
    let own = |name: &str| name == "run.py" || name.starts_with("app/");
    let files = install.tree().0.into_iter().filter(|(name, _)| own(name));
    files.map(|(name, file)| (name, (file.hash, file.mode))).collect()
}

fn sql(install: &Install, text: &str) {
    let db = rusqlite::Connection::open(install.root.join("instance/app.db")).unwrap();
    db.execute_batch(text).unwrap();
}

fn list(install: &Install, more: &[&str], code: i32) -> Vec<Value> {
    let mut arguments = vec!["backups", "--json"];
    arguments.extend(more);
    install.updater(&arguments).expect(code).object()["backups"].as_array().unwrap().clone()
}

#[test]
fn each_backup_is_restored_from_each_later_state_and_each_restore_is_undone() {
    let install = install();
    fs::remove_file(install.root.join("app/old.py")).unwrap();
    let mut versions = vec![(String::new(), "1.0".to_string(), program(&install))];
    for version in ["2.0", "3.0", "4.0"] {
        let backup = backup_of(&install.apply(&release(version)).expect(0));
        versions.last_mut().unwrap().0 = backup;
        let now = program(&install);
        for (id, old, tree) in &versions {
            let done = restore(&install, &[id]).expect(0);
            assert_eq!(done.outcome(), "restored");
            assert_eq!(&program(&install), tree, "{version} -> {old}");
            assert_eq!(&install.version(), old);
            let whole = install.updater(&["verify", "--json"]).expect(0).object();
            assert_eq!(whole["unknown"], serde_json::json!([]), "{whole}");
            restore(&install, &[&backup_of(&done)]).expect(0);
            assert_eq!(program(&install), now, "{old} -> {version}");
            assert_eq!(install.version(), version);
        }
        versions.push((String::new(), version.to_string(), now));
    }
    let whole = list(&install, &["--check"], 0);
    assert_eq!(whole.len(), 15);
    assert!(whole.iter().all(|b| b["whole"] == true));
    assert_eq!(whole.iter().filter(|b| b["kind"] == "apply").count(), 3);

    // Whichever goes first, the others stay whole.
    install.updater(&["backups", "prune", "--keep", "2", "--json"]).expect(0);
    let left = list(&install, &["--check"], 0);
    assert_eq!(left.len(), 2);
    restore(&install, &[left[1]["id"].as_str().unwrap()]).expect(0);
}

#[test]
fn without_an_id_the_newest_backup_of_another_version_is_taken() {
    let install = install();
    let none = restore(&install, &[]).expect(1);
    assert_eq!(none.error_code(), "no-backup");
    assert!(!install.exists(".updater/staging"));
    install.apply(&release("2.0")).expect(0);
    install.apply(&release("3.0")).expect(0);
    install.apply(&Bundle::release("4.0", "EXIT = 1\n")).expect(3);
    assert_eq!(list(&install, &[], 0)[0]["kind"], "failed");
    restore(&install, &[]).expect(0);
    assert_eq!(install.version(), "2.0");
    // The backup of 3.0 that this made is of a restore; that of 2.0 is installed: 1.0 is left.
    restore(&install, &[]).expect(0);
    assert_eq!(install.version(), "1.0");
}

/// Gives a backup the name and the record that it has where the clock was so many years ahead when it was made.
fn made_in_the_future(install: &Install, id: &str, years: u32) {
    let folder = install.root.join("backups");
    let year: u32 = id["update_backup_".len()..][..4].parse().unwrap();
    let later = |text: &str| text.replacen(&year.to_string(), &(year + years).to_string(), 1);
    let mut record: Value = serde_json::from_slice(&fs::read(folder.join(id).join("backup.json")).unwrap()).unwrap();
    for name in ["id", "created"] {
        record[name] = later(record[name].as_str().unwrap()).into();
    }
    fs::write(folder.join(id).join("backup.json"), record.to_string()).unwrap();
    fs::rename(folder.join(id), folder.join(later(id))).unwrap();
}

#[test]
fn a_clock_that_went_back_costs_no_new_backup_and_misleads_no_restore() {
    let install = install();
    install.write("updater.toml", "[server]\nsoak = \"50ms\"\n[backup]\nkeep = 2\n");
    install.adopt();
    // It went back each time.
    for (version, years) in [("2.0", 12), ("3.0", 11), ("4.0", 10)] {
        made_in_the_future(&install, &backup_of(&install.apply(&release(version)).expect(0)), years);
    }
    let ids = |list: &[Value]| list.iter().map(|b| b["id"].as_str().unwrap().to_string()).collect::<Vec<_>>();
    let ahead = ids(&list(&install, &[], 0));
    // From here on the clock is right.
    let made = backup_of(&install.apply(&release("5.0")).expect(0));
    let there = list(&install, &["--check"], 0);
    assert_eq!(ids(&there), [made.clone(), ahead[0].clone()], "the two that were made last");
    assert!(made < ahead[0] && there[0]["created"].as_str() < there[1]["created"].as_str());
    assert!(there[0]["number"].as_u64() > there[1]["number"].as_u64());
    // A second one shares what is unchanged with that before, and is no older than it.
    let last = backup_of(&install.apply(&release("6.0")).expect(0));
    assert_eq!(ids(&list(&install, &["--check"], 0)), [last, made.clone()]);
    restore(&install, &[]).expect(0);
    assert_eq!(install.version(), "5.0", "what was installed before is not what the clock says");
    install.updater(&["backups", "prune", "--keep", "1", "--json"]).expect(0);
    assert!(!ids(&list(&install, &[], 0)).contains(&made));
}

#[test]
fn data_goes_back_only_when_asked_and_what_is_newer_stays() {
    let install = install();
    let backup = backup_of(&install.apply(&release("2.0")).expect(0));
    sql(&install, "UPDATE notes SET text = 'later'; INSERT INTO notes VALUES(2, 'two')");
    install.write("uploads/a.txt", "later\n");
    install.write("uploads/new.txt", "new\n");
    fs::remove_file(install.root.join("config/settings.json")).unwrap();

    let code = restore(&install, &[&backup]).expect(0);
    assert_eq!((install.note().as_str(), install.read("uploads/a.txt").as_str()), ("later", "later\n"));
    restore(&install, &[&backup_of(&code)]).expect(0);

    let all = restore(&install, &[&backup, "--data"]).expect(0);
    assert_eq!(install.version(), "1.0");
    assert_eq!((install.note().as_str(), install.read("uploads/a.txt").as_str()), ("old row", "old upload\n"));
    assert_eq!(install.read("uploads/new.txt"), "new\n");
    assert_eq!(install.read("config/settings.json"), "{\"theme\": \"dark\"}\n");

    restore(&install, &[&backup_of(&all), "--data"]).expect(0);
    assert_eq!(install.version(), "2.0");
    assert_eq!((install.note().as_str(), install.read("uploads/a.txt").as_str()), ("later", "later\n"));
}

#[test]
fn a_log_that_the_saved_database_did_not_have_is_not_replayed_into_it() {
    let install = install();
    // A database that the server knows nothing of, so that no empty log lies beside it.
    let place = install.root.join("instance/own.db");
    let open = || rusqlite::Connection::open(&place).unwrap();
    open().execute_batch("PRAGMA journal_mode = wal; CREATE TABLE t(a); INSERT INTO t VALUES('saved')").unwrap();
    let backup = backup_of(&install.apply(&release("2.0")).expect(0));
    assert!(!install.exists("instance/own.db-wal"));
    let writer = open();
    writer.execute_batch("UPDATE t SET a = 'in the log'").unwrap();
    assert!(install.exists("instance/own.db-wal"));
    // As a killed writer leaves it.
    std::mem::forget(writer);
    let value = || {
        let copy = tempfile::tempdir().unwrap();
        for name in ["own.db", "own.db-wal"].into_iter().filter(|n| install.exists(&format!("instance/{n}"))) {
            fs::copy(install.root.join("instance").join(name), copy.path().join(name)).unwrap();
        }
        let db = rusqlite::Connection::open(copy.path().join("own.db")).unwrap();
        db.query_row("SELECT a FROM t", [], |row| row.get::<_, String>(0)).unwrap()
    };
    assert_eq!(value(), "in the log");

    let done = restore(&install, &[&backup, "--data"]).expect(0);
    assert_eq!(value(), "saved");
    assert!(!install.exists("instance/own.db-wal") && !install.exists("instance/own.db-shm"));
    restore(&install, &[&backup_of(&done), "--data"]).expect(0);
    assert_eq!(value(), "in the log");
}

#[test]
fn a_restore_that_does_not_come_up_is_rolled_back() {
    let install = Install::new();
    install.write("updater.toml", "[server]\nsoak = \"50ms\"\n");
    install.write("run.py", kit::script("1.0", "REQUIRE = \"config/licence\"\n"));
    install.write("config/licence", "yes");
    install.start();
    let backup = backup_of(&install.apply(&release("2.0")).expect(0));
    fs::remove_file(install.root.join("config/licence")).unwrap();
    install.write("uploads/a.txt", "later\n");
    sql(&install, "UPDATE notes SET text = 'later'");
    let before = program(&install);

    let failed = restore(&install, &[&backup]).expect(3);
    assert_eq!(failed.error_code(), "health-exited");
    assert_eq!(program(&install), before);
    assert_eq!(install.version(), "2.0");
    assert_eq!((install.note().as_str(), install.read("uploads/a.txt").as_str()), ("later", "later\n"));
}

#[test]
fn a_damaged_backup_is_found_and_refused_by_the_name_of_the_file() {
    let install = install();
    let backup = backup_of(&install.apply(&release("2.0")).expect(0));
    let saved = format!("backups/{backup}/app/core.py");
    let good = install.read(&saved);
    install.write(&saved, good.replace("core", "cire"));
    let before = install.pid();

    assert_eq!(list(&install, &[], 0)[0]["whole"], true, "without --check only sizes are compared");
    let found = list(&install, &["--check"], 1);
    assert_eq!(found[0]["damaged"][0]["path"], "app/core.py");
    let refused = restore(&install, &[&backup]).expect(6);
    assert_eq!(refused.error_code(), "backup-damaged");
    assert_eq!(refused.finished()["error"]["path"], "app/core.py");
    // A part that is whole may be restored.
    restore(&install, &[&backup, "--only", "app/__init__.py"]).expect(0);

    install.write(&format!("backups/{backup}/backup.json"), "{");
    assert_eq!(list(&install, &["--check"], 1).last().unwrap()["damaged"][0]["path"], "backup.json");
    assert_eq!(restore(&install, &[&backup, "--legacy"]).expect(6).error_code(), "backup-damaged");
    assert_eq!(restore(&install, &["nothing"]).expect(1).error_code(), "no-backup");
    assert_eq!(restore(&install, &["../site"]).expect(1).error_code(), "no-backup");
    assert_eq!(install.pid(), before);
}

#[test]
fn old_code_is_not_put_on_a_database_that_it_does_not_know() {
    let install = install();
    let backup = backup_of(&install.apply(&release("2.0")).expect(0));
    sql(&install, "ALTER TABLE notes ADD COLUMN tag TEXT; INSERT INTO notes VALUES(2, 'b', 'x'); CREATE TABLE tags(a)");
    let pid = install.pid();

    let refused = restore(&install, &[&backup]).expect(6);
    assert_eq!(refused.error_code(), "schema-differs");
    let error = &refused.finished()["error"];
    let (message, remedy) = (error["message"].as_str().unwrap(), error["remedy"].as_str().unwrap());
    for part in
        ["table notes is changed", "table tags is new", "notes: 2 now, 1 in the backup", "tags: 0 now, no table"]
    {
        assert!(message.contains(part), "{message}");
    }
    assert!(remedy.contains("--data") && remedy.contains("--code-only"), "{remedy}");
    assert_eq!(install.pid(), pid);
    assert!(!install.exists(".updater/staging"));

    restore(&install, &[&backup, "--code-only"]).expect(0);
    assert_eq!((install.version().as_str(), install.note().as_str()), ("1.0", "old row"));
    sql(&install, "SELECT tag FROM notes");
    restore(&install, &[&backup, "--data"]).expect(0);
    let db = rusqlite::Connection::open(install.root.join("instance/app.db")).unwrap();
    assert!(db.prepare("SELECT tag FROM notes").is_err());
}

#[test]
fn only_what_was_named_goes_back() {
    let install = install();
    install.adopt();
    let backup = backup_of(&install.apply(&release("2.0")).expect(0));
    sql(&install, "UPDATE notes SET text = 'later'");
    install.write("uploads/a.txt", "later\n");

    restore(&install, &[&backup, "--only", "app/core.py", "--only", "instance/app.db"]).expect(0);
    assert_eq!(install.read("app/core.py"), "# core of 1.0\n");
    assert_eq!(install.note(), "old row");
    assert_eq!(install.read("uploads/a.txt"), "later\n");
    assert_eq!(install.version(), "2.0");
    assert!(install.exists("app/only_2/part.py") && !install.exists("app/old.py"));
    // The receipt still says 2.0, and so what differs from it.
    let found = install.updater(&["verify", "--json"]).expect(1).object();
    assert_eq!(found["modified"], serde_json::json!(["app/core.py"]));

    let folder = restore(&install, &[&backup, "--only", "app/"]).expect(0);
    assert!(!install.exists("app/only_2/part.py") && install.exists("app/old.py"));
    restore(&install, &[&backup_of(&folder)]).expect(0);
    assert!(install.exists("app/only_2/part.py") && !install.exists("app/old.py"));
    assert_eq!(restore(&install, &[&backup, "--only", "app/nothing.py"]).expect(1).error_code(), "not-in-backup");
    restore(&install, &[&backup, "--only", "../x"]).expect(2);
}

#[test]
fn a_folder_of_the_old_updater_is_taken_only_when_told_and_removes_nothing() {
    let install = install();
    install.apply(&release("2.0")).expect(0);
    let folder = "backups/update_backup_20250101_120000";
    install.write(&format!("{folder}/run.py"), kit::script("0.9", ""));
    install.write(&format!("{folder}/app/core.py"), "# core of 0.9\n");
    install.write(&format!("{folder}/instance/app.db"), "not looked at");
    install.write("backups/update_backup_20250101_110000/app/core.py", "half");
    install.write("backups/notes.txt", "no backup");

    let all = list(&install, &["--check"], 0);
    assert_eq!(all.iter().filter(|b| b["kind"] == "legacy" && b["whole"] == false).count(), 2);
    assert_eq!(restore(&install, &["update_backup_20250101_120000"]).expect(6).error_code(), "no-record");
    assert_eq!(
        restore(&install, &["update_backup_20250101_110000", "--legacy"]).expect(6).error_code(),
        "no-start-file"
    );
    restore(&install, &["--legacy"]).expect(2);
    restore(&install, &["update_backup_20250101_120000", "--legacy"]).expect(0);
    assert_eq!(install.version(), "0.9");
    assert!(install.exists("app/new.py"), "nothing tells that the folder is whole, so nothing is removed");
    assert_eq!(install.note(), "old row");
    install.updater(&["backups", "prune", "--keep", "1"]).expect(0);
    assert!(install.exists(folder), "what has no record is not ours to delete");
}

#[test]
fn the_restored_version_is_known_again_and_can_be_repaired() {
    let install = install();
    install.apply(&release("2.0")).expect(0);
    install.apply(&release("3.0")).expect(0);
    restore(&install, &[]).expect(0);
    let pid = install.pid();
    // The settings of run.py came from this install, so the very bundle changes nothing.
    assert_eq!(install.apply(&release("2.0")).expect(0).outcome(), "already-current");
    assert_eq!(install.pid(), pid);
    restore(&install, &[list(&install, &[], 0)[0]["id"].as_str().unwrap()]).expect(0);
    assert_eq!(install.version(), "3.0");

    install.write("app/core.py", "damaged");
    fs::remove_file(install.root.join("app/new.py")).unwrap();
    let repaired = install.updater(&["verify", "--repair", "--json"]).expect(0);
    assert_eq!(repaired.outcome(), "repaired");
    install.updater(&["verify"]).expect(0);
    assert!(!install.exists(".updater/staging"));
}
