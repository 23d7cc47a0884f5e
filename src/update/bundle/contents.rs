//! The contents of one entry of a zip, unpacked piece by piece and held against what the directory says of them.
//! Refuses to give out more than the declared size, or to end before every packed byte was used.

use super::directory::Stored;
use flate2::{Crc, Decompress, FlushDecompress, Status};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// How much of the file is read at once, in bytes.
const CHUNK: usize = 64 << 10;

/// Why contents are not what the directory says.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("is larger than the zip says")]
    Larger,
    #[error("has {is} bytes, the zip says {said}")]
    Smaller { is: u64, said: u64 },
    #[error("is damaged: {0}")]
    Damaged(&'static str),
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
}

pub(super) struct Contents<'a> {
    file: &'a File,
    stored: Stored,
    /// What is not yet taken from the file, where it stands there, and what was taken and not yet used.
    packed_left: u64,
    at: u64,
    chunk: Vec<u8>,
    used: usize,
    inflate: Option<Decompress>,
    is_done: bool,
    given: u64,
    sum: Crc,
}

impl<'a> Contents<'a> {
    pub(super) fn new(file: &'a File, stored: &Stored) -> Self {
        Contents {
            file,
            stored: *stored,
            packed_left: stored.packed,
            at: stored.at,
            chunk: Vec::new(),
            used: 0,
            // No zlib header: a zip has the bare stream.
            inflate: stored.is_deflated.then(|| Decompress::new(false)),
            is_done: false,
            given: 0,
            sum: Crc::new(),
        }
    }

    /// Unpacks the next piece; 0 at the end, where all of it was right.
    pub(super) fn next(&mut self, out: &mut [u8]) -> Result<usize, Broken> {
        while !self.is_done && !out.is_empty() {
            if self.used == self.chunk.len() && self.packed_left > 0 {
                self.fill()?;
            }
            let count = self.unpack(out)?;
            self.given = self.given.saturating_add(count as u64);
            self.sum.update(out.get(..count).unwrap_or_default());
            if self.given > self.stored.size {
                return Err(Broken::Larger);
            }
            if count > 0 {
                return Ok(count);
            }
        }
        if !self.is_done {
            return Ok(0);
        }
        if self.used != self.chunk.len() || self.packed_left > 0 {
            return Err(Broken::Damaged("behind its end the zip holds more"));
        }
        if self.given != self.stored.size {
            return Err(Broken::Smaller { is: self.given, said: self.stored.size });
        }
        if self.sum.sum() != self.stored.crc {
            return Err(Broken::Damaged("its checksum is another one"));
        }
        Ok(0)
    }

    fn fill(&mut self) -> Result<(), Broken> {
        let length = usize::try_from(self.packed_left).unwrap_or(CHUNK).min(CHUNK);
        self.chunk.resize(length, 0);
        let mut file = self.file;
        file.seek(SeekFrom::Start(self.at))?;
        file.read_exact(&mut self.chunk)?;
        self.at = self.at.saturating_add(length as u64);
        self.packed_left = self.packed_left.saturating_sub(length as u64);
        self.used = 0;
        Ok(())
    }

    fn unpack(&mut self, out: &mut [u8]) -> Result<usize, Broken> {
        let left = self.chunk.get(self.used..).unwrap_or_default();
        let Some(inflate) = &mut self.inflate else {
            let count = left.len().min(out.len());
            for (to, from) in out.iter_mut().zip(left) {
                *to = *from;
            }
            self.used = self.used.saturating_add(count);
            self.is_done = self.used == self.chunk.len() && self.packed_left == 0;
            return Ok(count);
        };
        let (was_in, was_out) = (inflate.total_in(), inflate.total_out());
        let status = inflate.decompress(left, out, FlushDecompress::None);
        let (taken, given) = (inflate.total_in().abs_diff(was_in), inflate.total_out().abs_diff(was_out));
        // There was room, and input if any was left.
        let is_stuck = taken == 0 && given == 0;
        self.used = self.used.saturating_add(usize::try_from(taken).unwrap_or(usize::MAX)).min(self.chunk.len());
        match status {
            Err(_) => return Err(Broken::Damaged("it cannot be unpacked")),
            Ok(Status::StreamEnd) => self.is_done = true,
            Ok(_) if is_stuck => return Err(Broken::Damaged("it is cut off")),
            Ok(_) => {}
        }
        Ok(usize::try_from(given).unwrap_or(usize::MAX))
    }
}

impl Read for Contents<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.next(out).map_err(|broken| match broken {
            Broken::Io(e) => e,
            broken => io::Error::new(io::ErrorKind::InvalidData, broken.to_string()),
        })
    }
}
