//! Runs one core: the loop that joins a proxy and a ring. Only this file reads the clock.

#![expect(clippy::disallowed_methods, reason = "here time enters; elsewhere it is an argument")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use config_sync::publish::Command;
use config_sync::table::moving::{Moving, MovingFlow};
use config_sync::table::request::{Handle, Request, What};
use config_sync::table::routing::Limits;
use core_affinity::CoreId;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use nix::time::ClockId;

use crate::contract::{Event, Kind, Op, Token};
use crate::proxy::Proxy;
use crate::proxy::memory;
use crate::proxy::table_queue::{Step, TableQueue};
use crate::ring::sys::confine::confine_worker;
use crate::ring::{Features, Ring, RingError, SharedPath, Turn};
use crate::stats::counters::Counters;
use crate::stats::records::{Offered, OfferedFlow, Record};

/// Microseconds since `BEFORE` the process began. All workers and the control thread begin with it.
/// A worker then leaves the time out for which it was stopped within a turn.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        let now = Instant::now();
        Self(now.checked_sub(BEFORE).unwrap_or(now))
    }

    pub fn micros(self) -> u64 {
        u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The Unix time in microseconds at which the clock stood at 0, computed from the present time
    /// of day. Rates over all workers need the workers' times to agree.
    pub fn epoch(self) -> u64 {
        let day = ClockId::CLOCK_REALTIME.now().map_or(Duration::ZERO, Duration::from);
        u64::try_from(day.as_micros()).unwrap_or(u64::MAX).saturating_sub(self.micros())
    }

    /// Leaves the time from `began` to `now` out if that is long. From then on the clock shows
    /// less. Returns the microseconds that were left out.
    fn leave_out(&mut self, now: u64, began: u64) -> u64 {
        let spent = now.saturating_sub(began);
        if spent < LATE {
            return 0;
        }
        self.0 += Duration::from_micros(spent);
        spent
    }
}

/// How much of the time before the process the clock has, because sessions come from earlier
/// processes.
const BEFORE: Duration = Duration::from_secs(400 * 86_400);

/// Copies of the sockets of a session or flow that is offered to another process. They come before
/// the record that has the session or flow.
pub type Copies = (Handle, Sockets);

#[derive(Debug)]
pub enum Sockets {
    /// The connections with the client and with the endpoint.
    Session([OwnedFd; 2]),
    /// The socket towards the endpoint.
    Flow(OwnedFd),
}

/// The settings and channels of a worker.
pub struct WorkerConfig {
    /// The core to run on. `None`: the scheduler chooses the core.
    pub core: Option<CoreId>,
    /// The worker's number, from 0.
    pub index: usize,
    /// Whether no datagram of a client is received before [`What::Hear`].
    ///
    /// [`What::Hear`]: config_sync::table::request::What::Hear
    pub waits: bool,
    /// Whether the thread gives up the system calls that a worker never makes.
    pub confined: bool,
    pub limits: Limits,
    pub features: Features,
    pub counters: Arc<Counters>,
    pub commands: Receiver<Command>,
    /// An eventfd, written after each command.
    pub wake: OwnedFd,
    pub records: Sender<Record>,
    pub copies: Sender<Copies>,
    /// The end of a pipe, written when answers to requests are among the records: sessions stand
    /// still while some requests are answered. Other records wait until the control thread looks.
    pub bell: Arc<OwnedFd>,
    pub clock: Clock,
    /// The time until which source ports are short, in microseconds of the clock. All workers read
    /// and write this value, so that no worker keeps idle sockets whose ports another worker wants.
    pub ports_short: Arc<AtomicU64>,
    /// The kernel's path for UDP flows, which the control thread opens when a table asks for it.
    pub fast_path: SharedPath,
    /// The seed of the worker's random choices.
    pub seed: u64,
}

/// A worker's thread, and its word on whether it has a ring. Nothing may be bound before the worker
/// has a ring.
pub struct Spawned {
    pub thread: JoinHandle<io::Result<()>>,
    pub ready: Receiver<Result<(), RingError>>,
}

