//! Addresses of http and https: read once, joined as RFC 3986 says, shown without what may be a password.
//! Refuses to hold the user part at all, and to show a query, which is where tokens stand.

use std::collections::VecDeque;
use std::fmt;
use std::net::Ipv6Addr;

/// An address that can be asked.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    is_https: bool,
    /// Of the form `host` or `host:port`.
    authority: String,
    /// Begins with a slash; what the protocol cannot carry is percent-encoded.
    path: String,
    query: Option<String>,
    /// A user part was written down. It is not kept, and not sent.
    pub has_user: bool,
}

/// The characters besides letters and digits that stand in a path or query as they are (RFC 3986, 3.3 and 3.4, and
/// the percent sign of what is encoded already).
const PLAIN: &str = "-._~!$&'()*+,;=:@/?%[]";

impl Url {
    /// Errors: what makes no sense, in words that hold no part of the text but a port's digits.
    pub fn parse(text: &str) -> Result<Url, String> {
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("a space or control character stands in it; a space is written %20".to_string());
        }
        let (scheme, rest) = text.split_once("://").ok_or("it is no address")?;
        let is_https = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err("it is neither http:// nor https://".to_string()),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (has_user, host) = match authority.rsplit_once('@') {
            Some((_, host)) => (true, host),
            None => (false, authority),
        };
        let (path, query) = split_query(tail);
        let path = if path.is_empty() { "/".to_string() } else { encoded(path) };
        Ok(Url { is_https, authority: checked(host)?, path, query: query.map(encoded), has_user })
    }

    /// As it is asked.
    pub fn full(&self) -> String {
        let query = self.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
        format!("{self}{query}")
    }

    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// The host, and the port where one was written down.
    pub fn host(&self) -> &str {
        &self.authority
    }

    /// Where a `Location` leads (RFC 3986, 5.2). Errors: to no address that can be asked.
    pub fn join(&self, location: &str) -> Result<Url, String> {
        let has_scheme =
            location.split_once(':').is_some_and(|(scheme, _)| !scheme.contains(['/', '?', '#']) && !scheme.is_empty());
        let scheme = if self.is_https { "https" } else { "http" };
        if has_scheme {
            return Url::parse(location);
        }
        if location.starts_with("//") {
            return Url::parse(&format!("{scheme}:{location}"));
        }
        let location = location.split('#').next().unwrap_or_default();
        let (path, query) = split_query(location);
        let (path, query) = match (path, query) {
            ("", None) => (self.path.clone(), self.query.clone()),
            ("", query) => (self.path.clone(), query.map(str::to_string)),
            (path, query) if path.starts_with('/') => (without_dots(path), query.map(str::to_string)),
            (path, query) => {
                let folder = self.path.rsplit_once('/').map_or("", |(folder, _)| folder);
                (without_dots(&format!("{folder}/{path}")), query.map(str::to_string))
            }
        };
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        Url::parse(&format!("{scheme}://{}{path}{query}", self.authority))
    }

    /// What the server was told of and must not have us show when it says it again.
    pub fn without_secrets(&self, text: &str) -> String {
        // Shorter ones are words like `v=1`, whose removal would spoil every sentence.
        const LEAST: usize = 4;
        let query = self.query.as_deref().unwrap_or_default();
        let values = query.split('&').filter_map(|pair| pair.split_once('=')).map(|(_, value)| value);
        let mut text = masked(text);
        for secret in [query].into_iter().chain(values).filter(|secret| secret.len() >= LEAST) {
            text = text.replace(secret, "...");
        }
        text
    }
}

/// Without user part and query.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.is_https { "https" } else { "http" }, self.authority, self.path)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What may be an address, also one that makes no sense, without user part and query.
pub fn shown(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_string() };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let end = rest.find('/').unwrap_or(rest.len());
    // A password with a slash in it makes a port that is none; then an `@` of the path is taken for that of the user.
    let (authority, _) = rest.split_at(end);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let at = if checked(host).is_ok() { authority.rfind('@') } else { rest.rfind('@') };
    format!("{scheme}://{}", rest.get(at.map_or(0, |at| at.saturating_add(1))..).unwrap_or_default())
}

/// A text of others, with every address in it as `shown`.
pub fn masked(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let before = rest.get(..at).unwrap_or_default().trim_end_matches(|c: char| c.is_ascii_alphanumeric());
        let (before, url) = rest.split_at(before.len());
        let end = url.find(|c: char| c.is_whitespace() || "\"'<>`".contains(c)).unwrap_or(url.len());
        let (url, after) = url.split_at(end);
        out.push_str(before);
        out.push_str(&shown(url));
        rest = after;
    }
    out + rest
}

fn split_query(text: &str) -> (&str, Option<&str>) {
    match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text, None),
    }
}

fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || PLAIN.contains(c) {
            out.push(c);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The host and port, in order. Errors: there is no host, or the port is none.
fn checked(authority: &str) -> Result<String, String> {
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, after)) => {
            address.parse::<Ipv6Addr>().map_err(|_| "the address in its brackets is no IPv6 address")?;
            let port = if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or("its host is none")?) };
            (format!("[{address}]"), port)
        }
        None => {
            let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
            if !host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)) {
                return Err(
                    "its host has a character that no host has; a host of other letters is written xn--...".into()
                );
            }
            (host.to_string(), port)
        }
    };
    if host.is_empty() {
        return Err("it names no host".to_string());
    }
    match port.filter(|port| !port.is_empty()) {
        None => Ok(host),
        Some(port) if port.parse::<u16>().is_ok_and(|port| port != 0) && !port.starts_with('+') => {
            Ok(format!("{host}:{port}"))
        }
        Some(port) if port.chars().all(|c| c.is_ascii_digit()) => {
            Err(format!("{port} is no port; ports go from 1 to 65535"))
        }
        Some(_) => Err("what stands after the host is no port; ports go from 1 to 65535".to_string()),
    }
}

