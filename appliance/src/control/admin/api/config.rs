//! Gives the configuration in force in its long form, with what lives on its parts.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use config_sync::gateway::tree::tree;

use crate::control::admin::api::{Api, Fault};
use crate::control::diff::{OfEndpoint, Running, Sessions};

pub fn routes() -> Router<Api> {
    Router::new().route("/config", get(config))
}

async fn config(State(api): State<Api>) -> Result<Json<Running>, Fault> {
    let found = api.caller.with_sync(|sync| {
        let in_force = sync.in_force().cloned();
        in_force.map(|in_force| (in_force, sync.table().clone(), sync.endpoints()))
    });
    let Some((in_force, table, endpoints)) = found.await? else {
        return Err(Fault::bad("there is no configuration yet"));
    };
    let workers = api.board.workers();
    let listener = |listener: &config_sync::table::routing::Listener| {
        let count = |worker: &crate::stats::counters::Counters| {
            let of = worker.listener(listener.id);
            let ended = of.refused.iter().chain(of.closed.iter()).map(|count| count.get());
            // Ends are read before beginnings, so that no count falls below 0.
            let ended: u64 = ended.sum();
            of.opened.get().saturating_sub(ended)
        };
        (listener.name.to_string(), workers.iter().map(|worker| count(worker)).sum())
    };
    let endpoint = |of: config_sync::sync::overrides::Shown| {
        let count = |worker: &crate::stats::counters::Counters| {
            let counts = worker.endpoint(of.id);
            let closed = counts.closed.get();
            counts.opened.get().saturating_sub(closed)
        };
        OfEndpoint {
            sessions: workers.iter().map(|worker| count(worker)).sum(),
            backend: of.backend.to_string(),
            endpoint: of.address.to_string(),
            name: of.name.as_deref().map(str::to_owned),
        }
    };
    let sessions = Sessions {
        listeners: table.listeners.iter().map(listener).collect(),
        endpoints: endpoints.into_iter().map(endpoint).collect(),
    };
    // A long configuration takes a while to print.
    let tree = tokio::task::spawn_blocking(move || tree(&in_force.config)).await;
    let config = tree.unwrap_or_else(|_| Err("it can't be printed".to_owned()));
    let config = config.map_err(|text| Fault::new(StatusCode::INTERNAL_SERVER_ERROR, text))?;
    Ok(Json(Running { generation: table.generation, config, sessions }))
}
