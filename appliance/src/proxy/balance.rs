//! Chooses a backend, and one of its endpoints. Cursors and counts are kept by stable ids, so a new
//! table does not change who is next.

#![expect(
    clippy::cast_possible_truncation,
    reason = "hashes are cut and reduced on purpose; the kernel floor is 64-bit"
)]

use config_sync::table::limit::Limit;
use config_sync::table::routing::{
    Backend, BackendId, Balance, Endpoint, EndpointId, Route, RouteBalance, RoutingTable,
    WeightedBackend,
};
use std::net::{IpAddr, SocketAddr};

use crate::contract::Origin;
use crate::proxy::of_endpoint::OfEndpoint;
use crate::proxy::source_hash::{backend_of, mix, source_hash};

#[derive(Debug)]
pub struct Balancer {
    /// By `RouteId`: each backend's credit in the smooth weighted round robin.
    credits: Vec<Vec<(BackendId, i64)>>,
    /// By `BackendId`: the position of the last turn in [`Backend::turns`].
    cursors: Vec<u32>,
    /// By `EndpointId`.
    endpoints: Vec<OfEndpoint>,
    random: Random,
    /// The position of the next local address.
    sources: u64,
    /// The number of tables so far.
    tables: u64,
    /// Microseconds since 1970. Set at each entry.
    pub unix: u64,
}

/// The maximum number of draws for an endpoint that does not rest.
const DRAWS: usize = 8;

impl Balancer {
    pub fn new(seed: u64) -> Self {
        Self {
            credits: Vec::new(),
            cursors: Vec::new(),
            endpoints: Vec::new(),
            random: Random::new(seed),
            sources: 0,
            tables: 0,
            unix: 0,
        }
    }

    /// Makes room for the ids of a new table.
    pub fn prepare(&mut self, table: &RoutingTable) {
        self.tables += 1;
        let routes = table.routes.iter().map(|route| route.id.index() + 1).max().unwrap_or(0);
        if routes > self.credits.len() {
            self.credits.resize_with(routes, Vec::new);
        }
        for backend in &table.backends {
            while self.cursors.len() <= backend.id.index() {
                // Workers start at different places, so that a backend's first connections do not
                // all go to its first endpoint.
                self.cursors.push(self.random.next_u32() >> 1);
            }
            for (at, endpoint) in backend.endpoints.iter().enumerate() {
                let index = endpoint.id.index();
                if self.endpoints.len() <= index {
                    self.endpoints.resize(index + 1, OfEndpoint::default());
                }
                let load = backend.loads.get(at).and_then(Option::as_ref);
                self.endpoints[index].count_in(load);
                self.endpoints[index].listed(self.tables, backend.rest);
            }
        }
    }

    /// The index of the client's backend, or of the backend whose turn it is. `None` if no backend
    /// has a weight above 0.
    pub fn backend(&mut self, route: &Route, client: SocketAddr) -> Option<usize> {
        match route.balance {
            RouteBalance::RoundRobin => self.next_backend(route),
            RouteBalance::SourceHash => backend_of(route, client, |_| true),
        }
    }

    /// The index of the backend for a session whose backend failed: one that `may_serve`. It takes
    /// nobody's turn, so a drawn number stands for the turn.
    pub fn other_backend(
        &mut self,
        route: &Route,
        client: SocketAddr,
        may_serve: impl Fn(&WeightedBackend) -> bool,
    ) -> Option<usize> {
        if route.balance == RouteBalance::SourceHash {
            return backend_of(route, client, may_serve);
        }
        let shares = || route.backends.iter().filter(|share| may_serve(share));
        let total: u64 = shares().map(|share| u64::from(share.weight)).sum();
        let mut drawn = u64::from(self.random.next_u32()).checked_rem(total)?;
        for share in shares() {
            match drawn.checked_sub(u64::from(share.weight)) {
                Some(rest) => drawn = rest,
                None => return Some(share.backend),
            }
        }
        unreachable!("it is less than the sum of the weights")
    }

    /// Smooth weighted round robin: in n times the sum of the weights picks, each backend has
    /// exactly n times its weight.
    fn next_backend(&mut self, route: &Route) -> Option<usize> {
        let credits = &mut self.credits[route.id.index()];
        let same = credits.len() == route.backends.len()
            && credits.iter().zip(&route.backends).all(|(credit, share)| credit.0 == share.id);
        if !same {
            let old = std::mem::take(credits);
            credits.extend(route.backends.iter().map(|share| {
                let kept = old.iter().find(|(id, _)| *id == share.id);
                (share.id, kept.map_or(0, |(_, credit)| *credit))
            }));
        }
        let total: i64 = route.backends.iter().map(|share| i64::from(share.weight)).sum();
        let mut best: Option<usize> = None;
        for (position, share) in route.backends.iter().enumerate() {
            if share.weight == 0 {
                continue;
            }
            // A credit earned under other weights must not outlast them, so a credit is at most one
            // round.
            let credit = (credits[position].1 + i64::from(share.weight)).clamp(-total, total);
            credits[position].1 = credit;
            if best.is_none_or(|best| credit > credits[best].1) {
                best = Some(position);
            }
        }
        let best = best?;
        credits[best].1 -= total;
        Some(route.backends[best].backend)
    }

