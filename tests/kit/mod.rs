//! What the integration tests share: a scratch install, its server, bundles, the built updater.
//!
//! Nothing here knows how the updater works; it is run as users run it.
#![allow(dead_code)]

#[cfg(unix)]
pub mod owner;
pub mod random;
pub mod zips;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

pub const LIMIT: Duration = Duration::from_secs(120);

/// How often a server is started whose port is taken at that moment.
const BINDS: usize = 5;

/// A free port, given by the system.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The example server, which `cargo test` builds beside the tests.
pub fn standin() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let profile = exe.parent().and_then(Path::parent).unwrap();
    let standin = profile.join("examples").join(format!("standin{}", std::env::consts::EXE_SUFFIX));
    assert!(standin.is_file(), "no {}: run `cargo build --example standin`", standin.display());
    standin
}

/// The text of a start file; `more` holds further lines for the example server.
pub fn script(version: &str, more: &str) -> String {
    format!(
        "# start file\nPORT = 8080\nUSE_WAITRESS = True\nVERSION = \"{version}\"\nREQUIRE = \"app/core.py\"\n{more}"
    )
}

/// A scratch install of version 1.0; its servers end with it.
pub struct Install {
    scratch: TempDir,
    pub root: PathBuf,
    pub port: u16,
}

impl Install {
    pub fn new() -> Install {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().canonicalize().unwrap().join("site");
        fs::create_dir(&root).unwrap();
        let install = Install { scratch, root, port: free_port() };
        install.write("run.py", script("1.0", ""));
        install.write("app/__init__.py", "# package\n");
        install.write("app/core.py", "# core of 1.0\n");
        install.write("app/old.py", "# gone in 2.0\n");
        install.write("uploads/a.txt", "old upload\n");
        install.write("config/settings.json", "{\"theme\": \"dark\"}\n");
        install.write(".env", "SECRET=1\n");
        install.write("app_config.json", "{\n  \"name\": \"mine\"\n}\n");
        install.make_database();
        install
    }

    /// A started install: the usual beginning.
    pub fn running() -> Install {
        let install = Install::new();
        install.start();
        install
    }

    /// A started install whose version is known: its receipt was made from its own bundle.
    pub fn adopted() -> Install {
        let install = Install::running();
        install.adopt();
        install
    }

    /// Has the updater know what version 1.0 shipped.
    pub fn adopt(&self) {
        let bundle = self.save(&Bundle::first());
        self.updater(&["adopt", bundle.to_str().unwrap()]).expect(0);
    }

    fn make_database(&self) {
        fs::create_dir_all(self.root.join("instance")).unwrap();
        let db = rusqlite::Connection::open(self.root.join("instance/app.db")).unwrap();
        db.pragma_update(None, "journal_mode", "WAL").unwrap();
        db.execute_batch(
            "CREATE TABLE notes(id INTEGER PRIMARY KEY, text TEXT); INSERT INTO notes VALUES(1, 'old row')",
        )
        .unwrap();
    }

    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    pub fn write(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub fn read(&self, path: &str) -> String {
        String::from_utf8(fs::read(self.root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))).unwrap()
    }

