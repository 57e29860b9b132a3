//! Counts that all workers share. Each worker adds and subtracts its own sessions, so a count holds
//! over all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The load of an endpoint.
#[derive(Clone, Debug)]
pub struct Load {
    /// The sessions and flows of all workers: connecting, open, and ending.
    pub sessions: Arc<SharedCount>,
    /// The most sessions and flows over all workers; [`NO_LIMIT`].
    pub most: u32,
}

pub const NO_LIMIT: u32 = u32::MAX;

/// A count that all workers share. No other data is in its cache line.
///
/// A count tells nothing about other memory, so relaxed operations are enough.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct SharedCount(AtomicU32);

impl SharedCount {
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds 1, unless the count has reached `most`. So the count is never above `most`, whatever
    /// other workers do at this moment.
    pub fn try_add(&self, most: u32) -> bool {
        let one_more = |count| (count < most).then_some(count + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    pub fn add(&self, n: u32) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn sub(&self, n: u32) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }
}
