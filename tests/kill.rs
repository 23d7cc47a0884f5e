//! Killed in the middle, then `recover`: what stands afterwards, for each way that the rules know.

mod kit;

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kit::{Bundle, Install, ping};

/// A version that alters a row and an upload, adds another and answers 500.
const DAMAGE: &str = "SQL = \"UPDATE notes SET text = 'new row'\"\n\
                      WRITE = \"uploads/a.txt=altered\"\n\
                      WRITE = \"uploads/b.txt=added\"\n\
                      ANSWER = 500\n";

/// An install whose health check lasts long enough to be killed in it. The soak is in the journal, so
/// recovery has it, too.
fn install() -> Install {
    let install = Install::running();
    install.write("updater.toml", "[server]\nsoak = \"4s\"\n");
    install
}

/// Starts `apply` and kills it as soon as `now` says so.
fn kill_apply(install: &Install, bundle: &Bundle, more: &[&str], now: &dyn Fn() -> bool) {
    let bundle = install.save(bundle);
    let mut arguments = vec!["apply", bundle.to_str().unwrap(), "--json"];
    arguments.extend(more);
    let mut command = install.command(&arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !now() {
        assert!(Instant::now() < deadline, "the moment to kill never came");
        assert!(child.try_wait().unwrap().is_none(), "apply ended before it was killed");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

fn serves(install: &Install, version: &str, status: u16) -> bool {
    ping(install.port).is_some_and(|(code, answer)| code == status && answer["version"] == version)
}

fn journal_says(install: &Install, state: &str) -> bool {
    let text = fs::read(install.root.join(".updater/journal")).unwrap_or_default();
    String::from_utf8_lossy(&text).contains(&format!("\"{state}\""))
}

/// No journal, no staging, no trash; a second recover finds nothing to do.
fn assert_settled(install: &Install) {
    for name in ["journal", "staging", "trash"] {
        assert!(!install.exists(&format!(".updater/{name}")), "{name} is left");
    }
    let pid = install.pid();
    let again = install.updater(&["recover", "--json"]).expect(0);
    assert!(again.stdout.contains("nothing was interrupted"), "{again:?}");
    assert_eq!(install.pid(), pid);
}

fn assert_old_data(install: &Install) {
    assert_eq!(install.note(), "old row");
    assert_eq!(install.read("uploads/a.txt"), "old upload\n");
    assert_eq!(install.read("uploads/b.txt"), "added");
}

#[test]
fn a_bad_version_killed_at_starting_is_undone_with_its_data() {
    let install = install();
    kill_apply(&install, &Bundle::release("2.0", DAMAGE), &[], &|| serves(&install, "2.0", 500));
    assert!(journal_says(&install, "starting"));
    let output = install.updater(&["recover", "--json"]).expect(0);
    assert_eq!(output.outcome(), "recovered");
    assert_eq!(install.version(), "1.0");
    assert_old_data(&install);
    assert_settled(&install);
}

#[test]
fn a_healthy_version_killed_at_starting_is_committed_and_keeps_running() {
    let install = install();
    kill_apply(&install, &install.bundle("2.0"), &[], &|| serves(&install, "2.0", 200));
    let pid = install.pid();
    install.updater(&["recover", "--json"]).expect(0);
    assert_eq!((install.version().as_str(), install.pid()), ("2.0", pid));
    assert_settled(&install);
    install.updater(&["verify"]).expect(0);
}

#[test]
fn data_that_is_back_is_final() {
    let install = Install::running();
    install.write("updater.toml", "[server]\nsoak = \"50ms\"\n");
    kill_apply(&install, &Bundle::release("2.0", DAMAGE), &[], &|| journal_says(&install, "data-restored"));
    assert_old_data(&install);
    // Whoever writes now writes after the restore: it must not be replaced by a second one.
    install.write("uploads/a.txt", "written after the restore");
    install.updater(&["recover", "--json"]).expect(0);
    assert_eq!(install.version(), "1.0");
    assert_eq!(install.read("uploads/a.txt"), "written after the restore");
    assert_eq!(install.note(), "old row");
    assert_settled(&install);
}

#[test]
fn data_written_by_an_unwatched_start_is_not_replaced_until_a_person_decides() {
    for (choice, row, upload) in [("keep", "new row", "altered"), ("backup", "old row", "old upload\n")] {
        let install = install();
        kill_apply(&install, &Bundle::release("2.0", DAMAGE), &[], &|| serves(&install, "2.0", 500));
        // Somebody restarts the new version by hand.
        install.stop();
        let mut server = Command::new(kit::standin());
        server.arg("run.py").env("PORT", install.port.to_string());
        install.start_command(server);
        let pid = install.pid();

        let refused = install.updater(&["recover", "--json"]).expect(4);
        assert_eq!(refused.error_code(), "data-undecided");
        assert_eq!((install.pid(), install.note().as_str()), (pid, "new row"), "something was touched");
        // Changing commands keep refusing, too, with the same words however often.
        for _ in 0..3 {
            let refused = install.apply(&install.bundle("3.0")).expect(4);
            assert_eq!(refused.error_code(), "data-undecided");
        }

        install.updater(&["recover", "--data", choice, "--json"]).expect(0);
        assert_eq!(install.version(), "1.0");
        assert_eq!(install.note(), row, "--data {choice}");
        assert_eq!(install.read("uploads/a.txt"), upload, "--data {choice}");
        assert_settled(&install);
    }
}

#[test]
fn an_update_that_was_killed_is_not_under_way_though_its_pid_was_given_away_again() {
    let install = Install::running();
    install.write("updater.toml", "[server]\nsoak = \"50ms\"\n");
    kill_apply(&install, &install.bundle("2.0"), &[], &|| journal_says(&install, "stopping"));
    let place = install.root.join(".updater/status.json");
    let mut status: serde_json::Value = serde_json::from_slice(&fs::read(&place).unwrap()).unwrap();
    assert!(status["under_way"]["process_start"].is_u64(), "{status}");
    status["under_way"]["pid"] = std::process::id().into();
    fs::write(&place, status.to_string()).unwrap();
    let told = install.updater(&["status", "--json"]).expect(0).object();
    assert!(told["under_way"].is_null() && told["interrupted"].is_string(), "{told}");
    install.updater(&["recover"]).expect(0);
    assert_settled(&install);
}

#[test]
fn a_killed_stop_leaves_the_old_version_and_the_next_apply_recovers_it_first() {
    let install = Install::running();
    install.write("updater.toml", "[server]\nsoak = \"50ms\"\n");
    kill_apply(&install, &install.bundle("2.0"), &[], &|| journal_says(&install, "stopping"));
    let output = install.apply(&install.bundle("3.0")).expect(0);
    assert_eq!(output.outcome(), "applied");
    let recovered: Vec<_> = output.events().into_iter().filter(|e| e["event"] == "recovered").collect();
    assert_eq!(recovered.len(), 1, "{output:?}");
    // The stream of the killed run goes on in its own file, and ends there.
    let id = recovered[0]["interrupted_id"].as_str().unwrap();
    let text = install.read(&format!(".updater/events/{id}.jsonl"));
    let events: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(events.iter().enumerate().all(|(n, e)| e["seq"] == n as u64 + 1 && e["update_id"] == id), "{text}");
    assert_eq!(events.iter().filter(|e| e["event"] == "finished").count(), 1);
    assert_eq!(events.last().unwrap()["outcome"], "recovered");
    assert_eq!(install.version(), "3.0");
    assert_settled(&install);
}

/// A version whose swap takes long enough to be killed in it.
fn many_files(install: &Install) -> Bundle {
    (0..400).fold(install.bundle("2.0"), |bundle, n| bundle.file(&format!("app/part{n:03}.py"), format!("# {n}\n")))
}

fn killed_in_the_swap() -> Install {
    let install = Install::running();
    install.write("updater.toml", "[server]\nsoak = \"50ms\"\n");
    kill_apply(&install, &many_files(&install), &[], &|| journal_says(&install, "swapping"));
    assert!(!journal_says(&install, "swapped"), "the kill came too late");
    install
}

#[test]
fn boot_mends_files_starts_nothing_and_leaves_the_proof_to_the_next() {
    let install = killed_in_the_swap();
    // As often as the system boots: what is mended counts as no further try.
    for _ in 0..4 {
        let output = install.updater(&["recover", "--boot", "--json"]).expect(0);
        assert_eq!(output.outcome(), "recovered");
        assert_eq!(output.finished()["pid"], serde_json::Value::Null);
        assert!(ping(install.port).is_none(), "something was started");
        assert!(install.read("run.py").contains("\"1.0\"") && !install.exists("app/part000.py"));
        assert!(journal_says(&install, "rolled-back"), "nobody has proven its health");
        assert!(!install.exists(".updater/staging") && !install.exists(".updater/trash"));
    }
    let interrupted = install.updater(&["status", "--json"]).expect(0).object()["interrupted"].clone();
    assert!(interrupted.is_string());
    install.updater(&["recover", "--if-needed"]).expect(0);
    assert_eq!(install.version(), "1.0");
    let pid = install.pid();
    let quiet = install.updater(&["recover", "--if-needed"]).expect(0);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
    assert_eq!(install.pid(), pid);
    assert_settled(&install);
}

#[test]
fn a_server_started_after_the_boot_is_judged_and_not_started_twice() {
    let install = killed_in_the_swap();
    install.updater(&["recover", "--boot"]).expect(0);
    let pid = u64::from(install.start());
    let output = install.apply(&install.bundle("3.0")).expect(0);
    assert_eq!(output.events().iter().filter(|e| e["event"] == "recovered").count(), 1, "{output:?}");
    assert_eq!(install.version(), "3.0");
    assert_ne!(install.pid(), pid);
    assert_settled(&install);
}

#[test]
fn boot_leaves_a_started_version_to_be_judged() {
    let install = install();
    kill_apply(&install, &install.bundle("2.0"), &[], &|| serves(&install, "2.0", 200));
    let pid = install.pid();
    install.updater(&["recover", "--boot"]).expect(0);
    assert!(journal_says(&install, "starting") && !journal_says(&install, "committed"));
    assert_eq!(install.pid(), pid);
    install.updater(&["recover", "--boot", "--data", "keep"]).expect(2);
    install.updater(&["recover", "--if-needed"]).expect(0);
    assert_eq!((install.version().as_str(), install.pid()), ("2.0", pid));
    assert_settled(&install);
    install.updater(&["verify"]).expect(0);
}

#[test]
fn boot_goes_on_with_data_that_was_about_to_be_put_back() {
    let install = Install::running();
    install.write("updater.toml", "[server]\nsoak = \"50ms\"\n");
    let mut damage = DAMAGE.to_string();
    for n in 0..150 {
        install.write(&format!("uploads/more{n:03}.txt"), "old upload\n");
        damage += &format!("WRITE = \"uploads/more{n:03}.txt=altered\"\n");
    }
    // Without its start file nothing can have run since it was decided.
    let undoing = || journal_says(&install, "undoing") && !install.exists("run.py");
    kill_apply(&install, &Bundle::release("2.0", &damage), &[], &undoing);
    assert!(!journal_says(&install, "data-restored"), "the kill came too late");
    install.updater(&["recover", "--boot"]).expect(0);
    assert!(ping(install.port).is_none(), "something was started");
    assert!(install.read("run.py").contains("\"1.0\""));
    install.updater(&["recover", "--if-needed"]).expect(0);
    assert_eq!(install.version(), "1.0");
    assert_old_data(&install);
    for n in 0..150 {
        assert_eq!(install.read(&format!("uploads/more{n:03}.txt")), "old upload\n");
    }
    assert_settled(&install);
}

#[test]
fn what_a_server_of_somebody_else_writes_is_not_replaced_by_a_rollback() {
    let install = Install::running();
    install.write("updater.toml", "[server]\nsoak = \"50ms\"\nhealth_timeout = \"8s\"\n");
    let bundle = install.save(&Bundle::release("2.0", DAMAGE));
    let mut apply = install.command(&["apply", bundle.to_str().unwrap(), "--json"]);
    apply.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut apply = apply.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !serves(&install, "2.0", 500) {
        assert!(Instant::now() < deadline, "the new version never ran");
    }
    // An operator loses patience: the version is run from a shell, beside ours.
    let mut shell = Command::new("sh");
    shell.args(["-c", "\"$0\" run.py; exit"]).arg(kit::standin());
    shell.env("PORT", kit::free_port().to_string());
    install.spawn(&mut shell);
    assert_eq!(apply.wait().unwrap().code(), Some(4));
    let last: serde_json::Value = serde_json::from_str(&install.read(".updater/last.json")).unwrap();
    assert_eq!(last["outcome"], "needs-operator");
    assert_eq!((install.note().as_str(), install.read("uploads/a.txt").as_str()), ("new row", "altered"));
    assert_eq!(install.updater(&["recover", "--json"]).expect(4).outcome(), "needs-operator");
    assert_eq!(install.note(), "new row");
}

/// Writes the journal as that of an earlier boot of the system.
fn after_another_boot(install: &Install) {
    let place = install.root.join(".updater/journal");
    let boot = updater::system::processes::boot_id().unwrap();
    let text = String::from_utf8(fs::read(&place).unwrap()).unwrap();
    let line = |line: &str| {
        let json = line.split_once(' ').unwrap().1.replace(&boot, "an-earlier-boot");
        format!("{} {json}\n", &updater::base::fsx::sha256(json.as_bytes())[..16])
    };
    let text: String = text.trim_end_matches('\0').lines().map(line).collect();
    assert!(text.contains("an-earlier-boot"), "{text}");
    fs::write(&place, text).unwrap();
}

#[test]
fn after_a_boot_a_version_whose_port_was_set_is_started_on_that_port() {
    let mut install = install();
    let (old, new) = (install.port, kit::free_port());
    let (set, asked) = (format!("PORT={new}"), |status| ping(new).is_some_and(|(code, _)| code == status));
    kill_apply(&install, &install.bundle("2.0"), &["--set", &set], &|| asked(200));
    install.port = new;
    install.stop();
    after_another_boot(&install);
    let output = install.updater(&["recover", "--json"]).expect(0);
    assert_eq!((output.outcome(), install.version()), ("recovered".into(), "2.0".into()), "{output:?}");
    assert!(ping(old).is_none(), "it runs on the old port");
    assert_settled(&install);
}

#[test]
fn a_version_whose_port_was_set_gives_the_old_one_its_own_port_back() {
    let mut install = install();
    let (old, new) = (install.port, kit::free_port());
    let set = format!("PORT={new}");
    let asked = || ping(new).is_some_and(|(code, _)| code == 500);
    kill_apply(&install, &Bundle::release("2.0", DAMAGE), &["--set", &set], &asked);
    install.port = new;
    install.stop();
    install.port = old;
    after_another_boot(&install);
    let output = install.updater(&["recover", "--data", "backup", "--json"]).expect(0);
    assert_eq!((output.outcome(), install.version()), ("recovered".into(), "1.0".into()), "{output:?}");
    assert!(ping(new).is_none(), "something runs on the new port");
    assert_old_data(&install);
    assert_settled(&install);
}
