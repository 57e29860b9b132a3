//! UDP flows: one client's exchange with one endpoint, each with an upstream socket of its own, or
//! a local address of its own on a socket that is shared (`shared.rs`).
//!
//! An upstream socket outlives its flow: it rests, still connected and receiving, and serves the
//! next flow to that endpoint once it has rested long enough that no late reply can reach the wrong
//! client; and so does a pair of endpoint and local address. Flows expire by a sweep that looks at
//! a part of them at a time, never by a timer each.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use config_sync::table::ranges::Access;
use config_sync::table::routing::{
    Backend, BackendId, Endpoint, EndpointId, Listener, ListenerId, Protocol, RouteId,
    RoutingTable, SendProxy, SocketId, Transport,
};
use hashbrown::HashTable;

use super::balance::Balancer;
use super::cause::{Cause, Detail};
use super::op::{BufferId, Event, Kind, Op, Origin, Part, SHARED_SOCKETS, Token, Why};
use super::ports::{From, Ports};
use super::proxy_protocol::{self, Addresses, Outgoing};
use super::record::{CloseReason, DropReason, Record, SessionRecord};
use super::shared::{Pair, Pairs};
use super::slab::{NONE, Slab};
use super::tables::Tables;
use super::{Core, RECEIVE_PAUSE, micros};

#[derive(Debug)]
pub struct Flows {
    /// Flow slots by what identifies a flow.
    index: HashTable<u32>,
    hasher: ahash::RandomState,
    flows: Slab<Flow>,
    upstreams: Slab<Upstream>,
    pairs: Pairs,
    /// By `EndpointId`.
    endpoints: Vec<EndpointState>,
    /// By `SocketId`: its flows.
    by_socket: Vec<u32>,
    sweep: Sweep,
    /// With more upstream sockets than this, those that have rested are closed soon: each holds a
    /// source port, of which other programs of the machine want some too.
    ample: u32,
    /// The same until then: there were too few.
    shortage_until: u64,
    /// The same, for all workers: one found no source port.
    ports_short_until: u64,
    ports: Ports,
    /// The same of pairs alone: there were too few local addresses.
    pairs_shortage_until: u64,
    /// The end of the last turn: what sockets had received by then was read. Rest counts up to
    /// here, not up to now: after a worker had no core for a while, a new client's datagram may
    /// stand before a late reply in one batch of events.
    seen: u64,
    /// Sockets that receive again at a time, that with the next one first.
    paused: VecDeque<(u64, Token)>,
    /// Every flow is to end, for this.
    ending: Option<CloseReason>,
    /// Endpoints that a flow that moves passes over; empty in between.
    closed_ports: Vec<EndpointId>,
}

#[derive(Debug)]
struct Flow {
    peer: SocketAddr,
    /// The address that the client spoke to, where the socket is bound to a wildcard.
    local: Option<IpAddr>,
    socket: SocketId,
    listener: ListenerId,
    route: RouteId,
    backend: BackendId,
    endpoint: EndpointId,
    upstream: u32,
    timeout: u32,
    responses: u32,
    /// Datagrams from the client, and replies to it.
    sent: u32,
    replies: u32,
    bytes_up: u64,
    bytes_down: u64,
    opened: u64,
    last: u64,
    /// Its endpoint's port is closed, as ICMP said since the client's last datagram.
    refused: bool,
    proxied: Option<Box<Proxied>>,
}

/// What PROXY headers have to do with a flow; few flows have one.
#[derive(Debug, Default)]
struct Proxied {
    /// As the header of the client's first datagram said.
    said: Option<Addresses>,
    /// What each datagram begins with that the endpoint is sent; empty: nothing is put before it.
    header: Vec<u8>,
    unique_id: Option<u128>,
}

/// Whose datagram it is: what tells flows of one socket apart.
#[derive(Clone, Copy)]
struct Sender {
    peer: SocketAddr,
    local: Option<IpAddr>,
    /// By the header of a proxy. The source alone counts.
    said: Option<Addresses>,
}

#[derive(Debug)]
struct Upstream {
    /// Meaningless for a shared socket.
    endpoint: EndpointId,
    /// The flow that it serves; `NONE` while it rests or closes.
    flow: u32,
    role: Role,
    /// Where its port is.
    from: From,
    closing: bool,
    /// Datagrams that it was given for its flow.
    sent: u32,
    rests_since: u64,
    /// The next to come to rest after this one, of the same endpoint.
    next: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
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
    fn new(endpoint: EndpointId, role: Role, from: From) -> Self {
        let (flow, next) = (NONE, NONE);
        Self { endpoint, flow, role, from, closing: false, sent: 0, rests_since: 0, next }
    }
}

#[derive(Clone, Copy, Debug)]
struct EndpointState {
    /// Resting sockets and pairs, the longest resting first.
    first: u32,
    last: u32,
    /// How long a socket rests between two flows, microseconds: always, however few there are.
    rest: u64,
    /// Its port is taken for closed until then.
    closed_until: u64,
    /// When it left the table; `None` while it is there.
    gone_since: Option<u64>,
}

const ABSENT: EndpointState =
    EndpointState { first: NONE, last: NONE, rest: 0, closed_until: 0, gone_since: Some(0) };

/// For so long an endpoint that refused a datagram is not given flows that others have refused.
const CLOSED: u64 = 5_000_000;
/// So many of them are passed over.
const MOST_CLOSED: usize = 16;

/// A shortage counts for this long after it was last seen.
const SHORTAGE: u64 = 2_000_000;
/// A socket that has rested, and that nobody needed for this long since, is closed.
const KEEP: u64 = 60_000_000;

/// Looks at every flow and at every endpoint's resting sockets within `period`, some in each step.
#[derive(Debug)]
struct Sweep {
    next: u64,
    period: u64,
    flow: u32,
    endpoint: u32,
}

const SWEEP_STEP: u64 = 100_000;
/// Between two steps while everything ends.
const ENDING_STEP: u64 = 1_000;
/// Sockets of one endpoint that one step closes at the most, and flows that it ends while
/// everything ends.
const MOST_CLOSES: u32 = 256;
/// Flows, and endpoints, that one step looks at.
const MOST_LOOKS: u32 = 16_384;
const LONGEST_SWEEP: u64 = 15_000_000;

/// Where flows are nearly used up, one that was never answered ends after so long a silence: it may
/// be one of a flood, which would lock new clients out for `flow_timeout`.
const UNANSWERED: u64 = 2_000_000;

