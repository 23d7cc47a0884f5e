//! `cargo run --release --example demo`: a server is updated, a broken release is rolled back.
//!
//! Everything happens in a scratch folder that is removed at the end. `demo run.py` makes this
//! program the scratch server itself, so no Python is needed.

#[path = "common/standin.rs"]
mod standin;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() {
    if let Some(script) = std::env::args_os().nth(1) {
        standin::serve(script.as_ref());
    }
    match play() {
        Ok(true) => println!("\nDemo: both updates went as they should."),
        Ok(false) => {
            println!("\nDemo: something did NOT go as it should; see above.");
            std::process::exit(1);
        }
        Err(e) => {
            eprintln!("demo: {e}");
            std::process::exit(1);
        }
    }
}

fn play() -> Result<bool> {
    let updater = updater_binary()?;
    let scratch = tempfile::tempdir()?;
    let root = scratch.path().join("site");
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    make_install(&root)?;
    let good = scratch.path().join("site-2.0.zip");
    let broken = scratch.path().join("site-3.0.zip");
    make_bundle(&good, "2.0", "")?;
    make_bundle(&broken, "3.0", "EXIT = 1\n")?;

    println!("Demo: a server of version 1.0 in {}, port {port}", root.display());
    let server = start(&root, port)?;
    let _ending = EndServer { root: root.clone(), port, first: Some(server) };
    let mut fine = expect_version(port, "1.0")?;

    println!("\nDemo: a good release, 2.0");
    fine &= apply(&updater, &root, &good, 0)?;
    fine &= expect_version(port, "2.0")?;

    println!("\nDemo: a broken release, 3.0, whose code exits at start; it must be rolled back");
    fine &= apply(&updater, &root, &broken, 3)?;
    fine &= expect_version(port, "2.0")?;
    Ok(fine)
}

/// The `updater` beside the examples' folder, built now: `cargo run --example` builds no binary.
fn updater_binary() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let profile = exe.parent().and_then(Path::parent).ok_or("this program lies in no target folder")?;
    let updater = profile.join(format!("updater{}", std::env::consts::EXE_SUFFIX));
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--bin", "updater", "--manifest-path"]);
        build.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
        if profile.ends_with("release") {
            build.arg("--release");
        }
        if let Some(target) = profile.parent() {
            build.arg("--target-dir").arg(target);
        }
        println!("Demo: building the updater (cargo build --bin updater)");
        if !build.status()?.success() {
            return Err("the updater does not build".into());
        }
    }
    if updater.is_file() {
        return Ok(updater);
    }
    Err(format!("{} is not there; run `cargo build --release --bin updater` first", updater.display()).into())
}

fn script(version: &str, more: &str) -> String {
    format!(
        "# the start file of the demo server\nPORT = 8080\nVERSION = \"{version}\"\nREQUIRE = \"app/core.py\"\n{more}"
    )
}

fn make_install(root: &Path) -> Result<()> {
    for folder in ["app", "instance", "uploads"] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    std::fs::write(root.join("run.py"), script("1.0", ""))?;
    std::fs::write(root.join("app/core.py"), "# core of 1.0\n")?;
    std::fs::write(root.join("app/old.py"), "# gone in 2.0\n")?;
    std::fs::write(root.join("uploads/picture.txt"), "a user's file\n")?;
    Ok(())
}

fn make_bundle(path: &Path, version: &str, more: &str) -> Result<()> {
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path)?);
    let options = zip::write::SimpleFileOptions::default();
    let core = format!("# core of {version}\n");
    let files = [("run.py", script(version, more)), ("app/core.py", core), ("app/new.py", "# new\n".into())];
    for (name, text) in files {
        zip.start_file(format!("site-{version}/{name}"), options)?;
        zip.write_all(text.as_bytes())?;
    }
    zip.finish()?;
    Ok(())
}

fn start(root: &Path, port: u16) -> Result<Child> {
    let log = std::fs::File::create(root.join("instance/server.log"))?;
    Ok(Command::new(std::env::current_exe()?)
        .arg("run.py")
        .current_dir(root)
        .env("PORT", port.to_string())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?)
}

/// Runs `updater apply`, its output straight to the terminal; true when it ended with `wanted`.
fn apply(updater: &Path, root: &Path, bundle: &Path, wanted: i32) -> Result<bool> {
    println!("$ updater apply {}", bundle.file_name().unwrap_or_default().to_string_lossy());
    let status = Command::new(updater).arg("--root").arg(root).arg("apply").arg(bundle).status()?;
    let code = status.code().unwrap_or(-1);
    println!("Demo: exit code {code} (expected {wanted})");
    Ok(code == wanted)
}

fn expect_version(port: u16, wanted: &str) -> Result<bool> {
    let deadline = Instant::now() + Duration::from_secs(15);
    let answer = loop {
        match ping(port) {
            Ok(answer) => break answer,
            Err(e) if Instant::now() > deadline => {
                return Err(format!("no answer on port {port}: {e}").into());
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let version = answer["version"].as_str().unwrap_or("?");
    println!("Demo: port {port} is served by version {version}, pid {}", answer["pid"]);
    Ok(version == wanted)
}

fn ping(port: u16) -> Result<Value> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /api/sync/ping HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or("an answer without a body")?;
    Ok(serde_json::from_str(body)?)
}

/// Ends whichever server of the scratch install serves when the demo is over.
struct EndServer {
    root: PathBuf,
    port: u16,
    first: Option<Child>,
}

impl Drop for EndServer {
    fn drop(&mut self) {
        if let Some(child) = &mut self.first {
            let _ = child.kill();
            let _ = child.wait();
        }
        let Ok(answer) = ping(self.port) else { return };
        let ours = self.root.canonicalize().is_ok_and(|root| answer["root"].as_str().map(Path::new) == Some(&root));
        let Some(pid) = answer["pid"].as_u64().filter(|_| ours) else {
            return;
        };
        end_process(pid as u32);
    }
}

fn end_process(pid: u32) {
    use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};
    let pid = Pid::from_u32(pid);
    let Ok(mut system) = System::new() else {
        return;
    };
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, ProcessRefreshKind::nothing());
    if let Some(process) = system.process(pid) {
        process.kill();
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline && system.process(pid).is_some() {
            std::thread::sleep(Duration::from_millis(20));
            system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, ProcessRefreshKind::nothing());
        }
    }
}
