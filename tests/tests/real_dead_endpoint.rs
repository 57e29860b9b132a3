//! Endpoints that vanish without a word: the gateway and a server, each in a network namespace of
//! its own. Needs root.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{
    Gateway, Namespace, Server, connect, echo, free_port, in_own_network, program, wait_until,
};

/// `RINGWAY_USER_TIMEOUT=default` measures the default, which takes a minute.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the time that a session takes to end is what is tested"
)]
fn bytes_that_a_dead_endpoint_never_acknowledges_end_the_session() {
    in_own_network(|| {
        let by_default = std::env::var("RINGWAY_USER_TIMEOUT").is_ok_and(|word| word == "default");
        let (keys, within) = match by_default {
            true => ("", 55..=75),
            false => ("user_timeout = \"2s\"", 2..=10),
        };
        let servers = Namespace::new();
        servers.join("servers", "10.2.0", "fd02");
        let at: SocketAddr = "10.2.0.2:9000".parse().expect("an address");
        let server = servers.run(move || Server::tcp_at(at, echo));
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let config = listener("main", "TCP", address, "")
            + &route("main", "main", &[("main", 1)], "")
            + &backend("main", [server.address], keys);
        let gateway = Gateway::start(&config);
        for (nth, [vanishes, returns]) in WAYS.into_iter().enumerate() {
            let (mut client, mut answer) = (connect(address), [0; 5]);
            client.write_all(b"alive").expect("the gateway takes it");
            client.read_exact(&mut answer).expect("the endpoint answers");

            servers.run(move || program("sh", &["-c", vanishes]));
            let began = Instant::now();
            client.write_all(b"alive").expect("the gateway takes it");
            client.set_read_timeout(Some(Duration::from_secs(90))).expect("a timeout");
            assert!(client.read_exact(&mut answer).is_err(), "nobody answers");
            let took = began.elapsed().as_secs();
            assert!(within.contains(&took), "{vanishes}: {took} s");
            wait_until("the session's end is logged", || {
                let log = gateway.log();
                let reasons = log.iter().filter_map(|line| line.text("reason"));
                reasons.filter(|reason| *reason == "endpoint_timed_out").count() == nth + 1
            });
            eprintln!("{vanishes}: the session ended after {:?}", began.elapsed());
            servers.run(move || program("sh", &["-c", returns]));
        }
    });
}

/// How the machine of the endpoint falls silent, and speaks again: its packets are dropped, or its
/// interface is down.
const WAYS: [[&str; 2]; 2] = [
    [
        "nft 'add table inet t; add chain inet t in { type filter hook input priority 0; policy \
         drop; }'",
        "nft 'delete table inet t'",
    ],
    ["ip link set eth0 down", "true"],
];
