//! systemd as a `ServiceManager`: the unit of a process by its control group, the stop and start of a unit through
//! `systemctl`.
//! Refuses to ask for a password.

use crate::system::service::{Job, ServiceManager, ServiceRequest};
use crate::system::{ProcessId, Unit, ancestry, interrupt};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the service manager may take to answer a question.
const ANSWER: Duration = Duration::from_secs(10);

/// The service manager of most systems.
#[derive(Debug)]
pub struct Systemd;

impl ServiceManager for Systemd {
    /// The cgroup alone does not tell: what cron or sshd started lies in their unit, too, and outlives it
    /// (`KillMode=process`), and so does what a unit left behind. So the service manager is asked for the
    /// unit's main process. Where it runs but does not answer, the unit counts.
    fn unit_of(&self, pid: u32) -> io::Result<Option<Unit>> {
        let Some(path) = cgroup_of(pid)? else { return Ok(None) };
        let Some(unit) = unit_in(&path) else { return Ok(None) };
        if !is_there() {
            return Ok(None);
        }
        let answer = ask(&unit, &["MainPID", "KillMode"])?;
        let Some(main) = answer.first().and_then(|pid| pid.parse::<u32>().ok()) else { return Ok(Some(unit)) };
        let owns = pid == main || (answer.get(1).is_none_or(|mode| mode != "process") && descends(pid, main)?);
        Ok(owns.then_some(unit))
    }

    /// `web` is `web.service`.
    fn named(&self, name: &str) -> Unit {
        Unit::system(&if name.contains('.') { name.to_string() } else { format!("{name}.service") })
    }

    fn members_of(&self, pid: u32) -> io::Result<Vec<u32>> {
        let own = cgroup_of(pid)?;
        let Some(whole) = own.as_deref().and_then(unit_path) else { return Ok(Vec::new()) };
        let mut members = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let path = cgroup_of(pid)?;
            let rest = path.as_deref().and_then(|path| path.strip_prefix(whole));
            if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
                members.push(pid);
            }
        }
        Ok(members)
    }

    fn obstacle(&self, unit: &Unit) -> io::Result<Option<String>> {
        if !is_reachable(unit) {
            return Ok(Some("it belongs to the service manager of another user".to_string()));
        }
        let answer = ask(unit, &["LoadState", "RefuseManualStop", "RefuseManualStart", "TriggeredBy"])?;
        let [loaded, no_stop, no_start, triggers] = answer.as_slice() else {
            return Ok(Some("the service manager does not answer".to_string()));
        };
        if loaded != "loaded" {
            return Ok(Some(format!("the service manager says that it is {loaded}")));
        }
        if no_stop == "yes" || no_start == "yes" {
            return Ok(Some("it refuses to be stopped or started by hand".to_string()));
        }
        if !triggers.is_empty() {
            return Ok(Some(format!("{triggers} would start it again in the middle")));
        }
        Ok(None)
    }

    /// An active unit is asked to start, which it did: the service manager says whether it lets us, and changes nothing.
    fn denial(&self, unit: &Unit) -> io::Result<Option<String>> {
        if rustix::process::geteuid().is_root() || unit.user.is_some() {
            return Ok(None);
        }
        let mut command = systemctl(None)?;
        command.args(["start", "--job-mode=ignore-dependencies", "--", &unit.name]);
        Ok(output(command)?.err())
    }

    fn runs_as(&self, unit: &Unit, uid: u32) -> io::Result<Result<(), String>> {
        let user = ask(unit, &["User"])?.into_iter().next().filter(|user| !user.is_empty());
        let user = user.unwrap_or_else(|| "root".to_string());
        let is_he = user == uid.to_string() || super::accounts::user_name(uid).is_some_and(|name| name == user);
        Ok(if is_he { Ok(()) } else { Err(user) })
    }

    fn stop(&self, unit: &Unit) -> io::Result<Job> {
        begin(unit, &["stop"])
    }

    fn kill(&self, unit: &Unit) -> io::Result<Job> {
        begin(unit, &["kill", "--signal=KILL"])
    }

    fn start(&self, unit: &Unit) -> io::Result<Job> {
        let mut reset = systemctl(unit.user)?;
        reset.args(["reset-failed", "--", &unit.name]);
        // A unit that never failed need not be known.
        let _ = output(reset)?;
        begin(unit, &["start"])
    }

    fn main_process(&self, unit: &Unit) -> io::Result<Option<ProcessId>> {
        let answer = ask(unit, &["MainPID"])?;
        let pid = answer.first().and_then(|pid| pid.parse().ok()).filter(|pid| *pid != 0);
        pid.map_or(Ok(None), super::processes::identity)
    }

    fn has_failed(&self, unit: &Unit) -> io::Result<bool> {
        Ok(ask(unit, &["ActiveState"])?.first().is_some_and(|state| state == "failed" || state == "inactive"))
    }

    fn recent_output(&self, unit: &Unit, since: i64, count: usize) -> io::Result<Vec<String>> {
        let mut command = Command::new("journalctl");
        let option = if unit.user.is_some() { "--user-unit" } else { "--unit" };
        let (seconds, micros) = (since.div_euclid(1_000_000_000), since.rem_euclid(1_000_000_000) / 1000);
        command.args(["--no-pager", "--quiet", "--output=cat", option, &unit.name]);
        command.args([format!("--since=@{seconds}.{micros:06}"), format!("--lines={count}")]);
        command.env("LC_ALL", "C").process_group(0).current_dir("/").stdin(Stdio::null());
        // No journal, no lines.
        Ok(output(command).ok().and_then(Result::ok).unwrap_or_default().lines().map(str::to_string).collect())
    }

    fn is_shutting_down(&self) -> bool {
        if !is_there() {
            return false;
        }
        // After the last unit systemd turns into this program (15 letters of its name are kept).
        if std::fs::read_to_string("/proc/1/comm").is_ok_and(|name| name.trim() == "systemd-shutdow") {
            return true;
        }
        let state = systemctl(None).and_then(|mut command| {
            command.arg("is-system-running");
            // Any state but `running` is a failure to it, and said all the same.
            output(command)
        });
        state.is_ok_and(|state| state.unwrap_or_else(|said| said).trim() == "stopping")
    }
}