/// A batch of datagrams of one sender, in one buffer.
#[derive(Clone, Copy)]
struct Batch {
    buffer: BufferId,
    bytes: u32,
    count: u32,
    part: Part,
}

impl Flows {
    pub fn new(limit: u32, seed: u64) -> Self {
        Self {
            // Twice the limit: a table that is at most half full never has to grow.
            index: HashTable::with_capacity(limit as usize * 2),
            hasher: ahash::RandomState::with_seeds(seed, !seed, seed << 1, seed >> 1),
            flows: Slab::new(limit),
            upstreams: Slab::new(limit.saturating_add(SHARED_SOCKETS)),
            pairs: Pairs::new(limit.saturating_add(SHARED_SOCKETS), seed),
            endpoints: Vec::new(),
            by_socket: Vec::new(),
            sweep: Sweep { next: 0, period: LONGEST_SWEEP, flow: 0, endpoint: 0 },
            ample: limit / 2,
            shortage_until: 0,
            ports_short_until: 0,
            ports: Ports::new(),
            pairs_shortage_until: 0,
            seen: 0,
            paused: VecDeque::new(),
            ending: None,
            closed_ports: Vec::with_capacity(MOST_CLOSED),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.flows.is_empty() && self.upstreams.is_empty()
    }

    /// Which endpoints and sockets came, went and came back.
    pub fn table_applied(&mut self, core: &mut Core) {
        let now = core.now;
        let table = core.tables.current();
        for endpoint in &mut self.endpoints {
            endpoint.gone_since.get_or_insert(now);
        }
        for backend in &table.backends {
            for endpoint in &backend.endpoints {
                let at = endpoint.id.index();
                if self.endpoints.len() <= at {
                    self.endpoints.resize(at + 1, ABSENT);
                }
                self.endpoints[at].rest = micros(backend.upstream_rest);
                self.endpoints[at].gone_since = None;
            }
        }
        self.pairs.table_applied(table);
        let sockets = table.sockets.iter().map(|socket| socket.id.index() + 1).max();
        if sockets.unwrap_or(0) > self.by_socket.len() {
            self.by_socket.resize(sockets.unwrap_or(0), 0);
        }
        let udp = |listener: &&Listener| {
            table.sockets[listener.socket].transport == Transport::Udp && listener.flow_timeout > 0
        };
        let shortest = table.listeners.iter().filter(udp).map(|listener| listener.flow_timeout);
        self.sweep.period = shortest
            .min()
            .map_or(LONGEST_SWEEP, |timeout| micros(timeout) / 4)
            .clamp(SWEEP_STEP, LONGEST_SWEEP);
        self.sweep.next = self.sweep.next.min(now + SWEEP_STEP);
        self.release_sockets(core);
    }

    /// Datagrams from a client: to its flow's endpoint, or the start of a flow.
    /// `payload` is what the buffer holds.
    pub fn on_client(&mut self, core: &mut Core, socket: SocketId, event: Event, payload: &[u8]) {
        let Event::Datagrams { buffer, peer: Some(peer), local, bytes, size, count, truncated } =
            event
        else {
            return;
        };
        let sender = Sender { peer, local, said: None };
        let batch = Batch { buffer, bytes, count, part: Part::default() };
        let mut is_proxy = false;
        if let Some((table, bound)) = core.tables.of(socket) {
            is_proxy = bound.accept_proxy.iter().any(|range| range.contains(&peer.ip()));
            if let Some(listener) = bound.listeners.any() {
                let counters = core.counters.listener(table.listeners[listener].id);
                counters.from_clients.add(u64::from(count));
            }
        }
        if truncated {
            dropped(core, socket, batch, DropReason::Truncated);
        } else if is_proxy {
            self.on_proxy(core, socket, &sender, (batch, size), payload);
        } else {
            self.take_in(core, socket, &sender, batch);
        }
    }

    /// Datagrams of a proxy: each has a header, and is a client's. Those in a row with the same
    /// header go on together.
    fn on_proxy(
        &mut self,
        core: &mut Core,
        socket: SocketId,
        sender: &Sender,
        (whole, size): (Batch, u32),
        payload: &[u8],
    ) {
        let datagram = |number: u32| {
            let start = (number * size) as usize;
            &payload[start.min(payload.len())..(start + size as usize).min(payload.len())]
        };
        let mut first = 0;
        while first < whole.count {
            let read = proxy_protocol::read_datagram(datagram(first));
            let strip = read.map_or(0, |(len, _)| len);
            let header = &datagram(first)[..strip];
            let count = match read {
                Ok(_) => (first..whole.count)
                    .take_while(|number| datagram(*number).starts_with(header))
                    .fold(0, |count, _| count + 1),
                Err(_) => 1,
            };
            let small = |number: u32| u16::try_from(number).expect("a train has 64 datagrams");
            let part = Part {
                first: small(first),
                count: small(count),
                strip: u16::try_from(strip).expect("a header has 16 KiB at the most"),
                head: (0, 0),
                more: first + count < whole.count,
            };
            let bytes: usize =
                (first..first + count).map(|number| datagram(number).len() - strip).sum();
            let bytes = u32::try_from(bytes).expect("a buffer has 64 KiB");
            let batch = Batch { buffer: whole.buffer, bytes, count, part };
            match read {
                Ok((_, said)) => self.take_in(core, socket, &Sender { said, ..*sender }, batch),
                Err(_) => dropped(core, socket, batch, DropReason::ProxyInvalid),
            }
            first += count;
        }
    }

    fn take_in(&mut self, core: &mut Core, socket: SocketId, sender: &Sender, batch: Batch) {
        let slot = self.flow_of(core, socket, sender).and_then(|slot| {
            self.route_again(core, slot)?;
            Ok(slot)
        });
        match slot {
            Ok(slot) => self.forward(core, slot, batch),
            Err(reason) => dropped(core, socket, batch, reason),
        }
    }

    pub fn on_upstream(&mut self, core: &mut Core, token: Token, event: Event) {
        let Some(upstream) = self.upstreams.get_mut(token.slot, token.generation) else {
            // A socket that is over still has to give back what it received.
            if let Event::Datagrams { buffer, .. } = event {
                core.push(token, Op::Recycle { buffer });
            }
            return;
        };
        if upstream.role == Role::Shared {
            return self.on_shared(core, token, event);
        }
        match event {
            Event::Datagrams { buffer, bytes, count, truncated, .. } => {
                let batch = Batch { buffer, bytes, count, part: Part::default() };
                self.forward_reply(core, token, token.slot, batch, truncated);
            }
            Event::Stopped { why } => {
                // What came since it stopped receiving has not been read yet.
                upstream.rests_since = core.now;
                let closing = upstream.closing;
                if why == Some(Why::Refused) {
                    self.refused(core, token.slot);
                }
                if !closing {
                    self.rearm(core, token, why);
                }
            }
            Event::SendFailed { why, count } => self.send_failed(core, token, why, count),
            Event::Fragmented { count } => {
                if let Some(flow) = self.flows.at(upstream.flow) {
                    core.counters.listener(flow.listener).fragmented.add(u64::from(count));
                }
            }
            Event::OpenFailed { why } => {
                let from = upstream.from;
                self.open_failed(core, from, why);
                self.unopened(core, token.slot, why);
            }
            Event::Closed => self.upstream_gone(core, token.slot),
            _ => {}
        }
    }

    fn on_shared(&mut self, core: &mut Core, token: Token, event: Event) {
        match event {
            Event::Datagrams { buffer, peer, local, bytes, count, truncated, .. } => {
                let pair = peer.zip(local).and_then(|(peer, local)| self.pairs.find(peer, local));
                match pair {
                    Some(pair) => {
                        let batch = Batch { buffer, bytes, count, part: Part::default() };
                        self.forward_reply(core, token, pair, batch, truncated);
                    }
                    None => {
                        core.counters.strangers.add(u64::from(count));
                        core.push(token, Op::Recycle { buffer });
                    }
                }
            }
            Event::Stopped { why } => {
                self.pairs.stopped(token.slot);
                if self.upstreams.at(token.slot).is_some_and(|socket| !socket.closing)
                    && !self.rearm(core, token, why)
                {
                    self.pairs.paused(token.slot);
                }
            }
            Event::OpenFailed { why } => {
                if let Some(from) = self.upstreams.at(token.slot).map(|socket| socket.from) {
                    self.open_failed(core, from, why);
                }
                for pair in self.pairs.failed(token.slot) {
                    self.unopened(core, pair, why);
                }
                self.upstream_gone(core, token.slot);
            }
            Event::Closed => self.upstream_gone(core, token.slot),
            _ => {}
        }
    }

    /// An upstream socket has stopped receiving: it goes on at once, which is true then, or after
    /// a pause.
    fn rearm(&mut self, core: &mut Core, token: Token, why: Option<Why>) -> bool {
        let at_once = why.is_none_or(Why::is_of_peer);
        if at_once {
            core.push(token, Op::Receive);
        } else {
            core.counters.receive_pauses.add(1);
            self.paused.push_back((core.now + RECEIVE_PAUSE, token));
        }
        at_once
    }

    /// The endpoint's port is closed, says ICMP to this socket: its flow has another with the next
    /// datagram.
    fn refused(&mut self, core: &Core, slot: u32) {
        let Some(upstream) = self.upstreams.at(slot) else { return };
        core.counters.endpoint(upstream.endpoint).refusals.add(1);
        self.endpoints[upstream.endpoint.index()].closed_until = core.now + CLOSED;
        if let Some(flow) = self.flows.at_mut(upstream.flow) {
            flow.refused = true;
        }
    }

    /// Of what this machine has too little, others may give up some.
    fn open_failed(&mut self, core: &Core, from: From, why: Why) {
        match why {
            Why::NoPorts => {
                self.ports_short_until = core.now + SHORTAGE;
                if self.ports.ran_out(from, core.now) {
                    core.counters.port_shortages.add(1);
                }
            }
            Why::NoFiles | Why::NoMemory => self.shortage_until = core.now + SHORTAGE,
            _ => {}
        }
    }

    /// Source ports are short until then, as other workers say; returns until when this one knows.
    pub fn share_shortage(&mut self, until: u64) -> u64 {
        self.ports_short_until = self.ports_short_until.max(until);
        self.ports_short_until
    }

    /// There is no socket for what an upstream slot has been given in this turn.
    fn unopened(&mut self, core: &mut Core, slot: u32, why: Why) {
        let Some(upstream) = self.upstreams.at_mut(slot) else { return };
        let (flow, sent) = (upstream.flow, u64::from(upstream.sent));
        upstream.closing = true;
        self.upstream_gone(core, slot);
        if let Some(unserved) = self.flows.at_mut(flow) {
            let counters = core.counters.listener(unserved.listener);
            counters.to_endpoints.sub(sent);
            counters.dropped[DropReason::NoSocket as usize].add(sent);
            if unserved.opened == core.now {
                let bytes = std::mem::take(&mut unserved.bytes_up);
                counters.bytes_up.sub(bytes);
                core.counters.endpoint(unserved.endpoint).bytes_up.sub(bytes);
            }
            self.end(core, flow, CloseReason::LocalLimit.because(Detail::why(why)));
        }
    }

    /// Replies that could not be sent to a client.
    pub fn reply_failed(&self, core: &Core, socket: SocketId, why: Why, count: u32) {
        let listener = listener_of(&core.tables, socket).map(|(_, listener)| listener.id);
        if let Some(listener) = listener {
            let counters = core.counters.listener(listener);
            counters.to_clients.sub(u64::from(count));
            counters.dropped[failed_send(why) as usize].add(u64::from(count));
        }
    }

    /// One step of the sweep: flows that have been silent too long, sockets that nobody needs.
    pub fn expire(&mut self, core: &mut Core) {
        self.seen = core.now;
        self.pairs.turn_over(core.now);
        self.receive_again(core);
        if self.is_empty() {
            return;
        }
        if core.tables.are_over() && self.flows.is_empty() {
            // Nobody can ask any more: nothing has to rest.
            self.close_some(core);
        }
        if core.now < self.sweep.next {
            return;
        }
        if let Some(reason) = self.ending {
            return self.end_some(core, reason);
        }
        let share = |high_water: u32, period: u64| {
            let steps = u32::try_from(period / SWEEP_STEP).unwrap_or(1).max(1);
            high_water.div_ceil(steps).min(MOST_LOOKS)
        };
        // Draining is a matter of seconds, whatever the timeouts, and so is a shortage.
        let crowded = self.is_crowded(core.now);
        let leaving = core.tables.leaving().next().is_some();
        let hurry = leaving || crowded || self.is_scarce(Role::Pair, core.now);
        let period = if hurry { self.sweep.period.min(1_000_000) } else { self.sweep.period };
        for _ in 0..share(self.flows.high_water(), period) {
            let slot = self.sweep.flow;
            self.sweep.flow = (slot + 1) % self.flows.high_water();
            if let Some(reason) = self.flows.at(slot).and_then(|flow| flow.over(core, crowded)) {
                self.end(core, slot, reason);
            }
        }
        let endpoints = u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX);
        for _ in 0..share(endpoints, period) {
            let endpoint = self.sweep.endpoint as usize;
            self.sweep.endpoint = (self.sweep.endpoint + 1) % endpoints;
            for _ in 0..MOST_CLOSES {
                let first = self.endpoints[endpoint].first;
                if !self.is_kept_too_long(core, endpoint, first) {
                    break;
                }
                self.close_first(core, endpoint);
            }
        }
        self.sweep.next = core.now + SWEEP_STEP;
    }

