//! The stages of the pipeline: their words, their share of the whole, and what a legacy dashboard calls them.
//! Refuses to know how far a run is.

use serde::{Deserialize, Serialize};

/// The stages of the pipeline, in order, and the rollback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    Fetch,
    Detect,
    Preflight,
    Stage,
    Backup,
    Stop,
    BackupFinal,
    Swap,
    Verify,
    Hooks,
    Relaunch,
    Health,
    Commit,
    Rollback,
}

impl Stage {
    /// The stages of `apply`, in order.
    pub const PIPELINE: [Stage; 13] = [
        Stage::Fetch,
        Stage::Detect,
        Stage::Preflight,
        Stage::Stage,
        Stage::Backup,
        Stage::Stop,
        Stage::BackupFinal,
        Stage::Swap,
        Stage::Verify,
        Stage::Hooks,
        Stage::Relaunch,
        Stage::Health,
        Stage::Commit,
    ];

    /// The word of the contract.
    pub fn word(self) -> &'static str {
        match self {
            Stage::Fetch => "fetch",
            Stage::Detect => "detect",
            Stage::Preflight => "preflight",
            Stage::Stage => "stage",
            Stage::Backup => "backup",
            Stage::Stop => "stop",
            Stage::BackupFinal => "backup-final",
            Stage::Swap => "swap",
            Stage::Verify => "verify",
            Stage::Hooks => "hooks",
            Stage::Relaunch => "relaunch",
            Stage::Health => "health",
            Stage::Commit => "commit",
            Stage::Rollback => "rollback",
        }
    }

    /// The share of the whole, in percent; those of the pipeline give 100.
    pub fn weight(self) -> u8 {
        match self {
            Stage::Rollback => 0,
            Stage::Commit => 2,
            Stage::Health => 13,
            Stage::Fetch | Stage::Hooks => 10,
            Stage::Stage | Stage::Backup => 15,
            _ => 5,
        }
    }

    /// The percent at which the stage begins; None for the rollback, which keeps the value.
    pub(super) fn base(self) -> Option<u8> {
        let before = Stage::PIPELINE.iter().take_while(|stage| **stage != self);
        (self != Stage::Rollback).then(|| before.map(|stage| stage.weight()).sum())
    }

    /// Name and percent that the dashboard of the legacy server shows.
    pub(super) fn legacy(self) -> Option<(&'static str, u8)> {
        Some(match self {
            Stage::Fetch => ("connecting", 5),
            Stage::Detect | Stage::Preflight => ("connected", 15),
            Stage::Stage => ("requesting", 25),
            Stage::Backup => ("updating", 35),
            Stage::Stop => ("restarting", 45),
            Stage::BackupFinal | Stage::Swap | Stage::Verify | Stage::Hooks => ("installing", 60),
            Stage::Relaunch | Stage::Health | Stage::Commit => ("verifying", 90),
            Stage::Rollback => return None,
        })
    }
}
