//! Datagrams pass whole: sizes, trains, empty ones, and the address that answers.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{
    Gateway, Pattern, Server, free_port, in_own_network, program, udp_client,
};
use socket2::SockRef;

use crate::{ask, forwarding};

#[test]
fn datagrams_of_every_size_come_back_whole() {
    let server = Server::udp_echo();
    let (_gateway, address) = forwarding(server.address, "");
    let socket = udp_client(address);
    for len in [1, 2, 511, 1200, 1472, 1473, 9_000, 40_000, 65_507] {
        let datagram = Pattern::new(len as u64).take(len);
        assert_eq!(ask(&socket, &datagram), datagram, "{len} bytes");
    }
}

/// Datagrams of one sender in a row, as GRO and GSO take them together, keep their borders.
#[test]
fn trains_keep_their_borders() {
    let server = Server::udp_echo();
    let (_gateway, address) = forwarding(server.address, "");
    let socket = udp_client(address);
    SockRef::from(&socket).set_recv_buffer_size(4 << 20).expect("a buffer size");
    let mut pattern = Pattern::new(5);
    let mut buffer = vec![0; 65_536];
    let mut answered = 0;
    for round in 0..50 {
        // Equal sizes, then one that is shorter, one that is longer, and an empty one.
        let sizes = [1200, 1200, 1200, 1200, 1200, 700, 1400, 0, 1200, 1200, 1, 1];
        let sent: Vec<_> = sizes.iter().map(|len| pattern.take(*len)).collect();
        for datagram in &sent {
            socket.send(datagram).expect("sent");
        }
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        let mut back = Vec::new();
        while back.len() < sent.len() {
            let Ok(len) = socket.recv(&mut buffer) else { break };
            back.push(buffer[..len].to_vec());
        }
        answered += back.len();
        // Loopback does not reorder one flow; what is lost may be lost, nothing may be changed.
        let mut expected = sent.iter();
        for datagram in &back {
            assert!(expected.any(|sent| sent == datagram), "round {round}: changed or reordered");
        }
    }
    assert!(answered >= 50 * 12 * 95 / 100, "{answered} of 600 came back");
}

/// One empty datagram ends a multishot receive; both sockets must go on receiving.
#[test]
fn empty_datagrams_pass_both_ways_and_silence_nobody() {
    let server = Server::udp_echo();
    let (_gateway, address) = forwarding(server.address, "");
    let (first, second) = (udp_client(address), udp_client(address));
    for _ in 0..20 {
        assert_eq!(ask(&first, b""), b"");
        assert_eq!(ask(&first, b"still there"), b"still there");
        assert_eq!(ask(&second, b"and you"), b"and you");
    }
}

/// A connected socket takes nothing but replies from the address that it spoke to.
#[test]
fn wildcard_listener_replies_from_the_address_that_was_asked() {
    in_own_network(|| {
        program("ip", &["address", "add", "fd00::1/128", "dev", "lo"]);
        program("ip", &["address", "add", "fd00::2/128", "dev", "lo"]);
        let server = Server::udp_echo();
        let port = free_port();
        let config = listener("v4", "UDP", SocketAddr::from(([0, 0, 0, 0], port)), "")
            + &listener("v6", "UDP", SocketAddr::from(([0u16; 8], port)), "")
            + &route("v4", "v4", &[("echo", 1)], "")
            + &route("v6", "v6", &[("echo", 1)], "")
            + &backend("echo", [server.address], "");
        let _gateway = Gateway::start(&config);
        for address in ["127.0.0.1", "127.0.0.2", "127.8.8.8", "fd00::1", "fd00::2", "::1"] {
            let address: IpAddr = address.parse().expect("an address");
            let socket = udp_client((address, port).into());
            assert_eq!(
                ask(&socket, address.to_string().as_bytes()),
                address.to_string().as_bytes()
            );
        }
        // One client socket that speaks to two addresses has two flows.
        let socket = UdpSocket::bind("127.0.0.1:0").expect("binding");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        for address in ["127.0.0.1", "127.0.0.2"] {
            let address = SocketAddr::new(address.parse().expect("an address"), port);
            let mut answer = [0; 16];
            socket.send_to(b"to you", address).expect("sent");
            let (len, from) = socket.recv_from(&mut answer).expect("an answer");
            assert_eq!((&answer[..len], from), (&b"to you"[..], address));
        }
    });
}
