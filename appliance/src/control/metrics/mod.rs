//! What Prometheus is told.

mod exposition;
pub mod samples;
