//! How a server answers: the health baseline of one that runs, and where it is asked.

use crate::base::background::Background;
use crate::base::error::{Code, Failure};
use crate::base::net::{self, PING, url};
use crate::ports::Listener;
use crate::state::baseline::HealthBaseline;
use crate::system::{interrupt, processes};
use anyhow::Context as _;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

/// How long a server is given to answer when it is measured.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long it is given when somebody asked us to end.
const HURRY: Duration = Duration::from_millis(50);

/// Asks a running server: `path`, or the ping and, where there is none (404), `/`. With several ports,
/// `asked` or the first that answers. `timeout` is for each single question.
pub fn measure(listeners: &[Listener], asked: Option<u16>, path: Option<&str>, timeout: Duration) -> HealthBaseline {
    let ports: BTreeSet<u16> = listeners.iter().map(|l| l.port).collect();
    let mut before = HealthBaseline {
        running: !listeners.is_empty(),
        ports: ports.iter().copied().collect(),
        asked_port: asked.or(ports.first().copied()),
        protocol: None,
        path: path.unwrap_or(PING).to_string(),
        status: None,
    };
    for listener in listeners.iter().filter(|l| asked.is_none_or(|port| port == l.port)) {
        let at = (listener.reachable(), listener.port);
        let Some((protocol, answer)) = net::ask_protocol_at(at.0, at.1, &before.path, timeout) else { continue };
        before.asked_port = Some(listener.port);
        before.protocol = Some(protocol);
        before.status = Some(answer.status);
        if path.is_none()
            && answer.status == 404
            && let Ok(front) = net::get(protocol, at.0, at.1, "/", timeout)
        {
            before.path = "/".to_string();
            before.status = Some(front.status);
        }
        break;
    }
    before
}

/// Measures in the background, so that a signal ends the wait for a server that does not answer. Errors: somebody asked
/// us to end, where that is looked at (`interrupt::during`).
pub fn measure_while(listeners: &[Listener], asked: Option<u16>, path: Option<&str>) -> anyhow::Result<HealthBaseline> {
    // Nobody is waited for any more once we were asked to end; how an update ended is told all the same.
    let patience = if processes::was_asked_to_end() { HURRY } else { PATIENCE };
    let (listeners, path) = (listeners.to_vec(), path.map(str::to_string));
    // Abandoned, it ends by itself when its patience does.
    let ask = move |tell: &SyncSender<_>| drop(tell.send(measure(&listeners, asked, path.as_deref(), patience)));
    let asking = Background::start("measure", 1, ask).context("asking the server how it answers")?;
    let answer = asking.next(&mut || Ok(interrupt::check()?))?;
    answer.context("the server could not be asked how it answers")
}

/// Where health is asked, as the operator wrote it: a path, or a URL of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub path: String,
    pub port: Option<u16>,
}

impl Target {
    /// Errors (exit 2): it is neither a path nor an http or https URL, or a URL of another machine.
    pub fn parse(text: &str) -> anyhow::Result<Target> {
        if text.starts_with('/') {
            return Ok(Target { path: text.to_string(), port: None });
        }
        let bad = || {
            Failure::usage(
                Code::BadHealthUrl,
                format!("'{}' is neither a path nor an http or https URL", url::shown(text)),
            )
            .remedy("write it as /path or as http://127.0.0.1:8081/path")
        };
        let url: ureq::http::Uri = text.parse().map_err(|_| bad())?;
        let usual = match url.scheme_str() {
            Some("http") => 80,
            Some("https") => 443,
            _ => return Err(bad().into()),
        };
        let host = url.host().unwrap_or_default();
        if !is_here(host) {
            let message = format!("'{}' asks {host}, and health is asked on this machine", url::shown(text));
            return Err(Failure::usage(Code::BadHealthUrl, message)
                .remedy("write it as /path or as http://127.0.0.1:8081/path")
                .into());
        }
        let path = url.path_and_query().map_or("/", |p| p.as_str()).to_string();
        Ok(Target { path, port: Some(url.port_u16().unwrap_or(usual)) })
    }
}

/// True for the names of this machine that need no look-up: `localhost`, and every address that one of its own sockets can
/// have.
fn is_here(host: &str) -> bool {
    let address: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
    host.eq_ignore_ascii_case("localhost") || address.is_some_and(|at| std::net::UdpSocket::bind((at, 0)).is_ok())
}
