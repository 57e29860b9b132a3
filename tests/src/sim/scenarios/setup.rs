//! One listening socket and what stands behind it, as a table.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use config_sync::table::address::Bind;
use config_sync::table::alpn::{AlpnChoice, ByAlpn};
use config_sync::table::limit::Limit;
use config_sync::table::load::NO_LIMIT;
use config_sync::table::ranges::Access;
use config_sync::table::rate::Rate;
use config_sync::table::routing::{
    AcceptProxy, Backend, BackendId, Endpoint, EndpointId, Fallback, Hosts, Limits, Listener,
    ListenerId, OnRefusal, OnUnavailable, Protocol, Route, RouteBalance, RouteId, RoutingTable,
    Socket, SocketId, Sources, Timeouts, Transport, WeightedBackend,
};
use config_sync::table::source_limit::{SourceLimit, SourceRecords};
use config_sync::table::turns::turns;

use crate::sim::backend;
use crate::sim::model;
use crate::sim::source_limit::RECORDS;

/// One listening socket, and what stands behind it. A TLS socket has two listeners, for `a.test`
/// and for `*.b.test`; all have the same backend.
#[derive(Clone, Copy)]
pub struct Setup {
    pub protocol: Protocol,
    pub endpoints: &'static [Serves],
    pub timeouts: Timeouts,
    pub max_sessions: u32,
    /// The most sessions or flows of a source. 0: no limit.
    pub source_sessions: u32,
    /// The most sessions or flows of a source on the first route. 0: no limit.
    pub route_source_sessions: u32,
    /// The most sessions or flows of a backend. 0: any number.
    pub backend_sessions: u32,
    /// The bytes a second of each listener. 0: any number.
    pub bytes: u64,
    /// The most sessions of each listener. All others wait. 0: any number.
    pub delays_above: u32,
    /// UDP.
    pub flow_timeout: u32,
    pub responses: u32,
    /// UDP: shared upstream sockets, with these addresses.
    pub source: Option<Sources>,
    /// UDP: the datagrams each way after which the kernel forwards a flow. 0: the worker forwards
    /// all.
    pub fast_path_after: u32,
    /// Whether clients of the loopback network are denied.
    pub denied: bool,
    /// TLS: whether clients without a ClientHello have the same backend too.
    pub falls_back: bool,
    /// TLS: the protocol of a route whose backend has no endpoint.
    pub alpn: Option<&'static str>,
    /// Whether the route goes on to a second backend, which has all endpoints but the first.
    pub passes_on: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Serves {
    Accepts,
    Refuses,
}

impl Setup {
    pub fn transport(&self) -> Transport {
        match self.protocol {
            Protocol::Tcp | Protocol::Tls => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
        }
    }

    fn limit_of_backend(&self) -> Option<Box<Limit>> {
        let limit = |usage| Limit { sessions: self.backend_sessions, ..Limit::nothing(usage) };
        (self.backend_sessions > 0).then(|| Box::new(limit(Arc::default())))
    }

    /// The limit of each listener, or none.
    fn limit(&self) -> Option<Box<Limit>> {
        let bytes = (self.bytes > 0).then(|| Rate::new(self.bytes, self.bytes));
        let delays = self.delays_above > 0;
        let sessions = if delays { self.delays_above } else { NO_LIMIT };
        let limit = || Limit { sessions, bytes, delays, ..Limit::nothing(Arc::default()) };
        (delays || bytes.is_some()).then(|| Box::new(limit()))
    }

    /// Who is let in by each listener.
    fn access(&self) -> Option<Arc<Access>> {
        let home = || "127.0.0.0/8".parse().expect("a prefix");
        self.denied.then(|| Arc::new(Access::new(None, &[home()])))
    }

    fn first_route(&self) -> Route {
        if self.passes_on { passing_route() } else { route(0) }
    }

    fn backend(&self, id: BackendId, endpoints: &[Endpoint]) -> Backend {
        Backend {
            fast_path: self.fast_path_after > 0 && self.source.is_none(),
            fast_path_after: self.fast_path_after,
            ..backend::plain_backend(id, endpoints.to_vec())
        }
    }

