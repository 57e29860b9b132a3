//! Lists sessions and flows, and closes them.

use std::fmt;
use std::net::SocketAddr;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use config_sync::compile::names::Names;
use config_sync::table::request::Of;
use schemars::JsonSchema;
use serde::Serialize;

use crate::control::admin::api::document::Operation;
use crate::control::admin::api::order::{First, Key};
use crate::control::admin::api::{Api, Fault};
use crate::control::admin::calls::{Answer, Asked, Column, Refusal, Words};
use crate::control::id::{Id, Run};
use crate::control::shown::{Shown, protocol};
use crate::control::tcp::{Tcp, slow};
use crate::control::timestamp::WallClock;
use crate::control::tls_fields::TlsFields;
use crate::stats::records::Entry;
use crate::wire::tcp_info;

/// The entries of a page, if the caller does not say how many, and the most.
const PAGE: u32 = 1_000;
const MOST: u32 = 5_000;

pub fn operations() -> Vec<Operation> {
    let mut all = vec![
        Operation::new(Method::GET, "/sessions", sessions, "Lists sessions")
            .query::<Words>()
            .answers::<Page>(),
        Operation::new(
            Method::DELETE,
            "/sessions",
            kill_sessions,
            "Closes all sessions that match; one filter is needed",
        )
        .query::<Words>()
        .answers::<Killed>(),
        Operation::new(Method::GET, "/flows", flows, "Lists flows")
            .query::<Words>()
            .answers::<Page>(),
        Operation::new(
            Method::DELETE,
            "/flows",
            kill_flows,
            "Closes all flows that match; one filter is needed",
        )
        .query::<Words>()
        .answers::<Killed>(),
    ];
    for path in ["/session/{id}", "/sessions/{id}", "/flows/{id}"] {
        all.push(
            Operation::new(Method::GET, path, one, "Gives one session or flow").answers::<One>(),
        );
        all.push(
            Operation::new(Method::DELETE, path, kill, "Closes one session or flow")
                .answers::<Killed>(),
        );
    }
    all
}

/// One page of a list. A list visits each session once: none that lives all the while is missing,
/// and none comes twice. A sorted list compares what each session had when it was visited.
#[derive(Default, JsonSchema, Serialize)]
#[schemars(rename = "SessionPage")]
struct Page {
    #[serde(skip_serializing_if = "Option::is_none")]
    sessions: Option<Vec<Row>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flows: Option<Vec<Row>>,
    /// The `cursor` of the next page. Absent: the list is at its end, or it is sorted.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// Of a sorted list: how many match. The page has the first of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    matched: Option<u64>,
}

/// A session or flow. The names are those of the access log.
#[derive(Debug, JsonSchema, Serialize)]
#[schemars(rename = "Session")]
struct Row {
    #[schemars(with = "String")]
    id: Id,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    listener: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint_name: Option<String>,
    client: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    local: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_name: Option<String>,
    #[serde(flatten)]
    tls: Option<TlsFields<'static>>,
    state: &'static str,
    opened: String,
    age_ms: u64,
    idle_ms: u64,
    bytes_up: u64,
    bytes_down: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    connect_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unique_id: Option<String>,
    worker: usize,
}

/// A session or flow, and how its connections fare.
#[derive(Debug, JsonSchema, Serialize)]
#[schemars(rename = "SessionDetail")]
struct One {
    #[serde(flatten)]
    row: Row,
    /// Absent for flows and for Unix sockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    client_tcp: Option<Tcp>,
    /// Absent as long as there is no connection to an endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint_tcp: Option<Tcp>,
    /// Which side is slow, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    slow: Option<String>,
}

/// What a kill has done.
#[derive(JsonSchema, Serialize)]
struct Killed {
    killed: u64,
}

/// A place in a list: the worker, and the slot there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    worker: usize,
    slot: u32,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.worker, self.slot)
    }
}

