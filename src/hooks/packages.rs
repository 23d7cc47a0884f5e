//! The hook that is there by default: where an update changes `requirements.txt` and the server runs from an
//! environment of the install that does not satisfy it, the packages are fetched while the server serves, and
//! installed while it is down, without network.
//! Refuses to decide what a requirement means: pip is asked, in the environment itself.
//!
//! What is missing is brought as wheels (`pip wheel`, which downloads them and builds those that only come as source),
//! so that whatever can fail for want of network or of a compiler fails before the stop. Then pip is asked once more,
//! without network, whether it could install from these.
//! Source: pip.pypa.io, "pip install" (`--dry-run`, `--report`: since 22.2) and "Installation Report".

use super::task::{self, Ended, Task};
use super::{Due, When};
use crate::bundle::Bundle;
use crate::context::Context;
use crate::error::Failure;
use crate::fsx;
use crate::os::LaunchSpec;
use crate::path::{InstallRoot, RelPath};
use crate::plan::{Action, Plan};
use crate::preserve::ENVIRONMENT;
use crate::server::{self, Running};
use crate::settings::Hook;
use crate::staging;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// They cannot be brought.
pub(super) const NOT_FETCHED: &str = "packages-not-fetched";

/// What names the packages that a version needs.
const REQUIREMENTS: &str = "requirements.txt";

/// What was brought, in the folder of the hooks.
const BROUGHT: &str = "brought.txt";

/// How long pip may take to say what it is.
const ASK: Duration = Duration::from_secs(60);

/// The environment that lacks something, and what the new version asks for.
#[derive(Debug)]
pub(super) struct Packages {
    python: String,
    environment: RelPath,
    /// `requirements.txt` and all that it includes, as the new version has them.
    files: BTreeMap<RelPath, Vec<u8>>,
    /// pip can say beforehand what it would install.
    can_ask: bool,
}

/// What an update means for the packages.
#[derive(Debug)]
pub(super) enum Need {
    Nothing,
    /// Something is to be installed.
    Unmet(Packages),
    /// They are left alone, which is said: code and words.
    LeftAlone(&'static str, String),
}

/// Finds out whether the environment of the server satisfies the new version. Without network; writes to `scratch`.
pub(super) fn need(
    cx: &Context,
    bundle: &mut Bundle,
    plan: &Plan,
    (running, launch): (Option<&Running>, Option<&LaunchSpec>),
    env: &[(String, String)],
    scratch: &Path,
) -> Result<Need> {
    let files = new_requirements(&cx.root, bundle, plan)?;
    let changed: BTreeSet<&RelPath> = plan.changes().map(|planned| &planned.path).collect();
    if !files.keys().any(|path| changed.contains(path)) {
        return Ok(Need::Nothing);
    }
    let (environment, python) = match environment_of(&cx.root, running, launch) {
        Found::Used(environment, python) => (environment, python),
        Found::None => return Ok(Need::Nothing),
        Found::Outside => {
            let text = format!(
                "{REQUIREMENTS} changes, and the server runs from no environment of the install: its packages are left \
                 as they are"
            );
            return Ok(Need::LeftAlone("packages-outside", text));
        }
    };
    let pip = Pip { cx, python: &python, env, folder: scratch };
    let Some(version) = pip.version()? else {
        let text = format!("{REQUIREMENTS} changes, and {environment} has no pip: its packages are left as they are");
        return Ok(Need::LeftAlone("packages-no-pip", text));
    };
    let packages = Packages { python: python.clone(), environment, files, can_ask: version >= (22, 2) };
    packages.write(scratch, &[cx.root.path().to_path_buf()])?;
    let all = requirements(scratch).to_string_lossy().into_owned();
    let is_met = packages.can_ask && pip.would_install(&["--no-index", "-r", &all])?.is_ok_and(|all| all.is_empty());
    Ok(if is_met { Need::Nothing } else { Need::Unmet(packages) })
}

impl Packages {
    /// What installs them, once they are there: exactly what was brought, whatever the requirements say of sources. An
    /// old pip, which cannot tell beforehand what that is, finds it out from the requirements.
    pub(super) fn install(&self, work: &Path) -> Due {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let words = [&self.python, "-I", "-m", "pip", "install", "--no-index", "--find-links"].map(str::to_string);
        let exactly = ["--no-deps".to_string(), "-r".to_string(), text(work.join(BROUGHT))];
        let all = vec!["-r".to_string(), text(requirements(work))];
        let what = if self.can_ask { exactly.to_vec() } else { all };
        Due {
            when: When::AfterSwap,
            run: words.into_iter().chain([text(wheels(work))]).chain(what).collect(),
            changes: vec![self.environment.clone()],
            timeout: Hook::TIMEOUT,
            by_default: true,
        }
    }

