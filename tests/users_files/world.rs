//! Random installs: what the versions ship, and what users strew among it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::judge;
use crate::kit::{self, Install, Output, owner};
use crate::look::{self, Kind, Snapshot, above, is_below, path_of, snapshot};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags};

/// Numbers that a seed alone decides (splitmix64).
pub struct Rng(pub u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// A file or link of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shipped {
    pub link: bool,
    pub bytes: Vec<u8>,
    pub mode: u32,
}

pub type Version = BTreeMap<Vec<u8>, Shipped>;

const FOLDERS: [&str; 17] = [
    "",
    "app",
    "app/sub",
    "static",
    "static/img",
    "conf",
    "uploads",
    "uploads/x",
    "instance",
    "media/deep",
    "aside",
    "after",
    "lib/a/b",
    "config",
    "media",
    "app/static/img/avatars",
    "plugins",
];
/// Folders that users alone make.
const OWN_FOLDERS: [&[u8]; 6] = [b"my/own", b"deep/er/and/er", b"empty", b"-d", b"backups", b"caf\xe9"];
const NAMES: [&str; 21] = [
    "a.py",
    "b.txt",
    "c.json",
    "d.html",
    "e.png",
    "f.db",
    "g",
    "h.sh",
    "i.css",
    "j.yaml",
    "k.log",
    ".env",
    "m.sqlite3",
    "VERSION2",
    "sub",
    "img",
    "n.js",
    "data",
    "o",
    "q.pid",
    "__init__.py",
];
const ODD_NAMES: [&[u8]; 20] = [
    b"\xff\xfebad",
    "\u{fc}.txt".as_bytes(),
    b"new\nline",
    b"sp ace",
    b"u1",
    b"u2.txt",
    b"u3.py",
    b"u4.bin",
    b"-dash",
    b"u5.json",
    b"backup.json",
    b"f.db-wal",
    b"#x",
    b"a.py.bak",
    b"e'q\"",
    b".hidden",
    b"*.x",
    b"u.d",
    b"\\back",
    b"tab\there ",
];
/// Where the server and these tests look.
const FIXED: [&str; 9] =
    ["app", "instance", "uploads", "config", "run.py", "app_config.json", "app/core.py", "app/__init__.py", "backups"];

pub struct World {
    pub rng: Rng,
    pub install: Install,
    /// The versions, the installed one first.
    pub versions: Vec<Version>,
    /// What was shipped is known from a receipt.
    pub is_known: bool,
    /// The owner and its server are another user than we, who are root.
    pub is_given_away: bool,
    /// `[backup] max_file` and `skip` of this install: what is only watched.
    pub large: u64,
    pub skipped: Option<&'static str>,
    /// What users had before anything ran.
    pub before: Snapshot,
    /// What was run, with exit codes.
    pub log: Vec<String>,
    /// Where the vandal leaves its list.
    pub left: PathBuf,
    keep: u32,
    /// This file system takes these.
    has_lists: bool,
}

