//! Gives flows to another process, or takes them over.
//!
//! The listening socket of a flow that is to leave is deaf already (`hearing.rs`): its client's
//! datagrams wait there. The flow's own socket stops receiving, so its endpoint's wait too. Then no
//! datagram of the flow is in the gateway, and the flow is offered. From then on both processes
//! have the socket, and neither receives, until it is clear whose the flow is.

use config_sync::table::moving::MovingFlow;
use config_sync::table::request::{Handle, Of};
use config_sync::table::routing::Transport;
use config_sync::table::steering::Share;

use crate::contract::{Op, Origin, Token, Why};
use crate::proxy::core::{Core, RECEIVE_PAUSE};
use crate::proxy::held::{Held, Scope};
use crate::proxy::slab::NONE;
use crate::proxy::udp::flow::{Flow, FlowHeader, Promotion, Sender, Whose};
use crate::proxy::udp::ports::From;
use crate::proxy::udp::state::{ABSENT, Flows, Halt, Role, Upstream};
use crate::stats::records::{OfferedFlow, Record, Reply};
use crate::wire::proxy_header::Addresses;

/// Microseconds between two steps.
const STEP: u64 = 50;

/// The most slots that one step looks at.
const MOST_LOOKS: u32 = 4_096;

/// Microseconds that an answer waits for sockets that have not stopped. Their flows stay.
const WAIT: u64 = 20_000;

/// Microseconds in which all datagrams are read that came before the number of workers changed.
pub const MOST_MISPLACED: u64 = 1_000_000;

/// The request under way.
#[derive(Debug, Default)]
pub struct Parting {
    asked: Option<Asked>,
    /// When the next step is due, in microseconds. `None`: nothing is to be done.
    pub next: Option<u64>,
}

#[derive(Debug)]
struct Asked {
    /// The next slot to look at.
    slot: u32,
    most: usize,
    /// Flows whose sockets are about to stop, by slot and generation.
    stopping: Vec<(u32, u32)>,
    /// When the answer goes at the latest.
    due: u64,
    reply: Reply,
}

impl Parting {
    /// Takes a request. The answer to an earlier one, if there is one, goes as it is.
    pub fn ask(
        &mut self,
        core: &mut Core,
        flows: &mut Flows,
        (number, from, most): (u64, u32, u32),
    ) {
        if let Some(before) = self.asked.take() {
            for (slot, generation) in before.stopping {
                let flow = flows.flows.get_mut(slot, generation);
                if flow.is_some_and(|flow| flow.whose == Whose::Stopping) {
                    flows.go_on(core, slot);
                }
            }
            core.records.push(Record::Reply(before.reply));
        }
        let (most, due) = (most as usize, core.now + WAIT);
        let (stopping, reply) = (Vec::new(), Reply { number, ..Reply::default() });
        self.asked = Some(Asked { slot: from, most, stopping, due, reply });
        self.next = Some(core.now);
    }

    /// Makes one step, if one is due.
    pub fn step(&mut self, core: &mut Core, flows: &mut Flows) {
        if self.next.is_none_or(|next| core.now < next) {
            return;
        }
        self.next = None;
        let Some(asked) = &mut self.asked else { return };
        let end = flows.flows.high_water();
        let last = asked.slot.saturating_add(MOST_LOOKS).min(end);
        while asked.slot < last && asked.stopping.len() + asked.reply.flows.len() < asked.most {
            if flows.may_leave(core, asked.slot) {
                asked.stopping.push((asked.slot, flows.flows.generation(asked.slot)));
                flows.stop(core, asked.slot);
            }
            asked.slot += 1;
        }
        let is_late = core.now >= asked.due;
        let offered = &mut asked.reply.flows;
        asked.stopping.retain(|of| match flows.offer(*of) {
            Offer::Made(of) => {
                offered.push(*of);
                false
            }
            Offer::None => false,
            Offer::Later if is_late => {
                flows.go_on(core, of.0);
                false
            }
            Offer::Later => true,
        });
        let is_over = asked.slot >= end || offered.len() >= asked.most || is_late;
        if asked.stopping.is_empty() && is_over {
            asked.reply.next = (asked.slot < end).then_some(asked.slot);
            let reply = std::mem::take(&mut asked.reply);
            core.records.push(Record::Reply(reply));
            self.asked = None;
            return;
        }
        self.next = Some(core.now + STEP);
    }
}

