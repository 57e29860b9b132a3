//! Sockets that receive nothing for now, and upstream sockets that another ring goes on with.

use std::net::UdpSocket;
use std::time::Duration;

use config_sync::table::routing::Transport;
use ringway::contract::{Event, Kind, Op, Origin, Part, Token};

use crate::harness::Driver;

const STOPPED: Event = Event::Stopped { why: None };

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

fn datagram(driver: &mut Driver) -> (Token, Op) {
    driver.until(|token, event| match event {
        Event::Datagrams { buffer, .. } => Some((token, Op::Recycle { buffer: *buffer })),
        _ => None,
    })
}

fn hears_nothing(driver: &mut Driver) {
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(10));
        driver.poll();
    }
    assert!(driver.seen.is_empty(), "{:?}", driver.seen);
}

fn upstream(slot: u32) -> Token {
    Token { kind: Kind::Upstream, slot, generation: 1 }
}

/// What comes to a halted socket comes out after `Receive`, on listening and on upstream sockets.
#[test]
fn a_halted_socket_loses_nothing() {
    for masked in [&[][..], &["file_release"]] {
        let mut driver = Driver::without(masked);
        let (listener, address) = driver.listen(Transport::Udp, "127.0.0.1:0");
        let (client, server) = (socket(), socket());
        let flow = upstream(3);
        let to = server.local_addr().unwrap();
        driver.act(flow, Op::Open { address: to, source: Origin::Any, interface: 0 });
        for token in [listener, flow] {
            // Before it receives for the first time, it has stopped at once.
            driver.act_all(vec![(token, Op::Receive), (token, Op::Halt)]);
            driver.event(token, STOPPED);
            driver.act(token, Op::Receive);
        }
        client.send_to(b"x", address).unwrap();
        let (token, op) = datagram(&mut driver);
        assert_eq!(token, listener);
        let Op::Recycle { buffer } = op else { panic!("{op:?}") };
        driver.act(flow, Op::SendUp { buffer, part: Part::default() });
        let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
        driver.act_all(vec![(listener, Op::Halt), (flow, Op::Halt)]);
        driver.event(listener, STOPPED);
        driver.event(flow, STOPPED);
        for _ in 0..3 {
            client.send_to(b"later", address).unwrap();
            server.send_to(b"later", from).unwrap();
        }
        hears_nothing(&mut driver);
        for token in [listener, flow] {
            driver.act(token, Op::Receive);
            let mut came = 0;
            while came < 3 {
                let (of, op) = datagram(&mut driver);
                assert_eq!(of, token);
                driver.act(of, op);
                came += 1;
            }
        }
        hears_nothing(&mut driver);
    }
}

/// Another ring goes on with a copy of an upstream socket: from the same port, with what came
/// meanwhile.
#[test]
fn another_ring_goes_on_with_an_upstream_socket() {
    for masked in [&[][..], &["file_release"]] {
        let (mut old, mut new) = (Driver::without(masked), Driver::without(masked));
        let server = socket();
        let flow = upstream(3);
        let address = server.local_addr().unwrap();
        old.act(flow, Op::Open { address, source: Origin::Any, interface: 0 });
        old.act(flow, Op::Receive);
        old.act(flow, Op::Halt);
        old.event(flow, STOPPED);
        let copy = old.ring.copy_upstream(flow).expect("a descriptor");
        let port = UdpSocket::from(copy.try_clone().unwrap()).local_addr().unwrap();
        let incoming = new.ring.arrive_upstream(copy).expect("there is room");
        new.act(upstream(5), Op::AttachUpstream { incoming });
        new.ring.clear_arrivals();
        old.act(flow, Op::CloseUpstream);
        old.event(flow, Event::Closed);
        server.send_to(b"answer", port).unwrap();
        hears_nothing(&mut new);
        new.act(upstream(5), Op::Receive);
        let (token, op) = datagram(&mut new);
        assert_eq!(token, upstream(5));
        let Op::Recycle { buffer } = op else { panic!("{op:?}") };
        new.act(upstream(5), Op::SendUp { buffer, part: Part::default() });
        let mut bytes = [0; 8];
        let (len, from) = server.recv_from(&mut bytes).unwrap();
        assert_eq!((&bytes[..len], from), (&b"answer"[..], port));
        // What arrives and is not attached is closed.
        let unused = UdpSocket::bind("127.0.0.1:0").unwrap();
        let bound = unused.local_addr().unwrap();
        unused.connect(address).unwrap();
        assert!(new.ring.arrive_upstream(unused.into()).is_some());
        new.ring.clear_arrivals();
        UdpSocket::bind(bound).expect("nobody has the port");
        let lone = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(new.ring.arrive_upstream(lone.into()).is_none(), "it is not connected");
    }
}
