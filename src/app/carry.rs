//! Carrying settings over: top-level assignments of a Python file keep the install's values, every
//! other byte is the bundle's.
//! Refuses to decode the file: it works on bytes, so encoding, byte order mark and line ends stay.
//! The bytes are a bundle's or an operator's, so nothing here may index, add or take away without a bound.
#![deny(clippy::indexing_slicing, clippy::string_slice, clippy::arithmetic_side_effects)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::ops::Range;

/// The largest file that settings are carried into or merged into, in bytes: it is read whole, and what is longer is no
/// settings file.
pub const MAX_SIZE: u64 = 4 << 20;

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
    #[error("the value of {0} is a string without an end")]
    NoEnd(String),
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
        let old_value = find(old, name)?.map(|range| part(old, range).to_vec());
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
            if let Some(value) = default.or_else(|| environ_default(old).map(|r| part(old, r).to_vec())) {
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
        bytes.extend_from_slice(part(new, at..place.start));
        bytes.extend_from_slice(&value);
        at = place.end;
    }
    bytes.extend_from_slice(part(new, at..new.len()));
    Ok(Carried { bytes, carried, absent })
}

/// The value that a file assigns to `name` at its top level, as written; for PORT also the default
/// given to the environment's.
pub fn assignment(bytes: &[u8], name: &str) -> Option<String> {
    let text = |range: Range<usize>| String::from_utf8_lossy(part(bytes, range)).into_owned();
    let value = find(bytes, name).ok().flatten().map(text);
    let plain = value.clone().filter(|v| !v.contains('('));
    plain.or_else(|| (name == "PORT").then(|| environ_default(bytes).map(text))?).or(value)
}

/// How a value is written in Python, on one line. What is quoted already, a constant or a number is taken as it is.
fn literal(value: &str) -> String {
    let mut scan = Scan { bytes: value.as_bytes(), at: 0, depth: 0 };
    let opens = value.bytes().next().filter(|byte| matches!(byte, b'\'' | b'"'));
    let is_quoted = opens.is_some_and(|quote| scan.string(quote)) && scan.at == value.len();
    let is_quoted = is_quoted && !value.contains(['\n', '\r']);
    // Python has no number with zeros before it, such as a PIN.
    let is_padded = value.len() > 1 && value.starts_with('0') && value.bytes().all(|b| b.is_ascii_digit());
    let is_number = !is_padded && value.parse::<f64>().is_ok_and(f64::is_finite);
    if is_quoted || is_number || ["True", "False", "None"].contains(&value) {
        return value.to_string();
    }
    let escaped = value.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n").replace('\r', "\\r");
    format!("'{escaped}'")
}

/// The bytes of a range; nothing where it does not lie in the file.
fn part(bytes: &[u8], range: Range<usize>) -> &[u8] {
    bytes.get(range).unwrap_or_default()
}

/// What stands at `at` and behind it.
fn rest(bytes: &[u8], at: usize) -> &[u8] {
    bytes.get(at..).unwrap_or_default()
}

/// The first place at or behind `at` where no blank stands.
fn after_blanks(bytes: &[u8], at: usize) -> usize {
    let blanks = rest(bytes, at).iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    at.saturating_add(blanks)
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
        let end = scan.value_end(name);
        scan.logical_line();
        // A value whose end is not on its first line cannot be moved as one piece.
        let end = end?;
        if part(bytes, value..scan.at).iter().filter(|b| **b == b'\n').count() > 1 {
            return Err(CarryError::SpansLines(name.to_string()));
        }
        found = Some(value..end);
    }
    Ok(found)
}

/// The position of the value where the line at `line` reads `NAME = ...` or `NAME: type = ...`.
fn value_start(bytes: &[u8], line: usize, name: &str) -> Option<usize> {
    rest(bytes, line).strip_prefix(name.as_bytes())?;
    let mut at = after_blanks(bytes, line.saturating_add(name.len()));
    if bytes.get(at) == Some(&b':') {
        let kind = rest(bytes, at).iter().take_while(|b| !matches!(b, b'=' | b'\n' | b'\r')).count();
        at = at.saturating_add(kind);
    }
    let behind = rest(bytes, at).strip_prefix(b"=")?;
    (behind.first() != Some(&b'=')).then(|| after_blanks(bytes, at.saturating_add(1)))
}

