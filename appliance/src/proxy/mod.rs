//! Turns events into ops. PURE: no I/O, no clock, no descriptor, no unsafe. All of it runs in the
//! simulator.
//!
//! `Proxy` gives each event to its owner, applies a new table and expires deadlines. `tcp/` has the
//! work of a session, and `udp/` has the work of a flow.

#![forbid(unsafe_code)]

pub mod balance;
pub mod cause;
mod closing;
mod core;
mod delays;
mod drain;
mod gone;
mod heap;
mod hearing;
mod held;
mod log_limit;
pub mod memory;
mod of_endpoint;
pub mod parting;
pub mod places;
mod requests;
mod slab;
mod source_hash;
pub mod table_queue;
mod tables;
pub mod tcp;
mod timer;
pub mod udp;
mod undecided;
mod waiting;

use std::net::SocketAddr;
use std::sync::Arc;

use config_sync::table::moving::{Moving, MovingFlow};
use config_sync::table::request::{Request, What};
use config_sync::table::routing::{Limits, Protocol, RoutingTable, SocketId, Timeouts};

use crate::contract::{Event, Kind, Op, Token};
use crate::proxy::cause::Cause;
use crate::proxy::closing::Closing;
use crate::proxy::core::{Core, micros};
use crate::proxy::drain::Draining;
use crate::proxy::held::Scope;
use crate::proxy::parting::Parting;
use crate::proxy::requests::{Held, Requests};
use crate::proxy::slab::Slab;
use crate::proxy::tcp::state::{First, Session};
use crate::proxy::udp::parting::{Ask, MOST_MISPLACED, Parting as FlowParting};
use crate::proxy::udp::state::Flows;
use crate::proxy::undecided::Undecided;
use crate::stats::counters::Counters;
use crate::stats::records::{CloseReason, Record, Reply, SessionRecord};

#[derive(Debug)]
pub struct Proxy {
    sessions: Slab<Session>,
    flows: Flows,
    core: Core,
    drain: Option<Draining>,
    closing: Closing,
    requests: Requests,
    parting: Parting,
    flow_parting: FlowParting,
    undecided: Undecided,
}

const NO_TIMEOUTS: Timeouts =
    Timeouts { hello: 0, idle: 0, write_stall: 0, half_close: 0, lifetime: 0 };

impl Proxy {
    /// Allocates all memory that `limits` allows. `seed` makes the proxy's choices repeatable.
    pub fn new(limits: Limits, seed: u64, counters: Arc<Counters>) -> Self {
        Self {
            sessions: Slab::new(limits.sessions),
            flows: Flows::new(limits.flows, seed),
            core: Core::new(limits, seed, counters),
            drain: None,
            closing: Closing::new(),
            requests: Requests::default(),
            parting: Parting::default(),
            flow_parting: FlowParting::default(),
            undecided: Undecided::default(),
        }
    }

    /// Gives one event to its owner. `Event::Peeked`, `Event::Taken` and `Event::Given` refer to
    /// the arena `bytes`.
    pub fn handle(
        &mut self,
        now: u64,
        token: Token,
        event: Event,
        bytes: &[u8],
        ops: &mut Vec<(Token, Op)>,
    ) {
        self.enter(now, ops);
        match token.kind {
            Kind::Socket
                if self.flows.newcomers.must_wait()
                    && self.flows.puts_off(&mut self.core, token, event, bytes) => {}
            Kind::Socket => self.on_socket(SocketId(token.slot), event, bytes),
            Kind::Session => self.on_session(token, event, bytes),
            Kind::Upstream => self.flows.on_upstream(&mut self.core, token, event),
        }
        self.leave(ops);
    }

    /// Lets so many UDP flows that need a new socket begin in a turn, and others wait as long as
    /// there is room. `buffers`: the receive buffers for datagrams. The caller then ends
    /// each turn with [`Self::newcomer`].
    pub fn bound_new_flows(&mut self, most: u32, buffers: u16) {
        self.flows.newcomers.bound(most, usize::from(buffers));
    }

