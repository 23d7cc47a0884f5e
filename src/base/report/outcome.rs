//! How a run ended, as its last event has it and as people read it.
//! Refuses to judge: the exit code is decided in `error`.

use super::ascii::one_line;
use crate::base::error::{Class, ErrorRecord};
use serde::{Deserialize, Serialize};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Applied,
    /// This very content was installed; what was damaged is whole again.
    Repaired,
    AlreadyCurrent,
    /// Nobody watched, and the bundle failed here before.
    Skipped,
    Restored,
    Recovered,
    NothingToDo,
    Refused,
    RolledBack,
    NeedsOperator,
    #[default]
    Failed,
}

impl Outcome {
    /// How a run ends with a failure of this class.
    pub fn of(class: Class) -> Outcome {
        match class {
            Class::Refused => Outcome::Refused,
            Class::RolledBack => Outcome::RolledBack,
            Class::NeedsOperator => Outcome::NeedsOperator,
            Class::Failed | Class::Usage | Class::Locked => Outcome::Failed,
        }
    }

    /// The word of the contract.
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Applied => "applied",
            Outcome::Repaired => "repaired",
            Outcome::AlreadyCurrent => "already-current",
            Outcome::Skipped => "skipped",
            Outcome::Restored => "restored",
            Outcome::Recovered => "recovered",
            Outcome::NothingToDo => "nothing-to-do",
            Outcome::Refused => "refused",
            Outcome::RolledBack => "rolled-back",
            Outcome::NeedsOperator => "needs-operator",
            Outcome::Failed => "failed",
        }
    }
}

/// Which version stands after an interrupted update was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// It was undone.
    Old,
    /// It was finished.
    New,
}

impl Direction {
    /// The word of the contract.
    pub fn word(self) -> &'static str {
        match self {
            Direction::Old => "old",
            Direction::New => "new",
        }
    }
}

/// Whether a server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Running {
    Up,
    Down,
    Unknown,
}

/// What is there at the end of a run, whatever became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stands {
    pub version: Option<String>,
    pub server: Running,
}

/// The fields of the `finished` event.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Finished {
    pub outcome: Outcome,
    pub exit_code: u8,
    pub from_version: Option<String>,
    pub to_version: Option<String>,
    pub port: Option<u16>,
    pub pid: Option<u32>,
    #[serde(default)]
    pub stands: Option<Stands>,
    pub downtime_ms: Option<u64>,
    pub backup: Option<String>,
    pub bytes_staged: u64,
    pub files_changed: u64,
    /// Until when somebody has to keep the update.
    #[serde(default)]
    pub confirm_by: Option<String>,
    /// Why nothing was done.
    #[serde(default)]
    pub reason: Option<String>,
    pub error: Option<ErrorRecord>,
}

impl Finished {
    /// The end of a run in words.
    pub fn words(&self) -> Vec<String> {
        let version = |v: &Option<String>| v.as_deref().map_or("unknown".to_string(), one_line);
        let stands = || match self.stands.as_ref().map(|stands| &stands.version) {
            Some(Some(version)) => one_line(version),
            _ => "the version before".to_string(),
        };
        let from_to = || format!("{} -> {}", version(&self.from_version), version(&self.to_version));
        let mut lines = vec![match self.outcome {
            Outcome::NothingToDo => "nothing to do: no update was interrupted".to_string(),
            Outcome::RolledBack => {
                format!("rolled-back: {} did not stay; {} stands", version(&self.to_version), stands())
            }
            Outcome::AlreadyCurrent => "already-current: this version is installed; nothing was changed".to_string(),
            outcome if self.to_version.is_none() => outcome.word().to_string(),
            outcome => format!("{}: {}", outcome.word(), from_to()),
        }];
        if self.files_changed > 0 && self.outcome != Outcome::RolledBack {
            lines.push(format!("  files changed: {}", self.files_changed));
        }
        if let Some(ms) = self.downtime_ms {
            lines.push(format!("  the server was down for {}.{:02} s", ms / 1000, ms % 1000 / 10));
        }
        match (self.port, self.pid, self.stands.as_ref().map(|stands| stands.server)) {
            (Some(port), Some(pid), _) => lines.push(format!("  it listens on port {port} as process {pid}")),
            (_, _, Some(Running::Down)) if self.outcome != Outcome::NothingToDo => {
                lines.push("  the server does not run".into())
            }
            _ => {}
        }
        if let Some(backup) = &self.backup {
            lines.push(format!("  the version before is in the backup {backup}"));
        }
        lines
    }
}
