//! What runs on Ringway's workers.
//!
//! [`worker`] is the loop of one core. The loop joins [`proxy`], which decides, and [`ring`], which
//! makes the system calls. [`contract`] is all that the proxy and the ring say to each other.
//! [`wire`] reads and writes the bytes of protocols. [`stats`] holds the counters and the records
//! of a worker.
//!
//! This is a package of its own, `data-plane`, so that the compiler treats it differently: it is
//! optimised in tests too, and in the release it is one unit of code.

#![deny(unsafe_code)]

pub mod contract;
pub mod proxy;
#[allow(unsafe_code, reason = "all system calls that need it are made in this folder")]
pub mod ring;
pub mod stats;
pub mod wire;
pub mod worker;
