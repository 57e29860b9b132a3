//! Moves flows to other endpoints: away from an endpoint that left the table, and away from a
//! closed port.

use config_sync::table::limit::{Limit, Place};
use config_sync::table::routing::{Backend, EndpointId, OnUnavailable, WeightedBackend};

use crate::proxy::balance::Balancer;
use crate::proxy::core::{Core, micros};
use crate::proxy::held::Scope;
use crate::proxy::tables::Tables;
use crate::proxy::udp::choose::{
    Choice, LIMIT, Refusal, admits, choose, enter, enter_source, route,
};
use crate::proxy::udp::flow::{Flow, Promotion, Whose, listener_of};
use crate::proxy::udp::state::{Flows, MOST_CLOSED};
use crate::stats::records::{CloseReason, DropReason};

/// The limit of the chosen backend. `None`: the flow has this backend already.
fn limit_of_another<'t>(
    tables: &'t Tables,
    flow: &Flow,
    choice: &Choice,
) -> Option<Option<&'t Limit>> {
    let backend = tables.backend(flow.socket, choice.backend);
    let limit = backend.and_then(|of| of.limit.as_deref());
    (choice.backend != flow.backend).then_some(limit)
}

impl Flows {
    /// Moves a flow if its endpoint left the table `lame_duck` ago. Otherwise a client that only
    /// sends would feed a dead address for ever. Moves the flow also if its endpoint's port is
    /// closed.
    pub fn route_again(&mut self, core: &mut Core, slot: u32) -> Result<(), DropReason> {
        let Some(flow) = self.flows.at_mut(slot) else { return Ok(()) };
        // A flow moves once it has been demoted, which is soon if it has to move.
        if flow.is_promoted() {
            return Ok(());
        }
        if std::mem::take(&mut flow.refused) {
            self.leave_closed_port(core, slot);
        }
        let Some(flow) = self.flows.at(slot) else { return Ok(()) };
        let gone = self.endpoints[flow.endpoint.index()].gone_since;
        let lame_duck = micros(core.tables.current().lame_duck);
        if gone.is_none_or(|gone| core.now < gone + lame_duck)
            || core.tables.is_leaving(flow.socket)
        {
            return Ok(());
        }
        let Some((table, listener)) = listener_of(&core.tables, flow.socket) else {
            return Ok(());
        };
        let ports = (&self.ports, core.now);
        let client = (flow.client(), flow.bound(core).port());
        let choice = route(table, listener, client.0).and_then(|route| {
            admits(route.access.as_deref(), client.0)?;
            choose(table, route, &mut core.balancer, client, ports)
        });
        let upstream = choice.and_then(|choice| {
            self.enter(core, slot, &choice)?;
            let upstream = self.upstream_for(core, &choice);
            let upstream = upstream.inspect_err(|_| core.balancer.not_opened(choice.endpoint))?;
            Ok((choice, upstream))
        });
        let (choice, upstream) = match upstream {
            Ok(found) => found,
            Err(refusal) => {
                self.end(core, slot, CloseReason::EndpointRemoved);
                return Err(refusal.drop);
            }
        };
        self.moves(core, slot, &choice, upstream);
        Ok(())
    }

    /// Takes places within the limits of a moving flow's route and backend, where these are others
    /// than before. Without them, the endpoint of the choice does not count the flow any more.
    fn enter(&mut self, core: &mut Core, slot: u32, choice: &Choice) -> Result<(), Refusal> {
        let Some(flow) = self.flows.at_mut(slot) else { return Ok(()) };
        let (now, tables, client) = (core.unix_micros(), &core.tables, flow.client());
        let mut entered = Ok(());
        if choice.route != flow.route {
            let route = tables.route(choice.route);
            let of_source = route.and_then(|of| of.limit_source.as_deref());
            let limit = route.and_then(|of| of.limit.as_deref());
            entered = enter_source(&mut flow.held, of_source, client, now)
                .and_then(|()| enter(&mut flow.held, Scope::Route, limit, now));
        }
        if entered.is_ok()
            && let Some(limit) = limit_of_another(tables, flow, choice)
        {
            entered = enter(&mut flow.held, Scope::Backend, limit, now);
        }
        entered.inspect_err(|_| core.balancer.not_opened(choice.endpoint))
    }

