//! Zips made byte for byte, as archivers of the field make them, and as nobody but an attacker does.

use std::io::Write;

pub const STORED: u16 = 0;
pub const DEFLATED: u16 = 8;
pub const UTF8: u16 = 1 << 11;
pub const DESCRIPTOR: u16 = 1 << 3;

/// Places in a header of the directory, and in a local one, for `Part::central` and `Part::local`.
pub mod central {
    pub const MADE_BY: usize = 5;
    pub const FLAGS: usize = 8;
    pub const METHOD: usize = 10;
    pub const CRC: usize = 16;
    pub const PACKED: usize = 20;
    pub const SIZE: usize = 24;
    pub const DISK: usize = 34;
    pub const OFFSET: usize = 42;
    pub const NAME: usize = 46;
}
pub mod local {
    pub const FLAGS: usize = 6;
    pub const METHOD: usize = 8;
    pub const CRC: usize = 14;
    pub const PACKED: usize = 18;
    pub const SIZE: usize = 22;
    pub const NAME: usize = 30;
}

/// What follows the contents of an entry whose sizes were not known before.
#[derive(Clone, Copy)]
pub enum Tail {
    Short,
    ShortSigned,
    Long,
    LongSigned,
}

/// One entry.
#[derive(Clone)]
pub struct Part {
    pub name: Vec<u8>,
    pub contents: Vec<u8>,
    pub method: u16,
    pub flags: u16,
    /// Unix (3), unless said otherwise.
    pub system: u8,
    /// The whole Unix mode, with the kind.
    pub mode: u32,
    pub local_extra: Vec<u8>,
    pub central_extra: Vec<u8>,
    pub comment: Vec<u8>,
    pub tail: Option<Tail>,
    /// Bytes behind the packed contents that count as a part of them.
    pub hidden: Vec<u8>,
    /// Bytes before the local header that no entry tells of.
    pub before: Vec<u8>,
    /// Packed contents made beforehand, their checksum and their size unpacked.
    pub made: Option<(Vec<u8>, u32, u64)>,
    /// The local header is not written; the directory names the one of the part before.
    pub shares: bool,
    pub local_edits: Vec<(usize, Vec<u8>)>,
    pub central_edits: Vec<(usize, Vec<u8>)>,
}

impl Part {
    pub fn new(name: impl AsRef<[u8]>, contents: impl AsRef<[u8]>) -> Part {
        let name = name.as_ref().to_vec();
        let is_folder = name.ends_with(b"/");
        Part {
            contents: contents.as_ref().to_vec(),
            method: if is_folder { STORED } else { DEFLATED },
            flags: if name.is_ascii() { 0 } else { UTF8 },
            system: 3,
            mode: if is_folder { 0o40_755 } else { 0o100_644 },
            local_extra: Vec::new(),
            central_extra: Vec::new(),
            comment: Vec::new(),
            tail: None,
            hidden: Vec::new(),
            before: Vec::new(),
            made: None,
            shares: false,
            local_edits: Vec::new(),
            central_edits: Vec::new(),
            name,
        }
    }

    pub fn link(name: &str, target: impl AsRef<[u8]>) -> Part {
        Part { method: STORED, ..Part::new(name, target).mode(0o120_777) }
    }

    pub fn mode(self, mode: u32) -> Part {
        Part { mode, ..self }
    }

    /// A file of so many zeros.
    pub fn zeros(name: &str, count: u64) -> Part {
        let (packed, crc) = zeros(count);
        Part { made: Some((packed, crc, count)), ..Part::new(name, "") }
    }

    fn packed(&self) -> (Vec<u8>, u32, u64) {
        let packed = if self.method == DEFLATED { deflate(&self.contents) } else { self.contents.clone() };
        (packed, crc(&self.contents), self.contents.len() as u64)
    }

    pub fn stored(self) -> Part {
        Part { method: STORED, ..self }
    }

    /// As a stream is written: a descriptor follows, and the local header says nothing of sizes.
    pub fn streamed(self, tail: Tail) -> Part {
        Part { flags: self.flags | DESCRIPTOR, tail: Some(tail), ..self }
            .local(local::CRC, &[0; 4])
            .local(local::PACKED, &[0; 8])
    }

