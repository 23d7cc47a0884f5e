//! The names of a zip: the gate that each passes, the layouts that are accepted, what conflicts.
//! Refuses to read contents.

use super::directory::{Record, Stored};
use super::{Expected, Limits, encoding, refused};
use crate::base::error::{Code, Failure};
use crate::base::path::{BadName, RelPath};
use crate::system::interrupt;
use anyhow::Result;
use std::collections::BTreeSet;

/// The longest path of a bundle, in bytes: with the root, the folder of a backup and an ending before and behind it, it
/// stays below what a system can open (Linux PATH_MAX: 4096).
const MAX_PATH: usize = 1_000;
/// How many parts a path of a bundle may have.
const MAX_LEVELS: usize = 64;

/// An entry of a zip that passed the gate for names.
pub(super) struct Named {
    /// Its path in the install.
    pub path: RelPath,
    pub is_folder: bool,
    pub stored: Stored,
    pub mode: u32,
    pub is_unix: bool,
}

/// True for characters that make a name look like another one: control characters (C0, DEL, C1), and those that alone
/// set the direction of writing (Unicode's Bidi_Control).
pub(super) fn is_forbidden(c: char) -> bool {
    const MARKS: [char; 3] = ['\u{61c}', '\u{200e}', '\u{200f}'];
    c.is_control()
        || MARKS.contains(&c)
        || ('\u{202a}'..='\u{202e}').contains(&c)
        || ('\u{2066}'..='\u{2069}').contains(&c)
}

/// The gate for a name of a bundle, which is narrower than that for names of the disk.
pub(super) fn gate(name: &str) -> Result<RelPath, BadName> {
    let bad = |reason| Err(BadName { reason });
    if name.len() > MAX_PATH {
        return bad("the path is too long");
    }
    if name.split('/').count() > MAX_LEVELS {
        return bad("the path has too many folders");
    }
    if name.chars().any(|c| !c.is_control() && is_forbidden(c)) {
        return bad("the name holds a character that turns the direction of writing");
    }
    RelPath::parse(name)
}

/// Every record by its name as a path; a zip in which no name holds a `/` may use backslashes (.NET Framework before 4.6.1).
pub(super) fn read(records: Vec<Record>) -> Result<Vec<Named>> {
    let has = |c: char| records.iter().any(|record| record.name.contains(c));
    let is_windows = has('\\') && !has('/');
    let named = |record: Record| -> Result<Named> {
        interrupt::check()?;
        let name = if is_windows { record.name.replace('\\', "/") } else { record.name };
        let plain = name.strip_suffix('/');
        let path = gate(plain.unwrap_or(&name)).map_err(|e| {
            let shown = encoding::shown(&name);
            refused(Code::BadName, &shown, format!("the name of an entry is not acceptable: {e}"))
        })?;
        let is_folder = plain.is_some();
        Ok(Named { path, is_folder, stored: record.stored, mode: record.mode, is_unix: record.is_unix })
    };
    records.into_iter().map(named).collect()
}

/// Folders at the top that are no part of a version.
const SKIPPED_AT_TOP: [&str; 3] = [".git", ".github", "__MACOSX"];
/// What desktops leave in folders, at any depth.
const LITTER: [&str; 3] = [".DS_Store", "Thumbs.db", "desktop.ini"];

/// True for what is no part of any version: caches, version control, what desktops and their archivers leave.
fn is_skipped(path: &RelPath) -> bool {
    let top = path.top();
    SKIPPED_AT_TOP.iter().any(|skipped| top.as_bytes() == skipped.as_bytes())
        || path.parts().any(|part| part == b"__pycache__")
        || LITTER.iter().any(|litter| path.name().eq_ignore_ascii_case(litter))
        || path.name().starts_with("._")
}

/// The skips, and the top folder taken off. Returns the entries and how many files were passed over.
pub(super) fn layout(mut all: Vec<Named>, expected: &Expected, bundle: &str) -> Result<(Vec<Named>, usize)> {
    let before = all.len();
    all.retain(|named| !is_skipped(&named.path));
    if let Some(top) = top_folder(&all, expected, bundle)? {
        let strip = |named: Named| Some(Named { path: named.path.strip(&top)?, ..named });
        all = all.into_iter().filter_map(strip).collect();
    }
    all.retain(|named| !is_skipped(&named.path));
    let start = expected.start_file;
    if expected.must_start && !all.iter().any(|named| !named.is_folder && named.path == *start) {
        return Err(no_start_file(start, bundle));
    }
    let skipped = before.saturating_sub(all.len());
    Ok((all, skipped))
}

