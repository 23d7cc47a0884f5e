//! Preflight: the bundle judged, the plan made, every obstacle found. Reading only.
//! Refuses to leave anything to be found out after the stop that can be found out before it.

use super::detect::Detection;
use super::request::{Request, Saved, Source, Zip};
use super::{databases, notes, start};
use crate::backup::{self, Selection};
use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::base::report::Stage;
use crate::base::version;
use crate::state::journal::Annex;
use crate::state::receipt::Receipt;
use crate::system::{files, processes};
use crate::update::bundle::{Bundle, Expected, Identity, Limits, TopFolder};
use crate::update::hooks::{self, Hooks};
use crate::update::install::Install;
use crate::update::ownership::{Census, Ownership};
use crate::update::plan::{self, Action, Plan};
use crate::update::run::{self, Run};
use crate::update::staging;
use crate::update::staging::annex;
use crate::verify;
use anyhow::{Context as _, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;

/// What preflight decided.
pub struct Prepared<'a> {
    pub request: &'a Request,
    pub detection: &'a Detection,
    pub bundle: Bundle,
    pub plan: Plan,
    pub ownership: Ownership,
    /// What lies in the install.
    pub census: Census,
    /// How each file of it is saved.
    pub selection: Selection,
    pub needed: u64,
    pub hooks: Hooks,
    /// What a saved version holds as data of the users.
    saved_data: BTreeSet<RelPath>,
    saved_folders: BTreeSet<RelPath>,
    /// The install has this very content: what was damaged is put right, and nothing leaves.
    pub heal: bool,
}

impl Prepared<'_> {
    /// After the stop: judges again what was written since the plan was made. Returns the paths that are to be staged
    /// anew, or no longer, and the positions of saved data that is now to be put back.
    pub fn plan_again(&mut self, install: &Install) -> Result<(Vec<RelPath>, Vec<usize>)> {
        let input = plan::PlanInput {
            ownership: &self.ownership,
            census: &self.census,
            start_file: &self.detection.start_file,
            set: &self.request.set,
            heal: self.heal,
            saved_data: &self.saved_data,
            saved_folders: &self.saved_folders,
            kept: &|| self.detection.receipt.as_ref().map_or(Ok(None), |receipt| kept_bundle(install, receipt)),
        };
        let again = plan::plan_again(&input, &mut self.bundle, &mut self.plan)?;
        let data = plan::recheck_data(&input, &self.bundle, &mut self.plan)?;
        Ok((again, data))
    }

    /// The install has this very content, and nothing more is asked: what is damaged is put right.
    pub fn heals_content(&self) -> bool {
        let installed = self.detection.receipt.as_ref().map(|receipt| &receipt.content_id);
        let is_same = installed == Some(&self.bundle.content_id) && self.request.saved().is_none();
        is_same && !self.request.reinstalls() && !self.plan.set_changes
    }

    /// The databases that are watched, but for those that are put back whole, or are the release's to change.
    pub fn watched_databases(&self, install: &Install) -> Result<BTreeSet<RelPath>> {
        let all = install.databases(&self.census.databases, self.census.items.keys());
        let changes: BTreeSet<&RelPath> = self.plan.changes().map(|planned| &planned.path).collect();
        Ok(all.into_iter().filter(|main| !self.plan.sets.contains(main) && !changes.contains(main)).collect())
    }
}

/// The stage of the pipeline: preflight, a start that is tried, and all that is to be said of the plan.
pub(super) fn stage<'a>(
    install: &Install,
    run: &mut Run,
    request: &'a Request,
    detection: &'a Detection,
) -> Result<Prepared<'a>> {
    let prepared = run::interruptible(|| preflight(install, run, request, detection));
    // What databases were cloned into.
    staging::clear(install.state())?;
    let prepared = prepared?;
    let version = Some(prepared.bundle.version.clone());
    run.summary.to_version = if request.is_partly() { run.summary.from_version.clone() } else { version };
    run::interruptible(|| start::try_start(&prepared))?;
    for note in notes::notes(install, &prepared)? {
        run.report.warn_of(note.code, &note.message, &note.paths);
    }
    for (code, text) in &prepared.hooks.warnings {
        run.report.warning(*code, text, None);
    }
    run.done(Stage::Preflight, &counted(&prepared.plan));
    Ok(prepared)
}