    pub fn table(&self, address: SocketAddr, endpoints: &[SocketAddr]) -> RoutingTable {
        let names: &[_] = match self.protocol {
            Protocol::Tls => &[Some("a.test"), Some("*.b.test")],
            Protocol::Tcp | Protocol::Udp => &[None],
        };
        let any = || {
            let mut hosts = Hosts::new([1, 2, 3, 4]);
            hosts.insert(None, 0);
            hosts
        };
        let mut by_name = Hosts::new([1, 2, 3, 4]);
        for (index, name) in names.iter().enumerate() {
            by_name.insert(*name, index);
        }
        let access = self.access();
        let sources = Arc::new(SourceRecords::new(RECORDS, 1));
        let limit_source = of_sources(0, self.source_sessions, &sources);
        let of_route = of_sources(1, self.route_source_sessions, &sources);
        let (limit, limit_of_listener) = (self.limit_of_backend(), self.limit());
        let listener = |id: usize| Listener {
            id: ListenerId(id as u32),
            timeouts: self.timeouts,
            max_sessions: self.max_sessions,
            taken: (self.max_sessions > 0).then(Arc::default),
            limit_source: limit_source.clone(),
            limit: limit_of_listener.clone(),
            access: access.clone(),
            flow_timeout: self.flow_timeout,
            tls: None,
            responses: self.responses,
            by_alpn: self.alpn.map(by_alpn),
            ..model::plain_listener(self.protocol, any())
        };
        let all = backend::plain_endpoints(endpoints);
        let (own, others) = all.split_at(if self.passes_on { 1 } else { all.len() });
        let fallback = self.falls_back.then_some(Fallback { listener: 0, route: 0 });
        RoutingTable {
            generation: 1,
            sockets: vec![Socket {
                id: SocketId(0),
                transport: self.transport(),
                address: address.into(),
                options: backend::options(),
                reads_hello: self.protocol == Protocol::Tls,
                hello_timeout: self.timeouts.hello,
                access: access.clone().filter(|_| self.protocol == Protocol::Tls),
                starttls: None,
                on_refusal: OnRefusal::Reset,
                default_hostname: None,
                not_tls: fallback,
                silent: fallback,
                bind: Bind::default(),
                accept_proxy: AcceptProxy::default(),
                listeners: by_name,
            }],
            listeners: (0..names.len()).map(listener).collect(),
            routes: vec![Route { limit_source: of_route, ..self.first_route() }, route(1)],
            backends: vec![
                Backend {
                    source: self.source.into_iter().collect(),
                    shared_sockets: self.source.is_some(),
                    limit,
                    ..self.backend(BackendId(0), own)
                },
                self.backend(BackendId(1), others),
            ],
            sources: Some(sources),
            ..RoutingTable::empty()
        }
    }
}

/// At most so many sessions for each source. 0: no limit.
fn of_sources(key: u64, sessions: u32, records: &Arc<SourceRecords>) -> Option<Box<SourceLimit>> {
    let nothing = || SourceLimit::nothing(key, Arc::clone(records));
    (sessions > 0).then(|| Box::new(SourceLimit { sessions, ..nothing() }))
}

/// The second route for clients that offer a protocol, the first for all others.
fn by_alpn(protocol: &str) -> Box<ByAlpn> {
    let mut hosts = Hosts::new([1, 2, 3, 4]);
    hosts.insert(None, 0);
    let by_protocol = vec![(protocol.as_bytes().into(), 1)];
    Box::new(ByAlpn { hosts, choices: vec![AlpnChoice { by_protocol, otherwise: Some(0) }] })
}

/// Leads to the second backend too.
fn passing_route() -> Route {
    let backends = [route(0), route(1)].into_iter().flat_map(|route| route.backends).collect();
    Route { on_unavailable: OnUnavailable::Next, backends, ..route(0) }
}

/// The second route's backend has no endpoint, unless the first route goes on to it.
fn route(nth: u32) -> Route {
    Route {
        id: RouteId(nth),
        name: "route".into(),
        access: None,
        limit_source: None,
        limit: None,
        balance: RouteBalance::RoundRobin,
        on_unavailable: OnUnavailable::Refuse,
        backends: vec![WeightedBackend {
            id: BackendId(nth),
            backend: nth as usize,
            weight: 1,
            key: 0,
        }],
    }
}

/// The table without this endpoint of its first backend.
pub fn without(table: &RoutingTable, endpoint: u32) -> RoutingTable {
    let mut table = table.clone();
    let backend = &mut table.backends[0];
    backend.endpoints.retain(|of| of.id != EndpointId(endpoint));
    backend.turns = turns(&vec![1; backend.endpoints.len()]);
    table
}

pub fn empty_table() -> RoutingTable {
    RoutingTable { generation: 2, ..RoutingTable::empty() }
}

pub const LIMITS: Limits = Limits {
    sessions: 16,
    flows: 16,
    buffers: 8,
    pipes: 8,
    turn_bytes: 1 << 20,
    bulk_bytes: 8 << 20,
};

/// The loopback address: both stages speak of the same peers.
pub const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

pub(super) const NONE: Timeouts =
    Timeouts { hello: 0, idle: 0, write_stall: 0, half_close: 0, lifetime: 0 };
pub(super) const TCP: Setup = Setup {
    protocol: Protocol::Tcp,
    endpoints: &[Serves::Accepts],
    timeouts: NONE,
    max_sessions: 0,
    source_sessions: 0,
    route_source_sessions: 0,
    backend_sessions: 0,
    bytes: 0,
    delays_above: 0,
    flow_timeout: 0,
    responses: 0,
    source: None,
    fast_path_after: 0,
    denied: false,
    falls_back: false,
    alpn: None,
    passes_on: false,
};
pub(super) const TLS: Setup = Setup { protocol: Protocol::Tls, ..TCP };
pub const UDP: Setup = Setup { protocol: Protocol::Udp, flow_timeout: 60_000, ..TCP };
const TWO_ADDRESSES: Sources =
    Sources { first: IpAddr::V4(std::net::Ipv4Addr::new(127, 1, 0, 1)), count: 2 };
pub(super) const SHARED: Setup = Setup { source: Some(TWO_ADDRESSES), ..UDP };
