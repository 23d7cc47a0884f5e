//! The end of a log.

use crate::base::fsx;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// How far back the end of a log is read.
const TAIL_BYTES: u64 = 64 * 1024;

/// The last lines (at most `lines`) that a log got after `from`; from its beginning when it has become
/// shorter. Text that is not UTF-8 is replaced. Errors: the file cannot be read.
pub fn tail(path: &Path, from: u64, lines: usize) -> anyhow::Result<Vec<String>> {
    let mut file = fsx::open(path)?;
    let size = file.metadata()?.len();
    let from = if from > size { 0 } else { from };
    file.seek(SeekFrom::Start(from.max(size.saturating_sub(TAIL_BYTES))))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].iter().map(|line| line.to_string()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_begins_at_the_offset() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "old\nnew 1\nnew 2\nnew 3\n").unwrap();
        assert_eq!(tail(file.path(), 4, 2).unwrap(), ["new 2", "new 3"]);
        assert_eq!(tail(file.path(), 900, 20).unwrap().len(), 4);
    }
}
