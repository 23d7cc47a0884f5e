//! Hooks: programs of the settings in the middle of an update, what they may write, and how it is put back.
//!
//! The hooks are shell scripts that ship with the release or lie in the install, as an operator would have them.
#![cfg(unix)]

mod kit;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use kit::{Bundle, Install, Output};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// A release with a script of its own, and the settings that run it after the swap.
fn install_with(hook: &str) -> Install {
    let install = Install::running();
    install.write("cache/made.txt", "made by 1.0\n");
    install.write("cache/deep/part.bin", "a part\n");
    install.write("updater.toml", format!("[server]\nsoak = \"100ms\"\n{hook}"));
    install
}

fn release(version: &str, more: &str, script: &str) -> Bundle {
    Bundle::release(version, more).file("scripts/hook.sh", format!("set -eu\n{script}\n"))
}

const AFTER: &str = "[[hooks.after_swap]]\nrun = [\"sh\", \"scripts/hook.sh\"]\n";

fn after(more: &str) -> String {
    format!("{AFTER}{more}\n")
}

/// The parts of a tree that an undo must give back to the bit: also where each file is (its inode).
fn inodes(folder: &Path) -> Vec<(String, u64, u32, i64)> {
    let mut all: Vec<_> = walkdir::WalkDir::new(folder)
        .into_iter()
        .map(Result::unwrap)
        .map(|item| {
            let data = item.path().symlink_metadata().unwrap();
            (item.path().display().to_string(), data.ino(), data.mode(), data.mtime_nsec())
        })
        .collect();
    all.sort();
    all
}

fn hook_stage(output: &Output) -> Value {
    let ends = ["done", "skipped", "failed"];
    let events = output.events();
    let ended = |event: &&Value| event["stage"] == "hooks" && ends.iter().any(|end| event["state"] == *end);
    events.iter().find(ended).cloned().unwrap_or(Value::Null)
}

#[track_caller]
fn assert_nothing_is_left(install: &Install) {
    for name in ["journal", "staging", "trash", "originals"] {
        assert!(!install.exists(&format!(".updater/{name}")), "{name} is left");
    }
}

#[test]
fn a_hook_after_the_swap_sees_the_new_tree_and_its_work_stays() {
    let install = install_with(&after("changes = [\"cache\", \"new/deep\"]"));
    let script = r#"cat app/new.py >cache/made.txt
rm cache/deep/part.bin
mkdir -p new/deep; echo made >new/deep/file
printf '%s|' "$UPDATER_COMMAND" "$UPDATER_ROOT" "$UPDATER_STAGE" "$STANDIN_MARK" "$PWD" >cache/env.txt
test ! -e run.py; test -f "$UPDATER_START_FILE"; test -d "$UPDATER_WORK""#;
    let output = install.apply(&release("2.0", "", script)).expect(0);
    assert_eq!(hook_stage(&output)["state"], "done");
    assert_eq!(install.version(), "2.0");
    assert_eq!(install.read("cache/made.txt"), "# new in 2.0\n");
    assert_eq!(install.read("new/deep/file"), "made\n");
    assert!(!install.exists("cache/deep/part.bin") && install.exists("cache/deep"));
    let root = install.root.display();
    assert_eq!(install.read("cache/env.txt"), format!("apply|{root}|after_swap|kept|{root}|"));
    assert_nothing_is_left(&install);
    install.updater(&["verify"]).expect(0);
}