/// Opens and judges the bundle, makes the plan, and finds every problem. Reads only.
pub fn preflight<'a>(
    install: &Install,
    run: &Run,
    request: &'a Request,
    detection: &'a Detection,
) -> Result<Prepared<'a>> {
    let mut bundle = match &request.source {
        Source::Backup(saved) => open_saved(saved, detection)?,
        Source::Zip(zip) => open_bundle(install, request, zip, detection)?,
    };
    refuse_others_install(install)?;
    let ownership = ownership(install, request, detection, &bundle)?;
    let census = ownership.census(None).context("looking at the install")?;
    // Before the plan, which looks at the same paths.
    backup::refuse_unreadable(&install.root, &ownership.rules, &census)?;
    let is_same = detection.receipt.as_ref().is_some_and(|receipt| receipt.content_id == bundle.content_id);
    let heal = request.is_repair() || (is_same && request.saved().is_none());
    let (saved_data, saved_folders) = (saved_data(request), saved_folders(request));
    let input = plan::PlanInput {
        ownership: &ownership,
        census: &census,
        start_file: &detection.start_file,
        set: &request.set,
        heal,
        saved_data: &saved_data,
        saved_folders: &saved_folders,
        kept: &|| detection.receipt.as_ref().map_or(Ok(None), |receipt| kept_bundle(install, receipt)),
    };
    let mut plan = plan::build(&input, &mut bundle)?;
    // Nothing tells that a backup of the old updater is whole, so what it lacks stays.
    if request.saved().is_some_and(|s| s.record.kind == backup::Kind::Legacy) {
        plan.keep_unknown();
    }
    if let Some(saved) = request.saved().filter(|s| !s.only.is_empty()) {
        plan.keep_all_but(&saved.only);
    }
    plan.annexes = annexes(install, run, &bundle, &plan)?;
    movable(install, &plan)?;
    short_enough(install, &census)?;
    // Nothing runs where nothing changes, and where damage is healed.
    let hooks = if plan.is_empty() || request.is_repair() {
        Hooks::default()
    } else {
        Hooks::choose(install, run, &context(request, detection), &mut bundle, &plan)?
    };
    plan.keep_for_hooks(&hooks.changes.exchanges().into_iter().map(|one| one.path).collect::<Vec<_>>());
    let free = files::free_space(install.root.path()).context("asking for free space")?;
    let selection = Selection::choose(&install.root, &ownership.rules, &census, &install.backups(), free)?;
    let mut prepared = Prepared {
        request,
        detection,
        bundle,
        plan,
        ownership,
        census,
        selection,
        needed: 0,
        hooks,
        saved_data,
        saved_folders,
        heal,
    };
    prepared.needed = needed(install, &prepared)?;
    if free < prepared.needed {
        return Err(no_space(install, prepared.needed, free).into());
    }
    if !request.accept.damaged_data {
        for main in prepared.watched_databases(install)? {
            databases::whole_already(install, run, &main)?;
        }
    }
    Ok(prepared)
}

/// The folders of a saved version.
fn saved_folders(request: &Request) -> BTreeSet<RelPath> {
    request.saved().iter().flat_map(|saved| saved.record.folders.iter().map(|folder| folder.path.clone())).collect()
}

/// What a saved version holds as data of the users, or only watched.
fn saved_data(request: &Request) -> BTreeSet<RelPath> {
    let records = request.saved().into_iter().map(|saved| &saved.record);
    let data = records.clone().flat_map(|record| record.files.iter().filter(|l| l.data).map(|l| &l.path));
    let watched = records.flat_map(|record| record.watched.iter().map(|watched| &watched.path));
    data.chain(watched).cloned().collect()
}

/// Whose the files are, by the receipt and this bundle.
fn ownership(install: &Install, request: &Request, detection: &Detection, bundle: &Bundle) -> Result<Ownership> {
    let rules = match request.saved() {
        Some(_) => Rc::new(install.rules.for_saved()),
        None => install.rules.clone(),
    };
    let shipped = bundle.entries.iter().filter(|e| !e.data).map(|e| &e.path);
    let launch = detection.new_launch.iter();
    // What a restore itself brought back is known, also where nobody knows what its version shipped.
    let trusts = request.saved().is_some();
    let outputs = launch.flat_map(|launch| [launch.stdout.clone(), launch.stderr.clone()]);
    Ok(Ownership::new(&install.root, &rules, detection.receipt.as_ref(), shipped, trusts).with_outputs(outputs))
}

