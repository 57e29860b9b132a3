//! The proxy: events in, ops out. PURE: no I/O, no clock, no descriptor, no unsafe. All of it runs
//! in the simulator.
//!
//! `Proxy` gives each event to its owner, applies a new table and expires deadlines; what a session
//! or a flow does is in `session.rs` and `flow.rs`.

#![forbid(unsafe_code)]

pub mod balance;
pub mod cause;
pub mod client_hello;
pub mod counters;
mod flow;
mod marks;
pub mod op;
mod ports;
pub mod postgres;
pub mod proxy_protocol;
pub mod record;
mod relay;
mod session;
mod shared;
mod slab;
pub mod table_queue;
mod tables;
mod terminated;
mod timer;
mod tls;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use config_sync::table::routing::{Limits, Protocol, RoutingTable, SocketId, Timeouts, Transport};

use balance::Balancer;
use counters::Counters;
use flow::Flows;
use marks::Marks;
use op::{Event, Kind, Op, Side, Token, Why};
use record::{CloseReason, Record, SessionRecord};
use session::{First, Session};
use slab::Slab;
use tables::Tables;
use terminated::Postponed;
use timer::Wheel;

#[derive(Debug)]
pub struct Proxy {
    sessions: Slab<Session>,
    flows: Flows,
    core: Core,
    drain: Option<Draining>,
}

/// What one core's sessions and flows share.
#[derive(Debug)]
struct Core {
    /// Microseconds; set at each entry.
    now: u64,
    ops: Vec<(Token, Op)>,
    /// Unix time at which `now` was 0, microseconds.
    epoch: u64,
    /// What the `Give`s among `ops` refer to.
    output: Vec<u8>,
    /// Memory that TLS connections share while they are worked on.
    plain: Vec<u8>,
    scratch: Vec<u8>,
    /// `Take`s and `Peek`s under way.
    takes: u32,
    tables: Tables,
    balancer: Balancer,
    counters: Arc<Counters>,
    timers: Wheel,
    marks: Marks,
    records: Vec<Record>,
    /// Directions with a `Move` to come: bulk, and those whose budget ran out.
    resumable: VecDeque<(Token, Side)>,
    /// Sides that speak TLS, or are spoken to, and for which there was no room in memory yet.
    postponed: VecDeque<(Token, Side, Postponed)>,
    /// By `ListenerId`: this worker's sessions or flows.
    active: Vec<u32>,
    /// By `ListenerId`: sessions of which one side has ended. They are not among those.
    ending: Vec<u32>,
    /// Listening sockets that rest after an error, and until when.
    paused: Vec<(SocketId, u64)>,
    rejections: Rejections,
    /// What connections that tell their endpoint an id are told apart by.
    ids: Ids,
    turn_bytes: u32,
    bulk_bytes: u32,
}

/// The end of a drain: what is left is closed in steps, the longest idle first.
#[derive(Debug)]
struct Draining {
    next: u64,
    until: u64,
    /// Sessions to close, the longest idle last; `None` until the deadline.
    left: Option<Vec<u32>>,
}

/// Accepting rests for this long after the machine ran out of files or memory, and receiving for
/// this long: clients wait in the accept queue, but datagrams are lost.
const ACCEPT_PAUSE: u64 = 100_000;
const RECEIVE_PAUSE: u64 = 5_000;
/// Closes at the end of a drain come in steps of this.
const DRAIN_STEP: u64 = 10_000;

const NO_TIMEOUTS: Timeouts =
    Timeouts { hello: 0, idle: 0, write_stall: 0, half_close: 0, lifetime: 0 };

