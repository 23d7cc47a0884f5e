//! Plan and swap on random trees: what they make is held against a specification written apart from
//! them, and what they undo against the very tree that was there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;

use proptest::prelude::*;
use updater::bundle::{Bundle, Limits};
use updater::journal::{Exchange, Moves};
use updater::path::{InstallRoot, RelPath};
use updater::plan;
use updater::preserve::{Preserve, Rules};
use updater::receipt::{self, Receipt};
use updater::{staging, swap};

/// One file to be: its bytes and mode.
type Files = BTreeMap<String, (String, u32)>;

/// Everything about a path that an undo must bring back: kind, bytes, mode, owner, modification time.
type Seen = (char, Vec<u8>, u32, u32, std::time::SystemTime);

fn snapshot(root: &Path) -> BTreeMap<String, Seen> {
    let all = walkdir::WalkDir::new(root).min_depth(1).into_iter().map(Result::unwrap);
    let outside = |name: &str| name == ".updater" || name.starts_with(".updater/");
    let mut seen = BTreeMap::new();
    for item in all {
        let name = item.path().strip_prefix(root).unwrap().to_str().unwrap().to_string();
        if outside(&name) {
            continue;
        }
        let metadata = fs::symlink_metadata(item.path()).unwrap();
        let folder = metadata.is_dir();
        let bytes = if folder { Vec::new() } else { fs::read(item.path()).unwrap() };
        let (mode, owner) = facts(&metadata);
        seen.insert(name, (if folder { 'd' } else { 'f' }, bytes, mode, owner, metadata.modified().unwrap()));
    }
    seen
}

#[cfg(unix)]
fn facts(metadata: &fs::Metadata) -> (u32, u32) {
    use std::os::unix::fs::MetadataExt;
    (metadata.mode() & 0o7777, metadata.uid())
}

#[cfg(not(unix))]
fn facts(_: &fs::Metadata) -> (u32, u32) {
    (0, 0)
}

fn write(root: &Path, files: &Files) {
    for (name, (text, mode)) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        #[cfg(unix)]
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(*mode)).unwrap();
        // Old enough that a file written by the update can never have the same time by chance.
        let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        fs::File::open(&path).unwrap().set_modified(long_ago).unwrap();
        let _ = mode;
    }
}

fn pack(path: &Path, files: &Files) {
    let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
    for (name, (text, mode)) in files {
        let options = zip::write::SimpleFileOptions::default().unix_permissions(*mode);
        zip.start_file(format!("site/{name}"), options).unwrap();
        zip.write_all(text.as_bytes()).unwrap();
    }
    zip.finish().unwrap();
}

fn file() -> impl Strategy<Value = (String, u32)> {
    ("[a-c]{0,2}", prop::sample::select(vec![0o644, 0o755, 0o600, 0o664]))
}

/// Folders and files of the version, at several depths, and every kind of preserved data.
fn files() -> impl Strategy<Value = Files> {
    let name = prop::sample::select(vec![
        "app/one.py",
        "app/two.py",
        "app/deep/one.py",
        "app/deep/er/one.py",
        "app/local.db",
        "lib/one.py",
        "lib/x/y/z.py",
        "top.txt",
        "other.txt",
        "uploads/u1",
        "uploads/sub/u2",
        "config/c.json",
        ".env",
        "instance/app.db",
        "instance/app.db-wal",
        ".venv/bin/tool",
    ]);
    prop::collection::btree_map(name.prop_map(String::from), file(), 0..14)
}

fn is_database(name: &str) -> bool {
    name.ends_with(".db") || name.ends_with(".db-wal")
}

/// The classes of the names above, told once more and in other words than the program's.
fn is_preserved(name: &str) -> bool {
    is_database(name)
        || ["uploads/", "config/", "instance/", ".venv/"].iter().any(|f| name.starts_with(f))
        || name == ".env"
}

/// What must lie there after the update; `None` for the mode: whatever it was.
fn specified(old: &Files, shipped: &BTreeSet<String>, new: &Files) -> BTreeMap<String, (String, u32)> {
    let set = |name: &str| name.trim_end_matches("-wal").to_string();
    let old_sets: BTreeSet<String> = old.keys().filter(|n| is_database(n)).map(|n| set(n)).collect();
    let folders: BTreeSet<&str> = new.keys().filter_map(|n| n.split_once('/')).map(|(top, _)| top).collect();
    let mut tree = BTreeMap::new();
    for (name, (text, mode)) in old {
        let inside = name.split_once('/').is_some_and(|(top, _)| folders.contains(top));
        if is_preserved(name) || !(new.contains_key(name) || inside || shipped.contains(name)) {
            tree.insert(name.clone(), (text.clone(), *mode));
        }
    }
    for (name, (text, mode)) in new {
        let is_environment = name.starts_with(".venv/");
        let blocked = is_database(name) && old_sets.contains(&set(name));
        if is_environment || blocked || is_preserved(name) && old.contains_key(name) {
            continue;
        }
        let reduced = if mode & 0o111 != 0 { 0o755 } else { 0o644 };
        tree.insert(name.clone(), (text.clone(), reduced));
    }
    tree
}