    /// Moves a flow to an endpoint whose port is not closed: to one of its backend, or else to one
    /// of another backend, if the route asks for that. The flow stays where it is if there is no
    /// such endpoint, or if no socket can be had.
    fn leave_closed_port(&mut self, core: &mut Core, slot: u32) {
        let Some(flow) = self.flows.at(slot) else { return };
        let now = core.now;
        let Some(own) = core.tables.backend(flow.socket, flow.backend) else { return };
        // A full backend is not unavailable.
        let backend = match self.is_open(own, flow.endpoint, now) {
            true => Some(own),
            false => self.other_backend(&core.tables, &mut core.balancer, flow, now),
        };
        let Some(backend) = backend else { return };
        let is_closed = |id: EndpointId| self.endpoints[id.index()].closed_until > now;
        let others = backend.endpoints.iter().map(|endpoint| endpoint.id);
        let others = others.filter(|id| *id != flow.endpoint && is_closed(*id));
        self.closed_ports.push(flow.endpoint);
        self.closed_ports.extend(others.take(MOST_CLOSED - 1));
        let found = core.balancer.endpoint(backend, flow.client(), &self.closed_ports);
        self.closed_ports.clear();
        let Some(endpoint) = found else { return };
        if self.endpoints[endpoint.id.index()].closed_until > now {
            return core.balancer.not_opened(endpoint.id);
        }
        let client = (flow.client(), flow.bound(core).port());
        let ports = (&self.ports, now);
        let choice = Choice::new(flow.route, backend, endpoint, &mut core.balancer, client, ports);
        let Ok(choice) = choice else { return };
        // The flow keeps its place with its backend until there is a socket.
        let upstream = match self.claim(core, slot, &choice) {
            Ok(place) => self.upstream_for(core, &choice).map(|upstream| (upstream, place)),
            Err(refusal) => Err(refusal),
        };
        let Ok((upstream, place)) = upstream else {
            return core.balancer.not_opened(choice.endpoint);
        };
        if let Some(flow) = self.flows.at_mut(slot)
            && let Some(limit) = limit_of_another(&core.tables, flow, &choice)
        {
            flow.held.keep(Scope::Backend, limit, place);
        }
        self.moves(core, slot, &choice, upstream);
    }

    /// A place for a moving flow within the limit of the chosen backend, if it is another than
    /// before.
    fn claim(&self, core: &Core, slot: u32, choice: &Choice) -> Result<Option<Place>, Refusal> {
        let Some(flow) = self.flows.at(slot) else { return Ok(None) };
        let limit = limit_of_another(&core.tables, flow, choice).flatten();
        flow.held.claim(limit, core.unix_micros()).map_err(|_| LIMIT)
    }

