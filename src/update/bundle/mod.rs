//! Bundles: what a version consists of, judged whole before anything is written, read entry by entry.
//! A zip is opened once and read through the one kept handle; a saved version is read from its backup.
//! Refuses whole (exit 6) what is malformed, hostile, damaged or not what was asked for; never extracts by itself.
//!
//! `directory` judges the zip as an archive, `names` and `links` where its entries lie and lead, `contents` unpacks them
//! (docs/bundles.md has the rules and their reasons). The `zip` crate only writes: an archive that two readers understand
//! differently is just what is refused, so there is one reader. What is read was written by anybody, so nothing here may
//! index, add or take away without a bound.
#![deny(clippy::indexing_slicing, clippy::string_slice, clippy::arithmetic_side_effects)]

mod archive;
mod contents;
mod directory;
mod encoding;
mod expected;
mod links;
mod names;
mod saved;

pub use expected::{Expected, Identity, TopFolder};
pub use links::{Target, live_link};
pub use saved::Saved;

use crate::base::digest::Digest;
use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::head::Head;
use crate::base::path::RelPath;
use crate::system::{Owner, interrupt};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// How large a bundle may be when unpacked.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// In bytes.
    pub max_size: u64,
    pub max_files: u64,
}

/// One file or link of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub path: RelPath,
    /// From a zip 0755 or 0644; of a saved version its own.
    pub mode: u32,
    /// The mode is the bundle's own; a zip from a system without Unix modes says none.
    pub has_mode: bool,
    /// How its contents begin.
    pub head: Head,
    pub size: u64,
    pub sha256: Digest,
    /// The target, where the entry is a link.
    pub link: Option<Box<str>>,
    /// Data of the users that a restore puts back.
    pub data: bool,
    /// What a saved version knows beside that. In a box, as the 200,000 entries that a zip may have know none of it.
    saved: Option<Box<KeptFile>>,
    /// Where its contents lie in the zip.
    stored: directory::Stored,
}

/// A file of a saved version.
#[derive(Debug, Clone, PartialEq, Eq)]
struct KeptFile {
    owner: Owner,
    /// What the release shipped, where it was changed here.
    base: Option<Digest>,
    /// The time of its last change, in nanoseconds since 1970.
    mtime: i64,
    /// Where it lies in the backup, where that is not its own path.
    place: Option<RelPath>,
}

impl Entry {
    /// The hash of what the release shipped at this path.
    pub fn base(&self) -> Digest {
        self.saved.as_ref().and_then(|saved| saved.base).unwrap_or(self.sha256)
    }

    /// Whom it belongs to, where the bundle knows (a saved version).
    pub fn owner(&self) -> Option<Owner> {
        self.saved.as_ref().map(|saved| saved.owner)
    }

    /// The time of its last change, where the bundle knows, in nanoseconds since 1970.
    pub fn mtime(&self) -> Option<i64> {
        self.saved.as_ref().map(|saved| saved.mtime)
    }
}

pub struct Bundle {
    contents: Contents,
    /// Sorted by path.
    pub entries: Vec<Entry>,
    /// SHA-256 over the sorted paths, reduced modes and hashes of all entries but data.
    pub content_id: String,
    pub version: String,
    /// The program that the manifest names.
    pub app: Option<String>,
    /// How many files were passed over (`.git`, `__MACOSX`, compiled Python and the like).
    pub skipped: usize,
}

enum Contents {
    Zip(archive::Archive),
    /// The folder of a backup.
    Folder(PathBuf),
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    version: Option<String>,
    app: Option<String>,
}

const MANIFEST: &str = "updater-manifest.json";
/// The largest manifest, in bytes. One line for each of 100,000 files has about 160.
const MAX_MANIFEST: u64 = 16 << 20;
/// The file whose first line is the version, where there is no manifest, and the bytes of the largest that is one.
const VERSION: &str = "VERSION";
const MAX_VERSION: u64 = 255;
/// The longest version and name of a program, in characters: both are printed, recorded and compared.
const MAX_WORD: usize = 64;

impl Identity {
    /// What a manifest says.
    fn of_manifest(from: impl Read) -> Result<Identity> {
        let manifest: Manifest = serde_json::from_reader(std::io::BufReader::new(from))
            .map_err(|e| refused(Code::BadManifest, MANIFEST, format!("the manifest cannot be read: {e}")))?;
        Ok(Identity { version: manifest.version.unwrap_or_default(), app: manifest.app })
    }

    /// What the text of a `VERSION` file says.
    fn of_version_file(bytes: &[u8]) -> Identity {
        let text = String::from_utf8_lossy(bytes);
        Identity { version: text.lines().next().unwrap_or_default().trim().to_string(), app: None }
    }

    /// Refuses what is no version or name of a program.
    fn checked(self, place: &str) -> Result<Identity> {
        word("version", &self.version, place)?;
        word("app", self.app.as_deref().unwrap_or_default(), place)?;
        Ok(self)
    }
}

