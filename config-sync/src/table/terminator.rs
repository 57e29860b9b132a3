//! TLS as workers see it: how a listener terminates TLS, and how connections to a backend begin
//! TLS. This file imports nothing of the crate.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ServerConfig};

/// How a listener terminates TLS.
pub struct Terminator {
    pub config: Arc<ServerConfig>,
    pub certificates: Arc<Certificates>,
    /// Every client must have a certificate.
    pub client_auth: bool,
    /// When the first of the certificate revocation lists expires, in seconds of Unix time.
    pub lists_end: Option<u64>,
}

/// How connections to a backend's endpoints begin TLS.
pub struct Originator {
    pub config: Arc<ClientConfig>,
    pub server_name: ServerName<'static>,
    /// The ALPN protocols that Ringway offers. `None`: the protocol that was agreed with the
    /// client.
    pub alpn: Option<Vec<Vec<u8>>>,
}

impl Originator {
    /// The ALPN protocols for an endpoint, if `agreed` was agreed with the client.
    pub fn offer(&self, agreed: Option<&[u8]>) -> Vec<Vec<u8>> {
        let agreed = || agreed.map(<[u8]>::to_vec).into_iter().collect();
        self.alpn.clone().unwrap_or_else(agreed)
    }
}

/// A listener's certificates by server name.
pub struct Certificates {
    exact: AHashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    /// The key is the part after `*.`, which stands for one label (RFC 9525, section 6.3).
    wildcard: AHashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    default: Option<Arc<CertifiedKey>>,
    /// The name for clients that send no name.
    nameless: Option<Box<str>>,
}

impl Certificates {
    /// `seeds` key the hash. They need not be secret, because only configured names are stored.
    pub fn new(
        seeds: [u64; 4],
        default: Option<Arc<CertifiedKey>>,
        nameless: Option<&str>,
    ) -> Self {
        let hasher = || ahash::RandomState::with_seeds(seeds[0], seeds[1], seeds[2], seeds[3]);
        Self {
            exact: AHashMap::with_hasher(hasher()),
            wildcard: AHashMap::with_hasher(hasher()),
            default,
            nameless: nameless.map(Box::from),
        }
    }

    /// Adds a certificate under one of its DNS names.
    pub fn insert(&mut self, name: &str, certificate: &Arc<CertifiedKey>) {
        let name = name.to_ascii_lowercase();
        let (map, key) = match name.strip_prefix("*.") {
            Some(suffix) => (&mut self.wildcard, suffix),
            None => (&mut self.exact, name.as_str()),
        };
        map.entry(key.into()).or_default().push(Arc::clone(certificate));
    }

    /// Whether there is a certificate for a client that asks for this name. The name is in lower
    /// case.
    pub fn has(&self, name: Option<&str>) -> bool {
        self.default.is_some() || name.is_some_and(|name| !self.named(name).is_empty())
    }

    /// The certificates for a client that asks for this name, in the form of the ClientHello.
    fn asked_for(&self, name: Option<&str>) -> &[Arc<CertifiedKey>] {
        // A dot may end a name, as in the look-up of listeners and routes.
        let plain = |name: &str| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let name = name.map(plain);
        let name = name.as_deref().or(self.nameless.as_deref());
        name.map_or(&[], |name| self.named(name))
    }

    fn named(&self, name: &str) -> &[Arc<CertifiedKey>] {
        let wildcard = || name.split_once('.').and_then(|(_, suffix)| self.wildcard.get(suffix));
        self.exact.get(name).or_else(wildcard).map_or(&[], Vec::as_slice)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = self.asked_for(hello.server_name());
        let usable = |certificate: &&Arc<CertifiedKey>| {
            certificate.key.choose_scheme(hello.signature_schemes()).is_some()
        };
        // If the client can use none of the keys, any certificate leads to the alert that says so.
        let found = named.iter().find(usable).or_else(|| named.first());
        found.or(self.default.as_ref()).cloned()
    }
}

/// The time of day of the worker on this thread. rustls asks for the time when rustls verifies
/// certificates, and when rustls issues or takes tickets.
#[derive(Debug)]
pub struct WorkerTime;

thread_local! {
    static SECONDS: Cell<u64> = const { Cell::new(0) };
}

impl WorkerTime {
    /// Sets this thread's time, in seconds of Unix time.
    pub fn set(seconds: u64) {
        SECONDS.set(seconds);
    }
}

impl TimeProvider for WorkerTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(SECONDS.get())))
    }
}

/// Leaves out the keys.
impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = self.exact.keys().map(ToString::to_string);
        let wildcard = self.wildcard.keys().map(|suffix| format!("*.{suffix}"));
        f.debug_list().entries(exact.chain(wildcard)).finish()
    }
}

impl fmt::Debug for Terminator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminator").field("certificates", &self.certificates).finish()
    }
}

impl fmt::Debug for Originator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Originator").field("server_name", &self.server_name).finish()
    }
}
