//! What a zip is held against before it is taken for a bundle of this install.
//! Refuses to look into the zip.

use super::links::{Target, live_link};
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::root::InstallRoot;
use anyhow::Result;

/// What a folder at the top of a bundle is to the installed program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopFolder {
    /// It is no program's: the updater's own, or data.
    NoProgram,
    /// The installed program has it, too.
    Shared,
    Strange,
}

/// What a bundle says that it is, in its manifest or in a file `VERSION`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Empty: it says none.
    pub version: String,
    /// The program that the manifest names.
    pub app: Option<String>,
}

/// A question about one path.
pub type Ask<'a, T> = Box<dyn Fn(&RelPath) -> T + 'a>;
/// The judgement on an identity. Errors: the bundle is not for this install.
pub type JudgeIdentity<'a> = Box<dyn Fn(&Identity) -> Result<()> + 'a>;

/// What a zip is held against.
pub struct Expected<'a> {
    /// What the bundle is called in errors; None: by its path.
    pub named: Option<&'a str>,
    pub start_file: &'a RelPath,
    /// Without the start file it is none.
    pub must_start: bool,
    /// Whether something of this name is installed.
    pub is_installed: Ask<'a, bool>,
    /// The volume takes names that differ in case alone for one.
    pub folds_case: bool,
    /// It takes composed and decomposed characters for one.
    pub merges_forms: bool,
    /// What a folder at the top is to the installed program, where a bundle of another one is refused.
    pub judge_top: Option<Ask<'a, TopFolder>>,
    /// Whether the bundle is for this program, and new enough. Asked before anything but its identity is unpacked.
    pub judge_identity: Option<JudgeIdentity<'a>>,
    /// The link that lies at a path of the install, if one does.
    pub live_link: Ask<'a, Option<Target>>,
}

impl<'a> Expected<'a> {
    /// For a bundle that is to be installed here, with the names and links of this install, and whatever program and
    /// version it is of. Errors: the install cannot be read.
    pub fn of_install(root: &'a InstallRoot, start_file: &'a RelPath, must_start: bool) -> Result<Expected<'a>> {
        Ok(Expected {
            folds_case: fsx::folds_case(root.path())?,
            merges_forms: fsx::merges_forms(root.path())?,
            live_link: Box::new(|path| live_link(root, path)),
            ..Expected::of_installed(root, start_file, must_start)
        })
    }

    /// For a bundle that was judged for this install when it was applied, or will be: its names and links are its own.
    pub fn of_installed(root: &'a InstallRoot, start_file: &'a RelPath, must_start: bool) -> Expected<'a> {
        Expected {
            is_installed: Box::new(|name| root.join(name).exists()),
            ..Expected::anywhere(start_file, must_start)
        }
    }

    /// Where nothing is installed that a bundle could be held against.
    pub fn anywhere(start_file: &'a RelPath, must_start: bool) -> Expected<'a> {
        Expected {
            named: None,
            start_file,
            must_start,
            is_installed: Box::new(|_| false),
            folds_case: false,
            merges_forms: false,
            judge_top: None,
            judge_identity: None,
            live_link: Box::new(|_| None),
        }
    }
}
