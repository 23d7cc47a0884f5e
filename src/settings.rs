//! `updater.toml`: every key typed, checked and with its default.
//! Refuses what it does not know and what this version cannot honour: a setting is never silently ignored.

use crate::error::Failure;
use crate::path::RelPath;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use toml::{Table, Value};

/// All settings; `Settings::default()` serves the legacy server as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    pub server: Server,
    pub preserve: Preserve,
    pub verify: Verify,
    pub backup: Backup,
    pub bundle: Bundle,
    pub hooks: Hooks,
    pub source: Source,
    pub tls: Tls,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub port: Option<u16>,
    pub command: Option<Vec<String>>,
    pub env: BTreeMap<String, String>,
    pub service: Option<String>,
    pub health: Option<String>,
    pub health_timeout: Duration,
    pub soak: Duration,
    pub stop_timeout: Duration,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            port: None,
            command: None,
            env: BTreeMap::new(),
            service: None,
            health: None,
            health_timeout: Duration::from_secs(60),
            soak: Duration::from_secs(2),
            stop_timeout: Duration::from_secs(15),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preserve {
    pub defaults: bool,
    pub paths: Vec<String>,
    pub merge_json: Vec<String>,
    pub carry: BTreeMap<String, Vec<String>>,
}

impl Default for Preserve {
    fn default() -> Self {
        Self {
            defaults: true,
            paths: Vec::new(),
            merge_json: words(&["app_config.json"]),
            carry: BTreeMap::from([("run.py".to_string(), words(&["PORT", "USE_WAITRESS", "USE_POSTGRES"]))]),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verify {
    /// Besides all that the bundle holds.
    pub critical: Vec<String>,
    pub sqlite: Vec<String>,
    pub tables: Vec<String>,
}

impl Default for Verify {
    fn default() -> Self {
        Self {
            critical: words(&["run.py"]),
            sqlite: words(&["instance/*.db"]),
            tables: words(&["sync_servers", "sync_config"]),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Relative, below the root.
    pub dir: String,
    pub keep: u32,
    pub skip: Vec<String>,
}

impl Default for Backup {
    fn default() -> Self {
        Self { dir: "backups".to_string(), keep: 5, skip: Vec::new() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    pub app: Option<String>,
    pub trusted_keys: Vec<String>,
    pub require_signature: bool,
    /// Unpacked, in bytes.
    pub max_size: u64,
    pub max_files: u64,
}

impl Default for Bundle {
    fn default() -> Self {
        Self { app: None, trusted_keys: Vec::new(), require_signature: false, max_size: 2 << 30, max_files: 200_000 }
    }
}

/// Lists of own hooks are refused until this version can run them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    pub defaults: bool,
}

impl Default for Hooks {
    fn default() -> Self {
        Self { defaults: true }
    }
}

/// Refused, whenever it holds anything, until this version can fetch by itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {}

/// Pins are refused until this version can hold a server against them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {}

/// Every key of the contract.
const KNOWN: [(&str, &[&str]); 8] = [
    ("server", &["port", "command", "env", "service", "health", "health_timeout", "soak", "stop_timeout"]),
    ("preserve", &["defaults", "paths", "merge_json", "carry"]),
    ("verify", &["critical", "sqlite", "tables"]),
    ("backup", &["dir", "keep", "skip"]),
    ("bundle", &["app", "trusted_keys", "require_signature", "max_size", "max_files"]),
    ("hooks", &["defaults", "before_stop", "after_swap"]),
    ("source", &["url", "server", "path", "base_folder", "pin", "sha256_url"]),
    ("tls", &["pins"]),
];

impl Settings {
    /// Reads the settings, and gives the warnings with them. Strict: anything wrong is a usage error.
    /// Otherwise (for `recover`) it is a warning, and the default counts. No file: the defaults.
    pub fn load(path: &Path, strict: bool) -> anyhow::Result<(Settings, Vec<String>)> {
        let mut reader = Reader { problems: Vec::new(), table: Table::new(), lines: BTreeMap::new() };
        match fs_err::read(path) {
            Ok(bytes) => reader.parse(&bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => reader.problems.push(Problem::bad(format!("the settings cannot be read: {error}"))),
        }
        let settings = reader.settings();
        match reader.problems.first() {
            Some(first) if strict => {
                Err(Failure::usage(first.code, first.text.clone()).at(path.display()).remedy(first.remedy).into())
            }
            _ => Ok((settings, reader.problems.into_iter().map(|problem| problem.text).collect())),
        }
    }
}

/// `500ms`, `15s`, `2m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration: write it like 500ms, 15s or 2m");
    let (digits, unit) = split_number(text).ok_or_else(bad)?;
    let millis = match unit {
        "ms" => Some(digits),
        "s" => digits.checked_mul(1_000),
        "m" => digits.checked_mul(60_000),
        _ => None,
    };
    // A hundred years: what is longer would overflow a clock.
    millis.filter(|ms| *ms <= 3_153_600_000_000).map(Duration::from_millis).ok_or_else(bad)
}

/// `2 GiB`, `500 MB`, `1048576`.
pub fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size: write it like 2 GiB, 500 MB or 1048576");
    let (number, unit) = split_number(text).ok_or_else(bad)?;
    let factor: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(bad()),
    };
    number.checked_mul(factor).ok_or_else(bad)
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text.get(..end)?.parse().ok()?, text.get(end..)?))
}

fn words(all: &[&str]) -> Vec<String> {
    all.iter().map(|word| word.to_string()).collect()
}

/// Something wrong with the settings.
struct Problem {
    code: &'static str,
    text: String,
    remedy: &'static str,
}

impl Problem {
    fn bad(text: String) -> Self {
        Self { code: "bad-settings", text, remedy: "correct the settings file; every key is optional" }
    }
}

/// Takes the values out of the file and collects what is wrong with them.
struct Reader {
    problems: Vec<Problem>,
    table: Table,
    /// Line of each `section` and `section.key`.
    lines: BTreeMap<String, usize>,
}

impl Reader {
    fn parse(&mut self, bytes: &[u8]) {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
            Err(error) => {
                let line = line_of(&bytes[..error.valid_up_to()]);
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
        self.problems.push(Problem { code: "unsupported-setting", text, remedy });
    }

    /// The value of `section.key` as `read` understands it; None when absent or wrong.
    fn take<T>(&mut self, key: &str, read: impl FnOnce(&Value) -> Result<T, String>) -> Option<T> {
        let (section, name) = key.split_once('.')?;
        let result = read(self.table.get(section)?.get(name)?);
        result.map_err(|reason| self.wrong(key, &reason)).ok()
    }

    fn settings(&mut self) -> Settings {
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
                merge_json: self.take("preserve.merge_json", paths).unwrap_or(base.preserve.merge_json),
                carry: self.take("preserve.carry", carry).unwrap_or(base.preserve.carry),
            },
            verify: Verify {
                critical: self.take("verify.critical", paths).unwrap_or(base.verify.critical),
                sqlite: self.take("verify.sqlite", list).unwrap_or(base.verify.sqlite),
                tables: self.take("verify.tables", list).unwrap_or(base.verify.tables),
            },
            backup: Backup {
                dir: self.take("backup.dir", folder).unwrap_or(base.backup.dir),
                keep: self.take("backup.keep", count).unwrap_or(base.backup.keep),
                skip: self.take("backup.skip", list).unwrap_or(base.backup.skip),
            },
            bundle: Bundle {
                app: self.take("bundle.app", filled),
                trusted_keys: self.take("bundle.trusted_keys", list).unwrap_or_default(),
                require_signature: self.take("bundle.require_signature", truth).unwrap_or_default(),
                max_size: self.take("bundle.max_size", bytes).unwrap_or(base.bundle.max_size),
                max_files: self.take("bundle.max_files", number).unwrap_or(base.bundle.max_files),
            },
            hooks: Hooks { defaults: self.take("hooks.defaults", truth).unwrap_or(base.hooks.defaults) },
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
        for (key, what) in
            [("hooks.before_stop", "own hooks"), ("hooks.after_swap", "own hooks"), ("tls.pins", "pinned certificates")]
        {
            if self.take(key, |value| Ok(!empty(value))) == Some(true) {
                self.unsupported(key, what);
            }
        }
        if self.table.get("source").is_some_and(|source| !empty(source)) {
            self.unsupported("source", "a source of bundles");
        }
    }
}

fn line_of(before: &[u8]) -> usize {
    before.iter().filter(|byte| **byte == b'\n').count() + 1
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
        let mut left = i + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(&other) {
            let best = (diagonal + usize::from(a != *b)).min(*cell + 1).min(left + 1);
            diagonal = *cell;
            *cell = best;
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error;

    fn load(text: &str, strict: bool) -> anyhow::Result<(Settings, Vec<String>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("updater.toml");
        std::fs::write(&path, text).unwrap();
        Settings::load(&path, strict)
    }

    #[test]
    fn the_example_of_the_contract_is_understood() {
        let text = r#"
[server]
port = 8081
command = [".venv/bin/python", "run.py"]
env = { PORT = "8081" }
service = "scout.service"
health = "/api/sync/ping"
health_timeout = "2m"
soak = "500ms"
[preserve]
paths = ["/uploads/", "app/utils/local_*.py"]
carry = { "run.py" = ["PORT"] }
[backup]
dir = "var/backups/"
skip = ["/uploads/"]
[bundle]
app = "scout"
trusted_keys = []
max_size = "3 MiB"
[hooks]
defaults = false
"#;
        let (settings, warnings) = load(text, true).unwrap();
        assert!(warnings.is_empty());
        assert_eq!(settings.server.port, Some(8081));
        assert_eq!(settings.server.health_timeout, Duration::from_secs(120));
        assert_eq!(settings.server.stop_timeout, Duration::from_secs(15));
        assert_eq!(settings.server.env["PORT"], "8081");
        assert_eq!(settings.preserve.carry["run.py"], ["PORT"]);
        assert_eq!(settings.backup.dir, "var/backups");
        assert_eq!(settings.bundle.max_size, 3 << 20);
        assert!(!settings.hooks.defaults);
    }

    #[test]
    fn no_file_means_the_defaults() {
        let (settings, warnings) = Settings::load(Path::new("/nowhere/updater.toml"), true).unwrap();
        assert_eq!((settings, warnings.len()), (Settings::default(), 0));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, code, message) in [
            ("[server]\nprot = 1", "bad-settings", "line 2: server.prot: unknown key; the nearest known one is port"),
            ("[sever]", "bad-settings", "line 1: sever: unknown section or key; the nearest known one is [server]"),
            (
                "keep = 3",
                "bad-settings",
                "line 1: keep: unknown section or key; the nearest known one is [backup] keep",
            ),
            ("server = 3", "bad-settings", "line 1: server: must be a section: [server]"),
            ("\n[server]\nport = 0", "bad-settings", "line 3: server.port: must be a port, 1 to 65535"),
            ("[server]\nport = \"1\"", "bad-settings", "line 2: server.port: must be a number, not string"),
            (
                "[backup]\ndir = \"../x\"",
                "bad-settings",
                "line 2: backup.dir: \"../x\" must be a relative path below the root: the path has a . or .. part",
            ),
            (
                "[server]\nsoak = \"2 h\"",
                "bad-settings",
                "line 2: server.soak: \"2 h\" is not a duration: write it like 500ms, 15s or 2m",
            ),
            (
                "[bundle]\nrequire_signature = true",
                "unsupported-setting",
                "line 2: bundle.require_signature: this version of the updater cannot honour signatures yet",
            ),
            (
                "[[hooks.before_stop]]\nrun = [\"x\"]",
                "unsupported-setting",
                "line 1: hooks.before_stop: this version of the updater cannot honour own hooks yet",
            ),
            (
                "[source]\nurl = \"x\"",
                "unsupported-setting",
                "line 1: source: this version of the updater cannot honour a source of bundles yet",
            ),
        ] {
            let error = load(text, true).unwrap_err();
            assert_eq!(error::class(&error), error::Class::Usage);
            let record = error::record(&error);
            assert_eq!((record.code.as_str(), record.message.as_str()), (code, message));
            assert!(record.path.is_some() && record.remedy.is_some());
            let (settings, warnings) = load(text, false).unwrap();
            assert_eq!(warnings, [message]);
            assert_eq!(settings.server, Server::default());
        }
        let error = load("a = \n", true).unwrap_err();
        assert!(error.to_string().starts_with("line 1: "), "{error}");
        assert_eq!(load("\u{0}", false).unwrap().0, Settings::default());
    }

    #[test]
    fn durations_and_sizes() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "5", "s", "-1s", "1h", "1.5s", "99999999999999999999s", "18446744073709551615m"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(size("2 GiB"), Ok(2 << 30));
        assert_eq!(size("7"), Ok(7));
        assert!(size("2 gb").is_err() && size("99999999 TiB").is_err());
    }

    #[test]
    fn edits_are_counted() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
