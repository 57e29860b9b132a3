//! What the leader writes to the status of objects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use config_sync::gateway::follow::cluster::{Cluster, Options};
use config_sync::gateway::follow::lease::Applied;
use serde_json::json;

use super::fake::{object, until};
use super::{
    addresses, condition, events_on, gateway, is_programmed, is_write, leases, of_gateway, options,
    populate, programmed, run_until, server, serves, slice, tcp_route, translated,
};

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
