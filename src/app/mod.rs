//! What is known of applications: which files their users write, where their environments and caches lie, and which
//! kinds of file are a part of the program. One profile a file; everything else asks the profile of the install.
//! Refuses to look at more of the disk than the names that tell the profile.

pub mod carry;
mod kinds;
mod legacy;
pub mod merge;
mod python;

use crate::base::head::Head;
use crate::base::path::RelPath;
use std::path::Path;

/// Data rules of every profile, as gitignore patterns: what users write, whatever the application is.
/// A pattern that ends in a slash names a folder; the one without it also names a link to a folder.
const DATA: &[&str] = &[
    "/instance/",
    "/instance",
    "/uploads/",
    "/uploads",
    ".env",
    "*.db",
    "*.db-wal",
    "*.db-shm",
    "*.db-journal",
    "*.sqlite",
    "*.sqlite-wal",
    "*.sqlite-shm",
    "*.sqlite-journal",
    "*.sqlite3",
    "*.sqlite3-wal",
    "*.sqlite3-shm",
    "*.sqlite3-journal",
];

/// Folders that hold an environment, unless a version ships files in them.
const ENVIRONMENTS: [&str; 5] = [".venv", "venv", "env", "node_modules", ".nox"];
/// The file that makes a folder a Python environment, whatever its name. Source: PEP 405.
pub const ENVIRONMENT_MARK: &str = "pyvenv.cfg";
/// Folders of version control, which are never part of a version.
const VERSION_CONTROL: [&str; 3] = [".git", ".hg", ".svn"];

/// What is known of one kind of application.
#[derive(Debug)]
pub struct Profile {
    pub name: &'static str,
    /// Data rules beside those of every profile.
    data: &'static [&'static str],
    /// Old updaters of this application left copies of one `__init__.py` where others belong.
    has_planted_packages: bool,
}

/// An application of which nothing special is known.
static GENERIC: Profile = Profile { name: "generic", data: &[], has_planted_packages: false };

impl Profile {
    /// The profile of the application that is installed in `root`.
    pub fn of(root: &Path) -> &'static Profile {
        if legacy::is_installed(root) { &legacy::PROFILE } else { &GENERIC }
    }

    /// All data rules, as gitignore patterns.
    pub fn data_rules(&self) -> impl Iterator<Item = &'static str> {
        DATA.iter().chain(self.data).copied()
    }

    /// True when a folder of this name holds an environment, as long as no version ships files in it.
    pub fn is_environment_name(&self, name: &[u8]) -> bool {
        ENVIRONMENTS.iter().any(|known| known.as_bytes() == name)
    }

    /// True when a folder of this name belongs to version control.
    pub fn is_version_control(&self, name: &[u8]) -> bool {
        VERSION_CONTROL.iter().any(|known| known.as_bytes() == name)
    }

    /// True below (or at) a folder that the program fills again by itself.
    pub fn is_cache(&self, path: &RelPath) -> bool {
        path.parts().any(python::is_cache_folder)
    }

    /// True when the file is a part of the program: a source, script, template, style, library, executable or lock
    /// file. `head` is how its contents begin.
    pub fn is_program(&self, path: &RelPath, head: Head) -> bool {
        // It names the version, so it goes with it.
        let is_version = path.as_bytes() == b"VERSION";
        is_version || matches!(head, Head::Executable | Head::Script) || kinds::is_program_name(&path.name())
    }

    /// True when `other` would be loaded in place of the new file `new`.
    pub fn shadows(&self, other: &RelPath, new: &RelPath) -> bool {
        python::shadows(other, new)
    }

    /// True when a file of this name, unknown to the bundle and equal to another one of the same name, is litter
    /// that an old updater of this application left.
    pub fn may_be_litter(&self, path: &RelPath) -> bool {
        self.has_planted_packages && python::is_package_file(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text).unwrap()
    }

    #[test]
    fn kinds_of_program_files() {
        let program = ["app/a.py", "a.JS", "t/base.html", "s/main.css", "lib/x.so", "run.bat", "requirements.txt"];
        let program =
            program.into_iter().chain(["VERSION", "requirements-dev.txt", "poetry.lock", "package-lock.json"]);
        for name in program {
            assert!(GENERIC.is_program(&path(name), Head::Plain), "{name}");
        }
        for name in
            ["users.json", "logo.png", "notes.txt", "data.csv", "settings.toml", "a.yaml", "srvd", "docs/VERSION"]
        {
            assert!(!GENERIC.is_program(&path(name), Head::Plain), "{name}");
        }
        assert!(GENERIC.is_program(&path("srvd"), Head::Executable));
        assert!(GENERIC.is_program(&path("bin/job"), Head::Script));
    }

    #[test]
    fn what_shadows_a_new_module() {
        let new = path("app/routes.py");
        for other in ["app/routes/__init__.py", "app/routes.cpython-311-x86_64-linux-gnu.so", "app/routes.so"] {
            assert!(GENERIC.shadows(&path(other), &new), "{other}");
        }
        for other in ["app/routes/a.py", "app/routes2.so", "routes/__init__.py", "app/routes.txt", "app/routes.py"] {
            assert!(!GENERIC.shadows(&path(other), &new), "{other}");
        }
        assert!(!GENERIC.shadows(&path("app/routes/__init__.py"), &path("app/routes.js")));
    }
}
