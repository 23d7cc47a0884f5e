//! The drop-in on a legacy server that knows nothing of this program: asked over HTTP, it starts its updater as
//! its own child and is then stopped by it. `scripts/test` makes the Python environment.
#![cfg(target_os = "linux")]

mod kit;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kit::{Bundle, Install};
use serde_json::Value;

/// The endpoints of the legacy server, and how it looks for its updater and starts it.
const SERVER: &str = r#"import os
import subprocess
import sys

from flask import Flask, jsonify, request

USE_WAITRESS = @WAITRESS
VERSION = "@VERSION"
port = int(os.environ.get('PORT', 8080))
app = Flask(__name__)
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'app')


@app.route('/api/sync/ping')
def ping():
    return jsonify(status='ok', version=VERSION, pid=os.getpid(), root=os.getcwd())


@app.route('/api/sync/update', methods=['POST'])
def update():
    asked = request.get_json()
    places = [os.path.join(ROOT, *name.split('/')) for name in (
        'app/utils/remote_updater.py', 'remote_updater.py', 'simple_remote_updater.py', 'utils/remote_updater.py')]
    script = next((place for place in places if os.path.exists(place)), None)
    if script is None:
        return jsonify(error='Updater script not found. Searched: %s' % places), 500
    command = [sys.executable, script, '--zip-url', asked['zip_url'], '--port', str(asked['port'])]
    if asked.get('use_waitress'):
        command.append('--use-waitress')
    os.makedirs(os.path.join(ROOT, 'instance'), exist_ok=True)
    log = open(os.path.join(ROOT, 'instance', 'update_log.txt'), 'w')
    subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
    return jsonify(status='started'), 202


if __name__ == '__main__':
    if USE_WAITRESS:
        import waitress
        waitress.serve(app, host='127.0.0.1', port=port)
    else:
        app.run(host='127.0.0.1', port=port, ssl_context=('ssl/cert.pem', 'ssl/key.pem'))
"#;

fn server(version: &str, waitress: bool) -> String {
    SERVER.replace("@VERSION", version).replace("@WAITRESS", if waitress { "True" } else { "False" })
}

/// A release that brings the old updater along, in the place from where it is called, and one in ours.
fn release(version: &str) -> Bundle {
    Bundle::release(version, "")
        .file("run.py", server(version, false))
        .file("app/utils/remote_updater.py", "raise SystemExit('the old updater')\n")
        .file("app/remote_updater.py", "raise SystemExit('shipped')\n")
}

