//! HTTP and HTTPS: one question to a server on this machine, whose connection is closed at once; and, in the rooms
//! below, one file from anywhere (`transfer`) and addresses (`url`).
//! Refuses, for the question, proxies, redirects, pooling and any check of the certificate (the server signs its
//! own; what is asked is whether it answers, never what to trust).
#![deny(clippy::indexing_slicing, clippy::string_slice, clippy::arithmetic_side_effects)]

pub mod transfer;
pub mod url;

pub use transfer::{Answered, Came, Request, Transfer};
pub use url::Url;

use serde::{Deserialize, Serialize};
use std::io::Read;
use std::net::IpAddr;
use std::time::Duration;
use ureq::tls::TlsConfig;

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Http,
    Https,
}

impl Protocol {
    /// `http` or `https`.
    pub fn scheme(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::Https => "https",
        }
    }
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Protocol::Http => Protocol::Https,
            Protocol::Https => Protocol::Http,
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.scheme())
    }
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// At most the first 64 KiB.
    pub body_start: Vec<u8>,
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
#[error("{protocol}://{host}:{port}{path}: {cause}")]
pub struct ProbeError {
    pub protocol: Protocol,
    pub host: IpAddr,
    pub port: u16,
    pub path: String,
    pub cause: String,
}

/// The path that the server answers without a login.
pub const PING: &str = "/api/sync/ping";
const BODY: u64 = 64 * 1024;

/// One GET request. Errors: no connection, no HTTP answer, or not within `timeout`.
pub fn get(protocol: Protocol, addr: IpAddr, port: u16, path: &str, timeout: Duration) -> Result<Answer, ProbeError> {
    let host = match addr {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    };
    let agent = ureq::Agent::config_builder()
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .max_idle_connections(0)
        .max_idle_connections_per_host(0)
        .timeout_global(Some(timeout))
        .tls_config(TlsConfig::builder().disable_verification(true).build())
        .build()
        .new_agent();
    // A query may hold a key.
    let shown = path.split('?').next().unwrap_or_default();
    let refused = |cause: String| ProbeError { protocol, host: addr, port, path: shown.to_string(), cause };
    let mut response = agent
        .get(format!("{protocol}://{host}:{port}{path}"))
        .header("Connection", "close")
        .call()
        .map_err(|error| refused(error.to_string()))?;
    let status = response.status().as_u16();
    let mut body_start = Vec::new();
    // The status is the answer; a body that breaks off does not take it back.
    let _ = response.body_mut().as_reader().take(BODY).read_to_end(&mut body_start);
    Ok(Answer { status, body_start })
}

/// Finds the protocol by asking for the ping: plain HTTP first, then HTTPS.
pub fn ask_protocol(addr: IpAddr, port: u16, timeout: Duration) -> Option<(Protocol, Answer)> {
    ask_protocol_at(addr, port, PING, timeout)
}

/// As `ask_protocol`, for another path. A plain 400 may be a TLS port that explains itself, so HTTPS is
/// asked too and believed where it answers.
pub fn ask_protocol_at(addr: IpAddr, port: u16, path: &str, timeout: Duration) -> Option<(Protocol, Answer)> {
    let plain = get(Protocol::Http, addr, port, path, timeout).ok();
    if let Some(answer) = plain.as_ref().filter(|answer| answer.status != 400) {
        return Some((Protocol::Http, answer.clone()));
    }
    let secure = get(Protocol::Https, addr, port, path, timeout).ok().map(|answer| (Protocol::Https, answer));
    secure.or(plain.map(|answer| (Protocol::Http, answer)))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener};

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn answering(answer: &'static str, times: usize) -> (u16, std::thread::JoinHandle<bool>) {
        let server = TcpListener::bind((HERE, 0)).unwrap();
        let port = server.local_addr().unwrap().port();
        let work = std::thread::spawn(move || {
            let mut closed = true;
            for _ in 0..times {
                let (mut peer, _) = server.accept().unwrap();
                let mut request = [0u8; 4096];
                let _ = peer.read(&mut request).unwrap();
                peer.write_all(answer.as_bytes()).unwrap();
                peer.shutdown(std::net::Shutdown::Write).unwrap();
                closed &= peer.read(&mut request).unwrap_or(0) == 0;
            }
            closed
        });
        (port, work)
    }

    #[test]
    fn an_answer_is_read_and_the_connection_closed() {
        let (port, work) = answering("HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno", 1);
        let answer = get(Protocol::Http, HERE, port, "/x", Duration::from_secs(2)).unwrap();
        assert_eq!((answer.status, answer.body_start.as_slice()), (503, b"no".as_slice()));
        assert!(work.join().unwrap());
    }

    #[test]
    fn a_redirect_is_an_answer() {
        let (port, work) =
            answering("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", 1);
        assert_eq!(ask_protocol(HERE, port, Duration::from_secs(2)).unwrap().1.status, 302);
        work.join().unwrap();
    }

    #[test]
    fn silence_ends_with_the_timeout() {
        let server = TcpListener::bind((HERE, 0)).unwrap();
        let port = server.local_addr().unwrap().port();
        assert!(get(Protocol::Https, HERE, port, "/", Duration::from_millis(200)).is_err());
    }

    const TLS: &str = "import http.server,ssl,sys\n\
        s=http.server.HTTPServer(('127.0.0.1',0),http.server.SimpleHTTPRequestHandler)\n\
        c=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n\
        c.load_cert_chain('c.pem','k.pem')\n\
        s.socket=c.wrap_socket(s.socket,server_side=True)\n\
        print(s.server_port,flush=True)\n\
        s.serve_forever()\n";

    #[test]
    fn a_self_signed_server_is_found_to_speak_https() {
        use std::io::BufRead;
        use std::process::{Command, Stdio};
        let folder = tempfile::tempdir().unwrap();
        let words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -keyout k.pem -out c.pem";
        let made = Command::new("openssl").args(words.split(' ')).current_dir(folder.path()).output().unwrap();
        assert!(made.status.success());
        let mut command = Command::new("python3");
        command.args(["-c", TLS]).current_dir(folder.path()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut server = command.spawn().unwrap();
        let mut line = String::new();
        std::io::BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let found = ask_protocol_at(HERE, line.trim().parse().unwrap(), "/", Duration::from_secs(3));
        server.kill().unwrap();
        server.wait().unwrap();
        let (protocol, answer) = found.unwrap();
        assert_eq!((protocol, answer.status), (Protocol::Https, 200));
    }
}
