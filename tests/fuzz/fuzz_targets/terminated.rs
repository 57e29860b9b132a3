//! A session that speaks TLS: random cuts, orders of ends and faults, made of the input.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|seed: u64| {
    ringway_tests::tls_world::run(seed);
});
