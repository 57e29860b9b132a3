//! Finds the parts of an object in a file that have no effect: unknown kinds, versions and fields,
//! and values beyond their bounds. In a cluster, the API server refuses or removes such parts.

use serde::de::DeserializeOwned;
use serde_ignored::Path;
use serde_json::Value;

use crate::gateway::objects::{GROUP, X_GROUP, policy};
use crate::model::place::did_you_mean;

/// The kinds that are read, with their groups, and with the versions that read alike.
const KINDS: [(&str, &str, &[&str]); 16] = [
    (GROUP, "GatewayClass", &["v1", "v1beta1"]),
    (GROUP, "Gateway", &["v1", "v1beta1"]),
    (GROUP, "ListenerSet", &["v1"]),
    (GROUP, "TCPRoute", &["v1", "v1alpha2"]),
    (GROUP, "UDPRoute", &["v1", "v1alpha2"]),
    (GROUP, "TLSRoute", &["v1", "v1alpha3", "v1alpha2"]),
    (GROUP, "HTTPRoute", &["v1", "v1beta1"]),
    (GROUP, "ReferenceGrant", &["v1", "v1beta1"]),
    (GROUP, "BackendTLSPolicy", &["v1", "v1alpha3"]),
    (X_GROUP, "XBackend", &["v1alpha1"]),
    ("", "Service", &["v1"]),
    ("discovery.k8s.io", "EndpointSlice", &["v1"]),
    ("", "Secret", &["v1"]),
    ("", "ConfigMap", &["v1"]),
    ("", "Namespace", &["v1"]),
    (policy::GROUP, "L4Policy", &["v1alpha1"]),
];

/// The groups of the kinds that only a gateway has.
const OURS: [&str; 3] = [GROUP, X_GROUP, policy::GROUP];

/// Known fields, of the Gateway API and of Services, as suggestions for unknown fields.
const FIELDS: &[&str] = &[
    "spec",
    "metadata",
    "name",
    "namespace",
    "labels",
    "annotations",
    "gatewayClassName",
    "listeners",
    "addresses",
    "infrastructure",
    "allowedListeners",
    "defaultScope",
    "tls",
    "hostname",
    "port",
    "protocol",
    "allowedRoutes",
    "mode",
    "certificateRefs",
    "options",
    "group",
    "kind",
    "namespaces",
    "kinds",
    "from",
    "selector",
    "matchLabels",
    "matchExpressions",
    "backend",
    "frontend",
    "default",
    "perPort",
    "validation",
    "caCertificateRefs",
    "clientCertificateRef",
    "externalHostname",
    "parentRef",
    "parentRefs",
    "useDefaultGateways",
    "hostnames",
    "rules",
    "sectionName",
    "backendRefs",
    "weight",
    "filters",
    "matches",
    "to",
    "targetRefs",
    "wellKnownCACertificates",
    "subjectAltNames",
    "type",
    "value",
    "uri",
    "controllerName",
    "parametersRef",
    "ports",
    "targetPort",
    "clusterIP",
    "endpoints",
    "conditions",
    "ready",
    "serving",
    "terminating",
    "addressType",
    "data",
    "stringData",
    "listener",
    "route",
];

/// Why an object of this group, version and kind is not read, or is perhaps read with another
/// meaning.
pub(in crate::gateway) fn of_kind((group, version, kind): (&str, &str, &str)) -> Option<String> {
    let name = |group: &str| if group.is_empty() { "v1".to_owned() } else { format!("{group}/") };
    if let Some((_, _, versions)) =
        KINDS.iter().find(|(of, known, _)| (*of, *known) == (group, kind))
    {
        let all = versions.join(", ");
        return (!versions.contains(&version)).then(|| {
            format!(
                "apiVersion: {version} is not known, and is read as {}; known are {all}",
                versions[0]
            )
        });
    }
    if let Some((other, ..)) = KINDS.iter().find(|(_, known, _)| *known == kind) {
        // Some foreign groups have kinds of equal names (Knative's Service).
        let lost = group.is_empty() || OURS.contains(other) && is_near(group, other);
        return lost.then(|| {
            format!(
                "apiVersion: it is skipped: a {kind} is of {}, not of {}",
                name(other),
                name(group)
            )
        });
    }
    if group != GROUP {
        return None;
    }
    let known = KINDS.iter().filter(|(of, ..)| *of == GROUP).map(|(_, kind, _)| *kind);
    let near = did_you_mean(kind, known);
    Some(format!("kind: {kind} is none that Ringway serves, and is skipped{near}"))
}

fn is_near(group: &str, other: &str) -> bool {
    !did_you_mean(group, std::iter::once(other)).is_empty()
}