    /// Another backend of the flow's route, if the route asks for that. A backend has a turn only
    /// if some port of its endpoints is not closed, so a flow does not come back to a backend that
    /// has just refused it.
    fn other_backend<'t>(
        &self,
        tables: &'t Tables,
        balancer: &mut Balancer,
        flow: &Flow,
        now: u64,
    ) -> Option<&'t Backend> {
        if tables.is_leaving(flow.socket) {
            return None;
        }
        let (table, listener) = listener_of(tables, flow.socket)?;
        // The route of the table in force decides, as for a client that comes now.
        let route = route(table, listener, flow.client()).ok()?;
        if route.id != flow.route || route.on_unavailable != OnUnavailable::Next {
            return None;
        }
        let may_serve = |share: &WeightedBackend| {
            let backend = &table.backends[share.backend];
            share.id != flow.backend && self.is_open(backend, flow.endpoint, now)
        };
        let next = balancer.other_backend(route, flow.client(), may_serve)?;
        Some(&table.backends[next])
    }

    /// Whether the backend has an endpoint, other than `left`, that may be picked and whose port is
    /// not closed.
    fn is_open(&self, backend: &Backend, left: EndpointId, now: u64) -> bool {
        backend.endpoints.iter().any(|endpoint| {
            let is_closed = self.endpoints[endpoint.id.index()].closed_until > now;
            endpoint.weight > 0 && endpoint.id != left && !is_closed
        })
    }

    /// Gives a flow another endpoint, which counts the flow already. The flow's old socket rests.
    fn moves(&mut self, core: &mut Core, slot: u32, choice: &Choice, upstream: u32) {
        let flow = self.flows.at_mut(slot).expect("the caller found it");
        core.leaves(flow.endpoint);
        core.counters.endpoint(flow.endpoint).closed.add(1);
        core.counters.endpoint(choice.endpoint).opened.add(1);
        if flow.route != choice.route {
            core.counters.route(flow.route).opened.sub(1);
            core.counters.route(choice.route).opened.add(1);
        }
        (flow.route, flow.backend, flow.endpoint) = (choice.route, choice.backend, choice.endpoint);
        flow.held.count_endpoint(core, choice.endpoint);
        flow.introduce(core, choice.send_proxy);
        // Another process knows the old socket.
        flow.whose = Whose::Ours;
        let old = std::mem::replace(&mut flow.upstream, upstream);
        if let Some(upstream) = self.upstreams.at_mut(upstream) {
            upstream.flow = slot;
        }
        self.rest(core, old);
        let promotion = match self.flows.at(slot) {
            Some(flow) if choice.fast_path => self.promotion_of(core, flow),
            _ => Promotion::Never,
        };
        self.set_promotion(slot, promotion);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use config_sync::check::parse_for;
    use config_sync::compile::compile;
    use config_sync::compile::names::Names;
    use config_sync::machine::Machine;
    use config_sync::table::routing::{Limits, RoutingTable};

    use crate::contract::{BufferId, Event, Op, Token, Why};
    use crate::proxy::Proxy;
    use crate::stats::counters::Counters;

    const TWO_BACKENDS: &str = "
        [[listeners]]
        name = \"l\"
        protocol = \"UDP\"
        address = \"127.0.0.1:53\"
        [[routes]]
        name = \"r\"
        listeners = [\"l\"]
        backends = [{ name = \"a\" }, { name = \"b\" }]
        on_unavailable = \"next\"
        [[backends]]
        name = \"a\"
        endpoints = [\"10.0.0.1:53\"]
        limit = { sessions = 5 }
        [[backends]]
        name = \"b\"
        endpoints = [\"10.0.0.2:53\"]
        limit = { sessions = 5 }
    ";

    fn table() -> Arc<RoutingTable> {
        let machine = Machine { cores: vec![0], congestion: Vec::new() };
        let config = parse_for("f", TWO_BACKENDS, &machine).unwrap_or_else(|why| panic!("{why}"));
        Arc::new(compile(&config, &mut Names::new(), 1).unwrap_or_else(|why| panic!("{why}")))
    }

    /// A datagram of the client with this port. Returns the sockets that are opened for it.
    fn asks(proxy: &mut Proxy, now: u64, table: &RoutingTable, port: u16) -> Vec<Token> {
        let peer = SocketAddr::from(([10, 9, 9, 9], port));
        let event = Event::Datagrams {
            buffer: BufferId(0),
            peer: Some(peer),
            local: None,
            bytes: 9,
            size: 9,
            count: 1,
            truncated: false,
        };
        let mut ops = Vec::new();
        proxy.handle(now, Token::socket(table.sockets[0].id), event, &[0; 9], &mut ops);
        let opened = ops.iter().filter(|(_, op)| matches!(op, Op::Open { .. }));
        opened.map(|(token, _)| *token).collect()
    }

    #[test]
    fn a_flow_that_gets_no_socket_elsewhere_keeps_its_place() {
        let limits =
            Limits { sessions: 1, flows: 9, buffers: 1, pipes: 1, turn_bytes: 1, bulk_bytes: 1 };
        let (table, mut ops) = (table(), Vec::new());
        let mut proxy = Proxy::new(limits, 1, Arc::new(Counters::new()));
        proxy.apply(0, Arc::clone(&table), &mut ops);
        let taken = || {
            let limits = table.backends.iter().map(|backend| backend.limit.as_ref());
            limits.map(|limit| limit.expect("a limit").usage.sessions.get()).collect::<Vec<_>>()
        };
        let first = asks(&mut proxy, 1, &table, 1)[0];
        let with_first = taken();
        assert_eq!(with_first.iter().sum::<u32>(), 1);
        // The other backend's flow, for which no port is free.
        let other = asks(&mut proxy, 1, &table, 2)[0];
        assert_eq!(taken(), [1, 1]);
        proxy.handle(1, other, Event::OpenFailed { why: Why::NoPorts }, &[], &mut ops);
        assert_eq!(taken(), with_first);
        let refused = Event::SendFailed { why: Why::Refused, count: 1 };
        proxy.handle(2, first, refused, &[], &mut ops);
        assert_eq!(asks(&mut proxy, 3, &table, 1), [], "there is no port yet");
        assert_eq!(taken(), with_first, "the flow is where it was");
        proxy.handle(2_000_000, first, refused, &[], &mut ops);
        assert_eq!(asks(&mut proxy, 2_000_001, &table, 1).len(), 1);
        let moved: Vec<u32> = with_first.iter().map(|of| 1 - of).collect();
        assert_eq!(taken(), moved, "the flow has moved, and its place with it");
    }
}
