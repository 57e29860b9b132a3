//! Serves UDP flows. A flow is one client's exchange with one endpoint.

pub mod choose;
mod dns_guard;
pub mod flow;
pub mod flows;
mod forward;
pub mod memory;
mod moving;
mod newcomers;
pub mod parting;
mod ports;
mod promotion;
mod resting;
mod shared_sockets;
pub mod state;
mod sweep;
mod trial;
mod turns;
mod upstreams;
