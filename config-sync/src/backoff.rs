//! Pauses between attempts. Each pause is twice as long as the last, up to a longest pause.

use std::time::{Duration, Instant};

/// Pauses from `least` to `most`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pauses {
    least: Duration,
    most: Duration,
    next: Duration,
}

impl Pauses {
    pub(crate) const fn new(least: Duration, most: Duration) -> Self {
        Self { least, most, next: least }
    }

    /// The pause before the next attempt. The pause after it will be twice as long.
    pub(crate) fn take(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.most);
        pause
    }

    /// An attempt succeeded: the next pause is the least again.
    pub(crate) fn restart(&mut self) {
        self.next = self.least;
    }

    /// The next pause is the least.
    pub(crate) fn is_first(&self) -> bool {
        self.next == self.least
    }
}

/// When an attempt that failed is made again. Nothing is due before the first failure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pauses: Pauses,
    due: Option<Instant>,
}

/// Pauses of 1 to 60 s, as for an address that can't be bound.
impl Default for Backoff {
    fn default() -> Self {
        Self::new(Duration::from_secs(1), Duration::from_secs(60))
    }
}

impl Backoff {
    pub(crate) const fn new(least: Duration, most: Duration) -> Self {
        Self { pauses: Pauses::new(least, most), due: None }
    }

    pub(crate) fn failed(&mut self, now: Instant) {
        self.due = Some(now + self.pauses.take());
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// When the next attempt is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_most() {
        let mut pauses = Pauses::new(Duration::from_secs(1), Duration::from_secs(5));
        let taken: Vec<_> = (0..5).map(|_| pauses.take().as_secs()).collect();
        assert_eq!(taken, [1, 2, 4, 5, 5]);
        pauses.restart();
        assert_eq!(pauses.take(), Duration::from_secs(1));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an instant has no other beginning")]
    fn nothing_is_due_before_the_first_failure() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        assert!(!backoff.is_due(now));
        backoff.failed(now);
        assert!(!backoff.is_due(now));
        assert!(backoff.is_due(now + Duration::from_secs(1)));
    }
}
