//! Two rings that have the same listening sockets, as two processes have during an upgrade.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use config_sync::table::routing::{SocketId, Transport};
use ringway::contract::{Event, Op, Token};

use crate::harness::{Driver, LIMITS, local_address, open};

const SOCKET: SocketId = SocketId(0);

/// A ring with a listening socket that this test has too.
fn shared_socket(transport: Transport) -> (Driver, OwnedFd, SocketAddr) {
    let mut driver = Driver::new(LIMITS);
    let fd = open(transport, "127.0.0.1:0", 1).pop().unwrap();
    let (other, address) = (fd.as_fd().try_clone_to_owned().unwrap(), local_address(&fd));
    driver.ring.listen(SOCKET, transport, fd);
    (driver, other, address)
}

#[test]
fn a_released_tcp_socket_lives_on_elsewhere() {
    let (mut driver, other, address) = shared_socket(Transport::Tcp);
    let token = Token::socket(SOCKET);
    driver.act(token, Op::Accept);
    driver.poll();
    let served = TcpStream::connect(address).unwrap();
    let incoming = driver.accepted();
    driver.act(token, Op::Refuse { incoming });
    // This connection has come, and nobody has looked yet: the ring still takes it.
    let last = TcpStream::connect(address).unwrap();
    driver.act(token, Op::Release);
    let incoming = driver.accepted();
    driver.event(token, Event::Unlistened);
    driver.act(token, Op::Refuse { incoming });
    drop((served, last));
    // From here on, whoever connects waits for the other owner of the socket.
    let mut client = TcpStream::connect(address).expect("nobody is turned away");
    client.write_all(b"word").unwrap();
    let listener = TcpListener::from(other);
    listener.set_nonblocking(false).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    let mut word = [0; 4];
    accepted.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"word");
}

#[test]
fn a_released_udp_socket_sends_and_receives_no_more() {
    let (mut driver, other, address) = shared_socket(Transport::Udp);
    let token = Token::socket(SOCKET);
    driver.act(token, Op::Receive);
    driver.poll();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    client.send_to(b"first", address).unwrap();
    let buffer = driver.until(|_, event| match event {
        Event::Datagrams { buffer, .. } => Some(*buffer),
        _ => None,
    });
    driver.act(token, Op::Release);
    driver.event(token, Event::Stopped { why: None });
    let peer = client.local_addr().unwrap();
    driver.act(token, Op::SendDown { buffer, from: 0, peer, local: None });
    let mut bytes = [0; 16];
    assert_eq!(client.recv(&mut bytes).unwrap(), 5, "the socket still sends");
    client.send_to(b"second", address).unwrap();
    let other = UdpSocket::from(other);
    other.set_nonblocking(false).unwrap();
    other.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(other.recv(&mut bytes).unwrap(), 6, "the other owner receives");
    driver.act(token, Op::Unlisten);
    driver.event(token, Event::Unlistened);
    other.send_to(b"third", peer).expect("the socket is still open there");
    assert_eq!(client.recv(&mut bytes).unwrap(), 5);
}

/// The kernel may wake another ring for a connection, and the other ring may be gone then.
#[test]
fn a_look_accepts_what_waits() {
    let (mut driver, _other, address) = shared_socket(Transport::Tcp);
    let token = Token::socket(SOCKET);
    driver.act(token, Op::Accept);
    driver.poll();
    let _client = TcpStream::connect(address).unwrap();
    driver.ring.look(&mut driver.turn);
    driver.seen.extend(driver.turn.events.drain(..));
    let incoming = driver.accepted();
    driver.act(token, Op::Refuse { incoming });
}
