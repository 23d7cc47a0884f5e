//! The install that a command works on: its root, its settings, and what follows from them. Nothing here changes while a
//! command runs.

use crate::base::path::RelPath;
use crate::state::dir::StateDir;
use crate::state::receipt::Receipt;
use crate::state::root::InstallRoot;
use crate::state::settings::Settings;
use crate::update::ownership::{Databases, Ownership, Rules};
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;

pub struct Install {
    pub root: InstallRoot,
    pub settings: Settings,
    /// The rules by which its files are judged, compiled once.
    pub rules: Rc<Rules>,
}

impl Install {
    /// Errors: the settings hold a pattern or a path that cannot be read (exit 2).
    pub fn new(root: InstallRoot, settings: Settings) -> Result<Install> {
        let rules = Rc::new(Rules::of(&root, &settings)?);
        Ok(Install { root, settings, rules })
    }

    /// The same for a command that must work with whatever the settings hold: rules that cannot be compiled are
    /// those of the defaults. The second: why, where that is so.
    pub fn lenient(root: InstallRoot, settings: Settings) -> Result<(Install, Option<String>)> {
        match Rules::of(&root, &settings) {
            Ok(rules) => Ok((Install { root, settings, rules: Rc::new(rules) }, None)),
            Err(e) => {
                let rules = Rc::new(Rules::of(&root, &Settings::default())?);
                Ok((Install { root, settings, rules }, Some(format!("{e:#}"))))
            }
        }
    }

    pub fn state(&self) -> &StateDir {
        self.root.state()
    }

    pub fn backups(&self) -> PathBuf {
        self.root.path().join(&self.settings.backup.dir)
    }

    /// Whose the files of this install are, by the receipt alone.
    pub fn ownership(&self, receipt: Option<&Receipt>) -> Ownership {
        Ownership::new(&self.root, &self.rules, receipt, std::iter::empty(), false)
    }

    /// The main files of the databases that `[verify] sqlite` names, among these.
    pub fn databases<'a>(&self, known: &Databases, data: impl Iterator<Item = &'a RelPath>) -> BTreeSet<RelPath> {
        data.filter_map(|path| known.main_of(path)).filter(|main| self.rules.is_watched(main)).collect()
    }
}
