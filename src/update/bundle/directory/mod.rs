//! The directory of a zip, walked whole before any of it is believed: one end record, as many entries as it says, each
//! entry's two headers of one mind, and every byte of the file a part of exactly one of them.
//! Refuses (exit 6) an archive that another reader could understand otherwise; reads no contents, scans for nothing.
//!
//! Source of the format: PKWARE's APPNOTE.TXT 6.3.10, whose sections are named where a number comes from.

mod end;
mod header;
mod window;

use super::encoding::{self, Charset};
use super::{Limits, refused};
use crate::base::error::Code;
use crate::system::interrupt;
use anyhow::Result;
use end::End;
use header::Central;
use std::fs::File;
use window::Window;

/// The most that all names of a bundle may take, in bytes: 200,000 files (the default of `[bundle] max_files`) with names
/// of 80 bytes each. Names are the one thing that is kept of every entry.
const MAX_NAMES: usize = 16 << 20;
/// What is read of the directory at once, in bytes.
const CENTRAL_WINDOW: usize = 64 << 10;
/// The same of a local header: it holds most of them with their names and extra fields.
const LOCAL_WINDOW: usize = 512;
/// How a program begins, before which a zip may be hung on (a self-extractor, a Python zipapp).
const PROGRAMS: [&[u8]; 3] = [b"MZ", b"\x7fELF", b"#!"];

/// Where the contents of an entry lie, and what both of its headers say of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::update::bundle) struct Stored {
    /// Where the contents begin in the file.
    pub at: u64,
    /// In the file, in bytes.
    pub packed: u64,
    /// Unpacked, in bytes.
    pub size: u64,
    pub crc: u32,
    pub is_deflated: bool,
}

/// One entry, judged as a part of the archive. Its name and contents are not judged yet.
#[derive(Debug)]
pub(in crate::update::bundle) struct Record {
    /// Decoded, as the archive has it.
    pub name: String,
    pub stored: Stored,
    /// The upper half of the external attributes: a Unix mode, where the archive is from such a system.
    pub mode: u32,
    /// The archive was made on a system with Unix modes.
    pub is_unix: bool,
    /// Where its local header begins.
    start: u64,
    /// How many bytes may follow its contents before the next entry: bit N stands for `header::TAILS[N]`.
    tails: u8,
}

/// Walks the directory of a zip of `size` bytes. Errors (exit 6): it is not whole, or not of one mind.
pub(super) fn walk(file: &File, size: u64, bundle: &str, limits: &Limits) -> Result<Vec<Record>> {
    let end = end::find(&mut Window::new(file, size, 0), size, bundle)?;
    hold_limits(&end, bundle, limits)?;
    let mut central = Window::new(file, size, CENTRAL_WINDOW);
    let mut local = Window::new(file, size, LOCAL_WINDOW);
    // The directory is large enough for as many.
    let most = usize::try_from(end.count).unwrap_or_default();
    let (mut records, mut at, mut names) = (Vec::with_capacity(most), end.start, 0_usize);
    for number in 1..=end.count {
        interrupt::check()?;
        let header = header::central(&mut central, at, end.end, number)?;
        let name = name_of(&header, number)?;
        names = names.saturating_add(name.len());
        if names > MAX_NAMES {
            let message = format!("the names in {bundle} take more than {MAX_NAMES} bytes");
            return Err(refused(Code::TooManyFiles, bundle, message));
        }
        records.push(record(&header, name, &end, &mut local)?);
        at = header.next;
    }
    if at != end.end {
        let message = format!("the directory of {bundle} holds more than the {} entries that it tells of", end.count);
        return Err(refused(Code::BadZip, bundle, message));
    }
    cover(&records, &end, &mut local, bundle)?;
    Ok(records)
}

