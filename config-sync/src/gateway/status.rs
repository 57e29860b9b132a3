//! Statuses: what is wanted of each object, and how that goes into what is already there.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::objects::GROUP;

/// What became of the configuration of a translation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is not in force yet: nothing is programmed.
    Pending,
    /// The data plane serves it.
    Applied,
    /// The data plane serves it but for these listeners of the [`Config`], by name: why each could
    /// not be opened. Under the empty name stands why it serves nothing of it at all.
    ///
    /// [`Config`]: crate::config::Config
    Failed(BTreeMap<String, String>),
}

/// The whole status that one object should have, as far as it is ours to say.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusOf {
    pub kind: Kind,
    /// `None`: the kind has no namespaces.
    pub namespace: Option<String>,
    pub name: String,
    pub uid: Option<String>,
    /// What `observedGeneration` says.
    pub generation: i64,
    /// The controller whose parts these are.
    pub controller: Arc<str>,
    /// Conditions in here have no `lastTransitionTime` yet: [`merge`] gives it.
    pub status: Value,
}

/// The kinds of which we write a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    GatewayClass,
    Gateway,
    ListenerSet,
    TcpRoute,
    UdpRoute,
    TlsRoute,
    HttpRoute,
    BackendTlsPolicy,
    L4Policy,
}

impl Kind {
    /// As in `kind:` of an object.
    pub fn name(self) -> &'static str {
        match self {
            Self::GatewayClass => "GatewayClass",
            Self::Gateway => "Gateway",
            Self::ListenerSet => "ListenerSet",
            Self::TcpRoute => "TCPRoute",
            Self::UdpRoute => "UDPRoute",
            Self::TlsRoute => "TLSRoute",
            Self::HttpRoute => "HTTPRoute",
            Self::BackendTlsPolicy => "BackendTLSPolicy",
            Self::L4Policy => "L4Policy",
        }
    }

    pub fn group(self) -> &'static str {
        if self == Self::L4Policy { super::policy::GROUP } else { GROUP }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The status to write: what is wanted, and of what exists everything that is not ours. `None`: it
/// is there already, or a newer generation has been observed, and nothing is to be written.
///
/// `now` is RFC 3339 in UTC, such as `2026-01-31T12:00:00Z`. A condition whose `status` has not
/// changed keeps the time of its last transition.
pub fn merge(existing: Option<&Value>, wanted: &StatusOf, now: &str) -> Option<Value> {
    let nothing = Value::Object(Map::new());
    let before = existing.filter(|status| status.is_object()).unwrap_or(&nothing);
    let mut after = before.clone();
    for (field, value) in wanted.status.as_object()? {
        let old = before.get(field);
        let new = match field.as_str() {
            "conditions" => conditions(old, value, now)?,
            "parents" => ours(old, value, wanted, "parentRef", now)?,
            "ancestors" => ours(old, value, wanted, "ancestorRef", now)?,
            "listeners" => entries(old, value, now)?,
            _ => value.clone(),
        };
        after[field] = new;
    }
    (after != *before).then_some(after)
}

/// Conditions of other types stay as they are. `None`: one of ours has been observed at a newer
/// generation already.
fn conditions(old: Option<&Value>, wanted: &Value, now: &str) -> Option<Value> {
    let wanted = list(Some(wanted));
    let kind = |condition: &Value| condition.get("type").cloned();
    let generation = |condition: &Value| condition.get("observedGeneration")?.as_i64();
    let mut all = Vec::new();
    for condition in list(old) {
        match wanted.iter().find(|wanted| kind(wanted) == kind(condition)) {
            Some(new) if generation(condition) > generation(new) => return None,
            Some(new) => all.push(timed(Some(condition), new, now)),
            None if OURS_ALONE.contains(&condition["type"].as_str().unwrap_or_default()) => {}
            None => all.push(condition.clone()),
        }
    }
    for new in wanted {
        if !all.iter().any(|condition| kind(condition) == kind(new)) {
            all.push(timed(None, new, now));
        }
    }
    Some(Value::Array(all))
}

/// Conditions that are there only while they hold: when they are not wanted any more, they go.
const OURS_ALONE: [&str; 4] = ["Conflicted", "ResolvedRefs", "PartiallyInvalid", super::SUPERSEDED];

fn timed(old: Option<&Value>, new: &Value, now: &str) -> Value {
    let same = old.filter(|old| old.get("status") == new.get("status"));
    let since = same.and_then(|old| old.get("lastTransitionTime")?.as_str()).unwrap_or(now);
    let mut new = new.clone();
    new["lastTransitionTime"] = since.into();
    new
}

/// Entries of parents[] or ancestors[]: others' first, as they are, then all of ours.
fn ours(
    old: Option<&Value>,
    wanted: &Value,
    of: &StatusOf,
    reference: &str,
    now: &str,
) -> Option<Value> {
    let is_ours = |entry: &Value| entry["controllerName"] == *of.controller;
    let mut all: Vec<_> = list(old).iter().filter(|entry| !is_ours(entry)).cloned().collect();
    for new in list(Some(wanted)) {
        let mut own = list(old).iter().filter(|entry| is_ours(entry));
        let same = own.find(|entry| entry.get(reference) == new.get(reference));
        all.push(with_conditions(same, new, now)?);
    }
    Some(Value::Array(all))
}

/// Entries of listeners[], all of which are ours.
fn entries(old: Option<&Value>, wanted: &Value, now: &str) -> Option<Value> {
    let entry = |new: &Value| {
        let same = list(old).iter().find(|entry| entry.get("name") == new.get("name"));
        with_conditions(same, new, now)
    };
    list(Some(wanted)).iter().map(entry).collect::<Option<Vec<_>>>().map(Value::Array)
}

fn with_conditions(old: Option<&Value>, new: &Value, now: &str) -> Option<Value> {
    let mut entry = new.clone();
    entry["conditions"] =
        conditions(old.and_then(|old| old.get("conditions")), &new["conditions"], now)?;
    Some(entry)
}

fn list(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