    pub fn next_sweep(&self) -> Option<u64> {
        let resumes = self.paused.front().map_or(u64::MAX, |(until, _)| *until);
        (!self.is_empty()).then_some(self.sweep.next.min(resumes))
    }

    /// Ends every flow and closes every upstream socket, some in each step: sessions that live on
    /// must not wait for tens of thousands of these.
    pub fn end_all(&mut self, now: u64, reason: CloseReason) {
        self.ending = Some(reason);
        self.sweep.next = now;
    }

    fn end_some(&mut self, core: &mut Core, reason: CloseReason) {
        let mut ends = 0;
        for _ in 0..self.flows.high_water().min(MOST_LOOKS) {
            let slot = self.sweep.flow;
            self.sweep.flow = (slot + 1) % self.flows.high_water();
            if self.flows.at(slot).is_some() {
                self.end(core, slot, reason);
                ends += 1;
                if ends == MOST_CLOSES {
                    break;
                }
            }
        }
        self.sweep.next = core.now + ENDING_STEP;
        if self.flows.is_empty() {
            self.close_some(core);
        }
    }

    /// Closes some of what rests, whether it has rested or not.
    fn close_some(&mut self, core: &mut Core) {
        let mut left = MOST_CLOSES;
        let endpoints = u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX);
        for _ in 0..endpoints {
            let endpoint = self.sweep.endpoint as usize;
            while self.endpoints[endpoint].first != NONE {
                if left == 0 {
                    self.sweep.next = core.now + ENDING_STEP;
                    return;
                }
                left -= 1;
                self.close_first(core, endpoint);
            }
            self.sweep.endpoint = (self.sweep.endpoint + 1) % endpoints;
        }
    }

    /// Sockets that stopped receiving for want of memory, or the like, try again.
    fn receive_again(&mut self, core: &mut Core) {
        while let Some((_, token)) = self.paused.pop_front_if(|(until, _)| *until <= core.now) {
            let Some(upstream) = self.upstreams.get_mut(token.slot, token.generation) else {
                continue;
            };
            if upstream.role == Role::Shared {
                self.pairs.resumed(token.slot);
            }
            if !upstream.closing {
                upstream.rests_since = core.now;
                core.push(token, Op::Receive);
            }
        }
    }

    /// Whether flows, or sockets for them, are nearly used up.
    fn is_crowded(&self, now: u64) -> bool {
        let room = self.flows.room().min(self.upstreams.room());
        room <= self.ample / 2 || now < self.shortage_until.max(self.ports_short_until)
    }

    /// The flow's slot; a new flow if there is none.
    fn flow_of(
        &mut self,
        core: &mut Core,
        socket: SocketId,
        sender: &Sender,
    ) -> Result<u32, DropReason> {
        let hash = self.hasher.hash_one((socket, sender.client(), sender.local));
        let flows = &self.flows;
        let found = self.index.find(hash, |slot| {
            flows.at(*slot).is_some_and(|flow| flow.socket == socket && flow.is_of(sender))
        });
        if let Some(slot) = found {
            return Ok(*slot);
        }
        if core.tables.is_leaving(socket) {
            return Err(DropReason::Draining);
        }
        let (_, listener) = listener_of(&core.tables, socket).ok_or(DropReason::NoRoute)?;
        let Sender { peer, local, said } = *sender;
        let mut flow = Flow {
            peer,
            local,
            socket,
            listener: listener.id,
            route: RouteId(u32::MAX),
            backend: BackendId(u32::MAX),
            endpoint: EndpointId(u32::MAX),
            upstream: NONE,
            timeout: listener.flow_timeout,
            responses: listener.responses,
            sent: 0,
            replies: 0,
            bytes_up: 0,
            bytes_down: 0,
            opened: core.now,
            last: core.now,
            refused: false,
            proxied: said.map(|_| Box::new(Proxied { said, ..Proxied::default() })),
        };
        if let Err(refusal) = self.begin(core, &mut flow) {
            let counters = core.counters.listener(flow.listener);
            counters.opened.add(1);
            counters.refused[refusal.reason as usize].add(1);
            let record = flow.record(core, Some(refusal.reason));
            core.log(SessionRecord { refused: true, ..record });
            return Err(refusal.drop);
        }
        let upstream = flow.upstream;
        let slot = self.insert(core, flow, hash);
        if let Some(upstream) = self.upstreams.at_mut(upstream) {
            upstream.flow = slot;
        }
        Ok(slot)
    }

    /// Chooses for a new flow, and gives it an upstream socket.
    fn begin(&mut self, core: &mut Core, flow: &mut Flow) -> Result<(), Refusal> {
        let Some((table, listener)) = listener_of(&core.tables, flow.socket) else {
            return Err(NO_ROUTE);
        };
        admits(listener.access.as_deref(), flow.client())?;
        if self.flows.is_full() {
            return Err(FLOW_LIMIT);
        }
        if listener.max_sessions > 0 && core.active[listener.id.index()] >= listener.max_sessions {
            return Err(LISTENER_LIMIT);
        }
        let ports = (&self.ports, core.now);
        let choice = choose(table, listener, &mut core.balancer, flow.client(), ports)?;
        (flow.route, flow.backend, flow.endpoint) = (choice.route, choice.backend, choice.endpoint);
        flow.upstream = self.upstream_for(core, &choice)?;
        flow.introduce(core, choice.send_proxy);
        Ok(())
    }

    fn insert(&mut self, core: &mut Core, flow: Flow, hash: u64) -> u32 {
        core.counters.listener(flow.listener).opened.add(1);
        core.counters.endpoint(flow.endpoint).opened.add(1);
        core.active[flow.listener.index()] += 1;
        core.balancer.opened(flow.endpoint);
        self.by_socket[flow.socket.index()] += 1;
        if core.tables.current().log_opens {
            let record = flow.record(core, None);
            core.records.push(Record::Opened(record));
        }
        let (slot, _) = self.flows.insert(flow).expect("begin() saw a free slot");
        let (flows, hasher) = (&self.flows, &self.hasher);
        self.index.insert_unique(hash, slot, |slot| match flows.at(*slot) {
            Some(flow) => hasher.hash_one((flow.socket, flow.client(), flow.local)),
            None => 0,
        });
        core.counters.flows.set(u64::from(self.flows.len()));
        slot
    }

    /// A flow whose endpoint left the table `lame_duck` ago gets another: a client that only sends
    /// would else feed a dead address for ever. So does one whose endpoint's port is closed.
    fn route_again(&mut self, core: &mut Core, slot: u32) -> Result<(), DropReason> {
        let Some(flow) = self.flows.at_mut(slot) else { return Ok(()) };
        if std::mem::take(&mut flow.refused) {
            self.leave_closed_port(core, slot);
        }
        let Some(flow) = self.flows.at(slot) else { return Ok(()) };
        let gone = self.endpoints[flow.endpoint.index()].gone_since;
        let lame_duck = micros(core.tables.current().lame_duck);
        if gone.is_none_or(|gone| core.now < gone + lame_duck)
            || core.tables.is_leaving(flow.socket)
        {
            return Ok(());
        }
        let Some((table, listener)) = listener_of(&core.tables, flow.socket) else {
            return Ok(());
        };
        let ports = (&self.ports, core.now);
        let choice = choose(table, listener, &mut core.balancer, flow.client(), ports);
        let upstream = choice.and_then(|choice| {
            let upstream = self.upstream_for(core, &choice)?;
            Ok((choice, upstream))
        });
        let (choice, upstream) = match upstream {
            Ok(found) => found,
            Err(refusal) => {
                self.end(core, slot, CloseReason::EndpointRemoved);
                return Err(refusal.drop);
            }
        };
        self.moves(core, slot, &choice, upstream);
        Ok(())
    }

    /// To another endpoint of the backend, if there is one that is not known to be closed too, and
    /// a socket. Else it stays where it is.
    fn leave_closed_port(&mut self, core: &mut Core, slot: u32) {
        let Some(flow) = self.flows.at(slot) else { return };
        let Some(backend) = core.tables.backend(flow.socket, flow.backend) else { return };
        let others = backend.endpoints.iter().map(|endpoint| endpoint.id).filter(|id| {
            *id != flow.endpoint && self.endpoints[id.index()].closed_until > core.now
        });
        self.closed_ports.push(flow.endpoint);
        self.closed_ports.extend(others.take(MOST_CLOSED - 1));
        let found = core.balancer.endpoint(backend, flow.client(), &self.closed_ports);
        self.closed_ports.clear();
        let open = |other: &Endpoint| self.endpoints[other.id.index()].closed_until <= core.now;
        let Some(endpoint) = found.filter(open) else { return };
        let client = flow.client();
        let ports = (&self.ports, core.now);
        let choice = Choice::new(flow.route, backend, endpoint, &mut core.balancer, client, ports);
        if let Ok(upstream) = self.upstream_for(core, &choice) {
            self.moves(core, slot, &choice, upstream);
        }
    }

    /// Gives a flow another endpoint; its socket rests.
    fn moves(&mut self, core: &mut Core, slot: u32, choice: &Choice, upstream: u32) {
        let flow = self.flows.at_mut(slot).expect("the caller found it");
        core.balancer.closed(flow.endpoint);
        core.counters.endpoint(flow.endpoint).closed.add(1);
        core.balancer.opened(choice.endpoint);
        core.counters.endpoint(choice.endpoint).opened.add(1);
        (flow.route, flow.backend, flow.endpoint) = (choice.route, choice.backend, choice.endpoint);
        flow.introduce(core, choice.send_proxy);
        let old = std::mem::replace(&mut flow.upstream, upstream);
        if let Some(upstream) = self.upstreams.at_mut(upstream) {
            upstream.flow = slot;
        }
        self.rest(core, old);
    }

    fn forward(&mut self, core: &mut Core, slot: u32, batch: Batch) {
        let flow = self.flows.at_mut(slot).expect("found or made just now");
        flow.last = core.now;
        flow.sent = flow.sent.saturating_add(batch.count);
        flow.bytes_up += u64::from(batch.bytes);
        let listener = core.counters.listener(flow.listener);
        listener.to_endpoints.add(u64::from(batch.count));
        listener.bytes_up.add(u64::from(batch.bytes));
        core.counters.endpoint(flow.endpoint).bytes_up.add(u64::from(batch.bytes));
        let (upstream, buffer, mut part) = (flow.upstream, batch.buffer, batch.part);
        if let Some(proxied) = &flow.proxied {
            part.head = proxied.say(&mut core.output);
        }
        let mut op = Op::SendUp { buffer, part };
        if let Some(used) = self.upstreams.at_mut(upstream) {
            used.sent = used.sent.saturating_add(batch.count);
            if used.role == Role::Pair {
                let Pair { endpoint: peer, local } = self.pairs.get(upstream);
                let via = self.pairs.socket(peer.is_ipv4()).expect("it is open while it has pairs");
                op = Op::SendVia { buffer, part, via, peer, local };
            }
        }
        core.push(self.upstream_token(upstream), op);
    }

    /// `token`: the socket that it came on; `slot`: the same, or the pair on that socket.
    fn forward_reply(
        &mut self,
        core: &mut Core,
        token: Token,
        slot: u32,
        batch: Batch,
        truncated: bool,
    ) {
        let upstream = self.upstreams.at(slot).expect("the caller found it");
        let Some(flow) = self.flows.at_mut(upstream.flow) else {
            // Which listener's it was is not known any more: the endpoint's count tells.
            core.counters.endpoint(upstream.endpoint).late_replies.add(u64::from(batch.count));
            return core.push(token, Op::Recycle { buffer: batch.buffer });
        };
        let listener = core.counters.listener(flow.listener);
        listener.from_endpoints.add(u64::from(batch.count));
        if truncated {
            listener.dropped[DropReason::Truncated as usize].add(u64::from(batch.count));
            return core.push(token, Op::Recycle { buffer: batch.buffer });
        }
        flow.last = core.now;
        flow.replies = flow.replies.saturating_add(batch.count);
        flow.bytes_down += u64::from(batch.bytes);
        listener.to_clients.add(u64::from(batch.count));
        listener.bytes_down.add(u64::from(batch.bytes));
        core.counters.endpoint(flow.endpoint).bytes_down.add(u64::from(batch.bytes));
        let op =
            Op::SendDown { buffer: batch.buffer, from: slot, peer: flow.peer, local: flow.local };
        core.push(Token::socket(flow.socket), op);
        // A client with two queries under way on one socket gets both answers: the count decides.
        if flow.responses > 0 && flow.replies >= flow.sent.saturating_mul(flow.responses) {
            let slot = upstream.flow;
            self.end(core, slot, CloseReason::FlowAnswered);
        }
    }

    fn send_failed(&mut self, core: &mut Core, token: Token, why: Why, count: u32) {
        if why == Why::Refused {
            self.refused(core, token.slot);
        }
        let upstream = self.upstreams.at(token.slot).expect("the caller found it");
        if let Some(flow) = self.flows.at(upstream.flow) {
            let counters = core.counters.listener(flow.listener);
            counters.to_endpoints.sub(u64::from(count));
            counters.dropped[failed_send(why) as usize].add(u64::from(count));
        }
    }

    /// A socket towards the endpoint, or a pair: one that has rested long enough, or a new one.
    fn upstream_for(&mut self, core: &mut Core, choice: &Choice) -> Result<u32, Refusal> {
        let role = choice.role;
        for _ in 0..MOST_CLOSES {
            let first = self.endpoints[choice.endpoint.index()].first;
            if !self.has_rested(first) {
                break;
            }
            if self.is_wanted(first, choice) {
                self.unqueue_first(core, choice.endpoint.index());
                return Ok(first);
            }
            self.close_first(core, choice.endpoint.index());
        }
        match role {
            Role::Pair => self.new_pair(core, choice),
            Role::Socket | Role::Own | Role::Shared => self.new_socket(core, choice),
        }
    }

    fn new_socket(&mut self, core: &mut Core, choice: &Choice) -> Result<u32, Refusal> {
        let from = From { origin: choice.source, ipv4: choice.address.is_ipv4() };
        if !self.ports.may_ask(from, core.now) {
            return Err(NO_SOCKET);
        }
        let upstream = Upstream::new(choice.endpoint, choice.role, from);
        let Some((slot, generation)) = self.upstreams.insert(upstream) else {
            self.shortage_until = core.now + SHORTAGE;
            return Err(NO_SOCKET);
        };
        self.count_upstreams(core);
        let token = Token { kind: Kind::Upstream, slot, generation };
        core.push(token, Op::Open { address: choice.address, source: choice.source });
        core.push(token, Op::Receive);
        Ok(slot)
    }

    fn new_pair(&mut self, core: &mut Core, choice: &Choice) -> Result<u32, Refusal> {
        let (id, address) = (choice.endpoint, choice.address);
        let ipv4 = address.is_ipv4();
        let is_open = self.pairs.socket(ipv4).is_some();
        if self.upstreams.room() < 1 + u32::from(!is_open) {
            self.shortage_until = core.now + SHORTAGE;
            return Err(NO_SOCKET);
        }
        let from = From { origin: Origin::Any, ipv4 };
        if !is_open && !self.ports.may_ask(from, core.now) {
            return Err(NO_SOCKET);
        }
        let Some(local) = self.pairs.take(id, address) else {
            self.pairs_shortage_until = core.now + SHORTAGE;
            return Err(NO_SOURCE);
        };
        if !is_open {
            let socket = Upstream::new(EndpointId(u32::MAX), Role::Shared, from);
            let (slot, generation) = self.upstreams.insert(socket).expect("there is room for two");
            self.pairs.opened(ipv4, slot);
            let token = Token { kind: Kind::Upstream, slot, generation };
            core.push(token, Op::OpenShared { ipv4 });
            core.push(token, Op::Receive);
        }
        let pair = Upstream::new(id, Role::Pair, from);
        let (slot, _) = self.upstreams.insert(pair).expect("there is room");
        self.pairs.insert(slot, Pair { endpoint: address, local });
        self.count_upstreams(core);
        Ok(slot)
    }

    /// Whether it has rested so long that what was late for its last flow has come and was read.
    fn has_rested(&self, slot: u32) -> bool {
        self.upstreams.at(slot).is_some_and(|upstream| {
            let rest = self.endpoints[upstream.endpoint.index()].rest;
            let seen = match upstream.role {
                Role::Pair => self.pairs.read_until(slot),
                Role::Socket | Role::Own | Role::Shared => self.seen,
            };
            seen >= upstream.rests_since + rest
        })
    }

    /// Whether it is of the kind that the table asks for, which may have been another before.
    fn is_wanted(&self, slot: u32, choice: &Choice) -> bool {
        match self.upstreams.at(slot).map(|upstream| upstream.role) {
            Some(Role::Pair) => {
                choice.role == Role::Pair && self.pairs.is_in_pool(slot, choice.endpoint)
            }
            Some(Role::Own) => false,
            role => role == Some(choice.role),
        }
    }

    /// Whether nobody will want it any more, at least not soon. It has rested in any case: the next
    /// flow may have its port or address as soon as it is closed.
    fn is_kept_too_long(&self, core: &Core, endpoint: usize, slot: u32) -> bool {
        let Some(upstream) = self.upstreams.at(slot) else { return false };
        let EndpointState { rest, gone_since, .. } = self.endpoints[endpoint];
        let unwanted = gone_since.is_some()
            || upstream.role == Role::Own
            || self.is_scarce(upstream.role, core.now);
        self.has_rested(slot) && (unwanted || core.now >= upstream.rests_since + rest + KEEP)
    }

    fn is_scarce(&self, role: Role, now: u64) -> bool {
        self.upstreams.len() > self.ample
            || now < self.shortage_until.max(self.ports_short_until)
            || (role == Role::Pair && now < self.pairs_shortage_until)
    }

    fn end(&mut self, core: &mut Core, slot: u32, cause: impl Into<Cause>) {
        let Cause { reason, detail } = cause.into();
        let Some(flow) = self.flows.remove(slot) else { return };
        let hash = self.hasher.hash_one((flow.socket, flow.client(), flow.local));
        if let Ok(entry) = self.index.find_entry(hash, |other| *other == slot) {
            entry.remove();
        }
        core.counters.flows.set(u64::from(self.flows.len()));
        core.active[flow.listener.index()] -= 1;
        core.balancer.closed(flow.endpoint);
        core.counters.endpoint(flow.endpoint).closed.add(1);
        let counters = core.counters.listener(flow.listener);
        // One that never got its socket was refused.
        let refused = reason == CloseReason::LocalLimit && flow.opened == core.now;
        let ended = if refused { &counters.refused } else { &counters.closed };
        ended[reason as usize].add(1);
        if !refused {
            counters.duration.record(core.now - flow.opened);
        }
        self.by_socket[flow.socket.index()] -= 1;
        self.rest(core, flow.upstream);
        let record = SessionRecord { refused, detail, ..flow.record(core, Some(reason)) };
        core.log(record);
        if self.by_socket[flow.socket.index()] == 0 && core.tables.close(flow.socket) {
            core.unlisten(flow.socket);
        }
    }

    /// The socket's flow is over: it rests, even if nobody will want it. Closed at once, its port
    /// might be the next socket's, and a late reply the next client's.
    fn rest(&mut self, core: &mut Core, slot: u32) {
        let Some(upstream) = self.upstreams.at_mut(slot) else { return };
        upstream.flow = NONE;
        let state = &mut self.endpoints[upstream.endpoint.index()];
        if upstream.closing {
            return;
        }
        upstream.sent = 0;
        upstream.rests_since = core.now;
        upstream.next = NONE;
        let last = std::mem::replace(&mut state.last, slot);
        match last {
            NONE => state.first = slot,
            _ => self.upstreams.at_mut(last).expect("it rests").next = slot,
        }
        if self.upstreams.at(slot).is_some_and(|upstream| upstream.role != Role::Pair) {
            core.counters.upstreams_resting.add(1);
        }
    }

    /// Takes what rests longest off the endpoint's list.
    fn unqueue_first(&mut self, core: &Core, endpoint: usize) {
        let state = &mut self.endpoints[endpoint];
        let upstream = self.upstreams.at_mut(state.first).expect("the list has a first");
        state.first = std::mem::replace(&mut upstream.next, NONE);
        if state.first == NONE {
            state.last = NONE;
        }
        if upstream.role != Role::Pair {
            core.counters.upstreams_resting.sub(1);
        }
    }

    /// Closes what rests longest of the endpoint's.
    fn close_first(&mut self, core: &mut Core, endpoint: usize) {
        let slot = self.endpoints[endpoint].first;
        self.unqueue_first(core, endpoint);
        let upstream = self.upstreams.at_mut(slot).expect("it was in the list");
        match upstream.role {
            Role::Pair => self.upstream_gone(core, slot),
            Role::Socket | Role::Own | Role::Shared => self.close_socket(core, slot),
        }
    }

    fn close_socket(&mut self, core: &mut Core, slot: u32) {
        if let Some(socket) = self.upstreams.at_mut(slot) {
            socket.closing = true;
        }
        core.push(self.upstream_token(slot), Op::CloseUpstream);
    }

    fn upstream_gone(&mut self, core: &mut Core, slot: u32) {
        if let Some(Upstream { role: Role::Pair, endpoint, .. }) = self.upstreams.remove(slot)
            && let Some(unused) = self.pairs.remove(slot, endpoint)
        {
            self.close_socket(core, unused);
        }
        self.count_upstreams(core);
    }

    fn count_upstreams(&self, core: &Core) {
        let pairs = self.pairs.len() as u64;
        core.counters.pairs.set(pairs);
        core.counters.upstreams.set(u64::from(self.upstreams.len()) - pairs);
    }

    /// Leaving sockets without flows are closed.
    fn release_sockets(&self, core: &mut Core) {
        let idle: Vec<SocketId> = core
            .tables
            .leaving()
            .filter(|id| core.tables.transport(*id) == Some(Transport::Udp))
            .filter(|id| self.by_socket.get(id.index()).is_none_or(|flows| *flows == 0))
            .collect();
        for id in idle {
            if core.tables.close(id) {
                core.unlisten(id);
            }
        }
    }

    fn upstream_token(&self, slot: u32) -> Token {
        Token { kind: Kind::Upstream, slot, generation: self.upstreams.generation(slot) }
    }
}

