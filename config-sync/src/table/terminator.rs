//! TLS as workers see it: how a listener ends it, and how a backend's connections begin it.
//! Imports nothing of this crate.

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

/// How a listener ends TLS.
pub struct Terminator {
    pub config: Arc<ServerConfig>,
    pub certificates: Arc<Certificates>,
    /// No client comes in without a certificate.
    pub client_auth: bool,
    /// When the first of the lists of revoked certificates ends, in seconds of Unix time.
    pub lists_end: Option<u64>,
}

/// How connections to a backend's endpoints begin TLS.
pub struct Originator {
    pub config: Arc<ClientConfig>,
    pub server_name: ServerName<'static>,
    /// What is offered (ALPN); `None`: what was agreed on with the client.
    pub alpn: Option<Vec<Vec<u8>>>,
}

impl Originator {
    /// What an endpoint is offered for a client with which this protocol was agreed on.
    pub fn offer(&self, agreed: Option<&[u8]>) -> Vec<Vec<u8>> {
        let agreed = || agreed.map(<[u8]>::to_vec).into_iter().collect();
        self.alpn.clone().unwrap_or_else(agreed)
    }
}

/// A listener's certificates by server name.
pub struct Certificates {
    exact: AHashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    /// Keyed by what follows `*.`, which stands for one label (RFC 9525, section 6.3).
    wildcard: AHashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    default: Option<Arc<CertifiedKey>>,
    /// The name that clients are taken to ask for that send none.
    nameless: Option<Box<str>>,
}

impl Certificates {
    /// `seeds` key the hash; they need not be secret, because only configured names are stored.
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

    /// Adds a certificate under a DNS name of it.
    pub fn insert(&mut self, name: &str, certificate: &Arc<CertifiedKey>) {
        let name = name.to_ascii_lowercase();
        let (map, key) = match name.strip_prefix("*.") {
            Some(suffix) => (&mut self.wildcard, suffix),
            None => (&mut self.exact, name.as_str()),
        };
        map.entry(key.into()).or_default().push(Arc::clone(certificate));
    }

    /// Whether there is a certificate for a client that asks for this name, in lower case.
    pub fn has(&self, name: Option<&str>) -> bool {
        self.default.is_some() || name.is_some_and(|name| !self.named(name).is_empty())
    }

    /// What there is for a client that asks for this name, as it is in its hello.
    fn asked_for(&self, name: Option<&str>) -> &[Arc<CertifiedKey>] {
        // As listeners and routes are found: a dot may end a name.
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
        // One that the client can't use leads to the alert that says so.
        let found = named.iter().find(usable).or_else(|| named.first());
        found.or(self.default.as_ref()).cloned()
    }
}

/// The time of day as the worker that runs on this thread has it. rustls asks for it when it
/// verifies certificates and issues or takes tickets.
#[derive(Debug)]
pub struct WorkerTime;

thread_local! {
    static SECONDS: Cell<u64> = const { Cell::new(0) };
}

impl WorkerTime {
    /// Seconds of Unix time from now on, on this thread.
    pub fn set(seconds: u64) {
        SECONDS.set(seconds);
    }
}

impl TimeProvider for WorkerTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(SECONDS.get())))
    }
}

/// Without keys.
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
