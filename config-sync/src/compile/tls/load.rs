//! Turns the certificates of a configuration into the parts that workers use. Files are read here.

use std::sync::{Arc, OnceLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};

use crate::compile::tls::cache::{Cache, Contents, Kept, Made, contents};
use crate::compile::tls::endpoint_verifier::EndpointVerifier;
use crate::compile::tls::expiry::{Expiring, Expiry, OwnedBy, dns_names};
use crate::compile::tls::pem::read;
use crate::compile::tls::tickets::{Admission, Tickets};
use crate::model::listener::{Listener, nameless};
use crate::model::place::{Place, Problem};
use crate::model::tls::{Certificate, ClientAuth, MinVersion, Origination, Pem, Termination};
use crate::table::routing::Starttls;
use crate::table::terminator::{Certificates, Originator, Terminator, WorkerTime};

/// Reads and makes the parts that the configuration's TLS keys ask for.
pub(crate) struct Loader<'l> {
    provider: Arc<CryptoProvider>,
    tickets: &'l mut Tickets,
    seeds: [u64; 4],
    /// `before` has the parts of the latest table. `loaded` has the parts of the next table, kept
    /// or new.
    before: Cache,
    pub(crate) loaded: Cache,
    pub(crate) expiries: Vec<Expiry>,
    /// Certificate chains that are not chains.
    pub(crate) doubts: Vec<Problem>,
    pub(crate) problems: Vec<Problem>,
}

/// A listener or backend: its name and its place.
pub(crate) struct Owner<'o> {
    pub(crate) name: &'o str,
    pub(crate) kind: OwnedBy,
    pub(crate) place: &'o Place,
}

/// The certificates that the system trusts, read when first needed. There are hundreds of them,
/// which take milliseconds to parse.
static SYSTEM: OnceLock<Arc<RootCertStore>> = OnceLock::new();

/// The kinds of private keys that are supported.
const KEYS: &str =
    "RSA of 2048 to 8192 bits, ECDSA with P-256, P-384 or P-521, and Ed25519 are supported";

