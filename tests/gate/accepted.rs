//! What is accepted, as the archivers of the field make it: what comes of it, and why.

use std::fs;

use crate::kit::Install;
use crate::kit::zips::{Part, Tail, UTF8, Zip, crc, extra, local};
use crate::{base, with};

/// An accepted bundle.
struct Row {
    name: &'static str,
    zip: Zip,
    /// Files that are there afterwards, with what they hold.
    files: Vec<(&'static str, &'static str)>,
    /// Places where nothing of the bundle is.
    absent: Vec<&'static str>,
    why: &'static str,
}

fn row(name: &'static str, zip: Zip, why: &'static str) -> Row {
    Row { name, zip, files: Vec::new(), absent: Vec::new(), why }
}

impl Row {
    fn has(mut self, path: &'static str, contents: &'static str) -> Row {
        self.files.push((path, contents));
        self
    }

    fn lacks(mut self, path: &'static str) -> Row {
        self.absent.push(path);
        self
    }
}

/// The base below one top folder.
fn below(top: &str, change: impl Fn(Part) -> Part) -> Vec<Part> {
    let moved = |part: Part| Part { name: [top.as_bytes(), &part.name].concat(), ..part };
    base().into_iter().map(moved).map(change).collect()
}

fn all(change: impl Fn(Part) -> Part) -> Vec<Part> {
    base().into_iter().map(change).collect()
}

/// The Unix times of Info-ZIP: longer in a local header than in the directory.
fn unix_times(part: Part) -> Part {
    let (local, central) = (extra(0x5455, &[3; 9]), extra(0x5455, &[3; 5]));
    let owner = extra(0x7875, &[1, 4, 0, 0, 0, 0, 4, 0, 0, 0, 0]);
    part.extra([local, owner.clone()].concat(), [central, owner].concat())
}

/// Both sizes of an entry in zip64 fields, in both headers.
fn long_sizes(part: Part) -> Part {
    let stored = part.stored();
    let size = (stored.contents.len() as u64).to_le_bytes();
    let field = extra(1, &[size, size].concat());
    let (local, central) = (local::PACKED, crate::kit::zips::central::PACKED);
    stored.extra(&field, &field).both(local, central, &[0xff; 8])
}

/// Sizes left open for a descriptor of 64 bits, as Python writes them to a stream.
fn long_stream(part: Part) -> Part {
    let part = part.streamed(Tail::LongSigned).local(local::PACKED, &[0xff; 8]);
    part.extra(extra(1, &[0; 16]), [])
}

fn archivers() -> Vec<Row> {
    let github = below("site-3f2a/", |part| part);
    let comment = b"0123456789abcdef0123456789abcdef01234567".to_vec();
    let github = Zip { comment, ..Zip::of([Part::new("site-3f2a/", "")].into_iter().chain(github)) };
    let windows = all(|part| Part {
        system: 0,
        mode: 0,
        name: part.name.iter().map(|b| if *b == b'/' { b'\\' } else { *b }).collect(),
        ..part
    });
    let mac = below("site/", |part| part.streamed(Tail::ShortSigned));
    let litter = ["__MACOSX/site/._run.py", "site/.DS_Store"].map(|name| Part::new(name, "x"));
    let mut jar = base();
    jar[0] = jar[0].clone().extra(extra(0xcafe, &[]), extra(0xcafe, &[]));
    let seven = all(|part| part.extra([], extra(0x0a, &[0; 32])));
    let seven = Zip::of([Part::new("app/", "")].into_iter().chain(seven));
    vec![
        row("GitHub", github, "the comment is the hash of the commit; the top folder is taken off"),
        row("Python, zipfile", Zip::of(base()), "the plainest of all"),
        row("Python, to a stream", Zip::of(all(|p| p.streamed(Tail::ShortSigned))), "sizes follow the contents"),
        row("Python, stored to a stream", Zip::of(all(|p| p.stored().streamed(Tail::ShortSigned))), "the same"),
        row("Python, zip64 forced to a stream", Zip::of(all(long_stream)), "the descriptor has 64 bits"),
        row("a descriptor without its signature", Zip::of(all(|p| p.streamed(Tail::Short))), "old tools leave it out"),
        row("the same of 64 bits", Zip::of(all(|p| p.streamed(Tail::Long))), "the same"),
        row("Info-ZIP", Zip::of(all(unix_times)), "extra fields differ between the headers"),
        row("Info-ZIP, with descriptors", Zip::of(all(|p| unix_times(p).streamed(Tail::ShortSigned))), "zip -fd"),
        row("PowerShell", Zip::of(windows), "no name has a slash, so backslashes part folders"),
        row("macOS, ditto", Zip::of(mac.into_iter().chain(litter)), "what its archiver adds is passed over")
            .lacks("__MACOSX")
            .lacks(".DS_Store"),
        row("7-Zip", seven, "NTFS times stand in the directory alone"),
        row("Java, jar", Zip::of(jar), "its mark is an empty extra field"),
        row("zip64 forced", Zip { is_long: true, ..Zip::of(all(long_sizes)) }, "every number in its longer form"),
        row("zip64 records alone", Zip { is_long: true, ..with([]) }, "the end says that the longer form has it"),
    ]
}

