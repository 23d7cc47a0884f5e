//! From the words of the command line to what the commands are asked for.
//! Refuses to look at the install.

use crate::base::error::{Code, Failure};
use crate::base::net::{Url, url};
use crate::cli;
use crate::restore::RestoreOptions;
use crate::system::{self, monitor};
use crate::update::fetch;
use crate::update::recover;
use crate::update::{Accept, Mode, Origin, Request, ServerOptions, Source, Zip};
use anyhow::Result;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// What `apply` and `plan` are asked for. Errors (exit 2): no bundle was named, or none can be taken from there.
pub fn apply(args: &cli::Apply, cwd: &Path) -> Result<Request> {
    let Some(bundle) = &args.bundle else {
        return Err(Failure::usage(Code::NoBundle, "no bundle was named")
            .remedy("give the path of a bundle: updater apply BUNDLE")
            .into());
    };
    let path = typed_path(cwd, bundle);
    let typed = bundle.to_string_lossy();
    let origin = if fetch::is_url(&typed) {
        Origin::Url { url: source_url(&typed)?, insecure: args.insecure }
    } else if system::files::open_to_read(&path).is_err() && monitor::handed_bundle().is_some() {
        Origin::Handed
    } else {
        Origin::File
    };
    let named = match &origin {
        Origin::File => None,
        Origin::Url { url, .. } => Some(url.to_string()),
        Origin::Handed => Some(path.display().to_string()),
    };
    let zip = Zip { path, origin, named, sha256: args.sha256.clone() };
    Ok(Request {
        source: Source::Zip(zip),
        mode: Mode::Update { reinstall: args.reinstall, unattended: args.unattended && !args.retry_failed },
        server: ServerOptions { legacy_port: args.legacy_port, ..server_options(&args.run) },
        accept: Accept { partial: args.partial, downgrade: args.allow_downgrade, damaged_data: args.run.force_data },
        set: args.set.clone(),
        wait: args.run.wait,
    })
}

/// A bundle that must lie on this machine. Errors (exit 2): it is an address.
pub fn local(typed: &OsStr, cwd: &Path) -> Result<PathBuf> {
    let text = typed.to_string_lossy();
    if fetch::is_url(&text) {
        let message = format!("this command does not download: {}", url::shown(&text));
        return Err(Failure::usage(Code::UnsupportedSource, message)
            .remedy("save the bundle to a file and give its path")
            .into());
    }
    Ok(typed_path(cwd, typed))
}

/// The address of a bundle. Errors (exit 2): none that a bundle can be taken from.
fn source_url(typed: &str) -> Result<Url> {
    let shown = url::shown(typed);
    let is_web = ["http://", "https://"].iter().any(|scheme| typed.to_ascii_lowercase().starts_with(scheme));
    if !is_web {
        return Err(Failure::usage(Code::UnsupportedSource, format!("a bundle cannot be taken from {shown}"))
            .remedy("give a path, or an http:// or https:// URL")
            .into());
    }
    Url::parse(typed).map_err(|why| {
        Failure::usage(Code::BadUrl, format!("{shown} cannot be asked: {why}"))
            .at(&shown)
            .remedy("write it like https://example.org/site.zip")
            .into()
    })
}

fn server_options(run: &cli::Run) -> ServerOptions {
    ServerOptions {
        port: run.port,
        legacy_port: None,
        no_start: run.no_start,
        stop_foreign: run.stop_foreign,
        health_url: run.health_url.clone(),
        health_timeout: run.health_timeout,
    }
}

/// What `restore` is asked for.
pub fn restore(args: &cli::Restore) -> RestoreOptions {
    RestoreOptions {
        id: args.id.clone(),
        data: args.data,
        code_only: args.code_only,
        only: args.only.clone(),
        legacy: args.legacy,
        yes: args.yes,
        server: server_options(&args.run),
        accept: Accept { damaged_data: args.run.force_data, ..Accept::default() },
        wait: args.run.wait,
    }
}

/// What `recover` is asked for. Errors (exit 2): two options exclude one another.
pub fn recover(args: &cli::Recover) -> Result<recover::RecoverOptions> {
    if args.boot && args.data.is_some() {
        return Err(Failure::usage(Code::Usage, "--boot mends files only, so there is no --data to decide with it")
            .remedy("decide it without --boot: updater recover --data keep or --data backup")
            .into());
    }
    let data = args.data.map(|data| match data {
        cli::Data::Keep => recover::Data::Keep,
        cli::Data::Backup => recover::Data::Backup,
    });
    Ok(recover::RecoverOptions { data, boot: args.boot, by_hand: !args.boot && !args.if_needed })
}

/// A path as it was typed in `cwd`, absolute. One with `..` in it is resolved up to its last part: `../x.zip`, typed in the
/// install, lies outside of it, though its words begin with the install's.
pub fn typed_path(cwd: &Path, typed: impl AsRef<Path>) -> PathBuf {
    let path = cwd.join(typed);
    let climbs = path.components().any(|part| part == Component::ParentDir);
    let resolved = path.parent().filter(|_| climbs).and_then(|folder| fs_err::canonicalize(folder).ok());
    match (resolved, path.file_name()) {
        (Some(folder), Some(name)) => folder.join(name),
        _ => path,
    }
}
