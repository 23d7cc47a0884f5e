//! Who starts the updater, and what becomes of him: the server itself, a terminal that hangs up, a pipe that
//! nobody reads, a caller who does not wait. Linux: elsewhere an updater cannot move out of its caller.
#![cfg(target_os = "linux")]

mod kit;

use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kit::{Bundle, Install, Output, run_as_child_of};
use serde_json::Value;

/// A server that runs the updater as its own child when asked to, and ends it with itself as `HOW` says.
const SERVER: &str = r#"
import ctypes, http.server, json, os, signal, subprocess, sys
VERSION, PORT, HOW = "@", int(os.environ["PORT"]), os.environ.get("HOW", "")

def with_us():
    if HOW == "death":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer({"version": VERSION, "pid": os.getpid(), "root": os.getcwd()})

    def do_POST(self):
        argv = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        log = open("app/update.log", "ab")
        if HOW == "handles":
            os.set_inheritable(server.fileno(), True)
            os.set_inheritable(int(os.environ["KEPT"]), True)
        child = subprocess.Popen(argv, cwd="app", stdout=log, stderr=log, preexec_fn=with_us, close_fds=HOW != "handles")
        self.answer({"pid": child.pid})

    def log_message(self, *_):
        pass

def end(*_):
    if HOW == "group":
        os.killpg(0, signal.SIGKILL)
    os._exit(0)

signal.signal(signal.SIGTERM, end)
server = http.server.HTTPServer(("127.0.0.1", PORT), Handler)
server.serve_forever()
"#;

fn release(version: &str) -> Bundle {
    Bundle::release(version, "").file("run.py", SERVER.replace('@', version))
}

/// An install whose server is the one above, in a session of its own.
fn legacy(how: &str, more: &[(&str, &str)]) -> Install {
    let install = Install::new();
    install.write("run.py", SERVER.replace('@', "1.0"));
    install.write("updater.toml", "[server]\nsoak = \"100ms\"\n");
    let mut command = Command::new("setsid");
    command.args(["python3", "run.py"]).env("PORT", install.port.to_string()).env("HOW", how);
    install.start_command_with(command, more);
    install
}

fn within<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn last(install: &Install) -> Option<Value> {
    serde_json::from_slice(&fs::read(install.root.join(".updater/last.json")).ok()?).ok()
}

/// Has the server run an update as its child, and waits for its end.
fn update_from_inside(install: &Install, version: &str) -> Value {
    let bundle = install.save(&release(version));
    let root = install.root.to_str().unwrap();
    let argv = [env!("CARGO_BIN_EXE_updater"), "--root", root, "apply", bundle.to_str().unwrap()];
    run_as_child_of(install.port, &argv).expect("the server does not answer");
    within("the update", || last(install))
}

fn updated_by_its_own_child(how: &str) {
    let install = legacy(how, &[]);
    let before = install.pid();
    let end = update_from_inside(&install, "2.0");
    assert_eq!(end["outcome"], "applied", "{end}\n{}", install.read("app/update.log"));
    assert_eq!(install.version(), "2.0");
    assert_ne!(install.pid(), before);
    let log = install.read("app/update.log");
    // The file of our output lies in a folder that the bundle replaces.
    assert!(log.contains("commit: "), "the caller's file did not get the end of the story: {log}");
    assert_eq!(session_of(install.pid()), install.pid(), "the new server leads no session of its own");
}

/// Field 6 of `/proc/PID/stat`.
fn session_of(pid: u64) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap().parse().unwrap()
}

#[test]
fn a_server_is_updated_by_its_own_child() {
    updated_by_its_own_child("");
}

#[test]
fn a_server_that_kills_its_process_group_when_it_ends_is_updated_by_its_own_child() {
    updated_by_its_own_child("group");
}

#[test]
fn a_server_whose_children_die_with_it_is_updated_by_its_own_child() {
    updated_by_its_own_child("death");
}

#[test]
fn nothing_that_the_server_left_open_for_its_child_stays_open() {
    let (mut end, kept) = std::io::pipe().unwrap();
    let number = kept.as_raw_fd().to_string();
    let inheritable = Inheritable::new(&kept);
    let install = legacy("handles", &[("KEPT", &number)]);
    drop(inheritable);
    drop(kept);
    let outcome = update_from_inside(&install, "2.0");
    assert_eq!(outcome["outcome"], "applied", "{outcome}");
    assert_eq!(install.version(), "2.0");
    // Ends when nobody holds the other end any more: neither the new server nor an updater.
    let mut text = String::new();
    end.read_to_string(&mut text).unwrap();
    let open = fs::read_dir(format!("/proc/{}/fd", install.pid())).unwrap();
    let names: Vec<PathBuf> = open.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok()).collect();
    let foreign = |name: &&PathBuf| name.to_string_lossy().contains("update") || name.starts_with("pipe:");
    assert_eq!(names.iter().find(foreign), None, "{names:?}");
}