    pub fn extra(self, local: impl AsRef<[u8]>, central: impl AsRef<[u8]>) -> Part {
        Part { local_extra: local.as_ref().to_vec(), central_extra: central.as_ref().to_vec(), ..self }
    }

    /// Writes over the local header.
    pub fn local(mut self, at: usize, bytes: &[u8]) -> Part {
        self.local_edits.push((at, bytes.to_vec()));
        self
    }

    /// Writes over the header in the directory.
    pub fn central(mut self, at: usize, bytes: &[u8]) -> Part {
        self.central_edits.push((at, bytes.to_vec()));
        self
    }

    /// The same in both headers, each at its place.
    pub fn both(self, local: usize, central: usize, bytes: &[u8]) -> Part {
        self.local(local, bytes).central(central, bytes)
    }
}

/// A field of a zip's extras.
pub fn extra(id: u16, bytes: &[u8]) -> Vec<u8> {
    [&id.to_le_bytes()[..], &(bytes.len() as u16).to_le_bytes(), bytes].concat()
}

pub fn crc(bytes: &[u8]) -> u32 {
    let mut sum = flate2::Crc::new();
    sum.update(bytes);
    sum.sum()
}

pub fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

/// The deflated form of `count` zeros and their checksum: one piece, packed once, as often as it takes.
pub fn zeros(count: u64) -> (Vec<u8>, u32) {
    const PIECE: u64 = 1 << 16;
    let pack = |length: u64, flush| {
        let mut packer = flate2::Compress::new(flate2::Compression::best(), false);
        let mut packed = Vec::with_capacity(4096);
        packer.compress_vec(&vec![0; length as usize], &mut packed, flush).unwrap();
        let mut sum = flate2::Crc::new();
        sum.update(&vec![0; length as usize]);
        (packed, sum)
    };
    let (piece, piece_sum) = pack(PIECE, flate2::FlushCompress::Full);
    let (last, last_sum) = pack(count % PIECE, flate2::FlushCompress::Finish);
    let mut sum = flate2::Crc::new();
    for _ in 0..count / PIECE {
        sum.combine(&piece_sum);
    }
    sum.combine(&last_sum);
    ([piece.repeat((count / PIECE) as usize), last].concat(), sum.sum())
}

/// An archive.
#[derive(Clone, Default)]
pub struct Zip {
    pub parts: Vec<Part>,
    pub comment: Vec<u8>,
    /// What stands before it.
    pub prefix: Vec<u8>,
    /// Offsets count from the beginning of the file, the prefix included.
    pub counts_prefix: bool,
    /// With the records of zip64 before the end record.
    pub is_long: bool,
    /// Bytes between the last entry and the directory, between it and its end, and behind the end.
    pub before_directory: Vec<u8>,
    pub behind_directory: Vec<u8>,
    pub behind_end: Vec<u8>,
    pub end_edits: Vec<(usize, Vec<u8>)>,
    pub long_edits: Vec<(usize, Vec<u8>)>,
}

impl Zip {
    pub fn of(parts: impl IntoIterator<Item = Part>) -> Zip {
        Zip { parts: parts.into_iter().collect(), ..Zip::default() }
    }

    /// Writes over the end record.
    pub fn end(mut self, at: usize, bytes: &[u8]) -> Zip {
        self.end_edits.push((at, bytes.to_vec()));
        self
    }

    /// Writes over the record of zip64 (56 bytes) and the locator behind it.
    pub fn long(mut self, at: usize, bytes: &[u8]) -> Zip {
        self.long_edits.push((at, bytes.to_vec()));
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.prefix.clone();
        let zero = if self.counts_prefix { 0 } else { out.len() as u64 };
        let (mut directory, mut start) = (Vec::new(), out.len());
        for part in &self.parts {
            out.extend(&part.before);
            if !part.shares {
                start = out.len();
            }
            let (mut packed, crc, size) = part.made.clone().unwrap_or_else(|| part.packed());
            packed.extend(&part.hidden);
            let numbers = Numbers { crc, packed: packed.len() as u64, size };
            if !part.shares {
                out.extend(local_header(part, &numbers));
                out.extend(&packed);
                out.extend(part.tail.map(|tail| numbers.tail(tail)).unwrap_or_default());
            }
            directory.extend(central_header(part, &numbers, start as u64 - zero));
        }
        out.extend(&self.before_directory);
        let directory_at = out.len() as u64 - zero;
        out.extend(&directory);
        out.extend(&self.behind_directory);
        self.write_end(&mut out, directory_at, directory.len() as u64, zero);
        out
    }

