//! Objects as the API server sends them, read into their types.

use std::sync::Arc;

use kube::api::DynamicObject;
use serde::de::DeserializeOwned;

use crate::gateway::follow::discovery::{CONFIG_MAP, Kind, SECRET};
use crate::gateway::follow::store::{Table, Version};
use crate::gateway::objects::{ObjectName, schema};

/// Reads an object into its type, or takes the known object of this version. An object that does
/// not fit is left out and logged, because it must not hide the others of its kind.
pub(super) fn read<T: DeserializeOwned>(
    kind: &Kind,
    mut object: DynamicObject,
    current: &Table<T>,
) -> Option<(ObjectName, (Version, Arc<T>))> {
    let (key, version) = (key(&object), Version::of(&object.metadata));
    if let Some((same, object)) = current.get(&key).filter(|(known, _)| *known == version) {
        return Some((key, (same.clone(), Arc::clone(object))));
    }
    // These fields are far larger than the others, and Ringway does not use them.
    object.metadata.managed_fields = None;
    object.metadata.annotations = None;
    if kind.name == CONFIG_MAP.name {
        keep_certificates(&mut object.data);
    }
    let value = serde_json::to_value(object).map_err(|error| (String::new(), error.to_string()));
    let is_secret = kind.name == SECRET.name;
    match value.and_then(|value| schema::read(value, is_secret)) {
        Ok((object, _)) => Some((key, (version, Arc::new(object)))),
        Err((field, why)) => {
            let (namespace, name) = &key;
            tracing::warn!("{} {namespace}/{name} is left out: {field}: {why}", kind.name);
            None
        }
    }
}

/// Keeps only CA certificates of a ConfigMap, because some ConfigMaps are very large.
fn keep_certificates(map: &mut serde_json::Value) {
    let certificates = map.pointer_mut("/data/ca.crt").map(serde_json::Value::take);
    *map = match certificates {
        Some(pem) => serde_json::json!({"data": {"ca.crt": pem}}),
        None => serde_json::json!({}),
    };
}

pub(super) fn key(object: &DynamicObject) -> ObjectName {
    let metadata = &object.metadata;
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}
