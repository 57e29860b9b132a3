//! A session or flow that goes from one process to another, as a worker knows it.

use std::net::{IpAddr, SocketAddr};

use super::routing::{BackendId, EndpointId, ListenerId, Protocol, RouteId, SocketId, Timeouts};

/// A plain TCP session that relays, and of which no byte is in the gateway. Times are microseconds
/// of the worker's clock.
#[derive(Clone, Debug, PartialEq)]
pub struct Moving {
    pub socket: SocketId,
    pub protocol: Protocol,
    pub listener: ListenerId,
    pub route: Option<RouteId>,
    pub backend: Option<BackendId>,
    pub endpoint: EndpointId,
    pub client: SocketAddr,
    pub local: SocketAddr,
    /// The sender of the client's PROXY header, and the destination that the header names.
    pub peer: Option<SocketAddr>,
    pub destination: Option<SocketAddr>,
    /// The id that the gateway's own PROXY header told the endpoint.
    pub unique_id: Option<u128>,
    pub server_name: Option<Box<str>>,
    pub timeouts: Timeouts,
    pub opened: u64,
    pub last_byte: u64,
    /// Microseconds that the connection to the endpoint took.
    pub connect: Option<u32>,
    /// Bytes from the client that the endpoint's socket took, and bytes the other way.
    pub bytes: [u64; 2],
    /// Whether the direction from the client has ended, and the other one.
    pub ended: [bool; 2],
    /// Whether the client ended first. `None`: nobody has ended.
    pub client_first: Option<bool>,
    /// The listener counts the session as one that has begun to end.
    pub ending: bool,
    /// Whether the pacing of the client's and of the endpoint's connection may still be changed.
    pub paced: [bool; 2],
}

/// A UDP flow, for another process. Times are microseconds of the worker's clock.
#[derive(Clone, Debug, PartialEq)]
pub struct MovingFlow {
    pub socket: SocketId,
    pub listener: ListenerId,
    pub route: RouteId,
    pub backend: BackendId,
    pub endpoint: EndpointId,
    /// The sender of the client's datagrams.
    pub peer: SocketAddr,
    /// The address that the client spoke to, where the socket is bound to a wildcard.
    pub local: Option<IpAddr>,
    /// The source and the destination in the header of the client's first datagram.
    pub said: Option<[SocketAddr; 2]>,
    /// The bytes in front of each datagram to the endpoint.
    pub header: Vec<u8>,
    pub unique_id: Option<u128>,
    pub timeout: u32,
    pub responses: u32,
    /// Datagrams from the client, and from the endpoint.
    pub datagrams: [u32; 2],
    pub bytes: [u64; 2],
    pub opened: u64,
    pub last: u64,
    /// The endpoint's port is closed, as ICMP has said since the client's last datagram.
    pub refused: bool,
    /// The socket is of no use to any other flow.
    pub own: bool,
    /// The number of the interface through which the socket reaches the endpoint.
    pub interface: u32,
}

/// What a flow has carried when no datagram of it is in the gateway any more. Its client's
/// datagrams wait in the listening socket, and its endpoint's in the flow's own socket. Only these
/// values can have changed since the flow was announced to another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowFigures {
    /// As those of [`MovingFlow`].
    pub datagrams: [u32; 2],
    pub bytes: [u64; 2],
    pub last: u64,
    pub refused: bool,
    /// The kernel forwarded the flow until the flow had to settle.
    pub promoted: bool,
}
