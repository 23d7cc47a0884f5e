//! What somebody else wrote in or around an install makes root do nothing more, and nobody wait. `docs/security.md` names
//! each threat and its test. Most of it needs root, who is told where it does not run.
#![cfg(target_os = "linux")]

mod kit;

use kit::{Bundle, Install, Output};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// `nobody` on every Linux: the attacker, or the server's user.
const OTHER: u32 = 65534;

fn is_root(what: &str) -> bool {
    let is = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !is {
        eprintln!("NOT TRIED, since it needs root: {what}");
    }
    is
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn give(path: &Path) {
    for item in walkdir::WalkDir::new(path) {
        lchown(item.unwrap().path(), Some(OTHER), Some(OTHER)).unwrap();
    }
}

/// A command as the other user, with no rights of ours.
fn as_other(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    let id = OTHER.to_string();
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).arg(program);
    command
}

/// An install of root's whose data folders are the server's user's, who runs the server: the usual safe layout. What the
/// attacker puts into the server's environment is `env`.
fn of_root(env: &[(&str, &str)]) -> Install {
    let install = Install::new();
    mode(install.scratch(), 0o755);
    for folder in ["instance", "uploads"] {
        give(&install.root.join(folder));
    }
    install.write_settings("soak = \"50ms\"\n");
    install.write("backups/dump.sql", "a dump of the server's own\n");
    give(&install.root.join("backups"));
    start_as_other(&install, env);
    install
}

fn start_as_other(install: &Install, env: &[(&str, &str)]) {
    let server = install.scratch().join("standin");
    fs::copy(kit::standin(), &server).unwrap();
    let mut command = as_other(&server);
    command.arg("run.py").env("PORT", install.port.to_string()).envs(env.iter().copied());
    // A log that the server's user may not write would be replaced by one that he may.
    install.start_command(command);
}

/// A hook that would tell as whom it ran.
fn hook(install: &Install, proof: &Path) -> String {
    format!(
        "[server]\nport = {1}\nsoak = \"50ms\"\n[[hooks.before_stop]]\nrun = [\"sh\", \"-c\", \"id -u >'{0}/uid'; env >'{0}/env'\"]\n",
        proof.display(),
        install.port
    )
}

/// A folder in which anybody may leave proof of what he did.
fn proof(install: &Install) -> PathBuf {
    let proof = install.scratch().join("proof");
    fs::create_dir(&proof).unwrap();
    mode(&proof, 0o777);
    proof
}

fn ran_as(proof: &Path) -> String {
    fs::read_to_string(proof.join("uid")).unwrap_or_default().trim().to_string()
}

fn plant(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    lchown(path, Some(OTHER), Some(OTHER)).unwrap();
}

/// Every command, as root, for this folder. None of them may have done what the attacker wrote.
fn every_command(install: &Install, root: &Path) -> Vec<(String, Output)> {
    let bundle = install.save(&install.bundle("2.0"));
    let bundle = bundle.to_str().unwrap();
    let commands: [&[&str]; 8] = [
        &["status"],
        &["plan", bundle],
        &["doctor"],
        &["verify"],
        &["backups"],
        &["apply", bundle],
        &["restore", "--yes"],
        &["recover"],
    ];
    let run = |words: &&[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_updater"));
        command.args(["--root", root.to_str().unwrap(), "--json"]).args(*words).current_dir("/");
        (words.join(" "), kit::run(command))
    };
    commands.iter().map(run).collect()
}