#[test]
fn what_the_server_writes_until_its_stop_is_in_what_the_hook_gets() {
    let install = install_with(&after("changes = [\"cache\"]"));
    let (root, bundle) = (install.root.clone(), release("2.0", "", "cp cache/live.txt cache/seen.txt"));
    // As a server would: it writes, makes and removes, up to the moment that it is stopped.
    let writer = std::thread::spawn(move || {
        let journal = root.join(".updater/journal");
        let is_stopped = || fs::read(&journal).is_ok_and(|text| String::from_utf8_lossy(&text).contains("stopping"));
        for round in 0u64.. {
            if is_stopped() {
                return round - 1;
            }
            fs::write(root.join("cache/live.txt"), format!("{round}\n")).unwrap();
            let folder = root.join(format!("cache/round/{}", round % 2));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("file"), format!("{round}\n")).unwrap();
            fs::remove_dir_all(root.join(format!("cache/round/{}", (round + 1) % 2))).ok();
            std::thread::sleep(Duration::from_millis(1));
        }
        0
    });
    install.apply(&bundle).expect(0);
    let last = writer.join().unwrap();
    assert!(last > 0);
    for name in ["cache/live.txt", "cache/seen.txt", &format!("cache/round/{}/file", last % 2)] {
        assert_eq!(install.read(name), format!("{last}\n"), "{name}");
    }
    assert!(!install.exists(&format!("cache/round/{}", (last + 1) % 2)), "what was removed came back");
}

#[test]
fn a_hook_that_fails_takes_the_update_and_all_its_own_work_back() {
    let install = install_with(&after("changes = [\"cache\", \"instance\", \"made\"]"));
    symlink("made.txt", install.root.join("cache/link")).unwrap();
    fs::set_permissions(install.root.join("cache/deep"), fs::Permissions::from_mode(0o750)).unwrap();
    let (before, tree, old) = (inodes(&install.root.join("cache")), install.tree(), install.pid());
    let script = r#"echo altered >cache/made.txt; rm -r cache/deep cache/link; echo new >cache/new
echo new >instance/made-by-hook.txt; echo damaged >instance/app.db; mkdir made; echo x >made/file
echo "the reason for it" >&2; exit 7"#;
    let output = install.apply(&release("2.0", "", script)).expect(3);
    assert_eq!(output.error_code(), "hook-failed");
    let error = output.finished()["error"].clone();
    assert!(error["message"].as_str().unwrap().contains("ended with exit code 7"), "{error}");
    let told = output.events().into_iter().find(|event| event["code"] == "hook-output").expect("its output is shown");
    assert!(told["message"].as_str().unwrap().contains("the reason for it"), "{told}");
    assert_eq!(inodes(&install.root.join("cache")), before, "the very originals are back");
    assert_eq!(install.tree(), tree);
    assert_eq!((install.version().as_str(), install.note().as_str()), ("1.0", "old row"));
    assert_ne!(install.pid(), old);
    // Nothing that hooks made stays in the tree; it is set aside with the backup.
    assert!(!install.exists("made") && !install.exists("instance/made-by-hook.txt"));
    let backup = output.finished()["backup"].as_str().unwrap().to_string();
    assert_eq!(install.read(&format!("backups/{backup}/after/instance/made-by-hook.txt")), "new\n");
    assert_nothing_is_left(&install);
}

#[test]
fn a_version_that_fails_later_takes_the_work_of_hooks_back_too() {
    let install = install_with(&after("changes = [\"cache\", \"instance\"]"));
    let (before, tree) = (inodes(&install.root.join("cache")), install.tree());
    let script = "echo altered >cache/made.txt; echo new >instance/made-by-hook.txt";
    let output = install.apply(&release("2.0", "ANSWER = 500\nSQL = \"UPDATE notes SET text = 'new row'\"\n", script));
    assert_eq!(output.expect(3).error_code(), "health-status");
    assert_eq!(inodes(&install.root.join("cache")), before);
    assert_eq!(install.tree(), tree);
    assert_eq!((install.version().as_str(), install.note().as_str()), ("1.0", "old row"));
    assert_nothing_is_left(&install);
}

#[test]
fn a_hook_that_takes_too_long_ends_with_all_that_it_started() {
    let install = install_with(&after("timeout = \"300ms\""));
    let pids = install.scratch().join("pids");
    let script = format!(
        "trap '' TERM HUP\nsetsid sh -c 'echo $$ >>\"{0}\"; exec sleep 300' &\nsleep 301 &\necho $! >>\"{0}\"\nsleep 302",
        pids.display()
    );
    let output = install.apply(&release("2.0", "", &script)).expect(3);
    assert_eq!(output.error_code(), "hook-timeout");
    assert_eq!(install.version(), "1.0");
    assert_ended(&pids, 2);
}