impl<'l> Loader<'l> {
    pub(crate) fn new(tickets: &'l mut Tickets, seeds: [u64; 4]) -> Self {
        Self {
            provider: Arc::new(aws_lc_rs::default_provider()),
            tickets,
            seeds,
            before: Cache::default(),
            loaded: Cache::default(),
            expiries: Vec::new(),
            doubts: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Takes the parts of the latest table. Such a part is not made again.
    pub(crate) fn knowing(self, before: Cache) -> Self {
        Self { before, ..self }
    }

    /// `None` if the listener passes TLS through, or if the problems say what is wrong.
    pub(crate) fn terminator(
        &mut self,
        owner: &Owner<'_>,
        listener: &Listener,
    ) -> Option<Arc<Terminator>> {
        let termination = listener.tls.as_ref()?;
        let nameless = nameless(listener).map(str::to_owned);
        let asked = (termination.clone(), listener.starttls, nameless);
        let contents = contents(termination.pems());
        self.kept(
            |cache| &mut cache.terminators,
            owner,
            asked,
            contents,
            |loader| loader.new_terminator(owner, listener, termination),
        )
    }

    /// The part of the latest table, if the same is asked for and the files have the same contents.
    /// Otherwise `make` makes the part.
    fn kept<A: PartialEq, T>(
        &mut self,
        parts: fn(&mut Cache) -> &mut Kept<A, T>,
        owner: &Owner<'_>,
        asked: A,
        contents: Option<Contents>,
        make: impl FnOnce(&mut Self) -> Option<Arc<T>>,
    ) -> Option<Arc<T>> {
        let known = parts(&mut self.before).find(owner.name, &asked, contents.as_ref()).cloned();
        let kept = match known {
            Some(known) => {
                self.expiries.extend_from_slice(&known.expiries);
                self.doubts.extend_from_slice(&known.doubts);
                known
            }
            None => {
                let old = (self.expiries.len(), self.doubts.len());
                let made = make(self)?;
                let expiries = self.expiries[old.0..].to_vec();
                let doubts = self.doubts[old.1..].to_vec();
                Arc::new(Made { asked, contents, made, expiries, doubts })
            }
        };
        let made = Arc::clone(&kept.made);
        parts(&mut self.loaded).insert(owner.name, kept);
        Some(made)
    }

    fn new_terminator(
        &mut self,
        owner: &Owner<'_>,
        listener: &Listener,
        asked: &Termination,
    ) -> Option<Arc<Terminator>> {
        let default = match &asked.default_certificate {
            None => None,
            Some(certificate) => Some(self.certified(owner, certificate)?),
        };
        let mut certificates = Certificates::new(self.seeds, default, nameless(listener));
        for certificate in &asked.certificates {
            let key = self.certified(owner, certificate)?;
            let names = key.end_entity_cert().map(dns_names).unwrap_or_default();
            if names.is_empty() {
                let message = "has no DNS name (subjectAltName), so no client can ask for it; it \
                               can be the default_certificate";
                return self.refuse(owner, &certificate.cert, message);
            }
            for name in &names {
                certificates.insert(name, &key);
            }
        }
        let certificates = Arc::new(certificates);
        let old = self.expiries.len();
        let (verifier, admission) = self.admission(owner, asked)?;
        let ends = self.expiries[old..].iter().map(|list| list.not_after);
        let lists_end = ends.min().map(|end| u64::try_from(end).unwrap_or(0));
        let client_auth = verifier.is_some() && asked.client_auth == ClientAuth::Required;
        let versions = match asked.min_version {
            MinVersion::Tls12 => &[&TLS13, &TLS12][..],
            MinVersion::Tls13 => &[&TLS13],
        };
        let mut config = self.server_config(versions, verifier);
        config.cert_resolver = certificates.clone();
        config.alpn_protocols = match listener.starttls {
            // PostgreSQL clients that begin with TLS insist on an ALPN answer.
            Some(Starttls::Postgres) if asked.alpn.is_empty() => vec![b"postgresql".to_vec()],
            _ => asked.alpn.iter().map(|name| name.clone().into_bytes()).collect(),
        };
        if asked.session_tickets {
            config.ticketer = self.tickets.of(owner.name, admission);
        } else {
            config.send_tls13_tickets = 0;
        }
        Some(Arc::new(Terminator {
            config: Arc::new(config),
            certificates,
            client_auth,
            lists_end,
        }))
    }

    /// The TLS of a backend's sessions.
    pub(crate) fn originator(
        &mut self,
        owner: &Owner<'_>,
        asked: &Origination,
    ) -> Option<Arc<Originator>> {
        self.kept_originator(|cache| &mut cache.originators, owner, asked)
    }

    /// The TLS of a backend's health checks. The backend itself tells what is to be told of the
    /// certificate that Ringway shows to endpoints.
    pub(crate) fn check_originator(
        &mut self,
        owner: &Owner<'_>,
        asked: &Origination,
    ) -> Option<Arc<Originator>> {
        let told = (self.expiries.len(), self.doubts.len());
        let made = self.kept_originator(|cache| &mut cache.checks, owner, asked);
        self.expiries.truncate(told.0);
        self.doubts.truncate(told.1);
        made
    }

    fn kept_originator(
        &mut self,
        parts: fn(&mut Cache) -> &mut Kept<Origination, Originator>,
        owner: &Owner<'_>,
        asked: &Origination,
    ) -> Option<Arc<Originator>> {
        let contents = contents(asked.pems());
        self.kept(parts, owner, asked.clone(), contents, |loader| {
            loader.new_originator(owner, asked)
        })
    }

    fn new_originator(
        &mut self,
        owner: &Owner<'_>,
        asked: &Origination,
    ) -> Option<Arc<Originator>> {
        let Ok(server_name) = ServerName::try_from(asked.server_name.clone()) else {
            let name = &asked.server_name;
            let message = format!("tls.server_name \"{name}\" is no DNS name or IP address");
            self.problems.push(owner.place.problem(message));
            return None;
        };
        let provider = Arc::clone(&self.provider);
        let builder = ClientConfig::builder_with_details(provider, Arc::new(WorkerTime))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .expect("aws-lc-rs has suites for both versions");
        let verifier = self.endpoint_verifier(owner, asked)?;
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        let config = match &asked.certificate {
            None => builder.with_no_client_auth(),
            Some(certificate) => {
                let key = self.certified(owner, certificate)?;
                let one = rustls::sign::SingleCertAndKey::from(key);
                builder.with_client_cert_resolver(Arc::new(one))
            }
        };
        // `config` remembers sessions that can be resumed (rustls' `ClientSessionMemoryCache`),
        // under a lock that all workers share. A worker holds the lock for one look-up, about twice
        // a handshake. A resumed handshake saves endpoint and gateway more than the lock costs.
        let bytes = |names: &Vec<String>| {
            names.iter().map(|name| name.clone().into_bytes()).collect::<Vec<_>>()
        };
        let alpn = asked.alpn.as_ref().map(bytes);
        Some(Arc::new(Originator { config: Arc::new(config), server_name, alpn }))
    }

    fn endpoint_verifier(
        &mut self,
        owner: &Owner<'_>,
        asked: &Origination,
    ) -> Option<EndpointVerifier> {
        let (roots, trusted) = match &asked.ca {
            Some(ca) => (Some(self.roots(owner, ca)?), self.certificates(owner, ca)?),
            None if asked.pins.is_empty() => (Some(self.system_roots(owner)?), Vec::new()),
            None => (None, Vec::new()),
        };
        Some(EndpointVerifier {
            roots,
            trusted,
            names: asked.subject_alt_names.clone(),
            pins: asked.pins.clone(),
            provider: Arc::clone(&self.provider),
        })
    }

    fn server_config(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        verifier: Option<Arc<dyn ClientCertVerifier>>,
    ) -> ServerConfig {
        let provider = Arc::clone(&self.provider);
        let builder = ServerConfig::builder_with_details(provider, Arc::new(WorkerTime))
            .with_protocol_versions(versions)
            .expect("aws-lc-rs has suites for both versions");
        let builder = match verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        // The caller replaces this resolver.
        let nobody = Arc::new(Certificates::new(self.seeds, None, None));
        let mut config = builder.with_cert_resolver(nobody);
        // Tickets only: a session can then be resumed on any worker, without a lock that workers
        // share.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // For the alert to a client for which no endpoint can be had: rustls sends no such alert.
        config.enable_secret_extraction = true;
        config
    }

    fn admission(
        &mut self,
        owner: &Owner<'_>,
        asked: &Termination,
    ) -> Option<(Option<Arc<dyn ClientCertVerifier>>, Admission)> {
        let mut admission =
            Admission { client_auth: asked.client_auth, ca: Vec::new(), crl: Vec::new() };
        let Some(ca) = asked.client_ca.as_ref().filter(|_| asked.client_auth != ClientAuth::Off)
        else {
            return Some((None, admission));
        };
        admission.ca = self.read(owner, ca)?;
        let roots = self.roots(owner, ca)?;
        let mut verifier =
            WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&self.provider));
        if let Some(crl) = &asked.client_crl {
            admission.crl = self.read(owner, crl)?;
            let lists = CertificateRevocationListDer::pem_slice_iter(&admission.crl);
            match lists.collect::<Result<Vec<_>, _>>() {
                Ok(lists) if !lists.is_empty() => {
                    let ends =
                        lists.iter().filter_map(|list| crate::table::x509::next_update(list));
                    self.expiries.extend(ends.min().map(|not_after| Expiry {
                        of: Expiring::RevocationList,
                        owner: owner.name.to_owned(),
                        owned_by: owner.kind,
                        names: Vec::new(),
                        name: named(crl),
                        place: place(owner, crl).clone(),
                        not_after,
                    }));
                    verifier = verifier
                        .with_crls(lists)
                        .only_check_end_entity_revocation()
                        .enforce_revocation_expiration();
                }
                Ok(_) => return self.refuse(owner, crl, "has no X509 CRL block"),
                Err(error) => return self.refuse(owner, crl, &format!("is no PEM: {error}")),
            }
        }
        if asked.client_auth == ClientAuth::Optional {
            verifier = verifier.allow_unauthenticated();
        }
        match verifier.build() {
            Ok(verifier) => Some((Some(verifier), admission)),
            Err(error) => self.refuse(owner, ca, &format!("can't verify clients: {error}")),
        }
    }

