//! A bounded look into a file: a few bytes at a place, read ahead by a fixed measure.
//! Refuses to read behind the end that the file had when it was opened.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

pub(super) struct Window<'a> {
    file: &'a File,
    /// Of the file, in bytes.
    size: u64,
    /// How much is read at least, in bytes.
    ahead: usize,
    /// Where `bytes` begin.
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    pub(super) fn new(file: &'a File, size: u64, ahead: usize) -> Self {
        Window { file, size, ahead, start: 0, bytes: Vec::new() }
    }

    /// `length` bytes at `at`; None where the file does not hold them.
    pub(super) fn slice(&mut self, at: u64, length: usize) -> Result<Option<&[u8]>> {
        let Some(end) = at.checked_add(length as u64).filter(|end| *end <= self.size) else { return Ok(None) };
        let held = self.start.saturating_add(self.bytes.len() as u64);
        if at < self.start || end > held {
            let left = usize::try_from(self.size.saturating_sub(at)).unwrap_or(usize::MAX);
            self.bytes.resize(length.max(self.ahead).min(left), 0);
            let mut file = self.file;
            file.seek(SeekFrom::Start(at)).context("reading the bundle")?;
            file.read_exact(&mut self.bytes).context("reading the bundle")?;
            self.start = at;
        }
        let from = usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX);
        Ok(self.bytes.get(from..from.saturating_add(length)))
    }
}

/// The number of two bytes at `at`, the lowest first; 0 behind the end.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u16::from_le_bytes(*chunk))
}

/// The same of four bytes.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

/// The same of eight bytes.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u64::from_le_bytes(*chunk))
}
