//! What all sessions of simulated parts may have together.

use std::sync::Arc;

use config_sync::table::limit::{Limit, Usage};
use config_sync::table::load::NO_LIMIT;
use config_sync::table::rate::Rate;
use config_sync::table::routing::Protocol;

use crate::sim::rng::Rng;

/// A rate of bytes, or none.
pub fn some_bytes(rng: &mut Rng) -> Option<Rate> {
    let per_second = rng.scale(100_000, 50_000_000);
    rng.per_mille(300).then(|| Rate::new(per_second, per_second))
}

/// A few limits, which parts share.
#[derive(Clone, Debug)]
pub struct SharedLimits(Vec<One>);

#[derive(Clone, Debug)]
struct One {
    usage: Arc<Usage>,
    limit: Option<Box<Limit>>,
    /// Whether a listener for TCP with this limit delays.
    delays: bool,
    /// The most sessions that the limit has allowed so far.
    most: u32,
}

impl SharedLimits {
    pub fn random(rng: &mut Rng) -> Self {
        let one = |_| One { usage: Arc::default(), limit: None, delays: false, most: 0 };
        let mut limits = Self((0..6).map(one).collect());
        if rng.per_mille(500) {
            limits.change(rng);
        }
        limits
    }

    pub fn change(&mut self, rng: &mut Rng) {
        for one in &mut self.0 {
            let sessions = rng.pick(&[NO_LIMIT, 1, 3, 10]);
            let opening = rng.per_mille(300).then(|| {
                let burst = rng.scale(1, 50);
                Rate::new(rng.scale(1, 10_000), burst)
            });
            let bytes = some_bytes(rng);
            let nothing = Limit::nothing(Arc::clone(&one.usage));
            let limit = Limit { sessions, opening, bytes, ..nothing };
            one.delays = rng.per_mille(300);
            one.limit = rng.per_mille(200).then(|| Box::new(limit));
            one.most = one.most.max(sessions);
        }
    }

    /// In another process.
    pub fn count_anew(&mut self) {
        for one in &mut self.0 {
            one.usage = Arc::default();
            if let Some(limit) = &mut one.limit {
                limit.usage = Arc::clone(&one.usage);
            }
        }
    }

    /// The limit of a part, or none. Parts whose numbers differ by 6 share it.
    pub fn of(&self, part: u32) -> Option<Box<Limit>> {
        self.0[part as usize % self.0.len()].limit.clone()
    }

    /// The limit of a listener, or none.
    pub fn of_listener(&self, part: u32, protocol: Protocol) -> Option<Box<Limit>> {
        let delays = self.0[part as usize % self.0.len()].delays && protocol == Protocol::Tcp;
        self.of(part).map(|limit| Box::new(Limit { delays, ..*limit }))
    }

    /// No limit counts more sessions than there are, or than it allows. `moved`: sessions that came
    /// from another process, which have a place whether there is one or not.
    pub fn check(&self, live: u64, moved: u32) {
        for One { usage, most, .. } in &self.0 {
            let counted = usage.sessions.get();
            assert!(u64::from(counted) <= live, "{counted} count, and {live} live");
            assert!(counted <= most.saturating_add(moved), "{counted} of {most} sessions");
        }
    }

    pub fn check_empty(&self) {
        let counted = self.0.iter().map(|one| one.usage.sessions.get());
        assert_eq!(counted.sum::<u32>(), 0, "sessions of a limit after the end");
    }
}
