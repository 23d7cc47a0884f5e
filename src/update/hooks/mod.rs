//! Hooks: the programs that an update runs in its middle, those of the settings and the one for packages.
//! Refuses to let one run on after its time or its end, and to believe that it wrote only what it named: that is
//! looked at, and more than that is a failure.
//!
//! They run as the owner of the install, who we are, with the server's environment, if the server is ours, too, and no
//! terminal. While those
//! after the swap run, the start file is still away: whatever a cut leaves, nothing can start on it.

mod before;
mod changes;
mod packages;
mod task;

pub use before::{TreeSnapshot, load_made, store_made};
pub use changes::Changes;

use crate::app::Profile;
use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::head::Head;
use crate::base::path::RelPath;
use crate::state::root::InstallRoot;
use crate::state::settings::{Hook, Hooks as Settings};
use crate::system::{LaunchSpec, files, is_passed_on, processes};
use crate::update::authority;
use crate::update::bundle::Bundle;
use crate::update::install::Install;
use crate::update::ownership;
use crate::update::plan::{Action, Plan};
use crate::update::run::Run;
use crate::update::server::Running;
use crate::update::staging::{self, StagedFile};
use anyhow::{Context as _, Result};
use packages::{Asked, Need, Packages};
use serde::Serialize;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use task::{Ended, Task};

/// How much of a failing hook's output is shown, in lines.
const TAIL: usize = 20;

/// Variables by which a service manager knows the server, and nobody else.
const OF_THE_SERVER: [&str; 6] =
    ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// Variables that tell a program who its own user is.
const OF_OUR_USER: [&str; 4] = ["HOME", "USER", "LOGNAME", "SHELL"];

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// While the server is up, in the staged tree.
    BeforeStop,
    /// While it is down, in the install.
    AfterSwap,
}

/// A hook that this update runs.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedHook {
    #[serde(rename = "hook")]
    pub when: When,
    pub run: Vec<String>,
    pub changes: Vec<RelPath>,
    #[serde(rename = "timeout_ms", serialize_with = "in_millis")]
    pub timeout: Duration,
    /// It is not of the settings.
    #[serde(rename = "default")]
    pub by_default: bool,
}

fn in_millis<S: serde::Serializer>(time: &Duration, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// What is known of the update that hooks belong to.
#[derive(Debug, Clone, Copy)]
pub struct HookContext<'a> {
    /// `apply` or `restore`.
    pub command: &'a str,
    pub running: Option<&'a Running>,
    pub launch: Option<&'a LaunchSpec>,
    pub start_file: &'a RelPath,
    pub from_version: Option<&'a str>,
    /// Not only a part of a version is put back.
    pub is_whole: bool,
}

/// Everything that one update runs in its middle.
#[derive(Debug, Default)]
pub struct Hooks {
    before_stop: Vec<PlannedHook>,
    after_swap: Vec<PlannedHook>,
    pub changes: Changes,
    packages: Option<Packages>,
    /// A restore goes on where packages cannot be fetched: old code mostly runs on newer ones, and health tells.
    is_restore: bool,
    env: Vec<(String, String)>,
    /// What is to be said of them: code and words.
    pub warnings: Vec<(Code, String)>,
}

impl Hooks {
    /// Chooses the hooks of an update and judges them, by reading alone. Errors: a program is not there, or one
    /// changes what could not be put back.
    pub fn choose(
        install: &Install,
        run: &Run,
        context: &HookContext,
        bundle: &mut Bundle,
        plan: &Plan,
    ) -> Result<Hooks> {
        let settings: &Settings = &install.settings.hooks;
        let env = environment(install, run, context, &bundle.version)?;
        let mut hooks = Hooks { env, is_restore: context.command == "restore", ..Hooks::default() };
        if settings.defaults {
            let scratch = tempfile::Builder::new().prefix("updater-check-").tempdir_in(run.scratch(install)?);
            let scratch = scratch.context("making a folder to ask for packages in")?;
            let (running, launch) = (context.running, context.launch);
            let asked = Asked { running, launch, env: &hooks.env, scratch: scratch.path() };
            match packages::need(install, run, bundle, plan, &asked)? {
                Need::Nothing => {}
                Need::Skipped(code, text) => hooks.warnings.push((code, text)),
                Need::Unmet(packages) => {
                    hooks.after_swap.push(packages.install(&work(&install.root)));
                    hooks.packages = Some(packages);
                }
            }
        }
        for (all, when) in [(&settings.before_stop, When::BeforeStop), (&settings.after_swap, When::AfterSwap)] {
            for hook in all {
                if !is_due(hook, context, plan)? {
                    continue;
                }
                let name = hook.run.first().map(String::as_str).unwrap_or_default();
                let is_there = will_be_there(install, name, plan, &hooks.env);
                if hooks.is_restore && (!is_there || hook.run.iter().any(|word| leaves(word, plan))) {
                    let shown = hook.run.join(" ");
                    let text = format!("the version that is put back cannot run the hook '{shown}': it is left out");
                    hooks.warnings.push((Code::HookLeftOut, text));
                    continue;
                }
                if !is_there {
                    return Err(no_program(hook, name).into());
                }
                authority::may_run(install, &hook.run, install.root.path(), &hooks.env)?;
                let due = due(hook, when)?;
                if when == When::BeforeStop { hooks.before_stop.push(due) } else { hooks.after_swap.push(due) }
            }
        }
        hooks.changes = Changes::judge(install, &hooks.named(), context.start_file)?;
        Ok(hooks)
    }

