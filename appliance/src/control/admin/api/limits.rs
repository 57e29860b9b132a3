//! Lists the limits, the fullest first: how much is used, how much there is, and what sets it.

use std::collections::BTreeSet;

use axum::extract::State;
use axum::http::Method;
use axum::response::Response;
use config_sync::compile::names::Names;
use config_sync::table::limit::Limit;
use config_sync::table::load::{NO_LIMIT, Taken};
use config_sync::table::routing::{
    Limits, Listener, ListenerId, MAX_ENDPOINTS, MAX_LISTENERS, RoutingTable,
};
use schemars::JsonSchema;
use serde::Serialize;

use crate::control::admin::api::document::Operation;
use crate::control::admin::api::{Api, Fault, Parts};
use crate::control::limited::{Whose, limited};
use crate::control::memory::Reading;
use crate::control::metrics::process;
use crate::control::own_memory;
use crate::stats::counters::{Counter, Counters};
use crate::stats::records::CloseReason;

pub fn operations() -> Vec<Operation> {
    vec![
        Operation::new(Method::GET, "/limits", limits, "Lists the limits, the fullest first")
            .answers::<Answer>(),
    ]
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "Limits")]
struct Answer {
    limits: Vec<Row>,
}

#[derive(Debug, JsonSchema, Serialize)]
#[schemars(rename = "Limit")]
pub struct Row {
    limit: &'static str,
    /// The worker, listener, backend or endpoint that has the limit, for people. Absent: the whole
    /// process.
    #[serde(skip_serializing_if = "Option::is_none")]
    of: Option<String>,
    /// For a limit that each worker has, the worker. For a listener's limit, the fullest worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    listener: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    used: u64,
    capacity: u64,
    /// 0 to 1. More than 1: the limit was lowered meanwhile.
    full: f64,
    /// How often since the start something was refused or had to wait because of the limit. Absent:
    /// nobody counts that.
    #[serde(skip_serializing_if = "Option::is_none")]
    reached: Option<u64>,
    /// The key of the configuration, or what else decides.
    set_by: String,
}

impl Row {
    fn new(limit: &'static str, used: u64, capacity: u64, set_by: impl Into<String>) -> Self {
        let full = if capacity == 0 { 1.0 } else { used as f64 / capacity as f64 };
        Self {
            limit,
            of: None,
            worker: None,
            listener: None,
            backend: None,
            endpoint: None,
            used,
            capacity,
            full,
            reached: None,
            set_by: set_by.into(),
        }
    }
}

async fn limits(State(api): State<Api>) -> Result<Response, Fault> {
    let parts = api.parts().await?;
    api.answer(move |api| Answer { limits: rows(api, &parts) }).await
}

/// The fullest row of each limit, the fullest first.
pub fn fullest(api: &Api, parts: &Parts) -> Vec<Row> {
    let (mut rows, mut seen) = (rows(api, parts), BTreeSet::new());
    rows.retain(|row| seen.insert(row.limit));
    rows
}

fn rows(api: &Api, Parts { table, names, .. }: &Parts) -> Vec<Row> {
    let workers: Vec<&Counters> = api.board.workers().iter().map(|worker| &**worker).collect();
    let (limits, asked) = (api.board.limits(), api.board.asked);
    let listeners: Vec<_> = names.listeners().map(|(id, _)| id).collect();
    let each = workers.iter().enumerate();
    let mut rows: Vec<_> = each.flat_map(|(at, of)| of_worker(at, of, (limits, asked))).collect();
    if let Some((open, most)) = process::files() {
        let reached = |of: &&Counters| of.accept_pauses.get() + of.file_shortages.get();
        let reached = workers.iter().map(reached).sum();
        let set_by = "the limit of open files (LimitNOFILE= of the service, ulimit -n)";
        rows.push(Row { reached: Some(reached), ..Row::new("files", open, most, set_by) });
    }
    if let Some(Reading { used, most }) = *api.board.memory.lock() {
        let set_by = "the cgroup's memory.max or memory.high";
        let reached = Some(refused_for(CloseReason::Overload, &workers, &listeners));
        rows.push(Row { reached, ..Row::new("memory", used, most, set_by) });
    }
    rows.extend(of_process(api, workers.len()));
    for listener in &table.listeners {
        let taken = listener.taken.as_ref();
        rows.extend(taken.map(|taken| of_listener(listener, taken, &workers)));
    }
    rows.extend(of_backends(table));
    rows.extend(limited(table).filter_map(|(whose, limit)| of_limit(&whose, limit)));
    rows.extend(of_sources(table, &workers, &listeners));
    rows.extend(of_ids(names));
    rows.sort_by(|one, other| other.full.total_cmp(&one.full));
    rows
}

fn of_worker(at: usize, worker: &Counters, (limits, asked): (Limits, Limits)) -> [Row; 4] {
    let row = |limit, used, size: fn(Limits) -> u64, reached: &Counter| {
        let how = if size(asked) == 0 { ", automatic" } else { "" };
        let row = Row::new(limit, used, size(limits), format!("limits.{limit}{how}"));
        let (of, reached) = (Some(format!("worker {at}")), Some(reached.get()));
        Row { of, worker: Some(at), reached, ..row }
    };
    let (sessions, flows) = (worker.sessions.get(), worker.flows.get());
    let buffers = u64::from(limits.buffers).saturating_sub(worker.buffers_free.get());
    let pipes = worker.pipes_used.get();
    [
        row("sessions", sessions, |of| of.sessions.into(), &worker.session_shortages),
        row("flows", flows, |of| of.flows.into(), &worker.flow_shortages),
        row("buffers", buffers, |of| of.buffers.into(), &worker.buffer_shortages),
        row("pipes", pipes, |of| of.pipes.into(), &worker.pipe_shortages),
    ]
}

