//! `backups`: what the way back could be taken from.
//! Takes no lock and changes nothing.

use super::status::interrupted;
use crate::backup;
use crate::update::install::Install;
use anyhow::Result;
use serde_json::{Value, json};

/// `backups`, newest first; `check` hashes every saved file again. The second: nothing is found wrong.
pub fn backups(install: &Install, check: bool) -> Result<(Value, bool)> {
    let all = backup::list_all(&install.backups(), check)?;
    let whole = all.iter().all(|b| b.damaged.is_empty() && (b.whole || b.kind == backup::Kind::Legacy));
    let (_, problem) = interrupted(install)?;
    Ok((json!({"backups": all, "problems": problem.into_iter().collect::<Vec<_>>()}), !check || whole))
}

/// `backups` in words.
pub fn backups_text(object: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for id in object["pruned"].as_array().into_iter().flatten() {
        for aside in object["aside"].as_array().into_iter().flatten().filter(|aside| aside["backup"] == *id) {
            for path in aside["paths"].as_array().into_iter().flatten() {
                lines.push(format!("taken away with {}: {}", text(id), text(path)));
            }
        }
        lines.push(format!("taken away: {}", text(id)));
    }
    for one in object["backups"].as_array().into_iter().flatten() {
        let state = match (one["whole"] == true, one["kind"] == "legacy") {
            (true, _) => "whole",
            (false, true) => "no record",
            (false, false) => "DAMAGED",
        };
        lines.push(format!(
            "{}  {:<7}  {} -> {}  {} files, {} bytes, {state}",
            text(&one["id"]),
            text(&one["kind"]),
            text(&one["from_version"]),
            text(&one["to_version"]),
            one["files"],
            one["bytes"],
        ));
        if one["aside"].as_u64().is_some_and(|count| count > 0) {
            lines.push(format!("  {} files of the users' that gave way lie in its aside/", one["aside"]));
        }
        for damage in one["damaged"].as_array().into_iter().flatten() {
            lines.push(format!("  {} {}", text(&damage["what"]), text(&damage["path"])));
        }
    }
    if lines.is_empty() {
        lines.push("no backups yet".into());
    }
    lines.extend(problem_lines(object, "problems"));
    lines
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "unknown".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn problem_lines(object: &Value, key: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for problem in object[key].as_array().into_iter().flatten() {
        lines.push(format!("problem: {}", text(&problem["message"])));
        if let Some(remedy) = problem["remedy"].as_str() {
            lines.push(format!("  remedy: {remedy}"));
        }
    }
    lines
}
