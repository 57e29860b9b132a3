//! Statuses while a replica is behind: all parts except promises that are not kept yet.

use serde_json::Value;

use crate::gateway::status::{Kind, StatusOf};

const WAITS: &str = "not every replica serves it yet";

/// Takes the promise out of a status that all replicas serve the object.
pub(in crate::gateway) fn withhold(wanted: &mut StatusOf) {
    take_out(&mut wanted.status);
    for listener in list_mut(&mut wanted.status, "listeners") {
        take_out(listener);
    }
}

/// Keeps an earlier promise with its generation, because that generation is served until the new
/// one is. A Gateway that has none of its addresses any more keeps no promise.
pub(in crate::gateway) fn uphold(mut wanted: StatusOf, existing: Option<&Value>) -> StatusOf {
    let Some(existing) = existing else { return wanted };
    if wanted.kind == Kind::Gateway && !shares_an_address(&wanted.status, existing) {
        return wanted;
    }
    put_back(&mut wanted.status, existing);
    for listener in list_mut(&mut wanted.status, "listeners") {
        let mut before = existing["listeners"].as_array().into_iter().flatten();
        if let Some(before) = before.find(|before| before["name"] == listener["name"]) {
            put_back(listener, before);
        }
    }
    wanted
}

fn take_out(part: &mut Value) {
    for condition in list_mut(part, "conditions") {
        if condition["type"] == "Programmed" && condition["status"] == "True" {
            condition["status"] = "False".into();
            condition["reason"] = "Pending".into();
            condition["message"] = WAITS.into();
        }
    }
}

fn put_back(part: &mut Value, before: &Value) {
    let mut before = before["conditions"].as_array().into_iter().flatten();
    let promised = before.find(|of| of["type"] == "Programmed" && of["status"] == "True");
    let Some(promised) = promised else { return };
    for condition in list_mut(part, "conditions") {
        if condition["type"] == "Programmed" && condition["message"] == WAITS {
            *condition = promised.clone();
        }
    }
}

/// The list is empty if the field is missing, as in most statuses, which have no listeners.
fn list_mut<'a>(part: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> + use<'a> {
    part.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten()
}

fn shares_an_address(status: &Value, before: &Value) -> bool {
    let list = |status: &Value| status["addresses"].as_array().cloned().unwrap_or_default();
    let (now, before) = (list(status), list(before));
    before.is_empty() || before.iter().any(|a| now.iter().any(|b| a["value"] == b["value"]))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn programmed(status: &str, reason: &str, generation: i64) -> Value {
        json!({
            "type": "Programmed", "status": status, "reason": reason, "message": "",
            "observedGeneration": generation,
        })
    }

    fn status(address: &str, programmed: &Value) -> Value {
        json!({
            "addresses": [{ "value": address }],
            "conditions": [{ "type": "Accepted", "status": "True" }, programmed],
            "listeners": [{ "name": "tcp", "conditions": [programmed] }],
        })
    }

    /// The status that is written for a Gateway without faults that not all replicas serve yet.
    fn written(address: &str, existing: Option<&Value>) -> Value {
        let mut wanted = StatusOf {
            kind: Kind::Gateway,
            namespace: Some("infra".into()),
            name: "gateway".into(),
            uid: None,
            generation: 2,
            controller: Arc::from("ringway.dev/gateway-controller"),
            status: status(address, &programmed("True", "Programmed", 2)),
        };
        withhold(&mut wanted);
        uphold(wanted, existing).status
    }

    #[test]
    fn nothing_new_is_promised_and_nothing_is_taken_back() {
        let mut pending = programmed("False", "Pending", 2);
        pending["message"] = WAITS.into();
        let pending = status("10.9.0.1", &pending);
        assert_eq!(written("10.9.0.1", None), pending);
        let promised = status("10.9.0.1", &programmed("True", "Programmed", 1));
        assert_eq!(written("10.9.0.1", Some(&promised)), promised);
        let failed = status("10.9.0.1", &programmed("False", "Invalid", 1));
        assert_eq!(written("10.9.0.1", Some(&failed)), pending);
    }

    #[test]
    fn a_gateway_that_moves_is_not_served_where_it_goes() {
        let promised = status("10.9.0.7", &programmed("True", "Programmed", 1));
        let moved = written("10.9.0.1", Some(&promised));
        assert_eq!(moved["conditions"][1]["status"], "False");
        assert_eq!(moved["listeners"][0]["conditions"][0]["status"], "False");
    }
}
