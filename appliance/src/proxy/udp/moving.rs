//! Moves flows to other endpoints: away from an endpoint that left the table, and away from a
//! closed port.

use config_sync::table::routing::{Backend, EndpointId, OnUnavailable, WeightedBackend};

use crate::proxy::balance::Balancer;
use crate::proxy::core::{Core, micros};
use crate::proxy::held::Scope;
use crate::proxy::tables::Tables;
use crate::proxy::udp::choose::{Choice, Refusal, admits, choose, enter, route};
use crate::proxy::udp::flow::{Flow, Promotion, Whose, listener_of};
use crate::proxy::udp::state::{Flows, MOST_CLOSED};
use crate::stats::records::{CloseReason, DropReason};

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
            let upstream = upstream.inspect_err(|_| core.balancer.closed(choice.endpoint))?;
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
        let (now, tables) = (core.unix_micros(), &core.tables);
        let mut entered = Ok(());
        if choice.route != flow.route {
            let limit = tables.route(choice.route).and_then(|of| of.limit.as_deref());
            entered = enter(&mut flow.held, Scope::Route, limit, now);
        }
        if entered.is_ok() && choice.backend != flow.backend {
            let backend = tables.backend(flow.socket, choice.backend);
            let limit = backend.and_then(|of| of.limit.as_deref());
            entered = enter(&mut flow.held, Scope::Backend, limit, now);
        }
        entered.inspect_err(|_| core.balancer.closed(choice.endpoint))
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
            return core.balancer.closed(endpoint.id);
        }
        let client = (flow.client(), flow.bound(core).port());
        let ports = (&self.ports, now);
        let choice = Choice::new(flow.route, backend, endpoint, &mut core.balancer, client, ports);
        let Ok(choice) = choice else { return };
        if self.enter(core, slot, &choice).is_err() {
            return;
        }
        match self.upstream_for(core, &choice) {
            Ok(upstream) => self.moves(core, slot, &choice, upstream),
            Err(_) => core.balancer.closed(choice.endpoint),
        }
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
        flow.introduce(core, choice.send_proxy);
        // It was to be offered with its old socket.
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
