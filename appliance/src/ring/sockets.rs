//! Sockets as the configuration wants them: listening sockets, their options, and what an errno
//! means.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use config_sync::table::routing::{Socket as SocketConfig, SocketOptions, Transport};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::proxy::op::{Origin, Why};

use super::steering;
use super::sys::{self, set_option};

/// Connections that may wait to be accepted; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Peers with a shorter round trip are on this machine or in this data centre.
const NEAR: Duration = Duration::from_millis(1);

/// Bytes of datagrams that a socket of many peers may hold; the kernel cuts it to
/// `net.core.rmem_max` and `wmem_max` unless the process has CAP_NET_ADMIN.
const DATAGRAM_MEMORY: i32 = 4 << 20;

/// Not in libc: include/uapi/linux/udp.h (Linux 5.0).
pub(super) const UDP_GRO: i32 = 104;
pub(super) const UDP_SEGMENT: i32 = 103;

/// Opens one listening socket per worker, in worker order, as one SO_REUSEPORT group in which the
/// same source address and port always reaches the same worker. `rejoins`: sockets of this process
/// may still hold the address, or one that overlaps with it. `early`: the address need not be one
/// of this machine yet (IP_FREEBIND, ip(7)). `seed` keys the choice of the worker: one for the
/// life of the process, so that a source keeps its worker when a listener comes anew.
///
/// # Errors
///
/// Whatever socket(2), bind(2), listen(2) or setsockopt(2) say; then no socket stays open.
/// EADDRINUSE also where another process of the same user has a group that ours would join.
pub fn open_listeners(
    socket: &SocketConfig,
    workers: usize,
    rejoins: bool,
    early: bool,
    seed: u64,
) -> io::Result<Vec<OwnedFd>> {
    if !rejoins {
        new_socket(socket, early)?.bind(&socket.address.into())?;
    }
    let mut sockets = Vec::with_capacity(workers);
    for worker in 0..workers {
        let opened = bind(socket, early)?;
        // Before a program is attached: once it has one, listen(2) takes sockets of other addresses
        // of this port, which may be leaving, for a conflict.
        if socket.transport == Transport::Tcp {
            opened.listen(BACKLOG)?;
        }
        // Before the second socket joins: no packet may be given to a worker by the kernel's own
        // hash and the next of its flow by ours to another.
        if worker == 0 && workers > 1 {
            steering::attach(opened.as_fd(), socket.address.is_ipv4(), workers, seed)?;
        }
        sockets.push(OwnedFd::from(opened));
    }
    Ok(sockets)
}

fn bind(config: &SocketConfig, early: bool) -> io::Result<Socket> {
    let socket = new_socket(config, early)?;
    socket.set_reuse_port(true)?;
    match config.transport {
        Transport::Tcp => set_tcp_options(socket.as_fd(), &config.options)?,
        Transport::Udp => set_datagram_options(&socket, &config.address)?,
    }
    socket.bind(&config.address.into())?;
    Ok(socket)
}

fn new_socket(config: &SocketConfig, early: bool) -> io::Result<Socket> {
    let (kind, protocol) = match config.transport {
        Transport::Tcp => (Type::STREAM, Protocol::TCP),
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
    };
    let domain = Domain::for_address(config.address);
    let socket = Socket::new(domain, kind.nonblocking(), Some(protocol))?;
    // Connections of an earlier process that have not quite ended are no obstacle. With UDP, the
    // same option would let anyone else in.
    socket.set_reuse_address(config.transport == Transport::Tcp)?;
    if config.address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    match config.address {
        SocketAddr::V4(_) if early => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) if early => socket.set_freebind_v6(true)?,
        _ => {}
    }
    Ok(socket)
}

