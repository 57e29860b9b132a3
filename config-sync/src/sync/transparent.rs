//! Checks whether this machine can connect from clients' own addresses and receives the answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, getsockname, setsockopt, socket,
    sockopt,
};

use crate::model::backend::Backend;
use crate::model::config::Config;
use crate::model::endpoint::Endpoint;

/// The mark of packets of transparent connections. By the mark, `tuning/transparent` routes the
/// packets to this machine.
const MARK: u32 = 0x5257;

pub(crate) fn is_asked(config: &Config) -> bool {
    config.backends.iter().any(Backend::is_transparent)
}

/// Warns if something is missing for backends that ask for transparent connections: the connections
/// would fail or hang. The configuration is not refused, because the missing part may come a moment
/// later.
pub(crate) fn warn(config: &Config) {
    let transparent = config.backends.iter().filter(|backend| backend.is_transparent());
    let endpoints = transparent.flat_map(|backend| &backend.endpoints);
    let endpoints: Vec<_> = endpoints.filter_map(Endpoint::socket_address).collect();
    if endpoints.is_empty() {
        return;
    }
    if !is_permitted() {
        tracing::warn!(
            "transparent backends need CAP_NET_ADMIN, which this process does not have: their \
             connections will fail; tuning/README.md says how to give it"
        );
        return;
    }
    for (version, stranger) in [("IPv4", STRANGER_V4), ("IPv6", STRANGER_V6)] {
        let asked = endpoints.iter().any(|at| at.is_ipv4() == stranger.is_ipv4());
        if asked && !is_routed_here(stranger) {
            tracing::warn!(
                "transparent backends need a rule that routes {version} packets with the mark \
                 {MARK:#x} to this machine, and there is none: endpoints' answers will not come; \
                 run `tuning/transparent up`"
            );
        }
    }
}

/// Addresses that no machine has (RFC 5737; RFC 3849).
const STRANGER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const STRANGER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// CAP_NET_ADMIN: bit 12 of the effective set (capabilities(7), proc_pid_status(5)). The thread's
/// own: after a change of user, the main thread has none.
fn is_permitted() -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok());
    set.is_some_and(|set| set & (1 << 12) != 0)
}

/// Whether packets with the mark for a stranger's address are routed to this machine. Nothing is
/// sent.
fn is_routed_here(stranger: IpAddr) -> bool {
    let is_ipv4 = stranger.is_ipv4();
    let family = if is_ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let own = || {
        let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::Mark, &MARK)?;
        // IPv4: a socket that is connected to an address of this machine has that address itself,
        // and may have a stranger's address only if the socket is transparent. IPv6 chooses another
        // address. There only the rule makes the connection possible, because no other route to
        // strangers uses `lo`.
        match is_ipv4 {
            true => setsockopt(&fd, sockopt::IpTransparent, &true)?,
            false => setsockopt(&fd, sockopt::BindToDevice, &"lo".into())?,
        }
        connect(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(stranger, 9)))?;
        getsockname::<SockaddrStorage>(fd.as_raw_fd())
    };
    own().is_ok_and(|own: SockaddrStorage| {
        let v4 = own.as_sockaddr_in().map(|own| IpAddr::V4(own.ip()));
        !is_ipv4 || v4 == Some(stranger)
    })
}