fn shapes() -> Vec<Row> {
    let program = b"#!/usr/bin/env python3\n".to_vec();
    let aligned = Part::new("app/icon.bin", "aligned").stored().extra([0, 0, 0], []);
    let inner = Part::new("app/inner.zip", with([]).bytes()).stored();
    let wordy = Part { comment: b"why it is here".to_vec(), ..Part::new("app/a", "x") };
    let folder = || Part::new("app/", "").mode(0o042_775);
    vec![
        row("a self-extractor", Zip { prefix: program.clone(), ..with([]) }, "offsets count from the archive"),
        row(
            "a self-extractor with its offsets moved",
            Zip { prefix: program, counts_prefix: true, ..with([]) },
            "offsets count from the beginning of the file (zip -A, Python's zipapp)",
        ),
        row("a zip in the zip", with([inner]), "its end record does not reach to the end of the file"),
        row("padding in an extra field", with([aligned]), "zipalign").has("app/icon.bin", "aligned"),
        row("comments", Zip { comment: b"all".to_vec(), ..with([wordy]) }, "they say nothing").has("app/a", "x"),
        row("empty files", with([Part::new("app/a", ""), Part::new("app/b", "").stored()]), "two bytes, or none")
            .has("app/a", "")
            .has("app/b", ""),
        row("a folder twice, set-group-id", with([folder(), folder()]), "modes of folders are never used"),
        row("no modes at all", Zip::of(all(|p| p.mode(0))), "some archivers of Unix write none"),
    ]
}

fn names() -> Vec<Row> {
    let dos = Part { name: b"app/caf\x82".to_vec(), flags: 0, ..Part::new("x", "dos") };
    let unflagged = Part { flags: 0, ..Part::new("app/gr\u{f6}\u{df}e.txt", "mac") };
    let utf8 = Part { flags: UTF8, ..Part::new("app/th\u{e9}", "utf8") };
    let field = [&[1][..], &crc(b"app/th").to_le_bytes(), "app/\u{442}\u{447}".as_bytes()].concat();
    let field = extra(0x7075, &field);
    let info = Part::new("app/th", "info").extra(&field, &field);
    let others = ["app/con.svg", "app/a?.txt", "app/end."].map(|name| Part::new(name, "x"));
    let own = [
        "updater.toml",
        "Updater.TOML",
        "UPDATE~1.TOM",
        ".UPDATER/journal",
        "UPDATE~1/journal",
        "backups/update_backup_1/run.py",
        "BACKUP~1/x",
        "app/remote_updater.py",
    ];
    let mut own_row = row(
        "places of the updater's own",
        with(own.map(|name| Part::new(name, "hostile"))),
        "in any case, and by the short names of Windows: left out, the rest is installed",
    );
    for place in own {
        own_row = own_row.lacks(place);
    }
    let deep = Part::new(vec!["d"; 64].join("/"), "deep");
    let skipped = Part::new("app/__pycache__/core.pyc", "x");
    vec![
        row("a name of DOS", with([dos]), "code page 437, where nothing else is said").has("app/caf\u{e9}", "dos"),
        row("a name of macOS or Info-ZIP", with([unflagged]), "made on Unix, UTF-8 without a flag that says so")
            .has("app/gr\u{f6}\u{df}e.txt", "mac"),
        row("a name in UTF-8", with([utf8]), "the flag says so").has("app/th\u{e9}", "utf8"),
        row("a name in a Unicode field", with([info]), "its checksum is that of the plain name")
            .has("app/\u{442}\u{447}", "info"),
        row("names that Windows cannot hold", with(others), "they are files here").has("app/con.svg", "x"),
        row("64 levels", with([deep]), "as many as may be"),
        row("caches", with([skipped]), "judged as a part of the archive, and passed over").lacks("app/__pycache__"),
        own_row,
    ]
}

