//! UDP flows that the kernel forwards: a client, the gateway and servers, each in a network
//! namespace of its own. Needs root, and rights to BPF.

mod clsact;
mod packets;
mod replies;
mod scenarios;

use std::io::{ErrorKind, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::in_kernel::FORWARDING;
use ringway_tests::real::{
    Folder, Gateway, Imposter, Launch, Metrics, Namespace, Server, SetWhenDropped, binary, connect,
    free_address, free_port, in_own_network, now, program, wait_until,
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

/// Datagrams that workers have forwarded, both ways.
fn by_workers(metrics: &Metrics) -> u64 {
    let received = |side| metrics.value("ringway_datagrams_received_total", &[("side", side)]);
    let carried = metrics.value("ringway_fast_path_datagrams_total", &[]);
    (received("client") + received("endpoint")).saturating_sub(carried)
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

/// Both IP versions: what the kernel forwards is whole, counted, in the log, and follows a reload.
#[test]
fn long_lived_flows_are_forwarded_in_the_kernel() {
    in_own_network(|| {
        let world = World::new();
        let places = places();
        let config = |endpoint: usize| -> String {
            let of = |(name, (at, servers)): (&&str, &(SocketAddr, [&str; 2]))| {
                config(name, *at, servers[endpoint], "required")
            };
            let both: String = ["four", "six"].iter().zip(&places).map(of).collect();
            format!("lame_duck = \"1s\"\n{both}")
        };
        let servers: Vec<_> = places
            .iter()
            .flat_map(|(_, at)| [world.server(at[0], 0), world.server(at[1], 1)])
            .collect();
        let gateway = Gateway::start(&config(0));
        let mut players: Vec<_> = places.iter().map(|(at, _)| world.player(*at)).collect();
        for player in &mut players {
            assert_eq!(player.play(100), [0]);
        }
        assert_eq!(promotions(&gateway.metrics()), 2);
        assert_eq!(flows(&gateway), 2);
        let served: Vec<_> = servers.iter().map(Server::served).collect();
        for player in &mut players {
            assert_eq!(player.play(1_000), [0]);
        }
        // All but the fragments, which are one of 50 moves, both ways.
        wait_until("the kernel's datagrams were counted", || carried(&gateway) >= 3_900);
        assert_eq!(servers[0].served(), served[0] + 1_000);
        // Counters are right while the flows live.
        let label = |side| [("listener", "four"), ("side", side)];
        let bytes = |side| gateway.metrics().value("ringway_relayed_bytes_total", &label(side));
        let (up, down) = (players[0].up, players[0].down);
        wait_until("bytes", || (bytes("client"), bytes("endpoint")) == (up, down));
        // The endpoints leave: the flows move, on the user path, and are promoted again.
        gateway.reload(&config(1));
        std::thread::sleep(Duration::from_millis(1_100));
        for player in &mut players {
            assert_eq!(player.play(200), [1]);
        }
        assert_eq!(demotions(&gateway, "endpoint_gone"), 2);
        wait_until("both are promoted again", || promotions(&gateway.metrics()) == 4);
        let lines = gateway.stop();
        let lines: Vec<_> = lines.iter().filter(|line| line.text("reason").is_some()).collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        for (name, player) in ["four", "six"].iter().zip(&players) {
            let line = lines.iter().find(|line| line.text("listener") == Some(name));
            let line = line.expect("the flow's line");
            let logged = (line.number("bytes_up"), line.number("bytes_down"));
            assert_eq!(logged, (player.up, player.down), "{name}");
        }
    });
}

/// A flow whose datagrams the kernel forwards is not silent, and ends when it is.
#[test]
fn a_promoted_flow_ends_when_it_is_silent() {
    in_own_network(|| {
        let world = World::new();
        let (at, servers) = places()[0];
        let _server = world.server(servers[0], 0);
        let config = config("main", at, servers[0], "auto");
        let timeout = "protocol = \"UDP\"\nflow_timeout = \"2s\"";
        let gateway = Gateway::start(&config.replace("protocol = \"UDP\"", timeout));
        let mut player = world.player(at);
        for _ in 0..50 {
            player.play(4);
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(flows(&gateway), 1);
        let line = gateway.closed_for("flow_timeout");
        assert_eq!((line.number("bytes_up"), line.number("bytes_down")), (player.up, player.down));
        wait_until("the kernel has forgotten the flow", || flows(&gateway) == 0);
        assert_eq!(player.play(50), [0], "as another flow");
    });
}

/// A gateway that is killed leaves nothing in the kernel that forwards, and the next one starts.
#[test]
fn a_killed_gateway_leaves_no_program() {
    in_own_network(|| {
        let world = World::new();
        let (at, servers) = places()[0];
        let server = world.server(servers[0], 0);
        let config = config("main", at, servers[0], "required");
        let mut gateway = Gateway::start(&config);
        let mut player = world.player(at);
        player.play(200);
        assert_eq!(flows(&gateway), 1);
        gateway.signal(Signal::SIGKILL);
        wait_until("its end", || gateway.ended().is_some());
        let served = server.served();
        player.socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        for _ in 0..10 {
            assert_eq!(player.ask(b"anybody?", &mut [0; 64]), None);
        }
        assert_eq!(server.served(), served, "nothing is forwarded");
        let gateway = Gateway::start(&config);
        let mut player = world.player(at);
        assert_eq!(player.play(200), [0]);
        assert_eq!((promotions(&gateway.metrics()), flows(&gateway)), (1, 1));
    });
}

const PLAYERS: u64 = 20;

/// Fewer datagrams of a flow than those, both ways, after which a worker promotes a new flow.
const FEW: u64 = 16;

/// Players that move all the time, and the gateway between them and their server.
struct Playing<'a> {
    gateway: &'a Gateway,
    longest: &'a AtomicU64,
}

impl Playing<'_> {
    /// The kernel forwards all flows of a process that has begun with them.
    fn is_in_the_kernel(&self, step: &str) {
        wait_until("the kernel forwards all flows", || flows(self.gateway) == PLAYERS);
        let metrics = self.gateway.metrics();
        assert_eq!(promotions(&metrics), PLAYERS, "{step}");
        self.says(step, by_workers(&metrics));
    }

    fn says(&self, step: &str, by_workers: u64) {
        let longest = self.longest.swap(0, Ordering::SeqCst);
        eprintln!("{step}: {by_workers} datagrams by workers, longest wait {longest} us");
        assert!(by_workers < PLAYERS * FEW, "{step}: {by_workers} datagrams by workers");
    }

    fn is_upgraded(&self, step: &str) {
        self.longest.store(0, Ordering::SeqCst);
        self.gateway.asks(&["upgrade"]);
        wait_until("the process before has ended", || self.gateway.line().len() == 1);
        self.is_in_the_kernel(step);
    }

    /// The new process dies when it has all but the last word.
    fn is_upgraded_in_vain(&self) {
        let before = self.gateway.metrics();
        self.longest.store(0, Ordering::SeqCst);
        let (new, _listening) = Imposter::is_ready(self.gateway);
        let adopted = new.adopts_all();
        assert_eq!(adopted.len() as u64, PLAYERS);
        drop((new, adopted));
        let wanted = promotions(&before) + PLAYERS;
        wait_until("the kernel forwards all again", || {
            promotions(&self.gateway.metrics()) == wanted
        });
        let after = self.gateway.metrics();
        self.says("a failed upgrade", by_workers(&after) - by_workers(&before));
        assert_eq!(demotions(self.gateway, "upgrade"), PLAYERS, "each flow has settled once");
    }

    /// After an upgrade the process before is killed, which a session that cannot move has kept.
    fn loses_the_process_before(&self, tcp: SocketAddr) {
        let stuck = fill(tcp);
        let before = self.gateway.line()[0];
        self.longest.store(0, Ordering::SeqCst);
        self.gateway.asks(&["upgrade"]);
        self.is_in_the_kernel("an upgrade that leaves a session");
        assert_eq!(self.gateway.line().len(), 2, "the session does not move");
        let before = Pid::from_raw(i32::try_from(before).expect("a process id"));
        kill(before, Signal::SIGKILL).expect("it lives");
        wait_until("its end", || self.gateway.line().len() == 1);
        let counted = carried(self.gateway);
        wait_until("the kernel goes on", || carried(self.gateway) > counted + 20 * PLAYERS);
        self.is_in_the_kernel("the process before was killed");
        drop(stuck);
    }
}

/// A session whose endpoint reads nothing. It holds bytes.
fn fill(address: SocketAddr) -> TcpStream {
    let mut stream = connect(address);
    stream.set_nonblocking(true).expect("a flag");
    let mut full = 0;
    while full < 50 {
        match stream.write(&[0; 65_536]) {
            Ok(_) => full = 0,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                full += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => panic!("{error}"),
        }
    }
    stream
}

/// Flows that the kernel forwards go through upgrades, failed ones too, and the kernel forwards
/// them again at once. Nobody gets another's answer, none is lost, and the one line of each flow
/// has the bytes that all processes have carried.
#[test]
fn promoted_flows_go_through_upgrades() {
    in_own_network(|| {
        let world = World::new();
        let (at, servers) = places()[0];
        let _server = world.server(servers[0], 0);
        let deaf = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = deaf.local_addr().expect("a bound socket");
        let tcp = free_address();
        let udp = config("main", at, servers[0], "required");
        let gateway = Launch::default().socket().start(
            &("drain_timeout = \"300s\"\n".to_owned()
                + &udp.replace("\"UDP\"", "\"UDP\"\nflow_timeout = \"3s\"")
                + &listener("tcp", "TCP", tcp, &format!("endpoints = [\"{endpoint}\"]\n"))),
        );
        let mut players: Vec<_> = (0..PLAYERS).map(|_| world.player(at)).collect();
        let (over, longest) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let _over = SetWhenDropped(&over);
            for player in &mut players {
                let (over, longest) = (&over, &longest);
                scope.spawn(move || player.play_until(over, longest));
            }
            wait_until("the kernel forwards all flows", || flows(&gateway) == PLAYERS);
            let playing = Playing { gateway: &gateway, longest: &longest };
            playing.is_upgraded("the first upgrade");
            playing.is_upgraded("the second upgrade");
            playing.is_upgraded_in_vain();
            playing.is_upgraded("an upgrade after one that failed");
            playing.loses_the_process_before(tcp);
        });
        let stderr = gateway.stderr();
        stderr.lines().filter(|line| line.contains("waited")).for_each(|line| eprintln!("{line}"));
        let lines = gateway.closes(players.len());
        assert_eq!(lines.len(), players.len(), "{lines:?}");
        for player in players {
            let client = player.address().to_string();
            let line = lines.iter().find(|line| line.text("client") == Some(&client));
            let line = line.expect("the flow's line");
            assert_eq!(line.text("reason"), Some("flow_timeout"), "{line:?}");
            let logged = (line.number("bytes_up"), line.number("bytes_down"));
            assert_eq!(logged, (player.up, player.down), "{line:?}");
        }
    });
}

