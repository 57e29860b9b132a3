//! Compares two configurations, key by key.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The configuration in force, as the admin API gives it.
#[derive(Debug, JsonSchema, Deserialize, Serialize)]
#[schemars(rename = "Config")]
pub struct Running {
    pub generation: u64,
    /// The long form, as [`config_sync::gateway::tree`] makes it.
    pub config: Value,
    pub sessions: Sessions,
}

/// The sessions and flows that live.
#[derive(Debug, Default, JsonSchema, Deserialize, Serialize)]
pub struct Sessions {
    /// By the name of the listener.
    pub listeners: BTreeMap<String, u64>,
    pub endpoints: Vec<OfEndpoint>,
}

/// The sessions and flows of one address of an endpoint.
#[derive(Debug, JsonSchema, Deserialize, Serialize)]
#[schemars(rename = "ConfigEndpoint")]
pub struct OfEndpoint {
    pub backend: String,
    pub endpoint: String,
    /// The endpoint's name in the configuration, which stands for all addresses of a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub sessions: u64,
}

/// What a candidate would change.
#[derive(Debug, Serialize)]
pub struct Diff {
    pub same: bool,
    pub changes: Vec<Change>,
    /// Sessions and flows that live on listeners that would go or move. They stay until they end.
    pub listener_sessions: u64,
    /// Sessions and flows that live on endpoints that would go. They stay until they end, unless
    /// `on_removed` of the backend closes them.
    pub endpoint_sessions: u64,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct Change {
    pub kind: Kind,
    pub name: String,
    pub change: How,
    /// Only of parts that stay. The keys that differ.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<Field>,
    /// The sessions and flows that live on this part, if it would go or move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u64>,
    /// The change takes effect after a restart.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub restart: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A key that belongs to no listener, route or backend.
    Setting,
    Listener,
    Route,
    Backend,
    Endpoint,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    Added,
    Removed,
    Changed,
}

/// A key that differs. Absent: the key has its default value there.
#[derive(Debug, PartialEq, Serialize)]
pub struct Field {
    pub field: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<Value>,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Self::Setting => "setting",
            Self::Listener => "listener",
            Self::Route => "route",
            Self::Backend => "backend",
            Self::Endpoint => "endpoint",
        }
    }
}

impl How {
    pub fn word(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Changed => "changed",
        }
    }
}

/// The keys of a listener that say where it listens. If one changes, the sockets change.
const PLACE: [&str; 4] = ["address", "addresses", "protocol", "interface"];

/// Keys that a reload does not change.
const FIXED: [&str; 11] = [
    "workers",
    "user",
    "sandbox",
    "limits",
    "admin.address",
    "admin.socket",
    "admin.token_file",
    "admin.cert",
    "admin.key",
    "admin.client_ca",
    "admin.overrides_file",
];

/// Keys of those tables that a reload changes.
const REREAD: [&str; 4] = [
    "limits.total_sessions",
    "limits.memory_percent",
    "limits.memory_readiness",
    "limits.readiness_percent",
];

pub fn diff(running: &Running, candidate: &Value) -> Diff {
    let (old, new) = (&running.config, candidate);
    let mut changes = settings(old, new);
    for (kind, key) in
        [(Kind::Listener, "listeners"), (Kind::Route, "routes"), (Kind::Backend, "backends")]
    {
        let (old, new) = (parts(old, key), parts(new, key));
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for name in names {
            let (old, new) = (old.get(name).copied(), new.get(name).copied());
            changes.extend(part(kind, name, (old, new), &running.sessions));
            if kind == Kind::Backend {
                changes.extend(endpoints(name, (old, new), &running.sessions));
            }
        }
    }
    let sum = |kind| {
        let of = changes.iter().filter(|change| change.kind == kind);
        of.filter_map(|change| change.sessions).sum()
    };
    Diff {
        same: changes.is_empty(),
        listener_sessions: sum(Kind::Listener),
        endpoint_sessions: sum(Kind::Endpoint),
        changes,
    }
}

