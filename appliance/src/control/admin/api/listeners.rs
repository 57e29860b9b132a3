//! Lists the listeners: where they listen, where they lead, and what they have had to do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::Method;
use axum::response::Response;
use config_sync::model::listener::Listener;
use config_sync::table::routing::{ListenerId, Protocol};
use schemars::JsonSchema;
use serde::Serialize;

use crate::control::admin::api::document::Operation;
use crate::control::admin::api::{Api, Fault, Parts};
use crate::control::shown::protocol;
use crate::stats::counters::{Counter, ListenerCounters};

pub fn operations() -> Vec<Operation> {
    vec![
        Operation::new(Method::GET, "/listeners", listeners, "Lists the listeners")
            .answers::<Listeners>(),
    ]
}

#[derive(JsonSchema, Serialize)]
struct Listeners {
    listeners: Vec<Row>,
}

/// All numbers but `sessions` and `max_sessions` are totals since the start.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "Listener")]
pub struct Row {
    listener: String,
    /// Absent: the listener has left the configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'static str>,
    addresses: Vec<String>,
    /// Empty: every name.
    hostnames: Vec<String>,
    /// Absent: the listener does not read a ClientHello.
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<&'static str>,
    state: Phase,
    routes: Vec<String>,
    /// Live sessions or flows.
    sessions: u64,
    opened: u64,
    /// Sessions and flows that got no endpoint.
    refused: u64,
    bytes_up: u64,
    bytes_down: u64,
    /// Datagrams. Absent: the listener is not for UDP.
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped: Option<u64>,
    /// The most sessions or flows on one worker. Absent: no limit of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_sessions: Option<u32>,
}

#[derive(Clone, Copy, JsonSchema, Serialize)]
#[schemars(rename = "ListenerState")]
#[serde(rename_all = "lowercase")]
enum Phase {
    Listening,
    /// By an operator: no new sessions.
    Drained,
    /// The gateway ends, or the listener has left the configuration and still has sessions.
    Draining,
}

async fn listeners(State(api): State<Api>) -> Result<Response, Fault> {
    let parts = api.parts().await?;
    api.answer(move |api| Listeners { listeners: rows(api, &parts) }).await
}

pub fn rows(api: &Api, parts: &Parts) -> Vec<Row> {
    let config = &parts.in_force.config;
    let mut leads: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for route in &config.routes {
        for listener in &route.listeners {
            leads.entry(&listener.value).or_default().push(route.name.value.clone());
        }
    }
    let ids: BTreeMap<&str, ListenerId> =
        parts.names.listeners().map(|(id, name)| (name, id)).collect();
    let is_draining = api.board.draining.load(Ordering::Relaxed);
    let in_force = config.listeners.iter().map(|listener| {
        let name = listener.name.value.as_str();
        let row = counted(api, name, ids.get(name).copied());
        Row {
            routes: leads.remove(name).unwrap_or_default(),
            state: match (is_draining, parts.drained.contains(name)) {
                (true, _) => Phase::Draining,
                (false, true) => Phase::Drained,
                (false, false) => Phase::Listening,
            },
            ..configured(listener, row)
        }
    });
    let mut rows: Vec<_> = in_force.collect();
    let known: BTreeSet<&str> =
        config.listeners.iter().map(|listener| listener.name.value.as_str()).collect();
    let left = ids.iter().filter(|(name, _)| !known.contains(*name));
    let left = left.map(|(name, id)| counted(api, name, Some(*id)));
    rows.extend(left.filter(|row| row.sessions > 0));
    rows
}

fn configured(listener: &Listener, row: Row) -> Row {
    let is_udp = listener.protocol == Protocol::Udp;
    Row {
        protocol: Some(protocol(listener.protocol)),
        addresses: listener.addresses.iter().map(|at| at.value.to_string()).collect(),
        hostnames: listener.hostnames.iter().map(|name| name.value.clone()).collect(),
        tls: (listener.protocol == Protocol::Tls).then_some(match listener.tls {
            Some(_) => "terminate",
            None => "passthrough",
        }),
        dropped: row.dropped.filter(|_| is_udp),
        max_sessions: Some(listener.max_sessions).filter(|most| *most > 0),
        ..row
    }
}

/// A listener that has left, with what the workers have counted.
fn counted(api: &Api, name: &str, id: Option<ListenerId>) -> Row {
    let workers = api.board.workers();
    let sum = |pick: fn(&ListenerCounters) -> u64| {
        id.map_or(0, |id| workers.iter().map(|worker| pick(worker.listener(id))).sum())
    };
    Row {
        listener: name.to_owned(),
        protocol: None,
        addresses: Vec::new(),
        hostnames: Vec::new(),
        tls: None,
        state: Phase::Draining,
        routes: Vec::new(),
        sessions: sum(ListenerCounters::live),
        opened: sum(|of| of.opened.get()),
        refused: sum(|of| of.refused.iter().map(Counter::get).sum()),
        bytes_up: sum(|of| of.bytes_up.get()),
        bytes_down: sum(|of| of.bytes_down.get()),
        dropped: Some(sum(|of| of.dropped.iter().map(Counter::get).sum())),
        max_sessions: None,
    }
}
