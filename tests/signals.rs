//! A signal before the stop ends the updater at once, whatever it waits for, and nothing is changed.
#![cfg(target_os = "linux")]

mod kit;

use kit::Install;
use kit::zips::{Part, Zip};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What the one that waits says before it waits; then it is given a moment to get there.
const MOMENT: Duration = Duration::from_millis(150);

/// Ends it, when a test ends before it does.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn signal(pid: u64, which: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, which).unwrap();
}

/// How long a run takes from the moment after `ready` to its exit, its exit code, and what it says from there on.
fn run(install: &Install, args: &[&str], ready: &str, is_signalled: bool) -> (Duration, Option<i32>, String) {
    let mut command: Command = install.command(args);
    let said = fs::File::create(install.scratch().join("err")).unwrap();
    let mut child = Ended(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(said).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    if !ready.is_empty() {
        lines.find(|line| line.as_ref().unwrap().contains(ready)).expect("it never begins to wait").unwrap();
    }
    std::thread::sleep(MOMENT);
    let begun = Instant::now();
    if is_signalled {
        assert!(child.0.try_wait().unwrap().is_none(), "it does not wait long enough to be tried");
        signal(child.0.id().into(), rustix::process::Signal::TERM);
    }
    let rest: String = lines.map(|line| line.unwrap() + "\n").collect();
    let code = child.0.wait().unwrap().code();
    (begun.elapsed(), code, rest + &fs::read_to_string(install.scratch().join("err")).unwrap())
}

/// Signals the run and holds the time to its exit against `undisturbed`, the time that the same wait takes without.
#[track_caller]
fn ends_at_once(name: &str, install: &Install, args: &[&str], ready: &str, undisturbed: Duration) {
    let (tree, version) = (install.tree(), install.version());
    let (took, code, said) = run(install, args, ready, true);
    eprintln!("{name}: {took:?} instead of {undisturbed:?}");
    assert_eq!(code, Some(1), "{name}: {said}");
    assert!(said.contains("stopped by a signal"), "{name}: {said}");
    // 100 ms on a machine that has nothing else to do; others build meanwhile.
    assert!(took < undisturbed / 3, "{name}: {took:?}, and {undisturbed:?} undisturbed");
    assert_eq!((install.tree(), install.version()), (tree, version), "{name}");
    assert!(!install.exists(".updater/staging"), "{name}");
    if args.contains(&"--json") && args[0] == "apply" {
        assert!(said.contains("\"code\":\"interrupted\""), "{name}: {said}");
    }
}

/// The same for a wait that has an end: it is measured first, on an install of its own.
#[track_caller]
fn ends_long_before(name: &str, make: &dyn Fn() -> Install, args: &dyn Fn(&Install) -> Vec<String>, ready: &str) {
    let time = |is_signalled: bool, undisturbed: Duration| {
        let install = make();
        let args = args(&install);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        if is_signalled {
            ends_at_once(name, &install, &args, ready, undisturbed);
            return undisturbed;
        }
        run(&install, &args, ready, false).0
    };
    let undisturbed = time(false, Duration::ZERO);
    time(true, undisturbed);
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| word.to_string()).collect()
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_string()
}

#[test]
fn the_wait_for_the_lock() {
    let install = Install::running();
    fs::create_dir(install.root.join(".updater")).unwrap();
    let held = fs::File::create(install.root.join(".updater/lock")).unwrap();
    held.lock().unwrap();
    let other = "{\"under_way\":{\"update_id\":\"of another\"}}";
    install.write(".updater/status.json", other);
    let bundle = text(&install.save(&install.bundle("2.0")));
    let patience = Duration::from_secs(60);
    ends_at_once("lock", &install, &["apply", &bundle, "--wait", "60s", "--json"], "", patience);
    // What the one says that holds the lock stands.
    assert_eq!(install.read(".updater/status.json"), other);
}

