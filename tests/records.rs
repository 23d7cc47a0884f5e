//! Records and settings with anything in them: whole ones in which bits, bytes, lines and lengths were changed at random.
//! Nothing may end the program but an error, and no path that is read may lead out of the install.
//!
//! Each round has a seed, which a failure names. `UPDATER_ROUNDS=1000000 cargo test --release --test records` goes on for
//! longer, `UPDATER_SEED=N` begins elsewhere.

mod kit;

use kit::Install;
use kit::random::{Random, rounds};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use updater::state::journal::{Found, Journal};
use updater::state::root::InstallRoot;
use updater::state::settings::Settings;
use updater::{backup, state::history, state::receipt, update::server};

/// Records of a real install that was updated, by name.
fn real() -> &'static Vec<(String, Vec<u8>)> {
    static REAL: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    REAL.get_or_init(|| {
        let install = Install::running();
        install.apply(&install.bundle("2.0").file("uploads/\u{fc}.txt", "new")).expect(0);
        let shelf = fs::read_dir(install.root.join("backups")).unwrap();
        let backup = shelf.map(|item| item.unwrap().path().join("backup.json")).next().unwrap();
        let own = |name: &str| fs::read(install.root.join(".updater").join(name)).unwrap();
        let formats = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/format-1");
        let journal = walkdir::WalkDir::new(formats).into_iter().map(|item| item.unwrap());
        let journal = journal.filter(|item| item.file_name() == "journal").map(|item| item.into_path()).next().unwrap();
        vec![
            ("receipt.json".into(), own("receipt.json")),
            ("status.json".into(), own("status.json")),
            ("last.json".into(), own("last.json")),
            ("backup.json".into(), fs::read(backup).unwrap()),
            ("journal".into(), fs::read(journal).unwrap()),
        ]
    })
}

/// A copy in which a few things are others.
fn changed(random: &mut Random, whole: &[u8]) -> Vec<u8> {
    const PIECES: [&str; 18] = [
        "{",
        "}",
        "[",
        "]",
        "\"",
        "\\",
        ",",
        ":",
        "null",
        "-1",
        "1e400",
        "18446744073709551616",
        "../../x",
        "/etc/passwd",
        "\u{0}",
        "\u{fffd}\u{202e}",
        "\n",
        "99",
    ];
    let mut bytes = whole.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 => bytes.truncate(at),
            2 => {
                let end = (at + random.below(64)).min(bytes.len());
                bytes.drain(at.min(end)..end);
            }
            3 => {
                let end = (at + random.below(64)).min(bytes.len());
                let again = bytes[at.min(end)..end].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, again);
            }
            4 => {
                // A value becomes another one.
                let end = bytes[at..].iter().position(|b| b",}]".contains(b)).map_or(bytes.len(), |n| at + n);
                bytes.splice(at..end, random.one(&PIECES).bytes());
            }
            _ => {
                let piece = random.text(&PIECES, 3);
                bytes.splice(at..at, piece.into_bytes());
            }
        }
    }
    bytes
}

/// A folder like that of an install, for one test.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(".updater")).unwrap();
        Place { folder }
    }
    fn state(&self) -> updater::state::dir::StateDir {
        updater::state::dir::StateDir::at(&self.own())
    }

    fn own(&self) -> PathBuf {
        self.folder.path().join(".updater")
    }
}

fn each(name: &str, read: impl Fn(&Place, &Path)) {
    let place = Place::new();
    let whole = &real().iter().find(|(known, _)| known == name).unwrap().1;
    let file = place.own().join(name);
    for round in rounds(3000) {
        fs::write(&file, changed(&mut Random::of(round), whole)).unwrap();
        let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| read(&place, &file)));
        assert!(read.is_ok(), "{name}: UPDATER_SEED={round} ends the program");
    }
}

/// No path of a record leads out of the install.
fn inside(path: &updater::base::path::RelPath) {
    let plain = |part: std::path::Component| matches!(part, std::path::Component::Normal(_));
    assert!(path.to_path().components().all(plain), "{path} leads out");
}

#[test]
fn a_receipt() {
    each("receipt.json", |place, _| {
        if let Ok(Some(receipt)) = receipt::load(&place.state()) {
            receipt.files.iter().for_each(|line| inside(&line.path));
        }
    });
}

#[test]
fn what_status_keeps() {
    each("status.json", |place, _| {
        let _ = history::read_status(&place.state());
        let _ = history::left_under_way(&place.state());
    });
}

#[test]
fn the_last_outcome() {
    each("last.json", |place, _| {
        let _ = history::known_bad(&place.state(), 1);
        let _ = history::left_under_way(&place.state());
    });
}

#[test]
fn a_backup() {
    each("backup.json", |place, _| {
        if let Ok(record) = backup::load(&place.own()) {
            record.files.iter().for_each(|line| inside(&line.path));
            let _ = backup::list_all(place.folder.path(), true);
        }
    });
}

#[test]
fn a_journal() {
    each("journal", |place, _| {
        if let Ok(Found::Open(journal)) = Journal::find(&place.state()) {
            let _ = (journal.progress(), journal.begin.start_file.to_string());
        }
    });
}

#[test]
fn settings() {
    const WHOLE: &str = r#"
[server]
port = 8081
command = [".venv/bin/python", "run.py"]
env = { PORT = "8081", "x y" = "" }
service = "scout.service"
health = "/api/sync/ping"
health_timeout = "2m"
soak = "500ms"
[preserve]
paths = ["/uploads/", "app/utils/local_*.py"]
carry = { "run.py" = ["PORT"] }
[backup]
dir = "var/backups/"
max_file = "1 MB"
[verify]
sqlite = ["instance/*.db"]
[bundle]
max_size = "3 MiB"
[[hooks.after_swap]]
run = [".venv/bin/python", "-m", "migrate"]
changes = [".venv/"]
timeout = "90s"
"#;
    let place = Place::new();
    let file = place.folder.path().join("updater.toml");
    for round in rounds(3000) {
        fs::write(&file, changed(&mut Random::of(round), WHOLE.as_bytes())).unwrap();
        for strict in [true, false] {
            let read = std::panic::catch_unwind(|| Settings::load(&file, strict));
            let read = read.unwrap_or_else(|_| panic!("UPDATER_SEED={round} ends the program"));
            assert!(strict || read.is_ok(), "recovery reads its settings whatever is in them");
        }
    }
}

#[test]
fn what_a_server_says_of_its_port() {
    let place = Place::new();
    let root = InstallRoot::resolve(place.folder.path()).unwrap();
    let env = "# settings\nexport PORT='8081'\nSECRET=\"a=b\"\nPORT=8082\n";
    let program =
        "import os\nPORT = int(os.environ.get(\"PORT\", 8080))  # \\\nUSE = '''a\nPORT = 1\n'''\nPORT = \"80\\\"81\"\n";
    for round in rounds(3000) {
        let mut random = Random::of(round);
        fs::write(root.path().join(".env"), changed(&mut random, env.as_bytes())).unwrap();
        fs::write(root.path().join("run.py"), changed(&mut random, program.as_bytes())).unwrap();
        let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| server::written_ports(&root)));
        assert!(read.is_ok(), "UPDATER_SEED={round} ends the program");
    }
}
