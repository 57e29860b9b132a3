//! The immutable routing table.
//!
//! Ids are stable over the life of the process. A name (for an endpoint: the backend's name and the
//! address) has one id in every table. So cursors, counts and counters that workers key by id
//! survive a new table. Indices (`usize` into a table's own vectors) hold only within one table.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::address::{Address, Bind, EndpointAddress};
use super::alpn::ByAlpn;
use super::limit::{Limit, Load};
use super::load::{Line, Taken};
use super::ranges::{Access, ByPrefix};
use super::source_limit::{SourceLimit, SourceRecords};
use super::terminator::{Originator, Terminator};

pub use super::hosts::Hosts;

/// Ids are below these limits, so that per-worker state can be flat arrays that are allocated at
/// start. The compiler refuses a configuration that would exceed the limits.
pub const MAX_SOCKETS: usize = 4096;
pub const MAX_LISTENERS: usize = 4096;
pub const MAX_ROUTES: usize = 65_536;
pub const MAX_ENDPOINTS: usize = 65_536;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);

        impl $name {
            #[inline]
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

/// All routes of a worker, whole and immutable.
#[derive(Clone, Debug)]
pub struct RoutingTable {
    /// Grows by one with each table that is published. The first is 1; a worker starts with the
    /// empty table, which has 0.
    pub generation: u64,
    pub sockets: Vec<Socket>,
    pub listeners: Vec<Listener>,
    pub routes: Vec<Route>,
    /// In the order of their ids, because workers look backends up by id.
    pub backends: Vec<Backend>,
    /// Milliseconds for which a UDP flow stays with an endpoint that has left the table.
    pub lame_duck: u32,
    /// Endpoints that are not in the table, and that sessions and flows must leave.
    pub gone: Arc<[GoneEndpoint]>,
    /// The records of clients' sources. `None`: nothing has limited them so far.
    pub sources: Option<Arc<SourceRecords>>,
    /// What all sessions and flows of the process may have together.
    pub total: Option<Box<Limit>>,
    /// Set in the last table of a process. Workers accept nothing any more, and live sessions and
    /// flows have this long to end.
    pub drain: Option<Drain>,
    /// Sockets of the table before that another process serves from now on. This process stops
    /// accepting and receiving on them, and closes nothing that waits in their queues.
    pub handed_over: Arc<BTreeSet<SocketId>>,
    pub log_opens: bool,
}

/// An endpoint that left the table while sessions or flows may still have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoneEndpoint {
    pub id: EndpointId,
    pub absence: Absence,
    /// Milliseconds from the moment a worker applies the first table with this entry until the
    /// worker begins to close the sessions, the longest idle first.
    pub close_after: u32,
}

/// Why an endpoint is not in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// The endpoint is configured, and is down.
    Down,
    /// The endpoint is no longer configured.
    Removed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Milliseconds from the moment a worker applies the table until the worker begins to close
    /// sessions, idle sessions first.
    pub timeout: u32,
    /// Milliseconds over which the worker spreads these closes.
    pub spread: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    Tcp,
    Udp,
}

/// A listening socket and the listeners that share it. TLS listeners with different hostnames share
/// one socket; a TCP or UDP listener has its own. A listener has one socket for each address.
#[derive(Clone, Debug)]
pub struct Socket {
    pub id: SocketId,
    pub transport: Transport,
    pub address: Address,
    pub bind: Bind,
    pub options: SocketOptions,
    /// Whether a worker must read the ClientHello before the worker can choose a listener.
    pub reads_hello: bool,
    /// Milliseconds for the ClientHello, and for a PROXY header before the ClientHello. This is the
    /// longest timeout of the socket's listeners. 0: no limit.
    pub hello_timeout: u32,
    /// Which clients may come in, if all listeners of the socket have this one value. `None`: the
    /// worker checks once the listener is known.
    pub access: Option<Arc<Access>>,
    /// The protocol that clients may speak before the ClientHello.
    pub starttls: Option<Starttls>,
    pub on_refusal: OnRefusal,
    /// The name for clients that send no name, in lower case.
    pub default_hostname: Option<Box<str>>,
    pub accept_proxy: AcceptProxy,
    /// Where clients go whose first bytes are not those of a ClientHello. `None`: they are closed.
    pub not_tls: Option<Fallback>,
    /// Where clients go that have sent nothing within `hello_timeout`. `None`: they are closed.
    pub silent: Option<Fallback>,
    /// Indices into [`RoutingTable::listeners`].
    pub listeners: Hosts<usize>,
}