/// Runs `systemctl` for the system's manager to its end, within a bound. Errors inside: what it said.
pub(super) fn manage(words: &[&str]) -> io::Result<Result<(), String>> {
    let mut command = systemctl(None)?;
    command.args(words);
    Ok(output(command)?.map(|_| ()))
}

/// True where systemd is the service manager (sd_booted(3)).
pub(super) fn is_there() -> bool {
    Path::new("/run/systemd/system").exists()
}

/// `systemctl` for the manager of this unit, in its own process group: a Ctrl-C at the terminal is ours to
/// decide about.
fn systemctl(user: Option<u32>) -> io::Result<Command> {
    let mut command = Command::new("systemctl");
    command.args(["--no-ask-password", "--no-pager"]).env("LC_ALL", "C").env("SYSTEMD_COLORS", "0");
    if let Some(uid) = user {
        let place = format!("/run/user/{uid}");
        if uid != rustix::process::geteuid().as_raw() {
            command.uid(uid).gid(std::fs::metadata(&place)?.gid());
        }
        command.arg("--user").env("XDG_RUNTIME_DIR", place).env_remove("DBUS_SESSION_BUS_ADDRESS");
    }
    command.process_group(0).current_dir("/").stdin(Stdio::null());
    Ok(command)
}

/// Another user's own manager answers root alone.
fn is_reachable(unit: &Unit) -> bool {
    let own = rustix::process::geteuid();
    unit.user.is_none_or(|uid| uid == own.as_raw() || own.is_root())
}

/// The values of these properties, in this order. Empty: the manager does not answer in time, or not to us.
fn ask(unit: &Unit, properties: &[&str]) -> io::Result<Vec<String>> {
    if !is_reachable(unit) {
        return Ok(Vec::new());
    }
    let mut command = systemctl(unit.user)?;
    command.arg("show").args(properties.iter().map(|name| format!("--property={name}"))).arg("--").arg(&unit.name);
    let Some(answer) = output(command)?.ok() else { return Ok(Vec::new()) };
    let value = |name: &&str| answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    Ok(properties.iter().map(|name| value(name).unwrap_or_default().to_string()).collect())
}

