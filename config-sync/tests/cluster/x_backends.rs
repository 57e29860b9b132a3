//! A kind of the experimental channel: backends outside the cluster.

use std::collections::BTreeMap;

use config_sync::gateway::follow::cluster::{Cluster, Options};
use serde_json::{Value, json};

use super::fake::{ApiServer, object, until};
use super::{condition, options, populate, server, tcp_route, translated};

/// The conditions in the first entry of `status.parents`.
fn of_parent(server: &ApiServer, kind: &str, name: &str) -> Value {
    let object = server.get(kind, "shop", name).expect("it is there");
    object["status"]["parents"][0]["conditions"].clone()
}

#[tokio::test]
async fn a_cluster_needs_no_x_backends_and_those_that_come_are_served_and_get_a_status() {
    let group = "gateway.networking.x-k8s.io";
    let server = server().await;
    populate(&server);
    let mut route = tcp_route("v1", "shop", "route");
    let backend = json!([{ "group": group, "kind": "XBackend", "name": "db" }]);
    route["spec"]["rules"][0]["backendRefs"] = backend;
    server.put(route);
    let options = Options { external_names: true, ..options("a") };
    let mut cluster = Cluster::with_client(server.client(), options);
    let translation = translated(&mut cluster).await;
    assert!(translation.config.backends[0].endpoints.is_empty(), "there is no such kind");
    cluster.applied(translation, BTreeMap::new());
    let resolved = |is: &str, reason: &str| {
        let wanted = Some((is.to_owned(), reason.to_owned(), 1));
        condition(&of_parent(&server, "TCPRoute", "route"), "ResolvedRefs") == wanted
    };
    until("the route says so", || resolved("False", "BackendNotFound")).await;

    server.serve_of(group, "v1alpha1", "XBackend");
    let spec = json!({ "spec": {
        "type": "ExternalHostname",
        "port": { "port": 5432 },
        "externalHostname": { "hostname": "db.example.com" },
    } });
    server.put(object(&format!("{group}/v1alpha1"), "XBackend", "shop", "db", spec));
    let mut named = Vec::new();
    until("its name is an endpoint", || {
        let Some(translation) = cluster.translated() else { return false };
        let endpoints = translation.config.backends[0].endpoints.iter();
        named = endpoints.map(|endpoint| endpoint.address.value.to_string()).collect();
        cluster.applied(translation, BTreeMap::new());
        !named.is_empty()
    })
    .await;
    assert_eq!(named, ["db.example.com:5432"]);
    until("the route resolves", || resolved("True", "ResolvedRefs")).await;
    let accepted = Some(("True".to_owned(), "Accepted".to_owned(), 1));
    until("the XBackend is accepted", || {
        condition(&of_parent(&server, "XBackend", "db"), "Accepted") == accepted
    })
    .await;
}