/// Reads an object into its type, and says which fields have no effect. Objects of files and of a
/// cluster are read by this one way, because the code for each type and way is large.
///
/// # Errors
/// The field that can't be read, and why.
pub(in crate::gateway) fn read<T: DeserializeOwned>(
    value: Value,
    is_secret: bool,
) -> Result<(T, Vec<String>), (String, String)> {
    let mut object = None;
    let unread = track(value, is_secret, &mut |deserializer| {
        object = Some(erased_serde::deserialize(deserializer)?);
        Ok(())
    })?;
    Ok((object.expect("it was read"), unread))
}

type ReadInto<'a> =
    &'a mut dyn FnMut(&mut dyn erased_serde::Deserializer<'_>) -> Result<(), erased_serde::Error>;

/// Keeps track of what is read. It does not know the type, so there is one such function for all
/// types, and one for each of the many below it.
fn track(
    value: Value,
    is_secret: bool,
    read: ReadInto<'_>,
) -> Result<Vec<String>, (String, String)> {
    let (mut track, mut unread) = (serde_path_to_error::Track::new(), Vec::new());
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    let mut note = |path: Path<'_>| unread.extend(ignored(&path));
    let noted = serde_ignored::Deserializer::new(tracked, &mut note);
    let result = read(&mut <dyn erased_serde::Deserializer<'_>>::erase(noted));
    match result {
        Ok(()) => Ok(unread),
        Err(error) => {
            // The message could quote the value that could not be read.
            let message =
                if is_secret { "is not what a Secret has there".into() } else { error.to_string() };
            Err((track.path().to_string(), message))
        }
    }
}

/// A message about a field that was not read: `FIELD: MESSAGE`.
fn ignored(path: &Path<'_>) -> Option<String> {
    let field = field(path);
    // These fields are for people, or for objects of other controllers.
    if ["spec.description", "spec.parametersRef.namespace"].contains(&field.as_str()) {
        return None;
    }
    Some(unknown(&field))
}

fn unknown(field: &str) -> String {
    let last = field.rsplit('.').next().unwrap_or_default();
    let near = did_you_mean(last, FIELDS.iter().copied());
    format!("{field}: is no field that Ringway knows, and has no effect{near}")
}

fn field(path: &Path<'_>) -> String {
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", field(parent)),
        Path::Map { parent, key } => {
            let before = field(parent);
            let dot = if before.is_empty() { "" } else { "." };
            format!("{before}{dot}{key}")
        }
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => field(parent),
    }
}

/// Messages about fields that have no effect although reading reports no fault, each as `FIELD:
/// MESSAGE`.
pub(in crate::gateway) fn of_fields(object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let group = version.split_once('/').map_or("", |(group, _)| group);
    if !OURS.contains(&group) {
        return found;
    }
    let top = ["apiVersion", "kind", "metadata", "spec", "status"];
    let keys = object.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    found.extend(keys.filter(|key| !top.contains(key)).map(unknown));
    let spec = &object["spec"];
    if group == policy::GROUP {
        of_policy(&policy::schema(), spec, "spec", &mut found);
        return found;
    }
    let is_http = object["kind"] == "HTTPRoute";
    for (at, rule) in spec["rules"].as_array().into_iter().flatten().enumerate() {
        let known: &[&str] = if is_http {
            &[
                "name",
                "backendRefs",
                "matches",
                "filters",
                "timeouts",
                "retry",
                "sessionPersistence",
            ]
        } else {
            &["name", "backendRefs"]
        };
        let keys = rule.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
        let unread = keys.filter(|key| !known.contains(key));
        found.extend(unread.map(|key| unknown(&format!("spec.rules[{at}].{key}"))));
        for (nth, backend) in rule["backendRefs"].as_array().into_iter().flatten().enumerate() {
            let Some(weight) = backend["weight"].as_i64() else { continue };
            if !(0..=1_000_000).contains(&weight) {
                let counts = weight.clamp(0, 1_000_000);
                found.push(format!(
                    "spec.rules[{at}].backendRefs[{nth}].weight: must be 0 to 1000000; {weight} \
                     counts as {counts}"
                ));
            }
        }
    }
    found
}

/// Finds fields that the policy's definition does not have.
fn of_policy(schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            let Some(known) = schema["properties"].as_object() else { return };
            for (key, value) in fields {
                let path = format!("{at}.{key}");
                match known.get(key) {
                    Some(schema) => of_policy(schema, value, &path, found),
                    None => {
                        let near = did_you_mean(key, known.keys().map(String::as_str));
                        found.push(format!(
                            "{path}: is no field of an L4Policy, and has no effect{near}"
                        ));
                    }
                }
            }
        }
        Value::Array(items) => {
            for (nth, item) in items.iter().enumerate() {
                of_policy(&schema["items"], item, &format!("{at}[{nth}]"), found);
            }
        }
        _ => {}
    }
}