    pub(crate) fn certified(
        &mut self,
        owner: &Owner<'_>,
        certificate: &Certificate,
    ) -> Option<Arc<CertifiedKey>> {
        let Certificate { cert, key } = certificate;
        let chain = self.certificates(owner, cert)?;
        let pem = self.read(owner, key)?;
        let Ok(private) = PrivateKeyDer::from_pem_slice(&pem) else {
            let message = "has no private key (PEM of PKCS#8, PKCS#1 or SEC 1, unencrypted)";
            return self.refuse(owner, key, message);
        };
        let found = (named(cert), place(owner, cert).clone());
        let end = chain.first().map(|der| (der, found));
        let owned = (owner.kind, owner.name);
        self.expiries.extend(end.and_then(|(der, of)| Expiry::of_certificate(der, owned, of)));
        self.doubts.extend(
            self.unchained(&chain)
                .map(|message| place(owner, cert).problem(format!("{} {message}", named(cert)))),
        );
        if chain.first().is_some_and(|der| crate::table::x509::is_version_1(der)) {
            let message = "begins with a certificate of X.509 version 1, which has no names that \
                           clients look at; make one of version 3, with a subjectAltName";
            return self.refuse(owner, cert, message);
        }
        match CertifiedKey::from_der(chain, private, &self.provider) {
            Ok(key) => Some(Arc::new(key)),
            Err(rustls::Error::InconsistentKeys(_)) => {
                self.refuse(owner, key, &format!("is not the key of {}", named(cert)))
            }
            Err(error) => {
                let message = format!("can't be used: {error}; {KEYS}");
                self.refuse(owner, key, &message)
            }
        }
    }

