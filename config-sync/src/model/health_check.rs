//! Health checks of a backend's endpoints: the settings and their defaults.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

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

impl Expect {
    pub fn is_in(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Bytes(wanted) => {
                wanted.is_empty() || bytes.windows(wanted.len()).any(|part| part == &**wanted)
            }
            Self::Regex(pattern) => pattern.regex.is_match(bytes),
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
            host: None,
            send_proxy: CheckProxy::AsSessions,
        }
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
            Kind::Http(_) => self.tls.unwrap_or_else(|| backend && !self.is_beside()),
        }
    }

    /// The name of the check's kind in a file.
    pub fn word(&self) -> &'static str {
        match self.kind {
            Kind::Tcp => "tcp",
            Kind::Tls => "tls",
            Kind::Http(_) => "http",
        }
    }
}

// The values of keys that are not given.
pub(crate) const INTERVAL: u32 = 5_000;
pub(crate) const TIMEOUT: u32 = 2_000;
pub(crate) const RISE: u8 = 2;
pub(crate) const FALL: u8 = 3;

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