    /// The next endpoint in turn that is not full, other than those in `tried`. The endpoint counts
    /// the flow from now on, until [`Self::closed`]. A flow that leaves an endpoint in `tried`
    /// takes a turn like any other flow.
    pub fn endpoint(
        &mut self,
        backend: &Backend,
        client: SocketAddr,
        tried: &[EndpointId],
    ) -> Option<Endpoint> {
        loop {
            let picked = &backend.endpoints[self.pick(backend, client, tried, u64::MAX, true)?];
            if self.opened(picked.id) {
                return Some(*picked);
            }
        }
    }

    /// The endpoint for a session. The endpoint counts the session from now on. An endpoint that a
    /// session could not be given to comes last for a while. After that, a single session tries the
    /// endpoint. Until this session has an answer, the endpoint comes last for all others.
    pub fn session_endpoint(
        &mut self,
        backend: &Backend,
        client: SocketAddr,
        tried: &[EndpointId],
        now: u64,
    ) -> Option<Endpoint> {
        // Another try for one session takes nobody's turn.
        let turn = tried.is_empty();
        let picked = loop {
            let picked = self.pick(backend, client, tried, now, turn);
            let picked = picked.or_else(|| self.pick(backend, client, tried, u64::MAX, turn))?;
            let picked = &backend.endpoints[picked];
            // Another worker may have taken the last place since.
            if self.opened(picked.id) {
                break picked;
            }
        };
        if self.endpoints[picked.id.index()].rest > 0 {
            self.failed(picked.id, now);
        }
        Some(*picked)
    }

    /// A session could not be given to this endpoint.
    pub fn failed(&mut self, endpoint: EndpointId, now: u64) {
        self.endpoints[endpoint.index()].failed(now);
    }

    /// A session was given to this endpoint.
    pub fn succeeded(&mut self, endpoint: EndpointId) {
        self.endpoints[endpoint.index()].rest = 0;
    }

    /// Microseconds for which the endpoint comes last, because a session could not be given to it.
    /// `None`: the endpoint takes its turns.
    pub fn rests(&self, endpoint: EndpointId, now: u64) -> Option<u64> {
        let rest = self.endpoints.get(endpoint.index())?.rest;
        rest.checked_sub(now).filter(|left| *left > 0)
    }

    /// Whether the backend has an endpoint, other than those in `tried`, that is not full, and that
    /// does not come last because a session could not be given to it.
    pub fn has_free(&self, backend: &Backend, tried: &[EndpointId], now: u64) -> bool {
        let mut others = backend.endpoints.iter().filter(|of| of.weight > 0);
        others.any(|of| {
            let known = &self.endpoints[of.id.index()];
            !tried.contains(&of.id) && known.rest <= now && !known.is_full(self.unix)
        })
    }

    /// The endpoints that a session or flow of this client may get now, by their indices, each with
    /// its part of the chance. The parts add up to 1, unless the list is empty. If the client's
    /// address decides, there is one endpoint. `port`: whether the client's port is known. Nobody
    /// is counted, and no turn is taken.
    pub fn candidates(
        &mut self,
        backend: &Backend,
        client: SocketAddr,
        port: bool,
    ) -> Vec<(usize, f64)> {
        let by_port = matches!(backend.balance, Balance::SourcePortHash(_));
        if matches!(backend.balance, Balance::SourceHash(_)) || by_port && port {
            let picked = self.pick(backend, client, &[], 0, false);
            return picked.map(|index| (index, 1.0)).into_iter().collect();
        }
        let places = match &backend.balance {
            Balance::SourcePortHash(table) => table,
            _ => &backend.turns,
        };
        let mut counts = vec![0u32; backend.endpoints.len()];
        for index in places.iter().map(|index| usize::from(*index)) {
            let is_full = self.endpoints[backend.endpoints[index].id.index()].is_full(self.unix);
            counts[index] += u32::from(!is_full);
        }
        let all = f64::from(counts.iter().sum::<u32>());
        let counts = counts.into_iter().enumerate().filter(|(_, count)| *count > 0);
        counts.map(|(index, count)| (index, f64::from(count) / all)).collect()
    }

