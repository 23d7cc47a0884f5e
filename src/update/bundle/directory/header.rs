//! The two headers of an entry, in the directory and before its contents, and the descriptor that may follow these.
//! Refuses what the two do not agree on.

use super::window::{Window, u16_at, u32_at, u64_at};
use crate::base::error::Code;
use crate::update::bundle::refused;
use anyhow::Result;

/// A header in the directory without its name, extra fields and comment (4.3.12), in bytes.
pub(super) const CENTRAL: u64 = 46;
const CENTRAL_SIGNATURE: [u8; 4] = *b"PK\x01\x02";
/// A local header without its name and extra fields (4.3.7), in bytes.
const LOCAL: usize = 30;
const LOCAL_SIGNATURE: [u8; 4] = *b"PK\x03\x04";
/// What stands before the first header of an encrypted directory (4.3.11).
const EXTRA_DATA_SIGNATURE: [u8; 4] = *b"PK\x06\x08";
const DESCRIPTOR_SIGNATURE: [u8; 4] = *b"PK\x07\x08";

/// Methods (4.4.5).
const STORED: u16 = 0;
pub(super) const DEFLATED: u16 = 8;

/// Bits of the flags (4.4.4): encrypted; a descriptor follows; a patch; strong encryption; the name is UTF-8; the local
/// header is masked.
const ENCRYPTED: u16 = 1;
const DESCRIPTOR: u16 = 1 << 3;
const PATCH: u16 = 1 << 5;
const STRONG: u16 = 1 << 6;
pub(super) const UTF8: u16 = 1 << 11;
const MASKED: u16 = 1 << 13;
/// They tell how well something was packed, and change nothing of how it is read.
const EFFORT: u16 = 0b110;

/// Extra fields that change what an entry is: its sizes (4.5.3), strong encryption (4.5.12), its name (4.6.9).
const ZIP64: u16 = 0x0001;
const STRONG_HEADER: u16 = 0x0017;
const UNICODE_PATH: u16 = 0x7075;

/// A field that the zip64 extra field has in its place.
const LATER: u32 = u32::MAX;

/// Systems whose external attributes hold a Unix mode (4.4.2.2): Unix, and Darwin.
const UNIX: [u8; 2] = [3, 19];

/// What may follow the contents, in bytes: nothing, or a descriptor with sizes of 32 or 64 bits, without or with its
/// signature (4.3.9).
pub(super) const TAILS: [u64; 5] = [0, 12, 16, 20, 24];

/// An entry as the directory tells of it.
pub(super) struct Central<'a> {
    made_by: u16,
    pub flags: u16,
    pub method: u16,
    pub crc: u32,
    pub packed: u64,
    pub size: u64,
    /// From the place where the archive begins to count.
    pub offset: u64,
    pub attributes: u32,
    pub name: &'a [u8],
    pub extra: Extra<'a>,
    /// Where the next header begins.
    pub next: u64,
}

impl Central<'_> {
    pub(super) fn is_unix(&self) -> bool {
        UNIX.contains(&(self.made_by >> 8).to_le_bytes()[0])
    }
}

/// What is used of the extra fields.
#[derive(Default)]
pub(super) struct Extra<'a> {
    zip64: Option<&'a [u8]>,
    pub unicode_path: Option<&'a [u8]>,
    is_strong: bool,
}

impl<'a> Extra<'a> {
    /// Errors: a field reaches behind the end, or one that counts is there twice.
    fn of(mut bytes: &'a [u8]) -> Result<Extra<'a>, &'static str> {
        let mut extra = Extra::default();
        while bytes.len() >= 4 {
            let (id, length) = (u16_at(bytes, 0), usize::from(u16_at(bytes, 2)));
            let field = bytes.get(4..length.saturating_add(4)).ok_or("has an extra field that is cut off")?;
            let known = match id {
                ZIP64 => Some(&mut extra.zip64),
                UNICODE_PATH => Some(&mut extra.unicode_path),
                _ => None,
            };
            if known.is_some_and(|known| known.replace(field).is_some()) {
                return Err("has an extra field twice");
            }
            extra.is_strong |= id == STRONG_HEADER;
            bytes = bytes.get(length.saturating_add(4)..).unwrap_or_default();
        }
        // Tools that align contents pad with zeros.
        if bytes.iter().any(|byte| *byte != 0) { Err("has an extra field that is cut off") } else { Ok(extra) }
    }
}

