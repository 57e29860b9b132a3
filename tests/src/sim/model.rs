//! A configuration that changes at random, and the tables that it compiles to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use config_sync::table::address::{Address, Bind, UNIX_CLIENT, UnixPath};
use config_sync::table::alpn::ByAlpn;
use config_sync::table::ranges::{Access, ByPrefix};
use config_sync::table::routing::{
    AcceptProxy, Backend, BackendId, Drain, Endpoint, EndpointId, Fallback, Hosts, Limits,
    Listener, ListenerId, OnRefusal, OnTruncation, OnUnavailable, Protocol, Route, RouteBalance,
    RouteId, RoutingTable, Socket, SocketId, SocketOptions, Timeouts, Transport, WeightedBackend,
};
use config_sync::table::source_limit::{SourceLimit, SourceRecords};
use config_sync::table::turns::turns;
use ipnet::IpNet;

use crate::sim::backend::{ModelBackend, options, plain_backend, some_gone, sources};
use crate::sim::endpoints::{FIRST_ID, POOL};
use crate::sim::limit::SharedLimits;
use crate::sim::protocols::{by_alpn, some_by_alpn};
use crate::sim::rng::Rng;
use crate::sim::source_limit::{RECORDS, some_limit};

#[derive(Clone, Debug)]
pub struct Model {
    pub sockets: Vec<ModelSocket>,
    pub backends: Vec<ModelBackend>,
    /// One route per listener, with weights for every backend.
    pub weights: Vec<Vec<u32>>,
    pub lame_duck: u32,
    /// The sources of all listeners' clients.
    pub sources: Arc<SourceRecords>,
    /// What the sessions of parts have together.
    pub shared: SharedLimits,
    pub limits: Limits,
    generation: u64,
}

#[derive(Clone, Debug)]
pub struct ModelSocket {
    pub id: SocketId,
    pub protocol: Protocol,
    /// `UNIX_CLIENT`: a Unix socket.
    pub address: SocketAddr,
    pub present: bool,
    /// From where connections begin with a PROXY header. It stays as it is: clients know it.
    accept_proxy: AcceptProxy,
    pub listeners: Vec<ModelListener>,
    /// TLS: whether clients without a ClientHello have a route: if they speak, if they are silent.
    falls_back: [bool; 2],
    keepalive: u32,
}

#[derive(Clone, Debug)]
pub struct ModelListener {
    pub id: ListenerId,
    /// TLS: the pattern that it serves.
    pub host: Option<&'static str>,
    pub has_route: bool,
    pub timeouts: Timeouts,
    pub flow_timeout: u32,
    pub responses: u32,
    pub max_sessions: u32,
    limit_source: Option<Box<SourceLimit>>,
    /// The same for each of its routes.
    route_source: Option<Box<SourceLimit>>,
    /// Who is denied, of the clients 198.18.0.0/16.
    denied: Option<&'static str>,
    /// Clients of 198.18.0.0/26 have another route.
    by_source: bool,
    /// TLS: clients that offer `PROTOCOL` have another route; whether all others have a route.
    by_alpn: Option<bool>,
}

/// Ranges of clients that a listener may deny: a part of the first few, of later ones, or all.
const DENIED: [Option<&str>; 5] =
    [None, None, Some("198.18.0.16/28"), Some("198.18.0.64/26"), Some("198.18.0.0/16")];

/// The sources of routes have keys from here on.
const FIRST_ROUTE_SOURCES: u64 = 1_000;

/// Routes for some clients have ids from here on.
pub const FIRST_SPECIAL: u32 = 100;

/// Routes for clients without a ClientHello have ids from here on.
pub const FIRST_FALLBACK: u32 = 200;

/// Routes for clients that offer `PROTOCOL` have ids from here on.
pub const FIRST_ALPN: u32 = 300;

