//! Holds the state of all flows and their upstream sockets.

use std::collections::VecDeque;

use config_sync::table::routing::EndpointId;
use config_sync::table::steering::Share;
use hashbrown::HashTable;

use crate::contract::{Carried, Side, Token};
use crate::proxy::cause::Cause;
use crate::proxy::slab::{NONE, Slab};
use crate::proxy::udp::flow::{Flow, Silence};
use crate::proxy::udp::newcomers::Newcomers;
use crate::proxy::udp::ports::{From, Ports};
use crate::proxy::udp::shared_sockets::Pairs;
use crate::stats::records::{CloseReason, Demotion};

/// Microseconds. After an endpoint refused a datagram, a flow that leaves another closed port does
/// not move to that endpoint for this long.
pub const CLOSED: u64 = 5_000_000;
/// The maximum number of such endpoints that a moving flow passes over.
pub const MOST_CLOSED: usize = 16;

#[derive(Debug)]
pub struct Flows {
    /// Flow slots by the sender that identifies a flow.
    pub index: HashTable<u32>,
    pub hasher: ahash::RandomState,
    pub flows: Slab<Flow>,
    pub upstreams: Slab<Upstream>,
    pub pairs: Pairs,
    pub promoted: Promoted,
    /// By `EndpointId`.
    pub endpoints: Vec<EndpointState>,
    /// By `SocketId`: the number of flows.
    pub by_socket: Vec<u32>,
    pub sweep: Sweep,
    /// With more upstream sockets than this, rested ones are closed soon. Each socket holds a
    /// source port, and other programs of the machine want source ports too.
    pub ample: u32,
    /// Until this time, rested sockets are closed soon because this worker had too few.
    pub shortage_until: u64,
    /// Until this time, rested sockets are closed soon because some worker found no source port.
    pub ports_short_until: u64,
    pub ports: Ports,
    /// Until this time, rested pairs are closed soon because there were too few local addresses.
    pub pairs_shortage_until: u64,
    /// The end of the last turn. All datagrams that sockets had received by then were read. Rest
    /// counts up to this time, not up to now: after a worker had no core for a while, a new
    /// client's datagram may stand before a late reply in one batch of events.
    pub seen: u64,
    /// Clients without a flow. Their flows begin in later turns.
    pub newcomers: Newcomers,
    /// Datagrams over limits since the last that was answered (`dns_guard.rs`).
    pub slipped: u32,
    /// Sockets that receive again at a time, the earliest first.
    pub paused: VecDeque<(u64, Token)>,
    /// Until a time, only these sources begin flows here: the sockets may hold datagrams of others.
    pub only: Option<(Share, u64)>,
    /// Set if all flows must end, for this reason.
    pub ending: Option<CloseReason>,
    /// Endpoints that a moving flow passes over. Empty between moves.
    pub closed_ports: Vec<EndpointId>,
}

#[derive(Debug)]
pub struct Upstream {
    /// Meaningless for a shared socket.
    pub endpoint: EndpointId,
    /// The flow that this socket or pair serves. `NONE` while it rests or closes.
    pub flow: u32,
    pub role: Role,
    /// The source address of this socket's port.
    pub from: From,
    pub closing: bool,
    pub halt: Halt,
    /// Datagrams that were sent for the flow.
    pub sent: u32,
    pub rests_since: u64,
    /// The next socket or pair of this endpoint that came to rest.
    pub next: u32,
}

/// Whether a socket receives nothing for now, because its flow goes to another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    No,
    /// The ring was told. What it had received still comes.
    Asked,
    Done,
    /// The ring was told in vain: when the socket has stopped, it goes on.
    Revoked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A connected socket.
    Socket,
    /// A connected socket of no use to any other flow: at the address of its flow's client, or
    /// through an interface that the endpoint was reached through before.
    Own,
    /// An endpoint and a local address, on a shared socket.
    Pair,
    /// The socket that pairs share. A shared socket never rests.
    Shared,
}

impl Upstream {
    pub fn new(endpoint: EndpointId, role: Role, from: From) -> Self {
        let (flow, next, halt) = (NONE, NONE, Halt::No);
        Self { endpoint, flow, role, from, closing: false, halt, sent: 0, rests_since: 0, next }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct EndpointState {
    /// Resting sockets and pairs, the longest resting first.
    pub first: u32,
    pub last: u32,
    /// How long a socket rests between two flows, in microseconds. Rest is never shortened, however
    /// few sockets there are.
    pub rest: u64,
    /// Until this time, the endpoint's port counts as closed.
    pub closed_until: u64,
    /// When the endpoint left the table. `None`: the endpoint is in the table.
    pub gone_since: Option<u64>,
    /// The number of the interface through which new sockets reach the endpoint.
    pub interface: u32,
}

pub const ABSENT: EndpointState = EndpointState {
    first: NONE,
    last: NONE,
    rest: 0,
    closed_until: 0,
    gone_since: Some(0),
    interface: 0,
};

/// Looks at each flow and at each endpoint's resting sockets within `period`, some in each step.
#[derive(Debug)]
pub struct Sweep {
    pub next: u64,
    pub period: u64,
    pub flow: u32,
    pub endpoint: u32,
}

/// The promoted flows.
#[derive(Debug, Default)]
pub struct Promoted {
    pub list: Vec<One>,
    /// Flows that the worker forwards again because one side was silent.
    pub trials: Vec<Trial>,
    /// The place of the next flow to ask about.
    pub next: usize,
    /// How many flows have not been looked at since the last table, which may have changed what
    /// they need.
    pub unchecked: usize,
    /// When flows may be promoted again that have settled, microseconds.
    pub again_from: u64,
}

#[derive(Debug)]
pub struct One {
    /// The flow's slot.
    pub slot: u32,
    /// What was counted already.
    pub seen: Carried,
    /// The flow's datagrams at the last count: of the client, and of the endpoint.
    pub ways: (u64, u64),
    /// The one side that is heard, and since when, microseconds.
    pub alone: Option<(Side, u64)>,
    pub silence: Silence,
    /// The kernel has begun to forward the flow.
    pub is_taken: bool,
    /// The kernel was told to forward the flow no longer.
    pub leaves: Option<Demotion>,
    /// The flow ends when it is demoted, for this cause.
    pub end: Option<Cause>,
}

/// What the worker hears of a flow, after the kernel heard one side of it alone.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// The flow's slot and generation.
    pub slot: u32,
    pub generation: u32,
    /// The side that the kernel heard.
    pub talks: Side,
    /// The flow's datagrams when the trial began: of the client, and of the endpoint.
    pub ways: (u64, u64),
    pub until: u64,
    /// Since the flow was promoted, the kernel has carried datagrams of the silent side.
    pub was_heard: bool,
    pub silence: Silence,
}
