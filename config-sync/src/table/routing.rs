//! The immutable routing table.
//!
//! Ids are stable over the life of the process: the same name (or, for an endpoint, the same
//! backend name and address) has the same id in every table, so cursors, counts and counters that
//! workers key by id survive a new table. Indices (`usize` into a table's own vectors) hold only
//! within the table that they came from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ahash::AHashMap;
use ipnet::IpNet;

use super::ranges::{Access, ByPrefix};
use super::terminator::{Originator, Terminator};

/// Ids are below these, so per-worker state can be flat arrays allocated at start. The compiler
/// refuses a configuration that would pass them.
pub const MAX_SOCKETS: usize = 4096;
pub const MAX_LISTENERS: usize = 4096;
pub const MAX_ENDPOINTS: usize = 65_536;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);

        impl $name {
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}

id!(/// A listening socket: transport and address. One file descriptor per worker.
    SocketId);
id!(/// A listener by its name.
    ListenerId);
id!(/// A route by its name.
    RouteId);
id!(/// A backend by its name.
    BackendId);
id!(/// An endpoint by its backend's name and its address.
    EndpointId);

/// Everything that a worker may route to, whole and immutable.
#[derive(Clone, Debug)]
pub struct RoutingTable {
    /// Counts up by one with each table that is published; the first is 1. 0 is the empty table
    /// that a worker starts with.
    pub generation: u64,
    pub sockets: Vec<Socket>,
    pub listeners: Vec<Listener>,
    pub routes: Vec<Route>,
    /// In the order of their ids, by which they are looked up.
    pub backends: Vec<Backend>,
    /// Milliseconds for which a UDP flow stays with an endpoint that has left the table.
    pub lame_duck: u32,
    /// Set in the last table of a process: nothing is accepted any more, and what lives has this
    /// long to end.
    pub drain: Option<Drain>,
    pub log_opens: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Milliseconds from the moment the table is applied until sessions start to be closed, idle
    /// ones first.
    pub timeout: u32,
    /// Milliseconds over which those closes are spread.
    pub spread: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    Tcp,
    Udp,
}

/// A listening socket and the listeners that share it. TLS listeners with different hostnames share
/// one socket; a TCP or UDP listener has its own.
#[derive(Clone, Debug)]
pub struct Socket {
    pub id: SocketId,
    pub transport: Transport,
    pub address: SocketAddr,
    pub options: SocketOptions,
    /// Whether the ClientHello must be read before a listener can be chosen.
    pub reads_hello: bool,
    /// Milliseconds for that, and for a PROXY header before it: the longest of its listeners';
    /// 0: no limit.
    pub hello_timeout: u32,
    /// Who may come in, where the listener does not matter for that: all that share the socket
    /// have this. `None`: it is seen once the listener is known.
    pub access: Option<Arc<Access>>,
    /// What clients may say before the ClientHello.
    pub starttls: Option<Starttls>,
    /// The name that clients are taken to ask for that send none, in lower case.
    pub default_hostname: Option<Box<str>>,
    /// From these sources every connection begins with a PROXY header, from others none does.
    pub accept_proxy: Box<[IpNet]>,
    /// Indices into [`RoutingTable::listeners`].
    pub listeners: Hosts<usize>,
}

/// A protocol whose clients ask for TLS before they speak it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Starttls {
    /// PostgreSQL's frontend/backend protocol, 3.0 and later (PostgreSQL documentation, 54.2.10).
    Postgres,
}

/// Socket options of accepted connections (set on the listening socket, from which they are
/// inherited) or of connections to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketOptions {
    /// `TCP_NODELAY`
    pub nodelay: bool,
    /// `TCP_KEEPIDLE` and `TCP_KEEPINTVL`, in seconds; 0: no keepalive.
    pub keepalive: u32,
    /// `TCP_USER_TIMEOUT`, in milliseconds; 0: the kernel's own.
    pub user_timeout: u32,
    /// `TCP_CONGESTION`: a NUL-padded name; all zero: the kernel's default.
    pub congestion: [u8; 16],
}

