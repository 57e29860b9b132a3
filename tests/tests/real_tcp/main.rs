//! TCP through the binary: ends of all kinds, timeouts, limits, failing endpoints.

mod bulk;
mod endpoints;
mod ends;
mod limits;
mod timeouts;

use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use ringway_tests::real::config::forward;
use ringway_tests::real::{Gateway, Server, free_address};
use socket2::SockRef;

/// A gateway with one TCP listener, and its address.
fn forwarding(to: &Server, options: &str) -> (Gateway, SocketAddr) {
    let address = free_address();
    (Gateway::start(&forward("TCP", address, [to.address], options)), address)
}

/// A server whose connections go to the test, one after the other.
fn handed_over() -> (Server, mpsc::Receiver<TcpStream>) {
    let (give, take) = mpsc::channel();
    let server = Server::tcp(move |stream| {
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let _ = give.send(stream);
    });
    (server, take)
}

fn next(accepted: &mpsc::Receiver<TcpStream>) -> TcpStream {
    accepted.recv_timeout(Duration::from_secs(60)).expect("a connection")
}

fn abort(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    drop(stream);
}
