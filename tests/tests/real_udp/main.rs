//! UDP through the binary: addresses of replies, ends of flows, failing endpoints, and
//! fifty thousand flows that must not hear each other.

mod datagrams;
mod flows;
mod limits;
mod replies;
mod shared_sockets;

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use ringway_tests::real::config::forward;
use ringway_tests::real::{Gateway, free_address};

fn forwarding(to: SocketAddr, options: &str) -> (Gateway, SocketAddr) {
    let address = free_address();
    (Gateway::start(&forward("UDP", address, [to], options)), address)
}

/// Sends `bytes` until they come back, and returns them: a datagram may get lost, and while an
/// endpoint changes it will. What was sent twice may come back twice, and late: anything else is
/// passed over.
fn ask(socket: &UdpSocket, bytes: &[u8]) -> Vec<u8> {
    let mut answer = vec![0; 65_536];
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    for _ in 0..60 {
        let _ = socket.send(bytes);
        while let Ok(len) = socket.recv(&mut answer) {
            if answer[..len] == *bytes {
                answer.truncate(len);
                return answer;
            }
        }
    }
    panic!("none of 60 datagrams came back");
}
