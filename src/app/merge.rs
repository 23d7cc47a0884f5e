//! Merging a settings file in JSON: new keys are added, what is there stays as it is, to the letter.
//! Refuses to write anew what is there: additions are spliced into the text, so that numbers keep their digits.
#![deny(clippy::indexing_slicing, clippy::string_slice, clippy::arithmetic_side_effects)]

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
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

/// The members of an object in order, each value as it was written.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(member) = map.next_entry()? {
                    all.push(member);
                }
                Ok(Members(all))
            }
        }
        from.deserialize_map(Collect)
    }
}

impl<'a> Members<'a> {
    /// None: it is no object.
    fn of(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Where a key is there twice, the last one counts, as it does for those who read the file.
    fn get(&self, key: &str) -> Option<&'a RawValue> {
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, value)| *value)
    }
}

/// `live` with the keys of `new` that it lacks, in its own indent, line ends and order; None when it
/// lacks none.
pub fn merge_json(live: &[u8], new: &[u8]) -> Result<Option<Vec<u8>>, MergeError> {
    let live_text = object(live).map_err(MergeError::Live)?;
    let new_text = object(new).map_err(MergeError::New)?;
    let mut splice = Splice { text: live_text, indent: indent_of(live_text), additions: Vec::new() };
    splice.object(live_text.trim(), new_text.trim(), 0);
    if splice.additions.is_empty() {
        return Ok(None);
    }
    let mut out = live_text.to_string();
    // From the end, so that the places before stay where they are.
    splice.additions.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    for (at, addition) in splice.additions {
        out.insert_str(at, &addition);
    }
    let bom = if live.starts_with(BOM) { BOM } else { &[] };
    Ok(Some([bom, out.as_bytes()].concat()))
}

/// The text of a whole file that is one object. (Its depth is limited by the parser: 128.)
fn object(bytes: &[u8]) -> Result<&str, String> {
    // Before each value but the first stands one of these; those in strings count, too, which harms nobody.
    if bytes.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count() > MAX_VALUES {
        return Err(format!("it has more than {MAX_VALUES} values"));
    }
    let text = std::str::from_utf8(bytes.strip_prefix(BOM).unwrap_or(bytes)).map_err(|e| e.to_string())?;
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(Map { .. })) => Ok(text),
        Ok(_) => Err("it holds another kind of value".into()),
        Err(e) => Err(e.to_string()),
    }
}

/// The first indent of the file; none where everything stands on one line.
fn indent_of(text: &str) -> &str {
    let indent = |line: &'_ str| line.len().saturating_sub(line.trim_start_matches([' ', '\t']).len());
    let lines = text.lines().skip(1).filter_map(|line| line.get(..indent(line)));
    lines.into_iter().find(|indent| !indent.is_empty()).unwrap_or_default()
}

/// What is added to a text, and where.
struct Splice<'a> {
    text: &'a str,
    indent: &'a str,
    additions: Vec<(usize, String)>,
}

impl Splice<'_> {
    /// Adds what `mine`, an object that is a part of the text, lacks of `theirs`.
    fn object(&mut self, mine: &str, theirs: &str, depth: usize) {
        let (Some(here), Some(there)) = (Members::of(mine), Members::of(theirs)) else { return };
        let mut lacking: Vec<(&String, &RawValue)> = Vec::new();
        for (key, _) in &there.0 {
            let Some(value) = there.get(key) else { continue };
            match here.get(key) {
                Some(inner) => self.object(inner.get(), value.get(), depth.saturating_add(1)),
                None if lacking.iter().any(|(known, _)| *known == key) => {}
                None => lacking.push((key, value)),
            }
        }
        if lacking.is_empty() {
            return;
        }
        let is_empty = here.0.is_empty();
        let lines = if is_empty { self.text.trim().contains('\n') } else { mine.contains('\n') };
        let style = Style { lines: lines.then(|| self.eol()), indent: self.indent, spaced: !self.is_dense() };
        let end = match here.0.last() {
            Some((_, last)) => self.place(last.get()).saturating_add(last.get().len()),
            None => self.place(mine).saturating_add(1),
        };
        let mut addition = String::new();
        for (n, (key, value)) in lacking.iter().enumerate() {
            if !is_empty || n > 0 {
                addition.push(',');
                addition.push_str(if style.lines.is_none() && style.spaced { " " } else { "" });
            }
            style.line(&mut addition, depth.saturating_add(1));
            style.member(&mut addition, key, value.get(), depth.saturating_add(1));
        }
        // Between the braces of an empty one there may be a line already.
        if is_empty && !mine.contains('\n') {
            style.line(&mut addition, depth);
        }
        self.additions.push((end, addition));
    }

    /// Where a part of the text begins in it.
    fn place(&self, part: &str) -> usize {
        (part.as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize)
    }

    fn eol(&self) -> &'static str {
        if self.text.contains("\r\n") { "\r\n" } else { "\n" }
    }

    /// One line without a space after its colons.
    fn is_dense(&self) -> bool {
        !self.text.trim().contains('\n') && !self.text.contains("\": ")
    }
}