/// Whether a flow can be offered.
enum Offer {
    Made(Box<OfferedFlow>),
    /// Its socket has not stopped yet.
    Later,
    /// It has ended, or has another socket now.
    None,
}

impl Flows {
    /// Whether the flow could go to another process. Flows of a shared socket stay: others need the
    /// socket.
    fn may_leave(&self, core: &Core, slot: u32) -> bool {
        let Some(flow) = self.flows.at(slot) else { return false };
        let is_own = |of: &Upstream| {
            matches!(of.role, Role::Socket | Role::Own) && !of.closing && of.halt == Halt::No
        };
        flow.whose == Whose::Ours
            && core.hearing.is_quiet(flow.socket)
            && self.ending.is_none()
            && !self.is_ending(slot)
            && self.upstreams.at(flow.upstream).is_some_and(is_own)
    }

    /// Has the flow's socket receive nothing more, and the kernel forward nothing more.
    fn stop(&mut self, core: &mut Core, slot: u32) {
        self.demote(core, slot);
        let Some(flow) = self.flows.at_mut(slot) else { return };
        flow.whose = Whose::Stopping;
        let upstream = flow.upstream;
        if let Some(upstream) = self.upstreams.at_mut(upstream) {
            upstream.halt = Halt::Asked;
        }
        core.push(self.upstream_token(upstream), Op::Halt);
    }

    /// A socket has stopped receiving. Returns false if nobody has asked for that.
    pub fn has_halted(&mut self, core: &Core, token: Token, why: Option<Why>) -> bool {
        let Some(upstream) = self.upstreams.at_mut(token.slot) else { return false };
        match upstream.halt {
            Halt::No => false,
            Halt::Asked => {
                upstream.halt = Halt::Done;
                if why.is_some_and(|why| !why.is_of_peer()) {
                    // If the socket receives again before the pause is over, it waits for its end.
                    self.paused.push_back((core.now + RECEIVE_PAUSE, token));
                }
                true
            }
            Halt::Done => true,
            Halt::Revoked => {
                upstream.halt = Halt::No;
                self.is_paused(token)
            }
        }
    }

    /// A socket receives again.
    pub fn unhalt(&mut self, core: &mut Core, slot: u32) {
        let Some(upstream) = self.upstreams.at_mut(slot) else { return };
        match upstream.halt {
            Halt::No | Halt::Revoked => {}
            Halt::Asked => upstream.halt = Halt::Revoked,
            Halt::Done => {
                upstream.halt = Halt::No;
                let token = self.upstream_token(slot);
                if !self.is_paused(token) {
                    core.push(token, Op::Receive);
                }
            }
        }
    }

    /// Whether the socket receives again by itself, at the end of a pause.
    fn is_paused(&self, token: Token) -> bool {
        self.paused.iter().any(|(_, paused)| *paused == token)
    }

    fn offer(&mut self, (slot, generation): (u32, u32)) -> Offer {
        let flow = self.flows.get_mut(slot, generation);
        let Some(flow) = flow.filter(|flow| flow.whose == Whose::Stopping) else {
            return Offer::None;
        };
        let upstream = self.upstreams.at(flow.upstream);
        let is_still = upstream.is_some_and(|of| of.halt == Halt::Done) && !flow.is_promoted();
        let Some(upstream) = upstream.filter(|_| is_still) else { return Offer::Later };
        flow.whose = Whose::Offered;
        let (own, at) = (upstream.role == Role::Own, flow.endpoint.index());
        let slot_of_socket = flow.upstream;
        let proxied = flow.proxied.as_deref();
        let moving = MovingFlow {
            socket: flow.socket,
            listener: flow.listener,
            route: flow.route,
            backend: flow.backend,
            endpoint: flow.endpoint,
            peer: flow.peer,
            local: flow.local,
            said: flow.said().map(|said| [said.source, said.destination]),
            header: proxied.map(|proxied| proxied.header.clone()).unwrap_or_default(),
            unique_id: proxied.and_then(|proxied| proxied.unique_id),
            timeout: flow.timeout,
            responses: flow.responses,
            datagrams: [flow.sent, flow.replies],
            bytes: [flow.bytes_up, flow.bytes_down],
            opened: flow.opened,
            last: flow.last,
            refused: flow.refused,
            own,
            interface: self.endpoints[at].interface,
        };
        let hash = self.hasher.hash_one((flow.socket, flow.client(), flow.local));
        // Nobody hears the client, so nobody misses the flow here.
        self.remove_from_index(slot, hash);
        let handle = Handle { of: Of::Flows, slot, generation };
        let upstream = self.upstream_token(slot_of_socket);
        Offer::Made(Box::new(OfferedFlow { handle, moving, upstream }))
    }

