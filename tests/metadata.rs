//! What dresses files and folders: modes, attributes, capabilities. What users gave them comes through updates and
//! rollbacks, as root and as an ordinary owner, whom the system keeps from more.
#![cfg(target_os = "linux")]

mod kit;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use kit::{Bundle, Install, Output, owner};
use rustix::fs::XattrFlags;

const QUICK: &str = "[server]\nsoak = \"50ms\"\n";

/// An install whose owner is no root, its server running.
fn install(settings: &str, theirs: &[&str]) -> Install {
    let install = Install::new();
    install.write("updater.toml", format!("{QUICK}{settings}"));
    for path in theirs {
        install.write(path, format!("theirs: {path}"));
    }
    owner::start(&install);
    install
}

/// A version whose start runs a line of the shell and fails.
fn vandal(line: &str) -> Bundle {
    Bundle::release("3.0", &format!("SHELL = \"{line}\"\nEXIT = 1\n")).file("app/made/deep/part.py", "# part\n")
}

fn mode(install: &Install, path: &str) -> u32 {
    fs::symlink_metadata(install.root.join(path)).unwrap().mode() & 0o7777
}

fn set_mode(install: &Install, path: &str, mode: u32) {
    fs::set_permissions(install.root.join(path), fs::Permissions::from_mode(mode)).unwrap();
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn get(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).ok()?;
    value.truncate(length);
    Some(value)
}

fn named(output: &Output, code: &str) -> Vec<String> {
    let events = output.events();
    let of_code = events.iter().filter(|event| event["event"] == "warning" && event["code"] == code);
    of_code.filter_map(|event| event["path"].as_str().map(String::from)).collect()
}

#[test]
fn attributes_of_a_file_that_its_owner_may_not_write_come_through_a_rollback_and_an_update() {
    let install = install("", &["uploads/a.pdf", "uploads/b.pdf"]);
    let places = ["uploads/a.pdf", "uploads/b.pdf", "app/core.py"].map(|path| install.root.join(path));
    // A header, then the owner's, a further user's, the group's, the mask's and the others' permissions.
    let entries: [(u16, u16, u32); 5] = [(1, 4, !0), (2, 4, 1234), (4, 0, !0), (0x10, 4, !0), (0x20, 0, !0)];
    let bytes = entries.map(|(tag, may, id)| [&tag.to_le_bytes()[..], &may.to_le_bytes(), &id.to_le_bytes()].concat());
    let list = [&2u32.to_le_bytes()[..], &bytes.concat()].concat();
    for place in &places {
        set(place, "user.author", b"ann");
        // Not every volume takes one.
        let _ = rustix::fs::lsetxattr(place, "system.posix_acl_access", &list, XattrFlags::empty());
        fs::set_permissions(place, fs::Permissions::from_mode(0o400)).unwrap();
    }
    let lists = get(&places[0], "system.posix_acl_access");
    let output =
        install.apply(&vandal("rm -f uploads/a.pdf; chmod 600 uploads/b.pdf; echo x >uploads/b.pdf")).expect(3);
    assert!(named(&output, "metadata-lost").is_empty(), "{output:?}");
    install.apply(&install.bundle("4.0")).expect(0);
    assert_eq!(install.read("app/core.py"), "# core of 4.0\n");
    for place in &places {
        assert_eq!(get(place, "user.author").as_deref(), Some(&b"ann"[..]), "{}", place.display());
        assert_eq!(fs::metadata(place).unwrap().mode() & 0o777, 0o400, "{}", place.display());
        assert_eq!(get(place, "system.posix_acl_access"), lists, "{}", place.display());
    }
}

#[test]
fn folders_that_the_failed_version_closed_block_no_way_back() {
    for line in ["chmod 0 app/made/deep app/made app uploads", "mv app/made app/x; ln -s x app/made; chmod 0 uploads"] {
        let install = install("", &["uploads/deep/a.txt"]);
        set_mode(&install, "uploads/deep", 0o750);
        let before = install.tree();
        install.apply(&vandal(&format!("echo bad >uploads/deep/a.txt; {line}"))).expect(3);
        let mut after = install.tree();
        // What the version made itself, under another name.
        after.0.retain(|path, _| !path.starts_with("app/x/"));
        assert_eq!(after, before, "{line}");
        assert_eq!(
            ["app", "uploads", "uploads/deep"].map(|path| mode(&install, path)),
            [0o755, 0o755, 0o750],
            "{line}"
        );
        assert!(!install.exists("app/made"), "{line}");
    }
}

