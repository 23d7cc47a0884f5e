//! How a server starts: as the running one was started, or by settings and the usual places.
//! Refuses to start anything.

use super::table::{Table, plain};
use crate::base::error::{Code, Failure};
use crate::state::root::InstallRoot;
use crate::system::{Credentials, LaunchSpec, files, is_passed_on, processes};
use anyhow::Context;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How the process was started, from what the system still knows.
pub(super) fn captured_launch(table: &Table, pid: u32, root: &InstallRoot) -> anyhow::Result<LaunchSpec> {
    let entry = table.all.get(&pid).with_context(|| format!("process {pid} has ended"))?;
    let hidden = |what: &str| {
        Failure::failed(Code::LaunchHidden, format!("the {what} of the server (pid {pid}) cannot be read"))
            .remedy("run as the user of the server, or as the administrator")
    };
    let cwd = entry.cwd.clone().ok_or_else(|| hidden("working folder"))?;
    let read = match processes::command_of(pid) {
        Ok(read) => read,
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            let message = format!("the server (pid {pid}) cannot be started again exactly as it was: {e}");
            return Err(Failure::failed(Code::LaunchNotText, message)
                .remedy("start the server with a plain command line and environment, then try again")
                .into());
        }
        Err(_) => return Err(hidden("command line or environment").into()),
    };
    if read.argv.is_empty() {
        return Err(hidden("command line").into());
    }
    let [out_default, err_default] = default_outputs(root);
    let credentials = processes::credentials(pid).with_context(|| format!("reading the user of process {pid}"))?;
    // A log that another user opened for the server (a shell of root's) cannot be opened by it again.
    let [out, err] = processes::outputs(pid).map(|log| log.filter(|path| files::may_write(path, &credentials)));
    Ok(LaunchSpec {
        argv: read.argv,
        cwd,
        env: read.env,
        stdout: out.unwrap_or(out_default),
        stderr: err.unwrap_or(err_default),
        credentials: Some(credentials),
    })
}

/// Where a server's output goes when its former target is not known.
fn default_outputs(root: &InstallRoot) -> [PathBuf; 2] {
    let instance = root.path().join("instance");
    let folder = if instance.is_dir() { instance } else { root.state().logs() };
    [folder.join("server_update_stdout.log"), folder.join("server_update_stderr.log")]
}

/// How to start a server that does not run: the command of the settings, else the install's own python
/// with `run.py`; as ourselves, or as another `user`, who gets of our environment only what is harmless.
/// Errors: there is no `run.py` either.
pub fn guess_launch(
    root: &InstallRoot,
    settings_command: Option<&[String]>,
    env: &BTreeMap<String, String>,
    user: Option<&Credentials>,
) -> anyhow::Result<LaunchSpec> {
    let argv = match settings_command.filter(|command| !command.is_empty()) {
        Some(command) => anchored(command, root),
        None => vec![python_of(root), "run.py".to_string()],
    };
    if settings_command.is_none_or(<[String]>::is_empty) && !root.path().join("run.py").is_file() {
        return Err(Failure::failed(Code::NoLaunch, "how the server is started is not known: there is no run.py")
            .at(root.path().display())
            .remedy("set `command` in updater.toml")
            .into());
    }
    let text = |part: std::ffi::OsString| part.to_string_lossy().into_owned();
    let own = std::env::vars_os().filter(|(name, _)| user.is_none() || is_passed_on(name));
    let mut whole: Vec<(String, String)> = own.map(|(name, value)| (text(name), text(value))).collect();
    whole.retain(|(name, _)| !env.contains_key(name));
    whole.extend(env.iter().map(|(name, value)| (name.clone(), value.clone())));
    let [stdout, stderr] = default_outputs(root);
    // Where no user is told it is ours: whoever works on an install is its owner.
    Ok(LaunchSpec { argv, cwd: root.path().to_path_buf(), env: whole, stdout, stderr, credentials: user.cloned() })
}

/// A program given relative to the root becomes absolute; a bare name is left to PATH.
fn anchored(command: &[String], root: &InstallRoot) -> Vec<String> {
    let mut argv = command.to_vec();
    if let Some(first) = argv.first_mut() {
        let path = Path::new(first.as_str());
        if path.is_relative() && path.components().count() > 1 {
            *first = plain(&root.path().join(path)).to_string_lossy().into_owned();
        }
    }
    argv
}

fn python_of(root: &InstallRoot) -> String {
    let known = [".venv/bin/python", "venv/bin/python", ".venv/Scripts/python.exe", "venv/Scripts/python.exe"];
    let mut paths = known.iter().map(|relative| root.path().join(relative));
    let found = paths.find(|path| path.is_file());
    found.map_or_else(|| "python3".to_string(), |path| path.to_string_lossy().into_owned())
}
