//! What the list of sockets does not tell: who listens in another network namespace, and as which user a process
//! runs that we may not look into.
//! Refuses to enter a namespace: it reads what /proc shows of it.

use super::super::accounts::user_name;
use crate::system::FileMetadata;
use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;

/// A listening socket, by a line of `/proc/net/tcp` (proc_pid_net(5)).
struct Socket {
    port: u16,
    uid: u32,
    inode: u64,
}

fn listening(text: &str) -> Vec<Socket> {
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (_, port) = fields.get(1)?.rsplit_once(':')?;
        // 0A is TCP_LISTEN.
        (*fields.get(3)? == "0A").then_some(())?;
        let port = u16::from_str_radix(port, 16).ok()?;
        Some(Socket { port, uid: fields.get(7)?.parse().ok()?, inode: fields.get(9)?.parse().ok()? })
    };
    text.lines().filter_map(socket).collect()
}

fn sockets(whose: &str) -> Vec<Socket> {
    // A system without IPv6 has no second list.
    let texts = ["tcp", "tcp6"].map(|list| std::fs::read_to_string(format!("/proc/{whose}/net/{list}")));
    texts.into_iter().flatten().flat_map(|text| listening(&text)).collect()
}

/// The ports on which the process listens in a network that is not ours; none where it is, or is not ours to look into.
pub fn ports_elsewhere(pid: u32) -> io::Result<Vec<u16>> {
    let ours = std::fs::read_link("/proc/self/ns/net")?;
    let Ok(theirs) = std::fs::read_link(format!("/proc/{pid}/ns/net")) else { return Ok(Vec::new()) };
    if ours == theirs {
        return Ok(Vec::new());
    }
    let handles = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let inode = |handle: std::fs::DirEntry| {
        let name = std::fs::read_link(handle.path()).ok()?;
        name.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok()
    };
    let own: BTreeSet<u64> = handles.filter_map(inode).collect();
    let all = sockets(&pid.to_string());
    let ports: BTreeSet<u16> = all.iter().filter(|one| own.contains(&one.inode)).map(|one| one.port).collect();
    Ok(ports.into_iter().collect())
}

/// The names of the users whose processes listen on this port.
pub fn users_listening(port: u16) -> Vec<String> {
    let uids: BTreeSet<u32> = sockets("self").iter().filter(|one| one.port == port).map(|one| one.uid).collect();
    uids.into_iter().map(|uid| user_name(uid).unwrap_or_else(|| uid.to_string())).collect()
}

/// True when the process stands in this very folder, under whatever name it sees it.
pub fn stands_in(pid: u32, folder: &FileMetadata) -> bool {
    let at = std::fs::metadata(format!("/proc/{pid}/cwd"));
    at.is_ok_and(|at| (at.dev(), at.ino()) == (folder.volume, folder.inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listening_sockets_count() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                    0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1\n\
                    1: 0100007F:1F91 0100007F:D431 01 00000000:00000000 00:00000000 00000000  1000        0 4243 1\n";
        let found = listening(text);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].port, found[0].uid, found[0].inode), (8080, 1000, 4242));
    }

    #[test]
    fn our_own_network_is_not_elsewhere_and_our_user_is_named() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        assert_eq!(ports_elsewhere(std::process::id()).unwrap(), [0u16; 0]);
        let own = super::super::own_credentials().unwrap();
        assert_eq!(users_listening(port), [own.user]);
    }
}
