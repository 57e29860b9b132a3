//! Counts that all workers share. Each worker adds and subtracts its own sessions, so a count holds
//! over all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The load of an endpoint.
#[derive(Clone, Debug)]
pub struct Load {
    /// The sessions and flows of all workers: connecting, open, and ending.
    pub sessions: Arc<SharedCount>,
}

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

    pub fn add(&self, n: u32) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn sub(&self, n: u32) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }
}