/// The header in the directory at `at`, the `number`th. Errors (exit 6): there is none, or it reaches behind `end`.
pub(super) fn central<'a>(file: &'a mut Window, at: u64, end: u64, number: u64) -> Result<Central<'a>> {
    let bad = |what: &str| refused(Code::BadZip, "", format!("entry {number} of the directory {what}"));
    let fixed = file.slice(at, CENTRAL as usize)?.unwrap_or_default();
    if fixed.starts_with(&EXTRA_DATA_SIGNATURE) {
        return Err(refused(Code::Encrypted, "", "the directory of the zip is encrypted"));
    }
    if !fixed.starts_with(&CENTRAL_SIGNATURE) {
        return Err(bad("is missing"));
    }
    let length = |at: usize| usize::from(u16_at(fixed, at));
    let (name, extra, comment) = (length(28), length(30), length(32));
    let whole = (CENTRAL as usize).saturating_add(name).saturating_add(extra).saturating_add(comment);
    let next = at.saturating_add(whole as u64);
    if next > end {
        return Err(bad("reaches behind the end of the directory"));
    }
    let bytes = file.slice(at, whole)?.unwrap_or_default();
    let (_, names) = bytes.split_at_checked(CENTRAL as usize).ok_or_else(|| bad("is cut off"))?;
    let (name, rest) = names.split_at_checked(name).ok_or_else(|| bad("is cut off"))?;
    let extra = Extra::of(rest.get(..extra).unwrap_or_default()).map_err(bad)?;
    let mut long = Long { field: extra.zip64 };
    let size = long.of(u32_at(bytes, 24)).ok_or_else(|| bad("has no size"))?;
    let packed = long.of(u32_at(bytes, 20)).ok_or_else(|| bad("has no size"))?;
    let offset = long.of(u32_at(bytes, 42)).ok_or_else(|| bad("lies nowhere"))?;
    let disk = match u16_at(bytes, 34) {
        u16::MAX => long.of_disk().ok_or_else(|| bad("lies nowhere"))?,
        disk => disk.into(),
    };
    if disk != 0 {
        return Err(refused(Code::MultiDisk, "", format!("entry {number} lies in another part of the zip")));
    }
    let (made_by, attributes) = (u16_at(bytes, 4), u32_at(bytes, 38));
    let (flags, method, crc) = (u16_at(bytes, 8), u16_at(bytes, 10), u32_at(bytes, 16));
    Ok(Central { made_by, flags, method, crc, packed, size, offset, attributes, name, extra, next })
}

/// The numbers of a zip64 extra field, taken in their order, each only where the header has none (4.5.3).
struct Long<'a> {
    field: Option<&'a [u8]>,
}

impl Long<'_> {
    fn of(&mut self, short: u32) -> Option<u64> {
        if short != LATER {
            return Some(short.into());
        }
        let (number, rest) = self.field?.split_at_checked(8)?;
        self.field = Some(rest);
        Some(u64_at(number, 0))
    }

    fn of_disk(&mut self) -> Option<u32> {
        self.field?.get(..4).map(|number| u32_at(number, 0))
    }
}

/// Refuses what cannot be unpacked here: encrypted entries, patches, other methods.
pub(super) fn refuse_kind(header: &Central, name: &str) -> Result<()> {
    let shown = crate::update::bundle::encoding::shown(name);
    if header.flags & (ENCRYPTED | STRONG | MASKED) != 0 || header.extra.is_strong {
        return Err(refused(Code::Encrypted, name, format!("{shown} is encrypted")));
    }
    if header.flags & PATCH != 0 {
        return Err(refused(Code::BadMethod, name, format!("{shown} is a patch of another file")));
    }
    if header.method != STORED && header.method != DEFLATED {
        let message = format!("{shown} is packed by method {}; only stored and deflate are known", header.method);
        return Err(refused(Code::BadMethod, name, message));
    }
    Ok(())
}

