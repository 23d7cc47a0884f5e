//! The receipt: what the installed version consists of, written when an update is committed.
//! Refuses to look at the tree; `verify` does that.
#![deny(clippy::indexing_slicing, clippy::string_slice, clippy::arithmetic_side_effects)]

use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::dir::StateDir;
use crate::system::{Credentials, files};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The version of this format. 1 is read, too: it lists no file at a data path.
pub const FORMAT: u32 = 2;

/// One shipped file as it was installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub path: RelPath,
    pub size: u64,
    /// The base: what the release ships here, or, of a carried or merged file, what was written.
    pub sha256: String,
    pub mode: u32,
    /// Nanoseconds since 1970; 0 where another file lies there, so that its look never tells.
    pub mtime: i64,
    /// The file carries settings of the install: its bytes differ from the bundle's.
    #[serde(default)]
    pub carried: bool,
    /// It is the main file of a database, whatever its name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_database: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    pub format: u32,
    pub version: String,
    pub content_id: String,
    /// RFC 3339, UTC.
    pub applied_at: String,
    pub start_file: RelPath,
    pub ports: Vec<u16>,
    /// As whom the server ran; None: nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Credentials>,
    /// The version is one from before the first receipt that was brought back: nobody knows what it shipped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub assumed: bool,
    pub files: Vec<Line>,
}

/// The receipt of an install, or None before the first update. Errors: it cannot be read.
pub fn load(state: &StateDir) -> Result<Option<Receipt>> {
    read(&state.receipt())
}

/// The receipt of the version that waits in staging, or None.
pub fn load_staged(state: &StateDir) -> Result<Option<Receipt>> {
    read(&state.staged_receipt())
}

fn read(path: &Path) -> Result<Option<Receipt>> {
    if !fsx::exists(path)? {
        return Ok(None);
    }
    let bad = |reason: String| {
        Failure::failed(Code::BadReceipt, format!("the receipt cannot be used: {reason}"))
            .at(".updater/receipt.json")
            .remedy(format!("move it away: mv '{p}' '{p}.bad'", p = path.display()))
    };
    let receipt: Receipt = serde_json::from_slice(&fsx::read(path, fsx::RECORD)?).map_err(|e| bad(e.to_string()))?;
    if !(1..=FORMAT).contains(&receipt.format) {
        return Err(bad(format!("its format is {}, this program knows those up to {FORMAT}", receipt.format)).into());
    }
    Ok(Some(receipt))
}

/// Puts the receipt and the bundle that wait in staging into their places, as far as they are there.
pub fn place_staged(state: &StateDir) -> Result<()> {
    for (from, to) in [(state.staged_receipt(), state.receipt()), (state.staged_bundle(), state.bundle())] {
        if fsx::exists(&from)? {
            files::rename_over(&from, &to).with_context(|| format!("placing {}", to.display()))?;
        }
    }
    fsx::sync_parent(&state.receipt())
}

/// Writes a receipt to `path`, flushed.
pub fn store(path: &Path, receipt: &Receipt) -> Result<()> {
    fsx::write_atomic(path, &serde_json::to_vec(receipt)?)
}