fn refuse_others_install(install: &Install) -> Result<()> {
    let owner = fsx::owner_of(install.root.path())?;
    let me = processes::own_uid();
    if me == 0 || owner.uid == me {
        return Ok(());
    }
    let me = processes::own_credentials().context("finding out who we are")?;
    let message = format!("the install belongs to user {}, and we run as {}", owner.uid, me.user);
    Err(Failure::failed(Code::NotOwner, message)
        .at(install.root.path().display())
        .remedy("run the updater as the owner of the install, or as root")
        .into())
}

/// The room that the update takes on the install's volume, in bytes.
fn needed(install: &Install, prepared: &Prepared) -> Result<u64> {
    let Prepared { bundle, plan, selection, hooks, census, .. } = prepared;
    let arriving: u64 = plan.changes().filter_map(|p| Some(bundle.entries.get(p.entry?)?.size)).sum();
    let known = census.items.len() as u64;
    // What is written down of each thing before hooks begin, and in the record of the backup.
    let records = known * if hooks.run_after_swap() { 1024 } else { 512 };
    // What gives way on another volume goes to the backup in the end.
    let elsewhere = plan.changes().filter(|p| plan.annex(&p.path).is_some());
    let coming_home: u64 = elsewhere.filter_map(|p| Some(p.live?.size)).sum();
    Ok(arriving
        + coming_home
        + selection.bytes
        + bundle.kept_size()?
        + journal_size(plan)
        + reserve_size(selection)
        + hooks.size(&install.root)?
        + records)
}

fn no_space(install: &Install, needed: u64, free: u64) -> Failure {
    no_space_at(&install.root.path().display().to_string(), needed, free)
}

fn no_space_at(volume: &str, needed: u64, free: u64) -> Failure {
    let missing = needed - free;
    let message =
        format!("on the volume of {volume} {needed} bytes are needed and {free} are free: {missing} are missing");
    Failure::failed(Code::NoSpace, message).at(volume).remedy(
        "free space on that volume, take old backups away (updater backups prune --keep 1), or leave \
         folders of the users' in place unsaved ([backup] skip)",
    )
}

/// The update that hooks belong to.
fn context<'a>(request: &'a Request, detection: &'a Detection) -> hooks::HookContext<'a> {
    hooks::HookContext {
        command: request.command(),
        running: detection.server.as_ref(),
        launch: detection.new_launch.as_ref(),
        start_file: &detection.start_file,
        from_version: detection.receipt.as_ref().map(|receipt| receipt.version.as_str()),
        is_whole: !request.is_partly(),
    }
}

/// Where saved data lies on other volumes: also what is the same now and may no longer be after the stop. Errors: there is
/// no room for it there, or nothing can be made there.
fn annexes(install: &Install, run: &Run, bundle: &Bundle, plan: &Plan) -> Result<Vec<Annex>> {
    let mut all: BTreeMap<Option<RelPath>, Option<(Annex, u64)>> = BTreeMap::new();
    for planned in plan.actions.iter().filter(|planned| planned.saved_data && planned.action != Action::Keep) {
        let folder = planned.path.parent();
        if !all.contains_key(&folder) {
            let found = annex::of(&install.root, &run.update_id, &planned.path)?;
            all.insert(folder.clone(), found.map(|annex| (annex, 0)));
        }
        let arrives = if planned.action == Action::Unchanged { None } else { planned.entry };
        let size = arrives.and_then(|at| bundle.entries.get(at)).map_or(0, |entry| entry.size);
        if let Some(Some((_, needed))) = all.get_mut(&folder) {
            *needed += size;
        }
    }
    let mut needed: BTreeMap<RelPath, (Annex, u64)> = BTreeMap::new();
    for (annex, size) in all.into_values().flatten() {
        needed.entry(annex.top.clone()).or_insert((annex, 0)).1 += size;
    }
    for (annex, needed) in needed.values() {
        let volume = annex.folder.parent().context("an annex lies in a folder")?;
        refuse_obstacle(install, volume)?;
        let free = files::free_space(volume).context("asking for free space")?;
        if free < *needed {
            return Err(no_space_at(&volume.display().to_string(), *needed, free).into());
        }
    }
    Ok(needed.into_values().map(|(annex, _)| annex).collect())
}