impl Sender {
    fn client(&self) -> SocketAddr {
        self.said.as_ref().map_or(self.peer, |said| said.source)
    }
}

impl Proxied {
    /// Puts the header into the turn's output: where it starts, and its length.
    fn say(&self, output: &mut Vec<u8>) -> (u32, u16) {
        let start = u32::try_from(output.len()).expect("a turn's output is bounded");
        output.extend_from_slice(&self.header);
        (start, u16::try_from(self.header.len()).expect("a header without a name is short"))
    }
}

impl Flow {
    fn is_of(&self, sender: &Sender) -> bool {
        self.peer == sender.peer
            && self.local == sender.local
            && self.said().map(|said| said.source) == sender.said.as_ref().map(|said| said.source)
    }

    fn said(&self) -> Option<&Addresses> {
        self.proxied.as_ref()?.said.as_ref()
    }

    fn client(&self) -> SocketAddr {
        self.said().map_or(self.peer, |said| said.source)
    }

    /// Makes the header with which its datagrams to the endpoint begin, if that is to be told.
    fn introduce(&mut self, core: &mut Core, asked: Option<SendProxy>) {
        if asked.is_none() && self.proxied.is_none() {
            return;
        }
        let destination = self.said().map_or_else(|| self.bound(core), |said| said.destination);
        let addresses = Addresses { source: self.client(), destination };
        let proxied = self.proxied.get_or_insert_default();
        proxied.header.clear();
        let Some(SendProxy { version, unique_id, crc32c }) = asked else { return };
        let unique_id =
            unique_id.then(|| *proxied.unique_id.get_or_insert_with(|| core.ids.next()));
        let header = Outgoing {
            transport: Transport::Udp,
            addresses,
            authority: None,
            alpn: None,
            tls: None,
            unique_id,
            crc32c,
        };
        proxy_protocol::write(version, &header, &mut proxied.header);
    }

