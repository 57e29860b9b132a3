//! TLS: certificates and keys, listeners that terminate TLS, and backends that speak TLS.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::model::alt_name::AltName;
use crate::model::place::At;

/// One or more PEM blocks: in a file, read when the configuration is compiled and watched since, or
/// given as they are.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    File(At<PathBuf>),
    Inline {
        /// What problems call it: `Secret shop/frontend, tls.crt`.
        name: String,
        bytes: Arc<[u8]>,
    },
}

/// A certificate chain, the server's or client's own certificate first, and its private key
/// (PKCS#8, PKCS#1 or SEC 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub cert: Pem,
    pub key: Pem,
}

/// How a listener ends TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Termination {
    /// Chosen by the DNS names in them: an exact name beats the longest wildcard. Of several with
    /// the same name, the first whose key the client can use.
    pub certificates: Vec<Certificate>,
    /// For names that none of `certificates` has, and for clients that send none. `None`: these are
    /// closed without an answer.
    pub default_certificate: Option<Certificate>,
    /// Certificates that client certificates must lead to.
    pub client_ca: Option<Pem>,
    pub client_auth: ClientAuth,
    /// Certificate revocation lists (RFC 5280) for client certificates.
    pub client_crl: Option<Pem>,
    /// In order of preference; empty: ALPN (RFC 7301) is not spoken.
    pub alpn: Vec<String>,
    pub min_version: MinVersion,
    /// Whether sessions can be resumed with tickets (RFC 5077; RFC 8446, section 4.6.1).
    pub session_tickets: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// Clients are not asked for a certificate.
    #[default]
    Off,
    /// They may have none, but one that they have must be valid.
    Optional,
    Required,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MinVersion {
    #[default]
    Tls12,
    Tls13,
}

/// How connections to a backend's endpoints are encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origination {
    /// The name sent, and the one that the endpoint's certificate must have if there are no
    /// `subject_alt_names`: a DNS name or an IP address.
    pub server_name: String,
    /// Certificates that the endpoint's must lead to; `None`: those that the system trusts.
    pub ca: Option<Pem>,
    /// Shown to endpoints that ask for one.
    pub certificate: Option<Certificate>,
    /// Names of which the endpoint's certificate must have one.
    pub subject_alt_names: Vec<AltName>,
    /// What is offered, in order of preference; empty: nothing; `None`: what was agreed on with the
    /// client, if it speaks TLS and something was.
    pub alpn: Option<Vec<String>>,
    /// Hashes of which one must be of the endpoint's key. Without `ca` nothing else of the
    /// certificate counts but `subject_alt_names`.
    pub pins: Vec<Pin>,
}

/// SHA-256 of a public key (DER, SubjectPublicKeyInfo; RFC 7469, section 2.4).
pub type Pin = [u8; 32];

impl Termination {
    pub(crate) fn pems(&self) -> impl Iterator<Item = &Pem> {
        let certificates = self.certificates.iter().chain(&self.default_certificate);
        let others = [self.client_ca.as_ref(), self.client_crl.as_ref()];
        certificates.flat_map(Certificate::pems).chain(others.into_iter().flatten())
    }
}

impl Origination {
    pub(crate) fn pems(&self) -> impl Iterator<Item = &Pem> {
        self.certificate.iter().flat_map(Certificate::pems).chain(&self.ca)
    }
}

impl Certificate {
    fn pems(&self) -> [&Pem; 2] {
        [&self.cert, &self.key]
    }
}

impl Default for Termination {
    fn default() -> Self {
        Self {
            certificates: Vec::new(),
            default_certificate: None,
            client_ca: None,
            client_auth: ClientAuth::Off,
            client_crl: None,
            alpn: Vec::new(),
            min_version: MinVersion::Tls12,
            session_tickets: true,
        }
    }
}

/// Without the bytes, which may be a private key.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.value.display()),
            Self::Inline { name, .. } => write!(f, "Inline({name})"),
        }
    }
}