/// Walks over Python source far enough to know strings, comments and brackets apart.
struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
}

impl<'a> Scan<'a> {
    fn rest(&self) -> &'a [u8] {
        rest(self.bytes, self.at)
    }

    /// Goes on by so many bytes, at most to the end of the file.
    fn skip(&mut self, count: usize) {
        self.at = self.at.saturating_add(count).min(self.bytes.len());
    }

    /// Moves to the start of the next logical line.
    fn logical_line(&mut self) {
        while let Some(byte) = self.bytes.get(self.at) {
            match byte {
                b'\n' if self.depth == 0 => {
                    self.skip(1);
                    return;
                }
                b'\\' => self.skip(if self.rest().starts_with(b"\\\r\n") { 3 } else { 2 }),
                _ => self.step(*byte),
            }
        }
    }

    fn step(&mut self, byte: u8) {
        match byte {
            b'#' => self.skip(self.rest().iter().take_while(|b| **b != b'\n').count()),
            b'\'' | b'"' => {
                self.string(byte);
            }
            b'(' | b'[' | b'{' => {
                self.depth = self.depth.saturating_add(1);
                self.skip(1);
            }
            b')' | b']' | b'}' => {
                self.depth = self.depth.saturating_sub(1);
                self.skip(1);
            }
            _ => self.skip(1),
        }
    }

    /// Goes over a string. False: it has no end on its line, or in the file.
    fn string(&mut self, quote: u8) -> bool {
        let triple = self.rest().starts_with(&[quote; 3]);
        self.skip(if triple { 3 } else { 1 });
        while let Some(byte) = self.bytes.get(self.at) {
            match byte {
                // What is escaped is a part of the string; the file may end before it.
                b'\\' => self.skip(if self.rest().starts_with(b"\\\r\n") { 3 } else { 2 }),
                b'\n' if !triple => return false,
                _ if *byte == quote && (!triple || self.rest().starts_with(&[quote; 3])) => {
                    self.skip(if triple { 3 } else { 1 });
                    return true;
                }
                _ => self.skip(1),
            }
        }
        false
    }

    /// The end of the value of `name` at the present position. Errors: it goes on behind the line, or never ends.
    fn value_end(&self, name: &str) -> Result<usize, CarryError> {
        let spans = || CarryError::SpansLines(name.to_string());
        let mut scan = Scan { bytes: self.bytes, at: self.at, depth: 0 };
        let mut end = self.at;
        while let Some(byte) = self.bytes.get(scan.at) {
            match byte {
                b'\n' | b'\r' if scan.depth > 0 => return Err(spans()),
                b'\n' | b'\r' | b'#' if scan.depth == 0 => break,
                b'\\' => return Err(spans()),
                b'\'' | b'"' => {
                    let from = scan.at;
                    let is_closed = scan.string(*byte);
                    if part(self.bytes, from..scan.at).contains(&b'\n') {
                        return Err(spans());
                    }
                    if !is_closed {
                        return Err(CarryError::NoEnd(name.to_string()));
                    }
                    end = scan.at;
                }
                _ => {
                    let from = scan.at;
                    scan.step(*byte);
                    if part(self.bytes, from..scan.at).contains(&b'\n') {
                        return Err(spans());
                    }
                    if !matches!(byte, b' ' | b'\t') {
                        end = scan.at;
                    }
                }
            }
        }
        if end > self.at { Ok(end) } else { Err(spans()) }
    }
}

/// Where N stands in `int(os.environ.get('PORT', N))` or `int(os.getenv("PORT", N))`.
fn environ_default(bytes: &[u8]) -> Option<Range<usize>> {
    for call in [&b"environ.get("[..], b"getenv("] {
        let mut from = 0;
        while let Some(found) = rest(bytes, from).windows(call.len()).position(|w| w == call) {
            from = from.saturating_add(found).saturating_add(call.len());
            if let Some(place) = default_after(bytes, from) {
                return Some(place);
            }
        }
    }
    None
}

