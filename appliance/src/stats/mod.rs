//! Holds the counters of a worker, and the records that a worker sends to the control thread.

#![forbid(unsafe_code)]

pub mod counters;
pub mod detail;
pub mod records;
pub mod tls_facts;