/// Lets the next children have a handle, until it is dropped.
struct Inheritable<'a>(&'a std::io::PipeWriter);

impl<'a> Inheritable<'a> {
    fn new(pipe: &'a std::io::PipeWriter) -> Inheritable<'a> {
        rustix::io::fcntl_setfd(pipe, rustix::io::FdFlags::empty()).unwrap();
        Inheritable(pipe)
    }
}

impl Drop for Inheritable<'_> {
    fn drop(&mut self) {
        rustix::io::fcntl_setfd(self.0, rustix::io::FdFlags::CLOEXEC).unwrap();
    }
}

#[test]
fn a_plan_from_inside_says_how_the_updater_would_leave() {
    let install = Install::running();
    let bundle = install.save(&install.bundle("2.0"));
    let root = install.root.to_str().unwrap();
    let argv = [env!("CARGO_BIN_EXE_updater"), "--root", root, "plan", bundle.to_str().unwrap(), "--json"];
    let answer = run_as_child_of(install.port, &argv).unwrap();
    let plan: Value = serde_json::from_str(answer["stdout"].as_str().unwrap()).unwrap();
    assert_eq!((plan["escape"].as_str(), &plan["problems"]), (Some("session"), &serde_json::json!([])), "{plan}");
    let outside = install.updater(&["plan", bundle.to_str().unwrap(), "--json"]).expect(0).object();
    assert_eq!(outside["escape"], "none");
}