/// Opens an unconnected UDP socket on a port of its own, for all local addresses of an IP version:
/// each datagram comes with the one that it was sent to, and leaves with the one that it states.
///
/// # Errors
///
/// Those of socket(2), setsockopt(2) and bind(2).
pub(super) fn open_shared(ipv4: bool) -> io::Result<OwnedFd> {
    let all = if ipv4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let address = SocketAddr::new(all, 0);
    let socket = sys::socket(&address, libc::SOCK_DGRAM)?;
    let socket = Socket::from(socket);
    if !ipv4 {
        socket.set_only_v6(true)?;
    }
    set_datagram_options(&socket, &address)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn set_datagram_options(socket: &Socket, address: &SocketAddr) -> io::Result<()> {
    let fd = socket.as_fd();
    set_option(fd, libc::SOL_UDP, UDP_GRO, &1_i32)?;
    for (force, plain) in
        [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
    {
        if set_option(fd, libc::SOL_SOCKET, force, &DATAGRAM_MEMORY).is_err() {
            set_option(fd, libc::SOL_SOCKET, plain, &DATAGRAM_MEMORY)?;
        }
    }
    // Replies must leave from the address that the client spoke to.
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => {
            set_option(fd, libc::SOL_IP, libc::IP_PKTINFO, &1_i32)
        }
        IpAddr::V6(ip) if ip.is_unspecified() => {
            set_option(fd, libc::SOL_IPV6, libc::IPV6_RECVPKTINFO, &1_i32)
        }
        _ => Ok(()),
    }
}

/// Sets what `options` asks for. On a listening socket, connections accepted later inherit it.
///
/// # Errors
///
/// Those of setsockopt(2): ENOENT if the congestion control is not there (modprobe), EPERM if the
/// user may not use it (`net.ipv4.tcp_allowed_congestion_control`).
pub(super) fn set_tcp_options(fd: BorrowedFd<'_>, options: &SocketOptions) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    socket.set_tcp_nodelay(options.nodelay)?;
    socket.set_keepalive(options.keepalive > 0)?;
    if options.keepalive > 0 {
        let time = Duration::from_secs(options.keepalive.into());
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(time).with_interval(time))?;
    }
    let timeout = Duration::from_millis(options.user_timeout.into());
    socket.set_tcp_user_timeout(Some(timeout))?;
    let name = options.congestion.split(|byte| *byte == 0).next().unwrap_or_default();
    if !name.is_empty() {
        socket.set_tcp_congestion(name)?;
    }
    Ok(())
}

/// The options of a new connection to an endpoint: as [`set_tcp_options`], but without the calls
/// for what a new socket is already. What fails is left at the kernel's default: a connection
/// without its congestion control is better than none.
pub(super) fn set_new_tcp_options(fd: BorrowedFd<'_>, options: &SocketOptions) {
    let socket = SockRef::from(&fd);
    if options.nodelay {
        let _ = socket.set_tcp_nodelay(true);
    }
    if options.keepalive > 0 {
        let time = Duration::from_secs(options.keepalive.into());
        let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(time).with_interval(time));
    }
    if options.user_timeout > 0 {
        let timeout = Duration::from_millis(options.user_timeout.into());
        let _ = socket.set_tcp_user_timeout(Some(timeout));
    }
    if let Some(name) = options.congestion.split(|byte| *byte == 0).next()
        && !name.is_empty()
    {
        let _ = socket.set_tcp_congestion(name);
    }
}

/// Takes the pacing off a connection to a peer that is near: where a timer for each 64 KiB costs
/// more than it can spare queues between. True if something was changed.
///
/// BBR paces; Reno does not, is in every kernel and everyone may use it
/// (`net.ipv4.tcp_allowed_congestion_control`).
pub(super) fn unpace(fd: BorrowedFd<'_>) -> bool {
    let mut name = [0; 16];
    let paces = sys::get_option(fd, libc::IPPROTO_TCP, libc::TCP_CONGESTION, &mut name)
        .is_ok_and(|_| name.starts_with(b"bbr"));
    paces
        && min_rtt(fd).is_some_and(|rtt| rtt < NEAR)
        && SockRef::from(&fd).set_tcp_congestion(b"reno").is_ok()
}

/// The shortest round trip of a connection so far, of which the kernel knows.
fn min_rtt(fd: BorrowedFd<'_>) -> Option<Duration> {
    // `tcpi_min_rtt`, microseconds, in struct tcp_info (include/uapi/linux/tcp.h, Linux 4.6).
    const AT: usize = 148;
    let mut info = [0; AT + 4];
    let len = sys::get_option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info).ok()?;
    let micros = u32::from_ne_bytes(*info.get(..len)?.get(AT..)?.first_chunk()?);
    (micros < u32::MAX).then(|| Duration::from_micros(micros.into()))
}

/// Bytes that were sent and not acknowledged, a FIN among them; 0 if the connection is gone. The
/// kernel keeps the count of a connection that was reset, though nobody will acknowledge it.
pub(super) fn unacked(fd: BorrowedFd<'_>) -> u32 {
    // `tcpi_state`, the first byte of struct tcp_info; TCP_CLOSE of include/net/tcp_states.h.
    const CLOSED: [u8; 1] = [7];
    let mut state = [0; 1];
    let known = sys::get_option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut state);
    if known.is_err() || state == CLOSED {
        return 0;
    }
    sys::unacked(fd)
}

/// Binds a socket that will be connected to the address that it is to connect from. For TCP the
/// port is chosen by connect(2), which may share it among destinations (IP_BIND_ADDRESS_NO_PORT).
pub(super) fn bind_source(fd: BorrowedFd<'_>, source: Origin, stream: bool) -> io::Result<()> {
    let source = match source {
        Origin::Any => return Ok(()),
        Origin::Local(source) => source,
        Origin::Client(client) => {
            match client {
                IpAddr::V4(_) => set_option(fd, libc::SOL_IP, libc::IP_TRANSPARENT, &1_i32)?,
                IpAddr::V6(_) => set_option(fd, libc::SOL_IPV6, libc::IPV6_TRANSPARENT, &1_i32)?,
            }
            client
        }
    };
    if stream {
        set_option(fd, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, &1_i32)?;
    }
    SockRef::from(&fd).bind(&SocketAddr::new(source, 0).into())
}