#[test]
fn an_install_of_root_with_a_server_of_another_user_is_updated_rolled_back_and_restored() {
    if !is_root("the layout in which the code is root's and the data the server's user's") {
        return;
    }
    let install = of_root(&[]);
    let owner = |path: &str| fs::symlink_metadata(install.root.join(path)).unwrap().uid();
    install.apply(&install.bundle("2.0")).expect(0);
    assert_eq!(install.version(), "2.0");
    assert_eq!((owner("run.py"), owner("app/core.py"), owner("instance/app.db")), (0, 0, OTHER));
    install.apply(&Bundle::release("3.0", "WRITE uploads/a.txt broken\nEXIT = 1\n")).expect(3);
    assert_eq!((install.version().as_str(), install.read("uploads/a.txt").as_str()), ("2.0", "old upload\n"));
    assert_eq!(owner("uploads/a.txt"), OTHER);
    install.write("uploads/a.txt", "newer\n");
    let backups = install.updater(&["backups", "--json"]).expect(0).object();
    let id = backups["backups"][0]["id"].as_str().unwrap().to_string();
    install.updater(&["restore", &id, "--data", "--yes", "--json"]).expect(0);
    assert_eq!(install.read("uploads/a.txt"), "old upload\n");
    assert_eq!(owner("uploads/a.txt"), OTHER);
    assert_eq!(install.read("backups/dump.sql"), "a dump of the server's own\n");
    let runs_as_other = || {
        let status = fs::read_to_string(format!("/proc/{}/status", install.pid())).unwrap();
        assert!(status.contains(&format!("Uid:\t{OTHER}\t{OTHER}")), "{status}");
    };
    runs_as_other();
    // One that does not run is never started with root's rights either, nor with what root has in its environment.
    install.stop();
    fs::copy(kit::standin(), install.root.join("standin")).unwrap();
    let settings = format!(
        "[server]\nsoak = \"50ms\"\nport = {0}\ncommand = ['./standin', 'run.py']\nenv = {{ PORT = \"{0}\" }}\n",
        install.port
    );
    install.write("updater.toml", settings);
    let bundle = install.save(&install.bundle("4.0"));
    let mut command = install.command(&["apply", bundle.to_str().unwrap(), "--json"]);
    command.env("SECRET_OF_ROOT", "yes");
    kit::run(command).expect(0);
    assert_eq!(install.version(), "4.0");
    runs_as_other();
    let of_server = fs::read(format!("/proc/{}/environ", install.pid())).unwrap();
    assert!(!String::from_utf8_lossy(&of_server).contains("SECRET_OF_ROOT"));
}

