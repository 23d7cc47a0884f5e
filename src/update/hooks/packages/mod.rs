//! The hook that is there by default: where an update changes `requirements.txt` and the server runs from an
//! environment of the install that does not satisfy it, the packages are fetched while the server serves, and
//! installed while it is down, without network.
//! Refuses to decide what a requirement means: pip is asked, in the environment itself.
//!
//! What is missing is brought as wheels (`pip wheel`, which downloads them and builds those that only come as source),
//! so that whatever can fail for want of network or of a compiler fails before the stop. Then pip is asked once more,
//! without network, whether it could install from these.
//! Source: pip.pypa.io, "pip install" (`--dry-run`, `--report`: since 22.2) and "Installation Report".

mod pip;
mod requirements;

use super::{PlannedHook, When};
use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::root::InstallRoot;
use crate::state::settings::Hook;
use crate::system::LaunchSpec;
use crate::update::authority;
use crate::update::bundle::Bundle;
use crate::update::install::Install;
use crate::update::plan::Plan;
use crate::update::run::Run;
use crate::update::server::{self, Running};
use anyhow::Result;
use pip::{Missing, Pip};
use requirements::{anchored, lines, names_an_origin};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Where the environment of a server lies, in the order in which it is looked for.
const ENVIRONMENTS: [&str; 3] = [".venv", "env", "venv"];

/// They cannot be brought.
pub(super) const NOT_FETCHED: Code = Code::PackagesNotFetched;

/// What names the packages that a version needs.
const REQUIREMENTS: &str = "requirements.txt";

/// What was brought, in the folder of the hooks.
const PINNED_REQUIREMENTS: &str = "brought.txt";

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

/// Whose packages are asked for, and how.
pub(super) struct Asked<'a> {
    pub running: Option<&'a Running>,
    pub launch: Option<&'a LaunchSpec>,
    /// The environment variables of pip.
    pub env: &'a [(String, String)],
    /// A folder for what is read on the way.
    pub scratch: &'a Path,
}

/// What an update means for the packages.
#[derive(Debug)]
pub(super) enum Need {
    Nothing,
    /// Something is to be installed.
    Unmet(Packages),
    /// They are left alone, which is said: code and words.
    Skipped(Code, String),
}

/// Finds out whether the environment of the server satisfies the new version. Without network; writes to `scratch`.
pub(super) fn need(install: &Install, run: &Run, bundle: &mut Bundle, plan: &Plan, asked: &Asked) -> Result<Need> {
    let Asked { running, launch, env, scratch } = *asked;
    let files = requirements::of_new_version(&install.root, bundle, plan)?;
    let changed: BTreeSet<&RelPath> = plan.changes().map(|planned| &planned.path).collect();
    if !files.keys().any(|path| changed.contains(path)) {
        return Ok(Need::Nothing);
    }
    let (environment, python) = match environment_of(&install.root, running, launch) {
        Found::Used(environment, python) => (environment, python),
        Found::None => return Ok(Need::Nothing),
        Found::Outside => {
            let text = format!(
                "{REQUIREMENTS} changes, and the server runs from no environment of the install: its packages are left \
                 as they are"
            );
            return Ok(Need::Skipped(Code::PackagesOutside, text));
        }
    };
    authority::may_use(install, &environment, &python)?;
    let pip = Pip { install, run, python: &python, env, folder: scratch };
    let Some(version) = pip.version()? else {
        let text = format!("{REQUIREMENTS} changes, and {environment} has no pip: its packages are left as they are");
        return Ok(Need::Skipped(Code::PackagesNoPip, text));
    };
    let packages = Packages { python: python.clone(), environment, files, can_ask: version >= (22, 2) };
    packages.write(scratch, &[install.root.path().to_path_buf()])?;
    let all = requirements(scratch).to_string_lossy().into_owned();
    let is_met = packages.can_ask && pip.would_install(&["--no-index", "-r", &all])?.is_ok_and(|all| all.is_empty());
    Ok(if is_met { Need::Nothing } else { Need::Unmet(packages) })
}

impl Packages {
    /// What installs them, once they are there: exactly what was brought, whatever the requirements say of sources. An
    /// old pip, which cannot tell beforehand what that is, finds it out from the requirements.
    pub(super) fn install(&self, work: &Path) -> PlannedHook {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let words = [&self.python, "-I", "-m", "pip", "install", "--no-index", "--find-links"].map(str::to_string);
        let exactly = ["--no-deps".to_string(), "-r".to_string(), text(work.join(PINNED_REQUIREMENTS))];
        let all = vec!["-r".to_string(), text(requirements(work))];
        let what = if self.can_ask { exactly.to_vec() } else { all };
        PlannedHook {
            when: When::AfterSwap,
            run: words.into_iter().chain([text(wheels(work))]).chain(what).collect(),
            changes: vec![self.environment.clone()],
            timeout: Hook::TIMEOUT,
            by_default: true,
        }
    }

    /// What brings them, as `plan` shows it.
    pub(super) fn fetch_shown(&self, work: &Path) -> PlannedHook {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let words = [&self.python, "-I", "-m", "pip", "wheel", "--wheel-dir"].map(str::to_string);
        let places = [text(wheels(work)), "-r".to_string(), text(requirements(work))];
        PlannedHook {
            when: When::BeforeStop,
            run: words.into_iter().chain(places).collect(),
            changes: Vec::new(),
            timeout: Hook::TIMEOUT,
            by_default: true,
        }
    }

    /// Brings what is missing into `work`. Errors: `packages-not-fetched` with what pip says.
    pub(super) fn fetch(&self, install: &Install, run: &Run, env: &[(String, String)], work: &Path) -> Result<()> {
        let pip = Pip { install, run, python: &self.python, env, folder: work };
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let (wheels_at, all, brought) =
            (text(wheels(work)), text(requirements(work)), text(work.join(PINNED_REQUIREMENTS)));
        // Of the new version first: it may ship packages itself.
        self.write(work, &[install.state().staged_tree(), install.root.path().to_path_buf()])?;
        fsx::make_folders(&wheels(work))?;
        let wheel = ["wheel", "--wheel-dir", &wheels_at];
        if !self.can_ask {
            let words = [&wheel[..], &["-r", &all]].concat();
            return pip.run(&words, Hook::TIMEOUT)?.map(drop).map_err(|said| self.not_fetched(&said).into());
        }
        let missing = pip.would_install(&["-r", &all])?.map_err(|said| self.not_fetched(&said))?;
        let exactly: String = missing.iter().map(|one| format!("{}=={}\n", one.name, one.version)).collect();
        fs_err::write(work.join(PINNED_REQUIREMENTS), exactly)?;
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
            let bytes = fsx::read(&work.join("requirements").join(path.to_path()), fsx::SMALL)?;
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
    let mut all = Vec::new();
    for name in ENVIRONMENTS {
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
