//! Which install a command is for, where nobody names it.

use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::state::root::InstallRoot;
use std::path::{Path, PathBuf};

/// The root that was given, or else the nearest folder upwards from `cwd`, then from the folder of
/// `exe`, that looks like an install. Errors: usage, with the places that were searched.
pub fn find_root(cli_root: Option<&Path>, cwd: &Path, exe: &Path) -> anyhow::Result<InstallRoot> {
    let remedy = "give --root DIR, the folder that holds the server";
    if let Some(given) = cli_root {
        let named = cwd.join(given);
        let full = fs_err::canonicalize(&named)
            .map_err(|e| Failure::usage(Code::NoRoot, format!("the root cannot be used: {e}")).remedy(remedy))?;
        if !may_be_root(&full) {
            let message = format!("{} is a backup or lies in .updater, so it is not an install", full.display());
            return Err(Failure::usage(Code::NoRoot, message).at(full.display()).remedy(remedy).into());
        }
        return InstallRoot::resolve(&named);
    }
    let mut searched: Vec<PathBuf> = Vec::new();
    let exe = fs_err::canonicalize(exe).unwrap_or_else(|_| exe.to_path_buf());
    for start in [Some(cwd), exe.parent()].into_iter().flatten() {
        let start = fs_err::canonicalize(start).unwrap_or_else(|_| start.to_path_buf());
        for folder in start.ancestors() {
            if searched.iter().any(|seen| seen == folder) {
                continue;
            }
            if may_be_root(folder) && looks_like_root(folder) {
                return InstallRoot::resolve(folder);
            }
            searched.push(folder.to_path_buf());
        }
    }
    let places: Vec<String> = searched.iter().map(|place| place.display().to_string()).collect();
    let message = format!("no install found (.updater/, updater.toml or run.py); searched: {}", places.join(", "));
    Err(Failure::usage(Code::NoRoot, message).remedy(remedy).into())
}

fn looks_like_root(folder: &Path) -> bool {
    folder.join(".updater").is_dir() || folder.join("updater.toml").is_file() || folder.join("run.py").is_file()
}

fn may_be_root(folder: &Path) -> bool {
    let own = folder.components().any(|part| part.as_os_str().eq_ignore_ascii_case(".updater"));
    !own && !is_backup(folder)
}

/// True for a folder with the record of a backup. An application may have a file of that name; then its folder has
/// `.updater/`, which no backup holds, or the file is plainly another one.
fn is_backup(folder: &Path) -> bool {
    let record = folder.join("backup.json");
    if fs_err::symlink_metadata(&record).is_err() || folder.join(".updater").is_dir() {
        return false;
    }
    let object =
        fsx::read(&record, fsx::RECORD).ok().and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
    object.is_none_or(|object| object.get("update_id").is_some())
}
