//! Says which clients, listeners and endpoints have the most to do.

use std::net::IpAddr;

use axum::extract::State;
use axum::http::Method;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::Instant;

use crate::control::admin::api::document::Operation;
use crate::control::admin::api::{Api, Fault};
use crate::control::top::Count;
use crate::stats::counters::Counter;

/// The clients of each list.
const MOST: usize = 100;

pub fn operations() -> Vec<Operation> {
    vec![
        Operation::new(
            Method::GET,
            "/top",
            top,
            "Says which clients, listeners and endpoints have the most to do",
        )
        .answers::<Top>(),
    ]
}

#[derive(JsonSchema, Serialize)]
struct Top {
    clients: Clients,
    listeners: Vec<Listener>,
    endpoints: Vec<Endpoint>,
}

/// Each list has the greatest count first.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "TopClients")]
pub struct Clients {
    /// The time in which was counted.
    window_ms: u64,
    /// Sessions and flows that ended after they had an endpoint.
    ended: Vec<Client>,
    /// Bytes both ways, of what ended.
    bytes: Vec<Client>,
    refused: Vec<Client>,
    /// Refusals whose clients are not known.
    refused_unseen: u64,
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "TopClient")]
struct Client {
    client: IpAddr,
    count: u64,
    /// The count is too high by this at the most.
    error: u64,
}

/// All but `sessions` are totals since the start.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "TopListener")]
struct Listener {
    listener: String,
    sessions: u64,
    opened: u64,
    refused: u64,
    bytes_up: u64,
    bytes_down: u64,
}

/// All but `sessions` are totals since the start. An endpoint that has had nothing to do is left
/// out.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "TopEndpoint")]
struct Endpoint {
    backend: String,
    endpoint: String,
    sessions: u64,
    opened: u64,
    connect_failures: u64,
    bytes_up: u64,
    bytes_down: u64,
}

async fn top(State(api): State<Api>) -> Result<Response, Fault> {
    let names = api.caller.with_sync(|sync| sync.shared_names()).await?;
    let made = api.answer(move |api| Top {
        clients: clients(api, MOST),
        listeners: names
            .listeners()
            .map(|(id, name)| {
                let each = api.board.workers().iter().map(|worker| worker.listener(id));
                let sum = |pick: fn(_) -> u64| each.clone().map(pick).sum::<u64>();
                Listener {
                    listener: name.to_owned(),
                    sessions: sum(|of| of.live()),
                    opened: sum(|of| of.opened.get()),
                    refused: sum(|of| of.refused.iter().map(Counter::get).sum()),
                    bytes_up: sum(|of| of.bytes_up.get()),
                    bytes_down: sum(|of| of.bytes_down.get()),
                }
            })
            .collect(),
        endpoints: names
            .endpoints()
            .map(|(id, backend, address)| {
                let each = api.board.workers().iter().map(|worker| worker.endpoint(id));
                let sum = |pick: fn(_) -> u64| each.clone().map(pick).sum::<u64>();
                Endpoint {
                    backend: backend.to_owned(),
                    endpoint: address.to_string(),
                    sessions: sum(|of| of.live()),
                    opened: sum(|of| of.opened.get()),
                    connect_failures: sum(|of| of.connect_failures.get()),
                    bytes_up: sum(|of| of.bytes_up.get()),
                    bytes_down: sum(|of| of.bytes_down.get()),
                }
            })
            .filter(|of| of.opened > 0 || of.connect_failures > 0)
            .collect(),
    });
    made.await
}

pub fn clients(api: &Api, most: usize) -> Clients {
    let report = api.board.clients.lock().report(most, Instant::now());
    let list = |counts: Vec<Count>| {
        counts
            .into_iter()
            .map(|Count { client, count, error }| Client { client, count, error })
            .collect()
    };
    Clients {
        window_ms: u64::try_from(report.window.as_millis()).unwrap_or(u64::MAX),
        ended: list(report.ended),
        bytes: list(report.bytes),
        refused: list(report.refused),
        refused_unseen: report.unseen,
    }
}