/// Lets any user write the access log and read the configuration.
const OPENED: &[&str] = &["sh", "-c", r#"chmod 777 "$(dirname "$3")"; exec "$0" "$@""#];

/// The user that root becomes keeps the right to it, and so does the next process.
#[test]
fn another_user_keeps_the_right_to_it() {
    in_own_network(|| {
        let world = World::new();
        let (at, servers) = places()[0];
        let _server = world.server(servers[0], 0);
        let text = "user = \"nobody\"\n".to_owned() + &config("main", at, servers[0], "required");
        let gateway = Launch::default().socket().under(OPENED).start(&text);
        assert_eq!(world.player(at).play(100), [0]);
        assert_eq!(promotions(&gateway.metrics()), 1);
        gateway.asks(&["upgrade"]);
        assert_eq!(world.player(at).play(100), [0]);
        wait_until("the kernel forwards for the next process", || {
            promotions(&gateway.metrics()) > 0
        });
    });
}

/// With `sandbox`, a process that began without the path has no right to load programs, and a
/// reload that asks for the path says so.
#[test]
fn a_reload_brings_it_only_without_the_sandbox() {
    const FORBIDDEN: &str = "this process began without a `fast_path`";
    in_own_network(|| {
        let world = World::new();
        let (at, servers) = places()[0];
        let _server = world.server(servers[0], 0);
        let text = |word| config("main", at, servers[0], word);
        let gateway = Launch::default().socket().start(&text("off"));
        gateway.write(&text("required"));
        let refused = gateway.verb(&["reload"]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success(), "{said}");
        assert!(said.contains("fast_path: \"required\" can't be had"), "{said}");
        assert!(said.contains(FORBIDDEN) && said.contains("`sandbox = false`"), "{said}");
        assert_eq!(world.player(at).play(50), [0], "the configuration before is in force");
        gateway.reload(&text("auto"));
        let warned = format!("workers forward all UDP flows: {FORBIDDEN}");
        assert!(gateway.stderr().contains(&warned), "{}", gateway.stderr());
        assert_eq!(world.player(at).play(100), [0]);
        assert_eq!(promotions(&gateway.metrics()), 0);
        drop(gateway);
        let free = |word| format!("sandbox = false\n{}", text(word));
        let gateway = Gateway::start(&free("off"));
        gateway.reload(&free("required"));
        assert_eq!(world.player(at).play(100), [0]);
        assert_eq!(promotions(&gateway.metrics()), 1);
    });
}

/// Root without the right to BPF, which is a part of CAP_SYS_ADMIN too.
const NO_BPF: [&str; 2] = ["setpriv", "--bounding-set=-cap_39,-sys_admin"];

#[test]
fn without_the_right_to_it_it_says_so() {
    in_own_network(|| {
        let world = World::new();
        let (at, servers) = places()[0];
        let _server = world.server(servers[0], 0);
        let text = |word| config("main", at, servers[0], word);
        let folder = Folder::new();
        let file = folder.write("ringway.toml", &text("required"));
        let started = |wrapper: &[&str]| {
            let output = Command::new(wrapper[0])
                .args(&wrapper[1..])
                .arg(binary())
                .args(["run", "--config"])
                .arg(&file)
                .stdin(Stdio::null())
                .output()
                .expect("starting");
            assert_eq!(output.status.code(), Some(1));
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        let said = started(&NO_BPF);
        assert!(said.contains("fast_path: \"required\" can't be had"), "{said}");
        assert!(said.contains("give it CAP_BPF and CAP_NET_ADMIN"), "{said}");
        program("sh", &["-c", &FORWARDING.replace('1', "0")]);
        let said = started(&["env"]);
        assert!(said.contains("sysctl net.ipv4.conf.lo.forwarding=1"), "{said}");
        program("sh", &["-c", FORWARDING]);
        // Where it is not required, workers forward.
        let gateway = Launch::default().under(&NO_BPF).start(&text("auto"));
        assert!(gateway.stderr().contains("workers forward all UDP flows"), "{}", gateway.stderr());
        assert_eq!(world.player(at).play(100), [0]);
        let metrics = gateway.metrics();
        assert_eq!(promotions(&metrics), 0);
        assert_eq!(metrics.value("ringway_datagrams_received_total", &[("side", "client")]), 100);
    });
}

fn demotions(gateway: &Gateway, reason: &str) -> u64 {
    gateway.metrics().value("ringway_fast_path_demotions_total", &[("reason", reason)])
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

#[test]
fn a_reload_takes_flows_back_and_lists_say_where_they_are() {
    in_own_network(|| {
        let mut game = Game::promoted("", 1);
        assert_eq!(game.row()["state"], "in_kernel");
        // Only the kernel has datagrams for three seconds, and the flow is not idle.
        game.player.all_whole = true;
        for _ in 0..30 {
            game.player.play(1);
            std::thread::sleep(Duration::from_millis(100));
        }
        let idle = || game.row()["idle_ms"].as_u64().expect("a number");
        assert!(idle() < 2_500, "{} ms", idle());
        let bytes = || {
            let (row, metrics) = (game.row(), game.gateway.metrics());
            let of =
                |side| metrics.value("ringway_endpoint_relayed_bytes_total", &[("side", side)]);
            let row = ["bytes_up", "bytes_down"].map(|name| row[name].as_u64());
            (row, [of("client"), of("endpoint")])
        };
        let moved = [game.player.up, game.player.down];
        wait_until("all bytes are counted", || bytes() == (moved.map(Some), moved));
        std::thread::sleep(Duration::from_millis(2_500));
        assert!(idle() >= 1_000, "nobody has sent anything: {} ms", idle());
        game.reload("", "off");
        wait_until("the flow is the worker's", || flows(&game.gateway) == 0);
        assert_eq!(game.row()["state"], "answered");
        let before = carried(&game.gateway);
        game.player.play(200);
        assert_eq!(carried(&game.gateway), before);
        // What counts each datagram is for the worker too.
        game.reload("", "auto");
        let mut second = game.world.player(game.at);
        second.play(100);
        assert_eq!(flows(&game.gateway), 1);
        game.reload("limit_source = { bytes_per_second = 100000000 }", "auto");
        wait_until("this one too", || flows(&game.gateway) == 0);
        second.play(200);
        assert_eq!(demotions(&game.gateway, "configuration"), 2);
    });
}

#[test]
fn a_listener_that_leaves_takes_its_flows_back() {
    in_own_network(|| {
        let mut game = Game::promoted("", 1);
        let other = SocketAddr::new(game.at.ip(), free_port());
        game.gateway.reload(&config("other", other, places()[0].1[0], "auto"));
        wait_until("the flow is the worker's", || flows(&game.gateway) == 0);
        assert_eq!(demotions(&game.gateway, "draining"), 1);
        game.player.play(100);
        let line = game.gateway.closed_for("drained");
        let logged = (line.number("bytes_up"), line.number("bytes_down"));
        assert_eq!(logged, (game.player.up, game.player.down));
    });
}

#[test]
fn an_operator_ends_a_promoted_flow() {
    in_own_network(|| {
        let mut game = Game::promoted("", 1);
        game.player.play(500);
        let killed = game.gateway.verb(&["kill", "--flows", "--listener", "main"]);
        assert!(killed.status.success(), "{killed:?}");
        let line = game.gateway.closed_for("killed");
        let logged = (line.number("bytes_up"), line.number("bytes_down"));
        assert_eq!(logged, (game.player.up, game.player.down));
        assert_eq!((flows(&game.gateway), demotions(&game.gateway, "ended")), (0, 1));
    });
}

/// The endpoint's ICMP comes to the flow's own socket, as on the worker's path.
#[test]
fn a_promoted_flow_leaves_a_closed_port() {
    for_both_versions(|version| {
        let mut game = Game::in_version(version, "", 2);
        let marks = game.player.play(50);
        game.servers.remove(marks[0].into());
        game.player.socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        let mut bytes = [0; 64];
        wait_until("the other endpoint answers", || {
            game.player.ask(b"anybody?", &mut bytes).is_some_and(|_| bytes[0] != marks[0])
        });
        assert_eq!(demotions(&game.gateway, "endpoint_refused"), 1);
        game.player.socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        game.player.play(100);
        wait_until("the flow is promoted again", || promotions(&game.gateway.metrics()) == 2);
    });
}

/// A promoted flow keeps its place within the limit of its source.
#[test]
fn a_promoted_flow_counts_for_its_source() {
    in_own_network(|| {
        let mut game = Game::promoted("flow_timeout = \"2s\"\nlimit_source = { sessions = 1 }", 1);
        let mut second = game.world.player(game.at);
        second.socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        let mut bytes = [0; 64];
        for _ in 0..15 {
            game.player.play(10);
            assert_eq!(second.ask(b"another", &mut bytes), None);
        }
        wait_until("the place is free", || second.ask(b"another", &mut bytes).is_some());
        let lines = game.gateway.log();
        let line = lines.iter().find(|line| line.text("reason") == Some("flow_timeout"));
        assert_eq!(line.expect("its line").number("bytes_up"), game.player.up);
    });
}

/// The kernel answers from the address that the client has sent to.
#[test]
fn flows_of_a_wildcard_listener_are_forwarded() {
    in_own_network(|| {
        let world = World::new();
        program("ip", &["address", "add", "10.1.0.9/24", "dev", "clients"]);
        let (at, places) = places()[0];
        let _server = world.server(places[0], 0);
        let any = SocketAddr::new([0, 0, 0, 0].into(), at.port());
        let gateway = Gateway::start(&game(any, &places[..1], "", "required"));
        // A connected socket hears nothing from another address.
        for address in ["10.1.0.1", "10.1.0.9"] {
            let at = SocketAddr::new(address.parse().expect("an address"), at.port());
            assert_eq!(world.player(at).play(200), [0]);
        }
        assert_eq!((promotions(&gateway.metrics()), flows(&gateway)), (2, 2));
        wait_until("the kernel has forwarded them", || carried(&gateway) > 600);
    });
}
