//! Python servers as the field has them: Flask over self-signed HTTPS, waitress, a venv.
//!
//! `scripts/test` makes the Python environment and names it in `UPDATER_TEST_VENV`.

mod kit;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kit::{Bundle, Install};
use serde_json::Value;

fn venv() -> PathBuf {
    let path = std::env::var_os("UPDATER_TEST_VENV").expect("UPDATER_TEST_VENV is not set: run scripts/test");
    PathBuf::from(path)
}

/// As `script`, but started by a program of its own (gunicorn) or with the reloader.
fn served_by(version: &str, start: &str) -> String {
    let text = script(version, true);
    let (head, _) = text.split_once("if __name__").unwrap();
    format!("{head}{start}")
}

fn script(version: &str, waitress: bool) -> String {
    let waitress = if waitress { "True" } else { "False" };
    format!(
        r#"import os
import sys

from flask import Flask, jsonify

USE_WAITRESS = {waitress}
VERSION = "{version}"
port = int(os.environ.get('PORT', 8080))
app = Flask(__name__)


@app.route('/api/sync/ping')
def ping():
    return jsonify(status='ok', version=VERSION, pid=os.getpid(), prefix=sys.prefix,
                   root=os.getcwd(), argv=sys.argv, mark=os.environ.get('STANDIN_MARK'))


if __name__ == '__main__':
    if USE_WAITRESS:
        import waitress
        waitress.serve(app, host='127.0.0.1', port=port)
    else:
        app.run(host='127.0.0.1', port=port, ssl_context=('ssl/cert.pem', 'ssl/key.pem'))
"#
    )
}

fn release(version: &str, waitress: bool) -> Bundle {
    Bundle::release(version, "").file("run.py", script(version, waitress))
}

