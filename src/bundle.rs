//! Bundles: a zip opened once, judged whole, read entry by entry through the one kept handle.
//! Refuses whole (exit 6) what is malformed, hostile or not what was asked for, before anything is
//! written; never extracts by itself.

use crate::error::Failure;
use crate::fsx;
use crate::path::RelPath;
use anyhow::{Context, Result};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

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
    /// 0755 or 0644.
    pub mode: u32,
    pub size: u64,
    pub sha256: String,
    /// The target, where the entry is a link.
    pub link: Option<String>,
    index: usize,
}

pub struct Bundle {
    archive: zip::ZipArchive<BufReader<File>>,
    /// The same open file, for the copy that is kept.
    raw: File,
    /// Sorted by path.
    pub entries: Vec<Entry>,
    /// SHA-256 over the sorted paths, reduced modes and hashes of all entries.
    pub content_id: String,
    pub version: String,
    /// The program that the manifest names.
    pub app: Option<String>,
    /// How many files were passed over (`.git`, `__MACOSX`, compiled Python and the like).
    pub skipped: usize,
}

#[derive(Deserialize)]
struct Manifest {
    version: Option<String>,
    app: Option<String>,
}

const MANIFEST: &str = "updater-manifest.json";
/// Top-level names that are no part of a version.
const SKIPPED: [&str; 3] = [".git", ".github", "__MACOSX"];
/// The file type bits of a Unix mode, and those of a link and a plain file (POSIX `sys/stat.h`).
const TYPE: u32 = 0o170_000;
const LINK: u32 = 0o120_000;
const PLAIN: u32 = 0o100_000;
/// A link's target longer than this is no link.
const MAX_TARGET: u64 = 4096;

fn refused(code: &'static str, name: &str, message: impl Into<String>) -> anyhow::Error {
    Failure::refused(code, message).at(name).remedy("get the bundle again from its source, or make it again").into()
}

impl Bundle {
    /// Opens a bundle and reads all of it once. Errors: it cannot be opened (exit 1), or it is refused (exit 6).
    pub fn open(path: &Path, start_file: &RelPath, limits: &Limits) -> Result<Self> {
        let name = path.display().to_string();
        let file = fs_err::File::open(path).map_err(|e| {
            Failure::failed("no-bundle", format!("the bundle cannot be opened: {e}"))
                .at(&name)
                .remedy("give the path of a bundle that you may read")
        })?;
        let file = file.into_file();
        let raw = file.try_clone().context("keeping the bundle open")?;
        let archive = zip::ZipArchive::new(BufReader::new(file))
            .map_err(|e| refused("bad-zip", &name, format!("{name} is not a whole zip file: {e}")))?;
        if archive.is_empty() {
            return Err(refused("empty-bundle", &name, format!("{name} holds nothing")));
        }
        if archive.len() as u64 > limits.max_files.saturating_mul(2) {
            return Err(refused(
                "too-many-files",
                &name,
                format!("{name} holds {} entries, more than [bundle] max_files", archive.len()),
            ));
        }
        let mut bundle = Self {
            archive,
            raw,
            entries: Vec::new(),
            content_id: String::new(),
            version: String::new(),
            app: None,
            skipped: 0,
        };
        let names = bundle.names()?;
        let kept = bundle.layout(&names, start_file, &name)?;
        bundle.check_conflicts(&kept)?;
        bundle.read_all(&kept, limits)?;
        bundle.entries.sort_by(|a, b| a.path.cmp(&b.path));
        bundle.version = bundle.version_of()?;
        bundle.entries.retain(|e| e.path.as_bytes() != MANIFEST.as_bytes());
        bundle.content_id = content_id(&bundle.entries);
        if bundle.version.is_empty() {
            bundle.version = bundle.content_id[..12].to_string();
        }
        Ok(bundle)
    }