#[test]
fn what_a_hook_leaves_in_the_background_ends_and_holds_nothing_up() {
    let install = install_with(AFTER);
    let pids = install.scratch().join("pids");
    let script = format!("sleep 303 &\necho $! >\"{}\"", pids.display());
    install.apply(&release("2.0", "", &script)).expect(0);
    assert_eq!(install.version(), "2.0");
    assert_ended(&pids, 1);
}

#[track_caller]
fn assert_ended(pids: &Path, count: usize) {
    let text = fs::read_to_string(pids).unwrap();
    assert_eq!(text.lines().count(), count, "{text}");
    for pid in text.lines() {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let runs = state.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'));
        assert!(!runs, "process {pid} of the hook still runs: {state}");
    }
}

#[test]
fn what_cannot_be_removed_after_a_failure_hides_no_cause() {
    let install = install_with("[[hooks.before_stop]]\nrun = [\"sh\", \"scripts/hook.sh\"]\n");
    // Where the volume or the user cannot make a file immutable, the cause is all that is tried.
    let script = "echo kept >\"$UPDATER_WORK/kept\"; chattr +i \"$UPDATER_WORK/kept\" && touch \"$UPDATER_ROOT/../immutable\"; exit 3";
    let output = install.apply(&release("2.0", "", script)).expect(1);
    let is_immutable = install.root.join("../immutable").exists();
    let kept = install.root.join(".updater/staging/hooks/kept");
    if is_immutable {
        assert!(std::process::Command::new("chattr").arg("-i").arg(&kept).status().unwrap().success());
    }
    assert_eq!(output.error_code(), "hook-failed");
    let left = output.events().iter().any(|event| event["code"] == "not-cleaned-up");
    assert_eq!(left, is_immutable, "{output:?}");
    install.updater(&["recover"]).expect(0);
    assert!(!kept.exists());
}

#[test]
fn a_hook_before_the_stop_that_fails_costs_no_outage() {
    let install = install_with("[[hooks.before_stop]]\nrun = [\"sh\", \"scripts/hook.sh\"]\n");
    let (tree, pid) = (install.tree(), install.pid());
    let output = install.apply(&release("2.0", "", "test -f app/new.py; test ! -e uploads; exit 3")).expect(1);
    assert_eq!(output.error_code(), "hook-failed");
    assert_eq!((install.pid(), install.tree()), (pid, tree));
    assert_nothing_is_left(&install);
    // It must not rewrite what waits to arrive.
    let output = install.apply(&release("2.0", "", "echo '# more' >>app/new.py")).expect(1);
    assert_eq!((output.error_code().as_str(), install.pid()), ("hook-changed-staging", pid));
    // Nor what is installed.
    let output = install.apply(&release("2.0", "", "echo '# more' >>\"$UPDATER_ROOT/app/core.py\"")).expect(1);
    assert_eq!((output.error_code().as_str(), install.pid()), ("hook-changed-program", pid));
    // What it fetches is there for the next one.
    let both =
        format!("{}{}", "[[hooks.before_stop]]\nrun = [\"sh\", \"scripts/hook.sh\"]\n", after("changes = [\"cache\"]"));
    install.write("updater.toml", both);
    let script = r#"if [ "$UPDATER_STAGE" = before_stop ]; then echo fetched >"$UPDATER_WORK/thing"
else cp "$UPDATER_WORK/thing" cache/; fi"#;
    install.apply(&release("2.0", "", script)).expect(0);
    assert_eq!(install.read("cache/thing"), "fetched\n");
}

#[test]
fn a_hook_that_writes_where_it_did_not_say_fails_the_update() {
    for (script, code) in [
        ("echo hacked >>app/core.py", "hook-changed-program"),
        ("rm app/__init__.py", "hook-changed-program"),
        ("echo hacked >>uploads/a.txt", "hook-changed-data"),
    ] {
        let install = install_with(AFTER);
        let tree = install.tree();
        let output = install.apply(&release("2.0", "", script)).expect(3);
        assert_eq!(output.error_code(), code, "{script}");
        assert_eq!(install.tree(), tree, "{script}");
        assert_eq!(install.version(), "1.0");
    }
}

