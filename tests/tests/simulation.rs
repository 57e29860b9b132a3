//! The proxy in the simulated kernel: many seeds, each a world of its own.
//!
//! `SEEDS=n` sets how many (default 10,000), `SEED_SECONDS=n` ends after so long with as many as
//! there were, `SEED=n` replays one with a trace.
#![allow(clippy::cast_possible_truncation, reason = "what is counted here is small")]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use config_sync::table::address::Bind;
use config_sync::table::limit::Load;
use config_sync::table::rate::Rate;
use config_sync::table::routing::{
    Absence, AcceptProxy, Backend, BackendId, Drain, Endpoint, EndpointId, GoneEndpoint, Hosts,
    Limits, Listener, ListenerId, OnRefusal, OnUnavailable, Protocol, ProxyVersion, Queue, Route,
    RouteBalance, RouteId, RoutingTable, SendProxy, Socket, SocketId, Sources, Timeouts, Transport,
    WeightedBackend,
};
use config_sync::table::source_limit::SourceLimit;
use config_sync::table::turns::turns;
use ringway::stats::records::{CloseReason, Demotion, DropReason, Record, SessionRecord};
use ringway_tests::hello::client_hello;
use ringway_tests::sim::coverage::Coverage;
use ringway_tests::sim::fake::Fake;
use ringway_tests::sim::kernel::Kernel;
use ringway_tests::sim::kernel::faults::Faults;
use ringway_tests::sim::rng::Rng;
use ringway_tests::sim::scenarios::setup::{self, Setup};
use ringway_tests::sim::tcp::conn::{ConnId, EndpointMode};
use ringway_tests::sim::udp::datagram::{Datagram, Exchange};
use ringway_tests::sim::{backend, model, world};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

#[test]
#[expect(clippy::disallowed_methods, reason = "how many seeds there is time for")]
fn every_seed_keeps_every_promise() {
    if let Some(seed) = number("SEED") {
        let outcome = world::run(seed, true);
        eprintln!("{}", outcome.coverage);
        return;
    }
    let seeds = number("SEEDS").unwrap_or(10_000);
    let until = number("SEED_SECONDS").map(|limit| Instant::now() + Duration::from_secs(limit));
    let next = AtomicU64::new(0);
    let done = AtomicU64::new(0);
    let coverage = Mutex::new(Coverage::default());
    let totals = [const { AtomicU64::new(0) }; 5];
    let failed = Mutex::new(Vec::new());
    let threads = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut mine = Coverage::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let is_late = until.is_some_and(|until| Instant::now() >= until);
                    if seed >= seeds
                        || is_late
                        || !failed.lock().expect("no panic while held").is_empty()
                    {
                        break;
                    }
                    match catch_unwind(AssertUnwindSafe(|| world::run(seed, false))) {
                        Ok(outcome) => {
                            done.fetch_add(1, Ordering::Relaxed);
                            mine.merge(&outcome.coverage);
                            let world::Outcome {
                                events, sessions, flows, moved, moved_flows, ..
                            } = outcome;
                            let seen = [events, sessions, flows, moved, moved_flows];
                            for (total, n) in totals.iter().zip(seen) {
                                total.fetch_add(n, Ordering::Relaxed);
                            }
                            assert!(events >= 2_000 && seen[1] + seen[2] >= 20);
                        }
                        Err(_) => failed.lock().expect("no panic while held").push(seed),
                    }
                }
                coverage.lock().expect("no panic while held").merge(&mine);
            });
        }
    });
    let failed = failed.into_inner().expect("no panic while held");
    assert!(
        failed.is_empty(),
        "seed {failed:?} broke a promise; replay with a trace:\n  SEED={} cargo test \
         --workspace --test simulation every_seed -- --nocapture",
        failed[0]
    );
    let [events, sessions, flows, moved, moved_flows] = totals.map(AtomicU64::into_inner);
    let coverage = coverage.into_inner().expect("no panic while held");
    // Past the harness, which would show it only if the test failed.
    let seeds = done.into_inner();
    let total = format!(
        "{seeds} seeds, {events} events, {sessions} sessions ({moved} moved), {flows} flows \
         ({moved_flows} moved)"
    );
    assert!(moved > 0 || seeds < 100, "no session went to another process");
    assert!(moved_flows > 0 || seeds < 100, "no flow went to another process");
    writeln!(std::io::stderr(), "{total}\n{coverage}").expect("stderr");
    // A rare pair needs many seeds; a short run is for finding bugs.
    if seeds >= 10_000 {
        assert_eq!(coverage.missing(), [], "pairs of state and fault that were not reached");
    }
}

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

/// A flow that exchanges ten datagrams in a second, from two datagrams on through the kernel.
struct Game {
    fake: Fake,
    table: RoutingTable,
    asked: u32,
}

impl Game {
    fn new(setup: Setup, faults: Faults) -> Self {
        let setup = Setup { fast_path_after: 1, ..setup };
        let address = |port| SocketAddr::new(setup::HOME, port);
        let table = setup.table(address(6_000), &[address(7_000)]);
        let mut fake = Fake::new(1, LIMITS, faults);
        fake.apply(table.clone());
        Self { fake, table, asked: 0 }
    }

    /// One endpoint is closed if `refuses`.
    fn play(&mut self, moves: u32, refuses: bool) {
        for _ in 0..moves {
            self.asked += 1;
            let exchange = Exchange {
                socket: SocketId(0),
                client: SocketAddr::new(setup::HOME, 20_000),
                says: None,
                local: setup::HOME,
            };
            let (number, bytes, count) = (self.asked, 9, 1);
            self.fake.kernel.client_sends(Datagram {
                exchange,
                number,
                bytes,
                count,
                truncated: false,
                train: None,
            });
            for _ in 0..2 {
                let until = self.fake.kernel.now + 50_000;
                while self.fake.step(until) {}
                for (path, datagram) in std::mem::take(&mut self.fake.kernel.sent_up) {
                    match refuses {
                        true => self.fake.kernel.endpoint_refuses(path),
                        false => self.fake.kernel.endpoint_sends(path, datagram),
                    }
                }
            }
            self.fake.kernel.check_promoted();
        }
    }

