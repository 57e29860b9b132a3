//! Instructions that the proxy executes, counted by Valgrind: unlike times, they repeat, so that a
//! few per cent more are seen on any machine. `bench instructions` compares them with what is
//! committed (`bench/instructions.toml`).
//!
//! Each benchmark does its operation [`TIMES`] times; a configuration is read once. What stands in
//! a `setup` is not counted. The assertions see to it that what is counted is what the name says.
//!
//! Where one has parameters `of_1`, `of_100` and so on, `bench instructions` looks at growth too:
//! it must not be much more than in proportion.

#![expect(unused_qualifications, reason = "in what gungraun's macros expand to")]
#![expect(clippy::cast_possible_truncation, reason = "the lengths of a ClientHello made here")]

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use config_sync::check;
use config_sync::compile::compile;
use config_sync::compile::names::Names;
use config_sync::model::config;
use config_sync::table::routing::{Hosts, RoutingTable, Socket, Transport};
use data_plane::contract::{BufferId, Event, Op, Side, Stop, Token};
use data_plane::proxy::Proxy;
use data_plane::proxy::balance::Balancer;
use data_plane::stats::counters::Counters;
use data_plane::wire::client_hello;
use data_plane::wire::client_hello::Hello;
use gungraun::prelude::*;

main!(library_benchmark_groups = [proxy, control]);

library_benchmark_group!(name = control, benchmarks = configure);

library_benchmark_group!(
    name = proxy,
    benchmarks = [
        read_hello,
        read_hello_as_it_comes,
        route_exact,
        route_wildcard,
        pick_endpoint,
        pick_backend,
        count_bytes,
        session_open,
        session_close,
        relay_small,
        relay_bulk,
        flow_new,
        flow_known,
        flow_reply
    ]
);

const TIMES: u16 = 100;

// ---- ClientHello ----

#[library_benchmark]
#[bench::whole(client_hello(32, usize::MAX))]
#[bench::post_quantum(client_hello(1216, usize::MAX))]
#[bench::fragmented(client_hello(32, 64))]
fn read_hello(bytes: Vec<u8>) -> Vec<u8> {
    for _ in 0..TIMES {
        let hello = client_hello::read(black_box(&bytes), false);
        assert!(matches!(black_box(hello), Hello::Known(_)));
    }
    bytes
}

// Each look finds no more than the one before has asked for: the slowest of clients.
#[library_benchmark]
#[bench::post_quantum(client_hello(1216, usize::MAX))]
fn read_hello_as_it_comes(bytes: Vec<u8>) -> Vec<u8> {
    for _ in 0..TIMES {
        let mut there = 1;
        while let Hello::NeedMore { at_least } = client_hello::read(&bytes[..there], false) {
            there = at_least;
        }
        assert!(there > 100);
    }
    bytes
}

