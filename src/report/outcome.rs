//! How a run ended, as its last event has it and as people read it.
//! Refuses to judge: the exit code is decided in `error`.

use super::ascii::one_line;
use crate::error::ErrorRecord;
use serde::{Deserialize, Serialize};

/// The fields of the `finished` event.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Finished {
    pub outcome: String,
    pub exit_code: u8,
    pub from_version: Option<String>,
    pub to_version: Option<String>,
    pub port: Option<u16>,
    pub pid: Option<u32>,
    pub downtime_ms: Option<u64>,
    pub backup: Option<String>,
    pub bytes_staged: u64,
    pub files_changed: u64,
    pub error: Option<ErrorRecord>,
}

impl Finished {
    /// The end of a run in words.
    pub fn words(&self) -> Vec<String> {
        let from_to = || {
            let version = |v: &Option<String>| v.as_deref().map_or("unknown".to_string(), one_line);
            format!("{} -> {}", version(&self.from_version), version(&self.to_version))
        };
        let mut lines = vec![match self.outcome.as_str() {
            "already-current" => "already-current: this version is installed; nothing was changed".to_string(),
            word if self.to_version.is_none() => word.to_string(),
            word => format!("{word}: {}", from_to()),
        }];
        if self.files_changed > 0 {
            lines.push(format!("  files changed: {}", self.files_changed));
        }
        if let Some(ms) = self.downtime_ms {
            lines.push(format!("  the server was down for {}.{:02} s", ms / 1000, ms % 1000 / 10));
        }
        if let (Some(port), Some(pid)) = (self.port, self.pid) {
            lines.push(format!("  it listens on port {port} as process {pid}"));
        }
        if let Some(backup) = &self.backup {
            lines.push(format!("  the version before is in the backup {backup}"));
        }
        lines
    }
}