    /// The same table, with a backend that has the key or not.
    fn apply(&mut self, fast_path: bool) {
        self.table.generation += 1;
        self.table.backends[0].fast_path = fast_path;
        self.fake.apply(self.table.clone());
    }

    fn demotions(&self, why: Demotion) -> u64 {
        self.fake.counters.demotions[why as usize].get()
    }
}

#[test]
fn the_kernel_forwards_what_the_table_allows() {
    let mut game = Game::new(setup::UDP, Faults::default());
    game.play(9, false);
    assert_eq!(game.fake.counters.promoted.get(), 1);
    game.apply(false);
    game.fake.kernel.check_promoted();
    assert_eq!(game.demotions(Demotion::Configuration), 1);
    game.play(9, false);
    // A flow that is just due when the key goes.
    let mut game = Game::new(setup::UDP, Faults::default());
    game.play(1, false);
    game.apply(false);
    game.play(9, false);
    assert_eq!(game.fake.counters.promotions.get(), 0);
    // A limit of bytes, which the kernel would pass by.
    let mut game = Game::new(Setup { bytes: 1_000_000, ..setup::UDP }, Faults::default());
    game.play(9, false);
    assert_eq!(game.fake.counters.promotions.get(), 0);
    // Answers that end the flow, which the kernel would not see.
    let mut game = Game::new(Setup { responses: 2, ..setup::UDP }, Faults::default());
    game.play(9, false);
    assert_eq!(game.fake.counters.promotions.get(), 0);
    // The route counts each datagram of a source.
    let mut game = Game::new(setup::UDP, Faults::default());
    let records = Arc::clone(game.table.sources.as_ref().expect("the setup has records"));
    let (datagrams, nothing) = (Some(Rate::new(1_000, 1_000)), SourceLimit::nothing(1, records));
    game.table.routes[0].limit_source = Some(Box::new(SourceLimit { datagrams, ..nothing }));
    game.apply(true);
    game.play(9, false);
    assert_eq!(game.fake.counters.promotions.get(), 0);
}

#[test]
fn the_kernel_forwards_no_more_to_a_closed_port() {
    let mut game = Game::new(setup::UDP, Faults::default());
    game.play(9, false);
    game.play(3, true);
    assert_eq!(game.demotions(Demotion::EndpointRefused), 1);
    assert_eq!(game.fake.counters.promoted.get(), 0);
}

