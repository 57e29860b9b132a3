//! Any text is a configuration of Traefik, in YAML or TOML, or an error: the parser never panics,
//! and what it prints is TOML.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::control::migrate::{Kind, migrate};

fuzz_target!(|text: &str| {
    for name in ["x.yaml", "x.toml"] {
        let point = [("web".to_owned(), ":1".to_owned())];
        if let Ok(migrated) = migrate(Kind::Traefik, &[(name, text)], &point, &|_| None) {
            assert!(migrated.toml.parse::<toml::Table>().is_ok(), "{}", migrated.toml);
        }
    }
});
