//! One cryptographic provider in the whole program.

use std::fs;
use std::path::Path;

#[test]
fn ring_is_the_only_provider() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let lock = fs::read_to_string(root.join("Cargo.lock")).unwrap();
    let packages: Vec<_> =
        lock.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"')).collect();
    assert_eq!(packages.iter().filter(|name| **name == "ring").count(), 1);
    assert_eq!(packages.iter().filter(|name| **name == "rustls").count(), 1);
    let others = ["aws-lc", "openssl-sys", "boring", "graviola", "mbedtls", "rustls-rustcrypto"];
    let found: Vec<_> =
        packages.iter().filter(|name| others.iter().any(|other| name.starts_with(other))).collect();
    assert!(found.is_empty(), "{found:?}");
}

/// The process-wide default is for kube, which asks for it, and is set first of all. Nothing of
/// ours asks.
#[test]
fn the_provider_is_always_named() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let main = fs::read_to_string(root.join("appliance/src/main.rs")).unwrap();
    assert!(main.contains("crypto::ring::default_provider().install_default()"));
    for folder in ["appliance/src", "config-sync/src"] {
        let mut folders = vec![root.join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]").next().unwrap();
                for call in ["Config::builder()", "Verifier::builder("] {
                    assert!(!code.contains(call), "{} calls {call}", path.display());
                }
            }
        }
    }
}