impl Model {
    pub fn random(rng: &mut Rng) -> Self {
        let limits = Limits {
            sessions: rng.scale(3, 64) as u32,
            flows: rng.scale(3, 200) as u32,
            buffers: 1 << rng.between(1, 5),
            pipes: rng.pick(&[0, 1, 2, 8, 64]),
            turn_bytes: rng.scale(1 << 12, 1 << 20) as u32,
            bulk_bytes: rng.scale(1 << 16, 8 << 20) as u32,
        };
        let mut protocols = vec![Protocol::Tcp; rng.between(1, 2) as usize];
        protocols.push(Protocol::Tls);
        protocols.extend(vec![Protocol::Udp; rng.between(1, 2) as usize]);
        let mut listeners = 0;
        let mut sockets: Vec<_> = (0..)
            .zip(protocols)
            .map(|(id, protocol)| ModelSocket::random(rng, id, protocol, &mut listeners))
            .collect();
        let sources = Arc::new(SourceRecords::new(RECORDS, 1));
        for listener in sockets.iter_mut().flat_map(|socket| &mut socket.listeners) {
            listener.limit_source = some_limit(rng, listener.id.0.into(), &sources);
            listener.route_source = some_limit(rng, 0, &sources);
        }
        let backends: Vec<_> = (0..3).map(|id| ModelBackend::random(rng, id)).collect();
        let mut weights = || {
            let mut weight = || rng.pick(&[0, 1, 1, 2, 10, 1_000_000]);
            (0..backends.len()).map(|_| weight()).collect()
        };
        Self {
            weights: (0..listeners).map(|_| weights()).collect(),
            sockets,
            backends,
            sources,
            shared: SharedLimits::random(rng),
            lame_duck: rng.scale(10, 5_000) as u32,
            limits,
            generation: 0,
        }
    }

    /// The same configuration in another process, which counts for itself.
    pub fn of_next_process(&self) -> Self {
        let sources = Arc::new(SourceRecords::new(RECORDS, 1));
        let mut next = Self { sources: Arc::clone(&sources), ..self.clone() };
        for listener in next.sockets.iter_mut().flat_map(|socket| &mut socket.listeners) {
            let limits = [&mut listener.limit_source, &mut listener.route_source];
            for limit in limits.into_iter().flatten() {
                limit.records = Arc::clone(&sources);
                sources.count_bytes();
            }
        }
        next.backends.iter_mut().for_each(ModelBackend::count_anew);
        next.shared.count_anew();
        next
    }

    /// UDP flows last, and the kernel may forward most of them.
    pub fn has_long_flows(&mut self) {
        for backend in &mut self.backends {
            backend.fast_path = true;
        }
        for socket in &mut self.sockets {
            if socket.protocol == Protocol::Udp {
                socket.accept_proxy = AcceptProxy::default();
            }
            for listener in &mut socket.listeners {
                (listener.responses, listener.flow_timeout) = (0, 3_000);
            }
        }
    }

    /// One to three small changes.
    pub fn change(&mut self, rng: &mut Rng) {
        for _ in 0..rng.between(1, 3) {
            match rng.below(9) {
                0 => {
                    let route = rng.below(self.weights.len() as u64) as usize;
                    let backend = rng.below(self.backends.len() as u64) as usize;
                    self.weights[route][backend] = rng.pick(&[0, 1, 2, 30, 70]);
                }
                1 | 2 => {
                    let at = rng.below(self.backends.len() as u64) as usize;
                    let endpoints = &mut self.backends[at].endpoints;
                    let at = rng.below(endpoints.len() as u64) as usize;
                    endpoints[at].0 ^= true;
                }
                3 => {
                    let at = rng.below(self.backends.len() as u64) as usize;
                    self.backends[at].balance = rng.below(5);
                }
                4 => {
                    let at = rng.below(self.sockets.len() as u64) as usize;
                    self.sockets[at].present ^= true;
                }
                7 => {
                    let at = rng.below(self.backends.len() as u64) as usize;
                    self.backends[at].shared_sockets ^= true;
                    self.backends[at].fast_path ^= rng.per_mille(300);
                    self.backends[at].gone = some_gone(rng);
                }
                8 => {
                    let at = rng.below(self.backends.len() as u64) as usize;
                    self.backends[at].source = sources(rng, at as u32);
                    self.backends[at].interface = rng.pick(&[0, 3, 4]);
                }
                5 => {
                    let at = rng.below(self.sockets.len() as u64) as usize;
                    self.sockets[at].keepalive ^= 60;
                    self.sockets[at].falls_back = [rng.per_mille(500), rng.per_mille(500)];
                }
                _ => {
                    self.shared.change(rng);
                    let at = rng.below(self.sockets.len() as u64) as usize;
                    for listener in &mut self.sockets[at].listeners {
                        listener.timeouts = timeouts(rng);
                        listener.max_sessions = rng.pick(&[0, 0, 2, 10]);
                        listener.limit_source =
                            some_limit(rng, listener.id.0.into(), &self.sources);
                        listener.route_source = some_limit(rng, 0, &self.sources);
                        listener.denied = rng.pick(&DENIED);
                        listener.by_source ^= rng.per_mille(300);
                        listener.by_alpn = listener.host.and_then(|_| some_by_alpn(rng));
                    }
                }
            }
        }
    }