    /// The address that its client, or the proxy before it, has sent to.
    fn bound(&self, core: &Core) -> SocketAddr {
        let bound = core.tables.of(self.socket).map(|(_, socket)| socket.address);
        let bound = bound.unwrap_or_else(|| SocketAddr::new([0, 0, 0, 0].into(), 0));
        self.local.map_or(bound, |ip| SocketAddr::new(ip, bound.port()))
    }

    /// Why it is over, if it is. `crowded`: flows are nearly used up.
    fn over(&self, core: &Core, crowded: bool) -> Option<CloseReason> {
        let silent = core.now - self.last;
        // A listener that left the table keeps its flows as long as they are in use.
        if core.tables.is_leaving(self.socket) && silent >= micros(core.tables.current().lame_duck)
        {
            return Some(CloseReason::Drained);
        }
        if self.timeout > 0 && silent >= micros(self.timeout) {
            return Some(CloseReason::FlowTimeout);
        }
        let in_the_way = self.replies == 0
            && silent >= UNANSWERED
            && (crowded || self.has_crowded_listener(core));
        in_the_way.then_some(CloseReason::FlowUnanswered)
    }

    fn has_crowded_listener(&self, core: &Core) -> bool {
        let Some((_, listener)) = listener_of(&core.tables, self.socket) else { return false };
        let (most, active) = (listener.max_sessions, core.active[listener.id.index()]);
        most > 0 && active > most - most.div_ceil(4)
    }

