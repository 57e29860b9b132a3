//! A listener, and the default values of its keys.

use ipnet::IpNet;

use crate::model::admission::Admission;
use crate::model::limit::LimitOf;
use crate::model::place::At;
use crate::model::source_limit::SourceLimit;
use crate::model::time::{HOUR, MINUTE, SECOND};
use crate::model::tls::Termination;
use crate::table::address::{Address, Interface, Owner};
use crate::table::routing::{
    Bound, DnsGuard, OnRefusal, OnTruncation, Protocol, SocketOptions, Starttls, Timeouts,
    Transport,
};

#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    pub name: At<String>,
    pub protocol: Protocol,
    /// At least one. Each address has a socket of its own.
    pub addresses: Vec<At<Address>>,
    /// Clients come only over this interface.
    pub interface: Option<Interface>,
    /// This machine need not have the addresses.
    pub freebind: bool,
    /// The permissions of Unix sockets' files.
    pub mode: Option<u32>,
    /// The owner of Unix sockets' files.
    pub owner: Option<NamedOwner>,
    /// TLS only. Host names in lower case; the first label may be `*`. If the list is empty, the
    /// listener takes every name, and clients that send no name.
    pub hostnames: Vec<At<String>>,
    /// TLS only. The name for clients that send no name, in lower case.
    pub default_hostname: Option<At<String>>,
    /// TLS only. The protocol that clients may speak before the ClientHello.
    pub starttls: Option<Starttls>,
    /// TLS only. The backend of clients whose first bytes are not those of a ClientHello. `None`:
    /// such clients are closed.
    pub not_tls: Option<At<String>>,
    /// TLS only. The backend of clients that have sent nothing within `hello_timeout`. `None`: such
    /// clients are closed.
    pub silent: Option<At<String>>,
    /// TLS only. What a client sees that is refused.
    pub on_refusal: OnRefusal,
    /// TLS only. `None`: TLS passes through unchanged.
    pub tls: Option<Termination>,
    pub timeouts: Timeouts,
    pub on_truncation: OnTruncation,
    pub flow_timeout: u32,
    /// UDP: a flow ends after this number of replies per client datagram. 0: only `flow_timeout`
    /// ends a flow.
    pub responses: u32,
    /// UDP only. `None`: every datagram is forwarded.
    pub dns_guard: Option<DnsGuard>,
    /// The most sessions or flows over all workers. 0: only the workers' own limits count.
    pub max_sessions: u32,
    /// What each source may have and do. `None`: as much as all.
    pub limit_source: Option<SourceLimit>,
    /// What all sessions or flows of the listener may have together.
    pub limit: Option<LimitOf>,
    /// `None`: no PROXY header is accepted.
    pub accept_proxy: Option<At<AcceptProxy>>,
    /// Options of accepted connections.
    pub options: SocketOptions,
    pub admission: Admission,
}

/// The proxies in front of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptProxy {
    /// From these sources, every connection (for UDP, every datagram) must begin with a PROXY
    /// header.
    pub from: Vec<IpNet>,
    /// Nobody else may come in.
    pub only: bool,
}

/// An owner of files, and the words for the owner in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedOwner {
    pub text: String,
    pub owner: Owner,
}

/// The values of socket options that are not given.
pub(crate) const OPTIONS: SocketOptions =
    SocketOptions { nodelay: true, keepalive: 60, user_timeout: 0, congestion: [0; 16] };

/// The timeouts of a listener that gives none.
pub(crate) const TIMEOUTS: Timeouts = Timeouts {
    hello: 5 * SECOND,
    idle: HOUR,
    write_stall: 5 * MINUTE,
    half_close: 5 * MINUTE,
    lifetime: 0,
};

/// The `flow_timeout` of a UDP listener that gives none.
pub(crate) const FLOW_TIMEOUT: u32 = MINUTE;

/// The transport that a protocol runs on.
pub(crate) fn transport(protocol: Protocol) -> Transport {
    match protocol {
        Protocol::Tcp | Protocol::Tls => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
    }
}

/// The name for clients that send no name.
pub(crate) fn nameless(listener: &Listener) -> Option<&str> {
    listener.default_hostname.as_ref().map(|name| name.value.as_str())
}

/// The sockets of a listener.
pub(crate) fn bound_to(listener: &Listener) -> impl Iterator<Item = Bound> {
    let transport = transport(listener.protocol);
    let interface = listener.interface.as_ref().map_or(0, |interface| interface.index);
    let of = move |at: &At<Address>| Bound { transport, address: at.value, interface };
    listener.addresses.iter().map(of)
}
