//! Chaos: clients, the gateway and endpoints in network namespaces of their own, cables that lose,
//! delay and reorder frames, an MTU of 1,280 bytes towards clients, endpoints that are killed,
//! frozen and slow, sides that reset, and resets that no side has sent. Every byte is checked, and
//! in the end the metrics must be the sum of the log. A second storm has upgrades in it, and the
//! log of all processes must fit what clients and endpoints saw. Needs root.
//!
//! `RINGWAY_CHAOS_SEED=n` draws the same weather, events and sessions again. The scheduler decides
//! which frame meets which fault. `RINGWAY_CHAOS_SECONDS=n` says how long the storm lasts.

#![expect(clippy::cast_possible_truncation, reason = "the numbers of a test are small")]

mod history;
mod peers;
mod wire;

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use history::{Journal, Outcome, check, counters_are_the_log};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use peers::{Act, Plan, datagram, datagram_of, down, serve, talk, up};
use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{
    Daemon, Folder, Gateway, Launch, LogLine, Namespace, SetWhenDropped, amount, free_port,
    in_own_network, now, program, seed, wait_until,
};
use ringway_tests::sim::rng::Rng;
use wire::{Weather, Wire};

const CLIENTS: u64 = 20;
const GAMERS: u64 = 6;
const ENDPOINTS: [&str; 3] = ["10.2.0.2:9000", "10.2.0.2:9001", "10.2.0.2:9002"];

/// What an endpoint's process runs: the test below starts it.
#[test]
#[ignore = "it serves until it is killed"]
fn endpoint() {
    let variable = |name| std::env::var(name).ok();
    let (Some(at), Some(journal)) = (variable("CHAOS_ENDPOINT"), variable("CHAOS_JOURNAL")) else {
        panic!("CHAOS_ENDPOINT and CHAOS_JOURNAL say where it serves, and what it writes");
    };
    serve(at.parse().expect("an address"), &journal);
}

#[test]
fn nobody_gets_a_wrong_byte_and_the_counters_are_the_log() {
    in_own_network(|| storm(false));
}

/// One process follows the other meanwhile. Counters begin at 0 in each, so nobody compares them.
#[test]
fn nobody_gets_a_wrong_byte_through_upgrades() {
    in_own_network(|| storm(true));
}

/// What clients and the test share.
struct Shared {
    over: AtomicBool,
    next: AtomicU64,
    tcp: SocketAddr,
    udp: SocketAddr,
    outcomes: Mutex<Vec<Outcome>>,
    asked: AtomicU64,
    answered: AtomicU64,
}

struct World {
    clients: Namespace,
    servers: Namespace,
    wires: [Wire; 2],
    /// Where the cables are.
    _between: Namespace,
}

impl World {
    fn new(rng: &mut Rng) -> Self {
        let (between, clients, servers) = (Namespace::new(), Namespace::new(), Namespace::new());
        let seeds = [rng.number(), rng.number()];
        let mut wires = Vec::new();
        for (nth, (side, mtu)) in [(&clients, "1280"), (&servers, "1500")].into_iter().enumerate() {
            let (name, network) = (["clients", "servers"][nth], ["10.1.0", "10.2.0"][nth]);
            let (near, far) = (["near0", "near1"][nth], ["far0", "far1"][nth]);
            pair(name, near, between.tid(), mtu);
            program("ip", &["address", "add", &format!("{network}.1/24"), "dev", name]);
            program("ip", &["link", "set", name, "up"]);
            let tid = side.tid().to_owned();
            let seed = seeds[nth];
            let wire = between.run(move || {
                pair(far, "eth0", &tid, mtu);
                program("ip", &["link", "set", near, "up"]);
                program("ip", &["link", "set", far, "up"]);
                Wire::between([near, far], seed)
            });
            wires.push(wire);
            side.run(move || {
                program("ip", &["address", "add", &format!("{network}.2/24"), "dev", "eth0"]);
                program("ip", &["link", "set", "eth0", "up"]);
                program("ip", &["route", "add", "default", "via", &format!("{network}.1")]);
                let nft = "add table inet chaos; \
                    add chain inet chaos in { type filter hook input priority 0; }";
                program("nft", &[nft]);
            });
        }
        let wires = wires.try_into().expect("two");
        Self { clients, servers, wires, _between: between }
    }

