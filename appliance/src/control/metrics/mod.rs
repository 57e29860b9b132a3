//! The metrics for Prometheus.

mod descriptions;
mod endpoints;
mod exposition;
mod kubernetes;
pub mod open_metrics;
pub mod process;
pub mod samples;