    fn record(&self, core: &Core, reason: Option<CloseReason>) -> SessionRecord {
        let known = |id: u32| id != u32::MAX;
        let (client, local) = (self.client(), self.bound(core));
        SessionRecord {
            peer: self.said().map(|_| self.peer),
            unique_id: self.proxied.as_ref().and_then(|proxied| proxied.unique_id),
            listener: Some(self.listener),
            route: known(self.route.0).then_some(self.route),
            backend: known(self.backend.0).then_some(self.backend),
            endpoint: known(self.endpoint.0).then_some(self.endpoint),
            bytes_up: self.bytes_up,
            bytes_down: self.bytes_down,
            reason,
            ..SessionRecord::new(Protocol::Udp, self.socket, (client, local), self.opened, core.now)
        }
    }
}

/// Why there is no flow: for the log, and for the count of datagrams.
#[derive(Clone, Copy)]
struct Refusal {
    reason: CloseReason,
    drop: DropReason,
}

const NO_ROUTE: Refusal = Refusal { reason: CloseReason::NoRoute, drop: DropReason::NoRoute };
const SOURCE_DENIED: Refusal =
    Refusal { reason: CloseReason::SourceDenied, drop: DropReason::SourceDenied };
const NO_BACKEND: Refusal = Refusal { reason: CloseReason::NoBackend, drop: DropReason::NoRoute };
const NO_ENDPOINT: Refusal =
    Refusal { reason: CloseReason::NoEndpoint, drop: DropReason::NoEndpoint };
