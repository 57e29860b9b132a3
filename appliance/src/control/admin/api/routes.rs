//! Lists the routes: whom they are for, and what share of their sessions each backend gets.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::Method;
use config_sync::model::route::{self, Takes};
use config_sync::table::routing::{OnUnavailable, Route, RoutingTable};
use schemars::JsonSchema;
use serde::Serialize;

use crate::control::admin::api::document::Operation;
use crate::control::admin::api::{Api, Fault, Parts};
use crate::control::shown::{on_unavailable, route_balance};

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

/// Workers count nothing by route, so there are no numbers of sessions here.
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

async fn list(State(api): State<Api>) -> Result<Json<Routes>, Fault> {
    let parts = api.parts().await?;
    Ok(Json(Routes { routes: api.apart(move |_| rows(&parts)).await? }))
}

/// The routes that refuse the greatest share of their sessions come first.
pub fn rows(Parts { in_force, table, .. }: &Parts) -> Vec<Row> {
    let compiled: BTreeMap<&str, &Route> =
        table.routes.iter().map(|route| (&*route.name, route)).collect();
    let routes = in_force.config.routes.iter();
    let mut rows: Vec<_> =
        routes.map(|asked| row(asked, compiled.get(&*asked.name.value).copied(), table)).collect();
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
    }
}
