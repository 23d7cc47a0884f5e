//! The listening sockets of this machine, by the crate `netstat2`, which reads the system's own tables.
//! Refuses to bind or connect, and to know whose a port should be.

use super::processes;
use netstat2::{AddressFamilyFlags, ProtocolFlags, ProtocolSocketInfo, TcpState};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

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
            IpAddr::V4(v4) if v4.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(v6) if v6.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            other => other,
        }
    }
}

/// All listening TCP sockets, IPv4 and IPv6, in the order of the system. Errors: the system does not tell.
pub fn listening() -> io::Result<Vec<Listener>> {
    // netstat2 panics where the list of processes cannot be read, so that is tried first.
    processes::list_is_readable()?;
    let mut all = listening_in(AddressFamilyFlags::IPV4)?;
    match listening_in(AddressFamilyFlags::IPV6) {
        Ok(more) => all.extend(more),
        // A machine without IPv6 cannot list its sockets; there a socket of it cannot exist either.
        Err(_) if UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_err() => {}
        Err(error) => return Err(error),
    }
    Ok(all)
}

fn listening_in(family: AddressFamilyFlags) -> io::Result<Vec<Listener>> {
    let mut all = Vec::new();
    for socket in netstat2::iterate_sockets_info(family, ProtocolFlags::TCP).map_err(io::Error::other)? {
        let socket = socket.map_err(io::Error::other)?;
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
