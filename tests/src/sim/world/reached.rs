//! Whom the gateway reaches: the endpoint's own place, and no backend twice.

use std::net::{IpAddr, SocketAddr};

use config_sync::table::address::EndpointAddress;
use config_sync::table::load::NO_LIMIT;
use config_sync::table::routing::{
    Backend, Endpoint, EndpointId, OnUnavailable, Route, RoutingTable,
};

use super::World;
use crate::sim::endpoints::{backend_of, endpoint_at, place};
use crate::sim::kernel::Attempted;
use crate::sim::model::FIRST_SPECIAL;
use crate::sim::udp::datagram::Exchange;

/// A port counts as closed for this long after its last refusal, microseconds.
const CLOSED: u64 = 5_000_000;

impl World {
    /// A session tries endpoints where they are, and each backend of its route once, with as many
    /// attempts as that backend has.
    pub(super) fn check_attempt(&mut self, attempted: &Attempted) {
        let Attempted { token, address, interface, port } = *attempted;
        let id = endpoint_at(address);
        self.check_interface(id, interface);
        self.check_place(id, address, port);
        let backend = backend_of(id);
        self.tried.attempt(token, backend, self.process.model.connect_attempts(backend));
    }

    /// The gateway reaches an endpoint where clients of `port` find it.
    pub(super) fn check_place(&self, id: EndpointId, reached: SocketAddr, port: u16) {
        let endpoint = self.process.model.endpoint(id);
        let there = endpoint.address.for_client_of(port).map(place);
        assert_eq!(there, Some(reached), "not where a client of port {port} finds {endpoint:?}");
    }

    /// Whoever is given an endpoint reaches it through the interface of its backend.
    pub(super) fn check_interface(&self, id: EndpointId, interface: u32) {
        let Some(table) = &self.process.settled else { return };
        let Some(backend) = backend_with(table, id) else { return };
        assert_eq!(interface, backend.interface, "{id:?} is reached through another interface");
        self.check_backup(id, backend);
    }

    /// A backup is given out only if no other endpoint of its backend may be picked.
    fn check_backup(&self, id: EndpointId, backend: &Backend) {
        let is_other = |of: &Endpoint| of.weight > 0 && !self.process.model.is_backup(of.id);
        let has_other = backend.endpoints.iter().any(is_other);
        assert!(
            !has_other || !self.process.model.is_backup(id),
            "{id:?} is a backup, and others are there"
        );
    }

    /// A flow leaves an endpoint that is in the table only for one whose port is not known to be
    /// closed, and its backend only if that has no such endpoint and the route goes on.
    pub(super) fn check_move(&self, exchange: Exchange, from: SocketAddr, to: SocketAddr) {
        let Some(table) = &self.process.settled else { return };
        let (from, to) = (endpoint_at(from), endpoint_at(to));
        let Some(own) = backend_with(table, from) else { return };
        let before = self.closed_at(to).is_some_and(|at| at < self.kernel.now);
        assert!(!before || !self.is_closed(to), "a flow goes to {to:?}, whose port is closed");
        if backend_of(to) == own.id {
            return;
        }
        for other in own.endpoints.iter().filter(|other| other.id != from) {
            assert!(self.is_closed(other.id), "a flow leaves {:?} without need", own.id);
        }
        if let Some(route) = route_of(table, exchange) {
            let goes_on = route.on_unavailable == OnUnavailable::Next;
            assert!(goes_on, "a flow leaves {:?}, and its route does not go on", own.id);
        }
    }

    /// A flow goes on at an endpoint that has refused it: there is no other to go to.
    pub(super) fn check_fed(&self, endpoint: SocketAddr, exchange: Exchange) {
        let gauges = self.process.counters.upstreams.get() + self.process.counters.pairs.get();
        // Without a socket for it, it can't go.
        let room = gauges + 8 < u64::from(self.process.model.limits.flows)
            && self.kernel.now >= self.kernel.own().no_ports.0 + 100_000;
        let Some(table) = self.process.settled.as_ref().filter(|_| room) else { return };
        let port = self.process.model.port(exchange.socket);
        let fed = endpoint_at(endpoint);
        let Some(own) = backend_with(table, fed) else { return };
        let is_open = |backend: &Backend| {
            let mut others = backend.endpoints.iter().filter(|other| other.id != fed);
            others.any(|other| !self.is_closed(other.id))
        };
        if is_open(own) {
            assert!(!takes_all(own, port), "a flow stays at {endpoint}, whose port is closed");
            return;
        }
        let route = route_of(table, exchange);
        let Some(route) = route.filter(|route| route.on_unavailable == OnUnavailable::Next) else {
            return;
        };
        let shares = route.backends.iter().filter(|of| of.weight > 0 && of.id != own.id);
        let others = shares.map(|share| &table.backends[share.backend]);
        let others: Vec<_> = others.filter(|backend| is_open(backend)).collect();
        let full = |backend: &Backend| backend.limit.is_some() || !takes_all(backend, port);
        let may_stay = others.iter().any(|backend| full(backend));
        assert!(
            others.is_empty() || may_stay,
            "a flow stays at {endpoint}, whose backend's ports are closed"
        );
    }

    /// When a port of the endpoint last refused something, microseconds.
    fn closed_at(&self, endpoint: EndpointId) -> Option<u64> {
        let all = self.kernel.own().closed_ports.iter();
        all.filter(|(place, _)| endpoint_at(**place) == endpoint).map(|(_, at)| *at).max()
    }

    fn is_closed(&self, endpoint: EndpointId) -> bool {
        self.closed_at(endpoint).is_some_and(|at| self.kernel.now < at + CLOSED)
    }
}

fn backend_with(table: &RoutingTable, endpoint: EndpointId) -> Option<&Backend> {
    table.backends.iter().find(|backend| backend.endpoints.iter().any(|of| of.id == endpoint))
}

/// Whether any endpoint of the backend takes any flow. Addresses of shared sockets may be short,
/// endpoints may be full, and UDP does not reach a Unix socket, or a port that is not there.
fn takes_all(backend: &Backend, port: u16) -> bool {
    let reached = |address: EndpointAddress| {
        address.for_client_of(port).is_some_and(|address| address.ip().is_some())
    };
    !backend.shared_sockets
        && backend.loads.iter().flatten().all(|load| load.most == NO_LIMIT)
        && backend.endpoints.iter().all(|endpoint| reached(endpoint.address))
}

/// The route of a flow, if its client has only ever had this one.
fn route_of(table: &RoutingTable, exchange: Exchange) -> Option<&Route> {
    let socket = table.sockets.iter().find(|socket| socket.id == exchange.socket)?;
    let listener = &table.listeners[socket.listeners.any()?];
    let client = exchange.source().ip();
    let special = matches!(client, IpAddr::V4(ip) if ip.octets()[..3] == [198, 18, 0]);
    let route = &table.routes[listener.route(listener.routes.any()?, client)?];
    (!special && route.id.0 < FIRST_SPECIAL).then_some(route)
}
