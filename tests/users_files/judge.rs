//! What must be so after a run, by what the versions shipped and what users had: told here apart from the program.

use std::collections::BTreeSet;

use crate::kit::Output;
use crate::look::{self, Kind, Seen, Snapshot, above, holds_aside, is_below, look, name_of, set_aside, snapshot};
use crate::vandal::{Left, Vandal, folders_of};
use crate::world::{Shipped, World};
use sha2::{Digest, Sha256};

/// How far two entries must be one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum As {
    /// Contents.
    Bytes,
    /// And mode, owner, attributes and access lists.
    Dressed,
    /// And the time.
    Copied,
    /// The very same: nobody touched it.
    Itself,
}

/// Everything that is wrong.
#[derive(Default)]
pub struct Wrong(pub Vec<String>);

impl Wrong {
    pub fn say(&mut self, path: &[u8], text: impl std::fmt::Display) {
        self.0.push(format!("{:?}: {text}", String::from_utf8_lossy(path)));
    }

    /// `is` must be what `was` was.
    fn same(&mut self, path: &[u8], was: &Seen, is: Option<&Seen>, how: As) {
        if !is.is_some_and(|is| alike(was, is, how)) {
            self.say(path, format!("was {was:?}; is {is:?}"));
        }
    }
}

fn alike(was: &Seen, is: &Seen, how: As) -> bool {
    let bytes = was.kind == is.kind && was.bytes == is.bytes && was.size == is.size;
    let dress = (was.mode, was.owner, &was.attributes) == (is.mode, is.owner, &is.attributes);
    let time = was.kind == Kind::Folder || was.modified == is.modified;
    let itself = was.inode == is.inode && (was.kind == Kind::Folder || was.links == is.links);
    bytes && (how < As::Dressed || dress) && (how < As::Copied || time) && (how < As::Itself || itself)
}

fn holds(shipped: &Shipped, seen: &Seen) -> bool {
    let kind = if shipped.link { Kind::Link } else { Kind::File };
    seen.kind == kind && seen.bytes.as_ref() == Some(&shipped.bytes)
}

pub fn is_database_name(name: &[u8]) -> bool {
    let text = String::from_utf8_lossy(name).into_owned();
    let text = ["-wal", "-shm", "-journal"].iter().find_map(|end| text.strip_suffix(end)).unwrap_or(&text);
    [".db", ".sqlite", ".sqlite3"].iter().any(|end| text.ends_with(end))
}

/// The paths that warnings of this code name.
pub fn named(outputs: &[&Output], code: &str) -> BTreeSet<String> {
    let events = outputs.iter().flat_map(|output| output.events());
    let of_code = events.filter(|event| event["event"] == "warning" && event["code"] == code);
    of_code.filter_map(|event| event["path"].as_str().map(String::from)).collect()
}

impl World {
    fn now(&self) -> Snapshot {
        snapshot(&self.install.root)
    }

    /// The first version shipped it, and nobody wrote in it.
    fn is_releases(&self, path: &[u8], seen: &Seen) -> bool {
        self.versions[0].get(path).is_some_and(|shipped| holds(shipped, seen))
    }

    /// Logs, process ids, pipes and sockets that no version shipped: they stay where they are, and nobody saves them.
    fn is_volatile(&self, path: &[u8], seen: &Seen) -> bool {
        let name = String::from_utf8_lossy(name_of(path)).into_owned();
        let by_name = name.ends_with(".log") || name.ends_with(".pid") || name.contains(".log.");
        let is_shipped = self.versions[usize::from(!self.is_known)].contains_key(path);
        seen.kind == Kind::Other || (by_name && !is_shipped && !is_database_name(name.as_bytes()))
    }

    /// After an end before anything was changed.
    pub fn judge_refused(&self, output: &Output, was: &Snapshot) -> Wrong {
        let mut wrong = Wrong::default();
        let (now, code) = (self.now(), output.error_code());
        let known = [
            "unreadable-data",
            "cannot-own",
            "not-movable",
            "folder-in-the-way",
            "code-behind-link",
            "schema-differs",
            "database-damaged",
            "cannot-save",
        ];
        if !known.contains(&code.as_str()) {
            wrong.say(b"", format!("refused: {code}: {}", output.finished()["error"]["message"]));
        }
        for (path, seen) in was {
            wrong.same(path, seen, now.get(path), As::Itself);
        }
        for path in now.keys().filter(|path| !was.contains_key(*path)) {
            wrong.say(path, "is new after a refusal");
        }
        wrong
    }

