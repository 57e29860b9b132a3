//! BackendTLSPolicy: which Services Ringway speaks TLS to, and how.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::gateway::objects::{BackendTlsPolicy, Objects, SubjectAltName, Validation};
use crate::gateway::translate::backends::{self, Destination, To};
use crate::gateway::translate::certificates;
use crate::gateway::translate::index::{Index, key, seniority};
use crate::gateway::translate::verdict::{Fault, Verdict};
use crate::model::alt_name::AltName;
use crate::model::tls::{Origination, Pem};

/// All policies, oldest first.
pub(super) struct BackendTls<'o> {
    pub(super) all: Vec<Policy<'o>>,
    /// The policy of each target: the oldest policy that names the target.
    winners: BTreeMap<Service<'o>, usize>,
}

/// The namespace and name of a Service, and the name of a port. `None`: all ports.
type Service<'o> = (&'o str, &'o str, Option<&'o str>);

pub(super) struct Policy<'o> {
    pub(super) object: &'o BackendTlsPolicy,
    /// The TLS settings of the policy, for any target.
    pub(super) read: Result<Origination, Fault>,
    pub(super) resolved: Verdict,
    pub(super) targets: Vec<Target<'o>>,
}

/// The verdict on a policy at one target. A fault at one target does not affect the others.
pub(super) struct Target<'o> {
    pub(super) service: Service<'o>,
    pub(super) accepted: Verdict,
}

impl<'o> BackendTls<'o> {
    pub(super) fn of_all(objects: &'o Objects, index: &Index<'o>) -> Self {
        let mut objects: Vec<_> = objects.backend_tls_policies.iter().map(Arc::as_ref).collect();
        objects.sort_by(|a, b| seniority(&a.metadata).cmp(&seniority(&b.metadata)));
        let mut policies = Self { all: Vec::new(), winners: BTreeMap::new() };
        for object in objects {
            let targets = services(object).map(|service| policies.target(service, index)).collect();
            let (validation, namespace) = (&object.spec.validation, key(&object.metadata).0);
            let (read, resolved) = read(validation, namespace, index);
            policies.all.push(Policy { object, read, resolved, targets });
        }
        policies
    }

    /// A target of the next policy.
    fn target(&mut self, service: Service<'o>, index: &Index<'_>) -> Target<'o> {
        let own = self.all.len();
        let winner = *self.winners.entry(service).or_insert(own);
        let accepted = if winner == own {
            target_exists(service, index)
        } else {
            let name = key(&self.all[winner].object.metadata).1;
            let message = format!("{name} is older and has the same target, {}", title(service));
            Err(Fault::new("Conflicted", message))
        };
        Target { service, accepted }
    }

    /// The TLS settings for a destination, without the Gateway's certificate. `None`: bytes go
    /// there unchanged. An error: the destination gets no sessions.
    pub(super) fn of(
        &self,
        destination: &Destination<'_>,
        index: &Index<'_>,
    ) -> Option<Result<Origination, Fault>> {
        match destination.to {
            To::Service(..) => Some(self.all[self.winner(destination)?].read.clone()),
            To::XBackend => {
                index.externals.get(&destination.object)?.as_ref().ok()?.tls.clone().map(Ok)
            }
        }
    }

    /// The policy for a port's name, or else for the whole Service. No policy may be for an
    /// XBackend, which says itself how to speak TLS (GEP-4894).
    pub(super) fn winner(&self, destination: &Destination<'_>) -> Option<usize> {
        let To::Service(_, port) = destination.to else { return None };
        let (namespace, name) = destination.object;
        let port = port.name.as_deref();
        let named = port.and_then(|port| self.winners.get(&(namespace, name, Some(port))));
        named.or_else(|| self.winners.get(&(namespace, name, None))).copied()
    }
}

/// The targets that are Services. Other targets of a policy are for other controllers.
fn services(object: &BackendTlsPolicy) -> impl Iterator<Item = Service<'_>> {
    let namespace = key(&object.metadata).0;
    let targets = object.spec.target_refs.iter();
    let services = targets.filter(|target| backends::is_service(&target.group, &target.kind));
    services.map(move |target| (namespace, target.name.as_str(), target.section_name.as_deref()))
}

fn title((namespace, name, section): Service<'_>) -> String {
    let port = section.map(|section| format!(", port {section}")).unwrap_or_default();
    format!("Service {namespace}/{name}{port}")
}

fn target_exists((namespace, name, section): Service<'_>, index: &Index<'_>) -> Verdict {
    let missing = |message| Err(Fault::new("TargetNotFound", message));
    let Some(service) = index.services.get(&(namespace, name)) else {
        return missing(format!("there is no Service {namespace}/{name}"));
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
        return Err(Fault::new("Invalid", message));
    }
    Ok(())
}

/// The TLS settings of a policy or XBackend of `namespace`, and whether the references resolve.
pub(super) fn read(
    validation: &Validation,
    namespace: &str,
    index: &Index<'_>,
) -> (Result<Origination, Fault>, Verdict) {
    let (mut authorities, mut resolved) = (Vec::new(), Ok(()));
    for reference in &validation.ca_certificate_refs {
        match certificates::authority(reference, namespace, index) {
            Ok(pem) => authorities.push(pem),
            Err(why) => resolved = Err(why),
        }
    }
    (origination(validation, &authorities, index), resolved)
}

fn origination(
    validation: &Validation,
    authorities: &[Pem],
    index: &Index<'_>,
) -> Result<Origination, Fault> {
    let server_name = validation.hostname.to_lowercase();
    if server_name.starts_with("*.") || crate::toml::values::read_hostname(&server_name).is_err() {
        let message = format!("validation.hostname: \"{server_name}\" is not the name of a host");
        return Err(Fault::new("Invalid", message));
    }
    if authorities.is_empty() {
        let invalid = |message| Fault::new("NoValidCACertificate", message);
        if !validation.ca_certificate_refs.is_empty() {
            return Err(invalid("none of the caCertificateRefs can be used".to_owned()));
        }
        if validation.well_known_ca_certificates.as_deref() != Some("System") {
            let message = "validation has neither caCertificateRefs nor wellKnownCACertificates: \
                           System";
            return Err(Fault::new("Invalid", message));
        }
        certificates::system(index).map_err(invalid)?;
    }
    let names = validation.subject_alt_names.iter().enumerate();
    let names = names.map(|(at, name)| {
        alt_name(name).map_err(|message| {
            Fault::new("Invalid", format!("validation.subjectAltNames[{at}].{message}"))
        })
    });
    Ok(Origination {
        server_name,
        ca: certificates::bundle(authorities),
        certificate: None,
        subject_alt_names: names.collect::<Result<_, _>>()?,
        alpn: None,
        pins: Vec::new(),
    })
}

fn alt_name(name: &SubjectAltName) -> Result<AltName, String> {
    let missing = |field| Err(format!("{field}: missing"));
    match (name.kind.as_str(), &name.hostname, &name.uri) {
        ("Hostname", Some(hostname), _) => {
            AltName::hostname(hostname).map_err(|message| format!("hostname: {message}"))
        }
        ("URI", _, Some(uri)) => AltName::uri(uri).map_err(|message| format!("uri: {message}")),
        ("Hostname", None, _) => missing("hostname"),
        ("URI", _, None) => missing("uri"),
        (kind, ..) => Err(format!("type: {kind} is neither Hostname nor URI")),
    }
}
