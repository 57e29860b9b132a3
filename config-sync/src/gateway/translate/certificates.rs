//! Certificates from Secrets and ConfigMaps.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;

use crate::compile::tls::expiry::OwnedBy;
use crate::compile::tls::expiry::dns_names;
use crate::compile::tls::load::{Loader, Owner};
use crate::compile::tls::tickets::Tickets;
use crate::gateway::objects::{GROUP, Gateway, Listener, ObjectRef};
use crate::gateway::translate::found::{KeyPair, SecretState};
use crate::gateway::translate::index::{Index, ObjectKey, key};
use crate::gateway::translate::party::{Party, Target};
use crate::gateway::translate::verdict::{Fault, Verdict};
use crate::model::place::Place;
use crate::model::tls::{Certificate, Pem, Termination};

/// How a listener terminates TLS.
pub(super) struct Ending {
    /// `None`: no certificate is good.
    pub(super) tls: Option<Termination>,
    pub(super) resolved: Verdict,
    /// Messages about expired certificates. Clients get these certificates all the same.
    pub(super) expired: Vec<String>,
}

/// How a listener terminates TLS, from the good ones of its `tls.certificateRefs`, and the faults
/// of the others. A missing Secret closes the listener only for the names of that Secret's
/// certificate.
pub(super) fn termination(spec: &Listener, party: Party<'_>, index: &Index<'_>) -> Ending {
    let references = spec.tls.as_ref().map_or(&[][..], |tls| &tls.certificate_refs);
    if references.is_empty() {
        let message = "tls.certificateRefs: missing; it names Secrets of type kubernetes.io/tls";
        let resolved = Err(Fault::new("InvalidCertificateRef", message));
        return Ending { tls: None, resolved, expired: Vec::new() };
    }
    let mut termination = Termination::default();
    let (mut faults, mut expired) = (Vec::new(), Vec::new());
    for (at, reference) in references.iter().enumerate() {
        let (loaded, verdict) = certificate(reference, party, index);
        faults.extend(verdict.err());
        let Some(loaded) = loaded else { continue };
        expired.extend(index.now.and_then(|now| loaded.expired(now)));
        let KeyPair { certificate, has_names, .. } = loaded;
        if has_names {
            termination.certificates.push(certificate.clone());
        } else if at > 0 {
            let message = format!(
                "Secret {} has no DNS name (subjectAltName), so no client can ask for it; put it \
                 first, to be the default",
                reference.name
            );
            faults.push(Fault::new("InvalidCertificateRef", message));
            continue;
        }
        // The first certificate is for clients with a name that no certificate has.
        termination.default_certificate.get_or_insert(certificate);
    }
    let tls = termination.default_certificate.is_some().then_some(termination);
    Ending { tls, resolved: together(faults), expired }
}

/// Joins the faults, under the reason of the first.
fn together(faults: Vec<Fault>) -> Verdict {
    let Some(Fault { reason, .. }) = faults.first() else { return Ok(()) };
    let messages: Vec<_> = faults.iter().map(|why| why.message.as_str()).collect();
    Err(Fault::new(reason, messages.join("; ")))
}

/// The conditions of a Gateway's `tls.frontend` for the clients of an HTTPS listener.
///
/// # Errors
/// The reasons for the Accepted and ResolvedRefs conditions. A listener that can't tell which
/// clients to keep out lets no client in.
pub(super) fn clients(
    gateway: &Gateway,
    port: i32,
    index: &Index<'_>,
) -> Result<Option<Pem>, (Verdict, Fault)> {
    let frontend = gateway.spec.tls.as_ref().and_then(|tls| tls.frontend.as_ref());
    let Some(frontend) = frontend else { return Ok(None) };
    let own = frontend.per_port.iter().find(|of| of.port == port).map(|of| &of.tls);
    let Some(validation) = &own.unwrap_or(&frontend.default).validation else { return Ok(None) };
    if validation.mode.as_deref().is_some_and(|mode| mode != "AllowValidOnly") {
        let message = "tls.frontend: AllowInsecureFallback is not supported; AllowValidOnly is";
        let why = Fault::new("UnsupportedValue", message);
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
            Err(Fault::not_permitted(party, kind, of, &reference.name))
        };
        match read {
            Ok(pem) => found.push(pem),
            Err(Fault { reason: "InvalidKind", message }) => {
                fault = Some(Fault::new("InvalidCACertificateKind", message));
            }
            Err(why) => fault = Some(why),
        }
    }
    match (fault, bundle(&found)) {
        (None, Some(authorities)) => Ok(Some(authorities)),
        (Some(why), Some(_)) => Err((Ok(()), why)),
        (why, None) => {
            let none = Fault::new("NoValidCACertificate", "tls.frontend names no CA certificate");
            Err((Err(none.clone()), why.unwrap_or(none)))
        }
    }
}

