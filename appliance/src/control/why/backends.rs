//! The backends of the client's route, their endpoints, and the chance of each.

use std::collections::BTreeMap;

use config_sync::sync::overrides::Shown;
use config_sync::table::routing::{
    Backend, EndpointId, Listener, Protocol, Route, RouteBalance, Socket,
};
use schemars::JsonSchema;
use serde::Serialize;

use crate::control::shown::balance;
use crate::control::why::asked::{Client, Running, can_reach, local_port};
use crate::proxy::balance::Balancer;
use crate::stats::records::CloseReason;

/// What becomes of the client behind its route.
pub enum Choice {
    Exactly { backend: String, endpoint: String },
    OneOf,
}

/// A backend that would refuse the client, if it were the client's.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize)]
#[schemars(rename = "WhyRefusal")]
pub struct Refusal {
    pub backend: String,
    /// 0 to 1: the chance that the client comes to this backend, and is refused.
    pub chance: f64,
    /// The close reason.
    pub reason: &'static str,
}

/// What was found out about the backends of a route.
pub struct Found {
    pub rows: Vec<BackendRow>,
    pub refusals: Vec<Refusal>,
    pub choice: Result<Choice, CloseReason>,
}

/// A backend of the route.
#[derive(Debug, JsonSchema, Serialize)]
#[schemars(rename = "WhyBackend")]
pub struct BackendRow {
    pub backend: String,
    pub weight: u32,
    /// 0 to 1: of this client's next session or flow.
    pub chance: f64,
    pub balance: &'static str,
    /// The most sessions that wait while every endpoint is full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<u32>,
    /// The reason of a session for this backend, if none of its endpoints may be picked.
    pub if_none: &'static str,
    /// Whether this is the case now.
    pub none: bool,
    pub endpoints: Vec<EndpointRow>,
}

#[derive(Debug, JsonSchema, Serialize)]
#[schemars(rename = "WhyEndpoint")]
pub struct EndpointRow {
    pub endpoint: String,
    #[serde(skip)]
    pub id: EndpointId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    pub weight: u32,
    pub weight_in_force: f64,
    /// The most sessions or flows over all workers. Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sessions: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u32>,
    /// Where the endpoint comes last for some seconds. Absent: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rests: Option<Rests>,
    /// 0 to 1: of this client's next session or flow.
    pub chance: f64,
}

/// After a session could not be given to an endpoint, a worker gives sessions to other endpoints of
/// the backend for some seconds, as long as there are others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize)]
#[schemars(rename = "WhyRests")]
pub struct Rests {
    /// The number of workers that do so.
    pub on: usize,
    /// The number of all workers.
    pub of: usize,
    /// Until the last of them gives the endpoint a session again.
    pub left_ms: u64,
}

