//! Plan and swap on random trees: what they make is held against a specification written apart from
//! them, and what they undo against the very tree that was there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::rc::Rc;

use proptest::prelude::*;
use sha2::{Digest, Sha256};
use updater::base::path::RelPath;
use updater::state::journal::{Exchange, Moves};
use updater::state::receipt::{self, Receipt};
use updater::state::root::InstallRoot;
use updater::state::settings::Settings;
use updater::update::bundle::{Bundle, Expected, Limits};
use updater::update::ownership::{Ownership, Rules};
use updater::update::plan;
use updater::update::staging;
use updater::update::transaction::{self, Transaction};

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
        let (mode, owner) = mode_and_owner(&metadata);
        seen.insert(name, (if folder { 'd' } else { 'f' }, bytes, mode, owner, metadata.modified().unwrap()));
    }
    seen
}

#[cfg(unix)]
fn mode_and_owner(metadata: &fs::Metadata) -> (u32, u32) {
    use std::os::unix::fs::MetadataExt;
    (metadata.mode() & 0o7777, metadata.uid())
}

#[cfg(not(unix))]
fn mode_and_owner(_: &fs::Metadata) -> (u32, u32) {
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

/// Folders and files of the version, at several depths, of program kinds and of others, and every kind of data.
fn files() -> impl Strategy<Value = Files> {
    let name = prop::sample::select(vec![
        "app/one.py",
        "app/two.py",
        "app/users.json",
        "app/static/logo.png",
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
        "app/.env",
        "instance/app.db",
        "instance/app.db-wal",
        ".venv/bin/tool",
    ]);
    prop::collection::btree_map(name.prop_map(String::from), file(), 0..16)
}

fn is_database(name: &str) -> bool {
    name.ends_with(".db") || name.ends_with(".db-wal")
}

/// Paths that a data rule names.
fn is_named(name: &str) -> bool {
    ["uploads/", "config/", "instance/"].iter().any(|f| name.starts_with(f)) || name.ends_with(".env")
}

fn is_program(name: &str) -> bool {
    name.ends_with(".py")
}

/// What the bundle's mode makes of the live one: who may read may execute, or nobody.
fn executable(live: u32, bundle: u32) -> u32 {
    live & 0o666 | if bundle & 0o111 != 0 { (live & 0o444) >> 2 } else { 0 }
}

/// The rules, told once more and in other words than the program's. `base`: what the version before shipped.
/// What must lie there after the update.
fn specified(old: &Files, base: &BTreeMap<String, String>, new: &Files) -> Files {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let mut tree = Files::new();
    for name in names {
        let (live, brought) = (old.get(name), new.get(name));
        let as_shipped = live.is_some_and(|(text, _)| base.get(name) == Some(text));
        let added = brought.map(|(text, mode)| (text.clone(), if mode & 0o111 != 0 { 0o755 } else { 0o644 }));
        let replaced = live.zip(brought).map(|(live, new)| (new.0.clone(), executable(live.1, new.1)));
        let wanted = if name.starts_with(".venv/") {
            live.cloned()
        } else if is_database(name) {
            match database(name, old, base, new) {
                false => live.cloned(),
                true if live.is_some() => replaced,
                true => added,
            }
        } else if live.is_none() {
            added
        } else if as_shipped {
            replaced
        } else if is_named(name) || !base.contains_key(name) {
            live.cloned()
        } else {
            // Changed here: gone from the bundle, as shipped before, the same change, or another one.
            match brought {
                Some((text, _)) if live.is_some_and(|live| live.0 == *text) => replaced,
                Some((text, _)) if base.get(name) != Some(text) && is_program(name) => replaced,
                _ => live.cloned(),
            }
        };
        tree.extend(wanted.map(|file| (name.clone(), file)));
    }
    tree
}

/// Whether what lies there becomes what the bundle has, or nothing where it has nothing.
fn database(name: &str, old: &Files, base: &BTreeMap<String, String>, new: &Files) -> bool {
    let main = name.trim_end_matches("-wal");
    let log = format!("{main}-wal");
    let is_log = name == log;
    let members = [main, log.as_str()];
    let is_there = members.iter().any(|member| old.contains_key(*member));
    let is_touched =
        members.iter().any(|member| old.get(*member).is_some_and(|(text, _)| base.get(*member) != Some(text)));
    let is_unfinished = new.get(&log).is_some_and(|(text, _)| !text.is_empty());
    match (is_there, new.contains_key(main)) {
        _ if is_log => false,
        (true, true) => !is_touched && !is_unfinished,
        (true, false) => !is_touched,
        (false, true) => !is_unfinished && !main.starts_with("instance/"),
        (false, false) => false,
    }
}

struct Case {
    _scratch: tempfile::TempDir,
    root: InstallRoot,
    start: RelPath,
    moves: Moves,
    aside: Vec<String>,
    before: BTreeMap<String, Seen>,
}

impl Case {
    /// A tree, what was shipped of it, a bundle, and the moves between them.
    fn prepare(old: &Files, base: &BTreeMap<String, String>, new: &Files) -> Case {
        Self::with(old, base, new, &|_| {})
    }

    /// The same; `more` makes the tree a stranger one.
    fn with(old: &Files, base: &BTreeMap<String, String>, new: &Files, more: &dyn Fn(&Path)) -> Case {
        let scratch = tempfile::tempdir().unwrap();
        let site = scratch.path().canonicalize().unwrap().join("site");
        fs::create_dir_all(site.join(".updater")).unwrap();
        // The legacy profile, and an environment of the users'.
        for folder in ["app", "instance", ".venv"] {
            fs::create_dir(site.join(folder)).unwrap();
        }
        fs::write(site.join(".venv/pyvenv.cfg"), "").unwrap();
        write(&site, old);
        more(&site);
        let zip = scratch.path().join("bundle.zip");
        pack(&zip, new);
        let root = InstallRoot::resolve(&site).unwrap();
        let start = RelPath::parse("run.py").unwrap();
        let limits = Limits { max_size: 1 << 20, max_files: 1000 };
        let mut bundle = Bundle::open(&zip, &Expected::of_installed(&root, &start, true), &limits).unwrap();
        let mut settings = Settings::default();
        settings.preserve.carry.clear();
        let rules = Rc::new(Rules::of(&root, &settings).unwrap());
        let receipt = receipt_of(base);
        let shipped = bundle.entries.iter().map(|e| &e.path);
        let ownership = Ownership::new(&root, &rules, Some(&receipt), shipped, false);
        let census = ownership.census(None).unwrap();
        let order = plan::PlanInput {
            ownership: &ownership,
            census: &census,
            start_file: &start,
            set: &[],
            heal: false,
            saved_data: &BTreeSet::new(),
            saved_folders: &BTreeSet::new(),
            kept: &|| Ok(None),
        };
        let plan = plan::build(&order, &mut bundle).unwrap();
        let before = snapshot(&site);
        let written = staging::write(&ownership, &mut bundle, &plan, &start, &mut |_, _| Ok(())).unwrap();
        transaction::make_trash(root.state()).unwrap();
        let moves = transaction::intend(&root, &plan, &written.staged, &rules).unwrap();
        assert_eq!(snapshot(&site), before, "something changed before the swap");
        let aside = plan.moved_aside().iter().map(RelPath::to_string).collect();
        Case { _scratch: scratch, root, start, moves, aside, before }
    }

    fn backup(&self) -> std::path::PathBuf {
        self.root.state().path().join("backup")
    }

    fn transaction(&self, moves: &Moves) -> Transaction<'_> {
        Transaction::new(&self.root, moves.clone(), &self.start, &self.backup())
    }

    fn swap(&self, moves: &Moves) {
        self.transaction(moves).apply(None).unwrap();
    }

    fn complete(&self, moves: &Moves) {
        self.transaction(moves).finish().unwrap();
    }

    /// The folder may be written by hooks: its copy waits.
    fn exchange(&mut self, folder: &str) -> Exchange {
        // Where folders above it are missing, hooks make those, too.
        let parts = Path::new(folder).ancestors().filter(|part| !part.as_os_str().is_empty());
        let missing = parts.filter(|part| !self.root.path().join(part).exists()).last();
        let folder = missing.map_or(folder, |part| part.to_str().unwrap());
        let (live, copy) = (self.root.path().join(folder), self.root.state().copy(0));
        if live.exists() {
            copy_tree(&live, &copy);
        }
        let path = RelPath::parse(folder).unwrap();
        let one = Exchange { path, slot: 0, old: live.exists(), disposable: folder == ".venv" };
        transaction::intend_exchanges(&self.root, &mut self.moves, vec![one.clone()]).unwrap();
        one
    }

    fn undo(&self) {
        self.transaction(&self.moves).undo().unwrap();
        self.transaction(&self.moves).undo_start().unwrap();
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

fn receipt_of(base: &BTreeMap<String, String>) -> Receipt {
    let line = |(name, text): (&String, &String)| receipt::Line {
        path: RelPath::parse(name).unwrap(),
        size: text.len() as u64,
        sha256: Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect(),
        mode: 0o644,
        mtime: 0,
        carried: false,
        is_database: false,
    };
    Receipt {
        format: receipt::FORMAT,
        version: "1".into(),
        content_id: "old".into(),
        applied_at: "2026-01-01T00:00:00Z".into(),
        start_file: RelPath::parse("run.py").unwrap(),
        ports: Vec::new(),
        user: None,
        assumed: false,
        files: base.iter().map(line).collect(),
    }
}

fn with_start(mut files: Files, version: &str) -> Files {
    files.insert("run.py".into(), (format!("VERSION = {version}\n"), 0o644));
    files
}

/// What lies there, what of it was shipped (as it lies there, or before somebody changed it), and the bundle.
fn case() -> impl Strategy<Value = (Files, BTreeMap<String, String>, Files)> {
    let shipped = prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), "[a-c]{0,2}"), 0..10);
    (files(), files(), shipped).prop_map(|(old, new, shipped)| {
        let (old, new) = (with_start(old, "1"), with_start(new, "2"));
        let mut base = BTreeMap::from([("run.py".to_string(), old["run.py"].0.clone())]);
        let names: Vec<&String> = old.keys().chain(new.keys()).collect();
        for (at, as_it_lies, text) in shipped {
            let name = at.get(&names);
            if !name.ends_with("-wal") && !name.starts_with(".venv/") && *name != "run.py" {
                let lies = old.get(*name).map(|(text, _)| text.clone()).filter(|_| as_it_lies);
                base.insert(name.to_string(), lies.unwrap_or(text));
            }
        }
        (old, base, new)
    })
}

