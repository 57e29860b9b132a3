//! Pauses between attempts, each twice as long as the last, up to a most.

use std::time::{Duration, Instant};

/// Between attempts, such as to bind an address; doubles from the least to the most.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
const MOST_PAUSE: Duration = Duration::from_secs(60);

/// When what has failed is tried again. Nothing is to be tried before the first failure.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff(Option<(Duration, Instant)>);

impl Backoff {
    pub(crate) fn failed(&mut self, now: Instant) {
        let pause = self.0.map_or(LEAST_PAUSE, |(pause, _)| (pause * 2).min(MOST_PAUSE));
        self.0 = Some((pause, now + pause));
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.0.is_some_and(|(_, next)| next <= now)
    }
}
