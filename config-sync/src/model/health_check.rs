//! Health checks of a backend's endpoints: the settings and their defaults.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use crate::model::place::At;
use crate::model::tls::{Origination, Pem};
use crate::table::routing::ProxyVersion;

/// How a backend's endpoints are checked. Intervals and times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    pub kind: Kind,
    /// From one check of an endpoint to the next check, at least 100.
    pub interval: u32,
    /// The same while an endpoint is between up and down: the latest checks speak against the
    /// endpoint's state, but they are too few to change the state. At most `interval`.
    pub fast_interval: u32,
    /// The same while an endpoint is down, and no check has been good since.
    pub down_interval: u32,
    /// Each check begins up to this much later, at random.
    pub jitter: u32,
    /// The time for the whole check, at most `interval`.
    pub timeout: u32,
    /// Good checks in a row that bring an endpoint back: 1 to 100.
    pub rise: u8,
    /// Failed checks in a row that take an endpoint out: 1 to 100.
    pub fall: u8,
    /// The port to connect to. 0: the endpoint's own port.
    pub port: u16,
    /// Whether the check speaks TLS. `None`: TLS on the endpoint's own port, if the backend has
    /// `tls`.
    pub tls: Option<bool>,
    /// Whether the endpoint's certificate is verified.
    pub verify: bool,
    /// The CA certificates that sign the endpoint's certificate, instead of the `ca` and the pins
    /// of the backend's `tls`.
    pub ca: Option<Pem>,
    /// The server name to send, and the name that the endpoint's certificate must have, instead of
    /// the names of the backend's `tls`.
    pub server_name: Option<String>,
    /// The name that the check asks for, by TLS or by HTTP. `None`: the name in the backend's
    /// `tls`, or the endpoint's address.
    pub host: Option<String>,
    /// The PROXY header in front of the check.
    pub send_proxy: CheckProxy,
}

/// What the check says, and the answer that makes the check good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The connection is established. Nothing is sent.
    Tcp,
    /// The TLS handshake succeeds.
    Tls,
    Http(Http),
    Exchange(Vec<Step>),
    /// The greeting; with a user, a session, and whether the server is read-only.
    Mysql(Login),
    /// The answer to a request for TLS; with a user, a session, and what it says of recovery.
    Postgres(Login),
    /// PING, or ROLE.
    Redis(Login),
    Dns(Dns),
    Sip(Sip),
    Udp(Udp),
    /// The line of an agent. The bytes are what the agent is told first.
    Agent(Option<Arc<[u8]>>),
}

/// The PROXY header of checks. Its command is LOCAL or UNKNOWN, because there is no client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckProxy {
    /// The backend's own header on the endpoint's own port; no header on another port.
    AsSessions,
    No,
    Version(ProxyVersion),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    pub method: String,
    pub path: String,
    /// Status codes that are good.
    pub status: Vec<RangeInclusive<u16>>,
    /// What the body must have.
    pub body: Option<Expect>,
}

/// What an answer must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// These bytes, anywhere.
    Bytes(Arc<[u8]>),
    Regex(Pattern),
}

/// Says something, and then expects something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub send: Option<Arc<[u8]>>,
    pub expect: Option<Expect>,
}

/// Who asks, and for what. Everything is optional.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Login {
    pub user: Option<String>,
    /// The file is read for every check, so that a changed password counts at once.
    pub password_file: Option<At<PathBuf>>,
    pub role: Option<Role>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Primary,
    Replica,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    pub transport: Transport,
    /// Labels of 1 to 63 bytes, 253 in all. Empty: the root.
    pub query: String,
    /// The type of the record.
    pub record: u16,
    /// The codes that are good.
    pub rcodes: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sip {
    pub transport: Transport,
    /// Status codes that are good.
    pub status: Vec<RangeInclusive<u16>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Udp {
    pub send: Arc<[u8]>,
    pub expect: Option<Expect>,
    /// Whether the check is good if no answer comes within the timeout. An ICMP message that
    /// nothing listens makes the check fail in any case.
    pub silence: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// Types of records and their numbers (IANA, DNS Parameters).
pub(crate) const RECORDS: [(&str, u16); 9] = [
    ("A", 1),
    ("AAAA", 28),
    ("CNAME", 5),
    ("MX", 15),
    ("NS", 2),
    ("PTR", 12),
    ("SOA", 6),
    ("SRV", 33),
    ("TXT", 16),
];

/// Codes of answers and their numbers (RFC 1035, section 4.1.1).
pub(crate) const RCODES: [(&str, u8); 6] = [
    ("NOERROR", 0),
    ("FORMERR", 1),
    ("SERVFAIL", 2),
    ("NXDOMAIN", 3),
    ("NOTIMP", 4),
    ("REFUSED", 5),
];

impl Expect {
    /// The end of the first part of `bytes` that is expected.
    pub fn end_in(&self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::Bytes(wanted) => {
                let mut parts = bytes.windows(wanted.len().max(1));
                parts.position(|part| part == &**wanted).map(|at| at + wanted.len())
            }
            Self::Regex(pattern) => pattern.regex.find(bytes).map(|found| found.end()),
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "\"{}\"", bytes.escape_ascii()),
            Self::Regex(pattern) => write!(f, "a match of \"{}\"", pattern.text().escape_debug()),
        }
    }
}