#[test]
fn a_way_back_that_is_cut_off_after_the_data_still_dresses_folders_and_watched_files() {
    let install = install("[backup]\nskip = [\"/media/\"]\n", &["uploads/deep/a.txt", "media/song.mp3"]);
    set_mode(&install, "uploads/deep", 0o750);
    let vandal = vandal("chmod 700 uploads/deep; chmod 777 media/song.mp3; echo >uploads/a.txt");
    // Its undo takes long enough to be cut off in it.
    let many = (0..200).fold(vandal, |bundle, n| bundle.file(&format!("app/part{n:03}.py"), format!("# {n}\n")));
    let bundle = install.save(&many);
    let mut command = install.command(&["apply", bundle.to_str().unwrap()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let journal = install.root.join(".updater/journal");
    let says = |state: &str| {
        let text = fs::read(&journal).unwrap_or_default();
        String::from_utf8_lossy(&text).contains(&format!("\"{state}\""))
    };
    // The other half is known before the moment comes, which does not wait.
    let mut half = None;
    for state in ["begin", "data-restored"] {
        while !says(state) {
            assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "{state} never came");
        }
        if state == "begin" {
            half = owner::other_half(child.id());
        }
    }
    owner::kill_both(&mut child, half);
    assert!(!says("rolled-back"), "the kill came too late");
    install.updater(&["recover", "--wait", "20s", "--json"]).expect(0);
    assert_eq!((mode(&install, "uploads/deep"), mode(&install, "media/song.mp3")), (0o750, 0o644));
    assert_eq!((install.version().as_str(), install.read("uploads/a.txt").as_str()), ("1.0", "old upload\n"));
}

#[test]
fn a_folder_that_is_back_is_left_alone_where_a_way_back_is_cut_off_and_begun_again() {
    let many = |bundle: Bundle, text: &str| {
        (0..300).fold(bundle, |bundle, n| bundle.file(&format!("app/part{n:03}.py"), format!("# {n} of {text}\n")))
    };
    // With the file of the version in its place, and where that was taken away.
    for line in ["true", "rm app/tools"] {
        let install = install("", &["app/tools/mine.txt"]);
        install.apply(&many(install.bundle("2.0"), "2.0")).expect(0);
        let inode = || fs::metadata(install.root.join("app/tools/mine.txt")).map(|data| data.ino()).ok();
        let mine = inode().unwrap();
        let bundle = install.save(&many(vandal(line), "3.0").file("app/tools", "a file of ours"));
        let mut command = install.command(&["apply", bundle.to_str().unwrap()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let journal = install.root.join(".updater/journal");
        let says = |state: &str| {
            String::from_utf8_lossy(&fs::read(&journal).unwrap_or_default()).contains(&format!("\"{state}\""))
        };
        while !says("begin") {
            assert!(Instant::now() < deadline, "it never began");
        }
        let half = owner::other_half(child.id());
        // The folder is there again, and hundreds of files are not.
        while !says("data-restored") || !install.root.join("app/tools").is_dir() {
            assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "the moment never came");
        }
        owner::kill_both(&mut child, half);
        assert!(!says("rolled-back"), "the kill came too late");
        install.updater(&["recover", "--wait", "20s", "--json"]).expect(0);
        assert_eq!((install.version().as_str(), inode()), ("2.0", Some(mine)), "{line}: it is another file now");
        let after = install.root.join("backups");
        let set_aside = walkdir::WalkDir::new(after).into_iter().map(Result::unwrap);
        let kept = set_aside.filter(|item| item.path().to_string_lossy().contains("/after/app/tools")).count();
        assert_eq!(kept, 0, "{line}: nobody wrote there, and something was set aside");
    }
}

#[test]
fn a_file_that_is_only_watched_is_dressed_again_and_one_that_became_a_link_blocks_nothing() {
    let install = install("[backup]\nskip = [\"/media/\"]\n", &["media/song.mp3", "media/film.mp4", "media/more.mp4"]);
    let song = install.root.join("media/song.mp3");
    set(&song, "user.artist", b"bob");
    let line = "rm media/film.mp4 media/more.mp4; ln -s song.mp3 media/film.mp4; ln -s song.mp3 media/more.mp4";
    let bundle = Bundle::release(
        "3.0",
        &format!(
            "ATTRIBUTE = \"media/song.mp3=user.artist=eve\"\nATTRIBUTE = \"media/song.mp3=user.bad=x\"\nSHELL = \"{line}\"\nEXIT = 1\n"
        ),
    );
    let output = install.apply(&bundle).expect(3);
    // What was done to the song beside that nobody knows, so it is named, too.
    assert_eq!(named(&output, "not-put-back"), ["media/film.mp4", "media/more.mp4", "media/song.mp3"]);
    assert_eq!((get(&song, "user.artist").as_deref(), get(&song, "user.bad")), (Some(&b"bob"[..]), None));
    assert_eq!(install.version(), "1.0");
}

#[test]
fn a_watched_file_that_was_altered_and_has_its_size_and_time_again_is_named() {
    let install = install("[backup]\nskip = [\"/media/\"]\n", &["media/song.mp3", "media/film.mp4"]);
    let line = "cd media; touch -r song.mp3 t; echo -n evil: >>t2; tail -c +6 song.mp3 >>t2; cat t2 >song.mp3; touch -r t song.mp3; rm t t2";
    let size = fs::metadata(install.root.join("media/song.mp3")).unwrap().len();
    let output = install.apply(&vandal(line)).expect(3);
    assert_eq!(fs::metadata(install.root.join("media/song.mp3")).unwrap().len(), size);
    assert_eq!(named(&output, "not-put-back"), ["media/song.mp3"]);
}

#[test]
fn an_empty_folder_that_gave_way_to_a_file_of_a_release_comes_back_with_a_restore() {
    for more in [&[][..], &["--data"]] {
        let install = install("", &["plugins/mine.txt"]);
        for folder in ["app/tools", "plugins/gone"] {
            fs::create_dir(install.root.join(folder)).unwrap();
            set_mode(&install, folder, 0o2770);
        }
        if owner::is_root() {
            owner::give_away(&install);
        }
        let output = install.apply(&install.bundle("2.0").file("app/tools", "a file of ours")).expect(0);
        assert_eq!(install.read("app/tools"), "a file of ours");
        fs::remove_dir(install.root.join("plugins/gone")).unwrap();
        let backup = output.finished()["backup"].as_str().unwrap().to_string();
        let undo = install.updater(&[&["restore", &backup, "--json"], more].concat()).expect(0);
        assert!(install.root.join("app/tools").is_dir());
        assert_eq!(mode(&install, "app/tools"), 0o2770);
        // What users took away comes back with the data alone.
        assert_eq!(install.exists("plugins/gone"), !more.is_empty());
        let backup = undo.finished()["backup"].as_str().unwrap().to_string();
        install.updater(&["restore", &backup, "--json"]).expect(0);
        assert_eq!(install.read("app/tools"), "a file of ours");
    }
}

#[test]
fn a_folder_that_is_closed_to_its_owner_ends_an_update_by_its_name() {
    let install = install("", &["lib/mine.txt"]);
    set_mode(&install, "lib", 0o600);
    let output = install.apply(&install.bundle("2.0").file("lib/part.txt", "ours")).expect(1);
    assert_eq!(output.error_code(), "unreadable-data");
    assert!(output.finished()["error"]["path"].as_str().unwrap().starts_with("lib"), "{output:?}");
    set_mode(&install, "lib", 0o755);
}

#[test]
fn a_closed_folder_of_somebodys_among_the_backups_hides_none_of_them() {
    let install = install("[backup]\nskip = [\"/backups/\"]\n", &["backups/notes/mine.txt"]);
    set_mode(&install, "backups/notes", 0);
    install.apply(&install.bundle("2.0")).expect(0);
    let there = install.updater(&["backups", "--check", "--json"]).expect(0).object();
    assert_eq!(there["backups"].as_array().unwrap().len(), 1, "{there}");
    install.updater(&["restore", "--yes", "--json"]).expect(0);
    assert_eq!(mode(&install, "backups/notes"), 0);
    set_mode(&install, "backups/notes", 0o755);
}

/// A revision of capabilities that a file may have. Source: `linux/capability.h` (VFS_CAP_REVISION_2, effective, with
/// CAP_NET_BIND_SERVICE permitted).
const NET_BIND_SERVICE: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn capabilities_of_a_shipped_program_come_through_an_update_a_rollback_and_a_restore() {
    let install = Install::new();
    install.write("updater.toml", QUICK);
    install.write("bin/probe", "#!/bin/sh\n");
    set_mode(&install, "bin/probe", 0o755);
    let probe = install.root.join("bin/probe");
    if let Err(e) = rustix::fs::lsetxattr(&probe, "security.capability", &NET_BIND_SERVICE, XattrFlags::empty()) {
        eprintln!("NOT TRIED: only root can give a file capabilities: {e}");
        return;
    }
    install.start();
    let first = install.save(&Bundle::first().file("bin/probe", "#!/bin/sh\n"));
    install.updater(&["adopt", first.to_str().unwrap()]).expect(0);
    let has = || get(&probe, "security.capability").as_deref() == Some(&NET_BIND_SERVICE[..]);
    let with = |bundle: Bundle, text: &str| bundle.file("bin/probe", text);
    let output = install.apply(&with(install.bundle("2.0"), "#!/bin/sh\n# of 2.0\n")).expect(0);
    assert!(has() && install.read("bin/probe").contains("2.0"), "{output:?}");
    install.apply(&with(vandal("cp bin/probe bin/x; mv bin/x bin/probe"), "#!/bin/sh\n# of 3.0\n")).expect(3);
    assert!(has() && install.read("bin/probe").contains("2.0"));
    let backup = output.finished()["backup"].as_str().unwrap().to_string();
    install.updater(&["restore", &backup, "--json"]).expect(0);
    assert!(has() && install.read("bin/probe") == "#!/bin/sh\n");
}