    /// The next table: sockets for which `bindable` is false are left out.
    pub fn compile(&mut self, bindable: impl Fn(SocketId) -> bool) -> RoutingTable {
        self.generation += 1;
        let mut table = RoutingTable {
            generation: self.generation,
            lame_duck: self.lame_duck,
            log_opens: self.generation.is_multiple_of(2),
            sources: Some(Arc::clone(&self.sources)),
            total: self.shared.of(0),
            ..RoutingTable::empty()
        };
        // Positions mean something only within a table: some that nobody uses come first.
        let unused = self.generation as usize % FIRST_ID as usize;
        let empty = |id| Backend { turns: turns(&[]), ..plain_backend(BackendId(id), Vec::new()) };
        table.backends = (0..unused as u32).map(empty).collect();
        let backends = (FIRST_ID..).zip(&mut self.backends);
        table.backends.extend(
            backends.map(|(id, of)| Backend { limit: self.shared.of(id), ..of.compile(id) }),
        );
        table.gone = self.backends.iter().flat_map(ModelBackend::gone).collect();
        let present = self.sockets.iter().filter(|s| s.present && bindable(s.id));
        for socket in present {
            let mut listeners = Hosts::new([1, 2, 3, 4]);
            let fallback =
                Fallback { listener: table.listeners.len(), route: table.routes.len() + 2 };
            let [not_tls, silent] = socket.falls_back.map(|does| does.then_some(fallback));
            for listener in &socket.listeners {
                listeners.insert(listener.host, table.listeners.len());
                let mut routes = Hosts::new([1, 2, 3, 4]);
                let first = table.routes.len();
                if listener.has_route {
                    routes.insert(None, if listener.by_source { 0 } else { first });
                }
                let ids = [0, FIRST_SPECIAL, FIRST_FALLBACK, FIRST_ALPN];
                let ids = ids.map(|first| first + listener.id.0);
                table.routes.extend(ids.map(|id| self.route(id, listener, unused)));
                table.listeners.push(Listener {
                    id: listener.id,
                    timeouts: listener.timeouts,
                    flow_timeout: listener.flow_timeout,
                    responses: listener.responses,
                    max_sessions: listener.max_sessions,
                    taken: (listener.max_sessions > 0).then(Arc::default),
                    limit_source: listener.limit_source.clone(),
                    limit: self.shared.of_listener(listener.id.0 + 1, socket.protocol),
                    access: listener.access(),
                    by_source: listener.by_source(first),
                    by_alpn: listener.by_alpn(first),
                    ..plain_listener(socket.protocol, routes)
                });
            }
            table.sockets.push(Socket {
                id: socket.id,
                transport: socket.transport(),
                address: socket.bound(),
                bind: Bind::default(),
                options: SocketOptions { keepalive: socket.keepalive, ..options() },
                reads_hello: socket.protocol == Protocol::Tls,
                hello_timeout: socket.listeners.iter().map(|l| l.timeouts.hello).max().unwrap_or(0),
                access: None,
                starttls: None,
                on_refusal: OnRefusal::default(),
                default_hostname: None,
                not_tls,
                silent,
                accept_proxy: socket.accept_proxy.clone(),
                listeners,
            });
        }
        table
    }

