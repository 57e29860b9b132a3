//! Listening sockets are opened here, by the control thread: one per worker, in worker order.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use config_sync::table::routing::{Socket as SocketConfig, Transport};
use socket2::{Domain, Protocol, Socket, Type};

use crate::ring::listen::steering;
use crate::ring::sys::options::{set_datagram_options, set_tcp_options};

/// Connections that may wait to be accepted; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

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
