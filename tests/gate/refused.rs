//! What is refused, by which code, and why.

use std::fs;

use crate::kit::zips::{DESCRIPTOR, Part, Tail, UTF8, Zip, central, crc, extra, local};
use crate::kit::{Install, script};
use crate::with;
use serde_json::Value;

/// A refused bundle.
struct Row {
    name: &'static str,
    zip: Zip,
    code: &'static str,
    /// What the error names.
    names: &'static str,
    why: &'static str,
}

fn row(name: &'static str, zip: Zip, (code, names): (&'static str, &'static str), why: &'static str) -> Row {
    Row { name, zip, code, names, why }
}

fn one(part: Part) -> Zip {
    with([part])
}

fn file(name: &str) -> Part {
    Part::new(name, "contents\n")
}

/// The end of the archive.
fn ends() -> Vec<Row> {
    let mut nested = with([]);
    nested.comment = Zip::of([file("run.py")]).bytes();
    let mut trailing = with([]);
    trailing.behind_end = b"x".to_vec();
    let mut short = with([]);
    short.behind_end = b"comment".to_vec();
    let short = short.end(20, &3_u16.to_le_bytes());
    let mut hole = with([]);
    hole.before_directory = b"PK\x05\x05\x00\x00".to_vec();
    let mut signature = with([]);
    signature.behind_directory = b"PK\x05\x05\x00\x00".to_vec();
    let whole = "the end record tells where everything lies; a reader that takes another one sees another archive";
    vec![
        row("bytes behind the end", trailing, ("bad-zip", "end record"), whole),
        row("a comment shorter than what follows", short, ("bad-zip", "end record"), whole),
        row("another end record in the comment", nested, ("bad-zip", "more than one end record"), whole),
        row(
            "one entry less than there are",
            with([]).end(8, &[1, 0, 1, 0]),
            ("bad-zip", "more than the 1 entries"),
            "readers that go by the count and those that go by the size would differ",
        ),
        row(
            "one entry more than there are",
            one(Part { comment: vec![b'x'; 60], ..file("a") }).end(8, &[4, 0, 4, 0]),
            ("bad-zip", "entry 4"),
            "the same",
        ),
        row(
            "more entries than the directory can hold",
            with([]).end(8, &[0xff, 0x7f, 0xff, 0x7f]),
            ("bad-zip", "too small"),
            "the count is asked before room is made for so many",
        ),
        row(
            "a directory that lies behind its end",
            with([]).end(16, &[0, 0xff, 0, 0]),
            ("bad-zip", "elsewhere"),
            "nothing is looked for where it should not be",
        ),
        row("of several disks", with([]).end(4, &[1, 0]), ("multi-disk", "several"), "the rest is not there"),
        row(
            "entries on another disk",
            with([]).end(8, &[1, 0]),
            ("multi-disk", "several"),
            "the counts of this disk and of all differ",
        ),
        row(
            "an entry on another disk",
            one(file("a").central(central::DISK, &[1, 0])),
            ("multi-disk", "entry 3"),
            "the rest is not there",
        ),
        row("no entries", Zip::of([]), ("empty-bundle", ""), "there is nothing to install"),
        row(
            "bytes before the directory",
            hole,
            ("bad-zip", "belong to no entry"),
            "what no entry tells of is seen by readers that go by local headers",
        ),
        row(
            "bytes behind the directory",
            signature,
            ("bad-zip", "entry 1"),
            "the directory ends at its end record: here every offset is shifted",
        ),
    ]
}

/// The longer form of the end.
fn long_ends() -> Vec<Row> {
    let long = || Zip { is_long: true, ..with([]) };
    let why = "the record of zip64 is read at the place that its locator names, and nowhere else";
    let many = Zip { before_directory: b"PK\x06\x06".repeat(1000), ..long() };
    vec![
        row("zip64: its record lies elsewhere", long().long(64, &[9, 9]), ("bad-zip", "locator"), why),
        row("zip64: its record holds more", long().long(4, &[45]), ("bad-zip", "more than is known"), why),
        row("zip64: no record", long().long(0, b"PK\x06\x09"), ("bad-zip", "where it must be"), why),
        row("zip64: another count", long().long(32, &[9]), ("multi-disk", "several"), "the two counts differ"),
        row(
            "zip64: the end record says otherwise",
            long().end(8, &[7, 0, 7, 0]),
            ("bad-zip", "two end records differ"),
            "readers that do not know the longer form would see another archive",
        ),
        row("zip64: on several disks", long().long(72, &[2]), ("multi-disk", "several"), "the rest is not there"),
        row("zip64: a thousand records", many, ("bad-zip", "belong to no entry"), why),
    ]
}