fn is_users(name: &str, old: &Files, base: &BTreeMap<String, String>) -> bool {
    old.get(name).is_some_and(|(text, _)| base.get(name) != Some(text))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_the_swap_the_tree_is_the_specified_one((old, base, new) in case()) {
        let case = Case::prepare(&old, &base, &new);
        case.swap(&case.moves);
        prop_assert!(!case.root.path().join("run.py").exists(), "it can start before all is proven");
        case.complete(&case.moves);
        let mut wanted = specified(&old, &base, &new);
        wanted.insert(".venv/pyvenv.cfg".into(), (String::new(), 0));
        let now = snapshot(case.root.path());
        let files: BTreeMap<_, _> = now.iter().filter(|(_, seen)| seen.0 == 'f').collect();
        prop_assert_eq!(files.keys().map(|n| n.to_string()).collect::<Vec<_>>(), wanted.keys().cloned().collect::<Vec<_>>());
        for (name, (text, mode)) in &wanted {
            let seen = &files[name];
            prop_assert_eq!(&seen.1, text.as_bytes(), "{}", name);
            prop_assert!(cfg!(windows) || *mode == 0 || seen.2 == *mode, "{} has mode {:o} and not {:o}", name, seen.2, mode);
        }
        // What users wrote is where it was, untouched, or lies aside and is named.
        for name in old.keys().filter(|name| is_users(name, &old, &base)) {
            let seen = &case.before[name.as_str()];
            let aside = case.backup().join("aside").join(name);
            if files.get(name).is_some_and(|now| *now == seen) {
                prop_assert!(!aside.exists(), "{} lies at both places", name);
                continue;
            }
            let same_text = new.get(name).is_some_and(|(text, _)| text.as_bytes() == seen.1);
            let kept = fs::read(&aside).ok();
            prop_assert!(same_text || kept.as_ref() == Some(&seen.1), "{} is lost", name);
            prop_assert!(same_text || case.aside.contains(name), "{} is not named", name);
        }
        let used: BTreeSet<&str> = wanted.keys().filter_map(|n| n.rsplit_once('/')).map(|(folder, _)| folder).collect();
        let data = |folder: &str| ["uploads", "config", "instance", "app"].iter().any(|top| folder.starts_with(top));
        for folder in now.iter().filter(|(_, seen)| seen.0 == 'd').map(|(name, _)| name.as_str()).filter(|f| !data(f)) {
            prop_assert!(used.iter().any(|u| *u == folder || u.starts_with(&format!("{folder}/"))), "{} is left empty", folder);
        }
    }

    #[test]
    fn an_undo_from_any_point_gives_back_the_very_same_tree(
        (old, base, new) in case(), part in any::<prop::sample::Index>(), again in any::<bool>()
    ) {
        let case = Case::prepare(&old, &base, &new);
        let mut moves = case.moves.clone();
        moves.moves.truncate(part.index(case.moves.moves.len() + 1));
        case.swap(&moves);
        if again {
            case.complete(&moves);
        }
        case.undo();
        if again {
            case.undo();
        }
        prop_assert_eq!(snapshot(case.root.path()), case.before.clone());
        prop_assert!(!case.backup().join("after").exists(), "an undo of untouched files set something aside");
    }

    #[test]
    fn whatever_hooks_wrote_an_undo_gives_back_the_very_same_tree(
        (old, base, new) in case(), folder in prop::sample::select(vec![".venv", "lib", "app/deep", "build/out"]),
        part in any::<prop::sample::Index>(), cut in any::<bool>(), again in any::<bool>()
    ) {
        let mut case = Case::prepare(&old, &base, &new);
        let one = case.exchange(folder);
        let mut moves = case.moves.clone();
        moves.moves.truncate(if cut { 0 } else { part.index(case.moves.moves.len() + 1) });
        case.swap(&moves);
        let live = case.root.join(&one.path);
        if !cut {
            vandalize(&live);
        } else if one.old {
            // Between the two renames of the exchange.
            fs::rename(&live, case.root.state().copy(0)).unwrap();
        }
        case.undo();
        if again {
            case.undo();
        }
        prop_assert_eq!(snapshot(case.root.path()), case.before.clone());
    }

    #[test]
    fn what_was_altered_after_the_swap_is_set_aside_and_not_lost((old, base, new) in case()) {
        let case = Case::prepare(&old, &base, &new);
        case.swap(&case.moves);
        case.complete(&case.moves);
        let altered = "run.py";
        fs::write(case.root.path().join(altered), "written by the new version").unwrap();
        case.undo();
        prop_assert_eq!(snapshot(case.root.path()), case.before.clone());
        let kept = fs::read_to_string(case.backup().join("after").join(altered)).unwrap();
        prop_assert_eq!(kept, "written by the new version");
    }
}
