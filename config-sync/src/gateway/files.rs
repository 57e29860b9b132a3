//! Reads Kubernetes objects from YAML files: the objects that a cluster would have.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::gateway::objects::inspector::Inspector;
use crate::gateway::objects::schema::Kind;
use crate::gateway::objects::{
    CONTROLLER, GROUP, GatewayClass, GatewayClassSpec, Objects, X_GROUP, definitions, policy,
    schema,
};
use crate::gateway::translate::found::LastGood;
use crate::gateway::translate::settings::Settings;
use crate::machine::Machine;
use crate::model::config::Config;
use crate::model::place::Warning;
use crate::model::tls::Pem;
use crate::{check, machine};

/// The options for translating the objects of files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// For [`Settings::address_pool`].
    pub address_pool: Vec<IpNet>,
    /// For [`Settings::node_addresses`]. If the list is empty, this machine's addresses count.
    pub node_addresses: Vec<IpAddr>,
    /// For [`Settings::zone`].
    pub zone: Option<String>,
    /// For [`Settings::external_names`].
    pub external_names: bool,
}

impl Options {
    /// # Errors
    /// `base`, a name and a TOML text, is no configuration, or has other keys than the keys that no
    /// object has.
    pub fn settings(&self, base: (&str, &str)) -> Result<Settings, String> {
        let machine = Machine::this();
        let (file, text) = base;
        let base = check::parse_for(file, text, &machine).map_err(|error| error.to_string())?;
        let Config { listeners, routes, backends, shared_limits, .. } = &base;
        let has_parts = !listeners.is_empty() || !routes.is_empty() || !backends.is_empty();
        if has_parts || !shared_limits.is_empty() {
            return Err(format!(
                "{file}: listeners, routes and backends come from the YAML files beside it, and \
                 have no shared_limits; a TOML file among them has the other keys only"
            ));
        }
        let given = self.node_addresses.clone();
        let node_addresses = if given.is_empty() { machine::addresses() } else { given };
        Ok(Settings {
            controller_name: CONTROLLER.to_owned(),
            given: BTreeMap::new(),
            last_good: LastGood::default(),
            namespaces: [].into(),
            now: None,
            address_pool: self.address_pool.clone(),
            node_addresses,
            zone: self.zone.clone(),
            external_names: self.external_names,
            base,
            machine,
        })
    }
}

/// The objects of files.
#[derive(Debug, Default)]
pub struct ReadFiles {
    pub objects: Objects,
    /// Values that can be read but are hardly meant.
    pub warnings: Vec<Warning>,
    places: Places,
}

/// The place of each object, by its group, kind, namespace and name.
type Places = BTreeMap<[String; 4], String>;

/// Reads every object of the files; each file is a name and a text. Kinds that a gateway does not
/// use are skipped. If no file has a GatewayClass, there is one named `ringway`.
///
/// # Errors
/// Every fault, one per line, as `FILE:LINE: document N: KIND NAMESPACE/NAME: FIELD: MESSAGE`. No
/// API server has checked the objects, so what an API server would refuse is a fault, and so is
/// every field that it would drop.
pub fn read<'t>(files: impl Iterator<Item = (&'t str, &'t str)>) -> Result<ReadFiles, String> {
    let inspector = Some(Inspector::default());
    Reader { inspector, ..Reader::default() }.read(files)
}

/// Reads files that stand for what a cluster has. An API server has checked such objects, perhaps
/// by definitions of another release, so unknown and invalid fields are no faults.
///
/// # Errors
/// The form is that of [`read`]'s errors.
pub fn read_of_cluster<'t>(
    files: impl Iterator<Item = (&'t str, &'t str)>,
) -> Result<ReadFiles, String> {
    Reader::default().read(files)
}

/// The file name for a certificate or key. Names of objects have neither `_` nor a blank, so no two
/// file names are equal.
pub fn file_name(pem: &Pem) -> String {
    let name = match pem {
        Pem::Inline { name, .. } => name.clone(),
        Pem::File(path) => path.value.display().to_string(),
    };
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '_' };
    name.chars().map(plain).collect()
}

/// Writes a certificate or key into a directory, and returns the path. Only the owner can read the
/// file.
///
/// # Errors
/// The file can't be written.
pub fn write_secret(directory: &Path, pem: &Pem) -> io::Result<PathBuf> {
    let path = directory.join(file_name(pem));
    let bytes = match pem {
        Pem::Inline { bytes, .. } => Arc::clone(bytes),
        Pem::File(path) => std::fs::read(&path.value)?.into(),
    };
    // The file is made again, because an existing file would keep its mode.
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(&bytes)?;
    Ok(path)
}

