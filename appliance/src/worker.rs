//! One core: the loop that joins a proxy and a ring. The only place that reads the clock.

#![expect(clippy::disallowed_methods, reason = "here time enters; elsewhere it is an argument")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use config_sync::publish::Command;
use config_sync::table::routing::Limits;
use core_affinity::CoreId;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use rustls::pki_types::UnixTime;

use crate::contract::{Event, Op, Token};
use crate::proxy::Proxy;
use crate::proxy::table_queue::{Step, TableQueue};
use crate::ring::{Features, Ring, RingError, Turn};
use crate::stats::counters::Counters;
use crate::stats::records::Record;

/// Microseconds since the process began; the same for all workers and the control thread.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn micros(self) -> u64 {
        u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The Unix time at which it stood at 0, microseconds, as the time of day is now: to a second.
    pub fn epoch(self) -> u64 {
        (UnixTime::now().as_secs() * 1_000_000).saturating_sub(self.micros())
    }
}

/// All that a worker is given.
pub struct WorkerConfig {
    /// The core to run on; `None`: wherever the scheduler likes.
    pub core: Option<CoreId>,
    /// Its number, from 0.
    pub index: usize,
    pub limits: Limits,
    pub features: Features,
    pub counters: Arc<Counters>,
    pub commands: Receiver<Command>,
    /// An eventfd, written after each command.
    pub wake: OwnedFd,
    pub records: Sender<Record>,
    pub clock: Clock,
    /// Until when source ports are short, microseconds of the clock: all workers read and write it,
    /// so that none keeps idle sockets whose ports another wants.
    pub ports_short: Arc<AtomicU64>,
    /// Of its random choices.
    pub seed: u64,
}

/// A worker's thread, and its word on whether it has a ring: nothing may be bound before it has.
pub struct Spawned {
    pub thread: JoinHandle<io::Result<()>>,
    pub ready: Receiver<Result<(), RingError>>,
}

/// Starts a worker. Its thread ends after the last table, when nothing lives any more, or with the
/// error that made its ring useless.
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
        let mut worker = match Worker::new(config) {
            Ok(worker) => worker,
            Err(error) => {
                // The control thread waits for this word; it has gone only if the process ends.
                let _ = tell.send(Err(error));
                return Ok(());
            }
        };
        let _ = tell.send(Ok(()));
        while !worker.is_done() {
            worker.turn()?;
        }
        Ok(())
    })?;
    Ok(Spawned { thread, ready })
}

/// A core's proxy and ring. It belongs to the thread that makes it.
pub struct Worker {
    proxy: Proxy,
    ring: Ring,
    turn: Turn,
    ops: Vec<(Token, Op)>,
    /// What the latest tables hand over and ask of the ring. A session's ops never wait for these:
    /// they are about listening sockets.
    tables: TableQueue<OwnedFd>,
    commands: Receiver<Command>,
    records: Sender<Record>,
    /// Records that found the channel full and must not be lost.
    kept: VecDeque<Record>,
    counters: Arc<Counters>,
    clock: Clock,
    ports_short: Arc<AtomicU64>,
    /// When the time of day is to be looked at again.
    look_at: u64,
}

/// Events and ops of one turn for which there is room from the start: as many as the completion
/// queue holds.
const MOST: usize = 16_384;

/// How many of the tables' steps are carried out in one turn: a table of a thousand new listeners
/// must not make sessions wait for milliseconds.
const TABLE_STEPS: usize = 64;

/// One turn in so many is timed: the clock is read once a turn otherwise.
pub const SAMPLED: u64 = 8;

/// How long the time of day is taken to go on as the worker's clock does, microseconds.
const DAYTIME: u64 = 10_000_000;

/// A deadline that is acted on so much later, microseconds, says that the worker did not run; and
/// how often it then looks for more that has come.
const LATE: u64 = 100_000;
const MOST_LOOKS: u32 = 64;

/// How soon records that found the channel full are tried again.
const RETRY: Duration = Duration::from_millis(20);

