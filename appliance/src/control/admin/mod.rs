//! The admin API, and the board of values that the API reads.

pub mod access;
pub mod api;
pub mod board;
pub mod calls;
mod rates;
mod request_rate;
pub mod server;
pub mod tls;
mod viewers;
