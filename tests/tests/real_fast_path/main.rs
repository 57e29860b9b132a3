//! UDP flows that the kernel forwards: a client, the gateway and servers, each in a network
//! namespace of its own. Needs root, and rights to BPF.

mod clsact;
mod life;
mod packets;
mod processes;
mod replies;
mod rights;
mod scenarios;

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::in_kernel::FORWARDING;
use ringway_tests::real::{
    Gateway, Launch, Metrics, Namespace, Server, free_port, in_own_network, now, program,
};

/// The client's and the servers' namespaces, joined to the gateway's.
struct World {
    clients: Namespace,
    servers: Namespace,
}

impl World {
    fn new() -> Self {
        let (clients, servers) = (Namespace::new(), Namespace::new());
        clients.join("clients", "10.1.0", "fd01");
        servers.join("servers", "10.2.0", "fd02");
        program("sh", &["-c", FORWARDING]);
        Self { clients, servers }
    }

    /// A server that puts its mark in front of what it sends back.
    fn server(&self, address: &str, mark: u8) -> Server {
        let at: SocketAddr = address.parse().expect("an address");
        self.servers.run(move || {
            Server::udp_at(at, move |socket, bytes, peer| {
                let _ = socket.send_to(&[&[mark], bytes].concat(), peer);
            })
        })
    }

    fn player(&self, gateway: SocketAddr) -> Player {
        let socket = self.clients.run(move || {
            let any = if gateway.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).expect("a socket");
            socket.connect(gateway).expect("connecting");
            socket
        });
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        Player { socket, number: 0, all_whole: false, up: 0, down: 0 }
    }
}

/// A client that plays a game: each move has an answer, which must have its bytes.
struct Player {
    socket: UdpSocket,
    number: usize,
    /// Each of its moves fits a packet.
    all_whole: bool,
    up: u64,
    down: u64,
}

impl Player {
    /// Makes so many moves. Returns the marks of the servers that answered, each once in a row.
    fn play(&mut self, moves: usize) -> Vec<u8> {
        let mut marks = Vec::new();
        let own = usize::from(self.address().port());
        for _ in 0..moves {
            self.number += 1;
            // Some do not fit a packet, and the sockets put their fragments together.
            let len = match self.number % 50 {
                49 if !self.all_whole => 3_000,
                _ => self.number * 37 % 1_300,
            };
            let sent: Vec<u8> =
                (0..len).map(|at| (at * 7 + self.number + own).to_le_bytes()[0]).collect();
            let mut bytes = [0; 4_096];
            let got = self.ask(&sent, &mut bytes);
            let got = got.unwrap_or_else(|| panic!("no answer to move {}", self.number));
            assert_eq!(bytes[1..got], sent, "move {}", self.number);
            marks.push(bytes[0]);
        }
        marks.dedup();
        marks
    }

    /// Makes a move each 5 ms. `longest`: microseconds that an answer took.
    fn play_until(&mut self, over: &AtomicBool, longest: &AtomicU64) {
        self.all_whole = true;
        self.socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        while !over.load(Ordering::SeqCst) {
            let began = now();
            self.play(1);
            let waited = u64::try_from(began.elapsed().as_micros()).expect("some seconds");
            longest.fetch_max(waited, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn address(&self) -> SocketAddr {
        self.socket.local_addr().expect("a bound socket")
    }

    fn ask(&mut self, sent: &[u8], bytes: &mut [u8]) -> Option<usize> {
        self.socket.send(sent).ok()?;
        self.up += sent.len() as u64;
        let got = self.socket.recv(bytes).ok()?;
        self.down += got as u64;
        Some(got)
    }
}

fn config(name: &str, gateway: SocketAddr, endpoint: &str, word: &str) -> String {
    let endpoint = endpoint.parse().expect("an address");
    listener(name, "UDP", gateway, "")
        + &route(name, name, &[(name, 1)], "")
        + &backend(name, [endpoint], &format!("fast_path = \"{word}\""))
}

fn promotions(metrics: &Metrics) -> u64 {
    metrics.value("ringway_fast_path_promotions_total", &[])
}

fn carried(gateway: &Gateway) -> u64 {
    gateway.metrics().value("ringway_fast_path_datagrams_total", &[])
}

fn flows(gateway: &Gateway) -> u64 {
    gateway.metrics().series("ringway_fast_path_flows").iter().sum()
}

fn demotions(gateway: &Gateway, reason: &str) -> u64 {
    gateway.metrics().value("ringway_fast_path_demotions_total", &[("reason", reason)])
}

/// The addresses of the gateway, and of two servers, for each IP version.
fn places() -> [(SocketAddr, [&'static str; 2]); 2] {
    let port = free_port();
    let at = |ip: &str| SocketAddr::new(ip.parse().expect("an address"), port);
    [
        (at("10.1.0.1"), ["10.2.0.2:9000", "10.2.0.2:9001"]),
        (at("fd01::1"), ["[fd02::2]:9000", "[fd02::2]:9001"]),
    ]
}

/// For IPv4 and for IPv6, each in a network of its own.
fn for_both_versions(test: impl Fn(usize) + Copy + Send + 'static) {
    for version in 0..2 {
        eprintln!("IPv{}", [4, 6][version]);
        in_own_network(move || test(version));
    }
}

/// A gateway whose listener has one promoted flow, and what stands around it.
struct Game {
    world: World,
    at: SocketAddr,
    endpoints: Vec<&'static str>,
    gateway: Gateway,
    servers: Vec<Server>,
    player: Player,
}

impl Game {
    /// `options`: keys of the listener.
    fn promoted(options: &str, endpoints: usize) -> Self {
        Self::in_version(0, options, endpoints)
    }

    fn in_version(version: usize, options: &str, endpoints: usize) -> Self {
        let world = World::new();
        let (at, places) = places()[version];
        let endpoints = places[..endpoints].to_vec();
        let servers = (0..).zip(&endpoints).map(|(mark, at)| world.server(at, mark)).collect();
        let gateway = Launch::default().socket().start(&game(at, &endpoints, options, "auto"));
        let mut player = world.player(at);
        player.play(100);
        assert_eq!((promotions(&gateway.metrics()), flows(&gateway)), (1, 1));
        Self { world, at, endpoints, gateway, servers, player }
    }

    fn reload(&self, options: &str, word: &str) {
        self.gateway.reload(&game(self.at, &self.endpoints, options, word));
    }

    /// Row of the flow in `ringway flows`.
    fn row(&self) -> serde_json::Value {
        let rows = self.gateway.asks(&["flows"]);
        assert_eq!(rows.as_array().map(Vec::len), Some(1), "{rows}");
        rows[0].clone()
    }
}

fn game(at: SocketAddr, endpoints: &[&str], options: &str, word: &str) -> String {
    let endpoints = endpoints.iter().map(|at| at.parse().expect("an address"));
    listener("main", "UDP", at, options)
        + &route("main", "main", &[("main", 1)], "")
        + &backend("main", endpoints, &format!("fast_path = \"{word}\""))
}