    /// Adopts a flow of another process, and keeps it still. `None`: there is no room, the flow's
    /// listening socket is not this worker's, or the client has a flow here.
    pub fn adopt(&mut self, core: &mut Core, moving: MovingFlow, incoming: u32) -> Option<Handle> {
        let socket = moving.socket;
        let listens = core.tables.transport(socket) == Some(Transport::Udp);
        let is_room = !self.flows.is_full() && self.upstreams.room() > 0;
        if !listens || core.tables.is_leaving(socket) || self.ending.is_some() || !is_room {
            return None;
        }
        let said = moving.said.map(|[source, destination]| Addresses { source, destination });
        let sender = Sender { peer: moving.peer, local: moving.local, said };
        let hash = self.hasher.hash_one((socket, sender.client(), sender.local));
        if self.found(socket, &sender, hash).is_some() {
            return None;
        }
        let at = moving.endpoint.index();
        if self.endpoints.len() <= at {
            self.endpoints.resize(at + 1, ABSENT);
        }
        // An endpoint that no table of this process had is gone from now on, and not since ever.
        if self.endpoints[at].gone_since == ABSENT.gone_since {
            self.endpoints[at].gone_since = Some(core.now);
        }
        // Through another interface than the endpoint's now, it may serve no other flow.
        let own = moving.own || self.endpoints[at].interface != moving.interface;
        let role = if own { Role::Own } else { Role::Socket };
        let from = From { origin: Origin::Any, ipv4: moving.peer.is_ipv4() };
        let upstream = Upstream {
            halt: Halt::Done,
            sent: moving.datagrams[0],
            ..Upstream::new(moving.endpoint, role, from)
        };
        let (upstream, _) = self.upstreams.insert(upstream)?;
        let (slot, generation) = self.flows.insert(arrived(core, moving, (said, upstream)))?;
        self.upstreams.at_mut(upstream)?.flow = slot;
        self.by_socket[socket.index()] += 1;
        self.add_to_index(slot, hash);
        core.counters.flows.set(u64::from(self.flows.len()));
        self.count_upstreams(core);
        core.push(self.upstream_token(upstream), Op::AttachUpstream { incoming });
        Some(Handle { of: Of::Flows, slot, generation })
    }

    /// Decides about still flows: they are this process's, or another's.
    pub fn decide(&mut self, core: &mut Core, handles: &[Handle], is_ours: bool) {
        for handle in handles.iter().filter(|handle| handle.of == Of::Flows) {
            let flow = self.flows.get_mut(handle.slot, handle.generation);
            if flow.is_none_or(|flow| !flow.is_shared()) {
                continue;
            }
            match is_ours {
                true => self.go_on(core, handle.slot),
                false => self.forget(core, handle.slot),
            }
        }
    }

    /// Whether another worker hears the sender from now on. The datagram waited in the socket while
    /// the number of workers changed.
    pub fn is_misplaced(&self, core: &Core, sender: &Sender) -> bool {
        let is_late = |(share, until): &(Share, u64)| core.now < *until && !share.has(sender.peer);
        self.only.as_ref().is_some_and(is_late)
    }

