//! Dishonest clients. Each flood returns how many connections or datagrams it had.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use ringway_tests::real::client_hello;
use socket2::{Domain, SockRef, Socket, Type};

/// One of many addresses of the loopback network, far from those of honest clients.
pub fn source(nth: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 1)) + nth)
}

/// The one source that takes more than its share.
pub fn offender() -> Ipv4Addr {
    Ipv4Addr::new(127, 66, 0, 1)
}

/// A connection that is ended by a reset, so that none of its ports rest. An error: the gateway has
/// reset the connection already, or a second has gone by, because the queue is full (`TimedOut`).
pub fn connect(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a file");
    socket.bind(&SocketAddr::new(IpAddr::V4(from), 0).into()).expect("a local address");
    socket.connect_timeout(&to.into(), Duration::from_secs(1))?;
    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
    Ok(socket.into())
}

/// Opens connections that send the first bytes of a ClientHello, and nothing more.
pub fn slow_hellos(to: SocketAddr, count: u32, held: &Mutex<Vec<TcpStream>>) -> u64 {
    slow(to, count, &client_hello(Some("honest.test"))[..20], held)
}

/// Opens connections that send these bytes, and nothing more.
pub fn slow(to: SocketAddr, count: u32, bytes: &[u8], held: &Mutex<Vec<TcpStream>>) -> u64 {
    for nth in 0..count {
        let Ok(mut stream) = connect(source(nth % 10_000), to) else { continue };
        if stream.write_all(bytes).is_ok() {
            held.lock().expect("whole").push(stream);
        }
    }
    std::thread::sleep(Duration::from_secs(1));
    held.lock().expect("whole").len() as u64
}

/// Connects and leaves, from one of many sources each time; and after ten of them, ten times from
/// one source.
pub fn connects(over: &AtomicBool, to: SocketAddr, sources: u32) -> u64 {
    let mut count = 0;
    while !over.load(SeqCst) {
        for nth in 0..sources {
            if over.load(SeqCst) {
                break;
            }
            count += u64::from(connect(source(nth), to).is_ok());
            if nth % 10 == 0 {
                (0..10).for_each(|_| drop(connect(offender(), to)));
            }
        }
    }
    count
}

/// A datagram from each of many sources.
pub fn datagrams(over: &AtomicBool, to: &[SocketAddr], sources: u32, bytes: &[u8]) -> u64 {
    let mut count = 0;
    while !over.load(SeqCst) {
        for nth in 0..sources {
            if over.load(SeqCst) {
                break;
            }
            let socket = UdpSocket::bind((source(nth), 0)).expect("a port");
            for to in to {
                count += u64::from(socket.send_to(bytes, to).is_ok());
            }
        }
    }
    count
}

/// Connections that say something, and stay until the gateway ends them.
pub fn garbage(to: SocketAddr, count: u32, bytes: &[u8]) {
    for nth in 0..count {
        let mut stream = connect(source(nth), to).expect("the gateway accepts");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        // It may be reset before all is sent.
        let _ = stream.write_all(bytes);
        let mut answer = [0; 512];
        while stream.read(&mut answer).is_ok_and(|len| len > 0) {}
    }
}