/// Starts a worker. The thread ends after the last table, when no session or flow lives any more.
/// An error that makes the ring useless also ends the thread.
///
/// # Errors
/// The thread could not be made.
pub fn spawn(config: WorkerConfig) -> io::Result<Spawned> {
    let (tell, ready) = bounded(1);
    let name = format!("ringway-{}", config.index);
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        if let Some(core) = config.core
            && !core_affinity::set_for_current(core)
        {
            tracing::warn!("worker {} could not be pinned to core {}", config.index, core.id);
        }
        let confined = config.confined;
        let mut worker = match Worker::new(config) {
            Ok(worker) => worker,
            Err(error) => {
                // The control thread waits for this word. The receiver is gone only if the process
                // ends.
                let _ = tell.send(Err(error));
                return Ok(());
            }
        };
        if confined && let Err(error) = confine_worker() {
            tracing::warn!("sandbox: the calls of a worker can't be filtered: {error}");
        }
        let _ = tell.send(Ok(()));
        while !worker.is_done() {
            worker.turn()?;
        }
        Ok(())
    })?;
    Ok(Spawned { thread, ready })
}

/// The proxy and the ring of a core. A worker belongs to the thread that makes it.
pub struct Worker {
    proxy: Proxy,
    ring: Ring,
    turn: Turn,
    ops: Vec<(Token, Op)>,
    /// The sockets that the latest tables hand over, and the ops that these tables ask of the ring.
    /// These ops are about listening sockets, so a session's ops never wait for them.
    tables: TableQueue<Arc<OwnedFd>>,
    commands: Receiver<Command>,
    records: Sender<Record>,
    copies: Sender<Copies>,
    bell: Arc<OwnedFd>,
    /// Records that found the channel full and must not be lost.
    kept: VecDeque<Record>,
    counters: Arc<Counters>,
    clock: Clock,
    ports_short: Arc<AtomicU64>,
    /// When the worker looks at the time of day again.
    look_at: u64,
    /// When the last turn began.
    began: u64,
    /// Microseconds that `clock` has left out.
    left_out: u64,
}

/// Room from the start for the events and ops of one turn: as many as the completion queue holds.
const MOST: usize = 16_384;

/// The maximum number of the tables' steps in one turn. A table of a thousand new listeners must
/// not make sessions wait for milliseconds.
const TABLE_STEPS: usize = 64;

/// The number of UDP flows with a new socket that begin in one turn, as long as others can wait:
/// what the kernel does for 16 sockets takes about a millisecond, for which sessions have to wait.
/// Behind a turn of more than four milliseconds there are more. With few buffers for datagrams
/// there are fewer.
const NEW_FLOWS: u32 = 16;

/// The most records that wait to be collected: 20 ms at 400,000 sessions a second.
pub const RECORDS: usize = 8_192;

/// One turn in this many is timed. Otherwise the worker reads the clock once a turn.
pub const SAMPLED: u64 = 8;

/// Microseconds for which the worker trusts its own clock before it looks at the time of day again.
const DAYTIME: u64 = 10_000_000;

/// Microseconds. A deadline that is acted on this much later shows that the worker did not run.
const LATE: u64 = 100_000;
/// How often the worker then looks for more events.
const MOST_LOOKS: u32 = 64;

/// The pause before the worker tries records again that found the channel full.
const RETRY: Duration = Duration::from_millis(20);

/// The most bytes by which a worker's memory grows once it has started, without the TLS of its
/// sessions ([`memory::of_tls`]). `reads`: see [`memory::growth`].
pub const fn growth(limits: &Limits, reads: bool) -> u64 {
    let turn = MOST * (size_of::<(Token, Event)>() + 2 * size_of::<(Token, Op)>());
    let records = RECORDS * memory::of_record(reads);
    (turn + memory::growth(limits, MOST, reads) + Ring::growth(limits) + records) as u64
}