/// Whether all that the swap moves can be moved: by this user, within one volume, and at all.
fn movable(install: &Install, plan: &Plan) -> Result<()> {
    let volume = files::mount(install.root.path()).context("looking at the install")?;
    let mut folders: BTreeSet<PathBuf> = BTreeSet::from([install.root.path().to_path_buf()]);
    for planned in plan.changes() {
        // Saved data of other volumes is exchanged there.
        if !planned.saved_data || plan.annex(&planned.path).is_none() {
            folders.extend(existing_parent(&install.root.join(&planned.path)));
        }
        if planned.live.is_some() {
            refuse_obstacle(install, &install.root.join(&planned.path))?;
        }
    }
    folders.extend(plan.emptied.iter().map(|(path, _)| install.root.join(path)));
    for own in [install.state().path().to_path_buf(), install.backups()] {
        folders.extend(if own.is_dir() { Some(own) } else { existing_parent(&own) });
    }
    for folder in folders {
        // Through a link: what counts is where the files would lie.
        let full = fs_err::canonicalize(&folder)?;
        if files::mount(&full).with_context(|| format!("looking at {}", full.display()))? != volume {
            let message =
                format!("{} lies on another volume than the install, so nothing can be moved there", folder.display());
            return Err(Failure::failed(Code::OtherVolume, message)
                .at(folder.display())
                .remedy("put it on the install's volume, or leave it out ([preserve] paths, [backup] dir)")
                .into());
        }
        refuse_obstacle(install, &full)?;
    }
    Ok(())
}

/// Whether everything that is saved can be reached in a backup, whose folder makes the path longer.
fn short_enough(install: &Install, census: &Census) -> Result<()> {
    // `backups/update_backup_YYYYMMDD_HHMMSS_NN/after/PATH.NN`
    let more = install.backups().as_os_str().len() + "/update_backup_20000101_000000_00/after/.00".len();
    let Some(path) = census.items.keys().max_by_key(|path| path.as_bytes().len()) else { return Ok(()) };
    let length = more + path.as_bytes().len();
    if length <= files::MAX_PATH {
        return Ok(());
    }
    let message = format!(
        "a path is too long to be saved: in a backup it would have {length} bytes, of {} allowed",
        files::MAX_PATH
    );
    Err(Failure::failed(Code::PathTooLong, message)
        .at(path)
        .remedy("give the folders above it shorter names, or put it in [backup] skip")
        .into())
}

fn existing_parent(path: &std::path::Path) -> Option<PathBuf> {
    path.ancestors().skip(1).find(|above| above.is_dir()).map(std::path::Path::to_path_buf)
}

fn refuse_obstacle(install: &Install, path: &std::path::Path) -> Result<()> {
    let Some(reason) = files::obstacle(path).with_context(|| format!("looking at {}", path.display()))? else {
        return Ok(());
    };
    let name = path.strip_prefix(install.root.path()).ok().filter(|p| !p.as_os_str().is_empty()).unwrap_or(path);
    Err(Failure::failed(Code::NotMovable, format!("{} cannot be moved: {reason}", name.display()))
        .at(name.display())
        .remedy("lift that, or run the updater as the owner of the install, or as root")
        .into())
}

/// The bundle file, judged: what it must hash to, its contents, where it comes from.
fn open_bundle(install: &Install, request: &Request, zip: &Zip, detection: &Detection) -> Result<Bundle> {
    let limits = Limits { max_size: install.settings.bundle.max_size, max_files: install.settings.bundle.max_files };
    let path = std::path::absolute(&zip.path)?;
    if !path.is_file() {
        return Err(no_bundle(&path).into());
    }
    if let Some(wanted) = &zip.sha256 {
        let is = fsx::sha256_of(&path)?;
        if !is.eq_ignore_ascii_case(wanted) {
            return Err(Failure::refused(Code::BadChecksum, format!("the bundle's SHA-256 is {is}, not {wanted}"))
                .at(zip.shown())
                .into());
        }
    }
    let named = zip.shown();
    let rules = &install.rules;
    let judge_top = |folder: &RelPath| match rules.is_own(folder) || rules.is_data(folder, true) {
        true => TopFolder::NoProgram,
        false if install.root.join(folder).is_dir() => TopFolder::Shared,
        false => TopFolder::Strange,
    };
    let mut expected = Expected::of_install(&install.root, &detection.start_file, must_start(detection))?;
    expected.named = Some(&named);
    expected.judge_identity = Some(Box::new(|is| judge_identity(install, request, zip, detection, is)));
    if !request.accept.partial && !request.is_repair() {
        expected.judge_top = Some(Box::new(judge_top));
    }
    Bundle::open(&path, &expected, &limits)
}

