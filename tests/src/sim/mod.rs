//! A simulated kernel, and what runs on it. A seed makes a run.

pub mod backend;
pub mod bytes;
pub mod coverage;
pub mod endpoints;
pub mod fake;
pub mod kernel;
pub mod limit;
pub mod model;
pub mod protocols;
pub mod proxied;
pub mod rng;
pub mod scenarios;
pub mod source_limit;
pub mod tcp;
pub mod tls;
pub mod udp;
pub mod world;
