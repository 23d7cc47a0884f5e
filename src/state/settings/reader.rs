//! Takes the values out of `updater.toml` and collects what is wrong with them.
//! Refuses to choose between two readings: whatever is not exactly right is a problem, named with its line.
#![deny(clippy::indexing_slicing, clippy::string_slice, clippy::arithmetic_side_effects)]

use super::{Backup, Bundle, Clean, Hook, Hooks, Preserve, Server, Settings, Source, Tls, Verify, duration, size};
use crate::base::error::Code;
use crate::base::path::RelPath;
use std::collections::BTreeMap;
use std::time::Duration;
use toml::{Table, Value};

/// Every key of the contract.
const KNOWN: [(&str, &[&str]); 9] = [
    ("server", &["port", "command", "env", "service", "health", "health_timeout", "soak", "stop_timeout"]),
    ("preserve", &["defaults", "paths", "add_databases", "merge_json", "carry"]),
    ("clean", &["paths"]),
    ("verify", &["critical", "sqlite", "tables"]),
    ("backup", &["dir", "keep", "max_file", "skip"]),
    ("bundle", &["app", "trusted_keys", "require_signature", "max_size", "max_files"]),
    ("hooks", &["defaults", "before_stop", "after_swap"]),
    ("source", &["url", "server", "path", "base_folder", "pin", "sha256_url"]),
    ("tls", &["pins"]),
];

/// Something wrong with the settings.
pub(super) struct Problem {
    pub(super) code: Code,
    pub(super) text: String,
    pub(super) remedy: &'static str,
}

impl Problem {
    pub(super) fn bad(text: String) -> Self {
        Self { code: Code::BadSettings, text, remedy: "correct the settings file; every key is optional" }
    }
}

#[derive(Default)]
pub(super) struct Reader {
    pub(super) problems: Vec<Problem>,
    table: Table,
    /// Line of each `section` and `section.key`.
    lines: BTreeMap<String, usize>,
}

