//! Holds the sockets of TCP sessions: two connections each, and the bytes between them.

mod bytes;
mod connection;
mod half;
mod info;
pub mod pairs;
mod pipes;
pub mod stream;
pub mod transfer;