/// The Gateway's certificate for backends that speak TLS, and the certificate's fault.
pub(super) fn own_certificate(
    gateway: &Gateway,
    index: &Index<'_>,
) -> (Option<Certificate>, Verdict) {
    let backend = gateway.spec.tls.as_ref().and_then(|tls| tls.backend.as_ref());
    let reference = backend.and_then(|backend| backend.client_certificate_ref.as_ref());
    let Some(reference) = reference else { return (None, Ok(())) };
    let namespace = key(&gateway.metadata).0;
    client_certificate(reference, Party { group: GROUP, kind: "Gateway", namespace }, index)
}

/// The certificate for backends that speak TLS, and the certificate's fault.
pub(super) fn client_certificate(
    reference: &ObjectRef,
    party: Party<'_>,
    index: &Index<'_>,
) -> (Option<Certificate>, Verdict) {
    let (own, verdict) = certificate(reference, party, index);
    let verdict = verdict.map_err(|why| match why.reason {
        "InvalidCertificateRef" => Fault::new("InvalidClientCertificateRef", why.message),
        _ => why,
    });
    (own.map(|loaded| loaded.certificate), verdict)
}

fn certificate(
    reference: &ObjectRef,
    party: Party<'_>,
    index: &Index<'_>,
) -> (Option<KeyPair>, Verdict) {
    let invalid = |message| Err(Fault::new("InvalidCertificateRef", message));
    let none = |message| (None, invalid(message));
    let kind = reference.kind.as_deref().unwrap_or("Secret");
    let group = reference.group.as_deref().unwrap_or_default();
    if (group, kind) != ("", "Secret") {
        return none(format!("certificateRefs: {group}/{kind} is not supported; name a Secret"));
    }
    let namespace = reference.namespace.as_deref().unwrap_or(party.namespace);
    let name = reference.name.as_str();
    if !index.permits(party, Target { group, kind, namespace, name }) {
        return (None, Err(Fault::not_permitted(party, kind, namespace, name)));
    }
    let Some(secret) = index.secrets.get(&(namespace, name)) else {
        let limits = index.limits(namespace);
        let message =
            format!("there is no Secret {namespace}/{name} of type kubernetes.io/tls{limits}");
        return none(message);
    };
    let mut known = index.certificates.borrow_mut();
    let key = (namespace.to_owned(), name.to_owned());
    let before = index.last_good.get(&key, secret);
    let found = known.entry(key).or_insert_with(|| match load(secret, (namespace, name)) {
        Ok(loaded) => SecretState { loaded: Some(loaded), fault: None },
        Err(fault) => {
            let stays = "; the certificate that was there before stays in force";
            let stays = if before.is_some() { stays } else { "" };
            SecretState { loaded: before, fault: Some(format!("{fault}{stays}")) }
        }
    });
    (found.loaded.clone(), found.fault.clone().map_or(Ok(()), invalid))
}

/// The certificate and key in a Secret, or their fault.
fn load(secret: &Secret, (namespace, name): ObjectKey<'_>) -> Result<KeyPair, String> {
    let pem = |field| inline(secret, (namespace, name), field);
    let (Some(cert), Some(key)) = (pem("tls.crt"), pem("tls.key")) else {
        return Err(format!("Secret {namespace}/{name} has no tls.crt and tls.key"));
    };
    let certificate = Certificate { cert, key };
    let certified = tried(|loader, owner| loader.certified(owner, &certificate))?;
    let own = certified.end_entity_cert().ok();
    let has_names = own.is_some_and(|own| !dns_names(own).is_empty());
    let not_after = own.and_then(|own| crate::table::x509::not_after(own));
    Ok(KeyPair { certificate, has_names, not_after })
}

/// The result of the configuration's loader, or its message. A value that the loader refuses must
/// not get into a configuration.
fn tried<T>(load: impl FnOnce(&mut Loader<'_>, &Owner<'_>) -> Option<T>) -> Result<T, String> {
    let place = Place { file: Arc::from(""), line: 0, column: 0, field: String::new() };
    let mut tickets = Tickets::default();
    let mut loader = Loader::new(&mut tickets, [0; 4]);
    let loaded = load(&mut loader, &Owner { name: "", kind: OwnedBy::Listener, place: &place });
    let problem = loader.problems.into_iter().next();
    loaded.ok_or_else(|| problem.map_or_else(String::new, |problem| problem.message))
}

