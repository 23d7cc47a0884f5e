//! Fetch: a bundle from an http or https URL, written whole or not at all, while the server still serves.
//! Refuses a certificate that it cannot verify (unless told so), a way from https to http, and to take for a bundle
//! what broke off.

mod answer;
mod pace;

pub use pace::Floor;

use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::net::{Answered, Came, Request, Transfer, Url};
use crate::system::files;
use anyhow::{Context, Result};
use pace::Pace;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How many redirects are followed; browsers stop at 20, mirrors need two or three.
const REDIRECTS: usize = 10;
/// How many bytes of a body are looked at for what it is.
const HEAD: usize = 512;

/// How long a connection may take, how long nothing may come, and the least that must come: there is no limit on the
/// whole, so that a slow line still gets there.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    pub connect: Duration,
    pub stall: Duration,
    pub floor: Floor,
}

impl Default for Patience {
    fn default() -> Self {
        // 1 kB a second: a modem of 1995 had three times as much.
        let floor = Floor { span: Duration::from_secs(60), least: 60_000 };
        Patience { connect: Duration::from_secs(20), stall: Duration::from_secs(30), floor }
    }
}

/// What is downloaded, and on which terms.
#[derive(Debug, Clone)]
pub struct Order<'a> {
    pub url: &'a Url,
    /// The certificate is not verified.
    pub insecure: bool,
    /// In bytes.
    pub most: u64,
    pub patience: Patience,
}

/// Whoever waits for a download.
pub struct Watch<'a> {
    /// Is told bytes done and bytes in all (0: unknown).
    pub progress: &'a mut dyn FnMut(u64, u64),
    /// Asked often; its error ends the download at once.
    pub check: &'a mut dyn FnMut() -> Result<()>,
}

/// The address as it was typed, and where redirects have led.
pub(crate) struct Source {
    typed: Url,
    now: Url,
}

impl Source {
    fn failure(&self, why: &str) -> Failure {
        Failure::failed(Code::DownloadFailed, format!("{self} cannot be downloaded: {why}"))
            .at(&self.typed)
            .remedy("check the network and try again, or save the bundle to a file and give its path")
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.typed)?;
        if self.now == self.typed { Ok(()) } else { write!(f, " (redirected to {})", self.now) }
    }
}

/// True for what is fetched, and no path.
pub fn is_url(text: &str) -> bool {
    let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    scheme.is_some_and(|scheme| scheme.len() > 1 && scheme.chars().all(|c| c.is_ascii_alphanumeric()))
}

/// Downloads into `folder`, which is emptied first. Errors: `download-failed` or `no-space` with the reason and what to
/// do; `bad-zip` where something else came; what the watch says.
pub fn download(order: &Order, folder: &Path, watch: &mut Watch) -> Result<PathBuf> {
    fsx::remove_own_tree(folder)?;
    fsx::make_folders(folder)?;
    let Opened { source, transfer, length } = open(order, watch)?;
    let too_large = || {
        source
            .failure(&format!("it has more than the {} bytes allowed", order.most))
            .remedy("allow more with [bundle] max_size")
    };
    if length.is_some_and(|bytes| bytes > order.most) {
        return Err(too_large().into());
    }
    let free = files::free_space(folder).context("asking for free space")?;
    if let Some(needed) = length.filter(|needed| *needed > free) {
        return Err(no_space(folder, &format!("the bundle has {needed} bytes and {free} are free")).into());
    }
    let (part, whole) = (folder.join("bundle.part"), folder.join("bundle.zip"));
    let mut file = fs_err::File::create(&part)?;
    let (mut done, mut head) = (0u64, Vec::new());
    let mut pace = Pace::new(order.patience.floor, Instant::now());
    loop {
        (watch.progress)(done, length.unwrap_or(0));
        let bytes = match transfer.next(&mut || {
            judge_pace(order, &source, pace.too_little(Instant::now(), done))?;
            (watch.check)()
        })? {
            Came::Bytes(bytes) => bytes,
            Came::Failed(refused) => {
                let why = source.now.without_secrets(&refused.cause);
                return Err(source.failure(&format!("it broke off after {done} bytes: {why}")).into());
            }
            Came::End | Came::Answer(_) => break,
        };
        if head.len() < HEAD {
            head.extend(bytes.iter().take(HEAD - head.len()));
            if head.len() == HEAD {
                refuse_other(&source, &head)?;
            }
        }
        file.write_all(&bytes).map_err(|e| match e.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                no_space(folder, &format!("the bundle did not fit: {e}")).into()
            }
            _ => anyhow::Error::new(e),
        })?;
        done += bytes.len() as u64;
        if done > order.most {
            return Err(too_large().into());
        }
    }
    transfer.close();
    if let Some(expected) = length.filter(|expected| *expected != done) {
        return Err(source.failure(&format!("it broke off: {done} of {expected} bytes came")).into());
    }
    refuse_other(&source, &head)?;
    file.sync_all()?;
    drop(file);
    fs_err::rename(&part, &whole)?;
    Ok(whole)
}