    /// Every name, as the zip gives it; a zip in which no name holds a `/` may use backslashes.
    fn names(&mut self) -> Result<Vec<(usize, String, bool)>> {
        let mut names = Vec::new();
        for index in 0..self.archive.len() {
            let entry = self
                .archive
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
    fn layout(
        &mut self,
        names: &[(usize, String, bool)],
        start: &RelPath,
        bundle: &str,
    ) -> Result<Vec<(usize, RelPath, bool)>> {
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
        self.skipped = before - all.len();
        Ok(all)
    }

    fn check_conflicts(&self, kept: &[(usize, RelPath, bool)]) -> Result<()> {
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

    fn read_all(&mut self, kept: &[(usize, RelPath, bool)], limits: &Limits) -> Result<()> {
        let mut total = 0u64;
        for (index, path, folder) in kept {
            if *folder {
                continue;
            }
            if self.entries.len() as u64 >= limits.max_files {
                return Err(refused(
                    "too-many-files",
                    &path.to_string(),
                    "the bundle holds more files than [bundle] max_files",
                ));
            }
            let entry = self.read_one(*index, path, limits.max_size.saturating_sub(total))?;
            total += entry.size;
            self.entries.push(entry);
        }
        if self.entries.is_empty() {
            return Err(refused("empty-bundle", "", "the bundle holds no file"));
        }
        Ok(())
    }

    fn read_one(&mut self, index: usize, path: &RelPath, room: u64) -> Result<Entry> {
        let name = path.to_string();
        let mode = {
            let raw = self
                .archive
                .by_index_raw(index)
                .map_err(|e| refused("bad-zip", &name, format!("{path} cannot be read: {e}")))?;
            if raw.encrypted() {
                return Err(refused("encrypted", &name, format!("{path} is encrypted")));
            }
            raw.unix_mode().unwrap_or(0o644)
        };
        let is_link = mode & TYPE == LINK;
        if !is_link && mode & TYPE != 0 && mode & TYPE != PLAIN {
            return Err(refused("special-file", &name, format!("{path} is no ordinary file")));
        }
        let mut file = self
            .archive
            .by_index(index)
            .map_err(|e| refused("bad-zip", &name, format!("{path} cannot be unpacked: {e}")))?;
        let declared = file.size();
        if declared > room {
            return Err(refused("too-large", &name, "the bundle is larger than [bundle] max_size"));
        }
        let mut sum = Sha256::new();
        let mut target = Vec::new();
        let (mut size, mut buffer) = (0u64, vec![0; 128 * 1024]);
        loop {
            let n = file.read(&mut buffer).map_err(|e| refused("bad-zip", &name, format!("{path} is damaged: {e}")))?;
            if n == 0 {
                break;
            }
            size += n as u64;
            if size > declared || size > room {
                return Err(refused("lying-size", &name, format!("{path} is larger than the zip says")));
            }
            sum.update(&buffer[..n]);
            if is_link && size <= MAX_TARGET {
                target.extend_from_slice(&buffer[..n]);
            }
        }
        if size != declared {
            return Err(refused("lying-size", &name, format!("{path} has {size} bytes, the zip says {declared}")));
        }
        let link = if is_link { Some(link_target(path, &target, size)?) } else { None };
        let sha256 = fsx::hex(&sum.finalize());
        Ok(Entry { path: path.clone(), mode: fsx::reduced_mode(mode), size, sha256, link, index })
    }

    fn version_of(&mut self) -> Result<String> {
        if let Some(at) = self.entries.iter().position(|e| e.path.as_bytes() == MANIFEST.as_bytes()) {
            let bytes = self.read_entry(at)?;
            let manifest: Manifest = serde_json::from_slice(&bytes)
                .map_err(|e| refused("bad-manifest", MANIFEST, format!("the manifest cannot be read: {e}")))?;
            self.app = manifest.app;
            return Ok(manifest.version.unwrap_or_default());
        }
        if let Some(at) = self.entries.iter().position(|e| e.path.as_bytes() == b"VERSION" && e.size < 256) {
            let text = String::from_utf8_lossy(&self.read_entry(at)?).into_owned();
            return Ok(text.lines().next().unwrap_or_default().trim().to_string());
        }
        Ok(String::new())
    }

    /// Writes the bytes of the entry at `position` of `entries`; they are hashed again on the way.
    pub fn copy_entry(&mut self, position: usize, out: &mut dyn Write) -> Result<()> {
        let entry = self.entries.get(position).context("an entry of this bundle")?.clone();
        let mut file = self.archive.by_index(entry.index).with_context(|| format!("unpacking {}", entry.path))?;
        let mut sum = Sha256::new();
        let mut buffer = vec![0; 128 * 1024];
        loop {
            let n = file.read(&mut buffer).with_context(|| format!("unpacking {}", entry.path))?;
            if n == 0 {
                break;
            }
            sum.update(&buffer[..n]);
            out.write_all(&buffer[..n]).with_context(|| format!("writing {}", entry.path))?;
        }
        if fsx::hex(&sum.finalize()) != entry.sha256 {
            return Err(refused(
                "bundle-changed",
                &entry.path.to_string(),
                format!("{} changed while the bundle was read", entry.path),
            ));
        }
        Ok(())
    }

    /// The bytes of the entry at `position` of `entries`.
    pub fn read_entry(&mut self, position: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.copy_entry(position, &mut bytes)?;
        Ok(bytes)
    }

    /// Copies the zip file itself, through the same handle.
    pub fn copy_raw(&mut self, out: &mut File) -> Result<()> {
        // Both handles share one position, so it is put back.
        let name = "copying the bundle";
        let at = self.raw.stream_position().context(name)?;
        self.raw.seek(SeekFrom::Start(0)).context(name)?;
        std::io::copy(&mut self.raw, out).context(name)?;
        self.raw.seek(SeekFrom::Start(at)).context(name)?;
        Ok(())
    }
}

fn no_start_file(start: &RelPath, bundle: &str) -> anyhow::Error {
    Failure::refused("no-start-file", format!("the bundle does not hold {start}, with which the server starts"))
        .at(bundle)
        .remedy("check that this is a bundle of the installed program")
        .into()
}

/// A link is accepted only if it is relative and stays inside the root.
fn link_target(path: &RelPath, target: &[u8], size: u64) -> Result<String> {
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

fn content_id(entries: &[Entry]) -> String {
    let mut sum = Sha256::new();
    for entry in entries {
        sum.update(entry.path.as_bytes());
        sum.update(format!("\0{:o}\0{}\n", entry.mode, entry.sha256));
    }
    fsx::hex(&sum.finalize())
}

#[cfg(test)]
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
        Bundle::open(&path, &RelPath::parse("run.py").unwrap(), &LIMITS)
    }

    fn code(bytes: &[u8]) -> &'static str {
        let error = open(bytes).err().expect("the bundle was accepted");
        let failure = error.downcast_ref::<Failure>().unwrap();
        assert_eq!(failure.class as i32, 6);
        failure.code
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