    /// The reason why clients may find no chain from the first certificate to a certificate that
    /// they trust. Each certificate must be issued by the next.
    fn unchained(&self, chain: &[CertificateDer<'_>]) -> Option<String> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let is_issued = |pair: &[CertificateDer<'_>]| {
            crate::table::x509::is_issued_by(&pair[0], &pair[1], algorithms)
        };
        let at = chain.windows(2).position(|pair| !is_issued(pair))?;
        let (nth, next, all) = (at + 1, at + 2, chain.len());
        Some(format!(
            "does not chain: certificate {nth} of {all} is not issued by certificate {next}, so \
             clients may find no authority that they trust; put each certificate in front of its \
             issuer's"
        ))
    }

    fn certificates(
        &mut self,
        owner: &Owner<'_>,
        pem: &Pem,
    ) -> Option<Vec<CertificateDer<'static>>> {
        let bytes = self.read(owner, pem)?;
        match CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>() {
            Ok(chain) if !chain.is_empty() => Some(chain),
            Ok(_) => self.refuse(owner, pem, "has no CERTIFICATE block"),
            Err(error) => self.refuse(owner, pem, &format!("is no PEM: {error}")),
        }
    }

    pub(crate) fn roots(&mut self, owner: &Owner<'_>, pem: &Pem) -> Option<Arc<RootCertStore>> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates(owner, pem)? {
            if let Err(error) = roots.add(certificate) {
                return self.refuse(owner, pem, &format!("has a bad certificate: {error}"));
            }
        }
        Some(Arc::new(roots))
    }

    pub(crate) fn system_roots(&mut self, owner: &Owner<'_>) -> Option<Arc<RootCertStore>> {
        let roots = SYSTEM.get().cloned().or_else(|| {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            // A missing bundle may still be installed, so an empty result is not kept.
            (!roots.is_empty()).then(|| Arc::clone(SYSTEM.get_or_init(|| Arc::new(roots))))
        });
        if roots.is_none() {
            let message = "this system trusts no certificate; give a `ca`, or install a bundle \
                           (package ca-certificates)";
            self.problems.push(owner.place.problem(message));
        }
        roots
    }

    fn read(&mut self, owner: &Owner<'_>, pem: &Pem) -> Option<Vec<u8>> {
        match read(pem) {
            Ok(bytes) => Some(bytes),
            Err(message) => self.refuse(owner, pem, &message),
        }
    }

    /// Notes a problem of one PEM.
    fn refuse<T>(&mut self, owner: &Owner<'_>, pem: &Pem, message: &str) -> Option<T> {
        self.problems.push(place(owner, pem).problem(format!("{} {message}", named(pem))));
        None
    }
}

