//! `ringway translate`: objects in files to TOML that runs the same traffic.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use config_sync::compile::compile;
use config_sync::config::parse;
use config_sync::file::{Source, translate};
use config_sync::gateway::files::Options;
use config_sync::names::Names;

/// A directory that is gone when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("ringway-translate-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).expect("a file");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// Objects of a pair that other tests know by heart.
fn objects(pair: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gateway/testdata").join(pair).join("in.yaml")
}

/// The TOML as a gateway would run it.
fn runs(toml: &str) {
    let config = parse("test.toml", toml).unwrap_or_else(|problems| panic!("{problems}\n{toml}"));
    compile(&config, &mut Names::new(), 1).unwrap_or_else(|error| panic!("{error}\n{toml}"));
}

#[test]
fn keys_are_written_for_their_owner_alone() {
    let folder = Folder::new("keys");
    let secrets = folder.0.join("secrets");
    let objects = [objects("backendtlspolicy")];
    let translated = || translate(&objects, Some(&secrets), &Options::default());
    let toml = translated().unwrap_or_else(|error| panic!("{error}")).toml;
    runs(&toml);
    assert!(!toml.contains("left out"), "{toml}");
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(&secrets).expect("the directory") {
        let path = entry.expect("an entry").path();
        assert!(toml.contains(&format!("\"{}\"", path.display())), "{path:?} in {toml}");
        // A second run must not leave what others may read.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("a mode");
        files.insert(path);
    }
    assert_eq!(files.len(), 3, "certificate, key and CA: {files:?}");
    assert_eq!(translated().unwrap_or_else(|error| panic!("{error}")).toml, toml);
    for file in files {
        let mode = fs::metadata(&file).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "{file:?}");
        assert!(fs::read_to_string(&file).expect("PEM").starts_with("-----BEGIN "), "{file:?}");
    }
}

#[test]
fn without_a_directory_certificates_are_left_out_and_named() {
    let translated = translate(&[objects("backendtlspolicy")], None, &Options::default());
    let toml = translated.unwrap_or_else(|error| panic!("{error}")).toml;
    for name in ["Secret infra/cert, tls.crt", "Secret infra/cert, tls.key", "ConfigMap infra/ca"] {
        assert!(toml.contains(&format!("# left out: {name}")), "{name} in {toml}");
    }
    assert!(!toml.contains("-----BEGIN") && !toml.contains("ca ="), "{toml}");
}

#[test]
fn keys_that_no_object_has_may_end_without_a_newline() {
    let folder = Folder::new("base");
    let base = folder.file("base.toml", "drain_grace = \"7s\" # no newline");
    let text = fs::read_to_string(objects("tcproute-weighted")).expect("objects");
    folder.file("objects.yaml", &text);
    let options = Options::default();
    let whole = translate(std::slice::from_ref(&folder.0), None, &options);
    let whole = whole.unwrap_or_else(|error| panic!("{error}")).toml;
    assert!(whole.starts_with("drain_grace = \"7s\" # no newline\n[[listeners]]\n"), "{whole}");
    runs(&whole);
    let source = Source::at(folder.0.clone(), options.clone());
    let text = source.read().unwrap_or_else(|error| panic!("{error}"));
    let shown = source.config(&text).unwrap_or_else(|error| panic!("{error}")).shown;
    assert_eq!(shown, whole);

    let other = folder.0.join("more");
    fs::create_dir(&other).expect("a directory");
    let other = folder.file("more/other.toml", "drain_grace = \"8s\"\n");
    let error = translate(&[base.clone(), other.clone()], None, &options);
    let error = error.map(|translated| translated.toml).expect_err("which of them?");
    let wanted = format!(
        "{}, {}: only one file that ends in .toml may be given",
        base.display(),
        other.display()
    );
    assert_eq!(error, wanted);
}
