//! Holds the state that the sessions and flows of one core share.

use std::collections::VecDeque;
use std::sync::Arc;

use config_sync::table::routing::{EndpointId, Limits, ListenerId, SocketId, Transport};
use config_sync::table::source_limit::{SourceRecord, SourceRecords};
use config_sync::table::terminator::WorkerTime;

use crate::contract::{Op, Side, Token, Why};
use crate::proxy::balance::Balancer;
use crate::proxy::delays::{Delays, LOOK};
use crate::proxy::gone::Gone;
use crate::proxy::hearing::Hearing;
use crate::proxy::log_limit::LogLimit;
use crate::proxy::places::Places;
use crate::proxy::tables::Tables;
use crate::proxy::tcp::bulk_marks::Marks;
use crate::proxy::timer::Wheel;
use crate::proxy::waiting::Waiting;
use crate::stats::counters::Counters;
use crate::stats::records::{CloseReason, Record, Reply, SessionRecord};

/// The state that the sessions and flows of one core share.
#[derive(Debug)]
pub struct Core {
    /// Microseconds. Set at each entry.
    pub now: u64,
    pub ops: Vec<(Token, Op)>,
    /// The Unix time at which `now` was 0, in microseconds.
    pub epoch: u64,
    /// The bytes that the `Give`s among `ops` refer to.
    pub output: Vec<u8>,
    /// Memory that all TLS connections use, one after the other.
    pub plain: Vec<u8>,
    pub scratch: Vec<u8>,
    /// The number of `Take`s and `Peek`s under way.
    pub takes: u32,
    pub tables: Tables,
    pub balancer: Balancer,
    pub gone: Gone,
    pub hearing: Hearing,
    pub waiting: Waiting,
    pub delays: Delays,
    /// TLS handshakes that have begun in this turn. `None`: a client that said its ClientHello has
    /// found no place at the listener, and looks again.
    pub handshakes: Vec<(ListenerId, Option<Token>)>,
    /// Sessions whose PROXY header was read in this turn, and that must say more.
    pub named: Vec<Token>,
    pub counters: Arc<Counters>,
    pub timers: Wheel,
    pub marks: Marks,
    pub records: Vec<Record>,
    /// Directions with a `Move` to come: bulk directions, and those with a spent budget.
    pub resumable: VecDeque<(Token, Side)>,
    /// Steps of sessions that wait for room in memory.
    pub postponed: VecDeque<(Token, Side, Postponed)>,
    pub places: Places,
    /// The records of clients' sources. `None`: no table had a limit for them so far.
    pub sources: Option<Arc<SourceRecords>>,
    /// Listening sockets that rest after an error, and until when.
    pub paused: Vec<(SocketId, u64)>,
    /// By reason, so that a flood for one reason hides no other.
    pub rejections: [LogLimit; CloseReason::COUNT],
    /// The ids that tell connections apart, for endpoints that are told an id.
    pub ids: Ids,
    pub turn_bytes: u32,
    pub bulk_bytes: u32,
}

/// A step that has to wait for its turn.
#[derive(Clone, Copy, Debug)]
pub enum Postponed {
    Take,
    Give,
    /// A look at the client's bytes. The session carries this step out.
    Peek,
}

/// The maximum number of `Take`s and `Peek`s under way on a worker. The bytes of all of them are in
/// memory at once.
pub const MOST_TAKES: u32 = 64;

/// The output may grow up to this many bytes before a side must wait for the bytes held for it. As
/// many bytes come of `MOST_TAKES` `Take`s.
pub const MOST_OUTPUT: usize = 64 * 34 * 1024;

/// Microseconds that accepting and receiving rest after the machine ran out of files or memory.
/// Receiving rests for less time, because clients wait in the accept queue, but datagrams are lost.
pub const ACCEPT_PAUSE: u64 = 100_000;

pub const RECEIVE_PAUSE: u64 = 5_000;

