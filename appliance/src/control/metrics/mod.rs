//! The metrics for Prometheus.

mod endpoints;
mod exposition;
pub mod samples;