impl Worker {
    /// Opens the ring, and allocates all memory that the limits allow.
    ///
    /// # Errors
    /// The kernel refuses the ring, or the memory or files for the ring.
    pub fn new(config: WorkerConfig) -> Result<Self, RingError> {
        let counters = config.counters;
        let wake = config.wake;
        let mut ring = Ring::new(config.limits, &config.features, wake, Arc::clone(&counters))?;
        ring.use_path(config.fast_path);
        let mut proxy = Proxy::new(config.limits, config.seed, Arc::clone(&counters));
        if config.waits {
            proxy.wait_for_flows();
        }
        let buffers = config.limits.buffers;
        proxy.bound_new_flows((u32::from(buffers) / 16).clamp(1, NEW_FLOWS), buffers);
        Ok(Self {
            ring,
            proxy,
            turn: Turn { events: Vec::with_capacity(MOST), ..Turn::default() },
            ops: Vec::with_capacity(MOST),
            tables: TableQueue::default(),
            commands: config.commands,
            records: config.records,
            copies: config.copies,
            bell: config.bell,
            kept: VecDeque::new(),
            counters,
            clock: config.clock,
            ports_short: config.ports_short,
            look_at: 0,
            began: config.clock.micros(),
            left_out: 0,
        })
    }

    /// Waits for an event or a deadline, and does all the work that follows.
    ///
    /// # Errors
    /// The ring is of no use any more.
    pub fn turn(&mut self) -> io::Result<()> {
        let due = self.proxy.next_due();
        let deadline = if self.proxy.goes_on() { Some(0) } else { due };
        let timeout = self.timeout(deadline);
        let mut woken = self.ring.wait(timeout, &mut self.turn)?;
        let now = self.clock.micros();
        self.began = now;
        if now >= self.look_at {
            self.look_at = now + DAYTIME;
            self.proxy.set_epoch(self.clock.epoch());
        }
        self.settle(now);
        if let Some(due) = due.filter(|due| *due <= now) {
            woken |= self.catch_up(now, due)?;
        }
        if woken {
            self.apply_commands(now);
        }
        self.carry_on_with_tables(now);
        self.let_newcomers_in(now);
        self.share_shortage();
        self.proxy.expire(now, &mut self.ops);
        self.proxy.resume(now, &mut self.ops);
        self.carry_out();
        self.settle(now);
        self.report();
        if self.counters.turns.get().is_multiple_of(SAMPLED) {
            self.counters.turn.record(self.clock.micros() - now);
        }
        Ok(())
    }

    /// Shares the shortage of source ports with the other workers. The worker writes the value only
    /// while ports are short, so all other workers find the value in their cache.
    fn share_shortage(&mut self) {
        let known = self.ports_short.load(Ordering::Relaxed).saturating_sub(self.left_out);
        let until = self.proxy.share_shortage(known);
        if until > known {
            self.ports_short.fetch_max(until + self.left_out, Ordering::Relaxed);
        }
    }

    /// How long the ring may wait. Reads the clock only if there is a deadline.
    fn timeout(&mut self, deadline: Option<u64>) -> Option<Duration> {
        let deadline = deadline.map(|deadline| {
            let now = self.leave_out_stops();
            Duration::from_micros(deadline.saturating_sub(now))
        });
        let retry = (!self.kept.is_empty()).then_some(RETRY);
        if !self.tables.is_empty() {
            return Some(Duration::ZERO);
        }
        [deadline, retry].into_iter().flatten().min()
    }

    /// Leaves the time of the last turn out of the worker's clock if the process was stopped within
    /// that turn, and returns the time. All that the turn did has the time at which the turn began.
    /// Without this, a session that has just moved bytes would look idle for as long as the process
    /// was stopped.
    fn leave_out_stops(&mut self) -> u64 {
        let now = self.clock.micros();
        let left_out = self.clock.leave_out(now, self.began);
        if left_out > 0 {
            self.left_out += left_out;
            // The time of day of the clock's 0 has moved.
            self.look_at = 0;
        }
        now - left_out
    }

    /// Handles the events that came by `now`, before anything expires. The wait may have ended
    /// before these events were reported: if the process was stopped or had no core, bytes of a
    /// session that looks idle may have waited for long. Where a deadline is late, the worker looks
    /// several times, because the bytes for which no buffer was free count too.
    fn catch_up(&mut self, now: u64, due: u64) -> io::Result<bool> {
        let looks = if now - due < LATE { 1 } else { MOST_LOOKS };
        let mut woken = false;
        for _ in 0..looks {
            woken |= self.ring.wait(Some(Duration::ZERO), &mut self.turn)?;
            if self.turn.events.is_empty() {
                break;
            }
            self.settle(now);
        }
        Ok(woken)
    }

