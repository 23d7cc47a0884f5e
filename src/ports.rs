//! Which TCP ports somebody listens on, and who. Only sockets in the LISTEN state are looked at, so a
//! client of a port is never taken for its owner.
//! Refuses to bind or connect: it only reads what the system says.

use crate::system::sockets;
use anyhow::Context as _;

pub use crate::system::sockets::Listener;

/// All listening TCP sockets, IPv4 and IPv6, by port and address. Errors: the system does not tell.
pub fn listeners() -> anyhow::Result<Vec<Listener>> {
    let mut all = sockets::listening().context("listing the sockets")?;
    all.sort_by_key(|listener| (listener.port, listener.address));
    Ok(all)
}

/// Who listens on `port`. Errors: the system does not tell.
pub fn held_by(port: u16) -> anyhow::Result<Vec<Listener>> {
    Ok(listeners()?.into_iter().filter(|l| l.port == port).collect())
}

/// True when nobody listens on `port`. Errors: the system does not tell.
pub fn is_free(port: u16) -> anyhow::Result<bool> {
    Ok(held_by(port)?.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream};

    #[test]
    fn a_listener_is_seen_with_its_owner_and_a_client_is_not() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let held = held_by(port).unwrap();
        assert_eq!(held.len(), 1);
        assert_eq!(held[0].pids, [std::process::id()]);
        assert!(is_free(client.local_addr().unwrap().port()).unwrap());
        drop(server);
        assert!(is_free(port).unwrap());
    }

    #[test]
    fn an_ipv6_listener_is_seen() {
        let Ok(server) = TcpListener::bind("[::1]:0") else { return };
        let held = held_by(server.local_addr().unwrap().port()).unwrap();
        assert_eq!(held[0].address, IpAddr::V6(Ipv6Addr::LOCALHOST));
    }
}
