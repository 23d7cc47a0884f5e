//! The end of a zip: the one record that tells where the directory lies, and its longer form for large archives.
//! Refuses to look for it anywhere but where it must be.

use super::window::{Window, u16_at, u32_at, u64_at};
use crate::base::error::Code;
use crate::update::bundle::refused;
use anyhow::Result;

/// The end record without its comment, and the longest comment (4.3.16: its length has two bytes).
const END: usize = 22;
const MAX_COMMENT: usize = 65_535;
const END_SIGNATURE: [u8; 4] = *b"PK\x05\x06";
/// The record of a zip64 archive without extensible data (4.3.14), and the locator behind it (4.3.15).
const END64: usize = 56;
const END64_SIGNATURE: [u8; 4] = *b"PK\x06\x06";
const LOCATOR: usize = 20;
const LOCATOR_SIGNATURE: [u8; 4] = *b"PK\x06\x07";
/// What follows the size field of a zip64 record.
const END64_REST: u64 = 44;

/// Where the directory lies.
pub(super) struct End {
    /// How many entries it tells of.
    pub count: u64,
    pub start: u64,
    /// One past its last byte.
    pub end: u64,
    /// How many bytes stand before the place from which the archive counts.
    pub prefix: u64,
}

/// What an end record says, of either form.
#[derive(PartialEq, Eq)]
struct Said {
    disk: u32,
    directory_disk: u32,
    count_here: u64,
    count: u64,
    size: u64,
    offset: u64,
}

/// Reads the end of the zip. Errors (exit 6): there is not exactly one, or it does not agree with the file.
pub(super) fn find(file: &mut Window, size: u64, bundle: &str) -> Result<End> {
    let bad = |what: &str| refused(Code::BadZip, bundle, format!("{bundle} is not a whole zip file: {what}"));
    let length = (END + MAX_COMMENT).min(usize::try_from(size).unwrap_or(usize::MAX));
    let tail_at = size.saturating_sub(length as u64);
    let tail = file.slice(tail_at, length)?.unwrap_or_default();
    let at = place(tail).map_err(bad)?;
    let record = tail.get(at..).unwrap_or_default();
    let said = Said {
        disk: u16_at(record, 4).into(),
        directory_disk: u16_at(record, 6).into(),
        count_here: u16_at(record, 8).into(),
        count: u16_at(record, 10).into(),
        size: u32_at(record, 12).into(),
        offset: u32_at(record, 16).into(),
    };
    let end_at = tail_at.saturating_add(at as u64);
    let locator_at = end_at.checked_sub(LOCATOR as u64);
    let locator = match locator_at {
        Some(at) => file.slice(at, LOCATOR)?.unwrap_or_default().to_vec(),
        None => Vec::new(),
    };
    if !locator.starts_with(&LOCATOR_SIGNATURE) {
        return one_disk(&said, bundle)?.place(end_at).ok_or_else(|| bad("its directory lies elsewhere than it says"));
    }
    if u32_at(&locator, 4) != 0 || u32_at(&locator, 16) != 1 {
        return Err(multi_disk(bundle));
    }
    // Just before the locator, whatever else looks like it: nothing is searched for.
    let at = locator_at.and_then(|at| at.checked_sub(END64 as u64)).ok_or_else(|| bad("it has no zip64 end record"))?;
    let long = end64(file.slice(at, END64)?.unwrap_or_default()).map_err(bad)?;
    if !said.is_short_for(&long) {
        return Err(bad("its two end records differ"));
    }
    let end = one_disk(&long, bundle)?.place(at).ok_or_else(|| bad("its directory lies elsewhere than it says"))?;
    if u64_at(&locator, 8).checked_add(end.prefix) != Some(at) {
        return Err(bad("its zip64 end record lies elsewhere than its locator says"));
    }
    Ok(end)
}

/// Where the end record stands in the last bytes of a zip: its comment reaches exactly to the end, and nothing in the
/// comment looks like another one.
fn place(tail: &[u8]) -> Result<usize, &'static str> {
    let mut found = None;
    for (at, _) in tail.windows(END_SIGNATURE.len()).enumerate().filter(|(_, bytes)| *bytes == END_SIGNATURE) {
        let reaches = usize::from(u16_at(tail, at.saturating_add(20))).saturating_add(at).saturating_add(END);
        if found.is_some() {
            return Err("it has more than one end record");
        }
        if reaches == tail.len() {
            found = Some(at);
        }
    }
    found.ok_or("it has no end record that reaches to its end")
}

fn end64(record: &[u8]) -> Result<Said, &'static str> {
    if !record.starts_with(&END64_SIGNATURE) {
        return Err("it has no zip64 end record where it must be");
    }
    if u64_at(record, 4) != END64_REST {
        return Err("its zip64 end record holds more than is known");
    }
    Ok(Said {
        disk: u32_at(record, 16),
        directory_disk: u32_at(record, 20),
        count_here: u64_at(record, 24),
        count: u64_at(record, 32),
        size: u64_at(record, 40),
        offset: u64_at(record, 48),
    })
}

fn multi_disk(bundle: &str) -> anyhow::Error {
    refused(Code::MultiDisk, bundle, format!("{bundle} is one part of a zip of several"))
}

fn one_disk<'a>(said: &'a Said, bundle: &str) -> Result<&'a Said> {
    if said.disk != 0 || said.directory_disk != 0 || said.count_here != said.count {
        return Err(multi_disk(bundle));
    }
    Ok(said)
}

impl Said {
    /// Where the directory lies that ends at `end`. None: it cannot.
    fn place(&self, end: u64) -> Option<End> {
        let start = end.checked_sub(self.size)?;
        Some(End { count: self.count, start, end, prefix: start.checked_sub(self.offset)? })
    }

    /// True when each field says the same, or that the longer form has it (4.4.1.4: all bits set).
    fn is_short_for(&self, long: &Said) -> bool {
        let same = |short: u64, long: u64, most: u64| short == long || short == most;
        let (two, four) = (u64::from(u16::MAX), u64::from(u32::MAX));
        same(self.disk.into(), long.disk.into(), two)
            && same(self.directory_disk.into(), long.directory_disk.into(), two)
            && same(self.count_here, long.count_here, two)
            && same(self.count, long.count, two)
            && same(self.size, long.size, four)
            && same(self.offset, long.offset, four)
    }
}