    /// What brings them, as `plan` shows it.
    pub(super) fn fetch_shown(&self, work: &Path) -> Due {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let words = [&self.python, "-I", "-m", "pip", "wheel", "--wheel-dir"].map(str::to_string);
        let places = [text(wheels(work)), "-r".to_string(), text(requirements(work))];
        Due {
            when: When::BeforeStop,
            run: words.into_iter().chain(places).collect(),
            changes: Vec::new(),
            timeout: Hook::TIMEOUT,
            by_default: true,
        }
    }

    /// Brings what is missing into `work`. Errors: `packages-not-fetched` with what pip says.
    pub(super) fn fetch(&self, cx: &Context, env: &[(String, String)], work: &Path) -> Result<()> {
        let pip = Pip { cx, python: &self.python, env, folder: work };
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let (wheels_at, all, brought) = (text(wheels(work)), text(requirements(work)), text(work.join(BROUGHT)));
        // Of the new version first: it may ship packages itself.
        self.write(work, &[staging::tree(&cx.own()), cx.root.path().to_path_buf()])?;
        fsx::make_folders(&wheels(work))?;
        let wheel = ["wheel", "--wheel-dir", &wheels_at];
        if !self.can_ask {
            let words = [&wheel[..], &["-r", &all]].concat();
            return pip.run(&words, Hook::TIMEOUT)?.map(drop).map_err(|said| self.not_fetched(&said).into());
        }
        let missing = pip.would_install(&["-r", &all])?.map_err(|said| self.not_fetched(&said))?;
        let exactly: String = missing.iter().map(|one| format!("{}=={}\n", one.name, one.version)).collect();
        fs_err::write(work.join(BROUGHT), exactly)?;
        if missing.is_empty() {
            return Ok(());
        }
        let sources = text(work.join("missing.txt"));
        fs_err::write(&sources, self.sources(work, &missing)?)?;
        let words = [&wheel[..], &["--no-deps", "-r", &sources]].concat();
        pip.run(&words, Hook::TIMEOUT)?.map_err(|said| self.not_fetched(&said))?;
        // What will be asked for while the server is down.
        let from_here = ["--no-index", "--no-deps", "--find-links", &wheels_at, "-r", &brought];
        pip.would_install(&from_here)?.map_err(|said| self.not_fetched(&said))?;
        Ok(())
    }

    /// The files, in a folder of their own. What they name by a path is looked for in `places`.
    fn write(&self, folder: &Path, places: &[PathBuf]) -> Result<()> {
        for (path, bytes) in &self.files {
            let place = folder.join("requirements").join(path.to_path());
            if let Some(parent) = place.parent() {
                fsx::make_folders(parent)?;
            }
            let beside = path.parent().map_or(PathBuf::new(), |folder| folder.to_path());
            let text: String =
                lines(bytes).iter().map(|line| anchored(line, &beside, places, &self.files) + "\n").collect();
            fs_err::write(place, text)?;
        }
        Ok(())
    }

    /// Requirements of exactly these packages, with the options that tell where packages come from.
    fn sources(&self, work: &Path, missing: &[Missing]) -> Result<String> {
        let mut text = String::new();
        for path in self.files.keys() {
            let bytes = fs_err::read(work.join("requirements").join(path.to_path()))?;
            text.extend(lines(&bytes).iter().filter(|line| names_an_origin(line)).map(|line| format!("{line}\n")));
        }
        // With their hashes, so that the very files are brought that pip has chosen; pip takes them for all or none.
        let hashed = missing.iter().all(|one| one.sha256.is_some());
        for one in missing {
            let hash = one.sha256.as_ref().filter(|_| hashed);
            text += &format!("{}{}\n", one.source, hash.map_or(String::new(), |hash| format!(" --hash=sha256:{hash}")));
        }
        Ok(text)
    }

