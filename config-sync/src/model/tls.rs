//! TLS: certificates and keys, listeners that terminate TLS, and backends that speak TLS.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::model::alt_name::AltName;
use crate::model::place::At;

/// One or more PEM blocks. The compiler reads a file of such blocks, and the source watches the
/// file from then on; or the configuration has the blocks themselves.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    File(At<PathBuf>),
    Inline {
        /// The name in problems, such as `Secret shop/frontend, tls.crt`.
        name: String,
        bytes: Arc<[u8]>,
    },
}

/// A certificate chain and its private key (PKCS#8, PKCS#1 or SEC 1). The server's or client's own
/// certificate is the first of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub cert: Pem,
    pub key: Pem,
}

/// How a listener terminates TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Termination {
    /// The client's server name chooses among the DNS names in the certificates. An exact name
    /// beats the longest wildcard. If several certificates have the name, the first is taken that
    /// has a key the client can use.
    pub certificates: Vec<Certificate>,
    /// For server names that are in none of `certificates`, and for clients that send no name.
    /// `None`: such clients are closed without an answer.
    pub default_certificate: Option<Certificate>,
    /// The CA certificates that sign client certificates, directly or through a chain.
    pub client_ca: Option<Pem>,
    pub client_auth: ClientAuth,
    /// Certificate revocation lists (RFC 5280) for client certificates.
    pub client_crl: Option<Pem>,
    /// Protocols in order of preference. If the list is empty, ALPN (RFC 7301) is off.
    pub alpn: Vec<String>,
    pub min_version: MinVersion,
    /// Whether clients can resume sessions with tickets (RFC 5077; RFC 8446, section 4.6.1).
    pub session_tickets: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// Clients are not asked for a certificate.
    #[default]
    Off,
    /// A client may have no certificate. If a client has one, the certificate must be valid.
    Optional,
    Required,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MinVersion {
    #[default]
    Tls12,
    Tls13,
}

/// How Ringway speaks TLS to a backend's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origination {
    /// The server name that Ringway sends: a DNS name or an IP address. The endpoint's certificate
    /// must have this name if there are no `subject_alt_names`.
    pub server_name: String,
    /// The CA certificates that sign the endpoint's certificate. `None`: the certificates that the
    /// system trusts.
    pub ca: Option<Pem>,
    /// The certificate for endpoints that ask Ringway for one.
    pub certificate: Option<Certificate>,
    /// The endpoint's certificate must have one of these names.
    pub subject_alt_names: Vec<AltName>,
    /// The ALPN protocols that Ringway offers, in order of preference. Empty: Ringway offers none.
    /// `None`: Ringway offers the protocol that was agreed with the client, if there is one.
    pub alpn: Option<Vec<String>>,
    /// Hashes of public keys. The endpoint's key must have one of these hashes. Without `ca`, only
    /// the key and `subject_alt_names` of the certificate are checked.
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
    /// TLS with endpoints whose certificate has this name, and is signed by whom the system trusts.
    pub(crate) fn new(server_name: String) -> Self {
        Self {
            server_name,
            ca: None,
            certificate: None,
            subject_alt_names: Vec::new(),
            alpn: None,
            pins: Vec::new(),
        }
    }

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

/// Leaves out the bytes, because they may be a private key.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.value.display()),
            Self::Inline { name, .. } => write!(f, "Inline({name})"),
        }
    }
}
