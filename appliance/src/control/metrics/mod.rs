//! The metrics for Prometheus.

mod endpoints;
mod exposition;
mod process;
pub mod samples;
