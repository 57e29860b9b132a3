//! How many sessions an endpoint has: two workers of a real gateway count them together.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{
    Gateway, Server, connect, echo, free_address, udp_client, wait_until, was_reset,
};

/// Says `tag`, and then whatever it is told.
fn tagged(tag: u8) -> Server {
    Server::tcp_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), move |mut stream| {
        if stream.write_all(&[tag]).is_ok() {
            echo(stream);
        }
    })
}

fn tag(mut stream: &TcpStream) -> u8 {
    let mut tag = [0];
    stream.read_exact(&mut tag).expect("a tag");
    tag[0]
}

fn sessions(gateway: &Gateway, endpoint: SocketAddr) -> u64 {
    let endpoint = endpoint.to_string();
    let labels = [("backend", "main"), ("endpoint", endpoint.as_str())];
    gateway.metrics().value("ringway_endpoint_sessions_active", &labels)
}

/// Sessions that end are another worker's than sessions that begin, as chance wants. The endpoint
/// with fewer gets them all the same.
#[test]
fn least_connections_counts_the_sessions_of_both_workers() {
    let servers = [tagged(b'a'), tagged(b'b')];
    let address = free_address();
    let config = listener("main", "TCP", address, "")
        + &route("main", "main", &[("main", 1)], "")
        + &backend(
            "main",
            servers.each_ref().map(|of| of.address),
            "balance = \"least-connections\"",
        );
    let gateway = Gateway::start(&config);
    let mut open: Vec<(u8, TcpStream)> = Vec::new();
    for round in 0..6 {
        while open.len() < 48 {
            let stream = connect(address);
            open.push((tag(&stream), stream));
        }
        let of = |tag| open.iter().filter(|(of, _)| *of == tag).count();
        let (a, b) = (of(b'a'), of(b'b'));
        assert!(a.abs_diff(b) <= 2, "round {round}: {a} and {b}");
        let leaving = [b'a', b'b'][round % 2];
        open.retain(|(of, _)| *of != leaving);
        wait_until("the endpoint has lost its sessions", || {
            sessions(&gateway, servers[round % 2].address) == 0
        });
    }
    drop(open);
    gateway.stop();
}

#[test]
fn an_endpoint_has_at_most_its_sessions_of_both_workers() {
    let server = tagged(b'a');
    let (address, udp) = (free_address(), free_address());
    let echo = Server::udp_echo();
    let limited = |name: &str, endpoint: SocketAddr| {
        let endpoints = format!("[{{ address = \"{endpoint}\", max_sessions = 2 }}]");
        format!("[[backends]]\nname = \"{name}\"\nendpoints = {endpoints}\n")
    };
    let config = "lame_duck = \"100ms\"\n".to_owned()
        + &listener("main", "TCP", address, "")
        + &listener("udp", "UDP", udp, "flow_timeout = \"2s\"")
        + &route("main", "main", &[("main", 1)], "")
        + &route("udp", "udp", &[("udp", 1)], "")
        + &limited("main", server.address)
        + &limited("udp", echo.address);
    let gateway = Gateway::start(&config);
    let mut open = vec![connect(address), connect(address)];
    open.iter().for_each(|stream| _ = tag(stream));
    for _ in 0..10 {
        assert!(was_reset(&mut connect(address)), "there is no place for a third");
    }
    assert_eq!(sessions(&gateway, server.address), 2);
    let refused = [("listener", "main"), ("reason", "endpoints_full")];
    let count = || gateway.metrics().value("ringway_sessions_refused_total", &refused);
    wait_until("each is counted", || count() == 10);
    // A place that one leaves is another's, whoever of the workers had it.
    for _ in 0..6 {
        drop(open.pop());
        wait_until("the place is free", || sessions(&gateway, server.address) < 2);
        let next = connect(address);
        tag(&next);
        open.insert(0, next);
    }

    let clients = [(); 12].map(|()| udp_client(udp));
    clients.iter().for_each(|client| _ = client.send(b"x").expect("sent"));
    let dropped = || {
        let labels = [("listener", "udp"), ("reason", "endpoints_full")];
        gateway.metrics().value("ringway_datagrams_dropped_total", &labels)
    };
    wait_until("all have come", || echo.served() + dropped() == 12);
    assert_eq!(echo.served(), 2);
    let last = udp_client(udp);
    last.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    wait_until("a flow that ended left its place", || {
        last.send(b"x").is_ok() && last.recv(&mut [0; 8]).is_ok()
    });
    drop(open);
    gateway.stop();
}

/// Two have places, three wait, and the rest are refused. Who waits has a place when one is free,
/// whichever worker had it.
#[test]
fn sessions_wait_for_places_and_leave_when_they_have_enough() {
    let server = tagged(b'a');
    let address = free_address();
    let with = |timeout: &str| {
        let endpoint = server.address;
        listener("main", "TCP", address, "")
            + &route("main", "main", &[("main", 1)], "")
            + &format!(
                "[[backends]]\nname = \"main\"\nqueue = 3\nqueue_timeout = \"{timeout}\"\n\
                 endpoints = [{{ address = \"{endpoint}\", max_sessions = 2 }}]\n"
            )
    };
    let gateway = Gateway::start(&with("60s"));
    let waiting =
        || gateway.metrics().value("ringway_backend_sessions_waiting", &[("backend", "main")]);
    let mut open = vec![connect(address), connect(address)];
    open.iter().for_each(|stream| _ = tag(stream));
    let line = [(); 3].map(|()| connect(address));
    wait_until("three wait", || waiting() == 3);
    assert!(was_reset(&mut connect(address)), "the queue is full");
    gateway.closed_for("endpoints_full");
    assert_eq!(sessions(&gateway, server.address), 2);

    // One that has said nothing and leaves is no longer in line; what others say is kept.
    let [mut first, mut second, third] = line;
    first.write_all(b"first").expect("a socket takes it");
    second.write_all(b"second").expect("a socket takes it");
    drop(third);
    wait_until("two wait", || waiting() == 2);
    assert!(gateway.closes(2).iter().any(|line| line.text("reason") == Some("client_gone")));
    open.clear();
    for (stream, said) in [(&first, "first"), (&second, "second")] {
        assert_eq!(tag(stream), b'a');
        let mut answer = vec![0; said.len()];
        let mut stream: &TcpStream = stream;
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer, said.as_bytes());
    }
    assert_eq!(waiting(), 0);

    // Many come and go, and each has its turn.
    drop((first, second));
    let all_gone = || sessions(&gateway, server.address) + waiting() == 0;
    for _ in 0..20 {
        wait_until("all are gone", all_gone);
        let five = [(); 5].map(|()| connect(address));
        std::thread::scope(|scope| {
            for stream in five {
                scope.spawn(move || assert_eq!(tag(&stream), b'a'));
            }
        });
    }
    wait_until("all are gone", all_gone);

    gateway.reload(&with("200ms"));
    let timeout = [("listener", "main"), ("reason", "queue_timeout")];
    let open = [(); 2].map(|()| connect(address));
    open.iter().for_each(|stream| _ = tag(stream));
    assert!(was_reset(&mut connect(address)), "it waited long enough");
    let timed_out = || gateway.metrics().value("ringway_sessions_refused_total", &timeout) == 1;
    wait_until("it is counted", timed_out);
    assert_eq!(waiting(), 0);
    drop(open);
    gateway.stop();
}