    fn not_fetched(&self, said: &[String]) -> Failure {
        let why = said.iter().rev().find(|line| line.starts_with("ERROR")).or(said.last());
        let why = why.map_or("pip does not say why", |line| line.trim_start_matches("ERROR: "));
        Failure::failed(NOT_FETCHED, format!("the packages of {REQUIREMENTS} cannot be brought: {why}"))
            .at(REQUIREMENTS)
            .remedy(
                "check the network and the names in it, and try again; to install them yourself set [hooks] defaults = \
                 false in updater.toml",
            )
    }
}

fn wheels(work: &Path) -> PathBuf {
    work.join("wheels")
}

fn requirements(work: &Path) -> PathBuf {
    work.join("requirements").join(REQUIREMENTS)
}

/// Options of a requirements file that are no requirement and no inclusion (pip.pypa.io, "Requirements File Format").
fn names_an_origin(line: &str) -> bool {
    const ORIGINS: [&str; 10] = [
        "-i",
        "--index-url",
        "--extra-index-url",
        "-f",
        "--find-links",
        "--trusted-host",
        "--no-binary",
        "--only-binary",
        "--prefer-binary",
        "--pre",
    ];
    line.split([' ', '=']).next().is_some_and(|first| ORIGINS.contains(&first))
}

/// The lines that mean something, continued ones joined.
fn lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes).replace("\\\r\n", " ").replace("\\\n", " ");
    let lines = text.trim_start_matches('\u{feff}').lines().map(|line| line.split(" #").next().unwrap_or(line).trim());
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_string).collect()
}

/// A line with what it names by a path named where that is: in one of `places`, below `beside` or not. In the files
/// themselves such a path is relative to them or to where pip is called, and we call it elsewhere.
fn anchored(line: &str, beside: &Path, places: &[PathBuf], known: &BTreeMap<RelPath, Vec<u8>>) -> String {
    let found = |name: &str| -> Vec<PathBuf> {
        let all = places.iter().flat_map(|place| [place.join(beside).join(name), place.join(name)]);
        let mut there: Vec<PathBuf> = all.map(|full| server::plain(&full)).filter(|full| full.exists()).collect();
        there.dedup();
        there
    };
    let is_url = |name: &str| name.contains("://");
    let value = |options: &[&str]| {
        let rest = options.iter().find_map(|option| line.strip_prefix(option))?;
        Some(rest.trim_start_matches([' ', '=']).trim()).filter(|name| !name.is_empty() && !is_url(name))
    };
    if let Some(name) = value(&["--find-links", "-f"]) {
        let all: Vec<String> = found(name).iter().map(|full| format!("--find-links {}", full.display())).collect();
        return if all.is_empty() { line.to_string() } else { all.join("\n") };
    }
    if let Some(name) = included(line) {
        let inside = RelPath::from_disk(&server::plain(&beside.join(name)));
        // Those of the install are written beside each other, as they were.
        if inside.is_some_and(|path| known.contains_key(&path)) && !name.starts_with('/') {
            return line.to_string();
        }
        let option = if line.starts_with("-c") || line.starts_with("--constraint") { "-c" } else { "-r" };
        let outside = places.last().map(|root| server::plain(&root.join(beside).join(name)));
        return outside.map_or(line.to_string(), |full| format!("{option} {}", full.display()));
    }
    let name = line.split([' ', ';']).next().unwrap_or(line);
    let is_path = name.contains('/') && !is_url(line) && !line.starts_with('-');
    match found(name).first().filter(|_| is_path) {
        Some(full) => line.replacen(name, &full.to_string_lossy(), 1),
        None => line.to_string(),
    }
}

/// The files that a line includes: `-r base.txt`, `--constraint=limits.txt`.
fn included(line: &str) -> Option<&str> {
    let options = ["--requirement", "--constraint", "-r", "-c"];
    let rest = options.iter().find_map(|option| line.strip_prefix(option))?;
    let name = rest.trim_start_matches([' ', '=']).trim();
    (!name.is_empty() && !name.contains("://")).then_some(name)
}