/// The memory of the process itself, and the most that it may come to be. Nothing is refused for
/// it: the other limits keep the process below.
fn of_process(api: &Api, workers: usize) -> Option<Row> {
    let start = api.board.start.lock().clone()?;
    let Reading { used, most } = own_memory::read(&start, workers, &api.board.limits())?;
    let set_by = "computed of the limits of all workers, the listeners' max_sessions and more";
    Some(Row::new("own_memory", used, most, set_by))
}

fn of_listener(listener: &Listener, taken: &Taken, workers: &[&Counters]) -> Row {
    let (name, most) = (&listener.name, listener.max_sessions);
    let reason = CloseReason::ListenerLimit as usize;
    let refused = workers.iter().map(|worker| worker.listener(listener.id).refused[reason].get());
    Row {
        of: Some(format!("listener {name}")),
        listener: Some(name.to_string()),
        reached: Some(refused.sum()),
        ..Row::new("max_sessions", taken.full.get().into(), most.into(), "listeners.max_sessions")
    }
}

/// The limit of the process, or of parts that share it. The rate of new sessions has no row.
fn of_limit(whose: &Whose<'_>, limit: &Limit) -> Option<Row> {
    let most = Some(limit.sessions).filter(|most| *most != NO_LIMIT)?;
    let name = || Some(whose.name.to_owned());
    let (limit_is, set_by) = match whose.kind {
        "process" => ("total_sessions", "limits.total_sessions".to_owned()),
        "shared" => ("limit", "shared_limits.sessions".to_owned()),
        kind => ("limit", format!("{kind}s.limit.sessions")),
    };
    let row = Row::new(limit_is, limit.usage.sessions.get().into(), most.into(), set_by);
    Some(Row {
        of: match whose.kind {
            "process" => None,
            "shared" => Some(format!("shared limit {}", whose.name)),
            kind => Some(format!("{kind} {}", whose.name)),
        },
        listener: name().filter(|_| whose.kind == "listener"),
        backend: name().filter(|_| whose.kind == "backend"),
        reached: Some(limit.usage.refused()),
        ..row
    })
}

/// Endpoints that may not be picked have no row.
fn of_backends(table: &RoutingTable) -> Vec<Row> {
    let mut rows = Vec::new();
    for backend in &table.backends {
        let name = backend.name.to_string();
        for (endpoint, load) in backend.endpoints.iter().zip(&backend.loads) {
            let Some(load) = load.as_ref().filter(|load| load.most != NO_LIMIT) else { continue };
            let (used, most) = (load.sessions.get().into(), load.most.into());
            rows.push(Row {
                of: Some(format!("endpoint {name}/{}", endpoint.address)),
                backend: Some(name.clone()),
                endpoint: Some(endpoint.address.to_string()),
                ..Row::new("max_sessions", used, most, "backends.endpoints.max_sessions")
            });
        }
        if let Some(queue) = &backend.queue {
            let (used, most) = (queue.line.waiting().into(), queue.most.into());
            rows.push(Row {
                of: Some(format!("backend {name}")),
                backend: Some(name.clone()),
                ..Row::new("queue", used, most, "backends.queue")
            });
        }
    }
    rows
}

/// The table of the sources that `limit_source` counts.
fn of_sources(
    table: &RoutingTable,
    workers: &[&Counters],
    listeners: &[ListenerId],
) -> Option<Row> {
    let sources = table.sources.as_ref()?;
    let (used, room) = (sources.in_use() as u64, sources.room() as u64);
    let row = Row::new("sources", used, room, "fixed: sources of limit_source with sessions");
    // The limits of sources are reached before the table is full, and have the same reason.
    Some(Row { reached: Some(refused_for(CloseReason::SourceLimit, workers, listeners)), ..row })
}

/// How many sessions and flows of these listeners were refused for this reason, also before they
/// had a listener.
fn refused_for(reason: CloseReason, workers: &[&Counters], listeners: &[ListenerId]) -> u64 {
    let of = |worker: &&Counters| {
        let refused =
            listeners.iter().map(|id| worker.listener(*id).refused[reason as usize].get());
        refused.sum::<u64>() + worker.unmatched[reason as usize].get()
    };
    workers.iter().map(of).sum()
}

fn of_ids(names: &Names) -> [Row; 2] {
    [
        Row::new("listeners", names.listeners().count() as u64, MAX_LISTENERS as u64, "fixed"),
        Row::new("endpoints", names.endpoints().count() as u64, MAX_ENDPOINTS as u64, "fixed"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_shows_what_it_uses_and_what_sets_the_limit() {
        let (worker, asked) = (Counters::new(), Limits { sessions: 8, ..Limits::default() });
        let limits = Limits { sessions: 8, flows: 4, buffers: 16, pipes: 2, ..asked };
        worker.sessions.set(6);
        worker.buffers_free.set(12);
        worker.session_shortages.add(6);
        worker.flow_shortages.add(5);
        let [sessions, flows, buffers, pipes] = of_worker(1, &worker, (limits, asked));
        assert_eq!((sessions.used, sessions.capacity, sessions.reached), (6, 8, Some(6)));
        assert_eq!((sessions.full, &*sessions.set_by), (0.75, "limits.sessions"));
        assert_eq!((flows.used, flows.capacity, flows.reached), (0, 4, Some(5)));
        assert_eq!(&*flows.set_by, "limits.flows, automatic");
        assert_eq!((buffers.used, buffers.capacity), (4, 16));
        assert_eq!((pipes.used, pipes.capacity, pipes.of.as_deref()), (0, 2, Some("worker 1")));
    }
}
