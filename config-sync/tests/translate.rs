//! `ringway translate`: objects in files to TOML that runs the same traffic.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use config_sync::check::parse;
use config_sync::compile::compile;
use config_sync::compile::names::Names;
use config_sync::gateway::files::Options;
use config_sync::source::{Source, translate};
use config_sync::sync::dry_run::{Checked, check};

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

/// Objects that a gateway serves without a word.
const GOOD: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: ringway
  listeners: [{name: a, protocol: TCP, port: 7000}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: r}
spec:
  parentRefs: [{name: edge}]
  rules: [{backendRefs: [{name: s, port: 80, weight: 3}]}]
---
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s-1, labels: {kubernetes.io/service-name: s}}
addressType: IPv4
ports: [{port: 80}]
endpoints: [{addresses: [10.0.0.1]}]
";

/// Where the objects of `GOOD` stand.
const GATEWAY: &str = "a.yaml:1: document 1: Gateway default/edge: ";
const ROUTE: &str = "a.yaml:8: document 2: TCPRoute default/r: ";
const SERVICE: &str = "a.yaml:15: document 3: Service default/s: ";
const SLICE: &str = "a.yaml:20: document 4: EndpointSlice default/s-1: ";

/// The faults where something else stands in the place of a part of `GOOD`.
const FAULTS: &[(&str, &str, &str, &str)] = &[
    (
        "backendRefs",
        "backendRef",
        ROUTE,
        "spec.rules[0].backendRef: TCPRoute has no such field here (did you mean \"backendRefs\"?)",
    ),
    ("backendRefs", "backendRef", ROUTE, "spec.rules[0].backendRefs: missing"),
    (
        "weight: 3",
        "wieght: 3",
        ROUTE,
        "spec.rules[0].backendRefs[0].wieght: TCPRoute has no such field here (did you mean \
         \"weight\"?)",
    ),
    (
        "weight: 3",
        "weight: -1",
        ROUTE,
        "spec.rules[0].backendRefs[0].weight: must be 0 to 1000000, and is -1",
    ),
    ("port: 7000", "port: 70000", GATEWAY, "spec.listeners[0].port: must be 1 to 65535"),
    ("port: 7000", "port: \"7000\"", GATEWAY, "spec.listeners[0].port: must be an integer"),
    (", port: 7000", "", GATEWAY, "spec.listeners[0].port: missing"),
    ("name: a, protocol", "name: 1, protocol", GATEWAY, "spec.listeners[0].name: must be a string"),
    (
        "name: a, protocol: TCP",
        "name: a_b, protocol: TCP",
        GATEWAY,
        "spec.listeners[0].name: \"a_b\" does not fit the pattern ",
    ),
    (
        "protocol: TCP, port: 7000",
        "protocol: TLS, port: 7000, tls: {mode: passthrough}",
        GATEWAY,
        "spec.listeners[0].tls.mode: \"passthrough\" is none of the allowed words: \"Terminate\", \
         \"Passthrough\" (did you mean \"Passthrough\"?)",
    ),
    (
        "gatewayClassName: ringway",
        "gatewayClassName: ringway\n  addresses: [{value: here}]",
        GATEWAY,
        "spec.addresses[0].value: \"here\" is no IP address",
    ),
    ("kind: Gateway\n", "kind: Gateway\nspecs: {}\n", GATEWAY, "specs: Gateway has no such field"),
    (
        "metadata: {name: r}",
        "metadata: {name: r, lables: {}}",
        ROUTE,
        "metadata.lables: TCPRoute has no such field here (did you mean \"labels\"?)",
    ),
    (
        "metadata: {name: r}",
        "metadata: {name: R}",
        "a.yaml:8: document 2: TCPRoute default/R: ",
        "metadata.name: \"R\" is no name: ",
    ),
    (
        "metadata: {name: r}",
        "metadata: {name: r, namespace: a.b}",
        "a.yaml:8: document 2: TCPRoute a.b/r: ",
        "metadata.namespace: \"a.b\" is no name: ",
    ),
    (
        "kind: TCPRoute",
        "kind: TCPRout",
        "a.yaml:8: document 2: TCPRout default/r: ",
        "kind: gateway.networking.k8s.io/v1 has no kind TCPRout (did you mean \"TCPRoute\"?)",
    ),
    (
        "k8s.io/v1\nkind: TCPRoute",
        "k8s.io/v9\nkind: TCPRoute",
        ROUTE,
        "apiVersion: TCPRoute has no version gateway.networking.k8s.io/v9; write \
         gateway.networking.k8s.io/v1 or gateway.networking.k8s.io/v1alpha2",
    ),
    (
        "gateway.networking.k8s.io/v1\nkind: TCPRoute",
        "v1\nkind: TCPRoute",
        ROUTE,
        "apiVersion: v1 has no kind TCPRoute; write gateway.networking.k8s.io/v1",
    ),
    (
        "gateway.networking.k8s.io/v1\nkind: TCPRoute",
        "gateway.network.k8s.io/v1\nkind: TCPRoute",
        ROUTE,
        "apiVersion: gateway.network.k8s.io/v1 has no kind TCPRoute; write gateway.networking",
    ),
    (
        "kind: Service\n",
        "kind: Sevice\n",
        "a.yaml:15: document 3: Sevice default/s: ",
        "kind: v1 has no kind Sevice (did you mean \"Service\"?)",
    ),
    (
        "spec: {ports",
        "spec: {prots: [], ports",
        SERVICE,
        "spec.prots: Service has no such field here (did you mean \"ports\"?)",
    ),
    ("[{port: 80}]}", "[{name: pg}]}", SERVICE, "spec.ports[0].port: missing"),
    ("[{port: 80}]}", "[{port: 0}]}", SERVICE, "spec.ports[0].port: must be 1 to 65535, and is 0"),
    ("addressType: IPv4\n", "", SLICE, "addressType: missing"),
    ("addressType: IPv4", "addressType: IPV4", SLICE, "addressType: \"IPV4\" is none of the"),
    ("[10.0.0.1]", "[]", SLICE, "endpoints[0].addresses: must have at least 1 items, and has 0"),
];