    /// Picks an endpoint, but none that was tried, none that is full, and none that rests at `now`.
    /// Returns its index.
    fn pick(
        &mut self,
        backend: &Backend,
        client: SocketAddr,
        tried: &[EndpointId],
        now: u64,
        takes_turn: bool,
    ) -> Option<usize> {
        let Backend { endpoints, turns, .. } = backend;
        let count = turns.len();
        if count == 0 {
            return None;
        }
        let Self { cursors, endpoints: known, random, unix, .. } = self;
        let is_free = |index: usize| {
            let id = endpoints[index].id;
            let of = &known[id.index()];
            of.rest <= now && !of.is_full(*unix) && !tried.contains(&id)
        };
        let index_at = |turn: usize| usize::from(turns[turn % count]);
        let free_from = |start: usize| (start..start + count).find(|turn| is_free(index_at(*turn)));
        let cursor = &mut cursors[backend.id.index()];
        let mut take_turn = || {
            let next = free_from(*cursor as usize % count + 1)? % count;
            if takes_turn {
                *cursor = next as u32;
            }
            Some(next)
        };
        let index = match &backend.balance {
            Balance::RoundRobin => index_at(take_turn()?),
            Balance::LeastConnections => {
                // Power of two choices: as good as a full scan, without a look at each endpoint.
                // Endpoints with equal counts take turns, so the next in turn is one of the two.
                let next = take_turn()?;
                let drawn = next + 1 + random.next_u32() as usize % (count - 1).max(1);
                let (next, other) = (index_at(next), index_at(free_from(drawn)?));
                // Sessions for each part of weight are compared: a / b < c / d is a * d < c * b.
                let weighed = |of: usize, by: usize| {
                    let sessions = known[endpoints[of].id.index()].sessions();
                    u64::from(sessions) * u64::from(endpoints[by].weight)
                };
                if weighed(other, next) < weighed(next, other) { other } else { next }
            }
            Balance::Random => {
                // The neighbour of an endpoint that is passed over should not get all its share.
                let mut drawn = (0..DRAWS).map(|_| index_at(random.next_u32() as usize));
                drawn.find(|index| is_free(*index)).or_else(|| take_turn().map(index_at))?
            }
            Balance::SourceHash(table) => {
                in_table(table, source_hash(client, false)).find(|index| is_free(*index))?
            }
            Balance::SourcePortHash(table) => {
                in_table(table, source_hash(client, true)).find(|index| is_free(*index))?
            }
        };
        Some(index)
    }

    /// The address to connect from: the client's, or in turn the backend's addresses of the
    /// endpoint's family.
    pub fn origin(
        &mut self,
        backend: &Backend,
        endpoint: SocketAddr,
        client: SocketAddr,
    ) -> Origin {
        if backend.transparent {
            return Origin::Client(client.ip().to_canonical());
        }
        self.source(backend, endpoint).map_or(Origin::Any, Origin::Local)
    }

    fn source(&mut self, backend: &Backend, endpoint: SocketAddr) -> Option<IpAddr> {
        let of_family =
            || backend.source.iter().filter(|of| of.first.is_ipv4() == endpoint.is_ipv4());
        let count: u64 = of_family().map(|sources| u64::from(sources.count)).sum();
        let mut index = self.sources.checked_rem(count)?;
        self.sources = index + 1;
        for sources in of_family() {
            if index < u64::from(sources.count) {
                return Some(sources.at(index as u32));
            }
            index -= u64::from(sources.count);
        }
        None
    }

    /// Whether this worker has a session or flow of the endpoint.
    pub fn has_any(&self, endpoint: EndpointId) -> bool {
        self.endpoints.get(endpoint.index()).is_some_and(|of| of.active > 0)
    }

    /// Whether no endpoint was picked because those that are left are full. A look at the counts
    /// would not tell: another worker may have freed a place since.
    pub fn were_full(&self, backend: &Backend, tried: &[EndpointId]) -> bool {
        let mut others = backend.endpoints.iter().filter(|of| of.weight > 0);
        others.any(|of| !tried.contains(&of.id) && self.endpoints[of.id.index()].has_limit())
    }

    /// Counts a session, unless the endpoint is full.
    fn opened(&mut self, endpoint: EndpointId) -> bool {
        self.endpoints[endpoint.index()].opened(self.unix)
    }

    /// What bounds the bytes of an endpoint's sessions and flows.
    pub fn limit_of_bytes(&self, endpoint: EndpointId) -> Option<&Limit> {
        self.endpoints.get(endpoint.index())?.limit_of_bytes()
    }

    /// Counts a session that another process has given to this endpoint, however many there are.
    pub fn arrived(&mut self, endpoint: EndpointId) {
        let index = endpoint.index();
        if self.endpoints.len() <= index {
            self.endpoints.resize(index + 1, OfEndpoint::default());
        }
        self.endpoints[index].arrived();
    }

    pub fn closed(&mut self, endpoint: EndpointId) {
        self.endpoints[endpoint.index()].closed();
    }

    /// The session that was counted comes to nothing, and the endpoint has not heard of it.
    pub fn not_opened(&mut self, endpoint: EndpointId) {
        self.endpoints[endpoint.index()].not_opened();
    }
}

/// Maglev look-up: positions in the order of the table. If a position is passed over, the next one
/// follows, and is always the same for one client.
fn in_table(table: &[u16], hash: u64) -> impl Iterator<Item = usize> {
    let size = table.len();
    let start = (hash % size as u64) as usize;
    (0..size).map(move |step| usize::from(table[(start + step) % size]))
}

/// splitmix64: small, seeded, good enough to spread load. Nothing secret depends on it.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next_u32(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(1);
        (mix(self.0) >> 32) as u32
    }
}

#[cfg(test)]
mod tests;