    /// The next event that waited for its turn. [`Self::let_in`] handles it. `None`: no other comes
    /// in this turn, which began at `now`, in microseconds.
    pub fn newcomer(&mut self, now: u64) -> Option<(Token, Event)> {
        self.flows.newcomers.next(now)
    }

    /// How many buffers wait for their turn.
    pub fn waiting_buffers(&self) -> usize {
        self.flows.newcomers.buffers()
    }

    /// As [`Self::handle`], for an event that has waited.
    pub fn let_in(
        &mut self,
        now: u64,
        (token, event): (Token, Event),
        bytes: &[u8],
        ops: &mut Vec<(Token, Op)>,
    ) {
        self.enter(now, ops);
        self.on_socket(SocketId(token.slot), event, bytes);
        self.leave(ops);
    }

    /// Puts a new table in force. Live sessions and flows are not touched.
    pub fn apply(&mut self, now: u64, table: Arc<RoutingTable>, ops: &mut Vec<(Token, Op)>) {
        self.enter(now, ops);
        let core = &mut self.core;
        core.balancer.prepare(&table);
        core.places.prepare(&table);
        if let Some(sources) = &table.sources {
            core.sources = Some(Arc::clone(sources));
        }
        core.counters.generation.set(table.generation);
        core.gone.table_applied(&table.gone, now);
        if let Some(drain) = table.drain {
            let next = now + micros(drain.timeout);
            self.drain = Some(Draining { next, until: next + micros(drain.spread), left: None });
        }
        let generation = table.generation;
        let changes = core.tables.apply(table);
        for (id, op) in changes.ops {
            match op {
                Op::Unlisten | Op::Release => core.give_up(id, op),
                Op::Receive if core.hearing.is_deaf(id) => {}
                // The socket accepts again after its pause.
                Op::AcceptOne if core.is_paused(id) => {}
                op => core.push(Token::socket(id), op),
            }
        }
        self.flows.table_applied(core);
        self.closing.table_applied(core);
        core.waiting.place_freed();
        core.delays.place_freed();
        core.records.push(Record::Applied { generation, previous: changes.previous });
        core.records.extend(changes.retired.into_iter().map(Record::Retired));
        self.leave(ops);
    }

    /// Takes a request about sessions and flows. The answer is a record: at once, or after some
    /// calls of `expire`.
    pub fn ask(&mut self, now: u64, request: Request, ops: &mut Vec<(Token, Op)>) {
        self.enter(now, ops);
        let Self { core, sessions, flows, requests, parting, flow_parting, .. } = self;
        match request.what {
            What::Part { from, most } => parting.ask(core, request.number, from, most),
            What::Announce { from, most, again } => {
                let ask = Ask::Announce { from, most, again };
                flow_parting.ask(core, flows, request.number, ask);
            }
            What::Settle => flow_parting.ask(core, flows, request.number, Ask::Settle),
            What::Own(all) => flows.own(core, &all),
            What::Forget(handles) => {
                parting::decide(core, sessions, &handles, false);
                flows.decide(core, &handles, false);
            }
            What::GoOn(handles) => {
                parting::decide(core, sessions, &handles, true);
                flows.decide(core, &handles, true);
            }
            What::Deafen(ids) => core.deafen(request.number, &ids),
            What::Hear { only } => {
                flow_parting.end(core, flows);
                flows.only = only.map(|share| (share, core.now + MOST_MISPLACED));
                core.hear();
            }
            what => {
                let request = Request { what, number: request.number };
                requests.ask(&mut Held { core, sessions, flows }, request);
            }
        }
        self.leave(ops);
    }

    /// Adopts sessions of another process, as many as there are slots for, and keeps them still.
    /// The answer is a record.
    pub fn adopt(
        &mut self,
        now: u64,
        number: u64,
        arrivals: Vec<(Moving, u32)>,
        ops: &mut Vec<(Token, Op)>,
    ) {
        self.enter(now, ops);
        let adopted = parting::adopt(&mut self.core, &mut self.sessions, arrivals);
        let adopted = adopted.into_iter().map(Some).collect();
        let reply = Reply { number, adopted, ..Reply::default() };
        self.core.records.push(Record::Reply(reply));
        self.leave(ops);
    }

