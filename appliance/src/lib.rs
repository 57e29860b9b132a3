//! Ringway: a Layer-4 gateway for Linux, one io_uring per core.
//!
//! [`control`] starts everything and talks to people. [`worker`] is the loop of one core. The loop
//! joins [`proxy`], which decides, and [`ring`], which makes the system calls. [`contract`] is all
//! that the proxy and the ring say to each other. [`wire`] reads and writes the bytes of protocols.
//! [`stats`] holds the counters and the records of a worker.

#![deny(unsafe_code)]

pub mod contract;
pub mod control;
pub mod proxy;
#[allow(unsafe_code, reason = "all system calls that need it are made in this folder")]
pub mod ring;
pub mod stats;
pub mod wire;
pub mod worker;