/// As browsers send it (RFC 8446, section 4.1.2), with a key share of this size before the
/// protocols, in TLS records of at most `fragment` bytes.
fn client_hello(key_share: usize, fragment: usize) -> Vec<u8> {
    let name = b"shop.example.com";
    let name_len = name.len() as u8;
    let server_name = [&[0, name_len + 3, 0, 0, name_len][..], name].concat();
    let mut extensions = Vec::new();
    for (kind, content) in [
        (0x1a1a_u16, vec![]),
        (43, vec![4, 3, 4, 3, 3]),
        (10, vec![0, 8, 0x11, 0xec, 0, 29, 0, 23, 0, 24]),
        (13, vec![0; 18]),
        (0, server_name),
        (51, vec![0; key_share + 6]),
        (45, vec![1, 1]),
        (16, b"\x00\x0c\x02h2\x08http/1.1".to_vec()),
        (35, vec![]),
    ] {
        extensions.extend(kind.to_be_bytes());
        extensions.extend((content.len() as u16).to_be_bytes());
        extensions.extend(content);
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(32);
    body.extend([8; 32]);
    body.extend([0, 32]);
    body.extend([0x13; 32]);
    body.extend([1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut message = vec![1];
    message.extend(&(body.len() as u32).to_be_bytes()[1..]);
    message.extend(body);
    let mut records = Vec::new();
    for part in message.chunks(fragment) {
        records.extend([22, 3, 1]);
        records.extend((part.len() as u16).to_be_bytes());
        records.extend(part);
    }
    records
}

// ---- Configurations ----

#[library_benchmark]
#[bench::of_100(configuration(100))]
#[bench::of_400(configuration(400))]
fn configure(text: String) -> String {
    let config = check::parse("instructions", &text).expect("a good configuration");
    compile(&config, &mut Names::new(), 1).expect("its parts fit");
    text
}

/// Four TLS listeners in ten share an address, each other one has its own; each has a route to two
/// backends, one of which is for all.
fn configuration(listeners: usize) -> String {
    let mut text = "[[backends]]\nname = \"all\"\nendpoints = [\"10.9.9.9:80\"]\n".to_owned();
    for nth in 0..listeners {
        let (protocol, port, host) = match nth % 10 {
            0..4 => ("TLS", 443, format!("hostname = \"{nth}.example.com\"\n")),
            4..7 => ("TCP", 1_000 + nth, String::new()),
            _ => ("UDP", 1_000 + nth, String::new()),
        };
        let (high, low) = (nth / 250, nth % 250);
        text += &format!(
            "[[listeners]]\nname = \"l{nth}\"\nprotocol = \"{protocol}\"\n\
             address = \"192.0.2.9:{port}\"\n{host}\
             [[routes]]\nname = \"r{nth}\"\nlisteners = [\"l{nth}\"]\n\
             backends = [{{ name = \"b{nth}\" }}, {{ name = \"all\" }}]\n\
             [[backends]]\nname = \"b{nth}\"\nendpoints = [\"10.0.{high}.{low}:80\"]\n"
        );
    }
    text
}

// ---- Routes ----

#[library_benchmark]
#[bench::of_1(hosts(1, ""))]
#[bench::of_100(hosts(100, ""))]
#[bench::of_10000(hosts(10_000, ""))]
fn route_exact((hosts, names): (Hosts<usize>, Vec<String>)) -> (Hosts<usize>, Vec<String>) {
    look_up(hosts, names)
}

// Half of the names have one label more than the wildcard, half have two.
#[library_benchmark]
#[bench::of_1(hosts(1, "*."))]
#[bench::of_100(hosts(100, "*."))]
#[bench::of_10000(hosts(10_000, "*."))]
fn route_wildcard((hosts, names): (Hosts<usize>, Vec<String>)) -> (Hosts<usize>, Vec<String>) {
    look_up(hosts, names)
}

#[inline(always)]
fn look_up(hosts: Hosts<usize>, names: Vec<String>) -> (Hosts<usize>, Vec<String>) {
    for name in &names {
        assert!(black_box(hosts.get(Some(black_box(name)))).is_some());
    }
    (hosts, names)
}

/// So many names with this prefix, and names to look for among them.
fn hosts(count: usize, prefix: &str) -> (Hosts<usize>, Vec<String>) {
    let name = |route: usize| format!("service-{route:05}.example.com");
    let mut hosts = Hosts::new([1, 2, 3, 4]);
    for route in 0..count {
        hosts.insert(Some(&format!("{prefix}{}", name(route))), route);
    }
    let labels = |time: usize| match (prefix, time % 2) {
        ("", _) => "",
        (_, 0) => "a.",
        _ => "b.a.",
    };
    let asked = |time| format!("{}{}", labels(time), name(time * 7919 % count));
    let names = (0..TIMES.into()).map(asked).collect();
    (hosts, names)
}

// ---- Balance ----

#[library_benchmark]
#[bench::round_robin(balancer("round-robin"))]
#[bench::least_connections(balancer("least-connections"))]
#[bench::random(balancer("random"))]
#[bench::source_hash(balancer("source-hash"))]
#[bench::source_port_hash(balancer("source-port-hash"))]
fn pick_endpoint((mut balancer, table): (Balancer, RoutingTable)) -> (Balancer, RoutingTable) {
    for port in 0..TIMES {
        let endpoint = balancer.endpoint(&table.backends[0], client(port), &[]);
        assert!(black_box(endpoint).is_some());
    }
    (balancer, table)
}

// By weight.
#[library_benchmark]
#[bench::of_4(balancer("round-robin"))]
fn pick_backend((mut balancer, table): (Balancer, RoutingTable)) -> (Balancer, RoutingTable) {
    for _ in 0..TIMES {
        assert!(black_box(balancer.backend(black_box(&table.routes[0]), client(1))).is_some());
    }
    (balancer, table)
}

fn balancer(policy: &str) -> (Balancer, RoutingTable) {
    let (table, _) = table(policy);
    let mut balancer = Balancer::new(1);
    balancer.prepare(&table);
    balancer.backend(&table.routes[0], client(1));
    (balancer, table)
}

// ---- Metrics ----

// What a small exchange of bytes adds, and one duration.
#[library_benchmark]
#[bench::worker(counters())]
fn count_bytes((counters, table): (Counters, RoutingTable)) -> (Counters, RoutingTable) {
    let (listener, endpoint) = (table.listeners[0].id, table.backends[0].endpoints[0].id);
    for step in 0..u64::from(TIMES) {
        let listener = counters.listener(black_box(listener));
        listener.bytes_up.add(black_box(64));
        counters.endpoint(black_box(endpoint)).bytes_up.add(black_box(64));
        listener.duration.record(black_box(step * 1_000));
    }
    (counters, table)
}

fn counters() -> (Counters, RoutingTable) {
    let (table, _) = table("round-robin");
    let counters = Counters::new();
    counters.listener(table.listeners[0].id).opened.add(1);
    counters.endpoint(table.backends[0].endpoints[0].id).opened.add(1);
    (counters, table)
}

// ---- Sessions ----

// From accept until bytes can flow.
#[library_benchmark]
#[bench::tcp(World::used(TCP))]
#[bench::tls(World::used(TLS))]
fn session_open((mut world, listener): (World, usize)) -> World {
    for port in 0..TIMES {
        world.open(listener, port);
    }
    world
}

// The client ends, then the endpoint.
#[library_benchmark]
#[bench::tcp(World::with_sessions())]
fn session_close((mut world, sessions): (World, Vec<Token>)) -> (World, Vec<Token>) {
    for session in &sessions {
        world.close(*session);
    }
    (world, sessions)
}

// A request and its answer, copied.
#[library_benchmark]
#[bench::exchange(World::with_sessions())]
fn relay_small((mut world, sessions): (World, Vec<Token>)) -> (World, Vec<Token>) {
    let mut moves = 0;
    for session in &sessions {
        for from in [Side::Client, Side::Endpoint] {
            moves += world.tell(*session, ready(from, false)).len();
            world.tell(*session, moved(from, 64, Stop::Drained));
        }
    }
    assert_eq!(moves, 2 * usize::from(TIMES));
    (world, sessions)
}

// A download that uses up its share of each turn.
#[library_benchmark]
#[bench::turn(World::with_bulk())]
fn relay_bulk((mut world, session): (World, Token)) -> World {
    for _ in 0..TIMES {
        world.tell(session, moved(Side::Endpoint, 1 << 18, Stop::Budget));
        world.ops.clear();
        world.proxy.resume(world.now, &mut world.ops);
        assert!(matches!(world.ops[..], [(_, Op::Move { .. })]));
    }
    world
}

// ---- Flows ----

// The first datagram of a client.
#[library_benchmark]
#[bench::client(World::used(UDP))]
fn flow_new((mut world, listener): (World, usize)) -> World {
    for port in 0..TIMES {
        world.datagram(listener, port);
    }
    world
}

// One more datagram of each of as many clients.
#[library_benchmark]
#[bench::datagram(World::with_flows())]
fn flow_known((mut world, upstreams): (World, Vec<Token>)) -> (World, Vec<Token>) {
    for port in 0..TIMES {
        world.datagram(UDP, port);
    }
    (world, upstreams)
}

#[library_benchmark]
#[bench::datagram(World::with_flows())]
fn flow_reply((mut world, upstreams): (World, Vec<Token>)) -> (World, Vec<Token>) {
    for upstream in &upstreams {
        let ops = world.tell(*upstream, datagrams(None));
        assert!(matches!(ops, [(_, Op::SendDown { .. })]));
    }
    (world, upstreams)
}

// ---- A worker's proxy, and what a ring would tell it ----

struct World {
    proxy: Proxy,
    table: Arc<RoutingTable>,
    ops: Vec<(Token, Op)>,
    /// What clients of TLS send.
    hello: Vec<u8>,
    now: u64,
}

/// Positions in the table's `listeners`.
const TCP: usize = 0;
const TLS: usize = 1;
const UDP: usize = 2;

impl World {
    fn new() -> Self {
        let (table, limits) = table("round-robin");
        let mut world = Self {
            proxy: Proxy::new(limits, 1, Arc::new(Counters::new())),
            table: Arc::new(table),
            ops: Vec::with_capacity(64),
            hello: client_hello(1216, usize::MAX),
            now: 1_000_000,
        };
        world.proxy.apply(world.now, Arc::clone(&world.table), &mut world.ops);
        world
    }

    /// Everything has been used once, so that its memory is there.
    fn used(listener: usize) -> (Self, usize) {
        let mut world = Self::new();
        for listener in [TCP, TLS] {
            let session = world.open(listener, TIMES);
            world.close(session);
        }
        world.datagram(UDP, TIMES);
        (world, listener)
    }

    fn with_sessions() -> (Self, Vec<Token>) {
        let (mut world, _) = Self::used(TCP);
        let sessions = (0..TIMES).map(|port| world.open(TCP, port)).collect();
        (world, sessions)
    }

    /// One session with an endpoint that sends more than its share, spliced.
    fn with_bulk() -> (Self, Token) {
        let (mut world, _) = Self::used(TCP);
        let session = world.open(TCP, 0);
        world.tell(session, ready(Side::Endpoint, false));
        world.tell(session, moved(Side::Endpoint, 1 << 16, Stop::Budget));
        (world, session)
    }

    /// The upstream socket of each flow.
    fn with_flows() -> (Self, Vec<Token>) {
        let (mut world, _) = Self::used(UDP);
        let upstreams = (0..TIMES).map(|port| world.datagram(UDP, port)).collect();
        (world, upstreams)
    }

    fn open(&mut self, listener: usize, port: u16) -> Token {
        let socket = self.socket(listener);
        let (listener, local, reads_hello) =
            (Token::socket(socket.id), socket.address.ip().expect("IP"), socket.reads_hello);
        let accepted = Event::Accepted { incoming: 0, peer: client(port), local };
        let [(session, Op::Adopt { .. }), ..] = *self.tell(listener, accepted) else {
            panic!("{:?}", self.ops)
        };
        if reads_hello {
            self.tell(session, ready(Side::Client, false));
            let len = self.hello.len() as u32;
            self.tell(session, Event::Peeked { start: 0, len, end: false });
        }
        assert!(matches!(self.ops.last(), Some((_, Op::Connect { .. }))), "{:?}", self.ops);
        self.tell(session, Event::Connected);
        session
    }

    fn close(&mut self, session: Token) {
        for from in [Side::Client, Side::Endpoint] {
            self.tell(session, ready(from, true));
            self.tell(session, moved(from, 0, Stop::Eof));
        }
        assert!(matches!(self.ops.last(), Some((_, Op::Close { reset: false }))), "{:?}", self.ops);
        self.tell(session, Event::Closed);
        self.proxy.records().clear();
    }

    /// Returns the upstream socket that it went out by.
    fn datagram(&mut self, listener: usize, port: u16) -> Token {
        let listener = Token::socket(self.socket(listener).id);
        match self.tell(listener, datagrams(Some(client(port)))) {
            [.., (upstream, Op::SendUp { .. })] => *upstream,
            ops => panic!("{ops:?}"),
        }
    }

    fn tell(&mut self, token: Token, event: Event) -> &[(Token, Op)] {
        self.now += 10;
        self.ops.clear();
        self.proxy.handle(self.now, token, event, &self.hello, &mut self.ops);
        &self.ops
    }

    fn socket(&self, listener: usize) -> &Socket {
        socket_of(&self.table, listener)
    }
}

fn socket_of(table: &RoutingTable, listener: usize) -> &Socket {
    let of = |socket: &&Socket| socket.listeners.any() == Some(listener);
    table.sockets.iter().find(of).expect("every listener has a socket")
}

fn ready(side: Side, ending: bool) -> Event {
    Event::Ready { side, readable: true, writable: false, ending, failed: false }
}

fn moved(from: Side, bytes: u32, stop: Stop) -> Event {
    Event::Moved { from, read: bytes, sent: bytes, held: 0, stop }
}

fn datagrams(peer: Option<SocketAddr>) -> Event {
    let buffer = BufferId(0);
    Event::Datagrams { buffer, peer, local: None, bytes: 64, size: 64, count: 1, truncated: false }
}

fn client(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 10_000 + port))
}

/// A listener of each kind, one route to four backends of 16 endpoints each, which are picked by
/// `policy`.
fn table(policy: &str) -> (RoutingTable, config_sync::table::routing::Limits) {
    let mut text = "limits = { sessions = 1024, flows = 1024 }\n".to_owned();
    for (name, protocol, port) in [("tcp", "TCP", 1), ("tls", "TLS", 2), ("udp", "UDP", 3)] {
        text += &format!(
            "[[listeners]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\n\
             address = \"192.0.2.9:{port}\"\n\
             [[routes]]\nname = \"{name}\"\nlisteners = [\"{name}\"]\nbackends = [\
             {{ name = \"a\", weight = 5 }}, {{ name = \"b\", weight = 2 }}, \
             {{ name = \"c\", weight = 1 }}, {{ name = \"d\", weight = 1 }}]\n"
        );
    }
    for backend in ["a", "b", "c", "d"] {
        let endpoints: Vec<_> = (1..17).map(|host| format!("\"198.51.100.{host}:1\"")).collect();
        text += &format!(
            "[[backends]]\nname = \"{backend}\"\nbalance = \"{policy}\"\nendpoints = [{}]\n",
            endpoints.join(", ")
        );
    }
    let config = check::parse("instructions", &text).expect("a good configuration");
    let table = compile(&config, &mut Names::new(), 1).expect("its parts fit");
    assert_eq!(socket_of(&table, UDP).transport, Transport::Udp);
    let sockets = config.listeners.len();
    (table, config::limits(config.limits, sockets, 1, 65_536, 32_768, false))
}
