//! A small web server that plays the part of an interpreter: `standin run.py`.
//!
//! It reads `NAME = value` lines from the top level of the script, so that a test or the demo can
//! write a release whose code works, exits at start, answers 500 or alters data. It runs no
//! Python, and it knows nothing of the updater.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

/// The assignments of a script, in order; a name may stand more than once.
struct Script {
    assignments: Vec<(String, String)>,
}

impl Script {
    fn parse(text: &str) -> Script {
        let assignments = text.lines().filter_map(assignment).collect();
        Script { assignments }
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.assignments.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn last(&self, name: &str) -> Option<&str> {
        self.assignments.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.last(name)?.parse().ok()
    }
}

fn assignment(line: &str) -> Option<(String, String)> {
    let line = line.trim_start_matches('\u{feff}');
    if line.starts_with([' ', '\t', '#']) {
        return None;
    }
    let (name, value) = line.split_once('=')?;
    let name = name.trim();
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return None;
    }
    let value = value.trim();
    let value = match value.chars().next() {
        Some(quote @ ('"' | '\'')) => value[1..].split(quote).next().unwrap_or_default(),
        _ => value.split('#').next().unwrap_or_default().trim(),
    };
    Some((name.to_string(), value.to_string()))
}

struct Server {
    status: u16,
    version: String,
    root: PathBuf,
}

/// Serves as `script` says until a signal ends the process.
pub fn serve(script: &Path) -> ! {
    match run(script) {
        Ok(never) => match never {},
        Err(reason) => {
            eprintln!("standin: {reason}");
            std::process::exit(1);
        }
    }
}

fn run(path: &Path) -> Result<std::convert::Infallible, String> {
    let bytes = std::fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    let script = Script::parse(&String::from_utf8_lossy(&bytes));
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let root = folder.canonicalize().map_err(|e| e.to_string())?;

    if let Some(missing) = script.all("REQUIRE").find(|name| !root.join(name).is_file()) {
        return Err(format!("ImportError: {missing} is missing"));
    }
    for write in script.all("WRITE") {
        let (name, text) = write.split_once('=').ok_or("WRITE needs \"path=text\"")?;
        let place = root.join(name);
        let made = place.parent().map_or(Ok(()), std::fs::create_dir_all);
        made.and_then(|()| std::fs::write(place, text)).map_err(|e| format!("cannot write {name}: {e}"))?;
    }
    for text in script.all("ATTRIBUTE") {
        let (name, rest) = text.split_once('=').ok_or("ATTRIBUTE needs \"path=name=value\"")?;
        let (attribute, value) = rest.split_once('=').ok_or("ATTRIBUTE needs \"path=name=value\"")?;
        // One that cannot be set is nothing that a server ends for.
        set_attribute(&root.join(name), attribute, value);
    }
    for text in script.all("SHELL") {
        let done = std::process::Command::new("sh").args(["-c", text]).current_dir(&root).status();
        done.map_err(|e| format!("cannot run {text}: {e}"))?;
    }
    for name in script.all("REMOVE") {
        std::fs::remove_file(root.join(name)).map_err(|e| format!("cannot remove {name}: {e}"))?;
    }
    if let Some(code) = script.number("EXIT") {
        eprintln!("standin: the script says EXIT = {code}");
        std::process::exit(code as i32);
    }
    let _database = open_database(&root, &script).map_err(|e| format!("database: {e}"))?;
    std::thread::sleep(Duration::from_millis(script.number("DELAY_MS").unwrap_or(0)));

    let from_env = std::env::var("PORT").ok().and_then(|text| text.parse().ok());
    let port = from_env.or(script.number("PORT")).unwrap_or(8080) as u16;
    let listener = TcpListener::bind(("127.0.0.1", port)).map_err(|e| format!("cannot listen on {port}: {e}"))?;
    let server = Arc::new(Server {
        status: script.number("ANSWER").unwrap_or(200) as u16,
        version: script.last("VERSION").unwrap_or("0").to_string(),
        root,
    });
    // A dead stdout must not end a server.
    let _ = writeln!(std::io::stdout(), "serving {} on 127.0.0.1:{port}", server.version);
    loop {
        if let Ok((stream, _)) = listener.accept() {
            let server = Arc::clone(&server);
            std::thread::spawn(move || server.answer(stream));
        }
    }
}

#[cfg(unix)]
fn set_attribute(path: &Path, name: &str, value: &str) {
    let _ = rustix::fs::lsetxattr(path, name, value.as_bytes(), rustix::fs::XattrFlags::empty());
}

#[cfg(not(unix))]
fn set_attribute(_: &Path, _: &str, _: &str) {}

/// Opens `instance/app.db` in WAL mode and keeps it open, as the servers of the field do.
fn open_database(root: &Path, script: &Script) -> rusqlite::Result<Option<rusqlite::Connection>> {
    let folder = root.join("instance");
    if !folder.is_dir() {
        return Ok(None);
    }
    let database = rusqlite::Connection::open(folder.join("app.db"))?;
    database.pragma_update(None, "journal_mode", "WAL")?;
    database.execute_batch("CREATE TABLE IF NOT EXISTS notes(id INTEGER PRIMARY KEY, text TEXT)")?;
    for sql in script.all("SQL") {
        database.execute_batch(sql)?;
    }
    Ok(Some(database))
}

impl Server {
    fn answer(&self, stream: TcpStream) {
        // A client that went away is its own affair.
        let _ = self.try_answer(stream);
    }

    fn try_answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream);
        let mut request = String::new();
        reader.read_line(&mut request)?;
        let mut length = 0;
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = header.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;

        let mut words = request.split_whitespace();
        let (status, answer) = match (words.next().unwrap_or(""), words.next().unwrap_or("")) {
            ("GET", "/" | "/api/sync/ping") => (self.status, self.ping()),
            ("POST", "/run") => (200, run_child(&body)),
            _ => (404, json!({"error": "not found"})),
        };
        let body = answer.to_string();
        let stream = reader.get_mut();
        write!(
            stream,
            "HTTP/1.1 {status} Answer\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )?;
        stream.flush()
    }

    fn ping(&self) -> Value {
        json!({
            "status": if self.status < 400 { "ok" } else { "error" },
            "version": self.version,
            "pid": std::process::id(),
            "root": self.root,
            "argv": std::env::args().collect::<Vec<_>>(),
            "mark": std::env::var("STANDIN_MARK").ok(),
        })
    }
}

/// Runs the JSON list of words in `body` as a child of the server and tells how it ended.
fn run_child(body: &[u8]) -> Value {
    let argv: Vec<String> = serde_json::from_slice(body).unwrap_or_default();
    let Some((program, arguments)) = argv.split_first() else {
        return json!({"error": "the body is a JSON list of words"});
    };
    match Command::new(program).args(arguments).output() {
        Ok(output) => json!({
            "code": output.status.code(),
            "stdout": String::from_utf8_lossy(&output.stdout),
            "stderr": String::from_utf8_lossy(&output.stderr),
        }),
        Err(e) => json!({"error": e.to_string()}),
    }
}