/// Ends with exit 6 where the server sends something else than a bundle.
fn refuse_other(source: &Source, head: &[u8]) -> Result<()> {
    answer::is_no_zip(source, head).map_or(Ok(()), |failure| Err(failure.into()))
}

fn judge_pace(order: &Order, source: &Source, too_little: Option<u64>) -> Result<()> {
    let Some(came) = too_little else { return Ok(()) };
    let Floor { span, least } = order.patience.floor;
    let why = format!("only {came} bytes came in {} s, and at least {least} must", span.as_secs_f32());
    Err(source
        .failure(&why)
        .remedy("try again on a better line, or save the bundle to a file and give its path")
        .into())
}

fn no_space(folder: &Path, why: &str) -> Failure {
    let place = folder.display();
    Failure::failed(Code::NoSpace, format!("there is no room on the volume of {place}: {why}"))
        .at(place)
        .remedy("free space on that volume, or take old backups away: updater backups prune --keep 1")
}

/// Copies an open file of `total` bytes into `folder`, which is emptied first. Errors: it cannot be read or written;
/// what the watch says.
pub fn keep(from: &mut std::fs::File, total: u64, folder: &Path, watch: &mut Watch) -> Result<PathBuf> {
    fsx::remove_own_tree(folder)?;
    fsx::make_folders(folder)?;
    let whole = folder.join("bundle.zip");
    let mut file = fs_err::File::create(&whole)?;
    fsx::copy_bytes(from, file.file_mut(), false).context("copying the bundle")?;
    file.sync_all()?;
    (watch.progress)(total, total);
    (watch.check)()?;
    Ok(whole)
}

/// A body that is about to come.
struct Opened {
    source: Source,
    transfer: Transfer,
    length: Option<u64>,
}

/// Asks, behind whatever redirects there are. Errors: there is no bundle to be had.
fn open(order: &Order, watch: &mut Watch) -> Result<Opened> {
    let mut source = Source { typed: order.url.clone(), now: order.url.clone() };
    let mut seen = vec![source.now.clone()];
    for _ in 0..=REDIRECTS {
        let Patience { connect, stall, .. } = order.patience;
        let request = Request { url: source.now.clone(), insecure: order.insecure, connect, stall };
        let transfer = request.start().context("starting a download")?;
        let answer = match transfer.next(watch.check)? {
            Came::Answer(answer) => answer,
            Came::Failed(refused) => {
                let failure = source.failure(&source.now.without_secrets(&refused.cause));
                return Err(if refused.is_certificate { failure.remedy(TRUST) } else { failure }.into());
            }
            Came::Bytes(_) | Came::End => return Err(source.failure("the server did not answer").into()),
        };
        match (answer.status, &answer.location) {
            (200, _) => return Ok(Opened { source, transfer, length: answer.length }),
            (301 | 302 | 303 | 307 | 308, Some(location)) => {
                let next = redirected(&source, location)?;
                if seen.contains(&next) {
                    return Err(source.failure("it is redirected in a circle").remedy("check the address").into());
                }
                seen.push(next.clone());
                source.now = next;
            }
            _ => {
                let body = beginning(&transfer, &answer, watch)?;
                return Err(answer::refusal(&source, &answer, &body).into());
            }
        }
    }
    Err(source.failure(&format!("more than {REDIRECTS} redirects")).remedy("check the address").into())
}

const TRUST: &str =
    "check the certificate's name and issuer; --insecure accepts any certificate, for a server that signs its own";

