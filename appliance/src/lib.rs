//! Ringway: a Layer-4 gateway for Linux, one io_uring per core.
//!
//! [`control`] starts everything and talks to people. What runs on the workers is the package
//! `data-plane`, whose root is `data_plane.rs` beside this file.

#![deny(unsafe_code)]

pub mod control;

pub use data_plane::{contract, proxy, ring, stats, wire, worker};