    /// Resets a share of the packets from the gateway, without a word to who is reset.
    fn injects(&self, one_of: Option<u64>) {
        for (side, port) in [(&self.clients, "sport"), (&self.servers, "dport")] {
            side.run(move || {
                program("nft", &["flush chain inet chaos in"]);
                let Some(one_of) = one_of else { return };
                let rule = format!(
                    "add rule inet chaos in tcp {port} 9000-29999 numgen random mod {one_of} == 0 \
                     reject with tcp reset"
                );
                program("nft", &[&rule]);
            });
        }
    }
}

/// Two interfaces that are joined. The other one is in the namespace of a thread. No frame is
/// larger than the MTU, as if the interfaces could not divide segments.
fn pair(name: &str, other: &str, tid: &str, mtu: &str) {
    let sizes = ["mtu", mtu, "gso_max_segs", "1"];
    let own = ["link", "add", name];
    let peer = ["type", "veth", "peer", "name", other, "netns", tid];
    program("ip", &[&own[..], &sizes, &peer, &sizes].concat());
}

/// An endpoint's process, which may be killed and come again.
fn start(servers: &Namespace, at: &'static str, journal: String) -> Daemon {
    servers.run(move || {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--ignored", "--exact", "endpoint"]);
        command.env("CHAOS_ENDPOINT", at).env("CHAOS_JOURNAL", journal);
        let address = at.parse().expect("an address");
        Daemon::start(address, &mut command)
    })
}

fn config(tcp: SocketAddr, udp: SocketAddr, endpoints: usize) -> String {
    let limits = "limits = { bulk_bytes = 65_536, pipes = 6 }\n";
    let tcp_keys =
        "idle_timeout = \"8s\"\nhalf_close_timeout = \"8s\"\nwrite_stall_timeout = \"8s\"";
    let to = || ENDPOINTS[..endpoints].iter().map(|at| at.parse().expect("an address"));
    limits.to_owned()
        + &listener("tcp", "TCP", tcp, tcp_keys)
        + &listener("udp", "UDP", udp, "flow_timeout = \"1s\"")
        + &route("tcp", "tcp", &[("tcp", 1)], "")
        + &route("udp", "udp", &[("udp", 1)], "")
        + &backend("tcp", to(), "connect_timeout = \"2s\"")
        + &backend("udp", to(), "")
}