#[derive(Clone, Debug)]
pub struct Listener {
    pub id: ListenerId,
    pub name: Arc<str>,
    /// Index into [`RoutingTable::sockets`].
    pub socket: usize,
    pub protocol: Protocol,
    /// `None`: what clients send is passed through as it is.
    pub tls: Option<Arc<Terminator>>,
    pub timeouts: Timeouts,
    pub on_truncation: OnTruncation,
    /// Milliseconds without a datagram either way after which a UDP flow ends.
    pub flow_timeout: u32,
    /// Replies per client datagram after which a UDP flow ends at once; 0: only by `flow_timeout`.
    pub responses: u32,
    /// Sessions or flows of this listener on one worker; 0: only the worker's own limit.
    pub max_sessions: u32,
    /// Who may come in; `None`: everyone.
    pub access: Option<Arc<Access>>,
    /// Indices into [`RoutingTable::routes`], or into `by_source` if there is one. TCP and UDP
    /// listeners use only `Hosts::any`.
    pub routes: Hosts<usize>,
    /// Where routes differ by the client's address: indices into [`RoutingTable::routes`], or
    /// [`NO_ROUTE`]. Empty: none do.
    pub by_source: Vec<ByPrefix>,
}

/// In the place of an index: there is no route for the client's address.
pub const NO_ROUTE: u32 = u32::MAX;

impl Listener {
    /// The index of the client's route among those that `routes` gave for its server name.
    pub fn route(&self, found: usize, client: IpAddr) -> Option<usize> {
        match self.by_source.get(found) {
            None => Some(found),
            Some(routes) => match routes.get(client) {
                NO_ROUTE => None,
                route => Some(route as usize),
            },
        }
    }
}

/// What becomes of an end of TLS without close_notify, once all that came before was delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnTruncation {
    /// The other side is told that something may be missing: by a reset, or, if it speaks TLS with
    /// the gateway, by an end that is just as truncated.
    #[default]
    Reset,
    /// It is a clean end, but in the middle of a record.
    Fin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Tls,
}

/// In milliseconds; 0 is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From accept until a PROXY header and the ClientHello are whole.
    pub hello: u32,
    /// No byte either way.
    pub idle: u32,
    /// Bytes are waiting, and their receiver takes none.
    pub write_stall: u32,
    /// One direction has ended, and no byte comes the other way.
    pub half_close: u32,
    /// From accept, whatever happens.
    pub lifetime: u32,
}

#[derive(Clone, Debug)]
pub struct Route {
    pub id: RouteId,
    pub name: Arc<str>,
    /// Who may use it; `None`: everyone.
    pub access: Option<Arc<Access>>,
    /// In the order of the configuration; weights 0 to 1,000,000. All weights 0, or no backend:
    /// every session is refused.
    pub backends: Vec<WeightedBackend>,
}

#[derive(Clone, Copy, Debug)]
pub struct WeightedBackend {
    pub id: BackendId,
    /// Index into [`RoutingTable::backends`].
    pub backend: usize,
    pub weight: u32,
}

#[derive(Clone, Debug)]
pub struct Backend {
    pub id: BackendId,
    pub name: Arc<str>,
    pub balance: Balance,
    /// Only those that may be picked. Empty: the backend's share is refused, never redistributed.
    pub endpoints: Vec<Endpoint>,
    /// Milliseconds for one connection attempt.
    pub connect_timeout: u32,
    /// Endpoints tried before the client is refused: 1 to 8.
    pub connect_attempts: u8,
    pub options: SocketOptions,
    /// The header that comes first on every connection; `None`: none.
    pub send_proxy: Option<SendProxy>,
    /// `None`: it is given what clients send, or what a listener has decrypted, as it is.
    pub tls: Option<Arc<Originator>>,
    /// Local addresses to connect from, used in turn; empty: the kernel chooses.
    pub source: Vec<Sources>,
    /// UDP: few sockets for all flows, told apart by endpoint and local address. Then `source` has
    /// addresses of each IP version that the endpoints have.
    pub shared_sockets: bool,
    /// UDP, milliseconds: how long an upstream socket, or an endpoint and local address on a shared
    /// one, has no flow between two, so that a late reply can't reach the second one's client.
    pub upstream_rest: u32,
    /// Endpoints are connected to from clients' own addresses. Then there is no `source`, and
    /// sockets are not shared.
    pub transparent: bool,
}