/// Entries and the file around them.
fn places() -> Vec<Row> {
    let first = |before: &[u8]| {
        let mut zip = with([]);
        zip.prefix = before.to_vec();
        zip
    };
    let twin = Zip::of([file("run.py")]).bytes();
    let gap = |bytes: &[u8]| Part { before: bytes.to_vec(), ..file("b") };
    let deleted = [b"PK\x03\x04\x14\0\0\0\0\0\0\0\x79\x5d".as_slice(), &[0; 12], b"\x01\0\0\0z"].concat();
    let shared = Part { shares: true, ..Part::new("app/core.py", "# core of 2.0\n") };
    let mut moved = first(b"#!/bin/sh\n");
    moved.parts.insert(0, file("a"));
    let moved = moved.end(16, &[0, 0, 0, 0]);
    vec![
        row(
            "an archive before the archive",
            Zip { prefix: twin, ..with([]) },
            ("bad-zip", "no program"),
            "a reader from the front sees the other one",
        ),
        row("junk before the archive", first(b"junk"), ("bad-zip", "no program"), "the same"),
        row(
            "a program before the archive, and offsets of neither kind",
            moved,
            ("bad-zip", ""),
            "all count from the archive, or all from the beginning of the file",
        ),
        row(
            "bytes between entries",
            one(gap(b"\0\0\0\0")),
            ("bad-zip", "belong to no entry"),
            "no tool pads there; what does pad, does so in an extra field",
        ),
        row(
            "a deleted entry between entries",
            one(gap(&deleted)),
            ("bad-zip", "belong to no entry"),
            "a reader from the front installs it",
        ),
        row("two entries of one place", one(shared), ("bad-zip", "overlap"), "a few bytes would unpack to any number"),
        row(
            "an entry behind the end",
            one(file("a").central(central::OFFSET, &[0xff, 0xff, 0xff, 0])),
            ("bad-zip", "no header"),
            "it lies outside of the file",
        ),
        row(
            "an entry in the directory",
            one(file("a").both(local::PACKED, central::PACKED, &[0xff, 0xff])),
            ("bad-zip", "reaches into the directory"),
            "its contents would be what tells of it",
        ),
        row(
            "bytes behind packed contents",
            one(Part { hidden: b"hidden".to_vec(), ..file("a") }),
            ("bad-zip", "behind its end"),
            "every packed byte is used, or it hides something",
        ),
    ]
}

/// The two headers of an entry.
fn headers() -> Vec<Row> {
    let a = || file("a");
    let why = "readers believe one header or the other, and must come to the same";
    let streamed = || a().streamed(Tail::ShortSigned);
    vec![
        row("another name before the contents", one(a().local(local::NAME, b"b")), ("bad-zip", "another name"), why),
        row("another method", one(a().local(local::METHOD, &[0])), ("bad-zip", "another method"), why),
        row("another flag", one(a().local(local::FLAGS + 1, &[8])), ("bad-zip", "other flags"), why),
        row("another checksum", one(a().local(local::CRC, &[1])), ("bad-zip", "another checksum"), why),
        row("another packed size", one(a().local(local::PACKED, &[1])), ("bad-zip", "other sizes"), why),
        row("another size", one(a().local(local::SIZE, &[1])), ("bad-zip", "other sizes"), why),
        row(
            "no descriptor where one is told of",
            one(Part { flags: DESCRIPTOR, ..a() }),
            ("bad-zip", "no descriptor"),
            why,
        ),
        row(
            "a descriptor of other sizes",
            one(streamed().central(central::SIZE, &[1])),
            ("bad-zip", "no descriptor"),
            why,
        ),
        row(
            "a wrong size before a descriptor",
            one(streamed().local(local::SIZE, &[1])),
            ("bad-zip", "other sizes"),
            "it may be left open (0), not wrong",
        ),
        row(
            "stored with two sizes",
            one(a().stored().both(local::SIZE, central::SIZE, &[99])),
            ("bad-zip", "two sizes differ"),
            "what is stored has one",
        ),
        row(
            "an extra field that is cut off",
            one(a().extra([1, 2, 9, 9], [])),
            ("bad-zip", "cut off"),
            "readers find different fields in it",
        ),
        row(
            "two zip64 fields",
            one(a().extra([], [extra(1, &[0; 8]), extra(1, &[1; 8])].concat())),
            ("bad-zip", "twice"),
            "readers take the first or the last",
        ),
        row(
            "a size that stands nowhere",
            one(a().central(central::SIZE, &[0xff; 4])),
            ("bad-zip", "has no size"),
            "zip64 says it, and there is no field of it",
        ),
        row(
            "fewer bytes than it says",
            one(a().both(local::SIZE, central::SIZE, &[99])),
            ("lying-size", "a"),
            "room is made by what it says",
        ),
        row(
            "more bytes than it says",
            one(a().both(local::SIZE, central::SIZE, &[1])),
            ("lying-size", "a"),
            "the same",
        ),
        row(
            "other contents than it says",
            one(a().both(local::CRC, central::CRC, &[1, 2, 3, 4])),
            ("bad-zip", "checksum"),
            "it is damaged",
        ),
    ]
}

