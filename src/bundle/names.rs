//! The names of a zip: the gate that each passes, the layouts that are accepted, what conflicts.
//! Refuses to read contents.

use super::{SKIPPED, refused};
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

/// The gate for every name, the skips, and the top folder taken off.
/// Returns the entries and how many files were passed over.
pub(super) fn layout(names: &[(usize, String, bool)], start: &RelPath, bundle: &str) -> Result<(Vec<Named>, usize)> {
    let mut all = Vec::new();
    for (index, name, folder) in names {
        let path = RelPath::parse(name)
            .map_err(|e| refused("bad-name", name, format!("the name of an entry is not acceptable: {e}")))?;
        all.push((*index, path, *folder));
    }
    let skip = |path: &RelPath| SKIPPED.iter().any(|s| path.top().as_bytes() == s.as_bytes());
    let before = all.len();
    all.retain(|(_, path, _)| !skip(path));
    if !all.iter().any(|(_, path, folder)| path == start && !folder) {
        let tops: BTreeSet<RelPath> = all.iter().map(|(_, path, _)| path.top()).collect();
        let mut tops = tops.into_iter();
        let Some(top) = tops.next() else {
            return Err(refused("empty-bundle", bundle, format!("{bundle} holds nothing to install")));
        };
        let holds = |top: &RelPath| all.iter().any(|(_, p, f)| !f && p.strip(top).as_ref() == Some(start));
        if let Some(second) = tops.next() {
            if holds(&top) || holds(&second) {
                let second = if holds(&top) { second } else { top };
                return Err(refused(
                    "two-top-folders",
                    &second.to_string(),
                    format!("beside the top folder there is a second name at the top: {second}"),
                ));
            }
            return Err(no_start_file(start, bundle));
        }
        if !holds(&top) {
            return Err(no_start_file(start, bundle));
        }
        all = all.into_iter().filter_map(|(i, path, f)| Some((i, path.strip(&top)?, f))).collect();
    }
    all.retain(|(_, path, _)| !skip(path) && !path.is_cache());
    let skipped = before - all.len();
    Ok((all, skipped))
}

/// Refuses two names that would be one file here or on Windows.
pub(super) fn check_conflicts(kept: &[Named]) -> Result<()> {
    // Two names that differ in case alone are one file on Windows; so are a file and a folder of one name.
    let mut seen: BTreeMap<String, (&RelPath, bool)> = BTreeMap::new();
    for (_, path, folder) in kept {
        if let Some((other, was_folder)) = seen.insert(path.text().to_lowercase(), (path, *folder))
            && !(was_folder && *folder && other == path)
        {
            return Err(refused("duplicate-name", &path.to_string(), format!("{path} and {other} are one name")));
        }
    }
    let mut folders: BTreeMap<String, RelPath> = BTreeMap::new();
    for (_, path, _) in kept {
        for above in path.ancestors() {
            let lower = above.text().to_lowercase();
            if seen.get(&lower).is_some_and(|(_, folder)| !folder) {
                return Err(refused("name-conflict", &path.to_string(), format!("{above} is a file and a folder")));
            }
            if let Some(other) = folders.insert(lower, above.clone())
                && other != above
            {
                return Err(refused(
                    "duplicate-name",
                    &above.to_string(),
                    format!("the folders {above} and {other} are one name"),
                ));
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
