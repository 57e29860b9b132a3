//! Chooses the route, backend, endpoint and source address of a flow, or the reason for none.

use std::net::SocketAddr;

use config_sync::table::address::EndpointAddress;
use config_sync::table::limit::Limit;
use config_sync::table::ranges::Access;
use config_sync::table::routing::{
    Backend, BackendId, Endpoint, EndpointId, Listener, Route, RouteId, RoutingTable, SendProxy,
};
use config_sync::table::source_limit::{OverLimit, SourceLimit};

use crate::contract::Origin;
use crate::proxy::balance::Balancer;
use crate::proxy::held::{Held, Scope};
use crate::proxy::udp::ports::{From, Ports};
use crate::proxy::udp::state::Role;
use crate::stats::records::{CloseReason, DropReason};

pub struct Choice {
    pub route: RouteId,
    pub backend: BackendId,
    pub endpoint: EndpointId,
    pub address: SocketAddr,
    pub source: Origin,
    pub interface: u32,
    pub role: Role,
    pub send_proxy: Option<SendProxy>,
    /// The backend asks for the kernel's path.
    pub fast_path: bool,
}

/// Chooses for a client that the route admits, and that sends to `port`. The endpoint counts the
/// flow.
pub fn choose(
    table: &RoutingTable,
    route: &Route,
    balancer: &mut Balancer,
    (client, port): (SocketAddr, u16),
    ports: (&Ports, u64),
) -> Result<Choice, Refusal> {
    let backend = &table.backends[balancer.backend(route, client).ok_or(NO_BACKEND)?];
    let endpoint = balancer.endpoint(backend, client, &[]);
    let endpoint = endpoint.ok_or_else(|| match balancer.were_full(backend, &[]) {
        true => ENDPOINTS_FULL,
        false => NO_ENDPOINT,
    })?;
    Choice::new(route.id, backend, endpoint, balancer, (client, port), ports)
}

/// The route for a client.
pub fn route<'t>(
    table: &'t RoutingTable,
    listener: &Listener,
    client: SocketAddr,
) -> Result<&'t Route, Refusal> {
    let found = listener.routes.any().ok_or(NO_ROUTE)?;
    Ok(&table.routes[listener.route(found, client.ip()).ok_or(NO_ROUTE)?])
}

impl Choice {
    /// Makes a choice of an endpoint that counts the flow already. If the endpoint has no address
    /// for the client, the endpoint counts the flow no longer.
    pub fn new(
        route: RouteId,
        backend: &Backend,
        endpoint: Endpoint,
        balancer: &mut Balancer,
        (client, port): (SocketAddr, u16),
        ports: (&Ports, u64),
    ) -> Result<Self, Refusal> {
        let address = endpoint.address.for_client_of(port).and_then(|address| address.ip());
        let address =
            address.ok_or(NO_ENDPOINT).inspect_err(|_| balancer.not_opened(endpoint.id))?;
        Ok(Self {
            route,
            backend: backend.id,
            endpoint: endpoint.id,
            address,
            source: match backend.shared_sockets {
                true => Origin::Any,
                false => some_origin(backend, address, balancer, client, ports),
            },
            interface: backend.interface,
            role: match backend {
                Backend { shared_sockets: true, .. } => Role::Pair,
                // Each client has a socket of its own address or port.
                Backend { transparent: true, .. } => Role::Own,
                _ if matches!(endpoint.address, EndpointAddress::Shifted { .. }) => Role::Own,
                _ => Role::Socket,
            },
            send_proxy: backend.send_proxy,
            fast_path: backend.fast_path,
        })
    }
}

/// The next address in turn, or a later one if that address has no port.
pub fn some_origin(
    backend: &Backend,
    endpoint: SocketAddr,
    balancer: &mut Balancer,
    client: SocketAddr,
    (ports, now): (&Ports, u64),
) -> Origin {
    let ipv4 = endpoint.is_ipv4();
    let mut origin = balancer.origin(backend, endpoint, client);
    for _ in 0..MOST_ORIGINS {
        let is_local = matches!(origin, Origin::Local(_));
        if !is_local || ports.may_ask(From { origin, ipv4 }, now) {
            break;
        }
        origin = balancer.origin(backend, endpoint, client);
    }
    origin
}

/// The maximum number of addresses that are passed over for one flow.
pub const MOST_ORIGINS: u32 = 8;

/// Why there is no flow: for the log, and for the count of datagrams.
#[derive(Clone, Copy)]
pub struct Refusal {
    pub reason: CloseReason,
    pub drop: DropReason,
}

pub const NO_ROUTE: Refusal = Refusal { reason: CloseReason::NoRoute, drop: DropReason::NoRoute };

pub const SOURCE_DENIED: Refusal =
    Refusal { reason: CloseReason::SourceDenied, drop: DropReason::SourceDenied };

pub const PROXY_MISSING: Refusal =
    Refusal { reason: CloseReason::ProxyMissing, drop: DropReason::ProxyMissing };

pub const NO_BACKEND: Refusal =
    Refusal { reason: CloseReason::NoBackend, drop: DropReason::NoRoute };

pub const NO_ENDPOINT: Refusal =
    Refusal { reason: CloseReason::NoEndpoint, drop: DropReason::NoEndpoint };

pub const ENDPOINTS_FULL: Refusal =
    Refusal { reason: CloseReason::EndpointsFull, drop: DropReason::EndpointsFull };

pub const FLOW_LIMIT: Refusal =
    Refusal { reason: CloseReason::SessionLimit, drop: DropReason::FlowLimit };

pub const LISTENER_LIMIT: Refusal =
    Refusal { reason: CloseReason::ListenerLimit, drop: DropReason::FlowLimit };

pub const LIMIT: Refusal = Refusal { reason: CloseReason::Limit, drop: DropReason::Limit };

/// Takes a place for a flow within the limit of a part.
pub fn enter(
    held: &mut Held,
    scope: Scope,
    limit: Option<&Limit>,
    now: u64,
) -> Result<(), Refusal> {
    held.enter(scope, limit, now).map_err(|_| LIMIT)
}

/// Takes a place for a flow within a route's limit for the client's source.
pub fn enter_source(
    held: &mut Held,
    limit: Option<&SourceLimit>,
    client: SocketAddr,
    now: u64,
) -> Result<(), Refusal> {
    held.enter_source(limit, client.ip(), now).map_err(|OverLimit| SOURCE_LIMIT)
}

pub const OVERLOAD: Refusal = Refusal { reason: CloseReason::Overload, drop: DropReason::Overload };

pub const SOURCE_LIMIT: Refusal =
    Refusal { reason: CloseReason::SourceLimit, drop: DropReason::SourceLimit };

pub const NO_SOURCE: Refusal =
    Refusal { reason: CloseReason::LocalLimit, drop: DropReason::NoSource };

pub const NO_SOCKET: Refusal =
    Refusal { reason: CloseReason::LocalLimit, drop: DropReason::NoSocket };

pub fn admits(access: Option<&Access>, client: SocketAddr) -> Result<(), Refusal> {
    match access {
        Some(access) if !access.admits(client.ip()) => Err(SOURCE_DENIED),
        _ => Ok(()),
    }
}
