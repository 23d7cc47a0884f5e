//! `adopt`: writes the receipt of the version that is installed already, from its own bundle, so that the next update
//! knows what the version shipped and what the users wrote. The bundle is kept for repairs.
//! Refuses a bundle of which less than half is installed, and to touch the server or any file of the install.

use crate::app::carry;
use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::head::Head;
use crate::base::path::RelPath;
use crate::state::history;
use crate::state::receipt::{self, Line, Receipt};
use crate::system::{FileType, files};
use crate::update::bundle::{Bundle, Entry, Expected, Limits};
use crate::update::install::Install;
use crate::update::ownership::Ownership;
use crate::update::recover::{self, RecoverOptions};
use crate::update::rollback;
use crate::update::run::{self, Run};
use crate::update::staging;
use crate::update::{self, ServerOptions};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// How one file of the bundle stands in the install.
enum Found {
    /// It is the bundle's, with this much of it: what is installed, where settings were carried into it.
    Same(String),
    Differs,
    Missing,
}

/// Compares, and writes the receipt. Errors: another version is installed (exit 6), nothing is interrupted that cannot be settled.
pub fn adopt(install: &Install, run: &mut Run, bundle: &Path, wait: Option<Duration>) -> Result<Value> {
    // Before the lock: where nothing can be adopted, nothing is made.
    if !bundle.is_file() {
        return Err(update::no_bundle(bundle).into());
    }
    let _lock = update::begin(install, run, wait)?;
    let recovered = recover::resolve(install, run, RecoverOptions::default())?;
    let recovered = recovered.map(|done| json!({"interrupted_id": done.interrupted_id, "direction": done.direction}));
    rollback::sweep(install.state())?;
    let options = ServerOptions { no_start: true, ..ServerOptions::default() };
    let detection = run::interruptible(|| update::detect(install, &options, &[]))?;
    let mut opened = run::interruptible(|| open(install, bundle, &detection.start_file))?;
    let shipped = opened.entries.iter().map(|entry| &entry.path);
    let ownership = Ownership::new(&install.root, &install.rules, None, shipped, false);
    let (mut lines, mut same, mut differs, mut missing) = (Vec::new(), 0, Vec::new(), Vec::new());
    for index in 0..opened.entries.len() {
        let entry = opened.entries[index].clone();
        let is_own = ownership.is_own(&entry.path, None) || ownership.rules.is_alias_of_own(&entry.path);
        if is_own || ownership.is_in_users_environment(&entry.path)? {
            continue;
        }
        let found = run::interruptible(|| compare(&ownership, &mut opened, index))?;
        run.check_signals()?;
        let is_users = ownership.rules.is_data(&entry.path, false);
        match &found {
            Found::Same(_) => same += 1,
            // At a data path only what is there byte for byte is the release's.
            _ if is_users => continue,
            Found::Differs => differs.push(entry.path.clone()),
            Found::Missing => missing.push(entry.path.clone()),
        }
        lines.push(line(&ownership, &entry, &found)?);
    }
    let total = same + differs.len() + missing.len();
    if same * 2 < total || total == 0 {
        return Err(other_version(bundle, &opened, same, total).into());
    }
    let receipt = Receipt {
        format: receipt::FORMAT,
        version: opened.version.clone(),
        content_id: opened.content_id.clone(),
        applied_at: jiff::Timestamp::now().to_string(),
        start_file: detection.start_file.clone(),
        ports: detection.baseline.ports.clone(),
        user: detection.new_launch.as_ref().and_then(|launch| launch.credentials.clone()),
        assumed: false,
        files: lines,
    };
    store(install, &receipt, &mut opened)?;
    Ok(json!({
        "version": receipt.version,
        "content_id": receipt.content_id,
        "same": same,
        "differs": differs,
        "missing": missing,
        "recovered": recovered,
    }))
}

fn open(install: &Install, bundle: &Path, start_file: &RelPath) -> Result<Bundle> {
    let limits = Limits { max_size: install.settings.bundle.max_size, max_files: install.settings.bundle.max_files };
    let expected = Expected::of_install(&install.root, start_file, false)?;
    Bundle::open(bundle, &expected, &limits)
}

