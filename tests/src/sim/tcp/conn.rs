//! A connection with a peer, and what its socket has in each direction.

use std::net::SocketAddr;

use ringway::contract::{Side, Token, Why};

use crate::sim::bytes::{Bytes, pattern};
use crate::sim::proxied::Proxied;

/// A connection of the proxy with a peer. Never used again, so it names the peer's byte stream too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnId(pub usize);

#[derive(Debug)]
pub struct Conn {
    pub side: Side,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    pub owner: Option<Token>,
    /// From the peer to the proxy's socket.
    pub inbound: Half,
    /// From the proxy's socket to the peer.
    pub outbound: Half,
    /// What the peer's stream begins with, before the pattern.
    pub prefix: Vec<u8>,
    /// What the gateway itself has to do with the peer's bytes and with those to it.
    pub proxied: Proxied,
    /// The connection that this one is relayed to and from.
    pub partner: Option<ConnId>,
    /// The handshake failed: nothing listened.
    pub refused: bool,
    /// The proxy's socket is closed.
    pub closed: bool,
    /// It ends with a reset when its last descriptor is closed.
    pub(crate) resets: bool,
    /// The peer was reset.
    pub reset_seen: bool,
    /// The peer closed its socket altogether.
    pub peer_closed: bool,
    /// The proxy's socket is broken, and why.
    pub error: Option<Why>,
    /// The turn in which the proxy was told of the error.
    pub(crate) error_told: Option<u64>,
    /// Wake-ups wait for this many bytes (SO_RCVLOWAT).
    pub(crate) lowat: u64,
    /// `lowat` is that of a `Peek`, which ends with the first `Move`.
    pub(crate) peeked: bool,
    /// When bytes first came that were too few to wake anybody, microseconds.
    pub(crate) below_since: Option<u64>,
    /// A write found no space: the proxy must be told when there is some.
    pub(crate) nospace: bool,
    pub(super) news: News,
    pub(super) ready_pending: bool,
    /// A stream's receive is about to take something.
    pub(crate) arriving: bool,
    /// Bytes that streams gave this connection: in which turn, and how many in that one.
    pub(crate) streamed: (u64, u64),
    /// How many of these the proxy may not have known of when it closed the session.
    pub untold: u64,
    /// Bytes or an end came since the proxy last looked.
    pub(crate) unlooked: bool,
    /// The last shutdown cut bytes off, and only a Close in the same turn can excuse that.
    pub(crate) cut: bool,
}

impl Conn {
    /// Something that the proxy has not looked at has woken it, or is about to.
    pub(crate) fn has_news(&self) -> bool {
        self.unlooked || self.ready_pending
    }

    /// What stands at `at` in the peer's stream.
    pub(crate) fn byte(&self, at: u64, stream: u32) -> u8 {
        let prefix = usize::try_from(at).ok().and_then(|at| self.prefix.get(at));
        prefix.copied().unwrap_or_else(|| pattern(stream, at))
    }
}

#[derive(Debug)]
pub struct Half {
    pub queue: Bytes,
    pub capacity: u64,
    /// The sender has sent its FIN.
    pub fin: bool,
    /// The receiver has seen it.
    pub fin_seen: bool,
    /// Bytes that the sender's socket took, and that the receiver took from its own.
    pub written: u64,
    pub taken: u64,
    /// Those that the sender has been told are in the receiver's socket: no reset overtakes them.
    pub(super) acked: u64,
}

impl Half {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            queue: Bytes::default(),
            capacity,
            fin: false,
            fin_seen: false,
            written: 0,
            taken: 0,
            acked: 0,
        }
    }

    pub(super) fn space(&self) -> u64 {
        self.capacity.saturating_sub(self.queue.len())
    }

    /// Everything was sent and taken, and its end seen.
    pub fn finished(&self) -> bool {
        self.fin_seen && self.queue.is_empty()
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct News {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    pub(crate) ending: bool,
    pub(crate) failed: bool,
}

/// What an endpoint address does with connection attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointMode {
    Accepts,
    /// Accepts after this many microseconds.
    AcceptsAfter(u64),
    Refuses,
    /// Drops every SYN.
    Silent,
    Unreachable,
}
