//! Listening sockets: opened for all workers, steered to, accepted from and closed.

pub(super) mod listeners;
pub mod open;
mod steering;
