//! Merging a settings file in JSON: new keys are added, what is there stays as it is.
//! Refuses to rewrite a file to which nothing is added.
#![deny(
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use serde_json::{Map, Value};

#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error("the installed file is no JSON object: {0}")]
    Live(String),
    #[error("the bundle's file is no JSON object: {0}")]
    New(String),
}

/// How many values a settings file may have: each takes some hundred bytes of memory, whatever it takes in the file.
const MAX_VALUES: usize = 100_000;

const BOM: &[u8] = &[0xef, 0xbb, 0xbf];

/// `live` with the keys of `new` that it lacks, in its own indent, line ends and order; None when it
/// lacks none.
pub fn merge_json(live: &[u8], new: &[u8]) -> Result<Option<Vec<u8>>, MergeError> {
    let (mut mine, theirs) = (object(live).map_err(MergeError::Live)?, object(new).map_err(MergeError::New)?);
    if !add(&mut mine, &theirs) {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(live);
    let indent: String = text
        .lines()
        .skip(1)
        .map(|line| line.chars().take_while(|c| *c == ' ' || *c == '\t').collect::<String>())
        .find(|indent| !indent.is_empty())
        .unwrap_or_default();
    let mut out = if text.trim().contains('\n') {
        let mut out = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
        let mut writer = serde_json::Serializer::with_formatter(&mut out, formatter);
        serde::Serialize::serialize(&mine, &mut writer).map_err(|e| MergeError::Live(e.to_string()))?;
        String::from_utf8_lossy(&out).into_owned()
    } else {
        Value::Object(mine).to_string()
    };
    if text.ends_with('\n') {
        out.push('\n');
    }
    if text.contains("\r\n") {
        out = out.replace('\n', "\r\n");
    }
    let bom = if live.starts_with(BOM) { BOM } else { &[] };
    Ok(Some([bom, out.as_bytes()].concat()))
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    // Before each value but the first stands one of these; those in strings count, too, which harms nobody.
    if bytes.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count() > MAX_VALUES {
        return Err(format!("it has more than {MAX_VALUES} values"));
    }
    match serde_json::from_slice(bytes.strip_prefix(BOM).unwrap_or(bytes)) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err("it holds another kind of value".into()),
        Err(e) => Err(e.to_string()),
    }
}

fn add(mine: &mut Map<String, Value>, theirs: &Map<String, Value>) -> bool {
    let mut added = false;
    for (key, value) in theirs {
        match (mine.get_mut(key), value) {
            (None, _) => {
                mine.insert(key.clone(), value.clone());
                added = true;
            }
            (Some(Value::Object(inner)), Value::Object(more)) => added |= add(inner, more),
            _ => {}
        }
    }
    added
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn merged(live: &str, new: &str) -> Option<String> {
        merge_json(live.as_bytes(), new.as_bytes()).unwrap().map(|b| String::from_utf8(b).unwrap())
    }

    #[test]
    fn new_keys_are_added_and_existing_values_kept() {
        let live = "{\r\n    \"b\": 1,\r\n    \"a\": {\r\n        \"x\": \"mine\"\r\n    }\r\n}\r\n";
        let new = r#"{"a": {"x": "theirs", "y": 2}, "b": 9, "c": null}"#;
        let wanted = "{\r\n    \"b\": 1,\r\n    \"a\": {\r\n        \"x\": \"mine\",\r\n        \"y\": 2\r\n    },\r\n    \"c\": null\r\n}\r\n";
        assert_eq!(merged(live, new).as_deref(), Some(wanted));
    }

    #[test]
    fn nothing_new_leaves_the_file_alone() {
        assert_eq!(merged("{\"a\":1}", "{\"a\":2}"), None);
    }

    #[test]
    fn one_line_stays_one_line() {
        assert_eq!(merged("{\"a\":1}", "{\"b\":2}").as_deref(), Some("{\"a\":1,\"b\":2}"));
    }

    #[test]
    fn what_is_no_json_is_named_by_its_side() {
        assert!(matches!(merge_json(b"{", b"{}"), Err(MergeError::Live(_))));
        assert!(matches!(merge_json(b"{}", b"[]"), Err(MergeError::New(_))));
        let many = format!("{{\"a\": [{}0]}}", "0,".repeat(MAX_VALUES));
        assert!(matches!(merge_json(b"{}", many.as_bytes()), Err(MergeError::New(_))));
    }
}
