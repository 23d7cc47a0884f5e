//! What root may obey, and for whom it works. Run by root for another user's, everything is done by a child with that user's ids, and
//! root only answers what it asks for (`system::monitor`). Where the install is root's alone, root does it itself, and
//! obeys nothing there that others wrote.
//! Refuses to read anything below the install of another user: that is his, and root must not obey it.

mod programs;

pub use programs::{may_run, may_start, may_use};

use crate::base::error::{Code, Failure};
use crate::state::root::InstallRoot;
use crate::system::{Distrust, Owner, files, monitor, processes, trust};
use crate::update::server;
use anyhow::{Context as _, Result};
use std::ffi::OsString;
use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

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

/// Has the work done as whoever has a say in the install, where that is not us but root runs it. None: it is done
/// here. Errors (exit 1): others than one user have a say (`root-writable`); the server runs as a third user; the child
/// cannot be started; it was killed (exit 4).
pub fn delegate(root: &InstallRoot, task: &Task) -> Result<Option<u8>> {
    let Some(owner) = other_than_root(root)? else { return Ok(None) };
    if task.stops {
        same_user(root, owner.uid)?;
    }
    let bundle = task.bundle.and_then(roots_own);
    let code = monitor::run(task.argv, owner, task.bound, bundle, task.kept);
    match code.with_context(|| format!("working as the install's owner (user {})", owner.uid))? {
        Some(code) => Ok(Some(code)),
        None => Err(Failure::operator(Code::Lost, "the updater that worked as the install's owner was killed")
            .at(root.path().display())
            .remedy(format!("type: updater recover --root '{}'", root.path().display()))
            .into()),
    }
}

/// True for root, unless root's other half watches over us.
fn is_root() -> bool {
    !monitor::is_monitored() && processes::own_uid() == 0
}

fn writable(place: &Path, root: &InstallRoot) -> Failure {
    let what = if place == root.path() { "the install" } else { "a folder on the way to the install" };
    let message = format!(
        "{what} is root's, and its group or others may write in it ({}): what they put there would be obeyed by root; \
         nothing was changed",
        place.display()
    );
    Failure::failed(Code::RootWritable, message).at(place.display()).remedy(format!(
        "type: chmod go-w '{}' (folders below it, such as those with data, may stay writable)",
        place.display()
    ))
}

/// The user who has a say in the install beside root, which we are. None: root alone, or we are not root.
pub fn other_than_root(root: &InstallRoot) -> Result<Option<Owner>> {
    if !is_root() {
        return Ok(None);
    }
    Ok(match trust::distrust(root.named()).context("asking who has a say in the install")? {
        Some(Distrust::OfAnother { owner, .. }) => Some(owner),
        Some(Distrust::Writable { place }) => return Err(writable(&place, root).into()),
        None => None,
    })
}

/// What root obeys in an install in which it does the work itself must be root's alone: the settings, the updater's own
/// folder. From then on no link of others is followed below it. To be called before anything there is read.
/// Errors (`not-roots`, exit 1): another user wrote, or may write, one of them.
pub fn guard(root: &InstallRoot, settings: &Path) -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    for place in [settings.to_path_buf(), root.state().path().to_path_buf()] {
        if let Some(found) = others_in(&place)? {
            return Err(not_roots(&place, &found).into());
        }
    }
    trust::guard(root.path(), root.state().path(), |name| name.as_encoded_bytes().starts_with(BACKUP.as_bytes()))
        .context("holding the install")
}

/// Who beside root has a say in what lies at this absolute path. None: root alone, or nothing lies there.
pub fn others_in(path: &Path) -> Result<Option<Distrust>> {
    match trust::distrust(path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        found => found.with_context(|| format!("asking who has a say in {}", path.display())),
    }
}

/// What the names of backups begin with: each must be root's, wherever its folder may be written by others.
const BACKUP: &str = "update_backup_";

/// The failure that says why root does not obey what lies there.
pub fn not_roots(place: &Path, found: &Distrust) -> Failure {
    let (part, why, remedy) = match found {
        Distrust::OfAnother { place, owner } => {
            (place, format!("belongs to user {}", owner.uid), format!("chown root: '{}'", place.display()))
        }
        Distrust::Writable { place } => {
            (place, "may be written by its group or others".to_string(), format!("chmod go-w '{}'", place.display()))
        }
    };
    let message = if part == place {
        format!("{} {why}, and root would obey it; nothing was changed", place.display())
    } else {
        format!(
            "root would obey {}, and {} on the way to it {why}; nothing was changed",
            place.display(),
            part.display()
        )
    };
    Failure::failed(Code::NotRoots, message)
        .at(place.display())
        .remedy(format!("read it; if it is what you want, type: {remedy}"))
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
            return Err(Failure::failed(Code::OtherUser, message)
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
    let is_closed = trust::distrust(path).is_ok_and(|found| found.is_none());
    // Opened without waiting, should it be a pipe.
    let file = is_closed.then(|| files::open_to_read(path).ok())??;
    file.metadata().is_ok_and(|data| data.is_file()).then_some(file)
}