fn own_class() -> GatewayClass {
    let spec = GatewayClassSpec { controller_name: CONTROLLER.to_owned(), parameters_ref: None };
    GatewayClass {
        types: None,
        metadata: kube::api::ObjectMeta { name: Some("ringway".into()), ..Default::default() },
        spec,
        status: None,
    }
}

struct Document<'t> {
    text: &'t str,
    /// The number of the document, from 1. Empty documents do not count.
    number: usize,
    /// The first line of the document, from 1.
    line: usize,
}

/// Follows YAML 1.2: `no` and `off` are words, and a name may be such a word.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! { strict_booleans: true }
}

/// `---` in the first column ends a document in any place (YAML 1.2.2, section 9.1.4).
fn documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut from, mut from_line, mut at) = (0, 1, 0);
    let mut add = |from: usize, to: usize, line| {
        let text = &text[from..to];
        let said = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
        if text.lines().any(said) {
            documents.push(Document { text, number: documents.len() + 1, line });
        }
    };
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let end = line.trim_end();
        if end == "---" || line.starts_with("--- ") || end == "..." {
            add(from, at, from_line);
            // Text after `---` on the same line belongs to the new document.
            from = if line.starts_with("--- ") { at + 4 } else { at + line.len() };
            from_line = if line.starts_with("--- ") { number + 1 } else { number + 2 };
        }
        at += line.len();
    }
    add(from, text.len(), from_line);
    documents
}

#[derive(Default)]
struct Reader {
    found: ReadFiles,
    /// `None`: an API server has checked the objects.
    inspector: Option<Inspector>,
}