fn storm(has_upgrades: bool) {
    let mut rng = Rng::new(seed("RINGWAY_CHAOS_SEED"));
    let span = Duration::from_secs(amount("RINGWAY_CHAOS_SECONDS", 10, 240));
    let (world, folder) = (World::new(&mut rng), Folder::new());
    let path = folder.file("journal");
    let journal = path.display().to_string();
    let mut endpoints: Vec<_> =
        ENDPOINTS.iter().map(|at| Some(start(&world.servers, at, journal.clone()))).collect();
    let address = || SocketAddr::from(([10, 1, 0, 1], free_port()));
    let (tcp, udp) = (address(), address());
    let gateway = Launch::default().socket().start(&config(tcp, udp, 3));
    let reload = |endpoints| {
        gateway.write(&config(tcp, udp, endpoints));
        gateway.asks(&["reload"]);
    };
    let mut upgrades = 0;
    let shared = Arc::new(Shared {
        over: AtomicBool::new(false),
        next: AtomicU64::new(1),
        tcp,
        udp,
        outcomes: Mutex::new(Vec::new()),
        asked: AtomicU64::new(0),
        answered: AtomicU64::new(0),
    });
    let threads = {
        let _over = SetWhenDropped(&shared.over);
        let threads = begin(&world.clients, &shared, rng.number());
        let began = now();
        while began.elapsed() < span {
            change(&mut rng, &world);
            happen(&mut rng, &world, (&mut endpoints[..], &journal[..]), reload);
            if has_upgrades {
                gateway.asks(&["upgrade"]);
                upgrades += 1;
            }
        }
        threads
    };
    calm(&world);
    threads.into_iter().for_each(|thread| thread.join().expect("a client saw a fault"));
    all_is_well_again(&world, &shared, &gateway);
    let log = if has_upgrades { log_of_line(&gateway) } else { counters_are_the_log(&gateway).1 };
    let outcomes = shared.outcomes.lock().expect("whole");
    let tally = check(&outcomes, &Journal::read(&path), &log);
    let metrics = gateway.metrics();
    let weather = world.wires.each_ref().map(|wire| {
        let of = |count: &AtomicU64| count.load(SeqCst);
        let Weather { passed, lost, overtook, .. } = &*wire.weather;
        (of(passed), of(lost), of(overtook))
    });
    eprintln!(
        "{tally:?}; frames (passed, lost, overtook) {weather:?}; datagrams {} asked, {} answered; \
         spliced {} bytes; {upgrades} upgrades",
        shared.asked.load(SeqCst),
        shared.answered.load(SeqCst),
        metrics.value("ringway_spliced_bytes_total", &[])
    );
    assert!(tally.whole * 4 > tally.sessions, "{tally:?}");
    assert!(shared.answered.load(SeqCst) * 2 > shared.asked.load(SeqCst));
    if has_upgrades {
        end_line(&gateway);
    } else {
        gateway.stop();
    }
}

/// The process that serves is another one than was started.
fn end_line(gateway: &Gateway) {
    let [last] = gateway.line()[..] else { panic!("one process: {:?}", gateway.line()) };
    let last = Pid::from_raw(i32::try_from(last).expect("a process id"));
    kill(last, Signal::SIGTERM).expect("it lives");
    wait_until("the last process has ended", || gateway.line().is_empty());
}

/// Waits until nothing lives in any process, and returns the log of all.
fn log_of_line(gateway: &Gateway) -> Vec<LogLine> {
    wait_until("all sessions and flows have ended", || {
        let metrics = gateway.metrics();
        let lives = |name| metrics.value(name, &[]) > 0;
        gateway.line().len() == 1
            && !lives("ringway_sessions_active")
            && !lives("ringway_flows_active")
    });
    // A thread of its own writes a line a moment after the worker has counted.
    let mut log = gateway.log();
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let before = std::mem::replace(&mut log, gateway.log()).len();
        if log.len() == before {
            return log;
        }
    }
}

/// Starts the clients.
fn begin(clients: &Namespace, shared: &Arc<Shared>, seed: u64) -> Vec<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    clients.run(move || {
        let spawn = |nth: u64, work: fn(&Shared, Rng)| {
            let (shared, rng) = (Arc::clone(&shared), Rng::new(seed.wrapping_add(nth)));
            std::thread::spawn(move || work(&shared, rng))
        };
        let talking = (0..CLIENTS).map(|nth| spawn(nth, talks));
        talking.chain((CLIENTS..CLIENTS + GAMERS).map(|nth| spawn(nth, plays))).collect()
    })
}

fn talks(shared: &Shared, mut rng: Rng) {
    while !shared.over.load(SeqCst) {
        let plan = Plan::draw(&mut rng, shared.next.fetch_add(1, SeqCst));
        let seen = talk(plan, shared.tcp);
        shared.outcomes.lock().expect("whole").push(Outcome { plan, seen });
        std::thread::sleep(Duration::from_millis(rng.below(20)));
    }
}

