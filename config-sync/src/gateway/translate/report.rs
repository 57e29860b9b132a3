//! The report for one object: its conditions; only the data plane can decide some of them.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::gateway::status::{Outcome, SUPERSEDED, StatusOf};
use crate::gateway::translate::notice::Notice;
use crate::gateway::translate::verdict::{Fault, Verdict};

/// An object's status, to be completed with the outcome of the configuration.
#[derive(Debug)]
pub(super) struct ObjectReport {
    pub(super) of: StatusOf,
    /// The fields that are not conditions.
    pub(super) fields: Map<String, Value>,
    pub(super) conditions: Option<Vec<Condition>>,
    pub(super) listeners: Option<Vec<Part>>,
    /// `parents` or `ancestors`.
    pub(super) parts: Option<(&'static str, Vec<Part>)>,
    /// Reasons and messages that become Events beside the conditions.
    pub(super) passing: Vec<(&'static str, String)>,
}

/// An entry of listeners[], parents[] or ancestors[].
#[derive(Debug)]
pub(super) struct Part {
    pub(super) fields: Value,
    /// The name of the part in Events.
    pub(super) title: String,
    pub(super) conditions: Vec<Condition>,
}

#[derive(Clone, Debug)]
pub(super) struct Condition {
    pub(super) kind: &'static str,
    pub(super) says: Says,
}

#[derive(Clone, Debug)]
pub(super) enum Says {
    True(&'static str, String),
    False(Fault),
    /// The object waits for a controller.
    Waits(String),
    /// For a listener: true if the data plane could open these listeners of the configuration.
    /// Otherwise there may be a hint.
    Opened(BTreeSet<String>, &'static str, Option<String>),
    /// For an object with these listeners: true, with the reason ListenersNotValid if one of them
    /// could not be opened.
    Valid(BTreeSet<String>, String),
    /// For an object with these listeners: true as soon as the data plane serves all of them.
    Served(BTreeSet<String>),
    /// For an object with these listeners: true as soon as the data plane serves one of them.
    SomeServed(BTreeSet<String>),
}

impl ObjectReport {
    /// The status that the API server writes into a new object, with the reason.
    pub(super) fn wait(self, why: &str) -> Self {
        let says = Says::Waits(format!("Waiting for controller: {why}"));
        let conditions =
            ["Accepted", "Programmed"].map(|kind| Condition { kind, says: says.clone() });
        Self { conditions: Some(conditions.into()), listeners: Some(Vec::new()), ..self }
    }

    pub(super) fn status(&self, outcome: &Outcome) -> StatusOf {
        let generation = self.of.generation;
        let list = |conditions: &[Condition]| -> Value {
            let value = |condition: &Condition| condition.value(generation, outcome);
            conditions.iter().map(value).collect::<Vec<_>>().into()
        };
        let parts = |parts: &[Part]| -> Value {
            let value = |part: &Part| {
                let mut value = part.fields.clone();
                value["conditions"] = list(&part.conditions);
                value
            };
            parts.iter().map(value).collect::<Vec<_>>().into()
        };
        let mut status = self.fields.clone();
        if let Some(conditions) = &self.conditions {
            status.insert("conditions".into(), list(conditions));
        }
        if let Some(listeners) = &self.listeners {
            status.insert("listeners".into(), parts(listeners));
        }
        if let Some((field, all)) = &self.parts {
            status.insert((*field).into(), parts(all));
        }
        StatusOf { status: status.into(), ..self.of.clone() }
    }

    pub(super) fn notices(&self, outcome: &Outcome) -> Vec<Notice> {
        let own = self.conditions.iter().flatten().map(|condition| (None, condition));
        let listeners = self.listeners.iter().flatten();
        let parts = self.parts.iter().flat_map(|(_, parts)| parts).chain(listeners);
        let parts = parts.flat_map(|part| {
            part.conditions.iter().map(|condition| (Some(part.title.as_str()), condition))
        });
        let faults = own.chain(parts).filter_map(|(title, condition)| {
            let (reason, message) = condition.complaint(outcome)?;
            let title = title.map(|of| format!("{of}: ")).unwrap_or_default();
            Some((reason, format!("{title}{message}"), false))
        });
        let passing = self.passing.iter();
        let passing = passing.map(|(reason, message)| (*reason, message.clone(), true));
        let (mut notices, mut said) = (Vec::new(), BTreeSet::new());
        for (reason, message, passes) in faults.chain(passing) {
            if !said.insert((reason, message.clone())) {
                continue;
            }
            notices.push(Notice {
                kind: self.of.kind,
                namespace: self.of.namespace.clone(),
                name: self.of.name.clone(),
                uid: self.of.uid.clone(),
                reason: reason.to_owned(),
                message,
                passes,
            });
        }
        notices
    }
}

impl Condition {
    pub(super) fn value(&self, generation: i64, outcome: &Outcome) -> Value {
        let (status, reason, message) = self.said(outcome);
        json!({
            "type": self.kind,
            "status": status,
            "reason": reason,
            "message": message,
            "observedGeneration": generation,
        })
    }

    /// The condition's status, reason and message.
    pub(super) fn said(&self, outcome: &Outcome) -> (&'static str, &'static str, String) {
        match &self.says {
            Says::True(reason, message) => ("True", *reason, message.clone()),
            Says::False(why) => ("False", why.reason, why.message.clone()),
            Says::Waits(message) => ("Unknown", "Pending", message.clone()),
            Says::Opened(names, message, hint) => match not_opened(names, outcome) {
                Some(why) => {
                    let hint = hint.as_deref().unwrap_or_default();
                    ("False", "PortUnavailable", format!("{why}{hint}"))
                }
                None => ("True", "Accepted", (*message).to_owned()),
            },
            Says::Valid(names, by) => match not_opened(names, outcome) {
                Some(_) => ("True", "ListenersNotValid", not_all_valid(by)),
                None => ("True", "Accepted", by.clone()),
            },
            Says::Served(names) => programmed_as(not_opened(names, outcome), outcome),
            Says::SomeServed(names) => {
                let failed = |name| not_opened([name], outcome);
                let failed = names.iter().map(failed).collect::<Option<Vec<_>>>();
                programmed_as(failed.and_then(|why| why.first().copied()), outcome)
            }
        }
    }

    /// The reason and message if a user must act. Consequences of another problem that is reported
    /// anyway are left out.
    pub(super) fn complaint(&self, outcome: &Outcome) -> Option<(&'static str, String)> {
        let (status, reason, message) = self.said(outcome);
        let counts = match (self.kind, status) {
            ("PartiallyInvalid" | SUPERSEDED, "True")
            | ("Accepted" | "ResolvedRefs" | "SupportedVersion", "False")
            | ("Accepted", "Unknown") => true,
            ("Programmed", "False") => {
                // The Gateway reports this once, not each of its listeners.
                let whole = matches!(self.says, Says::SomeServed(_)) && refused(outcome).is_some();
                reason.starts_with("Address") || whole
            }
            _ => false,
        };
        counts.then_some((reason, message))
    }
}

pub(super) fn condition(
    kind: &'static str,
    verdict: Verdict,
    reason: &'static str,
    message: &str,
) -> Condition {
    let says = match verdict {
        Ok(()) => Says::True(reason, message.to_owned()),
        Err(why) => Says::False(why),
    };
    Condition { kind, says }
}

/// Why one of these listeners could not be opened.
pub(super) fn not_opened<'a, 'n>(
    names: impl IntoIterator<Item = &'n String>,
    outcome: &'a Outcome,
) -> Option<&'a str> {
    let Outcome::Failed(faults) = outcome else { return None };
    names.into_iter().find_map(|name| faults.get(name)).map(String::as_str)
}

/// Why nothing of the configuration is served.
pub(super) fn refused(outcome: &Outcome) -> Option<&str> {
    let Outcome::Failed(faults) = outcome else { return None };
    faults.get("").map(String::as_str)
}

pub(super) fn programmed_as(
    fault: Option<&str>,
    outcome: &Outcome,
) -> (&'static str, &'static str, String) {
    match (fault, refused(outcome), outcome) {
        (Some(why), _, _) => ("False", "Invalid", why.to_owned()),
        (None, Some(why), _) => {
            let message = format!("the configuration could not be put in force: {why}");
            ("False", "Pending", message)
        }
        (None, None, Outcome::Pending) => {
            ("False", "Pending", "the data plane does not serve it yet".to_owned())
        }
        (None, None, Outcome::Applied | Outcome::Failed(_)) => {
            ("True", "Programmed", "the data plane serves it".to_owned())
        }
    }
}

pub(super) fn not_all_valid(by: &str) -> String {
    format!("{by}, but not all listeners are valid; each says why")
}
