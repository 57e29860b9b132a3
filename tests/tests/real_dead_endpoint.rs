//! Endpoints that vanish without a word: the gateway and a server, each in a network namespace of
//! its own. Needs root.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{
    Gateway, LogLine, Namespace, Server, connect, echo, free_port, in_own_network, program,
    wait_until,
};

#[test]
fn bytes_that_a_dead_endpoint_never_acknowledges_end_the_session() {
    notices("user_timeout = \"2s\"", 2..=10);
}

/// `tests/run --long` runs it.
#[test]
#[ignore = "it takes two minutes"]
fn without_keys_a_dead_endpoint_is_noticed_in_about_a_minute() {
    notices("", 55..=75);
}

/// A backend with these keys notices a dead endpoint within so many seconds.
#[expect(
    clippy::disallowed_methods,
    reason = "the time that a session takes to end is what is tested"
)]
fn notices(keys: &'static str, within: RangeInclusive<u64>) {
    in_own_network(move || {
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
            // The kernel may have learned that the machine can't be reached.
            let is_dead = |line: &&LogLine| match line.text("reason") {
                Some("endpoint_timed_out") => true,
                Some("endpoint_error") => line.text("detail") == Some("EHOSTUNREACH"),
                _ => false,
            };
            wait_until("the session's end is logged", || {
                gateway.log().iter().filter(is_dead).count() == nth + 1
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
