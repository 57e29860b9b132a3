//! Tests the ring against the real kernel, on loopback: each claim of the simulated kernel is seen
//! here.

mod flows;
mod harness;
mod release;
mod stream;
mod tcp;
mod udp;
