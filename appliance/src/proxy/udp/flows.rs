//! Keeps the UDP flows. A flow is one client's exchange with one endpoint. Each flow has an
//! upstream socket of its own, or a local address of its own on a shared socket
//! (`shared_sockets.rs`).
//!
//! An upstream socket outlives its flow: the socket rests, still connected and receiving. When it
//! has rested so long that no late reply can reach the wrong client, it serves the next flow to
//! that endpoint. A pair of endpoint and local address rests in the same way. A sweep ends expired
//! flows, and looks at a part of the flows at a time. No flow has a timer of its own.

use std::collections::VecDeque;

use config_sync::table::request::{Handle, Of};
use config_sync::table::routing::{
    BackendId, DnsGuard, EndpointId, Listener, Protocol, RouteId, Socket, SocketId, Transport,
};
use config_sync::table::source_limit::OverLimit;
use hashbrown::HashTable;

use crate::contract::{Event, Op, Part, SHARED_SOCKETS, Token, Why};
use crate::proxy::cause::Cause;
use crate::proxy::core::{Core, RECEIVE_PAUSE, micros};
use crate::proxy::held::{Held, Scope};
use crate::proxy::slab::{NONE, Slab};
use crate::proxy::udp::choose::{
    FLOW_LIMIT, LISTENER_LIMIT, NO_ROUTE, OVERLOAD, PROXY_MISSING, Refusal, SOURCE_LIMIT, admits,
    choose, enter, enter_source, route,
};
use crate::proxy::udp::dns_guard::datagram;
use crate::proxy::udp::flow::{Batch, Flow, FlowHeader, Promotion, Sender, Whose, listener_of};
use crate::proxy::udp::forward::dropped;
use crate::proxy::udp::newcomers::Newcomers;
use crate::proxy::udp::ports::Ports;
use crate::proxy::udp::shared_sockets::Pairs;
use crate::proxy::udp::state::{ABSENT, CLOSED, Flows, Halt, MOST_CLOSED, Promoted, Role, Sweep};
use crate::proxy::udp::sweep::{LONGEST_SWEEP, SWEEP_STEP};
use crate::stats::records::{CloseReason, Demotion, DropReason, Record, SessionRecord};
use crate::wire::proxy_header::read::read_datagram;

/// The route of a flow that has none yet.
const NOT_CHOSEN: RouteId = RouteId(u32::MAX);

