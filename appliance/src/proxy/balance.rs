//! Chooses a backend, and one of its endpoints. Cursors and counts are kept by stable ids, so a new
//! table does not change who is next.

#![expect(
    clippy::cast_possible_truncation,
    reason = "hashes are cut and reduced on purpose; the kernel floor is 64-bit"
)]

use config_sync::table::routing::{
    Backend, BackendId, Balance, Endpoint, EndpointId, Route, RouteBalance, RoutingTable,
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
}

/// Microseconds for which an endpoint comes last after a session could not be given to it: as long
/// as nginx's `fail_timeout`. The time is short enough for an endpoint that was only restarted, and
/// clients seldom meet a dead one.
const REST: u64 = 10_000_000;
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
        }
    }

    /// Makes room for the ids of a new table.
    pub fn prepare(&mut self, table: &RoutingTable) {
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
            }
        }
    }

    /// The index of the client's backend, or of the backend whose turn it is. `None` if no backend
    /// has a weight above 0.
    pub fn backend(&mut self, route: &Route, client: SocketAddr) -> Option<usize> {
        match route.balance {
            RouteBalance::RoundRobin => self.next_backend(route),
            RouteBalance::SourceHash => backend_of(route, client),
        }
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
        self.endpoints[endpoint.index()].rest = now + REST;
    }

    /// A session was given to this endpoint.
    pub fn succeeded(&mut self, endpoint: EndpointId) {
        self.endpoints[endpoint.index()].rest = 0;
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
        let Self { cursors, endpoints: known, random, .. } = self;
        let is_free = |index: usize| {
            let id = endpoints[index].id;
            let of = &known[id.index()];
            of.rest <= now && !of.is_full() && !tried.contains(&id)
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
        self.endpoints[endpoint.index()].opened()
    }

    pub fn closed(&mut self, endpoint: EndpointId) {
        self.endpoints[endpoint.index()].closed();
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
mod tests {
    use std::sync::Arc;

    use config_sync::table::load::{Load, NO_LIMIT};
    use config_sync::table::routing::{
        OnUnavailable, RouteId, SocketOptions, Sources, WeightedBackend,
    };
    use config_sync::table::turns::turns;

    use super::*;

    fn route(weights: &[(u32, u32)]) -> Route {
        let share = |(position, (id, weight)): (usize, &(u32, u32))| WeightedBackend {
            id: BackendId(*id),
            backend: position,
            weight: *weight,
            key: u64::from(*id),
        };
        let backends = weights.iter().enumerate().map(share).collect();
        Route {
            id: RouteId(0),
            name: "r".into(),
            access: None,
            balance: RouteBalance::RoundRobin,
            on_unavailable: OnUnavailable::Refuse,
            backends,
        }
    }

    fn backend(balance: Balance, endpoints: u32) -> Backend {
        let endpoint = |id: u32| Endpoint {
            id: EndpointId(id),
            address: SocketAddr::from(([10, 0, 0, 1], u16::try_from(id).unwrap() + 1)).into(),
            weight: 1,
        };
        Backend {
            id: BackendId(0),
            name: "b".into(),
            balance,
            endpoints: (0..endpoints).map(endpoint).collect(),
            turns: turns(&vec![1; endpoints as usize]),
            loads: (0..endpoints).map(|_| Some(load(NO_LIMIT))).collect(),
            queue: None,
            connect_timeout: 1,
            connect_attempts: 3,
            options: SocketOptions {
                nodelay: true,
                keepalive: 0,
                user_timeout: 0,
                congestion: [0; 16],
            },
            source: Vec::new(),
            shared_sockets: false,
            upstream_rest: 2_000,
            send_proxy: None,
            transparent: false,
            tls: None,
        }
    }

    fn load(most: u32) -> Load {
        Load { sessions: Arc::default(), most }
    }

    fn balancer(routes: Vec<Route>, backends: Vec<Backend>) -> (Balancer, RoutingTable) {
        let table = RoutingTable { routes, backends, ..RoutingTable::empty() };
        let mut balancer = Balancer::new(7);
        balancer.prepare(&table);
        (balancer, table)
    }

    fn client(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn each_round_is_exact_and_smooth() {
        let (mut balancer, table) =
            balancer(vec![route(&[(0, 5), (1, 1), (2, 0), (3, 1)])], vec![]);
        let picks: Vec<_> =
            (0..7).map(|_| balancer.backend(&table.routes[0], client(1)).unwrap()).collect();
        assert_eq!(picks, [0, 0, 1, 0, 3, 0, 0]);
    }

    #[test]
    fn weights_hold_while_tables_come_and_go() {
        let tables = [route(&[(0, 70), (1, 30), (2, 0)]), route(&[(2, 0), (1, 30), (0, 70)])];
        let (mut balancer, _) = balancer(vec![route(&[(0, 70), (1, 30), (2, 0)])], vec![]);
        let mut counts = [0; 3];
        for pick in 0..10_000 {
            let route = &tables[pick / 3 % 2];
            let position = balancer.backend(route, client(1)).unwrap();
            counts[route.backends[position].id.index()] += 1;
        }
        assert_eq!(counts, [7_000, 3_000, 0]);
    }

    #[test]
    fn no_weight_is_no_backend() {
        let (mut balancer, table) = balancer(vec![route(&[(0, 0), (1, 0)])], vec![]);
        assert_eq!(balancer.backend(&table.routes[0], client(1)), None);
    }

    #[test]
    fn round_robin_takes_turns_and_passes_over_the_tried() {
        let (mut balancer, table) = balancer(vec![], vec![backend(Balance::RoundRobin, 3)]);
        let mut counts = [0; 3];
        for _ in 0..9 {
            let endpoint = balancer.endpoint(&table.backends[0], client(1), &[]).unwrap();
            counts[endpoint.id.index()] += 1;
        }
        assert_eq!(counts, [3; 3]);
        let tried = [EndpointId(0), EndpointId(2)];
        for _ in 0..5 {
            let endpoint = balancer.endpoint(&table.backends[0], client(1), &tried).unwrap();
            assert_eq!(endpoint.id, EndpointId(1));
        }
        let all = [EndpointId(0), EndpointId(1), EndpointId(2)];
        assert_eq!(balancer.endpoint(&table.backends[0], client(1), &all), None);
    }

    #[test]
    fn a_sessions_second_try_takes_nobody_elses_turn() {
        for balance in [Balance::RoundRobin, Balance::LeastConnections] {
            let (mut balancer, table) = balancer(vec![], vec![backend(balance, 2)]);
            let mut first = [0; 2];
            for _ in 0..10 {
                let mut endpoint = |tried: &[EndpointId]| {
                    balancer.session_endpoint(&table.backends[0], client(1), tried, 0).unwrap()
                };
                let picked = endpoint(&[]);
                first[picked.id.index()] += 1;
                endpoint(&[picked.id]);
            }
            assert_eq!(first, [5; 2]);
        }
    }

    /// The flows that leave one endpoint do not all go to the next.
    #[test]
    fn flows_that_move_have_turns() {
        let (mut balancer, table) = balancer(vec![], vec![backend(Balance::RoundRobin, 3)]);
        let mut counts = [0; 3];
        for _ in 0..10 {
            let tried = [EndpointId(0)];
            let picked = balancer.endpoint(&table.backends[0], client(1), &tried).unwrap();
            counts[picked.id.index()] += 1;
        }
        assert_eq!(counts, [0, 5, 5]);
    }

    #[test]
    fn one_that_has_failed_comes_last_and_is_tried_by_one_session_at_a_time() {
        let hash = Balance::SourcePortHash(Arc::new([0, 1, 2, 1, 0, 2, 2]));
        for balance in [Balance::RoundRobin, Balance::LeastConnections, Balance::Random, hash] {
            let (mut balancer, table) = balancer(vec![], vec![backend(balance, 3)]);
            let backend = &table.backends[0];
            balancer.failed(EndpointId(1), 5);
            let picks = |balancer: &mut Balancer, now| {
                let mut counts = [0; 3];
                for port in 0..60 {
                    let tried = [];
                    let picked = balancer.session_endpoint(backend, client(port), &tried, now);
                    counts[picked.unwrap().id.index()] += 1;
                }
                counts
            };
            let rests = picks(&mut balancer, 4 + REST);
            assert!(rests[1] == 0 && rests[0] > 10 && rests[2] > 10, "{rests:?}");
            assert_eq!(picks(&mut balancer, 5 + REST)[1], 1);
            assert_eq!(picks(&mut balancer, 4 + 2 * REST)[1], 0);
            balancer.succeeded(EndpointId(1));
            assert!(picks(&mut balancer, 4 + 2 * REST)[1] > 5);
            // With no other endpoint, a resting one is as good as any. Flows ignore the rest of
            // endpoints.
            balancer.failed(EndpointId(1), 0);
            let others = [EndpointId(0), EndpointId(2)];
            let last = balancer.session_endpoint(backend, client(1), &others, 1);
            assert_eq!(last.map(|endpoint| endpoint.id), Some(EndpointId(1)));
            let flow = balancer.endpoint(backend, client(1), &others);
            assert_eq!(flow.map(|endpoint| endpoint.id), Some(EndpointId(1)));
        }
    }

    #[test]
    fn least_connections_gives_equals_their_turns() {
        let (mut balancer, table) = balancer(vec![], vec![backend(Balance::LeastConnections, 4)]);
        let mut counts = [0; 4];
        for _ in 0..20 {
            let endpoint = balancer.endpoint(&table.backends[0], client(1), &[]).unwrap();
            counts[endpoint.id.index()] += 1;
            balancer.closed(endpoint.id);
        }
        assert_eq!(counts, [5; 4]);
    }

    #[test]
    fn least_connections_prefers_the_idle() {
        let (mut balancer, table) = balancer(vec![], vec![backend(Balance::LeastConnections, 2)]);
        for _ in 0..100 {
            balancer.endpoint(&table.backends[0], client(1), &[]).unwrap();
        }
        assert_eq!(balancer.endpoints.iter().map(|of| of.active).collect::<Vec<_>>(), [50, 50]);
    }

    #[test]
    fn a_full_endpoint_is_passed_over() {
        let hash = Balance::SourcePortHash(Arc::new([0, 1, 2, 1, 0, 2, 2]));
        for balance in [Balance::RoundRobin, Balance::LeastConnections, Balance::Random, hash] {
            let mut limited = backend(balance, 3);
            limited.loads = vec![Some(load(2)), None, Some(load(1))];
            limited.endpoints[1].weight = 0;
            limited.turns = turns(&[1, 0, 1]);
            if let Balance::SourcePortHash(slots) = &mut limited.balance {
                *slots = Arc::new([0, 2, 0, 2, 2]);
            }
            let (mut balancer, table) = balancer(vec![], vec![limited]);
            let backend = &table.backends[0];
            let open = |balancer: &mut Balancer| {
                let picked = balancer.session_endpoint(backend, client(1), &[], 0);
                picked.map(|endpoint| endpoint.id.0)
            };
            let mut opened = [(); 3].map(|()| open(&mut balancer).expect("a place"));
            opened.sort_unstable();
            assert_eq!(opened, [0, 0, 2]);
            assert_eq!(open(&mut balancer), None);
            balancer.closed(EndpointId(0));
            assert!(balancer.were_full(backend, &[]), "a place that came free later is no matter");
            assert!(!balancer.were_full(backend, &[EndpointId(0), EndpointId(2)]));
            assert_eq!(open(&mut balancer), Some(0));
        }
    }

    #[test]
    fn a_worker_counts_its_sessions_in_the_count_of_the_latest_table() {
        let (mut balancer, table) = balancer(vec![], vec![backend(Balance::LeastConnections, 1)]);
        let load =
            |table: &RoutingTable| table.backends[0].loads[0].as_ref().unwrap().sessions.get();
        balancer.opened(EndpointId(0));
        balancer.opened(EndpointId(0));
        assert_eq!(load(&table), 2);
        // An endpoint that is absent for a while keeps its count.
        balancer.prepare(&RoutingTable::empty());
        balancer.closed(EndpointId(0));
        assert_eq!(load(&table), 1);
        let mut without = table.clone();
        without.backends[0].loads.clear();
        balancer.prepare(&without);
        assert_eq!(load(&table), 0);
        balancer.opened(EndpointId(0));
        balancer.prepare(&table);
        assert_eq!(load(&table), 2);
    }

    #[test]
    fn source_hash_stays_and_has_a_second_choice() {
        let hash = Balance::SourceHash(Arc::new([0, 1, 2, 1, 0, 2, 2]));
        let (mut balancer, table) = balancer(vec![], vec![backend(hash, 3)]);
        let first = balancer.endpoint(&table.backends[0], client(1), &[]).unwrap();
        for port in 2..50 {
            let again = balancer.endpoint(&table.backends[0], client(port), &[]).unwrap();
            assert_eq!(again, first);
        }
        let second = balancer.endpoint(&table.backends[0], client(1), &[first.id]).unwrap();
        assert_ne!(second, first);
    }

    #[test]
    fn sources_take_turns_within_the_family() {
        let mut backend = backend(Balance::Random, 1);
        let sources = |first: &str, count| Sources { first: first.parse().unwrap(), count };
        backend.source = vec![sources("10.0.0.2", 1), sources("::1", 3), sources("10.0.1.0", 2)];
        let (mut balancer, _) = balancer(vec![], vec![]);
        let mut next = || balancer.source(&backend, client(1)).unwrap().to_string();
        let turns: Vec<_> = (0..4).map(|_| next()).collect();
        assert_eq!(turns, ["10.0.0.2", "10.0.1.0", "10.0.1.1", "10.0.0.2"]);
    }
}
