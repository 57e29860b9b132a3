//! Flows: when one begins, stays, moves to another endpoint, and ends.

use std::sync::mpsc;
use std::time::Duration;

use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{Gateway, Launch, Server, free_address, udp_client, wait_until};

use crate::{ask, forwarding};

/// ICMP port unreachable ends no flow: the client is served again when the endpoint is back.
#[test]
fn endpoint_that_was_down_is_used_again() {
    let server = Server::udp_echo();
    let endpoint = server.address;
    let (gateway, address) = forwarding(endpoint, "");
    let socket = udp_client(address);
    assert_eq!(ask(&socket, b"up"), b"up");
    drop(server);
    wait_until("a refusal was counted", || {
        let _ = socket.send(b"down");
        gateway.metrics().value("ringway_endpoint_refusals_total", &[]) > 0
    });
    let _server = Server::udp_at(endpoint, |socket, bytes, peer| {
        let _ = socket.send_to(bytes, peer);
    });
    assert_eq!(ask(&socket, b"up again"), b"up again");
    assert_eq!(gateway.metrics().value("ringway_flows_active", &[]), 1, "it was one flow");
}

/// A flow without a single reply stays one flow as long as datagrams come, whatever `responses`.
#[test]
fn one_way_flow_is_kept() {
    let (seen, sources) = mpsc::channel();
    let server = Server::udp(move |_, _, peer| {
        let _ = seen.send(peer);
    });
    let (gateway, address) = forwarding(server.address, "responses = 1\nflow_timeout = \"2s\"");
    let socket = udp_client(address);
    for _ in 0..30 {
        socket.send(b"tick").expect("sent");
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(server);
    let mut sources: Vec<_> = sources.iter().collect();
    assert!(sources.len() >= 28, "{} of 30 arrived", sources.len());
    sources.dedup();
    assert_eq!(sources.len(), 1, "the flow changed its socket: {sources:?}");
    // And it ends when nothing comes any more.
    let line = gateway.closed_for("flow_timeout");
    assert_eq!(line.number("bytes_down"), 0);
}

#[test]
fn flow_ends_when_every_datagram_is_answered() {
    let server = Server::udp_echo();
    let (gateway, address) = forwarding(server.address, "responses = 1");
    let socket = udp_client(address);
    assert_eq!(ask(&socket, b"question"), b"question");
    let line = gateway.closed_for("flow_answered");
    assert_eq!((line.number("bytes_up"), line.number("bytes_down")), (8, 8));
}

/// Two questions from one socket before the first answer: both are answered, as resolvers need it.
#[test]
fn pipelined_questions_are_both_answered() {
    let server = Server::udp(|socket, bytes, peer| {
        // Late, so that both are under way.
        std::thread::sleep(Duration::from_millis(20));
        let _ = socket.send_to(bytes, peer);
    });
    let (_gateway, address) = forwarding(server.address, "responses = 1");
    for _ in 0..50 {
        let socket = udp_client(address);
        socket.send(b"A").expect("sent");
        socket.send(b"AAAA").expect("sent");
        let mut answers = Vec::new();
        for _ in 0..2 {
            let mut answer = [0; 16];
            let len = socket.recv(&mut answer).expect("both answers");
            answers.push(answer[..len].to_vec());
        }
        assert_eq!(answers, [b"A".to_vec(), b"AAAA".to_vec()]);
    }
}

/// Steady one-way traffic would feed a removed endpoint for ever.
#[test]
fn flow_of_a_removed_endpoint_moves_after_lame_duck() {
    let (old, new) = (Server::udp_echo(), Server::udp_echo());
    let address = free_address();
    let config = |endpoint: &Server| {
        "lame_duck = \"1s\"\n".to_owned() + &forward("UDP", address, [endpoint.address], "")
    };
    let gateway = Gateway::start(&config(&old));
    let socket = udp_client(address);
    assert_eq!(ask(&socket, b"one"), b"one");
    assert_eq!(new.served(), 0);
    gateway.reload(&config(&new));
    wait_until("the flow has moved", || {
        let _ = socket.send(b"two");
        new.served() > 0
    });
    // What the gateway has sent to the old one before is there too.
    wait_until("all that was sent has arrived", || {
        let to_endpoints = [("listener", "main"), ("side", "endpoint")];
        let sent = gateway.metrics().value("ringway_datagrams_sent_total", &to_endpoints);
        old.served() + new.served() == sent
    });
    // From then on nothing goes to the old one.
    let before = (old.served(), new.served());
    for _ in 0..20 {
        socket.send(b"three").expect("sent");
    }
    wait_until("all have arrived at the new one", || new.served() >= before.1 + 20);
    assert_eq!(old.served(), before.0);
}

#[test]
fn backend_without_endpoints_drops_its_share() {
    let server = Server::udp_tag("a");
    let address = free_address();
    let config = listener("main", "UDP", address, "")
        + &route("main", "main", &[("full", 1), ("empty", 1)], "")
        + &backend("full", [server.address], "")
        + &backend("empty", [], "");
    let gateway = Launch::default().one_worker().start(&config);
    let sockets: Vec<_> = (0..100).map(|_| udp_client(address)).collect();
    for socket in &sockets {
        socket.send(b"?").expect("sent");
    }
    let dropped = || {
        let reason = [("reason", "no_endpoint")];
        gateway.metrics().value("ringway_datagrams_dropped_total", &reason)
    };
    wait_until("half is served and half is dropped", || server.served() + dropped() == 100);
    assert_eq!(dropped(), 50);
}

/// One of two endpoints is closed, as ICMP says: whoever sends on gets to the other.
#[test]
fn flows_leave_an_endpoint_whose_port_is_closed() {
    let server = Server::udp_echo();
    let closed = free_address();
    let address = free_address();
    let config = forward("UDP", address, [closed, server.address], "");
    let gateway = Launch::default().one_worker().start(&config);
    let clients: Vec<_> = (0..20).map(|_| udp_client(address)).collect();
    // The first datagrams of half of them are lost, and a client waits for an answer before it
    // sends another one.
    clients.iter().for_each(|client| _ = client.send(b"anyone?").expect("sent"));
    for client in &clients {
        assert_eq!(ask(client, b"anyone?"), b"anyone?");
    }
    let metrics = gateway.metrics();
    assert!(metrics.value("ringway_endpoint_refusals_total", &[]) > 0);
    assert_eq!(metrics.value("ringway_flows_active", &[]), 20, "none has ended for it");
    for client in &clients {
        assert_eq!(ask(client, b"again"), b"again");
    }
}
