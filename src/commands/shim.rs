//! `shim`: the drop-in `app/remote_updater.py`, a few lines of Python through which an unmodified legacy server
//! starts this program in place of its old updater.
//! Refuses to replace or remove a file that somebody else put there.

use super::shown::Shown;
use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::system::files;
use crate::update::install::Install;
use anyhow::{Context as _, Result};
use serde::Serialize;
use std::path::Path;

/// Where the legacy server looks, of the places that no bundle overwrites.
const PLACE: &str = "app/remote_updater.py";

/// By this line a shim of ours is known.
const MARK: &str = "# Written by `updater shim`; `updater shim --remove` takes it away again.";

/// Where the legacy server has its own updater, and the places that it looks in before.
const ITS_OWN: [&str; 3] =
    ["app/utils/remote_updater.py", "app/simple_remote_updater.py", "app/app/utils/remote_updater.py"];

/// True where a legacy server's own updater lies.
pub fn is_legacy(install: &Install) -> bool {
    ITS_OWN.iter().any(|place| install.root.path().join(place).is_file())
}

/// True where our drop-in lies.
pub fn is_installed(install: &Install) -> bool {
    let text = fsx::read(&install.root.path().join(PLACE), fsx::PROGRAM);
    text.is_ok_and(|text| String::from_utf8_lossy(&text).contains(MARK))
}

/// Whether it calls this very program for this very root.
pub fn is_current(install: &Install) -> Result<bool> {
    let exe = std::env::current_exe().and_then(fs_err::canonicalize).context("finding this program")?;
    Ok(fsx::read(&install.root.path().join(PLACE), fsx::PROGRAM)? == script(&exe, install.root.path())?.as_bytes())
}

/// The answer of `shim`.
#[derive(Debug, Serialize)]
pub struct Placed {
    /// Where it lies, or lay.
    shim: String,
    /// The program that it calls; None: it was taken away.
    program: Option<String>,
    installed: bool,
}

/// Writes the shim. Again: it is written anew, for a program that has moved.
pub fn install(install: &Install) -> Result<Placed> {
    let place = install.root.path().join(PLACE);
    let folder = install.root.path().join("app");
    if !folder.is_dir() {
        return Err(Failure::failed(
            Code::NoAppFolder,
            "the install has no folder app/, in which a legacy server looks",
        )
        .at(install.root.path().display())
        .remedy("give the root of a legacy server with --root")
        .into());
    }
    refuse_foreign(&place, "have it replaced by hand: move it away, then type updater shim again")?;
    let exe = std::env::current_exe().and_then(fs_err::canonicalize).context("finding this program")?;
    fsx::write_atomic(&place, script(&exe, install.root.path())?.as_bytes())?;
    // The server that runs it need not be its owner.
    files::set_mode(&place, 0o644).with_context(|| format!("setting the mode of {}", place.display()))?;
    Ok(Placed { shim: place.display().to_string(), program: Some(exe.display().to_string()), installed: true })
}

/// Takes the shim away. Ok when there is none.
pub fn remove(install: &Install) -> Result<Placed> {
    let place = install.root.path().join(PLACE);
    refuse_foreign(&place, "it is not ours to remove")?;
    if fsx::exists(&place)? {
        fsx::remove_file(&place)?;
        fsx::sync_parent(&place)?;
    }
    Ok(Placed { shim: place.display().to_string(), program: None, installed: false })
}

fn refuse_foreign(place: &Path, remedy: &str) -> Result<()> {
    if !fsx::exists(place)?
        || fsx::read(place, fsx::PROGRAM).is_ok_and(|text| String::from_utf8_lossy(&text).contains(MARK))
    {
        return Ok(());
    }
    Err(Failure::failed(Code::ForeignShim, "somebody else put this file there")
        .at(place.display())
        .remedy(remedy)
        .into())
}

/// Errors: a path that is not Unicode, which a script cannot name.
fn script(exe: &Path, root: &Path) -> Result<String> {
    let text = |path: &Path| {
        path.to_str().map(quoted).ok_or_else(|| {
            Failure::failed(Code::OddPath, "this path is not Unicode, so a script cannot name it").at(path.display())
        })
    };
    Ok(format!(
        r#"{MARK}
import os
import subprocess
import sys

PROGRAM = {}
ROOT = {}

if not os.path.isfile(PROGRAM):
    sys.stderr.write("error: the updater is not at " + ascii(PROGRAM) + "\n"
                     "  remedy: install it there, or type `updater shim` again from where it is\n")
    sys.exit(127)
command = [PROGRAM, "--root", ROOT] + sys.argv[1:]
sys.stdout.flush()
if os.name == "nt":
    DETACHED_PROCESS, NEW_PROCESS_GROUP = 0x00000008, 0x00000200
    subprocess.Popen(command, creationflags=DETACHED_PROCESS | NEW_PROCESS_GROUP)
else:
    os.execv(PROGRAM, command)
"#,
        text(exe)?,
        text(root)?
    ))
}

/// A Python string of ASCII letters alone.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            other => out.push_str(&format!("\\U{:08x}", u32::from(other))),
        }
    }
    out + "\""
}

impl Shown for Placed {
    fn lines(&self) -> Vec<String> {
        match &self.program {
            Some(program) => {
                vec![format!("written: {}", self.shim), format!("a legacy server now updates with {program}")]
            }
            None => vec![format!("removed: {}", self.shim)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_path_becomes_a_string_of_python() {
        assert_eq!(quoted("/a b\"c\\d"), r#""/a b\"c\\d""#);
        assert_eq!(quoted("/\u{e9}\u{1f600}\n"), r#""/\U000000e9\U0001f600\U0000000a""#);
    }
}
