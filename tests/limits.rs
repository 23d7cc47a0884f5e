//! Odd places and full hands: each works, or is refused by name before anything changes.
#![cfg(target_os = "linux")]

mod kit;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use kit::{Bundle, Install};

const DAMAGE: &str = "SQL = \"UPDATE notes SET text = 'new row'\"\n\
                      WRITE = \"instance/state.json=altered\"\n\
                      WRITE = \"instance/added.json=added\"\n\
                      ANSWER = 500\n";

fn install() -> Install {
    let install = Install::new();
    install.write("updater.toml", "[server]\nsoak = \"50ms\"\n");
    install.write("instance/state.json", "{}");
    install
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Moves `instance/` to `place` and leaves a link.
fn link_instance(install: &Install, place: &Path) {
    let live = install.root.join("instance");
    assert!(Command::new("cp").arg("-a").arg(&live).arg(place).status().unwrap().success());
    fs::remove_dir_all(&live).unwrap();
    symlink(place, &live).unwrap();
}

fn through_good_and_bad(install: &Install) {
    install.start();
    install.apply(&Bundle::release("9.0", DAMAGE)).expect(3);
    assert_eq!((install.version().as_str(), install.note().as_str()), ("1.0", "old row"));
    assert_eq!(
        (install.read("instance/state.json"), install.read("instance/added.json")),
        ("{}".into(), "added".into())
    );
    let left: Vec<_> = fs::read_dir(install.root.join("instance")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(".updater")), "{left:?}");
    let done = install.apply(&install.bundle("2.0").file("instance/shipped.json", "1")).expect(0);
    assert_eq!(install.version(), "2.0");
    let backup = done.finished()["backup"].as_str().unwrap().to_string();
    assert_eq!(install.read(&format!("backups/{backup}/instance/state.json")), "{}");
    assert!(install.root.join("instance").is_symlink());
    install.updater(&["backups", "--check"]).expect(0);
    install.updater(&["restore", &backup]).expect(0);
    assert_eq!(install.version(), "1.0");
}

#[test]
fn instance_may_be_a_link_to_another_folder() {
    let install = install();
    let place = install.scratch().join("elsewhere");
    link_instance(&install, &place);
    through_good_and_bad(&install);
}

#[test]
fn instance_may_be_a_link_to_another_volume() {
    let install = install();
    let shm = tempfile::tempdir_in("/dev/shm").expect("/dev/shm is needed as a second volume");
    assert_ne!(fs::metadata(shm.path()).unwrap().dev(), fs::metadata(&install.root).unwrap().dev());
    link_instance(&install, &shm.path().join("instance"));
    through_good_and_bad(&install);
}

#[test]
fn backups_on_another_volume_are_refused_by_name() {
    let install = install();
    let shm = tempfile::tempdir_in("/dev/shm").expect("/dev/shm is needed as a second volume");
    symlink(shm.path(), install.root.join("backups")).unwrap();
    install.start();
    let pid = install.pid();
    let refused = install.apply(&install.bundle("2.0")).expect(1);
    assert_eq!(refused.error_code(), "other-volume");
    assert!(refused.finished()["error"]["path"].as_str().unwrap().ends_with("/backups"));
    let plan = install.updater(&["plan", install.save(&install.bundle("2.0")).to_str().unwrap(), "--json"]).expect(1);
    assert_eq!(plan.object()["problems"][0]["code"], "other-volume");
    assert_eq!(install.pid(), pid);
    assert_eq!(fs::read_dir(shm.path()).unwrap().count(), 0);
}

#[test]
fn backups_may_lie_in_a_folder_of_the_program() {
    let install = install();
    install.write("updater.toml", "[server]\nsoak = \"50ms\"\n[backup]\ndir = \"app/saved\"\n");
    install.start();
    let evil = "app/saved/update_backup_20260101_000000/evil.txt";
    let bundle = |version| install.bundle(version).file(evil, "x");
    let first = install.apply(&bundle("2.0")).expect(0);
    let id = first.finished()["backup"].as_str().unwrap().to_string();
    install.apply(&bundle("3.0")).expect(0);
    assert!(!install.exists(evil));
    install.updater(&["restore", &id]).expect(0);
    assert_eq!(install.version(), "1.0");
    install.updater(&["backups", "--check"]).expect(0);
}

#[test]
fn what_cannot_be_moved_is_refused_by_name() {
    let install = install();
    install.start();
    let pid = install.pid();
    let closed = install.root.join("app");
    if is_root() {
        // Modes do not bind root; the flag does, where the volume knows it.
        let core = closed.join("core.py");
        let flag = |what: &str| Command::new("chattr").arg(what).arg(&core).output().is_ok_and(|o| o.status.success());
        if !flag("+i") {
            eprintln!("this volume has no immutable files; scripts/volumes-check tries them on one that has");
            return;
        }
        let refused = install.apply(&install.bundle("2.0"));
        assert!(flag("-i"));
        let refused = refused.expect(1);
        assert_eq!(refused.error_code(), "not-movable");
        assert_eq!(refused.finished()["error"]["path"], "app/core.py");
    } else {
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
        let refused = install.apply(&install.bundle("2.0"));
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
        let refused = refused.expect(1);
        assert_eq!(refused.error_code(), "not-movable");
        assert_eq!(refused.finished()["error"]["path"], "app");
    }
    assert_eq!(install.pid(), pid);
    assert!(!install.exists(".updater/staging"));
}

