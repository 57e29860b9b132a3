//! The health checks of policies, and the CA certificates that they name.

use crate::gateway::objects::ObjectRef;
use crate::gateway::objects::policy::{HealthCheckSettings, L4Policy};
use crate::gateway::objects::reference::AuthorityRef;
use crate::gateway::translate::certificates;
use crate::gateway::translate::index::{Index, key};
use crate::gateway::translate::tables;
use crate::gateway::translate::values::Check;
use crate::gateway::translate::verdict::{Fault, Verdict};
use crate::model::tls::Pem;

/// Reads the check of a policy of `namespace`. One CA certificate that can be used is enough, as in
/// a BackendTLSPolicy.
pub(super) fn read(
    given: &HealthCheckSettings,
    namespace: &str,
    index: &Index<'_>,
) -> Result<Check, String> {
    let mut asked = tables::read_health_check(given)?;
    let references = given.ca_certificate_refs.as_deref().unwrap_or_default();
    let found: Vec<_> =
        references.iter().filter_map(|of| authority(of, namespace, index).ok()).collect();
    asked.ca = certificates::bundle(&found);
    Ok(Check { lacks_ca: !references.is_empty() && found.is_empty(), asked })
}

/// Whether each CA certificate of the policy's check can be used.
pub(super) fn resolved(object: &L4Policy, index: &Index<'_>) -> Vec<Verdict> {
    let check = object.spec.backend.as_ref().and_then(|backend| backend.health_check.as_ref());
    let references = check.and_then(|check| check.ca_certificate_refs.as_deref());
    let namespace = key(&object.metadata).0;
    let verdicts = references.unwrap_or_default().iter().map(|reference| {
        let named =
            |why: Fault| Fault::new(why.reason, format!("backend.healthCheck: {}", why.message));
        authority(reference, namespace, index).map(drop).map_err(named)
    });
    verdicts.collect()
}

fn authority(reference: &AuthorityRef, namespace: &str, index: &Index<'_>) -> Result<Pem, Fault> {
    let AuthorityRef { group, kind, name } = reference.clone();
    certificates::authority(&ObjectRef { group, kind, name, namespace: None }, namespace, index)
}