/// What a backend's endpoints are told of a client, in the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SendProxy {
    pub version: ProxyVersion,
    /// With an id of the connection, which the access log has too; and with a checksum. Version 2.
    pub unique_id: bool,
    pub crc32c: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyVersion {
    V1,
    V2,
}

/// `count` local addresses, at least 1, from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources {
    pub first: IpAddr,
    pub count: u32,
}

impl Sources {
    /// The address at `index`, which is below `count`.
    pub fn at(&self, index: u32) -> IpAddr {
        match self.first {
            IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() + index).into(),
            IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() + u128::from(index)).into(),
        }
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        let (first, address) = match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                (u128::from(first.to_bits()), u128::from(address.to_bits()))
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => (first.to_bits(), address.to_bits()),
            _ => return false,
        };
        address.checked_sub(first).is_some_and(|index| index < u128::from(self.count))
    }
}

impl From<IpAddr> for Sources {
    fn from(first: IpAddr) -> Self {
        Self { first, count: 1 }
    }
}

#[derive(Clone, Debug)]
pub enum Balance {
    RoundRobin,
    /// The less loaded of two endpoints, the next in turn and one drawn at random, by this worker's
    /// own count.
    LeastConnections,
    Random,
    /// Maglev by source address: the lookup table holds indices into [`Backend::endpoints`]; its
    /// length is prime.
    SourceHash(Arc<[u16]>),
    /// The same by source address and port.
    SourcePortHash(Arc<[u16]>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub id: EndpointId,
    pub address: SocketAddr,
}

/// Fixed amounts that a worker allocates when it starts; not reloadable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub sessions: u32,
    pub flows: u32,
    /// Receive buffers for datagrams, 64 KiB each, and for small messages of TCP sessions, 8 KiB
    /// each: so many of both; a power of two.
    pub buffers: u16,
    pub pipes: u32,
    /// Bytes that one direction of a session moves at the most before the others have their turn.
    pub turn_bytes: u32,
    /// Bytes that one direction of a session carries, while the other carries none, before it
    /// counts as bulk, whose wake-ups are made fewer and larger; `u32::MAX`: never.
    pub bulk_bytes: u32,
}

impl RoutingTable {
    pub fn empty() -> Self {
        Self {
            generation: 0,
            sockets: Vec::new(),
            listeners: Vec::new(),
            routes: Vec::new(),
            backends: Vec::new(),
            lame_duck: 5_000,
            drain: None,
            log_opens: false,
        }
    }
}

/// Values by server name: an exact name beats the longest wildcard, which beats no name at all
/// (Gateway API, `TLSRouteSpec.hostnames`). `*.example.com` matches `a.example.com` and
/// `a.b.example.com`, never `example.com`.
#[derive(Clone, Debug)]
pub struct Hosts<T> {
    exact: AHashMap<Box<str>, T>,
    /// Keyed by what follows `*.`
    wildcard: AHashMap<Box<str>, T>,
    any: Option<T>,
}

impl<T: Copy> Hosts<T> {
    /// `seeds` key the hash; they need not be secret, because only configured names are stored.
    pub fn new(seeds: [u64; 4]) -> Self {
        let hasher = || ahash::RandomState::with_seeds(seeds[0], seeds[1], seeds[2], seeds[3]);
        Self {
            exact: AHashMap::with_hasher(hasher()),
            wildcard: AHashMap::with_hasher(hasher()),
            any: None,
        }
    }