    /// All that they say they write.
    fn named(&self) -> BTreeSet<RelPath> {
        self.after_swap.iter().flat_map(|due| due.changes.clone()).collect()
    }

    /// All of them in their order, as `plan` shows them.
    pub fn shown(&self, root: &InstallRoot) -> Vec<PlannedHook> {
        let fetch = self.packages.iter().map(|packages| packages.fetch_shown(&work(root)));
        fetch.chain(self.before_stop.iter().chain(&self.after_swap).cloned()).collect()
    }

    /// The bytes that they need on the install's volume: what is copied for the way back.
    pub fn size(&self, root: &InstallRoot) -> Result<u64> {
        self.changes.size(root)
    }

    /// True when something runs while the server is down.
    pub fn run_after_swap(&self) -> bool {
        !self.after_swap.is_empty()
    }

    /// Runs what is due while the server serves. Errors (exit 1): one failed, or altered what waits to arrive or what
    /// is installed.
    pub fn before_stop(&mut self, install: &Install, run: &mut Run, staged: &[StagedFile], plan: &Plan) -> Result<()> {
        if self.packages.is_none() && self.before_stop.is_empty() && self.after_swap.is_empty() {
            return Ok(());
        }
        let work = work(&install.root);
        files::private_folder(&work).with_context(|| format!("creating {}", work.display()))?;
        if let Some(packages) = self.packages.take() {
            run.report.line("  hook: bringing the packages of requirements.txt");
            match packages.fetch(install, run, &self.env, &work) {
                Err(e)
                    if self.is_restore
                        && e.downcast_ref::<Failure>().is_some_and(|f| f.code == packages::NOT_FETCHED) =>
                {
                    let text = format!("{e:#}; going on with the packages as they are");
                    run.report.warning(packages::NOT_FETCHED, &text, None);
                    self.after_swap.retain(|due| !due.by_default);
                    self.changes.keep_only(&self.named());
                }
                fetched => fetched?,
            }
        }
        let tree = install.state().staged_tree();
        for due in &self.before_stop {
            self.run(install, run, due, &tree)?;
        }
        for one in staged {
            let is = fsx::metadata(&staging::staged_path(&install.root, &plan.annexes, &one.path))?;
            if !is.is_some_and(|is| fsx::is_unchanged(&one.metadata, &is)) {
                let message = format!("a hook before the stop altered {}, which waits to arrive", one.path);
                return Err(Failure::failed(Code::HookChangedStaging, message)
                    .at(&one.path)
                    .remedy("let it write to the folder that UPDATER_WORK names, or run it after the swap")
                    .into());
            }
        }
        // The server itself may write other shipped files meanwhile.
        let profile = Profile::of(install.root.path());
        let programs = plan.shipped.iter().filter(|(path, _)| profile.is_program(path, Head::Plain));
        for (path, live) in programs.filter(|_| !self.before_stop.is_empty()) {
            let is = fsx::metadata(&install.root.join(path))?;
            if !is.is_some_and(|is| fsx::is_unchanged(&live.metadata, &is)) {
                let what = "which is installed: it stays as the hook left it, and nothing else was changed";
                return Err(strayed(Code::HookChangedProgram, path, what).into());
            }
        }
        Ok(())
    }

    /// Runs what is due while the server is down. Errors: one failed, or made a start file of its own.
    pub fn after_swap(&self, install: &Install, run: &mut Run, start_file: &RelPath) -> Result<()> {
        let root = install.root.path().to_path_buf();
        for due in &self.after_swap {
            self.run(install, run, due, &root)?;
            if fsx::exists(&install.root.join(start_file))? {
                let what = "which stays away until all hooks are done";
                return Err(strayed(Code::HookChangedProgram, start_file, what)
                    .remedy("let it use the one that UPDATER_START_FILE names, where it is")
                    .into());
            }
        }
        Ok(())
    }

