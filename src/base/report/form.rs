//! The form of what is written: JSON with its schema, logs that are appended to.

use crate::system::files;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;

/// The object with `"schema": 1` as its first field.
pub(super) fn with_schema(value: &Value) -> Value {
    let mut all = Map::new();
    all.insert("schema".to_string(), json!(1));
    if let Value::Object(fields) = value {
        all.extend(fields.iter().filter(|(name, _)| *name != "schema").map(|(name, v)| (name.clone(), v.clone())));
    }
    Value::Object(all)
}

/// Opens a log to append to it; None: it cannot be opened, and nothing is logged there.
pub(super) fn append(path: &Path) -> Option<File> {
    let mut file = files::open_private(path).ok()?;
    file.seek(SeekFrom::End(0)).ok()?;
    Some(file)
}