/// `requirements.txt` of the new version and what it includes; empty where it has none.
fn new_requirements(root: &InstallRoot, bundle: &mut Bundle, plan: &Plan) -> Result<BTreeMap<RelPath, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut open: Vec<RelPath> = RelPath::parse(REQUIREMENTS).into_iter().collect();
    while let Some(path) = open.pop() {
        if found.contains_key(&path) {
            continue;
        }
        let Some(bytes) = new_file(root, bundle, plan, &path)? else { continue };
        for line in lines(&bytes) {
            let Some(name) = included(&line) else { continue };
            // What lies outside of the install is pip's to find or to miss.
            let full = path.parent().map_or(PathBuf::from(name), |folder| folder.to_path().join(name));
            open.extend(RelPath::from_disk(&server::plain(&full)));
        }
        found.insert(path, bytes);
    }
    Ok(found)
}

/// A file as it will be; None: there will be none.
fn new_file(root: &InstallRoot, bundle: &mut Bundle, plan: &Plan, path: &RelPath) -> Result<Option<Vec<u8>>> {
    let planned = plan.actions.iter().find(|planned| planned.path == *path);
    match planned {
        Some(planned) if planned.action == Action::Remove => Ok(None),
        Some(planned) if planned.content.is_some() => Ok(planned.content.clone()),
        Some(planned) if matches!(planned.action, Action::Add | Action::Replace) => {
            planned.entry.map(|at| bundle.read_entry(at)).transpose()
        }
        _ if root.join(path).is_file() => Ok(Some(fs_err::read(root.join(path))?)),
        _ => Ok(None),
    }
}

/// Where the server's packages are.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// An environment of the install, and its interpreter.
    Used(RelPath, String),
    /// The install has none.
    None,
    /// It has one, or a server runs, but from elsewhere.
    Outside,
}

fn environment_of(root: &InstallRoot, running: Option<&Running>, launch: Option<&LaunchSpec>) -> Found {
    let names: BTreeSet<&str> = ENVIRONMENT.iter().map(|pattern| pattern.trim_matches('/')).collect();
    let mut all = Vec::new();
    for name in names {
        let folder = root.path().join(name);
        let python = ["bin/python", "Scripts/python.exe"].map(|python| folder.join(python));
        let python = python.into_iter().find(|python| python.is_file());
        if let (Ok(path), Some(python), true) = (RelPath::parse(name), python, folder.join("pyvenv.cfg").is_file()) {
            all.push((path, python.to_string_lossy().into_owned()));
        }
    }
    let within = |program: &Path| {
        let inside = |(path, _): &&(RelPath, String)| program.starts_with(root.join(path));
        all.iter().find(inside).cloned()
    };
    let processes = running.into_iter().flat_map(|running| &running.processes);
    let commands = processes.map(|process| (process.argv.as_slice(), process.cwd.as_deref()));
    let commands = commands.chain(launch.map(|launch| (launch.argv.as_slice(), Some(launch.cwd.as_path()))));
    let env = launch.map(|launch| launch.env.as_slice()).unwrap_or_default();
    let mut programs =
        commands.flat_map(|(argv, cwd)| argv.iter().take(2).filter_map(move |word| full(word, cwd, env)));
    match programs.find_map(|program| within(&program)) {
        Some((path, python)) => Found::Used(path, python),
        None if all.is_empty() && running.is_none() => Found::None,
        None => Found::Outside,
    }
}

/// The program that a word of a command line names: by a path, or found as the server finds it.
fn full(word: &str, cwd: Option<&Path>, env: &[(String, String)]) -> Option<PathBuf> {
    if word.contains(['/', '\\']) {
        return Some(server::plain(&cwd?.join(word)));
    }
    let (_, path) = env.iter().find(|(name, _)| name == "PATH")?;
    std::env::split_paths(path).map(|folder| server::plain(&folder.join(word))).find(|program| program.is_file())
}

/// pip of an environment. It writes nothing there: what it compiles on the way is not kept.
struct Pip<'a> {
    cx: &'a Context,
    python: &'a str,
    env: &'a [(String, String)],
    /// Where it works, and its output goes.
    folder: &'a Path,
}

/// What pip printed.
type Said = Vec<String>;

