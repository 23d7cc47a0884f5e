//! What root may believe and follow: who has a say in a path, and a way to a file that nobody can bend.
//! Refuses to decide what follows from it; `authority` does.

use crate::system::{Distrust, Owner};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

/// How many links a path may lead through (as many as the kernel follows: `MAXSYMLINKS`, path_resolution(7)).
const MOST_LINKS: usize = 40;

/// Write permission of the group or of others, and the sticky bit (inode(7)).
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Who beside root has a say in what is found at this absolute path: every folder on the way, as it is written and as
/// it resolves, every link, and the thing itself are looked at, from the top. In a sticky folder of root's above it
/// nobody can replace what is root's. None: root alone. Errors: something on the way is not there.
///
/// Nothing on the way can be changed by others behind this look, since each folder was found to be root's before the
/// next one is.
pub fn distrust(path: &Path) -> io::Result<Option<Distrust>> {
    let mut open: VecDeque<OsString> = parts(path);
    let mut at = PathBuf::from("/");
    let mut links = 0;
    if let Some(found) = judge(&at, open.is_empty())? {
        return Ok(Some(found));
    }
    while let Some(part) = open.pop_front() {
        if part == ".." {
            at.pop();
            continue;
        }
        at.push(&part);
        let is = std::fs::symlink_metadata(&at)?;
        if !is.file_type().is_symlink() {
            if let Some(found) = judge(&at, open.is_empty())? {
                return Ok(Some(found));
            }
            continue;
        }
        if is.uid() != 0 {
            return Ok(Some(Distrust::OfAnother { place: at, owner: Owner { uid: is.uid(), gid: is.gid() } }));
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(Errno::LOOP.into());
        }
        let target = std::fs::read_link(&at)?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        } else {
            at.pop();
        }
        for part in parts(&target).into_iter().rev() {
            open.push_front(part);
        }
    }
    // A path that ends with `..` comes back to a folder that was seen as one on the way.
    judge(&at, true)
}