/// Where N stands in `'PORT', N` at `at`.
fn default_after(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    let name = after_blanks(bytes, at);
    let is_port = |quote: u8| rest(bytes, name).starts_with(&[quote, b'P', b'O', b'R', b'T', quote]);
    if !is_port(b'\'') && !is_port(b'"') {
        return None;
    }
    let comma = after_blanks(bytes, name.saturating_add("'PORT'".len()));
    rest(bytes, comma).strip_prefix(b",")?;
    let mut value = after_blanks(bytes, comma.saturating_add(1));
    if matches!(bytes.get(value), Some(b'\'' | b'"')) {
        value = value.saturating_add(1);
    }
    let digits = rest(bytes, value).iter().take_while(|b| b.is_ascii_digit()).count();
    (digits > 0).then(|| value..value.saturating_add(digits))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
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

    #[test]
    fn a_value_is_written_so_that_python_reads_it_back() {
        for (value, written) in [
            ("'a'", "'a'"),
            ("'", "'\\''"),
            ("'a'b'", "'\\'a\\'b\\''"),
            ("'\\'", "'\\'\\\\\\''"),
            ("'C:\\\\a'", "'C:\\\\a'"),
            ("\"it's\"", "\"it's\""),
            ("a\nb", "'a\\nb'"),
            ("0123", "'0123'"),
            ("0", "0"),
            ("0.5", "0.5"),
            ("nan", "'nan'"),
        ] {
            assert_eq!(literal(value), written, "{value:?}");
        }
    }

    #[test]
    fn a_file_may_end_anywhere() {
        let whole =
            b"\xef\xbb\xbfA = '''x\\\n'''\nPORT: int = \"a\\\r\nb\" # c\nport = int(os.environ.get('PORT', \"80\\";
        for end in 0..=whole.len() {
            let cut = &whole[..end];
            for (new, old) in [(cut, &b"PORT = 1\n"[..]), (b"PORT = 1\n", cut), (cut, cut)] {
                let _ = carry(new, old, &names(), &[("PORT".into(), "2".into())]);
            }
            let _ = (assignment(cut, "PORT"), differs_in_settings_alone(cut, cut, &names()));
        }
    }

    #[test]
    fn a_string_without_an_end_is_an_error() {
        let error = || CarryError::NoEnd("PORT".into());
        for text in [&b"PORT = \"a\\"[..], b"PORT = '''a", b"PORT = \"a\\\""] {
            assert_eq!(carry(b"PORT = 2\n", text, &names(), &[]), Err(error()));
            assert_eq!(carry(text, b"PORT = 2\n", &names(), &[]), Err(error()));
        }
        assert_eq!(carry(b"PORT = 2\n", b"PORT = 'a\nB = 1\n", &names(), &[]), Err(error()));
    }

    proptest! {
        #[test]
        fn whatever_is_carried_into_whatever_ends_well(
            new in r#"(PORT|USE_WAITRESS|environ\.get\('PORT',| |=|:|#|[('"\\\])]|'''|1|\r|\n){0,40}"#,
            old in r#"(PORT|USE_WAITRESS|environ\.get\('PORT',| |=|:|#|[('"\\\])]|'''|1|\r|\n){0,40}"#,
        ) {
            let _ = carry(new.as_bytes(), old.as_bytes(), &names(), &[("PORT".into(), "2".into())]);
            let _ = assignment(new.as_bytes(), "PORT");
        }

        #[test]
        fn carrying_a_file_into_itself_changes_nothing(text in "(PORT = [0-9]{1,4}( #x)?\r?\n|[a-z'\"(]{0,6}\n){0,6}") {
            if let Ok(done) = carry(text.as_bytes(), text.as_bytes(), &names(), &[]) {
                prop_assert_eq!(done.bytes, text.as_bytes());
            }
        }
    }
}
