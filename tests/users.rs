//! Whose files and processes: the server comes back as its own user, and nothing of the caller's stays
//! in its install. Run as root it uses another user for the server, else the caller himself.
#![cfg(target_os = "linux")]

mod kit;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::process::Command;

use kit::{Bundle, Install};

/// `nobody` on every Linux; the groups are ids that need no entry anywhere.
const USER: u32 = 65534;
const GROUPS: &str = "4711,65534";

fn uid() -> u32 {
    fs::metadata("/proc/self").unwrap().uid()
}

/// The lines of `/proc/PID/status` that say who a process is.
fn identity(pid: u64) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let wanted = |line: &&str| ["Uid:", "Gid:", "Groups:"].iter().any(|name| line.starts_with(name));
    status.lines().filter(wanted).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

fn give_away(install: &Install) {
    fs::set_permissions(install.scratch(), fs::Permissions::from_mode(0o755)).unwrap();
    for item in walkdir::WalkDir::new(&install.root) {
        lchown(item.unwrap().path(), Some(USER), Some(USER)).unwrap();
    }
}

/// Starts the server of an install as `USER` with `GROUPS` where we may, else as ourselves.
fn start(install: &Install) -> u32 {
    let server = install.scratch().join("standin");
    fs::copy(kit::standin(), &server).unwrap();
    let mut command = if uid() == 0 {
        give_away(install);
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--groups", GROUPS]).arg(server);
        command
    } else {
        Command::new(server)
    };
    command.arg("run.py").env("PORT", install.port.to_string());
    install.start_command(command);
    fs::metadata(&install.root).unwrap().uid()
}

/// All but the log that the caller's own shell opened for the first server.
fn assert_owned(install: &Install, owner: u32) {
    for item in walkdir::WalkDir::new(&install.root) {
        let item = item.unwrap();
        if item.file_name() == "server.log" {
            continue;
        }
        assert_eq!(item.metadata().unwrap().uid(), owner, "the owner of {}", item.path().display());
    }
}

#[test]
fn the_server_comes_back_as_its_own_user_and_the_install_stays_his() {
    let install = Install::new();
    let owner = start(&install);
    assert_eq!(owner, if uid() == 0 { USER } else { uid() });
    let before = identity(install.pid());
    install.apply(&install.bundle("2.0")).expect(0);
    assert_eq!(install.version(), "2.0");
    assert_eq!(identity(install.pid()), before);
    assert_owned(&install, owner);
}

#[test]
fn after_a_rollback_too() {
    let install = Install::new();
    let owner = start(&install);
    let before = identity(install.pid());
    install.apply(&Bundle::release("2.0", "EXIT = 1\n")).expect(3);
    assert_eq!(install.version(), "1.0");
    assert_eq!(identity(install.pid()), before);
    assert_owned(&install, owner);
}

#[test]
fn after_a_refusal_too() {
    let install = Install::new();
    let owner = start(&install);
    install.apply(&Bundle::release("2.0", "").file("../../evil.txt", "x")).expect(6);
    assert_eq!(install.version(), "1.0");
    assert_owned(&install, owner);
}

#[test]
fn hooks_run_as_the_owner_and_what_they_make_is_his() {
    let install = Install::new();
    install.write("cache/made.txt", "old\n");
    let hook = "id -u >cache/uid.txt; id -G >cache/groups.txt; echo new >cache/made.txt; test $(cat cache/code) = 0";
    install.write("cache/code", "0");
    install.write(
        "updater.toml",
        format!(
            "[server]\nsoak = \"50ms\"\n[[hooks.before_stop]]\nrun = [\"sh\", \"-c\", \"id -u >$UPDATER_WORK/uid\"]\n\
             [[hooks.after_swap]]\nrun = [\"sh\", \"-c\", \"{hook} && cmp cache/uid.txt $UPDATER_WORK/uid\"]\nchanges = [\"cache\"]\n"
        ),
    );
    let owner = start(&install);
    install.apply(&install.bundle("2.0")).expect(0);
    assert_eq!(install.read("cache/uid.txt"), format!("{owner}\n"));
    assert_owned(&install, owner);
    install.write("cache/code", "7");
    let before = install.tree();
    install.apply(&install.bundle("3.0")).expect(3);
    assert_eq!(install.tree(), before);
    assert_eq!(install.version(), "2.0");
    assert_owned(&install, owner);
}