/// The parts of a path, `..` among them.
fn parts(path: &Path) -> VecDeque<OsString> {
    let named = |part: Component| match part {
        Component::Normal(name) => Some(name.to_os_string()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().filter_map(named).collect()
}

fn judge(place: &Path, is_last: bool) -> io::Result<Option<Distrust>> {
    let is = std::fs::symlink_metadata(place)?;
    let owner = Owner { uid: is.uid(), gid: is.gid() };
    if owner.uid != 0 {
        return Ok(Some(Distrust::OfAnother { place: place.to_path_buf(), owner }));
    }
    let is_sticky = is.mode() & STICKY != 0 && is.is_dir() && !is_last;
    let open = is.mode() & OTHERS_WRITE != 0 && !is_sticky;
    Ok(open.then(|| Distrust::Writable { place: place.to_path_buf() }))
}

/// The install in which root works while others may write in folders of it.
static GUARDED: OnceLock<Guard> = OnceLock::new();

/// From now on no link that others could make is followed on the way to anything below this folder, and a folder that
/// is called like one of ours (`is_own`) must be root's alone. To be called once, by root, with an install whose way
/// and folder are root's alone.
/// Below `closed`, a folder in it which was found to be root's alone, paths are taken as they are.
pub fn guard(root: &Path, closed: &Path, is_own: fn(&OsStr) -> bool) -> io::Result<()> {
    let guard = Guard::over(root, closed, is_own)?;
    GUARDED.set(guard).map_err(|_| io::Error::other("an install is guarded already"))
}

/// True where root works while others may write in folders of the install.
pub fn is_guarded() -> bool {
    GUARDED.get().is_some()
}

/// Who beside root has a say in this one entry, not looking at the way to it.
pub fn of_one(path: &Path) -> io::Result<Option<Distrust>> {
    judge(path, true)
}

/// A folder whose entries are reached without following links of others.
#[derive(Debug)]
struct Guard {
    root: PathBuf,
    folder: OwnedFd,
    /// Root's alone, and nobody else may even enter it.
    closed: PathBuf,
    is_own: fn(&OsStr) -> bool,
}

/// An entry reached through an open folder: whoever renames or replaces folders on the way does not change where it
/// leads. It is good while this is kept.
#[derive(Debug)]
pub struct Anchored {
    /// None: the path is taken as it is.
    folder: Option<OwnedFd>,
    /// In that folder, or the whole path.
    name: PathBuf,
    /// The whole path, for calls that take no folder: by that of the open folder under `/proc`.
    path: PathBuf,
}

impl Anchored {
    fn plain(path: &Path) -> Anchored {
        Anchored { folder: None, name: path.to_path_buf(), path: path.to_path_buf() }
    }

    /// The folder and the name in it, for the calls that take both.
    pub fn at(&self) -> (BorrowedFd<'_>, &Path) {
        (self.folder.as_ref().map_or(CWD, |folder| folder.as_fd()), &self.name)
    }
}

impl std::ops::Deref for Anchored {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.path
    }
}

/// The way to `path`: where an install is guarded and the path lies below it, through its open folder, else as it is.
/// Errors (`ELOOP`): a link that others could have made stands on the way.
pub fn anchored(path: &Path) -> io::Result<Anchored> {
    match GUARDED.get() {
        Some(guard) => guard.anchored(path),
        None => Ok(Anchored::plain(path)),
    }
}

impl Anchored {
    /// True where a link at the end of the path may be followed, too: no others could have made it.
    pub fn may_follow(&self) -> io::Result<bool> {
        self.folder.as_ref().map_or(Ok(true), is_roots)
    }
}

impl Guard {
    fn over(root: &Path, closed: &Path, is_own: fn(&OsStr) -> bool) -> io::Result<Guard> {
        let folder = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Guard { root: root.to_path_buf(), folder, closed: closed.to_path_buf(), is_own })
    }

    fn anchored(&self, path: &Path) -> io::Result<Anchored> {
        let Ok(below) = path.strip_prefix(&self.root) else { return Ok(Anchored::plain(path)) };
        let (Some(parent), Some(name)) = (below.parent(), below.file_name()) else { return Ok(Anchored::plain(path)) };
        // The install's own folder is root's alone, too.
        if parent.as_os_str().is_empty() || path.parent().is_some_and(|parent| parent.starts_with(&self.closed)) {
            return Ok(Anchored::plain(path));
        }
        let folder = self.folder(parent)?;
        let full = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
        Ok(Anchored { name: name.into(), path: full, folder: Some(folder) })
    }

    /// Opens a folder below the root: in one call where no link stands on the way, else part by part.
    fn folder(&self, below: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let names_own = below.components().any(|part| (self.is_own)(part.as_os_str()));
        if !names_own {
            match rustix::fs::openat2(&self.folder, below, flags, Mode::empty(), resolve) {
                Ok(folder) => return Ok(folder),
                // A link on the way; or a kernel, or a box around us, that does not know the call.
                Err(Errno::LOOP | Errno::NOSYS | Errno::PERM | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut at = rustix::io::fcntl_dupfd_cloexec(&self.folder, 3)?;
        for part in below.components() {
            let next = rustix::fs::openat(&at, part.as_os_str(), flags | OFlags::NOFOLLOW, Mode::empty());
            at = match next {
                Ok(next) => next,
                // Not following, a link is no folder.
                Err(Errno::LOOP | Errno::NOTDIR) => follow(&at, part.as_os_str(), flags)?,
                Err(error) => return Err(error.into()),
            };
            if (self.is_own)(part.as_os_str()) && !is_roots(&at)? {
                let message = format!("{} is not root's alone", part.as_os_str().display());
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
            }
        }
        Ok(at)
    }
}

/// Follows a link in an open folder that root alone may write in.
fn follow(folder: &OwnedFd, name: &OsStr, flags: OFlags) -> io::Result<OwnedFd> {
    if !is_roots(folder)? {
        return Err(Errno::LOOP.into());
    }
    Ok(rustix::fs::openat(folder, name, flags, Mode::empty())?)
}

/// True where root alone may write.
fn is_roots(folder: &OwnedFd) -> io::Result<bool> {
    let is = rustix::fs::fstat(folder)?;
    Ok(is.st_uid == 0 && is.st_mode & OTHERS_WRITE == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, lchown, symlink};

    const OTHER: u32 = 65534;

    fn is_root() -> bool {
        let is = rustix::process::geteuid().is_root();
        if !is {
            eprintln!("only root can give files away: not tried");
        }
        is
    }

    fn mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn whoever_has_a_say_in_a_path_is_named() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let folder = |name: &str| {
            let path = top.join(name);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        mode(&top, 0o755);
        let site = folder("site");
        assert_eq!(distrust(&site).unwrap(), None, "below /tmp, which is sticky");
        mode(&site, 0o775);
        assert_eq!(distrust(&site).unwrap(), Some(Distrust::Writable { place: site.clone() }));
        mode(&site, 0o1777);
        assert_eq!(distrust(&site).unwrap(), Some(Distrust::Writable { place: site.clone() }), "sticky is no excuse");
        mode(&site, 0o755);
        let home = folder("home/site");
        let owner = Owner { uid: OTHER, gid: OTHER };
        lchown(home.parent().unwrap(), Some(OTHER), Some(OTHER)).unwrap();
        let of = |place: &Path| Some(Distrust::OfAnother { place: place.to_path_buf(), owner });
        assert_eq!(distrust(&home).unwrap(), of(home.parent().unwrap()));
        symlink("../site", top.join("home/link")).unwrap();
        assert_eq!(distrust(&top.join("home/link")).unwrap(), of(home.parent().unwrap()));
        symlink("site", top.join("current")).unwrap();
        assert_eq!(distrust(&top.join("current/")).unwrap(), None);
        symlink("home/../site", top.join("winding")).unwrap();
        assert_eq!(distrust(&top.join("winding")).unwrap(), of(home.parent().unwrap()), "on the way of the target");
        lchown(top.join("current"), Some(OTHER), Some(OTHER)).unwrap();
        assert_eq!(distrust(&top.join("current")).unwrap(), of(&top.join("current")), "a link of another's");
        symlink("loop", top.join("loop")).unwrap();
        assert!(distrust(&top.join("loop")).is_err());
        assert!(distrust(&top.join("nowhere")).is_err());
    }

    #[test]
    fn links_of_others_are_not_followed_and_those_of_root_are() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let root = top.join("site");
        for folder in ["site/instance/sub", "site/app", "elsewhere"] {
            std::fs::create_dir_all(top.join(folder)).unwrap();
        }
        std::fs::write(top.join("elsewhere/kept"), "kept").unwrap();
        lchown(root.join("instance"), Some(OTHER), Some(OTHER)).unwrap();
        symlink(top.join("elsewhere"), root.join("instance/link")).unwrap();
        symlink(top.join("elsewhere"), root.join("linked")).unwrap();
        symlink("../instance", root.join("app/there")).unwrap();
        let guard = Guard::over(&root, &root.join("closed"), |name| name == "ours").unwrap();
        let reaches = |path: &str| guard.anchored(&root.join(path));
        std::fs::write(&*reaches("instance/sub/new").unwrap(), "x").unwrap();
        assert_eq!(std::fs::read(root.join("instance/sub/new")).unwrap(), b"x");
        assert_eq!(reaches("instance/link/kept").unwrap_err().raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        assert!(reaches("app/there/link/kept").is_err(), "through a link of root's into the folder of the other");
        assert_eq!(std::fs::read(&*reaches("linked/kept").unwrap()).unwrap(), b"kept");
        assert_eq!(std::fs::read(&*reaches("app/there/sub/new").unwrap()).unwrap(), b"x");
        for (name, owner) in [("instance/ours", 0), ("instance/ours/ours", OTHER)] {
            std::fs::create_dir(root.join(name)).unwrap();
            lchown(root.join(name), Some(owner), Some(owner)).unwrap();
        }
        assert!(reaches("instance/ours/x").is_ok() && reaches("instance/ours/ours/x").is_err());
        let is_plain = |path: &str| reaches(path).unwrap().folder.is_none();
        std::fs::create_dir(root.join("closedness")).unwrap();
        assert!(is_plain("closed/x") && is_plain("closed/a/b") && !is_plain("closedness/x") && is_plain("x"));
        // A folder that was opened is not exchanged any more.
        let held = reaches("instance/sub/late").unwrap();
        std::fs::rename(root.join("instance/sub"), root.join("instance/away")).unwrap();
        symlink(top.join("elsewhere"), root.join("instance/sub")).unwrap();
        std::fs::write(&*held, "y").unwrap();
        assert!(root.join("instance/away/late").exists() && !top.join("elsewhere/late").exists());
        assert!(reaches("instance/sub/late").is_err());
    }
}
