//! Gives flows to another process, or takes them over.
//!
//! First a flow that could leave is announced: the other process gets to know it, and gets its
//! socket, while the flow goes on here. Then the listening socket falls deaf (`hearing.rs`): the
//! client's datagrams wait there. The flow's own socket stops receiving, so its endpoint's wait
//! too. Then no datagram of the flow is in the gateway: the flow has settled. All that the other
//! process lacks are a few figures. From then on both processes have the flow, and neither
//! receives, until it is clear whose the flow is.

use config_sync::table::moving::{FlowFigures, MovingFlow};
use config_sync::table::request::{Handle, Of};
use config_sync::table::routing::Transport;
use config_sync::table::steering::Share;

use crate::contract::{Op, Origin, Token, Why};
use crate::proxy::core::{Core, RECEIVE_PAUSE};
use crate::proxy::held::{Held, Scope};
use crate::proxy::slab::NONE;
use crate::proxy::udp::flow::{Flow, FlowHeader, Promotion, Sender, Silence, Whose};
use crate::proxy::udp::ports::From;
use crate::proxy::udp::state::{ABSENT, Flows, Halt, Role, Upstream};
use crate::stats::records::{Demotion, OfferedFlow, Record, Reply};
use crate::wire::proxy_header::Addresses;

/// Microseconds between two steps.
const STEP: u64 = 50;

/// The most slots that one step looks at, and the most sockets that one step stops. Sessions wait
/// meanwhile.
const MOST_LOOKS: u32 = 4_096;
const MOST_STOPS: usize = 512;

/// Microseconds that an answer waits for sockets that have not stopped. Their flows stay.
const WAIT: u64 = 20_000;

/// Microseconds in which the sockets of flows that have settled are read empty. No flow is promoted
/// before: its next datagrams would overtake those that wait, and promotions would delay them all.
const BACKLOG: u64 = 10_000;

/// Microseconds in which all datagrams are read that came before the number of workers changed.
pub const MOST_MISPLACED: u64 = 1_000_000;

/// The request under way.
#[derive(Debug, Default)]
pub struct Parting {
    asked: Option<Asked>,
    /// Flows have settled since clients were last heard.
    settled: bool,
    /// When the next step is due, in microseconds. `None`: nothing is to be done.
    pub next: Option<u64>,
}

/// What is asked about flows that are to leave.
#[derive(Clone, Copy, Debug)]
pub enum Ask {
    /// At most so many flows are announced, from a slot on. `again`: those that were refused are
    /// not.
    Announce {
        from: u32,
        most: u32,
        again: bool,
    },
    Settle,
}

#[derive(Debug)]
struct Asked {
    ask: Ask,
    /// The next slot to look at.
    slot: u32,
    /// Flows whose sockets are about to stop, by slot and generation.
    stopping: Vec<(u32, u32)>,
    /// Until when sockets may stop.
    due: u64,
    reply: Reply,
}

impl Parting {
    /// Takes a request. The answer to an earlier one, if there is one, goes as it is.
    pub fn ask(&mut self, core: &mut Core, flows: &mut Flows, number: u64, ask: Ask) {
        self.give_up(core, flows);
        let slot = match ask {
            Ask::Announce { from, .. } => from,
            Ask::Settle => 0,
        };
        let (stopping, due) = (Vec::new(), core.now + WAIT);
        let reply = Reply { number, ..Reply::default() };
        self.asked = Some(Asked { ask, slot, stopping, due, reply });
        self.next = Some(core.now);
    }

    fn give_up(&mut self, core: &mut Core, flows: &mut Flows) {
        let Some(before) = self.asked.take() else { return };
        self.settled |= !before.reply.settled.is_empty();
        for (slot, generation) in before.stopping {
            let flow = flows.flows.get_mut(slot, generation);
            if flow.is_some_and(|flow| flow.whose == Whose::Stopping) {
                flows.go_on(core, slot);
            }
        }
        core.records.push(Record::Reply(before.reply));
    }

