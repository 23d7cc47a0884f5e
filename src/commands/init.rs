//! `init`: writes a commented `updater.toml` from what it detects; with `--boot-recovery` installs what mends an
//! interrupted update before the server starts, with `--systemd-helper` what runs updates outside its unit.
//! Refuses to overwrite settings without `--force`, and to let root run at boot what others may change.

use crate::app::Profile;
use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::system::{BootPlan, Owner, SystemPart, Unit, boot, files, processes, remedies, service, trust};
use crate::update::authority;
use crate::update::escape::unit_name;
use crate::update::install::Install;
use crate::update::server;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;

/// `init --boot-recovery`, `init --systemd-helper`: writes the units and enables them. Again: changes nothing.
pub fn install_part(install: &Install, part: SystemPart) -> Result<Value> {
    may_install(part, "")?;
    let exe = std::env::current_exe().and_then(fs_err::canonicalize).context("finding this program")?;
    let open = trust::distrust(&exe).context("asking who may change this program")?;
    if let Some(found) = open {
        let message = format!("others than root may change {}, and root would run it", found.place().display());
        return Err(Failure::failed(Code::UnsafeProgram, message)
            .at(exe.display())
            .remedy("install the program for root alone, for example in /usr/local/bin, and run it from there")
            .into());
    }
    let server = server_unit(install)?;
    if part == SystemPart::Helper && server.as_ref().is_none_or(|unit| unit.user.is_some()) {
        return Err(Failure::failed(Code::NoUnit, "the server belongs to no unit of the system that is known")
            .at(install.root.path().display())
            .remedy("start the server through its unit, or name the unit as [server] service in updater.toml")
            .into());
    }
    let plan = BootPlan { root: install.root.path().to_path_buf(), exe, server: server.clone() };
    let name = unit_name(install.root.path());
    let places = boot::places(part, &name);
    let texts = boot::texts(part, &plan).map_err(|e| Failure::failed(Code::OddPath, e.to_string()))?;
    for (place, text) in places.iter().zip(&texts) {
        if fs_err::read(place).is_ok_and(|is| is == text.as_bytes()) {
            continue;
        }
        fsx::write_atomic(place, text.as_bytes())?;
        files::set_mode(place, 0o644).with_context(|| format!("setting the mode of {}", place.display()))?;
    }
    if let Err(e) = boot::enable(part, &name) {
        // What is not tied to the boot must not look as if it were.
        remove(part, &name)?;
        return Err(Failure::failed(Code::BootUnits, format!("the units cannot be enabled: {e}"))
            .remedy(format!("see what the service manager says: {}", remedies::ask_about(None)))
            .into());
    }
    Ok(json!({
        word(part): "installed",
        "units": places.map(|place| place.display().to_string()),
        "server": server.map(|unit| unit.name),
    }))
}

/// With `--remove`: takes the units away. Ok when there are none.
pub fn remove_part(install: &Install, part: SystemPart) -> Result<Value> {
    may_install(part, " --remove")?;
    let units = remove(part, &unit_name(install.root.path()))?;
    Ok(json!({word(part): "removed", "units": units, "server": null}))
}

fn word(part: SystemPart) -> &'static str {
    match part {
        SystemPart::BootRecovery => "boot_recovery",
        SystemPart::Helper => "systemd_helper",
    }
}

fn remove(part: SystemPart, name: &str) -> Result<Vec<String>> {
    let there: Vec<_> = boot::places(part, name).into_iter().filter(|place| place.exists()).collect();
    if there.is_empty() {
        return Ok(Vec::new());
    }
    // Before the files: a server must not require a unit that is gone.
    boot::disable(part, name)
        .map_err(|e| Failure::failed(Code::BootUnits, format!("the units cannot be disabled: {e}")))?;
    for place in &there {
        fs_err::remove_file(place)?;
        fsx::sync_parent(place)?;
    }
    boot::reload().map_err(|e| Failure::failed(Code::BootUnits, e.to_string()))?;
    Ok(there.iter().map(|place| place.display().to_string()).collect())
}

fn may_install(part: SystemPart, more: &str) -> Result<()> {
    if let Some(why) = boot::refusal() {
        return Err(Failure::failed(Code::NoServiceManager, why)
            .remedy("let what starts the server run `updater recover --boot` before it")
            .into());
    }
    if processes::own_uid() != 0 {
        let command = format!("updater init {}{more}", part.option());
        return Err(Failure::failed(Code::NotRoot, "units of the system are installed by root alone")
            .remedy(format!("run it as root: {}", remedies::as_root(&command)))
            .into());
    }
    Ok(())
}

/// The unit of the settings, else the one that the running server belongs to.
fn server_unit(install: &Install) -> Result<Option<Unit>> {
    if let Some(name) = &install.settings.server.service {
        let unit = service::manager().named(name);
        if let Some(owner) = authority::other_than_root(&install.root)? {
            may_be_bound(&unit, owner)
                .map_err(|failure| failure.at(install.root.path().join("updater.toml").display()))?;
        }
        return Ok(Some(unit));
    }
    Ok(server::find(&install.root)?.and_then(|running| running.managed_by))
}

/// Settings of another user tie nothing to a unit that is not his: a recovery that fails would keep it from starting.
fn may_be_bound(unit: &Unit, owner: Owner) -> Result<(), Failure> {
    let judged = service::manager().runs_as(unit, owner.uid);
    let judged = judged.map_err(|e| Failure::failed(Code::NoUnit, format!("asking for {unit}: {e}")))?;
    let Err(user) = judged else { return Ok(()) };
    let message =
        format!("the settings name {unit}, which runs as {user}, and the install belongs to user {}", owner.uid);
    Err(Failure::failed(Code::OtherUser, message)
        .remedy("name the unit of the server that runs as the install's owner"))
}

