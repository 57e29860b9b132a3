//! What goes wrong in a seed's world, and how often.

use crate::sim::rng::Rng;

/// How often each fault strikes, in 1000.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub short_read: u32,
    pub short_write: u32,
    pub would_block: u32,
    /// A `Ready` without news.
    pub spurious: u32,
    /// An event that comes up to `lag` microseconds late, so that others overtake it.
    pub late: u32,
    pub lag: u64,
    /// A multishot that ends without a reason.
    pub stop: u32,
    /// Files or memory that run out at accept.
    pub exhausted: u32,
    /// A stream that does not begin, and one that no buffer is free for.
    pub no_stream: u32,
    pub no_buffer: u32,
    /// Ports, files or memory that run out at connect.
    pub no_local: u32,
    pub truncate: u32,
    pub send_fails: u32,
    pub open_fails: u32,
    pub promote_fails: u32,
    /// Promoted flows whose datagrams to the endpoint reach nobody.
    pub promoted_breaks: u32,
    /// Events of a slot's earlier generation.
    pub dead: u32,
}

impl Faults {
    /// Each fault is off in half of the seeds: what is always on hides what needs its absence.
    pub fn random(rng: &mut Rng) -> Self {
        let mut some = |max: u64| if rng.per_mille(500) { 0 } else { rng.scale(1, max) as u32 };
        Self {
            short_read: some(200),
            short_write: some(200),
            would_block: some(100),
            spurious: some(50),
            late: some(400),
            lag: u64::from(some(20_000)),
            stop: some(50),
            exhausted: some(50),
            no_stream: some(500),
            no_buffer: some(50),
            no_local: some(50),
            truncate: some(20),
            send_fails: some(50),
            open_fails: some(50),
            dead: some(300),
            promote_fails: some(300),
            promoted_breaks: some(500),
        }
    }
}
