//! What an update must not replace: data, environments, and the updater's own places.
//! Refuses to look at the disk: it judges names alone.

use crate::error::Failure;
use crate::path::RelPath;
use anyhow::Result;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use std::collections::BTreeMap;

/// Why a path is preserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Written by the users: never replaced, backed up.
    Data,
    /// A virtual environment: never touched.
    Environment,
    /// The updater's own: never written from a bundle, never moved.
    Own,
}

/// What the legacy server's users write, as gitignore patterns.
pub const DATA: &[&str] = &[
    "/instance/",
    "/instance",
    "/uploads/",
    "/uploads",
    "/config/",
    "/migrations/",
    "/translations/",
    "/ssl/",
    "/.env",
    "/app_config.json",
    "*.db",
    "*.sqlite",
    "*.sqlite3",
    "*.db-wal",
    "*.db-shm",
    "*.db-journal",
    "*.sqlite-wal",
    "*.sqlite-shm",
    "*.sqlite-journal",
    "*.sqlite3-wal",
    "*.sqlite3-shm",
    "*.sqlite3-journal",
];
/// Environments of the server.
pub const ENVIRONMENT: &[&str] = &["/.venv/", "/venv/", "/env/", "/.venv", "/venv", "/env"];
/// The updater's own places, and what must outlive every update.
pub const OWN: &[&str] = &[
    "/.updater",
    "/backups",
    "/updater.toml",
    "/app/remote_updater.py",
    "/app/instance/",
    "/instance/update_log.txt",
    "/instance/server_update_*.log",
];

pub struct Preserve {
    data: Gitignore,
    environment: Gitignore,
    own: Gitignore,
}

impl Preserve {
    /// The default classes (`defaults`) and more data patterns. Errors: a pattern cannot be read (exit 2).
    pub fn new(defaults: bool, extra: &[String], case_insensitive: bool) -> Result<Self> {
        let default = |list: &'static [&'static str]| if defaults { list } else { &[] };
        let data = default(DATA).iter().map(|p| p.to_string()).chain(extra.iter().cloned()).collect::<Vec<_>>();
        Ok(Self {
            data: matcher(data.iter().map(String::as_str), case_insensitive)?,
            environment: matcher(default(ENVIRONMENT).iter().copied(), case_insensitive)?,
            own: matcher(OWN.iter().copied(), case_insensitive)?,
        })
    }

    /// The same rules, with the folder of the backups as one of the updater's own places.
    pub fn with_backups(self, dir: &str) -> Result<Self> {
        let dir = format!("/{dir}");
        Ok(Self { own: matcher(OWN.iter().copied().chain([dir.as_str()]), false)?, ..self })
    }

    /// Why `path` is preserved; a file in a preserved folder is, too. None: the version owns it.
    pub fn class_of(&self, path: &RelPath, is_folder: bool) -> Option<Class> {
        let path = path.to_path();
        let hit = |rules: &Gitignore| rules.matched_path_or_any_parents(&path, is_folder).is_ignore();
        if hit(&self.own) {
            Some(Class::Own)
        } else if hit(&self.environment) {
            Some(Class::Environment)
        } else if hit(&self.data) {
            Some(Class::Data)
        } else {
            None
        }
    }
}

/// The rules of one install that decide over a plan.
pub struct Rules {
    pub preserve: Preserve,
    /// Paths whose new keys are merged into the live file.
    pub merge: Vec<RelPath>,
    /// Assignments that a settings file keeps.
    pub carry: BTreeMap<RelPath, Vec<String>>,
    /// `--set`, for the first carried file.
    pub set: Vec<(String, String)>,
}

fn matcher<'a>(patterns: impl Iterator<Item = &'a str>, case_insensitive: bool) -> Result<Gitignore> {
    let mut builder = GitignoreBuilder::new("");
    let bad = |pattern: &str, e: ignore::Error| {
        Failure::usage("bad-pattern", format!("the preserve pattern '{pattern}' cannot be read: {e}"))
            .remedy("write it as in a .gitignore file")
    };
    builder.case_insensitive(case_insensitive).map_err(|e| bad("", e))?;
    for pattern in patterns {
        builder.add_line(None, pattern).map_err(|e| bad(pattern, e))?;
    }
    Ok(builder.build().map_err(|e| bad("", e))?)
}

/// The endings of a database's files: itself, write-ahead log, shared memory, rollback journal.
/// Source: sqlite.org/tempfiles.html.
pub const MEMBERS: [&str; 4] = ["", "-wal", "-shm", "-journal"];

/// A file of the set of the database `main`.
pub fn member(main: &RelPath, ending: &str) -> RelPath {
    main.with_ending(ending)
}

const DATABASES: [&str; 3] = [".db", ".sqlite", ".sqlite3"];
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// The main file of the database set that `path` belongs to: itself, or the file that it accompanies.
pub fn database_set(path: &RelPath) -> Option<RelPath> {
    let text = path.text();
    let lower = text.to_ascii_lowercase();
    let main = COMPANIONS.iter().find_map(|c| lower.strip_suffix(c)).unwrap_or(&lower);
    let is_database = DATABASES.iter().any(|ending| main.ends_with(ending));
    let bytes = path.as_bytes().get(..path.as_bytes().len() - (lower.len() - main.len()))?;
    is_database.then(|| RelPath::from_disk(&crate::os::files::path_from_bytes(bytes)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(path: &str) -> Option<Class> {
        Preserve::new(true, &[], false).unwrap().class_of(&RelPath::parse(path).unwrap(), false)
    }

    #[test]
    fn the_default_classes() {
        for (path, wanted) in [
            ("instance/users.db", Some(Class::Data)),
            ("uploads/a/b.png", Some(Class::Data)),
            (".env", Some(Class::Data)),
            ("app/.env", None),
            ("app/uploads/x", None),
            ("app/deep/cache.sqlite3-wal", Some(Class::Data)),
            (".venv/bin/python", Some(Class::Environment)),
            ("app/venv/x", None),
            (".updater/journal", Some(Class::Own)),
            ("app/instance/update_log.txt", Some(Class::Own)),
            ("instance/update_log.txt", Some(Class::Own)),
            ("instance/server_update_stdout.log", Some(Class::Own)),
            ("app/remote_updater.py", Some(Class::Own)),
            ("app/utils/remote_updater.py", None),
            ("run.py", None),
        ] {
            assert_eq!(class(path), wanted, "{path}");
        }
    }

    #[test]
    fn patterns_of_the_settings_are_data() {
        let preserve = Preserve::new(false, &["app/utils/local_*.py".into()], false).unwrap();
        let of = |path| preserve.class_of(&RelPath::parse(path).unwrap(), false);
        assert_eq!(of("app/utils/local_a.py"), Some(Class::Data));
        assert_eq!(of("app/utils/other.py"), None);
        assert_eq!(of("instance/x"), None);
        assert_eq!(of(".updater/lock"), Some(Class::Own));
    }

    #[test]
    fn members_of_a_database_set_name_its_main_file() {
        let set = |path| database_set(&RelPath::parse(path).unwrap()).map(|p| p.to_string());
        assert_eq!(set("instance/users.db-wal").as_deref(), Some("instance/users.db"));
        assert_eq!(set("instance/USERS.DB-SHM").as_deref(), Some("instance/USERS.DB"));
        assert_eq!(set("a.sqlite3").as_deref(), Some("a.sqlite3"));
        assert_eq!(set("a.sqlite-journal").as_deref(), Some("a.sqlite"));
        assert_eq!(set("notes-wal"), None);
    }
}
