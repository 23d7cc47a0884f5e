//! Which unit of the service manager a process belongs to, by its control group.
//! Refuses to ask the manager itself: what the kernel says cannot be a stale answer.

use std::io;

/// The unit that would be stopped to stop this process, or None.
///
/// The cgroup alone does not tell: what cron or sshd started lies in their unit, too, and outlives it
/// (`KillMode=process`), and so does what a unit left behind. So the service manager is asked for the
/// unit's main process. Where it runs but does not answer, the unit counts.
pub fn unit_of(pid: u32) -> io::Result<Option<String>> {
    let text = match std::fs::read_to_string(format!("/proc/{pid}/cgroup")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(3) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(unit) = unit_in(&text) else { return Ok(None) };
    // sd_booted(3): this folder exists where systemd is the service manager.
    if !std::path::Path::new("/run/systemd/system").exists() {
        return Ok(None);
    }
    let mut ask = std::process::Command::new("systemctl");
    if text.contains("/user@") {
        ask.arg("--user");
    }
    let answer = ask.args(["show", "--property=MainPID", "--property=KillMode", &unit]).output()?;
    let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
    let field = |name: &str| answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let Some(main) = field("MainPID").and_then(|pid| pid.parse::<u32>().ok()) else { return Ok(Some(unit)) };
    let owns = pid == main || (field("KillMode") != Some("process") && descends(pid, main)?);
    Ok(owns.then_some(unit))
}

fn descends(pid: u32, ancestor: u32) -> io::Result<bool> {
    let mut at = pid;
    // A circle can only come from a reused pid; no real tree is this deep.
    for _ in 0..64 {
        match super::processes::parent(at)? {
            Some(parent) if parent == ancestor => return Ok(true),
            Some(parent) => at = parent,
            None => return Ok(false),
        }
    }
    Ok(false)
}

/// The unit in the text of `/proc/PID/cgroup`: of the unified hierarchy or systemd's own, no other.
fn unit_in(text: &str) -> Option<String> {
    let paths = text.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        (controllers.is_empty() || controllers == "name=systemd").then_some(path)
    });
    let unit = |path: &str| {
        let last = path.rsplit('/').find(|part| part.ends_with(".service"))?;
        (!last.starts_with("user@")).then(|| last.to_string())
    };
    paths.filter_map(unit).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_the_last_service_of_the_path() {
        let some = |s: &str| Some(s.to_string());
        assert_eq!(unit_in("0::/system.slice/web.service\n"), some("web.service"));
        assert_eq!(unit_in("0::/system.slice/web.service/worker\n"), some("web.service"));
        assert_eq!(unit_in("3:cpu:/x.service\n1:name=systemd:/system.slice/a@1.service\n0::/\n"), some("a@1.service"));
        let user = "0::/user.slice/user-1.slice/user@1.service";
        assert_eq!(unit_in(&format!("{user}/app.slice/w.service\n")), some("w.service"));
        assert_eq!(unit_in(&format!("{user}/init.scope\n")), None);
        assert_eq!(unit_in("0::/user.slice/user-0.slice/session-3.scope\n"), None);
    }

    #[test]
    fn a_process_that_is_gone_has_no_unit() {
        assert_eq!(unit_of(u32::MAX / 4).unwrap(), None);
        unit_of(std::process::id()).unwrap();
    }
}