/// How what is added is written.
struct Style<'a> {
    /// The line end, where each member stands on a line of its own.
    lines: Option<&'static str>,
    indent: &'a str,
    /// A space follows a colon.
    spaced: bool,
}

impl Style<'_> {
    fn line(&self, out: &mut String, depth: usize) {
        if let Some(eol) = self.lines {
            out.push_str(eol);
            out.extend(std::iter::repeat_n(self.indent, depth));
        }
    }

    fn member(&self, out: &mut String, key: &str, value: &str, depth: usize) {
        out.push_str(&Value::from(key).to_string());
        out.push_str(if self.spaced { ": " } else { ":" });
        self.value(out, value, depth);
    }

    /// A value of the bundle: its numbers and texts to the letter, its lines in the indent of the file.
    fn value(&self, out: &mut String, text: &str, depth: usize) {
        if let Some(Members(members)) = Members::of(text).filter(|members| !members.0.is_empty()) {
            self.parts(out, ("{}", members.len()), depth, &mut |out, n| {
                if let Some((key, value)) = members.get(n) {
                    self.member(out, key, value.get(), depth.saturating_add(1));
                }
            });
        } else if let Some(items) = serde_json::from_str::<Vec<&RawValue>>(text).ok().filter(|items| !items.is_empty())
        {
            self.parts(out, ("[]", items.len()), depth, &mut |out, n| {
                if let Some(item) = items.get(n) {
                    self.value(out, item.get(), depth.saturating_add(1));
                }
            });
        } else {
            // A number, a text, a word; or nothing between braces.
            let is_empty = text.starts_with(['{', '[']);
            out.extend(text.chars().filter(|c| !is_empty || !c.is_whitespace()));
        }
    }

    /// A list or an object of `count` parts between these brackets.
    fn parts(
        &self,
        out: &mut String,
        (brackets, count): (&str, usize),
        depth: usize,
        part: &mut dyn FnMut(&mut String, usize),
    ) {
        let (open, close) = brackets.split_at(1);
        out.push_str(open);
        for n in 0..count {
            if n > 0 {
                out.push(',');
                out.push_str(if self.lines.is_none() && self.spaced { " " } else { "" });
            }
            self.line(out, depth.saturating_add(1));
            part(out, n);
        }
        self.line(out, depth);
        out.push_str(close);
    }
}

#[cfg(test)]
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
    fn what_is_there_keeps_its_very_text() {
        let live = "{ \"version\":1.10, \"big\" : 123456789012345678901234567890, \"e\": 1E5,\n\t\"text\": \"\\u00e9\\/\",\n\n  \
                    \"list\": [1.0,2 ], \"twice\": 1, \"twice\": {\"a\":-0},\n\t\"in\": {}\n}";
        let new =
            r#"{"more": [1.50, {"x": 9007199254740993}, [], {}], "big": 1, "twice": {"b": 2.0}, "in": {"z": 1e2}}"#;
        let out = merged(live, new).unwrap();
        let wanted = live
            .replace("{\"a\":-0}", "{\"a\":-0, \"b\": 2.0}")
            .replace("\"in\": {}", "\"in\": {\n\t\t\"z\": 1e2\n\t},\n\t\"more\": [\n\t\t1.50,\n\t\t{\n\t\t\t\"x\": 9007199254740993\n\t\t},\n\t\t[],\n\t\t{}\n\t]");
        assert_eq!(out, wanted);
        assert_eq!(merged(&out, new), None, "it is not merged a second time");
    }

    #[test]
    fn whatever_is_merged_is_json_that_holds_both() {
        let parts = [
            "{}",
            "{ }",
            "{\n}",
            "{\"a\":1}",
            "{\"a\": {}}",
            "{\"a\": {\"b\": 1.0}}\n",
            "{\r\n  \"a\": {\r\n  }\r\n}",
            "{\"\u{e9}\": [{}],\n\"b\": \"}\"}",
        ];
        for (live, new) in parts.iter().flat_map(|live| parts.iter().map(move |new| (*live, *new))) {
            let out = merged(live, new).unwrap_or(live.to_string());
            let (mut wanted, theirs) = (parsed(live), parsed(new));
            fill(&mut wanted, &theirs);
            assert_eq!(parsed(&out), wanted, "{live:?} and {new:?} gave {out:?}");
        }
    }

    fn parsed(text: &str) -> Value {
        serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text:?}"))
    }

    fn fill(mine: &mut Value, theirs: &Value) {
        let (Some(mine), Some(theirs)) = (mine.as_object_mut(), theirs.as_object()) else { return };
        for (key, value) in theirs {
            fill(mine.entry(key).or_insert_with(|| value.clone()), value);
        }
    }

    #[test]
    fn a_line_with_spaces_gets_more_of_them() {
        assert_eq!(merged("{\"a\": 1}", "{\"b\":[1,2]}").as_deref(), Some("{\"a\": 1, \"b\": [1, 2]}"));
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
