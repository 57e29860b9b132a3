//! The ring against the real kernel, on loopback: what the simulated kernel claims is seen here.

mod harness;
mod stream;
mod tcp;
mod udp;
