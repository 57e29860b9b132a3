//! What a configuration says of TLS: certificates and keys, terminated listeners, and backends that
//! speak TLS.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use toml::de::DeValue;

use crate::config::{any, or};
use crate::problem::{At, Place};
use crate::reader::{Reader, Section, Table, boolean, string, word};
use crate::san::AltName;

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

pub(crate) static TLS: Section = Section {
    name: "listeners.tls",
    keys: &[
        any("mode"),
        any("certificates"),
        any("default_certificate"),
        any("client_ca"),
        any("client_auth"),
        any("client_crl"),
        any("alpn"),
        any("min_version"),
        any("session_tickets"),
    ],
};

pub(crate) static TLS_CERTIFICATE: Section =
    Section { name: "listeners.tls.certificates", keys: &[any("cert"), any("key")] };

pub(crate) static TLS_DEFAULT: Section =
    Section { name: "listeners.tls.default_certificate", keys: &[any("cert"), any("key")] };

pub(crate) static BACKEND_TLS: Section = Section {
    name: "backends.tls",
    keys: &[
        any("server_name"),
        any("ca"),
        any("cert"),
        any("key"),
        any("subject_alt_names"),
        any("alpn"),
        any("pin_sha256"),
    ],
};

/// What a listener's `tls` asks for; `None`: nothing, or to pass TLS through.
pub(crate) fn termination<'t>(reader: &mut Reader<'t>, table: &Table<'t>) -> Option<Termination> {
    let tls = &reader.table(table, "tls", &TLS)?;
    let modes = [("Passthrough", false), ("Terminate", true)];
    if !or(reader.get(tls, "mode", word(&modes)), false) {
        let given: Vec<Place> = tls.given(reader, |_| true).map(|(_, place)| place).collect();
        for place in given.iter().filter(|place| !place.field.ends_with(".mode")) {
            reader.refuse(place, "must be with mode = \"Terminate\", not where TLS passes through");
        }
        return None;
    }
    let asked = Termination {
        certificates: certificates(reader, tls),
        default_certificate: default_certificate(reader, tls),
        client_ca: pem(reader, tls, "client_ca"),
        client_auth: client_auth(reader, tls),
        client_crl: pem(reader, tls, "client_crl"),
        alpn: alpn(reader, tls),
        min_version: or(reader.get(tls, "min_version", word(&VERSIONS)), MinVersion::Tls12),
        session_tickets: or(reader.get(tls, "session_tickets", boolean), true),
    };
    if !tls.has("certificates") && !tls.has("default_certificate") {
        let example = "[{ cert = \"a.pem\", key = \"a.key\" }]";
        reader.miss(tls, "certificates", &format!("such as {example}, or a default_certificate"));
    }
    Some(asked)
}

const VERSIONS: [(&str, MinVersion); 2] = [("1.2", MinVersion::Tls12), ("1.3", MinVersion::Tls13)];

/// What a backend's `tls` asks for.
pub(crate) fn origination<'t>(reader: &mut Reader<'t>, table: &Table<'t>) -> Option<Origination> {
    let tls = &reader.table(table, "tls", &BACKEND_TLS)?;
    let what = "the name that the endpoints' certificate has";
    let server_name = reader.need(tls, "server_name", what, |value| {
        let name = string(value)?;
        match rustls::pki_types::ServerName::try_from(name) {
            Ok(_) => Ok(name.to_owned()),
            Err(_) => Err(format!("\"{name}\" is no DNS name or IP address")),
        }
    });
    let names = reader.list(tls, "subject_alt_names", |value| AltName::read(string(value)?));
    let given = tls.has("cert") || tls.has("key");
    let certificate = if given { certificate(reader, tls) } else { None };
    let ca = pem(reader, tls, "ca");
    let alpn = if tls.has("alpn") { Some(alpn(reader, tls)) } else { None };
    let pins = reader.list(tls, "pin_sha256", |value| pin(string(value)?));
    reader.get(tls, "pin_sha256", |value| match value {
        DeValue::Array(list) if list.is_empty() => {
            Err("names no key; without it, every key will do that `ca` is for".to_owned())
        }
        _ => Ok(()),
    });
    Some(Origination {
        server_name: server_name?.value,
        ca,
        certificate,
        subject_alt_names: names.unwrap_or_default().into_iter().map(|at| at.value).collect(),
        alpn,
        pins: pins.unwrap_or_default().into_iter().map(|at| at.value).collect(),
    })
}

