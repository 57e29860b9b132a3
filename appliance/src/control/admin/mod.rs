//! The admin API, and the board of values that the API reads.

pub mod board;
pub mod server;