impl Pip<'_> {
    /// Runs `pip WORDS`. The inner error: it failed.
    fn run(&self, words: &[&str], timeout: Duration) -> Result<std::result::Result<Said, Said>> {
        // Isolated (-I): a module of the install must not stand in for one of Python's.
        let argv = [self.python, "-I", "-B", "-m", "pip"].iter().chain(words).map(|word| word.to_string()).collect();
        let output = self.folder.join("pip.txt");
        fsx::remove_own_file(&output)?;
        let id = &self.cx.update_id;
        let cwd = self.cx.root.path();
        let task = Task { argv, cwd, env: self.env, output: &output, timeout, update_id: id };
        let mut said = Vec::new();
        let ended = task::run(&task, &mut |lines| {
            said.extend_from_slice(lines);
            self.cx.check_signals()
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
    fn version(&self) -> Result<Option<(u32, u32)>> {
        let Ok(said) = self.run(&["--version"], ASK)? else { return Ok(None) };
        let words = said.iter().find_map(|line| line.strip_prefix("pip ")?.split(' ').next());
        let mut numbers = words.unwrap_or_default().split('.').map(|number| number.parse().unwrap_or(0));
        Ok(Some((numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))))
    }

    /// What pip would install when asked so. The inner error: what it printed, when it found no way.
    fn would_install(&self, words: &[&str]) -> Result<std::result::Result<Vec<Missing>, Said>> {
        let report = self.folder.join("report.json");
        let place = report.to_string_lossy();
        let words = [&["install", "--dry-run", "--report", &place][..], words].concat();
        Ok(match self.run(&words, Hook::TIMEOUT)? {
            Ok(_) => {
                let report: Value =
                    serde_json::from_slice(&fs_err::read(&report)?).context("reading what pip would install")?;
                Ok(report["install"].as_array().into_iter().flatten().filter_map(Missing::of).collect())
            }
            Err(said) => Err(said),
        })
    }
}

/// One package that is to be installed.
#[derive(Debug, PartialEq, Eq)]
struct Missing {
    name: String,
    version: String,
    /// Itself as a requirement, from where pip has it.
    source: String,
    /// Of the file that pip has chosen, where that is known.
    sha256: Option<String>,
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
    fn what_a_file_includes_is_found() {
        for (line, name) in [
            ("-r base.txt", Some("base.txt")),
            ("-rbase.txt", Some("base.txt")),
            ("--constraint=limits.txt", Some("limits.txt")),
            ("--requirement sub/x.txt", Some("sub/x.txt")),
            ("-r https://example.org/x.txt", None),
            ("flask==3.0.3", None),
        ] {
            assert_eq!(included(line), name, "{line}");
        }
    }

    #[test]
    fn comments_and_continued_lines_are_understood() {
        let text = b"\xef\xbb\xbf# all\nflask \\\n  >=3  # why\n\n--index-url http://x/simple\n-r base.txt\n";
        assert_eq!(lines(text), ["flask    >=3", "--index-url http://x/simple", "-r base.txt"]);
        let origins: Vec<String> = lines(text).into_iter().filter(|line| names_an_origin(line)).collect();
        assert_eq!(origins, ["--index-url http://x/simple"]);
    }

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

    #[test]
    fn what_lies_in_the_install_is_named_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (new, old) = (folder.path().join("new"), folder.path().join("old"));
        for path in ["new/wheels", "old/wheels", "old/vendor"] {
            std::fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        std::fs::write(old.join("vendor/x.whl"), "").unwrap();
        let places = [new.clone(), old.clone()];
        let known = BTreeMap::from([(RelPath::parse("base.txt").unwrap(), Vec::new())]);
        let of = |line: &str| anchored(line, Path::new(""), &places, &known);
        let both =
            format!("--find-links {}\n--find-links {}", new.join("wheels").display(), old.join("wheels").display());
        assert_eq!(of("--find-links wheels"), both);
        assert_eq!(of("-f ./wheels"), both);
        assert_eq!(of("./vendor/x.whl"), old.join("vendor/x.whl").display().to_string());
        assert_eq!(of("-c ../limits.txt"), format!("-c {}", folder.path().join("limits.txt").display()));
        for same in ["-r base.txt", "flask>=3", "--find-links https://x/y", "a @ https://x/a.whl"] {
            assert_eq!(of(same), same);
        }
    }
}
