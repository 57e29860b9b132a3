//! Datagrams: received on listening and upstream sockets, sent as batches.

pub mod batch;
mod control;
mod files;
mod message;
mod path;
mod train;
pub mod upstreams;