/// How an entry is packed.
fn methods() -> Vec<Row> {
    let flags = |bits: u16| one(file("a").both(local::FLAGS, central::FLAGS, &bits.to_le_bytes()));
    let method = |number: u8| one(file("a").both(local::METHOD, central::METHOD, &[number]));
    let why = "there is no password to ask for, and what is encrypted cannot be judged";
    let other = "each method more is a reader more that hostile bytes reach";
    let mut directory = with([]);
    directory.parts[0] = directory.parts[0].clone().central(0, b"PK\x06\x08");
    vec![
        row("encrypted", flags(1), ("encrypted", "a"), why),
        row("strongly encrypted", flags(0x41), ("encrypted", "a"), why),
        row("masked headers", flags(0x2000), ("encrypted", "a"), why),
        row("a strong encryption field", one(file("a").extra([], extra(0x17, &[2, 0]))), ("encrypted", "a"), why),
        row("an encrypted directory", directory, ("encrypted", "directory"), why),
        row("a patch", flags(0x20), ("bad-method", "a"), "it needs a file that is not in the zip"),
        row("Deflate64", method(9), ("bad-method", "method 9"), other),
        row("bzip2", method(12), ("bad-method", "method 12"), other),
        row("LZMA", method(14), ("bad-method", "method 14"), other),
        row("Zstandard", method(93), ("bad-method", "method 93"), other),
    ]
}

/// Names.
fn names() -> Vec<Row> {
    let long = |part: &str, times: usize| vec![part; times].join("/");
    let utf8 = |name: &[u8]| Part { flags: UTF8, name: name.to_vec(), ..file("a") };
    let unicode = |for_name: &[u8], name: &str| {
        let field = [&[1][..], &crc(for_name).to_le_bytes(), name.as_bytes()].concat();
        extra(0x7075, &field)
    };
    let out = "it leads out of the install";
    let looks = "it looks like another name, in a list and in a log";
    let limit = "with a root and a backup's folder before it, it must still be a path that can be opened";
    vec![
        row("up and out", one(file("../a")), ("bad-name", "../a"), out),
        row("up and out, further below", one(file("app/../../a")), ("bad-name", "app/../../a"), out),
        row("absolute", one(file("/etc/a")), ("bad-name", "/etc/a"), out),
        row("a drive", one(file("C:/a")), ("bad-name", "C:/a"), out),
        row("a backslash among slashes", one(file("app\\a")), ("bad-name", "app"), "one system has a folder there"),
        row("a dot", one(file("app/./a")), ("bad-name", "app/./a"), "two names for one file"),
        row("an empty part", one(file("app//a")), ("bad-name", "app//a"), "the same"),
        row("no name", one(file("")), ("bad-name", ""), "there is no such file"),
        row("a control character", one(file("a\nb")), ("bad-name", ""), looks),
        row("DEL", one(file("a\u{7f}")), ("bad-name", ""), looks),
        row("a C1 control character", one(file("a\u{85}b")), ("bad-name", ""), looks),
        row("right to left", one(file("a\u{202e}gnp.py")), ("bad-name", "direction"), looks),
        row("an isolate", one(file("a\u{2066}b")), ("bad-name", "direction"), looks),
        row("a mark of direction", one(file("a\u{200f}b")), ("bad-name", "direction"), looks),
        row("no UTF-8, though it says so", one(utf8(b"a\xff")), ("bad-name", "UTF-8"), "each reader guesses otherwise"),
        row(
            "a Unicode name made for another name",
            one(file("a").extra(unicode(b"b", "c"), unicode(b"b", "c"))),
            ("bad-name", "another name"),
            "readers take the one or the other",
        ),
        row(
            "a Unicode name in one header alone",
            one(file("a").extra([], unicode(b"a", "c"))),
            ("bad-zip", "another name"),
            "the same",
        ),
        row("a part of 256 bytes", one(file(&"a".repeat(256))), ("bad-name", "too long"), "no volume takes it"),
        row(
            "a path of 1,001 bytes",
            one(file(&format!("{}/{}", "a".repeat(143), long(&"a".repeat(142), 6)))),
            ("bad-name", "too long"),
            limit,
        ),
        row("65 levels", one(file(&long("a", 65))), ("bad-name", "too many folders"), limit),
        row("the same name twice", with([file("a"), file("a")]), ("duplicate-name", "a"), "the last or the first"),
        row("a file and a folder", with([file("a"), file("a/b")]), ("name-conflict", "a"), "only one can be there"),
        row("a file and an empty folder", with([file("a"), Part::new("a/", "")]), ("duplicate-name", "a"), "the same"),
    ]
}