    /// Adds `value` under `pattern`: a lower-case name, `*.` and a lower-case suffix, or `None` for
    /// every name and for clients that send none. Returns the value that stood there.
    pub fn insert(&mut self, pattern: Option<&str>, value: T) -> Option<T> {
        match pattern {
            None => self.any.replace(value),
            Some(name) => match name.strip_prefix("*.") {
                Some(suffix) => self.wildcard.insert(suffix.into(), value),
                None => self.exact.insert(name.into(), value),
            },
        }
    }

    /// The value for a server name, which must be in lower case.
    pub fn get(&self, name: Option<&str>) -> Option<T> {
        let Some(name) = name else { return self.any };
        if let Some(value) = self.exact.get(name) {
            return Some(*value);
        }
        let mut rest = name;
        while !self.wildcard.is_empty() {
            let Some((_, suffix)) = rest.split_once('.') else { break };
            if let Some(value) = self.wildcard.get(suffix) {
                return Some(*value);
            }
            rest = suffix;
        }
        self.any
    }

    /// The value that stands under every pattern, if it is one and the same.
    pub fn only(&self) -> Option<T>
    where
        T: PartialEq,
    {
        let mut values = self.exact.values().chain(self.wildcard.values()).chain(&self.any);
        let first = values.next()?;
        values.all(|value| value == first).then_some(*first)
    }

    /// The value that stands whatever the name: all that a TCP or UDP listener has.
    pub fn any(&self) -> Option<T> {
        self.any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_beats_longest_wildcard_beats_any() {
        let mut hosts = Hosts::new([1, 2, 3, 4]);
        hosts.insert(Some("db.example.com"), 1);
        hosts.insert(Some("*.example.com"), 2);
        hosts.insert(Some("*.eu.example.com"), 3);
        assert_eq!(hosts.get(Some("db.example.com")), Some(1));
        assert_eq!(hosts.get(Some("a.example.com")), Some(2));
        assert_eq!(hosts.get(Some("x.y.example.com")), Some(2));
        assert_eq!(hosts.get(Some("x.y.eu.example.com")), Some(3));
        assert_eq!(hosts.get(Some("example.com")), None);
        assert_eq!(hosts.get(None), None);
        hosts.insert(None, 4);
        assert_eq!(hosts.get(Some("example.com")), Some(4));
        assert_eq!(hosts.get(None), Some(4));
    }

    #[test]
    fn only_is_what_stands_under_every_pattern() {
        let mut hosts = Hosts::new([1, 2, 3, 4]);
        assert_eq!(hosts.only(), None);
        for pattern in [Some("a.example.com"), Some("*.example.com"), None] {
            hosts.insert(pattern, 1);
            assert_eq!(hosts.only(), Some(1));
        }
        for pattern in [Some("a.example.com"), Some("*.example.com"), None] {
            let mut hosts = hosts.clone();
            hosts.insert(pattern, 2);
            assert_eq!(hosts.only(), None);
        }
    }

    #[test]
    fn sources_have_what_they_give() {
        for first in ["10.0.255.254", "fd00::ffff"] {
            let sources = Sources { first: first.parse().unwrap(), count: 3 };
            assert!((0..3).all(|index| sources.contains(sources.at(index))), "{sources:?}");
            let next = Sources { count: 4, ..sources }.at(3);
            assert!(!sources.contains(next) && !sources.contains("9.9.9.9".parse().unwrap()));
        }
        let sources = Sources { first: "10.0.255.254".parse().unwrap(), count: 3 };
        assert_eq!(sources.at(2).to_string(), "10.1.0.0");
        assert!(!sources.contains("10.0.255.253".parse().unwrap()));
    }
}