    /// Adopts flows of another process, and keeps them still. Each comes with the number under
    /// which the ring has its socket, if the ring could have it. The answer is a record.
    pub fn adopt_flows(
        &mut self,
        now: u64,
        number: u64,
        arrivals: Vec<(MovingFlow, Option<u32>)>,
        ops: &mut Vec<(Token, Op)>,
    ) {
        self.enter(now, ops);
        let Self { core, flows, .. } = self;
        let adopt = |(moving, incoming)| flows.adopt(core, moving, incoming?);
        let adopted = arrivals.into_iter().map(adopt).collect();
        let reply = Reply { number, adopted, ..Reply::default() };
        self.core.records.push(Record::Reply(reply));
        self.leave(ops);
    }

    /// Leaves the datagrams of clients where they are, until [`What::Hear`], because flows of the
    /// process before come first.
    pub fn wait_for_flows(&mut self) {
        self.core.hearing.wait();
    }

    /// Acts on each deadline that is due.
    pub fn expire(&mut self, now: u64, ops: &mut Vec<(Token, Op)>) {
        self.enter(now, ops);
        let due = self.core.timers.expire(now / 1_000);
        for slot in &due {
            if let Some(session) = self.sessions.at_mut(*slot) {
                session.expire(&mut self.core);
            }
        }
        self.core.timers.reuse(due);
        while let Some((token, from)) = self.core.marks.due(now) {
            if let Some(session) = self.sessions.get_mut(token.slot, token.generation) {
                session.mark_due(&mut self.core, from);
            }
        }
        self.core.unpause();
        if let Some(drain) = &mut self.drain {
            drain.step(&mut self.core, &mut self.sessions, &mut self.flows);
        }
        // A turn of a single message is short, and most of these have nothing to do in it.
        let is_due = |next: Option<u64>| next.is_some_and(|next| next <= now);
        if is_due(self.closing.next) {
            self.closing.step(&mut self.core, &mut self.sessions);
        }
        if is_due(self.parting.next) {
            self.parting.step(&mut self.core, &mut self.sessions);
        }
        if is_due(self.flow_parting.next) {
            self.flow_parting.step(&mut self.core, &mut self.flows);
        }
        if is_due(self.requests.next) {
            let Self { core, sessions, flows, requests, .. } = self;
            requests.step(&mut Held { core, sessions, flows });
        }
        self.flows.expire(&mut self.core);
        if !self.core.named.is_empty() {
            self.undecided.add_named(&mut self.core, &mut self.sessions);
        }
        if !self.core.handshakes.is_empty() {
            self.undecided.make_room_at_listeners(&mut self.core, &mut self.sessions);
        }
        if is_due(self.core.waiting.next) {
            tcp::queue::look(&mut self.core, &mut self.sessions);
        }
        if is_due(self.core.delays.next) {
            tcp::delay::look(&mut self.core, &mut self.sessions);
        }
        self.leave(ops);
    }

    /// Gives the postponed steps their turn, as many as there is room for, and gives the next bulk
    /// direction its `Move`. Only one bulk `Move` goes in a turn, because it takes a tenth of a
    /// millisecond and all small work waits meanwhile. A further turn takes only a hundredth of
    /// that.
    pub fn resume(&mut self, now: u64, ops: &mut Vec<(Token, Op)>) {
        self.enter(now, ops);
        while self.core.has_room()
            && let Some((token, side, what)) = self.core.postponed.pop_front()
        {
            if let Some(session) = self.sessions.get_mut(token.slot, token.generation) {
                session.postponed(&mut self.core, side, what);
            }
        }
        let before = self.core.ops.len();
        // Some sessions were closed in the meantime.
        while self.core.ops.len() == before
            && let Some((token, from)) = self.core.resumable.pop_front()
        {
            if let Some(session) = self.sessions.get_mut(token.slot, token.generation) {
                session.resume(&mut self.core, from);
            }
        }
        self.leave(ops);
    }