    /// Gives each event to the proxy and carries out the proxy's ops, until no event is left.
    /// Directions with much to move go on in `resume`, so this loop ends.
    fn settle(&mut self, now: u64) {
        let mut next = 0;
        while next < self.turn.events.len() {
            while let Some((token, event)) = self.turn.events.get(next).copied() {
                next += 1;
                if self.tables.is_stale(token, event) {
                    continue;
                }
                let bytes = match event {
                    Event::Datagrams { buffer, .. } => self.ring.payload(buffer),
                    _ => &self.turn.bytes,
                };
                self.proxy.handle(now, token, event, bytes, &mut self.ops);
            }
            // The proxy has handled all events that refer to these bytes, so the arena stays as
            // small as one round needs.
            self.turn.bytes.clear();
            self.carry_out();
        }
        self.turn.events.clear();
        self.turn.trim();
    }

    /// Lets new clients in that have waited for their turn, behind the work for those who were
    /// there. Before `expire`, as the flows that begin with an event do.
    fn let_newcomers_in(&mut self, now: u64) {
        let mut has_let_in = false;
        while let Some((token, event)) = self.proxy.newcomer(now) {
            if self.tables.is_stale(token, event) {
                continue;
            }
            has_let_in = true;
            let bytes = match event {
                Event::Datagrams { buffer, .. } => self.ring.payload(buffer),
                _ => &[],
            };
            self.proxy.let_in(now, (token, event), bytes, &mut self.ops);
        }
        if has_let_in {
            self.carry_out();
            self.settle(now);
        }
    }

    fn carry_out(&mut self) {
        self.tables.defer(&mut self.ops);
        std::mem::swap(self.proxy.output(), &mut self.turn.output);
        self.ring.carry_out(&mut self.ops, &mut self.turn);
    }

