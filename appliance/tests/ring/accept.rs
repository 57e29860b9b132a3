//! Tests listening TCP sockets: who is accepted, how many at a time, and until when.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use config_sync::table::routing::{Limits, Transport};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ringway::contract::{Event, Op, Why};

use crate::harness::{Driver, LIMITS, alone, session_token};

#[test]
fn refused_clients_see_a_reset() {
    let mut driver = Driver::new(LIMITS);
    let (socket, address) = driver.listen(Transport::Tcp, "[::1]:0");
    driver.act(socket, Op::Accept);
    let mut client = TcpStream::connect(address).unwrap();
    let incoming = driver.accepted();
    driver.act(socket, Op::Refuse { incoming });
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn one_connection_is_accepted_at_a_time() {
    let mut driver = Driver::new(LIMITS);
    let (socket, address) = driver.listen(Transport::Tcp, "127.0.0.1:0");
    driver.act(socket, Op::Accept);
    driver.act(socket, Op::AcceptOne);
    driver.event(socket, Event::Stopped { why: None });
    let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
    for _ in &clients {
        driver.act(socket, Op::AcceptOne);
        let incoming = driver.accepted();
        driver.act(socket, Op::Refuse { incoming });
        driver.event(socket, Event::Stopped { why: None });
    }
    assert_eq!(driver.counters.rearms.get(), 0, "a stop that was asked for");
    // The next one waits for an accept until further notice.
    driver.act(socket, Op::AcceptOne);
    driver.act(socket, Op::AcceptOne);
    let _client = TcpStream::connect(address).unwrap();
    driver.accepted();
    driver.event(socket, Event::Stopped { why: None });
    driver.act(socket, Op::Accept);
    let _clients = [(); 2].map(|()| TcpStream::connect(address).unwrap());
    for _ in 0..2 {
        driver.accepted();
    }
}

#[test]
fn accepting_stops_when_files_run_out_and_loses_no_client() {
    let mut driver = Driver::with(LIMITS, alone());
    let (socket, address) = driver.listen(Transport::Tcp, "127.0.0.1:0");
    let _client = TcpStream::connect(address).unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // Open descriptors stay open. No new descriptor fits below this limit.
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
    driver.act(socket, Op::Accept);
    driver.event(socket, Event::Stopped { why: Some(Why::NoFiles) });
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    driver.act(socket, Op::Accept);
    driver.accepted();
}

#[test]
fn wildcard_listeners_say_which_address_was_called() {
    let mut driver = Driver::new(LIMITS);
    let (socket, address) = driver.listen(Transport::Tcp, "0.0.0.0:0");
    driver.act(socket, Op::Accept);
    let called = SocketAddr::new([127, 0, 0, 9].into(), address.port());
    let client = TcpStream::connect(called).unwrap();
    let (peer, local) = driver.until(|_, event| match event {
        Event::Accepted { peer, local, .. } => Some((*peer, *local)),
        _ => None,
    });
    assert_eq!((peer, local), (client.local_addr().unwrap(), called));
}

#[test]
fn no_client_is_reset_when_a_listener_goes() {
    let mut driver = Driver::new(Limits { sessions: 4096, ..LIMITS });
    let (socket, address) = driver.listen(Transport::Tcp, "127.0.0.1:0");
    driver.act(socket, Op::Accept);
    let stop = Arc::new(AtomicBool::new(false));
    let burst: Vec<_> = (0..4)
        .map(|_| {
            let stop = stop.clone();
            thread::spawn(move || {
                let mut connected = Vec::new();
                while !stop.load(Ordering::Relaxed) && connected.len() < 500 {
                    let timeout = Duration::from_millis(300);
                    match TcpStream::connect_timeout(&address, timeout) {
                        Ok(stream) => connected.push(stream),
                        Err(error) => {
                            let kind = error.kind();
                            let expected = [ErrorKind::TimedOut, ErrorKind::ConnectionRefused];
                            assert!(expected.contains(&kind), "{error}");
                        }
                    }
                }
                connected
            })
        })
        .collect();
    let mut accepted = Vec::new();
    let mut gone = false;
    while !gone {
        // As in `Driver::until`.
        for _ in 0..3 {
            if driver.seen.is_empty() {
                driver.turn();
            }
        }
        assert!(!driver.seen.is_empty(), "neither a client nor the listener's end came");
        for (_, event) in std::mem::take(&mut driver.seen) {
            match event {
                Event::Accepted { incoming, .. } => {
                    let token = session_token(u32::try_from(accepted.len()).unwrap(), 1);
                    if accepted.len() == 50 {
                        driver.act(socket, Op::Unlisten);
                    }
                    driver.act(token, Op::Adopt { incoming });
                    accepted.push(token);
                }
                Event::Unlistened => gone = true,
                _ => {}
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    let connected: Vec<_> = burst.into_iter().flat_map(|t| t.join().unwrap()).collect();
    assert_eq!(connected.len(), accepted.len(), "each that connected was handed over");
    for stream in &connected {
        stream.set_nonblocking(true).unwrap();
        let error = (&mut &*stream).read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "still open");
    }
    assert!(TcpStream::connect(address).is_err(), "closed");
}

/// A turn takes only so many of the connections that wait, and each event of another kind.
#[test]
fn a_session_has_its_turn_beside_a_burst_of_connections() {
    let mut driver = Driver::new(LIMITS);
    let (token, mut client, _endpoint) = driver.session(0, 1);
    let (socket, address) = driver.listen(Transport::Tcp, "127.0.0.1:0");
    driver.act(socket, Op::Accept);
    driver.poll();
    driver.seen.clear();
    let burst: Vec<_> = (0..300).map(|_| TcpStream::connect(address).unwrap()).collect();
    client.write_all(b"word").unwrap();
    let (mut taken, mut taken_before) = (0, None);
    while taken < burst.len() {
        assert!(driver.turn(), "the rest of the burst does not come");
        let before = taken;
        for (at, event) in std::mem::take(&mut driver.seen) {
            match event {
                Event::Accepted { incoming, .. } => {
                    driver.act(socket, Op::Refuse { incoming });
                    taken += 1;
                }
                Event::Ready { .. } if at == token => _ = taken_before.get_or_insert(before),
                _ => {}
            }
        }
        assert!(taken - before <= 64, "{} in one turn", taken - before);
    }
    assert_eq!(taken_before, Some(0), "the session waited for others");
}