    pub fn exists(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// The text of note 1, read from a copy so that the live database stays as it is.
    pub fn note(&self) -> String {
        let copy = tempfile::tempdir().unwrap();
        for name in ["app.db", "app.db-wal"] {
            let from = self.root.join("instance").join(name);
            if from.exists() {
                fs::copy(from, copy.path().join(name)).unwrap();
            }
        }
        let db = rusqlite::Connection::open(copy.path().join("app.db")).unwrap();
        db.query_row("SELECT text FROM notes WHERE id = 1", [], |row| row.get(0)).unwrap()
    }

    /// Starts the example server with the install's port in its environment.
    pub fn start(&self) -> u32 {
        self.start_with(&[("PORT", &self.port.to_string()), ("STANDIN_MARK", "kept")])
    }

    pub fn start_with(&self, env: &[(&str, &str)]) -> u32 {
        let mut command = Command::new(standin());
        command.arg("run.py").env_remove("PORT").envs(env.iter().copied());
        self.start_command(command)
    }

    /// Starts `command` in the root, output to `instance/server.log`, and waits for its answer.
    pub fn start_command(&self, mut command: Command) -> u32 {
        // A port that the system handed out may be a passing client's when the server wants it: then it is tried again.
        for _ in 0..BINDS {
            let (pid, ended) = self.spawn_watched(&mut command);
            if self.answers_before_it_fails(&ended) {
                return pid;
            }
        }
        panic!("no server on port {}: {}", self.port, self.read("instance/server.log"));
    }

    /// False: the server ended with a failure. One that leaves another process and ends well goes on.
    fn answers_before_it_fails(&self, ended: &Receiver<ExitStatus>) -> bool {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if ping(self.port).is_some() {
                return true;
            }
            if ended.try_recv().is_ok_and(|status| !status.success()) {
                return false;
            }
            assert!(Instant::now() < deadline, "no server on port {}", self.port);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn start_command_with(&self, mut command: Command, env: &[(&str, &str)]) -> u32 {
        command.envs(env.iter().copied());
        self.start_command(command)
    }

    pub fn spawn(&self, command: &mut Command) -> u32 {
        self.spawn_watched(command).0
    }

    fn spawn_watched(&self, command: &mut Command) -> (u32, Receiver<ExitStatus>) {
        let log = fs::File::create(self.root.join("instance/server.log")).unwrap();
        command.current_dir(&self.root).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap();
        let pid = child.id();
        // Reaped as soon as it ends, so that no zombie stands in for a living server.
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || child.wait().map(|status| tell.send(status)));
        (pid, told)
    }

    pub fn wait_for_answer(&self) -> Value {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some((_, answer)) = ping(self.port) {
                return answer;
            }
            assert!(Instant::now() < deadline, "no server on port {}", self.port);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the server answers now; panics when nothing serves.
    pub fn answer(&self) -> Value {
        ping(self.port).unwrap_or_else(|| panic!("nothing serves on port {}", self.port)).1
    }

    pub fn version(&self) -> String {
        self.answer()["version"].as_str().unwrap().to_string()
    }

    pub fn pid(&self) -> u64 {
        self.answer()["pid"].as_u64().unwrap()
    }

    pub fn stop(&self) {
        if let Some((_, answer)) = ping(self.port)
            && let Some(pid) = answer["pid"].as_u64()
        {
            kill(pid as u32);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while ping(self.port).is_some() {
            assert!(Instant::now() < deadline, "the server on port {} does not end", self.port);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Settings that say how the stopped server is started, and on which port.
    pub fn write_settings(&self, more: &str) {
        // Beside the install, so that whoever owns the sources has no say in what is started.
        let program = self.scratch().join("standin-of-settings");
        if !program.exists() {
            fs::copy(standin(), &program).unwrap();
        }
        let text = format!(
            "[server]\nport = {0}\ncommand = ['{1}', 'run.py']\nenv = {{ PORT = \"{0}\" }}\n{more}",
            self.port,
            program.display()
        );
        self.write("updater.toml", text);
    }

    pub fn bundle(&self, version: &str) -> Bundle {
        Bundle::release(version, "")
    }

    /// Writes `bundle` beside the install.
    pub fn save(&self, bundle: &Bundle) -> PathBuf {
        let path = self.scratch().join(format!("bundle-{}.zip", fs::read_dir(self.scratch()).unwrap().count()));
        fs::write(&path, bundle.bytes()).unwrap();
        path
    }

    pub fn apply(&self, bundle: &Bundle) -> Output {
        self.apply_with(&self.save(bundle), &[])
    }

    pub fn apply_with(&self, bundle: &Path, more: &[&str]) -> Output {
        let mut arguments = vec!["apply", bundle.to_str().unwrap(), "--json"];
        arguments.extend(more);
        self.updater(&arguments)
    }

    pub fn updater(&self, arguments: &[&str]) -> Output {
        run(self.command(arguments))
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_updater"));
        command.arg("--root").arg(&self.root).args(arguments);
        command.env_remove("PORT").env_remove("UPDATER_ROOT").current_dir(self.scratch());
        command
    }

    pub fn tree(&self) -> Tree {
        Tree::of(&self.root)
    }
}

impl Drop for Install {
    fn drop(&mut self) {
        for pid in servers_of(&self.root) {
            kill(pid);
        }
        if let Some((_, answer)) = ping(self.port)
            && answer["root"].as_str().map(Path::new) == Some(&self.root)
            && let Some(pid) = answer["pid"].as_u64()
        {
            kill(pid as u32);
        }
    }
}

/// Processes that stand in `root` (a scratch folder of ours), where the system tells.
fn servers_of(root: &Path) -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter(|entry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(root)))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

pub fn kill(pid: u32) {
    use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};
    let pid = Pid::from_u32(pid);
    let mut system = System::new().unwrap();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, ProcessRefreshKind::nothing());
    if let Some(process) = system.process(pid) {
        process.kill();
    }
}

/// How a run of the updater ended.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    pub fn events(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}\n{self:?}")))
            .collect()
    }

    pub fn finished(&self) -> Value {
        let last = self.events().pop().unwrap_or_else(|| panic!("no event: {self:?}"));
        assert_eq!(last["event"], "finished", "{self:?}");
        last
    }

    pub fn outcome(&self) -> String {
        self.finished()["outcome"].as_str().unwrap_or_default().to_string()
    }

    pub fn error_code(&self) -> String {
        self.finished()["error"]["code"].as_str().unwrap_or_default().to_string()
    }

