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

/// What was taken of a rate, and the nanoseconds until it is there. A count of 0: nothing was
/// taken, because too many wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Booked {
    pub count: u32,
    pub wait: u64,
}

/// How far apart the times of two workers may be, at the very most, and how far ahead the line is
/// booked; in nanoseconds.
const SKEW: u64 = 1_000_000_000;

/// Nobody joins a line that is longer, in nanoseconds. It is shorter than `SKEW`, so a line is
/// never forgiven.
const LONGEST_LINE: u64 = 900_000_000;

/// The shares shrink as the line grows, so that the line is never much longer than as many first
/// shares. Of n that wait, each has about `SHARES / (SHARES + n)` of the first share.
const SHARES: u64 = 8;

/// The smallest share is such a part of the first.
const SMALLEST: u64 = 128;

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

    /// Nanoseconds until `after` has an answer.
    pub fn until(self, paid: u64, n: u32, now: u64) -> u64 {
        let price = self.price(n.into()).min(self.burst);
        (paid.max(now) + price).saturating_sub(now + self.burst)
    }

    /// Takes as many as there are, or books a share ahead: who asks first has its share first, and
    /// all who wait get shares of about one size. `enough`: as many are wanted at once. `most`: no
    /// more may be booked.
    pub fn book(self, paid: &AtomicU64, enough: u32, most: u32, now: u64) -> Booked {
        self.forgive(paid, now);
        let mut booked = Booked::default();
        let book = |paid: u64| {
            booked = self.next_share(paid.saturating_sub(now), enough, most);
            (booked.count > 0).then(|| paid.max(now) + self.price(booked.count.into()))
        };
        _ = paid.fetch_update(Relaxed, Relaxed, book);
        booked
    }

    /// What the next one gets who asks. `owed`: nanoseconds until all is paid for.
    fn next_share(self, owed: u64, enough: u32, most: u32) -> Booked {
        let (room, first) = (self.burst.saturating_sub(owed), self.first_share());
        let least = self.count(first).max(1);
        if room >= first {
            return Booked { count: self.count(room).min(enough.max(least)).min(most), wait: 0 };
        }
        let line = owed.saturating_sub(self.burst);
        if line >= LONGEST_LINE {
            return Booked { count: 0, wait: LONGEST_LINE / 2 };
        }
        let share = first.saturating_sub(line / SHARES).max(first / SMALLEST);
        let count = self.count(share).max(1).min(most);
        Booked { count, wait: (owed + self.price(count.into())).saturating_sub(self.burst) }
    }

    /// As `take`, for what can't wait. It goes before those who wait, as long as the line is not
    /// long.
    pub fn take_first(self, paid: &AtomicU64, n: u32, now: u64) -> bool {
        self.forgive(paid, now);
        let price = self.price(n.into()).min(self.burst);
        let take = |paid: u64| {
            let line = match paid > now + self.burst {
                true => (SHARES - 1) * self.first_share(),
                false => 0,
            };
            let next = paid.max(now) + price;
            (next - now <= self.burst + line).then_some(next)
        };
        paid.fetch_update(Relaxed, Relaxed, take).is_ok()
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

    /// Nanoseconds of the share of one that waits alone: 20 ms, or 4,096, or a tenth of the burst.
    fn first_share(self) -> u64 {
        self.price(4_096).max(20_000_000).min(self.burst / 10)
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
    fn bytes_come_in_shares() {
        for per_second in [1_000, 100_000, 7_000_000_000, 10_000_000_000] {
            let (rate, paid) = (Rate::new(per_second, per_second), AtomicU64::new(0));
            let (mut now, mut taken) = (SECOND, 0u64);
            while now <= 11 * SECOND {
                let Booked { count, wait } = rate.book(&paid, 1 << 20, u32::MAX, now);
                taken += u64::from(count);
                now += wait;
            }
            // The burst, and ten seconds.
            let part = taken as f64 / (11 * per_second) as f64;
            assert!((0.99..=1.02).contains(&part), "{per_second}: {taken}");
        }
    }

    #[test]
    fn shares_shrink_as_the_line_grows_and_the_line_has_an_end() {
        let (rate, paid) = (Rate::new(1_000_000, 1_000_000), AtomicU64::new(0));
        assert!(rate.take(&paid, 1_000_000, SECOND));
        let mut line = Vec::new();
        loop {
            let Booked { count, wait } = rate.book(&paid, 1, u32::MAX, SECOND);
            if count == 0 {
                assert_eq!(wait, LONGEST_LINE / 2);
                break;
            }
            line.push((wait, count));
        }
        assert_eq!(line[0], (20_000_000, 20_000));
        assert!(line.is_sorted_by(|a, b| a.0 < b.0 && a.1 >= b.1));
        assert_eq!(line.last().expect("a line").1, 20_000 / 128);
        assert!(line.len() > 4_000, "{}", line.len());
        let last = line.last().expect("a line").0;
        assert!((LONGEST_LINE..LONGEST_LINE + 1_000_000).contains(&last), "{last}");
        // Each share is there at its time, and the line is not forgiven.
        let booked: u64 = line.iter().map(|(_, count)| u64::from(*count)).sum();
        assert_eq!(last, rate.price(booked));
        assert!(!rate.take(&paid, 1, SECOND + last) && rate.take(&paid, 1, SECOND + last + 1_000));
    }

    #[test]
    fn what_cannot_wait_goes_before_a_line_that_is_not_long() {
        let (rate, paid) = (Rate::new(1_000_000, 1_000_000), AtomicU64::new(0));
        assert!(rate.take_first(&paid, 1_000_000, SECOND));
        assert!(!rate.take_first(&paid, 1, SECOND), "nobody waits");
        assert!(rate.book(&paid, 1, u32::MAX, SECOND).wait > 0);
        assert!(rate.take_first(&paid, 120_000, SECOND), "seven shares");
        assert!(!rate.take_first(&paid, 1, SECOND));
        // A share for who waits is left all the same.
        assert_eq!(rate.book(&paid, 1, u32::MAX, SECOND).count, 2_500);
    }

    #[test]
    fn what_is_given_back_may_be_taken_again() {
        let (rate, paid) = (Rate::new(1_000, 1_000), AtomicU64::new(0));
        let book = |enough, now| rate.book(&paid, enough, u32::MAX, now);
        assert_eq!(book(950, SECOND), Booked { count: 950, wait: 0 });
        assert_eq!(book(600, SECOND), Booked { count: 100, wait: SECOND / 20 });
        rate.give_back(&paid, 950);
        rate.give_back(&paid, 100);
        assert_eq!(book(2_000, SECOND), Booked { count: 1_000, wait: 0 });
        rate.charge(&paid, 500, SECOND);
        assert_eq!(book(1, SECOND), Booked { count: 37, wait: SECOND / 2 + 37_000_000 });
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
        assert!(fast.book(&paid, 1, u32::MAX, SECOND).wait > 0);
        let booked = fast.book(&paid, 500, u32::MAX, 2 * SECOND + SECOND / 10);
        assert_eq!(booked, Booked { count: 500, wait: 0 });
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
                    let booked = rate.book(&paid, 3_000, 3_000, SECOND + now * 1_000);
                    let n = if booked.wait == 0 { booked.count } else { 0 };
                    rate.give_back(&paid, booked.count - n + n / 2);
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