    /// Clients are about to be heard again, so flows go on that have settled and about which
    /// nothing was said.
    pub fn end(&mut self, core: &mut Core, flows: &mut Flows) {
        self.give_up(core, flows);
        self.next = None;
        if std::mem::take(&mut self.settled) {
            for slot in 0..flows.flows.high_water() {
                if flows.flows.at(slot).is_some_and(|flow| flow.whose == Whose::Settled) {
                    flows.go_on(core, slot);
                }
            }
        }
    }

    /// Makes one step, if one is due.
    pub fn step(&mut self, core: &mut Core, flows: &mut Flows) {
        self.next = None;
        let Some(asked) = &mut self.asked else { return };
        let is_over = match asked.ask {
            Ask::Announce { most, again, .. } => asked.announce_some(flows, most as usize, again),
            Ask::Settle => asked.settle_some(core, flows),
        };
        if is_over {
            self.settled |= !asked.reply.settled.is_empty();
            core.records.push(Record::Reply(std::mem::take(&mut asked.reply)));
            self.asked = None;
        } else {
            self.next = Some(core.now + STEP);
        }
    }
}

impl Asked {
    /// True if no more can be announced, or there are as many as were asked for.
    fn announce_some(&mut self, flows: &mut Flows, most: usize, again: bool) -> bool {
        let end = flows.flows.high_water();
        let last = self.slot.saturating_add(MOST_LOOKS).min(end);
        while self.slot < last && self.reply.flows.len() < most {
            self.reply.flows.extend(flows.announce(self.slot, again));
            self.slot += 1;
        }
        self.reply.next = (self.slot < end).then_some(self.slot);
        self.slot >= end || self.reply.flows.len() >= most
    }

    /// True if each announced flow has settled, or stays.
    fn settle_some(&mut self, core: &mut Core, flows: &mut Flows) -> bool {
        let end = flows.flows.high_water();
        let last = self.slot.saturating_add(MOST_LOOKS).min(end);
        let before = self.stopping.len();
        while self.slot < last && self.stopping.len() < before + MOST_STOPS {
            let slot = self.slot;
            self.slot += 1;
            match flows.flows.at(slot).map(|flow| flow.whose) {
                Some(Whose::Refused) | None => {}
                Some(_) if !flows.may_leave(slot) || !flows.is_unheard(core, slot) => {
                    flows.renounce(slot);
                }
                Some(Whose::Announced) => {
                    self.stopping.push((slot, flows.flows.generation(slot)));
                    flows.stop(core, slot);
                }
                Some(_) => _ = self.reply.next.get_or_insert(slot),
            }
        }
        if self.stopping.len() > before {
            self.due = core.now + WAIT;
        }
        let (is_late, settled) = (core.now >= self.due, &mut self.reply.settled);
        self.stopping.retain(|of| match flows.settle(*of) {
            Settling::Done(figures) => {
                let handle = Handle { of: Of::Flows, slot: of.0, generation: of.1 };
                settled.push((handle, figures));
                false
            }
            Settling::Gone => false,
            Settling::Later if is_late => {
                flows.go_on(core, of.0);
                false
            }
            Settling::Later => true,
        });
        self.slot >= end && self.stopping.is_empty()
    }
}

/// Whether a flow has settled.
enum Settling {
    Done(FlowFigures),
    /// Its socket has not stopped yet.
    Later,
    /// It has ended, or has another socket now.
    Gone,
}

impl Flows {
    /// Whether the flow could go to another process. Flows of a shared socket stay: others need the
    /// socket.
    fn may_leave(&self, slot: u32) -> bool {
        let Some(flow) = self.flows.at(slot) else { return false };
        let is_own = |of: &Upstream| {
            matches!(of.role, Role::Socket | Role::Own) && !of.closing && of.halt == Halt::No
        };
        matches!(flow.whose, Whose::Ours | Whose::Announced | Whose::Refused)
            && self.ending.is_none()
            && !self.is_ending(slot)
            && self.upstreams.at(flow.upstream).is_some_and(is_own)
    }

