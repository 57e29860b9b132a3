//! TCP sessions: two connections each, and what goes between them.

mod bytes;
mod connection;
mod half;
mod info;
pub mod pairs;
mod pipes;
pub mod stream;
pub mod transfer;