impl Core {
    /// Allocates all memory that `limits` allows.
    pub fn new(limits: Limits, seed: u64, counters: Arc<Counters>) -> Self {
        Self {
            now: 0,
            ops: Vec::new(),
            epoch: 0,
            output: Vec::new(),
            plain: Vec::new(),
            scratch: Vec::new(),
            takes: 0,
            tables: Tables::new(),
            balancer: Balancer::new(seed),
            gone: Gone::default(),
            hearing: Hearing::default(),
            waiting: Waiting::default(),
            delays: Delays::default(),
            handshakes: Vec::new(),
            named: Vec::new(),
            counters,
            timers: Wheel::new(limits.sessions),
            marks: Marks::new(),
            records: Vec::new(),
            resumable: VecDeque::with_capacity(2 * limits.sessions as usize),
            postponed: VecDeque::with_capacity(4 * limits.sessions as usize),
            places: Places::default(),
            sources: None,
            paused: Vec::new(),
            rejections: std::array::from_fn(|_| LogLimit::default()),
            ids: Ids::new(seed),
            turn_bytes: limits.turn_bytes,
            bulk_bytes: limits.bulk_bytes,
        }
    }

    pub fn push(&mut self, token: Token, op: Op) {
        self.ops.push((token, op));
    }

    /// A session or flow leaves its endpoint, so another session may have the place.
    pub fn leaves(&mut self, endpoint: EndpointId) {
        self.balancer.closed(endpoint);
        self.waiting.place_freed();
    }

    /// A session or flow ends, so its client's source may have another.
    pub fn leave_source(&self, record: Option<SourceRecord>) {
        if let (Some(record), Some(sources)) = (record, &self.sources) {
            sources.leave(record);
        }
    }