impl Reader {
    fn read<'t>(
        mut self,
        files: impl Iterator<Item = (&'t str, &'t str)>,
    ) -> Result<ReadFiles, String> {
        let mut faults = Vec::new();
        for (file, text) in files {
            for document in documents(text) {
                let place = format!("{file}:{}: document {}", document.line, document.number);
                match serde_saphyr::from_str_with_options::<Value>(document.text, options()) {
                    Ok(value) => faults.extend(self.add(value, &place)),
                    Err(error) => {
                        let line = error.location().map_or(0, |at| at.line().saturating_sub(1));
                        let line = document.line + usize::try_from(line).unwrap_or(0);
                        let number = document.number;
                        let what = error.without_snippet().to_string();
                        let what = what.lines().next().unwrap_or_default();
                        faults.push(format!("{file}:{line}: document {number}: not YAML: {what}"));
                    }
                }
            }
        }
        let objects = &mut self.found.objects;
        if objects.gateway_classes.is_empty() {
            objects.gateway_classes.push(Arc::new(own_class()));
        }
        if faults.is_empty() { Ok(self.found) } else { Err(faults.join("\n")) }
    }

    /// Adds an object, or each object of a list. Returns the faults.
    fn add(&mut self, value: Value, at: &str) -> Vec<String> {
        let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text("apiVersion"), text("kind"));
        let (group, version) = match version.split_once('/') {
            Some((group, version)) => (group.to_owned(), version.to_owned()),
            None => (String::new(), version),
        };
        if version.is_empty() || kind.is_empty() {
            return vec![format!("{at}: has no apiVersion and kind: it is no Kubernetes object")];
        }
        if kind == "List" || value["items"].is_array() {
            let mut items = value;
            let items = items["items"].take();
            let items = items.as_array().cloned().unwrap_or_default().into_iter();
            return items.flat_map(|item| self.add(item, at)).collect();
        }
        let metadata = &value["metadata"];
        let Some(name) = metadata["name"].as_str().filter(|name| !name.is_empty()) else {
            return vec![format!("{at}: {kind}: metadata.name: missing")];
        };
        let namespace = metadata["namespace"].as_str().unwrap_or("default");
        let title = format!("{kind} {namespace}/{name}");
        let id = [&group, &kind, namespace, name].map(str::to_owned);
        match self.add_one((&group, &version, &kind), value, (at, &title)) {
            Ok(true) => {}
            Ok(false) => return Vec::new(),
            Err(faults) => {
                return faults.into_iter().map(|why| format!("{at}: {title}: {why}")).collect();
            }
        }
        // In a cluster, a name has one object. In files, nobody could say which of two objects is
        // meant.
        let first = self.found.places.insert(id, at.to_owned());
        let twice = |first| {
            format!("{at}: {title}: metadata.name: this object is there already, at {first}")
        };
        first.map(twice).into_iter().collect()
    }

    /// Adds an object. `false`: the object is for others.
    fn add_one(
        &mut self,
        (group, version, kind): (&str, &str, &str),
        value: Value,
        (at, title): (&str, &str),
    ) -> Result<bool, Vec<String>> {
        let mut is_whole = true;
        if let Some(inspector) = &mut self.inspector {
            match schema::kind((group, version, kind)).map_err(|fault| vec![fault])? {
                Kind::Read(definition) => {
                    let mut faults = inspector.faults(kind, definition, &value);
                    faults.extend(names(&value["metadata"]));
                    if !faults.is_empty() {
                        return Err(faults);
                    }
                    is_whole = definitions::is_whole(definition);
                }
                Kind::Skipped(None) => return Ok(false),
                Kind::Skipped(Some(why)) => {
                    let message = format!("{title}: {why}");
                    self.found.warnings.push(Warning { place: at.to_owned(), message });
                    return Ok(false);
                }
            }
        }
        let objects = &mut self.found.objects;
        let read = match (group, kind) {
            (GROUP, "GatewayClass") => push(&mut objects.gateway_classes, value),
            (GROUP, "Gateway") => push(&mut objects.gateways, value),
            (GROUP, "ListenerSet") => push(&mut objects.listener_sets, value),
            (GROUP, "TCPRoute") => push(&mut objects.tcp_routes, value),
            (GROUP, "UDPRoute") => push(&mut objects.udp_routes, value),
            (GROUP, "TLSRoute") => push(&mut objects.tls_routes, value),
            (GROUP, "HTTPRoute") => push(&mut objects.http_routes, value),
            (GROUP, "ReferenceGrant") => push(&mut objects.reference_grants, value),
            (GROUP, "BackendTLSPolicy") => push(&mut objects.backend_tls_policies, value),
            (X_GROUP, "XBackend") => push(&mut objects.x_backends, value),
            ("", "Service") => push(&mut objects.services, value),
            ("discovery.k8s.io", "EndpointSlice") => push(&mut objects.endpoint_slices, value),
            ("", "Secret") => push(&mut objects.secrets, value),
            ("", "ConfigMap") => push(&mut objects.config_maps, value),
            ("", "Namespace") => push(&mut objects.namespaces, value),
            (policy::GROUP, "L4Policy") => push(&mut objects.policies, value),
            _ => return Ok(false),
        };
        let told = |(field, message)| vec![format!("{field}: {message}")];
        let mut unread = read.map_err(told)?;
        // Ringway's types of a kind with a whole definition have only the fields that Ringway uses.
        unread.retain(|field| !is_whole || field.starts_with("metadata."));
        if self.inspector.is_some() && !unread.is_empty() {
            let told = |field: String| {
                let near = schema::suggestion(&field);
                format!("{field}: {kind} has no such field here{near}")
            };
            return Err(unread.into_iter().map(told).collect());
        }
        if group == GROUP {
            names_differ(kind, &self.found.objects).map_err(told)?;
        }
        Ok(true)
    }
}

impl ReadFiles {
    /// The place of an object. Empty if the object is in no file.
    pub fn place(&self, group: &str, kind: &str, namespace: &str, name: &str) -> String {
        self.places
            .get(&[group, kind, namespace, name].map(str::to_owned))
            .cloned()
            .unwrap_or_default()
    }
}

/// Faults of the names in the metadata of an object, which no definition describes (RFC 1123).
fn names(metadata: &Value) -> Vec<String> {
    let is_label = |label: &str| {
        let is_of_one = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        let ends = [label.bytes().next(), label.bytes().next_back()];
        label.bytes().all(is_of_one) && ends.iter().all(|end| end.is_some_and(|end| end != b'-'))
    };
    let mut faults = Vec::new();
    let name = metadata["name"].as_str().unwrap_or_default();
    if name.len() > 253 || !name.split('.').all(is_label) {
        faults.push(format!(
            "metadata.name: {name:?} is no name: at most 253 of a-z, 0-9, \"-\" and \".\", and \
             a-z or 0-9 at both ends of each part"
        ));
    }
    let namespace = metadata["namespace"].as_str();
    if let Some(namespace) = namespace.filter(|of| of.len() > 63 || !is_label(of)) {
        faults.push(format!(
            "metadata.namespace: {namespace:?} is no name: at most 63 of a-z, 0-9 and \"-\", and \
             a-z or 0-9 at both ends"
        ));
    }
    faults
}