/// Whether this machine trusts any certificate by itself.
pub(super) fn system(index: &Index<'_>) -> Result<(), String> {
    let load = || tried(|loader, owner| loader.system_roots(owner)).map(drop);
    index.system_trust.get_or_init(load).clone()
}

fn inline(secret: &Secret, (namespace, name): ObjectKey<'_>, field: &str) -> Option<Pem> {
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

/// The CA certificates of a reference from `namespace`: the `ca.crt` of a ConfigMap or Secret.
pub(super) fn authority(
    reference: &ObjectRef,
    namespace: &str,
    index: &Index<'_>,
) -> Result<Pem, Fault> {
    let invalid = |message| Err(Fault::new("InvalidCACertificateRef", message));
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
            return Err(Fault::new("InvalidKind", message));
        }
    };
    let Some(pem) = pem else {
        let limits = index.limits(namespace);
        return invalid(format!("there is no {kind} {namespace}/{name} with a ca.crt{limits}"));
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::gateway::files;
    use crate::gateway::status::Outcome;
    use crate::gateway::testing::settings;
    use crate::gateway::translate::Translation;
    use crate::gateway::translate::found::LastGood;
    use crate::gateway::translate::translate;

    const LEAF: &str = include_str!("../../compile/tls/testdata/leaf.pem");
    const MID: &str = include_str!("../../compile/tls/testdata/mid.pem");
    const KEY: &str = include_str!("../../compile/tls/testdata/leaf.key");

    /// Translates a Gateway that terminates TLS with a Secret. `secret` has the `uid` and
    /// certificate; `None`: there is no Secret.
    fn translated(secret: Option<(&str, &str)>, last_good: &LastGood) -> Translation {
        let indented = |pem: &str| pem.replace('\n', "\n    ");
        let secret = secret.map(|(uid, pem)| {
            let (pem, key) = (indented(pem), indented(KEY));
            format!(
                "---\n\
                 apiVersion: v1\n\
                 kind: Secret\n\
                 metadata: {{namespace: n, name: s, uid: {uid}}}\n\
                 type: kubernetes.io/tls\n\
                 stringData:\n  \
                   tls.crt: |\n    {pem}\n  \
                   tls.key: |\n    {key}\n",
            )
        });
        let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
                       metadata: {namespace: n, name: g}\nspec:\n  gatewayClassName: ringway\n  \
                       listeners:\n  - {name: l, protocol: TLS, port: 443, tls: {mode: Terminate, \
                       certificateRefs: [{name: s}]}}\n";
        let text = format!("{gateway}{}", secret.unwrap_or_default());
        let objects = files::read_of_cluster([("in.yaml", text.as_str())].into_iter());
        let objects = objects.unwrap_or_else(|error| panic!("{error}")).objects;
        let mut settings = settings();
        settings.last_good = last_good.clone();
        translate(&objects, &settings)
    }

    /// The certificates of the listeners, and the reasons of complaints.
    fn seen(translation: &Translation) -> (Vec<String>, BTreeSet<String>) {
        let listeners = translation.config.listeners.iter();
        let tls = listeners.filter_map(|listener| listener.tls.as_ref());
        let shown = tls.filter_map(|tls| tls.default_certificate.as_ref());
        let text = |pem: &Pem| String::from_utf8_lossy(bytes(pem)).trim().to_owned();
        let notices = translation.notices(&Outcome::Applied).into_iter();
        let notices = notices.map(|notice| format!("{}: {}", notice.reason, notice.message));
        (shown.map(|certificate| text(&certificate.cert)).collect(), notices.collect())
    }

    #[test]
    fn a_secret_that_is_broken_for_a_moment_leaves_what_was_in_force() {
        let good = translated(Some(("u", LEAF)), &LastGood::default());
        assert_eq!(seen(&good), (vec![LEAF.trim().to_owned()], BTreeSet::new()));
        let broken = translated(Some(("u", MID)), good.last_good());
        let (shown, said) = seen(&broken);
        assert_eq!(shown, [LEAF.trim()]);
        let stays = "the certificate that was there before stays in force";
        assert!(said.iter().any(|text| text.contains(stays)), "{said:?}");
        // The last good certificate stays for as long as the Secret is broken.
        let still = translated(Some(("u", "none")), broken.last_good());
        assert_eq!(seen(&still).0, [LEAF.trim()]);
        // A deleted Secret, and a new Secret in its place, do not keep the old certificate.
        let gone = translated(None, still.last_good());
        assert!(seen(&gone).0.is_empty());
        for before in [still.last_good(), gone.last_good()] {
            assert!(seen(&translated(Some(("other", MID)), before)).0.is_empty());
        }
    }
}
