//! The cluster side against an API server in this process: what is read, when it counts as whole,
//! what outlives faults, and what is written.

mod fake;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::Method;
use config_sync::check::parse;
use config_sync::gateway::follow::cluster::{Cluster, Options};
use config_sync::gateway::follow::lease;
use config_sync::gateway::follow::lease::{Applied, Leases, Level};
use config_sync::gateway::follow::store::Store;
use config_sync::gateway::follow::watch::Watch;
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

fn follow(server: &ApiServer, namespaces: &[&str]) -> (Watch, Arc<Store>) {
    let store = Arc::new(Store::default());
    let namespaces: Vec<_> = namespaces.iter().map(|name| (*name).to_owned()).collect();
    (Watch::start(server.client(), &namespaces, Arc::clone(&store), Arc::default()), store)
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

#[tokio::test]
async fn the_store_is_whole_when_every_list_is_read_and_follows_from_there() {
    let server = server().await;
    server.put(tcp_route("v1", "shop", "a"));
    server.fail(Method::GET, "/services", 500, 3);
    let (watch, store) = follow(&server, &[]);
    until("the route is read", || store.tables().tcp_routes.len() == 1).await;
    assert!(!watch.is_whole(), "Services can't be read yet");
    until("all is read", || watch.is_whole()).await;
    let progress = watch.progress();
    assert_eq!(progress["TCPRoute"].version.as_deref(), Some("v1"));
    assert_eq!((progress["TCPRoute"].objects, progress["TCPRoute"].following), (1, true));
    assert_eq!(progress["L4Policy"].version, None, "its CRD is not there, and all else works");
    assert!(watch.errors() >= 3);

    store.take();
    assert_eq!(store.changed(), None);
    server.put(tcp_route("v1", "shop", "b"));
    until("the new one is read", || store.tables().tcp_routes.len() == 2).await;
    until("it is a change", || store.changed().is_some()).await;
    server.delete("TCPRoute", "shop", "a");
    until("it is gone", || store.tables().tcp_routes.len() == 1).await;
    assert_eq!(store.take().tcp_routes[0].metadata.name.as_deref(), Some("b"));
}

#[tokio::test]
async fn old_versions_are_read_and_crds_that_come_late_are_picked_up() {
    let server = ApiServer::start().await;
    server.serve("v1alpha2", "TCPRoute");
    server.put(tcp_route("v1alpha2", "shop", "old"));
    let (watch, store) = follow(&server, &[]);
    until("all is read", || watch.is_whole()).await;
    assert_eq!(watch.progress()["TCPRoute"].version.as_deref(), Some("v1alpha2"));
    assert_eq!(store.tables().tcp_routes.len(), 1);
    assert!(watch.resource("UDPRoute").is_none());

    server.serve("v1", "TCPRoute");
    server.serve("v1", "UDPRoute");
    until("the better version", || {
        watch.resource("TCPRoute").is_some_and(|resource| resource.version == "v1")
    })
    .await;
    until("the new kind", || watch.progress()["UDPRoute"].following).await;
    until("read anew", || watch.progress()["TCPRoute"].following).await;
    assert_eq!(store.tables().tcp_routes.len(), 1);

    server.unserve("TCPRoute");
    until("its objects are gone with it", || store.tables().tcp_routes.is_empty()).await;
    assert!(watch.is_whole());
}

#[tokio::test]
async fn what_is_known_outlives_broken_connections_and_lists_that_are_read_anew() {
    let server = server().await;
    for name in ["a", "b"] {
        server.put(tcp_route("v1", "shop", name));
    }
    let (watch, store) = follow(&server, &[]);
    until("all is read", || watch.is_whole()).await;
    let lists = |line: &str| line.contains("/tcproutes?") && !line.contains("watch");
    let before = server.count(lists);

    // Nobody answers for a while: nothing is lost, and the figures say that it is not followed.
    server.fail(Method::GET, "", 503, usize::MAX);
    server.cut();
    until("it is noticed", || !watch.is_following()).await;
    server.delete("TCPRoute", "shop", "a");
    server.put(tcp_route("v1", "shop", "c"));
    assert!(watch.is_whole());
    assert_eq!(store.tables().tcp_routes.len(), 2, "what was known stays");
    server.heal();
    let known = || store.take().tcp_routes.len();
    until("it is caught up with", || {
        assert!(known() >= 1, "never empty in between");
        store.tables().tcp_routes.contains_key(&("shop".into(), "c".into()))
            && !store.tables().tcp_routes.contains_key(&("shop".into(), "a".into()))
    })
    .await;
    assert_eq!(server.count(lists), before, "a watch goes on from where it was");

    // The server does not know any more how it was then: the list is read anew.
    server.fail(Method::GET, "", 503, usize::MAX);
    server.cut();
    server.put(tcp_route("v1", "shop", "d"));
    server.delete("TCPRoute", "shop", "b");
    server.forget_history();
    server.heal();
    until("it is caught up with again", || {
        assert!(known() >= 1, "never empty in between");
        store.tables().tcp_routes.contains_key(&("shop".into(), "d".into()))
            && !store.tables().tcp_routes.contains_key(&("shop".into(), "b".into()))
    })
    .await;
    assert!(server.count(lists) > before);
    until("all is followed", || watch.is_following()).await;
}

#[tokio::test]
async fn only_what_matters_is_asked_for() {
    let server = server().await;
    for (name, kind) in [("tls", "kubernetes.io/tls"), ("token", "Opaque")] {
        server.put(object("v1", "Secret", "shop", name, json!({ "type": kind })));
    }
    server.put(tcp_route("v1", "shop", "mine"));
    server.put(tcp_route("v1", "other", "theirs"));
    for name in ["shop", "other"] {
        server.put(object("v1", "Namespace", "", name, json!({})));
    }
    let (watch, store) = follow(&server, &["shop"]);
    until("all is read", || watch.is_whole()).await;
    let objects = store.take();
    assert_eq!(objects.secrets.len(), 1);
    assert_eq!(objects.tcp_routes.len(), 1);
    assert_eq!(objects.namespaces.len(), 1);
    let secrets = |line: &str| line.contains("/secrets") && !line.contains("fieldSelector=type");
    assert_eq!(server.count(secrets), 0);
}

#[tokio::test]
async fn an_object_that_can_not_be_read_hides_no_other() {
    let server = server().await;
    server.put(tcp_route("v1", "shop", "good"));
    let mut bad = tcp_route("v1", "shop", "bad");
    bad["spec"]["rules"] = "none".into();
    server.put(bad);
    let (watch, store) = follow(&server, &[]);
    until("all is read", || watch.is_whole()).await;
    assert_eq!(store.tables().tcp_routes.len(), 1);
}

#[tokio::test]
async fn a_kind_that_may_not_be_read_holds_up_the_rest_only_for_a_while() {
    let server = server().await;
    server.fail(Method::GET, "/configmaps", 403, usize::MAX);
    let (watch, store) = follow(&server, &[]);
    until("all else is read", || {
        watch
            .progress()
            .iter()
            .all(|(kind, progress)| ["ConfigMap", "L4Policy"].contains(kind) || progress.listed)
    })
    .await;
    assert!(!watch.is_whole());
    store.take();
    until("it is done without", || watch.is_whole()).await;
    until("which is a change", || store.changed().is_some()).await;
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

fn lease(server: &ApiServer, identity: &str) -> Option<Value> {
    server.get("Lease", "ringway", &format!("ringway.dev.gateway-controller.{identity}"))
}

#[tokio::test]
async fn one_replica_leads_and_all_that_live_are_waited_for() {
    let server = ApiServer::start().await;
    let (a, b) = (leases(&server, "a"), leases(&server, "b"));
    until("one leads", || a.leads() || b.leads()).await;
    a.applied(serves(1));
    b.applied(serves(1));
    until("both know of each other", || a.replicas() == 2 && b.replicas() == 2).await;
    let level = Level::default();
    until("they are level", || a.level(&of(1)) == level && b.level(&of(1)) == level).await;
    assert!(a.leads() != b.leads());

    a.applied(serves(2));
    assert_eq!(a.level(&of(2)).behind, ["b"]);
    assert_eq!(a.level(&of(2)).lags.len(), 1);
    let failed = BTreeMap::from([("l".to_owned(), "in use".to_owned())]);
    b.applied(Applied { outline: of(2), failed });
    let failed = BTreeMap::from([("l".to_owned(), "on b: in use".to_owned())]);
    let level_but = Level { failed, ..Level::default() };
    until("they are level again", || a.level(&of(2)) == level_but).await;

    // The one that leads ends without a word: it is waited for no more, and the other leads.
    let ((gone, name), left) = if a.leads() { ((a, "a"), b) } else { ((b, "b"), a) };
    drop(gone);
    left.applied(serves(3));
    assert_eq!(left.level(&of(3)).behind, [name]);
    until("it is not waited for", || left.level(&of(3)) == level).await;
    until("the other leads", || left.leads()).await;
    assert!(lease(&server, name).is_some(), "people may look at it");
    until("its Lease is swept away", || lease(&server, name).is_none()).await;
    assert_eq!(left.replicas(), 1);
}

#[tokio::test]
async fn replicas_and_their_addresses_stay_while_the_api_server_is_silent() {
    let server = ApiServer::start().await;
    let (a, b) = (leases(&server, "a"), leases(&server, "b"));
    a.has(vec!["192.0.2.1".parse().expect("an address")]);
    b.has(vec!["192.0.2.2".parse().expect("an address")]);
    a.applied(serves(1));
    b.applied(serves(1));
    until("both know of each other", || a.addresses().len() == 2 && b.addresses().len() == 2).await;
    for method in [Method::GET, Method::PUT, Method::PATCH, Method::DELETE] {
        server.fail(method, "", 503, usize::MAX);
    }
    server.cut();
    let silent = |leases: &Leases| leases.heard().is_some_and(|at| at.elapsed().as_secs() >= 12);
    until("no Lease would hold any more", || {
        assert_eq!((a.addresses().len(), b.addresses().len()), (2, 2));
        silent(&a) && silent(&b)
    })
    .await;
    drop(b);
    server.heal();
    until("it is back", || {
        assert_eq!(a.addresses().len(), 2, "others may still be about to renew");
        !silent(&a)
    })
    .await;
    until("who did not come back is gone", || a.addresses().len() == 1).await;
}

#[tokio::test]
async fn a_lead_that_is_given_up_is_free_at_once_and_one_that_can_not_be_renewed_ends() {
    let server = ApiServer::start().await;
    let a = leases(&server, "a");
    a.applied(serves(1));
    until("it leads", || a.leads()).await;
    until("its Lease is there", || lease(&server, "a").is_some()).await;
    a.leave().await;
    assert!(!a.leads());
    assert!(lease(&server, "a").is_none());
    let b = leases(&server, "b");
    until("the next leads", || b.leads()).await;

    server.fail(Method::PUT, "", 500, usize::MAX);
    until("it leads no more", || !b.leads()).await;
    server.heal();
    until("it leads again", || b.leads()).await;
    assert!(b.errors() > 0);
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

#[tokio::test]
async fn statuses_are_written_once_what_they_say_is_served_and_only_then_again() {
    let server = server().await;
    populate(&server);
    let mut cluster = Cluster::with_client(server.client(), options("a"));
    let translation = translated(&mut cluster).await;
    assert_eq!(translation.config.listeners.len(), 1, "{:?}", translation.config.listeners);
    until("it leads", || cluster.figures().leads).await;
    assert_eq!(programmed(&server), None, "nothing is in force yet");

    cluster.applied(Arc::clone(&translation), BTreeMap::new());
    until("it is programmed", || programmed(&server).is_some_and(|(is, ..)| is == "True")).await;
    until("the route is accepted", || {
        let route = server.get("TCPRoute", "shop", "route").expect("the route");
        let conditions = &route["status"]["parents"][0]["conditions"];
        condition(conditions, "Accepted").is_some_and(|(is, ..)| is == "True")
    })
    .await;
    until("the account is there", || {
        let requests = server.world().requests.join("\n");
        requests.contains("PATCH /api/v1/namespaces/shop/serviceaccounts/")
    })
    .await;

    // What it wrote comes back by the watch, is translated again, and leads to nothing.
    until("class, Gateway and route are written", || cluster.figures().status_writes == 3).await;
    for _ in 0..3 {
        server.put(slice("shop", "echo-1", &["10.0.0.2"]));
        let translation = translated(&mut cluster).await;
        cluster.applied(translation, BTreeMap::new());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(server.count(is_write), 3, "{:#?}", server.world().requests);
    assert_eq!(cluster.figures().status_writes, 3);
}

#[tokio::test]
async fn what_others_write_in_between_is_kept_and_refused_writes_are_tried_again() {
    let server = server().await;
    populate(&server);
    let foreign = json!([{
        "parentRef": { "name": "other" },
        "controllerName": "example.com/other",
        "conditions": [],
    }]);
    let mut route = tcp_route("v1", "shop", "route");
    route["status"] = json!({ "parents": foreign });
    server.put(route);
    let mut cluster = Cluster::with_client(server.client(), options("a"));
    let translation = translated(&mut cluster).await;
    server.fail(Method::PATCH, "/tcproutes/route/status", 409, 2);
    server.fail(Method::PATCH, "/gateways/gateway/status", 500, 1);
    cluster.applied(translation, BTreeMap::new());
    until("the route has both", || {
        let route = server.get("TCPRoute", "shop", "route").expect("the route");
        route["status"]["parents"].as_array().is_some_and(|parents| parents.len() == 2)
    })
    .await;
    let route = server.get("TCPRoute", "shop", "route").expect("the route");
    assert_eq!(route["status"]["parents"][0]["controllerName"], "example.com/other");
    until("the Gateway too", || programmed(&server).is_some_and(|(is, ..)| is == "True")).await;
    let figures = cluster.figures();
    assert_eq!(figures.status_conflicts, 2);
    assert!(figures.errors >= 1);
}

#[tokio::test]
async fn a_listener_that_failed_is_named_and_a_refused_configuration_too() {
    let server = server().await;
    populate(&server);
    let mut cluster = Cluster::with_client(server.client(), options("a"));
    let translation = translated(&mut cluster).await;
    let listener = translation.config.listeners[0].name.value.clone();
    let failed = BTreeMap::from([(listener, "cannot listen: in use".to_owned())]);
    cluster.applied(Arc::clone(&translation), failed);
    until("it says so", || programmed(&server).is_some_and(|(is, ..)| is == "False")).await;
    let status = server.get("Gateway", "shop", "gateway").expect("it is there")["status"].clone();
    assert!(status.to_string().contains("cannot listen: in use"), "{status:#}");
    cluster.applied(Arc::clone(&translation), BTreeMap::new());
    until("it works", || programmed(&server).is_some_and(|(is, ..)| is == "True")).await;
    cluster.refused(translation, "too many listeners".into());
    until("nothing works", || programmed(&server).is_some_and(|(is, ..)| is == "False")).await;
}

#[tokio::test]
async fn a_replica_that_is_behind_holds_up_what_is_promised_and_one_that_is_gone_does_not() {
    let server = server().await;
    populate(&server);
    let mut cluster = Cluster::with_client(server.client(), options("a"));
    let translation = translated(&mut cluster).await;
    until("it leads", || cluster.figures().leads).await;
    let straggler = leases(&server, "straggler");
    straggler.applied(serves(1));
    until("they know of each other", || cluster.figures().replicas == 2).await;
    assert_eq!(programmed(&server), None, "nothing is in force yet");
    cluster.applied(Arc::clone(&translation), BTreeMap::new());

    // What does not depend on the other is said.
    let pending = Some(("False".to_owned(), "Pending".to_owned(), 1));
    until("it is not programmed", || programmed(&server) == pending).await;
    assert_eq!(of_gateway(&server, "gateway", "Accepted").expect("it is said").0, "True");
    assert_eq!(addresses(&server, "gateway")[0]["value"], "10.99.0.1");
    assert!(cluster.figures().behind);
    until("the route is accepted", || {
        let route = server.get("TCPRoute", "shop", "route").expect("the route");
        let conditions = &route["status"]["parents"][0]["conditions"];
        condition(conditions, "Accepted").is_some_and(|(is, ..)| is == "True")
    })
    .await;
    assert_eq!(programmed(&server), pending);

    straggler.applied(Applied { outline: translation.outline.clone(), failed: BTreeMap::new() });
    until("it is programmed", || is_programmed(&server, "gateway")).await;
    assert!(!cluster.figures().behind);

    // A promise stays until the next can be kept.
    let mut changed = server.get("Gateway", "shop", "gateway").expect("it is there");
    changed["metadata"]["generation"] = 2.into();
    changed["spec"]["listeners"][0]["port"] = 9001.into();
    server.put(changed);
    run_until("it is seen", std::slice::from_mut(&mut cluster), || {
        of_gateway(&server, "gateway", "Accepted").is_some_and(|(.., of)| of == 2)
    })
    .await;
    let promised = Some(("True".to_owned(), "Programmed".to_owned(), 1));
    assert_eq!(programmed(&server), promised);
    straggler.leave().await;
    until("nobody else is waited for", || programmed(&server).is_some_and(|(.., of)| of == 2))
        .await;
    assert!(is_programmed(&server, "gateway"));
}

#[tokio::test]
async fn a_gateway_that_changes_all_the_time_holds_up_no_other() {
    let server = server().await;
    populate(&server);
    server.put(gateway("quiet", 9100));
    let mut cluster = Cluster::with_client(server.client(), options("a"));
    let before = translated(&mut cluster).await;
    until("it leads", || cluster.figures().leads).await;
    cluster.applied(Arc::clone(&before), BTreeMap::new());
    until("both are programmed", || {
        is_programmed(&server, "gateway") && is_programmed(&server, "quiet")
    })
    .await;
    // The other replica never comes after with the one, and is there with the other.
    let other = leases(&server, "other");
    other.applied(Applied { outline: before.outline.clone(), failed: BTreeMap::new() });
    until("they know of each other", || cluster.figures().replicas == 2).await;
    for (name, port) in [("gateway", 9001), ("quiet", 9100)] {
        let mut changed = server.get("Gateway", "shop", name).expect("it is there");
        changed["metadata"]["generation"] = 2.into();
        changed["spec"]["listeners"][0]["port"] = port.into();
        server.put(changed);
    }
    run_until("the quiet one is programmed", std::slice::from_mut(&mut cluster), || {
        of_gateway(&server, "quiet", "Programmed").is_some_and(|(.., of)| of == 2)
    })
    .await;
    assert!(is_programmed(&server, "quiet"));
    assert_eq!(programmed(&server).expect("it was said").2, 1, "the other is as it was");
}

#[tokio::test]
async fn replicas_that_gave_other_addresses_agree() {
    let server = server().await;
    populate(&server);
    let first = server.get("Gateway", "shop", "gateway").expect("it is there");
    server.delete("Gateway", "shop", "gateway");
    server.put(gateway("z", 9100));
    // The one translates before there is an older Gateway by name, the other after.
    let mut one = Cluster::with_client(server.client(), options("one"));
    let had = translated(&mut one).await;
    assert_eq!(had.given()[&("shop".into(), "z".into())][0].to_string(), "10.99.0.1");
    server.put(first);
    let mut other = Cluster::with_client(server.client(), options("other"));
    let has = translated(&mut other).await;
    assert_eq!(has.given()[&("shop".into(), "gateway".into())][0].to_string(), "10.99.0.1");
    other.applied(has, BTreeMap::new());
    until("the one knows of the other", || one.figures().replicas == 2).await;
    one.applied(had, BTreeMap::new());
    until("the other knows of the one", || other.figures().replicas == 2).await;
    let mut clusters = [one, other];
    run_until("both are programmed", &mut clusters, || {
        is_programmed(&server, "gateway") && is_programmed(&server, "z")
    })
    .await;
    let both = [addresses(&server, "gateway"), addresses(&server, "z")];
    let both = both.map(|addresses| addresses[0]["value"].as_str().map(str::to_owned));
    assert_ne!(both[0], both[1]);
}

#[tokio::test]
async fn a_node_that_can_not_be_read_is_asked_for_until_it_can() {
    let server = server().await;
    populate(&server);
    server.fail(Method::GET, "/nodes/n", 503, 2);
    let status = json!({ "addresses": [{ "type": "InternalIP", "address": "192.0.2.7" }] });
    server.put(object("v1", "Node", "", "n", json!({ "status": status })));
    let options = Options { node_name: Some("n".into()), address_pool: Vec::new(), ..options("a") };
    let mut cluster = Cluster::with_client(server.client(), options);
    let translation = translated(&mut cluster).await;
    cluster.applied(translation, BTreeMap::new());
    run_until("its address is shown", std::slice::from_mut(&mut cluster), || {
        addresses(&server, "gateway")[0]["value"] == "192.0.2.7"
    })
    .await;
    assert!(server.count(|line| line.starts_with("GET") && line.ends_with("/nodes/n")) >= 3);
}

#[tokio::test]
async fn what_can_not_be_written_holds_up_nothing_and_is_not_tried_with_every_lease() {
    let server = server().await;
    populate(&server);
    server.fail(Method::PATCH, "/gateways/gateway/status", 500, usize::MAX);
    let mut cluster = Cluster::with_client(server.client(), options("a"));
    let translation = translated(&mut cluster).await;
    cluster.applied(translation, BTreeMap::new());
    until("the other statuses are written", || cluster.figures().status_writes == 2).await;
    let tries = |line: &str| line.starts_with("PATCH") && line.contains("/gateway/status");
    until("it is tried", || server.count(tries) > 0).await;
    // Some hundred words of another replica's.
    let other = leases(&server, "other");
    let before = server.count(tries);
    let mut lease = object("coordination.k8s.io/v1", "Lease", "ringway", "noise", json!({}));
    lease["metadata"]["labels"] =
        json!({ "ringway.dev/controller": "ringway.dev.gateway-controller" });
    for at in 0..100 {
        lease["metadata"]["annotations"] = json!({ "at": at.to_string() });
        server.put(lease.clone());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(server.count(tries) < before + 20, "{} tries", server.count(tries) - before);
    drop(other);
    server.heal();
    until("it is written", || is_programmed(&server, "gateway")).await;
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

#[tokio::test]
async fn a_gateway_whose_class_is_gone_for_a_moment_keeps_its_address() {
    let server = server().await;
    populate(&server);
    let mut cluster = Cluster::with_client(server.client(), options("a"));
    let cluster = std::slice::from_mut(&mut cluster);
    run_until("it is programmed", cluster, || is_programmed(&server, "gateway")).await;
    let had = addresses(&server, "gateway");
    assert_eq!(had[0]["value"], "10.99.0.1");

    let class = server.get("GatewayClass", "", "ringway").expect("the class");
    server.delete("GatewayClass", "", "ringway");
    run_until("it waits", cluster, || {
        of_gateway(&server, "gateway", "Accepted").is_some_and(|(is, ..)| is == "Unknown")
    })
    .await;
    assert_eq!(addresses(&server, "gateway"), had);
    run_until("it is told", cluster, || {
        let said = "Pending: Waiting for controller: there is no GatewayClass ringway";
        events_on(&server, "gateway").iter().any(|event| event == said)
    })
    .await;

    // Another that comes with another class of ours meanwhile does not get it.
    let mut other = class.clone();
    other["metadata"] = json!({ "name": "other", "generation": 1 });
    server.put(other);
    let mut late = gateway("late", 9100);
    late["spec"]["gatewayClassName"] = "other".into();
    server.put(late);
    run_until("the other is programmed", cluster, || is_programmed(&server, "late")).await;
    assert_eq!(addresses(&server, "late")[0]["value"], "10.99.0.2");
    assert_eq!(addresses(&server, "gateway"), had);
    server.put(class);
    run_until("it is back", cluster, || is_programmed(&server, "gateway")).await;
    assert_eq!(addresses(&server, "gateway"), had);
}

/// What is said in the log at the level of warnings, by all that runs on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no panic in there").clone()
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN && metadata.target().starts_with("config_sync")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut Line(&self.0));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

struct Line<'a>(&'a Mutex<Vec<String>>);

impl tracing::field::Visit for Line<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0.lock().expect("no panic in there").push(format!("{value:?}"));
        }
    }
}

#[tokio::test]
async fn a_right_that_is_missing_is_said_at_once_and_an_api_server_that_is_away_once() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let server = server().await;
    populate(&server);
    // Errors of other causes come first.
    server.fail(Method::PATCH, "/gatewayclasses/ringway/status", 500, 1);
    server.fail(Method::PATCH, "/gateways/gateway/status", 403, usize::MAX);
    server.fail(Method::PATCH, "/tcproutes/route/status", 403, usize::MAX);
    let mut cluster = Cluster::with_client(server.client(), options("a"));
    let translation = translated(&mut cluster).await;
    cluster.applied(translation, BTreeMap::new());
    let said = |what: &str| log.lines().iter().filter(|line| line.contains(what)).count();
    until("both are said", || said("the status of ") == 2).await;
    assert_eq!((said("Gateway shop/gateway"), said("TCPRoute shop/route")), (1, 1));
    assert_eq!(said("(RBAC)"), 2, "{:#?}", log.lines());

    server.heal();
    until("all is followed", || {
        cluster.translated();
        cluster.figures().connected
    })
    .await;
    let before = log.lines().len();
    for method in [Method::GET, Method::PUT, Method::PATCH, Method::POST] {
        server.fail(method, "", 500, usize::MAX);
    }
    server.cut();
    until("it is noticed", || {
        cluster.translated();
        !cluster.figures().connected
    })
    .await;
    // Every watch, each Lease and what is written fail some times.
    let failed = cluster.figures();
    until("it has failed often", || {
        let now = cluster.figures();
        now.watch_errors > failed.watch_errors + 40 && now.errors > failed.errors + 4
    })
    .await;
    let lines = log.lines().split_off(before);
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines[0].starts_with("the API server answers with errors"), "{lines:#?}");
    assert!(lines[1].starts_with("the cluster can't be followed"), "{lines:#?}");
}

