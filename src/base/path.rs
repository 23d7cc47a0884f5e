//! `RelPath`: every name that comes from outside passes here before it can reach the disk.
//! Refuses to touch the disk.
#![deny(clippy::indexing_slicing, clippy::string_slice, clippy::arithmetic_side_effects)]

use crate::system;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::path::{Path, PathBuf};
use unicode_normalization::UnicodeNormalization;

/// The name of the state directory below the root of an install.
pub const STATE_DIR: &str = ".updater";

/// A relative path below the root, `/` between its parts; never empty, never leaving the root.
/// Names from disk keep their bytes, whatever their encoding.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(Box<[u8]>);

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct BadName {
    pub reason: &'static str,
}

/// The longest path accepted from outside, in bytes (Linux PATH_MAX is 4096 with the root before it); bundles may have
/// less.
const MAX_PATH: usize = 3000;
/// The longest single name, in bytes (NAME_MAX).
const MAX_NAME: usize = 255;

impl RelPath {
    /// The gate for names from outside (bundles, settings, the command line). What is hostile is refused on every
    /// system alike; a name that only another system cannot hold is none.
    pub fn parse(name: &str) -> Result<Self, BadName> {
        let bad = |reason| Err(BadName { reason });
        if name.is_empty() {
            return bad("the name is empty");
        }
        if name.len() > MAX_PATH {
            return bad("the path is too long");
        }
        if name.starts_with('/') {
            return bad("the path is absolute");
        }
        // `C:x` leads to another drive on Windows.
        if name.as_bytes().get(1) == Some(&b':') && name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return bad("the path begins with a drive");
        }
        for part in name.split('/') {
            if part.is_empty() {
                return bad("the path has an empty part");
            }
            if part == "." || part == ".." {
                return bad("the path has a . or .. part");
            }
            if part.len() > MAX_NAME {
                return bad("a part of the path is too long");
            }
            if part.chars().any(|c| c.is_control()) {
                return bad("the name holds a control character");
            }
            if part.contains('\\') {
                return bad("the name holds a backslash");
            }
            if let Some(reason) = system::files::bad_name(part) {
                return bad(reason);
            }
        }
        Ok(Self(name.as_bytes().into()))
    }

    /// A path of something that is on disk, relative to the root. None when it is empty, absolute,
    /// or leaves the root.
    pub fn from_disk(relative: &Path) -> Option<Self> {
        let plain = relative.components().all(|c| matches!(c, std::path::Component::Normal(_)));
        let bytes = system::files::path_to_bytes(relative)?;
        (plain && !bytes.is_empty()).then(|| Self(bytes.into()))
    }

    pub fn to_path(&self) -> PathBuf {
        system::files::path_from_bytes(&self.0)
    }
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
    /// The name as text; characters that are not UTF-8 are replaced (for matching and reading code only).
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/')
    }
    /// The first part: the top-level name.
    pub fn top(&self) -> RelPath {
        RelPath(self.parts().next().unwrap_or(&self.0).into())
    }
    /// The last part.
    pub fn name(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(self.0.rsplit(|b| *b == b'/').next().unwrap_or(&self.0))
    }
    pub fn parent(&self) -> Option<RelPath> {
        let at = self.0.iter().rposition(|b| *b == b'/')?;
        Some(RelPath(self.0.get(..at)?.into()))
    }
    /// Every folder above, outermost first.
    pub fn ancestors(&self) -> Vec<RelPath> {
        let mut all: Vec<_> = std::iter::successors(self.parent(), RelPath::parent).collect();
        all.reverse();
        all
    }
    /// True when `self` is `other` or lies below it.
    pub fn is_within(&self, other: &RelPath) -> bool {
        self.0 == other.0 || (self.0.starts_with(&other.0) && self.0.get(other.0.len()) == Some(&b'/'))
    }
    pub fn child(&self, name: &std::ffi::OsStr) -> Option<RelPath> {
        RelPath::from_disk(&self.to_path().join(name))
    }
    /// The name with something added to its end.
    pub fn with_ending(&self, ending: &str) -> RelPath {
        RelPath([&self.0, ending.as_bytes()].concat().into())
    }
    /// The name without its last `length` bytes. None: nothing, or no whole name, would be left.
    pub fn without_ending(&self, length: usize) -> Option<RelPath> {
        let rest = self.0.get(..self.0.len().checked_sub(length)?)?;
        (!rest.is_empty() && !rest.ends_with(b"/")).then(|| RelPath(rest.into()))
    }
    /// The name in one case, for volumes that take all for one; a name that is no text stays. By the upper case first,
    /// so that letters of several lower forms meet (the two sigmas, the long s, the sign for kelvin).
    pub fn folded(&self) -> RelPath {
        match std::str::from_utf8(&self.0) {
            Ok(text) => {
                let folded: String = text.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect();
                RelPath(folded.into_bytes().into())
            }
            Err(_) => self.clone(),
        }
    }
    /// The name in composed characters (Unicode's NFC), for volumes that take all forms for one.
    pub fn composed(&self) -> RelPath {
        match std::str::from_utf8(&self.0) {
            Ok(text) if !text.is_ascii() => RelPath(text.nfc().collect::<String>().into_bytes().into()),
            _ => self.clone(),
        }
    }
    /// The path of what is called `name` in a folder; None: in the root. `name` is one part that is no `.` or `..`.
    pub(crate) fn below(folder: Option<&RelPath>, name: &[u8]) -> RelPath {
        match folder {
            Some(folder) => RelPath([&folder.0, &b"/"[..], name].concat().into()),
            None => RelPath(name.into()),
        }
    }
    /// A path below this one.
    pub fn join(&self, below: &RelPath) -> RelPath {
        RelPath([&self.0, &b"/"[..], &below.0].concat().into())
    }
    /// What remains after `prefix/`.
    pub fn strip(&self, prefix: &RelPath) -> Option<RelPath> {
        let below = self.0.strip_prefix(&*prefix.0)?.strip_prefix(b"/")?;
        (!below.is_empty()).then(|| RelPath(below.into()))
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}
impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text())
    }
}

