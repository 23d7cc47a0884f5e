//! The system's part of recovery on Linux: two systemd units for one install. One mends its files before the
//! server starts, and keeps it from starting on a tree that cannot be mended; the other proves its health after.
//! Refuses to write them itself (`fsx` does), and to stop a unit: a stop would spread to the server.

use super::service;
use crate::os::BootPlan;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const FOLDER: &str = "/etc/systemd/system";

/// Why no unit can be installed here, in words; None: it can.
pub fn refusal() -> Option<String> {
    (!Path::new("/run/systemd/system").exists())
        .then(|| "systemd is not the service manager of this system".to_string())
}

/// The first of `path` and the folders above it that somebody beside root may change: what lies there must not
/// be run by root at boot.
pub fn writable_by_others(path: &Path) -> io::Result<Option<PathBuf>> {
    for part in path.ancestors() {
        let is = std::fs::symlink_metadata(part)?;
        // In a sticky folder nobody can replace what is root's.
        let open = is.mode() & 0o022 != 0 && is.mode() & 0o1000 == 0;
        if is.uid() != 0 || open {
            return Ok(Some(part.to_path_buf()));
        }
    }
    Ok(None)
}

/// Where the units of this plan lie.
pub fn places(name: &str) -> [PathBuf; 2] {
    ["recover", "health"].map(|part| Path::new(FOLDER).join(format!("updater-{part}-{name}.service")))
}

/// The text of each unit, in the order of `places`. Errors: a path that a unit cannot hold.
pub fn texts(plan: &BootPlan) -> io::Result<[String; 2]> {
    let odd =
        |what: &Path| io::Error::new(io::ErrorKind::InvalidInput, format!("{} cannot stand in a unit", what.display()));
    let text = |path: &Path| {
        path.to_str().filter(|text| !text.contains(char::is_control)).map(str::to_string).ok_or_else(|| odd(path))
    };
    let (root, exe) = (text(&plan.root)?, text(&plan.exe)?);
    let own = format!("{}/.updater", root.replace('%', "%%"));
    let needed = [&root, &exe].map(|path| quoted(path)).join(" ");
    let command = format!("{} --root {}", quoted(&exe), quoted(&root).replace('$', "$$"));
    let server = plan.server.as_ref().map(|unit| match unit.user {
        Some(uid) => (format!("user@{uid}.service"), false),
        None => (unit.name.replace('%', "%%"), true),
    });
    let order = |word: &str| server.as_ref().map(|(name, _)| format!("{word}={name}\n")).unwrap_or_default();
    let hold = |word: &str| {
        let held = server.as_ref().filter(|(_, is_system)| *is_system);
        held.map(|(name, _)| format!("{word}={name}\n")).unwrap_or_default()
    };
    let unit = |what: &str, order: String, kind: &str, action: &str, hold: String| {
        format!(
            "# Written by `updater init --boot-recovery`; with --remove it takes this file away again.\n\
             [Unit]\n\
             Description={what} of the install {}\n\
             RequiresMountsFor={needed}\n\
             {order}\
             ConditionPathExists=|{own}/journal\n\
             ConditionPathExists=|{own}/journal.blocked\n\
             \n\
             [Service]\n\
             Type={kind}\n\
             ExecStart={command} recover {action}\n\
             # A server of no unit that it starts outlives it.\n\
             KillMode=process\n\
             # Another updater is at work: it cares for the install.\n\
             SuccessExitStatus=5\n\
             \n\
             [Install]\n\
             WantedBy=multi-user.target\n\
             {hold}",
            root.replace('%', "%%")
        )
    };
    Ok([
        unit("Mend the files", order("Before"), "oneshot", "--boot", hold("RequiredBy")),
        unit("Prove the health", order("After"), "exec", "--if-needed", hold("WantedBy")),
    ])
}

/// One word of a unit file.
fn quoted(path: &str) -> String {
    format!("\"{}\"", path.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%"))
}

/// Makes the service manager read the units again and start them at boot.
pub fn enable(name: &str) -> io::Result<()> {
    let units = unit_names(name);
    manage(&["daemon-reload"], &[])?;
    // Again: what an earlier installation tied to another server is undone.
    manage(&["reenable"], &units)?;
    manage(&["daemon-reload"], &[])
}

/// Unties the units from the boot; the files stay.
pub fn disable(name: &str) -> io::Result<()> {
    manage(&["disable"], &unit_names(name))
}

/// Makes the service manager forget units whose files are gone.
pub fn reload() -> io::Result<()> {
    manage(&["daemon-reload"], &[])
}

fn unit_names(name: &str) -> Vec<String> {
    places(name).iter().filter_map(|p| Some(p.file_name()?.to_str()?.to_string())).collect()
}

fn manage(verb: &[&str], units: &[String]) -> io::Result<()> {
    let words: Vec<&str> = verb.iter().copied().chain(units.iter().map(String::as_str)).collect();
    service::manage(&words)?.map_err(|said| io::Error::other(format!("systemctl {}: {said}", words.join(" "))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::Unit;

    #[test]
    fn paths_are_escaped_and_the_server_is_ordered_between_the_units() {
        let plan = BootPlan {
            root: "/srv/my \"site\" 100% $X".into(),
            exe: "/opt/u p/updater".into(),
            server: Some(Unit::system("web.service")),
        };
        let [recover, health] = texts(&plan).unwrap();
        let command = r#"ExecStart="/opt/u p/updater" --root "/srv/my \"site\" 100%% $$X" recover --boot"#;
        assert!(recover.lines().any(|line| line == command), "{recover}");
        let condition = r#"ConditionPathExists=|/srv/my "site" 100%% $X/.updater/journal"#;
        assert!(recover.lines().any(|line| line == condition), "{recover}");
        for line in ["Before=web.service", "RequiredBy=web.service", "Type=oneshot", "WantedBy=multi-user.target"] {
            assert!(recover.lines().any(|l| l == line), "{line}: {recover}");
        }
        for line in ["After=web.service", "WantedBy=web.service", "Type=exec"] {
            assert!(health.lines().any(|l| l == line), "{line}: {health}");
        }
        assert!(health.contains(" recover --if-needed\n") && !health.contains("RequiredBy"));
        let user = Some(Unit { name: "w.service".into(), user: Some(7) });
        let [recover, _] = texts(&BootPlan { server: user, ..plan.clone() }).unwrap();
        assert!(recover.contains("Before=user@7.service\n") && !recover.contains("RequiredBy"));
        let [recover, _] = texts(&BootPlan { server: None, ..plan.clone() }).unwrap();
        assert!(!recover.contains("Before=") && !recover.contains("RequiredBy"));
        assert!(texts(&BootPlan { root: "/a\nb".into(), ..plan }).is_err());
    }

    #[test]
    fn a_program_that_others_may_change_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("updater");
        std::fs::write(&file, "").unwrap();
        crate::os::files::set_mode(&file, 0o777).unwrap();
        assert_eq!(writable_by_others(&file).unwrap(), Some(file));
    }
}
