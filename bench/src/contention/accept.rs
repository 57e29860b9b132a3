//! Listening sockets that share an address (SO_REUSEPORT): what the choice among them costs a
//! connection, and whether each gets as many.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use data_plane::ring::listen::steering;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use socket2::{Domain, Socket, Type};

use crate::contention::thread::cpu;

const SEED: u64 = 0x1234_5678_9abc_def0;

/// So many connections wait at the most, as many as the kernel usually allows.
const BACKLOG: i32 = 4_096;

/// Opens so many listening sockets of one address. They do not block.
pub fn listen(sockets: usize, is_steered: bool) -> anyhow::Result<(SocketAddr, Vec<Socket>)> {
    let mut address = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut group = Vec::new();
    for number in 0..sockets {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        if number == 0 {
            if is_steered {
                steering::attach(socket.as_fd(), true, sockets, SEED).context("steering")?;
            }
            address = socket.local_addr()?.as_socket().context("an IP address")?;
        }
        socket.listen(BACKLOG)?;
        group.push(socket);
    }
    Ok((address, group))
}

/// A connection that ends with a reset, so that its port is free at once.
pub fn connect(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.connect(&address.into())?;
    Ok(socket)
}

/// Nanoseconds of CPU of a connection to a group of so many sockets, from connect to close, both
/// sides of it; and the connections of the busiest socket, divided by those of all on the average.
pub fn measure(sockets: usize, is_steered: bool, seconds: f64) -> anyhow::Result<(f64, f64)> {
    let (address, group) = listen(sockets, is_steered)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (number, socket) in (0..).zip(&group) {
        epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
    }
    let mut got = vec![0_u64; sockets];
    let (before, until) = (cpu()?, Instant::now() + Duration::from_secs_f64(seconds));
    while Instant::now() < until {
        let client = connect(address)?;
        let mut ready = [EpollEvent::empty()];
        ensure!(epoll.wait(&mut ready, 1_000_u16)? == 1, "no socket gets a connection");
        let number = usize::try_from(ready[0].data())?;
        let accepted = group[number].accept()?;
        drop(client);
        drop(accepted);
        got[number] += 1;
    }
    let spent = (cpu()? - before).as_secs_f64() * 1e9;
    let all = got.iter().sum::<u64>().max(1) as f64;
    let most = got.iter().copied().max().unwrap_or_default() as f64;
    Ok((spent / all, most * sockets as f64 / all))
}
