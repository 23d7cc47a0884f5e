//! Tests of the reporter.

use super::*;

fn quiet() -> Reporter {
    Reporter::new(Options { quiet: true, ..Options::default() })
}
/// The events without their times.
fn seen(reporter: &Reporter) -> Vec<String> {
    let without_time = |event: &Value| {
        let mut event = event.clone();
        event.as_object_mut().unwrap().shift_remove("ts");
        ascii_json(&event)
    };
    reporter.seen.iter().map(without_time).collect()
}

#[test]
fn all_that_is_written_is_ascii() {
    assert_eq!(ascii("a\u{e9}\u{1f600}\x1b[0m\t\nb"), "a\\u{e9}\\u{1f600}\\u{1b}[0m\\u{9}\nb");
    assert_eq!(
        ascii_json(&json!({"k\u{e9}": "\u{1f600}\n\u{7f}\""})),
        "{\"k\\u00e9\":\"\\ud83d\\ude00\\n\\u007f\\\"\"}"
    );
    assert_eq!(ascii_json(&with_schema(&json!({"a": 1, "schema": 9}))), "{\"schema\":1,\"a\":1}");
}

#[test]
fn the_weights_give_a_hundred() {
    assert_eq!(Stage::PIPELINE.iter().map(|stage| u32::from(stage.weight())).sum::<u32>(), 100);
    for stage in Stage::PIPELINE {
        assert_eq!(serde_json::to_value(stage).unwrap(), json!(stage.word()));
    }
}

#[test]
fn a_good_run_reaches_a_hundred() {
    let mut r = quiet();
    r.begin("id".to_string(), &[Stage::Health, Stage::Commit]);
    r.stage_started(Stage::Health, "asking");
    r.progress(Stage::Health, 1, 2, "files");
    r.stage_done(Stage::Health, "");
    r.stage_started(Stage::Commit, "");
    r.stage_done(Stage::Commit, "kept");
    r.finished(&Finished { outcome: Outcome::Applied, ..Finished::default() });
    r.finished(&Finished::default());
    r.warning(Code::Io, "", None);
    let expected = [
        r#"{"schema":1,"update_id":"id","seq":1,"event":"stage","stage":"health","state":"started","percent":85,"message":"asking"}"#,
        r#"{"schema":1,"update_id":"id","seq":2,"event":"progress","stage":"health","percent":91,"done":1,"total":2,"unit":"files"}"#,
        r#"{"schema":1,"update_id":"id","seq":3,"event":"stage","stage":"health","state":"done","percent":98,"message":""}"#,
        r#"{"schema":1,"update_id":"id","seq":4,"event":"stage","stage":"commit","state":"started","percent":98,"message":""}"#,
        r#"{"schema":1,"update_id":"id","seq":5,"event":"stage","stage":"commit","state":"done","percent":100,"message":"kept"}"#,
        r#"{"schema":1,"update_id":"id","seq":6,"event":"finished","outcome":"applied","exit_code":0,"from_version":null,"to_version":null,"port":null,"pid":null,"stands":null,"downtime_ms":null,"backup":null,"bytes_staged":0,"files_changed":0,"confirm_by":null,"reason":null,"error":null,"percent":100}"#,
    ];
    assert_eq!(seen(&r), expected);
    assert_eq!(r.legacy_stage(), ("done", 100));
    assert_eq!(r.last_finished().unwrap()["outcome"], "applied");
}

#[test]
fn an_early_success_skips_the_rest_up_to_a_hundred() {
    let mut r = quiet();
    r.begin("id".to_string(), &Stage::PIPELINE);
    r.stage_started(Stage::Fetch, "");
    r.finished(&Finished { outcome: Outcome::AlreadyCurrent, ..Finished::default() });
    let states: Vec<_> = r.seen.iter().filter(|e| e["state"] == "skipped").collect();
    assert_eq!(states.len(), 12);
    assert_eq!(states[11]["percent"], 100);
    assert_eq!(states[10]["percent"], 98);
}

#[test]
fn a_rollback_keeps_the_percent_and_never_reaches_a_hundred() {
    let mut r = quiet();
    r.begin("id".to_string(), &Stage::PIPELINE);
    r.stage_started(Stage::Swap, "");
    r.stage_started(Stage::Health, "");
    r.fail_current("no answer");
    r.fail_current("again");
    r.stage_started(Stage::Rollback, "");
    r.stage_done(Stage::Rollback, "");
    r.finished(&Finished { outcome: Outcome::RolledBack, exit_code: 3, ..Finished::default() });
    let short: Vec<_> = r
        .seen
        .iter()
        .filter(|e| e["event"] == "stage")
        .map(|e| format!("{} {} {}", e["stage"].as_str().unwrap(), e["state"].as_str().unwrap(), e["percent"]))
        .collect();
    let expected = [
        "swap started 60",
        "swap done 65",
        "health started 85",
        "health failed 85",
        "rollback started 85",
        "rollback done 85",
    ];
    assert_eq!(short, expected);
    assert_eq!(r.percent(), 85);
    assert_eq!(r.legacy_stage(), ("verifying", 90));
}

#[test]
fn files_get_events_and_human_lines() {
    let folder = tempfile::tempdir().unwrap();
    let (events, log) = (folder.path().join("e.jsonl"), folder.path().join("log"));
    std::fs::write(&log, "before\n").unwrap();
    let mut r = quiet();
    r.log_to(&log);
    r.log_to(&folder.path().join("none/log"));
    r.begin("id".to_string(), &[]);
    r.events_to(&events);
    r.healed("a\u{e9}\nb", "backup");
    let text = std::fs::read_to_string(&events).unwrap();
    assert!(text.ends_with("\"event\":\"healed\",\"path\":\"a\\u00e9\\nb\",\"from\":\"backup\"}\n"), "{text}");
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.starts_with("before\n2"));
    assert!(text.ends_with("Z healed: a\\u{e9}\\u{a}b from backup\n"), "{text}");
}
