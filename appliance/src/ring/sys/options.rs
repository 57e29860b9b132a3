//! Sets the options of sockets, and binds sockets to addresses.

use std::ffi::OsStr;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use config_sync::table::address::UnixPath;
use config_sync::table::routing::SocketOptions;
use socket2::{SockAddr, SockRef, Socket, TcpKeepalive};

use crate::contract::Origin;
use crate::ring::sys::calls::set_option;

/// Bytes of datagrams that a socket of many peers may hold. The kernel cuts this value to
/// `net.core.rmem_max` and `wmem_max`, unless the process has CAP_NET_ADMIN.
const DATAGRAM_MEMORY: i32 = 4 << 20;

pub fn set_datagram_options(socket: &Socket, address: &SocketAddr) -> io::Result<()> {
    let fd = socket.as_fd();
    set_option(fd, libc::SOL_UDP, libc::UDP_GRO, &1_i32)?;
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

/// Sets the options in `options`. Connections that a listening socket accepts later inherit them.
///
/// # Errors
///
/// Errors of setsockopt(2). ENOENT: the congestion control is not there (modprobe). EPERM: the user
/// may not use it (`net.ipv4.tcp_allowed_congestion_control`).
pub fn set_tcp_options(fd: BorrowedFd<'_>, options: &SocketOptions) -> io::Result<()> {
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

/// Sets the options of a new connection to an endpoint, as [`set_tcp_options`] does, but makes no
/// call for the defaults of a new socket. An option that fails keeps the kernel's default, because
/// a connection without its congestion control is better than none.
pub fn set_new_tcp_options(fd: BorrowedFd<'_>, options: &SocketOptions) {
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

/// Binds a socket that will be connected to its source address. For TCP, connect(2) chooses the
/// port, and may share it among destinations (IP_BIND_ADDRESS_NO_PORT).
pub fn bind_source(fd: BorrowedFd<'_>, source: Origin, stream: bool) -> io::Result<()> {
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

/// The name of a Unix socket, as the kernel takes it.
pub fn unix_address(name: UnixPath) -> io::Result<SockAddr> {
    SockAddr::unix(OsStr::from_bytes(&name.to_bytes()))
}

/// Binds a socket to a network interface (SO_BINDTOIFINDEX, Linux 5.1). Packets of other interfaces
/// do not reach the socket, and the socket sends through this interface only. The interface may be
/// a VRF.
pub fn bind_interface(fd: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, &index.cast_signed())
}

/// Takes the pending error of a socket.
pub fn pending_error(fd: BorrowedFd<'_>) -> Option<io::Error> {
    SockRef::from(&fd).take_error().unwrap_or_else(Some)
}