/// Where a connection without a ClientHello goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// Index into [`RoutingTable::listeners`].
    pub listener: usize,
    /// Index into [`RoutingTable::routes`].
    pub route: usize,
}

impl Socket {
    pub fn bound(&self) -> Bound {
        let interface = self.bind.interface_index();
        Bound { transport: self.transport, address: self.address, interface }
    }
}

/// What tells one listening socket from all others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bound {
    pub transport: Transport,
    pub address: Address,
    /// The number of the interface. 0: every interface.
    pub interface: u32,
}

/// The proxies in front of a socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AcceptProxy {
    /// Every connection from these sources begins with a PROXY header, and no other connection
    /// does.
    pub from: Box<[IpNet]>,
    /// Nobody else may come in.
    pub only: bool,
}

impl AcceptProxy {
    /// Whether what the sender sends begins with a PROXY header.
    #[inline]
    pub fn expects_header(&self, sender: IpAddr) -> bool {
        self.from.iter().any(|range| range.contains(&sender))
    }

    #[inline]
    pub fn admits(&self, sender: IpAddr) -> bool {
        !self.only || self.expects_header(sender)
    }
}

/// A protocol in which clients ask for TLS before the TLS handshake begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Starttls {
    /// PostgreSQL's frontend/backend protocol, 3.0 and later (PostgreSQL documentation, 54.2.10).
    Postgres,
}

/// Socket options of accepted connections or of connections to a backend. For accepted connections
/// they are set on the listening socket, and the accepted sockets inherit them.
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
    pub protocol: Protocol,
    /// `None`: TLS passes through unchanged.
    pub tls: Option<Arc<Terminator>>,
    pub timeouts: Timeouts,
    pub on_truncation: OnTruncation,
    /// A UDP flow ends after this many milliseconds without a datagram in either direction.
    pub flow_timeout: u32,
    /// A UDP flow ends at once after this number of replies per client datagram. 0: only
    /// `flow_timeout` ends a flow.
    pub responses: u32,
    /// UDP. `None`: every datagram is forwarded.
    pub dns_guard: Option<DnsGuard>,
    /// The most sessions or flows of this listener, over all workers. 0: only the workers' own
    /// limits count.
    pub max_sessions: u32,
    /// `None`: no limit.
    pub taken: Option<Arc<Taken>>,
    /// What each source of clients may have and do. `None`: as much as all.
    pub limit_source: Option<Box<SourceLimit>>,
    /// What all sessions or flows of the listener may have together.
    pub limit: Option<Box<Limit>>,
    /// Which clients may come in. `None`: all clients.
    pub access: Option<Arc<Access>>,
    /// Indices into `by_source` if `by_source` has entries, else into [`RoutingTable::routes`]. TCP
    /// and UDP listeners use only `Hosts::any`.
    pub routes: Hosts<usize>,
    /// Indices into [`RoutingTable::routes`] by the client's address, or [`NO_ROUTE`]. The list is
    /// empty if no routes differ by the client's address.
    pub by_source: Vec<ByPrefix>,
    /// TLS: the routes by server name and by the protocols that a client offers. `None`: no route
    /// asks for protocols.
    pub by_alpn: Option<Box<ByAlpn>>,
}

/// Stands for an index if there is no route for the client's address.
pub const NO_ROUTE: u32 = u32::MAX;

impl Listener {
    /// The index of the client's route. `found` is the value that `routes` gave for the server
    /// name.
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

/// What a worker does when TLS ends without close_notify, once all earlier bytes were delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnTruncation {
    /// Tell the other side that bytes may be missing. A plain TCP side gets a reset; a side that
    /// speaks TLS with the gateway gets an end without close_notify.
    #[default]
    Reset,
    /// End cleanly, unless the end came in the middle of a record.
    Fin,
}

/// What is dropped in front of DNS servers, beside all that is no query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsGuard {
    /// Questions for all types of records.
    pub drops_any: bool,
    /// Of so many queries over the limit of their source, one is answered by "come over TCP". 0:
    /// none.
    pub slip: u32,
}

