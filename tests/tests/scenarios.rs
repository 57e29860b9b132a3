//! Every scenario on the simulated kernel and on the real one, with equal traces.
#![allow(clippy::cast_possible_truncation, reason = "numbers of peers and sizes are small")]

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use config_sync::publish::Command;
use config_sync::table::routing::{Drain, EndpointId, Protocol, RoutingTable, SocketId, Transport};
use config_sync::table::turns::turns;
use crossbeam_channel::{Receiver, Sender, bounded};
use ringway::ring::Features;
use ringway::ring::listen::open::open_listeners;
use ringway::stats::counters::Counters;
use ringway::stats::records::{Record, SessionRecord};
use ringway::worker;
use ringway::worker::{Clock, WorkerConfig};
use ringway_tests::sim::bytes::pattern;
use ringway_tests::sim::fake::Fake;
use ringway_tests::sim::kernel::faults::Faults;
use ringway_tests::sim::scenarios::play::{Peer, Stage, closed, play};
use ringway_tests::sim::scenarios::scenarios;
use ringway_tests::sim::scenarios::setup::{HOME, LIMITS, Serves, Setup, UDP};
use ringway_tests::sim::tcp::conn::{ConnId, EndpointMode};
use ringway_tests::sim::udp::datagram::{Datagram, Exchange, Path};

/// UDP also with flows that the simulated kernel forwards.
#[test]
fn both_kernels_give_the_same_trace() {
    assert!(scenarios().count() >= 20);
    let mut in_kernel = 0;
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
                in_kernel += stage.fake.kernel.carried;
            }
        }
    }
    assert!(in_kernel >= 6, "the kernel has forwarded {in_kernel} datagrams");
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

/// A drain at the end of every real scenario: nothing is left, and this is all the time it has.
const DRAIN: Drain = Drain { timeout: 10, spread: 10 };

fn last_table() -> RoutingTable {
    RoutingTable { generation: 9, drain: Some(DRAIN), ..RoutingTable::empty() }
}

/// The table without this endpoint of its first backend.
fn without(table: &RoutingTable, endpoint: u32) -> RoutingTable {
    let mut table = table.clone();
    let backend = &mut table.backends[0];
    backend.endpoints.retain(|of| of.id != EndpointId(endpoint));
    backend.turns = turns(&vec![1; backend.endpoints.len()]);
    table
}

fn empty_table() -> RoutingTable {
    RoutingTable { generation: 2, ..RoutingTable::empty() }
}

// ---- The simulated kernel ----

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

// ---- The real kernel ----

struct RealStage {
    table: RoutingTable,
    worker: JoinHandle<std::io::Result<()>>,
    commands: Sender<Command>,
    wake: OwnedFd,
    incoming: Receiver<Record>,
    records: VecDeque<SessionRecord>,
    counters: Arc<Counters>,
    clock: Clock,
    ports_short: Arc<AtomicU64>,
    unlistened: bool,
    gateway: SocketAddr,
    /// The servers, in the order of the endpoints that accept.
    listeners: Vec<TcpListener>,
    server: Option<UdpSocket>,
    clients: BTreeMap<u8, UdpSocket>,
    sources: BTreeMap<u8, SocketAddr>,
    peers: BTreeMap<Peer, RealPeer>,
}

struct RealPeer {
    stream: TcpStream,
    prefix: Vec<u8>,
    /// Numbers the stream that it sends.
    id: u32,
    left: u64,
    fin: bool,
    sent: u64,
    got: u64,
}

impl RealStage {
    fn new(setup: Setup) -> Self {
        let (mut listeners, mut server) = (Vec::new(), None);
        let endpoints: Vec<_> =
            setup.endpoints.iter().map(|s| serve(setup, *s, &mut listeners, &mut server)).collect();
        let mut table = setup.table(SocketAddr::new(HOME, 0), &endpoints);
        let listening = open_listeners(&table.sockets[0], 1, false, false, 1).expect("loopback");
        let listening = listening.into_iter().next().expect("one");
        let bound = socket2::SockRef::from(&listening).local_addr().expect("bound");
        let gateway = bound.as_socket().expect("an internet address");
        table.sockets[0].address = gateway.into();

        let counters = Arc::new(Counters::new());
        let (clock, ports_short) = (Clock::start(), Arc::<AtomicU64>::default());
        let wake = eventfd();
        let (commands, to_worker) = bounded(4);
        let (from_worker, incoming) = bounded(1024);
        let spawned = worker::spawn(WorkerConfig {
            core: None,
            index: 0,
            waits: false,
            confined: true,
            limits: LIMITS,
            features: Features::probe().expect("io_uring"),
            counters: Arc::clone(&counters),
            commands: to_worker,
            wake: wake.as_fd().try_clone_to_owned().expect("a descriptor"),
            records: from_worker,
            copies: bounded(1).0,
            bell: Arc::new(eventfd().as_fd().try_clone_to_owned().expect("a descriptor")),
            clock,
            ports_short: Arc::clone(&ports_short),
            fast_path: Arc::default(),
            seed: 1,
        });
        let spawned = spawned.expect("a thread");
        spawned.ready.recv().expect("its word").expect("a ring");
        let stage = Self {
            table: table.clone(),
            worker: spawned.thread,
            commands,
            wake,
            incoming,
            records: VecDeque::new(),
            counters,
            clock,
            ports_short,
            unlistened: false,
            gateway,
            listeners,
            server,
            clients: BTreeMap::new(),
            sources: BTreeMap::new(),
            peers: BTreeMap::new(),
        };
        stage.tell(table, vec![(SocketId(0), setup.transport(), Arc::new(listening))]);
        stage
    }

