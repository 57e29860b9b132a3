//! Every scenario on the simulated kernel and on the real one, with equal traces.
#![allow(clippy::cast_possible_truncation, reason = "numbers of peers and sizes are small")]

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use config_sync::table::routing::{EndpointId, Protocol, RoutingTable, SocketId};
use ringway::stats::records::SessionRecord;
use ringway_tests::sim::fake::Fake;
use ringway_tests::sim::kernel::faults::Faults;
use ringway_tests::sim::scenarios::play::{Peer, Stage, closed, play};
use ringway_tests::sim::scenarios::scenarios;
use ringway_tests::sim::scenarios::setup::{
    HOME, LIMITS, Serves, Setup, UDP, empty_table, without,
};
use ringway_tests::sim::scenarios::udp::IN_KERNEL;
use ringway_tests::sim::tcp::conn::{ConnId, EndpointMode};
use ringway_tests::sim::udp::datagram::{Datagram, Exchange, Path};
use ringway_tests::stage::RealStage;

/// UDP also with flows that the simulated kernel forwards.
#[test]
fn both_kernels_give_the_same_trace() {
    assert!(scenarios().count() >= 20);
    let mut in_kernel: BTreeMap<_, u64> = BTreeMap::new();
    for scenario in scenarios() {
        eprintln!("{}", scenario.name);
        let mut real = RealStage::new(scenario.setup);
        let seen = play(scenario, &mut real);
        real.stop();
        for seed in 0..3 {
            let simulated = play(scenario, &mut FakeStage::new(seed, scenario.setup));
            assert_eq!(simulated, seen, "{} (simulated, real; seed {seed})", scenario.name);
        }
        if scenario.setup.protocol == Protocol::Udp {
            let setup = Setup { fast_path_after: 1, ..scenario.setup };
            for seed in 0..3 {
                let mut stage = FakeStage::new(seed, setup);
                let simulated = play(scenario, &mut stage);
                assert_eq!(simulated, seen, "{} (in the kernel; seed {seed})", scenario.name);
                *in_kernel.entry(scenario.name).or_default() += stage.fake.kernel.own().carried;
            }
        }
    }
    in_kernel.retain(|_, carried| *carried > 0);
    let names: Vec<_> = in_kernel.keys().collect();
    assert_eq!(in_kernel.len(), IN_KERNEL.len(), "the kernel forwards datagrams of {names:?}");
    // A few go through the worker, as a real kernel leaves some to the sockets.
    for (name, least) in IN_KERNEL {
        assert!(in_kernel[name] >= 2 * least, "{name}: {} of three seeds", in_kernel[name]);
    }
}

/// A worker that is told that source ports are short closes sockets that nobody uses, which it
/// would else keep for a minute; and no sooner than they have rested.
#[test]
fn a_worker_gives_up_ports_that_another_wants() {
    let mut stage = RealStage::new(Setup { flow_timeout: 500, ..UDP });
    let begin = stage.clock.micros();
    stage.asks(1, 9);
    assert_eq!(stage.hears(Peer::Server(1)), 9);
    let counters = Arc::clone(&stage.counters);
    stage.wait("the flow's end", |_| (counters.flows.get() == 0).then_some(()));
    assert_eq!(counters.upstreams_resting.get(), 1);
    stage.ports_short.store(u64::MAX / 2, Ordering::Relaxed);
    stage.wait("the socket's end", |_| (counters.upstreams.get() == 0).then_some(()));
    let lasted = stage.clock.micros() - begin;
    // 2.5 s by the worker's clock, which stands still in a turn: it may have begun before `begin`.
    assert!((2_400_000..60_000_000).contains(&lasted), "{lasted} us");
    stage.stop();
}

struct FakeStage {
    fake: Fake,
    table: RoutingTable,
    conns: BTreeMap<Peer, ConnId>,
    outbox: BTreeMap<Peer, (u64, bool)>,
    asked: u32,
    /// Datagrams that the server has: of which client, through which upstream socket.
    heard: VecDeque<Datagram>,
    /// Where nobody listens.
    closed_ports: Vec<SocketAddr>,
    ports: BTreeMap<u8, (Path, Datagram)>,
    answers: VecDeque<Datagram>,
    records: VecDeque<SessionRecord>,
}

impl FakeStage {
    fn new(seed: u64, setup: Setup) -> Self {
        let mut fake = Fake::new(seed, LIMITS, Faults::default());
        let endpoints: Vec<_> =
            (0..setup.endpoints.len()).map(|n| SocketAddr::new(HOME, 7_000 + n as u16)).collect();
        for (address, serves) in endpoints.iter().zip(setup.endpoints) {
            let mode = match serves {
                Serves::Accepts => EndpointMode::Accepts,
                Serves::Refuses => EndpointMode::Refuses,
            };
            fake.kernel.set_endpoint(*address, mode);
        }
        let table = setup.table(SocketAddr::new(HOME, 6_000), &endpoints);
        fake.apply(table.clone());
        let all = endpoints.into_iter().zip(setup.endpoints);
        let closed = all.filter(|(_, serves)| **serves == Serves::Refuses);
        Self {
            fake,
            table,
            conns: BTreeMap::new(),
            outbox: BTreeMap::new(),
            asked: 0,
            heard: VecDeque::new(),
            closed_ports: closed.map(|(address, _)| address).collect(),
            ports: BTreeMap::new(),
            answers: VecDeque::new(),
            records: VecDeque::new(),
        }
    }