/// A bundle must hold the start file if the version before shipped it; before the first receipt nobody knows.
fn must_start(detection: &Detection) -> bool {
    let known = detection.receipt.as_ref().filter(|receipt| !receipt.assumed);
    known.is_none_or(|receipt| receipt.files.iter().any(|line| line.path == detection.start_file))
}

/// The saved version, every file that is asked for hashed.
fn open_saved(saved: &Saved, detection: &Detection) -> Result<Bundle> {
    let wanted = |path: &RelPath| saved.only.is_empty() || saved.only.iter().any(|o| path.is_within(o));
    let mut entries = saved.record.entries(&saved.dir, saved.data);
    // Of the version all is needed, to save the installed one whole; of the data only what is put back.
    entries.retain(|e| !e.data || wanted(&e.path));
    let mut bundle = Bundle::open_saved(&saved.dir, entries, &detection.start_file, &wanted)?;
    bundle.version = saved.record.version();
    Ok(bundle)
}

/// Whether the bundle is for this program, and no older than what is installed.
fn judge_identity(
    install: &Install,
    request: &Request,
    zip: &Zip,
    detection: &Detection,
    identity: &Identity,
) -> Result<()> {
    if let (Some(wanted), Some(is)) = (&install.settings.bundle.app, &identity.app)
        && wanted != is
    {
        return Err(Failure::refused(
            Code::OtherApp,
            format!("the bundle is of the program {is}, and this install is of {wanted}"),
        )
        .at(zip.shown())
        .remedy("check that this is the right bundle")
        .into());
    }
    let from = detection.receipt.as_ref().map(|r| r.version.as_str()).unwrap_or_default();
    if !request.accept.downgrade && version::is_downgrade(from, &identity.version) {
        return Err(Failure::refused(
            Code::Downgrade,
            format!("the bundle is version {}, and {from} is installed", identity.version),
        )
        .at(zip.shown())
        .remedy("to go back on purpose, add --allow-downgrade")
        .into());
    }
    Ok(())
}

/// Room for every move that the journal may have to name.
pub(super) fn journal_size(plan: &Plan) -> u64 {
    let names: u64 = plan.actions.iter().map(|p| p.path.as_bytes().len() as u64 + 256).sum();
    names * 2 + 64 * 1024
}

/// Room for putting every database back, and for the folders and records of the way back.
pub(super) fn reserve_size(selection: &Selection) -> u64 {
    selection.databases + (1 << 20)
}

pub(super) fn is_whole(install: &Install, detection: &Detection) -> Result<bool> {
    let Some(receipt) = &detection.receipt else { return Ok(false) };
    let ownership = install.ownership(Some(receipt));
    // A file whose settings alone were changed by the operator is whole; that needs the kept bundle.
    if verify::installed(&ownership, receipt, &mut None, true)?.is_whole() {
        return Ok(true);
    }
    let mut kept = kept_bundle(install, receipt)?;
    Ok(verify::installed(&ownership, receipt, &mut kept, true)?.is_whole())
}

/// The installed bundle, kept for repairs.
pub fn kept_bundle(install: &Install, receipt: &Receipt) -> Result<Option<Bundle>> {
    let path = install.state().bundle();
    let limits = Limits { max_size: u64::MAX, max_files: u64::MAX };
    let must_start = receipt.files.iter().any(|line| line.path == receipt.start_file);
    let expected = Expected::of_installed(&install.root, &receipt.start_file, must_start);
    Ok(Bundle::open(&path, &expected, &limits).ok().filter(|b| b.content_id == receipt.content_id))
}

pub fn no_bundle(path: &std::path::Path) -> Failure {
    Failure::failed(Code::NoBundle, format!("{} does not exist or is no file", path.display()))
        .at(path.display())
        .remedy("give the path of a bundle (a zip file)")
}

pub(super) fn counted(plan: &Plan) -> String {
    let c = plan.counts();
    format!(
        "{} to add, {} to replace, {} to remove, {} to carry, {} to merge, {} kept, {} unchanged",
        c.add, c.replace, c.remove, c.carry, c.merge, c.keep, c.unchanged
    )
}