    fn tell(&self, table: RoutingTable, sockets: Vec<(SocketId, Transport, Arc<OwnedFd>)>) {
        let command = Command::Table { table: Arc::new(table), sockets };
        self.commands.send(command).expect("the worker lives");
        nix::unistd::write(&self.wake, &1u64.to_ne_bytes()).expect("an eventfd");
    }

    /// Publishes the last table, and waits for the worker's end.
    fn stop(mut self) {
        self.peers.clear();
        self.tell(last_table(), Vec::new());
        self.worker.join().expect("no panic").expect("a clean end");
    }

    fn peer(&mut self, peer: Peer) -> &mut RealPeer {
        self.peers.get_mut(&peer).expect("connected")
    }

    /// Everyone writes what their sockets take; records are taken in; then a moment's rest.
    fn turn(&mut self) {
        for peer in self.peers.values_mut() {
            peer.pump();
        }
        for record in self.incoming.try_iter() {
            self.unlistened |= matches!(record, Record::Unlistened(_));
            self.records.extend(closed(record));
        }
        std::thread::sleep(Duration::from_micros(200));
    }

    fn wait<T>(&mut self, what: &str, mut of: impl FnMut(&mut Self) -> Option<T>) -> T {
        for _ in 0..150_000 {
            if let Some(value) = of(self) {
                return value;
            }
            self.turn();
        }
        panic!("waited too long for {what}");
    }

    fn add(&mut self, peer: Peer, stream: TcpStream, prefix: Vec<u8>) {
        stream.set_nonblocking(true).expect("a socket");
        let id = number_of(peer);
        let peer_ = RealPeer { stream, prefix, id, left: 0, fin: false, sent: 0, got: 0 };
        self.peers.insert(peer, peer_);
    }

    /// Reads at most `most` bytes and checks them; `None`: nothing is there now.
    fn read(&mut self, peer: Peer, most: u64) -> Option<Result<u64, bool>> {
        let other = match peer {
            Peer::Client(n) => Peer::Server(n),
            Peer::Server(n) => Peer::Client(n),
        };
        let mut bytes = vec![0; most.min(1 << 16) as usize];
        let reader = self.peer(peer);
        let n = match reader.stream.read(&mut bytes) {
            Ok(0) => return Some(Err(true)),
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                return Some(Err(false));
            }
        };
        let at = reader.got;
        reader.got += n as u64;
        // A server that has reset its connection before had no prefix.
        let writer = self.peers.get(&other);
        let sent = |at| writer.map_or_else(|| pattern(number_of(other), at), |of| of.byte(at));
        let same = (at..).zip(&bytes[..n]).all(|(at, byte)| sent(at) == *byte);
        assert!(same, "{peer:?} got other bytes than {other:?} sent");
        Some(Ok(n as u64))
    }
}

/// The number of the stream that a peer sends.
fn number_of(peer: Peer) -> u32 {
    match peer {
        Peer::Client(n) => u32::from(n),
        Peer::Server(n) => 100 + u32::from(n),
    }
}

impl RealPeer {
    fn byte(&self, at: u64) -> u8 {
        self.prefix.get(at as usize).copied().unwrap_or_else(|| pattern(self.id, at))
    }