    /// After an update to the second version. `told`: the runs that had to name what gave way.
    pub fn judge_new(&self, told: &[&Output]) -> Wrong {
        let mut wrong = Wrong::default();
        let (now, version) = (self.now(), &self.versions[1]);
        let (crossed, moved) = (self.crossed(1), named(told, "moved-aside"));
        for (path, was) in &self.before {
            let is = now.get(path);
            if path == b"run.py" {
                continue;
            } else if was.kind == Kind::Folder {
                self.judge_folder(&mut wrong, (path, was, is), &crossed);
            } else if self.is_known && self.is_releases(path, was) {
                self.judge_replaced(&mut wrong, path, was, is);
            } else if !is.is_some_and(|is| alike(was, is, As::Copied) && self.is_untouched(was, is)) {
                // What users wrote gave way, if it may; then it lies aside and is named.
                let gave_way =
                    set_aside(&self.install.root, "aside", path).iter().any(|seen| alike(was, seen, As::Copied));
                let is_named = moved.contains(&*String::from_utf8_lossy(path));
                if gave_way && is_named && self.may_give_way(path, &crossed) {
                    continue;
                }
                if !self.is_known && version.contains_key(path) && self.is_in_backup(path, was) {
                    continue;
                }
                let place = if gave_way { "lies aside" } else { "does not lie aside" };
                wrong.say(path, format!("was {was:?}; is {is:?}; {place}, named: {is_named}"));
            }
        }
        let folders = folders_of(version.keys());
        for path in now.keys().filter(|path| !self.before.contains_key(*path)) {
            if !version.contains_key(path) && !folders.contains(path) {
                wrong.say(path, "was never there, and no version has it");
            }
        }
        wrong
    }

    /// Not even replaced by its like. Other names of it may be those of what the version before shipped.
    fn is_untouched(&self, was: &Seen, is: &Seen) -> bool {
        was.inode == is.inode
    }

    /// Users' files give way to a new version of a program file that they edited, and where they cross its folders.
    fn may_give_way(&self, path: &[u8], crossed: &BTreeSet<Vec<u8>>) -> bool {
        let is_edited = self.is_known && self.versions[0].contains_key(path) && self.versions[1].contains_key(path);
        let crosses = crossed.contains(path) || above(path).any(|folder| crossed.contains(folder));
        // Before the first receipt what would shadow a new module, and copies of `__init__.py`, give way, too.
        let name = name_of(path);
        is_edited || crosses || (!self.is_known && name == b"__init__.py")
    }

    /// Before the first receipt nobody knows what was shipped: what was replaced lies in the backup, as all does.
    fn is_in_backup(&self, path: &[u8], was: &Seen) -> bool {
        let saved = |backup: std::path::PathBuf| {
            let (top, rest) = path.split_at(path.iter().position(|byte| *byte == b'/').unwrap_or(path.len()));
            let at = |end: &[u8]| look(&backup.join(look::path_of(&[top, end, rest].concat())));
            // What has the name of one of the backup's own places gets an ending.
            [at(b""), at(b".saved")].iter().flatten().any(|saved| alike(was, saved, As::Bytes))
        };
        look::backups(&self.install.root).into_iter().any(saved)
    }

    fn judge_folder(
        &self,
        wrong: &mut Wrong,
        (path, was, is): (&[u8], &Seen, Option<&Seen>),
        crossed: &BTreeSet<Vec<u8>>,
    ) {
        if let Some(is) = is.filter(|is| is.kind == Kind::Folder) {
            return wrong.same(path, was, Some(is), As::Dressed);
        }
        let within = self.before.iter().filter(|(one, _)| is_below(one, path));
        let of_version = within.clone().filter(|(one, seen)| self.is_releases(one, seen)).count();
        let of_users = within.filter(|(one, seen)| seen.kind != Kind::Folder && !self.is_releases(one, seen)).count();
        let crosses = crossed.contains(path) || above(path).any(|folder| crossed.contains(folder));
        let was_emptied = of_version > 0 && of_users == 0;
        // Before the first receipt a folder in which only an `__init__.py` lay is emptied with it.
        if !crosses && !was_emptied && self.is_known {
            wrong.say(path, format!("the folder is gone: {is:?}"));
        }
    }

