//! The UDP half of the simulated kernel: listening and upstream sockets, receive buffers, trains.

pub mod datagram;
pub mod may_promote;
mod moving;
mod open;
mod peer;
mod promoted;
mod receive;
mod send;
pub mod train;
pub mod upstream;