/// Runs to the end, `ANSWER` at most. What it wrote: as a result when it succeeded, else as the error.
fn output(command: Command) -> io::Result<Result<String, String>> {
    let mut job = Client::spawn(command)?;
    let begun = Instant::now();
    loop {
        if let Some(ended) = job.ended()? {
            return Ok(ended);
        }
        interrupt::check()?;
        if begun.elapsed() >= ANSWER {
            return Ok(Err(format!("the service manager did not answer in {} s", ANSWER.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn begin(unit: &Unit, words: &[&str]) -> io::Result<Job> {
    let mut command = systemctl(unit.user)?;
    command.args(words).arg("--").arg(&unit.name);
    Ok(Box::new(Client::spawn(command)?))
}

/// `systemctl` under way with a request.
#[derive(Debug)]
struct Client(Child);

impl Client {
    fn spawn(mut command: Command) -> io::Result<Client> {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Ok(Client(child.map_err(|e| io::Error::new(e.kind(), format!("running systemctl: {e}")))?))
    }
}

impl ServiceRequest for Client {
    fn ended(&mut self) -> io::Result<Option<Result<String, String>>> {
        let child = &mut self.0;
        let Some(status) = child.try_wait()? else { return Ok(None) };
        let mut text = String::new();
        if let Some(mut out) = child.stdout.take() {
            out.read_to_string(&mut text)?;
        }
        if status.success() {
            return Ok(Some(Ok(text)));
        }
        if let Some(mut err) = child.stderr.take() {
            err.read_to_string(&mut text)?;
        }
        let text = text.trim();
        Ok(Some(Err(if text.is_empty() { format!("systemctl ended with {status}") } else { text.to_string() })))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The client alone: what the manager was asked for goes on.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn descends(pid: u32, ancestor: u32) -> io::Result<bool> {
    for above in ancestry::ancestors(pid) {
        if above? == ancestor {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The path of the process in the unified hierarchy or systemd's own; None: it is gone, or in neither.
fn cgroup_of(pid: u32) -> io::Result<Option<String>> {
    match std::fs::read_to_string(format!("/proc/{pid}/cgroup")) {
        Ok(text) => Ok(path_in(&text).map(str::to_string)),
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(3) => Ok(None),
        Err(error) => Err(super::processes::not_shown(pid, error)),
    }
}

/// The path in the text of `/proc/PID/cgroup`.
fn path_in(text: &str) -> Option<&str> {
    let mut paths = text.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        (controllers.is_empty() || controllers == "name=systemd").then_some(path)
    });
    paths.find(|path| unit_in(path).is_some())
}

/// The part of a control group's path that is its unit's.
fn unit_path(path: &str) -> Option<&str> {
    let unit = unit_in(path)?;
    let end = path.rfind(&format!("/{}", unit.name))? + 1 + unit.name.len();
    path.get(..end)
}

/// The unit of a control group's path: its last service, be it the system's or a user's.
fn unit_in(path: &str) -> Option<Unit> {
    let name = path.rsplit('/').find(|part| part.ends_with(".service"))?;
    let owner = |part: &str| part.strip_prefix("user@")?.strip_suffix(".service")?.parse().ok();
    let user = path.split('/').find_map(owner);
    (!name.starts_with("user@")).then(|| Unit { name: name.to_string(), user })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_the_last_service_of_the_path() {
        let of = |text: &str| path_in(text).and_then(unit_in);
        let some = |name: &str, user| Some(Unit { name: name.to_string(), user });
        assert_eq!(of("0::/system.slice/web.service\n"), some("web.service", None));
        assert_eq!(of("0::/system.slice/web.service/worker\n"), some("web.service", None));
        assert_eq!(of("3:cpu:/x.service\n1:name=systemd:/s.slice/a@1.service\n0::/\n"), some("a@1.service", None));
        let user = "0::/user.slice/user-1.slice/user@1.service";
        assert_eq!(of(&format!("{user}/app.slice/w.service\n")), some("w.service", Some(1)));
        assert_eq!(of(&format!("{user}/init.scope\n")), None);
        assert_eq!(of("0::/user.slice/user-0.slice/session-3.scope\n"), None);
        assert_eq!(unit_path("/system.slice/web.service/worker/x"), Some("/system.slice/web.service"));
        assert_eq!(unit_path("/init.scope"), None);
    }

    #[test]
    fn a_process_that_is_gone_has_no_unit() {
        assert_eq!(Systemd.unit_of(u32::MAX / 4).unwrap(), None);
        assert_eq!(Systemd.members_of(u32::MAX / 4).unwrap(), [0u32; 0]);
        Systemd.unit_of(std::process::id()).unwrap();
    }

    #[test]
    fn the_words_of_a_failing_request_are_kept_and_its_end_is_seen() {
        let shell = |text: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", text]).stdin(Stdio::null());
            output(command).unwrap()
        };
        assert_eq!(shell("echo fine"), Ok("fine\n".to_string()));
        assert_eq!(shell("echo 'Access denied' >&2; exit 4"), Err("Access denied".to_string()));
        assert!(shell("exit 4").unwrap_err().contains("exit status: 4"));
    }
}
