//! Certificates out of Secrets and ConfigMaps.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;

use super::index::{Index, Key, Party, Target, key};
use super::objects::{GROUP, Gateway, Listener, ObjectRef};
use super::translate::{Verdict, Why};
use crate::certificates::{Loader, Owner, Tickets, dns_names};
use crate::problem::Place;
use crate::tls::{Certificate, Pem, Termination};

/// How a listener ends TLS, from its `tls.certificateRefs`.
pub(super) fn termination(
    spec: &Listener,
    party: Party<'_>,
    index: &Index<'_>,
) -> Result<Termination, Why> {
    let references = spec.tls.as_ref().map_or(&[][..], |tls| &tls.certificate_refs);
    if references.is_empty() {
        let message = "tls.certificateRefs: missing; it names Secrets of type kubernetes.io/tls";
        return Err(Why::new("InvalidCertificateRef", message.to_owned()));
    }
    let mut termination = Termination::default();
    for reference in references {
        let Loaded { certificate, has_names } = certificate(reference, party, index)?;
        if has_names {
            termination.certificates.push(certificate.clone());
        } else if termination.default_certificate.is_some() {
            let message = format!(
                "Secret {} has no DNS name (subjectAltName), so only as the first one could it be \
                 of use",
                reference.name
            );
            return Err(Why::new("InvalidCertificateRef", message));
        }
        // The first is shown to whoever asks for a name that none has.
        termination.default_certificate.get_or_insert(certificate);
    }
    Ok(termination)
}

/// What a Gateway's `tls.frontend` asks of the clients of an HTTPS listener.
///
/// # Errors
/// What its Accepted condition and its ResolvedRefs condition say. A listener that could not see
/// whom it should keep out lets nobody in.
pub(super) fn clients(
    gateway: &Gateway,
    port: i32,
    index: &Index<'_>,
) -> Result<Option<Pem>, (Verdict, Why)> {
    let frontend = gateway.spec.tls.as_ref().and_then(|tls| tls.frontend.as_ref());
    let Some(frontend) = frontend else { return Ok(None) };
    let own = frontend.per_port.iter().find(|of| of.port == port).map(|of| &of.tls);
    let Some(validation) = &own.unwrap_or(&frontend.default).validation else { return Ok(None) };
    if validation.mode.as_deref().is_some_and(|mode| mode != "AllowValidOnly") {
        let message = "tls.frontend: AllowInsecureFallback is not supported; AllowValidOnly is";
        let why = Why::new("UnsupportedValue", message);
        return Err((Err(why.clone()), why));
    }
    let namespace = key(&gateway.metadata).0;
    let party = Party { group: GROUP, kind: "Gateway", namespace };
    let mut found = Vec::new();
    let mut fault = None;
    for reference in &validation.ca_certificate_refs {
        let kind = reference.kind.as_deref().unwrap_or("ConfigMap");
        let group = reference.group.as_deref().unwrap_or_default();
        let of = reference.namespace.as_deref().unwrap_or(namespace);
        let target = Target { group, kind, namespace: of, name: &reference.name };
        let read = if index.permits(party, target) {
            authority(reference, of, index)
        } else {
            Err(Why::not_permitted(party, kind, of, &reference.name))
        };
        match read {
            Ok(pem) => found.push(pem),
            Err(Why { reason: "InvalidKind", message }) => {
                fault = Some(Why::new("InvalidCACertificateKind", message));
            }
            Err(why) => fault = Some(why),
        }
    }
    match (fault, bundle(&found)) {
        (None, Some(authorities)) => Ok(Some(authorities)),
        (Some(why), Some(_)) => Err((Ok(()), why)),
        (why, None) => {
            let none = Why::new("NoValidCACertificate", "tls.frontend names no CA certificate");
            Err((Err(none.clone()), why.unwrap_or(none)))
        }
    }
}

/// The certificate that a Gateway shows to backends that speak TLS.
pub(super) fn own_certificate(
    gateway: &Gateway,
    index: &Index<'_>,
) -> Result<Option<Certificate>, Why> {
    let backend = gateway.spec.tls.as_ref().and_then(|tls| tls.backend.as_ref());
    let reference = backend.and_then(|backend| backend.client_certificate_ref.as_ref());
    let Some(reference) = reference else { return Ok(None) };
    let namespace = key(&gateway.metadata).0;
    let party = Party { group: GROUP, kind: "Gateway", namespace };
    let own = certificate(reference, party, index).map(|loaded| Some(loaded.certificate));
    own.map_err(|why| match why.reason {
        "InvalidCertificateRef" => Why::new("InvalidClientCertificateRef", why.message),
        _ => why,
    })
}

/// A certificate and its key, seen to fit each other.
#[derive(Clone)]
pub(super) struct Loaded {
    certificate: Certificate,
    /// Whether clients can ask for it.
    has_names: bool,
}

