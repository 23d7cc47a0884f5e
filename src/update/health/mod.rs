//! Whether a server that was started again is as well as it was before.
//! Refuses to be content with an open port: a new process of the install must own every port, answer over
//! the same protocol and as well as before, and keep doing so. It starts and ends nothing.

mod measure;

pub use measure::{PATIENCE, Target, measure, measure_while};

use crate::base::error::{Code, Failure};
use crate::base::net::{self, Answer, PING, Protocol};
use crate::ports::{self, Listener};
use crate::state::baseline::HealthBaseline;
use crate::state::root::InstallRoot;
use crate::system::starts::Exit;
use crate::system::{ProcessId, processes};
use crate::update::server::{Launched, Table};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::time::{Duration, Instant};

/// The longest wait between two looks.
const POLL: Duration = Duration::from_millis(20);
/// The longest that one question may take.
const ASK: Duration = Duration::from_secs(3);
/// How often all processes are read while nobody answers a connect_probe (a server may listen elsewhere).
const RELOOK: Duration = Duration::from_millis(500);
const PROBE_TIMEOUT: Duration = Duration::from_millis(200);
/// A bad status must last at least this long before it counts.
const LEAST_BAD: Duration = Duration::from_secs(1);

/// How good a status is: 2xx and 3xx, then 4xx, then 5xx, then none.
fn rank(status: Option<u16>) -> u8 {
    match status {
        Some(200..=399) => 3,
        Some(400..=499) => 2,
        Some(_) => 1,
        None => 0,
    }
}

/// A server that was started and may end; what its health check needs of it.
pub trait Started {
    /// Who it is.
    fn id(&self) -> ProcessId;
    /// How it ended (`exit code 1`); None while it runs.
    fn exited(&mut self) -> std::io::Result<Option<Exit>>;
}

impl Started for Launched {
    fn id(&self) -> ProcessId {
        Launched::id(self)
    }
    fn exited(&mut self) -> std::io::Result<Option<Exit>> {
        Launched::exited(self)
    }
}

/// A server that has proven itself.
#[derive(Debug, Clone)]
pub struct Healthy {
    pub pid: u32,
    pub port: u16,
    pub protocol: Protocol,
    /// When the answer came that ends the outage.
    pub first_answer: Instant,
}

/// What a started server is judged by.
pub struct HealthCheck<'a> {
    pub baseline: &'a HealthBaseline,
    pub root: &'a InstallRoot,
    /// The processes from before the stop.
    pub old: &'a [ProcessId],
    /// How long the server may take to come up.
    pub timeout: Duration,
    /// How long it must then stay well.
    pub soak: Duration,
}

/// What one look at the server showed.
enum Seen {
    /// Ports that nobody new listens on.
    Missing(Vec<u16>),
    /// A port whose owner is not a new process of the install.
    Stranger(u16, u32),
    /// It listens; None: no answer (yet).
    Status(u32, IpAddr, Option<(Protocol, u16)>),
}

/// How a server is, by all looks together.
enum State {
    /// It has not answered yet, or says that it is about to (503).
    Waiting,
    /// It answers worse than before, with this status, since then.
    Bad { status: u16, since: Instant },
    /// It listens and does not answer, since then.
    Silent { since: Instant },
    /// It is well, and must stay so.
    Soaking { healthy: Healthy, id: ProcessId },
}

/// What one look changes.
enum Step {
    To(State),
    /// It is well for the first time.
    Begun(State),
    Proven(Healthy),
}

/// The ports that must be owned, and the one that is asked.
struct Ports {
    all: BTreeSet<u16>,
    asked: u16,
}

