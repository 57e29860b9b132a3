//! The definition (OpenAPI v3) of each kind that is read: the CRDs of the Gateway API and of
//! Ringway, and those parts of Kubernetes' own kinds that a gateway uses.
//!
//! `gateway-api.json` is made of the CRDs of the Go module `sigs.k8s.io/gateway-api` (Apache-2.0),
//! in the version of the conformance suite. The file names its source, and says which keywords and
//! rules are left out. The crate
//! `gateway-api` is not used, because it is a release behind the suite, and because its types have
//! neither patterns nor bounds. `tests/run cluster` compares the file with the module.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::gateway::objects::policy;

/// The group of EndpointSlices.
pub(super) const DISCOVERY: &str = "discovery.k8s.io";

/// A property of definitions that do not have all fields of their kind.
const IS_PART: &str = "x-kubernetes-preserve-unknown-fields";

/// The definitions by group and kind, and then by version. Earlier versions come first.
pub(super) type Definitions = BTreeMap<(String, String), BTreeMap<String, Value>>;

pub(super) fn all() -> &'static Definitions {
    static ALL: LazyLock<Definitions> = LazyLock::new(|| {
        let mut all = gateway_api();
        for (group, version, kind, definition) in others() {
            let key = (group.to_owned(), kind.to_owned());
            all.insert(key, BTreeMap::from([(version.to_owned(), definition)]));
        }
        all
    });
    &ALL
}

/// Whether a definition has all fields of its kind.
pub(in crate::gateway) fn is_whole(definition: &Value) -> bool {
    definition.get(IS_PART).is_none()
}

/// A version without a definition of its own has the name of the version with an equal definition.
fn gateway_api() -> Definitions {
    let text = include_str!("gateway-api.json");
    let file: Value = serde_json::from_str(text).expect("the file is JSON");
    let mut all = Definitions::new();
    for (group, kinds) in file["kinds"].as_object().into_iter().flatten() {
        for (kind, versions) in kinds.as_object().into_iter().flatten() {
            let versions = versions.as_object().into_iter().flatten().map(|(version, given)| {
                let definition = given.as_str().map_or(given, |other| &kinds[kind][other]);
                (version.clone(), definition.clone())
            });
            all.insert((group.clone(), kind.clone()), versions.collect());
        }
    }
    all
}

/// Group, version, kind and definition of L4Policy and of Kubernetes' own kinds.
fn others() -> [(&'static str, &'static str, &'static str, Value); 6] {
    let label = "^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$";
    let name = json!({"type": "string", "maxLength": 63, "pattern": label});
    let protocol = json!({"type": "string", "enum": ["TCP", "UDP", "SCTP"]});
    let port = json!({"type": "integer", "minimum": 1, "maximum": 65_535});
    let array = |of: Value| json!({"type": "array", "items": of});
    let part = |properties: Value, required: &[&str]| {
        json!({
            "type": "object", "properties": properties, "required": required, IS_PART: true,
        })
    };
    let ports = |required: &[&str]| {
        array(part(json!({"name": name, "protocol": protocol, "port": port}), required))
    };
    let types = json!(["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    let spec = json!({"ports": ports(&["port"]), "type": {"type": "string", "enum": types}});
    let service = part(json!({"spec": part(spec, &[])}), &[]);
    let text = json!({"type": "string"});
    let addresses = json!({"type": "array", "items": text, "minItems": 1, "maxItems": 100});
    let endpoints = array(part(json!({"addresses": addresses}), &["addresses"]));
    let types = json!({"type": "string", "enum": ["IPv4", "IPv6", "FQDN"]});
    let slice = json!({"addressType": types, "endpoints": endpoints, "ports": ports(&[])});
    let slice = part(slice, &["addressType", "endpoints"]);
    let plain = || part(json!({}), &[]);
    let policy = json!({
        "type": "object",
        "properties": {
            "apiVersion": {}, "kind": {}, "metadata": {}, "spec": policy::schema(), "status": {},
        },
        "required": ["spec"],
    });
    [
        (policy::GROUP, "v1alpha1", "L4Policy", policy),
        ("", "v1", "Service", service),
        (DISCOVERY, "v1", "EndpointSlice", slice),
        ("", "v1", "Secret", plain()),
        ("", "v1", "ConfigMap", plain()),
        ("", "v1", "Namespace", plain()),
    ]
}