/// One flow after the other. Each reply must belong to a datagram of this client, and come once.
fn plays(shared: &Shared, mut rng: Rng) {
    while !shared.over.load(SeqCst) {
        let id = shared.next.fetch_add(1, SeqCst);
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
        socket.connect(shared.udp).expect("a route");
        socket.set_read_timeout(Some(Duration::from_millis(10))).expect("a timeout");
        let (mut waited, mut buffer) = (BTreeSet::new(), [0; 2_048]);
        let count = 1 + rng.below(60);
        for number in 0..count + 10 {
            if number < count {
                // Some do not fit a frame.
                let len = 16 + rng.below(1_400) as usize;
                waited.insert(number);
                shared.asked.fetch_add(1, SeqCst);
                // An earlier one may have been refused: a killed endpoint.
                let _ = socket.send(&datagram(id, number, len, up));
            }
            while let Ok(len) = socket.recv(&mut buffer) {
                let heard = datagram_of(&buffer[..len], down).expect("bytes that belong together");
                assert_eq!(heard.0, id, "another client's datagram");
                assert!(waited.remove(&heard.1), "{heard:?} came twice, or was never asked");
                shared.answered.fetch_add(1, SeqCst);
            }
        }
    }
}

/// Draws the weather of the next second.
fn change(rng: &mut Rng, world: &World) {
    for wire in &world.wires {
        let weather = &wire.weather;
        weather.loss.store([0, 50, 200, 500][rng.below(4) as usize], SeqCst);
        weather.delay.store([0, 1_000, 5_000, 20_000][rng.below(4) as usize], SeqCst);
        weather.jitter.store([0, 0, 2_000, 10_000][rng.below(4) as usize], SeqCst);
    }
    world.injects((rng.below(3) == 0).then(|| 200 + rng.below(800)));
}

/// Something happens to an endpoint, or to the configuration, and a second goes by.
fn happen(
    rng: &mut Rng,
    world: &World,
    (endpoints, journal): (&mut [Option<Daemon>], &str),
    reload: impl Fn(usize),
) {
    let nth = rng.below(endpoints.len() as u64) as usize;
    let pause = |millis| std::thread::sleep(Duration::from_millis(millis));
    match rng.below(4) {
        0 => {
            if let Some(killed) = endpoints[nth].take() {
                killed.signal(Signal::SIGKILL);
            }
            pause(400);
            endpoints[nth] = Some(start(&world.servers, ENDPOINTS[nth], journal.to_owned()));
            pause(500);
        }
        1 => {
            let frozen = endpoints[nth].as_ref().expect("it runs");
            frozen.signal(Signal::SIGSTOP);
            pause(700);
            frozen.signal(Signal::SIGCONT);
            pause(300);
        }
        2 => {
            reload(2);
            pause(500);
            reload(3);
            pause(500);
        }
        _ => pause(1_000),
    }
}

fn calm(world: &World) {
    for wire in &world.wires {
        let Weather { loss, delay, jitter, .. } = &*wire.weather;
        [loss, delay, jitter].into_iter().for_each(|of| of.store(0, SeqCst));
    }
    world.injects(None);
}

/// After the storm each session is whole.
fn all_is_well_again(world: &World, shared: &Arc<Shared>, gateway: &Gateway) {
    let its = Arc::clone(shared);
    let outcomes = world.clients.run(move || {
        let mut outcomes = Vec::new();
        for _ in 0..20 {
            let id = its.next.fetch_add(1, SeqCst);
            let plan =
                Plan { id, up: 100_000, down: 100_000, client: Act::Whole, endpoint: Act::Whole };
            outcomes.push(Outcome { plan, seen: talk(plan, its.tcp) });
        }
        outcomes
    });
    for Outcome { plan, seen } in &outcomes {
        let (client, end) =
            seen.map_or((None, None), |(client, seen)| (Some(client), Some(seen.end)));
        let client = client.map(|client| client.to_string());
        let log =
            || gateway.closes(1).into_iter().filter(|of| of.text("client") == client.as_deref());
        let log: Vec<_> = if end == Some(peers::End::Clean) { Vec::new() } else { log().collect() };
        assert_eq!(end, Some(peers::End::Clean), "after the storm: {plan:?} {seen:?} {log:?}");
    }
    shared.outcomes.lock().expect("whole").extend(outcomes);
}
