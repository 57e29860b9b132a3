//! Says how the gateway fares, in one answer.

use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use axum::http::Method;
use schemars::JsonSchema;
use serde::Serialize;

use crate::control::admin::api::Api;
use crate::control::admin::api::document::Operation;
use crate::control::admin::board::{Board, Source};
use crate::control::metrics::process::Upgrades;
use crate::control::time_of_day::unix_seconds;
use crate::stats::counters::{Counter, Counters};

pub fn operations() -> Vec<Operation> {
    vec![
        Operation::new(Method::GET, "/status", status, "Says how the gateway fares")
            .answers::<Status>(),
    ]
}

#[derive(JsonSchema, Serialize)]
pub struct Status {
    version: &'static str,
    uptime_ms: u64,
    ready: bool,
    /// New sessions and flows are refused, because the memory is nearly used up.
    overloaded: bool,
    draining: bool,
    source: Source,
    /// Of the table that the configuration in force came with.
    generation: u64,
    /// When the configuration was given to the workers. Absent: there is none yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    /// The table that all workers have. It is later than `generation` if health, names or operators
    /// have changed something since.
    table: u64,
    /// Workers that have not applied the newest table yet.
    workers_behind: usize,
    reloads_ok: u64,
    reloads_failed: u64,
    /// Why the latest configuration was refused. Absent: it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    /// The last configuration that was refused, though a later one may be in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_refused: Option<Refused>,
    workers: usize,
    sessions: u64,
    sessions_most: u64,
    flows: u64,
    flows_most: u64,
    /// Over the last ten seconds.
    opened_per_second: u64,
    bytes_up_per_second: u64,
    bytes_down_per_second: u64,
    endpoints_down: usize,
    overrides: u64,
    /// Certificates that have ended or end within days, and revocation lists that have ended.
    certificates_ending: usize,
    upgrade: Upgrades,
}

#[derive(JsonSchema, Serialize)]
struct Refused {
    at: String,
    why: String,
}

async fn status(State(Api { board, .. }): State<Api>) -> Json<Status> {
    Json(of(&board))
}

pub fn of(board: &Board) -> Status {
    let (limits, workers) = (board.limits(), board.workers());
    let sum = |pick: fn(&Counters) -> &Counter| workers.iter().map(|of| pick(of).get()).sum();
    let most = |each: u32| u64::from(each) * workers.len() as u64;
    let newest = board.newest.load(Ordering::Relaxed);
    let rates = board.per_second();
    let (expiries, now) = (board.expiries(), unix_seconds());
    let ends = expiries.iter().filter(|of| of.warning(now).is_some());
    let latest = board.latest();
    Status {
        version: env!("CARGO_PKG_VERSION"),
        uptime_ms: board.millis(),
        ready: board.is_ready(),
        overloaded: board.overloaded.load(Ordering::Relaxed),
        draining: board.draining.load(Ordering::Relaxed),
        source: latest.source,
        generation: latest.generation,
        since: latest.since.map(|since| since.to_string()),
        table: workers.iter().map(|of| of.generation.get()).min().unwrap_or(0),
        workers_behind: workers.iter().filter(|of| of.generation.get() < newest).count(),
        reloads_ok: latest.reloads_ok,
        reloads_failed: latest.reloads_failed,
        refused: latest.refused.clone(),
        last_refused: latest
            .last_refused
            .as_ref()
            .map(|(at, why)| Refused { at: at.to_string(), why: why.clone() }),
        workers: workers.len(),
        sessions: sum(|of| &of.sessions),
        sessions_most: most(limits.sessions),
        flows: sum(|of| &of.flows),
        flows_most: most(limits.flows),
        opened_per_second: rates.opened,
        bytes_up_per_second: rates.bytes_up,
        bytes_down_per_second: rates.bytes_down,
        endpoints_down: latest.health.endpoints.iter().filter(|(_, _, up)| !up).count(),
        overrides: latest.overrides,
        certificates_ending: ends.count(),
        upgrade: *board.upgrade.lock(),
    }
}