    /// Whether no datagram of the flow's client is received.
    fn is_unheard(&self, core: &Core, slot: u32) -> bool {
        self.flows.at(slot).is_some_and(|flow| core.hearing.is_quiet(flow.socket))
    }

    /// The flow is this process's alone.
    fn renounce(&mut self, slot: u32) {
        if let Some(flow) = self.flows.at_mut(slot).filter(|of| of.whose == Whose::Announced) {
            flow.whose = Whose::Ours;
        }
    }

    /// The other process does not take an announced flow.
    fn not_taken(&mut self, slot: u32) {
        if let Some(flow) = self.flows.at_mut(slot) {
            flow.whose = Whose::Refused;
        }
    }

    /// Announces the flow to another process, if it could go there and was not announced before.
    fn announce(&mut self, slot: u32, again: bool) -> Option<OfferedFlow> {
        let handle = self.handle(slot).filter(|_| self.may_leave(slot))?;
        let flow = self.flows.at_mut(slot)?;
        if flow.whose != Whose::Ours && (again || flow.whose != Whose::Refused) {
            return None;
        }
        flow.whose = Whose::Announced;
        let (socket, at) = (flow.upstream, flow.endpoint.index());
        let own = self.upstreams.at(socket).is_some_and(|of| of.role == Role::Own);
        let interface = self.endpoints[at].interface;
        let moving = MovingFlow { own, interface, ..moving(self.flows.at(slot)?) };
        Some(OfferedFlow { handle, moving, upstream: self.upstream_token(socket) })
    }