/// Holds the local header at `start` against the directory. Returns where the contents begin. Errors: what they do not
/// agree on.
pub(super) fn agree(header: &Central, local: &mut Window, start: u64, most: u64) -> Result<u64, String> {
    let read = |e: anyhow::Error| format!("cannot be read: {e:#}");
    let fixed = local.slice(start, LOCAL).map_err(read)?.unwrap_or_default();
    if !fixed.starts_with(&LOCAL_SIGNATURE) {
        return Err("has no header where the directory says".into());
    }
    let (name, extra) = (usize::from(u16_at(fixed, 26)), usize::from(u16_at(fixed, 28)));
    let whole = LOCAL.saturating_add(name).saturating_add(extra);
    let bytes = local.slice(start, whole).map_err(read)?.unwrap_or_default();
    let (fixed, names) = bytes.split_at_checked(LOCAL).ok_or("has a header that is cut off")?;
    let (name, extra) = names.split_at_checked(name).ok_or("has a header that is cut off")?;
    let extra = Extra::of(extra)?;
    if name != header.name || extra.unicode_path != header.extra.unicode_path {
        return Err("has another name in its own header".into());
    }
    if (u16_at(fixed, 6) ^ header.flags) & !EFFORT != 0 {
        return Err("has other flags in its own header".into());
    }
    if u16_at(fixed, 8) != header.method {
        return Err("has another method in its own header".into());
    }
    sizes(header, fixed, &extra)?;
    let at = start.saturating_add(whole as u64);
    if at.checked_add(header.packed).is_none_or(|end| end > most) {
        return Err("reaches into the directory".into());
    }
    Ok(at)
}

/// Sizes and checksum of a local header. Where a descriptor follows, they may be left open there (zero).
fn sizes(header: &Central, fixed: &[u8], extra: &Extra) -> Result<(), String> {
    // Here both sizes stand in the field where one of them does (4.5.3); some tools write only what is needed.
    let (short_packed, short_size) = (u32_at(fixed, 18), u32_at(fixed, 22));
    let mut long = Long { field: extra.zip64 };
    let has_both = extra.zip64.is_some_and(|field| field.len() >= 16);
    let is_long = short_packed == LATER || short_size == LATER;
    let size = long.of(if has_both && is_long { LATER } else { short_size }).ok_or("has no size in its own header")?;
    let packed = long.of(short_packed).ok_or("has no size in its own header")?;
    let size = if short_size == LATER { size } else { short_size.into() };
    let may_be_open = header.flags & DESCRIPTOR != 0;
    let same = |local: u64, central: u64| local == central || (may_be_open && local == 0);
    if !same(u32_at(fixed, 14).into(), header.crc.into()) {
        return Err("has another checksum in its own header".into());
    }
    if !same(size, header.size) || !same(packed, header.packed) {
        return Err("has other sizes in its own header".into());
    }
    Ok(())
}

/// Which lengths of what follows the contents at `at` agree with the directory: bit N stands for `TAILS[N]`. Errors:
/// none does.
pub(super) fn tails(header: &Central, local: &mut Window, at: u64) -> Result<u8, String> {
    if header.flags & DESCRIPTOR == 0 {
        return Ok(1);
    }
    let end = at.saturating_add(header.packed);
    let mut fitting = 0;
    for (bit, length) in TAILS.iter().enumerate().skip(1) {
        let found = local.slice(end, *length as usize).map_err(|e| format!("cannot be read: {e:#}"))?;
        let Some(bytes) = found else { continue };
        let (numbers, is_signed) = match bytes.strip_prefix(&DESCRIPTOR_SIGNATURE) {
            Some(rest) if matches!(length, 16 | 24) => (rest, true),
            _ => (bytes, false),
        };
        let (packed, size) = match numbers.len() {
            12 => (u64::from(u32_at(numbers, 4)), u64::from(u32_at(numbers, 8))),
            20 => (u64_at(numbers, 4), u64_at(numbers, 12)),
            _ => continue,
        };
        let is_it = is_signed == matches!(length, 16 | 24);
        if is_it && (u32_at(numbers, 0), packed, size) == (header.crc, header.packed, header.size) {
            fitting |= 1_u8.checked_shl(bit as u32).unwrap_or(0);
        }
    }
    if fitting == 0 { Err("is followed by no descriptor that agrees with the directory".into()) } else { Ok(fitting) }
}