    /// A route of a listener, with its limit. `unused`: the position of the first backend.
    fn route(&self, id: u32, listener: &ModelListener, unused: usize) -> Route {
        let weights = &self.weights[listener.id.index()];
        Route {
            limit_source: of_route(id, listener.route_source.as_deref()),
            limit: self.shared.of(id + 2),
            ..route(RouteId(id), weights, unused)
        }
    }

    /// The last table.
    pub fn drain(&mut self, drain: Drain) -> RoutingTable {
        self.generation += 1;
        RoutingTable {
            generation: self.generation,
            lame_duck: self.lame_duck,
            drain: Some(drain),
            ..RoutingTable::empty()
        }
    }

    pub fn udp_sockets(&self) -> Vec<SocketId> {
        let udp = self.sockets.iter().filter(|socket| socket.transport() == Transport::Udp);
        udp.map(|socket| socket.id).collect()
    }

    /// Whether connections from this address to a socket begin with a PROXY header.
    pub fn believes(&self, socket: SocketId, client: IpAddr) -> bool {
        let mut sockets = self.sockets.iter().filter(|of| of.id == socket);
        sockets.any(|socket| socket.accept_proxy.expects_header(client))
    }

    pub fn endpoints(&self) -> impl Iterator<Item = (bool, Endpoint)> + '_ {
        self.backends.iter().flat_map(|backend| backend.endpoints.iter().copied())
    }

    pub fn endpoint(&self, id: EndpointId) -> Endpoint {
        self.backends[(id.0 / POOL) as usize].endpoints[(id.0 % POOL) as usize].1
    }

    pub fn is_backup(&self, id: EndpointId) -> bool {
        self.backends[(id.0 / POOL) as usize].is_backup(id)
    }

    pub fn connect_attempts(&self, backend: BackendId) -> u8 {
        self.backends[(backend.0 - FIRST_ID) as usize].connect_attempts
    }

    /// The ports of all sockets.
    pub fn ports(&self) -> Vec<u16> {
        self.sockets.iter().map(|socket| socket.address.port()).collect()
    }

    pub fn port(&self, socket: SocketId) -> u16 {
        let found = self.sockets.iter().find(|of| of.id == socket);
        found.expect("a socket of this world").address.port()
    }
}

/// The limit for each source of a route.
fn of_route(id: u32, limit: Option<&SourceLimit>) -> Option<Box<SourceLimit>> {
    Some(Box::new(SourceLimit { key: FIRST_ROUTE_SOURCES + u64::from(id), ..limit?.clone() }))
}

/// A route to the backends from position `first`.
fn route(id: RouteId, weights: &[u32], first: usize) -> Route {
    let share = |(n, weight): (usize, &u32)| WeightedBackend {
        id: BackendId(FIRST_ID + n as u32),
        backend: first + n,
        weight: *weight,
        key: n as u64,
    };
    Route {
        id,
        name: "route".into(),
        access: None,
        limit_source: None,
        limit: None,
        // By the ids, so that some routes of every run have each.
        balance: match id.0 % 2 {
            0 => RouteBalance::RoundRobin,
            _ => RouteBalance::SourceHash,
        },
        on_unavailable: match id.0 / 2 % 2 {
            0 => OnUnavailable::Refuse,
            _ => OnUnavailable::Next,
        },
        backends: weights.iter().enumerate().map(share).collect(),
    }
}