/// The keys above listeners, routes and backends.
fn settings(old: &Value, new: &Value) -> Vec<Change> {
    let without = |tree: &Value| {
        let mut tree = tree.as_object().cloned().unwrap_or_default();
        tree.retain(|key, _| !["listeners", "routes", "backends"].contains(&key.as_str()));
        flat(&tree)
    };
    let is_fixed = |key: &str| {
        let begins = |fixed: &&str| key == *fixed || key.starts_with(&format!("{fixed}."));
        // A reload changes only `open` of the access log.
        FIXED.iter().any(begins) && !REREAD.contains(&key)
            || key.starts_with("access_log.")
                && key != "access_log.open"
                && !key.starts_with("access_log.sample")
    };
    let change = |field: Field| Change {
        kind: Kind::Setting,
        name: field.field.clone(),
        change: How::Changed,
        restart: is_fixed(&field.field),
        sessions: None,
        fields: vec![field],
    };
    fields(&without(old), &without(new)).into_iter().map(change).collect()
}

/// The keys of inline tables, with dots.
fn flat(table: &Map<String, Value>) -> Map<String, Value> {
    let mut found = Map::new();
    for (key, value) in table {
        match value {
            Value::Object(inner) => {
                let inner = flat(inner).into_iter();
                found.extend(inner.map(|(rest, value)| (format!("{key}.{rest}"), value)));
            }
            value => _ = found.insert(key.clone(), value.clone()),
        }
    }
    found
}

fn parts<'v>(tree: &'v Value, key: &str) -> BTreeMap<String, &'v Map<String, Value>> {
    let all = tree.get(key).and_then(Value::as_array).into_iter().flatten();
    let all = all.filter_map(Value::as_object);
    all.filter_map(|part| Some((part.get("name")?.as_str()?.to_owned(), part))).collect()
}

type Pair<'v> = (Option<&'v Map<String, Value>>, Option<&'v Map<String, Value>>);

fn part(kind: Kind, name: &str, pair: Pair<'_>, sessions: &Sessions) -> Option<Change> {
    let of_listener = || sessions.listeners.get(name).copied().unwrap_or(0);
    let (change, fields) = match pair {
        (None, _) => (How::Added, Vec::new()),
        (_, None) => (How::Removed, Vec::new()),
        (Some(old), Some(new)) => {
            let (mut old, mut new) = (flat(old), flat(new));
            // Endpoints have changes of their own.
            if kind == Kind::Backend {
                old.remove("endpoints");
                new.remove("endpoints");
            }
            (How::Changed, fields(&old, &new))
        }
    };
    if change == How::Changed && fields.is_empty() {
        return None;
    }
    let moves = fields.iter().any(|field| PLACE.contains(&field.field.as_str()));
    let leaves = kind == Kind::Listener && (change == How::Removed || moves);
    let sessions = leaves.then(of_listener);
    Some(Change { kind, name: name.to_owned(), change, fields, sessions, restart: false })
}

fn fields(old: &Map<String, Value>, new: &Map<String, Value>) -> Vec<Field> {
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let differing = keys.into_iter().filter(|key| old.get(*key) != new.get(*key));
    let field = |key: &String| Field {
        field: key.clone(),
        old: old.get(key).cloned(),
        new: new.get(key).cloned(),
    };
    differing.map(field).collect()
}

