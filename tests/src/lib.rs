//! The world around the appliance: a simulated kernel, and what runs on it.
#![allow(
    clippy::cast_possible_truncation,
    reason = "the simulator's numbers are small, and its generator's upper bits may go"
)]

mod check;
pub mod coverage;
pub mod fake;
pub mod hello;
pub mod kernel;
pub mod model;
mod peers;
pub mod pki;
pub mod proxied;
pub mod real;
pub mod rng;
pub mod scenario;
pub mod stream;
mod streaming;
pub mod tcp;
pub mod tls_peer;
pub mod tls_world;
pub mod udp;
pub mod world;
