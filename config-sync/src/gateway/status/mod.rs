//! Statuses: the wanted status of each object, and how it is merged into the existing status.

pub(super) mod promise;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use kube::Resource as _;
use serde_json::{Map, Value};

use crate::gateway::objects::{GROUP, X_GROUP};

/// The condition of a TCPRoute or UDPRoute that is accepted and gets no traffic, because an older
/// route has its listeners.
pub const SUPERSEDED: &str = "ringway.dev/Superseded";

/// The result of putting a translation's configuration in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The configuration is not in force yet, so nothing is programmed.
    Pending,
    /// The data plane serves the configuration.
    Applied,
    /// The data plane serves the configuration without these listeners of the [`Config`]. Each
    /// listener's name has the reason why the listener could not be opened. The empty name has the
    /// reason why nothing of the configuration is served.
    ///
    /// [`Config`]: crate::model::config::Config
    Failed(BTreeMap<String, String>),
}

/// The whole status that one object should have, as far as Ringway writes it.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusOf {
    pub kind: Kind,
    /// `None`: the kind has no namespaces.
    pub namespace: Option<String>,
    pub name: String,
    pub uid: Option<String>,
    /// The value of `observedGeneration`.
    pub generation: i64,
    /// The controller that owns these parts.
    pub controller: Arc<str>,
    /// The conditions have no `lastTransitionTime` yet. [`merge`] adds the time.
    pub status: Value,
}

/// The kinds with a status that Ringway writes.
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
    XBackend,
}

impl Kind {
    pub const ALL: [Self; 10] = [
        Self::GatewayClass,
        Self::Gateway,
        Self::ListenerSet,
        Self::TcpRoute,
        Self::UdpRoute,
        Self::TlsRoute,
        Self::HttpRoute,
        Self::BackendTlsPolicy,
        Self::L4Policy,
        Self::XBackend,
    ];