/// A regular expression over bytes. The time of a search is linear in the bytes.
#[derive(Clone)]
pub struct Pattern {
    regex: regex::bytes::Regex,
}

impl Pattern {
    /// # Errors
    /// The text is no regular expression, or the expression is too large.
    pub fn read(text: &str) -> Result<Self, String> {
        let built = regex::bytes::RegexBuilder::new(text).size_limit(MOST_OF_REGEX).build();
        match built {
            Ok(regex) => Ok(Self { regex }),
            Err(regex::Error::CompiledTooBig(_)) => Err("is too large when compiled".to_owned()),
            Err(error) => {
                // The last line says what is wrong, and the lines before draw where.
                let error = error.to_string();
                let reason = error.lines().last().unwrap_or_default();
                let reason = reason.trim_start_matches("error: ");
                Err(format!("\"{text}\" is no regular expression: {reason}"))
            }
        }
    }

    pub fn text(&self) -> &str {
        self.regex.as_str()
    }
}

/// Bytes of memory of one compiled expression.
const MOST_OF_REGEX: usize = 1 << 20;

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.text(), f)
    }
}

impl HealthCheck {
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            kind,
            interval: INTERVAL,
            fast_interval: INTERVAL,
            down_interval: INTERVAL,
            jitter: 0,
            timeout: TIMEOUT,
            rise: RISE,
            fall: FALL,
            port: 0,
            tls: None,
            verify: true,
            ca: None,
            server_name: None,
            host: None,
            send_proxy: CheckProxy::AsSessions,
        }
    }

    /// Milliseconds after which a check has ended that begins later than now. The endpoint is up.
    pub(crate) fn ends_within(&self) -> u32 {
        self.interval.saturating_add(self.jitter).saturating_add(self.timeout)
    }

    /// Whether the check goes to something that sessions do not use.
    pub fn is_beside(&self) -> bool {
        self.port != 0
    }

    /// Whether the check speaks TLS, if its backend does as `backend` says.
    pub fn speaks_tls(&self, backend: bool) -> bool {
        match self.kind {
            Kind::Tcp => false,
            Kind::Tls => true,
            _ if self.speaks_udp() => false,
            _ => self.tls.unwrap_or_else(|| backend && !self.is_beside()),
        }
    }

    /// How the check speaks TLS, if not as sessions do. `backend` is the backend's `tls`.
    pub(crate) fn own_tls(&self, backend: Option<&Origination>) -> Option<Origination> {
        let is_own = self.verify && (self.ca.is_some() || self.server_name.is_some());
        if !is_own || !self.speaks_tls(backend.is_some()) {
            return None;
        }
        let mut own = match (backend, &self.server_name) {
            (Some(backend), _) => backend.clone(),
            (None, Some(name)) => Origination::new(name.clone()),
            (None, None) => return None,
        };
        if let Some(ca) = &self.ca {
            own.ca = Some(ca.clone());
            own.pins.clear();
        }
        if let Some(name) = &self.server_name {
            own.server_name.clone_from(name);
            own.subject_alt_names.clear();
        }
        Some(own)
    }

    pub fn speaks_udp(&self) -> bool {
        match &self.kind {
            Kind::Dns(Dns { transport, .. }) | Kind::Sip(Sip { transport, .. }) => {
                *transport == Transport::Udp
            }
            Kind::Udp(_) => true,
            _ => false,
        }
    }

    /// Who asks, for kinds of checks that say so.
    pub fn login(&self) -> Option<&Login> {
        match &self.kind {
            Kind::Mysql(login) | Kind::Postgres(login) | Kind::Redis(login) => Some(login),
            _ => None,
        }
    }

    /// Whether the check asks for TLS, to see the answer, and does not need TLS.
    pub fn accepts_tls(&self) -> bool {
        matches!(&self.kind, Kind::Postgres(Login { user: None, .. }))
    }

    /// The name of the check's kind in a file.
    pub fn word(&self) -> &'static str {
        match self.kind {
            Kind::Tcp => "tcp",
            Kind::Tls => "tls",
            Kind::Http(_) => "http",
            Kind::Exchange(_) => "exchange",
            Kind::Mysql(_) => "mysql",
            Kind::Postgres(_) => "postgres",
            Kind::Redis(_) => "redis",
            Kind::Dns(_) => "dns",
            Kind::Sip(_) => "sip",
            Kind::Udp(_) => "udp",
            Kind::Agent(_) => "agent",
        }
    }
}