/// What a client sees that is refused before TLS is set up, or before an endpoint is connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnRefusal {
    /// The client is told why in the words of its protocol, and then gets a FIN. A client that is
    /// told takes the refusal for what it is. A client that gets a reset takes it for a fault of
    /// the network, and tries again and again.
    #[default]
    Tell,
    /// A reset, which does not show that anything here speaks TLS.
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Tls,
}

/// Timeouts in milliseconds; 0 is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From accept until the PROXY header and the ClientHello are complete.
    pub hello: u32,
    /// No byte moves in either direction.
    pub idle: u32,
    /// Bytes wait, and their receiver takes none.
    pub write_stall: u32,
    /// One direction has ended, and no byte moves in the other direction.
    pub half_close: u32,
    /// From accept, however busy the session is.
    pub lifetime: u32,
}

#[derive(Clone, Debug)]
pub struct Route {
    pub id: RouteId,
    pub name: Arc<str>,
    /// Which clients may use the route. `None`: all clients.
    pub access: Option<Arc<Access>>,
    /// What each source of the route's clients may have and do. `None`: as much as all.
    pub limit_source: Option<Box<SourceLimit>>,
    /// What all sessions or flows of the route may have together.
    pub limit: Option<Box<Limit>>,
    pub balance: RouteBalance,
    pub on_unavailable: OnUnavailable,
    /// In the order of the configuration; weights are 0 to 1,000,000. If all weights are 0, or
    /// there is no backend, every session is refused. See [`RoutingTable::pass_shares_on`].
    pub backends: Vec<WeightedBackend>,
}

/// How a route chooses among its backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RouteBalance {
    /// The backends take turns, each as often as its weight says.
    RoundRobin,
    /// The client's address decides, so a client stays with one backend on every worker and
    /// replica. Each backend has the share of all addresses that its weight says.
    SourceHash,
}

/// What happens to the share of a backend that has no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnUnavailable {
    /// The share is refused. The Gateway API demands this.
    Refuse,
    /// The route's other backends get the share, in proportion to their weights.
    Next,
}

#[derive(Clone, Copy, Debug)]
pub struct WeightedBackend {
    pub id: BackendId,
    /// Index into [`RoutingTable::backends`].
    pub backend: usize,
    pub weight: u32,
    /// A hash of the backend's name, which is equal on every replica. Ids differ between replicas.
    pub key: u64,
}

#[derive(Clone, Debug)]
pub struct Backend {
    pub id: BackendId,
    pub name: Arc<str>,
    pub balance: Balance,
    /// Only endpoints that a worker may pick, and endpoints with weight 0. If the list is empty,
    /// the backend's share is refused, unless the route passes the share on
    /// ([`OnUnavailable`]).
    pub endpoints: Vec<Endpoint>,
    /// One round of turns: indices into `endpoints`, each as often as its weight says. An endpoint
    /// with weight 0 has no turn: it gets no new session, and keeps its sessions and flows.
    pub turns: Arc<[u16]>,
    /// The loads of `endpoints`, in the same order. `None`, or an empty list: no worker has to know
    /// the load, and a count that all cores write costs time.
    pub loads: Vec<Option<Load>>,
    /// Where sessions wait if every endpoint is full. `None`: they are refused.
    pub queue: Option<Queue>,
    /// What all sessions or flows of the backend may have together.
    pub limit: Option<Box<Limit>>,
    /// Milliseconds for one connection attempt.
    pub connect_timeout: u32,
    /// The number of endpoints that a worker tries before the worker refuses the client: 1 to 8.
    pub connect_attempts: u8,
    /// Milliseconds for which an endpoint comes last after a session could not be given to it. The
    /// rest ends sooner if the endpoint leaves the table and returns.
    pub rest: u32,
    pub options: SocketOptions,
    /// The PROXY header at the beginning of every connection. `None`: no header.
    pub send_proxy: Option<SendProxy>,
    /// `None`: bytes that clients send, or that a listener has decrypted, go to the endpoint
    /// unchanged.
    pub tls: Option<Arc<Originator>>,
    /// Local addresses to connect from, used in turn. If the list is empty, the kernel chooses.
    pub source: Vec<Sources>,
    /// The number of the network interface through which sockets reach the endpoints. 0: the
    /// machine's routes decide.
    pub interface: u32,
    /// UDP: all flows share a few sockets, and differ by endpoint and local address. Then `source`
    /// has addresses of each IP version that the endpoints have.
    pub shared_sockets: bool,
    /// UDP, milliseconds: the pause between two flows of an upstream socket, or of an endpoint and
    /// local address on a shared socket. The pause keeps a late reply from the second flow's
    /// client.
    pub upstream_rest: u32,
    /// UDP: the kernel forwards long-lived flows, where it can. Then there is no `interface`, no
    /// `send_proxy` and no `transparent`, and sockets are not shared.
    pub fast_path: bool,
    /// UDP: the datagrams each way after which the kernel forwards a flow.
    pub fast_path_after: u32,
    /// Workers connect to endpoints from the client's own address. Then there is no `source`, and
    /// sockets are not shared.
    pub transparent: bool,
}

