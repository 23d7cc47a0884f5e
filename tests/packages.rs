//! Packages: a release that asks for others, a real environment, a real pip, an index of our own.
//!
//! `scripts/test` makes the Python environment and names it in `UPDATER_TEST_VENV`.
#![cfg(unix)]

mod kit;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kit::{Bundle, Install, Output};
use serde_json::Value;

/// A wheel with one module; `damage`: its module cannot be unpacked, which shows only when it is installed.
fn wheel(name: &str, version: &str, damage: bool) -> Vec<u8> {
    let info = format!("{name}-{version}.dist-info");
    let module = format!("VERSION = '{version}'  # some bytes that can be told from others\n");
    let files = [
        (format!("{name}.py"), module.clone()),
        (format!("{info}/METADATA"), format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")),
        (
            format!("{info}/WHEEL"),
            "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n".into(),
        ),
        (format!("{info}/RECORD"), format!("{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")),
    ];
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (path, text) in &files {
        zip.start_file(path.as_str(), stored).unwrap();
        zip.write_all(text.as_bytes()).unwrap();
    }
    let mut bytes = zip.finish().unwrap().into_inner();
    if damage {
        let at = bytes.windows(module.len()).position(|part| part == module.as_bytes()).unwrap();
        bytes[at] ^= 1;
    }
    bytes
}

/// A package index over http, as PEP 503 has it, that remembers what it was asked for.
struct Index {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Index {
    fn of(wheels: &[(&str, &str, bool)]) -> Index {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/simple/", server.local_addr().unwrap());
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (name, version, damage) in wheels {
            let file = format!("/files/{name}-{version}-py3-none-any.whl");
            let page = files.entry(format!("/simple/{name}/")).or_default();
            page.extend(format!("<a href=\"{file}\">{}</a>\n", file.rsplit('/').next().unwrap()).bytes());
            files.insert(file, wheel(name, version, *damage));
        }
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for peer in server.incoming().flatten() {
                let mut reader = BufReader::new(peer);
                let mut first = String::new();
                let _ = reader.read_line(&mut first);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                    line.clear();
                }
                let path = first.split(' ').nth(1).unwrap_or_default().to_string();
                log.lock().unwrap().push(path.clone());
                let kind = if path.ends_with('/') { "text/html" } else { "application/octet-stream" };
                let (status, body) = files.get(&path).map_or((404, &[][..]), |body| (200, body.as_slice()));
                let head = format!(
                    "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let stream = reader.get_mut();
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.read(&mut [0; 64]);
            }
        });
        Index { url, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// No index at all: nobody listens there.
fn nowhere() -> String {
    format!("http://127.0.0.1:{}/simple/", kit::free_port())
}

fn script(version: &str) -> String {
    format!(
        r#"import os
import sys
import greet
from flask import Flask, jsonify

app = Flask(__name__)


@app.route('/api/sync/ping')
def ping():
    return jsonify(status='ok', version='{version}', greet=greet.VERSION, pid=os.getpid(), prefix=sys.prefix,
                   root=os.getcwd())


app.run(host='127.0.0.1', port=int(os.environ['PORT']))
"#
    )
}

fn release(version: &str, requirements: &str) -> Bundle {
    Bundle::release(version, "").file("run.py", script(version)).file("requirements.txt", requirements)
}

fn shared() -> PathBuf {
    let path = std::env::var_os("UPDATER_TEST_VENV").expect("UPDATER_TEST_VENV is not set: run scripts/test");
    PathBuf::from(path)
}

fn site_packages(venv: &Path) -> PathBuf {
    let versions = fs::read_dir(venv.join("lib")).unwrap();
    versions.map(|entry| entry.unwrap().path().join("site-packages")).find(|path| path.is_dir()).unwrap()
}

fn run_to_end(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{command:?}: {said:?}");
}

/// An install whose server runs from its own environment, with greet 1.0 in it. The other packages (Flask, pip) are
/// seen through a `.pth` file.
fn install() -> Install {
    let install = Install::new();
    make_environment(&install, &["--without-pip"], true);
    start(&install, &install.root.join(".venv/bin/python"));
    install
}

fn make_environment(install: &Install, options: &[&str], with_pip: bool) {
    install.write("run.py", script("1.0"));
    install.write("requirements.txt", "flask\ngreet==1.0\n");
    install.write("updater.toml", "[server]\nsoak = \"100ms\"\n");
    run_to_end(Command::new("python3").args(["-m", "venv"]).args(options).arg(".venv").current_dir(&install.root));
    let packages = site_packages(&install.root.join(".venv"));
    if with_pip {
        fs::write(packages.join("shared.pth"), format!("{}\n", site_packages(&shared()).display())).unwrap();
    } else {
        for entry in fs::read_dir(site_packages(&shared())).unwrap().map(Result::unwrap) {
            if !entry.file_name().to_string_lossy().starts_with("pip") {
                std::os::unix::fs::symlink(entry.path(), packages.join(entry.file_name())).ok();
            }
        }
    }
    let wheels = install.scratch().join("wheels");
    fs::create_dir_all(&wheels).unwrap();
    let file = wheels.join("greet-1.0-py3-none-any.whl");
    fs::write(&file, wheel("greet", "1.0", false)).unwrap();
    let mut pip = Command::new(shared().join("bin/python"));
    pip.args(["-m", "pip", "--python"]).arg(install.root.join(".venv/bin/python"));
    run_to_end(pip.args(["install", "--quiet", "--no-index", "--disable-pip-version-check"]).arg(&file));
}

fn start(install: &Install, python: &Path) {
    let mut command = Command::new(python);
    command.arg("run.py").env("PORT", install.port.to_string());
    install.start_command(command);
}

fn apply(install: &Install, bundle: &Bundle, index: &str) -> Output {
    updater(install, &["apply", install.save(bundle).to_str().unwrap(), "--json"], index)
}

fn updater(install: &Install, arguments: &[&str], index: &str) -> Output {
    let mut command = install.command(arguments);
    command.env("PIP_INDEX_URL", index).env("PIP_RETRIES", "0").env("PIP_NO_CACHE_DIR", "1");
    kit::run(command)
}

/// Where each file of the environment is: an environment that was put back is the very same.
fn inodes(install: &Install) -> BTreeMap<PathBuf, (u64, i64, i64)> {
    let all = walkdir::WalkDir::new(install.root.join(".venv")).into_iter().map(Result::unwrap);
    let metadata = |item: walkdir::DirEntry| {
        let data = item.path().symlink_metadata().unwrap();
        (item.into_path(), (data.ino(), data.mtime(), data.mtime_nsec()))
    };
    // What the server itself compiles comes and goes.
    all.filter(|item| !item.path().components().any(|part| part.as_os_str() == "__pycache__")).map(metadata).collect()
}

fn codes(output: &Output, event: &str) -> Vec<String> {
    let events = output.events().into_iter().filter(|e| e["event"] == event);
    events.map(|e| e["code"].as_str().unwrap_or_default().to_string()).collect()
}

#[test]
fn a_release_gets_the_packages_that_it_asks_for() {
    let install = install();
    assert_eq!(install.answer()["greet"], "1.0");
    let index = Index::of(&[("greet", "1.0", false), ("greet", "2.0", false), ("alpha", "3.0", false)]);
    let bundle = release("2.0", "flask\ngreet>=2\n-r more.txt\n").file("more.txt", "alpha\n");
    let plan = updater(&install, &["plan", install.save(&bundle).to_str().unwrap(), "--json"], &index.url).expect(0);
    let plan = plan.object();
    assert_eq!(plan["hooks"].as_array().unwrap().len(), 2, "{plan}");
    assert!(index.asked().is_empty(), "a plan asked the network: {:?}", index.asked());

    let output = apply(&install, &bundle, &index.url).expect(0);
    let answer = install.answer();
    assert_eq!((&answer["version"], &answer["greet"]), (&"2.0".into(), &"2.0".into()), "{output:?}");
    assert_eq!(answer["prefix"].as_str().map(Path::new), Some(install.root.join(".venv").as_path()));
    assert!(site_packages(&install.root.join(".venv")).join("alpha.py").is_file());
    // Only what was missing was fetched.
    let files: Vec<String> = index.asked().into_iter().filter(|path| path.starts_with("/files/")).collect();
    assert!(files.iter().all(|file| file.contains("greet-2.0") || file.contains("alpha-3.0")), "{files:?}");
    assert!(!install.exists(".updater/originals") && !install.exists(".updater/staging"));
    updater(&install, &["verify"], &index.url).expect(0);
}

#[test]
fn a_release_may_bring_its_packages_itself() {
    for lines in
        ["--no-index\n--find-links wheels\nflask\ngreet==2.0\n", "flask\n./wheels/greet-2.0-py3-none-any.whl\n"]
    {
        let install = install();
        let bundle = release("2.0", lines).file("wheels/greet-2.0-py3-none-any.whl", wheel("greet", "2.0", false));
        apply(&install, &bundle, &nowhere()).expect(0);
        assert_eq!(install.answer()["greet"], "2.0", "{lines}");
    }
}

#[test]
fn a_package_of_an_address_is_fetched_before_the_stop_alone() {
    let install = install();
    let index = Index::of(&[("greet", "2.0", false)]);
    let file = index.url.replace("simple/", "files/greet-2.0-py3-none-any.whl");
    // The hook before the stop is the last that sees the network.
    install.write(
        "updater.toml",
        "[server]\nsoak = \"100ms\"\n[[hooks.before_stop]]\nrun = [\"touch\", \"../../../../stop\"]\n",
    );
    let stop = install.scratch().join("stop");
    let asked = Arc::clone(&index.asked);
    let watch = std::thread::spawn(move || {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !stop.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        asked.lock().unwrap().len()
    });
    apply(&install, &release("2.0", &format!("flask\ngreet @ {file}\n")), &index.url).expect(0);
    assert_eq!(install.answer()["greet"], "2.0");
    assert_eq!(watch.join().unwrap(), index.asked().len(), "{:?}", index.asked());
}

#[test]
fn what_is_satisfied_already_needs_no_network_and_touches_nothing() {
    let install = install();
    let before = inodes(&install);
    let output =
        apply(&install, &release("2.0", "# the same, in other words\ngreet>=1\nflask\n"), &nowhere()).expect(0);
    assert!(output.events().iter().any(|e| e["stage"] == "hooks" && e["state"] == "skipped"));
    assert_eq!(install.version(), "2.0");
    assert_eq!(inodes(&install), before);
}

#[test]
fn a_package_that_fails_in_the_middle_leaves_the_old_server_on_its_old_packages() {
    let install = install();
    let before = inodes(&install);
    let index = Index::of(&[("greet", "2.0", false), ("broken", "1.0", true)]);
    let output = apply(&install, &release("2.0", "flask\ngreet==2.0\nbroken==1.0\n"), &index.url).expect(3);
    assert_eq!(output.error_code(), "hook-failed");
    let log = fs::read_dir(install.root.join(".updater/log")).unwrap().next().unwrap().unwrap();
    let log = fs::read_to_string(log.path()).unwrap();
    assert!(log.contains("Installing collected packages: greet, broken"), "it did not come to the middle: {log}");
    let answer = install.answer();
    assert_eq!((&answer["version"], &answer["greet"]), (&"1.0".into(), &"1.0".into()));
    assert_eq!(inodes(&install), before);
    // It was the bundle's own fault.
    apply(&install, &release("2.0", "flask\ngreet==2.0\nbroken==1.0\n"), &index.url).expect(3);
    let status = install.updater(&["status", "--json"]).expect(0).object();
    assert_eq!(status["warnings"][0]["code"], "known-bad", "{status}");
}

#[test]
fn a_version_that_fails_with_its_new_packages_gives_the_old_ones_back() {
    let install = install();
    let before = inodes(&install);
    let index = Index::of(&[("greet", "2.0", false)]);
    let broken = format!("raise SystemExit(3)\n{}", script("2.0"));
    let output = apply(&install, &release("2.0", "flask\ngreet==2.0\n").file("run.py", broken), &index.url).expect(3);
    assert_eq!(output.error_code(), "health-exited");
    assert_eq!(install.answer()["greet"], "1.0");
    assert_eq!(inodes(&install), before);
}

#[test]
fn without_network_or_package_the_server_is_not_even_stopped() {
    let install = install();
    let (before, pid) = (inodes(&install), install.pid());
    let index = Index::of(&[("greet", "1.0", false)]);
    for url in [nowhere(), index.url.clone()] {
        let output = apply(&install, &release("2.0", "flask\ngreet==2.0\n"), &url).expect(1);
        assert_eq!(output.error_code(), "packages-not-fetched");
        let message = output.finished()["error"]["message"].as_str().unwrap().to_string();
        assert!(message.contains("greet==2.0"), "{message}");
        assert_eq!(install.pid(), pid);
    }
    assert_eq!(inodes(&install), before);
    // Whoever sees to the packages himself says so.
    install.write("updater.toml", "[server]\nsoak = \"100ms\"\n[hooks]\ndefaults = false\n");
    apply(&install, &release("2.0", "flask\ngreet==2.0\n"), &nowhere()).expect(0);
    assert_eq!(install.answer()["greet"], "1.0");
}

#[test]
fn going_back_does_not_wait_for_a_network() {
    let install = install();
    let index = Index::of(&[("greet", "2.0", false)]);
    apply(&install, &release("2.0", "flask\ngreet==2.0\n"), &index.url).expect(0);
    let output = updater(&install, &["restore", "--json"], &nowhere()).expect(0);
    assert!(codes(&output, "warning").contains(&"packages-not-fetched".to_string()), "{output:?}");
    let answer = install.answer();
    assert_eq!((&answer["version"], &answer["greet"]), (&"1.0".into(), &"2.0".into()));
}

#[test]
fn what_cannot_be_installed_into_is_left_alone_and_said() {
    for (with_pip, code) in [(false, "packages-no-pip"), (true, "packages-outside")] {
        let install = Install::new();
        make_environment(&install, &["--without-pip"], with_pip);
        let python = if with_pip { shared().join("bin/python") } else { install.root.join(".venv/bin/python") };
        if with_pip {
            // The server's own packages are elsewhere.
            install.write("run.py", script("1.0").replace("import greet\n", "class greet: VERSION = '0'\n"));
        }
        start(&install, &python);
        let bundle = release("2.0", "flask\n# greet\n").file("run.py", install.read("run.py").replace("1.0", "2.0"));
        let output = apply(&install, &bundle, &nowhere()).expect(0);
        let mut warnings = codes(&output, "warning");
        warnings.retain(|code| code != "before-receipt");
        assert_eq!(warnings, [code], "{output:?}");
        assert_eq!(install.version(), "2.0");
    }
}

#[test]
fn an_environment_that_lies_elsewhere_is_never_written() {
    let install = Install::new();
    make_environment(&install, &["--without-pip"], true);
    let elsewhere = install.scratch().join("elsewhere");
    fs::rename(install.root.join(".venv"), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, install.root.join(".venv")).unwrap();
    start(&install, &install.root.join(".venv/bin/python"));
    let pid = install.pid();
    let output = apply(&install, &release("2.0", "flask\ngreet==2.0\n"), &nowhere()).expect(1);
    assert_eq!((output.error_code().as_str(), install.pid()), ("hook-place", pid));
}

#[test]
fn killed_while_pip_installs_recover_gives_the_old_packages_back() {
    let install = install();
    let before = inodes(&install);
    let index = Index::of(&[("greet", "2.0", false)]);
    let bundle = install.save(&release("2.0", "flask\ngreet==2.0\n"));
    let mut command = install.command(&["apply", bundle.to_str().unwrap()]);
    command.env("PIP_INDEX_URL", &index.url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let hooking = || {
        let journal = fs::read(install.root.join(".updater/journal")).unwrap_or_default();
        String::from_utf8_lossy(&journal).contains("\"hooking\"")
    };
    while !hooking() {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "the hook did not begin");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(200));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!install.exists("run.py"));
    install.updater(&["recover"]).expect(0);
    let answer = install.answer();
    assert_eq!((&answer["version"], &answer["greet"]), (&"1.0".into(), &"1.0".into()));
    assert_eq!(inodes(&install), before);
}

#[test]
fn an_environment_as_venv_makes_it_is_updated_by_its_own_pip() {
    let install = Install::new();
    make_environment(&install, &[], true);
    start(&install, &install.root.join(".venv/bin/python"));
    let index = Index::of(&[("greet", "2.0", false)]);
    apply(&install, &release("2.0", "flask\ngreet==2.0\n"), &index.url).expect(0);
    let answer: Value = install.answer();
    assert_eq!((&answer["version"], &answer["greet"]), (&"2.0".into(), &"2.0".into()));
}