impl Proxy {
    /// Allocates all that `limits` allows. `seed` makes its choices repeatable.
    pub fn new(limits: Limits, seed: u64, counters: Arc<Counters>) -> Self {
        Self {
            sessions: Slab::new(limits.sessions),
            flows: Flows::new(limits.flows, seed),
            core: Core {
                now: 0,
                ops: Vec::new(),
                epoch: 0,
                output: Vec::new(),
                plain: Vec::new(),
                scratch: Vec::new(),
                takes: 0,
                tables: Tables::new(),
                balancer: Balancer::new(seed),
                counters,
                timers: Wheel::new(limits.sessions),
                marks: Marks::new(),
                records: Vec::new(),
                resumable: VecDeque::with_capacity(2 * limits.sessions as usize),
                postponed: VecDeque::with_capacity(4 * limits.sessions as usize),
                active: Vec::new(),
                ending: Vec::new(),
                paused: Vec::new(),
                rejections: Rejections::default(),
                ids: Ids::new(seed),
                turn_bytes: limits.turn_bytes,
                bulk_bytes: limits.bulk_bytes,
            },
            drain: None,
        }
    }

    /// Gives one event to its owner. `bytes` is the arena that `Event::Peeked`,
    /// `Event::Taken` and `Event::Given` refer to.
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
            Kind::Socket => self.on_socket(SocketId(token.slot), event, bytes),
            Kind::Session => self.on_session(token, event, bytes),
            Kind::Upstream => self.flows.on_upstream(&mut self.core, token, event),
        }
        self.leave(ops);
    }

    /// Puts a new table in force. Nothing that lives is touched.
    pub fn apply(&mut self, now: u64, table: Arc<RoutingTable>, ops: &mut Vec<(Token, Op)>) {
        self.enter(now, ops);
        let core = &mut self.core;
        core.balancer.prepare(&table);
        let listeners = table.listeners.iter().map(|listener| listener.id.index() + 1).max();
        if listeners.unwrap_or(0) > core.active.len() {
            core.active.resize(listeners.unwrap_or(0), 0);
            core.ending.resize(listeners.unwrap_or(0), 0);
        }
        core.counters.generation.set(table.generation);
        if let Some(drain) = table.drain {
            let next = now + micros(drain.timeout);
            self.drain = Some(Draining { next, until: next + micros(drain.spread), left: None });
        }
        let generation = table.generation;
        let changes = core.tables.apply(table);
        for (id, op) in changes.ops {
            match op {
                Op::Unlisten => core.unlisten(id),
                op => core.push(Token::socket(id), op),
            }
        }
        self.flows.table_applied(core);
        core.records.push(Record::Applied { generation, previous: changes.previous });
        core.records.extend(changes.retired.into_iter().map(Record::Retired));
        self.leave(ops);
    }

    /// Acts on every deadline that is due.
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
        self.drain_step();
        self.flows.expire(&mut self.core);
        self.leave(ops);
    }

    /// Gives those that were postponed their turn, as many as there is room for, and the next
    /// direction with bulk to move its `Move`. Only one of these: it takes a tenth of a
    /// millisecond, for which all that is small waits, and another turn a hundredth of that.
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
        // Some have been closed in the meantime.
        while self.core.ops.len() == before
            && let Some((token, from)) = self.core.resumable.pop_front()
        {
            if let Some(session) = self.sessions.get_mut(token.slot, token.generation) {
                session.resume(&mut self.core, from);
            }
        }
        self.leave(ops);
    }

    /// Tells what other workers know, and returns what is known: source ports are short until then,
    /// in microseconds of the clock that all have in common. Those that have idle sockets close
    /// them.
    pub fn share_shortage(&mut self, until: u64) -> u64 {
        self.flows.share_shortage(until)
    }

    /// Closes everything at once.
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

    /// When `expire` or `resume` has something to do next, in microseconds; 0: at once.
    pub fn next_deadline(&self) -> Option<u64> {
        if !self.core.resumable.is_empty() || !self.core.postponed.is_empty() {
            return Some(0);
        }
        self.next_due()
    }

    /// When `expire` has something to do next, in microseconds.
    pub fn next_due(&self) -> Option<u64> {
        let timers = self.core.timers.next().map(|millis| millis * 1_000);
        let paused = self.core.paused.iter().map(|(_, until)| *until).min();
        let drain = self.drain.as_ref().filter(|_| !self.is_idle()).map(|drain| drain.next);
        let marks = self.core.marks.next();
        [timers, marks, paused, drain, self.flows.next_sweep()].into_iter().flatten().min()
    }

    /// The last table is in force, and nothing lives any more.
    pub fn is_done(&self) -> bool {
        self.drain.is_some() && self.core.tables.open_sockets() == 0 && self.is_idle()
    }

    /// The Unix time at which the caller's clock was 0, microseconds: certificates and session
    /// tickets are valid for a time of day.
    pub fn set_epoch(&mut self, epoch: u64) {
        self.core.epoch = epoch;
    }

    /// What the `Give`s that were asked for refer to; to be taken away with the ops.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.core.output
    }

    /// What there is to tell the control thread; the caller drains it.
    pub fn records(&mut self) -> &mut Vec<Record> {
        &mut self.core.records
    }

    fn is_idle(&self) -> bool {
        self.sessions.is_empty() && self.flows.is_empty()
    }

    fn enter(&mut self, now: u64, ops: &mut Vec<(Token, Op)>) {
        self.core.now = now;
        std::mem::swap(ops, &mut self.core.ops);
    }

    fn leave(&mut self, ops: &mut Vec<(Token, Op)>) {
        std::mem::swap(ops, &mut self.core.ops);
        self.core.counters.sessions.set(u64::from(self.sessions.len()));
    }

    fn on_socket(&mut self, id: SocketId, event: Event, bytes: &[u8]) {
        match event {
            Event::Accepted { incoming, peer, local } => self.accept(id, incoming, peer, local),
            Event::Stopped { why } => self.core.rearm(id, why),
            Event::Unlistened => self.core.unlistened(id),
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
        let Some((table, socket)) = core.tables.of(id) else {
            return core.push(Token::socket(id), Op::Refuse { incoming });
        };
        let first = First {
            header: socket.accept_proxy.iter().any(|range| range.contains(&client.ip())),
            request: socket.starttls.is_some(),
            hello: socket.reads_hello,
        };
        let timeouts = Timeouts { hello: socket.hello_timeout, ..NO_TIMEOUTS };
        let protocol = if first.hello { Protocol::Tls } else { Protocol::Tcp };
        let listener = tables::sole_listener(table, socket);
        let session = Session::new((id, protocol), client, local, core.now, timeouts);
        let Some((slot, generation)) = self.sessions.insert(session) else {
            core.push(Token::socket(id), Op::Refuse { incoming });
            let reason = CloseReason::SessionLimit as usize;
            match listener.map(|listener| core.counters.listener(listener)) {
                Some(counters) => {
                    counters.opened.add(1);
                    counters.refused[reason].add(1);
                }
                None => core.counters.unmatched[reason].add(1),
            }
            return core.log(SessionRecord {
                listener,
                refused: true,
                reason: Some(CloseReason::SessionLimit),
                ..SessionRecord::new(protocol, id, (client, local), core.now, core.now)
            });
        };
        let token = Token { kind: Kind::Session, slot, generation };
        core.push(token, Op::Adopt { incoming });
        if let Some(session) = self.sessions.at_mut(slot) {
            session.begin(core, token, first, listener);
        }
    }

    /// After `drain_timeout`: closes what is left, idle ones first, spread over some time, so that
    /// clients do not all come back in one moment.
    fn drain_step(&mut self) {
        let now = self.core.now;
        let Some(drain) = &mut self.drain else { return };
        if now < drain.next {
            return;
        }
        if drain.left.is_none() {
            self.flows.end_all(now, CloseReason::Drained);
        }
        let sessions = &self.sessions;
        let left = drain.left.get_or_insert_with(|| {
            let mut slots: Vec<(u64, u32)> =
                sessions.iter().map(|(slot, session)| (session.last_byte(), slot)).collect();
            slots.sort_unstable_by(|a, b| b.cmp(a));
            slots.into_iter().map(|(_, slot)| slot).collect()
        });
        let steps = drain.until.saturating_sub(now) / DRAIN_STEP + 1;
        let count = (left.len() as u64).div_ceil(steps);
        for slot in left.split_off(left.len() - usize::try_from(count).unwrap_or(left.len())) {
            if let Some(session) = self.sessions.at_mut(slot) {
                session.close(&mut self.core, CloseReason::Drained);
            }
        }
        if left.is_empty() {
            // Sessions that came out of an accept queue since then are closed in the next step.
            drain.left = None;
            drain.until = now;
        }
        drain.next = now + DRAIN_STEP;
    }
}

