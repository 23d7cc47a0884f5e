//! What the documents draw is what the code has.

use std::fs;
use std::path::Path;

fn file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// All sources in one text.
fn sources() -> String {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = walkdir::WalkDir::new(src).into_iter().map(Result::unwrap).filter(|item| item.file_type().is_file());
    files.map(|item| fs::read_to_string(item.path()).unwrap()).collect()
}

/// The words in backquotes of the first cell of each row, in the table whose head begins with `head`.
fn first_cells(text: &str, head: &str) -> Vec<String> {
    let (_, table) = text.split_once(head).unwrap_or_else(|| panic!("no table {head}"));
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.split('|').nth(1).unwrap().trim().trim_matches('`').to_string()).collect()
}

#[test]
fn the_journals_table_has_every_phase_of_the_code_in_its_order() {
    let progress = file("src/state/journal/progress.rs");
    let (_, body) = progress.split_once("pub enum Phase {\n").unwrap();
    let (body, _) = body.split_once("\n}").unwrap();
    let variants = body.lines().map(str::trim).filter(|line| !line.starts_with("//"));
    let name = |line: &str| line.split(['(', ',']).next().unwrap().to_string();
    let variants: Vec<String> = variants.map(name).collect();
    assert_eq!(first_cells(&file("docs/architecture.md"), "| phase | record "), variants);
}

#[test]
fn the_road_is_drawn_with_the_types_of_the_code() {
    let (text, code) = (file("docs/architecture.md"), sources());
    let road = text.lines().find(|line| line.trim_start().starts_with("Request -> ")).unwrap();
    let drawn: Vec<&str> = road.trim().split(" -> ").collect();
    assert!(drawn.len() > 8, "{road}");
    let rows = first_cells(&text, "| value | what is certain ");
    assert_eq!(rows[..drawn.len()], drawn);
    for name in rows {
        assert!(code.contains(&format!("pub struct {name}")), "no type is called {name}");
    }
}

/// `docs/codes.md` is made from the code: `UPDATER_ACCEPT=1 cargo test --test docs` writes it.
#[test]
fn the_list_of_codes_is_the_codes() {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/codes.md");
    let head = "# Codes of errors and warnings\n\n\
        Programs match these words: they are added to and never changed. `exit` is the class in which a run ends with the code before\n\
        anything was stopped; after the stop a failure keeps its code and ends the run with 3 (rolled back) or 4 (a person is needed). A\n\
        bundle that ended twice by its own fault is skipped by unattended runs.\n\n\
        | code | ends with | the bundle's fault | what it means |\n| --- | --- | --- | --- |\n";
    let rows: Vec<String> = updater::base::error::Code::ALL.iter().map(|code| code.row()).collect();
    let text = format!("{head}{}\n", rows.join("\n"));
    if std::env::var_os("UPDATER_ACCEPT").is_some() {
        fs::write(&place, &text).unwrap();
    }
    assert_eq!(fs::read_to_string(&place).unwrap(), text);
}

#[test]
fn every_code_is_used() {
    let code = sources();
    for one in updater::base::error::Code::ALL {
        let name = format!("Code::{one:?}");
        let uses = code
            .match_indices(&name)
            .filter(|(at, _)| !code[at + name.len()..].starts_with(|next: char| next.is_alphanumeric()));
        assert!(uses.count() > 0, "nothing ends or warns with {name}");
    }
}
