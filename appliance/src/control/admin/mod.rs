//! The admin API, and what it reads.

pub mod board;
pub mod server;