fn refused(code: Code, name: &str, message: impl Into<String>) -> anyhow::Error {
    Failure::refused(code, message).at(name).remedy("get the bundle again from its source, or make it again").into()
}

impl Bundle {
    /// Opens a zip and reads all of it once. Errors: it cannot be opened (exit 1), or it is refused (exit 6).
    pub fn open(path: &Path, expected: &Expected, limits: &Limits) -> Result<Self> {
        let archive::Opened { archive, entries, skipped, identity } = archive::Archive::open(path, expected, limits)?;
        Ok(Self::of(Contents::Zip(archive), entries, skipped, identity))
    }

    /// The version that lies in the backup folder `dir`, consisting of `entries`. What is `wanted` is hashed.
    /// Errors: the start file is missing, or a wanted file is damaged or missing (exit 6, by its name).
    pub fn open_saved(
        dir: &Path,
        entries: Vec<Entry>,
        start_file: &RelPath,
        wanted: &dyn Fn(&RelPath) -> bool,
    ) -> Result<Self> {
        if !entries.iter().any(|e| e.path == *start_file) {
            return Err(names::no_start_file(start_file, &dir.display().to_string()));
        }
        saved::check(dir, entries.iter().filter(|e| wanted(&e.path)))?;
        let identity = saved::identity(dir, &entries)?;
        Ok(Self::of(Contents::Folder(dir.to_path_buf()), entries, 0, identity))
    }

    fn of(contents: Contents, mut entries: Vec<Entry>, skipped: usize, identity: Identity) -> Self {
        entries.retain(|e| e.path.as_bytes() != MANIFEST.as_bytes());
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        let content_id = content_id_of(&entries);
        let Identity { mut version, app } = identity;
        if version.is_empty() {
            version = content_id.chars().take(12).collect();
        }
        Self { contents, entries, content_id, version, app, skipped }
    }

    /// Writes the bytes of the entry at `position` of `entries`; they are hashed again on the way.
    pub fn copy_entry(&mut self, position: usize, out: &mut dyn Write) -> Result<()> {
        let entry = self.entries.get(position).context("an entry of this bundle")?.clone();
        let changed = || {
            let message = format!("{} changed while the bundle was read", entry.path);
            refused(Code::BundleChanged, &entry.path.to_string(), message)
        };
        let (mut sum, mut left) = (Sha256::new(), entry.size);
        let mut copy = |from: &mut dyn Read| -> Result<()> {
            let mut buffer = vec![0; 128 * 1024];
            loop {
                interrupt::check()?;
                let n = from.read(&mut buffer).with_context(|| format!("unpacking {}", entry.path))?;
                if n == 0 {
                    return Ok(());
                }
                let piece = buffer.get(..n).unwrap_or_default();
                left = left.checked_sub(n as u64).ok_or_else(changed)?;
                sum.update(piece);
                out.write_all(piece).with_context(|| format!("writing {}", entry.path))?;
            }
        };
        match &mut self.contents {
            Contents::Zip(archive) => copy(&mut archive.open_entry(&entry))?,
            Contents::Folder(dir) => copy(&mut fsx::open(&entry.saved_in(dir))?)?,
        }
        if Digest::from(<[u8; 32]>::from(sum.finalize())) != entry.sha256 { Err(changed()) } else { Ok(()) }
    }

    /// The very file, where the bundle is a saved version.
    pub fn saved_file(&self, position: usize) -> Option<PathBuf> {
        match &self.contents {
            Contents::Folder(dir) => Some(self.entries.get(position)?.saved_in(dir)),
            Contents::Zip(_) => None,
        }
    }

    /// The bytes of the entry at `position` of `entries`, whole. Errors (exit 6): there are more than `most`.
    pub fn read_entry(&mut self, position: usize, most: u64) -> Result<Vec<u8>> {
        let entry = self.entries.get(position).context("an entry of this bundle")?;
        if entry.size > most {
            return Err(too_large(&entry.path, entry.size, most));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(entry.size).unwrap_or_default());
        self.copy_entry(position, &mut bytes)?;
        Ok(bytes)
    }

    /// How many bytes `keep` writes at most.
    pub fn kept_size(&self) -> Result<u64> {
        match &self.contents {
            Contents::Zip(archive) => archive.size(),
            Contents::Folder(_) => Ok(self.entries.iter().filter(|e| !e.data).map(|e| e.size).sum()),
        }
    }

    /// Writes the bundle as a zip, for later repairs: the zip itself, or one made of the saved version.
    pub fn keep(&mut self, out: &mut File) -> Result<()> {
        match &mut self.contents {
            Contents::Zip(archive) => archive.copy_raw(out),
            Contents::Folder(dir) => saved::write_zip(dir, &self.entries, &self.version, out),
        }
    }
}

fn too_large(path: &RelPath, size: u64, most: u64) -> anyhow::Error {
    let message = format!("{path} has {size} bytes, more than the {most} that are read of it");
    refused(Code::TooLarge, &path.to_string(), message)
}