/// In records: text where the name is UTF-8, else `{"hex": "..."}`.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Recorded {
    Text(String),
    Bytes { hex: String },
}

impl Serialize for RelPath {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => to.serialize_str(text),
            Err(_) => Recorded::Bytes { hex: self.0.iter().map(|b| format!("{b:02x}")).collect() }.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for RelPath {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let bytes = match Recorded::deserialize(from)? {
            Recorded::Text(text) => text.into_bytes(),
            Recorded::Bytes { hex } => {
                let digits: Option<Vec<u8>> = hex.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
                let digits = digits.ok_or_else(|| serde::de::Error::custom("bad hex in a path"))?;
                digits.chunks(2).map(|pair| pair.iter().fold(0, |n, d| n << 4 | d)).collect()
            }
        };
        // A record is a file like any other: what it says must not lead out of the root either.
        RelPath::from_disk(&system::files::path_from_bytes(&bytes))
            .ok_or_else(|| serde::de::Error::custom("a path in the record leaves the root"))
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_names_are_refused() {
        for name in [
            "",
            "/",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "./a",
            "a/.",
            "a/",
            "C:/x",
            "c:x",
            "a\\b",
            "a\0b",
            "a\nb",
            "x\u{7f}",
        ] {
            assert!(RelPath::parse(name).is_err(), "{name:?} was accepted");
        }
    }

    #[test]
    fn ordinary_names_pass() {
        for name in
            ["run.py", "app/__init__.py", "common/x", "a b/c", ".env", "..a", "\u{fc}n\u{ef}.txt", "company.txt"]
        {
            assert_eq!(RelPath::parse(name).unwrap().to_string(), name);
        }
    }

    #[test]
    fn a_record_cannot_lead_out_of_the_root() {
        for text in ["\"../x\"", "\"/etc/passwd\"", "\"a/../../b\"", "{\"hex\":\"2e2e2f61\"}", "\"\""] {
            assert!(serde_json::from_str::<RelPath>(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn an_accepted_name_stays_below_the_root(name in "(?s).{0,40}") {
            if let Ok(path) = RelPath::parse(&name) {
                let joined = Path::new("/root/of/install").join(path.to_path());
                prop_assert!(joined.starts_with("/root/of/install"));
                prop_assert!(joined.components().all(|c| c != std::path::Component::ParentDir));
            }
        }

        #[test]
        fn records_give_back_the_same_path(name in "[a-z]{1,8}(/[a-z\u{e9}]{1,8}){0,4}") {
            let path = RelPath::parse(&name).unwrap();
            let text = serde_json::to_string(&path).unwrap();
            prop_assert_eq!(serde_json::from_str::<RelPath>(&text).unwrap(), path);
        }
    }
}
