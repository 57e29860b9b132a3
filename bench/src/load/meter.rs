//! What a run has measured so far, and when it is over.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::outcome::{Latency, Outcome};

/// Counts what falls into its interval, for the tasks of one thread.
pub struct Meter {
    from: Instant,
    until: Instant,
    operations: Cell<u64>,
    bytes: Cell<u64>,
    errors: Cell<u64>,
    lost: Cell<u64>,
    nanos: RefCell<Histogram<u64>>,
}

impl Meter {
    /// The interval begins after `warmup` and is `length` long.
    pub fn new(now: Instant, warmup: Duration, length: Duration) -> Self {
        let nanos = Histogram::new(3).expect("three digits are within 0 to 5");
        Self {
            from: now + warmup,
            until: now + warmup + length,
            operations: Cell::default(),
            bytes: Cell::default(),
            errors: Cell::default(),
            lost: Cell::default(),
            nanos: RefCell::new(nanos),
        }
    }

    pub fn over(&self, now: Instant) -> bool {
        now >= self.until
    }

    pub fn until(&self) -> Instant {
        self.until
    }

    pub fn includes(&self, at: Instant) -> bool {
        (self.from..self.until).contains(&at)
    }

    /// An operation that moved `bytes` ended at `now`.
    pub fn done(&self, start: Start, now: Instant, bytes: usize) {
        let (since, counts_at) = match start {
            Start::Sent(at) => (at, now),
            Start::Due(at) => (at, at),
        };
        if self.moved(counts_at, bytes) {
            let nanos = now.saturating_duration_since(since).as_nanos();
            let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
            self.nanos.borrow_mut().record(nanos).expect("the histogram grows with what it holds");
        }
    }

    /// As [`Self::done`], where the time of one operation says nothing. Whether it counted.
    pub fn moved(&self, at: Instant, bytes: usize) -> bool {
        let counts = self.includes(at);
        if counts {
            self.operations.set(self.operations.get() + 1);
            self.bytes.set(self.bytes.get() + bytes as u64);
        }
        counts
    }

    /// Counts at any time: nothing may fail in the warm-up either.
    pub fn failed(&self) {
        self.errors.set(self.errors.get() + 1);
    }

    /// Counts at any time.
    pub fn lost(&self, datagrams: u64) {
        self.lost.set(self.lost.get() + datagrams);
    }

    pub fn outcome(&self) -> Outcome {
        Outcome {
            seconds: (self.until - self.from).as_secs_f64(),
            operations: self.operations.get(),
            bytes: self.bytes.get(),
            errors: self.errors.get(),
            lost: self.lost.get(),
            latency: Latency::of(&self.nanos.borrow()),
        }
    }
}

/// What an operation's latency counts from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    /// Closed loop: from when it was sent. It belongs to the interval in which it ended.
    Sent(Instant),
    /// Open loop: from when it was due, and belongs to the interval in which it was due, however
    /// late it ended.
    Due(Instant),
}
