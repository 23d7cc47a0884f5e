//! One GET request for a file, read in the background, so that whoever waits for it can stop waiting at once.
//! Refuses to follow redirects by itself, and to judge what came.

use super::Url;
use crate::base::background::Background;
use anyhow::Result;
use std::io::Read;
use std::sync::mpsc::{RecvTimeoutError, SendError, SyncSender};
use std::time::Duration;
use ureq::tls::TlsConfig;

/// What is read at once, in bytes.
const CHUNK: usize = 64 * 1024;
/// How many chunks wait to be taken. The thread waits when there are more, and the server behind it.
const WAITING: usize = 4;

/// A file to be asked for. Proxies of the environment are used; no limit lies on the whole.
#[derive(Debug, Clone)]
pub struct Request {
    pub url: Url,
    /// The certificate is not verified.
    pub insecure: bool,
    /// The longest that the connection may take, and the lookup of the name.
    pub connect: Duration,
    /// The longest that nothing may come.
    pub stall: Duration,
}

/// How the server answers.
#[derive(Debug)]
pub struct Answered {
    pub status: u16,
    pub location: Option<String>,
    /// As announced; None where it was not.
    pub length: Option<u64>,
    /// The media type as announced, in lower case.
    pub media_type: String,
}

/// Why nothing more comes.
#[derive(Debug)]
pub struct Refused {
    pub cause: String,
    /// The certificate could not be verified.
    pub is_certificate: bool,
}

/// What came next.
#[derive(Debug)]
pub enum Came {
    /// First of all, unless the request fails.
    Answer(Answered),
    Bytes(Vec<u8>),
    End,
    Failed(Refused),
}

/// A request under way. Dropped, it is abandoned, and writes nothing.
#[derive(Debug)]
pub struct Transfer(Background<Came>);

impl Request {
    /// Begins to ask. Errors: no thread can be had.
    pub fn start(self) -> std::io::Result<Transfer> {
        // Nobody listens any more: then nobody needs to be told either.
        Background::start("transfer", WAITING, move |tell| drop(self.run(tell))).map(Transfer)
    }

    fn run(&self, tell: &SyncSender<Came>) -> Result<(), SendError<Came>> {
        let agent = ureq::Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_resolve(Some(self.connect))
            .timeout_connect(Some(self.connect))
            .timeout_send_request(Some(self.connect))
            .timeout_recv_response(Some(self.stall))
            .timeout_per_read(Some(self.stall))
            .tls_config(TlsConfig::builder().disable_verification(self.insecure).build())
            .user_agent(concat!("updater/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        let response = match agent.get(self.url.full()).call() {
            Ok(response) => response,
            Err(e) => return tell.send(Came::Failed(self.refused(&e))),
        };
        let header = |name: &str| {
            let value = response.headers().get(name)?;
            Some(String::from_utf8_lossy(value.as_bytes()).trim().to_string())
        };
        tell.send(Came::Answer(Answered {
            status: response.status().as_u16(),
            location: header("location"),
            length: header("content-length").and_then(|text| text.parse().ok()),
            media_type: header("content-type").unwrap_or_default().to_ascii_lowercase(),
        }))?;
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        loop {
            let mut bytes = vec![0; CHUNK];
            match body.read(&mut bytes) {
                Ok(0) => return tell.send(Came::End),
                Ok(count) => {
                    bytes.truncate(count);
                    tell.send(Came::Bytes(bytes))?;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return tell.send(Came::Failed(self.refused(&e.into()))),
            }
        }
    }

    fn refused(&self, error: &ureq::Error) -> Refused {
        let text = error.to_string();
        if let Some((_, why)) = text.split_once(INVALID) {
            return Refused { cause: certificate(why), is_certificate: true };
        }
        let seconds = |time: Duration| format!("{} s", time.as_secs_f32());
        let cause = match error {
            ureq::Error::Timeout(ureq::Timeout::Resolve) => {
                format!("the name of its host was not found within {}", seconds(self.connect))
            }
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::SendRequest) => {
                format!("no connection within {}", seconds(self.connect))
            }
            ureq::Error::Timeout(_) => format!("nothing came for {}", seconds(self.stall)),
            ureq::Error::HostNotFound => "its host is not known".to_string(),
            _ if text.contains("InvalidContentType") => "its server does not speak https on this port".to_string(),
            ureq::Error::Io(e) => e.to_string(),
            _ => text,
        };
        Refused { cause, is_certificate: false }
    }
}

impl Transfer {
    /// What comes next. Errors: what `check` says, soon after it begins to say so.
    pub fn next(&self, check: &mut dyn FnMut() -> Result<()>) -> Result<Came> {
        Ok(self.0.next(check)?.unwrap_or_else(cut_off))
    }

    /// What comes within 20 ms; None: nothing did.
    pub fn look(&self) -> Option<Came> {
        match self.0.look() {
            Ok(came) => Some(came),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(cut_off()),
        }
    }

    /// After `End`: waits for the thread, which has nothing left to do.
    pub fn close(self) {
        self.0.close();
    }
}

/// The thread tells of every end, so without one it was cut off.
fn cut_off() -> Came {
    Came::Failed(Refused { cause: "the thread that reads it has ended".to_string(), is_certificate: false })
}

/// What rustls writes before its reason (`rustls::Error::InvalidCertificate`).
const INVALID: &str = "invalid peer certificate: ";

/// The reasons of rustls and webpki, by a word of each, in plain words. Where a new version of theirs has other words,
/// the last line is said.
fn certificate(why: &str) -> String {
    const REASONS: [(&str, &str); 8] = [
        ("UnknownIssuer", "its certificate was signed by nobody that is trusted here"),
        ("CaUsedAsEndEntity", "its certificate is signed by itself"),
        ("not valid for name", "its certificate is for another name"),
        ("NotValidForName", "its certificate is for another name"),
        ("xpired", "its certificate has expired"),
        ("not valid yet", "its certificate is not valid yet; is the clock of this computer right?"),
        ("NotValidYet", "its certificate is not valid yet; is the clock of this computer right?"),
        ("Revoked", "its certificate was revoked"),
    ];
    let found = REASONS.iter().find(|(word, _)| why.contains(word));
    found.map_or("its certificate cannot be verified", |(_, words)| words).to_string()
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_refused_in_plain_words() {
        for (why, words) in [
            ("UnknownIssuer", "signed by nobody"),
            ("Other(OtherError(CaUsedAsEndEntity))", "signed by itself"),
            ("certificate not valid for name \"x\"; certificate is only valid for y", "another name"),
            ("certificate expired: verification time 1 (UNIX)", "has expired"),
            ("certificate not valid yet: verification time 1", "clock"),
            ("SomethingNew(OtherError(X))", "cannot be verified"),
        ] {
            let said = certificate(why);
            assert!(said.contains(words) && !said.contains("Other"), "{why}: {said}");
        }
    }
}