/// Where a redirect leads. Errors: nowhere, or away from https.
fn redirected(source: &Source, location: &str) -> Result<Url> {
    let next = source.now.join(location).map_err(|why| {
        let to = crate::base::net::url::shown(location);
        let to = to.split(['?', '#']).next().unwrap_or_default();
        source.failure(&format!("it is redirected to '{to}': {why}")).remedy("check the address")
    })?;
    if source.now.is_https() && !next.is_https() {
        let why = format!("it leads from https to http ({next})");
        return Err(source.failure(&why).remedy("give the address that it leads to").into());
    }
    Ok(next)
}

/// The beginning of what came with an error, as far as it comes. Errors: what the watch says.
fn beginning(transfer: &Transfer, answer: &Answered, watch: &mut Watch) -> Result<Vec<u8>> {
    /// The status is the answer; its words are not waited for longer.
    const WORDS: Duration = Duration::from_secs(2);
    let (until, mut body) = (Instant::now() + WORDS, Vec::new());
    let wanted = answer.length.map_or(answer::READ, |length| usize::try_from(length).unwrap_or(answer::READ));
    while body.len() < wanted.min(answer::READ) && Instant::now() < until {
        (watch.check)()?;
        match transfer.look() {
            None => {}
            Some(Came::Bytes(bytes)) => body.extend(bytes),
            Some(_) => break,
        }
    }
    body.truncate(answer::READ);
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn urls_are_told_from_paths() {
        for (text, is) in [
            ("https://example.org/a.zip", true),
            ("HTTP://x/a", true),
            ("a.zip", false),
            ("C:\\a.zip", false),
            ("./odd://name", false),
        ] {
            assert_eq!(is_url(text), is, "{text}");
        }
    }

    /// Downloads from a server that says this and then stays silent with the line open.
    fn download_from(said: &'static str, patience: Patience, check: &mut dyn FnMut() -> Result<()>) -> String {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = Url::parse(&format!("http://{}/a.zip?token=sesame", server.local_addr().unwrap())).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let order = Order { url: &url, insecure: false, most: 100, patience };
        let (over, waits) = std::sync::mpsc::channel::<()>();
        let work = std::thread::spawn(move || {
            let (mut peer, _) = server.accept().unwrap();
            let _ = peer.read(&mut [0; 2048]).unwrap();
            peer.write_all(said.as_bytes()).unwrap();
            let _ = waits.recv();
        });
        let mut watch = Watch { progress: &mut |_, _| {}, check };
        let error = download(&order, &folder.path().join("downloads"), &mut watch).unwrap_err();
        assert!(!folder.path().join("downloads/bundle.zip").exists());
        drop(over);
        work.join().unwrap();
        format!("{error:#}")
    }

    const TEN: &str = "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nten bytes.";

    #[test]
    fn silence_ends_a_download() {
        let patience = Patience { stall: Duration::from_millis(100), ..Patience::default() };
        let error = download_from(TEN, patience, &mut || Ok(()));
        assert!(error.ends_with("it broke off after 10 bytes: nothing came for 0.1 s"), "{error}");
        assert!(!error.contains("sesame"), "{error}");
    }

    #[test]
    fn a_server_that_takes_the_request_and_says_nothing_ends_it_too() {
        let patience = Patience { stall: Duration::from_millis(100), ..Patience::default() };
        let error = download_from("", patience, &mut || Ok(()));
        assert!(error.ends_with("cannot be downloaded: nothing came for 0.1 s"), "{error}");
    }

    #[test]
    fn a_line_that_hardly_moves_ends_a_download() {
        let floor = Floor { span: Duration::from_millis(200), least: 11 };
        let error = download_from(TEN, Patience { floor, ..Patience::default() }, &mut || Ok(()));
        assert!(error.contains(" bytes came in 0.2 s, and at least 11 must"), "{error}");
    }

    #[test]
    fn whoever_watches_ends_a_download_that_waits() {
        for said in ["", TEN, "HTTP/1.1 500 No\r\nContent-Length: 5\r\nContent-Type: text/plain\r\n\r\n"] {
            let mut asked = 0;
            let error = download_from(said, Patience::default(), &mut || {
                asked += 1;
                anyhow::ensure!(asked < 4, "enough");
                Ok(())
            });
            assert_eq!(error, "enough", "{said}");
        }
    }
}