const FLOW_LIMIT: Refusal =
    Refusal { reason: CloseReason::SessionLimit, drop: DropReason::FlowLimit };
const LISTENER_LIMIT: Refusal =
    Refusal { reason: CloseReason::ListenerLimit, drop: DropReason::FlowLimit };
const NO_SOURCE: Refusal = Refusal { reason: CloseReason::LocalLimit, drop: DropReason::NoSource };
const NO_SOCKET: Refusal = Refusal { reason: CloseReason::LocalLimit, drop: DropReason::NoSocket };

/// A UDP socket has one listener.
fn listener_of(tables: &Tables, socket: SocketId) -> Option<(&RoutingTable, &Listener)> {
    let (table, socket) = tables.of(socket)?;
    Some((table, &table.listeners[socket.listeners.any()?]))
}

/// A batch of a client's that goes no further.
fn dropped(core: &mut Core, socket: SocketId, batch: Batch, reason: DropReason) {
    let listener = listener_of(&core.tables, socket).map(|(_, listener)| listener.id);
    if let Some(listener) = listener {
        let dropped = &core.counters.listener(listener).dropped;
        dropped[reason as usize].add(u64::from(batch.count));
    }
    if !batch.part.more {
        core.push(Token::socket(socket), Op::Recycle { buffer: batch.buffer });
    }
}