fn compare(ownership: &Ownership, bundle: &mut Bundle, index: usize) -> Result<Found> {
    let entry = bundle.entries[index].clone();
    let path = ownership.root.join(&entry.path);
    let Some(metadata) = fsx::metadata(&path)? else { return Ok(Found::Missing) };
    if !matches!(metadata.kind, FileType::File | FileType::Link)
        || (metadata.kind == FileType::Link) != entry.link.is_some()
    {
        return Ok(Found::Differs);
    }
    let sum = entry.sha256.to_string();
    if fsx::has_sha256(&path, &sum)? {
        return Ok(Found::Same(sum));
    }
    if let Some(names) = ownership.rules.carry.get(&entry.path).filter(|_| metadata.kind == FileType::File) {
        let live = fsx::read_at_most(&path, carry::MAX_SIZE)?.filter(|_| entry.size <= carry::MAX_SIZE);
        if let Some(live) = live
            && carry::differs_in_settings_alone(&bundle.read_entry(index, carry::MAX_SIZE)?, &live, names)
        {
            return Ok(Found::Same(fsx::sha256(&live)));
        }
    }
    Ok(Found::Differs)
}

fn line(ownership: &Ownership, entry: &Entry, found: &Found) -> Result<Line> {
    let is_there = matches!(found, Found::Same(_));
    let metadata = fsx::metadata(&ownership.root.join(&entry.path))?.filter(|_| is_there);
    let sha256 = if let Found::Same(sha256) = found { sha256.clone() } else { entry.sha256.to_string() };
    Ok(Line {
        path: entry.path.clone(),
        size: metadata.map_or(entry.size, |metadata| metadata.size),
        carried: sha256 != entry.sha256,
        sha256,
        mode: metadata.map_or(entry.mode, |metadata| metadata.mode),
        mtime: metadata.map_or(0, |metadata| metadata.mtime),
        is_database: entry.head == Head::Sqlite,
    })
}

fn other_version(bundle: &Path, opened: &Bundle, same: usize, total: usize) -> Failure {
    let message = format!(
        "the bundle is version {}, and another one is installed: {same} of its {total} files are",
        opened.version
    );
    Failure::refused(Code::NotThisVersion, message)
        .at(bundle.display())
        .remedy("give the bundle of the version that is installed, or update without: updater apply BUNDLE")
}

/// The bundle first: a receipt without it can only not be repaired from.
fn store(install: &Install, receipt: &Receipt, bundle: &mut Bundle) -> Result<()> {
    let state = install.state();
    let folder = state.staging();
    files::private_folder(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let kept = folder.join("bundle.zip");
    let mut file = files::open_private(&kept).with_context(|| format!("creating {}", kept.display()))?;
    bundle.keep(&mut file)?;
    file.sync_all().context("flushing the kept bundle")?;
    fsx::inherit_owner(&kept)?;
    files::rename_over(&kept, &state.bundle()).context("placing bundle.zip")?;
    receipt::store(&state.receipt(), receipt)?;
    fsx::sync_parent(&state.receipt())?;
    staging::clear(state)
}

/// What `adopt` did, in words.
pub fn text(done: &Value) -> Vec<String> {
    let count = |key: &str| done[key].as_array().map_or(0, Vec::len);
    let mut lines = vec![format!(
        "version {} is adopted: {} of its files are installed, {} differ, {} are missing",
        done["version"].as_str().unwrap_or_default(),
        done["same"],
        count("differs"),
        count("missing")
    )];
    for (key, word) in [("differs", "differs"), ("missing", "missing")] {
        for path in done[key].as_array().into_iter().flatten() {
            lines.push(format!("{word:<8} {}", path.as_str().unwrap_or_default()));
        }
    }
    lines
}

/// Keeps `status.json` current after it.
pub fn closed(install: &Install, run: &Run) {
    // It writes no events of its own.
    let events = install.state().events_of(&run.update_id);
    if std::fs::metadata(&events).is_ok_and(|data| data.len() == 0) {
        let _ = std::fs::remove_file(&events);
    }
    if let Some(mut status) = history::read_status(install.state()) {
        status["under_way"] = Value::Null;
        let _ = history::write_status(install.state(), &status);
    }
}
