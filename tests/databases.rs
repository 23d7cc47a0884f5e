//! SQLite databases through every path: damaged before, damaged after, and left hot by a writer at full speed.

mod kit;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kit::{Bundle, Install};
use rusqlite::Connection;

fn install() -> Install {
    let install = Install::running();
    install.write(
        "updater.toml",
        "[server]\nsoak = \"50ms\"\n[verify]\ntables = [\"notes\"]\nsqlite = [\"instance/*.db\"]\n",
    );
    install
}

#[test]
fn a_database_that_is_damaged_already_is_no_reason_to_blame_the_update() {
    let install = install();
    install.write("instance/broken.db", "no database at all");
    let pid = install.pid();
    let refused = install.apply(&install.bundle("2.0")).expect(1);
    assert_eq!(refused.error_code(), "database-damaged");
    assert_eq!(refused.finished()["error"]["path"], "instance/broken.db");
    assert_eq!(install.pid(), pid);
    let path = install.save(&install.bundle("2.0"));
    install.apply_with(&path, &["--force-data"]).expect(0);
    assert_eq!(install.version(), "2.0");
    assert_eq!(install.read("instance/broken.db"), "no database at all");
}

#[test]
fn a_version_that_damages_a_database_or_deletes_it_is_rolled_back() {
    for (damage, code) in [
        ("SQL = \"DELETE FROM notes\"\n", "rows-lost"),
        ("SQL = \"DROP TABLE notes\"\n", "rows-lost"),
        ("WRITE = \"instance/other.db=garbage\"\n", "database-damaged"),
        ("WRITE = \"instance/other.db=\"\n", "database-damaged"),
    ] {
        let install = install();
        let other = || Connection::open(install.root.join("instance/other.db")).unwrap();
        other().execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
        let failed = install.apply(&Bundle::release("2.0", damage)).expect(3);
        assert_eq!(failed.error_code(), code, "{damage}");
        assert_eq!(install.version(), "1.0");
        assert_eq!(install.note(), "old row", "{damage}");
        assert_eq!(other().query_row("SELECT a FROM t", [], |row| row.get::<_, i64>(0)).unwrap(), 1, "{damage}");
    }
}

/// Writes rows as fast as it can: `ROWS N` on its output means that N rows are committed.
const WRITER: &str = r#"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute('PRAGMA journal_mode=' + sys.argv[2])
db.execute('PRAGMA cache_size=5')
db.execute('CREATE TABLE IF NOT EXISTS rows(n INTEGER PRIMARY KEY, filler BLOB)')
n = 0
while True:
    db.execute('BEGIN IMMEDIATE')
    for _ in range(50):
        n += 1
        db.execute('INSERT INTO rows VALUES(?, randomblob(3000))', (n,))
    # Pages that were there before are what a rollback journal keeps.
    db.execute('UPDATE rows SET filler = randomblob(3000) WHERE n % 4 = 0')
    db.execute('COMMIT')
    with open(sys.argv[3], 'w') as done:
        done.write(str(n))
"#;

struct Writer(Child);

