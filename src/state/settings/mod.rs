//! `updater.toml`: every key typed, checked and with its default.
//! Refuses what it does not know and what this version cannot honour: a setting is never silently ignored.

mod reader;

use crate::base::error::Failure;
use crate::base::fsx;
use reader::{Problem, Reader};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// All settings; `Settings::default()` serves the legacy server as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    pub server: Server,
    pub preserve: Preserve,
    pub clean: Clean,
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
    /// Databases that are missing in data folders are added from a bundle.
    pub add_databases: bool,
    pub merge_json: Vec<String>,
    pub carry: BTreeMap<String, Vec<String>>,
}

impl Default for Preserve {
    fn default() -> Self {
        Self {
            defaults: true,
            paths: Vec::new(),
            add_databases: false,
            merge_json: words(&["app_config.json"]),
            carry: BTreeMap::from([("run.py".to_string(), words(&["PORT", "USE_WAITRESS", "USE_POSTGRES"]))]),
        }
    }
}

/// Where program files that no version shipped give way.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Clean {
    /// Gitignore patterns.
    pub paths: Vec<String>,
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
            critical: Vec::new(),
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
    /// Data files above this size, in bytes, are saved only where that is cheap.
    pub max_file: u64,
    pub skip: Vec<String>,
}

impl Default for Backup {
    fn default() -> Self {
        Self { dir: "backups".to_string(), keep: 5, max_file: 64_000_000, skip: Vec::new() }
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

/// What the operator has run in the middle of an update, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    /// Packages of a changed `requirements.txt` are installed into the server's environment.
    pub defaults: bool,
    /// While the server is up, in the staged tree.
    pub before_stop: Vec<Hook>,
    /// While it is down, in the install.
    pub after_swap: Vec<Hook>,
}

impl Default for Hooks {
    fn default() -> Self {
        Self { defaults: true, before_stop: Vec::new(), after_swap: Vec::new() }
    }
}

/// One program of the operator's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    pub run: Vec<String>,
    /// Only when an update changes one of these (gitignore patterns); empty: with every update.
    pub when_changed: Vec<String>,
    /// Files and folders below the root that it may write; every rollback puts them back.
    pub changes: Vec<String>,
    pub timeout: Duration,
}

impl Hook {
    /// How long a hook may take that does not say so (the contract's example).
    pub const TIMEOUT: Duration = Duration::from_secs(600);
}

/// Refused, whenever it holds anything, until this version can fetch by itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {}

/// Pins are refused until this version can hold a server against them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {}

impl Settings {
    /// Reads the settings, and gives the warnings with them. Strict: anything wrong is a usage error.
    /// Otherwise (for `recover`) it is a warning, and the default counts. No file: the defaults.
    pub fn load(path: &Path, strict: bool) -> anyhow::Result<(Settings, Vec<String>)> {
        let mut reader = Reader::default();
        match fsx::read(path, fsx::SMALL) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error;

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
add_databases = true
carry = { "run.py" = ["PORT"] }
[clean]
paths = ["/app/"]
[backup]
dir = "var/backups/"
max_file = "1 MB"
skip = ["/uploads/"]
[bundle]
app = "scout"
trusted_keys = []
max_size = "3 MiB"
[hooks]
defaults = false
[[hooks.before_stop]]
run = ["scripts/fetch", "--all"]
[[hooks.after_swap]]
run = [".venv/bin/python", "-m", "migrate"]
when_changed = ["requirements.txt"]
changes = [".venv/"]
timeout = "90s"
"#;
        let (settings, warnings) = load(text, true).unwrap();
        assert!(warnings.is_empty());
        assert_eq!(settings.server.port, Some(8081));
        assert_eq!(settings.server.health_timeout, Duration::from_secs(120));
        assert_eq!(settings.server.stop_timeout, Duration::from_secs(15));
        assert_eq!(settings.server.env["PORT"], "8081");
        assert_eq!(settings.preserve.carry["run.py"], ["PORT"]);
        assert_eq!((settings.backup.dir.as_str(), settings.backup.max_file), ("var/backups", 1_000_000));
        assert!(settings.preserve.add_databases && settings.clean.paths == ["/app/"]);
        assert_eq!(settings.bundle.max_size, 3 << 20);
        assert!(!settings.hooks.defaults);
        let [before] = settings.hooks.before_stop.as_slice() else { panic!("no hook before the stop") };
        assert_eq!((before.run.len(), before.changes.len(), before.timeout), (2, 0, Duration::from_secs(600)));
        let [after] = settings.hooks.after_swap.as_slice() else { panic!("no hook after the swap") };
        assert_eq!((&after.changes[..], after.timeout), (&[".venv".to_string()][..], Duration::from_secs(90)));
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
                "[[hooks.before_stop]]\nrun = [\"x\"]\nchanges = [\"app\"]",
                "bad-settings",
                "line 1: hooks.before_stop: entry 1: changes: before the stop a hook changes nothing of the install; \
                 name it in after_swap",
            ),
            (
                "[hooks]\n[[hooks.after_swap]]\nrun = [\"x\"]\n[[hooks.after_swap]]\nrum = [\"x\"]",
                "bad-settings",
                "line 2: hooks.after_swap: entry 2: rum: unknown key; the nearest known one is run",
            ),
            (
                "[[hooks.after_swap]]\nchanges = [\".venv\"]",
                "bad-settings",
                "line 1: hooks.after_swap: entry 1: run: is missing; it lists the program and its arguments",
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
}
