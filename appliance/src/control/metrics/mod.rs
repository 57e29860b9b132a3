//! The metrics for Prometheus.

mod endpoints;
mod exposition;
pub mod process;
pub mod samples;
