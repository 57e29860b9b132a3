//! What a translation asks others to do: events on objects, and ServiceAccounts.

use std::collections::BTreeMap;
use std::fmt;

use crate::gateway::status::Kind;

/// Something that a user must act on: an event on an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub kind: Kind,
    pub namespace: Option<String>,
    pub name: String,
    pub uid: Option<String>,
    /// In UpperCamelCase, as in conditions.
    pub reason: String,
    pub message: String,
    /// It is no fault of the object's: it comes and goes with what the object leads to.
    pub passes: bool,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name, reason, message, .. } = self;
        let slash = if namespace.is_some() { "/" } else { "" };
        let namespace = namespace.as_deref().unwrap_or_default();
        write!(f, "{kind} {namespace}{slash}{name}: {reason}: {message}")
    }
}

/// A ServiceAccount that a Gateway wants beside it, to carry `spec.infrastructure` (GEP-1867).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Infrastructure {
    pub namespace: String,
    pub gateway: String,
    pub gateway_uid: Option<String>,
    /// Of the ServiceAccount.
    pub name: String,
    /// With `gateway.networking.k8s.io/gateway-name`.
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}
