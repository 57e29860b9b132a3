//! Ringway: a Layer-4 gateway for Linux, one io_uring per core.
//!
//! [`control`] starts everything and talks to people. [`worker`] is one core's loop: it joins
//! [`proxy`], which decides, and [`ring`], which does. [`contract`] is all that these two say to
//! each other; [`wire`] reads and writes the bytes of protocols; [`stats`] is what a worker counts
//! and tells.

#![deny(unsafe_code)]

pub mod contract;
pub mod control;
pub mod proxy;
#[allow(unsafe_code, reason = "all system calls that need it are made in this folder")]
pub mod ring;
pub mod stats;
pub mod wire;
pub mod worker;