/// Kinds and modes.
fn kinds() -> Vec<Row> {
    let mode = |mode: u32| one(file("a").mode(mode));
    let special = "a bundle brings files, links and folders";
    let rights = "whoever runs it gets the rights of its owner; a release has no use for it";
    let windows = Part { system: 0, ..Part::link("a", "run.py") };
    vec![
        row("a FIFO", mode(0o010_644), ("special-file", "a"), special),
        row("a device", mode(0o060_644), ("special-file", "a"), special),
        row("a socket", mode(0o140_755), ("special-file", "a"), special),
        row("a folder by its mode alone", mode(0o040_755), ("special-file", "a"), "its name says file"),
        row("a link of a system without links", one(windows), ("special-file", "a"), "one of the two is not true"),
        row("set-user-id", mode(0o104_755), ("set-id", "a"), rights),
        row("set-group-id", mode(0o102_755), ("set-id", "a"), rights),
        row("sticky", mode(0o101_755), ("set-id", "a"), "it means nothing on a file"),
        row("a folder with contents", one(Part::new("a/", "x")), ("bad-zip", "holds bytes"), "they would go nowhere"),
    ]
}

/// Links. The install has `static` and `var`, which lead out of it, and `pages`, which leads to `app`.
fn links() -> Vec<Row> {
    let link = |name: &str, target: &str| Part::link(name, target);
    let out = "what is written or read through it lies outside of the install";
    let deep =
        [Part::new("p/x", ""), link("k", "p"), link("deep/deep2/j", "../../k"), link("w2", "deep/deep2/j/../../..")];
    let chain = (0..41).map(|n| link(&format!("l{n}"), &format!("l{}", n + 1))).collect::<Vec<_>>();
    vec![
        row("a link up and out", one(link("app/l", "../../etc")), ("bad-link", "app/l"), out),
        row("an absolute link", one(link("l", "/etc/passwd")), ("bad-link", "l"), out),
        row("a link to a drive", one(link("l", "C:x")), ("bad-link", "l"), out),
        row("a link with a backslash", one(link("l", "..\\x")), ("bad-link", "l"), out),
        row("an empty link", one(link("l", "")), ("bad-link", "l"), "it leads nowhere"),
        row("a link with a line end", one(link("l", "a\nb")), ("bad-link", "l"), "no name is so"),
        row("a link of 1,001 bytes", one(link("l", &"a/".repeat(501))), ("bad-link", "l"), "no path is so long"),
        row("a link to itself", one(link("l", "l")), ("bad-link", "circle"), "it never ends"),
        row("two links in a circle", with([link("l", "m/x"), link("m", "l")]), ("bad-link", "circle"), "the same"),
        row("41 links in a row", with(chain), ("bad-link", "too many"), "no system follows so many"),
        row("links that leave together", with(deep), ("bad-link", "w2"), "each stays inside by its letters alone"),
        row("through a link of the install", one(link("l", "static/x")), ("bad-link", "does not stay"), out),
        row("to a link of the install", one(link("l", "var")), ("bad-link", "leads out of it"), out),
        row("up from a link of the install", one(link("l", "pages/../..")), ("bad-link", "l"), out),
    ]
}