    pub fn object(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    #[track_caller]
    pub fn expect(self, code: i32) -> Output {
        assert_eq!(self.code, code, "{self:#?}");
        assert!(self.stdout.is_ascii() && self.stderr.is_ascii(), "not ASCII: {self:?}");
        self
    }
}

/// Runs to the end, output to files: a server that inherited a pipe would keep it open for ever.
pub fn run(mut command: Command) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let (out, err) = (folder.path().join("out"), folder.path().join("err"));
    command.stdin(Stdio::null());
    command.stdout(fs::File::create(&out).unwrap()).stderr(fs::File::create(&err).unwrap());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{command:?} does not end: {}", String::from_utf8_lossy(&fs::read(&out).unwrap()));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let text = |path| String::from_utf8(fs::read(path).unwrap()).unwrap();
    Output { code: status.code().unwrap_or(-1), stdout: text(&out), stderr: text(&err) }
}

/// The files of a bundle to be, under one top folder.
#[derive(Clone)]
pub struct Bundle {
    pub top: String,
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Bundle {
    /// A release like the install's own program; `more` goes to its start file.
    pub fn release(version: &str, more: &str) -> Bundle {
        let bundle = Bundle { top: format!("site-{version}/"), files: BTreeMap::new() };
        bundle
            .file("run.py", script(version, more))
            .file("app/__init__.py", "# package\n")
            .file("app/core.py", format!("# core of {version}\n"))
            .file("app/new.py", format!("# new in {version}\n"))
    }

    /// The release that a new install consists of.
    pub fn first() -> Bundle {
        let bundle = Bundle { top: "site-1.0/".into(), files: BTreeMap::new() };
        bundle
            .file("run.py", script("1.0", ""))
            .file("app/__init__.py", "# package\n")
            .file("app/core.py", "# core of 1.0\n")
            .file("app/old.py", "# gone in 2.0\n")
    }

    pub fn file(mut self, name: &str, bytes: impl AsRef<[u8]>) -> Bundle {
        self.files.insert(format!("{}{name}", self.top), bytes.as_ref().to_vec());
        self
    }

    /// A file under exactly this name, beside the top folder.
    pub fn raw(mut self, name: &str, bytes: impl AsRef<[u8]>) -> Bundle {
        self.files.insert(name.to_string(), bytes.as_ref().to_vec());
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default().unix_permissions(0o644);
        for (name, bytes) in &self.files {
            zip.start_file(name.as_str(), options).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }
}

/// What is known of one file: content, mode, owner, time.
#[derive(Debug, PartialEq, Eq)]
pub struct File {
    pub hash: String,
    pub mode: u32,
    pub owner: u32,
    pub modified: SystemTime,
}

/// The install as it lies on the disk, without what the updater and the server keep for themselves.
#[derive(Debug, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<String, File>);

impl Tree {
    pub fn of(root: &Path) -> Tree {
        let mut files = BTreeMap::new();
        let walk = walkdir::WalkDir::new(root).into_iter().map(Result::unwrap);
        for entry in walk.filter(|entry| !entry.file_type().is_dir()) {
            let name = entry.path().strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
            let own = name.starts_with(".updater/") || name.starts_with("backups/");
            let log = name == "instance/update_log.txt" || name.ends_with(".log") || name.ends_with("-shm");
            if !own && !log {
                files.insert(name, File::of(entry.path()));
            }
        }
        Tree(files)
    }
}

impl File {
    pub fn of(path: &Path) -> File {
        let metadata = fs::symlink_metadata(path).unwrap();
        let bytes = match metadata.is_symlink() {
            true => fs::read_link(path).unwrap().to_string_lossy().into_owned().into_bytes(),
            false => fs::read(path).unwrap(),
        };
        let hash = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let (mode, owner) = mode_and_owner(&metadata);
        File { hash, mode, owner, modified: metadata.modified().unwrap() }
    }
}

#[cfg(unix)]
fn mode_and_owner(metadata: &fs::Metadata) -> (u32, u32) {
    use std::os::unix::fs::MetadataExt;
    (metadata.mode(), metadata.uid())
}

#[cfg(not(unix))]
fn mode_and_owner(metadata: &fs::Metadata) -> (u32, u32) {
    (u32::from(metadata.permissions().readonly()), 0)
}

/// Status and JSON of the server on `port`; `None` where nothing answers.
pub fn ping(port: u16) -> Option<(u16, Value)> {
    request(port, "GET /api/sync/ping HTTP/1.0\r\n\r\n")
}

/// Has the example server run `argv` as its own child and waits for the end.
pub fn run_as_child_of(port: u16, argv: &[&str]) -> Option<Value> {
    let body = json!(argv).to_string();
    let text = format!("POST /run HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    request(port, &text).map(|(_, answer)| answer)
}

fn request(port: u16, text: &str) -> Option<(u16, Value)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    stream.write_all(text.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split_whitespace().nth(1)?.parse().ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    Some((status, serde_json::from_str(body).ok()?))
}
