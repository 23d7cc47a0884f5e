//! Every record of the updater, missing, torn, foreign and newer: what every command says of it, held against
//! `fixtures/damaged/`. None of them may panic, take damage for "none", or lose anything.
//!
//! After a wanted change: `UPDATER_ACCEPT=1 cargo test --test damaged`, then read the difference.

mod kit;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kit::{Install, Output};
use serde_json::Value;
use updater::base::path::RelPath;
use updater::state::journal::{Baselines, Begin, FORMAT, Journal, Moves, Record};
use updater::system::ProcessId;

const READING: [&[&str]; 4] = [&["status"], &["plan", "BUNDLE"], &["verify"], &["backups", "--check"]];
const CHANGING: [&[&str]; 5] = [
    &["recover"],
    &["apply", "BUNDLE", "--no-start"],
    &["restore", "--no-start"],
    &["verify", "--repair"],
    &["backups", "prune", "--keep", "1"],
];

/// An install whose server is stopped, twice updated, with the bundle of a third version beside it.
struct Template {
    install: Install,
    bundle: PathBuf,
    backup: String,
}

impl Template {
    fn new() -> Template {
        let install = Install::new();
        install.write_settings("soak = \"50ms\"\n");
        for version in ["2.0", "3.0"] {
            let bundle = install.save(&install.bundle(version).file("VERSION", format!("{version}\n")));
            install.apply_with(&bundle, &["--no-start"]).expect(0);
        }
        let bundle = install.save(&install.bundle("4.0").file("VERSION", "4.0\n"));
        let list = install.updater(&["backups", "--json"]).object();
        let backup = list["backups"][0]["id"].as_str().unwrap().to_string();
        Template { install, bundle, backup }
    }

    /// Runs the command in a fresh copy of the install after `damage`, and says in one line what it said.
    fn say(&self, command: &[&str], damage: &dyn Fn(&Path)) -> String {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().canonicalize().unwrap().join("site");
        copy_tree(&self.install.root, &root);
        damage(&root);
        let before = data(&root);
        let bundle = self.bundle.to_str().unwrap();
        let mut updater = Command::new(env!("CARGO_BIN_EXE_updater"));
        updater.arg("--root").arg(&root).arg("--json").current_dir("/").env_remove("UPDATER_ROOT");
        updater.args(command.iter().map(|a| if *a == "BUNDLE" { bundle } else { a }));
        let output = kit::run(updater);
        assert_eq!(output.stderr, "", "{command:?}");
        assert!(before == data(&root), "{command:?}: data was touched");
        let text = told(&output).replace(root.to_str().unwrap(), "ROOT").replace(&self.backup, "BACKUP");
        numbers_folded(&format!("{:<28} exit {}  {text}", command.join(" "), output.code))
    }

    fn all(&self, commands: &[&[&str]], damage: &dyn Fn(&Path)) -> String {
        commands.iter().map(|command| format!("  {}\n", self.say(command, damage).trim_end())).collect()
    }
}

/// What no command here may touch.
fn data(root: &Path) -> Vec<Option<Vec<u8>>> {
    ["instance/app.db", "uploads/a.txt", ".env", "config/settings.json"]
        .iter()
        .map(|n| fs::read(root.join(n)).ok())
        .collect()
}

fn copy_tree(from: &Path, to: &Path) {
    for item in walkdir::WalkDir::new(from).into_iter().map(Result::unwrap) {
        let place = to.join(item.path().strip_prefix(from).unwrap());
        if item.file_type().is_dir() {
            fs::create_dir_all(&place).unwrap();
        } else {
            fs::copy(item.path(), &place).unwrap();
            let time = item.metadata().unwrap().modified().unwrap();
            fs::File::options().write(true).open(&place).unwrap().set_modified(time).unwrap();
        }
    }
}

/// Outcome, errors, problems and warnings of a run.
fn told(output: &Output) -> String {
    let events = output.events();
    let last = events.last().unwrap();
    let mut text = last["outcome"].as_str().unwrap_or_default().to_string();
    let recovered = events.iter().filter(|e| e["event"] == "recovered");
    for event in recovered {
        write!(text, " [recovered: {}]", event["direction"].as_str().unwrap()).unwrap();
    }
    let lists = ["problems", "warnings"].iter().flat_map(|key| last[*key].as_array().into_iter().flatten());
    let warnings = events.iter().filter(|e| e["event"] == "warning");
    for error in lists.chain(warnings).chain([&last["error"]]).filter(|e| !e.is_null()) {
        let part = |key: &str| error[key].as_str().unwrap_or("-").to_string();
        write!(text, " {}: {}", part("code"), part("message")).unwrap();
        if !error["remedy"].is_null() {
            write!(text, " | {}", part("remedy")).unwrap();
        }
    }
    if let Some(damaged) = last["backups"].as_array() {
        let whole = damaged.iter().filter(|b| b["whole"] == true).count();
        write!(text, " [{whole} of {} whole]", damaged.len()).unwrap();
    }
    if last["whole"].is_boolean() {
        write!(text, " [whole: {}]", last["whole"]).unwrap();
    }
    text
}