fn pin(text: &str) -> Result<Pin, String> {
    let bytes = BASE64.decode(text).ok().and_then(|bytes| Pin::try_from(bytes).ok());
    bytes.ok_or_else(|| {
        let hex = text.chars().filter(char::is_ascii_hexdigit).count() == 64;
        let hint = if hex {
            "this looks like a certificate's fingerprint, and what counts is the key's"
        } else {
            "it has 44 characters"
        };
        format!(
            "must be SHA-256 of a public key in base64, as `openssl x509 -in cert.pem -pubkey \
             -noout | openssl pkey -pubin -outform DER | openssl dgst -sha256 -binary | base64` \
             prints it; {hint}"
        )
    })
}

/// As [`Origination::pins`] are read.
pub(crate) fn shown(pin: &Pin) -> String {
    BASE64.encode(pin)
}

fn certificates<'t>(reader: &mut Reader<'t>, tls: &Table<'t>) -> Vec<Certificate> {
    let tables = reader.tables(tls, "certificates").into_iter();
    let read = |At { value, place }| {
        let table = reader.open(value, &TLS_CERTIFICATE, place);
        certificate(reader, &table)
    };
    tables.filter_map(read).collect()
}

fn default_certificate<'t>(reader: &mut Reader<'t>, tls: &Table<'t>) -> Option<Certificate> {
    let table = reader.table(tls, "default_certificate", &TLS_DEFAULT)?;
    certificate(reader, &table)
}

fn certificate<'t>(reader: &mut Reader<'t>, table: &Table<'t>) -> Option<Certificate> {
    reader.miss(table, "cert", "a PEM file: the certificate, and those that it leads to");
    reader.miss(table, "key", "a PEM file: the certificate's private key");
    let (cert, key) = (pem(reader, table, "cert"), pem(reader, table, "key"));
    Some(Certificate { cert: cert?, key: key? })
}

fn pem<'t>(reader: &mut Reader<'t>, table: &Table<'t>, key: &str) -> Option<Pem> {
    let At { value, place } = reader.get(table, key, |value| match string(value)? {
        "" => Err("names no file".to_owned()),
        path => Ok(path),
    })?;
    Some(Pem::File(At { value: reader.path(value), place }))
}

fn client_auth<'t>(reader: &mut Reader<'t>, tls: &Table<'t>) -> ClientAuth {
    let words = [("required", ClientAuth::Required), ("optional", ClientAuth::Optional)];
    let asked = reader.get(tls, "client_auth", word(&words));
    if asked.is_some() {
        reader.miss(tls, "client_ca", "client certificates must lead to one that is in it");
    }
    if tls.has("client_crl") {
        reader.miss(tls, "client_ca", "the list is for certificates that lead to one in it");
    }
    // Who names a CA wants to see certificates of it.
    let default = if tls.has("client_ca") { ClientAuth::Required } else { ClientAuth::Off };
    or(asked, default)
}

fn alpn<'t>(reader: &mut Reader<'t>, tls: &Table<'t>) -> Vec<String> {
    let names = reader.list(tls, "alpn", |value| match string(value)? {
        name if (1..=255).contains(&name.len()) => Ok(name.to_owned()),
        _ => Err("must be 1 to 255 bytes, such as \"h2\" or \"postgresql\"".to_owned()),
    });
    names.unwrap_or_default().into_iter().map(|at| at.value).collect()
}