    fn run(&self, install: &Install, run: &mut Run, due: &PlannedHook, cwd: &Path) -> Result<()> {
        let shown = due.run.join(" ");
        let told = if due.by_default { "installing the packages of requirements.txt" } else { shown.as_str() };
        run.report.line(&format!("  hook: {told}"));
        let mut argv = due.run.clone();
        if let Some(first) = argv.first_mut() {
            *first = program(first, cwd, install.root.path());
        }
        authority::may_run(install, &argv, cwd, &self.env)?;
        let mut env = self.env.clone();
        let word = if due.when == When::BeforeStop { "before_stop" } else { "after_swap" };
        env.push(("UPDATER_STAGE".to_string(), word.to_string()));
        // A hook before this one may have taken it away.
        files::private_folder(&work(&install.root)).context("making the folder of the hooks")?;
        let output = work(&install.root).join("output.txt");
        fsx::remove_own_file(&output)?;
        let id = run.update_id.clone();
        let task = Task { argv, cwd, env: &env, output: &output, timeout: due.timeout, update_id: &id };
        let mut tail: Vec<String> = Vec::new();
        let ended = task::run(&task, &mut |lines| {
            for line in lines {
                run.report.note(&format!("    {line}"));
            }
            tail.extend_from_slice(lines);
            tail.drain(..tail.len().saturating_sub(TAIL));
            if run.is_down { run.check_signals_after_stop() } else { run.check_signals() }
        });
        let failed = |code, how: &str| {
            Failure::failed(code, format!("the hook '{shown}' {how}"))
                .remedy("mend what it says, or the hook in updater.toml, then try again")
        };
        let failure = match ended {
            Ok(Ended::Well) => return Ok(()),
            Ok(Ended::Badly(how)) => failed(Code::HookFailed, &format!("ended with {how}")),
            Ok(Ended::Late) => failed(Code::HookTimeout, &format!("had not ended after {} s", due.timeout.as_secs())),
            Err(e) if e.is::<Failure>() => return Err(e),
            Err(e) => failed(Code::HookFailed, &format!("could not be run: {e:#}")),
        };
        if !tail.is_empty() {
            run.report.warning(Code::HookOutput, &format!("the hook's output ends so:\n  {}", tail.join("\n  ")), None);
        }
        Err(failure.into())
    }
}

/// Ends whatever hooks of an update that was cut off still run. Errors: something of it does not end.
pub fn kill_leftovers(update_id: &str) -> Result<()> {
    task::kill_leftovers(update_id, None)
}

/// What an update would stumble over in the hooks of the settings: the programs that are not there now, so that the
/// bundle must bring them. Errors: one changes what could not be put back.
pub fn check(install: &Install, run: &Run, launch: Option<&LaunchSpec>, start_file: &RelPath) -> Result<Vec<String>> {
    let context =
        HookContext { command: "apply", running: None, launch, start_file, from_version: None, is_whole: true };
    let env = environment(install, run, &context, "")?;
    let settings = &install.settings.hooks;
    let mut named = BTreeSet::new();
    for hook in &settings.after_swap {
        named.extend(due(hook, When::AfterSwap)?.changes);
    }
    Changes::judge(install, &named, start_file)?;
    let programs = settings.before_stop.iter().chain(&settings.after_swap).filter_map(|hook| hook.run.first());
    Ok(programs.filter(|name| !is_there(install, name, &env)).cloned().collect())
}

/// The hook of the settings, word for word.
fn due(hook: &Hook, when: When) -> Result<PlannedHook> {
    let parse = |name: &String| {
        RelPath::parse(name).map_err(|e| Failure::usage(Code::BadSettings, format!("[hooks] changes {name}: {e}")))
    };
    let changes = hook.changes.iter().map(parse).collect::<Result<_, _>>()?;
    Ok(PlannedHook { when, run: hook.run.clone(), changes, timeout: hook.timeout, by_default: false })
}

/// Whether this update changes what the hook waits for; one that names nothing waits for every whole update.
fn is_due(hook: &Hook, context: &HookContext, plan: &Plan) -> Result<bool> {
    if hook.when_changed.is_empty() {
        return Ok(context.is_whole);
    }
    let wanted = ownership::matcher(hook.when_changed.iter().map(String::as_str), false)?;
    let is_wanted = |path: &RelPath| wanted.matched_path_or_any_parents(path.to_path(), false).is_ignore();
    Ok(plan.changes().any(|planned| is_wanted(&planned.path)))
}

fn no_program(hook: &Hook, name: &str) -> Failure {
    Failure::failed(Code::HookProgram, format!("the hook '{}' cannot run: there is no {name}", hook.run.join(" ")))
        .at(name)
        .remedy(
            "correct `run` in updater.toml: a path is relative to the install, a bare name is looked up in the server's \
             PATH",
        )
}

