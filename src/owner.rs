//! Whose install it is: run by root for another user's, everything is done by a child with that user's ids, and
//! root only answers what it asks for (`os::monitor`).
//! Refuses to read anything below the install: that is the user's, and root must not obey it.

use crate::error::Failure;
use crate::os::{boot, files, monitor, processes};
use crate::path::InstallRoot;
use crate::server;
use anyhow::{Context as _, Result};
use std::ffi::OsString;
use std::fs::File;
use std::path::Path;

/// The step between root and the child: takes on the user's ids. None: this is an ordinary call.
pub fn step(args: &[OsString]) -> Option<std::io::Result<()>> {
    (args.get(1)? == "__as").then(|| monitor::descend(args).map(|never| match never {}))
}

/// What the child is to do.
pub struct Task<'a> {
    /// The command line without the program.
    pub argv: &'a [OsString],
    /// The bundle that it names.
    pub bundle: Option<&'a Path>,
    /// It stops and starts the server.
    pub stops: bool,
    /// The one unit that may be controlled.
    pub bound: Option<&'a str>,
    /// Further handles that the child gets.
    pub kept: &'a [i32],
}

/// Has the work done as the install's owner where that is not us but root runs it. None: it is done here.
/// Errors (exit 1): the server runs as a third user; the child cannot be started; it was killed (exit 4).
pub fn delegate(root: &InstallRoot, task: &Task) -> Result<Option<u8>> {
    if monitor::is_monitored() || processes::own_credentials().context("finding out who we are")?.uid != 0 {
        return Ok(None);
    }
    let owner = files::facts(root.path()).context("looking at the install")?.owner;
    if owner.uid == 0 {
        return Ok(None);
    }
    if task.stops {
        same_user(root, owner.uid)?;
    }
    let bundle = task.bundle.and_then(roots_own);
    let code = monitor::run(task.argv, owner, task.bound, bundle, task.kept);
    match code.with_context(|| format!("working as the install's owner (user {})", owner.uid))? {
        Some(code) => Ok(Some(code)),
        None => Err(Failure::operator("lost", "the updater that worked as the install's owner was killed")
            .at(root.path().display())
            .remedy(format!("type: updater recover --root '{}'", root.path().display()))
            .into()),
    }
}

/// The files' owner must be able to signal the server and to read what it writes.
fn same_user(root: &InstallRoot, owner: u32) -> Result<()> {
    // What cannot be found is refused, with its reasons, by the detection.
    let Ok(Some(running)) = server::find(root) else { return Ok(()) };
    for process in &running.processes {
        let Ok(is) = processes::credentials(process.id.pid) else { continue };
        if is.uid != owner {
            let message = format!(
                "the server (pid {}) runs as {} and the install belongs to user {owner}",
                process.id.pid, is.user
            );
            return Err(Failure::failed("other-user", message)
                .at(root.path().display())
                .remedy("run the server as the owner of the install, or give the install to the server's user")
                .into());
        }
    }
    Ok(())
}

/// A bundle in places that root alone can change, which the owner may not be able to read. A path that others have
/// a say in is left to the child: a link there could name any file.
fn roots_own(path: &Path) -> Option<File> {
    let is_closed = boot::writable_by_others(path).is_ok_and(|open| open.is_none());
    let file = is_closed.then(|| File::open(path).ok())??;
    file.metadata().is_ok_and(|data| data.is_file()).then_some(file)
}
