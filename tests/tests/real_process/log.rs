//! The access log: nothing waits for it, and it accounts for every session.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use nix::sys::signal::Signal;
use ringway_tests::real::config::{backend, forward_as, listener, route};
use ringway_tests::real::{
    Gateway, Launch, LogLine, Server, client_hello, connect, echo, exchange, free_address,
    udp_client, wait_for, was_reset,
};

/// The log goes to a pipe that nobody reads: traffic does not stop, lines are dropped and counted,
/// and the process ends when it is told to.
#[test]
fn blocked_log_stops_nothing() {
    let server = Server::udp_echo();
    let (address, tcp) = (free_address(), Server::tcp(echo));
    // The port of a flow that is over is the next one's soon: there are many, one behind the other.
    let config = listener("udp", "UDP", address, "responses = 1")
        + &route("udp", "udp", &[("udp", 1)], "")
        + &backend("udp", [server.address], "upstream_rest = \"100ms\"")
        + &forward_as("tcp", "TCP", address, [tcp.address], "");
    let mut gateway = Launch::default().blocked_log().start(&config);
    let dropped = || gateway.metrics().value("ringway_log_lines_dropped_total", &[]);
    // Every flow is a line; the queues before the pipe take some ten thousands of them.
    let (mut flows, sockets) = (0, [(); 20].map(|()| udp_client(address)));
    let mut answer = [0; 16];
    while flows % 1000 != 0 || dropped() == 0 {
        sockets.iter().for_each(|socket| _ = socket.send(b"question").expect("sent"));
        sockets.iter().for_each(|socket| _ = socket.recv(&mut answer).expect("an answer"));
        flows += sockets.len();
        assert!(flows < 1_000_000, "a million lines, and none was dropped");
    }
    eprintln!("{} of {flows} lines dropped", dropped());
    for _ in 0..100 {
        assert_eq!(exchange(address, b"goes on").expect("an echo"), b"goes on");
    }
    gateway.signal(Signal::SIGTERM);
    let status = wait_for("the gateway's end", || gateway.ended());
    assert!(status.success(), "{status}");
}

/// Every session and flow has one close line, whatever became of it, and the metrics agree.
#[test]
fn log_and_metrics_account_for_every_session() {
    let (tcp, udp) = (Server::tcp(echo), Server::udp_echo());
    let (address, tls, dead) = (free_address(), free_address(), free_address());
    let config = listener("tcp", "TCP", address, "")
        + &listener("udp", "UDP", address, "responses = 1")
        + &listener("tls", "TLS", tls, "")
        + &listener("dead", "TCP", dead, "")
        + &route("tcp", "tcp", &[("tcp", 1)], "")
        + &route("udp", "udp", &[("udp", 1)], "")
        + &route("tls", "tls", &[("tcp", 1)], "hostnames = [\"a.example.com\"]")
        + &route("dead", "dead", &[("dead", 1)], "")
        + &backend("tcp", [tcp.address], "")
        + &backend("udp", [udp.address], "")
        + &backend("dead", [free_address()], "");
    let gateway = Gateway::start(&config);
    for _ in 0..200 {
        assert_eq!(exchange(address, b"counted").expect("an echo"), b"counted");
        let (socket, mut answer) = (udp_client(address), [0; 16]);
        socket.send(b"datagram").expect("sent");
        socket.recv(&mut answer).expect("an echo");
        let hello = client_hello(Some("a.example.com"));
        assert_eq!(exchange(tls, &hello).expect("an echo"), hello);
    }
    // Few enough that none of these lines is held back.
    for _ in 0..3 {
        assert!(was_reset(&mut connect(dead)));
    }
    let lines = gateway.closes(603);
    let counts = complete_lines_by_reason(&lines);
    let bytes = |name: &str, field: &str| -> u64 {
        let of = lines.iter().filter(|line| line.text("listener") == Some(name));
        of.map(|line| line.number(field)).sum()
    };
    assert_eq!((bytes("tcp", "bytes_up"), bytes("tcp", "bytes_down")), (1400, 1400));
    assert_eq!((bytes("udp", "bytes_up"), bytes("udp", "bytes_down")), (1600, 1600));
    let metrics = gateway.metrics();
    for ((name, reason), count) in &counts {
        let labels = [("listener", name.as_str()), ("reason", reason.as_str())];
        let counted: u64 = [
            "ringway_sessions_closed_total",
            "ringway_sessions_refused_total",
            "ringway_flows_closed_total",
            "ringway_flows_refused_total",
        ]
        .iter()
        .map(|metric| metrics.value(metric, &labels))
        .sum();
        assert_eq!(counted, *count, "{name} {reason}");
    }
    assert_eq!(metrics.value("ringway_connections_accepted_total", &[]), 403);
    assert_eq!(metrics.value("ringway_sessions_active", &[]), 0);
    assert_eq!(metrics.value("ringway_flows_active", &[]), 0);
    for (listener, each) in [("tcp", 7), ("tls", client_hello(Some("a.example.com")).len() as u64)]
    {
        for side in ["client", "endpoint"] {
            let labels = [("listener", listener), ("side", side)];
            assert_eq!(metrics.value("ringway_relayed_bytes_total", &labels), 200 * each);
        }
    }
    assert_eq!(gateway.stop().len(), 603, "a line came late or twice");
}

/// Checks that each line has all its fields; counts them by listener and reason.
fn complete_lines_by_reason(lines: &[LogLine]) -> BTreeMap<(String, String), u64> {
    let mut counts: BTreeMap<(String, String), u64> = BTreeMap::new();
    for line in lines {
        let name = line.text("listener").expect("a listener").to_owned();
        let reason = line.text("reason").expect("a reason").to_owned();
        *counts.entry((name, reason)).or_default() += 1;
        for field in ["ts", "event", "protocol", "client", "local", "route", "backend"] {
            assert!(line.has(field), "no {field}: {line:?}");
        }
        for field in ["endpoint", "bytes_up", "bytes_down", "duration_ms", "worker"] {
            assert!(line.has(field), "no {field}: {line:?}");
        }
        assert!(line.text("client").is_some_and(|at| at.parse::<SocketAddr>().is_ok()));
    }
    counts
}

/// The lines of the gateway's own log, with `how` in front of the program in a shell.
fn own_log(how: &str) -> String {
    let gateway = Launch::default().under(&["sh", "-c", how]).start("");
    gateway.says("ready: ");
    gateway.stderr()
}

#[test]
fn the_own_log_is_json_or_for_the_journal_where_that_is_asked_for() {
    let json = own_log("exec \"$0\" --log-format json \"$@\"");
    for line in json.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect(line);
        assert!(["INFO", "WARN"].contains(&line["level"].as_str().expect("a level")), "{line}");
        assert!(line["timestamp"].is_string() && line["message"].is_string(), "{line}");
    }
    assert!(json.lines().count() >= 2, "{json}");
    // systemd names the stream; what it gave to another process is none of this one's.
    let journal = own_log("JOURNAL_STREAM=$(stat -Lc %d:%i /dev/stderr) exec \"$0\" \"$@\"");
    assert!(
        journal.lines().all(|line| line.starts_with("<6>") || line.starts_with("<4>")),
        "{journal}"
    );
    let other = own_log("JOURNAL_STREAM=1:2 exec \"$0\" \"$@\"");
    assert!(
        other.lines().all(|line| line.contains(" INFO ") || line.contains(" WARN ")),
        "{other}"
    );
}