/// The one folder that everything lies in. None: the bundle is flat. Errors (exit 6): neither.
fn top_folder(all: &[Named], expected: &Expected, bundle: &str) -> Result<Option<RelPath>> {
    if all.iter().any(|named| named.path == *expected.start_file && !named.is_folder) {
        return Ok(None);
    }
    let tops: BTreeSet<RelPath> = all.iter().map(|named| named.path.top()).collect();
    let mut in_order = tops.iter();
    let Some(top) = in_order.next() else {
        return Err(refused(Code::EmptyBundle, bundle, format!("{bundle} holds nothing to install")));
    };
    let Some(second) = in_order.next() else {
        let is_file = all.iter().any(|named| named.path == *top && !named.is_folder);
        // A flat bundle that holds a part of the program alone: its one folder is installed under this very name.
        let mut below = all.iter().filter_map(|named| named.path.strip(top));
        let is_deeper = below.any(|path| (expected.is_installed)(&path.top()));
        let is_flat = is_file || (!expected.must_start && (expected.is_installed)(top) && !is_deeper);
        return Ok((!is_flat).then(|| top.clone()));
    };
    let holds_start = |top: &RelPath| {
        all.iter().any(|named| !named.is_folder && named.path.strip(top).as_ref() == Some(expected.start_file))
    };
    if holds_start(top) || holds_start(second) {
        let second = if holds_start(top) { second } else { top };
        let message = format!("beside the top folder there is a second name at the top: {second}");
        return Err(refused(Code::TwoTopFolders, &second.to_string(), message));
    }
    if expected.must_start {
        return Err(no_start_file(expected.start_file, bundle));
    }
    if tops.iter().any(|top| (expected.is_installed)(top)) {
        return Ok(None);
    }
    let message =
        format!("neither is there one top folder, nor is any name at the top installed here; the second is {second}");
    Err(refused(Code::TwoTopFolders, &second.to_string(), message))
}

/// The name as the volume of the install compares names.
pub(super) fn key(path: &RelPath, expected: &Expected) -> RelPath {
    match (expected.folds_case, expected.merges_forms) {
        (false, false) => path.clone(),
        (true, false) => path.folded(),
        (false, true) => path.composed(),
        // Folding may take a composed character apart.
        (true, true) => path.composed().folded().composed(),
    }
}

/// Refuses two names that would be one on this volume, and more folders than files may be.
pub(super) fn check_conflicts(kept: &[Named], expected: &Expected, limits: &Limits) -> Result<()> {
    let is_plain = !expected.folds_case && !expected.merges_forms;
    let mut order: Vec<&Named> = kept.iter().collect();
    if is_plain {
        order.sort_by(|a, b| a.path.parts().cmp(b.path.parts()));
    } else {
        order.sort_by_cached_key(|named| sorting(&key(&named.path, expected)));
    }
    let (mut before, mut folders): (Option<&Named>, u64) = (None, 0);
    for named in order {
        interrupt::check()?;
        let shared = before.map_or(Ok(0), |before| shared(before, named, expected))?;
        // The folders above it that the one before does not lie in.
        let above = named.path.parts().count().saturating_sub(usize::from(!named.is_folder));
        folders = folders.saturating_add(above.saturating_sub(shared) as u64);
        if folders > limits.max_files {
            let message = "the bundle holds more folders than [bundle] max_files";
            return Err(refused(Code::TooManyFiles, &named.path.to_string(), message));
        }
        before = Some(named);
    }
    Ok(())
}

/// Sorted by this, whatever lies in a folder follows it at once: no name holds the character 0, the lowest.
fn sorting(path: &RelPath) -> Box<[u8]> {
    path.as_bytes().iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect()
}

/// How many parts two neighbours share. Errors (exit 6): they are one name, or one is a file and a folder.
fn shared(before: &Named, named: &Named, expected: &Expected) -> Result<usize> {
    let (keys, other) = (key(&named.path, expected), key(&before.path, expected));
    let count = keys.parts().zip(other.parts()).take_while(|(one, other)| one == other).count();
    let (is_all, was_all) = (count == keys.parts().count(), count == other.parts().count());
    if was_all && !is_all && !before.is_folder {
        let message = format!("{} is a file and a folder", before.path);
        return Err(refused(Code::NameConflict, &named.path.to_string(), message));
    }
    if is_all && was_all && !(before.is_folder && named.is_folder && before.path == named.path) {
        let message = format!("{} and {} are one name", named.path, before.path);
        return Err(refused(Code::DuplicateName, &named.path.to_string(), message));
    }
    let spelled = named.path.parts().zip(before.path.parts()).take(count).all(|(one, other)| one == other);
    if !spelled {
        let head = |path: &RelPath| path.ancestors().into_iter().chain([path.clone()]).nth(count.saturating_sub(1));
        let (one, other) = (head(&named.path), head(&before.path));
        let (one, other) = (one.unwrap_or(named.path.clone()), other.unwrap_or(before.path.clone()));
        let message = format!("the folders {one} and {other} are one name");
        return Err(refused(Code::DuplicateName, &one.to_string(), message));
    }
    Ok(count)
}

pub(super) fn no_start_file(start: &RelPath, bundle: &str) -> anyhow::Error {
    Failure::refused(Code::NoStartFile, format!("the bundle does not hold {start}, with which the server starts"))
        .at(bundle)
        .remedy("check that this is a bundle of the installed program")
        .into()
}