#[test]
fn a_hook_waits_for_what_it_names() {
    let install = install_with(&after("when_changed = [\"app/new.py\"]\nchanges = [\"cache\"]"));
    let script = "echo ran >>cache/count.txt";
    install.apply(&release("2.0", "", script)).expect(0);
    let same_new = release("3.0", "", script).file("app/new.py", "# new in 2.0\n");
    let output = install.apply(&same_new).expect(0);
    assert_eq!(hook_stage(&output)["state"], "skipped");
    assert_eq!(install.read("cache/count.txt"), "ran\n");
    // The same content again runs nothing; going back is an update.
    install.apply(&same_new).expect(0);
    assert_eq!(install.read("cache/count.txt"), "ran\n");
    install.updater(&["verify", "--repair"]).expect(0);
    assert_eq!(install.read("cache/count.txt"), "ran\n");
}

#[test]
fn a_restore_runs_hooks_and_tells_them_so() {
    let install = install_with(&after("changes = [\"cache\"]"));
    let script = "echo \"$UPDATER_COMMAND $UPDATER_FROM_VERSION $UPDATER_TO_VERSION\" >>cache/said.txt";
    install.apply(&release("2.0", "", script).file("VERSION", "2.0\n")).expect(0);
    install.apply(&release("3.0", "", script).file("VERSION", "3.0\n")).expect(0);
    let newest = install.updater(&["restore", "--json"]).expect(0).finished()["backup"].clone();
    let said = "apply  2.0\napply 2.0 3.0\nrestore 3.0 2.0\n";
    assert_eq!(install.read("cache/said.txt"), said);
    // A part of a version is no context for a hook that names none.
    install.updater(&["restore", newest.as_str().unwrap(), "--only", "app/core.py", "--json"]).expect(0);
    assert_eq!(install.read("cache/said.txt"), said);
}

#[test]
fn what_could_not_be_put_back_is_refused_before_anything_is_touched() {
    let elsewhere = tempfile::tempdir().unwrap();
    for (changes, code, exit) in [
        (".updater/x", "bad-hook", 2),
        ("backups", "bad-hook", 2),
        ("app", "bad-hook", 2),
        ("mixed", "bad-hook", 2),
        ("uploads/kept", "bad-hook", 2),
        ("link", "hook-place", 1),
        ("link/below", "hook-place", 1),
    ] {
        let settings = format!("[backup]\nskip = [\"/uploads/\"]\n{}", after(&format!("changes = [\"{changes}\"]")));
        let install = install_with(&settings);
        // A start file in the folder, data in the folder, a link.
        install.write("app/remote_updater.py", "# shim\n");
        install.write("mixed/some.db", "");
        symlink(elsewhere.path(), install.root.join("link")).unwrap();
        let pid = install.pid();
        let output = install.apply(&release("2.0", "", "exit 0")).expect(exit);
        assert_eq!(output.error_code(), code, "{changes}");
        assert_eq!(install.pid(), pid, "{changes}");
        let plan = install.updater(&["plan", install.save(&release("2.0", "", "exit 0")).to_str().unwrap(), "--json"]);
        assert_eq!(plan.code, exit, "{changes}: {plan:?}");
    }
}

#[test]
fn a_program_that_is_not_there_is_named_before_the_stop() {
    for run in ["[\"no-such-program\"]", "[\"scripts/nothing.sh\"]", "[\"/no/such/program\"]"] {
        let install = install_with(&format!("[[hooks.after_swap]]\nrun = {run}\n"));
        let pid = install.pid();
        let output = install.apply(&release("2.0", "", "exit 0")).expect(1);
        assert_eq!((output.error_code().as_str(), install.pid()), ("hook-program", pid), "{run}");
    }
}

