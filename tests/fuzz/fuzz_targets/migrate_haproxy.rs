//! Any text is a haproxy.cfg, or an error: the parser never panics, and what it
//! prints is TOML.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::control::migrate::{Kind, migrate};

fuzz_target!(|text: &str| {
    if let Ok(migrated) = migrate(Kind::Haproxy, &[("x.cfg", text)], &[], &|_| None) {
        assert!(migrated.toml.parse::<toml::Table>().is_ok(), "{}", migrated.toml);
    }
});
