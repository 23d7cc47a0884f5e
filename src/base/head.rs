//! What the first bytes of a file say of it.
#![deny(clippy::indexing_slicing, clippy::string_slice, clippy::arithmetic_side_effects)]

/// How the contents of a file begin, as far as that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Head {
    /// A database of SQLite, version 3.
    Sqlite,
    /// A program or library for this or another system.
    Executable,
    /// A script that names its interpreter (`#!`).
    Script,
    #[default]
    Plain,
}

/// How many bytes `Head::of` wants to see.
pub const HEAD_BYTES: usize = 16;

/// The first 16 bytes of a database. Source: sqlite.org/fileformat2.html, "The Database Header".
const SQLITE: &[u8] = b"SQLite format 3\0";
/// How programs begin: ELF; PE and DOS ("MZ"); Mach-O of 32 and 64 bits in either order, and its universal form,
/// which is also the mark of a Java class. Sources: elf(5), "PE Format" (Microsoft Learn), mach-o/loader.h.
const EXECUTABLES: [&[u8]; 7] = [
    b"\x7fELF",
    b"MZ",
    b"\xfe\xed\xfa\xce",
    b"\xfe\xed\xfa\xcf",
    b"\xce\xfa\xed\xfe",
    b"\xcf\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",
];

impl Head {
    /// Judges the first bytes of a file.
    pub fn of(bytes: &[u8]) -> Head {
        if bytes.starts_with(SQLITE) {
            Head::Sqlite
        } else if EXECUTABLES.iter().any(|mark| bytes.starts_with(mark)) {
            Head::Executable
        } else if bytes.starts_with(b"#!") {
            Head::Script
        } else {
            Head::Plain
        }
    }
}
