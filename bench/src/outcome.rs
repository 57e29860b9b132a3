//! What one run of a load generator measured: the one line of JSON that `bench load` prints.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Length of the measured interval, without warm-up and without what came after it.
    pub seconds: f64,
    /// Whole operations within it: requests answered, connections made, datagrams come back (or
    /// arrived, one-way), or for bulk the reads of the receiving end.
    pub operations: u64,
    /// Payload bytes that arrived at the receiving end within it.
    pub bytes: u64,
    /// Operations that failed: connect errors, resets, wrong answers.
    pub errors: u64,
    /// Datagrams sent that nobody received; 0 for TCP.
    pub lost: u64,
    /// Of each operation; empty where the workload has none (bulk, one-way).
    pub latency: Option<Latency>,
}

/// Microseconds. In rate-controlled runs each operation counts from when it was due, not from when
/// it was sent: a stalled server delays all that it made wait ("coordinated omission").
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Latency {
    /// From a histogram of nanoseconds; `None` if it is empty.
    pub fn of(nanos: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| nanos.value_at_quantile(quantile) as f64 / 1e3;
        (!nanos.is_empty()).then(|| Self {
            count: nanos.len(),
            mean: nanos.mean() / 1e3,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: nanos.max() as f64 / 1e3,
        })
    }
}
