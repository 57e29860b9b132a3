//! Scenarios on the real kernel: one worker, whose peers are sockets of the test.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::Duration;

use config_sync::publish::Command;
use config_sync::table::routing::{Drain, EndpointId, RoutingTable, SocketId, Transport};
use crossbeam_channel::{Receiver, Sender, bounded};
use ringway::ring::bpf::FastPath;
use ringway::ring::listen::open::open_listeners;
use ringway::ring::{Features, SharedPath};
use ringway::stats::counters::Counters;
use ringway::stats::records::{Record, SessionRecord};
use ringway::worker::{self, Clock, WorkerConfig};

use crate::real::in_kernel::FORWARDING;
use crate::real::{Namespace, program};
use crate::sim::bytes::pattern;
use crate::sim::scenarios::play::{Peer, Stage, closed};
use crate::sim::scenarios::setup::{HOME, LIMITS, Serves, Setup, empty_table, without};

/// A drain at the end of every scenario: nothing is left, and this is all the time it has.
const DRAIN: Drain = Drain { timeout: 10, spread: 10 };

fn last_table() -> RoutingTable {
    RoutingTable { generation: 9, drain: Some(DRAIN), ..RoutingTable::empty() }
}

/// Where the worker and its peers are.
struct Place {
    gateway: IpAddr,
    peers: IpAddr,
    /// The peers' own.
    namespace: Option<Namespace>,
    fast_path: SharedPath,
}

impl Place {
    fn loopback() -> Self {
        Self { gateway: HOME, peers: HOME, namespace: None, fast_path: SharedPath::default() }
    }

    /// The kernel forwards between the caller's network namespace, which has nothing else in it,
    /// and another.
    fn behind_veth() -> Self {
        let namespace = Namespace::new();
        namespace.join("peers", "10.1.0", "fd01");
        program("sh", &["-c", FORWARDING]);
        let path = FastPath::open(LIMITS.flows, true).expect("the right to it");
        let [gateway, peers] = [1, 2].map(|host| Ipv4Addr::new(10, 1, 0, host).into());
        let fast_path = Arc::new(path.into());
        Self { gateway, peers, namespace: Some(namespace), fast_path }
    }

    /// Does what a peer does.
    fn peer<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        match &self.namespace {
            Some(namespace) => namespace.run(job),
            None => job(),
        }
    }

    fn udp(&self) -> UdpSocket {
        let ip = self.peers;
        self.peer(move || {
            let socket = UdpSocket::bind((ip, 0)).expect("a port");
            socket.set_nonblocking(true).expect("a socket");
            socket
        })
    }

    /// An endpoint's address, with what listens there.
    fn serve(
        &self,
        setup: Setup,
        serves: Serves,
        listeners: &mut Vec<TcpListener>,
        server: &mut Option<UdpSocket>,
    ) -> SocketAddr {
        if setup.transport() == Transport::Udp {
            let socket = self.udp();
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
}

pub struct RealStage {
    place: Place,
    table: RoutingTable,
    worker: JoinHandle<std::io::Result<()>>,
    commands: Sender<Command>,
    wake: OwnedFd,
    incoming: Receiver<Record>,
    records: VecDeque<SessionRecord>,
    pub counters: Arc<Counters>,
    pub clock: Clock,
    pub ports_short: Arc<AtomicU64>,
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
    /// All on the loopback interface.
    pub fn new(setup: Setup) -> Self {
        Self::at(setup, Place::loopback())
    }

    /// UDP: the peers have a network namespace of their own, and flows that the table allows it
    /// are forwarded in the kernel. The caller's network namespace has nothing else in it.
    pub fn in_kernel(setup: Setup) -> Self {
        Self::at(setup, Place::behind_veth())
    }

    fn at(setup: Setup, place: Place) -> Self {
        let (mut listeners, mut server) = (Vec::new(), None);
        let serve = |serves: &Serves| place.serve(setup, *serves, &mut listeners, &mut server);
        let endpoints: Vec<_> = setup.endpoints.iter().map(serve).collect();
        let mut table = setup.table(SocketAddr::new(place.gateway, 0), &endpoints);
        let listening = open_listeners(&table.sockets[0], 1, false, false, 1).expect("an address");
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
            fast_path: Arc::clone(&place.fast_path),
            seed: 1,
        });
        let spawned = spawned.expect("a thread");
        spawned.ready.recv().expect("its word").expect("a ring");
        let stage = Self {
            place,
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

    /// Publishes the last table, and waits for the worker's end. Returns what was counted.
    pub fn stop(mut self) -> Arc<Counters> {
        self.peers.clear();
        self.tell(last_table(), Vec::new());
        self.worker.join().expect("no panic").expect("a clean end");
        self.counters
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

    pub fn wait<T>(&mut self, what: &str, mut of: impl FnMut(&mut Self) -> Option<T>) -> T {
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
        let socket = self.clients.entry(client).or_insert_with(|| self.place.udp());
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

fn eventfd() -> OwnedFd {
    nix::sys::eventfd::EventFd::new().expect("an eventfd").into()
}
