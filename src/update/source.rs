//! Where the bundle comes from, and how it gets to where it can be opened.
//! Refuses to open it: that is preflight's.

use super::Request;
use crate::base::net::Url;
use crate::base::report::Stage;
use crate::system::monitor;
use crate::update::fetch;
use crate::update::install::Install;
use crate::update::run::{self, Run};
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};

/// Where the zip comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origin {
    #[default]
    File,
    Url(Url),
    /// Root opened it for us.
    Handed,
}

/// Where the bundle lies, downloaded or copied into `folder` where it is no file that we can read.
pub fn fetch_to(install: &Install, run: &mut Run, request: &Request, folder: &Path) -> Result<PathBuf> {
    let most = install.settings.bundle.max_size;
    let (report, signals) = (&mut run.report, &run.signals);
    let mut watch = fetch::Watch {
        progress: &mut |done, total| report.progress(Stage::Fetch, done, total, "bytes"),
        check: &mut || run::check(signals),
    };
    match &request.origin {
        Origin::File => Ok(request.bundle.clone()),
        Origin::Url(url) => {
            let order = fetch::Order { url, insecure: request.insecure, most, patience: fetch::Patience::default() };
            fetch::download(&order, folder, &mut watch)
        }
        Origin::Handed => {
            let mut handed = monitor::handed_bundle().context("the bundle that root opened is gone")?;
            let total = handed.metadata().context("looking at the bundle")?.len();
            fetch::keep(&mut handed, total, folder, &mut watch)
        }
    }
}
