//! Endpoints that are dead, and backends without endpoints.

use std::io::Read as _;

use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{
    Gateway, Launch, Server, connect, echo, exchange, free_address, was_reset,
};

/// Of three endpoints two are dead; every client is served by the third.
#[test]
fn another_endpoint_is_tried_when_connecting_fails() {
    let server = Server::tcp(echo);
    let (address, dead) = (free_address(), [free_address(), free_address()]);
    let gateway = Gateway::start(&forward("TCP", address, [dead[0], server.address, dead[1]], ""));
    for _ in 0..30 {
        assert_eq!(exchange(address, b"anyone").expect("an echo"), b"anyone");
    }
    for line in gateway.closes(30) {
        assert_eq!(line.text("endpoint"), Some(server.address.to_string().as_str()));
    }
    assert!(gateway.metrics().value("ringway_endpoint_connect_failures_total", &[]) > 0);
}

#[test]
fn client_is_reset_when_all_endpoints_are_dead() {
    let address = free_address();
    let dead = [free_address(), free_address()];
    let gateway = Gateway::start(&forward("TCP", address, dead, ""));
    assert!(was_reset(&mut connect(address)));
    let line = gateway.closed_for("connect_failed");
    assert_eq!(line.text("detail"), Some("ECONNREFUSED"));
    let metrics = gateway.metrics();
    assert_eq!(metrics.value("ringway_sessions_refused_total", &[("reason", "connect_failed")]), 1);
}

/// Of three backends two are dead, and every client is served by the third.
#[test]
fn another_backend_of_the_route_is_tried_when_connecting_fails() {
    let server = Server::tcp(echo);
    for keys in ["", "balance = \"source-hash\""] {
        let address = free_address();
        let keys = format!("on_unavailable = \"next\"\n{keys}");
        let shares = [("first", 60), ("well", 10), ("second", 30)];
        let config = listener("main", "TCP", address, "")
            + &route("main", "main", &shares, &keys)
            + &backend("first", [free_address(), free_address()], "")
            + &backend("second", [free_address()], "connect_attempts = 1")
            + &backend("well", [server.address], "");
        let gateway = Gateway::start(&config);
        for _ in 0..30 {
            assert_eq!(exchange(address, b"anyone").expect("an echo"), b"anyone");
        }
        for line in gateway.closes(30) {
            assert_eq!(line.text("backend"), Some("well"));
        }
        let metrics = gateway.metrics();
        assert_eq!(metrics.value("ringway_sessions_refused_total", &[]), 0);
    }
}

/// A backend without endpoints keeps its share and rejects it.
#[test]
fn backend_without_endpoints_rejects_its_share() {
    let server = Server::tcp_tag("a");
    let address = free_address();
    let config = listener("main", "TCP", address, "")
        + &route("main", "main", &[("full", 3), ("empty", 1)], "")
        + &backend("full", [server.address], "")
        + &backend("empty", [], "");
    let gateway = Launch::default().one_worker().start(&config);
    let (mut served, mut reset) = (0, 0);
    for _ in 0..100 {
        let mut said = String::new();
        match connect(address).read_to_string(&mut said) {
            Ok(_) => served += u32::from(said == "a"),
            Err(_) => reset += 1,
        }
    }
    assert_eq!((served, reset), (75, 25));
    let refused = [("reason", "no_endpoint")];
    assert_eq!(gateway.metrics().value("ringway_sessions_refused_total", &refused), 25);
}

#[test]
fn route_with_all_weights_zero_refuses_all() {
    let server = Server::tcp_tag("a");
    let address = free_address();
    let config = listener("main", "TCP", address, "")
        + &route("main", "main", &[("a", 0)], "")
        + &backend("a", [server.address], "");
    let gateway = Gateway::start(&config);
    assert!(was_reset(&mut connect(address)));
    gateway.closed_for("no_backend");
    assert_eq!(server.served(), 0);
}
