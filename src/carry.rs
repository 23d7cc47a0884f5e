//! Carrying settings over: top-level assignments of a Python file keep the install's values, every
//! other byte is the bundle's.
//! Refuses to decode the file: it works on bytes, so encoding, byte order mark and line ends stay.

use std::ops::Range;

/// What `carry` made.
#[derive(Debug, PartialEq, Eq)]
pub struct Carried {
    pub bytes: Vec<u8>,
    /// Names whose value was carried or set.
    pub carried: Vec<String>,
    /// Names that the new file does not assign.
    pub absent: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CarryError {
    #[error("the value of {0} spans several lines")]
    SpansLines(String),
    #[error("the new version has no setting {0}")]
    NoSuchSetting(String),
}

/// True when `live` is the shipped file but for settings of the install.
pub fn differs_in_settings_alone(shipped: &[u8], live: &[u8], names: &[String]) -> bool {
    carry(shipped, live, names, &[]).is_ok_and(|carried| carried.bytes == live)
}

/// Puts the values that `old` assigns to `names`, and those of `set`, into `new`.
pub fn carry(new: &[u8], old: &[u8], names: &[String], set: &[(String, String)]) -> Result<Carried, CarryError> {
    let mut edits: Vec<(Range<usize>, Vec<u8>)> = Vec::new();
    let (mut carried, mut absent) = (Vec::new(), Vec::new());
    let all = names.iter().chain(set.iter().map(|(n, _)| n).filter(|n| !names.contains(n)));
    for name in all {
        let wanted = set.iter().rev().find(|(n, _)| n == name).map(|(_, value)| literal(value).into_bytes());
        let old_value = find(old, name)?.map(|range| old[range].to_vec());
        let default = set.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.clone().into_bytes());
        let mut found = false;
        if let Some(place) = find(new, name)? {
            found = true;
            if let Some(value) = wanted.clone().or(old_value) {
                edits.push((place, value));
            }
        }
        if name == "PORT"
            && let Some(place) = environ_default(new)
        {
            found = true;
            if let Some(value) = default.or_else(|| environ_default(old).map(|r| old[r].to_vec())) {
                edits.push((place, value));
            }
        }
        if !found && wanted.is_some() {
            return Err(CarryError::NoSuchSetting(name.clone()));
        }
        if found { carried.push(name.clone()) } else { absent.push(name.clone()) }
    }
    edits.sort_by_key(|(place, _)| place.start);
    let (mut bytes, mut at) = (Vec::with_capacity(new.len()), 0);
    for (place, value) in edits {
        // The default of the environment may lie inside the assignment itself.
        if place.start < at {
            continue;
        }
        bytes.extend_from_slice(&new[at..place.start]);
        bytes.extend_from_slice(&value);
        at = place.end;
    }
    bytes.extend_from_slice(&new[at..]);
    Ok(Carried { bytes, carried, absent })
}

/// The value that a file assigns to `name` at its top level, as written; for PORT also the default
/// given to the environment's.
pub fn assignment(bytes: &[u8], name: &str) -> Option<String> {
    let text = |range: Range<usize>| String::from_utf8_lossy(&bytes[range]).into_owned();
    let value = find(bytes, name).ok().flatten().map(text);
    let plain = value.clone().filter(|v| !v.contains('('));
    plain.or_else(|| (name == "PORT").then(|| environ_default(bytes).map(text))?).or(value)
}

