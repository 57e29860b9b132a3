//! Sends the open pages a snapshot of the gateway each second, as server-sent events.

use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use config_sync::sync::overrides::{self, Shown};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};

use crate::control::admin::api::document::Operation;
use crate::control::admin::api::{Api, Fault, Parts};
use crate::control::admin::api::{
    backends, certificates, closes, limits, listeners, routes as led, status, top,
};
use crate::control::admin::viewers::{MOST, Seat};
use crate::control::closes::OfReason;
use crate::control::events::{EVENTS, Entry};
use crate::stats::counters::{BUCKETS, EndpointCounters};

const EACH: Duration = Duration::from_secs(1);

/// The endpoints of a snapshot. `/endpoints/live` has all.
const ENDPOINTS: usize = 200;

/// The newest lines of the log in a snapshot.
const LINES: usize = 50;

const CLIENTS: usize = 10;

const CERTIFICATES: usize = 50;

pub fn operations() -> Vec<Operation> {
    vec![
        Operation::new(
            Method::GET,
            "/stream",
            stream,
            "Sends a snapshot each second; for the live page, and any version may change it",
        )
        .sends::<Snapshot>(),
        Operation::new(
            Method::GET,
            "/endpoints/live",
            live,
            "Lists the endpoints with their counts, the unwell first",
        )
        .answers::<Endpoints>(),
    ]
}

#[derive(JsonSchema, Serialize)]
struct Snapshot {
    status: status::Status,
    listeners: Vec<listeners::Row>,
    routes: Vec<led::Row>,
    backends: Vec<backends::Row>,
    endpoints: Endpoints,
    connect: Latency,
    /// Without samples.
    closes: Vec<OfReason>,
    clients: top::Clients,
    events: Vec<Entry>,
    /// Those that end first.
    certificates: Vec<certificates::Row>,
    /// The fullest row of each limit.
    limits: Vec<limits::Row>,
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "LiveEndpoints")]
struct Endpoints {
    /// How many there are, and how many of them are neither up nor in reserve.
    all: usize,
    unwell: usize,
    /// The unwell ones first, then those with the most sessions.
    first: Vec<Endpoint>,
}

/// All but `sessions` are totals since the start.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "LiveEndpoint")]
struct Endpoint {
    backend: String,
    endpoint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    state: &'static str,
    weight: f64,
    sessions: u64,
    opened: u64,
    connect_failures: u64,
    bytes_up: u64,
    bytes_down: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// Times of connects to endpoints since the start.
#[derive(JsonSchema, Serialize)]
struct Latency {
    /// The upper bounds of all buckets but the last, in microseconds.
    bounds: [u64; BUCKETS.len()],
    /// Not cumulative.
    counts: Vec<u64>,
    failures: u64,
}

/// Makes one snapshot each second for all viewers, while there are any.
pub async fn make(api: Api) {
    let mut seconds = interval(EACH);
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        seconds.tick().await;
        if api.board.viewers.is_empty() {
            continue;
        }
        let Ok(parts) = api.parts().await else { continue };
        let made = api.apart(move |api| text(&snapshot(api, &parts))).await;
        if let Ok(Some(text)) = made {
            api.board.viewers.send(&text);
        }
    }
}

fn text(snapshot: &Snapshot) -> Option<Bytes> {
    let json = serde_json::to_string(snapshot).ok()?;
    Some(format!("data: {json}\n\n").into())
}

async fn stream(State(api): State<Api>, seat: Option<Extension<Seat>>) -> Result<Response, Fault> {
    let Extension(seat) = seat.unwrap_or_default();
    let Some(snapshots) = api.board.viewers.add(seat) else {
        let text = format!("{MOST} pages are open already; close one of them");
        return Err(Fault::new(StatusCode::SERVICE_UNAVAILABLE, text));
    };
    let headers = [
        (CONTENT_TYPE, "text/event-stream"),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok((headers, Body::new(snapshots)).into_response())
}

async fn live(State(api): State<Api>) -> Result<Response, Fault> {
    let parts = api.parts().await?;
    api.answer(move |api| endpoints(api, &parts.endpoints, usize::MAX)).await
}

fn snapshot(api: &Api, parts: &Parts) -> Snapshot {
    let mut closes = closes::of_the_last_hour(&api.board);
    closes.iter_mut().for_each(|of| of.samples.clear());
    Snapshot {
        status: status::of(&api.board),
        listeners: listeners::rows(api, parts),
        routes: led::rows(api, parts),
        backends: backends::rows(api, parts),
        endpoints: endpoints(api, &parts.endpoints, ENDPOINTS),
        connect: latency(api, parts),
        closes,
        clients: top::clients(api, CLIENTS),
        events: EVENTS.after(0, LINES),
        certificates: certificates::first(api, CERTIFICATES),
        limits: limits::fullest(api, parts),
    }
}

fn is_unwell(of: &Shown) -> bool {
    !matches!(of.state, overrides::State::Up | overrides::State::Backup)
}

fn endpoints(api: &Api, shown: &[Shown], most: usize) -> Endpoints {
    let workers = api.board.workers();
    let live = |of: &Shown| workers.iter().map(|worker| worker.endpoint(of.id).live()).sum::<u64>();
    let mut ranked: Vec<_> = shown.iter().map(|of| (is_unwell(of), live(of), of)).collect();
    // The order of endpoints that are alike does not change from snapshot to snapshot.
    ranked.sort_by_key(|(unwell, live, _)| std::cmp::Reverse((*unwell, *live)));
    let unwell = ranked.iter().filter(|of| of.0).count();
    let first = ranked.into_iter().take(most).map(|(_, sessions, of)| {
        let sum = |pick: fn(&EndpointCounters) -> u64| {
            workers.iter().map(|worker| pick(worker.endpoint(of.id))).sum()
        };
        Endpoint {
            backend: of.backend.to_string(),
            endpoint: of.address.to_string(),
            name: of.name.as_deref().map(str::to_owned),
            state: of.state.word(),
            weight: of.in_force,
            sessions,
            opened: sum(|of| of.opened.get()),
            connect_failures: sum(|of| of.connect_failures.get()),
            bytes_up: sum(|of| of.bytes_up.get()),
            bytes_down: sum(|of| of.bytes_down.get()),
            why: of.why.clone(),
        }
    });
    Endpoints { all: shown.len(), unwell, first: first.collect() }
}

fn latency(api: &Api, parts: &Parts) -> Latency {
    let (mut counts, mut failures) = (vec![0; BUCKETS.len() + 1], 0);
    for (id, _, _) in parts.names.endpoints() {
        for of in api.board.workers().iter().map(|worker| worker.endpoint(id)) {
            failures += of.connect_failures.get();
            for (sum, count) in counts.iter_mut().zip(&of.connect.buckets) {
                *sum += count.get();
            }
        }
    }
    Latency { bounds: BUCKETS, counts, failures }
}