#[test]
fn folders_that_even_their_owner_may_not_write_in_block_nothing() {
    let install = Install::new();
    install.write("cache/deep/file", "old\n");
    let hook = "mkdir -p $UPDATER_WORK/m/n app/sub/o cache/new; chmod 555 $UPDATER_WORK/m/n $UPDATER_WORK/m app/sub/o cache/new; \
                test $(cat cache/deep/file) = old";
    install.write(
        "updater.toml",
        format!("[server]\nsoak = \"50ms\"\n[[hooks.after_swap]]\nrun = [\"sh\", \"-c\", \"{hook}\"]\nchanges = [\"cache\"]\n"),
    );
    fs::set_permissions(install.root.join("cache/deep"), fs::Permissions::from_mode(0o555)).unwrap();
    start(&install);
    let bundle = |version: &str| install.bundle(version).file("app/sub/x.py", "");
    install.apply(&bundle("2.0")).expect(0);
    assert_eq!(install.version(), "2.0");
    fs::write(install.root.join("cache/deep/file"), "other\n").unwrap();
    install.apply(&bundle("3.0")).expect(3);
    assert_eq!(install.version(), "2.0");
    let left =
        fs::read_dir(install.root.join(".updater")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let left: Vec<String> =
        left.filter(|name| ["journal", "staging", "trash", "originals"].contains(&name.as_str())).collect();
    assert!(left.is_empty(), "{left:?}");
    for folder in ["cache/deep", "cache/new"] {
        fs::set_permissions(install.root.join(folder), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// A group that the owner is not in: what is ours alone must not fail for it, and a file of it is named.
#[test]
fn files_of_a_group_that_the_owner_is_not_in_are_named_and_an_install_of_it_works() {
    if uid() != 0 {
        eprintln!("only root can give files to other groups: not tried");
        return;
    }
    const OTHER: u32 = 4713;
    let install = Install::new();
    start(&install);
    let group = |path: &std::path::Path| lchown(path, Some(USER), Some(OTHER)).unwrap();
    for folder in ["", "app", "instance", "uploads"] {
        group(&install.root.join(folder));
    }
    install.apply(&install.bundle("2.0").file("app/deep/er.py", "")).expect(0);
    assert_eq!(install.version(), "2.0");
    group(&install.root.join("app/core.py"));
    let output = install.apply(&install.bundle("3.0")).expect(1);
    assert_eq!(output.error_code(), "cannot-own");
    let remedy = output.finished()["error"]["remedy"].as_str().unwrap().to_string();
    assert!(remedy.contains("into the group 4713"), "{remedy}");
    assert_eq!(install.version(), "2.0");
}

/// Only root can have a server of another user's.
#[test]
fn the_user_of_a_port_that_we_may_not_look_into_is_named() {
    if uid() != 0 {
        eprintln!("only root can start a server as another user: not tried");
        return;
    }
    let install = Install::running();
    let tool = install.scratch().join("updater");
    fs::copy(env!("CARGO_BIN_EXE_updater"), &tool).unwrap();
    give_away(&install);
    let bundle = install.save(&install.bundle("2.0"));
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups"]).arg(tool);
    command.arg("--root").arg(&install.root).arg("apply").arg(bundle).args([
        "--port",
        &install.port.to_string(),
        "--json",
    ]);
    let pid = install.pid();
    let output = kit::run(command).expect(1);
    let error = output.finished()["error"].clone();
    assert_eq!(error["code"], "port-foreign", "{error}");
    assert!(error["message"].as_str().unwrap().contains("a process of the user root"), "{error}");
    assert!(error["remedy"].as_str().unwrap().contains("as root"), "{error}");
    assert_eq!((install.pid(), install.version().as_str()), (pid, "1.0"));
}

#[test]
fn a_bundle_that_root_alone_may_read_is_handed_over() {
    let install = Install::new();
    let owner = start(&install);
    let folder = install.scratch().join("private");
    fs::create_dir(&folder).unwrap();
    let path = folder.join("b.zip");
    fs::write(&path, install.bundle("2.0").bytes()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    let plan = install.updater(&["plan", path.to_str().unwrap(), "--json"]).expect(0).object();
    assert_eq!(plan["bundle"]["files"], 4, "{plan}");
    assert!(!install.exists(".updater"));
    install.apply_with(&path, &[]).expect(0);
    assert_eq!(install.version(), "2.0");
    assert_owned(&install, owner);
}

/// Links in the install that lead to a folder and a file of root's; neither may change.
fn lead_nowhere(links: &[(&str, &str)]) {
    let install = Install::new();
    start(&install);
    let kept = install.scratch().join("kept");
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join("log.txt"), "of root's\n").unwrap();
    let closed = |mode| fs::set_permissions(&kept, fs::Permissions::from_mode(mode)).unwrap();
    fs::create_dir(install.root.join(".updater")).unwrap();
    for (link, to) in links {
        std::os::unix::fs::symlink(kept.join(to), install.root.join(link)).unwrap();
    }
    if uid() == 0 {
        give_away(&install);
    } else {
        fs::set_permissions(kept.join("log.txt"), fs::Permissions::from_mode(0o400)).unwrap();
    }
    closed(if uid() == 0 { 0o755 } else { 0o500 });
    let output = install.apply(&install.bundle("2.0"));
    closed(0o755);
    assert!([0, 1].contains(&output.code), "{output:?}");
    assert_eq!(fs::read_to_string(kept.join("log.txt")).unwrap(), "of root's\n", "{links:?}");
    assert_eq!(fs::metadata(&kept).unwrap().uid(), uid());
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 1, "something was written behind {links:?}");
    assert!(["1.0", "2.0"].contains(&install.version().as_str()));
}

#[test]
fn a_log_behind_a_link_of_the_owners_is_not_made_by_root() {
    let install = Install::new();
    start(&install);
    let kept = install.scratch().join("kept");
    fs::create_dir(&kept).unwrap();
    let closed = |mode| fs::set_permissions(&kept, fs::Permissions::from_mode(mode)).unwrap();
    closed(if uid() == 0 { 0o755 } else { 0o500 });
    std::os::unix::fs::symlink(&kept, install.root.join("uploads/logs")).unwrap();
    let log = install.root.join("uploads/logs/x.log");
    for arguments in [&["status"][..], &["plan", "nowhere.zip"], &["apply", "nowhere.zip"]] {
        install.updater(&[arguments, &["--log-file", log.to_str().unwrap()]].concat());
    }
    closed(0o755);
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 0, "root wrote behind the link");
}

#[test]
fn links_that_the_owner_made_lead_root_nowhere() {
    lead_nowhere(&[("instance/update_log.txt", "log.txt"), ("instance/server_update_stdout.log", "log.txt")]);
    lead_nowhere(&[(".updater/log", ""), (".updater/events", "")]);
    lead_nowhere(&[(".updater/staging", "")]);
    lead_nowhere(&[("backups", "")]);
}

/// A journal of an update that was interrupted before it moved anything, as its owner could write it.
fn forge(install: &Install, argv: &[&str], uid: u32, started: Option<updater::system::ProcessId>) {
    forge_as(install, argv, (uid, uid), started);
}

/// The same, for a user and a group.
fn forge_as(install: &Install, argv: &[&str], (uid, gid): (u32, u32), started: Option<updater::system::ProcessId>) {
    use updater::base::path::RelPath;
    use updater::state::dir::StateDir;
    use updater::state::journal::{Baselines, Begin, Journal, Moves, Record};
    use updater::system::{Credentials, LaunchSpec, processes};
    let null = std::path::PathBuf::from("/dev/null");
    let before: updater::state::baseline::HealthBaseline = serde_json::from_value(serde_json::json!({
        "running": true, "ports": [install.port], "asked_port": install.port, "protocol": "http", "path": "/", "status": 200,
    })).unwrap();
    let begin = Begin {
        format: updater::state::journal::FORMAT,
        update_id: "20260101T000000Z-0000".into(),
        command: "apply".into(),
        root: install.root.clone(),
        backup: "update_backup_20260101_000000".into(),
        backup_dir: RelPath::parse("backups").unwrap(),
        from_version: None,
        to_version: None,
        start_file: RelPath::parse("run.py").unwrap(),
        launch: Some(LaunchSpec {
            argv: argv.iter().map(|word| word.to_string()).collect(),
            cwd: install.root.clone(),
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            stdout: null.clone(),
            stderr: null,
            credentials: Some(Credentials { uid, gid, groups: vec![gid], umask: 0o022, user: uid.to_string() }),
        }),
        new_launch: None,
        was_running: true,
        service: None,
        before: Baselines { old: Some(before.clone()), new: Some(before) },
        stop_timeout_ms: 1000,
        health_timeout_ms: 1500,
        soak_ms: 0,
    };
    fs::create_dir_all(install.root.join(".updater")).unwrap();
    let mut journal = Journal::create(&StateDir::of(&install.root), begin, 0).unwrap();
    journal.append(Record::Stopping).unwrap();
    if started.is_some() {
        journal.append(Record::Swapping { moves: Moves::default() }).unwrap();
        journal.append(Record::Starting { boot: processes::boot_id().unwrap(), process: started }).unwrap();
    }
    if self::uid() == 0 {
        give_away(install);
    }
}

#[test]
fn a_forged_journal_makes_root_start_nothing_as_somebody_else() {
    let install = Install::new();
    let proof = install.scratch().join("proof");
    fs::create_dir(&proof).unwrap();
    fs::set_permissions(&proof, fs::Permissions::from_mode(0o777)).unwrap();
    let line = format!("id -u >'{}/uid'; exec sleep 1", proof.display());
    forge(&install, &["sh", "-c", &line], 0, None);
    let output = install.updater(&["recover", "--json"]).expect(4);
    let ran = fs::read_to_string(proof.join("uid")).unwrap_or_default();
    if uid() == 0 {
        assert_eq!(ran, "", "it was started: {output:?}");
        assert!(output.stdout.contains("as nobody alone"), "{output:?}");
    } else {
        assert_ne!(ran.trim(), "0");
    }
}

/// A set-group-id program that the attacker lets run gives him no group, in whatever order its ids come.
#[test]
fn a_set_group_id_program_of_his_gives_the_owner_no_group() {
    if uid() != 0 {
        eprintln!("only root can make a set-group-id program of another group: not tried");
        return;
    }
    const SHADOW: u32 = 4714;
    let install = Install::new();
    fs::set_permissions(install.scratch(), fs::Permissions::from_mode(0o755)).unwrap();
    let proof = install.scratch().join("proof");
    fs::create_dir(&proof).unwrap();
    fs::set_permissions(&proof, fs::Permissions::from_mode(0o777)).unwrap();
    let program = install.scratch().join("sleep");
    fs::copy("/bin/sleep", &program).unwrap();
    lchown(&program, Some(0), Some(SHADOW)).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o2755)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups"]);
    let mut running = command.arg(&program).arg("60").spawn().unwrap();
    let is_set =
        || identity(running.id().into()).iter().any(|line| line == &format!("Gid: {USER} {SHADOW} {SHADOW} {SHADOW}"));
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !is_set() {
        assert!(std::time::Instant::now() < until, "the program never got its group");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let line = format!("id -g >'{}/gid'; exec sleep 1", proof.display());
    forge_as(&install, &["sh", "-c", &line], (USER, SHADOW), None);
    let output = install.updater(&["recover", "--json"]).expect(4);
    running.kill().unwrap();
    running.wait().unwrap();
    assert_eq!(fs::read_to_string(proof.join("gid")).unwrap_or_default(), "", "it was started: {output:?}");
    assert!(output.stdout.contains(&format!("is not in the group {SHADOW}")), "{output:?}");
}

#[test]
fn a_forged_journal_ends_nobody_elses_process() {
    let install = Install::new();
    let mut command = Command::new("sleep");
    if uid() == 0 {
        command = Command::new("setpriv");
        command.args(["--reuid", "65533", "--regid", "65533", "--clear-groups", "sleep"]);
    }
    let mut bystander = command.arg("60").spawn().unwrap();
    let id = updater::system::processes::identity(bystander.id()).unwrap().unwrap();
    // Without root our own process is what we may end: then the id is one that was given away again.
    let meant = if uid() == 0 { id } else { updater::system::ProcessId { start: id.start + 1, ..id } };
    forge(&install, &["true"], if uid() == 0 { USER } else { uid() }, Some(meant));
    install.updater(&["recover", "--json"]).expect(4);
    assert!(bystander.try_wait().unwrap().is_none(), "the bystander was ended");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[test]
fn a_pid_that_another_process_has_by_now_is_never_signalled() {
    let install = Install::new();
    let mut command = Command::new("sleep");
    if uid() == 0 {
        // One that the owner of the install may well signal.
        command = Command::new("setpriv");
        command.args(["--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups", "sleep"]);
    }
    let mut bystander = command.arg("61").spawn().unwrap();
    let id = updater::system::processes::identity(bystander.id()).unwrap().unwrap();
    let stale = updater::system::ProcessId { start: id.start - 1, ..id };
    forge(&install, &["true"], if uid() == 0 { USER } else { uid() }, Some(stale));
    install.updater(&["recover", "--json"]).expect(4);
    assert!(bystander.try_wait().unwrap().is_none(), "the bystander was ended");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

/// Starts an update to a version that is slow to come up.
fn begin(install: &Install) -> std::process::Child {
    let bundle = install.save(&Bundle::release("2.0", "DELAY_MS = 2500\n"));
    let mut command = install.command(&["apply", bundle.to_str().unwrap(), "--json"]);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
}

fn wait_for_health(install: &Install) {
    let events = install.root.join(".updater/events");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let is_there = || {
        let files = fs::read_dir(&events).into_iter().flatten().flatten();
        let mut texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
        texts.any(|text| text.contains("\"stage\":\"health\""))
    };
    while !is_there() {
        assert!(std::time::Instant::now() < deadline, "the stage never came");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn lock_is_free(install: &Install) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let lock = fs::File::open(install.root.join(".updater/lock")).unwrap();
    while lock.try_lock().is_err() {
        assert!(std::time::Instant::now() < deadline, "the other half goes on for ever");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn a_kill_of_either_half_is_recovered_from_and_leaves_nothing_of_roots() {
    for half in ["root's", "the owner's"] {
        let install = Install::new();
        let owner = start(&install);
        let mut first = begin(&install);
        wait_for_health(&install);
        let child = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()?;
            let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
            (parent == first.id() && line.contains("apply")).then(|| entry.file_name().to_str()?.parse::<u32>().ok())?
        });
        let victim = if half == "root's" { first.id() } else { child.unwrap_or(first.id()) };
        kit::kill(victim);
        first.wait().unwrap();
        lock_is_free(&install);
        install.updater(&["recover", "--json"]).expect(0);
        assert!(["1.0", "2.0"].contains(&install.version().as_str()), "{half}");
        assert!(!install.exists(".updater/journal"), "{half}");
        assert_owned(&install, owner);
    }
}

#[test]
fn a_folder_of_the_program_that_its_owner_may_not_enter_is_named_with_its_remedy() {
    let install = Install::new();
    install.write("app/closed/part.py", "# part\n");
    start(&install);
    let closed = install.root.join("app/closed");
    let bundle = install.save(&Bundle::first().file("app/closed/part.py", "# part\n").file("app/closed/b/c.py", ""));
    // Neither to be entered nor read; to be read alone.
    for mode in [0o000, 0o600] {
        fs::set_permissions(&closed, fs::Permissions::from_mode(mode)).unwrap();
        let adopted = install.updater(&["adopt", bundle.to_str().unwrap(), "--json"]);
        let planned = install.updater(&["plan", bundle.to_str().unwrap(), "--json"]);
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
        let adopted = adopted.expect(1).object()["error"].clone();
        let planned = planned.expect(1).object()["problems"][0].clone();
        for error in [adopted, planned] {
            assert_eq!(error["code"].as_str(), Some("unreadable-data"), "{error}");
            assert!(closed.ends_with(error["path"].as_str().unwrap()), "{error}");
            assert!(error["remedy"].as_str().unwrap().contains("chmod u+rw"), "{error}");
        }
    }
    install.updater(&["adopt", bundle.to_str().unwrap()]).expect(0);
}
