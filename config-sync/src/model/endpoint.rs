//! An endpoint of a backend, as it was asked for, and what is known of it beside that.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::model::limit::Limit;
use crate::model::place::At;
use crate::table::address::EndpointAddress;

#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    pub address: At<Address>,
    /// The endpoint's share within its backend: 0 to [`MAX_WEIGHT`]. 0: no new session.
    pub weight: u32,
    /// A backup gets sessions only while no other endpoint of the backend may be picked.
    pub backup: bool,
    /// The most sessions and flows over all workers. `None`: no limit.
    pub max_sessions: Option<u32>,
    /// How fast new sessions and flows, and their bytes, may come. `None`: the backend's
    /// `endpoint_limit`.
    pub limit: Option<Limit>,
    /// The name for operators. Unique within the backend.
    pub name: Option<At<String>>,
}

pub(crate) const MAX_WEIGHT: u32 = 256;

impl Endpoint {
    /// An endpoint with the default values of all other keys.
    pub(crate) fn at(address: At<Address>) -> Self {
        Self { address, weight: 1, backup: false, max_sessions: None, limit: None, name: None }
    }

    /// The IP address and port, if the configuration gives both.
    pub fn socket_address(&self) -> Option<SocketAddr> {
        self.fixed().and_then(EndpointAddress::socket_address)
    }

    /// The address. `None`: the address has to be resolved first.
    pub fn fixed(&self) -> Option<EndpointAddress> {
        match &self.address.value {
            Address::Fixed(address) => Some(*address),
            Address::Name(_) => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    Fixed(EndpointAddress),
    Name(DnsName),
}

/// A name of the DNS that stands for addresses, in lower case and without the last dot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DnsName {
    /// All A and AAAA records of the host, with this port.
    Host { host: Arc<str>, port: u16 },
    /// All addresses of the hosts in the SRV records of the service (RFC 2782).
    Service(Arc<str>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { host, port } => write!(f, "{host}:{port}"),
            Self::Service(service) => write!(f, "srv:{service}"),
        }
    }
}

/// The addresses that names stand for now. A name that was never resolved is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved(pub BTreeMap<DnsName, Vec<Target>>);

/// One address of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The rank of the SRV record's priority: 0 for the records to be used first. 0 for hosts.
    pub rank: u16,
    pub ip: IpAddr,
    pub port: u16,
    /// The weight of the SRV record; 1 for hosts, and for weight 0.
    pub weight: u16,
}

/// Whether an endpoint may be picked now, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub is_up: bool,
    /// Per cent of the endpoint's weight that are in force: 0 to 100. 0: the endpoint drains.
    pub share: u8,
    /// In place of the configured weight. With 0 the endpoint stays in the table, because its
    /// sessions and flows stay.
    pub weight: Option<u32>,
}

impl Standing {
    /// The standing of an endpoint of which nothing is known.
    pub const UP: Self = Self { is_up: true, share: 100, weight: None };
    pub const DOWN: Self = Self { is_up: false, share: 100, weight: None };

    pub fn may_be_picked(self) -> bool {
        self.is_up && self.share > 0
    }

    /// Whether an endpoint with this configured weight gets new sessions.
    pub(crate) fn takes(self, configured: u32) -> bool {
        self.may_be_picked() && self.weight.unwrap_or(configured) > 0
    }
}