/// What is warned of where something else stands in the place of a part of `GOOD`.
const ODD: &[(&str, &str, &str, &str)] = &[
    ("weight: 3", "weight: 0", ROUTE, "spec.rules[0].backendRefs: all weights are 0"),
    ("kind: TCPRoute", "kind: GRPCRoute", GATEWAY, "spec.listeners[0]: no route is for listener a"),
    (
        "kind: TCPRoute",
        "kind: GRPCRoute",
        "a.yaml:8: document 2: GRPCRoute default/r: ",
        "kind: Ringway does not serve this kind, and skips it",
    ),
    (
        "discovery.k8s.io/v1\nkind: EndpointSlice",
        "v1\nkind: Endpoints",
        "a.yaml:20: document 4: Endpoints default/s-1: ",
        "kind: it is skipped; write an EndpointSlice in its place",
    ),
    (
        "gatewayClassName: ringway",
        "gatewayClassName: rngway",
        GATEWAY,
        "spec.gatewayClassName: there is no GatewayClass rngway (did you mean \"ringway\"?); \
         nothing of the Gateway is served",
    ),
    (
        "{name: edge}]\n  rules",
        "{name: egde}]\n  rules",
        ROUTE,
        "spec.parentRefs[0]: there is no Gateway default/egde (did you mean \"default/edge\"?)",
    ),
    (
        "  parentRefs: [{name: edge}]\n",
        "",
        ROUTE,
        "spec.parentRefs: missing; without a Gateway the route is for nothing, so name one: ",
    ),
    (
        "service-name: s",
        "service-name: t",
        ROUTE,
        "spec.rules[0].backendRefs[0]: Service default/s, port 80, has no endpoint, so what goes",
    ),
    (
        "service-name: s",
        "service-name: t",
        SLICE,
        "metadata.labels: kubernetes.io/service-name: there is no Service default/t",
    ),
    (
        "[10.0.0.1]",
        "[10.0.0.1], conditions: {ready: false}",
        ROUTE,
        "spec.rules[0].backendRefs[0]: Service default/s, port 80, has no endpoint",
    ),
    (
        "spec: {ports: [{port: 80}]}",
        "spec: {ports: [{name: pg, port: 80}]}",
        ROUTE,
        "spec.rules[0].backendRefs[0]: Service default/s, port 80, has no endpoint, so what goes \
         there is refused: the Service's port is TCP \"pg\", and the ports of its EndpointSlices \
         are TCP without a name; give both one name and protocol",
    ),
    ("port: 80, weight", "port: 81, weight", "", "Service default/s has no port 81"),
];

/// What is warned of, by `check` and `translate` alike.
fn warned(folder: &Folder, text: &str) -> Vec<String> {
    let path = folder.file("a.yaml", text);
    let checked = check(&Source::at(path.clone(), Options::default()), 0);
    let Checked { warnings, .. } = checked.unwrap_or_else(|error| panic!("{error}"));
    let translated = translate(std::slice::from_ref(&path), None, &Options::default());
    let translated = translated.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(translated.warnings, warnings);
    let folder = format!("{}/", folder.0.display());
    warnings.iter().map(|warning| warning.to_string().replace(&folder, "")).collect()
}

