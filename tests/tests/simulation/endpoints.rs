//! Endpoints that are dead, full or gone.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use config_sync::table::address::Bind;
use config_sync::table::limit::Load;
use config_sync::table::routing::{
    Absence, AcceptProxy, Backend, BackendId, Endpoint, EndpointId, GoneEndpoint, Hosts, OnRefusal,
    OnUnavailable, Protocol, Queue, Route, RouteBalance, RouteId, RoutingTable, Socket, SocketId,
    Transport, WeightedBackend,
};
use config_sync::table::turns::turns;
use ringway::stats::records::{CloseReason, Record, SessionRecord};
use ringway_tests::sim::fake::Fake;
use ringway_tests::sim::kernel::faults::Faults;
use ringway_tests::sim::rng::Rng;
use ringway_tests::sim::scenarios::setup::{self, Setup};
use ringway_tests::sim::tcp::conn::{ConnId, EndpointMode};
use ringway_tests::sim::{backend, model};

use crate::LIMITS;

/// 70/30/0 stays within 2 % (one connection in fifty) while tables come and go between connections,
/// with the backends in another order each time and endpoints that come and go.
#[test]
fn weights_hold_while_tables_come_and_go() {
    const CONNECTIONS: u64 = 2_000;
    let weights = [70, 30, 0];
    let mut rng = Rng::new(1);
    let mut fake = Fake::new(1, LIMITS, Faults::default());
    let mut counts = [0u64; 3];
    for n in 0..CONNECTIONS {
        if n == 0 || rng.per_mille(300) {
            fake.apply(weighted_table(n + 1, &weights, &mut rng));
        }
        let client = SocketAddr::from(([198, 18, 0, 1], 10_000 + n as u16));
        let conn = fake.kernel.peer_connect(SocketId(0), client, Vec::new(), 4096);
        while fake.kernel.connects.is_empty() {
            assert!(fake.step(u64::MAX), "nothing connects");
        }
        for attempted in fake.kernel.connects.drain(..) {
            counts[usize::from(attempted.address.port()) - 1] += 1;
        }
        fake.kernel.peer_reset(conn);
    }
    for (weight, count) in weights.iter().zip(counts) {
        let wanted = CONNECTIONS * weight / 100;
        assert!(count.abs_diff(wanted) <= CONNECTIONS / 50, "weight bias: {counts:?}");
    }
}

/// One client finds out that an endpoint is silent; those that come after need not, until a while
/// has passed. With one that refuses it is the same.
#[test]
fn a_dead_endpoint_costs_one_client_in_a_while_its_time() {
    for dead in [EndpointMode::Silent, EndpointMode::Refuses] {
        let address = |port| SocketAddr::new(setup::HOME, port);
        let (bad, good) = (address(54), address(55));
        let setup = Setup { protocol: Protocol::Tcp, ..setup::UDP };
        let mut fake = Fake::new(1, LIMITS, Faults::default());
        fake.apply(setup.table(address(53), &[bad, good]));
        fake.kernel.set_endpoint(bad, dead);
        fake.kernel.set_endpoint(good, EndpointMode::Accepts);
        let mut tried = 0;
        let mut served = 0;
        let mut come = |fake: &mut Fake, from: u16| {
            for port in from..from + 24 {
                let client = SocketAddr::from(([198, 18, 0, 1], port));
                let conn = fake.kernel.peer_connect(SocketId(0), client, Vec::new(), 4096);
                while fake.kernel.established.is_empty() {
                    assert!(fake.step(fake.kernel.now + 10_000_000), "nothing connects");
                }
                served += fake.kernel.established.drain(..).count();
                let attempts = fake.kernel.connects.drain(..);
                tried += attempts.filter(|attempted| attempted.address == bad).count();
                while fake.step(fake.kernel.now + 1_000) {}
                fake.kernel.peer_reset(conn);
                while fake.step(fake.kernel.now + 1_000) {}
            }
            (tried, served)
        };
        assert_eq!(come(&mut fake, 1_000), (1, 24), "{dead:?}");
        fake.kernel.now += 10_000_000;
        assert_eq!(come(&mut fake, 2_000), (2, 48), "{dead:?}: once more");
        // It has come back: that is found out by the next that tries.
        fake.kernel.set_endpoint(bad, EndpointMode::Accepts);
        fake.kernel.now += 10_000_000;
        let (tried, served) = come(&mut fake, 3_000);
        assert!((14..=15).contains(&tried) && served == 72, "{dead:?}: {tried}");
    }
}