#[test]
fn the_question_to_a_server_that_does_not_answer() {
    let install = Install::running();
    let bundle = text(&install.save(&install.bundle("2.0")));
    let pid = install.pid();
    let version = install.version();
    signal(pid, rustix::process::Signal::STOP);
    let (took, code, said) = run(&install, &["apply", &bundle, "--json"], "looking for the server", true);
    signal(pid, rustix::process::Signal::CONT);
    eprintln!("question: {took:?} instead of 10 s");
    assert_eq!((code, install.version()), (Some(1), version), "{said}");
    // Two protocols are given five seconds each.
    assert!(took < Duration::from_secs(3), "{took:?}");
    let status: serde_json::Value = serde_json::from_str(&install.read(".updater/status.json")).unwrap();
    assert_eq!((&status["server"]["state"], &status["server"]["healthy"]), (&"running".into(), &().into()));
    assert_eq!((&status["under_way"], &status["last"]["error"]["code"]), (&().into(), &"interrupted".into()));
}

#[test]
fn a_hook_before_the_stop() {
    let install = Install::running();
    let began = install.scratch().join("began");
    let script = format!(": >{}; sleep 61", began.display());
    install.write_settings(&format!("[[hooks.before_stop]]\nrun = [\"sh\", \"-c\", \"{script}\"]\n"));
    let bundle = text(&install.save(&install.bundle("2.0")));
    let args = ["apply", &bundle, "--json"];
    ends_at_once("hook", &install, &args, "writing the new files", Duration::from_secs(61));
    assert!(began.exists());
}

#[test]
fn hashing_a_large_bundle() {
    let args = |install: &Install| {
        let path = install.scratch().join("large.zip");
        fs::File::create(&path).unwrap().set_len(2 << 30).unwrap();
        words(&["apply", &text(&path), "--json", "--sha256", &"0".repeat(64)])
    };
    ends_long_before("hashing", &Install::running, &args, "checking the bundle");
}

#[test]
fn unpacking_a_large_entry() {
    let args = |install: &Install| {
        let parts = install.bundle("2.0").files.into_iter().map(|(name, bytes)| Part::new(name, bytes));
        let large = Part::new("site-2.0/app/large", vec![0; 192 << 20]).stored();
        let path = install.scratch().join("large.zip");
        fs::write(&path, Zip::of(parts.chain([large])).bytes()).unwrap();
        words(&["plan", &text(&path), "--json"])
    };
    ends_long_before("unpacking", &Install::running, &args, "");
}

/// With a gigabyte of data that backups hold.
fn with_large_data() -> Install {
    let install = Install::running();
    install.write_settings("[backup]\nmax_file = \"8 GB\"\n");
    // Bytes, as a file of holes takes no room and is read at once.
    let file = fs::File::create(install.root.join("instance/large.bin")).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(7), 1 << 30), &mut &file).unwrap();
    install
}

#[test]
fn copying_large_data_into_the_backup() {
    let args = |install: &Install| words(&["apply", &text(&install.save(&install.bundle("2.0"))), "--json"]);
    ends_long_before("backup", &with_large_data, &args, "saving the installed version");
}

#[test]
fn hashing_a_backup() {
    let install = with_large_data();
    install.apply(&install.bundle("2.0")).expect(0);
    let args = ["backups", "--check", "--json"];
    let (undisturbed, ..) = run(&install, &args, "", false);
    ends_at_once("backups --check", &install, &args, "", undisturbed);
}

#[test]
fn checking_a_large_database() {
    let make = || {
        let install = Install::running();
        let db = rusqlite::Connection::open(install.root.join("instance/large.db")).unwrap();
        db.execute_batch(
            "PRAGMA synchronous = OFF; PRAGMA journal_mode = OFF; CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT); \
             WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 1500000) \
             INSERT INTO t SELECT x, hex(x * 7919) FROM n; CREATE INDEX b ON t(b); CREATE INDEX c ON t(b, a);",
        )
        .unwrap();
        install
    };
    let args = |install: &Install| words(&["plan", &text(&install.save(&install.bundle("2.0"))), "--json"]);
    ends_long_before("database", &make, &args, "");
}
