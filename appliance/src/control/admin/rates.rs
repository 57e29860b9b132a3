//! Rates of the last ten seconds, from samples of the counters.

use std::collections::VecDeque;
use std::time::Duration;

/// How many samples are kept.
const KEPT: usize = 11;

/// Samples are at least this far apart.
const APART: Duration = Duration::from_secs(1);

/// Sums over all listeners and workers, or their rates per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub opened: u64,
    pub bytes_up: u64,
    pub bytes_down: u64,
}

/// The newest samples, with the time of each since the start.
#[derive(Debug, Default)]
pub struct Rates(VecDeque<(Duration, Totals)>);

impl Rates {
    pub fn learn(&mut self, now: Duration, totals: Totals) {
        if self.0.back().is_some_and(|(last, _)| now.saturating_sub(*last) < APART) {
            return;
        }
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back((now, totals));
    }

    /// 0 until there are two samples. The counters of a listener go when its name is free again, so
    /// a total may fall; its rate is then 0.
    pub fn per_second(&self) -> Totals {
        let (Some((from, first)), Some((to, last))) = (self.0.front(), self.0.back()) else {
            return Totals::default();
        };
        let millis = u64::try_from(to.saturating_sub(*from).as_millis()).unwrap_or(u64::MAX);
        let rate = |first: u64, last: u64| {
            let more = last.saturating_sub(first).saturating_mul(1_000);
            more.checked_div(millis).unwrap_or(0)
        };
        Totals {
            opened: rate(first.opened, last.opened),
            bytes_up: rate(first.bytes_up, last.bytes_up),
            bytes_down: rate(first.bytes_down, last.bytes_down),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_last_ten_seconds() {
        let mut rates = Rates::default();
        let at = |opened| Totals { opened, bytes_up: opened * 2, bytes_down: 7 };
        assert_eq!(rates.per_second(), Totals::default());
        rates.learn(Duration::ZERO, at(1_000_000));
        assert_eq!(rates.per_second(), Totals::default(), "one sample is no rate");
        rates.learn(Duration::from_millis(500), at(5));
        assert_eq!(rates.0.len(), 1, "too soon");
        for second in 1..=11 {
            rates.learn(Duration::from_secs(second), at(1_000_000 + second * 50));
        }
        assert_eq!(rates.0.len(), KEPT);
        assert_eq!(rates.per_second(), Totals { opened: 50, bytes_up: 100, bytes_down: 0 });
        rates.learn(Duration::from_secs(12), at(0));
        assert_eq!(rates.per_second(), Totals::default(), "a total that fell");
    }
}