    /// Has the flow's socket receive nothing more, and the kernel forward nothing more.
    fn stop(&mut self, core: &mut Core, slot: u32) {
        self.demote(core, slot, Demotion::Upgrade);
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

    fn settle(&mut self, (slot, generation): (u32, u32)) -> Settling {
        let flow = self.flows.get_mut(slot, generation);
        let Some(flow) = flow.filter(|flow| flow.whose == Whose::Stopping) else {
            return Settling::Gone;
        };
        let has_stopped = self.upstreams.at(flow.upstream).is_some_and(|of| of.halt == Halt::Done);
        if !has_stopped || flow.is_promoted() {
            return Settling::Later;
        }
        flow.whose = Whose::Settled;
        let figures = FlowFigures {
            datagrams: datagrams(flow),
            bytes: [flow.bytes_up, flow.bytes_down],
            last: flow.last,
            refused: flow.refused,
            promoted: matches!(flow.promotion, Promotion::Again(_)),
        };
        let hash = self.hasher.hash_one((flow.socket, flow.client(), flow.local));
        // Nobody hears the client, so nobody misses the flow here.
        self.remove_from_index(slot, hash);
        Settling::Done(figures)
    }

    /// Adopts a flow that another process has announced, and keeps it still. Its client's datagrams
    /// do not come to it yet, so a client whose flow has ended there may have several here, of
    /// which one goes on. `None`: there is no room, or the flow's listening socket is not this
    /// worker's.
    pub fn adopt(&mut self, core: &mut Core, moving: MovingFlow, incoming: u32) -> Option<Handle> {
        let socket = moving.socket;
        let listens = core.tables.transport(socket) == Some(Transport::Udp);
        let is_room = !self.flows.is_full() && self.upstreams.room() > 0;
        if !listens || core.tables.is_leaving(socket) || self.ending.is_some() || !is_room {
            return None;
        }
        let said = moving.said.map(|[source, destination]| Addresses { source, destination });
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
        core.counters.flows.set(u64::from(self.flows.len()));
        self.count_upstreams(core);
        core.push(self.upstream_token(upstream), Op::AttachUpstream { incoming });
        Some(Handle { of: Of::Flows, slot, generation })
    }

    /// Decides about flows that were announced or have settled: they are this process's, or
    /// another's. A flow that has not settled is this process's.
    pub fn decide(&mut self, core: &mut Core, handles: &[Handle], is_ours: bool) {
        for handle in handles.iter().filter(|handle| handle.of == Of::Flows) {
            let flow = self.flows.get_mut(handle.slot, handle.generation);
            match flow.map(|flow| flow.whose) {
                Some(Whose::Announced) if is_ours => self.not_taken(handle.slot),
                Some(Whose::Announced) => self.renounce(handle.slot),
                Some(Whose::Settled) if is_ours => self.go_on(core, handle.slot),
                Some(Whose::Settled | Whose::Theirs) => self.forget(core, handle.slot),
                Some(Whose::Ours | Whose::Refused | Whose::Stopping) | None => {}
            }
        }
    }

    /// Goes on with flows of another process, which have carried so much.
    pub fn own(&mut self, core: &mut Core, all: &[(Handle, FlowFigures)]) {
        for (Handle { slot, generation, .. }, figures) in all {
            let flow = self.flows.get_mut(*slot, *generation);
            let Some(flow) = flow.filter(|flow| flow.whose == Whose::Theirs) else { continue };
            [flow.sent, flow.replies] = figures.datagrams.map(u64::from);
            [flow.bytes_up, flow.bytes_down] = figures.bytes;
            // Another process's clock may be ahead.
            flow.last = figures.last.clamp(flow.opened, core.now);
            flow.refused = figures.refused;
            if figures.promoted {
                flow.promotion = Promotion::Again(Silence::default());
            }
            let upstream = flow.upstream;
            if let Some(upstream) = self.upstreams.at_mut(upstream) {
                upstream.sent = figures.datagrams[0];
            }
            self.go_on(core, *slot);
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
        let hash = self.hasher.hash_one((flow.socket, flow.client(), flow.local));
        match before {
            Whose::Ours | Whose::Announced | Whose::Refused | Whose::Stopping => {}
            Whose::Settled => self.add_to_index(slot, hash),
            Whose::Theirs => {
                count_in(core, flow);
                self.add_to_index(slot, hash);
                let Some(flow) = self.flows.at(slot) else { return };
                let promotion = match (self.promotion_of(core, flow), flow.promotion) {
                    (Promotion::After(_), again @ Promotion::Again(_)) => again,
                    (promotion, _) => promotion,
                };
                self.set_promotion(slot, promotion);
            }
        }
        self.promoted.again_from = core.now + BACKLOG;
        self.unhalt(core, upstream);
    }

    /// Another process goes on with the flow. No line is logged: the last line is the other
    /// process's. The socket does not rest, because the other process has it.
    fn forget(&mut self, core: &mut Core, slot: u32) {
        let Some(flow) = self.flows.remove(slot) else { return };
        if flow.whose == Whose::Settled {
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

/// The datagrams of a flow, as far as another process is told.
fn datagrams(flow: &Flow) -> [u32; 2] {
    [flow.sent, flow.replies].map(|count| u32::try_from(count).unwrap_or(u32::MAX))
}

/// What another process is told of a flow. The caller knows its socket.
fn moving(flow: &Flow) -> MovingFlow {
    let proxied = flow.proxied.as_deref();
    MovingFlow {
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
        datagrams: datagrams(flow),
        bytes: [flow.bytes_up, flow.bytes_down],
        opened: flow.opened,
        last: flow.last,
        refused: flow.refused,
        own: false,
        interface: 0,
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
        sent: moving.datagrams[0].into(),
        replies: moving.datagrams[1].into(),
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
    let (client, now) = (flow.client().ip(), core.unix_micros());
    let held = &mut flow.held;
    held.arrive(Scope::Process, table.total.as_deref());
    held.arrive(Scope::Listener, listener.and_then(|of| of.limit.as_deref()));
    held.arrive(Scope::Route, route.and_then(|of| of.limit.as_deref()));
    held.arrive(Scope::Backend, backend.and_then(|of| of.limit.as_deref()));
    held.arrive_source(route.and_then(|of| of.limit_source.as_deref()), client, now);
    held.count_endpoint(core, flow.endpoint);
    let limit = listener.and_then(|of| of.limit_source.as_ref());
    flow.source = limit.and_then(|of| of.arrive(client, now));
}