impl World {
    pub fn new(seed: u64, keep: u32) -> World {
        let mut rng = Rng(seed);
        let install = Install::new();
        let (is_known, is_given_away) = (rng.chance(70), owner::is_root() && rng.chance(25));
        let (large, skipped) = (if rng.chance(25) { 4096 } else { 64 << 20 }, rng.chance(20).then_some("media"));
        let left = install.scratch().join("out");
        fs::create_dir(&left).unwrap();
        fs::set_permissions(&left, fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(left.join("outside"), "outside").unwrap();
        fs::set_permissions(left.join("outside"), fs::Permissions::from_mode(0o666)).unwrap();
        let left = left.join("left");
        let has_lists = has_lists(install.scratch());
        let (versions, before, log) = (Vec::new(), Snapshot::new(), Vec::new());
        let mut world = World {
            rng,
            install,
            versions,
            is_known,
            is_given_away,
            large,
            skipped,
            before,
            log,
            left,
            keep,
            has_lists,
        };
        world.write_settings();
        let first = world.version("1.0", None);
        let second = world.version("2.0", Some(&first));
        let third = world.version("3.0", Some(&second));
        let fourth = world.version("4.0", Some(&third));
        world.versions = vec![first, second, third, fourth];
        world.unpack();
        world.dwell();
        world
    }

    fn write_settings(&self) {
        let skip = self.skipped.map_or(String::new(), |folder| format!("skip = [\"/{folder}/\"]\n"));
        let text = format!(
            "[server]\nsoak = \"20ms\"\nhealth_timeout = \"4s\"\nstop_timeout = \"4s\"\n\
             [backup]\nkeep = {}\nmax_file = {}\n{skip}",
            self.keep, self.large
        );
        self.install.write("updater.toml", text);
    }

    // ---- versions ----

    fn content(&mut self, name: &str, tag: &str) -> Vec<u8> {
        let rng = &mut self.rng;
        if name.ends_with(".db") || name.ends_with(".sqlite3") || (name == "o" && rng.chance(60)) {
            return database(&format!("{tag} {}", rng.below(3)));
        }
        if rng.chance(7) {
            return Vec::new();
        }
        let start = if (name == "g" || name == "data") && rng.chance(30) { "#!/bin/sh\n" } else { "" };
        let filler = "x".repeat(*rng.pick(&[0, 0, 10, 5000]));
        format!("{start}# {tag} {}\n{filler}", rng.below(4)).into_bytes()
    }

    fn version(&mut self, number: &str, base: Option<&Version>) -> Version {
        let mut version = Version::new();
        for (path, shipped) in base.into_iter().flatten() {
            if self.rng.chance(15) {
                continue;
            }
            let mut next = shipped.clone();
            if self.rng.chance(60) && !next.link {
                next.bytes = self.content(&String::from_utf8_lossy(look::name_of(path)), number);
                next.mode = *self.rng.pick(&[next.mode, 0o644, 0o755]);
            }
            version.insert(path.clone(), next);
        }
        for _ in 0..3 + self.rng.below(16) {
            let (folder, name) = (*self.rng.pick(&FOLDERS), *self.rng.pick(&NAMES));
            let path = if folder.is_empty() { name.to_string() } else { format!("{folder}/{name}") };
            let crosses = version.keys().any(|p| is_below(p, path.as_bytes()) || is_below(path.as_bytes(), p));
            if crosses || FIXED.contains(&path.as_str()) || version.contains_key(path.as_bytes()) {
                continue;
            }
            let link = self.rng.chance(4);
            let bytes = if link { b"b.txt".to_vec() } else { self.content(name, number) };
            let mode = *self.rng.pick(&[0o644, 0o644, 0o755, 0o600, 0o664]);
            version.insert(path.into_bytes(), Shipped { link, bytes, mode });
        }
        let mut ship = |path: &str, text: String| {
            let bytes = text.into_bytes();
            version.insert(path.into(), Shipped { link: false, bytes, mode: 0o644 });
        };
        ship("run.py", kit::script(number, ""));
        ship("app/__init__.py", "# package\n".into());
        ship("app/core.py", format!("# core of {number}\n"));
        version
    }

    /// A bundle of a version; `more` goes to its start file.
    pub fn bundle(&mut self, at: usize, more: &str) -> PathBuf {
        let number = format!("{}.0", at + 1);
        self.versions[at].get_mut(&b"run.py"[..]).unwrap().bytes = kit::script(&number, more).into_bytes();
        let path = self.install.scratch().join(format!("bundle-{number}.zip"));
        let mut zip = zip::ZipWriter::new(fs::File::create(&path).unwrap());
        for (name, shipped) in &self.versions[at] {
            let options = zip::write::SimpleFileOptions::default().unix_permissions(shipped.mode);
            let name = format!("site/{}", std::str::from_utf8(name).unwrap());
            if shipped.link {
                zip.add_symlink(name, String::from_utf8_lossy(&shipped.bytes), options).unwrap();
            } else {
                zip.start_file(name, options).unwrap();
                zip.write_all(&shipped.bytes).unwrap();
            }
        }
        zip.finish().unwrap();
        path
    }

    /// The first version as somebody unpacked it.
    fn unpack(&self) {
        fs::remove_file(self.install.root.join("app/old.py")).unwrap();
        for (path, shipped) in &self.versions[0] {
            let place = self.place(path);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            let _ = fs::remove_file(&place);
            if shipped.link {
                symlink(path_of(&shipped.bytes), &place).unwrap();
            } else {
                fs::write(&place, &shipped.bytes).unwrap();
                fs::set_permissions(&place, fs::Permissions::from_mode(shipped.mode)).unwrap();
                set_time(&place, 1_600_000_000_000_000_000);
            }
        }
    }

    pub fn place(&self, path: &[u8]) -> PathBuf {
        self.install.root.join(path_of(path))
    }

    // ---- users ----

    /// People use the first version: its server starts, and they leave their files everywhere.
    fn dwell(&mut self) {
        // Asked for as late as can be: whoever asks the system next may get the same one.
        self.install.port = kit::free_port();
        if self.is_given_away {
            owner::start(&self.install);
        } else {
            self.install.start();
        }
        if self.is_known {
            let bundle = self.bundle(0, "");
            self.run(&["adopt", bundle.to_str().unwrap()]).expect(0);
        }
        self.edit();
        self.strew();
        if self.is_given_away {
            owner::give_away(&self.install);
        }
        self.before = snapshot(&self.install.root);
    }

    /// Modes, owners, attributes and access lists as users and their programs set them.
    fn dress(&mut self, path: &Path, is_folder: bool) {
        // A folder above may be closed by now.
        let Ok(data) = path.symlink_metadata() else { return };
        let (is_own, is_link) = (!owner::is_root() || self.is_given_away, data.is_symlink());
        let rng = &mut self.rng;
        if !is_own && rng.chance(25) {
            let (uid, gid) = (*rng.pick(&[0, 1000, owner::NOBODY, 33]), *rng.pick(&[0, 1000, 33]));
            lchown(path, Some(uid), Some(gid)).unwrap();
        }
        if is_link {
            return;
        }
        if !is_folder && rng.chance(50) {
            set_time(path, 1_000_000_000_000_000_000 + rng.below(900_000_000_000_000_000) as i128);
        }
        let set = |name: &str, value: &[u8]| {
            // A mode of 0 keeps its owner from it, too.
            let _ = rustix::fs::lsetxattr(path, name, value, XattrFlags::empty());
        };
        if rng.chance(20) {
            set(&format!("user.k{}", rng.below(3)), format!("v{}", rng.below(10)).as_bytes());
        }
        if self.has_lists && rng.chance(15) {
            set("system.posix_acl_access", &access_list(6));
        }
        if self.has_lists && is_folder && rng.chance(15) {
            set("system.posix_acl_default", &access_list(7));
        }
        if rng.chance(40) {
            // What its owner may not use ends an update before it begins, so that is rare where the owner is not root.
            let closed = !is_own || (rng.chance(2) && rng.chance(30));
            let mode = match (is_folder, closed) {
                (true, true) => *rng.pick(&[0o2775, 0o700, 0o1777, 0o555, 0, 0o2770, 0o711, 0o777]),
                (true, false) => *rng.pick(&[0o2775, 0o700, 0o1777, 0o755, 0o2770, 0o711, 0o777]),
                (false, true) => *rng.pick(&[0, 0o400, 0o777, 0o700, 0o640, 0o111, 0o444, 0o4755, 0o2755]),
                (false, false) => *rng.pick(&[0o600, 0o400, 0o777, 0o700, 0o640, 0o511, 0o444, 0o4755, 0o2755]),
            };
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    fn strew(&mut self) {
        let places: Vec<Vec<u8>> =
            FOLDERS.iter().map(|f| f.as_bytes().to_vec()).chain(OWN_FOLDERS.map(Vec::from)).collect();
        let shipped: Vec<Vec<u8>> = self.versions.iter().flat_map(|version| version.keys().cloned()).collect();
        for _ in 0..8 + self.rng.below(34) {
            let folder =
                if self.rng.chance(20) { self.some(Kind::Folder) } else { Some(self.rng.pick(&places).clone()) };
            let name = match self.rng.below(100) {
                0..3 => vec![b'l'; 255],
                3..35 => self.rng.pick(&NAMES).as_bytes().to_vec(),
                35..75 => self.rng.pick(&ODD_NAMES).to_vec(),
                // A path that some version ships.
                _ => self.rng.pick(&shipped).clone(),
            };
            let folder = folder.filter(|folder| !folder.is_empty() && !name.contains(&b'/')).unwrap_or_default();
            let path = if folder.is_empty() { name } else { [&folder[..], b"/", &name].concat() };
            let first = path.split(|byte| *byte == b'/').next().unwrap();
            if !FIXED.iter().any(|fixed| fixed.as_bytes() == path) && first != b"backup.json" {
                self.leave(&path);
            }
        }
        for folder in self.all(Kind::Folder) {
            // Where the server and these tests must get in whoever they are.
            let may_close = owner::is_root() || folder != b"instance";
            if self.rng.chance(12) && may_close {
                let place = self.place(&folder);
                self.dress(&place, true);
            }
        }
    }

    fn all(&self, kind: Kind) -> Vec<Vec<u8>> {
        let all = snapshot(&self.install.root);
        all.into_iter().filter(|(_, seen)| seen.kind == kind).map(|(path, _)| path).collect()
    }

    fn some(&mut self, kind: Kind) -> Option<Vec<u8>> {
        let all = self.all(kind);
        (!all.is_empty()).then(|| self.rng.pick(&all).clone())
    }

    /// Something of the users' at a path, if there is nothing.
    fn leave(&mut self, path: &[u8]) {
        let place = self.place(path);
        let stands = above(path).any(|folder| self.place(folder).symlink_metadata().is_ok_and(|data| !data.is_dir()));
        if stands || place.symlink_metadata().is_ok() {
            return;
        }
        if fs::create_dir_all(place.parent().unwrap()).is_err() {
            return;
        }
        let name = String::from_utf8_lossy(look::name_of(path)).into_owned();
        let tag = format!("user{}", self.rng.below(1000));
        let done = match self.rng.below(100) {
            0..7 => {
                let targets: [&[u8]; 6] = [b"b.txt", b"/etc/hostname", b"../..", b"nowhere", b"app", b"\xff"];
                symlink(path_of(self.rng.pick::<&[u8]>(&targets)), &place)
            }
            7..15 => fs::create_dir(&place),
            15..19 => match self.theirs() {
                Some(other) => fs::hard_link(self.place(&other), &place),
                None => Ok(()),
            },
            19..21 => {
                let mode = rustix::fs::Mode::from_raw_mode(0o600);
                rustix::fs::mknodat(CWD, &place, rustix::fs::FileType::Fifo, mode, 0).map_err(Into::into)
            }
            // Its path may be too long for a socket.
            21..23 => UnixListener::bind(&place).map(drop).or(Ok(())),
            23..27 if name.len() < 200 => write_ahead(&place),
            _ => fs::write(&place, self.content(&name, &tag)),
        };
        // A folder that its owner may not write in is the users' choice, too.
        if done.is_ok() && place.symlink_metadata().is_ok() {
            let is_folder = place.symlink_metadata().unwrap().is_dir();
            self.dress(&place, is_folder);
        }
    }

    /// A file that no version ships.
    fn theirs(&mut self) -> Option<Vec<u8>> {
        let mut all = self.all(Kind::File);
        all.retain(|path| !self.versions.iter().any(|version| version.contains_key(path)));
        (!all.is_empty()).then(|| self.rng.pick(&all).clone())
    }

    /// Users change what the version shipped.
    fn edit(&mut self) {
        let paths: Vec<Vec<u8>> = self.versions[0].keys().cloned().collect();
        for path in paths {
            let place = self.place(&path);
            let is_file = place.symlink_metadata().is_ok_and(|data| data.is_file());
            if path == b"run.py" || path == b"app/core.py" || !is_file || !self.rng.chance(22) {
                continue;
            }
            match self.rng.below(100) {
                0..50 => {
                    let old = fs::read(&place).unwrap();
                    let text = format!("edited by user {}\n", self.rng.below(10)).into_bytes();
                    let bytes = if self.rng.chance(50) { [old, text].concat() } else { text };
                    fs::write(&place, bytes).unwrap();
                    self.dress(&place, false);
                }
                50..65 => fs::remove_file(&place).unwrap(),
                65..80 => self.dress(&place, false),
                80..90 => {
                    fs::remove_file(&place).unwrap();
                    symlink("b.txt", &place).unwrap();
                }
                _ => {
                    fs::remove_file(&place).unwrap();
                    fs::create_dir(&place).unwrap();
                    fs::write(place.join("inside"), "of a user").unwrap();
                }
            }
        }
    }

    // ---- runs ----

    pub fn run(&mut self, arguments: &[&str]) -> Output {
        let output = self.install.updater(arguments);
        self.log.push(format!("{arguments:?} exits {}", output.code));
        let is_ascii = output.stdout.is_ascii() && output.stderr.is_ascii();
        assert!(is_ascii && !output.stderr.contains("panicked"), "{output:?}");
        output
    }

    /// What `[backup] max_file` and `skip` leave in place unsaved.
    pub fn is_watched(&self, path: &[u8], seen: &look::Seen) -> bool {
        // A database is saved whatever is set.
        let is_database = seen.bytes.iter().flatten().take(6).eq(b"SQLite");
        let is_skipped = self.skipped.is_some_and(|folder| is_below(path, folder.as_bytes()));
        let is_named = judge::is_database_name(look::name_of(path));
        seen.kind == Kind::File && !is_database && !is_named && (is_skipped || seen.size > self.large)
    }

    /// Paths of users' that a version would cross: a file where it needs a folder, or the reverse.
    pub fn crossed(&self, at: usize) -> BTreeSet<Vec<u8>> {
        let version = &self.versions[at];
        let needs = |path: &[u8]| version.keys().any(|shipped| is_below(shipped, path));
        let below = |path: &[u8]| above(path).any(|folder| version.contains_key(folder));
        let is_crossed = |path: &[u8], seen: &look::Seen| {
            below(path)
                || (seen.kind == Kind::Folder && version.contains_key(path))
                || (seen.kind != Kind::Folder && needs(path))
        };
        self.before.iter().filter(|(path, seen)| is_crossed(path, seen)).map(|(path, _)| path.clone()).collect()
    }
}

fn has_lists(folder: &Path) -> bool {
    let probe = folder.join("probe");
    fs::write(&probe, "").unwrap();
    let set = rustix::fs::lsetxattr(&probe, "system.posix_acl_access", &access_list(6), XattrFlags::empty());
    fs::remove_file(&probe).unwrap();
    if let Err(e) = set {
        eprintln!("NOT TRIED: access lists, which {} does not take: {e}", folder.display());
    }
    set.is_ok()
}

/// An access list with a further user (1234), as the system stores it. Source: `linux/posix_acl_xattr.h`.
fn access_list(owner: u16) -> Vec<u8> {
    let nobody = u32::MAX;
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1u16, owner, nobody), (2, 5, 1234), (4, 4, nobody), (0x10, 7, nobody), (0x20, 0, nobody)]
    {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(u32::to_le_bytes(id));
    }
    list
}

fn set_time(path: &Path, nanoseconds: i128) {
    let at = Timespec { tv_sec: (nanoseconds / 1_000_000_000) as i64, tv_nsec: (nanoseconds % 1_000_000_000) as i64 };
    let times = Timestamps { last_access: at, last_modification: at };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// The bytes of a database that holds `text`.
fn database(text: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("x");
    let db = rusqlite::Connection::open(&place).unwrap();
    db.execute_batch("PRAGMA page_size = 512; CREATE TABLE t(x)").unwrap();
    db.execute("INSERT INTO t VALUES(?1)", [text]).unwrap();
    drop(db);
    fs::read(place).unwrap()
}

/// A database whose rows are in its log alone, as a killed writer leaves it.
fn write_ahead(place: &Path) -> std::io::Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let live = folder.path().join("x");
    let db = rusqlite::Connection::open(&live).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t(x); INSERT INTO t VALUES(7)",
    )
    .unwrap();
    let log = |path: &Path| {
        let mut name = path.as_os_str().to_os_string();
        name.push("-wal");
        PathBuf::from(name)
    };
    fs::copy(&live, place)?;
    fs::copy(log(&live), log(place)).map(drop)
}
