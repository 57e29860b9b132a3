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

/// Why a policy's health check can't check a backend. The policy may be for many backends.
pub(super) fn unfit(check: &Check, udp: bool, has_tls: bool) -> Option<&'static str> {
    let Check { asked: check, lacks_ca } = check;
    if udp && check.port == 0 && !check.speaks_udp() {
        return Some("a check by TCP of a UDP port needs the field port");
    }
    if !check.verify || !check.speaks_tls(has_tls) {
        let message = "caCertificateRefs and serverName are for checks by TLS, and the check \
                       speaks none; write tls: true";
        let has_names = check.ca.is_some() || *lacks_ca || check.server_name.is_some();
        return (check.verify && has_names).then_some(message);
    }
    if *lacks_ca {
        return Some("none of the caCertificateRefs can be used");
    }
    (!has_tls && check.server_name.is_none()).then_some(
        "the check speaks TLS, and no BackendTLSPolicy applies that says which certificates are \
         good; write caCertificateRefs and serverName, or verify: false to take any",
    )
}

fn authority(reference: &AuthorityRef, namespace: &str, index: &Index<'_>) -> Result<Pem, Fault> {
    let AuthorityRef { group, kind, name } = reference.clone();
    certificates::authority(&ObjectRef { group, kind, name, namespace: None }, namespace, index)
}
