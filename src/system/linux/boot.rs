//! The system's part of an install on Linux, as systemd units. For recovery at boot: one mends its files before
//! the server starts, and keeps it from starting on a tree that cannot be mended; the other proves its health
//! after. For an updater whose user may not leave the server's unit: a path that starts the helper.
//! Refuses to write them itself (`fsx` does), and to stop a unit of recovery: a stop would spread to the server.

use super::systemd;
use crate::roles::HELPER;
use crate::system::{BootPlan, SystemPart};
use std::io;
use std::path::{Path, PathBuf};

const FOLDER: &str = "/etc/systemd/system";

/// Why no unit can be installed here, in words; None: it can.
pub fn refusal() -> Option<String> {
    (!Path::new("/run/systemd/system").exists())
        .then(|| "systemd is not the service manager of this system".to_string())
}

/// Where the units of this part lie.
pub fn places(part: SystemPart, name: &str) -> [PathBuf; 2] {
    let names = match part {
        SystemPart::BootRecovery => ["recover", "health"].map(|word| format!("updater-{word}-{name}.service")),
        SystemPart::Helper => ["path", "service"].map(|kind| format!("updater-helper-{name}.{kind}")),
    };
    names.map(|unit| Path::new(FOLDER).join(unit))
}

/// True where the helper of this name waits for requests.
pub fn helper_answers(name: &str) -> bool {
    let [path, _] = places(SystemPart::Helper, name);
    let unit = path.file_name().map(|unit| unit.to_string_lossy().into_owned()).unwrap_or_default();
    path.exists() && systemd::manage(&["is-active", "--quiet", &unit]).is_ok_and(|active| active.is_ok())
}

/// The text of each unit, in the order of `places`. Errors: a path that a unit cannot hold.
pub fn texts(part: SystemPart, plan: &BootPlan) -> io::Result<[String; 2]> {
    let odd =
        |what: &Path| io::Error::new(io::ErrorKind::InvalidInput, format!("{} cannot stand in a unit", what.display()));
    let text = |path: &Path| {
        path.to_str().filter(|text| !text.contains(char::is_control)).map(str::to_string).ok_or_else(|| odd(path))
    };
    let (root, exe) = (text(&plan.root)?, text(&plan.exe)?);
    let own = format!("{}/.updater", root.replace('%', "%%"));
    let needed = [&root, &exe].map(|path| quoted(path)).join(" ");
    let command = format!("{} --root {}", quoted(&exe), quoted(&root).replace('$', "$$"));
    if part == SystemPart::Helper {
        return helper_texts(&own, &command, plan);
    }
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

fn helper_texts(own: &str, command: &str, plan: &BootPlan) -> io::Result<[String; 2]> {
    let odd = || io::Error::new(io::ErrorKind::InvalidInput, "a helper belongs to one unit of the system");
    let unit = plan.server.as_ref().filter(|unit| unit.user.is_none()).ok_or_else(odd)?;
    let head = |what: &str| {
        format!(
            "# Written by `updater init --systemd-helper`; with --remove it takes this file away again.\n\
             [Unit]\n\
             Description={what} of {}\n\n",
            unit.name.replace('%', "%%")
        )
    };
    let path = format!(
        "{}[Path]\nPathExists={own}/helper\n\n[Install]\nWantedBy=multi-user.target\n",
        head("Requests for an update")
    );
    let service = format!(
        "{}[Service]\n\
         Type=exec\n\
         ExecStart={command} {HELPER} {}\n\
         KillMode=process\n\
         # How an update ended is told to who asked for it.\n\
         SuccessExitStatus=1 2 3 4 5 6\n",
        head("An update outside"),
        quoted(&unit.name)
    );
    Ok([path, service])
}

/// One word of a unit file.
fn quoted(path: &str) -> String {
    format!("\"{}\"", path.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%"))
}

/// Makes the service manager read the units again and start them at boot; the helper waits from now on.
pub fn enable(part: SystemPart, name: &str) -> io::Result<()> {
    let units = enabled_units(part, name);
    manage(&["daemon-reload"], &[])?;
    // Again: what an earlier installation tied to another server is undone.
    manage(&["reenable"], &units)?;
    manage(&["daemon-reload"], &[])?;
    if part == SystemPart::Helper { manage(&["restart"], &units) } else { Ok(()) }
}

/// Unties the units from the boot; the files stay.
pub fn disable(part: SystemPart, name: &str) -> io::Result<()> {
    let units = enabled_units(part, name);
    if part == SystemPart::Helper {
        manage(&["stop"], &units)?;
    }
    manage(&["disable"], &units)
}

/// Makes the service manager forget units whose files are gone.
pub fn reload() -> io::Result<()> {
    manage(&["daemon-reload"], &[])
}

/// The helper's service is started by its path alone.
fn enabled_units(part: SystemPart, name: &str) -> Vec<String> {
    let all = places(part, name).into_iter().filter_map(|p| Some(p.file_name()?.to_str()?.to_string()));
    all.filter(|unit| part == SystemPart::BootRecovery || unit.ends_with(".path")).collect()
}

fn manage(verb: &[&str], units: &[String]) -> io::Result<()> {
    let words: Vec<&str> = verb.iter().copied().chain(units.iter().map(String::as_str)).collect();
    systemd::manage(&words)?.map_err(|said| io::Error::other(format!("systemctl {}: {said}", words.join(" "))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::Unit;

    #[test]
    fn paths_are_escaped_and_the_server_is_ordered_between_the_units() {
        let plan = BootPlan {
            root: "/srv/my \"site\" 100% $X".into(),
            exe: "/opt/u p/updater".into(),
            server: Some(Unit::system("web.service")),
        };
        let [recover, health] = texts(SystemPart::BootRecovery, &plan).unwrap();
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
        let [recover, _] = texts(SystemPart::BootRecovery, &BootPlan { server: user, ..plan.clone() }).unwrap();
        assert!(recover.contains("Before=user@7.service\n") && !recover.contains("RequiredBy"));
        let [recover, _] = texts(SystemPart::BootRecovery, &BootPlan { server: None, ..plan.clone() }).unwrap();
        assert!(!recover.contains("Before=") && !recover.contains("RequiredBy"));
        assert!(texts(SystemPart::BootRecovery, &BootPlan { root: "/a\nb".into(), ..plan }).is_err());
    }

    #[test]
    fn the_helper_is_bound_to_one_unit_of_the_system() {
        let plan = BootPlan {
            root: "/srv/100% $X".into(),
            exe: "/opt/updater".into(),
            server: Some(Unit::system("web@1.service")),
        };
        let [path, service] = texts(SystemPart::Helper, &plan).unwrap();
        assert!(path.lines().any(|line| line == "PathExists=/srv/100%% $X/.updater/helper"), "{path}");
        let command = r#"ExecStart="/opt/updater" --root "/srv/100%% $$X" __helper "web@1.service""#;
        assert!(service.lines().any(|line| line == command), "{service}");
        let user = Some(Unit { name: "w.service".into(), user: Some(7) });
        assert!(texts(SystemPart::Helper, &BootPlan { server: user, ..plan.clone() }).is_err());
        assert!(texts(SystemPart::Helper, &BootPlan { server: None, ..plan }).is_err());
    }
}