impl HealthCheck<'_> {
    /// Waits until the server is well, and then through the soak. `new` is the process that we started, None where a
    /// service manager did. `tick` is called at least between two questions.
    /// Errors: `health-exited`, `health-timeout`, `health-status`, `health-port`, and what `tick` says.
    pub fn wait_until_healthy(
        &self,
        mut new: Option<&mut dyn Started>,
        tick: &mut dyn FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Healthy> {
        let begun = Instant::now();
        let ports = self.ports()?;
        let mut state = State::Waiting;
        let mut looked: Option<Instant> = None;
        loop {
            tick()?;
            if let Some(server) = new.as_deref_mut() {
                self.still_runs(server)?;
            }
            if let Some(rest) = self.rest_of_soak(&state)? {
                std::thread::sleep(POLL.min(rest));
                continue;
            }
            if looked.is_some_and(|at: Instant| at.elapsed() < RELOOK) && !all_ports_accept(&ports.all) {
                std::thread::sleep(POLL);
                if begun.elapsed() < self.timeout {
                    continue;
                }
            }
            looked = Some(Instant::now());
            let seen = self.look(&ports, new.as_deref().map(|n| n.id()))?;
            state = match self.step(state, &seen, ports.asked)? {
                Step::Proven(healthy) => return Ok(healthy),
                // With nothing to sit out the answer itself was the proof.
                Step::Begun(state) if self.soak.is_zero() => state,
                Step::Begun(begun) => {
                    state = begun;
                    continue;
                }
                Step::To(state) => state,
            };
            let in_time =
                matches!(&state, State::Soaking { healthy, .. } if healthy.first_answer < begun + self.timeout);
            if begun.elapsed() >= self.timeout && !in_time {
                return Err(timed_out(self.baseline, ports.asked, &seen));
            }
            std::thread::sleep(POLL);
        }
    }

    fn ports(&self) -> anyhow::Result<Ports> {
        let mut all: BTreeSet<u16> = self.baseline.ports.iter().copied().collect();
        all.extend(self.baseline.asked_port.filter(|_| self.baseline.ports.is_empty()));
        let Some(asked) = self.baseline.asked_port.or(all.first().copied()) else {
            return Err(Failure::failed(Code::HealthPort, "no port is known on which the server could be asked").into());
        };
        Ok(Ports { all, asked })
    }

    /// How much of the soak is left, while the process that answered lives. None: it is to be looked at.
    fn rest_of_soak(&self, state: &State) -> anyhow::Result<Option<Duration>> {
        let State::Soaking { healthy, id } = state else { return Ok(None) };
        let rest = self.soak.saturating_sub(healthy.first_answer.elapsed());
        let lives = processes::identity(id.pid)? == Some(*id);
        Ok((lives && !rest.is_zero()).then_some(rest))
    }

    /// The state after one more look. Errors: it cannot become well any more.
    fn step(&self, state: State, seen: &Seen, asked: u16) -> anyhow::Result<Step> {
        let patience = self.soak.max(LEAST_BAD);
        Ok(match seen {
            Seen::Status(pid, _, Some((protocol, status))) if good_enough(self.baseline, *status) => {
                match (state, processes::identity(*pid)?) {
                    (State::Soaking { healthy, id }, now)
                        if healthy.pid == *pid && now == Some(id) && healthy.first_answer.elapsed() >= self.soak =>
                    {
                        Step::Proven(healthy)
                    }
                    (_, Some(id)) => {
                        let first_answer = Instant::now();
                        let healthy = Healthy { pid: *pid, port: asked, protocol: *protocol, first_answer };
                        Step::Begun(State::Soaking { healthy, id })
                    }
                    (_, None) => Step::To(State::Waiting),
                }
            }
            Seen::Status(_, _, Some((_, status))) if *status != 503 => {
                let since = match state {
                    State::Bad { status: same, since } if same == *status => since,
                    _ => Instant::now(),
                };
                if since.elapsed() >= patience {
                    return Err(failed(Code::HealthStatus, self.baseline, asked, &format!("status {status}")));
                }
                Step::To(State::Bad { status: *status, since })
            }
            Seen::Status(_, address, None) => {
                let since = if let State::Silent { since } = state { since } else { Instant::now() };
                if since.elapsed() < patience {
                    return Ok(Step::To(State::Silent { since }));
                }
                self.speaks_otherwise(*address, asked)?;
                Step::To(State::Silent { since: Instant::now() })
            }
            _ => Step::To(State::Waiting),
        })
    }

    /// Fails at once when the started process ended badly, or ended and left nothing of the install.
    fn still_runs(&self, server: &mut dyn Started) -> anyhow::Result<()> {
        let Some(how) = server.exited()? else { return Ok(()) };
        let ProcessId { pid, start } = server.id();
        if how.is_success() {
            // A daemon that it left is born after it; whatever else stands in the install is none.
            let newcomers = Table::read(&ports::listeners()?)?.newcomers(self.root, self.old);
            let born = |pid: &u32| processes::identity(*pid).ok().flatten().map(|id| id.start);
            if newcomers.iter().any(|new| *new != pid && born(new).is_some_and(|at| at >= start)) {
                return Ok(());
            }
        }
        Err(Failure::failed(Code::HealthExited, format!("the new server (pid {pid}) ended with {how}")).into())
    }

    /// Fails when the server answers over the protocol that it did not speak before.
    fn speaks_otherwise(&self, address: IpAddr, port: u16) -> anyhow::Result<()> {
        let Some(expected) = self.baseline.protocol else { return Ok(()) };
        let answer = net::get(expected.other(), address, port, &self.baseline.path, ASK);
        // 400: a TLS port that explains itself to a plain request.
        match answer {
            Ok(answer) if answer.status != 400 && answer.status != 503 => {
                let seen = format!("status {} over {}", answer.status, expected.other());
                Err(failed(Code::HealthStatus, self.baseline, port, &seen))
            }
            _ => Ok(()),
        }
    }

    /// One look: who listens, and what it answers.
    fn look(&self, wanted: &Ports, new: Option<ProcessId>) -> anyhow::Result<Seen> {
        let (asked, wanted) = (wanted.asked, &wanted.all);
        let listeners = ports::listeners()?;
        let missing: Vec<u16> = wanted.iter().copied().filter(|p| !listeners.iter().any(|l| l.port == *p)).collect();
        if !missing.is_empty() {
            return Ok(Seen::Missing(missing));
        }
        let table = Table::read(&listeners)?;
        let newcomers = table.newcomers(self.root, self.old);
        let counts = |pid: &u32| {
            // Where we started one, only it and its children count, or what it left behind as a daemon.
            let of_ours = new.is_none_or(|new| table.descends(*pid, new.pid) || !table.holds(new.pid));
            newcomers.contains(pid) && of_ours || new.is_some_and(|new| table.descends(*pid, new.pid))
        };
        let mut owner = None;
        for port in wanted.iter().chain([&asked]) {
            let held: Vec<&Listener> = listeners.iter().filter(|l| l.port == *port).collect();
            let ours = held.iter().find_map(|l| l.pids.iter().find(|pid| counts(pid)).map(|pid| (*pid, l.reachable())));
            match (ours, held.iter().find_map(|l| l.pids.first())) {
                (Some(found), _) if *port == asked => owner = Some(found),
                (Some(_), _) => {}
                (None, Some(pid)) => return Ok(Seen::Stranger(*port, *pid)),
                (None, None) => return Ok(Seen::Missing(vec![*port])),
            }
        }
        let Some((pid, address)) = owner else { return Ok(Seen::Missing(vec![asked])) };
        Ok(Seen::Status(pid, address, ask(self.baseline, address, asked)))
    }
}

