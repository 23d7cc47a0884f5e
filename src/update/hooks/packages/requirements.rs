//! Requirements files: what they include, and where what they name by a path lies.
//! Refuses to understand a requirement: that is pip's.
#![deny(clippy::indexing_slicing, clippy::string_slice, clippy::arithmetic_side_effects)]

use super::REQUIREMENTS;
use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::path::RelPath;
use crate::state::root::InstallRoot;
use crate::update::bundle::Bundle;
use crate::update::plan::{Action, Plan};
use crate::update::server;
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Options of a requirements file that are no requirement and no inclusion (pip.pypa.io, "Requirements File Format").
pub(super) fn names_an_origin(line: &str) -> bool {
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

/// The most that `requirements.txt` and all that it includes may have, in bytes: they are held whole. A locked list of a
/// thousand packages with their hashes has about 300,000.
const MAX_SIZE: u64 = 1 << 20;

/// The lines that mean something, continued ones joined.
pub(super) fn lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes).replace("\\\r\n", " ").replace("\\\n", " ");
    let lines = text.trim_start_matches('\u{feff}').lines().map(|line| line.split(" #").next().unwrap_or(line).trim());
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_string).collect()
}

/// A line with what it names by a path named where that is: in one of `places`, below `beside` or not. In the files
/// themselves such a path is relative to them or to where pip is called, and we call it elsewhere.
pub(super) fn anchored(line: &str, beside: &Path, places: &[PathBuf], known: &BTreeMap<RelPath, Vec<u8>>) -> String {
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
pub(super) fn of_new_version(
    root: &InstallRoot,
    bundle: &mut Bundle,
    plan: &Plan,
) -> Result<BTreeMap<RelPath, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut open: Vec<RelPath> = RelPath::parse(REQUIREMENTS).into_iter().collect();
    let mut left = MAX_SIZE;
    while let Some(path) = open.pop() {
        if found.contains_key(&path) {
            continue;
        }
        let Some(bytes) = new_file(root, bundle, plan, (&path, left))? else { continue };
        left = left.saturating_sub(bytes.len() as u64);
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

/// A file as it will be; None: there will be none. Errors: it has more than `most` bytes.
fn new_file(
    root: &InstallRoot,
    bundle: &mut Bundle,
    plan: &Plan,
    (path, most): (&RelPath, u64),
) -> Result<Option<Vec<u8>>> {
    let planned = plan.actions.iter().find(|planned| planned.path == *path);
    match planned {
        Some(planned) if planned.action == Action::Remove => Ok(None),
        Some(planned) if planned.content.is_some() => Ok(planned.content.clone()),
        Some(planned) if matches!(planned.action, Action::Add | Action::Replace) => {
            planned.entry.map(|at| bundle.read_entry(at, most)).transpose()
        }
        _ if root.join(path).is_file() => {
            let bytes = fsx::read_at_most(&root.join(path), most)?;
            let message = || format!("{path} and what includes it have more than {MAX_SIZE} bytes");
            Ok(Some(bytes.ok_or_else(|| {
                Failure::failed(Code::TooLarge, message())
                    .at(path)
                    .remedy("make it smaller, or set [hooks] defaults = false in updater.toml")
            })?))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

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
