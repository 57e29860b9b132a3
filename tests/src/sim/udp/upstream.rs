//! What the ring has of an upstream socket, and the clients of its last datagrams each way.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use ringway::contract::{Carried, Token};

use crate::sim::coverage::State;
use crate::sim::udp::datagram::{Datagram, Exchange, Pair, Path};

/// What the ring has of an upstream socket.
#[derive(Debug)]
pub struct Upstream {
    pub token: Token,
    pub port: u32,
    /// `None`: shared, for all endpoints of its IP version.
    pub(super) address: Option<SocketAddr>,
    pub(super) interface: u32,
    /// It has carried a datagram.
    pub(super) used: bool,
    /// The client of its last datagram; `None` until the first, and after that flow's end.
    pub(super) serves: Option<Exchange>,
    /// The same of a shared one.
    pub(super) pairs: BTreeMap<Pair, Use>,
    pub(super) armed: bool,
    /// `Receive` was asked for since the last turn.
    pub(super) told: bool,
    pub(super) closing: bool,
    /// `Halt` was asked for, or it was attached: it receives only after `Receive`.
    pub(crate) halted: bool,
    /// Another slot has it too, and gets what comes.
    pub(crate) away: bool,
    /// When it last stopped for an error of the machine's, and when receiving may be asked for
    /// again, microseconds.
    pub(crate) stopped: u64,
    pub(super) pause_until: u64,
    /// An ICMP port unreachable has come.
    pub(super) refused: bool,
    pub(super) received: VecDeque<(Datagram, Option<Pair>)>,
}

impl Upstream {
    pub fn is_receiving(&self) -> bool {
        self.armed || self.closing
    }

    pub fn state(&self) -> State {
        let serves = self.serves.is_some() || self.pairs.values().any(|used| used.ended.is_none());
        match (self.closing, serves) {
            (true, _) => State::Ending,
            (false, true) => State::Live,
            (false, false) => State::Resting,
        }
    }

    /// Whether this is the exchange that it expects there.
    pub(super) fn expects(&self, exchange: Exchange, pair: Option<Pair>) -> bool {
        match pair {
            None => self.serves == Some(exchange),
            Some(pair) => self
                .pairs
                .get(&pair)
                .is_some_and(|used| used.exchange == exchange && used.ended.is_none()),
        }
    }
}

/// The client of the last datagram each way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Use {
    /// The flow's upstream slot.
    pub(super) slot: u32,
    pub(super) exchange: Exchange,
    /// When that flow ended, microseconds.
    pub(super) ended: Option<u64>,
}

impl Use {
    /// Whether replies to it, late as they may be, are all there: then the way may be another's.
    pub(super) fn gives_way(&self, to: Exchange, now: u64, rest: u64) -> bool {
        self.exchange == to || self.ended.is_some_and(|ended| now >= ended + rest)
    }
}

/// A flow that the kernel forwards, by its upstream socket.
#[derive(Debug)]
pub(crate) struct Promoted {
    pub(super) exchange: Exchange,
    pub(super) path: Path,
    pub(super) carried: Carried,
    /// What was carried by the last `Tally`.
    pub(super) told: Carried,
    /// What it sends to the endpoint reaches nobody.
    pub(super) is_broken: bool,
    /// Whether the client or the endpoint alone is heard, and since when, microseconds.
    pub(super) alone: Option<(bool, u64)>,
    /// Datagrams have gone through sockets since the last `Tally`.
    pub(super) has_other_way: bool,
    /// One side has been alone for too long.
    pub(super) is_overdue: bool,
}