impl Core {
    fn push(&mut self, token: Token, op: Op) {
        self.ops.push((token, op));
    }

    /// A listening socket has stopped by itself: it goes on at once, or, where trying again would
    /// only fail again, after a rest.
    fn rearm(&mut self, id: SocketId, why: Option<Why>) {
        match why {
            Some(why) if !why.is_of_peer() => {
                let (pauses, pause) = match self.tables.transport(id) {
                    Some(Transport::Udp) => (&self.counters.receive_pauses, RECEIVE_PAUSE),
                    Some(Transport::Tcp) | None => (&self.counters.accept_pauses, ACCEPT_PAUSE),
                };
                pauses.add(1);
                self.paused.push((id, self.now + pause));
            }
            _ => self.start(id),
        }
    }

    fn unpause(&mut self) {
        while let Some(position) = self.paused.iter().position(|(_, until)| *until <= self.now) {
            let (id, _) = self.paused.swap_remove(position);
            self.start(id);
        }
    }

    fn start(&mut self, id: SocketId) {
        if self.tables.is_closing(id) {
            return;
        }
        if let Some(transport) = self.tables.transport(id) {
            let op = match transport {
                Transport::Tcp => Op::Accept,
                Transport::Udp => Op::Receive,
            };
            self.push(Token::socket(id), op);
        }
    }

