//! Lists the backends, the worst first: how many endpoints they have, how these fare, and what the
//! backends have had to do.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::State;
use axum::http::Method;
use axum::response::Response;
use config_sync::model::backend::Backend;
use config_sync::sync::overrides::{self, Shown};
use config_sync::table::routing;
use schemars::JsonSchema;
use serde::Serialize;

use crate::control::admin::api::document::Operation;
use crate::control::admin::api::{Api, Fault, Parts};
use crate::control::shown::balance;

pub fn operations() -> Vec<Operation> {
    vec![
        Operation::new(Method::GET, "/backends", backends, "Lists the backends, the worst first")
            .answers::<Backends>(),
    ]
}

#[derive(JsonSchema, Serialize)]
struct Backends {
    backends: Vec<Row>,
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "Backend")]
pub struct Row {
    backend: String,
    state: Condition,
    /// The worst that is known of the endpoints. Absent: nothing is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    news: Option<String>,
    /// Absent: the backend has left the configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    balance: Option<&'static str>,
    /// Whether health checks are made.
    checked: bool,
    /// Endpoints with an address.
    endpoints: usize,
    /// Endpoints that are neither down, nor ejected, nor disabled.
    healthy: usize,
    /// Endpoints that get new sessions or flows.
    taking: usize,
    routes: Vec<String>,
    #[serde(flatten)]
    counted: Counted,
    /// Sessions that wait for a place, and the most that may. Absent: the backend has no queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<u32>,
}

/// Sums over the endpoints. All but `sessions` are totals since the start, of endpoints that have
/// left within the last ten minutes too.
#[derive(Clone, Copy, Default, JsonSchema, Serialize)]
struct Counted {
    /// Live sessions or flows.
    sessions: u64,
    opened: u64,
    connect_failures: u64,
    /// Resets by endpoints.
    resets: u64,
    bytes_up: u64,
    bytes_down: u64,
}

/// The worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize)]
#[schemars(rename = "BackendState")]
#[serde(rename_all = "snake_case")]
enum Condition {
    /// No endpoint takes new sessions.
    NoEndpoint,
    /// Some endpoints are not healthy.
    Degraded,
    Up,
    /// The backend has left the configuration, and still has sessions.
    Removed,
}

async fn backends(State(api): State<Api>) -> Result<Response, Fault> {
    let parts = api.parts().await?;
    api.answer(move |api| Backends { backends: rows(api, &parts) }).await
}

pub fn rows(api: &Api, parts: &Parts) -> Vec<Row> {
    let Parts { in_force, table, endpoints, names, .. } = parts;
    let mut shown: BTreeMap<&str, Vec<&Shown>> = BTreeMap::new();
    for endpoint in endpoints {
        shown.entry(&endpoint.backend).or_default().push(endpoint);
    }
    let compiled: BTreeMap<&str, &routing::Backend> =
        table.backends.iter().map(|backend| (&*backend.name, backend)).collect();
    let mut led: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for route in &in_force.config.routes {
        for share in &route.backends {
            led.entry(&share.name.value).or_default().insert(&route.name.value);
        }
    }
    let mut counted: BTreeMap<&str, Counted> = BTreeMap::new();
    for (id, backend, _) in names.endpoints() {
        let sums = counted.entry(backend).or_default();
        for of in api.board.workers().iter().map(|worker| worker.endpoint(id)) {
            sums.sessions += of.live();
            sums.opened += of.opened.get();
            sums.connect_failures += of.connect_failures.get();
            sums.resets += of.resets.get();
            sums.bytes_up += of.bytes_up.get();
            sums.bytes_down += of.bytes_down.get();
        }
    }
    let backends = in_force.config.backends.iter().map(|asked| {
        let name = asked.name.value.as_str();
        let compiled = compiled.get(name).copied();
        let of = (shown.get(name).map_or(&[][..], Vec::as_slice), compiled);
        Row {
            routes: led.remove(name).into_iter().flatten().map(str::to_owned).collect(),
            counted: counted.remove(name).unwrap_or_default(),
            ..row(asked, of)
        }
    });
    let mut rows: Vec<_> = backends.collect();
    let left = counted.into_iter().filter(|(_, of)| of.sessions > 0);
    rows.extend(left.map(|(name, counted)| Row { counted, ..removed(name) }));
    rows.sort_by_key(worst);
    rows
}

/// Backends with a smaller value come first.
fn worst(row: &Row) -> (Condition, std::cmp::Reverse<usize>) {
    (row.state, std::cmp::Reverse(row.endpoints - row.healthy))
}

fn removed(name: &str) -> Row {
    Row {
        backend: name.to_owned(),
        state: Condition::Removed,
        news: Some("it has left the configuration".to_owned()),
        balance: None,
        checked: false,
        endpoints: 0,
        healthy: 0,
        taking: 0,
        routes: Vec::new(),
        counted: Counted::default(),
        waiting: None,
        queue: None,
    }
}

