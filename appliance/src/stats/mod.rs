//! What a worker counts, and what it tells the control thread.

#![forbid(unsafe_code)]

pub mod counters;
pub mod detail;
pub mod records;