type Asks = Result<Query<Words>, QueryRejection>;

async fn sessions(State(api): State<Api>, query: Asks) -> Result<Response, Fault> {
    let (rows, rest) = list(&api, Of::Sessions, query?.0).await?;
    api.answer(move |_| Page { sessions: Some(rows), ..rest }).await
}

async fn flows(State(api): State<Api>, query: Asks) -> Result<Response, Fault> {
    let (rows, rest) = list(&api, Of::Flows, query?.0).await?;
    api.answer(move |_| Page { flows: Some(rows), ..rest }).await
}

/// The rows of a page, and the rest of the page.
async fn list(api: &Api, of: Of, words: Words) -> Result<(Vec<Row>, Page), Fault> {
    let (most, at) = page(&words, api.board.workers().len())?;
    if let Some(column) = words.sort {
        let (rows, matched) = sorted(api, (of, words), column, most).await?;
        return Ok((rows, Page { matched: Some(matched), ..Page::default() }));
    }
    let (rows, next) = in_order_of_slots(api, (of, words), most, at).await?;
    Ok((rows, Page { next, ..Page::default() }))
}

/// Asks one worker after the other for all that match, and keeps the first rows of the order.
async fn sorted(
    api: &Api,
    (of, words): (Of, Words),
    column: Column,
    most: u32,
) -> Result<(Vec<Row>, u64), Fault> {
    let mut first = First::new(most as usize, words.reverse == Some(true));
    for worker in 0..api.board.workers().len() {
        let mut from = Some(0);
        while let Some(slot) = from {
            let asked = Asked::List { worker, of, words: words.clone(), from: slot, most: PAGE };
            let Answer { reply, names, wall, run } = api.caller.ask(asked).await?;
            from = reply.next;
            for entry in &reply.entries {
                let key = key(entry, worker, &names, column);
                first.show(key, || row(entry, worker, run, &names, wall));
            }
        }
    }
    Ok(first.end())
}

/// Asks one worker after the other, until the page is full.
async fn in_order_of_slots(
    api: &Api,
    (of, words): (Of, Words),
    most: u32,
    mut at: Cursor,
) -> Result<(Vec<Row>, Option<String>), Fault> {
    let workers = api.board.workers().len();
    let mut rows = Vec::new();
    loop {
        let left = most - u32::try_from(rows.len()).unwrap_or(most);
        let Cursor { worker, slot } = at;
        let asked = Asked::List { worker, of, words: words.clone(), from: slot, most: left };
        let Answer { reply, names, wall, run } = api.caller.ask(asked).await?;
        rows.extend(reply.entries.iter().map(|entry| row(entry, worker, run, &names, wall)));
        at = match reply.next {
            Some(slot) => Cursor { worker, slot },
            None => Cursor { worker: worker + 1, slot: 0 },
        };
        if at.worker >= workers {
            return Ok((rows, None));
        }
        if rows.len() >= most as usize {
            return Ok((rows, Some(at.to_string())));
        }
    }
}

/// The entries of the page that is asked for, and its beginning.
pub(super) fn page(words: &Words, workers: usize) -> Result<(u32, Cursor), Fault> {
    let most = match words.limit {
        None => PAGE,
        Some(0) => return Err(Fault::bad("limit: at least 1")),
        Some(limit) if limit > MOST => {
            return Err(Fault::bad(format!("limit: {MOST} at the most")));
        }
        Some(limit) => limit,
    };
    if words.sort.is_some() && words.cursor.is_some() {
        return Err(Fault::bad("cursor: a sorted list is one page; limit says how long it is"));
    }
    if words.sort.is_none() && words.reverse.is_some() {
        return Err(Fault::bad("reverse: only with sort"));
    }
    let at = match &words.cursor {
        None => Cursor { worker: 0, slot: 0 },
        Some(text) => cursor(text)
            .filter(|cursor| cursor.worker < workers)
            .ok_or_else(|| Fault::bad("cursor: not the `next` of a page of this gateway"))?,
    };
    Ok((most, at))
}

