//! Requests of a translation to the followers: Events on objects, and ServiceAccounts.

use std::collections::BTreeMap;
use std::fmt;

use crate::gateway::status::Kind;

/// A problem that a user must act on. Becomes an Event on an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub kind: Kind,
    pub namespace: Option<String>,
    pub name: String,
    pub uid: Option<String>,
    /// In UpperCamelCase, as in conditions.
    pub reason: String,
    pub message: String,
    /// The object itself has no fault. The problem comes and goes with the object's destination.
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

/// A ServiceAccount beside a Gateway that carries `spec.infrastructure` (GEP-1867).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Infrastructure {
    pub namespace: String,
    pub gateway: String,
    pub gateway_uid: Option<String>,
    /// The name of the ServiceAccount.
    pub name: String,
    /// Includes `gateway.networking.k8s.io/gateway-name`.
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}
