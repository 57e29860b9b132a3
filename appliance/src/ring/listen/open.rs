//! Opens listening sockets, on the control thread: one per worker, in worker order.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use config_sync::table::address::Address;
use config_sync::table::routing::{Socket as SocketConfig, Transport};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::ring::listen::{steering, unix};
use crate::ring::sys::options::{bind_interface, set_datagram_options, set_tcp_options};

/// Connections that may wait to be accepted. The kernel cuts this to `net.core.somaxconn`.
pub const BACKLOG: i32 = 4096;

/// Opens one listening socket per worker, in worker order, as one SO_REUSEPORT group. In the group,
/// a source address and port always reaches the same worker. All workers share one Unix socket.
///
/// - `rejoins`: sockets of this process may still hold the address, or an overlapping one.
/// - `early`: this machine need not have the address yet (IP_FREEBIND, ip(7)).
/// - `seed` keys the choice of the worker. The seed is one for the life of the process, so a source
///   keeps its worker when a listener comes anew.
///
/// # Errors
///
/// Errors of socket(2), bind(2), listen(2) or setsockopt(2); then no socket stays open. EADDRINUSE
/// also if another process of the same user has a group that the sockets would join.
pub fn open_listeners(
    socket: &SocketConfig,
    workers: usize,
    rejoins: bool,
    early: bool,
    seed: u64,
) -> io::Result<Vec<OwnedFd>> {
    let address = match &socket.address {
        Address::Ip(address) => *address,
        Address::Unix(path) => return unix::open(socket, *path, workers, BACKLOG),
    };
    if !rejoins {
        new_socket(socket, address, early)?.bind(&address.into())?;
    }
    let mut sockets = Vec::with_capacity(workers);
    for worker in 0..workers {
        let opened = bind(socket, address, early)?;
        // listen(2) comes before the program is attached. Once a socket has a program, listen(2)
        // takes sockets of other addresses of this port, which may be leaving, for a conflict.
        if socket.transport == Transport::Tcp {
            opened.listen(BACKLOG)?;
        }
        // The program is attached before the second socket joins. Otherwise the kernel's own hash
        // might give a packet to one worker, and the program might give the next packet of that
        // flow to another.
        if worker == 0 && workers > 1 {
            steering::attach(opened.as_fd(), address.is_ipv4(), workers, seed)?;
        }
        sockets.push(OwnedFd::from(opened));
    }
    Ok(sockets)
}

/// Makes the listening sockets of another process complete: the first `workers` of its group, in
/// their order. A Unix socket is one for all workers, and so is a TCP socket in no group, which
/// systemd has opened. Sockets that a group lacks join behind the others. No connection and no
/// datagram reaches those before the group's program is attached anew, for so many sockets
/// ([`steering::attach`]).
///
/// # Errors
///
/// The errors of [`open_listeners`].
pub fn join_listeners(
    socket: &SocketConfig,
    mut sockets: Vec<OwnedFd>,
    workers: usize,
    early: bool,
    seed: u64,
) -> io::Result<Vec<OwnedFd>> {
    sockets.truncate(workers);
    let first = sockets.first().ok_or(io::ErrorKind::NotFound)?;
    let is_alone = socket.transport == Transport::Tcp && !SockRef::from(first).reuse_port()?;
    let Some(address) = socket.address.ip().filter(|_| !is_alone) else {
        return shared(sockets, workers);
    };
    if let [only] = &sockets[..]
        && workers > 1
    {
        // A group of one has no program yet, so the kernel would choose among all sockets.
        steering::attach(only.as_fd(), address.is_ipv4(), 1, seed)?;
    }
    while sockets.len() < workers {
        let joins = bind(socket, address, early)?;
        if socket.transport == Transport::Tcp {
            joins.listen(BACKLOG)?;
        }
        sockets.push(joins.into());
    }
    Ok(sockets)
}

/// Copies of sockets, until there are so many.
pub fn shared(mut sockets: Vec<OwnedFd>, count: usize) -> io::Result<Vec<OwnedFd>> {
    sockets.truncate(count);
    while sockets.len() < count {
        let copy = sockets.first().ok_or(io::ErrorKind::NotFound)?.try_clone()?;
        sockets.push(copy);
    }
    Ok(sockets)
}

fn bind(config: &SocketConfig, address: SocketAddr, early: bool) -> io::Result<Socket> {
    let socket = new_socket(config, address, early)?;
    socket.set_reuse_port(true)?;
    match config.transport {
        Transport::Tcp => set_tcp_options(socket.as_fd(), &config.options)?,
        Transport::Udp => set_datagram_options(&socket, &address)?,
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn new_socket(config: &SocketConfig, address: SocketAddr, early: bool) -> io::Result<Socket> {
    let (kind, protocol) = match config.transport {
        Transport::Tcp => (Type::STREAM, Protocol::TCP),
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
    };
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking(), Some(protocol))?;
    // Connections of an earlier process that have not quite ended are no obstacle. With UDP, this
    // option would let any other process in.
    socket.set_reuse_address(config.transport == Transport::Tcp)?;
    if let Some(interface) = &config.bind.interface {
        bind_interface(socket.as_fd(), interface.index)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    match address {
        SocketAddr::V4(_) if early || config.bind.freebind => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) if early || config.bind.freebind => socket.set_freebind_v6(true)?,
        _ => {}
    }
    Ok(socket)
}
