//! Whatever came from outside as ASCII, for people and for programs.
//! Refuses to lose anything: what is no ASCII is escaped.

use serde_json::Value;
use std::fmt::Write as _;

/// Text as ASCII: other characters and control characters (but `\n`) as `\u{..}`.
pub fn ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' || (c.is_ascii() && !c.is_ascii_control()) {
            out.push(c);
        } else {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        }
    }
    out
}

/// One line of JSON in ASCII; characters beyond 16 bits as surrogate pairs.
pub fn ascii_json(value: &Value) -> String {
    let text = value.to_string();
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() && c != '\u{7f}' {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out
}

/// ASCII without line breaks, for names from outside.
pub(super) fn one_line(text: &str) -> String {
    ascii(text).replace('\n', "\\u{a}")
}
