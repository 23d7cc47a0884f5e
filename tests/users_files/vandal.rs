//! A version that writes, removes and replaces users' files and folders before it ends, as a script of the shell.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::look::{Kind, Snapshot, above, is_below};
use crate::world::World;

const DEEDS: [&str; 24] = [
    "write",
    "append",
    "unlink",
    "replace",
    "chmod",
    "chown",
    "time",
    "same-size",
    "touch-back",
    "folder-for-file",
    "file-for-folder",
    "link-for-folder",
    "link-for-file",
    "rename",
    "remove-tree",
    "new",
    "new-folder",
    "close-folder",
    "hard",
    "pipe",
    "new-in",
    "swap",
    "log-of-database",
    "attribute",
];
const OF_FOLDERS: [&str; 5] = ["file-for-folder", "link-for-folder", "remove-tree", "close-folder", "new-in"];
const OF_ALL: [&str; 3] = ["unlink", "rename", "chown"];

/// What the version does, and which paths it may have touched.
pub struct Vandal {
    /// Lines for the start file.
    pub lines: String,
    pub touched: BTreeSet<Vec<u8>>,
}

/// A file as the vandal left it.
pub type Left = BTreeMap<Vec<u8>, String>;

impl Vandal {
    pub fn new(world: &mut World) -> Vandal {
        let before = world.before.clone();
        let of = |kinds: &[Kind]| -> Vec<Vec<u8>> {
            let meant = before.iter().filter(|(_, seen)| kinds.contains(&seen.kind));
            meant.map(|(path, _)| path.clone()).collect()
        };
        let (files, mut folders) = (of(&[Kind::File]), of(&[Kind::Folder]));
        let all = of(&[Kind::File, Kind::Folder, Kind::Link]);
        let new: Vec<Vec<u8>> = world.versions[1].keys().cloned().collect();
        // Those that its own update makes, too.
        folders.extend(folders_of(new.iter()).into_iter().filter(|folder| !before.contains_key(folder)));
        let (mut deeds, mut lines, mut touched) = (Vec::new(), String::new(), BTreeSet::new());
        for n in 0..1 + world.rng.below(24) {
            let rng = &mut world.rng;
            let deed = *rng.pick(&DEEDS);
            let is_of_folders = OF_FOLDERS.contains(&deed);
            let pool = match deed {
                _ if is_of_folders => &folders,
                _ if OF_ALL.contains(&deed) => &all,
                _ if rng.chance(20) => &new,
                _ => &files,
            };
            let (path, other) = (rng.pick(pool).clone(), rng.pick(&files).clone());
            if deed == "attribute" {
                if let Some(text) = plain(&path) {
                    lines += &format!("ATTRIBUTE = \"{text}=user.bad=x\"\n");
                    touched.insert(path);
                }
                continue;
            }
            deeds.extend(done(deed, &path, &other, n));
            touched.insert(path);
            if ["hard", "swap"].contains(&deed) {
                touched.insert(other);
            }
        }
        world.write_script(&deeds);
        let script = world.left.with_file_name("vandal.sh");
        lines += &format!("SHELL = \"sh {}\"\n", script.display());
        lines +=
            if world.rng.chance(70) { "EXIT = 1\n" } else { "SQL = \"UPDATE notes SET text = 'bad'\"\nANSWER = 500\n" };
        Vandal { lines, touched }
    }

    /// True where it may have changed this very path, by its name, another name of it, or what lies above it.
    pub fn may_have_touched(&self, before: &Snapshot, path: &[u8]) -> bool {
        let touches = |path: &[u8]| {
            let mut touched = self.touched.iter();
            touched.any(|one| one == path || is_below(path, one) || is_below(one, path))
        };
        // A database and its log are put back together.
        let main = path.strip_suffix(b"-wal").unwrap_or(path);
        if touches(main) || touches(&[main, b"-wal"].concat()) {
            return true;
        }
        let inode = before.get(path).filter(|seen| seen.links > 1).map(|seen| seen.inode);
        let others = before.iter().filter(|(_, seen)| Some(seen.inode) == inode && seen.kind == Kind::File);
        others.map(|(other, _)| other).any(|other| touches(other))
    }
}

/// A name that a start file can hold.
fn plain(path: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(path).ok()?;
    text.chars().all(|c| c.is_ascii_graphic() && !"\"'=\\#".contains(c)).then_some(text)
}

fn quoted(path: &[u8]) -> Vec<u8> {
    let inner: Vec<u8> = path.iter().flat_map(|b| if *b == b'\'' { b"'\\''".to_vec() } else { vec![*b] }).collect();
    [b"'./", &inner[..], b"'"].concat()
}