    fn pump(&mut self) {
        while self.left > 0 {
            let most = self.left.min(1 << 16);
            let bytes: Vec<u8> = (self.sent..self.sent + most).map(|at| self.byte(at)).collect();
            match self.stream.write(&bytes) {
                Ok(n) => {
                    self.left -= n as u64;
                    self.sent += n as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // Its end is seen where it reads.
                Err(_) => self.left = 0,
            }
        }
        if std::mem::take(&mut self.fin) {
            // A peer that was reset meanwhile has nothing to end.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }
}

impl Stage for RealStage {
    fn connect(&mut self, client: u8, prefix: Vec<u8>) {
        let stream = TcpStream::connect(self.gateway).expect("the gateway listens");
        self.add(Peer::Client(client), stream, prefix);
    }

    fn served(&mut self, client: u8) {
        let stream = self.wait("a session", |stage| {
            stage.listeners.iter().find_map(|listener| listener.accept().ok())
        });
        self.add(Peer::Server(client), stream.0, Vec::new());
    }

    fn sends(&mut self, peer: Peer, bytes: u64) {
        self.peer(peer).left += bytes;
        self.peer(peer).pump();
    }

    fn fin(&mut self, peer: Peer) {
        self.peer(peer).fin = true;
        self.peer(peer).pump();
    }

    fn reset(&mut self, peer: Peer) {
        let gone = self.peers.remove(&peer).expect("connected");
        let socket = socket2::SockRef::from(&gone.stream);
        socket.set_linger(Some(Duration::ZERO)).expect("a socket");
    }

    fn gets(&mut self, peer: Peer, bytes: u64) -> u64 {
        let mut got = 0;
        while got < bytes {
            match self.wait("bytes", |stage| stage.read(peer, bytes - got)) {
                Ok(n) => got += n,
                Err(_) => break,
            }
        }
        got
    }

    fn ends(&mut self, peer: Peer) -> (u64, bool) {
        let mut got = 0;
        loop {
            match self.wait("an end", |stage| stage.read(peer, u64::MAX)) {
                Ok(n) => got += n,
                Err(fin) => return (got, fin),
            }
        }
    }

    fn logs(&mut self) -> SessionRecord {
        self.wait("a log line", |stage| stage.records.pop_front())
    }

    fn unlisten(&mut self) {
        self.tell(empty_table(), Vec::new());
        self.wait("the listener's end", |stage| stage.unlistened.then_some(()));
    }

    fn asks(&mut self, client: u8, bytes: u32) {
        let socket = self.clients.entry(client).or_insert_with(|| {
            let socket = UdpSocket::bind((HOME, 0)).expect("loopback");
            socket.set_nonblocking(true).expect("a socket");
            socket
        });
        socket.send_to(&vec![client; bytes as usize], self.gateway).expect("sent");
    }

    fn hears(&mut self, peer: Peer) -> u32 {
        let mut bytes = [0; 2048];
        let (n, from) = self.wait("a datagram", |stage| {
            let socket = match peer {
                Peer::Client(client) => &stage.clients[&client],
                Peer::Server(_) => stage.server.as_ref().expect("a UDP scenario"),
            };
            socket.recv_from(&mut bytes).ok()
        });
        let (Peer::Client(client) | Peer::Server(client)) = peer;
        assert!(bytes[..n].iter().all(|byte| *byte == client), "another client's datagram");
        if matches!(peer, Peer::Server(_)) {
            self.sources.insert(client, from);
        }
        n as u32
    }

    fn answers(&mut self, client: u8, bytes: u32) {
        let server = self.server.as_ref().expect("a UDP scenario");
        server.send_to(&vec![client; bytes as usize], self.sources[&client]).expect("sent");
    }

    fn is_refused(&mut self, endpoint: u32, times: u64) {
        let counters = Arc::clone(&self.counters);
        let refusals = || counters.endpoint(EndpointId(endpoint)).refusals.get();
        self.wait("a refusal", |_| (refusals() >= times).then_some(()));
    }

    fn has_failed(&mut self, endpoint: u32, times: u64) {
        let counters = Arc::clone(&self.counters);
        let failures = || counters.endpoint(EndpointId(endpoint)).connect_failures.get();
        self.wait("a failure", |_| (failures() >= times).then_some(()));
        assert_eq!(failures(), times);
    }

    fn returns(&mut self, endpoint: u32) {
        for table in [without(&self.table, endpoint), self.table.clone()] {
            self.tell(table, Vec::new());
        }
    }
}

/// An endpoint's address, with what listens there.
fn serve(
    setup: Setup,
    serves: Serves,
    listeners: &mut Vec<TcpListener>,
    server: &mut Option<UdpSocket>,
) -> SocketAddr {
    if setup.transport() == Transport::Udp {
        let socket = UdpSocket::bind((HOME, 0)).expect("loopback");
        socket.set_nonblocking(true).expect("a socket");
        let address = socket.local_addr().expect("bound");
        if serves == Serves::Accepts {
            *server = Some(socket);
        }
        return address;
    }
    let listener = TcpListener::bind((HOME, 0)).expect("loopback");
    let address = listener.local_addr().expect("bound");
    if serves == Serves::Accepts {
        listener.set_nonblocking(true).expect("a socket");
        listeners.push(listener);
    }
    address
}

fn eventfd() -> OwnedFd {
    nix::sys::eventfd::EventFd::new().expect("an eventfd").into()
}
