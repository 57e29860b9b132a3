//! Why sessions and flows ended in the last hour: counts by reason and minute, and some lines of
//! the access log for each reason.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use config_sync::table::routing::ListenerId;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::control::log_line::Line;
use crate::stats::counters::Counters;
use crate::stats::records::CloseReason;

const MINUTE: Duration = Duration::from_secs(60);
const MINUTES: usize = 60;

/// Lines that are kept of each reason.
const SAMPLES: usize = 5;

/// A line of a reason is kept at most so often, because the control thread has other work.
const BETWEEN: Duration = Duration::from_millis(100);

/// By reason.
pub type Counts = [u64; CloseReason::COUNT];

/// The closes of the last hour.
#[derive(Debug)]
pub struct Closes {
    /// What all counters had at the beginning of each minute, the newest last.
    minutes: VecDeque<Counts>,
    begun: Instant,
    samples: Vec<Samples>,
}

#[derive(Clone, Debug, Default)]
struct Samples {
    lines: VecDeque<Value>,
    latest: Option<Instant>,
}

/// The closes with one reason.
#[derive(Debug, PartialEq, JsonSchema, Serialize)]
#[schemars(rename = "Reason")]
pub struct OfReason {
    pub reason: &'static str,
    /// Within the last hour.
    pub count: u64,
    /// Within the minute that is under way, and the whole minute before it.
    pub latest: u64,
    /// By minute, the oldest first. The last is under way.
    pub minutes: Vec<u64>,
    /// Some of the newest lines of the access log, the newest last.
    pub samples: Vec<Value>,
}

impl Closes {
    pub fn new(now: Instant) -> Self {
        let samples = vec![Samples::default(); CloseReason::COUNT];
        Self { minutes: VecDeque::from([[0; CloseReason::COUNT]]), begun: now, samples }
    }

    /// Whether a minute is over. The caller then says what all counters have.
    pub fn is_due(&self, now: Instant) -> bool {
        now.duration_since(self.begun) >= MINUTE
    }

    /// Begins the next minute, or several after a pause of the control thread.
    pub fn tick(&mut self, totals: &Counts, now: Instant) {
        while self.is_due(now) {
            self.begun += MINUTE;
            self.begin_minute(*totals);
        }
    }

    fn begin_minute(&mut self, totals: Counts) {
        if self.minutes.len() == MINUTES {
            self.minutes.pop_front();
        }
        self.minutes.push_back(totals);
    }

    /// Keeps a line as a sample, unless one of its reason was kept just now.
    pub fn sample(&mut self, reason: CloseReason, line: &Line<'_>, now: Instant) {
        let samples = &mut self.samples[reason as usize];
        if samples.latest.is_some_and(|latest| now.duration_since(latest) < BETWEEN) {
            return;
        }
        let Ok(line) = serde_json::to_value(line) else { return };
        samples.latest = Some(now);
        if samples.lines.len() == SAMPLES {
            samples.lines.pop_front();
        }
        samples.lines.push_back(line);
    }

    /// The reasons of the last hour, the most frequent first. `totals` are the counters now.
    pub fn by_reason(&self, totals: &Counts) -> Vec<OfReason> {
        let mut found: Vec<_> = CloseReason::ALL
            .iter()
            .map(|reason| {
                let at = *reason as usize;
                let marks = self.minutes.iter().chain([totals]).map(|counts| counts[at]);
                let marks: Vec<u64> = marks.collect();
                // A counter begins at 0 again when its listener has gone for good.
                let minutes = marks.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
                let minutes: Vec<u64> = minutes.collect();
                OfReason {
                    reason: reason.word(),
                    count: minutes.iter().sum(),
                    latest: minutes.iter().rev().take(2).sum(),
                    minutes,
                    samples: self.samples[at].lines.iter().cloned().collect(),
                }
            })
            .filter(|of| of.count > 0)
            .collect();
        found.sort_by_key(|of| std::cmp::Reverse(of.count));
        found
    }
}

/// All that ended so far, refused ones too, by reason.
pub fn totals(
    workers: &[Arc<Counters>],
    listeners: impl IntoIterator<Item = ListenerId>,
) -> Counts {
    let mut totals = [0; CloseReason::COUNT];
    for worker in workers {
        for (total, count) in totals.iter_mut().zip(&worker.unmatched) {
            *total += count.get();
        }
    }
    for id in listeners {
        for of in workers.iter().map(|worker| worker.listener(id)) {
            let both = of.closed.iter().zip(of.refused.iter());
            for (total, (closed, refused)) in totals.iter_mut().zip(both) {
                *total += closed.get() + refused.get();
            }
        }
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(fin: u64, reset: u64) -> Counts {
        let mut counts = [0; CloseReason::COUNT];
        counts[CloseReason::ClientFin as usize] = fin;
        counts[CloseReason::ClientReset as usize] = reset;
        counts
    }

    #[test]
    fn an_hour_is_counted_by_minutes() {
        let mut closes = Closes::new(Instant::now());
        closes.begin_minute(counts(10, 0));
        closes.begin_minute(counts(10, 7));
        let found = closes.by_reason(&counts(11, 7));
        let said: Vec<_> = found.iter().map(|of| (of.reason, of.count, of.latest)).collect();
        assert_eq!(said, [("client_fin", 11, 1), ("client_reset", 7, 7)]);
        assert_eq!(found[0].minutes, [10, 0, 1]);
        assert_eq!(found[1].minutes, [0, 7, 0]);
        for _ in 0..MINUTES {
            closes.begin_minute(counts(12, 7));
        }
        assert!(closes.by_reason(&counts(12, 7)).is_empty(), "it was more than an hour ago");
        // A counter that was forgotten.
        assert!(closes.by_reason(&counts(0, 0)).is_empty());
    }
}
