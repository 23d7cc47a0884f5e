//! What an update is asked for.

use crate::backup;
use crate::base::net::Url;
use crate::base::path::RelPath;
use std::path::PathBuf;
use std::time::Duration;

/// What `apply`, `plan`, `restore` and `verify --repair` are asked for.
#[derive(Debug, Clone)]
pub struct Request {
    pub source: Source,
    pub mode: Mode,
    pub server: ServerOptions,
    pub accept: Accept,
    /// `--set`: assignments of the settings file that is carried.
    pub set: Vec<(String, String)>,
    /// How long another updater is waited for.
    pub wait: Option<Duration>,
}

/// Where the new version comes from.
#[derive(Debug, Clone)]
pub enum Source {
    Zip(Zip),
    Backup(Box<Saved>),
}

/// A zip, and how it is reached.
#[derive(Debug, Clone)]
pub struct Zip {
    /// Where it lies; for one that is fetched: where it lies once it was.
    pub path: PathBuf,
    pub origin: Origin,
    /// What it is called, where it was fetched from another place than the one that was named.
    pub named: Option<String>,
    /// The SHA-256 that the file must have, in hex.
    pub sha256: Option<String>,
}

/// How a zip is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    File,
    /// `insecure`: the certificate of that server is not verified.
    Url {
        url: Url,
        insecure: bool,
    },
    /// Root opened it for the process of the install's owner.
    Handed,
}

/// A backup that takes the part of the bundle.
#[derive(Debug, Clone)]
pub struct Saved {
    pub dir: PathBuf,
    pub record: backup::Record,
    /// Data of the users is put back, too.
    pub data: bool,
    /// Nothing but these files and folders; empty: all.
    pub only: Vec<RelPath>,
}

/// What is done with the version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Update {
        /// Also where this very content is installed and whole.
        reinstall: bool,
        /// Nobody watches: a bundle that failed here twice by its own fault is skipped.
        unattended: bool,
    },
    /// What is damaged is put right, and nothing is removed. Without `restart` the server is neither stopped nor started.
    Repair { restart: bool },
}

/// How the server is found, stopped, started and judged.
#[derive(Debug, Clone, Default)]
pub struct ServerOptions {
    pub port: Option<u16>,
    /// What the legacy server takes for its port: the very last guess.
    pub legacy_port: Option<u16>,
    pub no_start: bool,
    pub stop_foreign: bool,
    pub health_url: Option<String>,
    /// None: that of the settings.
    pub health_timeout: Option<Duration>,
}

/// What would be refused, and is not.
#[derive(Debug, Clone, Copy, Default)]
pub struct Accept {
    /// A bundle that shares no name with what is installed.
    pub partial: bool,
    pub downgrade: bool,
    /// Databases that are damaged already.
    pub damaged_data: bool,
}

impl Request {
    /// What it is called in records.
    pub fn command(&self) -> &'static str {
        if self.saved().is_some() { "restore" } else { "apply" }
    }

    /// The zip; None: a backup takes its part.
    pub fn zip(&self) -> Option<&Zip> {
        match &self.source {
            Source::Zip(zip) => Some(zip),
            Source::Backup(_) => None,
        }
    }

    /// The backup that takes the part of the bundle.
    pub fn saved(&self) -> Option<&Saved> {
        match &self.source {
            Source::Backup(saved) => Some(saved),
            Source::Zip(_) => None,
        }
    }

    pub fn is_repair(&self) -> bool {
        matches!(self.mode, Mode::Repair { .. })
    }

    /// The server is neither stopped nor started.
    pub fn is_in_place(&self) -> bool {
        self.mode == Mode::Repair { restart: false }
    }

    /// Also where this very content is installed and whole.
    pub fn reinstalls(&self) -> bool {
        matches!(self.mode, Mode::Repair { .. } | Mode::Update { reinstall: true, .. })
    }

    /// Only a part of a version is put back: the installed version keeps its name.
    pub fn is_partly(&self) -> bool {
        self.saved().is_some_and(|saved| !saved.only.is_empty())
    }
}

impl Zip {
    /// A zip that lies on this machine.
    pub fn file(path: PathBuf) -> Zip {
        Zip { path, origin: Origin::File, named: None, sha256: None }
    }

    /// The zip as it was named, for errors.
    pub fn shown(&self) -> String {
        self.named.clone().unwrap_or_else(|| self.path.display().to_string())
    }
}