/// What the end record says, held against the limits before anything is kept of the entries.
fn hold_limits(end: &End, bundle: &str, limits: &Limits) -> Result<()> {
    if end.count == 0 {
        return Err(refused(Code::EmptyBundle, bundle, format!("{bundle} holds nothing")));
    }
    // As many folders as files.
    if end.count > limits.max_files.saturating_mul(2) {
        let message = format!("{bundle} holds {} entries, more than [bundle] max_files", end.count);
        return Err(refused(Code::TooManyFiles, bundle, message));
    }
    let least = end.count.saturating_mul(header::CENTRAL);
    if end.end.saturating_sub(end.start) < least {
        let message = format!("{bundle} tells of {} entries, and its directory is too small for them", end.count);
        return Err(refused(Code::BadZip, bundle, message));
    }
    Ok(())
}

fn name_of(header: &Central, number: u64) -> Result<String> {
    let said = match (header.flags & header::UTF8 != 0, header.is_unix()) {
        (true, _) => Charset::Utf8,
        (false, true) => Charset::OfUnix,
        (false, false) => Charset::Dos,
    };
    encoding::decode(header.name, said, header.extra.unicode_path)
        .map_err(|reason| refused(Code::BadName, "", format!("the name of entry {number} cannot be read: {reason}")))
}

/// Holds the local header and what follows the contents against the directory.
fn record(header: &Central, name: String, end: &End, local: &mut Window) -> Result<Record> {
    let bad = |what: &str| refused(Code::BadZip, &name, format!("{} {what}", encoding::shown(&name)));
    header::refuse_kind(header, &name)?;
    let start = header.offset.checked_add(end.prefix).ok_or_else(|| bad("lies outside of the zip"))?;
    let at = header::agree(header, local, start, end.start).map_err(|what| bad(&what))?;
    let tails = header::tails(header, local, at).map_err(|what| bad(&what))?;
    let is_deflated = header.method == header::DEFLATED;
    if !is_deflated && header.packed != header.size {
        return Err(bad("is stored as it is, and its two sizes differ"));
    }
    let stored = Stored { at, packed: header.packed, size: header.size, crc: header.crc, is_deflated };
    Ok(Record { stored, mode: header.attributes >> 16, is_unix: header.is_unix(), start, tails, name })
}

/// Every byte before the directory belongs to exactly one entry, or to the program that the zip hangs on.
///
/// What lies between entries is refused: a reader that goes by local headers, as one of a stream does, would see what the
/// directory does not tell of (deleted or replaced entries, a second archive). The tools that pad (`zipalign`) do so
/// inside of an extra field, and what deletes an entry writes the rest anew.
fn cover(records: &[Record], end: &End, file: &mut Window, bundle: &str) -> Result<()> {
    let mut order: Vec<&Record> = records.iter().collect();
    order.sort_unstable_by_key(|record| record.start);
    let first = order.first().map_or(end.start, |record| record.start);
    prefix(first, end, file, bundle)?;
    let starts = order.iter().skip(1).map(|record| record.start).chain([end.start]);
    for (record, next) in order.iter().zip(starts) {
        let contents_end = record.stored.at.saturating_add(record.stored.packed);
        let is_next = |tail: &u64| contents_end.checked_add(*tail) == Some(next);
        let fitting = header::TAILS.iter().enumerate().find(|(_, tail)| is_next(tail));
        if fitting.is_some_and(|(bit, _)| u32::from(record.tails).checked_shr(bit as u32).unwrap_or(0) & 1 == 1) {
            continue;
        }
        let name = encoding::shown(&record.name);
        let message = match contents_end > next {
            true => format!("{name} and what follows it in the zip overlap"),
            false => format!("behind {name} the zip holds bytes that belong to no entry"),
        };
        return Err(refused(Code::BadZip, &record.name, message));
    }
    Ok(())
}

/// What stands before the first entry is nothing, or a program; then all offsets count from its end, or all from the
/// beginning of the file.
fn prefix(first: u64, end: &End, file: &mut Window, bundle: &str) -> Result<()> {
    let agrees = end.prefix == 0 || first == end.prefix;
    let head = file.slice(0, 4)?.unwrap_or_default();
    if agrees && (first == 0 || PROGRAMS.iter().any(|program| head.starts_with(program))) {
        return Ok(());
    }
    let message = format!("before its first entry {bundle} holds bytes that belong to no entry and are no program");
    Err(refused(Code::BadZip, bundle, message))
}
