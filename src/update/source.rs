//! The stage `fetch`: the bundle gets to where it can be opened.
//! Refuses to open it: that is preflight's.

use crate::base::report::Stage;
use crate::system::monitor;
use crate::update::fetch;
use crate::update::install::Install;
use crate::update::request::{Origin, Request, Source, Zip};
use crate::update::run::{self, Run};
use anyhow::{Context as _, Result};
use std::path::Path;

/// The stage of the pipeline. Returns the request with the place at which the bundle lies now.
pub(super) fn fetch(install: &Install, run: &mut Run, request: &Request) -> Result<Request> {
    run.start(Stage::Fetch, "opening the bundle");
    let (fetched, message) = match &request.source {
        Source::Backup(saved) => (request.clone(), format!("the backup {}", saved.record.id)),
        Source::Zip(zip) => {
            let zip = fetch_to(install, run, zip, &install.state().downloads())?;
            let message = match &zip.origin {
                Origin::File => "the bundle is a local file".to_string(),
                Origin::Handed => "the bundle is a local file of root's".to_string(),
                Origin::Url { url, .. } => format!("downloaded from {url}"),
            };
            (Request { source: Source::Zip(zip), ..request.clone() }, message)
        }
    };
    run.done(Stage::Fetch, &message);
    Ok(fetched)
}

/// The zip at a place where it can be read: downloaded or copied into `folder`, where it is no file that we can read.
pub fn fetch_to(install: &Install, run: &mut Run, zip: &Zip, folder: &Path) -> Result<Zip> {
    let most = install.settings.bundle.max_size;
    let (report, signals) = (&mut run.report, &run.signals);
    let mut watch = fetch::Watch {
        progress: &mut |done, total| report.progress(Stage::Fetch, done, total, "bytes"),
        check: &mut || run::check(signals),
    };
    let path = match &zip.origin {
        Origin::File => zip.path.clone(),
        Origin::Url { url, insecure } => {
            let order = fetch::Order { url, insecure: *insecure, most, patience: fetch::Patience::default() };
            fetch::download(&order, folder, &mut watch)?
        }
        Origin::Handed => {
            let mut handed = monitor::handed_bundle().context("the bundle that root opened is gone")?;
            let total = handed.metadata().context("looking at the bundle")?.len();
            fetch::keep(&mut handed, total, folder, &mut watch)?
        }
    };
    Ok(Zip { path, ..zip.clone() })
}
