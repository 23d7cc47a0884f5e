//! Database sets: a main file and the files that SQLite keeps beside it only make sense together.
//! Refuses to open them.

use crate::base::path::RelPath;
use std::collections::BTreeSet;

/// The endings of a database's files: itself, write-ahead log, shared memory, rollback journal.
/// Source: sqlite.org/tempfiles.html.
pub const MEMBERS: [&str; 4] = ["", "-wal", "-shm", "-journal"];

const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];
const ENDINGS: [&str; 3] = [".db", ".sqlite", ".sqlite3"];

/// A file of the set of the database `main`.
pub fn member(main: &RelPath, ending: &str) -> RelPath {
    main.with_ending(ending)
}

/// Which files belong to databases: by the endings of their names, and by what was found in them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Databases {
    by_contents: BTreeSet<RelPath>,
}

impl Databases {
    /// Those known by their names, and these main files, which begin as a database does.
    pub fn with(by_contents: impl IntoIterator<Item = RelPath>) -> Databases {
        Databases { by_contents: by_contents.into_iter().collect() }
    }

    /// The main file of the set that `path` belongs to: itself, or the file that it accompanies.
    pub fn main_of(&self, path: &RelPath) -> Option<RelPath> {
        let text = path.text().to_ascii_lowercase();
        let companion = COMPANIONS.iter().find(|companion| text.ends_with(**companion));
        // What accompanies a database is its log, even where it looks like a database of its own.
        let accompanied = companion.and_then(|companion| path.without_ending(companion.len()));
        accompanied.into_iter().chain([path.clone()]).find(|main| self.is_main(main))
    }

    fn is_main(&self, path: &RelPath) -> bool {
        let name = path.text().to_ascii_lowercase();
        ENDINGS.iter().any(|ending| name.ends_with(ending)) || self.by_contents.contains(path)
    }

    /// True when the name alone tells a file of a database.
    pub fn is_named(path: &RelPath) -> bool {
        Databases::default().main_of(path).is_some()
    }

    /// The main files that their contents alone tell.
    pub fn by_contents(&self) -> impl Iterator<Item = &RelPath> {
        self.by_contents.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_a_set_name_its_main_file() {
        let path = |text: &str| RelPath::parse(text).unwrap();
        let databases = Databases::with([path("data/orders.db3"), path("data/plain")]);
        for (name, main) in [
            ("instance/users.db-wal", Some("instance/users.db")),
            ("instance/USERS.DB-SHM", Some("instance/USERS.DB")),
            ("a.sqlite3", Some("a.sqlite3")),
            ("a.sqlite-journal", Some("a.sqlite")),
            ("data/orders.db3", Some("data/orders.db3")),
            ("data/orders.db3-journal", Some("data/orders.db3")),
            ("data/plain-wal", Some("data/plain")),
            ("notes-wal", None),
            ("data/other.db3", None),
        ] {
            assert_eq!(databases.main_of(&path(name)).map(|p| p.to_string()).as_deref(), main, "{name}");
        }
    }
}
