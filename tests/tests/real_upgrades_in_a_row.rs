//! Upgrades, one after the other, under PostgreSQL, Redis, iperf3, DNS, the UDP flows of a game and
//! a thousand idle sessions: no session, no query and no datagram is lost, no datagram comes to a
//! wrong client, and the longest pause of a session is printed, beside the longest without
//! upgrades. `RINGWAY_UPGRADES=n` says how many upgrades, and `RINGWAY_UPGRADE_FLOWS=n` how many
//! flows. `tests/run --long` has 20 and 2,000.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use ringway_tests::real::config::forward_as;
use ringway_tests::real::{
    Daemon, Gateway, Launch, LogLine, Nsd, Player, Postgres, Server, SetWhenDropped, amount,
    connect, echo, free_address, now, play, program, wait_until, witness,
};

const IDLE: usize = 1_000;
const ASKING: usize = 4;

fn ask(mut client: &TcpStream, word: &[u8]) {
    client.write_all(word).expect("the session lives");
    let mut answer = vec![0; word.len()];
    client.read_exact(&mut answer).expect("the session lives");
    assert_eq!(answer, word);
}

/// Small messages without pause. Returns how long each answer was waited for, before the first
/// upgrade and since.
fn ask_until(over: &AtomicBool, upgrading: &AtomicBool, address: SocketAddr) -> [Vec<Duration>; 2] {
    let client = connect(address);
    let mut waits = [Vec::new(), Vec::new()];
    while !over.load(SeqCst) {
        let (began, since) = (now(), upgrading.load(SeqCst));
        ask(&client, &(waits[1].len() as u64).to_be_bytes());
        waits[usize::from(since)].push(began.elapsed());
        std::thread::sleep(Duration::from_micros(500));
    }
    waits
}

/// Runs a program again and again until `over`. Returns how often, and what it printed last.
fn again_until(over: &AtomicBool, run: impl Fn() -> String) -> (u32, String) {
    let (mut count, mut printed) = (0, String::new());
    while count == 0 || !over.load(SeqCst) {
        printed = run();
        assert!(!printed.contains("rror"), "{printed}");
        count += 1;
    }
    (count, printed)
}

/// What pgbench prints, if that is among the loads.
fn none_has_failed((count, printed): &(u32, String)) {
    let failed = printed.lines().find(|line| line.contains("failed transactions"));
    assert!(failed.is_none_or(|line| line.contains(": 0 ")), "{count}: {printed}");
}

/// One transfer, with a server of its own.
fn iperf3(server: SocketAddr, through: SocketAddr, way: &str) -> String {
    let _server = Daemon::iperf3(server);
    let port = through.port().to_string();
    // Not all that two processors can: the pause is what is looked at.
    program("iperf3", &["-c", "127.0.0.1", "-p", &port, "-t", "3", "-b", "200M", way])
}

fn redis(at: SocketAddr) -> Daemon {
    let port = at.port().to_string();
    let mut command = Command::new("redis-server");
    Daemon::start(at, command.args(["--port", &port, "--save", "", "--appendonly", "no"]))
}

/// Name, protocol, listener, endpoint, and keys of the listener.
type End<'a> = (&'a str, &'a str, SocketAddr, SocketAddr, &'a str);

fn start(ends: [End<'_>; 7]) -> Gateway {
    let parts =
        ends.map(|(name, protocol, from, to, keys)| forward_as(name, protocol, from, [to], keys));
    Launch::default().socket().start(&("drain_timeout = \"300s\"\n".to_owned() + &parts.concat()))
}

/// Upgrades, and waits until the process before has ended: all its sessions have gone to the next.
/// Returns how many flows have.
fn upgrade(gateway: &Gateway, round: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(100));
    gateway.asks(&["upgrade"]);
    wait_until("all sessions have gone", || gateway.line().len() == 1);
    let status = gateway.asks(&["status"]);
    let taken = |what: &str| status["upgrade"][what].as_u64().expect("a number");
    let sessions = taken("taken_over");
    assert!(sessions >= (IDLE + ASKING) as u64, "round {round}: {sessions}");
    taken("flows_taken_over")
}

