//! `InstallRoot`: the folder of one install.
//! Refuses to look at anything in it.

use crate::base::error::{Code, Failure};
use crate::base::path::RelPath;
use crate::state::dir::StateDir;
use crate::system::files::Folder;
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The folder of one install: resolved once, and held from then on.
#[derive(Debug, Clone)]
pub struct InstallRoot {
    /// Absolute, without links.
    path: PathBuf,
    /// Absolute, as it was named.
    named: PathBuf,
    held: Arc<Folder>,
    state: StateDir,
    /// The port that the operator says its server listens on.
    claimed_port: Option<u16>,
}

impl InstallRoot {
    /// Resolves `path`, which is absolute. Errors: the folder does not exist or cannot be read.
    pub fn resolve(path: &Path) -> anyhow::Result<Self> {
        let full = fs_err::canonicalize(path)?;
        if !full.is_dir() {
            return Err(Failure::usage(Code::NoRoot, format!("{} is not a folder", full.display())).into());
        }
        let held = Folder::open(&full).with_context(|| format!("opening {}", full.display()))?;
        Ok(Self {
            state: StateDir::of(&full),
            path: full,
            named: path.to_path_buf(),
            held: Arc::new(held),
            claimed_port: None,
        })
    }
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// As it was named, links and all.
    pub fn named(&self) -> &Path {
        &self.named
    }
    /// The install, with the port that the operator says its server listens on.
    pub fn claiming(self, port: Option<u16>) -> Self {
        Self { claimed_port: port, ..self }
    }
    pub fn claimed_port(&self) -> Option<u16> {
        self.claimed_port
    }
    pub fn join(&self, path: &RelPath) -> PathBuf {
        self.path.join(path.to_path())
    }
    /// The state directory.
    pub fn state(&self) -> &StateDir {
        &self.state
    }
    /// Makes it the working folder.
    pub fn enter(&self) -> std::io::Result<()> {
        self.held.enter()
    }
    /// Errors (`root-moved`, exit 1): another folder, or none, stands at its path by now.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.held.is_at(&self.path).unwrap_or(false) {
            return Ok(());
        }
        let message = "the folder that this command began with is no longer there: it was moved or replaced";
        Err(Failure::failed(Code::RootMoved, message)
            .at(self.path.display())
            .remedy("see what moved it, put it back, then try again")
            .into())
    }
}