/// Adds an object. Returns the fields that its type does not have.
fn push<T: DeserializeOwned>(
    list: &mut Vec<Arc<T>>,
    value: Value,
) -> Result<Vec<String>, (String, String)> {
    let is_secret = value["kind"] == "Secret";
    let (object, ignored) = schema::read(value, is_secret)?;
    list.push(Arc::new(object));
    Ok(ignored)
}

/// Checks the object that was read last. In a cluster, two listeners of one Gateway or ListenerSet
/// can't have one name. The definitions have a rule for that, but it names neither of the two.
fn names_differ(kind: &str, objects: &Objects) -> Result<(), (String, String)> {
    let listeners = match kind {
        "Gateway" => objects.gateways.last().map(|gateway| &gateway.spec.listeners),
        "ListenerSet" => objects.listener_sets.last().map(|set| &set.spec.listeners),
        _ => None,
    };
    let listeners = listeners.map_or(&[][..], Vec::as_slice);
    let mut seen = BTreeMap::new();
    for (at, listener) in listeners.iter().enumerate() {
        if let Some(first) = seen.insert(&listener.name, at) {
            let message = format!(
                "\"{}\" is the name of listeners[{first}] already; give each its own",
                listener.name
            );
            return Err((format!("spec.listeners[{at}].name"), message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> String {
        read([("a.yaml", text)].into_iter()).expect_err("faults")
    }

    #[test]
    fn a_fault_names_file_document_object_and_field() {
        let text = "# first\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: n}\n---\n\
                    apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
                    metadata: {name: g, namespace: n}\nspec:\n  gatewayClassName: ringway\n  \
                    listeners:\n  - {name: a, protocol: TCP, port: eighty}\n";
        let fault = faults(text);
        let place = "a.yaml:7: document 2: Gateway n/g: spec.listeners[0].port: ";
        assert!(fault.starts_with(place), "{fault}");
        assert!(faults("a: [").starts_with("a.yaml:1: document 1: not YAML: "));
        assert!(faults("\n---\nkind: X\n").contains("no apiVersion and kind"));
        assert!(faults("apiVersion: v1\nkind: Secret\n").contains("metadata.name: missing"));
    }

    #[test]
    fn an_object_is_there_once() {
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: n}\n";
        let fault = faults(&format!("{service}---\n{service}"));
        let twice = "a.yaml:5: document 2: Service n/s: metadata.name: this object is there \
                     already, at a.yaml:1: document 1";
        assert_eq!(fault, twice);
        let other = service.replace("n}", "m}");
        read([("a.yaml", service), ("b.yaml", &other)].into_iter()).expect("two objects");
    }

    #[test]
    fn listeners_of_one_name_are_both_named() {
        let listener = |port| format!("  - {{name: a, protocol: TCP, port: {port}}}\n");
        let object = |kind: &str, spec: &str| {
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: g}}\n\
                 spec:\n  {spec}\n  listeners:\n{}{}",
                listener(1),
                listener(2)
            )
        };
        let told = "default/g: spec.listeners[1].name: \"a\" is the name of listeners[0] already; \
                    give each its own";
        for (kind, spec) in
            [("Gateway", "gatewayClassName: ringway"), ("ListenerSet", "parentRef: {name: g}")]
        {
            let fault = faults(&object(kind, spec));
            assert_eq!(fault, format!("a.yaml:1: document 1: {kind} {told}"));
        }
    }

    #[test]
    fn a_secret_is_not_quoted() {
        let text =
            "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {tls.key: 'no base64!'}";
        let fault = faults(text);
        assert!(fault.contains("data") && !fault.contains("base64!"), "{fault}");
    }

    #[test]
    fn lists_and_other_kinds() {
        let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  \
                    metadata: {name: s}\n- apiVersion: apps/v1\n  kind: Deployment\n  \
                    metadata: {name: d}\n";
        let ReadFiles { objects, warnings, .. } =
            read([("a.yaml", text)].into_iter()).expect("objects");
        assert_eq!(warnings, []);
        assert_eq!((objects.services.len(), objects.gateway_classes.len()), (1, 1));
        assert_eq!(documents("--- {a: 1}\n--- {b: 2}\n...\n").len(), 2);
    }
}