/// Sessions of an endpoint that is gone end after `close_after`: not all at once, the longest idle
/// first. If the endpoint is back in time, they stay; and sessions of other endpoints stay anyway.
#[test]
fn sessions_of_a_gone_endpoint_end_by_and_by() {
    const SESSIONS: u16 = 60;
    for absence in [Absence::Down, Absence::Removed] {
        let address = |port| SocketAddr::new(setup::HOME, port);
        let setup = Setup { protocol: Protocol::Tcp, ..setup::UDP };
        let table = |generation, endpoints: &[SocketAddr], close_after| {
            let gone = GoneEndpoint { id: EndpointId(1), absence, close_after };
            let gone = if endpoints.len() == 1 { vec![gone] } else { Vec::new() };
            RoutingTable { generation, gone: gone.into(), ..setup.table(address(53), endpoints) }
        };
        let (both, first) = ([address(54), address(55)], [address(54)]);
        let mut fake = Fake::new(1, LIMITS, Faults::default());
        fake.apply(table(1, &both, 0));
        for endpoint in both {
            fake.kernel.set_endpoint(endpoint, EndpointMode::Accepts);
        }
        for port in 0..SESSIONS {
            let client = SocketAddr::from(([198, 18, 0, 1], 1_000 + port));
            fake.kernel.peer_connect(SocketId(0), client, Vec::new(), 4096);
            let soon = fake.kernel.now + 1_000;
            while fake.step(soon) {}
        }
        let wait = |fake: &mut Fake, millis: u64| {
            let until = fake.kernel.now + 1_000 * millis;
            while fake.step(until) {}
        };
        fake.records.clear();
        fake.apply(table(2, &first, 1_000));
        wait(&mut fake, 900);
        fake.apply(table(3, &both, 0));
        wait(&mut fake, 9_000);
        let closes = |fake: &Fake| -> Vec<SessionRecord> {
            let closed = fake.records.iter().filter_map(|record| match record {
                Record::Closed(record) => Some(record.clone()),
                _ => None,
            });
            closed.collect()
        };
        assert_eq!(closes(&fake).len(), 0, "it was back in time");
        fake.apply(table(4, &first, 1_000));
        // The table that comes in between does not put the end off.
        wait(&mut fake, 500);
        fake.apply(table(5, &first, 1_000));
        wait(&mut fake, 490);
        assert_eq!(closes(&fake).len(), 0);
        wait(&mut fake, 2_100);
        let closed = closes(&fake);
        assert_eq!(closed.len(), usize::from(SESSIONS) / 2, "{absence:?}");
        assert_eq!(fake.counters.sessions.get(), u64::from(SESSIONS) / 2);
        let reason = match absence {
            Absence::Down => CloseReason::EndpointDown,
            Absence::Removed => CloseReason::EndpointRemoved,
        };
        let is_its = |record: &SessionRecord| {
            record.reason == Some(reason) && record.endpoint == Some(EndpointId(1))
        };
        assert!(closed.iter().all(is_its), "{closed:?}");
        assert!(closed.is_sorted_by_key(|record| record.client.port()), "idle first: {closed:?}");
        let (first, last) = (closed[0].closed, closed[closed.len() - 1].closed);
        assert!((100_000..2_000_000).contains(&(last - first)), "{first} to {last}");
    }
}

/// Failures of an endpoint are counted, and what clients do is not: an attempt that is refused, a
/// reset before the endpoint's first byte.
#[test]
fn failures_of_endpoints_are_counted_for_ejection() {
    let address = |port| SocketAddr::new(setup::HOME, port);
    let setup = Setup { protocol: Protocol::Tcp, ..setup::UDP };
    let mut fake = Fake::new(1, LIMITS, Faults::default());
    fake.apply(setup.table(address(53), &[address(54)]));
    let counters = Arc::clone(&fake.counters);
    let failures = || counters.endpoint(EndpointId(0)).failures.get();
    let mut ports = 1_000..;
    let mut come = |fake: &mut Fake, mode| {
        fake.kernel.set_endpoint(address(54), mode);
        let client = SocketAddr::from(([198, 18, 0, 1], ports.next().expect("a port")));
        let conn = fake.kernel.peer_connect(SocketId(0), client, Vec::new(), 4096);
        let soon = fake.kernel.now + 100_000;
        while fake.step(soon) {}
        (conn, fake.kernel.established.pop())
    };
    come(&mut fake, EndpointMode::Refuses);
    assert_eq!(failures(), 1, "refused");
    let (client, _) = come(&mut fake, EndpointMode::Silent);
    fake.kernel.peer_reset(client);
    while fake.step(fake.kernel.now + 1_000) {}
    assert_eq!(failures(), 1, "a client that does not wait");
    for says in [0, 9] {
        let (_, endpoint) = come(&mut fake, EndpointMode::Accepts);
        let endpoint = endpoint.expect("it is connected");
        fake.kernel.peer_write(endpoint, says);
        while fake.step(fake.kernel.now + 1_000) {}
        fake.kernel.peer_reset(endpoint);
        while fake.step(fake.kernel.now + 1_000) {}
        assert_eq!(failures(), 2, "only the reset before the first byte");
    }
    let (client, _) = come(&mut fake, EndpointMode::Accepts);
    fake.kernel.peer_reset(client);
    while fake.step(fake.kernel.now + 1_000) {}
    assert_eq!(failures(), 2, "the client's own reset");
}