/// One deed, as a line of the shell. No file is written through a link.
fn done(deed: &str, path: &[u8], other: &[u8], n: usize) -> Vec<u8> {
    let line = match deed {
        "write" => "[ -f {q} ] && [ ! -L {q} ] && printf 'bad {n}' >{q}",
        "append" => "[ -f {q} ] && [ ! -L {q} ] && printf 'bad {n}' >>{q}",
        "unlink" => "rm -f {q}",
        "replace" => "[ ! -d {q} ] && printf 'new {n}' >{q}.tmp9 && mv -fT {q}.tmp9 {q}",
        "chmod" | "close-folder" => "[ ! -L {q} ] && chmod {mode} {q}",
        "chown" => "chown -h 12{n}:12{n} {q}",
        "time" => "touch -h -d @10{n} {q}",
        "same-size" => {
            "[ -f {q} ] && [ ! -L {q} ] && touch -r {q} \"$OUT/time\" && tr '\\0-\\376' '\\1-\\377' <{q} >\"$OUT/same\" \
             && cat \"$OUT/same\" >{q} && touch -r \"$OUT/time\" {q}"
        }
        "touch-back" => "[ -f {q} ] && [ ! -L {q} ] && cat {q} >\"$OUT/same\" && cat \"$OUT/same\" >{q}",
        "folder-for-file" => "rm -f {q} && mkdir {q} && printf 'in {n}' >{q}/in{n} && mkdir {q}/e",
        "file-for-folder" => "[ -d {q} ] && rm -rf {q} && printf 'a file now {n}' >{q}",
        "link-for-folder" => "[ -d {q} ] && [ ! -L {q} ] && mv -T {q} {q}.moved{n} && ln -s \"$PWD\"/{q}.moved{n} {q}",
        "link-for-file" => "rm -f {q} && ln -s \"$OUT/outside\" {q}",
        "rename" => "mv -T {q} {q}.ren{n}",
        "remove-tree" => "[ ! -L {q} ] && rm -rf {q}",
        "new" => "printf 'new {n}' >{q}.new{n}",
        "new-folder" => "mkdir -p {q}.nd/x && printf 'nd {n}' >{q}.nd/x/f && chmod 0 {q}.nd",
        "hard" => "rm -f {q} && ln {p} {q}",
        "pipe" => "rm -f {q} && mkfifo {q}",
        "new-in" => "[ -d {q} ] && printf 'new in {n}' >{q}/newin{n}.txt",
        "log-of-database" => "printf 'not a log {n}' >{q}-wal",
        "swap" => "mv -T {q} {q}.s9 && mv -T {p} {q} && mv -T {q}.s9 {p}",
        other => panic!("no deed {other}"),
    };
    let mode = ["0", "777", "600", "2755", "1777", "4711"][n % 6];
    let line = line.replace("{n}", &n.to_string()).replace("{mode}", mode).into_bytes();
    let line = replaced(&line, b"{q}", &quoted(path));
    [replaced(&line, b"{p}", &quoted(other)), b"\n".to_vec()].concat()
}

fn replaced(text: &[u8], mark: &[u8], by: &[u8]) -> Vec<u8> {
    let mut done = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(mark.len()).position(|window| window == mark) {
        done.extend([&rest[..at], by].concat());
        rest = &rest[at + mark.len()..];
    }
    [&done[..], rest].concat()
}

impl World {
    /// The script of a vandal. What it leaves is written down once, by hash.
    fn write_script(&self, deeds: &[u8]) {
        let out = self.left.parent().unwrap();
        let head = format!(
            "OUT='{}'\n[ -e \"$OUT/ran\" ] && exit 0\n: >\"$OUT/ran\"\nexec 2>\"$OUT/errors\"\n",
            out.display()
        );
        let tail = "find . -path ./.updater -prune -o -path './backups/update_backup_*' -prune -o -type f \
                    -exec sha256sum -z {} + >\"$OUT/left.new\"\nmv \"$OUT/left.new\" \"$OUT/left\"\n";
        fs::write(out.join("vandal.sh"), [head.as_bytes(), deeds, tail.as_bytes()].concat()).unwrap();
    }

    /// The files as the vandal left them, by path. None: it did not come to its end.
    pub fn left(&self) -> Option<Left> {
        let list = fs::read(&self.left).ok()?;
        let lines = list.split(|byte| *byte == 0).filter(|line| line.len() > 68);
        Some(lines.map(|line| (line[68..].to_vec(), String::from_utf8(line[..64].to_vec()).unwrap())).collect())
    }

    /// Nothing may ever be written outside of the install.
    pub fn outside(&self) -> Vec<u8> {
        fs::read(self.left.with_file_name("outside")).unwrap()
    }
}

/// The folders above what lies at these paths.
pub fn folders_of<'a>(paths: impl Iterator<Item = &'a Vec<u8>>) -> BTreeSet<Vec<u8>> {
    paths.flat_map(|path| above(path).map(<[u8]>::to_vec)).collect()
}
