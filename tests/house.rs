//! The house keeps its shape: layers, the place of system differences, the look of every file.

use std::fs;
use std::path::{Path, PathBuf};

/// A source file with its path relative to `src` and its text.
struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// The room that the file belongs to: a module of the top, or one of a folder that is a layer (`update::plan`).
    fn room(&self) -> String {
        let parts: Vec<&str> = self.path.iter().map(|part| part.to_str().unwrap().trim_end_matches(".rs")).collect();
        match parts.as_slice() {
            [layer, room, ..] if LAYERS.contains(layer) && *room != "mod" => format!("{layer}::{room}"),
            [top, ..] => top.to_string(),
            [] => unreachable!(),
        }
    }

    /// Code lines with their numbers: comments out, modules of unit tests out, and nothing else.
    fn code(&self) -> Vec<(usize, &str)> {
        if self.path.ends_with("tests.rs") {
            return Vec::new();
        }
        let mut lines = Vec::new();
        let (mut is_test, mut in_tests) = (false, false);
        for (index, line) in self.text.lines().enumerate() {
            if in_tests {
                in_tests = line != "}";
                continue;
            }
            in_tests = is_test && line.starts_with("mod ") && line.ends_with('{');
            is_test = line == "#[cfg(test)]" || is_test && is_of_an_attribute(line);
            if !in_tests {
                lines.push((index + 1, line.split("//").next().unwrap()));
            }
        }
        lines
    }
}

/// A line of an attribute that stands between `#[cfg(test)]` and its module: rustfmt indents what is inside of one.
fn is_of_an_attribute(line: &str) -> bool {
    line.starts_with("#[") || line.starts_with(' ') || line == ")]"
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

/// The layers that are folders of rooms, from the ground up.
const LAYERS: [&str; 5] = ["base", "app", "state", "update", "commands"];

/// The rooms in the order of their declaration: in `lib.rs`, and for a layer in its `mod.rs`. There a line `// crate::X` gives a file
/// that lies at the top of the sources its place.
fn rooms() -> Vec<String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let declared = |file: &str| -> Vec<String> {
        let text = fs::read_to_string(src.join(file)).unwrap();
        let name = |line: &str| {
            let line = line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(crate) ")).unwrap_or(line);
            let own = line.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')).map(str::to_string);
            own.or_else(|| line.strip_prefix("// crate::").map(|beside| format!("crate::{beside}")))
        };
        text.lines().filter_map(name).collect()
    };
    let mut rooms: Vec<String> = Vec::new();
    for top in declared("lib.rs") {
        if LAYERS.contains(&top.as_str()) {
            for room in declared(&format!("{top}/mod.rs")) {
                rooms.push(room.strip_prefix("crate::").map_or_else(|| format!("{top}::{room}"), str::to_string));
            }
        }
        if !rooms.contains(&top) {
            rooms.push(top);
        }
    }
    for known in
        ["system", "base::error", "app", "state::journal", "update::plan", "backup", "update", "restore", "dispatch"]
    {
        assert!(rooms.iter().any(|room| room == known), "no room {known:?} is declared");
    }
    rooms
}

/// The rooms that code names by `crate::X` or `use crate::{X, Y::..}`, a room of a layer as `layer::room`.
fn named_rooms(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, marker) in line.match_indices("crate::") {
        if line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &line[at + marker.len()..];
        match rest.strip_prefix('{') {
            Some(list) => found.extend(top_level_names(list)),
            None => found.extend(rooms_at(rest)),
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

/// The room that a path begins with; all that a list of a layer's rooms names (`update::{plan, swap}`).
fn rooms_at(path: &str) -> Vec<String> {
    let first = name_at(path);
    let Some(rest) = path[first.len()..].strip_prefix("::").filter(|_| LAYERS.contains(&first.as_str())) else {
        return vec![first];
    };
    let inner = match rest.strip_prefix('{') {
        Some(list) => top_level_names(list),
        None => vec![name_at(rest)],
    };
    inner.into_iter().map(|room| format!("{first}::{room}")).collect()
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
                names.extend(rooms_at(&list[at..]));
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

/// Where a room is not declared by itself, its layer is what is meant: items of `update/mod.rs`, for example.
fn position(rooms: &[String], name: &str) -> Option<usize> {
    let layer = name.split("::").next().unwrap();
    rooms.iter().position(|room| room == name).or_else(|| rooms.iter().position(|room| room == layer))
}

#[test]
fn a_room_imports_only_from_rooms_declared_before_it() {
    let rooms = rooms();
    let mut wrong = Vec::new();
    for source in sources() {
        let room = source.room();
        let Some(own) = position(&rooms, &room) else { continue };
        // A use list may span lines: join the code so that each `use` is seen whole.
        let code: Vec<&str> = source.code().into_iter().map(|(_, line)| line).collect();
        for name in named_rooms(&code.join(" ")) {
            let is_own = name == room || name.split("::").next() == Some(&room);
            if position(&rooms, &name).is_some_and(|other| other > own) && !is_own {
                wrong.push(format!("{}: {room} uses {name}, which is declared later", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_room_is_declared() {
    let rooms = rooms();
    for source in sources() {
        let room = source.room();
        let is_index = ["lib", "main"].contains(&room.as_str());
        assert!(is_index || rooms.contains(&room), "{} is declared nowhere", source.path.display());
    }
}

#[test]
fn systems_differ_only_under_src_system() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.room() != "system") {
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

/// Words that one system alone understands, and the hidden words of the executable's roles: where each may stand.
#[test]
fn words_of_one_system_and_of_a_role_have_one_place() {
    const SYSTEM: [&str; 9] =
        ["systemctl", "sudo", "usermod", "nsenter", "/proc", "\"/run", "--systemd-helper", "sysinfo", "netstat2"];
    const ROLES: [&str; 7] = ["__launch", "__as", "__monitored", "__depart", "__arrive", "__outside", "__helper"];
    let mut wrong = Vec::new();
    for source in sources() {
        let room = source.room();
        for (number, line) in source.code() {
            let is_systems = room != "system" && SYSTEM.iter().any(|word| line.contains(word));
            let is_roles = room != "roles"
                && ROLES.iter().any(|word| line.contains(&format!("\"{word}")) || line.contains(&format!(" {word} ")));
            if is_systems || is_roles {
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

/// The most lines of a file of sources; one that grows past it becomes a folder.
const MOST_LINES: usize = 510;

#[test]
fn no_file_is_longer_than_can_be_read_at_once() {
    let length = |source: &Source| source.text.lines().count();
    let long: Vec<String> = sources()
        .iter()
        .filter(|source| length(source) > MOST_LINES)
        .map(|source| format!("{}: {}", source.path.display(), length(source)))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}
