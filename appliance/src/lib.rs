//! Ringway: a Layer-4 gateway for Linux, one io_uring per core.
//!
//! [`control`] starts everything and talks to people; [`worker`] is one core's loop, which joins
//! [`proxy`], which decides, and [`ring`], which does.

#![deny(unsafe_code)]

pub mod control;
pub mod proxy;
#[allow(unsafe_code, reason = "all system calls that need it are made in this folder")]
pub mod ring;
pub mod worker;
