//! The names of a zip: the gate that each passes, the layouts that are accepted, what conflicts.
//! Refuses to read contents.

use super::{Expected, refused};
use crate::error::Failure;
use crate::path::RelPath;
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufReader;

/// An entry of a zip: its position, its path in the install, whether it is a folder.
pub(super) type Named = (usize, RelPath, bool);
/// A link's target longer than this is no link.
pub(super) const MAX_TARGET: u64 = 4096;

/// Every name, as the zip gives it; a zip in which no name holds a `/` may use backslashes.
pub(super) fn read(archive: &mut zip::ZipArchive<BufReader<File>>) -> Result<Vec<(usize, String, bool)>> {
    let mut names = Vec::new();
    for index in 0..archive.len() {
        let entry = archive
            .by_index_raw(index)
            .map_err(|e| refused("bad-zip", "", format!("entry {} cannot be read: {e}", index + 1)))?;
        let name = entry
            .name()
            .map_err(|e| refused("bad-name", "", format!("the name of entry {} cannot be read: {e}", index + 1)))?;
        names.push((index, name.into_owned()));
    }
    let backslashes = names.iter().any(|(_, n)| n.contains('\\')) && !names.iter().any(|(_, n)| n.contains('/'));
    let mut all = Vec::new();
    for (index, name) in names {
        let name = if backslashes { name.replace('\\', "/") } else { name };
        let folder = name.ends_with('/');
        all.push((index, name.strip_suffix('/').unwrap_or(&name).to_string(), folder));
    }
    Ok(all)
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

/// The gate for every name, the skips, and the top folder taken off.
/// Returns the entries and how many files were passed over.
pub(super) fn layout(
    names: &[(usize, String, bool)],
    expected: &Expected,
    bundle: &str,
) -> Result<(Vec<Named>, usize)> {
    let mut all = Vec::new();
    for (index, name, folder) in names {
        let path = RelPath::parse(name)
            .map_err(|e| refused("bad-name", name, format!("the name of an entry is not acceptable: {e}")))?;
        all.push((*index, path, *folder));
    }
    let before = all.len();
    all.retain(|(_, path, _)| !is_skipped(path));
    if let Some(top) = top_folder(&all, expected, bundle)? {
        all = all.into_iter().filter_map(|(i, path, f)| Some((i, path.strip(&top)?, f))).collect();
    }
    all.retain(|(_, path, _)| !is_skipped(path));
    let start = expected.start_file;
    if expected.must_start && !all.iter().any(|(_, path, folder)| !folder && path == start) {
        return Err(no_start_file(start, bundle));
    }
    let skipped = before - all.len();
    Ok((all, skipped))
}

/// The one folder that everything lies in. None: the bundle is flat. Errors (exit 6): neither.
fn top_folder(all: &[Named], expected: &Expected, bundle: &str) -> Result<Option<RelPath>> {
    if all.iter().any(|(_, path, folder)| path == expected.start_file && !folder) {
        return Ok(None);
    }
    let tops: BTreeSet<RelPath> = all.iter().map(|(_, path, _)| path.top()).collect();
    let mut in_order = tops.iter();
    let Some(top) = in_order.next() else {
        return Err(refused("empty-bundle", bundle, format!("{bundle} holds nothing to install")));
    };
    let Some(second) = in_order.next() else {
        let is_file = all.iter().any(|(_, path, folder)| path == top && !folder);
        // A flat bundle that holds a part of the program alone: its one folder is installed under this very name.
        let below =
            all.iter().filter_map(|(_, path, _)| path.strip(top)).any(|path| (expected.is_installed)(&path.top()));
        let is_flat = is_file || (!expected.must_start && (expected.is_installed)(top) && !below);
        return Ok((!is_flat).then(|| top.clone()));
    };
    let holds_start = |top: &RelPath| {
        all.iter().any(|(_, path, folder)| !folder && path.strip(top).as_ref() == Some(expected.start_file))
    };
    if holds_start(top) || holds_start(second) {
        let second = if holds_start(top) { second } else { top };
        let message = format!("beside the top folder there is a second name at the top: {second}");
        return Err(refused("two-top-folders", &second.to_string(), message));
    }
    if expected.must_start {
        return Err(no_start_file(expected.start_file, bundle));
    }
    if tops.iter().any(|top| (expected.is_installed)(top)) {
        return Ok(None);
    }
    let message =
        format!("neither is there one top folder, nor is any name at the top installed here; the second is {second}");
    Err(refused("two-top-folders", &second.to_string(), message))
}

/// Refuses two names that would be one file on this volume.
pub(super) fn check_conflicts(kept: &[Named], folds_case: bool) -> Result<()> {
    let key = |path: &RelPath| if folds_case { path.folded() } else { path.clone() };
    let mut seen: BTreeMap<RelPath, (&RelPath, bool)> = BTreeMap::new();
    for (_, path, folder) in kept {
        if let Some((other, was_folder)) = seen.insert(key(path), (path, *folder))
            && !(was_folder && *folder && other == path)
        {
            return Err(refused("duplicate-name", &path.to_string(), format!("{path} and {other} are one name")));
        }
    }
    let mut folders: BTreeMap<RelPath, RelPath> = BTreeMap::new();
    for (_, path, _) in kept {
        for above in path.ancestors() {
            let key = key(&above);
            if seen.get(&key).is_some_and(|(_, folder)| !folder) {
                return Err(refused("name-conflict", &path.to_string(), format!("{above} is a file and a folder")));
            }
            if let Some(other) = folders.insert(key, above.clone())
                && other != above
            {
                let message = format!("the folders {above} and {other} are one name");
                return Err(refused("duplicate-name", &above.to_string(), message));
            }
        }
    }
    Ok(())
}

pub(super) fn no_start_file(start: &RelPath, bundle: &str) -> anyhow::Error {
    Failure::refused("no-start-file", format!("the bundle does not hold {start}, with which the server starts"))
        .at(bundle)
        .remedy("check that this is a bundle of the installed program")
        .into()
}

/// A link is accepted only if it is relative and stays inside the root.
pub(super) fn link_target(path: &RelPath, target: &[u8], size: u64) -> Result<String> {
    let bad = || refused("bad-link", &path.to_string(), format!("the link {path} does not stay inside the install"));
    let text = std::str::from_utf8(target).map_err(|_| bad())?;
    if size > MAX_TARGET || text.is_empty() || text.starts_with('/') || text.contains(['\\', ':', '\0']) {
        return Err(bad());
    }
    let mut depth = path.ancestors().len() as i64;
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => depth -= 1,
            _ => depth += 1,
        }
        if depth < 0 {
            return Err(bad());
        }
    }
    Ok(text.to_string())
}
