//! The zip of a bundle: opened once, judged as an archive, then every entry unpacked and held against what it says.
//! Refuses special and lying entries, and what unpacks to more than the limits.

use super::contents::{Broken, Contents};
use super::directory::{self, Stored};
use super::links::{self, MAX_TARGET};
use super::names::{self, Named};
use super::{
    Entry, Expected, Identity, Limits, MANIFEST, MAX_MANIFEST, MAX_VERSION, TopFolder, VERSION, refused, too_large,
};
use crate::base::digest::Digest;
use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::head::{HEAD_BYTES, Head};
use crate::base::path::RelPath;
use crate::system::{files, interrupt};
use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// The file type bits of a Unix mode, and those of a link, a plain file and a folder (POSIX `sys/stat.h`).
const TYPE: u32 = 0o170_000;
const LINK: u32 = 0o120_000;
const PLAIN: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;
/// Set-user-id, set-group-id and sticky.
const SET_ID: u32 = 0o7_000;

/// A zip may unpack to this many times its size, and to this many bytes whatever its size. Releases unpack to three to ten
/// times of theirs; deflate can do 1,032, and a bomb needs most of that to be small.
const MAX_RATIO: u64 = 100;
const ANY_SIZE: u64 = 64 << 20;

/// How much is unpacked at once, in bytes.
const BUFFER: usize = 128 << 10;

pub(super) struct Archive {
    file: File,
}

/// A zip that was judged.
pub(super) struct Opened {
    pub archive: Archive,
    pub entries: Vec<Entry>,
    /// How many files were passed over.
    pub skipped: usize,
    pub identity: Identity,
}

/// What the contents of an entry turned out to be.
struct Judged {
    head: Head,
    sha256: Digest,
}

impl Archive {
    /// Opens a zip and reads all of it once, what it says that it is before all else.
    pub(super) fn open(path: &Path, expected: &Expected, limits: &Limits) -> Result<Opened> {
        let bundle = expected.named.map_or_else(|| path.display().to_string(), str::to_string);
        let file = files::open_to_read(path).map_err(|e| {
            Failure::failed(Code::NoBundle, format!("the bundle cannot be opened: {e}"))
                .at(&bundle)
                .remedy("give the path of a bundle that you may read")
        })?;
        let this = Self { file };
        let size = this.size()?;
        let records = directory::walk(&this.file, size, &bundle, limits)?;
        let (kept, skipped) = names::layout(names::read(records)?, expected, &bundle)?;
        names::check_conflicts(&kept, expected, limits)?;
        hold_limits(&kept, size, limits)?;
        same_program(&kept, expected, &bundle)?;
        let identity = this.identity(&kept)?;
        if let Some(judge) = &expected.judge_identity {
            judge(&identity)?;
        }
        let entries = this.read_all(kept, expected)?;
        Ok(Opened { archive: this, entries, skipped, identity })
    }

    /// The contents of an entry.
    pub(super) fn open_entry(&self, entry: &Entry) -> impl Read + '_ {
        Contents::new(&self.file, &entry.stored)
    }

    /// What the bundle says that it is.
    fn identity(&self, kept: &[Named]) -> Result<Identity> {
        let mut buffer = vec![0; BUFFER];
        let find = |name: &str| kept.iter().find(|one| !one.is_folder && one.path.as_bytes() == name.as_bytes());
        if let Some(manifest) = find(MANIFEST) {
            if manifest.stored.size > MAX_MANIFEST {
                return Err(too_large(&manifest.path, manifest.stored.size, MAX_MANIFEST));
            }
            // Twice, so that it need not be held: first whether it is whole.
            self.read_one(manifest, &mut buffer)?;
            return Identity::of_manifest(Contents::new(&self.file, &manifest.stored))?.checked(MANIFEST);
        }
        let Some(version) = find(VERSION).filter(|one| one.stored.size <= MAX_VERSION) else {
            return Ok(Identity::default());
        };
        self.read_one(version, &mut buffer)?;
        let mut bytes = Vec::new();
        Contents::new(&self.file, &version.stored).read_to_end(&mut bytes).context("reading VERSION")?;
        Identity::of_version_file(&bytes).checked(VERSION)
    }

    /// Unpacks everything once. Only when all is judged are the entries made, so that a refusal has cost no memory.
    fn read_all(&self, mut kept: Vec<Named>, expected: &Expected) -> Result<Vec<Entry>> {
        let mut buffer = vec![0; BUFFER];
        for folder in kept.iter().filter(|named| named.is_folder) {
            self.read_one(folder, &mut buffer)?;
        }
        kept.retain(|named| !named.is_folder);
        kept.shrink_to_fit();
        let (mut judged, mut links) = (Vec::with_capacity(kept.len()), BTreeMap::new());
        for named in &kept {
            let (one, target) = self.read_one(named, &mut buffer)?;
            judged.push(one);
            links.extend(target.map(|target| (named.path.clone(), target)));
        }
        links::check(&links, expected)?;
        let all = kept.into_iter().zip(judged);
        Ok(all.map(|(named, judged)| entry(named, &judged, &mut links)).collect())
    }

    /// Reads one entry. The second: where it leads, if it is a link.
    fn read_one(&self, named: &Named, buffer: &mut [u8]) -> Result<(Judged, Option<String>)> {
        let name = named.path.to_string();
        let is_link = judge_mode(named)?;
        let most = if is_link { MAX_TARGET } else { u64::MAX };
        if named.stored.size > most {
            return Err(refused(Code::BadLink, &name, format!("the link {name} leads nowhere that can be")));
        }
        let mut contents = Contents::new(&self.file, &named.stored);
        let (mut sum, mut target, mut head) = (Sha256::new(), Vec::new(), Vec::new());
        loop {
            interrupt::check()?;
            let count =
                contents.next(buffer).map_err(|broken| refused(code(&broken), &name, format!("{name} {broken}")))?;
            let piece = buffer.get(..count).unwrap_or_default();
            if piece.is_empty() {
                break;
            }
            sum.update(piece);
            head.extend(piece.iter().take(HEAD_BYTES.saturating_sub(head.len())));
            if is_link {
                target.extend_from_slice(piece);
            }
        }
        let link = if is_link { Some(links::target(&named.path, &target, named.stored.size)?) } else { None };
        Ok((Judged { head: Head::of(&head), sha256: <[u8; 32]>::from(sum.finalize()).into() }, link))
    }

    /// Of the zip file itself, in bytes.
    pub(super) fn size(&self) -> Result<u64> {
        Ok(self.file.metadata().context("looking at the bundle")?.len())
    }

    /// Copies the zip file itself, through the same handle.
    pub(super) fn copy_raw(&mut self, out: &mut File) -> Result<()> {
        let name = "copying the bundle";
        self.file.seek(SeekFrom::Start(0)).context(name)?;
        std::io::copy(&mut self.file, out).context(name)?;
        Ok(())
    }
}