impl Reader {
    pub(super) fn parse(&mut self, bytes: &[u8]) {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
            Err(error) => {
                let line = line_of(bytes.get(..error.valid_up_to()).unwrap_or_default());
                return self.problems.push(Problem::bad(format!("line {line}: the settings are not UTF-8")));
            }
        };
        match text.parse::<Table>() {
            Ok(table) => self.table = table,
            Err(error) => {
                let line = error.span().and_then(|span| text.as_bytes().get(..span.start)).map(line_of);
                let line = line.map(|line| format!("line {line}: ")).unwrap_or_default();
                return self.problems.push(Problem::bad(format!("{line}{}", error.message())));
            }
        }
        let mut lines = BTreeMap::new();
        if let Ok(spanned) = toml::de::DeTable::parse(text) {
            let at = |start: usize| text.as_bytes().get(..start).map_or(1, line_of);
            for (section, value) in spanned.get_ref() {
                lines.insert(section.get_ref().to_string(), at(section.span().start));
                if let toml::de::DeValue::Table(keys) = value.get_ref() {
                    for key in keys.keys() {
                        lines.insert(format!("{}.{}", section.get_ref(), key.get_ref()), at(key.span().start));
                    }
                }
            }
        }
        self.lines = lines;
        self.check_names();
    }

    fn check_names(&mut self) {
        let sections: Vec<&str> = KNOWN.iter().map(|(section, _)| *section).collect();
        let mut wrong = Vec::new();
        for (section, value) in &self.table {
            let Some((_, keys)) = KNOWN.iter().find(|(known, _)| known == section) else {
                // A key that lacks its section is the likelier slip than a misspelt section.
                let home = KNOWN.iter().find(|(_, keys)| !value.is_table() && keys.contains(&section.as_str()));
                let near = match home {
                    Some((home, _)) => format!("[{home}] {section}"),
                    None => format!("[{}]", nearest(section, &sections)),
                };
                wrong.push((section.clone(), format!("unknown section or key; the nearest known one is {near}")));
                continue;
            };
            let Value::Table(table) = value else {
                wrong.push((section.clone(), format!("must be a section: [{section}]")));
                continue;
            };
            for key in table.keys().filter(|key| !keys.contains(&key.as_str())) {
                let near = nearest(key, keys);
                wrong.push((format!("{section}.{key}"), format!("unknown key; the nearest known one is {near}")));
            }
        }
        for (key, reason) in wrong {
            self.wrong(&key, &reason);
        }
    }

    /// Puts `key` and its line before the reason.
    fn place(&self, key: &str, reason: &str) -> String {
        match self.lines.get(key) {
            Some(line) => format!("line {line}: {key}: {reason}"),
            None => format!("{key}: {reason}"),
        }
    }

    fn wrong(&mut self, key: &str, reason: &str) {
        let text = self.place(key, reason);
        self.problems.push(Problem::bad(text));
    }

    fn unsupported(&mut self, key: &str, what: &str) {
        let text = self.place(key, &format!("this version of the updater cannot honour {what} yet"));
        let remedy = "take the setting out, or use a version of the updater that knows it";
        self.problems.push(Problem { code: Code::UnsupportedSetting, text, remedy });
    }

    /// The value of `section.key` as `read` understands it; None when absent or wrong.
    fn take<T>(&mut self, key: &str, read: impl FnOnce(&Value) -> Result<T, String>) -> Option<T> {
        let (section, name) = key.split_once('.')?;
        let result = read(self.table.get(section)?.get(name)?);
        result.map_err(|reason| self.wrong(key, &reason)).ok()
    }

    pub(super) fn settings(&mut self) -> Settings {
        let base = Settings::default();
        let settings = Settings {
            server: Server {
                port: self.take("server.port", port),
                command: self.take("server.command", command),
                env: self.take("server.env", environment).unwrap_or_default(),
                service: self.take("server.service", filled),
                health: self.take("server.health", health),
                health_timeout: self.take("server.health_timeout", time).unwrap_or(base.server.health_timeout),
                soak: self.take("server.soak", time).unwrap_or(base.server.soak),
                stop_timeout: self.take("server.stop_timeout", time).unwrap_or(base.server.stop_timeout),
            },
            preserve: Preserve {
                defaults: self.take("preserve.defaults", truth).unwrap_or(base.preserve.defaults),
                paths: self.take("preserve.paths", list).unwrap_or(base.preserve.paths),
                add_databases: self.take("preserve.add_databases", truth).unwrap_or(base.preserve.add_databases),
                merge_json: self.take("preserve.merge_json", paths).unwrap_or(base.preserve.merge_json),
                carry: self.take("preserve.carry", carry).unwrap_or(base.preserve.carry),
            },
            clean: Clean { paths: self.take("clean.paths", list).unwrap_or_default() },
            verify: Verify {
                critical: self.take("verify.critical", paths).unwrap_or(base.verify.critical),
                sqlite: self.take("verify.sqlite", list).unwrap_or(base.verify.sqlite),
                tables: self.take("verify.tables", list).unwrap_or(base.verify.tables),
            },
            backup: Backup {
                dir: self.take("backup.dir", folder).unwrap_or(base.backup.dir),
                keep: self.take("backup.keep", count).unwrap_or(base.backup.keep),
                max_file: self.take("backup.max_file", bytes).unwrap_or(base.backup.max_file),
                skip: self.take("backup.skip", list).unwrap_or(base.backup.skip),
            },
            bundle: Bundle {
                app: self.take("bundle.app", filled),
                trusted_keys: self.take("bundle.trusted_keys", list).unwrap_or_default(),
                require_signature: self.take("bundle.require_signature", truth).unwrap_or_default(),
                max_size: self.take("bundle.max_size", bytes).unwrap_or(base.bundle.max_size),
                max_files: self.take("bundle.max_files", number).unwrap_or(base.bundle.max_files),
            },
            hooks: Hooks {
                defaults: self.take("hooks.defaults", truth).unwrap_or(base.hooks.defaults),
                before_stop: self.take("hooks.before_stop", |value| hooks(value, false)).unwrap_or_default(),
                after_swap: self.take("hooks.after_swap", |value| hooks(value, true)).unwrap_or_default(),
            },
            source: Source {},
            tls: Tls {},
        };
        self.refuse_unsupported(&settings);
        settings
    }

    fn refuse_unsupported(&mut self, settings: &Settings) {
        if settings.bundle.require_signature {
            self.unsupported("bundle.require_signature", "signatures");
        }
        if !settings.bundle.trusted_keys.is_empty() {
            self.unsupported("bundle.trusted_keys", "signatures");
        }
        let empty = |value: &Value| match value {
            Value::Array(all) => all.is_empty(),
            Value::Table(all) => all.is_empty(),
            _ => false,
        };
        if self.take("tls.pins", |value| Ok(!empty(value))) == Some(true) {
            self.unsupported("tls.pins", "pinned certificates");
        }
        if self.table.get("source").is_some_and(|source| !empty(source)) {
            self.unsupported("source", "a source of bundles");
        }
    }
}