#[test]
fn what_objects_in_files_do_not_do_is_warned_of_with_place_field_and_fix() {
    let folder = Folder::new("warnings");
    assert_eq!(warned(&folder, GOOD), Vec::<String>::new());
    for (part, instead, place, expected) in ODD {
        let said = warned(&folder, &GOOD.replace(part, instead));
        let found = said.iter().any(|said| match *place {
            "" => said.contains(expected),
            place => said.starts_with(&format!("{place}{expected}")),
        });
        assert!(found, "{place}{expected}\n{said:#?}");
    }
}

/// What `check` and `translate` find that can't be in force.
fn faults(folder: &Folder, text: &str) -> String {
    let path = folder.file("a.yaml", text);
    let faults = check(&Source::at(path.clone(), Options::default()), 0).expect_err(text);
    let translated = translate(std::slice::from_ref(&path), None, &Options::default());
    assert_eq!(translated.map(|translated| translated.toml), Err(faults.clone()));
    faults.replace(&format!("{}/", folder.0.display()), "")
}

#[test]
fn what_an_api_server_would_refuse_or_drop_is_a_fault_with_place_and_field() {
    let folder = Folder::new("faults");
    for (part, instead, place, expected) in FAULTS {
        let text = GOOD.replacen(part, instead, 1);
        assert_ne!(text, GOOD, "{part}");
        let said = faults(&folder, &text);
        let found = said.lines().any(|said| said.starts_with(&format!("{place}{expected}")));
        assert!(found, "{place}{expected}\n{said}");
    }
    // All faults of all objects are told at once.
    let text = GOOD.replace("weight: 3", "weight: -1").replace("port: 7000", "port: 0");
    assert_eq!(faults(&folder, &text).lines().count(), 2);
}

/// The page shows objects that a gateway serves without a word.
#[test]
fn the_example_of_the_page_is_in_order() {
    let folder = Folder::new("page");
    let page = include_str!("../README.md");
    let example = page.split("```yaml\n").nth(1).and_then(|after| after.split("```").next());
    let example = example.expect("an example in YAML");
    assert!(example.contains("kind: TCPRoute"), "{example}");
    assert_eq!(warned(&folder, example), Vec::<String>::new());
}

/// Objects of groups that have nothing to do with a gateway may lie among the others.
#[test]
fn what_is_for_others_is_passed_over() {
    let folder = Folder::new("others");
    let others = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {any: 1}\n\
                  ---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: a}\n---\n\
                  apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: k}\n";
    assert_eq!(warned(&folder, &format!("{GOOD}{others}")), Vec::<String>::new());
}

#[test]
fn what_another_controller_has_is_not_served_here() {
    let folder = Folder::new("foreign");
    let class = "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\n\
                 metadata: {name: nginx}\n\
                 spec: {controllerName: example.com/nginx, description: Another's}\n---\n";
    let text = format!("{class}{}", GOOD.replace("Name: ringway", "Name: nginx"));
    let said = warned(&folder, &text);
    assert_eq!(said.len(), 2, "{said:#?}");
    assert!(said[0].contains(
        "spec.gatewayClassName: GatewayClass nginx is another controller's; Ringway's classes are \
         those with the controllerName ringway.dev/gateway-controller: none"
    ));
    assert!(said[1].contains("spec.parentRefs: none is a Gateway or ListenerSet that is served"));
}

#[test]
fn two_listeners_of_one_name_are_refused_where_they_stand() {
    let folder = Folder::new("listener-names");
    let more = "port: 7000}, {name: a, protocol: UDP, port: 7001}]";
    let path = folder.file("a.yaml", &GOOD.replace("port: 7000}]", more));
    let error = check(&Source::at(path.clone(), Options::default()), 0).expect_err("one name");
    let expected = format!(
        "{}:1: document 1: Gateway default/edge: spec.listeners[1].name: \"a\" is the name of \
         listeners[0] already; give each its own",
        path.display()
    );
    assert_eq!(error, expected);
}

#[test]
fn fields_that_a_policy_does_not_have() {
    let folder = Folder::new("policy-fields");
    let policy = "---
apiVersion: ringway.dev/v1alpha1
kind: L4Policy
metadata: {name: p}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}]
  listener: {idleTimout: 8h, acceptProxy: {form: [10.1.0.0/16], from: [10.0.0.0/8]}}
";
    let said = faults(&folder, &format!("{GOOD}{policy}"));
    let at = "a.yaml:27: document 5: L4Policy default/p: spec.listener.";
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        [
            format!(
                "{at}acceptProxy.form: L4Policy has no such field here (did you mean \"from\"?)"
            ),
            format!(
                "{at}idleTimout: L4Policy has no such field here (did you mean \"idleTimeout\"?)"
            ),
        ]
    );
}