fn code(broken: &Broken) -> Code {
    match broken {
        Broken::Larger | Broken::Smaller { .. } => Code::LyingSize,
        Broken::Damaged(_) | Broken::Io(_) => Code::BadZip,
    }
}

/// The bundle of another program shares no folder with the installed one. Asked before anything is unpacked.
fn same_program(kept: &[Named], expected: &Expected, bundle: &str) -> Result<()> {
    let Some(judge_top) = &expected.judge_top else { return Ok(()) };
    let (mut last, mut is_strange) = (None, false);
    for named in kept.iter().filter(|named| !named.is_folder && named.path.parent().is_some()) {
        let top = named.path.top();
        if last.as_ref() == Some(&top) {
            continue;
        }
        match judge_top(&top) {
            TopFolder::Shared => return Ok(()),
            TopFolder::Strange => is_strange = true,
            TopFolder::NoProgram => {}
        }
        last = Some(top);
    }
    if !is_strange {
        return Ok(());
    }
    Err(Failure::refused(Code::OtherApp, "the bundle shares no folder with the installed program")
        .at(bundle)
        .remedy("check that this is the right bundle; --partial accepts it all the same")
        .into())
}

/// What the entries say of their sizes, held against the limits before anything is unpacked.
fn hold_limits(kept: &[Named], packed: u64, limits: &Limits) -> Result<()> {
    let (mut files, mut total) = (0_u64, 0_u64);
    for named in kept {
        let name = || named.path.to_string();
        if named.is_folder && named.stored.size > 0 {
            return Err(refused(Code::BadZip, &name(), format!("{} is a folder and holds bytes", named.path)));
        }
        files = files.saturating_add(u64::from(!named.is_folder));
        if files > limits.max_files {
            return Err(refused(Code::TooManyFiles, &name(), "the bundle holds more files than [bundle] max_files"));
        }
        total = total.saturating_add(named.stored.size);
        if total > limits.max_size {
            return Err(refused(Code::TooLarge, &name(), "the bundle is larger than [bundle] max_size"));
        }
        if total > ANY_SIZE && total > packed.saturating_mul(MAX_RATIO) {
            let message = format!("with {} the bundle unpacks to more than {MAX_RATIO} times its size", named.path);
            return Err(refused(Code::TooLarge, &name(), message));
        }
    }
    if files == 0 {
        return Err(refused(Code::EmptyBundle, "", "the bundle holds no file"));
    }
    Ok(())
}

/// What the mode makes of an entry: true for a link. Errors (exit 6): neither a file, a link nor a folder, or more than
/// the right to read, write and execute. Modes of folders are never used, and shared folders often carry set-group-id.
fn judge_mode(named: &Named) -> Result<bool> {
    let name = named.path.to_string();
    let kind = named.mode & TYPE;
    let is_known = if named.is_folder { matches!(kind, 0 | FOLDER | PLAIN) } else { matches!(kind, 0 | PLAIN | LINK) };
    // Windows has other bits there, but none that look like a link or a device.
    if !is_known || (kind == LINK && !named.is_unix) {
        return Err(refused(Code::SpecialFile, &name, format!("{name} is no ordinary file")));
    }
    if named.is_unix && !named.is_folder && named.mode & SET_ID != 0 {
        let message = format!("{name} would run with the rights of others (set-user-id, set-group-id or sticky)");
        return Err(refused(Code::SetId, &name, message));
    }
    Ok(kind == LINK)
}

fn entry(named: Named, judged: &Judged, links: &mut BTreeMap<RelPath, String>) -> Entry {
    // Others than Unix have no such modes, and some archivers of Unix write none.
    let has_mode = named.is_unix && named.mode & 0o777 != 0;
    let mode = if has_mode { named.mode } else { 0o644 };
    let Stored { size, .. } = named.stored;
    let link = links.remove(&named.path);
    Entry {
        path: named.path,
        mode: fsx::reduced_mode(mode),
        has_mode,
        head: judged.head,
        size,
        sha256: judged.sha256,
        link: link.map(String::into_boxed_str),
        data: false,
        saved: None,
        stored: named.stored,
    }
}