/// True when a measured answer is at least as good as the one expected.
pub fn answers_as_well(expected: &HealthBaseline, measured: &HealthBaseline) -> bool {
    let protocol = expected.protocol.is_none() || expected.protocol == measured.protocol;
    protocol && measured.status.is_some_and(|status| good_enough(expected, status))
}

/// A connect_probe on the usual addresses: cheap, where reading every process is not, so that the wait takes
/// nothing from a server that starts. The connection is closed at once.
fn all_ports_accept(ports: &BTreeSet<u16>) -> bool {
    let here: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let connect_probe =
        |port: u16| here.iter().any(|at| TcpStream::connect_timeout(&(*at, port).into(), PROBE_TIMEOUT).is_ok());
    ports.iter().all(|port| connect_probe(*port))
}

fn good_enough(before: &HealthBaseline, status: u16) -> bool {
    let needed = if before.status.is_some() { rank(before.status) } else { rank(Some(200)) };
    rank(Some(status)) >= needed
}

/// Asks over the protocol of before, or whichever it speaks.
fn ask(before: &HealthBaseline, address: IpAddr, port: u16) -> Option<(Protocol, u16)> {
    let found: Option<(Protocol, Answer)> = match before.protocol {
        Some(protocol) => net::get(protocol, address, port, &before.path, ASK).ok().map(|answer| (protocol, answer)),
        None => net::ask_protocol_at(address, port, &before.path, ASK),
    };
    let (protocol, answer) = found?;
    // Nobody knew before whether this server has a ping.
    if before.status.is_none() && answer.status == 404 && before.path == PING {
        return net::get(protocol, address, port, "/", ASK).ok().map(|front| (protocol, front.status));
    }
    Some((protocol, answer.status))
}