    /// A listening socket has stopped by itself. The socket goes on at once, or after a rest where
    /// a new try would only fail again.
    pub fn rearm(&mut self, id: SocketId, why: Option<Why>) {
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

    pub fn unpause(&mut self) {
        while let Some(position) = self.paused.iter().position(|(_, until)| *until <= self.now) {
            let (id, _) = self.paused.swap_remove(position);
            self.start(id);
        }
    }

    pub fn is_paused(&self, id: SocketId) -> bool {
        self.paused.iter().any(|(paused, _)| *paused == id)
    }

    pub fn start(&mut self, id: SocketId) {
        let is_over = self.tables.is_closing(id) || self.tables.is_released(id);
        if is_over {
            return;
        }
        let op = match self.tables.transport(id) {
            Some(Transport::Udp) if self.hearing.is_deaf(id) => return,
            Some(Transport::Udp) => Op::Receive,
            Some(Transport::Tcp) => match self.tables.delays(id) {
                None => Op::Accept,
                Some(limit) => {
                    let line = self.delays.has_line(id).then_some(LOOK);
                    if let Some(wait) = line.or_else(|| limit.wait(self.unix_micros())) {
                        let has_accepted = self.delays.rest(id, self.now, wait);
                        self.counters.accept_delays.add(u64::from(has_accepted));
                        return;
                    }
                    Op::AcceptOne
                }
            },
            None => return,
        };
        self.delays.rest_no_more(id);
        self.push(Token::socket(id), op);
    }

    pub fn unlisten(&mut self, id: SocketId) {
        self.give_up(id, Op::Unlisten);
    }

    /// Pushes `Unlisten` or `Release`.
    pub fn give_up(&mut self, id: SocketId, op: Op) {
        // A pause must not start a socket that comes back under this id.
        self.paused.retain(|(paused, _)| *paused != id);
        self.delays.rest_no_more(id);
        self.push(Token::socket(id), op);
    }

    /// Leaves the datagrams of clients in these sockets.
    pub fn deafen(&mut self, number: u64, ids: &[SocketId]) {
        let Self { hearing, tables, ops, .. } = self;
        let hears = |id: &SocketId| {
            let is_udp = tables.transport(*id) == Some(Transport::Udp);
            is_udp && !tables.is_closing(*id) && !tables.is_released(*id)
        };
        let ids = ids.iter().copied().filter(hears);
        hearing.deafen(number, ids.inspect(|id| ops.push((Token::socket(*id), Op::Halt))));
        self.answer_deaf();
    }

    /// A socket has stopped receiving, because it was told to or by itself. Returns false if the
    /// socket is not deaf.
    pub fn falls_quiet(&mut self, id: SocketId, why: Option<Why>) -> bool {
        let is_deaf = self.hearing.is_deaf(id) && self.tables.transport(id) == Some(Transport::Udp);
        if is_deaf {
            self.hearing.stopped(id);
            self.answer_deaf();
            if why.is_some_and(|why| !why.is_of_peer()) {
                // If the socket hears again before the pause is over, it goes on after the pause.
                self.paused.push((id, self.now + RECEIVE_PAUSE));
            }
        }
        is_deaf
    }

    /// Receives the datagrams of clients on all sockets again.
    pub fn hear(&mut self) {
        let ids = self.hearing.hear().unwrap_or_else(|| {
            let current = self.tables.current().sockets.iter().map(|socket| socket.id);
            let udp = |id: &SocketId| self.tables.transport(*id) == Some(Transport::Udp);
            current.chain(self.tables.leaving()).filter(udp).collect()
        });
        for id in ids {
            if self.paused.iter().all(|(paused, _)| *paused != id) {
                self.start(id);
            }
        }
        self.answer_deaf();
    }

    fn answer_deaf(&mut self) {
        if let Some(number) = self.hearing.answered() {
            self.records.push(Record::Reply(Reply { number, ..Reply::default() }));
        }
    }

    pub fn unlistened(&mut self, id: SocketId) {
        self.hearing.stopped(id);
        self.answer_deaf();
        if let Some(table) = self.tables.unlistened(id) {
            self.records.push(Record::Unlistened(id));
            self.records.push(Record::Retired(table));
        }
    }

    /// Queues the line of a flow or session that was refused, as [`Self::log`] does. A flood of
    /// refusals makes few records.
    pub fn log_refusal(
        &mut self,
        reason: CloseReason,
        record: impl FnOnce(&Self) -> SessionRecord,
    ) {
        if let Some(suppressed) = self.rejections[reason as usize].admit(self.now) {
            let record = SessionRecord { refused: true, suppressed, ..record(self) };
            self.records.push(Record::Closed(record));
        }
    }

    /// Queues an access-log line. Of rejections for one reason, only as many lines as people can
    /// read are queued.
    pub fn log(&mut self, mut record: SessionRecord) {
        if let Some(reason) = record.reason.filter(|_| record.refused) {
            match self.rejections[reason as usize].admit(self.now) {
                Some(suppressed) => record.suppressed = suppressed,
                None => return,
            }
        }
        self.records.push(Record::Closed(record));
    }

    /// Whether another `Take` or `Give` stays within the bounds of a worker's memory.
    pub fn has_room(&self) -> bool {
        self.takes < MOST_TAKES && self.output.len() < MOST_OUTPUT
    }

    /// Sets rustls' clock on this thread to the worker's clock.
    pub fn tell_time(&self) {
        WorkerTime::set(self.unix_time());
    }

    /// In seconds.
    pub fn unix_time(&self) -> u64 {
        self.unix_micros() / 1_000_000
    }

    pub fn unix_micros(&self) -> u64 {
        self.epoch + self.now
    }
}

/// Ids of connections. No other worker and no other run of this worker gives an equal id.
#[derive(Debug)]
pub struct Ids {
    /// 64 random bits of this worker in this run.
    pub drawn: u64,
    pub given: u64,
}

impl Ids {
    pub fn new(seed: u64) -> Self {
        // The seed also keys hashes and must stay secret, so an id does not show the seed.
        let drawn = ahash::RandomState::with_seeds(seed, 1, 2, 3).hash_one("ids");
        Self { drawn, given: 0 }
    }

    pub fn next(&mut self) -> u128 {
        self.given += 1;
        u128::from(self.drawn) << 64 | u128::from(self.given)
    }
}

/// Converts the milliseconds of tables to the microseconds of the worker's clock.
pub fn micros(millis: u32) -> u64 {
    u64::from(millis) * 1_000
}