fn line_of(before: &[u8]) -> usize {
    before.iter().filter(|byte| **byte == b'\n').count().saturating_add(1)
}

fn text(value: &Value) -> Result<String, String> {
    value.as_str().map(str::to_string).ok_or_else(|| expected("a text", value))
}
fn filled(value: &Value) -> Result<String, String> {
    let text = text(value)?;
    if text.trim().is_empty() { Err("must not be empty".to_string()) } else { Ok(text) }
}
fn truth(value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| expected("true or false", value))
}
fn number(value: &Value) -> Result<u64, String> {
    let number = value.as_integer().ok_or_else(|| expected("a number", value))?;
    u64::try_from(number).map_err(|_| "must not be negative".to_string())
}
fn count(value: &Value) -> Result<u32, String> {
    match u32::try_from(number(value)?) {
        Ok(0) => Err("must be at least 1".to_string()),
        Ok(count) => Ok(count),
        Err(_) => Err("is too large".to_string()),
    }
}
fn port(value: &Value) -> Result<u16, String> {
    let port = u16::try_from(number(value)?).ok().filter(|port| *port != 0);
    port.ok_or_else(|| "must be a port, 1 to 65535".to_string())
}
fn time(value: &Value) -> Result<Duration, String> {
    duration(value.as_str().ok_or_else(|| expected("a duration like \"15s\"", value))?)
}
fn bytes(value: &Value) -> Result<u64, String> {
    match value {
        Value::Integer(_) => number(value),
        _ => size(value.as_str().ok_or_else(|| expected("a size like \"2 GiB\"", value))?),
    }
}
fn list(value: &Value) -> Result<Vec<String>, String> {
    value.as_array().ok_or_else(|| expected("a list of texts", value))?.iter().map(filled).collect()
}
fn command(value: &Value) -> Result<Vec<String>, String> {
    let words: Vec<String> = value
        .as_array()
        .ok_or_else(|| expected("a list of texts", value))?
        .iter()
        .map(text)
        .collect::<Result<_, _>>()?;
    if words.first().is_none_or(|program| program.is_empty()) {
        return Err("must name a program".to_string());
    }
    if words.iter().any(|word| word.contains('\0')) { Err("holds a NUL".to_string()) } else { Ok(words) }
}
fn environment(value: &Value) -> Result<BTreeMap<String, String>, String> {
    let table = value.as_table().ok_or_else(|| expected("a table of texts", value))?;
    let bad = |name: &str| name.is_empty() || name.contains(['=', '\0']);
    table
        .iter()
        .map(|(name, value)| match text(value) {
            Ok(text) if !bad(name) && !text.contains('\0') => Ok((name.clone(), text)),
            Ok(_) => Err(format!("{name:?} is not a possible variable")),
            Err(reason) => Err(format!("{name}: {reason}")),
        })
        .collect()
}
fn carry(value: &Value) -> Result<BTreeMap<String, Vec<String>>, String> {
    let table = value.as_table().ok_or_else(|| expected("a table of lists", value))?;
    table.iter().map(|(file, names)| Ok((below(file)?, list(names)?))).collect()
}
fn paths(value: &Value) -> Result<Vec<String>, String> {
    list(value)?.iter().map(|path| below(path)).collect()
}
fn folder(value: &Value) -> Result<String, String> {
    let dir = below(&text(value)?)?;
    let own = dir.split('/').next().is_some_and(|top| top.eq_ignore_ascii_case(".updater"));
    if own { Err("must not lie in .updater".to_string()) } else { Ok(dir) }
}
/// A relative path below the root.
fn below(path: &str) -> Result<String, String> {
    let plain = path.strip_suffix('/').unwrap_or(path);
    match RelPath::parse(plain) {
        Ok(_) => Ok(plain.to_string()),
        Err(bad) => Err(format!("{path:?} must be a relative path below the root: {bad}")),
    }
}
/// A list of hooks; those before the stop change nothing of the install.
fn hooks(value: &Value, may_change: bool) -> Result<Vec<Hook>, String> {
    let entries = value.as_array().ok_or_else(|| expected("a list of tables", value))?.iter().enumerate();
    entries
        .map(|(at, entry)| hook(entry, may_change).map_err(|why| format!("entry {}: {why}", at.saturating_add(1))))
        .collect()
}
fn hook(value: &Value, may_change: bool) -> Result<Hook, String> {
    const KEYS: [&str; 4] = ["run", "when_changed", "changes", "timeout"];
    let table = value.as_table().ok_or_else(|| expected("a table", value))?;
    if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(format!("{key}: unknown key; the nearest known one is {}", nearest(key, &KEYS)));
    }
    fn take<T>(table: &Table, key: &str, read: impl FnOnce(&Value) -> Result<T, String>) -> Result<Option<T>, String> {
        table.get(key).map(|value| read(value).map_err(|why| format!("{key}: {why}"))).transpose()
    }
    let changes = take(table, "changes", paths)?.unwrap_or_default();
    if !changes.is_empty() && !may_change {
        return Err("changes: before the stop a hook changes nothing of the install; name it in after_swap".to_string());
    }
    Ok(Hook {
        run: take(table, "run", command)?.ok_or("run: is missing; it lists the program and its arguments")?,
        when_changed: take(table, "when_changed", list)?.unwrap_or_default(),
        changes,
        timeout: take(table, "timeout", time)?.unwrap_or(Hook::TIMEOUT),
    })
}
fn health(value: &Value) -> Result<String, String> {
    let health = text(value)?;
    let fits = ["/", "http://", "https://"].iter().any(|start| health.starts_with(start));
    if fits { Ok(health) } else { Err("must be a path that begins with / or an http(s) URL".to_string()) }
}
fn expected(what: &str, value: &Value) -> String {
    format!("must be {what}, not {}", value.type_str())
}

/// The known word with the fewest edits from this one.
fn nearest<'a>(word: &str, known: &[&'a str]) -> &'a str {
    known.iter().copied().min_by_key(|other| distance(word, other)).unwrap_or_default()
}

/// Edits (insert, remove, replace) from one word to the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i.saturating_add(1);
        for (cell, b) in row.iter_mut().skip(1).zip(&other) {
            let best =
                diagonal.saturating_add(usize::from(a != *b)).min(cell.saturating_add(1)).min(left.saturating_add(1));
            diagonal = *cell;
            *cell = best;
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i.saturating_add(1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