/// How a value is written in Python.
fn literal(value: &str) -> String {
    let quoted = value.len() > 1 && ["'", "\""].iter().any(|q| value.starts_with(q) && value.ends_with(q));
    if quoted || ["True", "False", "None"].contains(&value) || value.parse::<f64>().is_ok_and(f64::is_finite) {
        return value.to_string();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Where the value of the last top-level assignment to `name` stands.
fn find(bytes: &[u8], name: &str) -> Result<Option<Range<usize>>, CarryError> {
    let mut found = None;
    let start = if bytes.starts_with(&[0xef, 0xbb, 0xbf]) { 3 } else { 0 };
    let mut scan = Scan { bytes, at: start, depth: 0 };
    while scan.at < bytes.len() {
        let line = scan.at;
        let value = value_start(bytes, line, name);
        let Some(value) = value else {
            scan.logical_line();
            continue;
        };
        scan.at = value;
        let end = scan.value_end();
        scan.logical_line();
        // A value whose end is not on its first line cannot be moved as one piece.
        if bytes[value..scan.at.min(bytes.len())].iter().filter(|b| **b == b'\n').count() > 1 || end.is_none() {
            return Err(CarryError::SpansLines(name.to_string()));
        }
        found = end.map(|end| value..end);
    }
    Ok(found)
}

/// The position of the value where the line at `line` reads `NAME = ...` or `NAME: type = ...`.
fn value_start(bytes: &[u8], line: usize, name: &str) -> Option<usize> {
    let rest = bytes[line..].strip_prefix(name.as_bytes())?;
    let mut at = line + name.len();
    let blank = |at: &mut usize| {
        while matches!(bytes.get(*at), Some(b' ' | b'\t')) {
            *at += 1;
        }
    };
    let _ = rest;
    blank(&mut at);
    if bytes.get(at) == Some(&b':') {
        while !matches!(bytes.get(at), None | Some(b'=' | b'\n' | b'\r')) {
            at += 1;
        }
    }
    if bytes.get(at) != Some(&b'=') || bytes.get(at + 1) == Some(&b'=') {
        return None;
    }
    at += 1;
    blank(&mut at);
    Some(at)
}

/// Walks over Python source far enough to know strings, comments and brackets apart.
struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
}

impl Scan<'_> {
    /// Moves to the start of the next logical line.
    fn logical_line(&mut self) {
        while let Some(byte) = self.bytes.get(self.at) {
            match byte {
                b'\n' if self.depth == 0 => {
                    self.at += 1;
                    return;
                }
                b'\\' => self.at += if self.bytes[self.at..].starts_with(b"\\\r\n") { 3 } else { 2 },
                _ => self.step(*byte),
            }
        }
    }

    fn step(&mut self, byte: u8) {
        match byte {
            b'#' => {
                while self.bytes.get(self.at).is_some_and(|b| *b != b'\n') {
                    self.at += 1;
                }
            }
            b'\'' | b'"' => self.string(byte),
            b'(' | b'[' | b'{' => {
                self.depth += 1;
                self.at += 1;
            }
            b')' | b']' | b'}' => {
                self.depth = self.depth.saturating_sub(1);
                self.at += 1;
            }
            _ => self.at += 1,
        }
    }

    fn string(&mut self, quote: u8) {
        let triple = self.bytes[self.at..].starts_with(&[quote; 3]);
        self.at += if triple { 3 } else { 1 };
        while let Some(byte) = self.bytes.get(self.at) {
            match byte {
                b'\\' => self.at += 2,
                b'\n' if !triple => return,
                _ if *byte == quote && (!triple || self.bytes[self.at..].starts_with(&[quote; 3])) => {
                    self.at += if triple { 3 } else { 1 };
                    return;
                }
                _ => self.at += 1,
            }
        }
    }

    /// The end of the value at the present position; None when it goes on behind the line.
    fn value_end(&self) -> Option<usize> {
        let mut scan = Scan { bytes: self.bytes, at: self.at, depth: 0 };
        let mut end = self.at;
        while let Some(byte) = self.bytes.get(scan.at) {
            match byte {
                b'\n' | b'\r' if scan.depth > 0 => return None,
                b'\n' | b'\r' | b'#' if scan.depth == 0 => break,
                b'\\' => return None,
                _ => {
                    let from = scan.at;
                    scan.step(*byte);
                    let over = &self.bytes[from..scan.at.min(self.bytes.len())];
                    if over.contains(&b'\n') {
                        return None;
                    }
                    if !matches!(byte, b' ' | b'\t') {
                        end = scan.at;
                    }
                }
            }
        }
        (end > self.at).then_some(end)
    }
}

