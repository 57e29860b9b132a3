//! Which replica leads, and whom it waits for.

use std::collections::BTreeMap;

use axum::http::Method;
use config_sync::gateway::follow::lease::{Applied, Leases, Level};
use serde_json::Value;

use super::fake::{ApiServer, until};
use super::{leases, of, serves};

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
