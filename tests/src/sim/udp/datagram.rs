//! Datagrams: their client, their direction, and the buffers that hold them.

use std::net::{IpAddr, SocketAddr};

use config_sync::table::routing::SocketId;
use ringway::contract::Token;

/// A datagram, or a train of them, tagged with the client of its exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub exchange: Exchange,
    /// Counts a client's datagrams; a reply has the number of what it answers.
    pub number: u32,
    /// Payload bytes in all.
    pub bytes: u32,
    pub count: u32,
    pub truncated: bool,
    /// A proxy's: which of the kernel's trains it is.
    pub train: Option<usize>,
}

/// Who a datagram belongs to: all that a client's flow is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exchange {
    pub socket: SocketId,
    pub client: SocketAddr,
    /// Who the client is by the header of the proxy that `client` is then.
    pub says: Option<SocketAddr>,
    /// The address that the client spoke to.
    pub local: IpAddr,
}

impl Exchange {
    pub fn source(&self) -> SocketAddr {
        self.says.unwrap_or(self.client)
    }
}

/// Between an upstream socket and an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The source port. It is free again, and the next socket's, when its socket is closed.
    pub port: u32,
    pub endpoint: SocketAddr,
    /// The source address, of a shared socket.
    pub local: Option<IpAddr>,
}

/// What tells the flows of a shared socket apart.
pub(crate) type Pair = (SocketAddr, IpAddr);

#[derive(Debug)]
pub(crate) struct HeldBuffer {
    pub(super) token: Token,
    pub(crate) datagram: Datagram,
    /// So many of its datagrams were sent, or passed over.
    pub(super) answered: u32,
    /// On a shared socket.
    pub(super) came: Option<Pair>,
}