/// Where N stands in `int(os.environ.get('PORT', N))` or `int(os.getenv("PORT", N))`.
fn environ_default(bytes: &[u8]) -> Option<Range<usize>> {
    for call in [&b"environ.get("[..], b"getenv("] {
        let mut from = 0;
        while let Some(found) = bytes[from..].windows(call.len()).position(|w| w == call) {
            let mut at = from + found + call.len();
            from = at;
            let blank = |at: &mut usize| {
                while matches!(bytes.get(*at), Some(b' ' | b'\t')) {
                    *at += 1;
                }
            };
            blank(&mut at);
            let Some(quote) = bytes.get(at).copied().filter(|q| matches!(q, b'\'' | b'"')) else { continue };
            if !bytes[at + 1..].starts_with(&[b'P', b'O', b'R', b'T', quote]) {
                continue;
            }
            at += 6;
            blank(&mut at);
            if bytes.get(at) != Some(&b',') {
                continue;
            }
            at += 1;
            blank(&mut at);
            if matches!(bytes.get(at), Some(b'\'' | b'"')) {
                at += 1;
            }
            let digits = bytes[at..].iter().take_while(|b| b.is_ascii_digit()).count();
            if digits > 0 {
                return Some(at..at + digits);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names() -> Vec<String> {
        ["PORT", "USE_WAITRESS"].map(String::from).to_vec()
    }

    fn carried(new: &[u8], old: &[u8]) -> Vec<u8> {
        carry(new, old, &names(), &[]).unwrap().bytes
    }

    #[test]
    fn values_are_carried_and_every_other_byte_is_new() {
        let old = b"PORT = 9001\nUSE_WAITRESS = True\n";
        let new = b"\xef\xbb\xbf# caf\xe9 \xc3\xa9\r\nPORT = 8080  # the port\r\nUSE_WAITRESS: bool = False\r\nprint('PORT = 1')\r\n";
        let wanted = b"\xef\xbb\xbf# caf\xe9 \xc3\xa9\r\nPORT = 9001  # the port\r\nUSE_WAITRESS: bool = True\r\nprint('PORT = 1')\r\n";
        assert_eq!(carried(new, old), wanted);
    }

    #[test]
    fn strings_comments_brackets_and_indented_lines_are_no_assignments() {
        let new = b"'''\nPORT = 1\n'''\nx = (\nPORT == 2)\nif a:\n    PORT = 3\n# PORT = 4\nPORTS = 5\n";
        assert_eq!(carried(new, b"PORT = 9\n"), new);
    }

    #[test]
    fn the_default_of_the_environment_is_carried() {
        let old = b"port = int(os.environ.get('PORT', 9001))\n";
        let new = b"def main():\n    port = int(os.environ.get(\"PORT\",  8080 ))\n";
        assert_eq!(carried(new, old), b"def main():\n    port = int(os.environ.get(\"PORT\",  9001 ))\n");
        assert_eq!(assignment(old, "PORT").as_deref(), Some("9001"));
    }

    #[test]
    fn set_writes_python_and_refuses_unknown_names() {
        let set = |name: &str, value: &str| carry(b"A = 1\n", b"", &[], &[(name.into(), value.into())]);
        assert_eq!(set("A", "True").unwrap().bytes, b"A = True\n");
        assert_eq!(set("A", "it's").unwrap().bytes, b"A = 'it\\'s'\n");
        assert_eq!(set("B", "1"), Err(CarryError::NoSuchSetting("B".into())));
    }

    #[test]
    fn a_value_over_several_lines_is_an_error() {
        assert_eq!(carry(b"PORT = 1\n", b"PORT = (\n1)\n", &names(), &[]), Err(CarryError::SpansLines("PORT".into())));
    }

    proptest! {
        #[test]
        fn carrying_a_file_into_itself_changes_nothing(text in "(PORT = [0-9]{1,4}( #x)?\r?\n|[a-z'\"(]{0,6}\n){0,6}") {
            if let Ok(done) = carry(text.as_bytes(), text.as_bytes(), &names(), &[]) {
                prop_assert_eq!(done.bytes, text.as_bytes());
            }
        }
    }
}
