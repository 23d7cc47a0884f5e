//! The rules of one install: names and patterns, compiled once from the profile of the application and the settings.
//! Refuses to look at the disk beyond that profile: it judges names alone.

use super::Databases;
use crate::app::Profile;
use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::root::InstallRoot;
use crate::state::settings::Settings;
use anyhow::Result;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use std::collections::BTreeMap;

/// The updater's own places beside its backups, and what must outlive every update.
const OWN: [&str; 4] = ["/.updater", "/updater.toml", "/app/remote_updater.py", ".updater-annex-*"];
/// Our own logs. A release that ships some brings those of its developer.
const OWN_LOGS: [&str; 4] = [
    "/instance/update_log.txt",
    "/instance/server_update_*.log",
    "/app/instance/update_log.txt",
    "/app/instance/server_update_*.log",
];
/// What a running program leaves beside its files.
const VOLATILE: [&str; 3] = ["*.pid", "*.log", "*.log.*"];

/// The places of the updater's own, by their names alone.
#[derive(Clone)]
pub struct OwnPlaces {
    places: Gitignore,
    logs: Gitignore,
    /// The parts of all of them, folded; a star at the end stands for any ending.
    names: Vec<Vec<String>>,
}

impl OwnPlaces {
    /// Those of every install, and these more patterns.
    pub fn new(more: &[&str]) -> Result<OwnPlaces> {
        let places = OWN.into_iter().chain(["/backups/update_backup_*"]).chain(more.iter().copied());
        let parts = |place: &str| place.trim_matches('/').to_lowercase().split('/').map(str::to_string).collect();
        let names = places.clone().chain(OWN_LOGS).map(parts).collect();
        // Whoever ships `.Updater` means the same folder on some volume.
        Ok(OwnPlaces { places: matcher(places, true)?, logs: matcher(OWN_LOGS.into_iter(), true)?, names })
    }

    /// True for one of them, and for what lies in it.
    pub fn contain(&self, path: &RelPath) -> bool {
        hits(&self.places, path, true) || self.is_log(path)
    }

    fn is_log(&self, path: &RelPath) -> bool {
        hits(&self.logs, path, false)
    }

    /// True for a name that some volume would take for one of them, though it is spelled otherwise: in other letters of
    /// the same case folding, with dots or blanks at its end, or by the short name of eight and three characters that
    /// FAT and NTFS give (`UPDATE~1.TOM`). What lies below a folder that is named so is meant, too, whatever its name.
    pub fn are_meant_by(&self, path: &RelPath) -> bool {
        let plain: Vec<String> = path.folded().text().split('/').map(without_end).collect();
        RelPath::parse(&plain.join("/")).is_ok_and(|plain| self.contain(&plain))
            || self.names.iter().any(|names| is_short_for(&plain, names))
    }
}

/// What Windows makes of a part of a path: dots and blanks at its end, and a stream behind a colon, are no part of it.
fn without_end(part: &str) -> String {
    let name = part.split(':').next().unwrap_or(part).trim_end_matches(['.', ' ']);
    if name.is_empty() { part.to_string() } else { name.to_string() }
}

/// True when the folded parts of a path name `own` by a short name at least once, and all of it, or lie below a folder that
/// they name so.
fn is_short_for(parts: &[String], own: &[String]) -> bool {
    let is_same = |part: &str, name: &str| match name.strip_suffix('*') {
        Some(start) => part.starts_with(start),
        None => part == name,
    };
    for (part, name) in parts.iter().zip(own) {
        if is_short_name(part, name) {
            return true;
        }
        if !is_same(part, name) {
            return false;
        }
    }
    false
}

/// True when `part` may be the short name of `name`, both folded: up to six characters of it or, after some collisions,
/// two of it and four hexadecimal digits, then `~` and a number, and three characters of its ending ("How Windows
/// Generates 8.3 File Names from Long File Names", Microsoft).
fn is_short_name(part: &str, name: &str) -> bool {
    let (stem, ending) = part.split_once('.').unwrap_or((part, ""));
    let Some((start, number)) = stem.split_once('~') else { return false };
    let name = name.trim_start_matches('.');
    let (long, long_ending) = name.rsplit_once('.').unwrap_or((name, ""));
    let long: String = long.trim_end_matches('*').chars().filter(|c| !matches!(c, '.' | ' ')).collect();
    let hashed = start.len() == 6 && start.get(2..).is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    let is_start = long.starts_with(start) || (hashed && start.get(..2).is_some_and(|two| long.starts_with(two)));
    let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    let short_ending: String = long_ending.chars().take(3).collect();
    is_start && !start.is_empty() && start.len() <= 6 && is_number && stem.len() <= 8 && ending == short_ending
}