/// Chooses as a worker does whose last sessions all reached their endpoints.
pub fn choose(
    running: &Running<'_>,
    (route, listener): (&Route, &Listener),
    (client, socket): (&Client, &Socket),
) -> Found {
    let mut found = Vec::new();
    let table = running.table;
    let mut balancer = Balancer::new(0);
    balancer.prepare(table);
    balancer.unix = running.now;
    let mut shown: BTreeMap<&str, Vec<&Shown>> = BTreeMap::new();
    for endpoint in running.endpoints {
        shown.entry(&endpoint.backend).or_default().push(endpoint);
    }
    let total: u64 = route.backends.iter().map(|share| u64::from(share.weight)).sum();
    let exactly = match route.balance {
        RouteBalance::RoundRobin => None,
        RouteBalance::SourceHash => balancer.backend(route, client.address),
    };
    let mut refused = Vec::new();
    for share in &route.backends {
        let backend = &table.backends[share.backend];
        let chance = match exactly {
            Some(exactly) if exactly == share.backend => 1.0,
            Some(_) => 0.0,
            None if total == 0 => 0.0,
            None => f64::from(share.weight) / total as f64,
        };
        let mut candidates = balancer.candidates(backend, client.address, client.port);
        // A flow has an endpoint before it is asked whether it is one too many.
        let may_ask = listener.protocol != Protocol::Udp || !candidates.is_empty();
        let is_over = may_ask && is_over(backend, running.now);
        candidates.retain(|_| !is_over);
        let full = balancer.were_full(backend, &[]);
        let if_none = match (full, listener.protocol, &backend.queue) {
            _ if is_over => CloseReason::Limit,
            (true, Protocol::Tcp | Protocol::Tls, Some(_)) => CloseReason::QueueTimeout,
            (true, ..) => CloseReason::EndpointsFull,
            (false, ..) => CloseReason::NoEndpoint,
        };
        let port = local_port(client, socket);
        let mut chances = BTreeMap::new();
        let mut none = chance;
        for (index, part) in candidates {
            let endpoint = &backend.endpoints[index];
            if can_reach(endpoint.address.for_client_of(port), listener.protocol) {
                chances.insert(endpoint.id, part * chance);
                none -= part * chance;
            }
        }
        if chance > 0.0 && none > 1e-9 {
            refused.push((backend.name.to_string(), none, if_none));
        }
        let shown = shown.get(&*backend.name).map_or(&[][..], Vec::as_slice);
        found.push(BackendRow {
            backend: backend.name.to_string(),
            weight: share.weight,
            chance,
            balance: balance(&backend.balance),
            queue: backend.queue.as_ref().map(|queue| queue.most),
            if_none: if_none.word(),
            none: chances.is_empty(),
            endpoints: rows(backend, shown, &chances),
        });
    }
    let first = refused.first().map(|(_, _, reason)| *reason);
    let choice = conclude(total, first, &found);
    Found { rows: found, refusals: refused.into_iter().map(refusal).collect(), choice }
}

fn refusal((backend, chance, reason): (String, f64, CloseReason)) -> Refusal {
    Refusal { backend, chance, reason: reason.word() }
}

/// Whether the backend has no place within its limit.
fn is_over(backend: &Backend, now: u64) -> bool {
    backend.limit.as_ref().is_some_and(|limit| limit.over(now).is_some())
}

fn conclude(
    total: u64,
    reason: Option<CloseReason>,
    backends: &[BackendRow],
) -> Result<Choice, CloseReason> {
    if total == 0 {
        return Err(CloseReason::NoBackend);
    }
    let all = backends.iter().flat_map(|of| of.endpoints.iter().map(move |to| (of, to)));
    let mut able = all.filter(|(_, to)| to.chance > 0.0);
    match (able.next(), able.next(), reason) {
        (None, ..) => Err(reason.unwrap_or(CloseReason::NoEndpoint)),
        (Some((backend, to)), None, None) => {
            Ok(Choice::Exactly { backend: backend.backend.clone(), endpoint: to.endpoint.clone() })
        }
        _ => Ok(Choice::OneOf),
    }
}

/// The endpoints that the configuration has, and those of the table that it no longer has.
fn rows(
    backend: &Backend,
    shown: &[&Shown],
    chances: &BTreeMap<EndpointId, f64>,
) -> Vec<EndpointRow> {
    let loads: BTreeMap<EndpointId, _> = backend
        .endpoints
        .iter()
        .zip(&backend.loads)
        .filter_map(|(endpoint, load)| Some((endpoint.id, load.as_ref()?)))
        .collect();
    let row = |id: EndpointId, endpoint: String, weight: u32| EndpointRow {
        endpoint,
        id,
        name: None,
        state: "up",
        why: None,
        weight,
        weight_in_force: weight.into(),
        max_sessions: loads.get(&id).map(|load| load.most).filter(|most| *most != u32::MAX),
        sessions: loads.get(&id).map(|load| load.sessions.get()),
        rests: None,
        chance: chances.get(&id).copied().unwrap_or(0.0),
    };
    let known = shown.iter().map(|of| EndpointRow {
        name: of.name.as_deref().map(str::to_owned),
        state: of.state.word(),
        why: of.why.clone(),
        weight_in_force: of.in_force,
        ..row(of.id, of.address.to_string(), of.configured)
    });
    let is_new = |id: EndpointId| shown.iter().all(|of| of.id != id);
    let others = backend.endpoints.iter().filter(|of| is_new(of.id));
    known.chain(others.map(|of| row(of.id, of.address.to_string(), of.weight))).collect()
}
