use std::sync::Arc;

use config_sync::table::limit::{Limit, Load};
use config_sync::table::load::NO_LIMIT;
use config_sync::table::rate::Rate;
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
        limit_source: None,
        limit: None,
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
        limit: None,
        connect_timeout: 1,
        connect_attempts: 3,
        rest: 10_000,
        options: SocketOptions {
            nodelay: true,
            keepalive: 0,
            user_timeout: 0,
            congestion: [0; 16],
        },
        source: Vec::new(),
        interface: 0,
        shared_sockets: false,
        upstream_rest: 2_000,
        send_proxy: None,
        fast_path: false,
        fast_path_after: 16,
        transparent: false,
        tls: None,
    }
}

/// Microseconds: the rest of [`backend`].
const REST: u64 = 10_000_000;

fn load(most: u32) -> Load {
    Load::up_to(most)
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
    let (mut balancer, table) = balancer(vec![route(&[(0, 5), (1, 1), (2, 0), (3, 1)])], vec![]);
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
fn other_backends_get_sessions_by_their_weights_and_take_no_turn() {
    for balance in [RouteBalance::RoundRobin, RouteBalance::SourceHash] {
        let shares = Route { balance, ..route(&[(0, 50), (1, 30), (2, 10), (3, 0), (4, 10)]) };
        let (mut balancer, table) = balancer(vec![shares], vec![]);
        let route = &table.routes[0];
        let mut counts = [0u32; 5];
        for address in 0..10_000 {
            let client = (std::net::Ipv4Addr::from_bits(0x0a00_0000 + address), 1).into();
            let other = balancer.other_backend(route, client, |share| share.id.0 % 4 > 0);
            counts[other.unwrap()] += 1;
        }
        assert_eq!((counts[0], counts[3], counts[4]), (0, 0, 0), "{balance:?}");
        assert!(counts[1].abs_diff(7_500) < 200, "{balance:?}: {counts:?}");
        assert_eq!(balancer.other_backend(route, client(1), |share| share.id.0 == 3), None);
    }
    let (mut balancer, table) = balancer(vec![route(&[(0, 1), (1, 1)])], vec![]);
    let mut picks = Vec::new();
    for _ in 0..4 {
        picks.push(balancer.backend(&table.routes[0], client(1)).unwrap());
        balancer.other_backend(&table.routes[0], client(1), |share| share.id.0 == 1).unwrap();
    }
    assert_eq!(picks, [0, 1, 0, 1]);
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

/// The rest of an endpoint that is in the table all the time is as long as its backend says; an
/// endpoint that was out, and is in again, does not rest.
#[test]
fn an_endpoint_that_returns_to_the_table_does_not_rest() {
    let (mut balancer, mut table) = balancer(vec![], vec![backend(Balance::RoundRobin, 2)]);
    table.backends[0].rest = 2_000;
    balancer.prepare(&table);
    balancer.failed(EndpointId(1), 5);
    balancer.prepare(&table);
    assert_eq!(balancer.rests(EndpointId(1), 5), Some(2_000_000));
    assert_eq!(balancer.rests(EndpointId(1), 2_000_004), Some(1));
    assert_eq!(balancer.rests(EndpointId(1), 2_000_005), None);
    balancer.failed(EndpointId(1), 5);
    balancer.failed(EndpointId(0), 5);
    let mut without = table.clone();
    let out = without.backends[0].endpoints.remove(1);
    without.backends[0].turns = turns(&[1]);
    balancer.prepare(&without);
    assert_eq!(balancer.rests(out.id, 5), Some(2_000_000));
    balancer.prepare(&table);
    assert_eq!(balancer.rests(out.id, 5), None);
    assert_eq!(balancer.rests(EndpointId(0), 5), Some(2_000_000), "which was in all the time");
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
fn an_endpoint_whose_sessions_come_too_fast_is_passed_over() {
    let mut limited = backend(Balance::RoundRobin, 2);
    let opening = Some(Rate::new(2, 3));
    let limit = Limit { opening, ..Limit::nothing(Arc::default()) };
    limited.loads[0].as_mut().unwrap().limit = Some(Box::new(limit));
    let (mut balancer, table) = balancer(vec![], vec![limited]);
    let backend = &table.backends[0];
    balancer.unix = 1_700_000_000_000_000;
    let open = |balancer: &mut Balancer, tried: &[EndpointId]| {
        balancer.session_endpoint(backend, client(1), tried, 0).map(|endpoint| endpoint.id.0)
    };
    let first: Vec<_> = (0..10).filter_map(|_| open(&mut balancer, &[])).collect();
    assert_eq!(first.iter().filter(|id| **id == 0).count(), 3, "{first:?}");
    assert_eq!(first.len(), 10, "the other one has the rest");
    assert_eq!(open(&mut balancer, &[EndpointId(1)]), None);
    assert!(balancer.were_full(backend, &[EndpointId(1)]));
    // A refusal costs nothing.
    balancer.unix += 500_000;
    assert_eq!(open(&mut balancer, &[EndpointId(1)]), Some(0));
    assert_eq!(open(&mut balancer, &[EndpointId(1)]), None);
    let load = table.backends[0].loads[0].as_ref().unwrap();
    assert_eq!(load.sessions.get(), 4);
    // What was taken before the clock was set back keeps nobody out for an hour.
    balancer.unix -= 3_600_000_000;
    assert_eq!(open(&mut balancer, &[EndpointId(1)]), None);
    balancer.unix += 500_000;
    assert_eq!(open(&mut balancer, &[EndpointId(1)]), Some(0));
    // Nor does a session that the endpoint has not heard of.
    balancer.not_opened(EndpointId(0));
    assert_eq!(open(&mut balancer, &[EndpointId(1)]), Some(0));
    assert_eq!(open(&mut balancer, &[EndpointId(1)]), None);
}

#[test]
fn a_worker_counts_its_sessions_in_the_count_of_the_latest_table() {
    let (mut balancer, table) = balancer(vec![], vec![backend(Balance::LeastConnections, 1)]);
    let load = |table: &RoutingTable| table.backends[0].loads[0].as_ref().unwrap().sessions.get();
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
