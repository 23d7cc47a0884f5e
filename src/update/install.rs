//! The install that a command works on: its root, its settings, and what follows from them. Nothing here changes while a
//! command runs.

use crate::base::path::RelPath;
use crate::state::dir::StateDir;
use crate::state::receipt::Receipt;
use crate::state::root::InstallRoot;
use crate::state::settings::Settings;
use crate::update::ownership::{self, Databases, Ownership, Rules};
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;

pub struct Install {
    pub root: InstallRoot,
    pub settings: Settings,
}

impl Install {
    pub fn state(&self) -> &StateDir {
        self.root.state()
    }

    pub fn backups(&self) -> PathBuf {
        self.root.path().join(&self.settings.backup.dir)
    }

    /// The rules by which the files of this install are judged. Errors: the settings hold a pattern or path that
    /// cannot be read (exit 2).
    pub fn rules(&self, set: &[(String, String)]) -> Result<Rc<Rules>> {
        Ok(Rc::new(Rules::of(&self.root, &self.settings, set)?))
    }

    /// Whose the files of this install are, by the receipt alone.
    pub fn ownership(&self, receipt: Option<&Receipt>) -> Result<Ownership> {
        Ok(Ownership::new(&self.root, &self.rules(&[])?, receipt, std::iter::empty(), false))
    }

    /// The main files of the databases that `[verify] sqlite` names, among these.
    pub fn databases<'a>(
        &self,
        known: &Databases,
        data: impl Iterator<Item = &'a RelPath>,
    ) -> Result<BTreeSet<RelPath>> {
        let named = ownership::matcher(self.settings.verify.sqlite.iter().map(String::as_str), false)?;
        let is_named = |main: &RelPath| named.matched_path_or_any_parents(main.to_path(), false).is_ignore();
        Ok(data.filter_map(|path| known.main_of(path)).filter(is_named).collect())
    }
}