fn links() -> Vec<Row> {
    let link = |name: &str, target: &str| Part::link(name, target);
    vec![
        row("links that stay inside", with([link("l", "app/core.py"), link("app/m", "../l")]), "each is followed")
            .has("l", "# core of 2.0\n")
            .has("app/m", "# core of 2.0\n"),
        row("a link to nothing", with([link("app/later", "made/later")]), "what is not there may come"),
        row(
            "a file at the place of a link that leads out",
            with([Part::new("static/x", "x")]),
            "the plan holds it back",
        )
        .lacks("static/x"),
    ]
}

fn check(rows: Vec<Row>) {
    for Row { name, zip, files, absent, why } in rows {
        let install = Install::new();
        std::os::unix::fs::symlink("../shared", install.root.join("static")).unwrap();
        let path = install.scratch().join("row.zip");
        fs::write(&path, zip.bytes()).unwrap();
        let plan = install.updater(&["plan", path.to_str().unwrap(), "--no-start", "--json"]);
        assert_eq!(plan.code, 0, "{name} ({why}): {}", plan.object()["problems"]);
        let apply = install.updater(&["apply", path.to_str().unwrap(), "--no-start", "--json"]);
        assert_eq!((apply.code, apply.outcome().as_str()), (0, "applied"), "{name} ({why}): {}", apply.finished());
        assert_eq!(install.read("app/core.py"), "# core of 2.0\n", "{name}");
        for (path, contents) in files {
            assert_eq!(install.read(path), contents, "{name}: {path}");
        }
        for path in absent {
            let found = install.root.join(path);
            let is_ours = fs::read_to_string(&found).is_ok_and(|text| text == "hostile" || text == "x");
            assert!(!is_ours, "{name}: {path}");
        }
    }
}

#[test]
fn what_archivers_of_the_field_make() {
    check(archivers());
}

#[test]
fn what_is_unusual_and_plain_all_the_same() {
    check(shapes());
}

#[test]
fn names_of_every_alphabet_and_of_other_systems() {
    check(names());
}

#[test]
fn links_that_stay_inside() {
    check(links());
}

#[test]
fn what_was_left_out_is_named() {
    let install = Install::new();
    let path = install.scratch().join("row.zip");
    let parts = ["UPDATE~1.TOM", "app/REMOTE~1.PY"].map(|name| Part::new(name, "hostile"));
    fs::write(&path, with(parts).bytes()).unwrap();
    let done = install.updater(&["apply", path.to_str().unwrap(), "--no-start", "--json"]).expect(0);
    let named: Vec<_> = done.events().into_iter().filter(|event| event["code"] == "own-left-out").collect();
    let paths: Vec<_> = named.iter().filter_map(|event| event["path"].as_str()).collect();
    assert_eq!(paths, ["UPDATE~1.TOM", "app/REMOTE~1.PY"]);
}