    /// One step of the world: peers write what their sockets take, time goes on.
    fn turn(&mut self) {
        let kernel = &mut self.fake.kernel;
        let mut wrote = 0;
        for (peer, (left, fin)) in &mut self.outbox {
            let conn = self.conns[peer];
            let n = kernel.peer_write(conn, *left);
            *left -= n;
            wrote += n;
            if *left == 0 && *fin {
                kernel.peer_fin(conn);
            }
        }
        let until = self.fake.kernel.now + 60_000_000;
        assert!(self.fake.step(until) || wrote > 0, "nothing happens any more");
        for (path, datagram) in std::mem::take(&mut self.fake.kernel.sent_up) {
            if self.closed_ports.contains(&path.endpoint) {
                self.fake.kernel.endpoint_refuses(path);
                continue;
            }
            self.ports.insert(client_of(datagram.exchange.client), (path, datagram));
            self.heard.push_back(datagram);
        }
        self.answers.extend(self.fake.kernel.sent_down.drain(..));
        self.records.extend(self.fake.records.drain(..).filter_map(closed));
    }

    fn take<T>(&mut self, mut of: impl FnMut(&mut Self) -> Option<T>) -> T {
        loop {
            if let Some(value) = of(self) {
                return value;
            }
            self.turn();
        }
    }
}

fn client_of(address: SocketAddr) -> u8 {
    (address.port() - 20_000) as u8
}

fn address_of(client: u8) -> SocketAddr {
    SocketAddr::new(HOME, 20_000 + u16::from(client))
}

impl Stage for FakeStage {
    fn connect(&mut self, client: u8, prefix: Vec<u8>) {
        let window = 1 << 17;
        let conn = self.fake.kernel.peer_connect(SocketId(0), address_of(client), prefix, window);
        self.conns.insert(Peer::Client(client), conn);
    }

    fn served(&mut self, client: u8) {
        let conn = self.take(|stage| stage.fake.kernel.established.pop());
        self.conns.insert(Peer::Server(client), conn);
    }

    fn sends(&mut self, peer: Peer, bytes: u64) {
        self.outbox.entry(peer).or_default().0 += bytes;
    }

    fn fin(&mut self, peer: Peer) {
        self.outbox.entry(peer).or_default().1 = true;
        self.turn_if_idle();
    }

    fn reset(&mut self, peer: Peer) {
        self.fake.kernel.peer_reset(self.conns[&peer]);
    }

    fn gets(&mut self, peer: Peer, bytes: u64) -> u64 {
        let conn = self.conns[&peer];
        let mut got = 0;
        while got < bytes {
            let n = self.fake.kernel.peer_read(conn, bytes - got);
            got += n;
            let state = self.fake.kernel.conn(conn);
            if n == 0 && (state.outbound.fin_seen || state.reset_seen) {
                break;
            }
            if n == 0 {
                self.turn();
            }
        }
        got
    }

    fn ends(&mut self, peer: Peer) -> (u64, bool) {
        let conn = self.conns[&peer];
        let mut got = 0;
        loop {
            got += self.fake.kernel.peer_read(conn, u64::MAX);
            let state = self.fake.kernel.conn(conn);
            if state.outbound.fin_seen || state.reset_seen {
                return (got, state.outbound.fin_seen);
            }
            self.turn();
        }
    }

    fn logs(&mut self) -> SessionRecord {
        self.take(|stage| stage.records.pop_front())
    }

    fn unlisten(&mut self) {
        self.fake.apply(empty_table());
        self.take(|stage| (!stage.fake.kernel.is_listening(SocketId(0))).then_some(()));
    }

    fn asks(&mut self, client: u8, bytes: u32) {
        let client = address_of(client);
        let exchange = Exchange { socket: SocketId(0), client, says: None, local: HOME };
        self.asked += 1;
        let number = self.asked;
        let (count, truncated) = (1, false);
        let datagram = Datagram { exchange, number, bytes, count, truncated, train: None };
        self.fake.kernel.client_sends(datagram);
    }

    fn hears(&mut self, peer: Peer) -> u32 {
        let of = |stage: &mut Self| match peer {
            Peer::Server(_) => stage.heard.pop_front(),
            Peer::Client(_) => stage.answers.pop_front(),
        };
        let datagram = self.take(of);
        let (Peer::Client(client) | Peer::Server(client)) = peer;
        assert_eq!(client_of(datagram.exchange.client), client, "another client's datagram");
        datagram.bytes
    }

    fn answers(&mut self, client: u8, bytes: u32) {
        let (port, datagram) = self.ports[&client];
        self.fake.kernel.endpoint_sends(port, Datagram { bytes, ..datagram });
    }

    fn is_refused(&mut self, endpoint: u32, times: u64) {
        let counters = Arc::clone(&self.fake.counters);
        let refusals = || counters.endpoint(EndpointId(endpoint)).refusals.get();
        self.take(|_| (refusals() >= times).then_some(()));
    }

    fn has_failed(&mut self, endpoint: u32, times: u64) {
        let counters = Arc::clone(&self.fake.counters);
        let failures = || counters.endpoint(EndpointId(endpoint)).connect_failures.get();
        self.take(|_| (failures() >= times).then_some(()));
        assert_eq!(failures(), times);
    }

    fn returns(&mut self, endpoint: u32) {
        for table in [without(&self.table, endpoint), self.table.clone()] {
            self.fake.apply(table);
        }
    }
}

impl FakeStage {
    /// A FIN after nothing needs no step of the world to be sent.
    fn turn_if_idle(&mut self) {
        for (peer, (left, fin)) in &self.outbox {
            if *left == 0 && *fin {
                self.fake.kernel.peer_fin(self.conns[peer]);
            }
        }
    }
}
