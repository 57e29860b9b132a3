//! What the log says of a cluster that is not as it should be.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::Method;
use config_sync::gateway::follow::cluster::Cluster;
use serde_json::{Value, json};

use super::fake::until;
use super::{is_programmed, is_write, options, populate, run_until, server, translated};

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
