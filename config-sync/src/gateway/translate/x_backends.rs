//! XBackends (GEP-4894): backends outside the cluster, by their names.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::gateway::objects::{GROUP, Objects, Validation, X_GROUP, XBackend};
use crate::gateway::status::Kind;
use crate::gateway::translate::backends::{self, EXTERNAL_NAMES_OFF};
use crate::gateway::translate::found::External;
use crate::gateway::translate::index::{Index, ObjectKey, key};
use crate::gateway::translate::party::{Party, Target};
use crate::gateway::translate::render::Known;
use crate::gateway::translate::report::{ObjectReport, Part, condition};
use crate::gateway::translate::verdict::{Fault, Verdict};
use crate::gateway::translate::{backend_tls, certificates};
use crate::model::endpoint::{Address, DnsName};
use crate::model::tls::Origination;
use crate::toml::values::dns_name;

/// Where each XBackend leads, or its fault.
pub(super) fn read_all<'o>(
    objects: &'o Objects,
    index: &Index<'_>,
) -> BTreeMap<ObjectKey<'o>, Result<External, Fault>> {
    let all = objects.x_backends.iter();
    all.map(|object| (key(&object.metadata), read(object, index))).collect()
}

/// In a cluster, the XBackend's definition rules most of these faults out. An IP address it lets
/// pass, because the address looks like a name.
fn read(object: &XBackend, index: &Index<'_>) -> Result<External, Fault> {
    let spec = &object.spec;
    if spec.kind != "ExternalHostname" {
        let message = format!("type: {:?} is not supported; ExternalHostname is", spec.kind);
        return Err(Fault::new("InvalidKind", message));
    }
    let invalid = |field: &str, message: &str| Fault::new("Invalid", format!("{field}: {message}"));
    let port = u16::try_from(spec.port.port).ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| invalid("port.port", "must be 1 to 65535"))?;
    let hostname = spec.external_hostname.as_ref().map(|external| external.hostname.as_str());
    let hostname = hostname.ok_or_else(|| invalid("externalHostname", "missing"))?;
    let field = "externalHostname.hostname";
    let hostname = dns_name(hostname).map_err(|message| invalid(field, &message))?;
    if hostname.ends_with(".cluster.local") {
        return Err(invalid(field, "a name of this cluster; name its Service in the route"));
    }
    let tls = tls(object, &hostname, index)?;
    let is_for_tcp = tls.is_some() || spec.protocol.is_some();
    let address = Address::Name(DnsName::Host { host: hostname.into(), port });
    Ok(External { address, port, tls, is_for_tcp })
}

/// How Ringway speaks TLS to the XBackend. Without `validation`, the certificate must have the
/// XBackend's own name, and be one that this machine trusts.
fn tls(object: &XBackend, hostname: &str, index: &Index<'_>) -> Result<Option<Origination>, Fault> {
    let Some(given) = &object.spec.tls else { return Ok(None) };
    let namespace = key(&object.metadata).0;
    let certificate = match (given.mode.as_str(), &given.client_certificate_ref) {
        ("None", _) => return Ok(None),
        ("ServerOnly", _) => None,
        ("ClientAndServer", Some(reference)) => {
            let party = Party { group: X_GROUP, kind: "XBackend", namespace };
            match certificates::client_certificate(reference, party, index) {
                // The certificate from before the fault, if there is one, stays in force.
                (Some(certificate), _) => Some(certificate),
                (None, verdict) => return verdict.map(|()| None),
            }
        }
        ("ClientAndServer", None) => {
            return Err(Fault::new("Invalid", "tls.clientCertificateRef: missing"));
        }
        (mode, _) => {
            let message =
                format!("tls.mode: {mode:?} is none of None, ServerOnly and ClientAndServer");
            return Err(Fault::new("Invalid", message));
        }
    };
    let own = Validation {
        hostname: hostname.to_owned(),
        well_known_ca_certificates: Some("System".to_owned()),
        ..Validation::default()
    };
    let validation = given.validation.as_ref().unwrap_or(&own);
    let (read, resolved) = backend_tls::read(validation, namespace, index);
    let in_tls = |why: Fault| Fault::new(why.reason, format!("tls: {}", why.message));
    resolved.map_err(in_tls)?;
    let alpn = match object.spec.protocol.as_deref() {
        Some("HTTP2") => Some(vec!["h2".to_owned()]),
        Some("HTTP11") => Some(vec!["http/1.1".to_owned()]),
        _ => None,
    };
    read.map_err(in_tls).map(|tls| Some(Origination { certificate, alpn, ..tls }))
}

