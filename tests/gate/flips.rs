//! Every bit of the directory and of the end of a whole bundle, turned one by one: the bundle is refused, or the very
//! same paths and contents are installed.
//!
//! A mode stands in the directory alone, and nothing in a zip can tell that it was altered, so a turned bit may give or
//! take a right to execute, or make a link of a file with the same contents and the reverse. What it must never do is
//! give other rights, another kind, or another name; only a signed manifest can hold the rest.

use std::collections::BTreeMap;
use std::path::Path;

use crate::kit::zips::{Part, Tail, Zip, crc, extra};
use updater::base::path::RelPath;
use updater::update::bundle::{Bundle, Expected, Limits};

/// Opens a bundle as an install would that folds nothing and has no links.
pub fn open(path: &Path) -> anyhow::Result<Bundle> {
    let start_file = RelPath::parse("run.py").unwrap();
    let expected = Expected::anywhere(&start_file, true);
    Bundle::open(path, &expected, &Limits { max_size: 1 << 20, max_files: 100 })
}

/// What would be installed: paths and the hashes of their contents.
fn installed(bundle: &Bundle) -> BTreeMap<String, String> {
    bundle.entries.iter().map(|entry| (entry.path.to_string(), entry.sha256.to_string())).collect()
}

fn whole() -> Vec<(&'static str, Zip)> {
    let field = [&[1][..], &crc(b"app/th").to_le_bytes(), "app/\u{442}\u{447}".as_bytes()].concat();
    let field = extra(0x7075, &field);
    let size = 8_u64.to_le_bytes();
    let long = extra(1, &[size, size].concat());
    let parts = vec![
        Part::new("site/", ""),
        Part::new("site/run.py", "print('run')\n".repeat(20)),
        Part::new("site/app/", ""),
        Part::new("site/app/stored.txt", "as it is\n").stored(),
        Part::new("site/app/stream.py", "print(1)\n".repeat(9)).streamed(Tail::ShortSigned),
        Part::new("site/app/empty", ""),
        Part::new("site/app/caf\u{e9}", "utf8\n"),
        Part::new("site/app/job", "#!/bin/sh\n").mode(0o100_755),
        Part::link("site/app/link", "stored.txt"),
        Part::new("site/app/__pycache__/a.pyc", "skipped\n"),
        Part::new("site/app/long", "8 bytes\n").stored().extra(&long, &long).both(18, 20, &[0xff; 8]),
    ];
    let named = parts.iter().cloned().chain([Part { name: b"app/th".to_vec(), ..Part::new("x", "info\n") }]);
    let mut flat: Vec<Part> = named.collect();
    for part in &mut flat {
        part.name = part.name.strip_prefix(b"site/").unwrap_or(&part.name).to_vec();
    }
    flat.remove(0);
    if let Some(last) = flat.last_mut() {
        *last = last.clone().extra(&field, &field);
    }
    vec![
        ("with one top folder", Zip { comment: b"comment".to_vec(), ..Zip::of(parts.clone()) }),
        ("flat, with records of zip64", Zip { is_long: true, ..Zip::of(flat) }),
        ("behind a program", Zip { prefix: b"#!/bin/sh\n".to_vec(), ..Zip::of(parts) }),
    ]
}

#[test]
fn a_turned_bit_is_refused_or_changes_nothing_that_is_installed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle.zip");
    for (name, zip) in whole() {
        let bytes = zip.bytes();
        std::fs::write(&path, &bytes).unwrap();
        let wanted = installed(&open(&path).unwrap());
        let directory = bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
        let (mut refused, mut same) = (0, 0);
        for bit in directory * 8..bytes.len() * 8 {
            let mut turned = bytes.clone();
            turned[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &turned).unwrap();
            match open(&path) {
                Err(_) => refused += 1,
                Ok(bundle) => {
                    let is = installed(&bundle);
                    assert_eq!(is, wanted, "{name}: bit {} of byte {} of the directory", bit % 8, bit / 8 - directory);
                    assert!(bundle.entries.iter().all(|entry| matches!(entry.mode, 0o644 | 0o755)));
                    same += 1;
                }
            }
        }
        eprintln!("{name}: {refused} bits refused, {same} change nothing");
        assert!(refused > same, "{name}");
    }
}
