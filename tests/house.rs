//! The house keeps its shape: layers, the place of system differences, the look of every file.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A source file with its path relative to `src` and its text.
struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// The top-level module the file belongs to.
    fn module(&self) -> String {
        let first = self.path.iter().next().unwrap();
        Path::new(first).file_stem().unwrap().to_str().unwrap().to_string()
    }

    /// Code lines with their numbers: comments out, everything from the unit tests on out.
    fn code(&self) -> Vec<(usize, &str)> {
        self.text
            .lines()
            .take_while(|line| !line.trim().starts_with("#[cfg(test)]"))
            .enumerate()
            .map(|(index, line)| (index + 1, line.split("//").next().unwrap()))
            .collect()
    }
}

fn sources() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    for entry in walkdir::WalkDir::new(&src).sort_by_file_name().into_iter().map(Result::unwrap) {
        if entry.path().extension().is_some_and(|ext| ext == "rs") {
            let text = fs::read_to_string(entry.path()).unwrap();
            sources.push(Source { path: entry.path().strip_prefix(&src).unwrap().to_path_buf(), text });
        }
    }
    assert!(sources.len() > 10, "the sources were not found");
    sources
}

/// The modules of `lib.rs`: name -> (position, section).
fn layers() -> BTreeMap<String, (usize, String)> {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let mut section = String::new();
    let mut layers = BTreeMap::new();
    for line in lib.lines() {
        if let Some(title) = line.strip_prefix("// ") {
            section = title.to_string();
        } else if let Some(name) = line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';')) {
            layers.insert(name.to_string(), (layers.len(), section.clone()));
        }
    }
    for known in ["ground", "records on disk", "pure rules", "stages, in pipeline order", "commands", "entry"] {
        assert!(layers.values().any(|(_, section)| section == known), "lib.rs has no section {known:?}");
    }
    layers
}

/// The modules that a line names by `crate::X` or `use crate::{X, Y::..}`.
fn crate_modules(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, marker) in line.match_indices("crate::") {
        if line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &line[at + marker.len()..];
        match rest.strip_prefix('{') {
            Some(list) => found.extend(top_level_names(list)),
            None => found.push(name_at(rest)),
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

fn top_level_names(list: &str) -> Vec<String> {
    let (mut depth, mut names, mut fresh) = (0, Vec::new(), true);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && !c.is_whitespace() => {
                names.push(name_at(&list[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    names
}

fn name_at(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn a_module_imports_only_what_lib_rs_declares_before_it() {
    let layers = layers();
    let mut wrong = Vec::new();
    for source in sources() {
        let module = source.module();
        let Some((position, _)) = layers.get(&module) else {
            continue;
        };
        // A use list may span lines: join the code so that each `use` is seen whole.
        let code: Vec<&str> = source.code().into_iter().map(|(_, line)| line).collect();
        for name in crate_modules(&code.join(" ")) {
            let Some((other, section)) = layers.get(&name) else {
                continue;
            };
            let os_is_ground = (module == "os" || name == "os") && section == "ground";
            if name != module && other > position && !os_is_ground {
                wrong.push(format!("{}: {module} uses {name}, which lib.rs declares later", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_of_src_is_declared_in_lib_rs() {
    let layers = layers();
    for source in sources() {
        let module = source.module();
        let known = ["lib", "main"].contains(&module.as_str()) || layers.contains_key(&module);
        assert!(known, "{} is declared nowhere in lib.rs", source.path.display());
    }
}

#[test]
fn systems_differ_only_under_src_os() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.module() != "os") {
        for (number, line) in source.code() {
            let attribute = line.contains("cfg(") || line.contains("cfg!(") || line.contains("cfg_attr(");
            let system = ["windows", "unix", "target_os"].iter().any(|word| line.contains(word));
            let select = line.contains("cfg_select!") || line.contains("std::os::");
            if attribute && system || select {
                wrong.push(format!("{}:{number}: {}", source.path.display(), line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_opens_by_saying_what_it_is_for() {
    for source in sources() {
        assert!(source.text.starts_with("//! "), "{} has no //! header", source.path.display());
    }
}

#[test]
fn the_sources_are_ascii() {
    for source in sources() {
        let line = source.text.lines().position(|line| !line.is_ascii());
        assert_eq!(line, None, "{} holds other characters (line counted from 0)", source.path.display());
    }
}

#[test]
fn nothing_unwraps_outside_of_tests() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (number, line) in source.code() {
            if line.contains(".unwrap()") {
                wrong.push(format!("{}:{number}: {}", source.path.display(), line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Each threat of `docs/security.md` is shown by a test or a script that is there.
#[test]
fn the_tests_that_security_names_exist() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = String::new();
    for folder in ["src", "tests"] {
        for entry in walkdir::WalkDir::new(top.join(folder)).into_iter().map(Result::unwrap) {
            if entry.path().extension().is_some_and(|ext| ext == "rs") {
                all += &fs::read_to_string(entry.path()).unwrap();
            }
        }
    }
    let text = fs::read_to_string(top.join("docs/security.md")).unwrap();
    let (_, threats) = text.split_once("\n## Threats\n").unwrap();
    let (threats, _) = threats.split_once("\n## ").unwrap();
    let rows: Vec<&str> = threats.lines().filter(|line| line.starts_with('|')).skip(2).collect();
    assert!(rows.len() > 20, "the table was not found");
    for row in rows {
        let shown_by = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let names: Vec<&str> = shown_by.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "nothing shows: {row}");
        for name in names {
            match name.strip_prefix("scripts/") {
                Some(script) => {
                    assert!(top.join("scripts").join(script.split(' ').next().unwrap()).is_file(), "{name}")
                }
                None => assert!(all.contains(&format!("fn {name}(")), "no test is called {name}"),
            }
        }
    }
}
