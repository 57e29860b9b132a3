//! Shows addresses to people, in the form of the configuration.

use std::fmt;
use std::net::SocketAddr;

use config_sync::table::address::{Address, EndpointAddress, UNIX_CLIENT};
use config_sync::table::routing::{Balance, OnUnavailable, Protocol, RouteBalance};
use serde::Serialize;

/// The protocol's word.
pub fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Tls => "TLS",
    }
}

/// The word of a backend's balance.
pub fn balance(balance: &Balance) -> &'static str {
    match balance {
        Balance::RoundRobin => "round-robin",
        Balance::LeastConnections => "least-connections",
        Balance::Random => "random",
        Balance::SourceHash(_) => "source-hash",
        Balance::SourcePortHash(_) => "source-port-hash",
    }
}

/// The word of a route's balance.
pub fn route_balance(balance: RouteBalance) -> &'static str {
    match balance {
        RouteBalance::RoundRobin => "round-robin",
        RouteBalance::SourceHash => "source-hash",
    }
}

/// The word for what becomes of the share of a backend without endpoints.
pub fn on_unavailable(asked: OnUnavailable) -> &'static str {
    match asked {
        OnUnavailable::Refuse => "refuse",
        OnUnavailable::Next => "next",
    }
}

/// An address in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown<'a> {
    Ip(SocketAddr),
    /// An endpoint.
    Endpoint(EndpointAddress),
    /// A Unix socket. `None`: a client of such a socket.
    Unix(Option<&'a Address>),
}

impl From<SocketAddr> for Shown<'_> {
    fn from(address: SocketAddr) -> Self {
        if address == UNIX_CLIENT { Self::Unix(None) } else { Self::Ip(address) }
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => Address::Ip(*address).fmt(f),
            Self::Endpoint(address) => address.fmt(f),
            Self::Unix(Some(address)) => address.fmt(f),
            Self::Unix(None) => f.write_str("unix"),
        }
    }
}

impl Serialize for Shown<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Ip(address @ SocketAddr::V4(_)) => address.serialize(serializer),
            Self::Ip(_) | Self::Endpoint(_) | Self::Unix(_) => serializer.collect_str(self),
        }
    }
}