impl Known<'_, '_> {
    /// Reports for the XBackends to which routes of Ringway's Gateways lead, now or earlier.
    pub(super) fn x_backends(&self) -> Vec<ObjectReport> {
        let objects = &self.objects.x_backends;
        if objects.is_empty() {
            return Vec::new();
        }
        let reached = self.gateways_of_externals();
        let mut reports = Vec::new();
        for object in objects {
            let gateways = reached.get(&key(&object.metadata));
            if gateways.is_none() && !self.has_ours(object) {
                continue;
            }
            let mut report = self.report(Kind::XBackend, &object.metadata);
            let verdict = self.external_verdict(object);
            let part = |(namespace, name): &(String, String)| {
                let parent = json!({
                    "group": GROUP, "kind": "Gateway", "namespace": namespace, "name": name,
                });
                let controller = &self.settings.controller_name;
                let fields = json!({ "parentRef": parent, "controllerName": controller });
                let accepted = condition("Accepted", verdict.clone(), "Accepted", "accepted");
                Part { fields, title: format!("parent {name}"), conditions: vec![accepted] }
            };
            let parts = gateways.into_iter().flatten().map(part).collect();
            report.parts = Some(("parents", parts));
            reports.push(report);
        }
        reports
    }

    fn has_ours(&self, object: &XBackend) -> bool {
        let status = object.status.as_ref();
        let parents = status.and_then(|status| status["parents"].as_array());
        let mut parents = parents.into_iter().flatten();
        parents.any(|parent| parent["controllerName"] == *self.settings.controller_name)
    }

    fn external_verdict(&self, object: &XBackend) -> Verdict {
        if !self.index.external_names {
            return Err(Fault::new("NotPermitted", EXTERNAL_NAMES_OFF));
        }
        match self.index.externals.get(&key(&object.metadata)) {
            Some(Err(why)) => Err(why.clone()),
            Some(Ok(_)) | None => Ok(()),
        }
    }

    /// The Gateways with routes that may refer to each XBackend, whether or not the XBackend can be
    /// used.
    fn gateways_of_externals(&self) -> BTreeMap<ObjectKey<'_>, BTreeSet<(String, String)>> {
        let mut reached: BTreeMap<ObjectKey<'_>, BTreeSet<_>> = BTreeMap::new();
        for route in self.routes {
            let own = key(&route.object.metadata).0;
            let party = Party { group: GROUP, kind: route.kind.name(), namespace: own };
            let references = route.object.spec.rules.iter().take(1);
            for reference in references.flat_map(|rule| &rule.backend_refs) {
                let target = backends::target(reference, own);
                let Target { group, kind, namespace, name } = target;
                if backends::is_x_backend(group, kind) && self.index.permits(party, target) {
                    let gateways = self.gateways_of(route);
                    reached.entry((namespace, name)).or_default().extend(gateways);
                }
            }
        }
        for ((kind, object), used) in self.fallbacks {
            if *kind == "XBackend" {
                let gateways = used.iter().map(|(_, gate)| self.gateway_name(*gate));
                reached.entry(*object).or_default().extend(gateways);
            }
        }
        reached.retain(|_, gateways| !gateways.is_empty());
        reached
    }
}