    /// A file of the version that nobody wrote in, though somebody may have dressed it.
    fn judge_replaced(&self, wrong: &mut Wrong, path: &[u8], was: &Seen, is: Option<&Seen>) {
        let Some(shipped) = self.versions[1].get(path) else { return };
        let Some(is) = is else { return wrong.say(path, "the new version's is missing") };
        let is_database = is_database_name(name_of(path)) || was.bytes.iter().flatten().take(6).eq(b"SQLite");
        if is_database && alike(was, is, As::Itself) {
            return;
        }
        if !holds(shipped, is) {
            return wrong.say(path, format!("is not the new version's: {is:?}"));
        }
        if was.kind != Kind::File || is.kind != Kind::File {
            return;
        }
        let execute = if shipped.mode & 0o111 == 0 { 0 } else { (was.mode & 0o444) >> 2 };
        let list = &b"system.posix_acl_access"[..];
        let (mut had, mut has) = (was.attributes.clone(), is.attributes.clone());
        // Where who may execute changes, the list changes with it.
        let has_list = had.remove(list).is_some();
        let is_kept = has_list == has.remove(list).is_some() && had == has && was.owner == is.owner;
        if !is_kept || (!has_list && is.mode != was.mode & 0o7666 | execute) {
            wrong.say(path, format!("is no longer dressed as it was: {was:?}; {is:?}"));
        }
    }

    /// After the way back: everything is as it was, and what the failed version wrote is somewhere.
    pub fn judge_old(&self, vandal: Option<&Vandal>, left: Option<&Left>, told: &[&Output]) -> Wrong {
        let mut wrong = Wrong::default();
        let (now, unsaved) = (self.now(), named(told, "not-put-back"));
        for (path, was) in &self.before {
            let is = now.get(path);
            if !vandal.is_some_and(|vandal| vandal.may_have_touched(&self.before, path)) {
                let how = if was.kind == Kind::Folder { As::Dressed } else { As::Itself };
                wrong.same(path, was, is, how);
            } else if self.is_volatile(path, was) {
            } else if self.is_watched(path, was) && !(self.is_known && self.is_releases(path, was)) {
                let is_named = unsaved.contains(&*String::from_utf8_lossy(path));
                if !is.is_some_and(|is| alike(was, is, As::Dressed)) && !is_named {
                    wrong.say(path, format!("was {was:?}; is {is:?}, and nobody says so"));
                }
            } else {
                wrong.same(path, was, is, As::Copied);
            }
        }
        for path in now.keys().filter(|path| !self.before.contains_key(*path)) {
            let is_left =
                left.is_some_and(|left| left.contains_key(path) || left.keys().any(|one| is_below(one, path)));
            let may_be_left = vandal.is_some_and(|vandal| is_of_vandal(vandal, path));
            if !is_left && !may_be_left {
                wrong.say(path, format!("is new: {:?}", now[path]));
            }
        }
        for (path, sum) in left.into_iter().flatten().filter(|(path, _)| !is_server(path)) {
            self.judge_left(&mut wrong, &now, path, sum);
        }
        if self.outside() != b"outside" {
            wrong.say(b"", "a file outside of the install was written");
        }
        wrong
    }

    /// What a failed version wrote: it is there, or in `after/`, or it was no bytes of its own.
    fn judge_left(&self, wrong: &mut Wrong, now: &Snapshot, path: &[u8], sum: &str) {
        let has =
            |seen: &Seen| seen.kind == Kind::File && seen.bytes.as_ref().is_some_and(|bytes| sum_of(bytes) == sum);
        let is_shipped = self.versions[1].get(path).is_some_and(|shipped| sum_of(&shipped.bytes) == sum);
        let was_there = self.before.get(path).is_some_and(has);
        if !is_shipped && !was_there && !now.get(path).is_some_and(has) && !holds_aside(&self.install.root, &has) {
            wrong.say(path, "what the failed version wrote is neither there nor in after/");
        }
    }

