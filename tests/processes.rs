//! Which processes are the server's, and on which addresses: families, several ports, workers, parents that start
//! it again. In every test those who merely stand by live on.
#![cfg(target_os = "linux")]

mod kit;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kit::{Bundle, Install, Output, free_port, ping};

/// Serves as `HOW` says: on which addresses, with how many workers, how soon it is well.
const SERVER: &str = r#"
import http.server, json, os, socket, sys, threading, time
VERSION, PORT, HOW = "@", int(os.environ["PORT"]), os.environ.get("HOW", "")
BORN = time.time()

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        busy = HOW == "busy" and time.time() < BORN + 2
        body = json.dumps({"version": VERSION, "pid": os.getpid(), "root": os.getcwd()}).encode()
        self.send_response(503 if busy else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

def serve(host, port, family=socket.AF_INET, dual=False, reuse=False):
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
    listener.bind((host, port))
    listener.listen(64)
    server = http.server.ThreadingHTTPServer((host, port), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    return server

if HOW == "v6":
    serve("::1", PORT, socket.AF_INET6).serve_forever()
elif HOW == "dual":
    serve("::", PORT, socket.AF_INET6, dual=True).serve_forever()
elif HOW == "workers":
    for _ in range(2):
        if os.fork() == 0:
            serve("127.0.0.1", PORT, reuse=True).serve_forever()
    while True:
        time.sleep(1)
elif HOW in ("heir", "stranger"):
    # Leaves its socket to a process of its own session, which init adopts.
    server = serve("127.0.0.1", PORT)
    server.socket.set_inheritable(True)
    heir = ["python3", "app/heir.py"] if HOW == "heir" else ["sleep", "600"]
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            script = os.path.abspath(heir[1])
            os.chdir("/")
            os.execvp(heir[0], [heir[0], script] if HOW == "heir" else heir)
        os._exit(0)
    os.wait()
    server.socket.set_inheritable(False)
    server.serve_forever()
elif HOW == "ports" and "MORE":
    threading.Thread(target=serve("127.0.0.1", int(os.environ["SECOND"])).serve_forever, daemon=True).start()
serve("127.0.0.1", PORT).serve_forever()
"#;

fn release(version: &str) -> Bundle {
    Bundle::release(version, "").file("run.py", SERVER.replace('@', version))
}

/// An install with this server, not yet started.
fn install() -> Install {
    let install = Install::new();
    install.write("run.py", SERVER.replace('@', "1.0"));
    install.write("updater.toml", "[server]\nsoak = \"100ms\"\nhealth_timeout = \"15s\"\n");
    install
}

fn server(install: &Install, how: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg("run.py").env("PORT", install.port.to_string()).env("HOW", how);
    command
}

/// What stands by and must live on: a client of the port, another install's server, one who reads a log in the
/// root, a shell that stands there, and a program with the server's name elsewhere.
struct Bystanders {
    _client: Option<TcpStream>,
    other: Install,
    other_pid: u64,
    children: Vec<(&'static str, Child)>,
}

impl Bystanders {
    fn beside(install: &Install) -> Bystanders {
        let spawn = |command: &mut Command| {
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        };
        let elsewhere = install.scratch().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("run.py"), "import time; time.sleep(600)\n").unwrap();
        let root = &install.root;
        let children = vec![
            ("a reader", spawn(Command::new("tail").args(["-f", "run.py"]).current_dir(root))),
            ("a shell", spawn(Command::new("sh").args(["-i"]).current_dir(root))),
            ("a namesake", spawn(Command::new("python3").arg("run.py").current_dir(&elsewhere))),
        ];
        let other = Install::running();
        let other_pid = other.pid();
        Bystanders { _client: TcpStream::connect(("127.0.0.1", install.port)).ok(), other, other_pid, children }
    }

    fn live(mut self) {
        for (who, child) in &mut self.children {
            assert!(child.try_wait().unwrap().is_none(), "{who} was ended");
        }
        assert_eq!(self.other.pid(), self.other_pid, "another install's server was ended");
    }
}

impl Drop for Bystanders {
    fn drop(&mut self) {
        for (_, child) in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
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

/// The version that answers on `host`.
fn version_at(host: &str, port: u16) -> Option<String> {
    let url = format!("http://{host}:{port}/");
    let code = "import json, sys, urllib.request as r; print(json.load(r.urlopen(sys.argv[1], timeout=5))['version'])";
    let output = Command::new("python3").args(["-c", code, &url]).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_string())
}

#[test]
fn a_server_of_either_family_or_both_comes_back_on_its_address() {
    if TcpListener::bind("[::1]:0").is_err() {
        panic!("this machine has no IPv6 loopback, so this cannot be shown");
    }
    for (how, host) in [("v6", "[::1]"), ("dual", "[::1]"), ("dual", "127.0.0.1"), ("", "127.0.0.1")] {
        let install = install();
        install.spawn(&mut server(&install, how));
        within(how, || version_at(host, install.port));
        let bystanders = Bystanders::beside(&install);
        install.apply(&release("2.0")).expect(0);
        assert_eq!(version_at(host, install.port).as_deref(), Some("2.0"), "{how} {host}");
        bystanders.live();
    }
}

#[test]
fn all_ports_of_a_server_must_be_back() {
    let install = install();
    let second = free_port();
    let mut command = server(&install, "ports");
    command.env("SECOND", second.to_string());
    install.start_command(command);
    within("the second port", || version_at("127.0.0.1", second));
    let bystanders = Bystanders::beside(&install);
    install.apply(&release("2.0")).expect(0);
    assert_eq!(version_at("127.0.0.1", second).as_deref(), Some("2.0"));
    install.write("updater.toml", "[server]\nsoak = \"100ms\"\nhealth_timeout = \"3s\"\n");
    let less = release("3.0").file("run.py", SERVER.replace('@', "3.0").replace("\"MORE\"", "False"));
    let output = install.apply(&less).expect(3);
    assert!(output.finished()["error"]["message"].as_str().unwrap().contains(&second.to_string()), "{output:?}");
    assert_eq!(version_at("127.0.0.1", second).as_deref(), Some("2.0"));
    assert_eq!(install.version(), "2.0");
    bystanders.live();
}

/// The processes that hold the listening socket of this port beside `server`.
fn other_holders(port: u16, server: u64) -> Vec<u32> {
    let held = updater::ports::held_by(port).unwrap();
    held.into_iter().flat_map(|listener| listener.pids).filter(|pid| u64::from(*pid) != server).collect()
}

#[test]
fn a_stranger_who_shares_the_socket_is_named_before_any_change() {
    let install = install();
    install.start_command(server(&install, "stranger"));
    let stranger = within("the stranger", || other_holders(install.port, install.pid()).first().copied());
    let pid = install.pid();
    let output = install.apply(&release("2.0")).expect(1);
    let error = output.finished()["error"].clone();
    let lives = updater::system::processes::identity(stranger).unwrap().is_some();
    kit::kill(stranger);
    assert_eq!(error["code"], "port-shared");
    assert!(error["message"].as_str().unwrap().contains(&format!("pid {stranger}")), "{error}");
    assert!(lives, "the stranger was ended");
    assert_eq!(install.pid(), pid);
}

#[test]
fn one_of_the_install_that_left_the_tree_with_its_socket_ends_with_it() {
    let install = install();
    install.write("app/heir.py", "import time; time.sleep(600)\n");
    install.start_command(server(&install, "heir"));
    let heir = within("the heir", || {
        let holders = other_holders(install.port, install.pid());
        // Only once it has become the script.
        holders
            .into_iter()
            .find(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("heir.py")))
    });
    let bystanders = Bystanders::beside(&install);
    install.apply(&release("2.0").file("app/heir.py", "import time; time.sleep(600)\n")).expect(0);
    assert_eq!(install.version(), "2.0");
    assert_eq!(updater::system::processes::identity(heir).unwrap(), None, "it goes on");
    for next in other_holders(install.port, install.pid()) {
        kit::kill(next);
    }
    bystanders.live();
}

#[test]
fn workers_that_share_a_port_are_one_server() {
    let install = install();
    install.start_command(server(&install, "workers"));
    let bystanders = Bystanders::beside(&install);
    let plan = install.updater(&["plan", install.save(&release("2.0")).to_str().unwrap(), "--json"]).expect(0).object();
    assert_eq!(plan["server"]["processes"].as_array().unwrap().len(), 3, "{plan}");
    install.apply(&release("2.0")).expect(0);
    assert_eq!(install.version(), "2.0");
    bystanders.live();
}

#[test]
fn a_new_version_that_is_busy_at_first_is_waited_for() {
    let install = install();
    let pid = install.spawn(&mut server(&install, "busy"));
    within("it is well", || ping(install.port).filter(|(status, _)| *status == 200));
    install.apply(&release("2.0")).expect(0);
    assert_ne!(install.pid(), u64::from(pid));
    assert_eq!(ping(install.port).unwrap().0, 200);
}

/// Ends what a test started, by pid, with all below it.
struct Ended(Child);
impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn started_by(install: &Install, program: &str, arguments: &[&str]) -> Ended {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&install.root).env("PORT", install.port.to_string());
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    install.wait_for_answer();
    Ended(child)
}

fn is_refused(install: &Install, output: &Output, word: &str) {
    let error = output.finished()["error"].clone();
    assert_eq!(error["code"], "respawned", "{error}");
    assert!(error["remedy"].as_str().unwrap().contains(word), "{error}");
    assert_eq!(install.version(), "1.0");
    assert!(!install.exists("backups"));
}

#[test]
fn a_loop_that_starts_the_server_again_is_refused_before_any_change() {
    let install = install();
    let parent = started_by(&install, "sh", &["-c", "while :; do python3 run.py; sleep 0.1; done"]);
    let (bystanders, pid) = (Bystanders::beside(&install), install.pid());
    let output = install.apply(&release("2.0")).expect(1);
    is_refused(&install, &output, "loop");
    assert_eq!(install.pid(), pid);
    drop(parent);
    bystanders.live();
}

#[test]
fn a_shell_that_starts_the_server_once_is_no_loop() {
    let install = install();
    let text = "for x in 1 2; do :; done; python3 run.py & wait";
    let parent = started_by(&install, "sh", &["-c", text]);
    install.apply(&release("2.0")).expect(0);
    assert_eq!(install.version(), "2.0");
    drop(parent);
}

/// Starts its server again whatever happens; nothing in its name tells so.
const KEEPER: &str = "import subprocess\nwhile True:\n    subprocess.run(['python3', 'run.py'])\n";

#[test]
fn a_parent_of_unknown_kind_that_starts_the_server_again_ends_in_a_rollback_with_a_remedy() {
    let install = install();
    let keeper = install.scratch().join("keeper.py");
    fs::write(&keeper, KEEPER).unwrap();
    let parent = started_by(&install, "python3", &[keeper.to_str().unwrap()]);
    let before = install.read("run.py");
    let output = install.apply(&release("2.0"));
    let error = output.finished()["error"].clone();
    let remedy = error["remedy"].as_str().unwrap();
    if output.code == 4 {
        // It was quick enough to start the new version itself: nobody but a person knows what that wrote.
        assert_eq!(error["code"], "data-undecided", "{error}");
        assert!(error["message"].as_str().unwrap().contains("was not started by this update"), "{error}");
        assert!(remedy.contains("recover"), "{error}");
        drop(parent);
        install.updater(&["recover", "--data", "keep", "--json"]).expect(0);
        // What it started stands, if that is the new version and well: then that is committed.
        let (version, new) = (install.version(), release("2.0").files["site-2.0/run.py"].clone());
        let wanted = if version == "1.0" { before } else { String::from_utf8(new).unwrap() };
        assert_eq!(install.read("run.py"), wanted, "{version}");
    } else {
        assert_eq!((output.code, &error["code"]), (3, &"server-returned".into()), "{error}");
        assert!(remedy.contains("respawns"), "{error}");
        drop(parent);
        assert_eq!((install.version(), install.read("run.py")), ("1.0".into(), before));
    }
}

#[test]
fn on_failure_the_new_servers_own_log_is_shown() {
    let install = Install::running();
    let bundle = install.save(&Bundle::release("2.0", "EXIT = 7\n"));
    let output = install.apply_with(&bundle, &[]).expect(3);
    let warning = output.events().into_iter().find(|event| event["code"] == "server-log").expect("no log was shown");
    let text = warning["message"].as_str().unwrap();
    assert!(text.contains("EXIT = 7") && !text.contains("serving 1.0"), "{text}");
    let output = install.updater(&["apply", bundle.to_str().unwrap()]).expect(3);
    assert!(output.stderr.contains("the script says EXIT = 7"), "{output:?}");
}

#[test]
fn where_the_port_of_a_stopped_server_comes_from_is_said() {
    let port = free_port();
    let told = |more: &[&str], toml: &str, env: &str| {
        let install = Install::new();
        install.write("updater.toml", toml);
        install.write(".env", env);
        let bundle = install.save(&install.bundle("2.0"));
        let arguments = [&["apply", bundle.to_str().unwrap(), "--json", "--no-start"][..], more].concat();
        let output = install.updater(&arguments);
        let is_detect = |event: &serde_json::Value| event["stage"] == "detect" && event["state"] == "done";
        let event = output.events().into_iter().find(is_detect).unwrap_or_else(|| panic!("{output:?}"));
        event["message"].as_str().unwrap().to_string()
    };
    let env = &format!("A=1\nexport PORT=\"{port}\"\n");
    for (more, toml, env, expected) in [
        (&[][..], "", "", "8080 by run.py".to_string()),
        (&[], "", env, format!("{port} by .env")),
        (&[], "[server]\nenv = { PORT = \"81\" }\n", env, "81 by [server] env".to_string()),
        (&[], "[server]\nport = 82\n", env, "82 by [server] port".to_string()),
        (&["--port", "83"], "[server]\nport = 82\n", env, "83 by --port".to_string()),
    ] {
        let message = told(more, toml, env);
        assert!(message.ends_with(&format!("port {expected}")), "{message}, not {expected}");
    }
}