#[tokio::test]
async fn who_overwrites_a_status_again_and_again_is_named_and_not_answered_at_once() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let server = server().await;
    populate(&server);
    let mut cluster = Cluster::with_client(server.client(), options("a"));
    let cluster = std::slice::from_mut(&mut cluster);
    run_until("it is programmed", cluster, || is_programmed(&server, "gateway")).await;
    let writes = || server.count(|line| is_write(line) && line.contains("/gateway/status"));
    let before = writes();
    let until_then = tokio::time::Instant::now() + Duration::from_secs(5);
    run_until("it was wiped for a while", cluster, || {
        let mut gateway = server.get("Gateway", "shop", "gateway").expect("it is there");
        if !gateway["status"].is_null() {
            gateway["status"] = Value::Null;
            gateway["metadata"]["managedFields"] = json!([
                { "manager": "ringway@ringway", "operation": "Update", "subresource": "status",
                  "time": "2026-01-01T00:00:02Z" },
                { "manager": "wiper", "operation": "Update", "subresource": "status",
                  "time": "2026-01-01T00:00:01Z" },
            ]);
            server.put(gateway);
        }
        tokio::time::Instant::now() >= until_then
    })
    .await;
    // Three at once, and then after 1, 2 and 4 s.
    assert!(writes() - before <= 6, "{} writes", writes() - before);
    run_until("it is said", cluster, || {
        log.lines().iter().any(|line| line.contains("overwritten again and again"))
    })
    .await;
    let lines = log.lines();
    let lines: Vec<_> = lines.iter().filter(|line| line.contains("overwritten")).collect();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(
        lines[0].contains("Gateway shop/gateway") && lines[0].contains("\"wiper\""),
        "{lines:?}"
    );
    run_until("it is put right in the end", cluster, || is_programmed(&server, "gateway")).await;
}
