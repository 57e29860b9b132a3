//! BackendTLSPolicy: which Services are spoken to by TLS, and how.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::backends::Destination;
use super::certificates;
use super::index::{Index, key, seniority};
use super::objects::{BackendTlsPolicy, Objects};
use super::translate::{Verdict, Why};
use crate::tls::Origination;

/// All policies, oldest first.
pub(super) struct BackendTls<'o> {
    pub(super) all: Vec<Policy<'o>>,
    /// The oldest, by namespace and name of a Service and the name of its port.
    winners: BTreeMap<(&'o str, &'o str, Option<&'o str>), usize>,
}

pub(super) struct Policy<'o> {
    pub(super) object: &'o BackendTlsPolicy,
    pub(super) accepted: Verdict,
    pub(super) resolved: Verdict,
    origination: Option<Origination>,
}

impl<'o> BackendTls<'o> {
    pub(super) fn of_all(objects: &'o Objects, index: &Index<'o>) -> Self {
        let mut objects: Vec<_> = objects.backend_tls_policies.iter().map(Arc::as_ref).collect();
        objects.sort_by(|a, b| seniority(&a.metadata).cmp(&seniority(&b.metadata)));
        let mut policies = Self { all: Vec::new(), winners: BTreeMap::new() };
        for object in objects {
            let mut policy = read(object, index);
            let namespace = key(&object.metadata).0;
            for target in &object.spec.target_refs {
                let service = (namespace, target.name.as_str(), target.section_name.as_deref());
                let own = policies.all.len();
                let winner = *policies.winners.entry(service).or_insert(own);
                if winner != own {
                    let name = key(&policies.all[winner].object.metadata).1;
                    let message = format!("{name} is older and has the same target");
                    policy.accepted = Err(Why::new("Conflicted", message));
                } else if policy.accepted.is_ok() {
                    policy.accepted = target_exists(service, target.kind.as_str(), index);
                }
            }
            policies.all.push(policy);
        }
        policies
    }

    /// How to speak to a Service's port; `None`: as the client does, an error: not at all.
    pub(super) fn of(&self, destination: &Destination<'_>) -> Option<Result<Origination, Why>> {
        let policy = &self.all[self.winner(destination)?];
        let failed = policy.accepted.clone().err();
        match (failed, &policy.origination) {
            (Some(why), _) => Some(Err(why)),
            (None, origination) => origination.clone().map(Ok),
        }
    }

    /// The policy of a port by its name, else that of the whole Service.
    pub(super) fn winner(&self, destination: &Destination<'_>) -> Option<usize> {
        let (namespace, name) = destination.service;
        let port = destination.port.name.as_deref();
        let named = port.and_then(|port| self.winners.get(&(namespace, name, Some(port))));
        named.or_else(|| self.winners.get(&(namespace, name, None))).copied()
    }
}

fn target_exists(
    (namespace, name, section): (&str, &str, Option<&str>),
    kind: &str,
    index: &Index<'_>,
) -> Verdict {
    let missing = |message| Err(Why::new("TargetNotFound", message));
    let service = index.services.get(&(namespace, name)).filter(|_| kind == "Service");
    let Some(service) = service else {
        return missing(format!("there is no {kind} {namespace}/{name} that a policy can be for"));
    };
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let meant = |port: &&k8s_openapi::api::core::v1::ServicePort| {
        section.is_none_or(|section| port.name.as_deref() == Some(section))
    };
    let mut meant = ports.iter().filter(meant).peekable();
    if meant.peek().is_none() {
        let port = section.unwrap_or("at all");
        return missing(format!("Service {namespace}/{name} has no port {port}"));
    }
    if meant.all(|port| port.protocol.as_deref() == Some("UDP")) {
        let message = format!("Service {namespace}/{name}: TLS can't be spoken on a UDP port");
        return Err(Why::new("Invalid", message));
    }
    Ok(())
}

fn read<'o>(object: &'o BackendTlsPolicy, index: &Index<'_>) -> Policy<'o> {
    let namespace = key(&object.metadata).0;
    let validation = &object.spec.validation;
    let mut policy = Policy { object, accepted: Ok(()), resolved: Ok(()), origination: None };
    let mut authorities = Vec::new();
    for reference in &validation.ca_certificate_refs {
        match certificates::authority(reference, namespace, index) {
            Ok(pem) => authorities.push(pem),
            Err(why) => policy.resolved = Err(why),
        }
    }
    let system = validation.well_known_ca_certificates.as_deref();
    if !validation.ca_certificate_refs.is_empty() && authorities.is_empty() {
        let message = "none of the caCertificateRefs can be used".to_owned();
        policy.accepted = Err(Why::new("NoValidCACertificate", message));
    } else if authorities.is_empty() && system != Some("System") {
        let message = "validation has neither caCertificateRefs nor wellKnownCACertificates: \
                       System"
            .to_owned();
        policy.accepted = Err(Why::new("Invalid", message));
    }
    if authorities.is_empty()
        && policy.accepted.is_ok()
        && let Err(message) = certificates::system()
    {
        policy.accepted = Err(Why::new("NoValidCACertificate", message));
    }
    let hostname = validation.hostname.to_lowercase();
    if hostname.starts_with("*.") || crate::values::read_hostname(&hostname).is_err() {
        let message = format!("validation.hostname: \"{hostname}\" is not the name of a host");
        policy.accepted = Err(Why::new("Invalid", message));
    }
    let name = |name: &super::objects::SubjectAltName| match name.kind.as_str() {
        "URI" => name.uri.clone(),
        _ => name.hostname.clone(),
    };
    policy.origination = Some(Origination {
        server_name: hostname,
        ca: certificates::bundle(&authorities),
        certificate: None,
        subject_alt_names: validation.subject_alt_names.iter().filter_map(name).collect(),
    });
    policy
}