// The values of keys that are not given.
pub(crate) const INTERVAL: u32 = 5_000;
pub(crate) const TIMEOUT: u32 = 2_000;
pub(crate) const RISE: u8 = 2;
pub(crate) const FALL: u8 = 3;

/// The most bytes of a password file.
pub(crate) const MOST_OF_PASSWORD: u64 = 4_096;

/// The range of `rise` and `fall`.
pub(crate) const TIMES: RangeInclusive<u8> = 1..=100;

/// The timeout if only the interval is given.
pub(crate) fn timeout_of(interval: u32) -> u32 {
    TIMEOUT.min(interval)
}

impl Default for Http {
    fn default() -> Self {
        Self { method: "GET".to_owned(), path: "/".to_owned(), status: vec![200..=399], body: None }
    }
}

impl Default for Dns {
    fn default() -> Self {
        let (transport, query) = (Transport::Udp, String::new());
        Self { transport, query, record: 1, rcodes: vec![0] }
    }
}

impl Default for Sip {
    fn default() -> Self {
        Self { transport: Transport::Udp, status: vec![200..=299] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::parse;

    #[test]
    fn a_check_has_the_tls_of_its_backend_but_for_its_own_keys() {
        let own = |check: &str, tls: &str| {
            let backend = format!("[[backends]]\nname = \"b\"\nendpoints = []\n{tls}\n");
            let text = format!("{backend}health_check = {{ {check} }}\n");
            let config = parse("f", &text).unwrap_or_else(|problems| panic!("{problems}"));
            let backend = &config.backends[0];
            backend.health_check.as_ref()?.value.own_tls(backend.tls.as_ref())
        };
        let shown = |own: &Origination| {
            let ca = own.ca.as_ref().map(|pem| format!("{pem:?}"));
            let names: Vec<_> = own.subject_alt_names.iter().map(ToString::to_string).collect();
            (own.server_name.clone(), ca, names, own.pins.len(), own.certificate.is_some())
        };
        let pin = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let tls = format!(
            "tls = {{ server_name = \"a\", ca = \"a.pem\", subject_alt_names = [\"b\"], \
             pin_sha256 = [\"{pin}\"], cert = \"c.pem\", key = \"c.key\" }}"
        );
        let file = |name: &str| Some(format!("File({name})"));
        let names = || vec!["b".to_owned()];
        let by_ca = own("type = \"tls\", ca = \"x.pem\"", &tls).expect("its own");
        assert_eq!(shown(&by_ca), ("a".to_owned(), file("x.pem"), names(), 0, true));
        let by_name = own("type = \"http\", server_name = \"x\"", &tls).expect("its own");
        assert_eq!(shown(&by_name), ("x".to_owned(), file("a.pem"), Vec::new(), 1, true));
        let alone = own("type = \"tls\", ca = \"x.pem\", server_name = \"x\"", "").expect("own");
        assert_eq!(shown(&alone), ("x".to_owned(), file("x.pem"), Vec::new(), 0, false));
        for check in ["type = \"tls\"", "type = \"tls\", verify = false, server_name = \"x\""] {
            assert_eq!(own(check, &tls), None, "{check}");
        }
    }
}