#[test]
fn hard_linked_files_are_replaced_here_and_nowhere_else() {
    let install = install();
    for (name, other) in [("app/core.py", "core"), ("instance/state.json", "state")] {
        fs::hard_link(install.root.join(name), install.scratch().join(other)).unwrap();
    }
    install.start();
    install.apply(&Bundle::release("9.0", DAMAGE.replace("instance/state.json=altered", "x=y").as_str())).expect(3);
    install.apply(&install.bundle("2.0")).expect(0);
    assert_eq!(install.read("app/core.py"), "# core of 2.0\n");
    assert_eq!(fs::read_to_string(install.scratch().join("core")).unwrap(), "# core of 1.0\n");
    assert_eq!(fs::read_to_string(install.scratch().join("state")).unwrap(), "{}");
}

#[test]
fn uploads_that_come_change_and_go_during_the_first_pass_do_no_harm() {
    let install = install();
    for n in 0..300 {
        install.write(&format!("uploads/many/{n}.txt"), "x".repeat(4000));
    }
    install.start();
    let (folder, journal): (PathBuf, PathBuf) =
        (install.root.join("uploads/many"), install.root.join(".updater/journal"));
    let stop = AtomicBool::new(false);
    let output = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0u32;
            // The first pass ends before the journal begins; the server that writes here ends after it.
            while !stop.load(Ordering::Relaxed) && !journal.exists() {
                n += 1;
                let name = folder.join(format!("{}.txt", n * 7 % 300));
                match n % 3 {
                    0 => drop(fs::remove_file(&name)),
                    1 => fs::write(&name, format!("changed {n}")).unwrap(),
                    _ => fs::write(folder.join(format!("new-{}.txt", n % 50)), format!("new {n}")).unwrap(),
                }
            }
        });
        let output = install.apply(&install.bundle("2.0"));
        stop.store(true, Ordering::Relaxed);
        output
    });
    let backup = output.expect(0).finished()["backup"].as_str().unwrap().to_string();
    install.updater(&["backups", "--check"]).expect(0);
    let saved = install.root.join(format!("backups/{backup}/uploads/many"));
    let names = |folder: &Path| {
        let mut all: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        all.sort();
        all
    };
    assert_eq!(names(&saved), names(&folder));
    for name in names(&folder) {
        assert!(fs::read(saved.join(&name)).unwrap() == fs::read(folder.join(&name)).unwrap(), "{name:?}");
    }
}

#[test]
fn a_sparse_file_is_saved_sparsely_and_comes_back_so() {
    let install = install();
    let path = install.root.join("uploads/big.bin");
    let mut file = fs::File::create(&path).unwrap();
    use std::io::{Seek, SeekFrom, Write};
    file.write_all(b"head").unwrap();
    file.seek(SeekFrom::Start(300 << 20)).unwrap();
    file.write_all(b"tail").unwrap();
    file.set_len(400 << 20).unwrap();
    drop(file);
    let taken = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
    assert!(taken(&path) < 1 << 20, "this volume has no sparse files");
    // A larger one would only be watched.
    install.write("updater.toml", "[server]\nsoak = \"50ms\"\n[backup]\nmax_file = \"1 GB\"\n");
    install.start();
    let done = install.apply(&install.bundle("2.0")).expect(0);
    let id = done.finished()["backup"].as_str().unwrap().to_string();
    let saved = install.root.join(format!("backups/{id}/uploads/big.bin"));
    assert_eq!(fs::metadata(&saved).unwrap().len(), 400 << 20);
    assert!(taken(&saved) < 1 << 20, "{} bytes", taken(&saved));
    fs::remove_file(&path).unwrap();
    install.updater(&["restore", &id, "--data"]).expect(0);
    assert_eq!(fs::metadata(&path).unwrap().len(), 400 << 20);
    assert!(taken(&path) < 1 << 20);
}

#[test]
fn a_path_that_would_be_too_long_in_a_backup_is_refused_by_name_and_a_shorter_one_is_saved() {
    let install = install();
    // Step by step, as the whole path is too long for one call.
    let make = |bytes: usize| {
        let script = format!(
            "import os\nos.chdir('uploads')\nleft = {bytes}\nwhile left > 0:\n os.mkdir('d' * min(left, 200)); os.chdir('d' * min(left, 200)); left -= 201\nopen('deep.txt', 'w').write('deep')"
        );
        assert!(Command::new("python3").args(["-c", &script]).current_dir(&install.root).status().unwrap().success());
    };
    make(3700);
    install.start();
    let done = install.apply(&install.bundle("2.0")).expect(0);
    install.updater(&["backups", "--check"]).expect(0);
    install.updater(&["restore", done.finished()["backup"].as_str().unwrap(), "--data"]).expect(0);
    fs::remove_dir_all(install.root.join("uploads")).unwrap();
    fs::create_dir(install.root.join("uploads")).unwrap();
    make(4055 - install.root.as_os_str().len());
    let pid = install.pid();
    let refused = install.apply(&install.bundle("3.0")).expect(1);
    assert_eq!(refused.error_code(), "path-too-long");
    assert!(refused.finished()["error"]["path"].as_str().unwrap().ends_with("/deep.txt"));
    assert_eq!(install.pid(), pid);
}