    fn apply_commands(&mut self, now: u64) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Table { table, sockets } => {
                    for (socket, transport, fd) in sockets {
                        self.tables.listen(socket, transport, fd);
                    }
                    let began = self.clock.micros();
                    self.proxy.apply(now, table, &mut self.ops);
                    self.tables.ask(&mut self.ops);
                    let took = self.clock.micros() - began;
                    self.counters.table_micros.set(took);
                    let most = &self.counters.table_micros_most;
                    most.set(most.get().max(took));
                }
                Command::Ask(request) => self.ask(now, request),
                Command::Adopt { number, sessions, sockets } => {
                    self.adopt(now, number, sessions, sockets);
                }
                Command::AdoptFlows { number, flows, sockets } => {
                    self.adopt_flows(now, number, flows, sockets);
                }
                Command::Look => self.ring.look(&mut self.turn),
                Command::Stop => self.proxy.stop(now, &mut self.ops),
            }
            self.carry_out();
            self.settle(now);
        }
    }

    fn ask(&mut self, now: u64, mut request: Request) {
        if let What::Own(flows) = &mut request.what {
            for (_, figures) in flows {
                figures.last = figures.last.saturating_sub(self.left_out);
            }
        }
        self.proxy.ask(now, request, &mut self.ops);
    }

    fn adopt(&mut self, now: u64, number: u64, sessions: Vec<Moving>, sockets: Vec<[OwnedFd; 2]>) {
        let arrivals = sessions.into_iter().zip(sockets).map(|(mut moving, sockets)| {
            shift_back(&mut moving, self.left_out);
            (moving, self.ring.arrive(sockets))
        });
        let arrivals = arrivals.collect();
        self.proxy.adopt(now, number, arrivals, &mut self.ops);
        self.carry_out();
        self.ring.clear_arrivals();
    }

    fn adopt_flows(
        &mut self,
        now: u64,
        number: u64,
        flows: Vec<MovingFlow>,
        sockets: Vec<OwnedFd>,
    ) {
        let left_out = self.left_out;
        let arrivals = flows.into_iter().zip(sockets).map(|(mut moving, socket)| {
            moving.opened = moving.opened.saturating_sub(left_out);
            moving.last = moving.last.saturating_sub(left_out);
            (moving, self.ring.arrive_upstream(socket))
        });
        let arrivals = arrivals.collect();
        self.proxy.adopt_flows(now, number, arrivals, &mut self.ops);
        self.carry_out();
        self.ring.clear_arrivals();
    }

    /// Carries out some steps of the tables, and leaves the rest for the next turns. New sockets
    /// listen already, so no client is turned away by a socket that does not accept yet.
    fn carry_on_with_tables(&mut self, now: u64) {
        if self.tables.is_empty() {
            return;
        }
        for step in self.tables.some(TABLE_STEPS) {
            match step {
                Step::Op(token, op) => self.ops.push((token, op)),
                Step::Listen(id, transport, socket) => {
                    // Ops that were asked for earlier come first.
                    self.ring.carry_out(&mut self.ops, &mut self.turn);
                    self.ring.listen(id, transport, socket);
                }
            }
        }
        self.ring.carry_out(&mut self.ops, &mut self.turn);
        self.settle(now);
    }

    /// Passes records on without ever waiting. If the channel is full, the worker drops lines of
    /// the access log, and keeps all other records for the next turn.
    fn report(&mut self) {
        let mut has_answered = false;
        for mut record in self.proxy.records().drain(..) {
            // The access log has the time of day, which no clock leaves out.
            match &mut record {
                Record::Opened(session) | Record::Closed(session) => session.shift(self.left_out),
                Record::Reply(reply) => {
                    has_answered = true;
                    for entry in &mut reply.entries {
                        entry.record.shift(self.left_out);
                        entry.last += self.left_out;
                    }
                    for Offered { handle, moving } in &mut reply.offered {
                        moving.opened += self.left_out;
                        moving.last_byte += self.left_out;
                        let Handle { slot, generation, .. } = *handle;
                        let token = Token { kind: Kind::Session, slot, generation };
                        if let Some(copies) = self.ring.copies(token) {
                            // Without its copies the session stays here.
                            let _ = self.copies.try_send((*handle, Sockets::Session(copies)));
                        }
                    }
                    for OfferedFlow { handle, moving, upstream } in &mut reply.flows {
                        moving.opened += self.left_out;
                        moving.last += self.left_out;
                        if let Some(copy) = self.ring.copy_upstream(*upstream) {
                            let _ = self.copies.try_send((*handle, Sockets::Flow(copy)));
                        }
                    }
                    for (_, figures) in &mut reply.settled {
                        figures.last += self.left_out;
                    }
                }
                _ => {}
            }
            if self.kept.is_empty() {
                match self.records.try_send(record) {
                    Ok(()) | Err(TrySendError::Disconnected(_)) => {}
                    Err(TrySendError::Full(record)) => keep(&mut self.kept, record, &self.counters),
                }
            } else {
                keep(&mut self.kept, record, &self.counters);
            }
        }
        while let Some(record) = self.kept.pop_front() {
            if let Err(TrySendError::Full(record)) = self.records.try_send(record) {
                self.kept.push_front(record);
                break;
            }
        }
        if has_answered {
            // The write fails if the pipe is full, and then it has been rung already.
            _ = nix::unistd::write(&self.bell, &[1]);
        }
    }

    /// Whether the last table was applied, no session or flow lives, and the control thread knows.
    pub fn is_done(&self) -> bool {
        self.proxy.is_done() && self.kept.is_empty() && self.tables.is_empty()
    }
}

/// The worker's clock has left out so many microseconds.
fn shift_back(moving: &mut Moving, left_out: u64) {
    moving.opened = moving.opened.saturating_sub(left_out);
    moving.last_byte = moving.last_byte.saturating_sub(left_out);
}

fn keep(kept: &mut VecDeque<Record>, record: Record, counters: &Counters) {
    match record {
        Record::Opened(_) | Record::Closed(_) => counters.records_dropped.add(1),
        Record::Applied { .. } | Record::Retired(_) | Record::Unlistened(_) | Record::Reply(_) => {
            kept.push_back(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_within_a_turn_is_left_out() {
        let mut clock = Clock::start();
        assert_eq!(
            clock.leave_out(clock.micros(), u64::MAX),
            0,
            "a turn that is not over took no time"
        );
        let (whole, began) = (clock, clock.micros());
        std::thread::sleep(Duration::from_micros(LATE));
        let left_out = clock.leave_out(clock.micros(), began);
        assert!(left_out >= LATE);
        let shown = clock.micros();
        assert!(whole.micros() - shown >= left_out);
    }
}
