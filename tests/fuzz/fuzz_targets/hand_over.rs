//! Any bytes at all from another process: no panic, and what is read is written the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::wire::hand_over::{MOST_BYTES, VERSION, read, write};

fuzz_target!(|input: &[u8]| {
    agrees(input);
    // Mutation seldom finds the head.
    let length = u32::try_from(input.len()).unwrap_or(u32::MAX).to_be_bytes();
    agrees(&[b"RWUP", &VERSION.to_be_bytes()[..], &length, input].concat());
});

fn agrees(bytes: &[u8]) {
    let Ok(message) = read(bytes) else { return };
    // Only text that JSON must escape may grow, and then perhaps too long.
    let again = write(&message);
    assert!(again.len() > MOST_BYTES || read(&again) == Ok(message));
}