fn admits(access: Option<&Access>, client: SocketAddr) -> Result<(), Refusal> {
    match access {
        Some(access) if !access.admits(client.ip()) => Err(SOURCE_DENIED),
        _ => Ok(()),
    }
}

struct Choice {
    route: RouteId,
    backend: BackendId,
    endpoint: EndpointId,
    address: SocketAddr,
    source: Origin,
    role: Role,
    send_proxy: Option<SendProxy>,
}

fn choose(
    table: &RoutingTable,
    listener: &Listener,
    balancer: &mut Balancer,
    client: SocketAddr,
    ports: (&Ports, u64),
) -> Result<Choice, Refusal> {
    let found = listener.routes.any().ok_or(NO_ROUTE)?;
    let route = &table.routes[listener.route(found, client.ip()).ok_or(NO_ROUTE)?];
    admits(route.access.as_deref(), client)?;
    let backend = &table.backends[balancer.backend(route).ok_or(NO_BACKEND)?];
    let endpoint = balancer.endpoint(backend, client, &[]).ok_or(NO_ENDPOINT)?;
    Ok(Choice::new(route.id, backend, endpoint, balancer, client, ports))
}

impl Choice {
    fn new(
        route: RouteId,
        backend: &Backend,
        endpoint: Endpoint,
        balancer: &mut Balancer,
        client: SocketAddr,
        ports: (&Ports, u64),
    ) -> Self {
        Self {
            route,
            backend: backend.id,
            endpoint: endpoint.id,
            address: endpoint.address,
            source: match backend.shared_sockets {
                true => Origin::Any,
                false => some_origin(backend, endpoint.address, balancer, client, ports),
            },
            role: match backend {
                Backend { shared_sockets: true, .. } => Role::Pair,
                Backend { transparent: true, .. } => Role::Own,
                _ => Role::Socket,
            },
            send_proxy: backend.send_proxy,
        }
    }
}

/// The address whose turn it is, or one that comes after it if that has no port.
fn some_origin(
    backend: &Backend,
    endpoint: SocketAddr,
    balancer: &mut Balancer,
    client: SocketAddr,
    (ports, now): (&Ports, u64),
) -> Origin {
    let ipv4 = endpoint.is_ipv4();
    let mut origin = balancer.origin(backend, endpoint, client);
    for _ in 0..MOST_ORIGINS {
        let is_local = matches!(origin, Origin::Local(_));
        if !is_local || ports.may_ask(From { origin, ipv4 }, now) {
            break;
        }
        origin = balancer.origin(backend, endpoint, client);
    }
    origin
}

/// Addresses that are passed over for one flow.
const MOST_ORIGINS: u32 = 8;

fn failed_send(why: Why) -> DropReason {
    match why {
        Why::Refused => DropReason::EndpointRefused,
        Why::Blocked => DropReason::Blocked,
        Why::TooBig => DropReason::TooBig,
        Why::BadSource => DropReason::BadSource,
        _ => DropReason::SendFailed,
    }
}