#[test]
fn a_pipe_that_nobody_reads_does_not_end_an_update() {
    let install = Install::running();
    let bundle = install.save(&install.bundle("2.0"));
    let mut command = install.command(&["apply", bundle.to_str().unwrap(), "--json"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(install.version(), "2.0");
}

/// Runs an update at a terminal that hangs up as soon as `stage` was seen; gives back how it ended.
fn hang_up_at(stage: &str) -> (Install, Option<Value>) {
    let install = Install::running();
    // A hook that has no terminal to lose, and says something after it is gone.
    let hook = "[[hooks.after_swap]]\nrun = [\"sh\", \"-c\", \"sleep 0.3; echo said; tty && exit 1; exit 0\"]\n";
    let hook = if stage == "hooks" { hook } else { "" };
    install.write("updater.toml", format!("[server]\nsoak = \"300ms\"\n{hook}"));
    let bundle = install.save(&install.bundle("2.0"));
    let master = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
    rustix::io::fcntl_setfd(&master, rustix::io::FdFlags::CLOEXEC).unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let name = rustix::pty::ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let slave = || fs::File::options().read(true).write(true).open(&name).unwrap();
    let mut command = Command::new("setsid");
    command.args(["--ctty", env!("CARGO_BIN_EXE_updater"), "--root"]).arg(&install.root).arg("apply").arg(bundle);
    command.stdin(slave()).stdout(slave()).stderr(slave()).current_dir(install.scratch());
    let mut child = command.spawn().unwrap();
    drop(command);
    let events = install.root.join(".updater/events");
    let needle = format!("\"stage\":\"{stage}\"");
    within("the stage", || {
        let files = fs::read_dir(&events).into_iter().flatten().flatten();
        let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
        texts.into_iter().any(|text| text.contains(&needle)).then_some(())
    });
    drop(master);
    child.wait().unwrap();
    let end = last(&install);
    (install, end)
}

#[test]
fn a_terminal_that_hangs_up_in_any_stage_does_not_end_an_update() {
    for stage in [
        "fetch",
        "detect",
        "preflight",
        "stage",
        "backup",
        "stop",
        "backup-final",
        "swap",
        "verify",
        "hooks",
        "relaunch",
        "health",
    ] {
        let (install, end) = hang_up_at(stage);
        assert_eq!(end.unwrap_or_default()["outcome"], "applied", "{stage}");
        assert_eq!(install.version(), "2.0", "{stage}");
    }
}

fn detached(install: &Install, bundle: &Path) -> Output {
    // Its pipes end with it alone: `output` waits for whoever holds them.
    let output = install.command(&["apply", bundle.to_str().unwrap(), "--detach", "--json"]).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Output { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn a_detached_update_returns_while_it_goes_on_and_can_be_followed_to_its_end() {
    let install = Install::running();
    let bundle = install.save(&Bundle::release("2.0", "DELAY_MS = 1500\n"));
    let begun = detached(&install, &bundle).expect(0).object();
    assert_eq!(begun["schema"], 1);
    let place = |key: &str| PathBuf::from(begun[key].as_str().unwrap());
    assert_eq!(place("status"), install.root.join(".updater/status.json"));
    let under_way = install.updater(&["status", "--json"]).expect(0).object()["under_way"].clone();
    assert_eq!((&under_way["update_id"], &under_way["pid"]), (&begun["update_id"], &begun["pid"]), "it ended before");
    assert!(under_way["legacy_stage"]["percent"].as_u64().is_some(), "{under_way}");
    let seen = install.updater(&["status", "--follow", "--json"]).expect(0);
    let events = seen.events();
    let numbers: Vec<u64> = events.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    assert_eq!(seen.outcome(), "applied");
    assert_eq!(install.version(), "2.0");
    assert_eq!(fs::read_to_string(place("events")).unwrap(), seen.stdout);
    // It left its caller's session.
    assert_eq!(install.updater(&["status", "--follow"]).expect(0).stderr, "");
}

#[test]
fn the_exit_code_of_a_followed_update_is_that_of_the_update() {
    let install = Install::running();
    let bundle = install.save(&Bundle::release("2.0", "DELAY_MS = 1000\nEXIT = 1\n"));
    install.write("run.py", kit::script("1.0", "DELAY_MS = 1000\n"));
    detached(&install, &bundle).expect(0);
    let seen = install.updater(&["status", "--follow"]).expect(3);
    assert!(seen.stdout.contains("rolled-back"), "{seen:?}");
    assert_eq!(install.version(), "1.0");
}

#[test]
fn what_stops_a_detached_update_before_it_begins_is_told_to_its_caller() {
    let install = Install::running();
    let missing = detached(&install, Path::new("nowhere.zip")).expect(1);
    assert_eq!(missing.error_code(), "no-bundle");
    let bundle = install.save(&Bundle::release("2.0", "DELAY_MS = 2000\n"));
    detached(&install, &bundle).expect(0);
    let second = detached(&install, &bundle).expect(5);
    assert_eq!(second.error_code(), "locked");
    install.updater(&["status", "--follow"]).expect(0);
}

#[test]
fn a_first_process_passes_a_request_to_end_on_and_takes_the_exit_code_back() {
    let install = legacy("", &[]);
    let bundle = install.save(&release("2.0"));
    fs::create_dir_all(install.root.join(".updater")).unwrap();
    let lock = fs::File::create(install.root.join(".updater/lock")).unwrap();
    lock.lock().unwrap();
    let code = install.scratch().join("code");
    let line = format!(
        "'{}' --root '{}' apply '{}' --wait 2m & echo $! >'{1}.pid'; wait $!; echo $? >'{}'",
        env!("CARGO_BIN_EXE_updater"),
        install.root.display(),
        bundle.display(),
        code.display()
    );
    run_as_child_of(install.port, &["sh", "-c", &line]).unwrap();
    let place = PathBuf::from(format!("{}.pid", install.root.display()));
    let first = within("the first process", || fs::read_to_string(&place).ok()?.trim().parse::<i32>().ok());
    // The one outside waits for the lock.
    within("the one outside", || outside(&bundle));
    rustix::process::kill_process(rustix::process::Pid::from_raw(first).unwrap(), rustix::process::Signal::TERM)
        .unwrap();
    let code = within("its end", || fs::read_to_string(&code).ok().filter(|text| text.ends_with('\n')));
    assert_eq!(code.trim(), "1");
    assert_eq!(outside(&bundle), None, "it goes on");
    assert_eq!(install.version(), "1.0");
}

/// The pid of the updater outside that was started for `bundle`.
fn outside(bundle: &Path) -> Option<u32> {
    let name = bundle.to_str().unwrap();
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let words: Vec<&str> = line.split('\0').collect();
        (words.contains(&"__outside") && words.contains(&name)).then(|| entry.file_name().to_str()?.parse().ok())?
    })
}