#[test]
fn no_session_is_lost_in_upgrades_in_a_row() {
    let rounds = amount("RINGWAY_UPGRADES", 5, 20);
    let flows = usize::try_from(amount("RINGWAY_UPGRADE_FLOWS", 400, 2_000)).expect("few");
    let (echoes, postgres) = (Server::tcp(echo), Postgres::start(&[]));
    let [redis_at, up_at, down_at] = [(); 3].map(|()| free_address());
    let _redis = redis(redis_at);
    let (dns, game) = (Nsd::start(), witness("game"));
    let [at_echo, at_postgres, at_redis, at_up, at_down, at_dns, at_game] =
        [(); 7].map(|()| free_address());
    let gateway = start([
        ("echo", "TCP", at_echo, echoes.address, ""),
        ("postgres", "TCP", at_postgres, postgres.address, ""),
        ("redis", "TCP", at_redis, redis_at, ""),
        ("up", "TCP", at_up, up_at, ""),
        ("down", "TCP", at_down, down_at, ""),
        ("dns", "UDP", at_dns, dns.address, "responses = 1\n"),
        ("game", "UDP", at_game, game.address, "flow_timeout = \"30s\"\n"),
    ]);
    let [to_postgres, to_redis] = [at_postgres, at_redis].map(|at| at.port().to_string());
    let sql = ["-h", "127.0.0.1", "-p", &to_postgres, "-U", "postgres"];
    let pgbench = |words: &[&str]| program("pgbench", &[&sql[..], words].concat());
    pgbench(&["-i", "-q", "postgres"]);
    let redis = ["-h", "127.0.0.1", "-p", &to_redis, "-n", "50000", "-c", "20", "-q"];
    let redis = || program("redis-benchmark", &[&redis[..], &["-t", "get,set"]].concat());
    let sql = || pgbench(&["-c", "4", "-T", "3", "postgres"]);
    let idle: Vec<_> = (0..IDLE).map(|_| connect(at_echo)).collect();
    idle.iter().for_each(|client| ask(client, b"before"));
    let (over, upgrading) = (AtomicBool::new(false), AtomicBool::new(false));
    let (waits, players) = std::thread::scope(|scope| {
        let _over = SetWhenDropped(&over);
        let asking: Vec<_> =
            (0..ASKING).map(|_| scope.spawn(|| ask_until(&over, &upgrading, at_echo))).collect();
        let (over, dns) = (&over, &dns);
        let loads = [
            scope.spawn(move || again_until(over, sql)),
            scope.spawn(move || again_until(over, redis)),
            scope.spawn(move || again_until(over, || iperf3(up_at, at_up, "-4"))),
            scope.spawn(move || again_until(over, || iperf3(down_at, at_down, "-R"))),
            scope.spawn(move || again_until(over, || ask_dns(dns, at_dns))),
        ];
        let half = flows / 2;
        let playing = [0..half, half..flows].map(|of| scope.spawn(move || play(over, at_game, of)));
        wait_until("all flows are there", || {
            let of_game = [("listener", "game")];
            gateway.metrics().value("ringway_flows_active", &of_game) == flows as u64
        });
        std::thread::sleep(Duration::from_secs(2));
        upgrading.store(true, SeqCst);
        let fewest = (0..rounds).map(|round| upgrade(&gateway, round)).min().unwrap_or(0);
        eprintln!("of {flows} flows and those of DNS, {fewest} went along at the least");
        over.store(true, SeqCst);
        loads.into_iter().for_each(|load| none_has_failed(&load.join().expect("it ends well")));
        let players = playing.into_iter().flat_map(|plays| plays.join().expect("it ends well"));
        let players: Vec<_> = players.collect();
        let waits = asking.into_iter().map(|asks| asks.join().expect("all are answered"));
        (waits.collect::<Vec<_>>(), players)
    });
    game_is_whole(&players);
    let (before, since): (Vec<_>, Vec<_>) =
        waits.into_iter().map(|[before, since]| (before, since)).unzip();
    report("before", before.concat());
    report(&format!("over {rounds} upgrades"), since.concat());
    idle.iter().for_each(|client| ask(client, b"after"));
    drop(idle);
    wait_until("all sessions have ended", || {
        gateway.metrics().value("ringway_sessions_active", &[]) == 0
    });
    ends_are_clean(&gateway);
}

/// Each query must be answered, whoever serves. dnsperf waits 5 s.
fn ask_dns(dns: &Nsd, through: SocketAddr) -> String {
    let asked = dns.dnsperf(through, "udp", &["-Q", "1000", "-c", "4", "-l", "3"]);
    format!("{asked} queries")
}

/// Every datagram has come back, to its own client.
fn game_is_whole(players: &[Player]) {
    let sum = |of: fn(&Player) -> u64| players.iter().map(of).sum::<u64>();
    let (sent, heard) = (sum(|player| player.sent), sum(|player| player.heard));
    let moves = sum(|player| player.moves);
    eprintln!("{} flows: {sent} sent, {heard} heard, {moves} new ports", players.len());
    assert_eq!(sent, heard, "datagrams were lost");
}

fn ends_are_clean(gateway: &Gateway) {
    wait_until("each has a line, of a clean end", || {
        let log = gateway.log();
        let of_echo = log.iter().filter(|line| line.text("listener") == Some("echo"));
        of_echo.filter(|line| line.text("reason") == Some("client_fin")).count() == IDLE + ASKING
    });
    // Transfers of iperf3 end as they like, by resets too; iperf3 says whether they were whole.
    let cut = |line: &LogLine| {
        line.text("reason").is_some_and(|reason| !reason.ends_with("_fin"))
            && ["echo", "postgres", "redis"].map(Some).contains(&line.text("listener"))
    };
    let cut: Vec<_> = gateway.log().into_iter().filter(cut).collect();
    assert!(cut.is_empty(), "{cut:?}");
}

fn report(when: &str, mut waits: Vec<Duration>) {
    waits.sort_unstable();
    let at = |share: usize| waits[(waits.len() - 1) * share / 10_000].as_micros();
    eprintln!(
        "{when}: {} answers: half within {} us, 99 % within {} us, 99.99 % within {} \
         us, the longest wait {} us",
        waits.len(),
        at(5_000),
        at(9_900),
        at(9_999),
        at(10_000)
    );
}
