//! Saved data goes back through folders on another volume: exchanged there by renames, undone in every way, and nothing
//! is left behind. `scripts/volumes-check` does it on mounts, and kills it at its system calls.
#![cfg(target_os = "linux")]

mod kit;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kit::{Install, Output};

/// An install whose `instance/` is a link to another volume, updated once, and written to since.
struct Far {
    install: Install,
    shm: tempfile::TempDir,
    backup: String,
}

impl Far {
    fn updated() -> Far {
        let install = Install::new();
        install.write("updater.toml", SETTINGS);
        install.write("instance/state.json", "{}");
        install.write("instance/deep/gone.txt", "was here\n");
        let shm = tempfile::tempdir_in("/dev/shm").expect("/dev/shm is needed as a second volume");
        let (live, place) = (install.root.join("instance"), shm.path().join("instance"));
        assert!(Command::new("cp").arg("-a").arg(&live).arg(&place).status().unwrap().success());
        fs::remove_dir_all(&live).unwrap();
        symlink(&place, &live).unwrap();
        assert_ne!(fs::metadata(&place).unwrap().dev(), fs::metadata(&install.root).unwrap().dev());
        install.start();
        let done = install.apply(&install.bundle("2.0")).expect(0);
        let backup = done.finished()["backup"].as_str().unwrap().to_string();
        sql(&install, "UPDATE notes SET text = 'later row'");
        install.write("instance/state.json", "{\"later\": 1}");
        install.write("instance/later.txt", "new here\n");
        fs::remove_dir_all(install.root.join("instance/deep")).unwrap();
        Far { install, shm, backup }
    }

    fn place(&self) -> PathBuf {
        self.shm.path().join("instance")
    }

    fn restore(&self) -> Output {
        self.install.updater(&["restore", &self.backup, "--data", "--json"])
    }

    /// What lies there, but for logs.
    fn there(&self) -> BTreeMap<String, Vec<u8>> {
        let walk = walkdir::WalkDir::new(self.place()).into_iter().map(Result::unwrap);
        let files = walk.filter(|item| item.file_type().is_file()).map(|item| {
            (item.path().strip_prefix(self.place()).unwrap().display().to_string(), fs::read(item.path()).unwrap())
        });
        files
            .filter(|(name, _)| !name.ends_with(".log") && !name.ends_with("_log.txt") && !name.contains("-shm"))
            .collect()
    }

    fn annexes(&self) -> Vec<PathBuf> {
        let names = fs::read_dir(self.place()).unwrap().map(|item| item.unwrap().path());
        names.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(".updater")).collect()
    }

    /// Nothing of ours is left, there or here.
    fn assert_settled(&self) {
        assert!(self.annexes().is_empty(), "{:?}", self.annexes());
        for name in ["journal", "staging", "trash", "annexes.json"] {
            assert!(!self.install.exists(&format!(".updater/{name}")), "{name} is left");
        }
        assert!(self.install.root.join("instance").is_symlink());
    }

    fn assert_later(&self) {
        assert_eq!((self.install.version().as_str(), self.install.note().as_str()), ("2.0", "later row"));
        assert_eq!(self.install.read("instance/state.json"), "{\"later\": 1}");
        assert!(!self.install.exists("instance/deep") && self.install.exists("instance/later.txt"));
        self.assert_settled();
    }

    /// Starts a restore with this hook, and kills it once the hook has begun.
    fn killed_in(&self, hook: &str) {
        let middle = self.install.scratch().join("middle");
        let script = format!(": >'{}'; sleep 304", middle.display());
        self.install.write("updater.toml", format!("{SETTINGS}[[hooks.{hook}]]\nrun = ['sh', '-c', \"{script}\"]\n"));
        let mut command = self.install.command(&["restore", &self.backup, "--data"]);
        let mut child: Child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !middle.exists() {
            assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "the hook never ran");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        self.install.write("updater.toml", SETTINGS);
        assert_eq!(self.annexes().len(), 1);
        assert_eq!(fs::metadata(&self.annexes()[0]).unwrap().permissions().mode() & 0o777, 0o700);
    }
}

const SETTINGS: &str = "[server]\nsoak = \"50ms\"\n";

fn sql(install: &Install, text: &str) {
    rusqlite::Connection::open(install.root.join("instance/app.db")).unwrap().execute_batch(text).unwrap();
}

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

