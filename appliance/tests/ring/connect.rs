//! Tests connections to endpoints.

use std::net::{SocketAddr, TcpListener, TcpStream};

use config_sync::table::routing::Transport;
use ringway::contract::{Event, Op, Origin, Token, Why};
use socket2::{Domain, Socket, Type};

use crate::harness::{Driver, LIMITS, OPTIONS, connect_to, session_token};

/// Makes an adopted session without an endpoint.
fn client_only(driver: &mut Driver) -> (Token, TcpStream) {
    let (socket, address) = driver.listen(Transport::Tcp, "127.0.0.1:0");
    driver.act(socket, Op::Accept);
    let client = TcpStream::connect(address).unwrap();
    let incoming = driver.accepted();
    let token = session_token(0, 1);
    driver.act(token, Op::Adopt { incoming });
    (token, client)
}

#[test]
fn a_refused_endpoint_can_be_followed_by_another() {
    let mut driver = Driver::new(LIMITS);
    let (token, _client) = client_only(&mut driver);
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    driver.act(token, connect_to(gone));
    driver.event(token, Event::ConnectFailed { why: Why::Refused });
    let endpoint = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = endpoint.local_addr().unwrap();
    let own = [127, 0, 0, 5].into();
    let source = Origin::Local(own);
    driver.act(
        token,
        Op::Connect { address: address.into(), source, interface: 0, options: OPTIONS },
    );
    driver.event(token, Event::Connected);
    assert_eq!(endpoint.accept().unwrap().1.ip(), own);
    driver.close(token, false);
}

#[test]
fn an_impossible_source_fails_directly() {
    let mut driver = Driver::new(LIMITS);
    let (token, _client) = client_only(&mut driver);
    let address = SocketAddr::from(([127, 0, 0, 1], 9)).into();
    let source = Origin::Local("192.0.2.1".parse().unwrap());
    driver.act(token, Op::Connect { address, source, interface: 0, options: OPTIONS });
    let failed = (token, Event::ConnectFailed { why: Why::NoPorts });
    assert_eq!(driver.seen.back(), Some(&failed));
}

#[test]
fn an_interface_is_the_only_way_to_an_endpoint() {
    let endpoint = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = endpoint.local_addr().unwrap().into();
    let connect = |interface| {
        let mut driver = Driver::new(LIMITS);
        let (token, _client) = client_only(&mut driver);
        driver
            .act(token, Op::Connect { address, source: Origin::Any, interface, options: OPTIONS });
        (driver, token)
    };
    let (mut driver, token) = connect(nix::net::if_::if_nametoindex("lo").unwrap());
    driver.event(token, Event::Connected);
    let (driver, token) = connect(u32::MAX >> 1);
    let failed = (token, Event::ConnectFailed { why: Why::Other(libc::ENODEV) });
    assert_eq!(driver.seen.back(), Some(&failed));
}

#[test]
fn an_attempt_can_be_abandoned_or_closed_while_under_way() {
    let mut driver = Driver::new(LIMITS);
    let (token, _client) = client_only(&mut driver);
    // A full accept queue answers no SYN.
    let full = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    full.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let _filler = TcpStream::connect(address).unwrap();
    let connect = connect_to(address);
    driver.act(token, connect);
    driver.act(token, Op::Abandon);
    driver.event(token, Event::ConnectFailed { why: Why::Abandoned });
    driver.act(token, connect);
    driver.poll();
    driver.act(token, Op::Abandon);
    driver.close(token, true);
    assert!(
        !driver.seen.iter().any(|(_, event)| matches!(event, Event::ConnectFailed { .. })),
        "Closed is the last event"
    );
}