fn row(asked: &Backend, (shown, compiled): (&[&Shown], Option<&routing::Backend>)) -> Row {
    let healthy = shown.iter().filter(|of| is_healthy(of.state)).count();
    let taking = shown.iter().filter(|of| of.in_force > 0.0).count();
    let queue = compiled.and_then(|backend| backend.queue.as_ref());
    Row {
        backend: asked.name.value.clone(),
        state: match () {
            () if taking == 0 => Condition::NoEndpoint,
            () if healthy < shown.len() => Condition::Degraded,
            () => Condition::Up,
        },
        news: news(asked, shown, taking),
        balance: compiled.map(|backend| balance(&backend.balance)),
        checked: asked.health_check.is_some(),
        endpoints: shown.len(),
        healthy,
        taking,
        waiting: queue.map(|queue| queue.line.waiting()),
        queue: queue.map(|queue| queue.most),
        ..removed("")
    }
}

fn is_healthy(state: overrides::State) -> bool {
    use overrides::State::{Backup, Disabled, Down, Drained, Draining, Ejected, Up};
    match state {
        Disabled | Down | Ejected => false,
        Drained | Draining | Backup | Up => true,
    }
}

/// The states that are news, the worst first.
const NEWS: [overrides::State; 5] = [
    overrides::State::Down,
    overrides::State::Ejected,
    overrides::State::Disabled,
    overrides::State::Drained,
    overrides::State::Draining,
];

fn news(asked: &Backend, shown: &[&Shown], taking: usize) -> Option<String> {
    if shown.is_empty() {
        return Some(match asked.endpoints.is_empty() {
            true => "it has no endpoints".to_owned(),
            false => "no name of its endpoints has an address".to_owned(),
        });
    }
    let in_state = |state| shown.iter().filter(move |of| of.state == state);
    let found = NEWS.into_iter().find_map(|state| {
        let first = in_state(state).next()?;
        let why = first.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let (count, all, word) = (in_state(state).count(), shown.len(), state.word());
        Some(format!("{count} of {all} {word}: {}{why}", first.address))
    });
    let weightless = || (taking == 0).then(|| "every endpoint has weight 0".to_owned());
    found.or_else(weightless)
}

#[cfg(test)]
mod tests {
    use config_sync::check::parse;
    use config_sync::sync::overrides::State::{Disabled, Down, Drained, Up};
    use config_sync::table::routing::EndpointId;

    use super::*;

    fn of(states: &[(overrides::State, f64, Option<&str>)]) -> Row {
        let text = "[[backends]]\nname = \"web\"\nendpoints = [\"10.0.0.1:80\"]\n";
        let config = parse("test", text).expect("a configuration");
        let shown = (1..).zip(states).map(|(at, (state, in_force, why))| Shown {
            id: EndpointId(at),
            backend: "web".into(),
            address: std::net::SocketAddr::from(([10, 0, 0, 1], 80)).into(),
            name: None,
            configured: 1,
            in_force: *in_force,
            state: *state,
            why: why.map(str::to_owned),
        });
        let shown: Vec<_> = shown.collect();
        row(&config.backends[0], (&shown.iter().collect::<Vec<_>>(), None))
    }

    #[test]
    fn the_worst_news_of_a_backend_counts() {
        let up = (Up, 1.0, None);
        let said = |row: &Row| (row.state, row.healthy, row.taking, row.news.clone());
        assert_eq!(said(&of(&[up, up])), (Condition::Up, 2, 2, None));
        let down = (Down, 0.0, Some("connection refused"));
        let row = of(&[(Drained, 0.0, None), up, down, down]);
        let news = "2 of 4 down: 10.0.0.1:80: connection refused".to_owned();
        assert_eq!(said(&row), (Condition::Degraded, 2, 1, Some(news)));
        let row = of(&[(Drained, 0.0, None), (Disabled, 0.0, None)]);
        let news = "1 of 2 disabled: 10.0.0.1:80".to_owned();
        assert_eq!(said(&row), (Condition::NoEndpoint, 1, 0, Some(news)));
        let row = of(&[(Up, 0.0, None)]);
        let news = "every endpoint has weight 0".to_owned();
        assert_eq!(said(&row), (Condition::NoEndpoint, 1, 0, Some(news)));
        let news = "no name of its endpoints has an address".to_owned();
        assert_eq!(said(&of(&[])), (Condition::NoEndpoint, 0, 0, Some(news)));
    }

    #[test]
    fn the_worst_backend_comes_first() {
        let (up, down) = ((Up, 1.0, None), (Down, 0.0, None));
        let mut rows = [of(&[up]), of(&[up, down]), of(&[down]), of(&[up, down, down])];
        rows.sort_by_key(worst);
        let order: Vec<_> = rows.iter().map(|row| (row.taking, row.healthy)).collect();
        assert_eq!(order, [(0, 0), (1, 1), (1, 1), (1, 1)]);
        assert_eq!(rows.iter().map(|row| row.endpoints).collect::<Vec<_>>(), [1, 3, 2, 1]);
    }
}