    /// Takes in until when the other workers know source ports to be short, and returns the time
    /// that this worker knows. Both are microseconds of the clock that all workers share. Workers
    /// with idle sockets close them.
    pub fn share_shortage(&mut self, until: u64) -> u64 {
        self.flows.share_shortage(until)
    }

    /// Closes all sessions and flows at once.
    pub fn stop(&mut self, now: u64, ops: &mut Vec<(Token, Op)>) {
        self.enter(now, ops);
        let slots: Vec<u32> = self.sessions.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            if let Some(session) = self.sessions.at_mut(slot) {
                session.close(&mut self.core, CloseReason::Stopped);
            }
        }
        self.flows.end_all(now, CloseReason::Stopped);
        self.leave(ops);
    }

    /// When `expire`, `resume` or `newcomer` has work next, in microseconds. 0: at once.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.goes_on() { Some(0) } else { self.next_due() }
    }

    /// Whether `resume` or `newcomer` has work.
    pub fn goes_on(&self) -> bool {
        !self.core.postponed.is_empty()
            || !self.core.resumable.is_empty()
            || !self.flows.newcomers.is_empty()
    }

    /// When `expire` has work next, in microseconds.
    pub fn next_due(&self) -> Option<u64> {
        let timers = self.core.timers.next().map(|millis| millis * 1_000);
        let paused = self.core.paused.iter().map(|(_, until)| *until).min();
        let drain = self.drain.as_ref().filter(|_| !self.is_idle()).map(|drain| drain.next);
        let marks = self.core.marks.next();
        let sweep = self.flows.next_sweep();
        let parting = [self.parting.next, self.flow_parting.next];
        let steps = [self.closing.next, self.requests.next, self.core.waiting.next];
        let steps = steps.into_iter().chain(parting).chain([self.core.delays.next]);
        [timers, marks, paused, drain, sweep].into_iter().chain(steps).flatten().min()
    }

    /// Whether the last table is in force, no session or flow lives any more, and every request is
    /// answered.
    pub fn is_done(&self) -> bool {
        self.requests.next.is_none()
            && self.parting.next.is_none()
            && self.flow_parting.next.is_none()
            && self.drain.is_some()
            && self.core.tables.open_sockets() == 0
            && self.is_idle()
    }

    /// Sets the Unix time at which the caller's clock was 0, in microseconds. Certificates and
    /// session tickets are valid for a time of day.
    pub fn set_epoch(&mut self, epoch: u64) {
        self.core.epoch = epoch;
    }

    /// The bytes that the `Give` ops refer to. The caller takes them together with the ops.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.core.output
    }

    /// The records for the control thread. The caller drains them.
    pub fn records(&mut self) -> &mut Vec<Record> {
        &mut self.core.records
    }

    fn is_idle(&self) -> bool {
        self.sessions.is_empty() && self.flows.is_empty()
    }

    fn enter(&mut self, now: u64, ops: &mut Vec<(Token, Op)>) {
        self.core.now = now;
        self.core.balancer.unix = self.core.unix_micros();
        std::mem::swap(ops, &mut self.core.ops);
    }

    fn leave(&mut self, ops: &mut Vec<(Token, Op)>) {
        std::mem::swap(ops, &mut self.core.ops);
        self.core.counters.sessions.set(u64::from(self.sessions.len()));
    }

    fn on_socket(&mut self, id: SocketId, event: Event, bytes: &[u8]) {
        match event {
            Event::Accepted { incoming, peer, local } => self.accept(id, incoming, peer, local),
            Event::Stopped { why } => {
                let is_deaf = self.core.falls_quiet(id, why);
                if self.core.tables.is_released(id) {
                    self.core.tables.receives_no_more(id);
                    self.flows.release_sockets(&mut self.core);
                } else if !is_deaf {
                    self.core.rearm(id, why);
                }
            }
            Event::Unlistened => {
                tcp::delay::serve(&mut self.core, &mut self.sessions, id);
                self.core.unlistened(id);
            }
            Event::Datagrams { .. } => self.flows.on_client(&mut self.core, id, event, bytes),
            Event::SendFailed { why, count } => {
                self.flows.reply_failed(&self.core, id, why, count);
            }
            _ => {}
        }
    }

    fn on_session(&mut self, token: Token, event: Event, bytes: &[u8]) {
        if let Event::Taken { .. } | Event::Peeked { .. } = event {
            self.core.takes -= 1;
        }
        if let Event::Inspected { side, start, len } = event {
            let bytes = &bytes[start as usize..][..len as usize];
            return self.requests.inspected(&mut self.core, token, side, bytes);
        }
        let Some(session) = self.sessions.get_mut(token.slot, token.generation) else { return };
        if event == Event::Closed {
            self.sessions.remove(token.slot);
        } else {
            session.on(&mut self.core, event, bytes);
        }
    }

    fn accept(&mut self, id: SocketId, incoming: u32, client: SocketAddr, local: SocketAddr) {
        let core = &mut self.core;
        core.counters.accepted.add(1);
        self.undecided.make_room(core, &mut self.sessions);
        let Some((table, socket)) = core.tables.of(id) else {
            return core.push(Token::socket(id), Op::Refuse { incoming });
        };
        let header = socket.accept_proxy.expects_header(client.ip());
        let first = First {
            barred: socket.accept_proxy.only && !header,
            header,
            request: socket.starttls.is_some(),
            hello: socket.reads_hello,
        };
        let timeouts = Timeouts { hello: socket.hello_timeout, ..NO_TIMEOUTS };
        let protocol = if first.hello { Protocol::Tls } else { Protocol::Tcp };
        let listener = tables::sole_listener(table, socket);
        let mut session = Session::new((id, protocol), client, local, core.now, timeouts);
        let total = session.held.enter(Scope::Process, table.total.as_deref(), core.unix_micros());
        let place = match total {
            _ if core.counters.overloaded.get() > 0 => Err(CloseReason::Overload.into()),
            Ok(()) => self.sessions.insert(session).ok_or_else(|| CloseReason::SessionLimit.into()),
            Err(over) => Err(Scope::Process.refusal(over)),
        };
        let (slot, generation) = match place {
            Ok(place) => place,
            Err(Cause { reason, detail, .. }) => {
                core.push(Token::socket(id), Op::Refuse { incoming });
                let record = SessionRecord::new(protocol, id, (client, local), core.now, core.now);
                let reason = Some(reason);
                return turn_away(core, SessionRecord { listener, reason, detail, ..record });
            }
        };
        let token = Token { kind: Kind::Session, slot, generation };
        core.push(token, Op::Adopt { incoming });
        if let Some(session) = self.sessions.at_mut(slot) {
            session.begin(core, token, first, listener);
            if session.is_undecided() {
                self.undecided.add(core, &mut self.sessions, (id, token));
                // Behind a PROXY header, the source is known with the header.
                if core.sources.is_some() && !first.header {
                    let of = (id, client, token);
                    self.undecided.add_of_source(core, &mut self.sessions, of);
                }
            }
        }
    }
}

/// Counts and logs a client for whom there is no session.
fn turn_away(core: &mut Core, record: SessionRecord) {
    if let Some(reason) = record.reason {
        if reason == CloseReason::SessionLimit {
            core.counters.session_shortages.add(1);
        }
        match record.listener.map(|listener| core.counters.listener(listener)) {
            Some(counters) => {
                counters.opened.add(1);
                counters.refused[reason as usize].add(1);
            }
            None => core.counters.unmatched[reason as usize].add(1),
        }
    }
    core.log(SessionRecord { refused: true, ..record });
}