/// Where sessions wait for a place at a full endpoint.
#[derive(Clone, Debug)]
pub struct Queue {
    pub line: Arc<Line>,
    /// The most sessions that wait, over all workers.
    pub most: u32,
    /// Milliseconds for which a session waits.
    pub timeout: u32,
}

/// The facts about a client that a backend's endpoints receive in the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SendProxy {
    pub version: ProxyVersion,
    /// Version 2 only. `unique_id` adds an id of the connection, which the access log has too;
    /// `crc32c` adds a checksum.
    pub unique_id: bool,
    pub crc32c: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyVersion {
    V1,
    V2,
}

/// `count` local addresses, beginning with `first`. `count` is at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources {
    pub first: IpAddr,
    pub count: u32,
}

impl Sources {
    /// The address at `index`; `index` is below `count`.
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
    /// Compares two endpoints: the next in turn, and one drawn at random. Takes the endpoint with
    /// fewer sessions for its weight, by [`Backend::loads`].
    LeastConnections,
    Random,
    /// Maglev by source address. The look-up table holds indices into [`Backend::endpoints`], and
    /// its length is prime.
    SourceHash(Arc<[u16]>),
    /// Maglev by source address and port.
    SourcePortHash(Arc<[u16]>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub id: EndpointId,
    pub address: EndpointAddress,
    /// The endpoint's share within its backend, as a part of the sum of the weights.
    pub weight: u32,
}

/// Fixed amounts that a worker allocates when the worker starts. A reload does not change them. In
/// a configuration, 0 asks for the automatic amount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub sessions: u32,
    pub flows: u32,
    /// The number of receive buffers of each kind, a power of two: 64 KiB buffers for datagrams,
    /// and 8 KiB buffers for small messages of TCP sessions.
    pub buffers: u16,
    pub pipes: u32,
    /// The most bytes that one direction of a session moves before other directions have their
    /// turn.
    pub turn_bytes: u32,
    /// One direction of a session counts as bulk once the direction has carried this many bytes
    /// while the other direction carried none. Bulk gets fewer and larger wake-ups. `u32::MAX`:
    /// never.
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
            gone: Arc::default(),
            sources: None,
            total: None,
            drain: None,
            handed_over: Arc::default(),
            log_opens: false,
        }
    }

    /// Gives the shares of backends without endpoints to the other backends of their routes, where
    /// the route asks for that: a weight of 0 leaves the proportions of the others as they are. If
    /// no backend of a route has an endpoint, the weights stay, so sessions are refused because
    /// there is no endpoint, and not because there is no backend.
    pub(crate) fn pass_shares_on(&mut self) {
        let Self { routes, backends, .. } = self;
        // An endpoint without a turn gets no new session.
        let has_endpoint = |share: &WeightedBackend| !backends[share.backend].turns.is_empty();
        let asking = routes.iter_mut().filter(|route| route.on_unavailable == OnUnavailable::Next);
        for route in asking {
            let serves = |share: &WeightedBackend| share.weight > 0 && has_endpoint(share);
            if route.backends.iter().any(serves) {
                let unavailable = route.backends.iter_mut().filter(|share| !has_endpoint(share));
                unavailable.for_each(|share| share.weight = 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
