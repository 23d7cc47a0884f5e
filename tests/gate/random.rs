//! Whatever comes: names, archives, settings files and JSON made at random from the pieces of which trouble is made.
//! Nothing may end the program but an error; what is accepted is the same to another reader of zips.
//!
//! Each round has a seed, which a failure names. `UPDATER_ROUNDS=1000000 cargo test --test gate random` goes on for
//! longer, `UPDATER_SEED=N` begins elsewhere.

use std::io::Read;

use crate::flips::open;
use crate::kit::random::{Random, rounds};
use crate::kit::zips::{Part, Tail, Zip, extra};
use sha2::{Digest, Sha256};
use updater::base::path::RelPath;
use updater::{app::carry, app::merge};

const NAMES: [&str; 26] = [
    "a",
    "b",
    "/",
    "/",
    "..",
    ".",
    "\\",
    "C:",
    "app",
    "run.py",
    "\0",
    "\n",
    "\u{7f}",
    "\u{85}",
    "\u{202e}",
    "\u{e9}",
    "e\u{301}",
    "~1",
    "UPDATE",
    "updater.toml",
    ".updater",
    "backups",
    "con",
    " ",
    "A",
    "__pycache__",
];

fn part(random: &mut Random) -> Part {
    let plain = format!("app/{}", random.below(20));
    let name = if random.below(3) == 0 { random.text(&NAMES, 6) } else { plain };
    let contents = random.text(&["x", "\n", "app/a", "..", "/", "0123456789"], 9);
    let mut part = match random.below(5) {
        0 => Part::link(&name, contents),
        1 => Part::new(name, contents).stored(),
        _ => Part::new(name, contents),
    };
    if random.below(4) == 0 {
        let tails = [Tail::Short, Tail::ShortSigned, Tail::Long, Tail::LongSigned];
        part = part.streamed(tails[random.below(4)]);
    }
    if random.below(6) == 0 {
        let ids = [0x1, 0x7075, 0x5456, 0x17, 0xcafe];
        let length = random.below(30);
        let field = extra(ids[random.below(5)], &vec![random.below(256) as u8; length]);
        part = part.extra(&field, if random.below(2) == 0 { field.clone() } else { Vec::new() });
    }
    part
}