/// Sessions that wait for the last endpoint are served by a backup, once that endpoint is gone:
/// haproxy/haproxy issue 6 (nobody served them). A client that has left the queue before holds up
/// nobody.
#[test]
fn those_who_wait_are_served_by_the_backup() {
    let address = |port| SocketAddr::new(setup::HOME, port);
    let setup = Setup { protocol: Protocol::Tcp, ..setup::UDP };
    let line: Arc<_> = Arc::default();
    let loads: Vec<Load> = (0..2).map(|_| Load::up_to(2)).collect();
    let table = |generation, endpoint: usize| {
        let mut table = setup.table(address(53), &[address(54), address(55)]);
        let backend = &mut table.backends[0];
        backend.endpoints = vec![backend.endpoints[endpoint]];
        backend.turns = turns(&[1]);
        backend.loads = vec![Some(loads[endpoint].clone())];
        backend.queue = Some(Queue { line: Arc::clone(&line), most: 10, timeout: 60_000 });
        RoutingTable { generation, ..table }
    };
    let mut fake = Fake::new(1, LIMITS, Faults::default());
    fake.apply(table(1, 0));
    for port in [54, 55] {
        fake.kernel.set_endpoint(address(port), EndpointMode::Accepts);
    }
    let wait = |fake: &mut Fake| {
        let until = fake.kernel.now + 100_000;
        while fake.step(until) {}
    };
    let clients: Vec<_> = (1..=5)
        .map(|port| {
            let client = SocketAddr::from(([198, 18, 0, 1], port));
            let conn = fake.kernel.peer_connect(SocketId(0), client, Vec::new(), 4096);
            wait(&mut fake);
            conn
        })
        .collect();
    assert_eq!(fake.kernel.established.drain(..).count(), 2, "the endpoint takes two");
    fake.kernel.peer_reset(clients[2]);
    wait(&mut fake);
    assert_eq!(line.waiting(), 2, "who has left does not wait");
    fake.apply(table(2, 1));
    wait(&mut fake);
    let served: Vec<_> = fake.kernel.established.drain(..).collect();
    let partner = |conn: &ConnId| fake.kernel.conn(*conn).partner;
    let partners: BTreeSet<_> = served.iter().filter_map(partner).collect();
    assert_eq!(partners, BTreeSet::from([clients[3], clients[4]]));
    assert!(served.iter().all(|conn| fake.kernel.conn(*conn).peer == address(55)));
    assert_eq!(line.waiting(), 0);
}

/// One TCP listener; a backend's endpoints all have its number plus one as their port.
fn weighted_table(generation: u64, weights: &[u64], rng: &mut Rng) -> RoutingTable {
    let any = |value| {
        let mut hosts = Hosts::new([1, 2, 3, 4]);
        hosts.insert(None, value);
        hosts
    };
    let mut order: Vec<u32> = (0..weights.len() as u32).collect();
    order.rotate_left(rng.below(weights.len() as u64) as usize);
    let endpoint = |backend: u32, n: u32| Endpoint {
        id: EndpointId(backend * 4 + n),
        address: SocketAddr::from(([10, 0, 0, n as u8], backend as u16 + 1)).into(),
        weight: 1,
    };
    let mut count = || rng.below(4) as u32 + 1;
    let backend = |id: u32, count: u32| Backend {
        connect_attempts: 1,
        ..backend::plain_backend(BackendId(id), (0..count).map(|n| endpoint(id, n)).collect())
    };
    let backends: Vec<_> = (0..weights.len() as u32).map(|id| backend(id, count())).collect();
    let share = |id: &u32| WeightedBackend {
        id: BackendId(*id),
        backend: *id as usize,
        weight: weights[*id as usize] as u32,
        key: u64::from(*id),
    };
    let route = Route {
        id: RouteId(0),
        name: "route".into(),
        access: None,
        limit_source: None,
        limit: None,
        balance: RouteBalance::RoundRobin,
        on_unavailable: OnUnavailable::Refuse,
        backends: order.iter().map(share).collect(),
    };
    RoutingTable {
        generation,
        sockets: vec![Socket {
            id: SocketId(0),
            transport: Transport::Tcp,
            address: SocketAddr::from(([192, 0, 2, 1], 80)).into(),
            options: backend::options(),
            reads_hello: false,
            hello_timeout: 0,
            access: None,
            starttls: None,
            on_refusal: OnRefusal::default(),
            default_hostname: None,
            not_tls: None,
            silent: None,
            bind: Bind::default(),
            accept_proxy: AcceptProxy::default(),
            listeners: any(0),
        }],
        listeners: vec![model::plain_listener(Protocol::Tcp, any(0))],
        routes: vec![route],
        backends,
        ..RoutingTable::empty()
    }
}