impl Flows {
    pub fn new(limit: u32, seed: u64) -> Self {
        Self {
            // Twice the limit: a table that is at most half full never has to grow.
            index: HashTable::with_capacity(limit as usize * 2),
            hasher: ahash::RandomState::with_seeds(seed, !seed, seed << 1, seed >> 1),
            flows: Slab::new(limit),
            upstreams: Slab::new(limit.saturating_add(SHARED_SOCKETS)),
            pairs: Pairs::new(limit.saturating_add(SHARED_SOCKETS), seed),
            promoted: Promoted::default(),
            endpoints: Vec::new(),
            by_socket: Vec::new(),
            sweep: Sweep { next: 0, period: LONGEST_SWEEP, flow: 0, endpoint: 0 },
            ample: limit / 2,
            shortage_until: 0,
            ports_short_until: 0,
            ports: Ports::new(),
            pairs_shortage_until: 0,
            seen: 0,
            newcomers: Newcomers::unbounded(),
            slipped: 0,
            paused: VecDeque::new(),
            only: None,
            ending: None,
            closed_ports: Vec::with_capacity(MOST_CLOSED),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.flows.is_empty() && self.upstreams.is_empty()
    }

    /// Takes over which endpoints and sockets came, left and came back.
    pub fn table_applied(&mut self, core: &mut Core) {
        let now = core.now;
        let table = core.tables.current();
        let mut left = Vec::new();
        for endpoint in &mut self.endpoints {
            endpoint.gone_since.get_or_insert(now);
        }
        for backend in &table.backends {
            for endpoint in &backend.endpoints {
                let at = endpoint.id.index();
                if self.endpoints.len() <= at {
                    self.endpoints.resize(at + 1, ABSENT);
                }
                let state = &mut self.endpoints[at];
                state.rest = micros(backend.upstream_rest);
                state.gone_since = None;
                if std::mem::replace(&mut state.interface, backend.interface) != backend.interface {
                    left.push(endpoint.id);
                }
            }
        }
        self.leave_interfaces(&left);
        self.pairs.table_applied(table);
        self.prepare_promotions(table);
        let sockets = table.sockets.iter().map(|socket| socket.id.index() + 1).max();
        if sockets.unwrap_or(0) > self.by_socket.len() {
            self.by_socket.resize(sockets.unwrap_or(0), 0);
        }
        let udp =
            |listener: &&Listener| listener.protocol == Protocol::Udp && listener.flow_timeout > 0;
        let shortest = table.listeners.iter().filter(udp).map(|listener| listener.flow_timeout);
        self.sweep.period = shortest
            .min()
            .map_or(LONGEST_SWEEP, |timeout| micros(timeout) / 4)
            .clamp(SWEEP_STEP, LONGEST_SWEEP);
        self.sweep.next = self.sweep.next.min(now + SWEEP_STEP);
        self.look_at_promoted(core);
        self.release_sockets(core);
    }

    /// Sends datagrams from a client to the endpoint of their flow, or begins a flow. `payload`
    /// holds the bytes of the buffer.
    pub fn on_client(&mut self, core: &mut Core, socket: SocketId, event: Event, payload: &[u8]) {
        let Event::Datagrams { buffer, peer: Some(peer), local, bytes, size, count, truncated } =
            event
        else {
            return;
        };
        let sender = Sender { peer, local, said: None };
        let batch = Batch { buffer, bytes, count, part: Part::default() };
        let (mut is_proxy, mut guard) = (false, None);
        if let Some((table, bound)) = core.tables.of(socket) {
            is_proxy = bound.accept_proxy.expects_header(peer.ip());
            if let Some(listener) = bound.listeners.any() {
                let listener = &table.listeners[listener];
                guard = listener.dns_guard;
                core.counters.listener(listener.id).from_clients.add(u64::from(count));
            }
        }
        if truncated {
            dropped(core, socket, batch, DropReason::Truncated);
        } else if is_proxy {
            self.on_proxy(core, (socket, guard), &sender, (batch, size), payload);
        } else if let Some(guard) = guard {
            self.take_in_queries(core, (socket, guard), &sender, batch, (size, payload));
        } else {
            self.take_in(core, socket, &sender, batch);
        }
    }

    /// Handles datagrams of a proxy. Each datagram has a header that names a client. Consecutive
    /// datagrams with equal headers go on together.
    pub fn on_proxy(
        &mut self,
        core: &mut Core,
        (socket, guard): (SocketId, Option<DnsGuard>),
        sender: &Sender,
        (whole, size): (Batch, u32),
        payload: &[u8],
    ) {
        let datagram = |number| datagram(payload, size, number);
        let mut first = 0;
        while first < whole.count {
            let read = read_datagram(datagram(first));
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
                Ok((_, said)) => {
                    let sender = Sender { said, ..*sender };
                    match guard {
                        None => self.take_in(core, socket, &sender, batch),
                        Some(guard) => {
                            let (at, bytes) = ((socket, guard), (size, payload));
                            self.take_in_queries(core, at, &sender, batch, bytes);
                        }
                    }
                }
                Err(_) => dropped(core, socket, batch, DropReason::ProxyInvalid),
            }
            first += count;
        }
    }

    pub fn take_in(&mut self, core: &mut Core, socket: SocketId, sender: &Sender, batch: Batch) {
        match self.admit(core, socket, sender, (batch.count, batch.bytes)) {
            Ok(slot) => self.forward(core, slot, batch),
            Err(reason) => dropped(core, socket, batch, reason),
        }
    }

    /// The slot of the flow of a client that may send so many datagrams and bytes.
    #[inline(always)]
    pub fn admit(
        &mut self,
        core: &mut Core,
        socket: SocketId,
        sender: &Sender,
        sent: (u32, u32),
    ) -> Result<u32, DropReason> {
        let slot = self.flow_of(core, socket, sender)?;
        if let Some(flow) = self.flows.at_mut(slot) {
            debug_assert!(!flow.is_shared(), "no client is heard while flows are on their way");
            // A client whose datagrams a limit drops is not silent.
            flow.may_send(core, sent).inspect_err(|_| flow.last = core.now)?;
        }
        self.route_again(core, slot)?;
        Ok(slot)
    }

