//! So many a second, over all workers.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// So many a second, and so many at once, by the generic cell rate algorithm (ITU-T I.371, annex
/// A). The state is one word, `paid`: the time until which everything taken so far is paid for, in
/// nanoseconds since 1970. All workers may use the word at once, and they never take more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Picoseconds for one.
    interval: u64,
    /// Nanoseconds in which who was silent before gets the burst back.
    burst: u64,
}

/// How far apart the times of two workers may be, at the very most, in nanoseconds.
const SKEW: u64 = 1_000_000_000;

impl Rate {
    /// `per_second`: 1 to 10,000,000,000. `burst`: 1 to as many, but no more than 1,000,000 of
    /// what comes less often than 1,000 times a second.
    pub fn new(per_second: u64, burst: u64) -> Self {
        let interval = 1_000_000_000_000 / per_second;
        Self { interval, burst: interval * burst / 1_000 }
    }

    /// Nanoseconds of `n`.
    fn price(self, n: u64) -> u64 {
        self.interval.saturating_mul(n) / 1_000
    }

    /// Takes `n` at once, or nothing; more than the burst cost as much as the burst.
    pub fn take(self, paid: &AtomicU64, n: u32, now: u64) -> bool {
        self.forgive(paid, now);
        paid.fetch_update(Relaxed, Relaxed, |paid| self.after(paid, n, now)).is_ok()
    }

    /// `paid` after `n` more. `None`: they come too early.
    pub fn after(self, paid: u64, n: u32, now: u64) -> Option<u64> {
        let price = self.price(n.into()).min(self.burst);
        let next = paid.max(now) + price;
        (next - now <= self.burst).then_some(next)
    }

    /// Takes as many as there are, `most` at the most, once there are enough to be worth it.
    ///
    /// # Errors
    /// The nanoseconds until there are enough.
    pub fn take_some(self, paid: &AtomicU64, most: u32, now: u64) -> Result<u32, u64> {
        self.forgive(paid, now);
        let mut taken = Err(0);
        let some = |paid: u64| {
            let owed = paid.saturating_sub(now);
            taken = match (owed + self.worth_it()).saturating_sub(self.burst) {
                0 => Ok(self.count(self.burst.saturating_sub(owed)).clamp(1, most.max(1))),
                wait => Err(wait),
            };
            taken.ok().map(|n| paid.max(now) + self.price(n.into()))
        };
        _ = paid.fetch_update(Relaxed, Relaxed, some);
        taken
    }

    /// Gives back `n` that were taken and not used.
    pub fn give_back(self, paid: &AtomicU64, n: u32) {
        let price = self.price(n.into()).min(self.burst);
        // The word may begin anew at 0 in the meantime.
        _ = paid.fetch_update(Relaxed, Relaxed, |paid| Some(paid.saturating_sub(price)));
    }

    /// Takes `n`, also if they come too early.
    pub fn charge(self, paid: &AtomicU64, n: u32, now: u64) {
        let next = |paid: u64| Some(paid.max(now) + self.price(n.into()));
        _ = paid.fetch_update(Relaxed, Relaxed, next);
    }

    /// Nobody waits for longer than the burst takes, also after a limit was raised, after the time
    /// of day was set back, and after somebody was charged for more.
    pub fn forgive(self, paid: &AtomicU64, now: u64) {
        let (seen, most) = (paid.load(Relaxed), now + self.burst);
        if seen > most + SKEW {
            _ = paid.compare_exchange(seen, most, Relaxed, Relaxed);
        }
    }

    /// Nanoseconds of what is worth waking for: 20 ms, or 4,096, or the whole burst.
    fn worth_it(self) -> u64 {
        self.price(4_096).max(20_000_000).min(self.burst)
    }

    /// How many so many nanoseconds pay for.
    fn count(self, nanos: u64) -> u32 {
        let count = u128::from(nanos) * 1_000 / u128::from(self.interval);
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second, in nanoseconds.
    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn bytes_come_in_pieces_that_are_worth_it() {
        for per_second in [1_000, 100_000, 7_000_000_000, 10_000_000_000] {
            let (rate, paid) = (Rate::new(per_second, per_second), AtomicU64::new(0));
            let (mut now, mut taken) = (SECOND, 0u64);
            while now <= 11 * SECOND {
                match rate.take_some(&paid, 1 << 20, now) {
                    Ok(n) => taken += u64::from(n),
                    Err(wait) => now += wait,
                }
                // A direction of a session can't take more in a moment.
                now += if per_second > 1_000_000 { 100_000 } else { 0 };
            }
            // The burst, and ten seconds; or a MiB in each moment.
            let most = (11 * per_second).min((1 << 20) * 100_000);
            let part = taken as f64 / most as f64;
            assert!((0.97..=1.01).contains(&part), "{per_second}: {taken} of {most}");
        }
    }

    #[test]
    fn what_is_given_back_may_be_taken_again() {
        let (rate, paid) = (Rate::new(1_000, 1_000), AtomicU64::new(0));
        assert_eq!(rate.take_some(&paid, 600, SECOND), Ok(600));
        assert_eq!(rate.take_some(&paid, 600, SECOND), Err(SECOND * 6 / 10));
        rate.give_back(&paid, 600);
        assert_eq!(rate.take_some(&paid, 2_000, SECOND), Ok(1_000));
        rate.charge(&paid, 500, SECOND);
        assert_eq!(rate.take_some(&paid, 1, SECOND), Err(SECOND * 3 / 2));
    }

    #[test]
    fn nobody_waits_for_what_another_limit_or_another_clock_would_have_made_long() {
        let slow = Rate::new(10, 6_000);
        let paid = AtomicU64::new(0);
        assert!(slow.take(&paid, 6_000, SECOND));
        let fast = Rate::new(1_000, 1_000);
        assert!(!fast.take(&paid, 1, SECOND));
        assert!(fast.take(&paid, 1, 2 * SECOND), "a second later there are a thousand");
        let paid = AtomicU64::new(3_600 * SECOND);
        assert!(fast.take_some(&paid, 1, SECOND).is_err());
        assert_eq!(fast.take_some(&paid, 500, 2 * SECOND), Ok(500));
        let paid = AtomicU64::new(0);
        fast.charge(&paid, 1_000_000, SECOND);
        assert!(!fast.take(&paid, 1, SECOND) && fast.take(&paid, 1, 2 * SECOND));
    }

    #[test]
    fn what_is_given_back_to_a_word_that_began_anew_is_lost() {
        let (rate, paid) = (Rate::new(1_000, 1_000), AtomicU64::new(0));
        rate.give_back(&paid, 600);
        assert!(rate.take(&paid, 1, SECOND));
    }

    #[test]
    fn threads_at_once_never_take_more_than_there_is() {
        let (rate, paid) = (Rate::new(1_000_000, 1_000_000), AtomicU64::new(0));
        let taken: u64 = std::thread::scope(|scope| {
            let run = || {
                let mut taken = 0;
                for now in 0..100_000u64 {
                    let n = rate.take_some(&paid, 3_000, SECOND + now * 1_000).unwrap_or(0);
                    rate.give_back(&paid, n / 2);
                    taken += u64::from(n - n / 2);
                }
                taken
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        // The burst, and a tenth of a second.
        assert!((1_000_000..=1_100_000).contains(&taken), "{taken}");
    }
}