#[test]
fn a_plan_tells_which_hooks_run_and_runs_none() {
    let install = install_with(&after("changes = [\"cache\"]\ntimeout = \"90s\""));
    let bundle = install.save(&release("2.0", "", "echo ran >cache/ran.txt"));
    let plan = install.updater(&["plan", bundle.to_str().unwrap(), "--json"]).expect(0).object();
    let hook = &plan["hooks"][0];
    assert_eq!(hook["hook"], "after_swap");
    assert_eq!(hook["run"], serde_json::json!(["sh", "scripts/hook.sh"]));
    assert_eq!(
        (&hook["changes"][0], &hook["timeout_ms"], &hook["default"]),
        (&"cache".into(), &90000.into(), &false.into())
    );
    assert!(!install.exists("cache/ran.txt"));
    let words = install.updater(&["plan", bundle.to_str().unwrap()]).expect(0).stdout;
    assert!(words.contains("hook:     sh scripts/hook.sh (while it is down)"), "{words}");
}

/// Starts `apply` and kills it once the hook says that it is in the middle.
fn kill_in_the_hook(install: &Install, bundle: &Bundle) {
    let path = install.save(bundle);
    let mut command = install.command(&["apply", path.to_str().unwrap(), "--json"]);
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    let middle = install.scratch().join("middle");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !middle.exists() {
        assert!(Instant::now() < deadline, "the hook never came to its middle");
        assert!(child.try_wait().unwrap().is_none(), "apply ended before it was killed");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn killed_in_a_hook_before_the_stop_the_next_one_ends_it_and_begins_anew() {
    for next in ["apply", "recover"] {
        let install = install_with("[[hooks.before_stop]]\nrun = [\"sh\", \"scripts/hook.sh\"]\n");
        let (tree, pid, pids) = (install.tree(), install.pid(), install.scratch().join("pids"));
        let middle = install.scratch().join("middle");
        let script = format!(
            "test ! -e \"{0}\" || exit 0\n: >\"{0}\"; echo $$ >\"{1}\"\n\
             while :; do mkdir -p \"$UPDATER_WORK/x\" || :; echo more >>\"$UPDATER_WORK/x/y\" || :; done",
            middle.display(),
            pids.display()
        );
        let bundle = release("2.0", "", &script.replace("set -eu", "set -u"));
        kill_in_the_hook(&install, &bundle);
        assert_eq!((install.tree(), install.pid()), (tree, pid));
        match next {
            "apply" => drop(install.apply(&bundle).expect(0)),
            _ => drop(install.updater(&["recover"]).expect(0)),
        }
        assert_ended(&pids, 1);
        assert_nothing_is_left(&install);
        assert_eq!(install.version(), if next == "apply" { "2.0" } else { "1.0" });
    }
}

#[test]
fn killed_in_a_hook_nothing_can_start_and_recover_takes_all_back() {
    let install = install_with(&after("changes = [\"cache\", \"instance\", \"uploads\"]"));
    let (before, tree) = (inodes(&install.root.join("cache")), install.tree());
    let script = format!(
        "echo altered >cache/made.txt; echo hook >uploads/b.txt; echo hook >>uploads/a.txt\n\
         : >\"{}/middle\"\n(while :; do echo more >>uploads/a.txt; echo more >>cache/made.txt; sleep 0.01; done)",
        install.scratch().display()
    );
    kill_in_the_hook(&install, &release("2.0", "", &script));
    assert!(!install.exists("run.py"), "a tree in the middle could be started");
    let status = install.updater(&["status", "--json"]).expect(0).object();
    assert!(status["interrupted"].is_string(), "{status}");
    // The hook goes on writing: recover ends it before it puts anything back.
    install.updater(&["recover", "--json"]).expect(0);
    assert_eq!(inodes(&install.root.join("cache")), before);
    assert_eq!(install.tree(), tree);
    assert_eq!((install.version().as_str(), install.note().as_str()), ("1.0", "old row"));
    assert_nothing_is_left(&install);
}

#[test]
fn started_by_somebody_after_the_hooks_a_person_decides_about_the_data() {
    for (choice, upload) in [("keep", "old upload\nhook\nuser\n"), ("backup", "old upload\n")] {
        let install = install_with(&after("changes = [\"cache\", \"uploads\"]"));
        let before = inodes(&install.root.join("cache"));
        let script = format!(
            "echo altered >cache/made.txt; echo hook >>uploads/a.txt; : >\"{}/middle\"; sleep 305",
            install.scratch().display()
        );
        kill_in_the_hook(&install, &release("2.0", "", &script));
        // As if it had been cut off just after the start file arrived; then somebody starts it and a user writes.
        fs::rename(install.root.join(".updater/staging/tree/run.py"), install.root.join("run.py")).unwrap();
        install.start();
        install.write("uploads/a.txt", install.read("uploads/a.txt") + "user\n");
        let pid = install.pid();
        for _ in 0..4 {
            let refused = install.updater(&["recover", "--json"]).expect(4);
            assert_eq!(refused.error_code(), "data-undecided");
        }
        assert_eq!(install.pid(), pid);
        install.updater(&["recover", "--data", choice, "--json"]).expect(0);
        assert_eq!(install.version(), "1.0");
        assert_eq!(install.read("uploads/a.txt"), upload, "--data {choice}");
        assert_eq!(inodes(&install.root.join("cache")), before);
        assert_nothing_is_left(&install);
    }
}

#[test]
fn a_signal_during_a_hook_rolls_back() {
    let install = install_with(&after("changes = [\"cache\"]"));
    let tree = install.tree();
    let script = format!("echo altered >cache/made.txt; : >\"{}/middle\"; sleep 304", install.scratch().display());
    let path = install.save(&release("2.0", "", &script));
    let mut command = install.command(&["apply", path.to_str().unwrap(), "--json"]);
    let out = fs::File::create(install.scratch().join("out.jsonl")).unwrap();
    let mut child = command.stdin(std::process::Stdio::null()).stdout(out).spawn().unwrap();
    let middle = install.scratch().join("middle");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !middle.exists() {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert_eq!(install.tree(), tree);
    assert_eq!(install.version(), "1.0");
}

/// Runs `script` as the hook of a release, has it fail, and expects every file, link and mode to be as before.
#[track_caller]
fn is_taken_back(install: &Install, script: &str) -> Output {
    let before = everything(install);
    let output = install.apply(&release("2.0", "", &format!("{script}\nexit 9"))).expect(3);
    assert_eq!(everything(install), before, "{script}");
    assert_eq!(install.version(), "1.0", "{script}");
    assert_nothing_is_left(install);
    output
}

/// Kind, mode and owner of everything but what the updater keeps for itself, and what regular files hold.
fn everything(install: &Install) -> Vec<String> {
    let own = |name: &str| {
        name == ".updater"
            || name.starts_with(".updater/")
            || name.contains("backups")
            || name.ends_with(".log")
            || name.contains("update_log")
            || name.contains("app.db-shm")
    };
    let walk = walkdir::WalkDir::new(&install.root).min_depth(1).into_iter().map(Result::unwrap);
    let mut all: Vec<String> = walk
        .filter_map(|item| {
            let name = item.path().strip_prefix(&install.root).unwrap().to_str().unwrap().to_string();
            let data = item.path().symlink_metadata().unwrap();
            let holds = if data.is_file() { kit::File::of(item.path()).hash } else { String::new() };
            (!own(&name)).then(|| format!("{name} {:?} {:o} {} {holds}", data.file_type(), data.mode(), data.uid()))
        })
        .collect();
    all.sort();
    all
}

#[test]
fn what_no_backup_holds_is_no_hooks_and_what_was_there_stays() {
    let skipping = format!("[backup]\nskip = [\"/uploads/big/\"]\n{}", after("changes = [\"uploads\"]"));
    let install = install_with(&skipping);
    install.write("uploads/big/film", "long\n");
    let output = install.apply(&release("2.0", "", "exit 9")).expect(2);
    assert_eq!(output.error_code(), "bad-hook");
    assert!(install.exists("uploads/big/film"));

    let inside = format!("[backup]\ndir = \"instance/backups\"\n{}", after("changes = [\"instance\"]"));
    let install = install_with(&inside);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        install.root.join("instance/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    install.write("instance/lone.db-shm", "memory");
    is_taken_back(&install, "echo x >instance/new");
    let backups = install.updater(&["backups", "--check", "--json"]).expect(0).object();
    assert_eq!((&backups["backups"][0]["whole"], &backups["backups"][0]["kind"]), (&true.into(), &"failed".into()));
}

#[test]
fn a_folder_of_a_hook_is_left_to_it_and_comes_back_though_all_above_it_is_gone() {
    let install = install_with(&after("changes = [\"app/static/built\"]"));
    install.write("app/static/built/site.css", "built by 1.0\n");
    let built = install.root.join("app/static/built");
    let before = inodes(&built);
    let output = is_taken_back(&install, "grep -q 'by 1.0' app/static/built/site.css && rm -r app/static");
    assert_eq!(output.error_code(), "hook-failed");
    assert_eq!(inodes(&built), before, "the very originals are back");
    install.apply(&release("2.0", "", "echo '2.0' >>app/static/built/site.css")).expect(0);
    assert_eq!(install.read("app/static/built/site.css"), "built by 1.0\n2.0\n");
}

#[test]
fn whatever_a_hook_makes_of_the_tree_the_way_back_is_found() {
    for script in [
        "rm -rf app",
        "rm -rf app; echo x >app",
        "mv app ../gone; ln -s ../gone app",
        "rm app/core.py; mkfifo app/core.py",
        "rm app/__init__.py; mkdir app/__init__.py",
        "cp \"$UPDATER_START_FILE\" run.py",
        "echo x >run.py",
        "mkdir -p app/extra/deep newtop; echo x >app/extra/deep/file; echo x >newtop/file; echo x >top",
        "chmod 600 app/core.py; chmod 700 app",
        "rm -rf \"$UPDATER_WORK\"",
    ] {
        is_taken_back(&install_with(AFTER), script);
    }
    let data = after("changes = [\"instance\", \"config\", \"new/deep\"]");
    for script in [
        "chmod 600 instance/kept.txt; rm -r instance/secret; chmod 711 instance",
        "rm -r instance",
        "rm -r instance; echo x >instance",
        "mkdir -p instance/a/b config/c new/deep; echo x >instance/a/b/file",
        "rm instance/kept.txt; mkfifo instance/kept.txt",
    ] {
        let install = install_with(&data);
        install.write("instance/kept.txt", "kept\n");
        fs::set_permissions(install.root.join("instance/kept.txt"), fs::Permissions::from_mode(0o640)).unwrap();
        install.write("instance/secret/key", "key\n");
        fs::set_permissions(install.root.join("instance/secret"), fs::Permissions::from_mode(0o700)).unwrap();
        is_taken_back(&install, script);
    }
}

#[test]
fn a_hook_that_takes_the_backups_away_leaves_a_person_a_way_out() {
    let install = install_with(&after("changes = [\"cache\", \"uploads\"]"));
    let output = install.apply(&release("2.0", "", "rm -rf backups; echo hook >>uploads/a.txt; exit 9")).expect(4);
    assert_eq!(output.error_code(), "backup-lost");
    assert!(output.finished()["error"]["remedy"].as_str().unwrap().contains("recover --data keep"), "{output:?}");
    install.updater(&["recover", "--data", "keep", "--json"]).expect(0);
    assert_eq!((install.version().as_str(), install.read("uploads/a.txt").as_str()), ("1.0", "old upload\nhook\n"));
    assert_nothing_is_left(&install);
}

#[test]
fn killed_with_a_ruined_tree_recover_finds_the_way_back_twice_over() {
    for script in ["rm -rf app; ln -s /tmp app", "cp \"$UPDATER_START_FILE\" run.py; rm -rf app; mkfifo app"] {
        let install = install_with(AFTER);
        let before = everything(&install);
        let script = format!("{script}; : >\"{}/middle\"; sleep 306", install.scratch().display());
        kill_in_the_hook(&install, &release("2.0", "", &script));
        install.updater(&["recover", "--json"]).expect(0);
        install.updater(&["recover", "--json"]).expect(0);
        assert_eq!(everything(&install), before, "{script}");
        assert_eq!(install.version(), "1.0");
    }
}

#[test]
fn an_undo_that_was_cut_off_at_its_end_is_gone_through_again() {
    let install = install_with(&after("changes = [\"cache\", \"uploads\"]"));
    let before = everything(&install);
    let script = format!(
        "echo x >app/extra.py; echo x >uploads/new; rm -r cache; : >\"{}/middle\"; sleep 307",
        install.scratch().display()
    );
    kill_in_the_hook(&install, &release("2.0", "", &script));
    let (own, kept) = (install.root.join(".updater"), install.scratch().join("kept"));
    let copy = |from: &Path, to: &Path| {
        assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    };
    copy(&own, &kept);
    install.updater(&["recover", "--json"]).expect(0);
    assert_eq!(everything(&install), before);
    // As if it had been cut off before its last record: all is moved back, and the journal does not say so.
    for name in ["journal", "staging"] {
        copy(&kept.join(name), &own.join(name));
    }
    let record = "{\"state\":\"data-restored\"}";
    let sum: String = Sha256::digest(record).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let mut journal = fs::File::options().append(true).open(own.join("journal")).unwrap();
    writeln!(journal, "{sum} {record}").unwrap();
    install.updater(&["recover", "--json"]).expect(0);
    assert_eq!(everything(&install), before);
    assert_eq!(install.version(), "1.0");
    assert_nothing_is_left(&install);
}

#[test]
fn what_hooks_did_not_name_is_told_where_it_does_no_harm_and_refused_where_it_does() {
    let install = install_with(AFTER);
    let output =
        install.apply(&release("2.0", "", "echo x >app/extra.py; mkdir newtop; echo x >newtop/file")).expect(0);
    let told = output.events().into_iter().find(|event| event["code"] == "hook-made").expect("it is told");
    assert!(told["message"].as_str().unwrap().ends_with("app/extra.py, newtop"), "{told}");
    for (script, code) in [
        ("cp \"$UPDATER_START_FILE\" run.py", "hook-changed-program"),
        ("rm app/core.py; mkfifo app/core.py", "hook-changed-program"),
        ("chmod 600 uploads/a.txt", "hook-changed-data"),
        // What is in a log beside a database is in the database.
        ("echo rows >uploads/other.db-wal", "hook-changed-data"),
    ] {
        let install = install_with(AFTER);
        install.write("uploads/other.db", "a database");
        let output = install.apply(&release("2.0", "", script)).expect(3);
        assert_eq!(output.error_code(), code, "{script}");
        assert_eq!(install.version(), "1.0");
    }
}

#[test]
fn with_a_database_all_that_belongs_to_it_is_named() {
    let install = install_with(&after("changes = [\"instance/app.db\"]"));
    // Its log goes, and the database is written: as when a migration closes it.
    let script = "rm -f instance/app.db-wal instance/app.db-shm; printf '\\0' >>instance/app.db";
    let output = install.apply(&release("2.0", "", script));
    assert_ne!(output.error_code(), "hook-changed-data", "{output:?}");
}

#[test]
fn going_back_leaves_out_a_hook_that_the_older_version_does_not_have() {
    let install = install_with("");
    install.apply(&install.bundle("1.5").file("VERSION", "1.5\n")).expect(0);
    install.write("updater.toml", format!("[server]\nsoak = \"100ms\"\n{AFTER}"));
    install.apply(&release("2.0", "", "exit 0").file("VERSION", "2.0\n")).expect(0);
    let output = install.updater(&["restore", "--json"]).expect(0);
    assert!(output.events().iter().any(|event| event["code"] == "hook-left-out"), "{output:?}");
    assert_eq!(install.version(), "1.5");
}
