//! Counts that all workers share. Each worker adds and subtracts its own sessions, so a count holds
//! over all workers.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

pub const NO_LIMIT: u32 = u32::MAX;

/// A count that all workers share. No other data is in its cache line.
///
/// A count tells nothing about other memory, so relaxed operations are enough.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct SharedCount(AtomicU32);

impl SharedCount {
    #[inline]
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds 1, unless the count has reached `most`. So the count is never above `most`, whatever
    /// other workers do at this moment.
    #[inline]
    pub fn try_add(&self, most: u32) -> bool {
        let one_more = |count| (count < most).then_some(count + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    #[inline]
    pub fn add(&self, n: u32) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    #[inline]
    pub fn sub(&self, n: u32) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }
}

/// The sessions and flows of a listener, over all workers.
#[derive(Debug, Default)]
pub struct Taken {
    pub full: SharedCount,
    /// Sessions with one side that has ended. `full` does not count them.
    pub ending: SharedCount,
}

/// The sessions that wait for a place at the endpoints of a backend, over all workers.
///
/// Each worker keeps a line of its own sessions. The tickets say who came first over all workers.
#[derive(Debug)]
#[repr(align(128))]
pub struct Line {
    waiting: AtomicU32,
    /// How many sessions have joined so far: the next ticket.
    tickets: AtomicU64,
    /// The lowest ticket that a worker has shown; `u64::MAX`: none. Each worker shows its first
    /// session again at each look, so the value is right again after a look at the latest.
    first: AtomicU64,
}

/// The most later sessions that may have a place before an earlier session of another worker has
/// one. 0 would leave places empty until the other worker looks.
pub const MOST_OVERTAKE: u64 = 32;

impl Default for Line {
    fn default() -> Self {
        Self { waiting: 0.into(), tickets: 0.into(), first: u64::MAX.into() }
    }
}

impl Line {
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// How many sessions have joined so far.
    pub fn tickets(&self) -> u64 {
        self.tickets.load(Ordering::Relaxed)
    }

    /// Adds a session, unless `most` sessions wait. Returns the session's ticket.
    pub fn join(&self, most: u32) -> Option<u64> {
        let one_more = |count| (count < most).then_some(count + 1);
        self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(self.tickets.fetch_add(1, Ordering::Relaxed))
    }

    pub fn leave(&self, ticket: u64) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        // Another ticket stays: it is of another worker.
        let (set, read) = (Ordering::Relaxed, Ordering::Relaxed);
        _ = self.first.compare_exchange(ticket, u64::MAX, set, read);
    }

    /// Tells the other workers of a worker's first session.
    pub fn show(&self, ticket: u64) {
        if self.first.load(Ordering::Relaxed) > ticket {
            self.first.fetch_min(ticket, Ordering::Relaxed);
        }
    }

    /// Whether the session with this ticket may take a place, though other workers' sessions wait.
    pub fn may_go(&self, ticket: u64) -> bool {
        self.first.load(Ordering::Relaxed).saturating_add(MOST_OVERTAKE) >= ticket
    }
}
