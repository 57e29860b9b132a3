//! A listener, and what holds for one of which nothing else is said.

use std::net::SocketAddr;

use ipnet::IpNet;

use crate::model::admission::Admission;
use crate::model::place::At;
use crate::model::time::{HOUR, MINUTE, SECOND};
use crate::model::tls::Termination;
use crate::table::routing::{OnTruncation, Protocol, SocketOptions, Starttls, Timeouts, Transport};

#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    pub name: At<String>,
    pub protocol: Protocol,
    pub address: At<SocketAddr>,
    /// TLS only. In lower case, the first label may be `*`; `None`: every name, and none.
    pub hostname: Option<At<String>>,
    /// TLS only. The name that clients are taken to ask for that send none; in lower case.
    pub default_hostname: Option<At<String>>,
    /// TLS only. What clients may say before the ClientHello.
    pub starttls: Option<Starttls>,
    /// TLS only. `None`: passed through, as it is.
    pub tls: Option<Termination>,
    pub timeouts: Timeouts,
    pub on_truncation: OnTruncation,
    pub flow_timeout: u32,
    /// UDP: replies per client datagram after which a flow ends; 0: only by `flow_timeout`.
    pub responses: u32,
    /// Per worker; 0: only the worker's own limit.
    pub max_sessions: u32,
    /// Connections, or UDP: datagrams, from these sources must begin with a PROXY header; `None`:
    /// none.
    pub accept_proxy: Option<At<Vec<IpNet>>>,
    /// Of accepted connections.
    pub options: SocketOptions,
    pub admission: Admission,
}

/// What holds where nothing is said.
pub(crate) const OPTIONS: SocketOptions =
    SocketOptions { nodelay: true, keepalive: 60, user_timeout: 0, congestion: [0; 16] };

/// Of listeners of which nothing is said.
pub(crate) const TIMEOUTS: Timeouts = Timeouts {
    hello: 5 * SECOND,
    idle: HOUR,
    write_stall: 5 * MINUTE,
    half_close: 5 * MINUTE,
    lifetime: 0,
};

/// Of UDP listeners of which nothing is said.
pub(crate) const FLOW_TIMEOUT: u32 = MINUTE;

/// The transport that a protocol runs on.
pub(crate) fn transport(protocol: Protocol) -> Transport {
    match protocol {
        Protocol::Tcp | Protocol::Tls => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
    }
}

/// The name that clients are taken to ask for that send none.
pub(crate) fn nameless(listener: &Listener) -> Option<&str> {
    listener.default_hostname.as_ref().map(|name| name.value.as_str())
}

pub(crate) fn bound_to(listener: &Listener) -> (Transport, SocketAddr) {
    (transport(listener.protocol), listener.address.value)
}
