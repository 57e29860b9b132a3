//! The world around the appliance: a simulated one (`sim`), and a real one (`real`). `stage` plays
//! the scenarios of the one in the other.
#![allow(
    clippy::cast_possible_truncation,
    reason = "the simulator's numbers are small, and its generator's upper bits may go"
)]

pub mod hello;
pub mod pki;
pub mod real;
pub mod sim;
pub mod stage;
