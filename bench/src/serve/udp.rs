//! UDP backends: one thread for each address, batches in, batches out, trains kept whole (UDP_GRO
//! and UDP_SEGMENT).

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg,
    sendmmsg, setsockopt, sockopt,
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Send all back.
    Echo,
    /// Count all, and answer the control datagram with the count.
    Count,
}

/// Asks a counting backend for its count, which is the answer: 8 bytes LE. It is not counted.
pub const ASK: &[u8] = b"?";

/// Calls `ready` when all addresses are bound, and returns only with an error.
pub fn serve(
    listen: &[SocketAddr],
    work: Work,
    ready: fn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let sockets: Vec<_> = listen.iter().copied().map(bind).collect::<anyhow::Result<_>>()?;
    ready()?;
    let counted = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            sockets.iter().map(|socket| scope.spawn(|| run(socket, work, &counted))).collect();
        for thread in threads {
            thread.join().expect("backends do not panic")?;
        }
        Ok(())
    })
}

fn bind(address: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind(address).with_context(|| format!("listen on {address}"))?;
    enlarge_buffer(&socket)?;
    setsockopt(&socket, sockopt::UdpGroSegment, &true).context("UDP_GRO")?;
    Ok(socket)
}

/// So that a burst is lost, if at all, by what is measured and not by the harness.
pub fn enlarge_buffer(socket: &UdpSocket) -> nix::Result<()> {
    const BYTES: usize = 64 << 20;
    // Beyond net.core.rmem_max only for those who may.
    setsockopt(socket, sockopt::RcvBufForce, &BYTES)
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &BYTES))
}

fn run(socket: &UdpSocket, work: Work, counted: &AtomicU64) -> anyhow::Result<()> {
    let mut buffers = vec![vec![0; LARGEST]; BATCH];
    let mut sender = Sender::new();
    let mut batch = 1;
    loop {
        let arrived = match receive(socket, &mut buffers[..batch]) {
            Ok(arrived) => arrived,
            // A client's port is closed: an error of an earlier send.
            Err(Errno::ECONNREFUSED | Errno::EINTR) => continue,
            Err(error) => return Err(error).context("receive"),
        };
        match work {
            Work::Echo => sender.send(socket, &buffers, &arrived)?,
            Work::Count => count(socket, &buffers, &arrived, counted),
        }
        // Room for what may come while this was at work, at a cost that few datagrams do not pay.
        batch = (arrived.len() * 2).clamp(4, BATCH);
    }
}

/// Datagrams or trains received at once.
const BATCH: usize = 64;

/// No datagram and no train is larger.
const LARGEST: usize = 65_536;

struct Arrived {
    index: usize,
    length: usize,
    from: SockaddrStorage,
    /// Length of each datagram of a train but the last, which may be shorter.
    segment: Option<u16>,
}

/// Waits for the first, takes what is there. Headers are made anew each time: the kernel shortens
/// the room for control data in those it has filled.
fn receive(socket: &UdpSocket, buffers: &mut [Vec<u8>]) -> nix::Result<Vec<Arrived>> {
    let mut headers = MultiHeaders::preallocate(buffers.len(), Some(cmsg_space!(i32)));
    let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
    let flags = MsgFlags::MSG_WAITFORONE;
    let messages = recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None)?;
    let arrived = messages.enumerate().filter_map(|(index, message)| {
        let segment = message.cmsgs().ok()?.find_map(|control| match control {
            ControlMessageOwned::UdpGroSegments(bytes) => u16::try_from(bytes).ok(),
            _ => None,
        });
        let segment = segment.filter(|segment| usize::from(*segment) < message.bytes);
        Some(Arrived { index, length: message.bytes, from: message.address?, segment })
    });
    Ok(arrived.collect())
}

fn count(socket: &UdpSocket, buffers: &[Vec<u8>], arrived: &[Arrived], counted: &AtomicU64) {
    for datagram in arrived {
        if &buffers[datagram.index][..datagram.length] == ASK {
            let answer = counted.load(Ordering::Relaxed).to_le_bytes();
            // Who gets no answer asks again.
            let _ = nix::sys::socket::sendto(
                socket.as_raw_fd(),
                &answer,
                &datagram.from,
                MsgFlags::empty(),
            );
            continue;
        }
        let datagrams = datagram.segment.map_or(1, |one| datagram.length.div_ceil(one.into()));
        counted.fetch_add(datagrams as u64, Ordering::Relaxed);
    }
}

/// Sends batches; headers with and without room for control data, since a message must not have
/// room that it does not fill.
struct Sender {
    plain: MultiHeaders<SockaddrStorage>,
    train: MultiHeaders<SockaddrStorage>,
}

impl Sender {
    fn new() -> Self {
        Self {
            plain: MultiHeaders::preallocate(BATCH, None),
            train: MultiHeaders::preallocate(BATCH, Some(cmsg_space!(u16))),
        }
    }

    fn send(
        &mut self,
        socket: &UdpSocket,
        buffers: &[Vec<u8>],
        arrived: &[Arrived],
    ) -> anyhow::Result<()> {
        // A call has one segment length for all its messages.
        for run in arrived.chunk_by(|a, b| a.segment == b.segment) {
            let slices: Vec<_> = run
                .iter()
                .map(|datagram| [IoSlice::new(&buffers[datagram.index][..datagram.length])])
                .collect();
            let to: Vec<_> = run.iter().map(|datagram| Some(datagram.from)).collect();
            let segment = run[0].segment.unwrap_or_default();
            let control = [ControlMessage::UdpGsoSegments(&segment)];
            let (headers, control) = match run[0].segment {
                None => (&mut self.plain, &control[..0]),
                Some(_) => (&mut self.train, &control[..]),
            };
            let mut sent = 0;
            while sent < run.len() {
                let flags = MsgFlags::empty();
                let fd = socket.as_raw_fd();
                sent += match sendmmsg(fd, headers, &slices[sent..], &to[sent..], control, flags) {
                    Ok(results) => results.count().max(1),
                    // The client is gone; its datagram is lost, the others are not.
                    Err(Errno::ECONNREFUSED | Errno::EPERM | Errno::ENOBUFS) => 1,
                    Err(error) => return Err(error).context("send"),
                };
            }
        }
        Ok(())
    }
}
