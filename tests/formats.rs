//! Records that an earlier program wrote are read: its installs are updated, restored and recovered by this one.
//! `fixtures/format-1/README.md` tells what they are.

mod kit;

use std::fs;
use std::path::Path;

use kit::{Bundle, Install};
use sha2::{Digest, Sha256};

/// An install as the earlier program left it, in a place and on a port of its own.
fn left_by_the_earlier_program(name: &str) -> Install {
    let install = Install::new();
    fs::remove_dir_all(&install.root).unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/format-1").join(name);
    for item in walkdir::WalkDir::new(&from).into_iter().map(Result::unwrap) {
        let place = install.root.join(item.path().strip_prefix(&from).unwrap());
        if item.file_type().is_dir() {
            fs::create_dir_all(place).unwrap();
            continue;
        }
        let bytes = fs::read(item.path()).unwrap();
        let own = match String::from_utf8(bytes.clone()) {
            Ok(text) if item.file_name() == "journal" => with_sums(&here(&install, &text)).into_bytes(),
            Ok(text) => here(&install, &text).into_bytes(),
            Err(_) => bytes,
        };
        fs::write(place, own).unwrap();
    }
    install
}

fn here(install: &Install, text: &str) -> String {
    let text =
        text.replace("ROOT", install.root.to_str().unwrap()).replace("STANDIN", kit::standin().to_str().unwrap());
    text.replace("65432", &install.port.to_string())
}

fn with_sums(journal: &str) -> String {
    let line = |line: &str| {
        let json = line.split_once(' ').unwrap().1;
        let sum: String = Sha256::digest(json.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("{sum} {json}\n")
    };
    journal.trim_end_matches('\0').lines().map(line).collect()
}

fn formats(install: &Install, path: &str) -> u64 {
    let record: serde_json::Value = serde_json::from_str(&install.read(path)).unwrap();
    record["format"].as_u64().unwrap()
}

#[test]
fn an_install_with_an_earlier_receipt_is_updated_and_its_users_files_stay() {
    let install = left_by_the_earlier_program("applied");
    assert_eq!(formats(&install, ".updater/receipt.json"), 1);
    install.start();
    install.updater(&["verify"]).expect(0);
    let output = install.apply(&install.bundle("3.0")).expect(0);
    assert_eq!((install.version().as_str(), output.finished()["from_version"].as_str()), ("3.0", Some("2.0")));
    assert_eq!(install.read("app/static/uploads/photo.jpg"), "picture\n");
    assert!(!install.exists("VERSION"), "what the receipt lists and nobody changed leaves with its version");
    assert_eq!(install.note(), "old row");
    assert_eq!(formats(&install, ".updater/receipt.json"), 2);
}

#[test]
fn an_earlier_backup_is_restored_and_nothing_of_it_is_taken_for_ours() {
    let install = left_by_the_earlier_program("applied");
    let listed = install.updater(&["backups", "--check", "--json"]).expect(0).object();
    let id = listed["backups"][0]["id"].as_str().unwrap();
    assert_eq!((&listed["backups"][0]["whole"], &listed["backups"][0]["number"]), (&true.into(), &0.into()));
    install.start();
    fs::remove_file(install.root.join("app/static/uploads/photo.jpg")).unwrap();
    install.updater(&["restore", id, "--json"]).expect(0);
    assert_eq!(install.version(), "1.0");
    assert_eq!(install.read("app/static/uploads/photo.jpg"), "picture\n");
    assert!(install.exists("app/old.py") && !install.exists("app/new.py"));
    // That backup took the picture for a part of the version; the next update must not.
    let output = install.apply(&install.bundle("3.0")).expect(0);
    assert_eq!(install.read("app/static/uploads/photo.jpg"), "picture\n");
    // A backup of this program comes after all earlier ones.
    let listed = install.updater(&["backups", "--json"]).expect(0).object();
    assert_eq!(listed["backups"][0]["id"], output.finished()["backup"]);
}

#[test]
fn an_update_that_the_earlier_program_left_in_the_middle_is_undone() {
    for command in [&["recover", "--json"][..], &["apply", "BUNDLE", "--json"]] {
        let install = left_by_the_earlier_program("interrupted");
        assert!(!install.exists("run.py") && !install.exists("app/static/uploads/photo.jpg"));
        let bundle = install.save(&Bundle::release("4.0", ""));
        let arguments: Vec<&str> =
            command.iter().map(|word| if *word == "BUNDLE" { bundle.to_str().unwrap() } else { word }).collect();
        let output = install.updater(&arguments).expect(0);
        let recovered = output.events().into_iter().find(|event| event["event"] == "recovered").unwrap();
        assert_eq!(recovered["direction"], "old");
        assert_eq!(install.version(), if command[0] == "recover" { "2.0" } else { "4.0" });
        assert_eq!(install.read("app/static/uploads/photo.jpg"), "picture\n");
        assert_eq!(install.note(), "old row");
        assert!(!install.exists(".updater/journal"));
        if command[0] == "recover" {
            let stands = &output.finished()["stands"];
            assert_eq!((stands["version"].as_str(), stands["server"].as_str()), (Some("2.0"), Some("up")));
            assert_eq!(output.finished()["port"], install.port);
            install.updater(&["verify"]).expect(0);
        }
    }
}
