//! Processes that end while the kernel forwards their flows: killed, and replaced by upgrades.

use std::io::{ErrorKind, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringway_tests::real::config::listener;
use ringway_tests::real::{
    Gateway, Imposter, Launch, Metrics, SetWhenDropped, connect, free_address, in_own_network,
    wait_until,
};

use crate::{World, carried, config, demotions, flows, places, promotions};

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

/// Datagrams that workers have forwarded, both ways.
fn by_workers(metrics: &Metrics) -> u64 {
    let received = |side| metrics.value("ringway_datagrams_received_total", &[("side", side)]);
    let carried = metrics.value("ringway_fast_path_datagrams_total", &[]);
    (received("client") + received("endpoint")).saturating_sub(carried)
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
