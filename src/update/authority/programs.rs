//! What root runs in an install where others may write: only what is root's alone.
//! Refuses nothing where the work is done by the install's owner: then it is his to run what he likes.

use super::others_in;
use crate::base::error::{Code, Failure};
use crate::base::path::RelPath;
use crate::system::{LaunchSpec, trust};
use crate::update::install::Install;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};

/// Refuses a program, or a script among its arguments, on which others than root have a say. What is not there yet is
/// judged when it is run. Errors (`unsafe-program`, exit 1).
pub fn may_run(install: &Install, argv: &[String], cwd: &Path, env: &[(String, String)]) -> Result<()> {
    if !trust::is_guarded() {
        return Ok(());
    }
    for (at, word) in argv.iter().enumerate() {
        let Some(path) = named(word, at == 0, install, cwd, env) else { continue };
        let Some(found) = others_in(&path)? else { continue };
        let message = format!(
            "root would run {} for '{}', and others than root may change {}",
            path.display(),
            argv.join(" "),
            found.place().display()
        );
        return Err(unsafe_program(&path, message).into());
    }
    Ok(())
}

/// The same as `may_run` for a server that does not run, where nobody knows as whom it ran, so that root would start it as itself.
pub fn may_start(install: &Install, launch: &LaunchSpec) -> Result<()> {
    match launch.credentials {
        Some(_) => Ok(()),
        None => may_run(install, &launch.argv, &launch.cwd, &launch.env),
    }
}

/// The file that a word of a hook's command line names; for the first one a bare name is looked up in the PATH.
fn named(word: &str, is_first: bool, install: &Install, cwd: &Path, env: &[(String, String)]) -> Option<PathBuf> {
    let is_bare = !word.contains(['/', '\\']);
    if is_first && is_bare {
        let (_, places) = env.iter().find(|(name, _)| name == "PATH")?;
        return std::env::split_paths(places).map(|folder| folder.join(word)).find(|full| full.is_file());
    }
    [cwd, install.root.path()].iter().map(|folder| folder.join(word)).find(|full| full.is_file())
}

fn unsafe_program(path: &Path, message: String) -> Failure {
    Failure::failed(Code::UnsafeProgram, message).at(path.display()).remedy(
        "give it to root (chown root, chmod go-w), or the install to the user who may write there: then it runs as him",
    )
}

/// Refuses an environment of Python's that is not root's alone, down to each file: whatever lies in it may be loaded by
/// its interpreter. Errors (`unsafe-program`, exit 1).
pub fn may_use(install: &Install, environment: &RelPath, python: &str) -> Result<()> {
    if !trust::is_guarded() {
        return Ok(());
    }
    let top = install.root.join(environment);
    let mut found = others_in(Path::new(python))?;
    for item in walkdir::WalkDir::new(&top).follow_links(false) {
        if found.is_some() {
            break;
        }
        let item = item.with_context(|| format!("looking into {environment}"))?;
        // The folder was seen with the way to it; links are judged by where they lie, which is below it.
        if !item.file_type().is_symlink() {
            found = trust::of_one(item.path()).with_context(|| format!("looking at {}", item.path().display()))?;
        }
    }
    let Some(found) = found else { return Ok(()) };
    let message = format!(
        "the packages of requirements.txt change, and root would run {python}, while others than root may change {}",
        found.place().display()
    );
    Err(unsafe_program(&top, message)
        .remedy(format!(
            "give the environment to root (chown -R root '{0}'; chmod -R go-w '{0}'), or install the packages yourself \
             and set [hooks] defaults = false in updater.toml",
            top.display()
        ))
        .into())
}
