//! Listening sockets that another program has opened for this process, such as systemd.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use config_sync::table::address::{Address, UnixPath};
use config_sync::table::routing::{Socket as SocketConfig, Transport};
use socket2::{SockRef, Socket, Type};

use crate::ring::listen::open::{BACKLOG, join_listeners, shared};
use crate::ring::listen::steering;
use crate::ring::sys::calls::get_option;
use crate::ring::sys::options::{set_datagram_options, set_tcp_options};

/// Where a socket listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub transport: Transport,
    pub address: Address,
    /// The index of its interface. 0: any.
    pub interface: u32,
}

/// # Errors
/// The socket does not listen, or not as Ringway's sockets do. The text is for the operator.
pub fn place(fd: BorrowedFd<'_>) -> Result<Place, String> {
    let socket = SockRef::from(&fd);
    let failed = |error: io::Error| format!("it is no socket that can be asked: {error}");
    let kind = socket.r#type().map_err(failed)?;
    let local = socket.local_addr().map_err(failed)?;
    let address = match local.as_socket() {
        Some(address) => Address::Ip(address),
        None => unix(&local).ok_or("it is neither an IP socket nor a Unix socket with a name")?,
    };
    let transport = match kind {
        Type::STREAM => Transport::Tcp,
        Type::DGRAM if address.ip().is_some() => Transport::Udp,
        _ => return Err("it is for neither TCP nor UDP".to_owned()),
    };
    if transport == Transport::Tcp && !socket.is_listener().map_err(failed)? {
        return Err("it is one connection (`Accept=no` passes what listens)".to_owned());
    }
    if address.ip().is_some_and(|at| at.is_ipv6()) && !socket.only_v6().map_err(failed)? {
        let why = "it takes IPv4 too, and an address of Ringway's is for one of the two \
                   (`BindIPv6Only=ipv6-only`)";
        return Err(why.to_owned());
    }
    let mut interface = [0; 4];
    // Unix sockets have no interface.
    _ = get_option(fd, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, &mut interface);
    Ok(Place { transport, address, interface: u32::from_ne_bytes(interface) })
}

fn unix(local: &socket2::SockAddr) -> Option<Address> {
    let name = match (local.as_pathname(), local.as_abstract_namespace()) {
        (Some(path), _) => path.to_str()?.to_owned(),
        (None, Some(name)) => format!("@{}", std::str::from_utf8(name).ok()?),
        (None, None) => return None,
    };
    Some(Address::Unix(UnixPath::new(&name).ok()?))
}

/// Makes sockets that another program has opened for this address into one for each of `workers`,
/// in the workers' order. If the program has opened fewer, others join their group. One that is in
/// no group, or in a group of another user, is one for all workers, as a Unix socket is.
///
/// # Errors
/// Errors of setsockopt(2). Also if there are fewer UDP sockets than workers, and none can join:
/// the datagrams of a flow must all reach one worker.
pub fn complete(
    socket: &SocketConfig,
    given: Vec<OwnedFd>,
    workers: usize,
    early: bool,
    seed: u64,
) -> io::Result<Vec<OwnedFd>> {
    for fd in &given {
        prepare(socket, fd)?;
    }
    let Some(address) = socket.address.ip() else {
        return join_listeners(socket, given, workers, early, seed);
    };
    let copies = match socket.transport {
        Transport::Tcp => given.iter().map(OwnedFd::try_clone).collect::<io::Result<Vec<_>>>()?,
        Transport::Udp => Vec::new(),
    };
    let sockets = match join_listeners(socket, given, workers, early, seed) {
        Ok(sockets) => sockets,
        Err(_) if !copies.is_empty() => shared(copies, workers)?,
        Err(error) => {
            return Err(io::Error::new(
                error.kind(),
                format!(
                    "{workers} workers need a socket each (name the address so often in the \
                     socket unit, with `ReusePort=yes`): {error}"
                ),
            ));
        }
    };
    if workers > 1
        && let Some(first) = sockets.first()
        && SockRef::from(first).reuse_port()?
    {
        steering::attach(first.as_fd(), address.is_ipv4(), workers, seed)?;
    }
    Ok(sockets)
}

/// Sets what a socket of Ringway's own has from the start.
fn prepare(config: &SocketConfig, fd: &OwnedFd) -> io::Result<()> {
    let socket = Socket::from(fd.try_clone()?);
    // The file is the other program's too, but that one only keeps it.
    socket.set_nonblocking(true)?;
    match (config.address.ip(), config.transport) {
        (Some(_), Transport::Tcp) => {
            set_tcp_options(fd.as_fd(), &config.options)?;
            socket.listen(BACKLOG)
        }
        (Some(address), Transport::Udp) => set_datagram_options(&socket, &address),
        (None, _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn a_socket_says_where_it_listens() {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = Address::Ip(tcp.local_addr().expect("its address"));
        let found = place(tcp.as_fd());
        assert_eq!(found, Ok(Place { transport: Transport::Tcp, address, interface: 0 }));
        let udp = UdpSocket::bind("[::]:0").expect("a socket");
        assert!(place(udp.as_fd()).is_err_and(|why| why.contains("ipv6-only")));
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        assert!(place(udp.as_fd()).is_ok_and(|at| at.transport == Transport::Udp));
    }

    #[test]
    fn what_does_not_listen_is_told_from_what_does() {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let stream = TcpStream::connect(tcp.local_addr().expect("bound")).expect("connected");
        assert!(place(stream.as_fd()).is_err_and(|why| why.contains("one connection")));
        let file = std::fs::File::open("/dev/null").expect("it is there");
        assert!(place(file.as_fd()).is_err_and(|why| why.contains("no socket")));
    }
}
