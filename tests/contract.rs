//! The JSON of every command, held against literal examples in `fixtures/contract/`. What differs from run
//! to run is folded first: times, ids, pids, ports, hashes, paths, and numbers in messages.
//!
//! After a wanted change: `UPDATER_ACCEPT=1 cargo test --test contract`, then read the difference.

mod kit;

use std::fs;
use std::path::Path;

use kit::{Bundle, Install, Output};
use serde_json::{Map, Value, json};

fn folded(install: &Install, key: &str, value: Value) -> Value {
    let word = match key {
        "ts" | "applied_at" | "started_at" | "created" => "TIME",
        "update_id" | "interrupted_id" | "interrupted" => "ID",
        "pid" | "ppid" => "PID",
        "port" => "PORT",
        "content_id" => "SHA256",
        "downtime_ms" | "last_ms" | "needed" | "free" | "bytes" | "bytes_on_disk" | "data_bytes" | "bytes_staged" => {
            "NUMBER"
        }
        "backup" | "id" | "pruned" => "BACKUP",
        "user" => "USER",
        _ => "",
    };
    match value {
        Value::Null => Value::Null,
        _ if !word.is_empty() && !value.is_object() && !value.is_array() => json!(word),
        Value::Object(fields) => {
            fields.into_iter().map(|(k, v)| (k.clone(), folded(install, &k, v))).collect::<Map<_, _>>().into()
        }
        Value::Array(items) => items.into_iter().map(|v| folded(install, key, v)).collect(),
        Value::String(text) => json!(folded_text(install, &text, matches!(key, "message" | "remedy"))),
        other => other,
    }
}

fn folded_text(install: &Install, text: &str, is_prose: bool) -> String {
    let standin = kit::standin();
    let text = text.replace(install.root.to_str().unwrap(), "ROOT").replace(standin.to_str().unwrap(), "STANDIN");
    let text = text.replace(install.scratch().canonicalize().unwrap().to_str().unwrap(), "SCRATCH");
    if !is_prose {
        return text;
    }
    let mut prose = String::new();
    for c in text.chars() {
        match c {
            '0'..='9' if prose.ends_with('N') => {}
            '0'..='9' => prose.push('N'),
            c => prose.push(c),
        }
    }
    prose
}

/// Compares the objects, one a line, with the example of that name.
#[track_caller]
fn assert_like(install: &Install, name: &str, output: &Output) {
    let lines: Vec<String> = output
        .events()
        .into_iter()
        // How many there are depends on how fast it goes.
        .filter(|event| event["event"] != "progress")
        .map(|event| match output.events().len() {
            1 => format!("{:#}\n", without_seq(folded(install, "", event))),
            _ => format!("{}\n", without_seq(folded(install, "", event))),
        })
        .collect();
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/contract").join(name);
    if std::env::var_os("UPDATER_ACCEPT").is_some() {
        fs::write(&place, lines.concat()).unwrap();
    }
    let wanted = fs::read_to_string(&place).unwrap_or_else(|e| panic!("{}: {e}", place.display()));
    assert_eq!(lines.concat(), wanted.replace("\r\n", "\n"), "{name}");
}

/// Numbering is proven elsewhere; the dropped progress events would leave gaps here.
fn without_seq(mut event: Value) -> Value {
    if let Some(fields) = event.as_object_mut() {
        fields.shift_remove("seq");
    }
    event
}

#[test]
fn an_applied_update_and_what_the_reading_commands_say_of_it() {
    let install = Install::running();
    let bundle = install.save(&install.bundle("2.0").file("uploads/a.txt", "shipped\n"));
    let bundle = bundle.to_str().unwrap();
    assert_like(&install, "plan.json", &install.updater(&["plan", bundle, "--json"]).expect(0));
    assert_like(&install, "status-before.json", &install.updater(&["status", "--json"]).expect(0));
    assert_like(&install, "apply-applied.jsonl", &install.updater(&["apply", bundle, "--json"]).expect(0));
    assert_like(&install, "apply-already-current.jsonl", &install.updater(&["apply", bundle, "--json"]).expect(0));
    assert_like(&install, "status.json", &install.updater(&["status", "--json"]).expect(0));
    assert_like(&install, "verify.json", &install.updater(&["verify", "--json"]).expect(0));
    install.write("app/core.py", "# touched\n");
    assert_like(&install, "verify-modified.json", &install.updater(&["verify", "--json"]).expect(1));
    assert_like(&install, "verify-repair.jsonl", &install.updater(&["verify", "--repair", "--json"]).expect(0));
    assert_like(&install, "recover-nothing.jsonl", &install.updater(&["recover", "--json"]).expect(0));
}

#[test]
fn a_rolled_back_update() {
    let install = Install::running();
    let output = install.apply(&Bundle::release("2.0", "EXIT = 1\n")).expect(3);
    assert_like(&install, "apply-rolled-back.jsonl", &output);
}

#[test]
fn backups_and_going_back_to_one() {
    let install = Install::running();
    assert_like(&install, "backups-none.json", &install.updater(&["backups", "--json"]).expect(0));
    install.apply(&install.bundle("2.0")).expect(0);
    assert_like(&install, "restore.jsonl", &install.updater(&["restore", "--json"]).expect(0));
    assert_like(&install, "backups.json", &install.updater(&["backups", "--check", "--json"]).expect(0));
    assert_like(&install, "restore-none.jsonl", &install.updater(&["restore", "nothing", "--json"]).expect(1));
    assert_like(&install, "prune.json", &install.updater(&["backups", "prune", "--keep", "1", "--json"]).expect(0));
}

#[test]
fn what_ends_before_any_change() {
    let install = Install::running();
    let hostile = Bundle::release("2.0", "").file("../../evil.txt", "x");
    assert_like(&install, "apply-refused.jsonl", &install.apply(&hostile).expect(6));
    assert_like(&install, "plan-refused.json", &{
        let bundle = install.save(&hostile);
        install.updater(&["plan", bundle.to_str().unwrap(), "--json"]).expect(6)
    });
    assert_like(&install, "verify-no-receipt.json", &install.updater(&["verify", "--json"]).expect(1));
    assert_like(&install, "apply-usage.jsonl", &install.updater(&["apply", "--port", "x", "--json"]).expect(2));
    assert_like(&install, "status-usage.json", &install.updater(&["status", "--none", "--json"]).expect(2));
}