fn archive(random: &mut Random) -> Vec<u8> {
    let mut parts = vec![Part::new("run.py", "x\n")];
    parts.extend((0..random.below(5)).map(|_| part(random)));
    let mut zip = Zip { is_long: random.below(4) == 0, counts_prefix: random.below(2) == 0, ..Zip::of(parts) };
    if random.below(5) == 0 {
        zip.prefix = b"#!/bin/sh\n".to_vec();
    }
    let mut bytes = zip.bytes();
    for _ in 0..random.below(4) {
        let at = random.below(bytes.len());
        match random.below(5) {
            0 => bytes[at] = random.below(256) as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => drop(bytes.drain(at..(at + random.below(20)).min(bytes.len()))),
            3 => drop(bytes.splice(at..at, (0..random.below(9)).map(|_| random.below(256) as u8).collect::<Vec<_>>())),
            _ => {
                let from = random.below(bytes.len());
                let piece = bytes[from..(from + random.below(40)).min(bytes.len())].to_vec();
                drop(bytes.splice(at..at, piece));
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

/// What another reader, the `zip` crate, finds for each entry that was accepted.
fn agrees(bytes: &[u8], bundle: &updater::update::bundle::Bundle, round: u64) {
    let mut other = zip::ZipArchive::new(std::io::Cursor::new(bytes)).unwrap_or_else(|e| panic!("round {round}: {e}"));
    let mut found = Vec::new();
    for at in 0..other.len() {
        let mut file = other.by_index(at).unwrap_or_else(|e| panic!("round {round}: entry {at}: {e}"));
        let (mut contents, name) = (Vec::new(), file.name().unwrap().into_owned());
        // What is no part of a version is judged as a part of the archive, and never unpacked.
        let is_skipped = name.contains("__pycache__");
        match file.read_to_end(&mut contents) {
            Err(_) if is_skipped => continue,
            read => read.unwrap_or_else(|e| panic!("round {round}: {name:?}: {e}")),
        };
        let hash: String = Sha256::digest(&contents).iter().map(|byte| format!("{byte:02x}")).collect();
        found.push((name.replace('\\', "/"), hash));
    }
    for entry in &bundle.entries {
        let wanted = (entry.path.to_string(), entry.sha256);
        let is_it = |one: &(String, String)| one.1 == wanted.1 && (one.0 == wanted.0 || one.0.ends_with(&wanted.0));
        assert!(found.iter().any(is_it), "round {round}: {wanted:?} in {found:?}");
    }
}

#[test]
fn random_archives_are_refused_or_the_same_to_another_reader() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle.zip");
    let (mut accepted, mut all) = (0, 0);
    for round in rounds(3_000) {
        let bytes = archive(&mut Random::of(round));
        std::fs::write(&path, &bytes).unwrap();
        all += 1;
        match open(&path) {
            Ok(bundle) => {
                agrees(&bytes, &bundle, round);
                accepted += 1;
            }
            Err(e) => assert_eq!(updater::base::error::class(&e) as i32, 6, "round {round}: {e:#}"),
        }
    }
    eprintln!("{accepted} of {all} archives accepted");
    assert!(accepted * 20 > all, "{accepted} of {all}: the archives are too wild to try anything");
}

#[test]
fn random_names_stay_below_the_root() {
    for round in rounds(50_000) {
        let name = Random::of(round).text(&NAMES, 9);
        let Ok(path) = RelPath::parse(&name) else { continue };
        let full = std::path::Path::new("/root/of/install").join(path.to_path());
        let is_plain = full.components().all(|part| !matches!(part, std::path::Component::ParentDir));
        assert!(full.starts_with("/root/of/install") && is_plain, "round {round}: {name:?}");
        let (folded, composed) = (path.folded(), path.composed());
        assert_eq!((folded.folded(), composed.composed()), (folded, composed), "round {round}: {name:?}");
    }
}

#[test]
fn random_settings_files_are_carried_or_named() {
    const SOURCE: [&str; 19] = [
        "PORT",
        " = ",
        "=",
        ":",
        "'",
        "\"",
        "'''",
        "\"\"\"",
        "\\",
        "\n",
        "\r\n",
        "#",
        "(",
        ")",
        "]",
        "8080",
        "os.environ.get('PORT', ",
        "getenv(\"PORT\",",
        "\u{e9}",
    ];
    let names = ["PORT".to_string()];
    for round in rounds(100_000) {
        let mut random = Random::of(round);
        let (new, old) = (random.text(&SOURCE, 20), random.text(&SOURCE, 20));
        let value = random.text(&SOURCE, 4);
        let _ = carry::carry(new.as_bytes(), old.as_bytes(), &names, &[("PORT".into(), value)]);
        let _ = (carry::assignment(new.as_bytes(), "PORT"), carry::assignment(old.as_bytes(), ""));
        if let Ok(done) = carry::carry(new.as_bytes(), new.as_bytes(), &names, &[]) {
            assert_eq!(done.bytes, new.as_bytes(), "round {round}: {new:?}");
        }
    }
}

#[test]
fn random_json_is_merged_or_named() {
    const JSON: [&str; 16] = [
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"a\"",
        "\"b\"",
        "1",
        "1e999",
        "null",
        "\"\\ud800\"",
        "\n",
        "\t",
        "\u{feff}",
        "\r\n",
    ];
    for round in rounds(100_000) {
        let mut random = Random::of(round);
        let fields = |random: &mut Random| format!("{{\"{}\": {{\"x\": {}}}}}", random.below(3), random.below(3));
        let live = if random.below(2) == 0 { fields(&mut random) } else { random.text(&JSON, 14) };
        let new = if random.below(2) == 0 { fields(&mut random) } else { random.text(&JSON, 14) };
        if let Ok(Some(merged)) = merge::merge_json(live.as_bytes(), new.as_bytes()) {
            let again = merge::merge_json(&merged, new.as_bytes());
            assert!(matches!(again, Ok(None)), "round {round}: {live:?} and {new:?}");
        }
    }
}
