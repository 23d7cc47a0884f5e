//! Fetch: a bundle from an http or https URL, written whole or not at all, while the server still serves.
//! Refuses a certificate that it cannot verify (unless told so), a way from https to http, and to take for a bundle
//! what broke off.

use crate::error::Failure;
use crate::fsx;
use crate::net::{self, Download};
use anyhow::{Context, Result};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How many redirects are followed; browsers stop at 20, mirrors need two or three.
const REDIRECTS: usize = 10;

/// How long a connection may take, and how long nothing may come: there is no limit on the whole, so that a slow
/// line still gets there.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    pub connect: Duration,
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { connect: Duration::from_secs(20), stall: Duration::from_secs(30) }
    }
}

/// What is downloaded, and on which terms.
#[derive(Debug, Clone)]
pub struct Order<'a> {
    pub url: &'a str,
    /// The certificate is not verified.
    pub insecure: bool,
    /// In bytes.
    pub most: u64,
    pub patience: Patience,
}

/// True for what is fetched, and no path.
pub fn is_url(text: &str) -> bool {
    let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    scheme.is_some_and(|scheme| scheme.len() > 1 && scheme.chars().all(|c| c.is_ascii_alphanumeric()))
}

/// Downloads into `folder`, which is emptied first. `progress` is told bytes done and bytes in all (0: unknown), and
/// may end it. Errors: `download-failed` with the reason and what to do; what `progress` says.
pub fn download(order: &Order, folder: &Path, progress: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<PathBuf> {
    fsx::remove_own_tree(folder)?;
    fsx::make_folders(folder)?;
    let (mut body, expected) = open(order)?;
    let failed = |why: String| failure(order.url, &why);
    if expected.is_some_and(|bytes| bytes > order.most) {
        return Err(failed(format!("it has more than the {} bytes allowed", order.most))
            .remedy("allow more with [bundle] max_size")
            .into());
    }
    let (part, whole) = (folder.join("bundle.part"), folder.join("bundle.zip"));
    let mut file = fs_err::File::create(&part)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut done = 0u64;
    loop {
        progress(done, expected.unwrap_or(0))?;
        let count = body.read(&mut buffer).map_err(|e| failed(format!("it broke off after {done} bytes: {e}")))?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
        file.write_all(bytes)?;
        done += bytes.len() as u64;
        if done > order.most {
            return Err(failed(format!("it has more than the {} bytes allowed", order.most))
                .remedy("allow more with [bundle] max_size")
                .into());
        }
    }
    if let Some(expected) = expected.filter(|expected| *expected != done) {
        return Err(failed(format!("it broke off: {done} of {expected} bytes came")).into());
    }
    file.sync_all()?;
    drop(file);
    fs_err::rename(&part, &whole)?;
    Ok(whole)
}

/// Copies an open file of `total` bytes into `folder`, which is emptied first. Errors: it cannot be read or written;
/// what `progress` says.
pub fn keep(
    from: &mut std::fs::File,
    total: u64,
    folder: &Path,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<PathBuf> {
    fsx::remove_own_tree(folder)?;
    fsx::make_folders(folder)?;
    let whole = folder.join("bundle.zip");
    let mut file = fs_err::File::create(&whole)?;
    std::io::copy(from, &mut file).context("copying the bundle")?;
    file.sync_all()?;
    progress(total, total)?;
    Ok(whole)
}

/// The body and its length, behind whatever redirects there are.
fn open(order: &Order) -> Result<(Box<dyn Read>, Option<u64>)> {
    let mut url = order.url.to_string();
    for _ in 0..=REDIRECTS {
        let asked = Download {
            url: &url,
            insecure: order.insecure,
            connect: order.patience.connect,
            stall: order.patience.stall,
        };
        let answer = asked.get().map_err(|e| {
            let failure = failure(&url, &e.cause);
            if e.is_certificate {
                failure.remedy(
                    "check the certificate's name and issuer; --insecure accepts any certificate, for a server that \
                     signs its own",
                )
            } else {
                failure
            }
        })?;
        match (answer.status, answer.location) {
            (200, _) => return Ok((answer.body, answer.length)),
            (301 | 302 | 303 | 307 | 308, Some(to)) => {
                let next = net::joined(&url, &to)
                    .with_context(|| format!("following a redirect of {} to '{to}'", without_user(&url)))?;
                if is_https(&url) && !is_https(&next) {
                    let why = format!("it leads from https to http ({})", without_user(&next));
                    return Err(failure(order.url, &why).remedy("give the address that it leads to").into());
                }
                url = next;
            }
            (status @ (401 | 403), _) => {
                return Err(failure(&url, &format!("the server refuses it with status {status}"))
                    .remedy("check that it may be downloaded without a login")
                    .into());
            }
            (404, _) => {
                return Err(failure(&url, "there is no such file (status 404)").remedy("check the address").into());
            }
            (status, _) => return Err(failure(&url, &format!("the server answered with status {status}")).into()),
        }
    }
    Err(failure(order.url, &format!("more than {REDIRECTS} redirects")).remedy("check the address").into())
}

fn is_https(url: &str) -> bool {
    url.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
}

fn failure(url: &str, why: &str) -> Failure {
    Failure::failed("download-failed", format!("{} cannot be downloaded: {why}", without_user(url)))
        .at(without_user(url))
        .remedy("check the network and try again, or save the bundle to a file and give its path")
}

/// The URL without what may be a password.
pub fn without_user(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_string() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_password_is_not_shown() {
        assert_eq!(without_user("https://me:p%40ss@host:8443/a@b.zip?x"), "https://host:8443/a@b.zip?x");
        assert_eq!(without_user("http://host"), "http://host");
    }

    #[test]
    fn silence_ends_a_download() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/a.zip", server.local_addr().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let patience = Patience { connect: Duration::from_secs(5), stall: Duration::from_millis(100) };
        let order = Order { url: &url, insecure: false, most: 100, patience };
        let work = std::thread::spawn(move || {
            let (mut peer, _) = server.accept().unwrap();
            let mut request = [0; 2048];
            let _ = peer.read(&mut request).unwrap();
            peer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nten bytes.").unwrap();
            // Held open, and nothing more comes.
            let _ = peer.read(&mut request);
        });
        let error = download(&order, &folder.path().join("downloads"), &mut |_, _| Ok(())).unwrap_err();
        work.join().unwrap();
        assert!(error.to_string().contains("broke off after 10 bytes"), "{error:#}");
        assert!(!folder.path().join("downloads/bundle.zip").exists());
    }
}
