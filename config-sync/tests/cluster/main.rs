//! The cluster side against an API server in this process: what is read, when it counts as whole,
//! what outlives faults, and what is written.

mod events;
mod fake;
mod leases;
mod log;
mod status;
mod watch;
mod x_backends;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use config_sync::check::parse;
use config_sync::gateway::follow::cluster::{Cluster, Options};
use config_sync::gateway::follow::lease;
use config_sync::gateway::follow::lease::{Applied, Leases};
use config_sync::gateway::objects::CONTROLLER;
use config_sync::gateway::translate::Translation;
use config_sync::gateway::translate::outline::{Outline, outline};
use config_sync::model::config::Config;
use serde_json::{Value, json};

use fake::{ApiServer, GROUP, object, until};

/// Kinds of the Gateway API in a cluster of today, and Ringway's own is not there.
const KINDS: [&str; 9] = [
    "GatewayClass",
    "Gateway",
    "ListenerSet",
    "TCPRoute",
    "UDPRoute",
    "TLSRoute",
    "HTTPRoute",
    "ReferenceGrant",
    "BackendTLSPolicy",
];

async fn server() -> ApiServer {
    let server = ApiServer::start().await;
    KINDS.iter().for_each(|kind| server.serve("v1", kind));
    server
}

fn tcp_route(version: &str, namespace: &str, name: &str) -> Value {
    let rules = json!([{ "backendRefs": [{ "name": "echo", "port": 3000 }] }]);
    let spec = json!({ "spec": { "parentRefs": [{ "name": "gateway" }], "rules": rules } });
    object(&format!("{GROUP}/{version}"), "TCPRoute", namespace, name, spec)
}

fn service(namespace: &str, name: &str) -> Value {
    let port = json!({ "name": "tcp", "port": 3000, "targetPort": 3000, "protocol": "TCP" });
    object("v1", "Service", namespace, name, json!({ "spec": { "ports": [port] } }))
}

fn slice(namespace: &str, name: &str, addresses: &[&str]) -> Value {
    let mut slice = object(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        namespace,
        name,
        json!({
            "addressType": "IPv4",
            "endpoints": [{ "addresses": addresses, "conditions": { "ready": true } }],
            "ports": [{ "name": "tcp", "port": 3000, "protocol": "TCP" }],
        }),
    );
    slice["metadata"]["labels"] = json!({ "kubernetes.io/service-name": "echo" });
    slice
}

fn leases(server: &ApiServer, identity: &str) -> Leases {
    let options = lease::Options {
        namespace: "ringway".into(),
        controller: CONTROLLER.into(),
        identity: identity.into(),
        lasts: Duration::from_secs(6),
        kept: Duration::from_secs(12),
    };
    Leases::start(server.client(), options, Arc::default())
}

/// Of a configuration with one listener.
fn of(port: u16) -> Outline {
    let text = format!(
        "[[listeners]]\nname = \"l\"\nprotocol = \"TCP\"\naddress = \"127.0.0.1:{port}\"\n"
    );
    outline(&parse("test.toml", &text).unwrap_or_else(|problems| panic!("{problems}")))
}

fn serves(port: u16) -> Applied {
    Applied { outline: of(port), failed: BTreeMap::new() }
}

fn options(identity: &str) -> Options {
    let base: Config = parse("base", "").unwrap_or_else(|problems| panic!("{problems}"));
    Options {
        kubeconfig: None,
        namespaces: Vec::new(),
        controller_name: CONTROLLER.into(),
        address_pool: vec!["10.99.0.0/24".parse().expect("a network")],
        node_addresses: Vec::new(),
        node_name: None,
        zone: None,
        external_names: false,
        identity: identity.into(),
        lease_namespace: None,
        base,
    }
}

/// A class, a Gateway with one TCP listener, a route, its Service and one endpoint.
fn populate(server: &ApiServer) {
    let spec = json!({ "spec": { "controllerName": CONTROLLER } });
    server.put(object(&format!("{GROUP}/v1"), "GatewayClass", "", "ringway", spec));
    let spec = json!({ "spec": {
        "gatewayClassName": "ringway",
        "infrastructure": { "labels": { "team": "shop" } },
        "listeners": [{ "name": "tcp", "port": 9000, "protocol": "TCP" }],
    } });
    server.put(object(&format!("{GROUP}/v1"), "Gateway", "shop", "gateway", spec));
    server.put(object("v1", "Namespace", "", "shop", json!({})));
    server.put(tcp_route("v1", "shop", "route"));
    server.put(service("shop", "echo"));
    server.put(slice("shop", "echo-1", &["10.0.0.1"]));
}

async fn translated(cluster: &mut Cluster) -> Arc<Translation> {
    let mut translation = None;
    until("a translation is done", || {
        translation = cluster.translated();
        translation.is_some()
    })
    .await;
    translation.expect("there is one")
}

/// `status`, `reason` and generation of a condition.
fn condition(conditions: &Value, kind: &str) -> Option<(String, String, i64)> {
    let all = conditions.as_array()?;
    let of = all.iter().find(|condition| condition["type"] == kind)?;
    let text = |field: &str| of[field].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason"), of["observedGeneration"].as_i64()?))
}

fn of_gateway(server: &ApiServer, name: &str, kind: &str) -> Option<(String, String, i64)> {
    condition(&server.get("Gateway", "shop", name)?["status"]["conditions"], kind)
}

fn programmed(server: &ApiServer) -> Option<(String, String, i64)> {
    of_gateway(server, "gateway", "Programmed")
}

fn is_programmed(server: &ApiServer, name: &str) -> bool {
    of_gateway(server, name, "Programmed").is_some_and(|(is, ..)| is == "True")
}

fn gateway(name: &str, port: u16) -> Value {
    let spec = json!({ "spec": {
        "gatewayClassName": "ringway",
        "listeners": [{ "name": "tcp", "port": port, "protocol": "TCP" }],
    } });
    object(&format!("{GROUP}/v1"), "Gateway", "shop", name, spec)
}

fn addresses(server: &ApiServer, name: &str) -> Value {
    let gateway = server.get("Gateway", "shop", name).expect("it is there");
    gateway["status"]["addresses"].clone()
}

/// What a process with one worker does until something is so.
async fn run_until(what: &str, clusters: &mut [Cluster], mut is_so: impl FnMut() -> bool) {
    until(what, || {
        for cluster in clusters.iter_mut() {
            if let Some(translation) = cluster.translated() {
                cluster.applied(translation, BTreeMap::new());
            }
        }
        is_so()
    })
    .await;
}

fn is_write(line: &str) -> bool {
    line.contains("/status") && line.starts_with("PATCH")
}

/// Events on a Gateway: their reasons and notes.
fn events_on(server: &ApiServer, name: &str) -> Vec<String> {
    server
        .all("events")
        .into_iter()
        .filter(|event| event["regarding"]["name"] == name)
        .map(|event| format!("{}: {}", event["reason"], event["note"]).replace('"', ""))
        .collect()
}
