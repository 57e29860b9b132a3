//! Verdicts: whether an object is valid, and if not, why.

use crate::gateway::translate::party::Party;

/// Why an object is not valid: the reason and message of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

pub(super) type Verdict = Result<(), Fault>;

impl Fault {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// A reference into another namespace that no ReferenceGrant allows.
    pub(super) fn not_permitted(from: Party<'_>, kind: &str, namespace: &str, name: &str) -> Self {
        let message = format!(
            "no ReferenceGrant in namespace {namespace} lets a {} of namespace {} refer to {kind} \
             {name}",
            from.kind, from.namespace
        );
        Self::new("RefNotPermitted", message)
    }
}