async fn one(
    State(api): State<Api>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<One>, Fault> {
    let id: Id = id?.0.parse().map_err(Fault::bad)?;
    let Id { worker, handle, run } = id;
    let asked = api.caller.ask(Asked::Inspect { worker, handle, run }).await;
    let Answer { reply, names, wall, run } = match asked {
        // Whatever an earlier run or a worker that is not there had, has ended.
        Err(Refusal::Unknown(_)) => return Err(gone(id)),
        answer => answer?,
    };
    let entry = reply.entries.first().ok_or_else(|| gone(id))?;
    let [client, endpoint] = reply.sides.map(|side| tcp_info::read(&side?));
    Ok(Json(One {
        row: row(entry, worker, run, &names, wall),
        slow: client.map(|client| slow(&client, endpoint.as_ref())),
        client_tcp: client.map(Tcp::from),
        endpoint_tcp: endpoint.map(Tcp::from),
    }))
}

async fn kill(
    State(api): State<Api>,
    headers: HeaderMap,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Killed>, Fault> {
    api.may_change(&headers).await?;
    let id: Id = id?.0.parse().map_err(Fault::bad)?;
    let Id { worker, handle, run } = id;
    let answer = api.caller.ask(Asked::Kill { worker, handle, run }).await?;
    match answer.reply.killed {
        0 => Err(gone(id)),
        killed => {
            tracing::info!("{id} is killed by an operator");
            Ok(Json(Killed { killed: killed.into() }))
        }
    }
}

async fn kill_sessions(
    State(api): State<Api>,
    headers: HeaderMap,
    query: Asks,
) -> Result<Json<Killed>, Fault> {
    kill_all(&api, &headers, Of::Sessions, query?.0).await
}

async fn kill_flows(
    State(api): State<Api>,
    headers: HeaderMap,
    query: Asks,
) -> Result<Json<Killed>, Fault> {
    kill_all(&api, &headers, Of::Flows, query?.0).await
}

async fn kill_all(
    api: &Api,
    headers: &HeaderMap,
    of: Of,
    words: Words,
) -> Result<Json<Killed>, Fault> {
    api.may_change(headers).await?;
    says_which(&words)?;
    let mut killed = 0;
    for worker in 0..api.board.workers().len() {
        let asked = Asked::KillAll { worker, of, words: words.clone() };
        killed += u64::from(api.caller.ask(asked).await?.reply.killed);
    }
    tracing::info!("{killed} are killed by an operator: {}", words.said());
    Ok(Json(Killed { killed }))
}

/// A kill of several has to name some.
pub(super) fn says_which(words: &Words) -> Result<(), Fault> {
    let Words { limit, cursor, sort, reverse, .. } = words;
    if limit.is_some() || cursor.is_some() || sort.is_some() || reverse.is_some() {
        return Err(Fault::bad(
            "limit, cursor, sort and reverse are for lists; a kill is for all that match",
        ));
    }
    if *words == Words::default() {
        return Err(Fault::bad(
            "say which: listener, route, backend, endpoint, client, server_name, state, or the \
             least or most age, idle time or bytes",
        ));
    }
    Ok(())
}

fn gone(id: Id) -> Fault {
    Fault::new(StatusCode::NOT_FOUND, format!("{id} has ended, or has never been"))
}

pub(super) fn cursor(text: &str) -> Option<Cursor> {
    let (worker, slot) = text.split_once('.')?;
    Some(Cursor { worker: worker.parse().ok()?, slot: slot.parse().ok()? })
}

/// What an entry is sorted by. `None`: the entry has no such field.
fn key(entry: &Entry, worker: usize, names: &Names, column: Column) -> Option<Key> {
    let Entry { handle, record, state, last } = entry;
    // Workers are looked at one after the other, so points in time are compared, and not the times
    // that have passed since. The earliest point is the longest time.
    let since = |then: u64| Key::Number(u64::MAX - then);
    let address = |of: SocketAddr| Key::Address(of.ip(), of.port());
    match column {
        // The order of the list that is not sorted.
        Column::Id => Some(Key::Slot(worker, handle.slot)),
        Column::Protocol => Some(Key::text(protocol(record.protocol))),
        Column::Listener => record.listener.and_then(|id| names.listener(id)).map(Key::text),
        Column::Route => record.route.and_then(|id| names.route(id)).map(Key::text),
        Column::Backend => record.backend.and_then(|id| names.backend(id)).map(Key::text),
        Column::Endpoint => {
            let endpoint = record.endpoint.and_then(|id| names.endpoint(id));
            endpoint.map(|(_, at)| at.socket_address().map_or_else(|| Key::text(at), address))
        }
        Column::EndpointName => {
            record.endpoint.and_then(|id| names.endpoint_name(id)).map(Key::text)
        }
        Column::Client => Some(address(record.client)),
        Column::Peer => record.peer.map(address),
        Column::Local => Some(address(record.local)),
        Column::ServerName => record.server_name.as_deref().map(Key::text),
        Column::State => Some(Key::text(state)),
        Column::AgeMs => Some(since(record.opened)),
        Column::IdleMs => Some(since(*last)),
        Column::BytesUp => Some(Key::Number(record.bytes_up)),
        Column::BytesDown => Some(Key::Number(record.bytes_down)),
        Column::Bytes => Some(Key::Number(record.bytes_up + record.bytes_down)),
        Column::ConnectMs => record.connect.map(|micros| Key::Number(micros.into())),
        Column::Worker => Some(Key::Number(worker as u64)),
    }
}

fn row(entry: &Entry, worker: usize, run: Run, names: &Names, wall: WallClock) -> Row {
    let Entry { handle, record, state, last } = entry;
    let owned = |name: Option<&str>| name.map(str::to_owned);
    let endpoint = record.endpoint.and_then(|id| names.endpoint(id));
    let since = |then: u64| record.closed.saturating_sub(then) / 1_000;
    let local = match Shown::from(record.local) {
        Shown::Unix(_) => Shown::Unix(names.socket(record.socket).map(|at| &at.address)),
        local => local,
    };
    Row {
        id: Id { worker, handle: *handle, run },
        protocol: protocol(record.protocol),
        listener: owned(record.listener.and_then(|id| names.listener(id))),
        route: owned(record.route.and_then(|id| names.route(id))),
        backend: owned(record.backend.and_then(|id| names.backend(id))),
        endpoint: endpoint.map(|(_, address)| address.to_string()),
        endpoint_name: owned(record.endpoint.and_then(|id| names.endpoint_name(id))),
        client: Shown::from(record.client).to_string(),
        peer: record.peer.map(|peer| Shown::from(peer).to_string()),
        local: local.to_string(),
        server_name: owned(record.server_name.as_deref()),
        tls: record.tls.as_deref().map(|tls| TlsFields::of(tls).into_owned()),
        state,
        opened: wall.at(record.opened).to_string(),
        age_ms: since(record.opened),
        idle_ms: since(*last),
        bytes_up: record.bytes_up,
        bytes_down: record.bytes_down,
        connect_ms: record.connect.map(|micros| f64::from(micros) / 1_000.0),
        unique_id: record.unique_id.map(|id| format!("{id:032x}")),
        worker,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_a_worker_and_a_slot() {
        assert_eq!(cursor("3.70000"), Some(Cursor { worker: 3, slot: 70_000 }));
        let wrong = ["", "3", ".", "3.", "x.1", "1.x", "1.2.3", "-1.2", "1.99999999999"];
        assert!(wrong.iter().all(|text| cursor(text).is_none()));
    }
}