/// How much of everything.
fn limits() -> Vec<Row> {
    let long = "x".repeat(65);
    let manifest = |text: String| one(Part::new("updater-manifest.json", text));
    let memory = "it is read whole";
    let deep: Vec<Part> = (0..50).map(|n| file(&format!("{n}/{}", vec!["a"; 1480].join("/")))).collect();
    let claims = Part::zeros("b", 1000).both(local::SIZE, central::SIZE, &(3_u32 << 30).to_le_bytes());
    vec![
        row("50 names of 1,480 levels", with(deep), ("bad-name", "too long"), "each level is a folder to be made"),
        row("3 GiB by its own word", one(claims), ("too-large", "b"), "it is asked before anything is unpacked"),
        row("100 MiB in 100 kB", one(Part::zeros("b", 100 << 20)), ("too-large", "times its size"), "a bomb"),
        row(
            "a manifest of 17 MiB",
            one(Part::zeros("updater-manifest.json", 17 << 20)),
            ("too-large", "manifest"),
            memory,
        ),
        row(
            "a version of 65 characters",
            manifest(format!("{{\"version\": \"{long}\"}}")),
            ("bad-manifest", "version"),
            "it is printed and recorded everywhere",
        ),
        row(
            "an app of 65 characters",
            manifest(format!("{{\"app\": \"{long}\"}}")),
            ("bad-manifest", "app"),
            "the same",
        ),
        row(
            "a version with a line end",
            manifest("{\"version\": \"1\\n2\"}".into()),
            ("bad-manifest", "version"),
            "the same",
        ),
        row("a VERSION of 65 characters", one(Part::new("VERSION", &long)), ("bad-manifest", "VERSION"), "the same"),
        row(
            "a carried file of 5 MiB",
            Zip::of([Part::zeros("run.py", 5 << 20), Part::new("app/core.py", "")]),
            ("too-large", "run.py"),
            memory,
        ),
        row(
            "a merged file of 5 MiB",
            one(Part::zeros("app_config.json", 5 << 20)),
            ("too-large", "app_config.json"),
            memory,
        ),
        row(
            "a merged file that is no JSON",
            one(Part::new("app_config.json", "[")),
            ("bad-json", "app_config.json"),
            "the bundle is not whole",
        ),
        row(
            "a merged file of 100,001 values",
            one(Part::new("app_config.json", format!("{{\"a\": [{}0]}}", "0,".repeat(100_000)))),
            ("bad-json", "values"),
            "each takes more memory than bytes",
        ),
        row(
            "requirements of 2 MiB",
            one(Part::zeros("requirements.txt", 2 << 20)),
            ("too-large", "requirements.txt"),
            memory,
        ),
    ]
}

fn problem(object: &Value) -> [String; 3] {
    ["code", "message", "path"].map(|key| object[key].as_str().unwrap_or_default().to_string())
}

/// An install on which every row is tried.
fn install() -> Install {
    let install = Install::new();
    install.write("shared.txt", "");
    let outside = install.scratch().join("shared");
    fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink("../shared", install.root.join("static")).unwrap();
    std::os::unix::fs::symlink("/var/empty", install.root.join("var")).unwrap();
    std::os::unix::fs::symlink("app", install.root.join("pages")).unwrap();
    install
}