    fn write_end(&self, out: &mut Vec<u8>, directory_at: u64, directory_size: u64, zero: u64) {
        let count = self.parts.len() as u64;
        if self.is_long {
            let at = out.len() as u64 - zero;
            let mut long = b"PK\x06\x06".to_vec();
            long.extend(44_u64.to_le_bytes());
            long.extend([45, 3, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            for number in [count, count, directory_size, directory_at] {
                long.extend(number.to_le_bytes());
            }
            long.extend(b"PK\x06\x07\0\0\0\0");
            long.extend(at.to_le_bytes());
            long.extend(1_u32.to_le_bytes());
            edit(&mut long, &self.long_edits);
            out.extend(long);
        }
        let mut end = b"PK\x05\x06\0\0\0\0".to_vec();
        let short = |number: u64, most: u64| if self.is_long { most } else { number };
        for _ in 0..2 {
            end.extend((short(count, 0xffff) as u16).to_le_bytes());
        }
        end.extend((short(directory_size, 0xffff_ffff) as u32).to_le_bytes());
        end.extend((short(directory_at, 0xffff_ffff) as u32).to_le_bytes());
        end.extend((self.comment.len() as u16).to_le_bytes());
        end.extend(&self.comment);
        edit(&mut end, &self.end_edits);
        out.extend(end);
        out.extend(&self.behind_end);
    }
}

struct Numbers {
    crc: u32,
    packed: u64,
    size: u64,
}

impl Numbers {
    fn short(&self) -> Vec<u8> {
        [self.crc.to_le_bytes(), (self.packed as u32).to_le_bytes(), (self.size as u32).to_le_bytes()].concat()
    }

    fn tail(&self, tail: Tail) -> Vec<u8> {
        let long = [&self.crc.to_le_bytes()[..], &self.packed.to_le_bytes(), &self.size.to_le_bytes()];
        let signature = b"PK\x07\x08".to_vec();
        match tail {
            Tail::Short => self.short(),
            Tail::ShortSigned => [signature, self.short()].concat(),
            Tail::Long => long.concat(),
            Tail::LongSigned => [signature, long.concat()].concat(),
        }
    }
}

fn local_header(part: &Part, numbers: &Numbers) -> Vec<u8> {
    let mut header = b"PK\x03\x04\x14\0".to_vec();
    header.extend(part.flags.to_le_bytes());
    header.extend(part.method.to_le_bytes());
    header.extend([0, 0, 0x79, 0x5d]);
    header.extend(numbers.short());
    header.extend((part.name.len() as u16).to_le_bytes());
    header.extend((part.local_extra.len() as u16).to_le_bytes());
    header.extend(&part.name);
    header.extend(&part.local_extra);
    edit(&mut header, &part.local_edits);
    header
}

fn central_header(part: &Part, numbers: &Numbers, offset: u64) -> Vec<u8> {
    let mut header = b"PK\x01\x02\x14".to_vec();
    header.push(part.system);
    header.extend([20, 0]);
    header.extend(part.flags.to_le_bytes());
    header.extend(part.method.to_le_bytes());
    header.extend([0, 0, 0x79, 0x5d]);
    header.extend(numbers.short());
    for length in [part.name.len(), part.central_extra.len(), part.comment.len()] {
        header.extend((length as u16).to_le_bytes());
    }
    header.extend([0; 4]);
    header.extend((part.mode << 16).to_le_bytes());
    header.extend((offset as u32).to_le_bytes());
    header.extend([&part.name[..], &part.central_extra, &part.comment].concat());
    edit(&mut header, &part.central_edits);
    header
}

fn edit(bytes: &mut [u8], edits: &[(usize, Vec<u8>)]) {
    for (at, new) in edits {
        bytes[*at..*at + new.len()].copy_from_slice(new);
    }
}
