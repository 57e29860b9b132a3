//! Lists the routes: whom they are for, and what share of their sessions each backend gets.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::Method;
use axum::response::Response;
use config_sync::model::route::{self, Takes};
use config_sync::table::routing::{OnUnavailable, Route, RouteId, RoutingTable};
use schemars::JsonSchema;
use serde::Serialize;

use crate::control::admin::api::document::Operation;
use crate::control::admin::api::{Api, Fault, Parts};
use crate::control::shown::{on_unavailable, route_balance};
use crate::stats::counters::Counters;

pub fn operations() -> Vec<Operation> {
    vec![
        Operation::new(
            Method::GET,
            "/routes",
            list,
            "Lists the routes, first those that refuse the most",
        )
        .answers::<Routes>(),
    ]
}

#[derive(JsonSchema, Serialize)]
struct Routes {
    routes: Vec<Row>,
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "Route")]
pub struct Row {
    route: String,
    listeners: Vec<String>,
    /// Empty: every name of the listeners.
    hostnames: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    alpn: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sources: Vec<String>,
    /// Absent: clients as usual. Else clients that send no ClientHello.
    #[serde(skip_serializing_if = "Option::is_none")]
    takes: Option<&'static str>,
    balance: &'static str,
    on_unavailable: &'static str,
    backends: Vec<Share>,
    /// 0 to 1: the share of new sessions that is refused because there is no endpoint for them.
    refused: f64,
    #[serde(flatten)]
    counted: Counted,
}

/// What the workers have counted since the route came into the configuration.
#[derive(Clone, Copy, Default, JsonSchema, Serialize)]
struct Counted {
    /// Live sessions or flows.
    sessions: u64,
    opened: u64,
    /// Sessions and flows of the route that got no endpoint.
    refused_sessions: u64,
    /// Bytes of the sessions and flows that have ended.
    bytes_up: u64,
    bytes_down: u64,
}

impl Counted {
    fn of(workers: &[Arc<Counters>], id: RouteId) -> Self {
        let mut sums = Self::default();
        for of in workers.iter().map(|worker| worker.route(id)) {
            sums.sessions += of.live();
            sums.opened += of.opened.get();
            sums.refused_sessions += of.refused.get();
            sums.bytes_up += of.bytes_up.get();
            sums.bytes_down += of.bytes_down.get();
        }
        sums
    }
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "RouteShare")]
struct Share {
    backend: String,
    /// As configured.
    weight: u32,
    /// 0 to 1: of new sessions.
    share: f64,
    /// Whether an endpoint of the backend takes new sessions.
    available: bool,
}

async fn list(State(api): State<Api>) -> Result<Response, Fault> {
    let parts = api.parts().await?;
    api.answer(move |api| Routes { routes: rows(api, &parts) }).await
}

/// The routes that refuse the greatest share of their sessions come first.
pub fn rows(api: &Api, Parts { in_force, table, .. }: &Parts) -> Vec<Row> {
    let compiled: BTreeMap<&str, &Route> =
        table.routes.iter().map(|route| (&*route.name, route)).collect();
    let routes = in_force.config.routes.iter();
    let row = |asked: &route::Route| {
        let compiled = compiled.get(&*asked.name.value).copied();
        let counted = compiled.map(|route| Counted::of(api.board.workers(), route.id));
        Row { counted: counted.unwrap_or_default(), ..row(asked, compiled, table) }
    };
    let mut rows: Vec<_> = routes.map(row).collect();
    rows.sort_by(|one, other| other.refused.total_cmp(&one.refused));
    rows
}

fn row(asked: &route::Route, compiled: Option<&Route>, table: &RoutingTable) -> Row {
    let shares = compiled.map_or(&[][..], |route| &route.backends);
    let total: u64 = shares.iter().map(|share| u64::from(share.weight)).sum();
    // The table has the configuration's backends, in the configuration's order.
    let backends = asked.backends.iter().enumerate().map(|(at, backend)| {
        let found = shares.get(at);
        let weight = found.map_or(0, |found| found.weight);
        Share {
            backend: backend.name.value.clone(),
            weight: backend.weight,
            share: if total == 0 { 0.0 } else { f64::from(weight) / total as f64 },
            available: found.is_some_and(|found| !table.backends[found.backend].turns.is_empty()),
        }
    });
    let backends: Vec<_> = backends.collect();
    let served: f64 = backends.iter().filter(|of| of.available).map(|of| of.share).sum();
    Row {
        route: asked.name.value.clone(),
        listeners: asked.listeners.iter().map(|name| name.value.clone()).collect(),
        hostnames: asked.hostnames.iter().map(|name| name.value.clone()).collect(),
        alpn: asked.alpn.iter().map(|name| name.value.clone()).collect(),
        sources: asked.sources.iter().map(|range| range.value.to_string()).collect(),
        takes: match asked.takes {
            Takes::Usual => None,
            Takes::NotTls => Some("not_tls"),
            Takes::Silent => Some("silent"),
        },
        balance: route_balance(asked.balance),
        on_unavailable: on_unavailable(asked.on_unavailable.unwrap_or(OnUnavailable::Refuse)),
        // Sums of shares miss 1 by a little.
        refused: if served > 1.0 - 1e-9 { 0.0 } else { 1.0 - served },
        backends,
        counted: Counted::default(),
    }
}
