//! Timeouts of sessions and of connection attempts.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use nix::sys::signal::Signal;
use ringway_tests::real::config::{backend, forward, forward_as, listener, route};
use ringway_tests::real::{
    Gateway, Server, accept_full, connect, echo, free_address, udp_client, was_reset,
};

use crate::{forwarding, handed_over, next};

#[test]
fn idle_session_ends_at_idle_timeout() {
    let (server, accepted) = handed_over();
    let (gateway, address) = forwarding(&server, "idle_timeout = \"1s\"");
    let mut client = connect(address);
    let mut endpoint = next(&accepted);
    assert!(client.read(&mut [0]).map_or(true, |len| len == 0), "no byte was sent");
    assert!(endpoint.read(&mut [0]).map_or(true, |len| len == 0), "no byte was sent");
    gateway.closed_for("idle_timeout");
}

#[test]
fn half_closed_session_ends_at_half_close_timeout() {
    let (server, accepted) = handed_over();
    let (gateway, address) = forwarding(&server, "half_close_timeout = \"1s\"");
    let client = connect(address);
    client.shutdown(Shutdown::Write).expect("a FIN");
    let mut endpoint = next(&accepted);
    assert_eq!(endpoint.read(&mut [0]).expect("the FIN"), 0);
    gateway.closed_for("half_close_timeout");
}

/// However long the session was silent before: the server has its time to answer.
#[test]
fn half_close_timeout_counts_from_the_fin() {
    let (server, accepted) = handed_over();
    let (_gateway, address) = forwarding(&server, "half_close_timeout = \"2s\"");
    let mut client = connect(address);
    let mut endpoint = next(&accepted);
    std::thread::sleep(Duration::from_millis(2_500));
    client.shutdown(Shutdown::Write).expect("a FIN");
    assert_eq!(endpoint.read(&mut [0]).expect("the FIN"), 0);
    std::thread::sleep(Duration::from_millis(500));
    endpoint.write_all(b"late").expect("taken");
    drop(endpoint);
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("the answer");
    assert_eq!(answer, "late");
}

#[test]
fn session_ends_at_its_lifetime_however_busy() {
    let server = Server::tcp(echo);
    let (gateway, address) = forwarding(&server, "max_lifetime = \"2s\"");
    let mut client = connect(address);
    let mut byte = [0];
    while client.write_all(b"x").is_ok() && client.read(&mut byte).is_ok_and(|len| len == 1) {
        std::thread::sleep(Duration::from_millis(10));
    }
    gateway.closed_for("max_lifetime");
}

/// A process that was stopped, or a machine that was suspended, looks at what has come before it
/// takes anybody for idle.
#[test]
fn who_has_spoken_while_the_process_was_stopped_is_not_idle() {
    let server = Server::tcp(echo);
    let ports = Server::udp(|socket, _, peer| {
        let _ = socket.send_to(peer.to_string().as_bytes(), peer);
    });
    let (address, udp) = (free_address(), free_address());
    let config = forward("TCP", address, [server.address], "idle_timeout = \"4s\"")
        + &forward_as("udp", "UDP", udp, [ports.address], "flow_timeout = \"4s\"");
    let gateway = Gateway::start(&config);
    let mut sessions: Vec<_> = (0..20).map(|_| connect(address)).collect();
    let flows: Vec<_> = (0..20).map(|_| udp_client(udp)).collect();
    let ask = |flow: &std::net::UdpSocket| flow.send(b"?").expect("sent");
    let port = |flow: &std::net::UdpSocket| {
        let mut answer = [0; 64];
        let len = flow.recv(&mut answer).expect("an answer");
        answer[..len].to_vec()
    };
    for session in &mut sessions {
        session.write_all(b"before").expect("sent");
        session.read_exact(&mut [0; 6]).expect("an echo");
    }
    flows.iter().for_each(|flow| _ = ask(flow));
    let before: Vec<_> = flows.iter().map(port).collect();
    gateway.signal(Signal::SIGSTOP);
    for session in &mut sessions {
        session.write_all(b"meanwhile").expect("sent");
    }
    flows.iter().for_each(|flow| _ = ask(flow));
    std::thread::sleep(Duration::from_secs(6));
    gateway.signal(Signal::SIGCONT);
    for session in &mut sessions {
        session.read_exact(&mut [0; 9]).expect("an echo: the session was not idle");
    }
    let after: Vec<_> = flows.iter().map(port).collect();
    assert_eq!(before, after, "flows were taken for idle, and others begun");
}

/// Writes until nothing is taken for a second.
fn fill(stream: &TcpStream) {
    stream.set_write_timeout(Some(Duration::from_secs(1))).expect("a timeout");
    let mut to = stream;
    while to.write(&[7; 65_536]).is_ok() {}
}

#[test]
fn client_that_will_not_read_is_closed() {
    let (server, accepted) = handed_over();
    let (gateway, address) = forwarding(&server, "write_stall_timeout = \"1s\"");
    let client = connect(address);
    let endpoint = next(&accepted);
    fill(&endpoint);
    gateway.closed_for("client_stalled");
    drop(client);
}

#[test]
fn endpoint_that_will_not_read_is_closed() {
    let (server, accepted) = handed_over();
    let (gateway, address) = forwarding(&server, "write_stall_timeout = \"1s\"");
    let client = connect(address);
    let endpoint = next(&accepted);
    fill(&client);
    gateway.closed_for("endpoint_stalled");
    drop(endpoint);
}

#[test]
fn endpoint_that_does_not_answer_ends_at_connect_timeout() {
    let (silent, _kept) = accept_full();
    let address = free_address();
    let config = listener("main", "TCP", address, "")
        + &route("main", "main", &[("main", 1)], "")
        + &backend("main", [silent], "connect_timeout = \"1s\"\nconnect_attempts = 1");
    let gateway = Gateway::start(&config);
    assert!(was_reset(&mut connect(address)));
    gateway.closed_for("connect_timeout");
    let failures = gateway.metrics().value("ringway_endpoint_connect_failures_total", &[]);
    assert_eq!(failures, 1);
}