    fn unlisten(&mut self, id: SocketId) {
        // A pause must not start what comes back under this id.
        self.paused.retain(|(paused, _)| *paused != id);
        self.push(Token::socket(id), Op::Unlisten);
    }

    fn unlistened(&mut self, id: SocketId) {
        if let Some(table) = self.tables.unlistened(id) {
            self.records.push(Record::Unlistened(id));
            self.records.push(Record::Retired(table));
        }
    }

    /// Queues an access-log line; rejections only as many as are worth reading.
    fn log(&mut self, mut record: SessionRecord) {
        if record.refused {
            match self.rejections.admit(self.now) {
                Some(suppressed) => record.suppressed = suppressed,
                None => return,
            }
        }
        self.records.push(Record::Closed(record));
    }
}

/// Ids of connections: no other worker, and no other run of this one, gives the same.
#[derive(Debug)]
struct Ids {
    /// Of this worker in this run: 64 bits that were drawn.
    drawn: u64,
    given: u64,
}

impl Ids {
    fn new(seed: u64) -> Self {
        // The seed itself keys hashes, which nobody should know.
        let drawn = ahash::RandomState::with_seeds(seed, 1, 2, 3).hash_one("ids");
        Self { drawn, given: 0 }
    }

    fn next(&mut self) -> u128 {
        self.given += 1;
        u128::from(self.drawn) << 64 | u128::from(self.given)
    }
}

/// A token bucket for log lines of rejections: a flood must not fill the disk.
#[derive(Debug)]
struct Rejections {
    tokens: u32,
    refilled: u64,
    suppressed: u32,
}

/// Lines per second, and at once.
const REJECTION_RATE: u64 = 50;
const REJECTION_BURST: u32 = 200;

impl Default for Rejections {
    fn default() -> Self {
        Self { tokens: REJECTION_BURST, refilled: 0, suppressed: 0 }
    }
}

impl Rejections {
    /// How many were suppressed before this one, or `None` to suppress it.
    fn admit(&mut self, now: u64) -> Option<u32> {
        let new = now.saturating_sub(self.refilled) * REJECTION_RATE / 1_000_000;
        if new > 0 {
            self.refilled = now;
            self.tokens = u32::try_from(new).unwrap_or(u32::MAX).saturating_add(self.tokens);
            self.tokens = self.tokens.min(REJECTION_BURST);
        }
        if self.tokens == 0 {
            self.suppressed += 1;
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// Milliseconds, as tables have them, in the microseconds of the worker's clock.
fn micros(millis: u32) -> u64 {
    u64::from(millis) * 1_000
}