fn numbers_folded(text: &str) -> String {
    let mut folded = String::new();
    let mut digits = 0;
    for c in text.chars() {
        digits = if c.is_ascii_digit() { digits + 1 } else { 0 };
        // Times, ids and columns, not exit codes and versions.
        if digits > 3
            || (digits > 0 && folded.trim_end_matches(|c: char| c.is_ascii_digit() || c == '#').ends_with("column "))
        {
            folded.truncate(folded.trim_end_matches(|c: char| c.is_ascii_digit() || c == '#').len());
            folded.push('#');
        } else {
            folded.push(c);
        }
    }
    folded
}

#[track_caller]
fn assert_like(name: &str, text: &str) {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/damaged").join(name);
    if std::env::var_os("UPDATER_ACCEPT").is_some() {
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(&place, text).unwrap();
    }
    let wanted = fs::read_to_string(&place).unwrap_or_else(|e| panic!("{}: {e}", place.display()));
    assert!(text.is_ascii());
    assert_eq!(text, wanted.replace("\r\n", "\n"), "{name}");
}

/// The journal of an update that moved nothing, up to and with `records`.
fn journal(template: &Template, records: &[Record]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let begin = Begin {
        format: FORMAT,
        update_id: "earlier".into(),
        command: "apply".into(),
        root: "/somewhere".into(),
        backup: template.backup.clone(),
        backup_dir: RelPath::parse("backups").unwrap(),
        from_version: Some("2.0".into()),
        to_version: Some("3.0".into()),
        start_file: RelPath::parse("run.py").unwrap(),
        launch: None,
        service: None,
        new_launch: None,
        was_running: false,
        before: Baselines { old: None, new: Some(serde_json::from_value(expected()).unwrap()) },
        stop_timeout_ms: 1000,
        health_timeout_ms: 1000,
        soak_ms: 1,
    };
    let mut journal = Journal::create(&updater::state::dir::StateDir::at(folder.path()), begin, 4096).unwrap();
    for record in records {
        journal.append(record.clone()).unwrap();
    }
    fs::read(folder.path().join("journal")).unwrap()
}

fn expected() -> Value {
    serde_json::json!({"running": true, "ports": [1], "asked_port": 1, "protocol": null, "path": "/", "status": 200})
}

/// Every kind of record, each with all that come before it.
fn kinds() -> Vec<(&'static str, Vec<Record>)> {
    let boot = updater::system::processes::boot_id().unwrap();
    let process = ProcessId { pid: u32::MAX / 4, start: 1 };
    let forward = [
        ("stopping", Record::Stopping),
        ("backup-whole", Record::BackupWhole),
        ("swapping", Record::Swapping { moves: Moves::default() }),
        ("swapped", Record::Swapped),
        ("starting", Record::Starting { boot, process: Some(process) }),
    ];
    let upto = |n: usize| forward.iter().take(n).map(|(_, record)| record.clone()).collect::<Vec<_>>();
    let mut kinds: Vec<_> = (0..forward.len()).map(|n| (forward[n].0, upto(n + 1))).collect();
    kinds.insert(0, ("begin", Vec::new()));
    kinds.push(("committed", [upto(5), vec![Record::Committed]].concat()));
    kinds.push(("data-restored", [upto(5), vec![Record::DataRestored]].concat()));
    kinds.push(("rolled-back", [upto(5), vec![Record::DataRestored, Record::RolledBack]].concat()));
    kinds.push(("attempt, the third", [upto(4), vec![Record::Attempt, Record::Attempt, Record::Attempt]].concat()));
    kinds
}

fn place(bytes: Vec<u8>, name: &'static str) -> impl Fn(&Path) {
    move |root| fs::write(root.join(name), &bytes).unwrap()
}

const JOURNAL: &str = ".updater/journal";