/// Some datagrams of the flow still go through the worker, and are answered.
#[test]
fn the_worker_takes_a_flow_back_that_the_kernels_path_breaks() {
    let mut game = Game::new(setup::UDP, Faults { promoted_breaks: 1_000, ..Faults::default() });
    for _ in 0..100 {
        game.play(100, false);
    }
    assert!(game.demotions(Demotion::OneSided) > 0);
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

/// Clients without a ClientHello have half of the table. With one more, the client that has waited
/// longest makes room. Whoever has a destination stays.
#[test]
fn clients_that_send_no_hello_keep_nobody_out() {
    let address = |port| SocketAddr::new(setup::HOME, port);
    let setup = Setup { protocol: Protocol::Tls, ..setup::UDP };
    let mut fake = Fake::new(1, LIMITS, Faults::default());
    fake.apply(setup.table(address(53), &[address(54)]));
    fake.kernel.set_endpoint(address(54), EndpointMode::Accepts);
    let hello = client_hello(Some("a.test"), 0, 1 << 14);
    let come = |fake: &mut Fake, port, bytes| {
        let client = SocketAddr::from(([198, 18, 0, 1], port));
        let conn = fake.kernel.peer_connect(SocketId(0), client, hello.clone(), 4096);
        while fake.step(fake.kernel.now + 10_000) {}
        fake.kernel.peer_write(conn, bytes);
        while fake.step(fake.kernel.now + 10_000) {}
        (conn, fake.kernel.established.drain(..).count())
    };
    let whole = hello.len() as u64;
    let (first, served) = come(&mut fake, 1, whole);
    assert_eq!(served, 1);
    let silent: Vec<_> = (2..202).map(|port| come(&mut fake, port, port as u64 % 2).0).collect();
    assert_eq!(come(&mut fake, 202, whole).1, 1, "an honest client is served");
    let mut is_reset = |conn: &ConnId| {
        fake.kernel.peer_read(*conn, u64::MAX);
        fake.kernel.conn(*conn).reset_seen
    };
    let left: Vec<_> = silent.iter().map(|conn| !is_reset(conn)).collect();
    let count = left.iter().filter(|left| **left).count();
    assert!((31..=32).contains(&count), "{count} of the half of 64 places");
    assert!(left[left.len() - count..].iter().all(|left| *left), "the oldest go first");
    assert!(!is_reset(&first), "it has a destination");
}

/// With `max_sessions = 1` a client that closes and comes back at once is let in, whatever its
/// endpoint does about the sessions before; but who only half-closes does not have any number.
#[test]
fn a_session_that_begins_to_end_makes_room_for_another() {
    let address = |port| SocketAddr::new(setup::HOME, port);
    let setup = Setup { protocol: Protocol::Tcp, max_sessions: 1, ..setup::UDP };
    let limits = Limits { sessions: 100, ..LIMITS };
    let mut fake = Fake::new(1, limits, Faults::default());
    fake.apply(setup.table(address(53), &[address(54)]));
    fake.kernel.set_endpoint(address(54), EndpointMode::Accepts);
    let come = |fake: &mut Fake, port, before: Option<ConnId>| {
        if let Some(before) = before {
            fake.kernel.peer_fin(before);
            while fake.step(fake.kernel.now + 1_000) {}
        }
        let client = SocketAddr::from(([198, 18, 0, 1], port));
        let conn = fake.kernel.peer_connect(SocketId(0), client, Vec::new(), 4096);
        while fake.step(fake.kernel.now + 10_000) {}
        (conn, fake.kernel.established.drain(..).count())
    };
    let (first, served) = come(&mut fake, 1, None);
    assert_eq!(served, 1);
    assert_eq!(come(&mut fake, 2, None).1, 0, "the one place is taken");
    let mut last = first;
    for port in 3..67 {
        let (conn, served) = come(&mut fake, port, Some(last));
        assert_eq!(served, 1, "a client that comes back");
        last = conn;
    }
    assert_eq!(come(&mut fake, 67, Some(last)).1, 0, "64 have half-closed, and stay");
    fake.kernel.peer_reset(first);
    while fake.step(fake.kernel.now + 1_000) {}
    assert_eq!(come(&mut fake, 68, None).1, 1);
    let counters = fake.counters.listener(ListenerId(0));
    assert_eq!(counters.refused[CloseReason::ListenerLimit as usize].get(), 2);
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

/// An endpoint that takes its PROXY header and closes or resets has refused the session: another
/// endpoint serves it, and the client hears nothing of the first. As soon as a byte went either
/// way, or if the endpoint waited for longer than a connect may take, or is the only one, the end
/// is passed on.
#[test]
fn a_refused_header_is_an_attempt_that_failed() {
    let ends: [fn(&mut Kernel, ConnId); 2] = [Kernel::peer_close, Kernel::peer_reset];
    let (one, two) = (Refusing::of(1), Refusing::of(2));
    for end in ends {
        assert!(is_tried_elsewhere(two, end, |_, _, _| ()), "nothing went either way");
        assert!(!is_tried_elsewhere(one, end, |_, _, _| ()), "there is no other");
        let client_speaks = |fake: &mut Fake, client, _| _ = fake.kernel.peer_write(client, 1);
        assert!(!is_tried_elsewhere(two, end, client_speaks), "the endpoint has a client's byte");
        let endpoint_speaks = |fake: &mut Fake, _, endpoint| {
            fake.kernel.peer_write(endpoint, 1);
        };
        assert!(!is_tried_elsewhere(two, end, endpoint_speaks), "the client has a byte");
        let client_ends = |fake: &mut Fake, client, _| fake.kernel.peer_fin(client);
        assert!(!is_tried_elsewhere(two, end, client_ends), "the endpoint has the client's end");
        let waits = |fake: &mut Fake, _, _| fake.kernel.now += 3_000_000;
        assert!(!is_tried_elsewhere(two, end, waits), "it gave up waiting");
    }
}

/// The other endpoint may be one of the route's other backends, if the route goes on to these.
#[test]
fn a_refused_header_goes_on_to_the_routes_other_backend() {
    let ends: [fn(&mut Kernel, ConnId); 2] = [Kernel::peer_close, Kernel::peer_reset];
    for end in ends {
        let next = Refusing { on_unavailable: Some(OnUnavailable::Next), ..Refusing::of(2) };
        assert!(is_tried_elsewhere(next, end, |_, _, _| ()), "the other backend has an endpoint");
        let refuse = Refusing { on_unavailable: Some(OnUnavailable::Refuse), ..next };
        assert!(!is_tried_elsewhere(refuse, end, |_, _, _| ()), "the route does not go on");
        let last = Refusing { attempts: 1, ..next };
        assert!(is_tried_elsewhere(last, end, |_, _, _| ()), "it was the backend's last attempt");
        let last = Refusing { attempts: 1, ..Refusing::of(2) };
        assert!(!is_tried_elsewhere(last, end, |_, _, _| ()), "it was the last attempt");
    }
}

/// An endpoint that has all its sessions is no alternative.
#[test]
fn a_refused_header_is_passed_on_if_all_other_endpoints_are_full() {
    let another = |fake: &mut Fake, _, _| {
        let client = SocketAddr::from(([198, 18, 0, 1], 2_000));
        fake.kernel.peer_connect(SocketId(0), client, Vec::new(), 4096);
        while fake.step(fake.kernel.now + 10_000) {}
        assert_eq!(fake.kernel.established.drain(..).count(), 1, "it has the other endpoint");
    };
    for next in [None, Some(OnUnavailable::Next)] {
        let two = Refusing { most: 2, on_unavailable: next, ..Refusing::of(2) };
        assert!(is_tried_elsewhere(two, Kernel::peer_close, another), "there is a place");
        let full = Refusing { most: 1, ..two };
        assert!(!is_tried_elsewhere(full, Kernel::peer_close, another), "there is none");
    }
}

/// A session does not come back to an endpoint that could not be connected to before, although
/// another session has found the endpoint well since.
#[test]
fn a_refused_header_does_not_lead_back_to_an_endpoint_that_was_tried() {
    let (table, places) = Refusing::of(2).table();
    let mut fake = Fake::new(1, LIMITS, Faults::default());
    fake.apply(table);
    let modes = |fake: &mut Fake, is_well: [bool; 2]| {
        for (place, is_well) in places.iter().zip(is_well) {
            let mode = if is_well { EndpointMode::Accepts } else { EndpointMode::Refuses };
            fake.kernel.set_endpoint(*place, mode);
        }
    };
    let come = |fake: &mut Fake, port| {
        let client = SocketAddr::from(([198, 18, 0, 1], port));
        let client = fake.kernel.peer_connect(SocketId(0), client, Vec::new(), 4096);
        while fake.step(fake.kernel.now + 10_000) {}
        let endpoint = fake.kernel.established.pop().expect("it is connected");
        (client, endpoint, fake.kernel.conn(endpoint).peer == places[0])
    };
    modes(&mut fake, [true, true]);
    let (_, _, first) = come(&mut fake, 1);
    // The turn is the other's, which refuses.
    modes(&mut fake, [first, !first]);
    let (client, endpoint, is_first) = come(&mut fake, 2);
    assert_eq!(is_first, first);
    // Now that one is well again, and the next session finds out.
    modes(&mut fake, [!first, first]);
    let (_, _, is_first) = come(&mut fake, 3);
    assert_eq!(is_first, !first);
    fake.kernel.peer_read(endpoint, u64::MAX);
    fake.kernel.peer_close(endpoint);
    while fake.step(fake.kernel.now + 10_000) {}
    assert!(fake.kernel.established.is_empty(), "it was tried already");
    let heard = fake.kernel.conn(client);
    assert!(heard.reset_seen || heard.outbound.fin, "the client learns of the end");
}

/// Endpoints that are sent headers, and the route to them.
#[derive(Clone, Copy)]
struct Refusing {
    endpoints: u16,
    attempts: u8,
    /// The most sessions of an endpoint. 0: no limit.
    most: u32,
    /// The first endpoint has a backend of its own.
    on_unavailable: Option<OnUnavailable>,
}

impl Refusing {
    fn of(endpoints: u16) -> Self {
        Self { endpoints, attempts: 3, most: 0, on_unavailable: None }
    }

    fn table(self) -> (RoutingTable, Vec<SocketAddr>) {
        let address = |port| SocketAddr::new(setup::HOME, port);
        let places: Vec<_> = (54..54 + self.endpoints).map(address).collect();
        let passes_on = self.on_unavailable.is_some();
        let setup = Setup { protocol: Protocol::Tcp, passes_on, ..setup::UDP };
        let mut table = setup.table(address(53), &places);
        table.log_opens = true;
        for backend in &mut table.backends {
            let (version, unique_id, crc32c) = (ProxyVersion::V2, false, false);
            backend.send_proxy = Some(SendProxy { version, unique_id, crc32c });
            backend.connect_attempts = self.attempts;
            if self.most > 0 {
                let load = |_| Some(Load::up_to(self.most));
                backend.loads = backend.endpoints.iter().map(load).collect();
            }
        }
        if let Some(on_unavailable) = self.on_unavailable {
            table.routes[0].on_unavailable = on_unavailable;
        }
        (table, places)
    }
}

/// A session to one of these endpoints. Then `before` happens, and then the endpoint's end.
/// Returns whether another endpoint has the session.
fn is_tried_elsewhere(
    refusing: Refusing,
    end: fn(&mut Kernel, ConnId),
    before: impl Fn(&mut Fake, ConnId, ConnId),
) -> bool {
    let (table, places) = refusing.table();
    let mut fake = Fake::new(1, LIMITS, Faults::default());
    fake.apply(table);
    for place in &places {
        fake.kernel.set_endpoint(*place, EndpointMode::Accepts);
    }
    let wait = |fake: &mut Fake| while fake.step(fake.kernel.now + 10_000) {};
    let client = SocketAddr::from(([198, 18, 0, 1], 1_000));
    let client = fake.kernel.peer_connect(SocketId(0), client, Vec::new(), 4096);
    wait(&mut fake);
    let first = fake.kernel.established.pop().expect("it is connected");
    before(&mut fake, client, first);
    wait(&mut fake);
    fake.kernel.peer_read(first, u64::MAX);
    end(&mut fake.kernel, first);
    wait(&mut fake);
    let id = |conn: ConnId, fake: &Fake| {
        let at = places.iter().position(|place| *place == fake.kernel.conn(conn).peer);
        EndpointId(at.expect("an endpoint") as u32)
    };
    let refused = fake.counters.endpoint(id(first, &fake));
    let heard = fake.kernel.conn(client);
    let is_told = heard.reset_seen || heard.outbound.fin;
    let Some(second) = fake.kernel.established.pop() else {
        assert!(is_told, "the client learns of the end");
        assert_eq!(refused.connect_failures.get(), 0);
        return false;
    };
    assert!(!is_told, "the client hears of the refusal");
    assert_ne!(id(first, &fake), id(second, &fake));
    assert_eq!((refused.connect_failures.get(), refused.failures.get()), (1, 1));
    assert_eq!((refused.opened.get(), refused.closed.get()), (1, 1));
    // The session is like any other now.
    fake.kernel.peer_write(second, 9);
    fake.kernel.peer_write(client, 5);
    wait(&mut fake);
    assert_eq!(fake.kernel.peer_read(client, u64::MAX), 9);
    let header = fake.kernel.conn(second).proxied.told();
    assert_eq!(fake.kernel.peer_read(second, u64::MAX), header + 5);
    fake.kernel.peer_fin(client);
    fake.kernel.peer_fin(second);
    wait(&mut fake);
    let closed = fake.records.iter().filter_map(|record| match record {
        Record::Closed(record) => Some(record),
        _ => None,
    });
    let closed = closed.filter(|record| record.client.port() == 1_000);
    let closed: Vec<_> = closed.map(|record| (record.endpoint, record.refused)).collect();
    assert_eq!(closed, [(Some(id(second, &fake)), false)]);
    let opened = fake.records.iter().filter_map(|record| match record {
        Record::Opened(record) if record.client.port() == 1_000 => record.endpoint,
        _ => None,
    });
    assert_eq!(opened.collect::<Vec<_>>(), [id(first, &fake)], "a session begins once");
    true
}

/// A flow leaves an endpoint that is gone although its client is silent.
#[test]
fn flows_of_a_gone_endpoint_end() {
    let mut fake = Fake::new(1, LIMITS, Faults::default());
    let address = |port| SocketAddr::new(setup::HOME, port);
    fake.apply(setup::UDP.table(address(53), &[address(54), address(55)]));
    ask(&mut fake, 1);
    ask(&mut fake, 2);
    assert_eq!(fake.counters.flows.get(), 2);
    let gone = GoneEndpoint { id: EndpointId(1), absence: Absence::Down, close_after: 1_000 };
    let table = setup::UDP.table(address(53), &[address(54)]);
    fake.apply(RoutingTable { generation: 2, gone: Arc::new([gone]), ..table });
    let until = fake.kernel.now + 3_000_000;
    while fake.step(until) {}
    assert_eq!(fake.counters.flows.get(), 1);
    let closed = &fake.counters.listener(ListenerId(0)).closed;
    assert_eq!(closed[CloseReason::EndpointDown as usize].get(), 1);
}

/// When a shared socket can't be had, all flows of that turn go with it, and nothing is left over.
#[test]
fn flows_without_their_shared_socket_are_refused_and_served_later() {
    const CLIENTS: u16 = 5;
    let faults = Faults { open_fails: 1_000, ..Faults::default() };
    let mut fake = Fake::new(1, LIMITS, faults);
    fake.apply(shared_table());
    let ask = |fake: &mut Fake| {
        for port in 1..=CLIENTS {
            let client = SocketAddr::from(([198, 18, 0, 1], port));
            let local = [192, 0, 2, 1].into();
            let exchange = Exchange { socket: SocketId(0), client, says: None, local };
            let datagram =
                Datagram { exchange, number: 0, bytes: 9, count: 1, truncated: false, train: None };
            fake.kernel.client_sends(datagram);
        }
        while fake.step(fake.kernel.now + 1_000) {}
    };
    ask(&mut fake);
    let counters = Arc::clone(&fake.counters);
    let listener = counters.listener(ListenerId(0));
    let no_socket = || listener.dropped[DropReason::NoSocket as usize].get();
    assert_eq!((no_socket(), listener.to_endpoints.get()), (u64::from(CLIENTS), 0));
    assert_eq!(listener.refused[CloseReason::LocalLimit as usize].get(), u64::from(CLIENTS));
    let held = || [counters.flows.get(), counters.pairs.get(), counters.upstreams.get()];
    assert_eq!((held(), fake.kernel.sent_up.len()), ([0; 3], 0));
    fake.kernel.faults = Faults::default();
    ask(&mut fake);
    assert_eq!((no_socket(), held()), (u64::from(CLIENTS), [5, 5, 1]));
    assert_eq!(fake.kernel.sent_up.len(), usize::from(CLIENTS));
}

/// A client of the tests below sends a datagram, and the worker does what follows from it.
fn ask(fake: &mut Fake, port: u16) {
    fake.kernel.client_sends(datagram(port));
    while fake.step(fake.kernel.now + 1_000) {}
}

/// A datagram of the client with this port.
fn datagram(port: u16) -> Datagram {
    let client = SocketAddr::from(([198, 18, 0, 1], port));
    let exchange =
        Exchange { socket: SocketId(0), client, says: None, local: [192, 0, 2, 1].into() };
    Datagram { exchange, number: 0, bytes: 9, count: 1, truncated: false, train: None }
}

/// A worker that comes late has the removal of a listener and its return before it in one turn. Of
/// UDP the new socket is bound before the one before is closed.
#[test]
fn a_udp_listener_that_comes_back_at_once_goes_on_to_listen() {
    let mut fake = Fake::new(1, LIMITS, Faults::default());
    let address = |port| SocketAddr::new(setup::HOME, port);
    let table =
        |generation| RoutingTable { generation, ..setup::UDP.table(address(53), &[address(54)]) };
    fake.apply(table(1));
    fake.hand_over(RoutingTable { generation: 2, ..RoutingTable::empty() });
    fake.hand_over(table(3));
    while fake.carry_on() {}
    let soon = fake.kernel.now + 1_000_000;
    while fake.step(soon) {}
    assert!(fake.kernel.is_listening(SocketId(0)));
    ask(&mut fake, 1);
    assert_eq!(fake.kernel.sent_up.len(), 1, "a client is served");
}

/// New sources without end fill the flows, and nobody answers them. Who was answered stays, and a
/// new client gets in within seconds, not after `flow_timeout`.
#[test]
fn a_flood_that_nobody_answers_makes_room() {
    let mut fake = Fake::new(1, LIMITS, Faults::default());
    let address = |port| SocketAddr::new(setup::HOME, port);
    let mut table = setup::UDP.table(address(53), &[address(54)]);
    table.listeners[0].flow_timeout = 60_000;
    fake.apply(table);
    ask(&mut fake, 1);
    let (path, datagram) = fake.kernel.sent_up.pop().expect("the endpoint hears");
    fake.kernel.endpoint_sends(path, datagram);
    for port in 0..200 {
        ask(&mut fake, 1_000 + port);
    }
    let counters = Arc::clone(&fake.counters);
    assert_eq!(counters.flows.get(), u64::from(LIMITS.flows));
    let dropped = &counters.listener(ListenerId(0)).dropped;
    assert!(dropped[DropReason::FlowLimit as usize].get() > 100);
    // Two seconds of silence, and two in which the sockets rest.
    let until = fake.kernel.now + 6_000_000;
    while fake.step(until) {}
    fake.kernel.sent_up.clear();
    ask(&mut fake, 2);
    assert_eq!(fake.kernel.sent_up.len(), 1, "a new client is served");
    assert_eq!(counters.flows.get(), 2, "and the one that was answered is there");
    let closed = &counters.listener(ListenerId(0)).closed;
    assert_eq!(closed[CloseReason::FlowUnanswered as usize].get(), u64::from(LIMITS.flows) - 1);
}

/// To open a socket takes long, so few are opened in a turn, after the work for those who have a
/// flow. Nobody is lost.
#[test]
fn new_clients_wait_for_their_turn_behind_those_who_have_flows() {
    let limits = Limits { buffers: 64, ..LIMITS };
    let mut fake = Fake::new(1, limits, Faults::default());
    let address = |port| SocketAddr::new(setup::HOME, port);
    fake.apply(setup::UDP.table(address(53), &[address(54)]));
    ask(&mut fake, 1);
    fake.kernel.sent_up.clear();
    for port in [2, 3, 4, 5, 1] {
        fake.kernel.client_sends(datagram(port));
    }
    let mut turns = Vec::new();
    while fake.step(fake.kernel.now + 1_000) {
        let sent = fake.kernel.sent_up.drain(..);
        turns.push(sent.map(|(_, sent)| sent.exchange.client.port()).collect::<Vec<_>>());
    }
    turns.retain(|sent| !sent.is_empty());
    assert_eq!(turns, [vec![1, 2], vec![3], vec![4], vec![5]]);
    assert_eq!(fake.counters.flows.get(), 5);
}

/// In a flood that lasts longer than a burst, who has a flow is still served at once, and newcomers
/// who are too many are dropped.
#[test]
fn a_flood_of_new_clients_takes_nothing_from_flows() {
    const ROUNDS: u16 = 300;
    let limits = Limits { flows: 2_000, buffers: 64, ..LIMITS };
    let mut fake = Fake::new(1, limits, Faults::default());
    let address = |port| SocketAddr::new(setup::HOME, port);
    fake.apply(setup::UDP.table(address(53), &[address(54)]));
    ask(&mut fake, 1);
    let counters = Arc::clone(&fake.counters);
    let listener = counters.listener(ListenerId(0));
    let dropped = || listener.dropped[DropReason::NewFlows as usize].get();
    let mut begins = None;
    for round in 0..ROUNDS {
        fake.kernel.sent_up.clear();
        for port in (0..4).map(|nth| 1_000 + 4 * round + nth).chain([1]) {
            fake.kernel.client_sends(datagram(port));
        }
        // The worker's turns take their time, so what comes meanwhile is there in the next.
        fake.kernel.now += 60;
        let now = fake.kernel.now;
        fake.step(now);
        begins = begins.or_else(|| (dropped() > 0).then_some(round));
        // The burst is over by then.
        let is_served = fake.kernel.sent_up.iter().any(|(_, of)| of.exchange.client.port() == 1);
        assert!(is_served || round < 200, "a datagram of a flow waits in round {round}");
    }
    assert!(begins.is_some_and(|round| (63..80).contains(&round)), "{begins:?}");
    while fake.step(fake.kernel.now + 1_000) {}
    let (came, went) = (listener.from_clients.get(), listener.to_endpoints.get());
    assert_eq!((came, went + dropped()), (1 + 5 * u64::from(ROUNDS), came));
    assert!(counters.flows.get() >= u64::from(ROUNDS), "one begins in each turn");
}

/// What has come is looked at before anybody is taken for idle, however late the worker is.
#[test]
fn who_has_spoken_while_the_worker_had_no_time_is_not_idle() {
    let address = |port| SocketAddr::new(setup::HOME, port);
    let timeouts = Timeouts { hello: 0, idle: 1_000, write_stall: 0, half_close: 0, lifetime: 0 };
    let setup = Setup { protocol: Protocol::Tcp, timeouts, ..setup::UDP };
    let mut fake = Fake::new(1, LIMITS, Faults::default());
    fake.apply(setup.table(address(53), &[address(54)]));
    fake.kernel.set_endpoint(address(54), EndpointMode::Accepts);
    let [client, other] = [1, 2].map(|port| {
        let client = SocketAddr::from(([198, 18, 0, 1], port));
        fake.kernel.peer_connect(SocketId(0), client, Vec::new(), 4096)
    });
    let until = fake.kernel.now + 100_000;
    while fake.step(until) {}
    fake.kernel.peer_write(client, 9);
    fake.kernel.now += 5_000_000;
    let now = fake.kernel.now;
    while fake.step(now + 100) {}
    let closed: Vec<_> = closed(&fake).map(|of| (of.client.port(), of.reason)).collect();
    assert_eq!(closed, [(2, Some(CloseReason::IdleTimeout))], "{other:?} said nothing");

    let mut fake = Fake::new(1, LIMITS, Faults::default());
    fake.apply(Setup { flow_timeout: 1_000, ..setup::UDP }.table(address(53), &[address(54)]));
    ask(&mut fake, 1);
    ask(&mut fake, 2);
    fake.kernel.client_sends(datagram(1));
    fake.kernel.now += 5_000_000;
    let now = fake.kernel.now;
    while fake.step(now + 400_000) {}
    let closed: Vec<_> = closed_ports(&fake, CloseReason::FlowTimeout);
    assert_eq!(closed, [2]);
}

/// A client that sends too much keeps its flow, and so its place at an endpoint.
#[test]
fn datagrams_that_a_limit_drops_are_no_silence() {
    let address = |port| SocketAddr::new(setup::HOME, port);
    // One datagram a second, whatever its size.
    let setup = Setup { bytes: 1, flow_timeout: 500, ..setup::UDP };
    let mut fake = Fake::new(1, LIMITS, Faults::default());
    fake.apply(setup.table(address(53), &[address(54)]));
    let began = fake.kernel.now;
    for nth in 0..4 {
        let until = began + 300_000 * nth;
        while fake.step(until) {}
        ask(&mut fake, 1);
    }
    let listener = fake.counters.listener(ListenerId(0));
    let dropped = listener.dropped[DropReason::Limit as usize].get();
    assert_eq!((fake.kernel.sent_up.len(), dropped, fake.counters.flows.get()), (1, 3, 1));
    assert_eq!(listener.opened.get(), 1, "it is one flow");
    let until = fake.kernel.now + 1_000_000;
    while fake.step(until) {}
    assert_eq!(closed_ports(&fake, CloseReason::FlowTimeout), [1], "now it is silent");
}

/// Two TCP listeners whose clients come through a proxy. The first has one place, for which others
/// wait.
fn delaying_table() -> RoutingTable {
    let address = |port| SocketAddr::new(setup::HOME, port);
    let setup = Setup { protocol: Protocol::Tcp, delays_above: 1, ..setup::UDP };
    let mut table = setup.table(address(53), &[address(54)]);
    let from = ["198.18.0.0/15".parse().expect("a range")].into();
    table.sockets[0].accept_proxy = AcceptProxy { from, only: false };
    let mut listeners = Hosts::new([1, 2, 3, 4]);
    listeners.insert(None, 1);
    let (id, of) = (SocketId(1), table.sockets[0].clone());
    table.sockets.push(Socket { id, address: address(63).into(), listeners, ..of });
    let (id, of) = (ListenerId(1), table.listeners[0].clone());
    table.listeners.push(Listener { id, limit: None, ..of });
    table
}

/// A client comes, and all that follows at once. If it speaks, it says by a PROXY header who it is.
fn come(fake: &mut Fake, socket: u32, port: u16, speaks: bool) -> ConnId {
    let conn = connect(fake, socket, port, speaks);
    while fake.step(fake.kernel.now + 1_000) {}
    conn
}

/// A client connects. The worker has not had its turn yet.
fn connect(fake: &mut Fake, socket: u32, port: u16, speaks: bool) -> ConnId {
    let client = SocketAddr::from(([198, 18, 0, 1], port));
    let says = SocketAddr::from(([203, 0, 113, 1], port));
    let header = format!("PROXY TCP4 203.0.113.1 192.0.2.9 {port} 80\r\n").into_bytes();
    let len = header.len() as u64;
    let conn = fake.kernel.peer_connect(SocketId(socket), client, header, 4096);
    let proxied = &mut fake.kernel.conn_mut(conn).proxied;
    (proxied.header, proxied.says, proxied.must) = (len, Some(says), true);
    if speaks {
        fake.kernel.peer_write(conn, len);
    }
    conn
}

fn closed(fake: &Fake) -> impl Iterator<Item = &SessionRecord> {
    fake.records.iter().filter_map(|record| match record {
        Record::Closed(record) => Some(record),
        _ => None,
    })
}

/// The ports of those who were closed for this reason, in the order of their ends.
fn closed_ports(fake: &Fake, reason: CloseReason) -> Vec<u16> {
    let of_reason = closed(fake).filter(|record| record.reason == Some(reason));
    of_reason.map(|record| record.peer.unwrap_or(record.client).port()).collect()
}

/// Where the session table is full, silent clients make room, those first who have waited longest.
/// When there are none, the last one makes room of those who wait for a place at their listener.
#[test]
fn silent_clients_make_room_before_those_who_wait_for_a_limit() {
    let limits = Limits { sessions: 8, ..LIMITS };
    let mut fake = Fake::new(1, limits, Faults::default());
    fake.apply(delaying_table());
    fake.kernel.set_endpoint(SocketAddr::new(setup::HOME, 54), EndpointMode::Accepts);
    let clients: Vec<_> = (1..=4).map(|port| come(&mut fake, 0, port, false)).collect();
    // The first has the place, and the others wait for it.
    for client in &clients {
        fake.kernel.peer_write(*client, fake.kernel.conn(*client).proxied.header);
        while fake.step(fake.kernel.now + 1_000) {}
    }
    assert_eq!(fake.kernel.established.drain(..).count(), 1);
    let silent = 11..=14;
    for port in silent {
        come(&mut fake, 1, port, false);
    }
    assert_eq!((fake.counters.sessions.get(), closed(&fake).count()), (8, 0), "it is full");
    // Of two who come, the first makes the room that the second finds.
    for port in 21..=30 {
        come(&mut fake, 1, port, true);
    }
    let crowded = closed_ports(&fake, CloseReason::CrowdedOut);
    assert_eq!(crowded, [11, 12, 13, 14, 4]);
    assert_eq!(closed_ports(&fake, CloseReason::SessionLimit), [21, 23, 25, 27, 29]);
    assert_eq!(fake.kernel.established.drain(..).count(), 5);
    // Those who are left have their turn.
    for client in &clients[..2] {
        fake.kernel.peer_reset(*client);
        let until = fake.kernel.now + 20_000;
        while fake.step(until) {}
    }
    let served: Vec<_> = fake.kernel.established.drain(..).collect();
    let partners = served.iter().map(|conn| fake.kernel.conn(*conn).partner);
    assert_eq!(partners.collect::<Vec<_>>(), [Some(clients[1]), Some(clients[2])]);
}

/// Silent clients of one listener have half of the session table at the most. So honest clients of
/// that listener and of others find places, however many of the flood come in one turn.
#[test]
fn a_flood_at_one_listener_leaves_half_of_the_places() {
    let limits = Limits { sessions: 32, ..LIMITS };
    let mut fake = Fake::new(1, limits, Faults::default());
    fake.apply(delaying_table());
    fake.kernel.set_endpoint(SocketAddr::new(setup::HOME, 54), EndpointMode::Accepts);
    for port in 1..=40 {
        come(&mut fake, 1, port, false);
    }
    assert_eq!(closed_ports(&fake, CloseReason::CrowdedOut), (1..=24).collect::<Vec<_>>());
    let honest = connect(&mut fake, 0, 100, false);
    for port in 41..=53 {
        connect(&mut fake, 1, port, false);
    }
    connect(&mut fake, 1, 101, true);
    while fake.step(fake.kernel.now + 1_000) {}
    assert_eq!(closed_ports(&fake, CloseReason::SessionLimit), [0; 0], "there were 16 places");
    fake.kernel.peer_write(honest, fake.kernel.conn(honest).proxied.header);
    while fake.step(fake.kernel.now + 1_000) {}
    assert_eq!(fake.kernel.established.drain(..).count(), 2, "the honest ones are served");
    assert_eq!(closed(&fake).count(), 24 + 14);
}

/// A source that is silent with all sessions that it may have, and more, keeps no other out, nor
/// itself.
#[test]
fn silent_clients_of_one_source_make_room_for_each_other() {
    let address = |port| SocketAddr::new(setup::HOME, port);
    let setup = Setup { protocol: Protocol::Tls, source_sessions: 3, ..setup::UDP };
    let mut table = setup.table(address(53), &[address(54)]);
    let mut listeners = Hosts::new([1, 2, 3, 4]);
    listeners.insert(None, 0);
    table.sockets[0].listeners = listeners;
    let mut fake = Fake::new(1, LIMITS, Faults::default());
    fake.apply(table);
    fake.kernel.set_endpoint(address(54), EndpointMode::Accepts);
    let come = |fake: &mut Fake, host: u8, port: u16, speaks: bool| {
        let client = SocketAddr::from(([198, 18, 0, host], port));
        let hello = client_hello(Some("a.test"), 300, 128);
        let len = hello.len() as u64;
        let conn = fake.kernel.peer_connect(SocketId(0), client, hello, 4096);
        if speaks {
            fake.kernel.peer_write(conn, len);
        }
        while fake.step(fake.kernel.now + 1_000) {}
    };
    come(&mut fake, 2, 9, false);
    for port in 1..=5 {
        come(&mut fake, 1, port, false);
    }
    assert_eq!(closed_ports(&fake, CloseReason::CrowdedOut), [1, 2]);
    come(&mut fake, 1, 6, true);
    assert_eq!(closed_ports(&fake, CloseReason::CrowdedOut), [1, 2, 3]);
    assert_eq!(fake.kernel.established.drain(..).count(), 1, "who speaks is served");
    come(&mut fake, 1, 7, false);
    come(&mut fake, 1, 8, false);
    assert_eq!(closed_ports(&fake, CloseReason::CrowdedOut), [1, 2, 3, 4], "the served one stays");
}

/// At the end of a drain flows end by and by: sessions of the same worker live on meanwhile.
#[test]
fn flows_do_not_all_end_in_one_turn() {
    const FLOWS: u16 = 1_000;
    let limits = Limits { flows: u32::from(FLOWS), ..LIMITS };
    let mut fake = Fake::new(1, limits, Faults::default());
    let address = |port| SocketAddr::new(setup::HOME, port);
    fake.apply(setup::UDP.table(address(53), &[address(54)]));
    for port in 0..FLOWS {
        ask(&mut fake, 1_000 + port);
    }
    assert_eq!(fake.counters.flows.get(), u64::from(FLOWS));
    let drain = Some(Drain { timeout: 10, spread: 10 });
    fake.apply(RoutingTable { generation: 2, drain, ..RoutingTable::empty() });
    let mut most = 0;
    while !fake.proxy.is_done() {
        fake.records.clear();
        assert!(fake.step(u64::MAX), "the drain does not end");
        let ended = |record: &&Record| matches!(record, Record::Closed(_));
        most = most.max(fake.records.iter().filter(ended).count());
    }
    assert!((1..=256).contains(&most), "{most} flows ended in one turn");
}

/// A process that takes over receives no datagrams before the flows have come. It accepts
/// connections, and goes on when accepting has ended by itself.
#[test]
fn a_process_that_waits_for_flows_accepts_on() {
    let mut fake = Fake::new(1, LIMITS, Faults { stop: 500, ..Faults::default() });
    let address = |port| SocketAddr::new(setup::HOME, port);
    fake.proxy.wait_for_flows();
    let setup = Setup { protocol: Protocol::Tcp, ..setup::UDP };
    fake.apply(setup.table(address(53), &[address(54)]));
    for port in 1..=20 {
        let client = SocketAddr::from(([198, 18, 0, 1], port));
        fake.kernel.peer_connect(SocketId(0), client, Vec::new(), 4096);
        while fake.step(fake.kernel.now + 1_000) {}
    }
    assert_eq!(fake.counters.accepted.get(), 20);
}

/// At the end of a drain the sockets of flows are closed at once, unless another process goes on
/// with the clients: it may get the port of a socket to which late replies still come.
#[test]
fn sockets_rest_at_the_end_of_a_drain_if_another_process_serves() {
    for heirs in [0, 1] {
        let mut fake = Fake::new(1, LIMITS, Faults::default());
        let address = |port| SocketAddr::new(setup::HOME, port);
        fake.apply(setup::UDP.table(address(53), &[address(54)]));
        ask(&mut fake, 1_000);
        let began = fake.kernel.now;
        let drain = Some(Drain { timeout: 10, spread: 10 });
        let handed_over = Arc::new((0..heirs).map(SocketId).collect());
        fake.apply(RoutingTable { generation: 2, drain, handed_over, ..RoutingTable::empty() });
        while !fake.proxy.is_done() {
            assert!(fake.step(u64::MAX), "the drain does not end");
        }
        let rested = fake.kernel.now - began >= 2_000_000;
        assert_eq!(rested, heirs > 0, "after {} us", fake.kernel.now - began);
    }
}

/// One UDP listener, and one endpoint behind shared sockets.
fn shared_table() -> RoutingTable {
    let address = |port| SocketAddr::new(setup::HOME, port);
    let source = Sources { first: [127, 1, 0, 0].into(), count: 16 };
    let setup = Setup { source: Some(source), ..setup::UDP };
    setup.table(address(53), &[address(54)])
}

const LIMITS: Limits = Limits {
    sessions: 64,
    flows: 64,
    buffers: 8,
    pipes: 8,
    turn_bytes: 1 << 20,
    bulk_bytes: 8 << 20,
};

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