/// What decides over the files of one install.
#[derive(Clone)]
pub struct Rules {
    pub profile: &'static Profile,
    own: OwnPlaces,
    volatile: Gitignore,
    /// All data rules: those of the profile and those of the settings.
    data: Gitignore,
    /// Those of the settings alone, which count more than what is volatile.
    named: Gitignore,
    clean: Gitignore,
    skip: Gitignore,
    /// The databases that `[verify] sqlite` names.
    watched: Gitignore,
    /// Paths whose new keys are merged into the live file.
    pub merge: Vec<RelPath>,
    /// Assignments that a settings file keeps.
    pub carry: BTreeMap<RelPath, Vec<String>>,
    /// Databases that are missing in data folders are added from a bundle.
    pub add_databases: bool,
    /// Data files above this size, in bytes, are saved only where that is cheap.
    pub max_file: u64,
    /// The volume takes names that differ in case alone for one.
    pub folds_case: bool,
}

impl Rules {
    /// The rules of an install. Errors: a pattern or a path of the settings cannot be read (exit 2).
    pub fn of(root: &InstallRoot, settings: &Settings) -> Result<Rules> {
        let profile = Profile::of(root.path());
        let folds_case = fsx::folds_case(root.path())?;
        let parse = |name: &String| {
            RelPath::parse(name).map_err(|e| Failure::usage(Code::BadSettings, format!("{name} in [preserve]: {e}")))
        };
        let preserve = &settings.preserve;
        let defaults: Vec<&str> = if preserve.defaults { profile.data_rules().collect() } else { Vec::new() };
        let named: Vec<&str> = preserve.paths.iter().map(String::as_str).collect();
        let backups = format!("/{}/update_backup_*", settings.backup.dir);
        let mut carry = BTreeMap::new();
        for (name, names) in &preserve.carry {
            carry.insert(parse(name)?, names.clone());
        }
        Ok(Rules {
            profile,
            own: OwnPlaces::new(&[backups.as_str()])?,
            volatile: matcher(VOLATILE.into_iter(), folds_case)?,
            data: matcher(defaults.into_iter().chain(named.iter().copied()), folds_case)?,
            named: matcher(named.into_iter(), folds_case)?,
            clean: matcher(settings.clean.paths.iter().map(String::as_str), folds_case)?,
            skip: matcher(settings.backup.skip.iter().map(String::as_str), folds_case)?,
            watched: matcher(settings.verify.sqlite.iter().map(String::as_str), false)?,
            merge: preserve.merge_json.iter().map(parse).collect::<Result<_, _>>()?,
            carry,
            add_databases: preserve.add_databases,
            max_file: settings.backup.max_file,
            folds_case,
        })
    }

    /// True for the main file of a database that is checked before and after an update.
    pub fn is_watched(&self, main: &RelPath) -> bool {
        hits(&self.watched, main, false)
    }

    /// The rules for a saved version, which has its settings already: nothing is carried or merged.
    pub fn for_saved(&self) -> Rules {
        Rules { carry: BTreeMap::new(), merge: Vec::new(), ..self.clone() }
    }

    /// The name as the volume compares names.
    pub fn key(&self, path: &RelPath) -> RelPath {
        if self.folds_case { path.folded() } else { path.clone() }
    }

    /// True for a place of the updater's own.
    pub fn is_own(&self, path: &RelPath) -> bool {
        self.own.contain(path)
    }

    /// True for a name of a bundle that a place of the updater's own may have on some volume.
    pub fn is_alias_of_own(&self, path: &RelPath) -> bool {
        self.own.are_meant_by(path)
    }

    /// True for a log of the updater's own.
    pub fn is_own_log(&self, path: &RelPath) -> bool {
        self.own.is_log(path)
    }

    /// True when a data rule names it: by its name, its folder or its ending.
    pub fn is_data(&self, path: &RelPath, is_folder: bool) -> bool {
        hits(&self.data, path, is_folder)
    }

    /// True when `[preserve] paths` names it.
    pub fn is_named(&self, path: &RelPath) -> bool {
        hits(&self.named, path, false)
    }

    /// True for caches, and for what a running program leaves beside its files: by the file's own name, since a folder of
    /// such a name may hold anything. A database is never volatile.
    pub fn is_volatile(&self, path: &RelPath) -> bool {
        let is_named = self.volatile.matched(path.to_path(), false).is_ignore();
        self.profile.is_cache(path) || (is_named && !Databases::is_named(path))
    }

    /// True where `[clean] paths` has unknown program files moved aside.
    pub fn is_cleaned(&self, path: &RelPath) -> bool {
        hits(&self.clean, path, false) && !self.is_data(path, false)
    }

    /// True for what `[backup] skip` keeps in place without saving it.
    pub fn is_skipped(&self, path: &RelPath, is_folder: bool) -> bool {
        hits(&self.skip, path, is_folder)
    }

    /// True when settings of the install are written into this file of a bundle.
    pub fn is_carried(&self, path: &RelPath) -> bool {
        self.carry.contains_key(path) || self.merge.contains(path)
    }
}

fn hits(rules: &Gitignore, path: &RelPath, is_folder: bool) -> bool {
    !rules.is_empty() && rules.matched_path_or_any_parents(path.to_path(), is_folder).is_ignore()
}