impl ModelSocket {
    fn random(rng: &mut Rng, id: u32, protocol: Protocol, listeners: &mut u32) -> Self {
        let hosts: &[Option<&str>] = match protocol {
            Protocol::Tls => &[Some("a.test"), Some("*.b.test")],
            Protocol::Tcp | Protocol::Udp => &[None],
        };
        let wildcard = protocol == Protocol::Udp && rng.per_mille(500);
        let ip = if wildcard { [0, 0, 0, 0] } else { [192, 0, 2, 1] };
        let unix = protocol == Protocol::Tcp && rng.per_mille(300);
        let ranges = if unix { rng.pick(&[&[][..], UNIX_SENDER]) } else { some_ranges(rng) };
        let ranges = ranges.iter();
        let from: Box<[IpNet]> = ranges.map(|range| range.parse().expect("a range")).collect();
        let only = !from.is_empty() && rng.per_mille(500);
        let accept_proxy = AcceptProxy { from, only };
        let mut listener = |host: &Option<&'static str>| {
            *listeners += 1;
            ModelListener {
                id: ListenerId(*listeners - 1),
                host: *host,
                has_route: !rng.per_mille(30),
                timeouts: timeouts(rng),
                flow_timeout: rng.scale(20, 3_000) as u32,
                responses: rng.pick(&[0, 1, 2]),
                max_sessions: rng.pick(&[0, 0, 5, 20]),
                limit_source: None,
                route_source: None,
                denied: if rng.per_mille(300) { rng.pick(&DENIED) } else { None },
                by_source: rng.per_mille(300),
                by_alpn: host.and_then(|_| some_by_alpn(rng)),
            }
        };
        Self {
            id: SocketId(id),
            protocol,
            address: if unix { UNIX_CLIENT } else { (ip, 5_000 + id as u16).into() },
            present: true,
            accept_proxy,
            listeners: hosts.iter().map(&mut listener).collect(),
            falls_back: [protocol == Protocol::Tls && rng.per_mille(500); 2],
            keepalive: 60,
        }
    }

    fn bound(&self) -> Address {
        if self.address != UNIX_CLIENT {
            return self.address.into();
        }
        UnixPath::new(&format!("/sim/listener-{}", self.id.0)).expect("a path").into()
    }

    pub fn transport(&self) -> Transport {
        match self.protocol {
            Protocol::Tcp | Protocol::Tls => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
        }
    }
}

impl ModelListener {
    fn access(&self) -> Option<Arc<Access>> {
        let denied = self.denied?.parse().expect("a prefix");
        Some(Arc::new(Access::new(None, &[denied])))
    }

    /// `first`: the index of the route for most, which the one for some clients follows.
    fn by_source(&self, first: usize) -> Vec<ByPrefix> {
        let special = ("198.18.0.0/26".parse().expect("a prefix"), first as u32 + 1);
        let routes = || ByPrefix::new([special].into_iter(), first as u32);
        let alpn = || ByPrefix::new([].into_iter(), first as u32 + 3);
        if self.by_source { vec![routes(), alpn()] } else { Vec::new() }
    }

    fn by_alpn(&self, first: usize) -> Option<Box<ByAlpn>> {
        let has_otherwise = self.by_alpn.filter(|_| self.has_route)?;
        let (of_protocol, otherwise) = if self.by_source { (1, 0) } else { (first + 3, first) };
        Some(by_alpn(of_protocol, has_otherwise.then_some(otherwise)))
    }
}

/// Clients that come over a Unix socket.
const UNIX_SENDER: &[&str] = &["0.0.0.0/32"];

/// Nobody, or all clients, or half of them.
fn some_ranges(rng: &mut Rng) -> &'static [&'static str] {
    rng.pick(&[&[][..], &[], &["198.18.0.0/15"], &["198.18.0.0/25", "198.18.1.0/25"]])
}

/// A listener without limits or timeouts.
pub fn plain_listener(protocol: Protocol, routes: Hosts<usize>) -> Listener {
    Listener {
        id: ListenerId(0),
        name: "listener".into(),
        protocol,
        timeouts: Timeouts { hello: 0, idle: 0, write_stall: 0, half_close: 0, lifetime: 0 },
        on_truncation: OnTruncation::Reset,
        flow_timeout: 0,
        tls: None,
        responses: 0,
        dns_guard: None,
        max_sessions: 0,
        taken: None,
        limit_source: None,
        limit: None,
        access: None,
        routes,
        by_source: Vec::new(),
        by_alpn: None,
    }
}

fn timeouts(rng: &mut Rng) -> Timeouts {
    Timeouts {
        hello: rng.scale(5, 2_000) as u32,
        idle: rng.scale(20, 10_000) as u32,
        write_stall: rng.scale(20, 5_000) as u32,
        half_close: rng.scale(20, 5_000) as u32,
        lifetime: if rng.per_mille(800) { 0 } else { rng.scale(100, 10_000) as u32 },
    }
}