fn run_to_end(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn make_certificate(install: &Install) {
    std::fs::create_dir(install.root.join("ssl")).unwrap();
    run_to_end(
        Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
            .args(["-keyout", "ssl/key.pem", "-out", "ssl/cert.pem"])
            .current_dir(&install.root),
    );
}

/// A venv inside the install that sees the packages of the test environment.
fn make_venv(install: &Install) -> PathBuf {
    run_to_end(Command::new("python3").args(["-m", "venv", "--without-pip", ".venv"]).current_dir(&install.root));
    let packages = site_packages(&venv());
    let link = site_packages(&install.root.join(".venv")).join("packages.pth");
    std::fs::write(link, format!("{}\n", packages.display())).unwrap();
    install.root.join(".venv/bin/python")
}

fn site_packages(venv: &Path) -> PathBuf {
    let versions = std::fs::read_dir(venv.join("lib")).unwrap();
    versions.map(|entry| entry.unwrap().path().join("site-packages")).find(|path| path.is_dir()).unwrap()
}

fn start(install: &Install, python: &Path, scheme: &str) -> Value {
    let mut command = Command::new(python);
    command.args(["run.py", "--flag", "two words"]);
    command.env("PORT", install.port.to_string()).env("STANDIN_MARK", "kept");
    install.spawn(&mut command);
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(answer) = ask(install, scheme) {
            return answer;
        }
        let log = install.read("instance/server.log");
        assert!(Instant::now() < deadline, "the server does not answer: {log}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Asks by Python, which speaks TLS to a self-signed server without further packages.
fn ask(install: &Install, scheme: &str) -> Option<Value> {
    let code = "import ssl, sys, urllib.request as r; \
                print(r.urlopen(sys.argv[1], timeout=5, context=ssl._create_unverified_context()).read().decode())";
    let url = format!("{scheme}://127.0.0.1:{}/api/sync/ping", install.port);
    let output = Command::new("python3").args(["-c", code, &url]).output().unwrap();
    serde_json::from_slice(&output.stdout).ok()
}

fn update_keeps(scheme: &str, waitress: bool, own_venv: bool) {
    let install = Install::new();
    install.write("run.py", script("1.0", waitress));
    if !waitress {
        make_certificate(&install);
    }
    let python = if own_venv { make_venv(&install) } else { venv().join("bin/python") };
    let before = start(&install, &python, scheme);
    install.apply(&release("2.0", waitress)).expect(0);

    let after = ask(&install, scheme).expect("the updated server does not answer as before");
    assert_eq!(before["version"], "1.0");
    assert_eq!(after["version"], "2.0");
    assert_ne!(after["pid"], before["pid"]);
    for same in ["prefix", "root", "argv", "mark"] {
        assert_eq!(after[same], before[same], "{same}");
    }
    if own_venv {
        assert_eq!(after["prefix"].as_str().map(Path::new), Some(install.root.join(".venv").as_path()));
    }
}

#[test]
fn flask_with_a_self_signed_certificate_comes_back_over_https() {
    update_keeps("https", false, false);
}

#[test]
fn waitress_comes_back_over_http() {
    update_keeps("http", true, false);
}

#[test]
fn a_server_started_from_its_venv_keeps_the_venv() {
    update_keeps("http", true, true);
}

#[test]
fn a_stopped_server_is_started_from_the_venv_of_the_install() {
    let install = Install::new();
    install.write("run.py", script("1.0", true));
    make_venv(&install);
    install.write("updater.toml", format!("[server]\nport = {0}\nenv = {{ PORT = \"{0}\" }}\n", install.port));
    install.apply(&release("2.0", true)).expect(0);
    let after = ask(&install, "http").expect("the server was not started");
    assert_eq!(after["prefix"].as_str().map(Path::new), Some(install.root.join(".venv").as_path()));
}

#[test]
fn a_release_that_fails_to_import_is_rolled_back() {
    let install = Install::new();
    install.write("run.py", script("1.0", true));
    start(&install, &venv().join("bin/python"), "http");
    let broken = format!("import no_such_module\n{}", script("2.0", true));
    install.apply(&Bundle::release("2.0", "").file("run.py", broken)).expect(3);
    assert_eq!(ask(&install, "http").expect("the old server is gone")["version"], "1.0");
}

/// Starts `argv` in the root with the install's port in its environment, and waits for the answer over http.
fn start_program(install: &Install, argv: &[&str]) -> Value {
    let mut command = Command::new(venv().join("bin").join(argv[0]));
    command.args(&argv[1..]).env("PORT", install.port.to_string());
    install.spawn(&mut command);
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(answer) = ask(install, "http") {
            return answer;
        }
        assert!(Instant::now() < deadline, "no answer: {}", install.read("instance/server.log"));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A server that counts the connections which say nothing and are still open when the next one comes.
const LISTENER: &str = r#"import json, os, socket, sys, threading
VERSION = "@"
silent, idle = [], 0


def answer(peer):
    request = peer.recv(65536)
    if request:
        silent.remove(peer)
        body = json.dumps({"version": VERSION, "pid": os.getpid(), "root": os.getcwd(), "idle": idle}).encode()
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
    peer.close()


def is_idle(peer):
    try:
        peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)  # something came, or its end
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
while True:
    peer, _ = server.accept()
    idle += sum(is_idle(other) for other in silent[:])
    silent.append(peer)
    threading.Thread(target=answer, args=(peer,), daemon=True).start()
"#;

#[test]
fn no_question_leaves_a_connection_open() {
    let install = Install::new();
    install.write("run.py", LISTENER.replace('@', "1.0"));
    let before = start_program(&install, &["python", "run.py"]);
    install.apply(&Bundle::release("2.0", "").file("run.py", LISTENER.replace('@', "2.0"))).expect(0);
    let after = ask(&install, "http").expect("the server does not answer");
    assert_eq!((&before["version"], &after["version"]), (&"1.0".into(), &"2.0".into()));
    assert_eq!(after["idle"], 0, "a probe left its connection open");
    // A connection that really idles is counted.
    let idle = std::net::TcpStream::connect(("127.0.0.1", install.port)).unwrap();
    assert_eq!(ask(&install, "http").unwrap()["idle"], 1);
    drop(idle);
}

fn gunicorn_comes_back(more: &[&str]) {
    let install = Install::new();
    install.write("run.py", served_by("1.0", ""));
    let address = format!("127.0.0.1:{}", install.port);
    let argv = [&["gunicorn", "--workers", "2", "--bind", &address][..], more, &["run:app"]].concat();
    let before = start_program(&install, &argv);
    let plan = install.updater(&["plan", install.save(&release("2.0", true)).to_str().unwrap(), "--json"]);
    assert_eq!(plan.expect(0).object()["server"]["processes"].as_array().unwrap().len(), 3, "a master and its workers");
    let bundle = Bundle::release("2.0", "").file("run.py", served_by("2.0", ""));
    let end = install.apply(&bundle).expect(0).finished();
    let after = ask(&install, "http").expect("gunicorn does not answer");
    assert_eq!((&before["version"], &after["version"]), (&"1.0".into(), &"2.0".into()));
    assert_ne!(end["pid"], after["pid"], "the master's pid is told, not a worker's");
    // One that fails at its import goes back as a whole.
    let broken = format!("import no_such_module\n{}", served_by("3.0", ""));
    install.apply(&Bundle::release("3.0", "").file("run.py", broken)).expect(3);
    assert_eq!(ask(&install, "http").expect("the old server is gone")["version"], "2.0");
}

#[test]
fn gunicorn_with_its_workers_comes_back() {
    gunicorn_comes_back(&[]);
}

#[test]
fn gunicorn_with_a_preloaded_program_comes_back() {
    gunicorn_comes_back(&["--preload"]);
}

#[test]
fn the_pair_of_the_reloader_comes_back() {
    let start = "app.run(host='127.0.0.1', port=port, use_reloader=True)\n";
    let install = Install::new();
    install.write("run.py", served_by("1.0", start));
    let before = start_program(&install, &["python", "run.py"]);
    install.apply(&Bundle::release("2.0", "").file("run.py", served_by("2.0", start))).expect(0);
    let after = ask(&install, "http").expect("the server does not answer");
    assert_eq!((&before["version"], &after["version"]), (&"1.0".into(), &"2.0".into()));
}

#[test]
fn a_server_of_supervisord_is_refused_by_name() {
    let install = Install::new();
    install.write("run.py", script("1.0", true));
    let folder = install.scratch().join("supervisor");
    std::fs::create_dir(&folder).unwrap();
    let config = folder.join("s.conf");
    let text = format!(
        "[supervisord]\nnodaemon=true\nlogfile={0}/log\npidfile={0}/pid\n\
         [program:web]\ncommand={1} run.py\ndirectory={2}\nenvironment=PORT=\"{3}\"\nautorestart=true\n",
        folder.display(),
        venv().join("bin/python").display(),
        install.root.display(),
        install.port
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(venv().join("bin/supervisord"));
    command.arg("-c").arg(&config).current_dir(&folder);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut supervisor = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while ask(&install, "http").is_none() {
        assert!(Instant::now() < deadline, "supervisord does not start it");
        std::thread::sleep(Duration::from_millis(50));
    }
    let pid = ask(&install, "http").unwrap()["pid"].clone();
    let output = install.apply(&release("2.0", true));
    let error = output.finished()["error"].clone();
    let now = ask(&install, "http").map(|answer| answer["pid"].clone());
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    assert_eq!((output.code, &error["code"], now), (1, &"respawned".into(), Some(pid)), "{error}");
    assert!(error["remedy"].as_str().unwrap().contains("supervisorctl stop"), "{error}");
}