/// True for a path of the installed version that the other one does not have.
fn leaves(word: &str, plan: &Plan) -> bool {
    let path = RelPath::from_disk(Path::new(word));
    path.is_some_and(|path| plan.actions.iter().any(|planned| planned.path == path && planned.action == Action::Remove))
}

/// Whether a program can be found once the new version is there.
fn will_be_there(install: &Install, name: &str, plan: &Plan, env: &[(String, String)]) -> bool {
    let is_path = name.contains(['/', '\\']) && !Path::new(name).is_absolute();
    let path = if is_path { RelPath::from_disk(Path::new(name)) } else { None };
    match path.and_then(|path| plan.actions.iter().find(move |planned| planned.path == path)) {
        Some(planned) => planned.action != Action::Remove,
        None => is_there(install, name, env),
    }
}

/// Whether a program can be found now: at its path, in the install, or by the PATH.
fn is_there(install: &Install, name: &str, env: &[(String, String)]) -> bool {
    if name.contains(['/', '\\']) {
        return install.root.path().join(name).is_file();
    }
    let (_, places) = env.iter().find(|(name, _)| name == "PATH").cloned().unwrap_or_default();
    std::env::split_paths(&places).any(|folder| {
        let full = folder.join(name);
        full.is_file() || full.with_extension("exe").is_file()
    })
}

/// A path is of the folder that the hook runs in, or else of the install; a bare name is left to the PATH.
fn program(name: &str, cwd: &Path, root: &Path) -> String {
    if !name.contains(['/', '\\']) || Path::new(name).is_absolute() {
        return name.to_string();
    }
    let full = Some(cwd.join(name)).filter(|full| full.is_file()).unwrap_or_else(|| root.join(name));
    full.to_string_lossy().into_owned()
}

/// A folder of their own, from before the stop to the end.
fn work(root: &InstallRoot) -> PathBuf {
    root.state().hooks_work()
}

/// Ours, over it the server's, and what tells of the update. Where the server is another user's, nothing of his reaches
/// a program that runs as us, and of ours only what is harmless: a variable can load code.
fn environment(install: &Install, run: &Run, context: &HookContext, to_version: &str) -> Result<Vec<(String, String)>> {
    let uid = processes::own_uid();
    let server = context.launch.filter(|launch| launch.credentials.as_ref().is_none_or(|user| user.uid == uid));
    let is_others = context.launch.is_some() && server.is_none();
    let text = |part: std::ffi::OsString| part.to_string_lossy().into_owned();
    let is_of_our_user = |name: &OsString| OF_OUR_USER.iter().any(|known| name == known);
    let own = std::env::vars_os().filter(|(name, _)| !is_others || is_of_our_user(name) || is_passed_on(name));
    let own: Vec<(String, String)> = own.map(|(name, value)| (text(name), text(value))).collect();
    let server = server.map(|launch| launch.env.clone()).unwrap_or_default();
    let place = |path: PathBuf| path.to_string_lossy().into_owned();
    let waiting = install.state().staged_tree().join(context.start_file.to_path());
    let told = [
        (task::MARK, run.update_id.clone()),
        ("UPDATER_COMMAND", context.command.to_string()),
        ("UPDATER_ROOT", place(install.root.path().to_path_buf())),
        ("UPDATER_TREE", place(install.state().staged_tree())),
        ("UPDATER_WORK", place(work(&install.root))),
        ("UPDATER_START_FILE", place(waiting)),
        ("UPDATER_FROM_VERSION", context.from_version.unwrap_or_default().to_string()),
        ("UPDATER_TO_VERSION", to_version.to_string()),
        // pip asks nobody, tells of no newer pip, and installs into the environment alone.
        ("PIP_NO_INPUT", "1".to_string()),
        ("PIP_DISABLE_PIP_VERSION_CHECK", "1".to_string()),
        ("PIP_USER", "0".to_string()),
    ]
    .map(|(name, value)| (name.to_string(), value));
    let mut all: Vec<(String, String)> = Vec::new();
    for (name, value) in own.into_iter().chain(server).chain(told) {
        all.retain(|(known, _)| *known != name);
        if !OF_THE_SERVER.contains(&name.as_str()) {
            all.push((name, value));
        }
    }
    Ok(all)
}

/// The error of a hook that wrote where it should not. Class and stage decide what follows.
pub fn strayed(code: Code, path: &RelPath, what: &str) -> Failure {
    Failure::failed(code, format!("a hook altered {path}, {what}"))
        .at(path)
        .remedy("name what it writes in its `changes`, or keep it from writing there")
}
