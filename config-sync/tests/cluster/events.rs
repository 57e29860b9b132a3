//! What the leader writes beside statuses, against an API server in this process: events, and the
//! ServiceAccounts of Gateways.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::Method;
use config_sync::gateway::follow::cluster::Cluster;
use config_sync::gateway::objects::CONTROLLER;
use config_sync::gateway::translate::Translation;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;

use super::fake::{ApiServer, GROUP, object, until};
use super::options;

/// A class, and a Gateway named `gateway` with one TCP listener in each namespace.
async fn server(namespaces: &[&str]) -> ApiServer {
    let server = ApiServer::start().await;
    for kind in ["GatewayClass", "Gateway"] {
        server.serve("v1", kind);
    }
    let spec = json!({ "spec": { "controllerName": CONTROLLER } });
    server.put(object(&format!("{GROUP}/v1"), "GatewayClass", "", "ringway", spec));
    for namespace in namespaces {
        let spec = json!({ "spec": {
            "gatewayClassName": "ringway",
            "infrastructure": { "labels": { "team": "shop" } },
            "listeners": [{ "name": "tcp", "port": 9000, "protocol": "TCP" }],
        } });
        server.put(object(&format!("{GROUP}/v1"), "Gateway", namespace, "gateway", spec));
        server.put(object("v1", "Namespace", "", namespace, json!({})));
    }
    server
}

async fn cluster(server: &ApiServer) -> (Cluster, Arc<Translation>) {
    let mut cluster = Cluster::with_client(server.client(), options("a"));
    let mut translation = None;
    until("a translation is done", || {
        translation = cluster.translated();
        translation.is_some()
    })
    .await;
    (cluster, translation.expect("there is one"))
}

fn told(server: &ApiServer) -> usize {
    server.count(|line| line == "POST /apis/events.k8s.io/v1/namespaces/shop/events?")
}

#[tokio::test]
async fn what_an_operator_must_act_on_is_told_once() {
    let server = server(&["shop"]).await;
    let (cluster, translation) = cluster(&server).await;
    let listener = translation.config.listeners[0].name.value.clone();
    let failed = BTreeMap::from([(listener, "cannot listen: in use".to_owned())]);
    cluster.applied(Arc::clone(&translation), failed.clone());
    until("it is told", || told(&server) == 1).await;
    cluster.applied(Arc::clone(&translation), failed);
    cluster.refused(Arc::clone(&translation), "too many listeners".into());
    until("that nothing is served is told too", || told(&server) == 2).await;

    let events: Api<Event> = Api::namespaced(server.client(), "shop");
    let mut events = events.list(&ListParams::default()).await.expect("events").items;
    events.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let text = |event: &Event| {
        let object = event.regarding.clone().expect("an object");
        assert_eq!(object.uid.as_deref(), Some("uid-gateways-shop-gateway"));
        let said = [object.api_version, object.kind, object.name, event.reason.clone()];
        let said = said.map(Option::unwrap_or_default).join(" ");
        format!("{said}: {}", event.note.clone().unwrap_or_default())
    };
    let gateway = "gateway.networking.k8s.io/v1 Gateway gateway";
    let told: Vec<_> = events.iter().map(text).collect();
    assert_eq!(
        told,
        [
            format!("{gateway} PortUnavailable: listener tcp: cannot listen: in use"),
            format!(
                "{gateway} Pending: the configuration could not be put in force: too many listeners"
            ),
        ]
    );
}

#[tokio::test]
async fn what_comes_and_goes_is_one_event_with_a_series() {
    let server = server(&["shop"]).await;
    let (cluster, translation) = cluster(&server).await;
    let listener = translation.config.listeners[0].name.value.clone();
    let failed = BTreeMap::from([(listener, "cannot listen: in use".to_owned())]);
    let programmed = || {
        let gateway = server.get("Gateway", "shop", "gateway").expect("it is there");
        gateway["status"].to_string().contains("the data plane serves it")
    };
    let counted = |count: usize| {
        let path = "PATCH /apis/events.k8s.io/v1/namespaces/shop/events/";
        server.count(|line| line.starts_with(path)) == count
    };
    for times in 0..3 {
        cluster.applied(Arc::clone(&translation), failed.clone());
        until("it is told", || told(&server) == 1 && counted(times)).await;
        cluster.applied(Arc::clone(&translation), BTreeMap::new());
        until("it works", programmed).await;
    }
    let events: Api<Event> = Api::namespaced(server.client(), "shop");
    let events = events.list(&ListParams::default()).await.expect("events").items;
    let series: Vec<_> = events.iter().map(|event| event.series.clone()).collect();
    assert_eq!(series.len(), 1);
    assert_eq!(series[0].as_ref().map(|series| series.count), Some(3));
}

const ACCOUNT: &str = "gateway-ringway";

#[tokio::test]
async fn an_account_that_can_not_be_written_keeps_no_other_from_it() {
    let server = server(&["shop", "store"]).await;
    let path = format!("/namespaces/shop/serviceaccounts/{ACCOUNT}");
    server.fail(Method::PATCH, &path, 403, 1);
    let (cluster, translation) = cluster(&server).await;
    assert_eq!(translation.infrastructure().len(), 2);
    cluster.applied(translation, BTreeMap::new());
    let is_there = |namespace| server.get("ServiceAccount", namespace, ACCOUNT).is_some();
    until("the other is there", || is_there("store")).await;
    until("it is tried again", || is_there("shop")).await;
    assert!(cluster.figures().errors >= 1);
}

#[tokio::test]
async fn an_account_of_somebody_else_is_left_as_it_is() {
    let server = server(&["shop", "store"]).await;
    let theirs = object("v1", "ServiceAccount", "shop", ACCOUNT, json!({ "secrets": [] }));
    server.put(theirs);
    let before = server.get("ServiceAccount", "shop", ACCOUNT);
    let (cluster, translation) = cluster(&server).await;
    cluster.applied(translation, BTreeMap::new());
    let ours = || server.get("ServiceAccount", "store", ACCOUNT);
    until("the other is there", || ours().is_some()).await;
    assert_eq!(ours().expect("it is there")["metadata"]["labels"]["team"], "shop");
    assert_eq!(server.get("ServiceAccount", "shop", ACCOUNT), before);
}