impl Worker {
    /// Opens the ring, and allocates all that the limits allow.
    ///
    /// # Errors
    /// The kernel refuses the ring, or the memory or files for it.
    pub fn new(config: WorkerConfig) -> Result<Self, RingError> {
        let counters = config.counters;
        Ok(Self {
            ring: Ring::new(config.limits, &config.features, config.wake, Arc::clone(&counters))?,
            proxy: Proxy::new(config.limits, config.seed, Arc::clone(&counters)),
            turn: Turn { events: Vec::with_capacity(MOST), ..Turn::default() },
            ops: Vec::with_capacity(MOST),
            tables: TableQueue::default(),
            commands: config.commands,
            records: config.records,
            kept: VecDeque::new(),
            counters,
            clock: config.clock,
            ports_short: config.ports_short,
            look_at: 0,
        })
    }

    /// Waits for something to happen or to be due, and does all that follows from it.
    ///
    /// # Errors
    /// The ring is of no use any more.
    pub fn turn(&mut self) -> io::Result<()> {
        let due = self.proxy.next_due();
        let timeout = self.timeout();
        let mut woken = self.ring.wait(timeout, &mut self.turn)?;
        let now = self.clock.micros();
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

    /// It is written only while ports are short, so all others find it in their cache.
    fn share_shortage(&mut self) {
        let known = self.ports_short.load(Ordering::Relaxed);
        let until = self.proxy.share_shortage(known);
        if until > known {
            self.ports_short.fetch_max(until, Ordering::Relaxed);
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let deadline = self
            .proxy
            .next_deadline()
            .map(|deadline| Duration::from_micros(deadline.saturating_sub(self.clock.micros())));
        let retry = (!self.kept.is_empty()).then_some(RETRY);
        if !self.tables.is_empty() {
            return Some(Duration::ZERO);
        }
        [deadline, retry].into_iter().flatten().min()
    }

    /// Sees to what has come by `now`, before anything expires. The wait may have ended before that
    /// was said: after the process was stopped, or had no core, bytes of a session that looks idle
    /// may have waited for long. Where a deadline is late, what buffers had no room for counts too.
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

    /// Gives every event to the proxy and carries out what it asks for, until it asks no more.
    /// Directions with much to move leave by way of `resume`, so this ends.
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
            // All that referred to it was handled: so it stays as small as one round's.
            self.turn.bytes.clear();
            self.carry_out();
        }
        self.turn.events.clear();
        self.turn.trim();
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
                Command::Stop => self.proxy.stop(now, &mut self.ops),
            }
            self.carry_out();
            self.settle(now);
        }
    }

    /// Some of what the tables hand over and ask for; the rest in the next turns. New sockets
    /// listen already, so nobody is turned away by those that are not accepted from yet.
    fn carry_on_with_tables(&mut self, now: u64) {
        if self.tables.is_empty() {
            return;
        }
        for step in self.tables.some(TABLE_STEPS) {
            match step {
                Step::Op(token, op) => self.ops.push((token, op)),
                Step::Listen(id, transport, socket) => {
                    // What was asked for earlier comes first.
                    self.ring.carry_out(&mut self.ops, &mut self.turn);
                    self.ring.listen(id, transport, socket);
                }
            }
        }
        self.ring.carry_out(&mut self.ops, &mut self.turn);
        self.settle(now);
    }

    /// Passes records on without ever waiting: lines of the access log are dropped when the channel
    /// is full, all else is kept for the next turn.
    fn report(&mut self) {
        for record in self.proxy.records().drain(..) {
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
                return;
            }
        }
    }

    /// The last table was applied, nothing lives, and the control thread knows.
    pub fn is_done(&self) -> bool {
        self.proxy.is_done() && self.kept.is_empty() && self.tables.is_empty()
    }
}

fn keep(kept: &mut VecDeque<Record>, record: Record, counters: &Counters) {
    match record {
        Record::Opened(_) | Record::Closed(_) => counters.records_dropped.add(1),
        Record::Applied { .. } | Record::Retired(_) | Record::Unlistened(_) => {
            kept.push_back(record);
        }
    }
}