/// `https://127.0.0.1:8081/x with status 200`
fn expectation(before: &HealthBaseline, port: u16) -> String {
    let scheme = before.protocol.map_or("http or https", Protocol::scheme);
    let status = match before.status {
        Some(status) => format!("a status as good as {status} (the answer before)"),
        None => "a 2xx or 3xx status".to_string(),
    };
    // A query may hold a key.
    let path = before.path.split('?').next().unwrap_or_default();
    format!("{status} at {scheme}://{}:{port}{path}", Ipv4Addr::LOCALHOST)
}

fn failed(code: Code, before: &HealthBaseline, port: u16, seen: &str) -> anyhow::Error {
    let message = format!("the new server is not well: expected {}, seen: {seen}", expectation(before, port));
    Failure::failed(code, message).into()
}

fn timed_out(before: &HealthBaseline, asked: u16, seen: &Seen) -> anyhow::Error {
    match seen {
        Seen::Missing(ports) => {
            let named: Vec<String> = ports.iter().map(u16::to_string).collect();
            let text = format!("no new process of the install listening on port {} in time", named.join(", "));
            failed(Code::HealthTimeout, before, asked, &text)
        }
        Seen::Stranger(port, pid) => {
            let text = format!("port {port} held by pid {pid}, which is not a new process of the install");
            failed(Code::HealthPort, before, asked, &text)
        }
        Seen::Status(_, _, None) => failed(Code::HealthTimeout, before, asked, "an open port but no answer in time"),
        Seen::Status(_, _, Some((_, status))) => {
            failed(Code::HealthTimeout, before, asked, &format!("still status {status} in time"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_path_or_a_url() {
        let target = |text| Target::parse(text).ok();
        let some = |path: &str, port| Some(Target { path: path.into(), port });
        assert_eq!(target("/up?x=1"), some("/up?x=1", None));
        assert_eq!(target("http://127.0.0.1:81/up"), some("/up", Some(81)));
        assert_eq!(target("https://localhost"), some("/", Some(443)));
        assert_eq!(target("http://[::1]:81/up"), some("/up", Some(81)));
        assert_eq!(target("http://192.0.2.1:81/up"), None);
        assert_eq!(target("http://example.org/up"), None);
        assert_eq!(target("up"), None);
        assert_eq!(target("ftp://x/y"), None);
    }
    use std::process::{Child, Command, Stdio};

    /// Answers every request with the status in `STATUS`, or never where that is 0.
    const SERVE: &str = "import http.server,os,sys\n\
        s=int(os.environ['STATUS'])\n\
        class H(http.server.BaseHTTPRequestHandler):\n\
        \x20def do_GET(self):\n\
        \x20 self.send_response(s if self.path=='/' or s!=200 else 404)\n\
        \x20 self.end_headers()\n\
        if s==0: sys.exit(3)\n\
        http.server.ThreadingHTTPServer(('127.0.0.1',int(os.environ['PORT'])),H).serve_forever()\n";

    /// A child that is ended with the test, by its own handle.
    struct Server(Child, ProcessId);
    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    impl Started for Server {
        fn id(&self) -> ProcessId {
            self.1
        }
        fn exited(&mut self) -> std::io::Result<Option<Exit>> {
            Ok(self.0.try_wait()?.map(|status| Exit::Code(status.code().unwrap_or(-1))))
        }
    }

    fn start(root: &InstallRoot, port: u16, status: u16) -> Server {
        let mut command = Command::new("python3");
        command.arg("run.py").current_dir(root.path()).env("PORT", port.to_string());
        command.env("STATUS", status.to_string()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let id = processes::identity(child.id()).unwrap().unwrap();
        Server(child, id)
    }

    fn install() -> (tempfile::TempDir, InstallRoot, u16) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("run.py"), SERVE).unwrap();
        let root = InstallRoot::resolve(folder.path()).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        (folder, root, port)
    }

    fn before(port: u16, status: Option<u16>) -> HealthBaseline {
        let protocol = status.map(|_| Protocol::Http);
        let (ports, asked_port) = (vec![port], Some(port));
        HealthBaseline { running: true, ports, asked_port, protocol, path: "/".to_string(), status }
    }

    const QUICK: Duration = Duration::from_secs(20);

    fn judged(
        timeout: Duration,
        baseline: &HealthBaseline,
        root: &InstallRoot,
        new: &mut Server,
    ) -> Result<Healthy, &'static str> {
        let check = HealthCheck { baseline, root, old: &[], timeout, soak: Duration::from_millis(200) };
        check
            .wait_until_healthy(Some(new), &mut || Ok(()))
            .map_err(|error| error.downcast_ref::<Failure>().map_or("other", |failure| failure.code.word()))
    }

    #[test]
    fn a_server_as_good_as_before_is_healthy() {
        let (_folder, root, port) = install();
        let mut server = start(&root, port, 200);
        let healthy = judged(QUICK, &before(port, Some(200)), &root, &mut server).unwrap();
        assert_eq!((healthy.pid, healthy.port, healthy.protocol), (server.1.pid, port, Protocol::Http));
        assert!(healthy.first_answer.elapsed() >= Duration::from_millis(200));
        let measured = measure(&ports::held_by(port).unwrap(), None, None, ASK);
        assert_eq!((measured.path.as_str(), measured.status), ("/", Some(200)));
        assert_eq!((measured.protocol, measured.asked_port), (Some(Protocol::Http), Some(port)));
    }

    #[test]
    fn a_worse_status_fails_and_an_equal_one_does_not() {
        let (_folder, root, port) = install();
        let mut server = start(&root, port, 500);
        assert_eq!(judged(QUICK, &before(port, Some(404)), &root, &mut server).unwrap_err(), "health-status");
        assert_eq!(judged(QUICK, &before(port, None), &root, &mut server).unwrap_err(), "health-status");
        assert!(judged(QUICK, &before(port, Some(503)), &root, &mut server).is_ok());
    }

    #[test]
    fn an_end_at_start_fails_at_once() {
        let (_folder, root, port) = install();
        let mut server = start(&root, port, 0);
        let begun = Instant::now();
        assert_eq!(judged(QUICK, &before(port, None), &root, &mut server).unwrap_err(), "health-exited");
        assert!(begun.elapsed() < QUICK);
    }

    #[test]
    fn a_503_is_waited_out_until_the_timeout() {
        let (_folder, root, port) = install();
        let mut server = start(&root, port, 503);
        assert_eq!(
            judged(Duration::from_secs(3), &before(port, Some(200)), &root, &mut server).unwrap_err(),
            "health-timeout"
        );
    }

    #[test]
    fn a_stranger_on_the_port_is_no_health() {
        let (_folder, root, port) = install();
        let (_other, elsewhere, own) = install();
        let _stranger = start(&elsewhere, port, 200);
        let mut server = start(&root, own, 200);
        assert_eq!(
            judged(Duration::from_secs(3), &before(port, Some(200)), &root, &mut server).unwrap_err(),
            "health-port"
        );
    }
}
