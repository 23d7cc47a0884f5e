//! Which unit of the service manager a process belongs to, by its control group.
//! Refuses to ask the manager itself: what the kernel says cannot be a stale answer.

use std::io;

/// The systemd service of a process (`nginx.service`), of the system's or of a user's manager. None: no
/// service (a session, a scope, a bare user manager), or the process is gone.
pub fn unit_of(pid: u32) -> io::Result<Option<String>> {
    match std::fs::read_to_string(format!("/proc/{pid}/cgroup")) {
        Ok(text) => Ok(unit_in(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(3) => Ok(None),
        Err(error) => Err(error),
    }
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
