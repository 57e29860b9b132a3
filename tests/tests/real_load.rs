//! How many sessions an endpoint has: two workers of a real gateway count them together.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{Gateway, Server, connect, echo, free_address, wait_until};

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
