//! What an install remembers of its updates: `status.json`, the last outcome, events and logs of the newest runs.
//! Refuses to decide anything: none of these files is needed to mend an install.

use crate::base::fsx;
use crate::base::report::ascii_json;
use crate::state::dir::StateDir;
use crate::system::{self, ProcessId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::io::Write;
use std::path::Path;

/// How many event files and logs are kept.
pub const KEEP: usize = 20;

/// A name for a new update: its time, and four digits against another of the same second.
pub fn new_update_id() -> String {
    let mut random = std::hash::RandomState::new().build_hasher();
    random.write_u32(std::process::id());
    format!("{}-{:04x}", jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ"), random.finish() & 0xffff)
}

/// Replaces `status.json` at once, so that a dashboard that polls it never reads half a file. It is not flushed: it is
/// written at every stage, also while the server is down, and after a power cut nothing runs that it could tell of.
pub fn write_status(state: &StateDir, status: &Value) -> anyhow::Result<()> {
    replace(&state.status(), status, Flush::Later)
}

/// The status that was written last; None when there is none or it cannot be read.
pub fn read_status(state: &StateDir) -> Option<Value> {
    read(&state.status())
}

/// The update that `status.json` tells to be under way; who holds the lock knows that it was cut off.
pub fn left_under_way(state: &StateDir) -> Option<String> {
    read_status(state)?["under_way"]["update_id"].as_str().map(str::to_string)
}

/// The process that wrote `under_way`.
pub fn who(under_way: &Value) -> Option<ProcessId> {
    let pid = under_way["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())?;
    Some(ProcessId { pid, start: under_way["process_start"].as_u64()? })
}

/// The `finished` event of the newest run.
#[derive(Debug, Clone, PartialEq)]
pub struct Last(pub Value);

impl Last {
    /// Keeps this event as the last outcome.
    pub fn write(state: &StateDir, finished: &Value) -> anyhow::Result<()> {
        replace(&state.last(), finished, Flush::Now)
    }
    /// The last outcome; None when there is none or it cannot be read.
    pub fn read(state: &StateDir) -> Option<Last> {
        read(&state.last()).map(Last)
    }
}

/// A content that failed here by its own fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub version: String,
    pub count: u64,
}

fn failed(state: &StateDir) -> BTreeMap<String, Failed> {
    read(&state.failures()).and_then(|all| serde_json::from_value(all).ok()).unwrap_or_default()
}

/// How often this content failed here by its own fault.
pub fn failures(state: &StateDir, content_id: &str) -> u64 {
    failed(state).get(content_id).map_or(0, |failed| failed.count)
}

/// All contents that failed at least this often.
pub fn known_bad(state: &StateDir, least: u64) -> Vec<Failed> {
    failed(state).into_values().filter(|failed| failed.count >= least).collect()
}

/// Counts one more failure of this content.
pub fn count_failure(state: &StateDir, content_id: &str, version: &str) -> anyhow::Result<()> {
    let mut all = failed(state);
    let count = failures(state, content_id) + 1;
    all.insert(content_id.to_string(), Failed { version: version.to_string(), count });
    replace(&state.failures(), &serde_json::to_value(all)?, Flush::Now)
}

/// Forgets the failures of a content that has succeeded.
pub fn forgive(state: &StateDir, content_id: &str) -> anyhow::Result<()> {
    let mut all = failed(state);
    if all.remove(content_id).is_some() {
        replace(&state.failures(), &serde_json::to_value(all)?, Flush::Now)
    } else {
        Ok(())
    }
}

/// Removes all but the `keep` newest files of `events/` and of `log/` (their names begin with the time).
/// What cannot be removed stays.
pub fn prune(state: &StateDir, keep: usize) {
    for folder in [state.events(), state.logs()] {
        let Ok(entries) = fs_err::read_dir(folder) else { continue };
        let mut files: Vec<_> = entries
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
            .map(|entry| entry.path())
            .collect();
        files.sort();
        files.reverse();
        for old in files.iter().skip(keep) {
            let _ = fs_err::remove_file(old);
        }
    }
}

/// When a file must be on the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flush {
    Now,
    /// When the system likes.
    Later,
}

fn replace(place: &Path, value: &Value, flush: Flush) -> anyhow::Result<()> {
    let new = place.with_added_extension(format!("{}.tmp", std::process::id()));
    let mut file = system::files::open_private(&new)?;
    let written = file
        .set_len(0)
        .and_then(|()| file.write_all(format!("{}\n", ascii_json(value)).as_bytes()))
        .and_then(|()| if flush == Flush::Now { file.sync_all() } else { Ok(()) });
    drop(file);
    if let Err(error) = written.map_err(anyhow::Error::new) {
        let _ = fs_err::remove_file(&new);
        return Err(error.context(format!("writing {}", new.display())));
    }
    system::files::rename_over(&new, place)?;
    Ok(())
}

fn read(place: &Path) -> Option<Value> {
    serde_json::from_slice(&fsx::read(place, fsx::PROGRAM).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_id_is_a_time_and_four_digits() {
        let id = new_update_id();
        assert_eq!(id.len(), "20261124T033000Z-4f2a".len());
        assert!(id.starts_with("20") && &id[8..9] == "T" && &id[15..17] == "Z-");
        assert!(id[17..].chars().all(|c| c.is_ascii_hexdigit()));
    }

    #[test]
    fn status_and_last_come_back_and_leave_no_other_file() {
        let own = tempfile::tempdir().unwrap();
        assert_eq!(read_status(&StateDir::at(own.path())), None);
        write_status(&StateDir::at(own.path()), &json!({"a": "\u{e9}"})).unwrap();
        write_status(&StateDir::at(own.path()), &json!({"a": "\u{fc}"})).unwrap();
        Last::write(&StateDir::at(own.path()), &json!({"event": "finished"})).unwrap();
        assert_eq!(std::fs::read_to_string(own.path().join("status.json")).unwrap(), "{\"a\":\"\\u00fc\"}\n");
        assert_eq!(read_status(&StateDir::at(own.path())), Some(json!({"a": "\u{fc}"})));
        assert_eq!(Last::read(&StateDir::at(own.path())), Some(Last(json!({"event": "finished"}))));
        assert_eq!(std::fs::read_dir(own.path()).unwrap().count(), 2);
        std::fs::write(own.path().join("last.json"), "{").unwrap();
        assert_eq!(Last::read(&StateDir::at(own.path())), None);
    }

    #[test]
    fn the_newest_are_kept() {
        let own = tempfile::tempdir().unwrap();
        std::fs::create_dir(own.path().join("events")).unwrap();
        for n in 10..40 {
            std::fs::write(own.path().join(format!("events/202611{n}T000000Z-0000.jsonl")), "").unwrap();
        }
        prune(&StateDir::at(own.path()), KEEP);
        assert_eq!(std::fs::read_dir(own.path().join("events")).unwrap().count(), KEEP);
        assert!(!own.path().join("events/20261119T000000Z-0000.jsonl").exists());
        assert!(own.path().join("events/20261120T000000Z-0000.jsonl").exists());
    }
}
