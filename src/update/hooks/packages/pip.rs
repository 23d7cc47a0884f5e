//! pip of an environment, asked and told.
//! Refuses to write in the environment: what is installed is a hook's doing.

use crate::base::fsx;
use crate::state::settings::Hook;
use crate::update::hooks::task::{self, Ended, Task};
use crate::update::install::Install;
use crate::update::run::Run;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// How long pip may take to say what it is.
const ASK: Duration = Duration::from_secs(60);

/// pip of an environment. It writes nothing there: what it compiles on the way is not kept.
pub(super) struct Pip<'a> {
    pub install: &'a Install,
    pub run: &'a Run,
    pub python: &'a str,
    pub env: &'a [(String, String)],
    /// Where it works, and its output goes.
    pub folder: &'a Path,
}

/// What pip printed.
pub(super) type Output = Vec<String>;

impl Pip<'_> {
    /// Runs `pip WORDS`. The inner error: it failed.
    pub fn run(&self, words: &[&str], timeout: Duration) -> Result<std::result::Result<Output, Output>> {
        // Isolated (-I): a module of the install must not stand in for one of Python's.
        let argv = [self.python, "-I", "-B", "-m", "pip"].iter().chain(words).map(|word| word.to_string()).collect();
        let output = self.folder.join("pip.txt");
        fsx::remove_own_file(&output)?;
        let id = &self.run.update_id;
        let cwd = self.install.root.path();
        let task = Task { argv, cwd, env: self.env, output: &output, timeout, update_id: id };
        let mut said = Vec::new();
        let ended = task::run(&task, &mut |lines| {
            said.extend_from_slice(lines);
            self.run.check_signals()
        })?;
        Ok(match ended {
            Ended::Well => Ok(said),
            Ended::Badly(_) => Err(said),
            Ended::Late => {
                said.push(format!("pip had not ended after {} s", timeout.as_secs()));
                Err(said)
            }
        })
    }

    /// The version; None: there is no pip.
    pub fn version(&self) -> Result<Option<(u32, u32)>> {
        let Ok(said) = self.run(&["--version"], ASK)? else { return Ok(None) };
        let words = said.iter().find_map(|line| line.strip_prefix("pip ")?.split(' ').next());
        let mut numbers = words.unwrap_or_default().split('.').map(|number| number.parse().unwrap_or(0));
        Ok(Some((numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))))
    }

    /// What pip would install when asked so. The inner error: what it printed, when it found no way.
    pub fn would_install(&self, words: &[&str]) -> Result<std::result::Result<Vec<Missing>, Output>> {
        let report = self.folder.join("report.json");
        let place = report.to_string_lossy();
        let words = [&["install", "--dry-run", "--report", &place][..], words].concat();
        Ok(match self.run(&words, Hook::TIMEOUT)? {
            Ok(_) => {
                let report: Value = serde_json::from_slice(&fsx::read(&report, fsx::RECORD)?)
                    .context("reading what pip would install")?;
                Ok(report["install"].as_array().into_iter().flatten().filter_map(Missing::of).collect())
            }
            Err(said) => Err(said),
        })
    }
}

/// One package that is to be installed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Missing {
    pub name: String,
    pub version: String,
    /// Itself as a requirement, from where pip has it.
    pub source: String,
    /// Of the file that pip has chosen, where that is known.
    pub sha256: Option<String>,
}

impl Missing {
    /// One item of an installation report.
    fn of(item: &Value) -> Option<Missing> {
        let text = |value: &Value| value.as_str().map(str::to_string);
        let (name, version) = (text(&item["metadata"]["name"])?, text(&item["metadata"]["version"])?);
        let download = &item["download_info"];
        let url = text(&download["url"]);
        let is_direct = item["is_direct"].as_bool() == Some(true);
        let repository = (text(&download["vcs_info"]["vcs"]), text(&download["vcs_info"]["commit_id"]));
        let source = match (is_direct, url, repository) {
            (true, Some(url), (Some(system), Some(commit))) => format!("{name} @ {system}+{url}@{commit}"),
            (true, Some(url), _) => format!("{name} @ {url}"),
            _ => format!("{name}=={version}"),
        };
        Some(Missing { name, version, source, sha256: text(&download["archive_info"]["hashes"]["sha256"]) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_pip_would_install_is_pinned() {
        let source = |item: Value| Missing::of(&item).unwrap().source;
        let plain = json!({"metadata": {"name": "a", "version": "1.2"}, "is_direct": false,
            "download_info": {"url": "https://x/a.whl", "archive_info": {"hashes": {"sha256": "ab"}}}});
        let direct = json!({"metadata": {"name": "b", "version": "1"}, "is_direct": true,
            "download_info": {"url": "https://x/b.whl"}});
        let git = json!({"metadata": {"name": "c", "version": "1"}, "is_direct": true,
            "download_info": {"url": "https://x/c", "vcs_info": {"vcs": "git", "commit_id": "abc"}}});
        assert_eq!(Missing::of(&plain).unwrap().sha256.as_deref(), Some("ab"));
        assert_eq!(source(plain), "a==1.2");
        assert_eq!(source(direct), "b @ https://x/b.whl");
        assert_eq!(source(git), "c @ git+https://x/c@abc");
    }
}
