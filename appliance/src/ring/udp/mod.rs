//! Receives datagrams on listening and upstream sockets, and sends datagrams as batches.

pub mod batch;
mod control;
mod files;
mod message;
mod path;
pub mod promoted;
mod train;
pub mod upstreams;
