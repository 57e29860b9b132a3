//! Any text is a ConfigMap of ingress-nginx, or an error: the parser never panics, and what it
//! prints is TOML.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::control::migrate::{Kind, migrate};

fuzz_target!(|text: &str| {
    if let Ok(migrated) = migrate(Kind::IngressNginx, &[("x.yaml", text)], &[], &|_| None) {
        assert!(migrated.toml.parse::<toml::Table>().is_ok(), "{}", migrated.toml);
    }
});
