//! The metrics for Prometheus.

mod exposition;
pub mod samples;
