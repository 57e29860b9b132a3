//! What can be read from a run, and in which unit.

use super::{Run, Unit};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Gigabytes or thousands of operations per second.
    Throughput,
    /// Seconds per gigabyte or microseconds per operation.
    Cpu,
    P50,
    P99,
    /// Bytes of anonymous memory that a connection or flow adds.
    AnonymousPerSession,
    /// Bytes of all processes, shared pages in parts.
    Memory,
    /// Descriptors more than before the load.
    Files,
    Lost,
}

impl Metric {
    /// `None` if the run does not have it.
    pub fn of(self, run: &Run) -> Option<f64> {
        let amount = run.unit.amount(&run.outcome);
        let latency = run.outcome.latency.as_ref();
        // What is held is opened once, in no measured time.
        let flowing = run.sessions.is_none() && amount > 0.0;
        let bulk = run.unit == Unit::Gigabyte;
        match self {
            Self::Throughput if flowing => {
                Some(amount / run.outcome.seconds / if bulk { 1.0 } else { 1e3 })
            }
            Self::Cpu if flowing => Some(run.cpu? / amount * if bulk { 1.0 } else { 1e6 }),
            Self::Throughput | Self::Cpu => None,
            Self::P50 => latency.map(|latency| latency.p50),
            Self::P99 => latency.map(|latency| latency.p99),
            Self::AnonymousPerSession => {
                let growth = run.after.anonymous.saturating_sub(run.before.anonymous);
                (run.after.rss > 0).then_some(growth as f64 / f64::from(run.sessions?))
            }
            Self::Memory => (run.after.pss > 0).then_some(run.after.pss as f64),
            Self::Files => {
                run.sessions?;
                Some(run.after.files as f64 - run.before.files as f64)
            }
            Self::Lost => Some((run.outcome.lost + run.outcome.errors) as f64),
        }
    }

    pub fn more_is_better(self) -> bool {
        self == Self::Throughput
    }

    /// The end of the scale that one wants.
    pub fn better(self) -> &'static str {
        if self.more_is_better() { "higher" } else { "lower" }
    }

    pub fn title(self, unit: Unit) -> String {
        match self {
            Self::Throughput if unit == Unit::Gigabyte => "GB/s".to_owned(),
            Self::Throughput if unit == Unit::Query => "1,000 queries/s".to_owned(),
            Self::Throughput => format!("1,000 {}s/s", unit.name()),
            Self::Cpu if unit == Unit::Gigabyte => "CPU s/GB".to_owned(),
            Self::Cpu => format!("CPU us/{}", unit.name()),
            Self::P50 => "p50 us".to_owned(),
            Self::P99 => "p99 us".to_owned(),
            Self::AnonymousPerSession => "bytes/session".to_owned(),
            Self::Memory => "memory MB".to_owned(),
            Self::Files => "more files".to_owned(),
            Self::Lost => "lost".to_owned(),
        }
    }

    /// From what [`Self::of`] gives to what [`Self::title`] says.
    pub fn scale(self) -> f64 {
        if self == Self::Memory { 1e-6 } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn metrics_are_in_the_units_of_their_titles() {
        let results = sample("tcp-idle", 1, &[("ringway", 0.5)]);
        let held = &results.runs[0];
        assert_eq!(Metric::Cpu.of(held), None);
        let per_session = Metric::AnonymousPerSession.of(held).expect("it has sessions");
        assert!((per_session - 1_000_000.0 / 9_000.0).abs() < 1e-9);
        assert_eq!(Metric::Files.of(held), Some(2.0));
        let flowing = Run { sessions: None, ..held.clone() };
        assert_eq!(Metric::Throughput.of(&flowing), Some(10.0));
        assert_eq!(Metric::Cpu.of(&flowing), Some(50.0));
        let bulk = Run { unit: Unit::Gigabyte, ..flowing };
        assert_eq!(Metric::Throughput.of(&bulk), Some(0.001));
        assert_eq!(Metric::Cpu.of(&bulk), Some(500.0));
        assert_eq!(Metric::Files.of(&bulk), None);
    }
}
