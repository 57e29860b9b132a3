//! Requests to the admin API: ids, cursors, queries and bodies. The first line is the target.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::control::admin::api::inputs::read;

fuzz_target!(|bytes: &[u8]| {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (target, rest) = bytes.split_at(end);
    let Ok(target) = std::str::from_utf8(target) else { return };
    read(target, rest.get(1..).unwrap_or_default());
});