struct Case {
    _scratch: tempfile::TempDir,
    root: InstallRoot,
    start: RelPath,
    moves: Moves,
    before: BTreeMap<String, Seen>,
}

impl Case {
    /// A tree, a bundle and the moves between them. None: the bundle changes nothing.
    fn prepare(old: &Files, shipped: &BTreeSet<String>, new: &Files) -> Option<Case> {
        let scratch = tempfile::tempdir().unwrap();
        let site = scratch.path().canonicalize().unwrap().join("site");
        fs::create_dir_all(site.join(".updater")).unwrap();
        write(&site, old);
        let zip = scratch.path().join("bundle.zip");
        pack(&zip, new);
        let root = InstallRoot::resolve(&site).unwrap();
        let start = RelPath::parse("run.py").unwrap();
        let limits = Limits { max_size: 1 << 20, max_files: 1000 };
        let mut bundle = Bundle::open(&zip, &start, &limits).unwrap();
        let preserve = Preserve::new(true, &[], false).unwrap();
        let rules = Rules { preserve, merge: Vec::new(), carry: BTreeMap::new(), set: Vec::new() };
        let receipt = receipt_of(&root, shipped);
        let plan = plan::build(&root, &mut bundle, Some(&receipt), &rules).unwrap();
        if plan.is_empty() {
            return None;
        }
        let before = snapshot(&site);
        let staged = staging::write(&root, &mut bundle, &plan, &start, &mut |_, _| {}).unwrap();
        swap::make_trash(&root.own()).unwrap();
        let moves = swap::intend(&root, &plan, &staged, &rules.preserve).unwrap();
        assert_eq!(snapshot(&site), before, "something changed before the swap");
        Some(Case { _scratch: scratch, root, start, moves, before })
    }

    fn after(&self) -> std::path::PathBuf {
        self.root.own().join("after")
    }

    /// The folder may be written by hooks: its copy waits.
    fn exchange(&mut self, folder: &str) -> Exchange {
        // Where folders above it are missing, hooks make those, too.
        let parts = Path::new(folder).ancestors().filter(|part| !part.as_os_str().is_empty());
        let missing = parts.filter(|part| !self.root.path().join(part).exists()).last();
        let folder = missing.map_or(folder, |part| part.to_str().unwrap());
        let (live, copy) = (self.root.path().join(folder), staging::copy_of(&self.root.own(), 0));
        if live.exists() {
            copy_tree(&live, &copy);
        }
        let path = RelPath::parse(folder).unwrap();
        let one = Exchange { path, slot: 0, old: live.exists(), disposable: folder == ".venv" };
        swap::intend_exchanges(&self.root, &mut self.moves, vec![one.clone()]).unwrap();
        one
    }

    fn undo(&self) {
        swap::undo(&self.root, &self.moves, &self.start, &self.after()).unwrap();
        swap::undo_start(&self.root, &self.moves, &self.start, &self.after()).unwrap();
    }
}

fn copy_tree(from: &Path, to: &Path) {
    for item in walkdir::WalkDir::new(from).into_iter().map(Result::unwrap) {
        let place = to.join(item.path().strip_prefix(from).unwrap());
        match item.file_type().is_dir() {
            true => fs::create_dir_all(place).unwrap(),
            false => fs::copy(item.path(), place).map(drop).unwrap(),
        }
    }
}

/// What a hook may do: alters every file in the folder, takes one away, makes others.
fn vandalize(folder: &Path) {
    let files = || walkdir::WalkDir::new(folder).into_iter().flatten().filter(|item| item.file_type().is_file());
    for file in files() {
        fs::remove_file(file.path()).unwrap();
        fs::write(file.path(), "by a hook").unwrap();
    }
    if let Some(file) = files().next() {
        fs::remove_file(file.path()).unwrap();
    }
    fs::create_dir_all(folder.join("made/by")).unwrap();
    fs::write(folder.join("made/by/hook"), "by a hook").unwrap();
}

fn receipt_of(root: &InstallRoot, shipped: &BTreeSet<String>) -> Receipt {
    let line = |name: &String| receipt::Line {
        path: RelPath::parse(name).unwrap(),
        size: 0,
        sha256: String::new(),
        mode: 0,
        mtime: 0,
        carried: false,
    };
    let files = shipped.iter().filter(|n| root.path().join(n).exists()).map(line).collect();
    Receipt {
        format: receipt::FORMAT,
        version: "1".into(),
        content_id: "old".into(),
        applied_at: "2026-01-01T00:00:00Z".into(),
        start_file: RelPath::parse("run.py").unwrap(),
        ports: Vec::new(),
        files,
    }
}