    pub fn on_upstream(&mut self, core: &mut Core, token: Token, event: Event) {
        let Some(upstream) = self.upstreams.get_mut(token.slot, token.generation) else {
            // A socket that is over still has to give back the buffers that it received.
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
                // Datagrams that came since the socket stopped receiving have not been read yet.
                upstream.rests_since = core.now;
                let closing = upstream.closing;
                if why == Some(Why::Refused) {
                    self.refused(core, token.slot);
                }
                if !closing && !self.has_halted(core, token, why) {
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
            Event::Promoted { .. } | Event::Carried(_) | Event::Demoted(_) => {
                self.on_kernel(core, token, event);
            }
            _ => {}
        }
    }

    pub fn on_shared(&mut self, core: &mut Core, token: Token, event: Event) {
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

    /// An upstream socket has stopped receiving. Returns true if the socket goes on at once, and
    /// false if it goes on after a pause.
    pub fn rearm(&mut self, core: &mut Core, token: Token, why: Option<Why>) -> bool {
        let at_once = why.is_none_or(Why::is_of_peer);
        if at_once {
            core.push(token, Op::Receive);
        } else {
            core.counters.receive_pauses.add(1);
            self.paused.push_back((core.now + RECEIVE_PAUSE, token));
        }
        at_once
    }

    /// ICMP has told this socket that the endpoint's port is closed. The next datagram moves the
    /// flow to another endpoint.
    pub fn refused(&mut self, core: &mut Core, slot: u32) {
        let Some(upstream) = self.upstreams.at(slot) else { return };
        let counters = core.counters.endpoint(upstream.endpoint);
        counters.refusals.add(1);
        counters.failures.add(1);
        self.endpoints[upstream.endpoint.index()].closed_until = core.now + CLOSED;
        let slot = upstream.flow;
        if let Some(flow) = self.flows.at_mut(slot) {
            flow.refused = true;
            self.demote(core, slot, Demotion::EndpointRefused);
        }
    }

    /// Resumes sockets that stopped receiving for lack of memory or for a like reason.
    pub fn receive_again(&mut self, core: &mut Core) {
        while let Some((_, token)) = self.paused.pop_front_if(|(until, _)| *until <= core.now) {
            let Some(upstream) = self.upstreams.get_mut(token.slot, token.generation) else {
                continue;
            };
            if upstream.role == Role::Shared {
                self.pairs.resumed(token.slot);
            }
            if !upstream.closing && upstream.halt == Halt::No {
                upstream.rests_since = core.now;
                core.push(token, Op::Receive);
            }
        }
    }

    /// Whether flows, or sockets for flows, are nearly used up.
    pub fn is_crowded(&self, now: u64) -> bool {
        let room = self.flows.room().min(self.upstreams.room());
        room <= self.ample / 2 || now < self.shortage_until.max(self.ports_short_until)
    }

    /// Returns the flow's slot, and makes a new flow if there is none.
    pub fn flow_of(
        &mut self,
        core: &mut Core,
        socket: SocketId,
        sender: &Sender,
    ) -> Result<u32, DropReason> {
        let hash = self.hasher.hash_one((socket, sender.client(), sender.local));
        if let Some(slot) = self.found(socket, sender, hash) {
            return Ok(slot);
        }
        // What the other process would have received, had this datagram come a moment later, gets a
        // flow here.
        if core.tables.is_leaving(socket) && !core.tables.still_receives(socket) {
            return Err(DropReason::Draining);
        }
        // Resting sockets are closed before their time now, and a new flow might get such a port.
        if self.ending.is_some() || self.is_misplaced(core, sender) {
            return Err(DropReason::Draining);
        }
        let (_, listener) = listener_of(&core.tables, socket).ok_or(DropReason::NoRoute)?;
        let Sender { peer, local, said } = *sender;
        let mut flow = Flow {
            peer,
            local,
            socket,
            listener: listener.id,
            route: NOT_CHOSEN,
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
            whose: Whose::Ours,
            promotion: Promotion::Never,
            proxied: said.map(|_| Box::new(FlowHeader { said, ..FlowHeader::default() })),
            source: None,
            held: Held::default(),
        };
        if let Err(refusal) = self.begin(core, &mut flow) {
            core.leave_source(flow.source);
            let counters = core.counters.listener(flow.listener);
            counters.opened.add(1);
            counters.refused[refusal.reason as usize].add(1);
            if flow.route != NOT_CHOSEN {
                let counters = core.counters.route(flow.route);
                counters.opened.add(1);
                counters.ended(true, (0, 0));
            }
            core.log_refusal(refusal.reason, |core| flow.record(core, Some(refusal.reason)));
            return Err(refusal.drop);
        }
        let upstream = flow.upstream;
        let slot = self.insert(core, flow, hash);
        if let Some(upstream) = self.upstreams.at_mut(upstream) {
            upstream.flow = slot;
        }
        Ok(slot)
    }

    /// The slot of a sender's flow.
    #[inline]
    pub fn found(&self, socket: SocketId, sender: &Sender, hash: u64) -> Option<u32> {
        let flows = &self.flows;
        let found = self.index.find(hash, |slot| {
            flows.at(*slot).is_some_and(|flow| flow.socket == socket && flow.is_of(sender))
        });
        found.copied()
    }

    /// Chooses an endpoint for a new flow, and gives the flow an upstream socket.
    pub fn begin(&mut self, core: &mut Core, flow: &mut Flow) -> Result<(), Refusal> {
        let Some((_, listener)) = listener_of(&core.tables, flow.socket) else {
            return Err(NO_ROUTE);
        };
        let bars = |(_, socket): (_, &Socket)| !socket.accept_proxy.admits(flow.peer.ip());
        if core.tables.of(flow.socket).is_some_and(bars) {
            return Err(PROXY_MISSING);
        }
        admits(listener.access.as_deref(), flow.client())?;
        if core.counters.overloaded.get() > 0 {
            return Err(OVERLOAD);
        }
        if self.flows.is_full() {
            core.counters.flow_shortages.add(1);
            return Err(FLOW_LIMIT);
        }
        if !core.places.enter(listener) {
            return Err(LISTENER_LIMIT);
        }
        let found = self.find_way(core, flow);
        if found.is_err() {
            core.places.leave(flow.listener);
        }
        found
    }

    /// Chooses an endpoint for a flow that has a place with its listener.
    fn find_way(&mut self, core: &mut Core, flow: &mut Flow) -> Result<(), Refusal> {
        let Some((table, listener)) = listener_of(&core.tables, flow.socket) else {
            return Err(NO_ROUTE);
        };
        if let Some(limit) = &listener.limit_source {
            let entered = limit.enter(flow.client().ip(), core.unix_micros());
            flow.source = entered.map_err(|OverLimit| SOURCE_LIMIT)?;
        }
        let now = core.unix_micros();
        enter(&mut flow.held, Scope::Process, table.total.as_deref(), now)?;
        enter(&mut flow.held, Scope::Listener, listener.limit.as_deref(), now)?;
        let ports = (&self.ports, core.now);
        let client = (flow.client(), flow.bound(core).port());
        let route = route(table, listener, flow.client())?;
        flow.route = route.id;
        admits(route.access.as_deref(), flow.client())?;
        enter_source(&mut flow.held, route.limit_source.as_deref(), client.0, now)?;
        enter(&mut flow.held, Scope::Route, route.limit.as_deref(), now)?;
        let choice = choose(table, route, &mut core.balancer, client, ports)?;
        (flow.backend, flow.endpoint) = (choice.backend, choice.endpoint);
        let limit = core.tables.backend(flow.socket, choice.backend);
        let limit = limit.and_then(|backend| backend.limit.as_deref());
        let entered = enter(&mut flow.held, Scope::Backend, limit, now);
        entered.inspect_err(|_| core.balancer.not_opened(choice.endpoint))?;
        let upstream = self.upstream_for(core, &choice);
        flow.upstream = upstream.inspect_err(|_| core.balancer.not_opened(choice.endpoint))?;
        flow.held.count_endpoint(core, choice.endpoint);
        flow.introduce(core, choice.send_proxy);
        if choice.fast_path {
            flow.promotion = self.promotion_of(core, flow);
        }
        Ok(())
    }

    pub fn insert(&mut self, core: &mut Core, flow: Flow, hash: u64) -> u32 {
        core.counters.listener(flow.listener).opened.add(1);
        core.counters.route(flow.route).opened.add(1);
        core.counters.endpoint(flow.endpoint).opened.add(1);
        self.by_socket[flow.socket.index()] += 1;
        let record = core.tables.current().log_opens.then(|| flow.record(core, None));
        let (slot, generation) = self.flows.insert(flow).expect("begin() saw a free slot");
        if let Some(mut record) = record {
            record.handle = Some(Handle { of: Of::Flows, slot, generation });
            core.records.push(Record::Opened(record));
        }
        self.add_to_index(slot, hash);
        core.counters.flows.set(u64::from(self.flows.len()));
        slot
    }

    pub fn add_to_index(&mut self, slot: u32, hash: u64) {
        let (flows, hasher) = (&self.flows, &self.hasher);
        self.index.insert_unique(hash, slot, |slot| match flows.at(*slot) {
            Some(flow) => hasher.hash_one((flow.socket, flow.client(), flow.local)),
            None => 0,
        });
    }

    pub fn hash(&self, flow: &Flow) -> u64 {
        self.hasher.hash_one((flow.socket, flow.client(), flow.local))
    }

    pub fn remove_from_index(&mut self, slot: u32, hash: u64) {
        if let Ok(entry) = self.index.find_entry(hash, |other| *other == slot) {
            entry.remove();
        }
    }

    /// What tells the flow in this slot from others.
    pub fn handle(&self, slot: u32) -> Option<Handle> {
        self.flows.at(slot)?;
        Some(Handle { of: Of::Flows, slot, generation: self.flows.generation(slot) })
    }

    pub fn end(&mut self, core: &mut Core, slot: u32, cause: impl Into<Cause>) {
        let cause = cause.into();
        if self.ends_later(core, slot, &cause) {
            return;
        }
        let Cause { reason, detail, .. } = cause;
        let handle = self.handle(slot);
        let Some(flow) = self.flows.remove(slot) else { return };
        self.remove_from_index(slot, self.hash(&flow));
        core.counters.flows.set(u64::from(self.flows.len()));
        core.places.leave(flow.listener);
        core.leaves(flow.endpoint);
        core.leave_source(flow.source);
        core.counters.endpoint(flow.endpoint).closed.add(1);
        let counters = core.counters.listener(flow.listener);
        // A flow that never got its socket counts as refused.
        let refused = reason == CloseReason::LocalLimit && flow.opened == core.now;
        let ended = if refused { &counters.refused } else { &counters.closed };
        ended[reason as usize].add(1);
        if !refused {
            counters.duration.record(core.now - flow.opened);
        }
        core.counters.route(flow.route).ended(refused, (flow.bytes_up, flow.bytes_down));
        self.by_socket[flow.socket.index()] -= 1;
        self.rest(core, flow.upstream);
        let record = SessionRecord { handle, refused, detail, ..flow.record(core, Some(reason)) };
        core.log(record);
        self.leave_socket(core, flow.socket);
    }

    /// A leaving socket closes after its last flow.
    pub fn leave_socket(&self, core: &mut Core, socket: SocketId) {
        if self.by_socket[socket.index()] == 0
            && !core.tables.still_receives(socket)
            && core.tables.close(socket)
        {
            core.unlisten(socket);
        }
    }

    /// Closes leaving sockets that have no flows.
    pub fn release_sockets(&self, core: &mut Core) {
        let idle: Vec<SocketId> = core
            .tables
            .leaving()
            .filter(|id| core.tables.transport(*id) == Some(Transport::Udp))
            .filter(|id| !core.tables.still_receives(*id))
            .filter(|id| self.by_socket.get(id.index()).is_none_or(|flows| *flows == 0))
            .collect();
        for id in idle {
            if core.tables.close(id) {
                core.unlisten(id);
            }
        }
    }
}