    /// After a restore of the first version. `edited`: what users wrote since, by path; `later`: what was there when the
    /// restore began.
    pub fn judge_restored(&self, edited: &BTreeSet<Vec<u8>>, later: &Snapshot, data: bool) -> Wrong {
        let mut wrong = Wrong::default();
        let now = self.now();
        for (path, was) in self.before.iter().filter(|(path, _)| *path != b"run.py") {
            let is = now.get(path);
            if !edited.contains(path) {
                let is_shipped = self.versions[..2].iter().any(|version| version.contains_key(path));
                let how = if is_shipped { As::Dressed } else { As::Copied };
                if !is.is_some_and(|is| alike(was, is, how)) && !self.lies_aside(path, was) {
                    wrong.same(path, was, is, how);
                }
            } else if data && !self.is_watched(path, was) && !self.is_volatile(path, was) {
                wrong.same(path, was, is, As::Copied);
                let gave_way = |seen: &Seen| {
                    set_aside(&self.install.root, "after", path).iter().any(|one| alike(seen, one, As::Bytes))
                };
                if later.get(path).is_some_and(|seen| !gave_way(seen)) {
                    wrong.say(path, "what saved data replaced is not in after/");
                }
            } else if let Some(seen) = later.get(path) {
                wrong.same(path, seen, is, As::Itself);
            } else if is.is_some() {
                wrong.say(path, "was deleted by a user, and is there again");
            }
        }
        for (path, seen) in later.iter().filter(|(path, _)| edited.contains(*path) && !self.before.contains_key(*path))
        {
            wrong.same(path, seen, now.get(path), As::Itself);
        }
        for (path, seen) in now.iter().filter(|(path, _)| !self.before.contains_key(*path) && !edited.contains(*path)) {
            // A folder of the users', once it is there, is theirs, and so is what lies above it.
            let is_empty = seen.kind == Kind::Folder
                && !now.iter().any(|(one, seen)| is_below(one, path) && seen.kind != Kind::Folder);
            let is_above = |folder: &str| folder.as_bytes() == &path[..] || is_below(folder.as_bytes(), path);
            let is_users = |folder: &&str| is_below(path, folder.as_bytes()) || is_above(folder);
            if !is_empty || !["uploads", "instance", "config", "app/static/img/avatars"].iter().any(is_users) {
                wrong.say(path, format!("is new after the restore: {seen:?}"));
            }
        }
        wrong
    }

    fn lies_aside(&self, path: &[u8], was: &Seen) -> bool {
        set_aside(&self.install.root, "aside", path).iter().any(|seen| alike(was, seen, As::Copied))
    }

    /// After updates to all versions, before any pruning of what gave way: what no version ever had at its path, nor
    /// needed a place at, never moved.
    pub fn judge_kept(&self) -> Wrong {
        let mut wrong = Wrong::default();
        let now = self.now();
        let crossed: BTreeSet<Vec<u8>> = (1..self.versions.len()).flat_map(|at| self.crossed(at)).collect();
        for (path, was) in self.before.iter().filter(|(path, _)| *path != b"run.py") {
            let shipped: Vec<&Shipped> = self.versions.iter().filter_map(|version| version.get(path)).collect();
            let crosses = crossed.contains(path) || above(path).any(|folder| crossed.contains(folder));
            let is_theirs = !self.versions[0].contains_key(path) && !shipped.iter().any(|one| holds(one, was));
            let may_leave = crosses || (!self.is_known && (!shipped.is_empty() || name_of(path) == b"__init__.py"));
            if was.kind == Kind::Folder || !is_theirs || may_leave {
                continue;
            }
            let is = now.get(path);
            wrong.same(path, was, is, As::Copied);
            if is.is_some_and(|is| is.inode != was.inode) {
                wrong.say(path, "is another file with the same contents");
            }
        }
        wrong
    }

    /// Whatever happened: nothing is left lying about, every backup is whole, and the row is there.
    pub fn judge_settled(&mut self, wrong: &mut Wrong, version: &str) {
        if self.install.version() != version {
            wrong.say(b"", format!("{} serves", self.install.version()));
        }
        if self.install.note() != "old row" {
            wrong.say(b"instance/app.db", "lost its row");
        }
        let again = self.run(&["recover", "--json"]);
        if again.code != 0 || again.outcome() != "nothing-to-do" {
            wrong.say(b"", format!("a second recover: {again:?}"));
        }
        let check = self.run(&["backups", "--check", "--json"]);
        if check.code != 0 {
            wrong.say(b"backups", format!("are not whole: {check:?}"));
        }
        for name in ["journal", "staging", "trash", "originals", "discard", "downloads"] {
            let place = self.install.root.join(".updater").join(name);
            if std::fs::read_dir(&place).map_or(place.exists(), |mut items| items.next().is_some()) {
                wrong.say(name.as_bytes(), "is left in .updater");
            }
        }
        for path in self.now().keys().filter(|path| name_of(path).starts_with(b".updater")) {
            wrong.say(path, "is left");
        }
    }
}

fn is_server(path: &[u8]) -> bool {
    // Its folder may have another name now.
    let logs = [&b"server.log"[..], b"update_log.txt"];
    path == b"updater.toml"
        || logs.contains(&name_of(path))
        || name_of(path).starts_with(b"app.db")
        || path.starts_with(b"instance/server_update_")
}

/// What a vandal makes has the name of a path that it touched, or begins with it.
fn is_of_vandal(vandal: &Vandal, path: &[u8]) -> bool {
    vandal.touched.iter().any(|one| path.starts_with(one))
}

fn sum_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
