//! Which TCP ports somebody listens on, and who. Only sockets in the LISTEN state are looked at, so a
//! client of a port is never taken for its owner.
//! Refuses to bind or connect: it only reads what the system says.

use crate::system;
use netstat2::{AddressFamilyFlags, ProtocolFlags, ProtocolSocketInfo, TcpState};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv6Addr, UdpSocket};

/// One listening socket. `pids` is empty when its owners are hidden from us (another user's, another
/// namespace's, or none at all).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Listener {
    pub address: IpAddr,
    pub port: u16,
    pub pids: Vec<u32>,
}

impl Listener {
    /// The address under which this machine reaches the socket: an unspecified one becomes loopback.
    pub fn reachable(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(v4) if v4.is_unspecified() => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
            IpAddr::V6(v6) if v6.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            other => other,
        }
    }
}

/// All listening TCP sockets, IPv4 and IPv6. Errors: the system does not tell.
pub fn listeners() -> anyhow::Result<Vec<Listener>> {
    process_list_is_readable()?;
    let mut all = listeners_of(AddressFamilyFlags::IPV4)?;
    match listeners_of(AddressFamilyFlags::IPV6) {
        Ok(more) => all.extend(more),
        // A machine without IPv6 cannot list its sockets; there a socket of it cannot exist either.
        Err(_) if UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_err() => {}
        Err(error) => return Err(error),
    }
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

/// netstat2 panics where the list of processes cannot be read, so that is tried first.
fn process_list_is_readable() -> anyhow::Result<()> {
    use anyhow::Context;
    system::processes::identity(std::process::id())
        .context("reading the list of processes")?
        .context("the list of processes does not hold this process")?;
    let list = std::path::Path::new("/proc");
    if list.exists() {
        fs_err::read_dir(list)?;
    }
    Ok(())
}

fn listeners_of(family: AddressFamilyFlags) -> anyhow::Result<Vec<Listener>> {
    use anyhow::Context;
    let sockets = netstat2::iterate_sockets_info(family, ProtocolFlags::TCP).context("listing the sockets")?;
    let mut all = Vec::new();
    for socket in sockets {
        let socket = socket.context("listing the sockets")?;
        if let ProtocolSocketInfo::Tcp(tcp) = socket.protocol_socket_info
            && tcp.state == TcpState::Listen
        {
            let mut pids = socket.associated_pids;
            pids.sort_unstable();
            all.push(Listener { address: tcp.local_addr, port: tcp.local_port, pids });
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

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
