//! Tests with every directory of `testdata`: `in.yaml` must become `config.toml` and `status.yaml`.
//! To accept the present results: `RINGWAY_UPDATE_GOLDEN=1 cargo test -p config-sync golden`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::check;
use crate::compile::compile;
use crate::compile::names::Names;
use crate::gateway::objects::{Bundle, Objects};
use crate::gateway::status::Outcome;
use crate::gateway::testing::settings;
use crate::gateway::translate::settings::Settings;
use crate::gateway::translate::{Translation, translate};
use crate::gateway::{files, print};
use crate::model::tls::Pem;
use crate::model::{backend, config, health_check, listener, route};

#[test]
fn every_directory_is_as_it_was_accepted() {
    let update = std::env::var_os("RINGWAY_UPDATE_GOLDEN").is_some();
    let mut faults = Vec::new();
    for directory in directories() {
        let name = directory.file_name().expect("a name").to_string_lossy().into_owned();
        let (objects, settings, outcome) = read(&directory);
        let translation = translate(&objects, &settings);
        let (toml, yaml) = printed(&translation, &outcome);
        for (file, now) in [("config.toml", toml), ("status.yaml", yaml)] {
            let path = directory.join(file);
            if update {
                fs::write(&path, &now).expect("testdata can be written");
            }
            let accepted = fs::read_to_string(&path).unwrap_or_default();
            if accepted != now {
                let at = accepted.lines().zip(now.lines()).position(|(was, is)| was != is);
                let at = at.unwrap_or_else(|| accepted.lines().count().min(now.lines().count()));
                let line = |text: &str| text.lines().nth(at).unwrap_or("(ends)").to_owned();
                let (was, is) = (line(&accepted), line(&now));
                faults.push(format!("{name}/{file}:{}:\n  was {was}\n  is  {is}", at + 1));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_printed_toml_runs_as_the_objects_do() {
    for directory in directories() {
        let (objects, settings, _) = read(&directory);
        let translation = translate(&objects, &settings);
        let mut names = Names::new();
        let mut table = |config: &config::Config| {
            let table = compile(config, &mut names, 1);
            format!("{:?}", table.unwrap_or_else(|error| panic!("{directory:?}: {error}")))
        };
        let own = table(&translation.config);
        let secrets = Secrets::new();
        let toml = print::toml(&translation.config, &mut |pem: &Pem| secrets.write(pem));
        let read = check::parse_for("config.toml", &toml, &settings.machine);
        let read = read.unwrap_or_else(|error| panic!("{directory:?}: {error}"));
        assert_eq!(own, table(&read), "{directory:?}");
        // These parts of a backend are in no table.
        let beside = |config: &config::Config| -> Vec<_> {
            let of = |backend: &backend::Backend| {
                let check = backend.health_check.as_ref().map(|check| {
                    // The one is in an object, the other in a file.
                    let has_ca = check.value.ca.is_some();
                    (health_check::HealthCheck { ca: None, ..check.value.clone() }, has_ca)
                });
                let eject = backend.eject.as_ref().map(|eject| eject.value);
                let gone = &backend.when_gone;
                let gone = (gone.on_down.as_ref(), gone.on_removed.as_ref());
                let gone = (gone.0.map(|of| of.value), gone.1.map(|of| of.value));
                let others = (backend.when_gone.close_after, backend.failback, backend.slow_start);
                (check, eject, gone, others, backend.fast_path())
            };
            config.backends.iter().map(of).collect()
        };
        assert_eq!(beside(&translation.config), beside(&read), "{directory:?}");
    }
}

/// Parts that do not fit are left out by the name in their places.
#[test]
fn every_place_is_of_the_part_that_it_is_in() {
    for directory in directories() {
        let (objects, settings, _) = read(&directory);
        let config = translate(&objects, &settings).config;
        let mut places = Vec::new();
        for listener::Listener { name, addresses, hostnames, admission, .. } in &config.listeners {
            let ranges = admission.allow.iter().flatten().chain(&admission.deny);
            places.push((name, &name.place));
            places.extend(addresses.iter().map(|at| (name, &at.place)));
            places.extend(hostnames.iter().map(|at| (name, &at.place)));
            places.extend(ranges.map(|at| (name, &at.place)));
        }
        for route::Route { name, listeners, hostnames, admission, backends, .. } in &config.routes {
            let ranges = admission.allow.iter().flatten().chain(&admission.deny);
            places.push((name, &name.place));
            places.extend(listeners.iter().chain(hostnames).map(|at| (name, &at.place)));
            places.extend(backends.iter().map(|backend| (name, &backend.name.place)));
            places.extend(ranges.map(|at| (name, &at.place)));
        }
        for backend::Backend { name, endpoints, .. } in &config.backends {
            places.push((name, &name.place));
            places.extend(endpoints.iter().map(|of| (name, &of.address.place)));
        }
        for (name, place) in places {
            assert_eq!(*place.file, *name.value, "{directory:?}");
        }
    }
}

#[test]
fn the_order_of_objects_does_not_matter() {
    for directory in directories() {
        let (mut objects, settings, outcome) = read(&directory);
        let before = printed(&translate(&objects, &settings), &outcome);
        objects.gateways.reverse();
        objects.listener_sets.reverse();
        objects.tcp_routes.reverse();
        objects.udp_routes.reverse();
        objects.tls_routes.reverse();
        objects.http_routes.reverse();
        objects.endpoint_slices.reverse();
        objects.policies.reverse();
        objects.backend_tls_policies.reverse();
        objects.x_backends.reverse();
        assert_eq!(before, printed(&translate(&objects, &settings), &outcome), "{directory:?}");
    }
}

#[test]
fn every_reason_is_seen() {
    let mut seen = BTreeSet::new();
    for directory in directories() {
        let text = fs::read_to_string(directory.join("status.yaml")).unwrap_or_default();
        let reasons = text.lines().filter_map(|line| line.trim().strip_prefix("reason: "));
        seen.extend(reasons.map(str::to_owned));
    }
    let missing: Vec<_> = REASONS.iter().filter(|reason| !seen.contains(**reason)).collect();
    assert!(missing.is_empty(), "no pair has {missing:?}");
    assert!(directories().len() >= 60, "{}", directories().len());
}

/// The folders stand for what a cluster has. Few of them have an object that an API server with
/// today's definitions would refuse: one of another release, or one with a value that Ringway must
/// not trust. So the definitions refuse nothing that the other folders use.
#[test]
fn few_directories_have_what_a_file_must_not_have() {
    let (mut refused, mut why) = (Vec::new(), String::new());
    for directory in directories() {
        let text = fs::read_to_string(directory.join("in.yaml")).expect("objects");
        if let Err(faults) = files::read([("in.yaml", text.as_str())].into_iter()) {
            let name = directory.file_name().expect("a name").to_string_lossy().into_owned();
            why += &format!("{name}: {faults}\n");
            refused.push(name);
        }
    }
    assert_eq!(refused, REFUSED, "{why}");
}

const REFUSED: &[&str] = &[
    "backendtlspolicy-subject-alt-names",
    "httproute-unsupported",
    "policy-endpoint-limits",
    "policy-endpoints",
    "tcproute-namespaces",
    "tcproute-several-rules",
    "tls-unsupported-values",
    "tlsroute-hostname-intersection",
    "tlsroute-same-hostname",
    "tlsroute-without-hostnames",
    "udproute-port-and-section",
    "xbackend-faults",
    "xbackend-on",
];

/// The reasons of conditions.
const REASONS: &[&str] = &[
    "Accepted",
    "AddressNotAssigned",
    "AddressNotUsable",
    "BackendNotFound",
    "Conflicted",
    "HostnameConflict",
    "Invalid",
    "InvalidCACertificateKind",
    "InvalidCACertificateRef",
    "InvalidCertificateRef",
    "InvalidClientCertificateRef",
    "InvalidKind",
    "InvalidParameters",
    "InvalidRouteKinds",
    "ListenersNotResolved",
    "ListenersNotValid",
    "NoConflicts",
    "NoMatchingListenerHostname",
    "NoMatchingParent",
    "NoValidCACertificate",
    "NotAllowed",
    "NotAllowedByListeners",
    "NotPermitted",
    "OlderRoute",
    "Pending",
    "ParentNotAccepted",
    "PortUnavailable",
    "Programmed",
    "ProtocolConflict",
    "RefNotPermitted",
    "ResolvedRefs",
    "SupportedVersion",
    "TargetNotFound",
    "UnsupportedAddress",
    "UnsupportedProtocol",
    "UnsupportedValue",
    "UnsupportedVersion",
];

/// A directory for keys, removed when the test ends.
struct Secrets(PathBuf);

impl Secrets {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("ringway-golden-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn write(&self, pem: &Pem) -> Option<String> {
        let path = files::write_secret(&self.0, pem).expect("a file");
        Some(path.display().to_string())
    }
}

impl Drop for Secrets {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

fn directories() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gateway/testdata");
    let entries = fs::read_dir(&root).expect("testdata");
    let mut all: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    all.retain(|path| path.is_dir());
    all.sort();
    all
}

/// Reads a directory. Lines such as `# --address-pool CIDR`, `# --zone NAME` and `# --failed NAME`
/// at the top of a file are settings.
fn read(directory: &Path) -> (Objects, Settings, Outcome) {
    let path = directory.join("in.yaml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let (mut settings, mut failed, mut bundle) = (settings(), BTreeMap::new(), None);
    for line in text.lines().map_while(|line| line.strip_prefix("# --")) {
        let (key, value) = line.split_once(' ').expect("a value");
        match key {
            "address-pool" => settings.address_pool.push(value.parse().expect("a CIDR")),
            "node-address" => settings.node_addresses.push(value.parse().expect("an address")),
            "external-names" => settings.external_names = value == "true",
            "zone" => settings.zone = Some(value.to_owned()),
            "admin" => settings.base.admin = Some(value.parse().expect("an address and port")),
            "namespaces" => settings.namespaces = value.split(' ').map(str::to_owned).collect(),
            "now" => settings.now = Some(value.parse().expect("seconds")),
            "failed" => {
                let why = "Address already in use (os error 98)".to_owned();
                failed.insert(value.to_owned(), why);
            }
            "bundle" => {
                bundle = Some(Bundle { version: value.to_owned(), channel: "standard".to_owned() });
            }
            _ => panic!("{path:?}: {line}"),
        }
    }
    let objects = files::read_of_cluster([("in.yaml", text.as_str())].into_iter());
    let mut objects = objects.unwrap_or_else(|error| panic!("{path:?}: {error}")).objects;
    objects.bundle = bundle;
    (objects, settings, if failed.is_empty() { Outcome::Applied } else { Outcome::Failed(failed) })
}

fn printed(translation: &Translation, outcome: &Outcome) -> (String, String) {
    let mut place = |pem: &Pem| Some(format!("secrets/{}", files::file_name(pem)));
    let toml = print::toml(&translation.config, &mut place);
    let statuses = translation.statuses(outcome);
    (toml, print::yaml(&statuses, "2026-01-01T00:00:00Z"))
}