#[test]
fn layouts_that_root_may_trust_go_on_working() {
    if !is_root("ordinary layouts of root's and of others'") {
        return;
    }
    // A release of root's that is linked as `current`, and settings that are linked from beside it.
    let install = Install::running();
    let beside = install.scratch().join("shared");
    fs::create_dir(&beside).unwrap();
    fs::write(beside.join("updater.toml"), "[server]\nsoak = \"50ms\"\n").unwrap();
    symlink("../shared/updater.toml", install.root.join("updater.toml")).unwrap();
    symlink("site", install.scratch().join("current")).unwrap();
    let bundle = install.save(&install.bundle("2.0"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_updater"));
    command.arg("--root").arg(install.scratch().join("current")).args(["--json", "apply"]).arg(&bundle);
    kit::run(command).expect(0);
    assert_eq!(install.version(), "2.0");
    // Everything of one user's, in a home of his own.
    let install = Install::new();
    mode(install.scratch(), 0o755);
    give(&install.root);
    start_as_other(&install, &[]);
    install.apply(&install.bundle("2.0")).expect(0);
    assert_eq!(install.version(), "2.0");
    assert_eq!(fs::metadata(install.root.join("run.py")).unwrap().uid(), OTHER);
}

#[test]
fn an_install_that_another_user_made_a_link_is_not_worked_on_by_root() {
    if !is_root("an install that its user replaced by a link") {
        return;
    }
    let install = Install::new();
    mode(install.scratch(), 0o755);
    let proof = proof(&install);
    let (home, shared) = (install.scratch().join("home"), install.scratch().join("shared"));
    fs::create_dir(&home).unwrap();
    fs::create_dir(&shared).unwrap();
    mode(&shared, 0o1777);
    for (name, text) in [("updater.toml", hook(&install, &proof)), ("run.py", "PORT = 1\n".to_string())] {
        plant(&shared.join(name), &text);
    }
    symlink(&shared, home.join("site")).unwrap();
    give(&home);
    for (words, output) in every_command(&install, &home.join("site")) {
        assert_ne!(ran_as(&proof), "0", "{words}: {output:?}");
    }
    let made = walkdir::WalkDir::new(&shared).min_depth(1).into_iter().map(|item| item.unwrap());
    let of_root: Vec<PathBuf> =
        made.filter(|item| item.metadata().unwrap().uid() == 0).map(|item| item.path().to_path_buf()).collect();
    assert!(of_root.is_empty(), "root wrote there: {of_root:?}");
    // A link to an install of root's: what root would do there is not the link owner's to decide.
    fs::remove_file(home.join("site")).unwrap();
    symlink(&install.root, home.join("site")).unwrap();
    lchown(home.join("site"), Some(OTHER), Some(OTHER)).unwrap();
    let before = install.tree();
    for (words, output) in every_command(&install, &home.join("site")) {
        let changes = ["apply", "restore"].iter().any(|word| words.starts_with(word));
        assert!(!changes || output.code == 1, "{words}: {output:?}");
    }
    assert_eq!(install.tree(), before);
    // The same folder, named outright: the others who may write in it make it nobody's.
    for (words, output) in every_command(&install, &shared) {
        assert_eq!((output.code, ran_as(&proof).as_str()), (1, ""), "{words}: {output:?}");
        assert!(output.stdout.contains("root-writable") && output.stdout.contains("chmod go-w"), "{words}: {output:?}");
    }
}

#[test]
fn an_install_of_root_that_others_may_write_in_is_refused_by_every_command() {
    if !is_root("an install of root's, 0775") {
        return;
    }
    let install = Install::running();
    let proof = proof(&install);
    install.write("updater.toml", hook(&install, &proof));
    for bits in [0o775, 0o757, 0o1777] {
        mode(&install.root, bits);
        lchown(&install.root, Some(0), Some(OTHER)).unwrap();
        let before = install.tree();
        for (words, output) in every_command(&install, &install.root) {
            assert_eq!((output.code, ran_as(&proof).as_str()), (1, ""), "{words}: {output:?}");
            assert!(output.stdout.contains("root-writable"), "{words}: {output:?}");
            assert!(output.stdout.contains(&format!("chmod go-w '{}'", install.root.display())), "{words}: {output:?}");
        }
        assert_eq!(install.tree(), before);
    }
    mode(&install.root, 0o755);
    install.apply(&install.bundle("2.0")).expect(0);
}

#[test]
fn what_another_user_planted_in_an_install_of_roots_is_not_obeyed() {
    if !is_root("settings and records that another user planted") {
        return;
    }
    let install = Install::running();
    mode(install.scratch(), 0o755);
    let proof = proof(&install);
    let refused = |what: &str, path: &Path| {
        for (words, output) in every_command(&install, &install.root) {
            assert_eq!((output.code, ran_as(&proof).as_str()), (1, ""), "{what}: {words}: {output:?}");
            assert!(output.stdout.contains("not-roots"), "{what}: {words}: {output:?}");
            assert!(output.stdout.contains(path.to_str().unwrap()), "{what}: {words}: {output:?}");
        }
        assert_eq!(install.version(), "1.0");
    };
    let settings = install.root.join("updater.toml");
    plant(&settings, &hook(&install, &proof));
    refused("settings of another's", &settings);
    fs::remove_file(&settings).unwrap();
    install.write("updater.toml", hook(&install, &proof));
    mode(&settings, 0o666);
    refused("settings that all may write", &settings);
    fs::remove_file(&settings).unwrap();
    let elsewhere = install.scratch().join("theirs.toml");
    plant(&elsewhere, &hook(&install, &proof));
    symlink(&elsewhere, &settings).unwrap();
    refused("a link of root's to settings of another's", &elsewhere);
    fs::remove_file(&settings).unwrap();
    let own = install.root.join(".updater");
    fs::create_dir(&own).unwrap();
    plant(&own.join("journal"), "{}\n");
    lchown(&own, Some(OTHER), Some(OTHER)).unwrap();
    refused("an own folder of another's", &own);
}

#[test]
fn a_backup_that_another_user_planted_is_none() {
    if !is_root("a planted backup, where the folder of backups is the server's user's") {
        return;
    }
    let install = of_root(&[]);
    install.apply(&install.bundle("2.0")).expect(0);
    install.apply(&install.bundle("3.0")).expect(0);
    let shelf = install.root.join("backups");
    let backups = || {
        let object = install.updater(&["backups", "--json"]).expect(0).object();
        let all = object["backups"].as_array().unwrap().iter();
        all.map(|one| one["id"].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    let real = backups();
    assert_eq!(real.len(), 2);
    // A copy of a real one, made to hold another program, in the real one's place and under a name of its own.
    let made = shelf.join(&real[0]);
    assert_eq!(fs::metadata(&made).unwrap().mode() & 0o7777, 0o700, "nobody else looks into it");
    for place in ["update_backup_20300101_000000", real[0].as_str()] {
        let planted = shelf.join("planted");
        let copied = Command::new("cp").args(["-r"]).arg(&made).arg(&planted).status().unwrap();
        assert!(copied.success());
        give(&planted);
        if place == real[0] {
            fs::rename(&made, shelf.join("put away")).unwrap();
        }
        fs::rename(&planted, shelf.join(place)).unwrap();
        assert!(!backups().contains(&"update_backup_20300101_000000".to_string()));
        let output = install.updater(&["restore", place, "--yes", "--json"]);
        assert_ne!(output.code, 0, "{output:?}");
        assert_eq!(install.version(), "3.0");
        if place != real[0] {
            fs::remove_dir_all(shelf.join(place)).unwrap();
        }
    }
}

#[test]
fn nothing_of_the_environment_of_another_users_server_reaches_a_program_of_roots() {
    if !is_root("the environment of a server of another user") {
        return;
    }
    let evil = [
        ("LD_PRELOAD", ""),
        ("PYTHONPATH", "/evil"),
        ("BASH_ENV", "/evil"),
        ("PIP_INDEX_URL", "http://evil.invalid/"),
        ("IFS", "/"),
        ("HOME", "/evil"),
        ("EVIL", "yes"),
    ];
    let install = of_root(&evil);
    let proof = proof(&install);
    install.write("updater.toml", hook(&install, &proof));
    let bundle = install.save(&install.bundle("2.0"));
    // Of root's own environment only what is harmless is passed on, too.
    let mut command = install.command(&["apply", bundle.to_str().unwrap(), "--json"]);
    command.env("SECRET_OF_ROOT", "yes").env("LC_ALL", "C");
    kit::run(command).expect(0);
    assert_eq!(ran_as(&proof), "0");
    let env = fs::read_to_string(proof.join("env")).unwrap();
    for name in ["LD_PRELOAD", "PYTHONPATH", "BASH_ENV", "PIP_INDEX_URL", "EVIL", "SECRET_OF_ROOT"] {
        assert!(!env.lines().any(|line| line.starts_with(&format!("{name}="))), "{name}: {env}");
    }
    assert!(!env.contains("/evil") && env.contains("LC_ALL=C\n") && env.contains("UPDATER_ROOT="), "{env}");
    // The server itself has its own environment again.
    let of_server = fs::read(format!("/proc/{}/environ", install.pid())).unwrap();
    assert!(String::from_utf8_lossy(&of_server).contains("EVIL=yes"));
}

#[test]
fn root_runs_no_program_on_which_another_user_has_a_say() {
    if !is_root("a hook whose program, or whose script, another user may change") {
        return;
    }
    let install = of_root(&[]);
    let proof = proof(&install);
    let script = install.root.join("tools/migrate.sh");
    fs::create_dir(install.root.join("tools")).unwrap();
    give(&install.root.join("tools"));
    plant(&script, &format!("#!/bin/sh\nid -u >'{}/uid'\n", proof.display()));
    mode(&script, 0o755);
    for run in ["[\"tools/migrate.sh\"]", "[\"sh\", \"tools/migrate.sh\"]"] {
        for when in ["before_stop", "after_swap"] {
            install.write(
                "updater.toml",
                format!("[server]\nport = {}\nsoak = \"50ms\"\n[[hooks.{when}]]\nrun = {run}\n", install.port),
            );
            let pid = install.pid();
            let output = install.apply(&install.bundle("2.0")).expect(1);
            assert_eq!(output.error_code(), "unsafe-program", "{output:?}");
            assert_eq!((ran_as(&proof).as_str(), install.pid()), ("", pid), "the server serves on");
        }
    }
    lchown(install.root.join("tools"), Some(0), Some(0)).unwrap();
    lchown(&script, Some(0), Some(0)).unwrap();
    install.apply(&install.bundle("2.0")).expect(0);
    assert_eq!(ran_as(&proof), "0");
}

/// Before the first receipt nobody knows as whom a server that does not run is started; root's own rights are not for a
/// program of another user's.
#[test]
fn root_starts_no_server_by_a_program_of_another_users() {
    if !is_root("a stopped server whose interpreter another user may change") {
        return;
    }
    let install = Install::new();
    mode(install.scratch(), 0o755);
    let proof = proof(&install);
    let python = install.root.join(".venv/bin/python");
    install.write(".venv/bin/python", format!("#!/bin/sh\nid -u >'{}/uid'\n", proof.display()));
    mode(&python, 0o755);
    install.write("updater.toml", format!("[server]\nport = {}\n", install.port));
    give(&install.root.join(".venv"));
    let output = install.apply(&install.bundle("2.0")).expect(1);
    assert_eq!((output.error_code().as_str(), ran_as(&proof).as_str()), ("unsafe-program", ""), "{output:?}");
}

#[test]
fn a_process_of_another_user_that_stands_in_the_install_is_no_server() {
    if !is_root("a process of another user in the folder of an install") {
        return;
    }
    let install = Install::new();
    mode(install.scratch(), 0o755);
    let port = kit::free_port();
    give(&install.root.join("instance"));
    let (program, script) = (install.scratch().join("standin"), install.scratch().join("mine.py"));
    fs::copy(kit::standin(), &program).unwrap();
    fs::write(&script, "VERSION = \"mine\"\n").unwrap();
    let mut command = as_other(&program);
    command.arg(&script).env("PORT", port.to_string()).current_dir(&install.root);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut bystander = Ended(command.spawn().unwrap());
    wait_until("the bystander listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let status = install.updater(&["status", "--json"]).expect(0).object();
    assert_eq!(status["server"]["state"], "stopped", "{status}");
    install
        .updater(&["apply", install.save(&install.bundle("2.0")).to_str().unwrap(), "--no-start", "--json"])
        .expect(0);
    assert!(bystander.0.try_wait().unwrap().is_none(), "it was ended");
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
}

/// A child that is ended with the test, by its own handle.
struct Ended(Child);
impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < until, "{what}: never");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_log_of_roots_in_a_folder_of_another_user_leads_nowhere() {
    if !is_root("the log in a folder that the server's user may write in") {
        return;
    }
    let install = of_root(&[]);
    let victim = install.scratch().join("victim");
    let log = install.root.join("instance/update_log.txt");
    let refused = install.bundle("2.0").file("../../evil.txt", "x");
    for make in [&(|| symlink(&victim, &log).unwrap()) as &dyn Fn(), &|| fs::hard_link(&victim, &log).unwrap(), &|| {
        rustix::fs::mkfifoat(rustix::fs::CWD, &log, rustix::fs::Mode::from_raw_mode(0o666)).unwrap()
    }] {
        fs::write(&victim, "of root's\n").unwrap();
        let _ = fs::remove_file(&log);
        make();
        install.apply(&refused).expect(6);
        install.apply(&install.bundle(&format!("2.{}", install.pid()))).expect(0);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "of root's\n");
        assert_eq!(fs::metadata(&victim).unwrap().uid(), 0);
    }
    fs::remove_file(&log).unwrap();
    symlink(install.scratch().join("new"), &log).unwrap();
    install.apply(&refused).expect(6);
    assert!(!install.scratch().join("new").exists(), "root made a file behind the link");
}

#[test]
fn a_backup_is_nobody_elses_to_look_into_and_keeps_the_modes_of_folders() {
    let install = Install::running();
    install.write("config/ssl/key.pem", "secret\n");
    for folder in ["config", "config/ssl", "instance"] {
        mode(&install.root.join(folder), 0o700);
    }
    install.write(".env", "SECRET=1\n");
    mode(&install.root.join(".env"), 0o600);
    install.apply(&install.bundle("2.0")).expect(0);
    let bits = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    let shelf = fs::read_dir(install.root.join("backups")).unwrap();
    let backup = shelf.map(|item| item.unwrap().path()).next().unwrap();
    assert_eq!(bits(&backup), 0o700);
    assert_eq!(bits(&install.root.join(".updater")), 0o700);
    let mut seen = 0;
    for item in walkdir::WalkDir::new(&backup).into_iter().map(|item| item.unwrap()) {
        let name = item.file_name().to_string_lossy().into_owned();
        let wanted = match name.as_str() {
            "config" | "ssl" | "instance" => 0o700,
            ".env" => 0o600,
            _ => continue,
        };
        seen += 1;
        assert_eq!(bits(item.path()), wanted, "{}", item.path().display());
    }
    assert!(seen >= 3, "the backup holds them");
    install.apply(&Bundle::release("3.0", "EXIT = 1\n")).expect(3);
    for folder in ["config", "config/ssl", "instance"] {
        assert_eq!(bits(&install.root.join(folder)), 0o700, "{folder} after a rollback");
    }
}

/// Ends within the time, or the test fails, and the program with it.
fn in_time(what: &str, mut command: Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Ended(command.spawn().unwrap());
    let until = Instant::now() + Duration::from_secs(60);
    while child.0.try_wait().unwrap().is_none() {
        assert!(Instant::now() < until, "{what}: it waits for ever");
        std::thread::sleep(Duration::from_millis(5));
    }
    let status = child.0.wait().unwrap();
    let text = |pipe: &mut dyn std::io::Read| {
        let mut text = String::new();
        pipe.read_to_string(&mut text).unwrap();
        text
    };
    let stdout = text(child.0.stdout.as_mut().unwrap());
    let stderr = text(child.0.stderr.as_mut().unwrap());
    let code = status.code().unwrap_or_else(|| panic!("{what}: it was ended by a signal: {stdout}{stderr}"));
    Output { code, stdout, stderr }
}

/// Each place that is read, and what may stand there instead of a plain file: nobody waits, swallows it or panics.
#[test]
fn no_place_that_is_read_is_waited_for_or_swallowed_whole() {
    let places = [
        "updater.toml",
        ".env",
        "run.py",
        "app_config.json",
        "requirements.txt",
        "instance/update_log.txt",
        ".updater/journal",
        ".updater/journal.blocked",
        ".updater/receipt.json",
        ".updater/status.json",
        ".updater/last.json",
        ".updater/lock",
        "backups/BACKUP/backup.json",
        "app/remote_updater.py",
    ];
    let install = Install::adopted();
    install.apply(&install.bundle("1.5")).expect(0);
    let shelf = fs::read_dir(install.root.join("backups")).unwrap();
    let backup = shelf.map(|item| item.unwrap().file_name().into_string().unwrap()).next().unwrap();
    let bundle = install.save(&install.bundle("2.0").file("requirements.txt", "flask\n"));
    let scratch = install.scratch().join("put away");
    for place in places {
        let path = install.root.join(place.replace("BACKUP", &backup));
        for kind in ["a pipe", "a link to a device", "a folder", "a file of 2 GB"] {
            let was = fs::rename(&path, &scratch).is_ok();
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match kind {
                "a pipe" => {
                    let bits = rustix::fs::Mode::from_raw_mode(0o666);
                    rustix::fs::mkfifoat(rustix::fs::CWD, &path, bits).unwrap();
                }
                "a link to a device" => symlink("/dev/zero", &path).unwrap(),
                "a folder" => fs::create_dir(&path).unwrap(),
                _ => fs::File::create(&path).unwrap().set_len(2 << 30).unwrap(),
            }
            let what = format!("{place} is {kind}");
            for words in [&["status"][..], &["plan", bundle.to_str().unwrap()], &["doctor"], &["backups"]] {
                let mut command = install.command(words);
                // What is swallowed whole does not fit.
                command.arg("--json");
                let mut limited = Command::new("prlimit");
                limited.arg("--as=1500000000").arg(command.get_program()).args(command.get_args());
                let output = in_time(&format!("{what}: {words:?}"), limited);
                assert!(!output.stderr.contains("panicked"), "{what}: {output:?}");
                assert!(!output.stdout.contains("memory"), "{what} was swallowed: {output:?}");
            }
            if kind == "a folder" {
                fs::remove_dir_all(&path).unwrap()
            } else {
                fs::remove_file(&path).unwrap()
            }
            if was {
                fs::rename(&scratch, &path).unwrap();
            }
        }
    }
    install.apply_with(&bundle, &[]).expect(0);
}

/// A server that takes connections and never answers: whoever waits for it is ended by a signal, long before the patience
/// with servers is over.
#[test]
fn a_signal_ends_the_wait_for_a_server_that_does_not_answer() {
    for is_others in [false, true] {
        if is_others && !is_root("the same through root's half") {
            continue;
        }
        let install = Install::new();
        if is_others {
            mode(install.scratch(), 0o755);
            give(&install.root);
            start_as_other(&install, &[]);
        } else {
            install.start();
        }
        let bundle = install.save(&install.bundle("2.0"));
        let pid = rustix::process::Pid::from_raw(install.pid() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        let mut command = install.command(&["apply", bundle.to_str().unwrap(), "--json"]);
        let mut child = Ended(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.0.stdout.take().unwrap()));
        lines.find(|line| line.as_ref().unwrap().contains("looking for the server")).unwrap().unwrap();
        // The question is under way by then; if not, the signal is seen before it.
        std::thread::sleep(Duration::from_millis(500));
        let updater = rustix::process::Pid::from_child(&child.0);
        let asked = Instant::now();
        rustix::process::kill_process(updater, rustix::process::Signal::TERM).unwrap();
        let rest: String = lines.map(|line| line.unwrap() + "\n").collect();
        let status = child.0.wait().unwrap();
        let took = asked.elapsed();
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
        assert_eq!(status.code(), Some(1), "{rest}");
        assert!(rest.contains("\"code\":\"interrupted\""), "{rest}");
        // Undisturbed, the two questions of five seconds each would go on for ten.
        assert!(took < Duration::from_secs(3), "it took {took:?}");
        eprintln!("a signal was answered after {took:?}");
    }
}

#[test]
fn an_install_that_is_moved_while_the_updater_waits_is_left_alone() {
    let install = Install::new();
    install.write_settings("soak = \"50ms\"\n");
    let own = install.root.join(".updater");
    fs::create_dir(&own).unwrap();
    let held = fs::File::create(own.join("lock")).unwrap();
    held.lock().unwrap();
    let bundle = install.save(&install.bundle("2.0"));
    let mut command = install.command(&["apply", bundle.to_str().unwrap(), "--no-start", "--wait", "60s", "--json"]);
    let mut child = Ended(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    // It holds the lock file open by the time that it waits for it.
    let (pid, lock) = (child.0.id(), fs::metadata(own.join("lock")).unwrap().ino());
    wait_until("it waits for the lock", || {
        let handles = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        handles.filter_map(|handle| fs::metadata(handle.path()).ok()).any(|is| is.ino() == lock)
    });
    let moved = install.scratch().join("moved");
    fs::rename(&install.root, &moved).unwrap();
    let other = Command::new("cp").arg("-r").arg(&moved).arg(&install.root).status().unwrap();
    assert!(other.success());
    drop(held);
    let mut text = String::new();
    std::io::Read::read_to_string(child.0.stdout.as_mut().unwrap(), &mut text).unwrap();
    assert_eq!(child.0.wait().unwrap().code(), Some(1), "{text}");
    assert!(text.contains("\"code\":\"root-moved\""), "{text}");
    for root in [&moved, &install.root] {
        assert!(fs::read_to_string(root.join("run.py")).unwrap().contains("1.0"), "{}", root.display());
    }
}
