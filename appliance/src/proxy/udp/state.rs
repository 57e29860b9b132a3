//! What flows and their upstream sockets are kept in.

use std::collections::VecDeque;

use config_sync::table::routing::EndpointId;
use hashbrown::HashTable;

use crate::contract::Token;
use crate::proxy::slab::{NONE, Slab};
use crate::proxy::udp::flow::Flow;
use crate::proxy::udp::ports::{From, Ports};
use crate::proxy::udp::shared_sockets::Pairs;
use crate::stats::records::CloseReason;

#[derive(Debug)]
pub struct Flows {
    /// Flow slots by what identifies a flow.
    pub index: HashTable<u32>,
    pub hasher: ahash::RandomState,
    pub flows: Slab<Flow>,
    pub upstreams: Slab<Upstream>,
    pub pairs: Pairs,
    /// By `EndpointId`.
    pub endpoints: Vec<EndpointState>,
    /// By `SocketId`: its flows.
    pub by_socket: Vec<u32>,
    pub sweep: Sweep,
    /// With more upstream sockets than this, those that have rested are closed soon: each holds a
    /// source port, of which other programs of the machine want some too.
    pub ample: u32,
    /// The same until then: there were too few.
    pub shortage_until: u64,
    /// The same, for all workers: one found no source port.
    pub ports_short_until: u64,
    pub ports: Ports,
    /// The same of pairs alone: there were too few local addresses.
    pub pairs_shortage_until: u64,
    /// The end of the last turn: what sockets had received by then was read. Rest counts up to
    /// here, not up to now: after a worker had no core for a while, a new client's datagram may
    /// stand before a late reply in one batch of events.
    pub seen: u64,
    /// Sockets that receive again at a time, that with the next one first.
    pub paused: VecDeque<(u64, Token)>,
    /// Every flow is to end, for this.
    pub ending: Option<CloseReason>,
    /// Endpoints that a flow that moves passes over; empty in between.
    pub closed_ports: Vec<EndpointId>,
}

#[derive(Debug)]
pub struct Upstream {
    /// Meaningless for a shared socket.
    pub endpoint: EndpointId,
    /// The flow that it serves; `NONE` while it rests or closes.
    pub flow: u32,
    pub role: Role,
    /// Where its port is.
    pub from: From,
    pub closing: bool,
    /// Datagrams that it was given for its flow.
    pub sent: u32,
    pub rests_since: u64,
    /// The next to come to rest after this one, of the same endpoint.
    pub next: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A connected socket.
    Socket,
    /// A connected socket at the address of its flow's client: of no use to any other flow.
    Own,
    /// An endpoint and a local address, on a shared socket.
    Pair,
    /// The socket that pairs share. It never rests.
    Shared,
}

impl Upstream {
    pub fn new(endpoint: EndpointId, role: Role, from: From) -> Self {
        let (flow, next) = (NONE, NONE);
        Self { endpoint, flow, role, from, closing: false, sent: 0, rests_since: 0, next }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct EndpointState {
    /// Resting sockets and pairs, the longest resting first.
    pub first: u32,
    pub last: u32,
    /// How long a socket rests between two flows, microseconds: always, however few there are.
    pub rest: u64,
    /// Its port is taken for closed until then.
    pub closed_until: u64,
    /// When it left the table; `None` while it is there.
    pub gone_since: Option<u64>,
}

pub const ABSENT: EndpointState =
    EndpointState { first: NONE, last: NONE, rest: 0, closed_until: 0, gone_since: Some(0) };

/// Looks at every flow and at every endpoint's resting sockets within `period`, some in each step.
#[derive(Debug)]
pub struct Sweep {
    pub next: u64,
    pub period: u64,
    pub flow: u32,
    pub endpoint: u32,
}
