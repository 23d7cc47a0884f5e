//! What a server says in place of a bundle: an error of its own, a web page, something else than a zip.
//! Refuses to show more of it than a line of plain characters.

use super::Source;
use crate::base::error::{Code, Failure};
use crate::base::net::Answered;
use crate::base::report::ascii;
use serde_json::Value;

/// How much of an answer that is no bundle is read for its reason, in bytes.
pub(super) const READ: usize = 16 * 1024;
/// How much of that is shown, in characters.
const SHOWN: usize = 200;

/// The failure of a status that brings no bundle; `body`: the beginning of what came with it.
pub(super) fn refusal(source: &Source, answer: &Answered, body: &[u8]) -> Failure {
    let status = answer.status;
    let said = reason(&answer.media_type, body).map(|text| format!(": {}", shown(&source.now.without_secrets(&text))));
    let said = said.unwrap_or_default();
    match status {
        401 | 403 => {
            let user = if source.typed.has_user { "; a user and password in the address are not sent" } else { "" };
            source
                .failure(&format!("the server refuses it with status {status}{said}"))
                .remedy(format!("check that it may be downloaded without a login{user}"))
        }
        404 => source.failure(&format!("there is no such file (status 404){said}")).remedy("check the address"),
        300..=399 if answer.location.is_none() => {
            source.failure(&format!("the server answered with status {status} and names no other address"))
        }
        _ => source.failure(&format!("the server answered with status {status}{said}")),
    }
}

/// The reason in the words of the server, where it has one that can be told from a page.
fn reason(media_type: &str, body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let found = if media_type.contains("json") {
        let object: Value = serde_json::from_str(&text).ok()?;
        let words = |object: &Value| {
            ["error", "message", "detail"].iter().find_map(|name| object.get(name)?.as_str().map(str::to_string))
        };
        words(&object).or_else(|| words(object.get("error")?))?
    } else if media_type.starts_with("text/plain") {
        text.into_owned()
    } else {
        return None;
    };
    Some(found).filter(|text| !text.trim().is_empty())
}

/// One line of at most `SHOWN` printable characters.
fn shown(text: &str) -> String {
    let line = ascii(&text.split_whitespace().collect::<Vec<_>>().join(" "));
    let cut: String = line.chars().take(SHOWN).collect();
    if cut.len() < line.len() { format!("{cut}...") } else { cut }
}

/// Refuses what is plainly no zip by its first bytes. What is not known here is for the zip's reader to judge.
pub(super) fn is_no_zip(source: &Source, head: &[u8]) -> Option<Failure> {
    let (what, remedy) = other_kind(head)?;
    let message =
        format!("the server at {} answered with {what}, not a bundle: {source} is no zip file", source.now.host());
    Some(Failure::refused(Code::BadZip, message).at(&source.typed).remedy(remedy))
}

fn other_kind(head: &[u8]) -> Option<(&'static str, &'static str)> {
    const LOGIN: &str = "is a login needed, or does the network ask for one? open the address in a browser";
    const PACK: &str = "give the address of the zip of the same release";
    const CHECK: &str = "check the address";
    if head.is_empty() {
        return Some(("nothing (0 bytes)", CHECK));
    }
    let text = String::from_utf8_lossy(head).trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    if ["<!doctype html", "<html", "<head", "<body", "<script"].iter().any(|tag| text.starts_with(tag)) {
        return Some(("a web page", LOGIN));
    }
    if text.starts_with("<?xml") || text.starts_with("<!doctype") {
        // XHTML is written so, too.
        return Some(if text.contains("<html") { ("a web page", LOGIN) } else { ("XML", CHECK) });
    }
    if text.starts_with('{') || text.starts_with('[') {
        return Some(("JSON", "the address may be that of an interface, not of a file; check it"));
    }
    let magic: [(&[u8], &str); 5] = [
        (b"\x1f\x8b", "gzip data (a .tar.gz, or a compressed answer)"),
        (b"BZh", "a bzip2 archive"),
        (b"\xfd7zXZ\0", "an xz archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"Rar!\x1a\x07", "a rar archive"),
    ];
    magic.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, what)| (*what, PACK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_the_server_is_one_plain_line() {
        for (media_type, body, said) in [
            ("application/json; charset=utf-8", r#"{"error": "no such release"}"#, Some("no such release")),
            (
                "application/problem+json",
                r#"{"status": 1, "detail": "gone\n\u001b[31mred"}"#,
                Some("gone \\u{1b}[31mred"),
            ),
            ("application/json", r#"{"error": {"message": "quota"}}"#, Some("quota")),
            ("application/json", r#"{"error": 5}"#, None),
            ("application/json", "{broken", None),
            ("text/plain", " no\r\n\r\n such file\u{e9} ", Some("no such file\\u{e9}")),
            ("text/html", "<html>no</html>", None),
            ("", "no", None),
            ("text/plain", " \n", None),
        ] {
            let told = reason(media_type, body.as_bytes()).map(|text| shown(&text));
            assert_eq!(told.as_deref(), said, "{media_type}: {body}");
        }
        assert_eq!(shown(&"x".repeat(5000)).len(), 203);
    }

    #[test]
    fn what_is_no_zip_is_told_by_its_beginning() {
        let what = |head: &[u8]| other_kind(head).map(|(what, _)| what.split(' ').next().unwrap());
        assert_eq!(what(b"\xef\xbb\xbf\r\n <!DOCTYPE HTML>"), Some("a"));
        assert_eq!(what(b"{\"error\": 1}"), Some("JSON"));
        assert_eq!(what(b"\x1f\x8b\x08"), Some("gzip"));
        assert_eq!(what(b""), Some("nothing"));
        assert_eq!(what(b"PK\x03\x04"), None);
        // A program that unpacks itself is a zip, too.
        assert_eq!(what(b"MZ\x90"), None);
        assert_eq!(what(b"#!/bin/sh\n"), None);
    }
}
