//! How names of endpoints are resolved: the settings and their defaults.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::model::place::At;
use crate::model::time::{HOUR, SECOND};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolver {
    /// If the list is empty, the servers of /etc/resolv.conf.
    pub servers: Vec<At<NameServer>>,
    /// Milliseconds, at least 1 s. A name is resolved again when its records expire (TTL), but not
    /// before `min_ttl` and not after `max_ttl`.
    pub min_ttl: u32,
    pub max_ttl: u32,
    /// Milliseconds for which the last good addresses of a name stay while the name can't be
    /// resolved. 0: for ever.
    pub keep: u32,
}

impl Default for Resolver {
    fn default() -> Self {
        Self { servers: Vec::new(), min_ttl: 5 * SECOND, max_ttl: HOUR, keep: 0 }
    }
}

/// The range of `min_ttl` and `max_ttl`, in milliseconds.
pub(crate) const TTL: RangeInclusive<u32> = SECOND..=24 * HOUR;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameServer {
    pub address: SocketAddr,
    pub transport: DnsTransport,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsTransport {
    /// UDP, and TCP for answers that were truncated.
    Udp,
    Tcp,
    /// DNS over TLS (RFC 7858). The server's certificate has this name, and is signed by an
    /// authority of the system.
    Tls(Arc<str>),
}
