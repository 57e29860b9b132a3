//! The backends that policies name for clients of TLS listeners that do not speak TLS.

use std::collections::BTreeMap;

use kube::Resource as _;

use crate::gateway::objects::policy::{self, L4Policy};
use crate::gateway::objects::reference::BackendTarget;
use crate::gateway::translate::backends::{self, Destination};
use crate::gateway::translate::index::{Index, ObjectKey, key};
use crate::gateway::translate::party::{Party, Target};
use crate::gateway::translate::values::Fallback;
use crate::gateway::translate::verdict::{Fault, Verdict};

/// The destinations that listeners use in this way, with the Gateway of each listener, by kind and
/// name.
pub(super) type Fallbacks<'o> =
    BTreeMap<(&'static str, ObjectKey<'o>), Vec<(Destination<'o>, usize)>>;

pub(super) fn destination<'o>(
    fallback: Fallback<'o>,
    index: &Index<'o>,
) -> Result<Destination<'o>, Fault> {
    let Fallback { namespace, reference } = fallback;
    let party = Party { group: policy::GROUP, kind: "L4Policy", namespace };
    let target = Target {
        group: reference.group.as_deref().unwrap_or_default(),
        kind: reference.kind.as_deref().unwrap_or("Service"),
        namespace: reference.namespace.as_deref().unwrap_or(namespace),
        name: &reference.name,
    };
    backends::find((target, reference.port), party, false, index)
}

/// The words for the reference in the name of a backend that leads nowhere.
pub(super) fn words(fallback: Fallback<'_>) -> String {
    let BackendTarget { namespace, name, port, .. } = fallback.reference;
    let namespace = namespace.as_deref().unwrap_or(fallback.namespace);
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    format!("{namespace}/{name}{port}")
}

/// Whether each of these backends of a policy is there.
pub(super) fn resolved(object: &L4Policy, index: &Index<'_>) -> Vec<Verdict> {
    let namespace = key(object.meta()).0;
    let Some(listener) = &object.spec.listener else { return Vec::new() };
    let given = [("notTls", &listener.not_tls), ("silent", &listener.silent)];
    let given = given.into_iter().filter_map(|(field, given)| Some((field, given.as_ref()?)));
    let verdicts = given.map(|(field, reference)| {
        let found = destination(Fallback { namespace, reference }, index);
        found
            .map(drop)
            .map_err(|why| Fault::new(why.reason, format!("listener.{field}: {}", why.message)))
    });
    verdicts.collect()
}