    /// The flow is this process's, and its socket receives again.
    fn go_on(&mut self, core: &mut Core, slot: u32) {
        let Some(flow) = self.flows.at_mut(slot) else { return };
        let before = std::mem::replace(&mut flow.whose, Whose::Ours);
        let upstream = flow.upstream;
        match before {
            Whose::Ours | Whose::Stopping => {}
            Whose::Offered => {
                let hash = self.hasher.hash_one((flow.socket, flow.client(), flow.local));
                self.add_to_index(slot, hash);
            }
            Whose::Theirs => {
                count_in(core, flow);
                let promotion = self.flows.at(slot).map(|flow| self.promotion_of(core, flow));
                self.set_promotion(slot, promotion.unwrap_or(Promotion::Never));
            }
        }
        self.unhalt(core, upstream);
    }

    /// Another process goes on with the flow. No line is logged: the last line is the other
    /// process's. The socket does not rest, because the other process has it.
    fn forget(&mut self, core: &mut Core, slot: u32) {
        let Some(flow) = self.flows.remove(slot) else { return };
        if flow.whose == Whose::Theirs {
            self.remove_from_index(slot, self.hash(&flow));
        } else {
            core.places.leave(flow.listener);
            core.leaves(flow.endpoint);
            core.leave_source(flow.source);
            core.counters.endpoint(flow.endpoint).opened.sub(1);
            core.counters.listener(flow.listener).opened.sub(1);
            core.counters.route(flow.route).opened.sub(1);
        }
        core.counters.flows.set(u64::from(self.flows.len()));
        if let Some(upstream) = self.upstreams.at_mut(flow.upstream) {
            upstream.flow = NONE;
        }
        self.close_socket(core, flow.upstream);
        self.by_socket[flow.socket.index()] -= 1;
        self.leave_socket(core, flow.socket);
    }
}

/// A flow that was another process's so far, and is not this one's yet.
fn arrived(core: &Core, moving: MovingFlow, (said, upstream): (Option<Addresses>, u32)) -> Flow {
    let MovingFlow { header, unique_id, .. } = moving;
    let is_proxied = said.is_some() || unique_id.is_some() || !header.is_empty();
    // Another process's clock may be ahead.
    let opened = moving.opened.min(core.now);
    let proxied = FlowHeader { said, header, unique_id };
    Flow {
        peer: moving.peer,
        local: moving.local,
        socket: moving.socket,
        listener: moving.listener,
        route: moving.route,
        backend: moving.backend,
        endpoint: moving.endpoint,
        upstream,
        timeout: moving.timeout,
        responses: moving.responses,
        sent: moving.datagrams[0],
        replies: moving.datagrams[1],
        bytes_up: moving.bytes[0],
        bytes_down: moving.bytes[1],
        opened,
        last: moving.last.clamp(opened, core.now),
        refused: moving.refused,
        whose: Whose::Theirs,
        promotion: Promotion::Never,
        proxied: is_proxied.then(|| Box::new(proxied)),
        source: None,
        held: Held::default(),
    }
}

/// Counts the flow, within limits too: however many flows there are.
fn count_in(core: &mut Core, flow: &mut Flow) {
    core.places.arrive(flow.listener, false);
    core.balancer.arrived(flow.endpoint);
    core.counters.endpoint(flow.endpoint).opened.add(1);
    core.counters.listener(flow.listener).opened.add(1);
    core.counters.route(flow.route).opened.add(1);
    let table = core.tables.current();
    let listener = table.listeners.iter().find(|of| of.id == flow.listener);
    let route = core.tables.route(flow.route);
    let backend = core.tables.backend(flow.socket, flow.backend);
    let held = &mut flow.held;
    held.arrive(Scope::Process, table.total.as_deref());
    held.arrive(Scope::Listener, listener.and_then(|of| of.limit.as_deref()));
    held.arrive(Scope::Route, route.and_then(|of| of.limit.as_deref()));
    held.arrive(Scope::Backend, backend.and_then(|of| of.limit.as_deref()));
    let limit = listener.and_then(|of| of.limit_source.as_ref());
    flow.source = limit.and_then(|of| of.arrive(flow.client().ip(), core.unix_micros()));
}