impl Writer {
    fn start(database: &Path, mode: &str, done: &Path) -> Writer {
        let mut command = Command::new("python3");
        command.args(["-c", WRITER]).arg(database).arg(mode).arg(done).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Writer(command.current_dir("/").spawn().expect("python3 is needed"))
    }
    /// Kills it in the middle of its work, as soon as `hot` says so.
    fn kill_when(self, hot: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !hot() {
            assert!(Instant::now() < deadline, "the writer never left a hot journal");
            std::thread::yield_now();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// How many rows a clone of the set holds; they must be 1, 2, 3 ... without a gap.
fn rows(folder: &Path) -> i64 {
    let copy = tempfile::tempdir().unwrap();
    for name in ["hot.db", "hot.db-wal", "hot.db-journal"].into_iter().filter(|n| folder.join(n).exists()) {
        fs::copy(folder.join(name), copy.path().join(name)).unwrap();
    }
    let db = Connection::open(copy.path().join("hot.db")).unwrap();
    assert_eq!(db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)).unwrap(), "ok");
    let (count, last): (i64, i64) =
        db.query_row("SELECT count(*), ifnull(max(n), 0) FROM rows", [], |r| Ok((r.get(0)?, r.get(1)?))).unwrap();
    assert_eq!(count, last);
    count
}

#[test]
fn a_database_left_hot_by_a_killed_writer_comes_through_every_path_with_every_row() {
    for (mode, log) in [("wal", "hot.db-wal"), ("delete", "hot.db-journal")] {
        let install = install();
        let folder = install.root.join("instance");
        let done = install.scratch().join("done");
        let writer = Writer::start(&folder.join("hot.db"), mode, &done);
        let size = |name: &str| fs::metadata(folder.join(name)).map_or(0, |m| m.len());
        // Enough is committed, and a transaction is under way that has spilled into the files.
        writer.kill_when(|| size("hot.db") + size("hot.db-wal") > 2_000_000 && size(log) > 20_000);
        let committed: i64 = fs::read_to_string(&done).unwrap_or_default().parse().unwrap_or(0);
        let wanted = rows(&folder);
        assert!(wanted >= committed && wanted > 0, "{mode}: {wanted} rows, {committed} were committed");
        let before: Vec<Vec<u8>> = ["hot.db", log].iter().map(|n| fs::read(folder.join(n)).unwrap()).collect();
        let same = |what: &str| {
            let now: Vec<Vec<u8>> = ["hot.db", log].iter().map(|n| fs::read(folder.join(n)).unwrap()).collect();
            assert!(now == before, "{mode}, {what}: the live files were touched");
            assert_eq!(rows(&folder), wanted, "{mode}, {what}");
        };

        // Every reading and changing command leaves the set as the writer left it.
        install.apply(&Bundle::release("9.0", "EXIT = 1\n")).expect(3);
        same("rolled back");
        let done = install.apply(&install.bundle("2.0")).expect(0);
        same("applied");
        let backup = done.finished()["backup"].as_str().unwrap().to_string();
        install.updater(&["verify"]).expect(0);
        install.updater(&["backups", "--check"]).expect(0);
        install.updater(&["restore", &backup]).expect(0);
        same("code restored");

        // Gone altogether, it comes back from the backup: hot journal and all.
        for name in ["hot.db", "hot.db-wal", "hot.db-shm", "hot.db-journal"] {
            let _ = fs::remove_file(folder.join(name));
        }
        install.updater(&["restore", &backup, "--data"]).expect(0);
        same("data restored");
        let saved = install.root.join("backups").join(&backup).join("instance");
        assert!(!saved.join("hot.db-shm").exists(), "the backup was opened in place");
    }
}

#[test]
fn a_writer_at_full_speed_during_the_update_loses_no_row() {
    for mode in ["wal", "delete"] {
        let install = install();
        let folder = install.root.join("instance");
        let done = install.scratch().join("done");
        let count = || fs::read_to_string(&done).ok().and_then(|t| t.parse::<i64>().ok()).unwrap_or(0);
        let writer = Writer::start(&folder.join("hot.db"), mode, &done);
        let deadline = Instant::now() + Duration::from_secs(60);
        while count() < 200 {
            assert!(Instant::now() < deadline, "the writer does not write");
            std::thread::yield_now();
        }
        // The writer is no part of the server, so nothing stops it: a busy database must not be called damaged.
        let path = install.save(&Bundle::release("2.0", ""));
        let output = install.apply_with(&path, &[]);
        writer.kill_when(|| true);
        // That it writes behind the updater's back while the server is down is noticed and undone; either way no row is lost.
        assert!([0, 3].contains(&output.code), "{output:#?}");
        if output.code == 3 {
            assert_eq!(output.error_code(), "data-changed");
        }
        assert!(rows(&folder) >= count(), "{mode}");
    }
}
