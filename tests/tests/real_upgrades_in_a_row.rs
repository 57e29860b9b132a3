//! Upgrades, one after the other, under PostgreSQL, Redis, iperf3 and a thousand idle sessions: no
//! session is lost, and the longest pause of one is printed, beside the longest without upgrades.
//! `RINGWAY_UPGRADES=n` says how many upgrades. `tests/run --long` has twenty.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{
    Daemon, Gateway, Launch, LogLine, Postgres, Server, SetWhenDropped, amount, connect, echo,
    free_address, now, program, wait_until,
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

fn start(ends: [(&str, SocketAddr, SocketAddr); 5]) -> Gateway {
    let parts = ends.map(|(name, from, to)| {
        listener(name, "TCP", from, "")
            + &route(name, name, &[(name, 1)], "")
            + &backend(name, [to], "")
    });
    Launch::default().socket().start(&("drain_timeout = \"300s\"\n".to_owned() + &parts.concat()))
}

/// Upgrades, and waits until the process before has ended: all its sessions have gone to the next.
fn upgrade(gateway: &Gateway) {
    gateway.asks(&["upgrade"]);
    wait_until("all sessions have gone", || gateway.line().len() == 1);
}

#[test]
fn no_session_is_lost_in_upgrades_in_a_row() {
    let rounds = amount("RINGWAY_UPGRADES", 5, 20);
    let (echoes, postgres) = (Server::tcp(echo), Postgres::start(&[]));
    let [redis_at, up_at, down_at] = [(); 3].map(|()| free_address());
    let _redis = redis(redis_at);
    let [at_echo, at_postgres, at_redis, at_up, at_down] = [(); 5].map(|()| free_address());
    let gateway = start([
        ("echo", at_echo, echoes.address),
        ("postgres", at_postgres, postgres.address),
        ("redis", at_redis, redis_at),
        ("up", at_up, up_at),
        ("down", at_down, down_at),
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
    let waits = std::thread::scope(|scope| {
        let _over = SetWhenDropped(&over);
        let asking: Vec<_> =
            (0..ASKING).map(|_| scope.spawn(|| ask_until(&over, &upgrading, at_echo))).collect();
        let over = &over;
        let loads = [
            scope.spawn(move || again_until(over, sql)),
            scope.spawn(move || again_until(over, redis)),
            scope.spawn(move || again_until(over, || iperf3(up_at, at_up, "-4"))),
            scope.spawn(move || again_until(over, || iperf3(down_at, at_down, "-R"))),
        ];
        std::thread::sleep(Duration::from_secs(2));
        upgrading.store(true, SeqCst);
        for round in 0..rounds {
            std::thread::sleep(Duration::from_millis(100));
            upgrade(&gateway);
            let status = gateway.asks(&["status"]);
            let taken = status["upgrade"]["taken_over"].as_u64().expect("a number");
            assert!(taken >= (IDLE + ASKING) as u64, "round {round}: {taken}");
        }
        over.store(true, SeqCst);
        for load in loads {
            let (count, printed) = load.join().expect("it ends well");
            let failed = printed.lines().find(|line| line.contains("failed transactions"));
            assert!(failed.is_none_or(|line| line.contains(": 0 ")), "{count}: {printed}");
        }
        asking.into_iter().map(|asks| asks.join().expect("all are answered")).collect::<Vec<_>>()
    });
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