/// The place where the configuration names the PEM.
fn place<'p>(owner: &Owner<'p>, pem: &'p Pem) -> &'p Place {
    match pem {
        Pem::File(path) => &path.place,
        Pem::Inline { .. } => owner.place,
    }
}

fn named(pem: &Pem) -> String {
    match pem {
        Pem::File(path) => path.value.display().to_string(),
        Pem::Inline { name, .. } => name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAF: &str = include_str!("testdata/leaf.pem");
    const MID: &str = include_str!("testdata/mid.pem");
    const ROOT: &str = include_str!("testdata/root.pem");
    const KEY: &str = include_str!("testdata/leaf.key");

    fn pem(name: &str, text: &str) -> Pem {
        Pem::Inline { name: name.to_owned(), bytes: text.as_bytes().into() }
    }

    /// The doubts and the problems of a chain and its key.
    fn said(chain: &[&str], key: &str) -> (Vec<String>, Vec<String>) {
        let mut tickets = Tickets::default();
        let mut loader = Loader::new(&mut tickets, [0; 4]);
        let place = Place { file: "f".into(), line: 7, column: 1, field: "tls".to_owned() };
        let owner = Owner { name: "l", kind: OwnedBy::Listener, place: &place };
        let certificate = Certificate { cert: pem("c", &chain.concat()), key: pem("k", key) };
        _ = loader.certified(&owner, &certificate);
        let words = |problems: &[Problem]| problems.iter().map(ToString::to_string).collect();
        (words(&loader.doubts), words(&loader.problems))
    }

    #[test]
    fn a_chain_leads_from_each_certificate_to_its_issuer() {
        for good in [&[LEAF][..], &[LEAF, MID], &[LEAF, MID, ROOT], &[LEAF, MID, ROOT, ROOT]] {
            assert_eq!(said(good, KEY), (vec![], vec![]));
        }
        for (bad, at) in [(&[LEAF, ROOT][..], (1, 2)), (&[LEAF, ROOT, MID], (1, 3))] {
            let (doubts, problems) = said(bad, KEY);
            let (nth, all) = at;
            let what = format!("certificate {nth} of {all} is not issued by certificate 2");
            let expected = format!("f:7:1: tls: c does not chain: {what}");
            assert!(problems.is_empty() && doubts.len() == 1, "{doubts:?} {problems:?}");
            assert!(doubts[0].starts_with(&expected), "{doubts:?}");
        }
    }

    #[test]
    fn what_is_not_supported_says_what_is() {
        let (_, problems) = said(&[include_str!("testdata/v1.pem")], KEY);
        assert!(problems[0].contains("X.509 version 1"), "{problems:?}");
        let p521 = include_str!("testdata/p521.pem");
        assert_eq!(said(&[p521], include_str!("testdata/p521.key")).1, Vec::<String>::new());
        let secp256k1 = include_str!("testdata/secp256k1.pem");
        let (_, problems) = said(&[secp256k1], include_str!("testdata/secp256k1.key"));
        assert!(problems[0].contains("P-521, and Ed25519 are supported"), "{problems:?}");
    }

    #[test]
    fn ends_are_warned_of_in_time() {
        let place = Place { file: "f".into(), line: 1, column: 1, field: String::new() };
        let day = 24 * 3_600;
        let mut of = Expiry {
            of: Expiring::Certificate,
            owner: "l".to_owned(),
            owned_by: OwnedBy::Listener,
            names: Vec::new(),
            name: "c.pem".to_owned(),
            place,
            not_after: 20 * day,
        };
        assert_eq!(of.warning(0), None);
        let soon = of.warning(10 * day).expect("it ends soon");
        assert_eq!(soon, "the certificate c.pem of l expires in 10 days: renew it");
        assert!(of.warning(20 * day).expect("it has ended").contains("has expired"));
        of.of = Expiring::RevocationList;
        assert_eq!(of.warning(20 * day - 1), None);
        assert!(of.warning(20 * day).expect("it has ended").contains("clients whose issuer"));
    }
}