/// The endpoints of a backend that come, go or change. An endpoint is told by its address.
fn endpoints(backend: &str, (old, new): Pair<'_>, sessions: &Sessions) -> Vec<Change> {
    let all = |part: Option<&Map<String, Value>>| {
        let list = part.and_then(|part| part.get("endpoints")).and_then(Value::as_array);
        let mut found = BTreeMap::new();
        for endpoint in list.into_iter().flatten() {
            let (address, table) = match endpoint {
                Value::String(address) => (address.clone(), Map::new()),
                Value::Object(table) => {
                    let address = table.get("address").and_then(Value::as_str).unwrap_or_default();
                    let mut table = table.clone();
                    table.remove("address");
                    (address.to_owned(), table)
                }
                _ => continue,
            };
            found.insert(address, table);
        }
        found
    };
    let (old, new) = (all(old), all(new));
    let addresses: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let change = |address: &String| {
        let (change, fields) = match (old.get(address), new.get(address)) {
            (None, _) => (How::Added, Vec::new()),
            (_, None) => (How::Removed, Vec::new()),
            (Some(old), Some(new)) => (How::Changed, fields(old, new)),
        };
        if change == How::Changed && fields.is_empty() {
            return None;
        }
        let name = old.get(address).and_then(|table| table.get("name")).and_then(Value::as_str);
        let is_of = |of: &&OfEndpoint| {
            of.backend == backend
                && (of.endpoint == *address || name.is_some() && of.name.as_deref() == name)
        };
        let of = sessions.endpoints.iter().filter(is_of);
        let sessions = (change == How::Removed).then(|| of.map(|of| of.sessions).sum());
        let name = format!("{backend}/{address}");
        Some(Change { kind: Kind::Endpoint, name, change, fields, sessions, restart: false })
    };
    addresses.into_iter().filter_map(change).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn running(config: Value) -> Running {
        let of = |backend: &str, endpoint: &str, name: Option<&str>, sessions| OfEndpoint {
            backend: backend.to_owned(),
            endpoint: endpoint.to_owned(),
            name: name.map(str::to_owned),
            sessions,
        };
        Running {
            generation: 3,
            config,
            sessions: Sessions {
                listeners: [("a".to_owned(), 7), ("b".to_owned(), 2)].into(),
                endpoints: vec![
                    of("x", "10.0.0.1:80", None, 4),
                    of("x", "10.0.0.9:80", Some("db"), 3),
                    of("y", "10.0.0.1:80", None, 9),
                ],
            },
        }
    }

    fn before() -> Value {
        json!({
            "drain_timeout": "30s",
            "limits": { "sessions": 100 },
            "listeners": [
                { "name": "a", "protocol": "TCP", "address": "127.0.0.1:1" },
                { "name": "b", "protocol": "TCP", "address": "127.0.0.1:2", "idle_timeout": "1m" },
            ],
            "routes": [{ "name": "a", "listeners": ["a"], "backends": ["x"] }],
            "backends": [{
                "name": "x",
                "endpoints": [
                    "10.0.0.1:80",
                    { "address": "10.0.0.2:80", "weight": 2 },
                    { "address": "db.internal:80", "name": "db" },
                ],
                "health_check": { "interval": "5s" },
            }],
        })
    }

    #[test]
    fn equal_configurations_have_no_difference() {
        let diff = diff(&running(before()), &before());
        assert!(diff.same && diff.changes.is_empty());
        assert_eq!((diff.listener_sessions, diff.endpoint_sessions), (0, 0));
    }

    #[test]
    fn what_comes_goes_and_changes_is_named_with_old_and_new_values() {
        let after = json!({
            "drain_timeout": "10s",
            "limits": { "sessions": 200 },
            "listeners": [
                { "name": "b", "protocol": "TCP", "address": "127.0.0.1:3" },
                { "name": "c", "protocol": "UDP", "address": "127.0.0.1:2" },
            ],
            "routes": [{ "name": "a", "listeners": ["b"], "backends": ["x"] }],
            "backends": [{
                "name": "x",
                "endpoints": [{ "address": "10.0.0.2:80", "weight": 5 }, "10.0.0.3:80"],
                "health_check": { "interval": "9s" },
            }],
        });
        let diff = diff(&running(before()), &after);
        let lines: Vec<String> = diff
            .changes
            .iter()
            .map(|of| {
                let fields = of.fields.iter().map(|field| {
                    let value = |of: &Option<Value>| {
                        of.as_ref().map_or_else(|| "-".into(), Value::to_string)
                    };
                    format!(" {} {} {}", field.field, value(&field.old), value(&field.new))
                });
                let sessions = of.sessions.map(|sessions| format!(" ({sessions})"));
                let fields = fields.collect::<String>();
                let (kind, how, restart) = (of.kind.word(), of.change.word(), of.restart);
                let restart = if restart { " restart" } else { "" };
                let sessions = sessions.unwrap_or_default();
                format!("{kind} {} {how}{fields}{sessions}{restart}", of.name)
            })
            .collect();
        assert_eq!(
            lines,
            [
                "setting drain_timeout changed drain_timeout \"30s\" \"10s\"",
                "setting limits.sessions changed limits.sessions 100 200 restart",
                "listener a removed (7)",
                "listener b changed address \"127.0.0.1:2\" \"127.0.0.1:3\" \
                 idle_timeout \"1m\" - (2)",
                "listener c added",
                "route a changed listeners [\"a\"] [\"b\"]",
                "backend x changed health_check.interval \"5s\" \"9s\"",
                "endpoint x/10.0.0.1:80 removed (4)",
                "endpoint x/10.0.0.2:80 changed weight 2 5",
                "endpoint x/10.0.0.3:80 added",
                "endpoint x/db.internal:80 removed (3)",
            ]
        );
        assert_eq!((diff.listener_sessions, diff.endpoint_sessions), (9, 7));
        assert!(!diff.same);
    }
}
