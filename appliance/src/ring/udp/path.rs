//! Holds the path to an endpoint: the size of the largest datagram that the path takes whole.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use crate::ring::sys::calls;

/// The path to a slot's endpoint.
#[derive(Clone, Copy)]
pub struct Path {
    pub generation: u32,
    /// Payload bytes of the largest datagram that the path took whole when it was looked at.
    /// `None`: nobody has looked.
    pub whole: Option<u16>,
    /// Payload bytes of the largest datagrams that may go as a train. At first equal to `whole`,
    /// and less when the kernel has refused a train.
    pub in_trains: u16,
}

impl Path {
    pub fn new(generation: u32) -> Self {
        Self { generation, whole: None, in_trains: u16::MAX }
    }

    pub fn is_known(&self) -> bool {
        self.whole.is_some()
    }

    /// Sets the payload bytes of the largest datagram that the path takes whole. Refused trains
    /// show a later decrease. Nothing shows an increase: until the socket is closed, larger trains
    /// go singly, as before.
    pub fn takes(&mut self, whole: u16) {
        self.whole = Some(whole);
        self.in_trains = self.in_trains.min(whole);
    }

    /// A train of datagrams of this size was refused, and the next one would be refused too.
    pub fn refused(&mut self, size: u32) {
        let less = u16::try_from(size.saturating_sub(1)).unwrap_or(u16::MAX);
        self.in_trains = self.in_trains.min(less);
    }
}

/// Payload bytes of the largest datagram that goes to the peer of a connected UDP socket in one
/// packet, as far as the kernel knows the path (IP_MTU, ip(7); IPV6_MTU, ipv6(7)).
pub fn path_room(fd: BorrowedFd<'_>, peer: &SocketAddr) -> u16 {
    let (level, name, headers) = match peer {
        SocketAddr::V4(_) => (libc::SOL_IP, libc::IP_MTU, 20 + 8),
        SocketAddr::V6(_) => (libc::SOL_IPV6, libc::IPV6_MTU, 40 + 8),
    };
    let mut mtu = [0; 4];
    match calls::get_option(fd, level, name, &mut mtu) {
        Ok(4) => u16::try_from(i32::from_ne_bytes(mtu) - headers).unwrap_or(u16::MAX),
        _ => u16::MAX,
    }
}

/// Payload bytes of the largest datagram that goes in one packet to a peer without a connected
/// socket.
pub fn room_to(peer: &SocketAddr) -> u16 {
    let connected = calls::socket(peer, libc::SOCK_DGRAM).and_then(|fd| {
        calls::connect(fd.as_fd(), &(*peer).into())?;
        Ok(fd)
    });
    connected.map_or(u16::MAX, |fd| path_room(fd.as_fd(), peer))
}