fn python() -> PathBuf {
    let venv = std::env::var_os("UPDATER_TEST_VENV").expect("UPDATER_TEST_VENV is not set: run scripts/test");
    PathBuf::from(venv).join("bin/python")
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Asks by Python, which speaks TLS to a self-signed server without further packages.
fn ask(url: &str, body: Option<&str>) -> Option<(u16, Value)> {
    let code = "import ssl, sys, urllib.request as r, urllib.error\n\
                q = r.Request(sys.argv[1], sys.argv[2].encode() if len(sys.argv) > 2 else None,\n\
                              {'Content-Type': 'application/json'})\n\
                try:\n    a = r.urlopen(q, timeout=5, context=ssl._create_unverified_context())\n\
                except urllib.error.HTTPError as e:\n    a = e\n\
                print(a.status, a.read().decode())\n";
    let output = Command::new("python3").args(["-c", code, url]).args(body).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (status, answer) = text.split_once(' ')?;
    Some((status.parse().ok()?, serde_json::from_str(answer).ok()?))
}

struct Legacy {
    install: Install,
    scheme: &'static str,
    files: Child,
    files_port: u16,
}

impl Legacy {
    fn start(waitress: bool) -> Legacy {
        let install = Install::new();
        install.write("run.py", server("1.0", waitress));
        install.write("app/utils/remote_updater.py", "raise SystemExit('the old updater')\n");
        fs::create_dir(install.root.join("ssl")).unwrap();
        let words =
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout ssl/key.pem -out ssl/cert.pem";
        run(Command::new("openssl").args(words.split(' ')).current_dir(&install.root));
        let mut command = Command::new(python());
        command.arg("run.py").env("PORT", install.port.to_string());
        install.spawn(&mut command);
        let files_port = kit::free_port();
        let mut files = Command::new("python3");
        files.args(["-m", "http.server", "--bind", "127.0.0.1", &files_port.to_string()]);
        let files = files.current_dir(install.scratch()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let legacy = Legacy { install, scheme: if waitress { "http" } else { "https" }, files, files_port };
        legacy.within("it serves", || legacy.ping());
        legacy.within("the files are served", || std::net::TcpStream::connect(("127.0.0.1", files_port)).ok());
        legacy
    }

    fn within<T>(&self, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(found) = ask() {
                return found;
            }
            let log = fs::read_to_string(self.install.root.join("app/instance/update_log.txt")).unwrap_or_default();
            assert!(
                Instant::now() < deadline,
                "{what}: not in time: {log}{}",
                self.install.read("instance/server.log")
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn ping(&self) -> Option<Value> {
        Some(ask(&format!("{}://127.0.0.1:{}/api/sync/ping", self.scheme, self.install.port), None)?.1)
    }

    /// Asks for the update as another server of its kind would, with a port that is not its own.
    fn post(&self, bundle: &Path, more: &str) -> (u16, Value) {
        let name = bundle.file_name().unwrap().to_str().unwrap();
        let body = format!("{{\"zip_url\": \"http://127.0.0.1:{}/{name}\", \"port\": 8080{more}}}", self.files_port);
        let url = format!("{}://127.0.0.1:{}/api/sync/update", self.scheme, self.install.port);
        ask(&url, Some(&body)).expect("no answer to the request")
    }

    fn last(&self) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.install.root.join(".updater/last.json")).ok()?).ok()
    }
}

impl Drop for Legacy {
    fn drop(&mut self) {
        let _ = self.files.kill();
        let _ = self.files.wait();
    }
}

fn is_updated(waitress: bool) {
    let legacy = Legacy::start(waitress);
    let shim = legacy.install.updater(&["shim", "--json"]).expect(0).object();
    assert_eq!(shim["installed"], true);
    let text = legacy.install.read("app/remote_updater.py");
    let before = legacy.ping().unwrap();
    let bundle = legacy.install.save(&release("2.0"));
    let (status, answer) = legacy.post(&bundle, "");
    assert_eq!(status, 202, "{answer}");
    let end = legacy.within("the update", || legacy.last());
    let log = legacy.install.read("app/instance/update_log.txt");
    assert_eq!(end["outcome"], "applied", "{end}: {log}");
    assert_eq!(end["port"], legacy.install.port);
    // Over the same protocol, on the same port.
    let after = legacy.within("the new version", || legacy.ping());
    assert_eq!((&before["version"], &after["version"]), (&"1.0".into(), &"2.0".into()));
    assert_eq!(legacy.install.read("app/remote_updater.py"), text, "the shim did not outlive the update");
    legacy.within("the end of the story in the log of the caller", || {
        let log = legacy.install.read("app/instance/update_log.txt");
        log.contains("applied: ").then_some(())
    });
    // And once more, through the shim that is still there.
    let bundle = legacy.install.save(&release("3.0"));
    fs::remove_file(legacy.install.root.join(".updater/last.json")).unwrap();
    assert_eq!(legacy.post(&bundle, "").0, 202);
    legacy.within("the second update", || legacy.last());
    assert_eq!(legacy.within("3.0", || legacy.ping())["version"], "3.0");
}

#[test]
fn a_legacy_server_over_http_updates_itself_through_the_shim() {
    is_updated(true);
}

#[test]
fn a_legacy_server_over_https_updates_itself_through_the_shim() {
    is_updated(false);
}

#[test]
fn the_switch_to_waitress_that_the_caller_asks_for_is_made() {
    let mut legacy = Legacy::start(false);
    legacy.install.updater(&["shim"]).expect(0);
    let bundle = legacy.install.save(&release("2.0"));
    assert_eq!(legacy.post(&bundle, ", \"use_waitress\": true").0, 202);
    let end = legacy.within("the update", || legacy.last());
    assert_eq!(end["outcome"], "applied", "{end}");
    legacy.scheme = "http";
    assert_eq!(legacy.ping().expect("it does not serve over http")["version"], "2.0");
}

#[test]
fn a_bundle_that_cannot_be_downloaded_leaves_the_legacy_server_alone() {
    let legacy = Legacy::start(true);
    legacy.install.updater(&["shim"]).expect(0);
    let before = legacy.ping().unwrap();
    assert_eq!(legacy.post(Path::new("missing.zip"), "").0, 202);
    let end = legacy.within("the end", || legacy.last());
    assert_eq!((&end["exit_code"], &end["error"]["code"]), (&1.into(), &"download-failed".into()), "{end}");
    assert_eq!(legacy.ping().unwrap()["pid"], before["pid"]);
}

#[test]
fn a_shim_goes_as_it_came_and_a_foreign_file_stays() {
    let install = Install::new();
    install.updater(&["shim"]).expect(0);
    install.updater(&["shim"]).expect(0);
    install.updater(&["shim", "--remove"]).expect(0);
    assert!(!install.exists("app/remote_updater.py"));
    install.updater(&["shim", "--remove"]).expect(0);
    install.write("app/remote_updater.py", "# theirs\n");
    for arguments in [&["shim", "--json"][..], &["shim", "--remove", "--json"]] {
        let output = install.updater(arguments).expect(1);
        assert_eq!(output.object()["error"]["code"], "foreign-shim");
    }
    assert_eq!(install.read("app/remote_updater.py"), "# theirs\n");
}

#[test]
fn a_shim_whose_program_is_gone_says_so() {
    let install = Install::new();
    let program = install.scratch().join("updater");
    fs::copy(env!("CARGO_BIN_EXE_updater"), &program).unwrap();
    run(Command::new(&program).arg("--root").arg(&install.root).arg("shim"));
    let shim = install.root.join("app/remote_updater.py");
    let version = run(Command::new("python3").arg(&shim).arg("-V"));
    assert!(version.starts_with("updater "), "{version}");
    fs::remove_file(&program).unwrap();
    let output = Command::new("python3").arg(&shim).args(["--zip-url", "http://x/"]).output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert!(String::from_utf8(output.stderr).unwrap().contains("the updater is not at"));
}
