//! One cryptographic provider in the whole program.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn aws_lc_rs_is_the_only_provider() {
    let tree = ["tree", "--workspace", "--offline", "--locked", "--prefix=none", "--format={p}"];
    let output = Command::new(env!("CARGO")).args(tree).output().expect("cargo");
    assert!(output.status.success(), "{output:?}");
    let output = String::from_utf8(output.stdout).unwrap();
    let packages: BTreeSet<_> = output.lines().filter_map(|line| line.split(' ').next()).collect();
    for needed in ["aws-lc-rs", "rustls", "kube"] {
        assert!(packages.contains(needed), "{needed} is not among {packages:?}");
    }
    let others = ["ring", "openssl-sys", "boring", "graviola", "mbedtls", "rustls-rustcrypto"];
    for other in others {
        assert!(!packages.contains(other), "{other} is linked too");
    }
}

/// The process-wide default is for kube, which asks for it, and is set first of all. Nothing of
/// ours asks.
#[test]
fn the_provider_is_always_named() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let main = fs::read_to_string(root.join("appliance/src/main.rs")).unwrap();
    assert!(main.contains("crypto::aws_lc_rs::default_provider().install_default()"));
    for folder in ["appliance/src", "config-sync/src"] {
        let mut folders = vec![root.join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
                let path = entry.path();
                if path.ends_with("tests.rs") {
                    continue;
                }
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