fn check(install: &Install, rows: Vec<Row>) {
    let before = install.tree();
    let path = install.scratch().join("row.zip");
    let mut wrong = Vec::new();
    for Row { name, zip, code, names, why } in rows {
        fs::write(&path, zip.bytes()).unwrap();
        let plan = install.updater(&["plan", path.to_str().unwrap(), "--no-start", "--json"]);
        let apply = install.updater(&["apply", path.to_str().unwrap(), "--no-start", "--json"]);
        let (said, again) = (problem(&plan.object()["problems"][0]), problem(&apply.finished()["error"]));
        let is_named = said[1].contains(names) || said[2].contains(names);
        let is_refused = (plan.code, apply.code, apply.outcome().as_str()) == (6, 6, "refused");
        if !is_refused || said[0] != code || !is_named || said != again {
            wrong.push(format!(
                "{name} ({why}): wanted {code}, {names}\n  plan  {} {said:?}\n  apply {} {again:?}",
                plan.code, apply.code
            ));
        }
        assert_eq!(install.tree(), before, "{name}: the install was changed");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_archive_has_one_end_and_ends_there() {
    check(&install(), ends());
    check(&install(), long_ends());
}

#[test]
fn every_byte_belongs_to_one_entry() {
    check(&install(), places());
}

#[test]
fn both_headers_of_an_entry_agree() {
    check(&install(), headers());
}

#[test]
fn only_what_can_be_unpacked_is_taken() {
    check(&install(), methods());
}

#[test]
fn names_are_plain_and_their_own() {
    check(&install(), names());
}

#[test]
fn a_bundle_brings_files_links_and_folders() {
    check(&install(), kinds());
}

#[test]
fn links_stay_inside_of_the_install() {
    check(&install(), links());
}

#[test]
fn limits_are_asked_before_memory_is_taken() {
    check(&install(), limits());
}

/// A bundle for another program, or an old one, is refused by what it says that it is: what lies behind that is not even
/// unpacked, so that here nobody notices that it is damaged.
#[test]
fn what_a_bundle_is_of_is_judged_before_it_is_unpacked() {
    let install = Install::new();
    install.write("updater.toml", "[bundle]\napp = \"scout\"\n");
    let of = |name: &str, text: &str| {
        let damaged = Part::new("app/damaged", "contents\n").both(local::CRC, central::CRC, &[0; 4]);
        (with([Part::new(name, text)]), with([Part::new(name, text), damaged]))
    };
    let path = install.scratch().join("row.zip");
    let write = |zip: &Zip| fs::write(&path, zip.bytes()).unwrap();
    let apply = || install.updater(&["apply", path.to_str().unwrap(), "--no-start", "--json"]);
    write(&of("updater-manifest.json", "{\"app\": \"scout\", \"version\": \"2.1.0\"}").0);
    apply().expect(0);
    for (name, text, code) in [
        ("updater-manifest.json", "{\"app\": \"other\", \"version\": \"3.0.0\"}", "other-app"),
        ("updater-manifest.json", "{\"app\": \"scout\", \"version\": \"2.0.0\"}", "downgrade"),
        ("updater-manifest.json", "{\"version\": ", "bad-manifest"),
        ("VERSION", "2.0.0\n", "downgrade"),
        ("updater-manifest.json", "{\"app\": \"scout\", \"version\": \"3.0.0\"}", "bad-zip"),
    ] {
        write(&of(name, text).1);
        assert_eq!(apply().expect(6).error_code(), code, "{text}");
        let plan = install.updater(&["plan", path.to_str().unwrap(), "--no-start", "--json"]).expect(6);
        assert_eq!(plan.object()["problems"][0]["code"], code, "{text}");
    }
}

/// What is no zip at all, or less than one.
#[test]
fn a_bundle_is_a_whole_zip() {
    let install = install();
    let path = install.scratch().join("row.zip");
    let whole = with([]).bytes();
    for bytes in [&b""[..], b"no zip", &whole[..10], &whole[..whole.len() / 2], &whole[..whole.len() - 1], &whole[1..]]
    {
        fs::write(&path, bytes).unwrap();
        let refused = install.updater(&["apply", path.to_str().unwrap(), "--no-start", "--json"]).expect(6);
        assert_eq!(refused.error_code(), "bad-zip", "{} bytes", bytes.len());
    }
    assert_eq!(install.read("run.py"), script("1.0", ""));
}

#[test]
fn twins_are_refused_where_the_volume_merges_them() {
    // This volume is asked by a name that lies there; one that folds neither takes both.
    let install = install();
    let path = install.scratch().join("row.zip");
    let twins = with([file("app/caf\u{e9}"), file("app/cafe\u{301}"), file("app/A"), file("app/a")]);
    fs::write(&path, twins.bytes()).unwrap();
    let plan = install.updater(&["plan", path.to_str().unwrap(), "--no-start", "--json"]);
    let folds = install.exists("RUN.PY");
    assert_eq!(plan.code, if folds { 6 } else { 0 }, "{plan:?}");
}

#[test]
fn a_settings_file_that_ends_within_a_string_is_named_wherever_it_lies() {
    let cut = "PORT = \"a\\";
    let install = install();
    let path = install.scratch().join("row.zip");
    for (is_installed, bundled) in [(false, cut), (true, "PORT = 8080\n")] {
        install.write("run.py", if is_installed { cut } else { "PORT = 8080\n" });
        fs::write(&path, Zip::of([Part::new("run.py", bundled), Part::new("app/core.py", "")]).bytes()).unwrap();
        for verb in ["plan", "apply"] {
            let run = install.updater(&[verb, path.to_str().unwrap(), "--no-start", "--json"]).expect(1);
            let error =
                if verb == "plan" { run.object()["problems"][0].clone() } else { run.finished()["error"].clone() };
            assert_eq!(
                (error["code"].as_str(), error["path"].as_str()),
                (Some("cannot-carry"), Some("run.py")),
                "{run:?}"
            );
        }
        let doctor = install.updater(&["doctor", "--json"]);
        assert!(doctor.object()["checks"].is_array(), "{doctor:?}");
    }
}