/// Refuses what is no version or name of a program: it is printed and recorded wherever this one is named.
fn word(what: &str, text: &str, place: &str) -> Result<()> {
    if text.chars().count() <= MAX_WORD && !text.chars().any(names::is_forbidden) {
        return Ok(());
    }
    let message = format!("the {what} in {place} has more than {MAX_WORD} characters, or a control character");
    Err(refused(Code::BadManifest, place, message))
}

/// The content id of these entries; data is no part of it.
pub fn content_id_of(entries: &[Entry]) -> String {
    let mut sum = Sha256::new();
    for entry in entries.iter().filter(|e| !e.data) {
        sum.update(entry.path.as_bytes());
        sum.update(format!("\0{:o}\0{}\n", fsx::reduced_mode(entry.mode), entry.sha256));
    }
    fsx::hex(&sum.finalize())
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use zip::write::SimpleFileOptions;

    const LIMITS: Limits = Limits { max_size: 1 << 20, max_files: 100 };

    fn zip_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (name, bytes) in entries {
            writer.start_file(*name, SimpleFileOptions::default()).unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    fn open(bytes: &[u8]) -> Result<Bundle> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.zip");
        std::fs::write(&path, bytes).unwrap();
        let start_file = RelPath::parse("run.py").unwrap();
        let expected = Expected {
            is_installed: Box::new(|path| path.as_bytes() == b"installed"),
            folds_case: true,
            merges_forms: true,
            ..Expected::anywhere(&start_file, true)
        };
        Bundle::open(&path, &expected, &LIMITS)
    }

    fn code(bytes: &[u8]) -> &'static str {
        let error = open(bytes).err().expect("the bundle was accepted");
        let failure = error.downcast_ref::<Failure>().unwrap();
        assert_eq!(failure.class as i32, 6);
        failure.code.word()
    }

    #[test]
    fn one_top_folder_is_stripped_and_flat_is_accepted() {
        let stripped =
            open(&zip_of(&[("app-main/run.py", b"x"), ("app-main/app/a.py", b"y"), ("app-main/.git/c", b"z")]))
                .unwrap();
        let flat = open(&zip_of(&[("run.py", b"x"), ("app/a.py", b"y"), ("__MACOSX/z", b"z")])).unwrap();
        assert_eq!(stripped.content_id, flat.content_id);
        assert_eq!(stripped.entries.iter().map(|e| e.path.to_string()).collect::<Vec<_>>(), ["app/a.py", "run.py"]);
    }

    #[test]
    fn hostile_and_damaged_bundles_are_refused_by_name() {
        assert_eq!(code(b"no zip"), "bad-zip");
        assert_eq!(code(&zip_of(&[])), "empty-bundle");
        assert_eq!(code(&zip_of(&[("run.py", b"x"), ("../evil", b"x")])), "bad-name");
        assert_eq!(code(&zip_of(&[("run.py", b"x"), ("/etc/evil", b"x")])), "bad-name");
        assert_eq!(code(&zip_of(&[("a/run.py", b"x"), ("b/x", b"x")])), "two-top-folders");
        assert_eq!(code(&zip_of(&[("a/main.py", b"x")])), "no-start-file");
        assert_eq!(code(&zip_of(&[("run.py", b"x"), ("App/a", b"x"), ("app/b", b"x")])), "duplicate-name");
        for (one, other) in [("caf\u{e9}", "cafe\u{301}"), ("\u{3c3}", "\u{3c2}"), ("\u{17f}", "S"), ("\u{212a}", "k")]
        {
            assert_eq!(code(&zip_of(&[("run.py", b"x"), (one, b"x"), (other, b"x")])), "duplicate-name", "{one}");
        }
        assert_eq!(code(&zip_of(&[("run.py", b"x"), ("a", b"x"), ("a/b", b"x")])), "name-conflict");
        assert_eq!(code(&zip_of(&[("run.py", &vec![0; 2 << 20])])), "too-large");
        let whole = zip_of(&[("run.py", &vec![7; 5000])]);
        for cut in [10, whole.len() / 2, whole.len() - 3] {
            assert_eq!(code(&whole[..cut]), "bad-zip");
        }
    }

    #[test]
    fn a_flipped_byte_in_the_contents_is_noticed() {
        let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        writer
            .start_file("run.py", SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored))
            .unwrap();
        writer.write_all(b"PRINT-ME").unwrap();
        let mut bytes = writer.finish().unwrap().into_inner();
        let at = bytes.windows(8).position(|w| w == b"PRINT-ME").unwrap();
        bytes[at] ^= 1;
        assert_eq!(code(&bytes), "bad-zip");
    }

    #[test]
    fn links_must_stay_inside() {
        let with = |target: &str| {
            let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
            writer.start_file("run.py", SimpleFileOptions::default()).unwrap();
            writer.add_symlink("app/link", target, SimpleFileOptions::default()).unwrap();
            writer.finish().unwrap().into_inner()
        };
        assert!(open(&with("../run.py")).is_ok());
        assert_eq!(code(&with("../../etc/passwd")), "bad-link");
        assert_eq!(code(&with("/etc/passwd")), "bad-link");
    }
}