    /// The word in `kind:` of an object.
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
            Self::XBackend => "XBackend",
        }
    }

    pub fn group(self) -> &'static str {
        match self {
            Self::L4Policy => crate::gateway::objects::policy::GROUP,
            Self::XBackend => X_GROUP,
            _ => GROUP,
        }
    }

    /// The text in `apiVersion:` of an object: the version that is stored.
    pub fn api_version(self) -> String {
        match self {
            Self::L4Policy => {
                crate::gateway::objects::policy::L4Policy::api_version(&()).into_owned()
            }
            Self::XBackend => format!("{X_GROUP}/v1alpha1"),
            _ => format!("{GROUP}/v1"),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The status to write: the wanted parts, and all existing parts of other controllers. `None`:
/// there is nothing to write, because the object has this status already, or a newer generation has
/// been observed.
///
/// `now` is RFC 3339 in UTC, such as `2026-01-31T12:00:00Z`. A condition with an unchanged `status`
/// keeps the time of its last transition.
pub fn merge(existing: Option<&Value>, wanted: &StatusOf, now: &str) -> Option<Value> {
    let nothing = Value::Object(Map::new());
    let before = existing.filter(|status| status.is_object()).unwrap_or(&nothing);
    let mut after = before.clone();
    for (field, value) in wanted.status.as_object()? {
        let old = before.get(field);
        let new = match field.as_str() {
            "conditions" => conditions(old, value, now)?,
            "parents" => ours(old, value, wanted, &PARENTS, now)?,
            "ancestors" => ours(old, value, wanted, &ANCESTORS, now)?,
            "listeners" => entries(old, value, now)?,
            _ => value.clone(),
        };
        after[field] = new;
    }
    (after != *before).then_some(after)
}

/// Merges conditions. Conditions of other types stay. `None`: one of Ringway's conditions has been
/// observed at a newer generation already.
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

/// Conditions that exist only while they hold. They are removed when they are no longer wanted.
const OURS_ALONE: [&str; 4] = ["Conflicted", "ResolvedRefs", "PartiallyInvalid", SUPERSEDED];

fn timed(old: Option<&Value>, new: &Value, now: &str) -> Value {
    let same = old.filter(|old| old.get("status") == new.get("status"));
    let since = same.and_then(|old| old.get("lastTransitionTime")?.as_str()).unwrap_or(now);
    let mut new = new.clone();
    new["lastTransitionTime"] = since.into();
    new
}

/// A list that controllers share.
struct Shared {
    /// The field by which the entries of one controller differ.
    reference: &'static str,
    /// The most entries that the API takes, of all controllers together.
    most: usize,
}

const PARENTS: Shared = Shared { reference: "parentRef", most: 32 };
const ANCESTORS: Shared =
    Shared { reference: "ancestorRef", most: crate::gateway::objects::policy::MAX_ANCESTORS };

/// Merges entries. Every entry stays in its place, because two controllers would otherwise change
/// the order for ever. Ringway's entries that are no longer wanted are removed. New entries come
/// last, as far as there is room.
fn ours(
    old: Option<&Value>,
    wanted: &Value,
    of: &StatusOf,
    shared: &Shared,
    now: &str,
) -> Option<Value> {
    let mut new: Vec<&Value> = list(Some(wanted)).iter().collect();
    let mut all = Vec::new();
    for entry in list(old) {
        if entry["controllerName"] != *of.controller {
            all.push(entry.clone());
            continue;
        }
        let same = |new: &&Value| new.get(shared.reference) == entry.get(shared.reference);
        if let Some(at) = new.iter().position(same) {
            all.push(with_conditions(Some(entry), new.remove(at), now)?);
        }
    }
    for new in new.into_iter().take(shared.most.saturating_sub(all.len())) {
        all.push(with_conditions(None, new, now)?);
    }
    Some(Value::Array(all))
}

/// Merges the entries of listeners[]. All of them are Ringway's.
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const BEFORE: &str = "2026-01-01T00:00:00Z";
    const NOW: &str = "2026-02-02T00:00:00Z";

    fn wanted(controller: &str, status: Value) -> StatusOf {
        StatusOf {
            kind: Kind::TcpRoute,
            namespace: Some("shop".into()),
            name: "route".into(),
            uid: None,
            generation: 2,
            controller: controller.into(),
            status,
        }
    }

    fn condition(kind: &str, status: &str, generation: i64, since: &str) -> Value {
        let mut condition = json!({
            "type": kind, "status": status, "reason": "R", "message": "m",
            "observedGeneration": generation,
        });
        if !since.is_empty() {
            condition["lastTransitionTime"] = since.into();
        }
        condition
    }

    fn parent(controller: &str, name: &str, condition: Value) -> Value {
        json!({
            "controllerName": controller, "parentRef": { "name": name }, "conditions": [condition],
        })
    }

    /// The wanted status for these parents.
    fn parents(controller: &str, names: &[&str]) -> StatusOf {
        let all =
            names.iter().map(|name| parent(controller, name, condition("Accepted", "True", 2, "")));
        wanted(controller, json!({ "parents": all.collect::<Vec<_>>() }))
    }

    fn order(status: &Value) -> Vec<String> {
        let word = |entry: &Value| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            format!("{} {}", text(&entry["controllerName"]), text(&entry["parentRef"]["name"]))
        };
        list(Some(&status["parents"])).iter().map(word).collect()
    }

    #[test]
    fn a_condition_keeps_its_time_while_its_status_does_and_foreign_ones_stay() {
        let foreign = condition("example.com/Known", "True", 1, BEFORE);
        let existing = json!({
            "conditions": [
                condition("Accepted", "True", 1, BEFORE),
                foreign,
                condition("Programmed", "False", 1, BEFORE),
            ],
            "theirs": 7,
        });
        let own = ["Accepted", "Programmed"].map(|kind| condition(kind, "True", 2, ""));
        let own = wanted("ours", json!({ "conditions": own }));
        let new = merge(Some(&existing), &own, NOW).expect("a change");
        let conditions = [
            condition("Accepted", "True", 2, BEFORE),
            foreign,
            condition("Programmed", "True", 2, NOW),
        ];
        assert_eq!(new, json!({ "conditions": conditions, "theirs": 7 }));
        assert_eq!(merge(Some(&new), &own, "2026-03-03T00:00:00Z"), None);
    }

    #[test]
    fn conditions_that_hold_only_for_a_while_go() {
        let existing = json!({ "conditions": [
            condition("Conflicted", "True", 1, BEFORE), condition("Accepted", "True", 2, BEFORE),
        ] });
        let own = json!({ "conditions": [condition("Accepted", "True", 2, "")] });
        let new = merge(Some(&existing), &wanted("ours", own), NOW).expect("a change");
        assert_eq!(new["conditions"], json!([condition("Accepted", "True", 2, BEFORE)]));
    }

    #[test]
    fn what_has_been_observed_later_is_not_overwritten() {
        let newer = condition("Accepted", "False", 3, BEFORE);
        let own = json!({ "conditions": [condition("Accepted", "True", 2, "")] });
        let existing = json!({ "conditions": [newer] });
        assert_eq!(merge(Some(&existing), &wanted("ours", own), NOW), None);
        let existing = json!({ "parents": [parent("ours", "a", newer)] });
        assert_eq!(merge(Some(&existing), &parents("ours", &["a", "b"]), NOW), None);
    }

    #[test]
    fn entries_keep_their_places_and_stale_ones_go() {
        let then =
            |controller, name| parent(controller, name, condition("Accepted", "True", 1, BEFORE));
        let foreign = then("theirs", "a");
        let existing = json!({ "parents": [
            then("ours", "b"), then("ours", "gone"), foreign, then("ours", "a"),
        ] });
        let own = parents("ours", &["a", "new", "b"]);
        let new = merge(Some(&existing), &own, NOW).expect("a change");
        assert_eq!(order(&new), ["ours b", "theirs a", "ours a", "ours new"]);
        assert_eq!(new["parents"][1], foreign);
        let since = |at: usize| &new["parents"][at]["conditions"][0]["lastTransitionTime"];
        assert_eq!((since(0), since(3)), (&BEFORE.into(), &NOW.into()));
        let none = merge(Some(&new), &parents("ours", &[]), NOW).expect("a change");
        assert_eq!(none["parents"], json!([foreign]));
    }

    /// Each controller must find nothing to change in the other's status.
    #[test]
    fn two_controllers_come_to_rest() {
        let (a, b) = (parents("a", &["x", "y"]), parents("b", &["x"]));
        let one = merge(None, &a, BEFORE).expect("a change");
        let both = merge(Some(&one), &b, NOW).expect("a change");
        assert_eq!(order(&both), ["a x", "a y", "b x"]);
        assert_eq!(merge(Some(&both), &a, NOW), None);
        assert_eq!(merge(Some(&both), &b, NOW), None);
    }

    #[test]
    fn there_is_no_more_than_the_api_takes() {
        let theirs: Vec<_> = (0..15)
            .map(|at| json!({ "controllerName": "theirs", "ancestorRef": { "name": at } }))
            .collect();
        let own = ["a", "b"].map(|name| {
            json!({ "controllerName": "ours", "ancestorRef": { "name": name }, "conditions": [] })
        });
        let own = wanted("ours", json!({ "ancestors": own }));
        let new = merge(Some(&json!({ "ancestors": theirs })), &own, NOW).expect("a change");
        assert_eq!(list(Some(&new["ancestors"])).len(), 16);
        assert_eq!(new["ancestors"][15]["ancestorRef"]["name"], "a");
        assert_eq!(merge(Some(&new), &own, NOW), None);
    }
}