/// What `--boot-recovery` or `--systemd-helper` did, in words.
pub fn part_text(done: &Value) -> Vec<String> {
    let is_helper = !done["systemd_helper"].is_null();
    let word = done["boot_recovery"].as_str().or(done["systemd_helper"].as_str()).unwrap_or_default();
    let mut lines: Vec<String> = done["units"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(|unit| format!("{word}: {unit}"))
        .collect();
    if lines.is_empty() {
        lines.push("nothing was installed, so there is nothing to remove".into());
    }
    if word == "installed" {
        lines.push(match done["server"].as_str() {
            Some(server) if is_helper => format!("updates of {server} that its own user starts run outside of it"),
            Some(server) => format!("the server {server} starts only after its files were mended"),
            None => {
                "the unit of the server is not known: name it as [server] service in updater.toml, and do this again"
                    .into()
            }
        });
    }
    lines
}

/// Plain `init`: writes the settings file from what runs now.
pub fn settings(install: &Install, place: &Path, force: bool) -> Result<Value> {
    if fsx::exists(place)? && !force {
        return Err(Failure::failed(Code::SettingsExist, "there are settings already, and they are left as they are")
            .at(place.display())
            .remedy("edit them, or have them replaced with updater init --force")
            .into());
    }
    let running = server::find(&install.root)?;
    let port = running.as_ref().and_then(|r| r.ports.first().copied());
    let unit = running.as_ref().and_then(|r| r.managed_by.as_ref()).filter(|unit| unit.user.is_none());
    let command = running.as_ref().map(|r| r.launch.argv.clone());
    fsx::write_atomic(
        place,
        text(Profile::of(install.root.path()), port, command.as_deref(), unit.map(|u| u.name.as_str())).as_bytes(),
    )?;
    Ok(json!({
        "settings": place.display().to_string(),
        "port": port,
        "command": command,
        "service": unit.map(|unit| &unit.name),
    }))
}

/// The settings with every key; what was not detected is a comment that shows the default.
fn text(profile: &Profile, port: Option<u16>, command: Option<&[String]>, service: Option<&str>) -> String {
    let name = profile.name;
    let quoted = |text: &str| toml::Value::String(text.to_string()).to_string();
    let list = |words: &[String]| words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(", ");
    let key = |name: &str, found: Option<String>, example: &str| match found {
        Some(value) => format!("{name} = {value}\n"),
        None => format!("# {name} = {example}\n"),
    };
    let mut out = String::from(
        "# Settings of the updater for this install. Every key is optional; a comment shows the default or an example.\n\n[server]\n",
    );
    out += &key("port", port.map(|port| port.to_string()), "8081");
    out += &key("command", command.map(|words| format!("[{}]", list(words))), r#"[".venv/bin/python", "run.py"]"#);
    out += &key("service", service.map(quoted), r#""web.service""#);
    let defaults = profile.data_rules().filter(|pattern| !pattern.contains("db-") && !pattern.contains("sqlite-"));
    let defaults: String = defaults.fold(String::new(), |mut all, pattern| {
        let _ = writeln!(all, "#   {pattern}");
        all
    });
    let _ = write!(
        out,
        "# health = \"/api/sync/ping\"\n# health_timeout = \"60s\"\n# soak = \"2s\"\n# stop_timeout = \"15s\"\n\n\
         [preserve]\n# What no version shipped is the users' and stays, whatever is set here. Of these paths the users' stay even where\n\
         # a bundle has some, too (profile: {name}; defaults = false turns the list off, but for the updater's own places):\n{defaults}\
         # paths = [\"/more/\"]\n# add_databases = false   # true: a bundle may add databases that are missing in these folders\n\n\
         [clean]\n# Program files that no version shipped give way here, to the backup's aside/:\n# paths = [\"/app/\"]\n\n\
         [verify]\n# sqlite = [\"instance/*.db\"]\n\n\
         [backup]\n# keep = 5\n# max_file = \"64 MB\"   # larger data files are saved only where that is cheap\n# skip = [\"/uploads/\"]\n\n\
         [bundle]\n# app = \"my-app\"\n\n\
         [hooks]\n# Packages of a changed requirements.txt are installed into the server's environment:\n# defaults = true\n\
         # [[hooks.after_swap]]   # while the server is down; before_stop: while it is up, in the new files\n\
         # run = [\"scripts/build.sh\"]\n# when_changed = [\"assets/\"]\n# changes = [\"app/static/built\"]   # every rollback puts it back\n\
         # timeout = \"10m\"\n"
    );
    out
}

/// What plain `init` wrote, in words.
pub fn settings_text(done: &Value) -> Vec<String> {
    vec![format!("written: {}", done["settings"].as_str().unwrap_or_default())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_that_are_written_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("updater.toml");
        let command = ["python3".to_string(), "it's \"run\".py".to_string()];
        for (port, command, service) in [(None, None, None), (Some(81), Some(&command[..]), Some("web.service"))] {
            std::fs::write(&place, text(Profile::of(folder.path()), port, command, service)).unwrap();
            let (settings, warnings) = crate::state::settings::Settings::load(&place, true).unwrap();
            assert!(warnings.is_empty());
            assert_eq!(settings.server.port, port);
            assert_eq!(settings.server.command.as_deref(), command);
            assert_eq!(settings.server.service.as_deref(), service);
        }
    }
}
