//! The TCP half of the simulated kernel: connections, sessions, readiness, moving bytes.
//!
//! What is modelled after Linux: a reset leaves received bytes readable and the error comes behind
//! them; closing with unread bytes resets; data that reaches a closed peer resets; a blocked writer
//! is told of space only once a third of the buffer is free; SO_RCVLOWAT holds back wake-ups.

mod checks;
pub mod close;
pub mod conn;
mod connect;
mod moving;
mod open;
mod peer;
mod poll;
mod proxy_header;
mod relay;
pub mod session;
mod socket;
mod stream;
