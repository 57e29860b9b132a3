//! What is read from the API server, when it counts as whole, and what outlives faults.

use std::sync::Arc;

use axum::http::Method;
use config_sync::gateway::follow::store::Store;
use config_sync::gateway::follow::watch::Watch;
use serde_json::json;

use super::fake::{ApiServer, object, until};
use super::{server, tcp_route};

fn follow(server: &ApiServer, namespaces: &[&str]) -> (Watch, Arc<Store>) {
    let store = Arc::new(Store::default());
    let namespaces: Vec<_> = namespaces.iter().map(|name| (*name).to_owned()).collect();
    (Watch::start(server.client(), &namespaces, Arc::clone(&store), Arc::default()), store)
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
        watch.progress().iter().all(|(kind, progress)| {
            ["ConfigMap", "L4Policy", "XBackend"].contains(kind) || progress.listed
        })
    })
    .await;
    assert!(!watch.is_whole());
    store.take();
    until("it is done without", || watch.is_whole()).await;
    until("which is a change", || store.changed().is_some()).await;
}