fn certificate(reference: &ObjectRef, party: Party<'_>, index: &Index<'_>) -> Result<Loaded, Why> {
    let invalid = |message| Err(Why::new("InvalidCertificateRef", message));
    let kind = reference.kind.as_deref().unwrap_or("Secret");
    let group = reference.group.as_deref().unwrap_or_default();
    if (group, kind) != ("", "Secret") {
        return invalid(format!("certificateRefs: {group}/{kind} is not supported; name a Secret"));
    }
    let namespace = reference.namespace.as_deref().unwrap_or(party.namespace);
    let name = reference.name.as_str();
    if !index.permits(party, Target { group, kind, namespace, name }) {
        return Err(Why::not_permitted(party, kind, namespace, name));
    }
    let Some(secret) = index.secrets.get(&(namespace, name)) else {
        return invalid(format!("there is no Secret {namespace}/{name} of type kubernetes.io/tls"));
    };
    let mut known = index.certificates.borrow_mut();
    let key = (namespace.to_owned(), name.to_owned());
    let loaded = known.entry(key).or_insert_with(|| load(secret, (namespace, name)));
    loaded.clone().or_else(invalid)
}

/// The certificate and key in a Secret, or what is wrong with them.
fn load(secret: &Secret, (namespace, name): Key<'_>) -> Result<Loaded, String> {
    let pem = |field| inline(secret, (namespace, name), field);
    let (Some(cert), Some(key)) = (pem("tls.crt"), pem("tls.key")) else {
        return Err(format!("Secret {namespace}/{name} has no tls.crt and tls.key"));
    };
    let certificate = Certificate { cert, key };
    let certified = tried(|loader, owner| loader.certified(owner, &certificate))?;
    let names = certified.end_entity_cert().map(dns_names).unwrap_or_default();
    Ok(Loaded { certificate, has_names: !names.is_empty() })
}

/// What the loader of configurations makes of something, or what it has to say against it: nothing
/// that it refuses must get into one.
fn tried<T>(load: impl FnOnce(&mut Loader<'_>, &Owner<'_>) -> Option<T>) -> Result<T, String> {
    let place = Place { file: Arc::from(""), line: 0, column: 0, field: String::new() };
    let mut tickets = Tickets::default();
    let mut loader = Loader::new(&mut tickets, [0; 4]);
    let loaded = load(&mut loader, &Owner { name: "", place: &place });
    let problem = loader.problems.into_iter().next();
    loaded.ok_or_else(|| problem.map_or_else(String::new, |problem| problem.message))
}

/// Whether this machine trusts any certificate by itself.
pub(super) fn system() -> Result<(), String> {
    tried(|loader, owner| loader.system_roots(owner)).map(drop)
}

fn inline(secret: &Secret, (namespace, name): Key<'_>, field: &str) -> Option<Pem> {
    let bytes = secret.data.as_ref().and_then(|data| data.get(field)).map(|data| data.0.as_slice());
    let text = secret.string_data.as_ref().and_then(|data| data.get(field)).map(String::as_bytes);
    let bytes: Arc<[u8]> = bytes.or(text)?.into();
    Some(Pem::Inline { name: format!("Secret {namespace}/{name}, {field}"), bytes })
}

fn bytes(pem: &Pem) -> &[u8] {
    match pem {
        Pem::Inline { bytes, .. } => bytes,
        Pem::File(_) => &[],
    }
}

/// The CA certificates that a reference from `namespace` leads to, in `ca.crt` of a ConfigMap or
/// Secret.
pub(super) fn authority(
    reference: &ObjectRef,
    namespace: &str,
    index: &Index<'_>,
) -> Result<Pem, Why> {
    let invalid = |message| Err(Why::new("InvalidCACertificateRef", message));
    let name = reference.name.as_str();
    let group = reference.group.as_deref().unwrap_or_default();
    let kind = reference.kind.as_deref().unwrap_or("ConfigMap");
    let pem = match (group, kind) {
        ("", "ConfigMap") => index.config_maps.get(&(namespace, name)).and_then(|map| {
            let text = map.data.as_ref()?.get("ca.crt")?;
            let name = format!("ConfigMap {namespace}/{name}, ca.crt");
            Some(Pem::Inline { name, bytes: text.as_bytes().into() })
        }),
        ("", "Secret") => index
            .secrets
            .get(&(namespace, name))
            .and_then(|secret| inline(secret, (namespace, name), "ca.crt")),
        _ => {
            let message =
                format!("caCertificateRefs: {group}/{kind} is not supported; name a ConfigMap");
            return Err(Why::new("InvalidKind", message));
        }
    };
    let Some(pem) = pem else {
        return invalid(format!("there is no {kind} {namespace}/{name} with a ca.crt"));
    };
    match tried(|loader, owner| loader.roots(owner, &pem)) {
        Ok(_) => Ok(pem),
        Err(message) => invalid(message),
    }
}

/// Several CA bundles as one.
pub(super) fn bundle(pems: &[Pem]) -> Option<Pem> {
    if let [one] = pems {
        return Some(one.clone());
    }
    let names: Vec<_> = pems
        .iter()
        .filter_map(|pem| match pem {
            Pem::Inline { name, .. } => Some(name.as_str()),
            Pem::File(_) => None,
        })
        .collect();
    let mut all = Vec::new();
    for pem in pems {
        all.extend_from_slice(bytes(pem));
        all.push(b'\n');
    }
    (!pems.is_empty()).then(|| Pem::Inline { name: names.join("; "), bytes: all.into() })
}
