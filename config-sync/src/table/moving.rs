//! A session that goes from one process to another, as a worker knows it.

use std::net::SocketAddr;

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