/// Compiles gitignore patterns. Errors: one of them cannot be read (exit 2).
pub fn matcher<'a>(patterns: impl Iterator<Item = &'a str>, case_insensitive: bool) -> Result<Gitignore> {
    let mut builder = GitignoreBuilder::new("");
    let bad = |pattern: &str, e: ignore::Error| {
        Failure::usage(Code::BadPattern, format!("the pattern '{pattern}' cannot be read: {e}"))
            .remedy("write it as in a .gitignore file")
    };
    builder.case_insensitive(case_insensitive).map_err(|e| bad("", e))?;
    for pattern in patterns {
        builder.add_line(None, pattern).map_err(|e| bad(pattern, e))?;
    }
    Ok(builder.build().map_err(|e| bad("", e))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(settings: &Settings, legacy: bool) -> Rules {
        let folder = tempfile::tempdir().unwrap();
        if legacy {
            std::fs::create_dir(folder.path().join("app")).unwrap();
            std::fs::create_dir(folder.path().join("instance")).unwrap();
            std::fs::write(folder.path().join("run.py"), "").unwrap();
        }
        Rules::of(&InstallRoot::resolve(folder.path()).unwrap(), settings).unwrap()
    }

    fn path(text: &str) -> RelPath {
        RelPath::from_disk(text.as_ref()).unwrap()
    }

    #[test]
    fn data_by_name() {
        let legacy = rules(&Settings::default(), true);
        let generic = rules(&Settings::default(), false);
        for (name, in_legacy, in_generic) in [
            ("instance/users.db", true, true),
            ("uploads/a/b.png", true, true),
            ("uploads", true, true),
            (".env", true, true),
            ("app/.env", true, true),
            ("app/deep/cache.sqlite3-wal", true, true),
            ("config/a.json", true, false),
            ("app/static/img/avatars/user_2.png", true, false),
            ("app/static/style.css", false, false),
            ("run.py", false, false),
        ] {
            assert_eq!(
                (legacy.is_data(&path(name), false), generic.is_data(&path(name), false)),
                (in_legacy, in_generic),
                "{name}"
            );
        }
    }

    #[test]
    fn own_places_in_any_case() {
        let rules = rules(&Settings::default(), true);
        for name in [
            ".updater/journal",
            ".Updater/journal",
            "UPDATER.toml",
            "backups/update_backup_20260101_000000/run.py",
            "app/instance/update_log.txt",
            "instance/server_update_stdout.log",
            "app/remote_updater.py",
            "instance/deep/.updater-annex-20260101T000000Z-1a2b/new/a",
        ] {
            assert!(rules.is_own(&path(name)), "{name}");
        }
        for name in ["backups/dump.sql", "app/instance/plugins/a.py", "app/utils/remote_updater.py", "run.py"] {
            assert!(!rules.is_own(&path(name)), "{name}");
        }
    }

    #[test]
    fn other_spellings_of_own_places_are_known_and_stay_the_users_on_disk() {
        let rules = rules(&Settings::default(), true);
        for name in [
            "UPDATE~1.TOM",
            "update~1.tom",
            "UPDATE~1/journal",
            "UPDA~123/x",
            "UP1A2B~1.TOM",
            "BACKUP~1/x",
            "backups/UPDATE~1/run.py",
            "Backups/update~2",
            "app/REMOTE~1.PY",
            "instance/SERVER~1.LOG",
            ".updater./lock",
            "updater.toml ",
            "updater.toml::$DATA",
            "bac\u{212a}up\u{17f}/update_backup_1/x",
        ] {
            assert!(rules.is_alias_of_own(&path(name)), "{name}");
            assert!(!rules.is_own(&path(name)), "{name}");
        }
        for name in [
            "app/UPDATE~1.TOM",
            "UPDATE~1.TXT",
            "UPDATE~X.TOM",
            "~1.TOM",
            "backups/dump~1.sql",
            "backup~1.sql",
            "updates/x",
            "run.py.~1~",
            "instance/update~1.json",
        ] {
            assert!(!rules.is_alias_of_own(&path(name)), "{name}");
        }
    }

    #[test]
    fn what_is_volatile() {
        let rules = rules(&Settings::default(), true);
        for name in ["run.pid", "logs/a.log", "logs/a.log.1", "app/__pycache__/a.pyc"] {
            assert!(rules.is_volatile(&path(name)), "{name}");
        }
        for name in ["a.log.db", "catalog.txt", "log", "a.pidx"] {
            assert!(!rules.is_volatile(&path(name)), "{name}");
        }
    }

    #[test]
    fn settings_add_patterns_and_take_defaults_away() {
        let mut settings = Settings::default();
        settings.preserve.defaults = false;
        settings.preserve.paths = vec!["app/utils/local_*.py".into()];
        settings.clean.paths = vec!["/app/".into(), "/a.db".into()];
        let rules = rules(&settings, true);
        assert!(rules.is_data(&path("app/utils/local_a.py"), false) && rules.is_named(&path("app/utils/local_a.py")));
        assert!(!rules.is_data(&path("instance/x"), false));
        assert!(rules.is_cleaned(&path("app/old.py")) && !rules.is_cleaned(&path("app/utils/local_a.py")));
        assert!(rules.is_own(&path(".updater/lock")));
    }
}