/// RFC 3986, 5.2.4, for a path that begins with a slash.
fn without_dots(path: &str) -> String {
    let mut kept: VecDeque<&str> = VecDeque::new();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    for (at, part) in parts.iter().enumerate() {
        let is_last = at.saturating_add(1) == parts.len();
        match *part {
            "." | ".." => {
                if *part == ".." {
                    kept.pop_back();
                }
                if is_last {
                    kept.push_back("");
                }
            }
            part => kept.push_back(part),
        }
    }
    kept.into_iter().map(|part| format!("/{part}")).collect()
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_asked_as_it_was_written() {
        for (text, full, shown) in [
            ("http://h", "http://h/", "http://h/"),
            ("HTTPS://h:8443/a.zip?token=x#y", "https://h:8443/a.zip?token=x", "https://h:8443/a.zip"),
            ("http://me:p%40ss@h:80/a@b.zip?x", "http://h:80/a@b.zip?x", "http://h:80/a@b.zip"),
            ("http://me:p@ss@h/", "http://h/", "http://h/"),
            ("http://[::1]:81/a", "http://[::1]:81/a", "http://[::1]:81/a"),
            ("http://h:/a", "http://h/a", "http://h/a"),
            ("http://h?q", "http://h/?q", "http://h/"),
            ("http://h/\u{e9}\"|.zip?\u{e9}", "http://h/%C3%A9%22%7C.zip?%C3%A9", "http://h/%C3%A9%22%7C.zip"),
        ] {
            let url = Url::parse(text).unwrap();
            assert_eq!((url.full().as_str(), url.to_string().as_str()), (full, shown), "{text}");
            assert_eq!(format!("{url:?}"), shown);
            assert!(full.parse::<ureq::http::Uri>().is_ok(), "{full}");
        }
    }

    #[test]
    fn an_address_that_makes_no_sense_is_refused() {
        for (text, why) in [
            ("http://h:99999/a", "99999 is no port"),
            ("http://h:0/a", "0 is no port"),
            ("http://h:+1/a", "is no port"),
            ("http://me:pa/ss@h/a", "stands after the host is no port"),
            ("http://", "no host"),
            ("http:///a", "no host"),
            ("http://:80/a", "no host"),
            ("http://me@/a", "no host"),
            ("http://h/a b", "%20"),
            ("http://h /a", "%20"),
            ("http://h/a\n", "%20"),
            ("http://b\u{fc}cher/a", "xn--"),
            ("http://[::zz]/a", "IPv6"),
            ("ftp://h/a", "neither"),
        ] {
            let error = Url::parse(text).unwrap_err();
            assert!(error.contains(why) && !error.contains("ss@") && !error.contains("pa "), "{text}: {error}");
        }
    }

    #[test]
    fn a_location_leads_where_rfc_3986_says() {
        let base = Url::parse("https://me:secret@a:1/b/c/d.zip?x=y").unwrap();
        for (location, to) in [
            ("g", "https://a:1/b/c/g"),
            ("./g", "https://a:1/b/c/g"),
            ("g/", "https://a:1/b/c/g/"),
            ("/g", "https://a:1/g"),
            ("//g", "https://g/"),
            ("//g/z?q", "https://g/z?q"),
            ("?y", "https://a:1/b/c/d.zip?y"),
            ("g?y#s", "https://a:1/b/c/g?y"),
            ("#s", "https://a:1/b/c/d.zip?x=y"),
            ("", "https://a:1/b/c/d.zip?x=y"),
            (".", "https://a:1/b/c/"),
            ("..", "https://a:1/b/"),
            ("../g", "https://a:1/b/g"),
            ("../../../g", "https://a:1/g"),
            ("/./g/../h", "https://a:1/h"),
            ("g?a=http://x:1/", "https://a:1/b/c/g?a=http://x:1/"),
            ("http://u:p@z/g", "http://z/g"),
        ] {
            assert_eq!(base.join(location).map(|url| url.full()).as_deref(), Ok(to), "{location}");
        }
        for location in ["ftp://b/z", "file:///etc/passwd", "javascript:x", "http://h:99999/", "https:/x", "a b"] {
            assert!(base.join(location).is_err(), "{location}");
        }
    }

    #[test]
    fn nothing_shown_holds_a_password_or_token() {
        assert_eq!(shown("https://me:p@h:8443/a@b.zip?token=s"), "https://h:8443/a@b.zip");
        assert_eq!(shown("http://me:s/cret@h/a b?x"), "http://h/a b");
        assert_eq!(shown("http://h:99999/a.zip?token=s"), "http://h:99999/a.zip");
        assert_eq!(shown("a/b?c"), "a/b?c");
        assert_eq!(masked("\u{fc}\u{1f600}://x@y \u{fc}ftp://me:x@h"), "\u{fc}\u{1f600}://y \u{fc}ftp://h");
        assert_eq!(masked("see 'http://me:x@h/a?t=1' and (https://h/b?s=2)."), "see 'http://h/a' and (https://h/b");
        let url = Url::parse("http://h/a?token=sesame&v=1").unwrap();
        assert_eq!(url.without_secrets("v1: no sesame for token=sesame&v=1"), "v1: no ... for ...");
    }
}
