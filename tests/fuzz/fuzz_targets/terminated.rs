//! Sessions that speak TLS: cuts, orders of ends and faults are made of the input, choice by
//! choice; what the input is too short for is the same in every run.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway_tests::sim::rng::Rng;
use ringway_tests::sim::tls::world;

fuzz_target!(|bytes: &[u8]| {
    world::play(Rng::scripted(bytes));
});