/// Payload bytes of the largest datagram that goes to the peer of a connected UDP socket in one
/// packet, as far as the kernel knows the path (IP_MTU, ip(7); IPV6_MTU, ipv6(7)).
pub(super) fn path_room(fd: BorrowedFd<'_>, peer: &SocketAddr) -> u16 {
    let (level, name, headers) = match peer {
        SocketAddr::V4(_) => (libc::SOL_IP, libc::IP_MTU, 20 + 8),
        SocketAddr::V6(_) => (libc::SOL_IPV6, libc::IPV6_MTU, 40 + 8),
    };
    let mut mtu = [0; 4];
    match sys::get_option(fd, level, name, &mut mtu) {
        Ok(4) => u16::try_from(i32::from_ne_bytes(mtu) - headers).unwrap_or(u16::MAX),
        _ => u16::MAX,
    }
}

/// The same of a peer to which no socket is connected.
pub(super) fn room_to(peer: &SocketAddr) -> u16 {
    let connected = sys::socket(peer, libc::SOCK_DGRAM).and_then(|fd| {
        sys::connect(fd.as_fd(), peer)?;
        Ok(fd)
    });
    connected.map_or(u16::MAX, |fd| path_room(fd.as_fd(), peer))
}

/// What an errno means in general. Where EAGAIN or EADDRINUSE speak of source ports, see
/// [`why_unopened`].
pub(super) fn why(errno: i32) -> Why {
    match errno {
        libc::ECONNREFUSED => Why::Refused,
        libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED => Why::Reset,
        libc::ETIMEDOUT => Why::TimedOut,
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN => {
            Why::Unreachable(errno)
        }
        libc::EADDRNOTAVAIL => Why::NoPorts,
        libc::EMFILE | libc::ENFILE => Why::NoFiles,
        libc::ENOBUFS | libc::ENOMEM => Why::NoMemory,
        libc::EAGAIN => Why::Blocked,
        libc::EMSGSIZE | libc::EINVAL => Why::TooBig,
        other => Why::Other(other),
    }
}

/// What the errno of socket(2), bind(2) or connect(2) means.
pub(super) fn why_unopened(error: &io::Error) -> Why {
    match errno(error) {
        libc::EAGAIN | libc::EADDRINUSE => Why::NoPorts,
        libc::EINVAL => Why::Other(libc::EINVAL),
        other => why(other),
    }
}

/// What the errno of a stream's recv, send or splice means.
pub(super) fn why_failed(error: &io::Error) -> Why {
    match errno(error) {
        code @ (libc::EINVAL | libc::EMSGSIZE) => Why::Other(code),
        other => why(other),
    }
}

/// EIO stands for errors that carry no errno.
fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// The pending error of a socket, which is taken by this.
pub(super) fn pending_error(fd: BorrowedFd<'_>) -> Option<io::Error> {
    SockRef::from(&fd).take_error().unwrap_or_else(Some)
}

/// An address as recvmsg(2) writes it: a `sockaddr_in` or `sockaddr_in6`. `None` for anything else.
pub(super) fn parse_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    match family {
        libc::AF_INET => {
            let ip: [u8; 4] = *bytes.get(4..)?.first_chunk()?;
            Some(SocketAddrV4::new(Ipv4Addr::from(ip), port).into())
        }
        libc::AF_INET6 => {
            let flow = u32::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
            let ip: [u8; 16] = *bytes.get(8..)?.first_chunk()?;
            let scope = u32::from_ne_bytes(*bytes.get(24..)?.first_chunk()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, flow, scope).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use socket2::SockAddr;

    use super::*;

    #[test]
    fn addresses_are_read_back_as_the_kernel_writes_them() {
        for text in ["192.0.2.7:53", "[2001:db8::7]:65535", "[fe80::1%3]:9"] {
            let address: SocketAddr = text.parse().expect("an address");
            let raw = SockAddr::from(address);
            // SAFETY: `raw` is at least `raw.len()` bytes long.
            let bytes = unsafe {
                std::slice::from_raw_parts(raw.as_ptr().cast::<u8>(), raw.len() as usize)
            };
            assert_eq!(parse_address(bytes), Some(address));
        }
        assert_eq!(parse_address(&[]), None);
        assert_eq!(parse_address(&[0; 28]), None);
    }

    #[test]
    fn source_ports_that_ran_out_have_one_name() {
        for errno in [libc::EAGAIN, libc::EADDRINUSE, libc::EADDRNOTAVAIL] {
            assert_eq!(why_unopened(&io::Error::from_raw_os_error(errno)), Why::NoPorts);
        }
    }
}