#[test]
fn a_journal_that_ends_with_any_record_whole_or_torn() {
    let template = Template::new();
    let mut text = String::new();
    for (kind, records) in kinds() {
        let whole = journal(&template, &records);
        let end = whole.iter().rposition(|b| *b == b'\n').unwrap() + 1;
        let start = whole[..end - 1].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let commands = [&READING[..1], &CHANGING[..2]].concat();
        write!(text, "{kind}\n{}", template.all(&commands, &place(whole.clone(), JOURNAL))).unwrap();
        let torn = whole[..start + (end - start) / 2].to_vec();
        write!(text, "{kind}, torn\n{}", template.all(&CHANGING[..1], &place(torn, JOURNAL))).unwrap();
    }
    assert_like("journal-records.txt", &text);
}

#[test]
fn a_journal_that_cannot_be_read_is_never_taken_for_none() {
    let template = Template::new();
    let good = journal(&template, &[Record::Stopping, Record::BackupWhole]);
    let mut middle = good.clone();
    middle[40] ^= 1;
    let own = format!("\"format\":{FORMAT}");
    let newer = String::from_utf8(good.clone()).unwrap().replacen(&own, "\"format\":99", 1);
    assert_ne!(newer.as_bytes(), good, "the journal names its format");
    let json = newer.lines().next().unwrap().split_once(' ').unwrap().1.to_string();
    let sum: String = {
        use sha2::{Digest, Sha256};
        Sha256::digest(json.as_bytes()).iter().take(8).map(|b| format!("{b:02x}")).collect()
    };
    let states: [(&str, Vec<u8>); 5] = [
        ("empty", Vec::new()),
        ("foreign", b"%PDF-1.4 not ours\n".to_vec()),
        ("damaged in the middle", middle),
        ("newer", format!("{sum} {json}\n").into_bytes()),
        ("zeros", vec![0; 4096]),
    ];
    let mut text = String::new();
    for (state, bytes) in states {
        let damage = place(bytes, JOURNAL);
        write!(text, "{state}\n{}{}", template.all(&READING, &damage), template.all(&CHANGING, &damage)).unwrap();
    }
    // Set aside, it blocks every changing command until the very command that is named was typed.
    let root = &template.install.root;
    fs::write(root.join(JOURNAL), "foreign").unwrap();
    let bundle = template.bundle.to_str().unwrap();
    for command in
        [&["recover", "--json"][..], &["apply", bundle, "--no-start", "--json"], &["backups", "prune", "--json"]]
    {
        let refused = template.install.updater(command).expect(4);
        let error = refused.events().last().unwrap()["error"].clone();
        assert_eq!(error["code"], "journal-unreadable");
        let remedy = error["remedy"].as_str().unwrap();
        if command[0] == "backups" {
            let typed = remedy.split("type: ").nth(1).unwrap();
            assert!(Command::new("sh").args(["-c", typed]).status().unwrap().success());
        }
    }
    assert!(
        fs::read_dir(root.join(".updater"))
            .unwrap()
            .any(|e| { e.unwrap().file_name().to_string_lossy().starts_with("journal.set-aside-") })
    );
    template.install.updater(&["recover", "--json"]).expect(0);
    assert_like("journal-unreadable.txt", &text);
}

#[test]
fn every_other_record() {
    let template = Template::new();
    let backup = format!("backups/{}/backup.json", template.backup);
    let mut text = String::new();
    for (title, name) in [
        ("receipt", ".updater/receipt.json"),
        ("kept bundle", ".updater/bundle.zip"),
        ("status", ".updater/status.json"),
        ("last outcome", ".updater/last.json"),
        ("failures", ".updater/failures.json"),
        ("lock", ".updater/lock"),
        ("backup record", &backup),
        ("settings", "updater.toml"),
    ] {
        let path = template.install.root.join(name);
        let bytes = fs::read(&path).unwrap_or_else(|_| b"{\"x\": 1}".to_vec());
        let newer = String::from_utf8_lossy(&bytes)
            .replace("\"format\":2", "\"format\":99")
            .replace("\"format\": 2", "\"format\": 99");
        let mut states =
            vec![("torn", bytes[..bytes.len() / 2].to_vec()), ("foreign", b"%PDF-1.4 not ours\n".to_vec())];
        if newer.as_bytes() != bytes && newer.contains("99") {
            states.push(("newer", newer.into_bytes()));
        }
        let gone = |root: &Path| {
            let _ = fs::remove_file(root.join(name));
        };
        write!(text, "{title}, missing\n{}{}", template.all(&READING, &gone), template.all(&CHANGING, &gone)).unwrap();
        for (state, bytes) in states {
            let damage = |root: &Path| fs::write(root.join(name), &bytes).unwrap();
            write!(text, "{title}, {state}\n{}{}", template.all(&READING, &damage), template.all(&CHANGING, &damage))
                .unwrap();
        }
    }
    let text = text.replace(&template.install.port.to_string(), "PORT");
    assert_like("records.txt", &text);
}