fn with_start(mut files: Files, version: &str) -> Files {
    files.insert("run.py".into(), (format!("VERSION = {version}\n"), 0o644));
    files
}

fn case() -> impl Strategy<Value = (Files, BTreeSet<String>, Files)> {
    // What the receipt names may be gone, preserved by now, or in a folder that the bundle lacks.
    let shipped = prop::sample::select(vec!["top.txt", "other.txt", "lib/one.py", "app/one.py", "uploads/u1"]);
    let shipped = prop::collection::btree_set(shipped.prop_map(String::from), 0..4);
    (files(), files(), shipped).prop_map(|(old, new, shipped)| (with_start(old, "1"), shipped, with_start(new, "2")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_the_swap_the_tree_is_the_specified_one((old, shipped, new) in case()) {
        let case = Case::prepare(&old, &shipped, &new).unwrap();
        swap::carry_out(&case.root, &case.moves, &case.start).unwrap();
        prop_assert!(!case.root.path().join("run.py").exists(), "it can start before all is proven");
        swap::complete(&case.root, &case.moves, &case.start).unwrap();
        let wanted = specified(&old, &shipped, &new);
        let now = snapshot(case.root.path());
        let files: BTreeMap<_, _> = now.iter().filter(|(_, seen)| seen.0 == 'f').collect();
        prop_assert_eq!(files.keys().map(|n| n.to_string()).collect::<Vec<_>>(), wanted.keys().cloned().collect::<Vec<_>>());
        for (name, (text, mode)) in &wanted {
            let seen = &files[name];
            prop_assert_eq!(&seen.1, text.as_bytes(), "{}", name);
            prop_assert!(cfg!(windows) || seen.2 == *mode, "{} has mode {:o} and not {:o}", name, seen.2, mode);
            if is_preserved(name) && old.contains_key(name) {
                prop_assert_eq!(*seen, &case.before[name], "{} was touched", name);
            }
        }
        let used: BTreeSet<&str> = wanted.keys().filter_map(|n| n.rsplit_once('/')).map(|(folder, _)| folder).collect();
        for folder in now.iter().filter(|(_, seen)| seen.0 == 'd').map(|(name, _)| name.as_str()) {
            prop_assert!(used.iter().any(|u| *u == folder || u.starts_with(&format!("{folder}/"))), "{} is left empty", folder);
        }
    }

    #[test]
    fn an_undo_from_any_point_gives_back_the_very_same_tree(
        (old, shipped, new) in case(), part in any::<prop::sample::Index>(), again in any::<bool>()
    ) {
        let case = Case::prepare(&old, &shipped, &new).unwrap();
        let mut moves = case.moves.clone();
        moves.moves.truncate(part.index(case.moves.moves.len() + 1));
        swap::carry_out(&case.root, &moves, &case.start).unwrap();
        if again {
            swap::complete(&case.root, &moves, &case.start).unwrap();
        }
        case.undo();
        if again {
            case.undo();
        }
        prop_assert_eq!(snapshot(case.root.path()), case.before.clone());
        prop_assert!(!case.after().exists(), "an undo of untouched files set something aside");
    }

    #[test]
    fn whatever_hooks_wrote_an_undo_gives_back_the_very_same_tree(
        (old, shipped, new) in case(), folder in prop::sample::select(vec![".venv", "lib", "app/deep", "build/out"]),
        part in any::<prop::sample::Index>(), cut in any::<bool>(), again in any::<bool>()
    ) {
        let mut case = Case::prepare(&old, &shipped, &new).unwrap();
        let one = case.exchange(folder);
        let mut moves = case.moves.clone();
        moves.moves.truncate(if cut { 0 } else { part.index(case.moves.moves.len() + 1) });
        swap::carry_out(&case.root, &moves, &case.start).unwrap();
        let live = case.root.join(&one.path);
        if !cut {
            vandalize(&live);
        } else if one.old {
            // Between the two renames of the exchange.
            fs::rename(&live, staging::copy_of(&case.root.own(), 0)).unwrap();
        }
        case.undo();
        if again {
            case.undo();
        }
        prop_assert_eq!(snapshot(case.root.path()), case.before.clone());
    }

    #[test]
    fn what_was_altered_after_the_swap_is_set_aside_and_not_lost((old, shipped, new) in case()) {
        let case = Case::prepare(&old, &shipped, &new).unwrap();
        swap::carry_out(&case.root, &case.moves, &case.start).unwrap();
        swap::complete(&case.root, &case.moves, &case.start).unwrap();
        let altered = "run.py";
        fs::write(case.root.path().join(altered), "written by the new version").unwrap();
        case.undo();
        prop_assert_eq!(snapshot(case.root.path()), case.before.clone());
        let kept = fs::read_to_string(case.after().join(altered)).unwrap();
        prop_assert_eq!(kept, "written by the new version");
    }
}