#[test]
fn data_goes_back_and_that_can_itself_be_undone() {
    let far = Far::updated();
    let done = far.restore().expect(0);
    assert_eq!((far.install.version().as_str(), far.install.note().as_str()), ("1.0", "old row"));
    assert_eq!(far.install.read("instance/state.json"), "{}");
    assert_eq!(far.install.read("instance/deep/gone.txt"), "was here\n");
    assert_eq!(far.install.read("instance/later.txt"), "new here\n");
    far.assert_settled();
    // What it took the place of is kept where it always is.
    let id = done.finished()["backup"].as_str().unwrap().to_string();
    let after = |name: &str| far.install.read(&format!("backups/{id}/after/instance/{name}"));
    assert_eq!(after("state.json"), "{\"later\": 1}");
    assert!(far.install.exists(&format!("backups/{id}/after/instance/app.db")));
    far.install.updater(&["backups", "--check"]).expect(0);
    far.install.updater(&["restore", &id, "--data"]).expect(0);
    assert_eq!((far.install.version().as_str(), far.install.note().as_str()), ("2.0", "later row"));
    assert_eq!(far.install.read("instance/state.json"), "{\"later\": 1}");
    far.assert_settled();
}

#[test]
fn a_failing_restore_puts_the_very_files_back() {
    let far = Far::updated();
    let state = far.install.root.join("instance/state.json");
    let (before, was) = (far.there(), inode(&state));
    far.install.write("updater.toml", format!("{SETTINGS}[[hooks.after_swap]]\nrun = [\"false\"]\n"));
    assert_eq!(far.restore().expect(3).error_code(), "hook-failed");
    assert_eq!((far.there(), inode(&state)), (before, was));
    far.assert_later();
}

#[test]
fn a_restore_killed_after_its_exchange_is_undone() {
    let far = Far::updated();
    let before = far.there();
    far.killed_in("after_swap");
    assert_eq!(far.install.read("instance/state.json"), "{}");
    assert_eq!(far.install.updater(&["recover", "--json"]).expect(0).outcome(), "recovered");
    assert_eq!(far.there(), before);
    far.assert_later();
}

#[test]
fn a_restore_killed_before_its_journal_leaves_nothing_on_the_other_volume() {
    let far = Far::updated();
    let before = far.there();
    far.killed_in("before_stop");
    assert!(!far.install.exists(".updater/journal"));
    assert_eq!(far.install.updater(&["recover", "--json"]).expect(0).outcome(), "nothing-to-do");
    assert_eq!(far.there(), before);
    far.assert_later();
}

#[test]
fn a_volume_that_is_missing_is_waited_for() {
    let far = Far::updated();
    let before = far.there();
    far.killed_in("after_swap");
    let away = far.shm.path().join("away");
    fs::rename(far.place(), &away).unwrap();
    for _ in 0..2 {
        let output = far.install.updater(&["recover", "--json"]).expect(4);
        assert_eq!(output.error_code(), "volume-missing", "{output:?}");
    }
    fs::rename(&away, far.place()).unwrap();
    far.install.updater(&["recover", "--json"]).expect(0);
    assert_eq!(far.there(), before);
    far.assert_later();
}

#[test]
fn without_its_journal_nothing_that_gave_way_is_deleted() {
    let far = Far::updated();
    far.killed_in("after_swap");
    let annex = far.annexes().remove(0);
    fs::remove_file(far.install.root.join(".updater/journal")).unwrap();
    for _ in 0..2 {
        far.install.updater(&["recover"]).expect(0);
        assert_eq!(fs::read_to_string(annex.join("old/instance/state.json")).unwrap(), "{\"later\": 1}");
        assert!(!annex.join("new").exists());
    }
}

#[test]
fn a_folder_that_others_may_write_in_is_refused_before_anything_changes() {
    let far = Far::updated();
    let (before, pid) = (far.there(), far.install.pid());
    fs::set_permissions(far.place(), fs::Permissions::from_mode(0o777)).unwrap();
    let refused = far.restore().expect(1);
    assert_eq!(refused.error_code(), "other-volume");
    assert!(refused.finished()["error"]["remedy"].as_str().unwrap().contains("chmod o-w"), "{refused:?}");
    assert_eq!((far.there(), far.install.pid()), (before, pid));
    fs::set_permissions(far.place(), fs::Permissions::from_mode(0o755)).unwrap();
    far.restore().expect(0);
    far.assert_settled();
}
