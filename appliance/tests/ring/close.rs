//! Tests the ends of sessions: what both sides see, and what is left.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use config_sync::table::routing::Transport;
use ringway::contract::{Event, Mode, Op, Stop, Why};
use socket2::SockRef;

use crate::harness::{CLIENT, Driver, ENDPOINT, LIMITS, alone, connect_to, session_token};

#[test]
fn a_close_is_a_fin_or_a_reset_to_both() {
    for streams in [false, true] {
        for reset in [false, true] {
            let mut driver = Driver::with(LIMITS, alone());
            let (token, client, endpoint) = driver.session(3, 7);
            if streams {
                driver.act(token, Op::Stream { from: CLIENT });
            }
            let open = open_sockets();
            driver.close(token, reset);
            assert_eq!(open_sockets() + 2, open);
            for mut stream in [client, endpoint] {
                let end = stream.read(&mut [0; 1]).map_err(|error| error.kind());
                let expected = if reset { Err(ErrorKind::ConnectionReset) } else { Ok(0) };
                assert_eq!(end, expected, "streams: {streams}");
            }
        }
    }
}

#[test]
fn a_reset_is_passed_on_as_a_reset() {
    for from in [CLIENT, ENDPOINT] {
        let mut driver = Driver::new(LIMITS);
        let (token, client, endpoint) = driver.session(0, 1);
        let (broken, mut other) = match from {
            CLIENT => (client, endpoint),
            ENDPOINT => (endpoint, client),
        };
        SockRef::from(&broken).set_linger(Some(Duration::ZERO)).unwrap();
        drop(broken);
        driver.until(|_, event| {
            matches!(event, Event::Ready { side, failed: true, .. } if *side == from).then_some(())
        });
        let moved = driver.step(token, from, Mode::Copy, 1 << 20);
        let stop = Stop::Failed { side: from, why: Why::Reset };
        assert!(matches!(moved, Event::Moved { stop: seen, .. } if seen == stop), "{moved:?}");
        driver.close(token, true);
        let error = other.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

#[test]
fn late_completions_of_a_dead_generation_change_nothing() {
    let mut driver = Driver::new(LIMITS);
    let (first, client, endpoint) = driver.session(0, 1);
    driver.poll();
    driver.seen.clear();
    // News of both sides waits in the kernel when the close is asked for.
    drop((client, endpoint));
    driver.close(first, false);
    assert!(driver.seen.is_empty(), "{:?}", driver.seen);
    let (second, _client, _endpoint) = driver.session(0, 2);
    driver.act(first, Op::Close { reset: true });
    driver.poll();
    assert!(driver.seen.iter().all(|(token, _)| *token != first));
    driver.close(second, false);
}

#[test]
fn sessions_leave_nothing_behind() {
    let mut driver = Driver::with(LIMITS, alone());
    let (socket, address) = driver.listen(Transport::Tcp, "127.0.0.1:0");
    let endpoint = TcpListener::bind("127.0.0.1:0").unwrap();
    driver.act(socket, Op::Accept);
    driver.poll();
    let before = open_sockets();
    for generation in 0..200 {
        let client = TcpStream::connect(address).unwrap();
        let incoming = driver.accepted();
        let token = session_token(generation % 5, generation);
        driver.act(token, Op::Adopt { incoming });
        driver.act(token, connect_to(endpoint.local_addr().unwrap()));
        driver.event(token, Event::Connected);
        let (mut accepted, _) = endpoint.accept().unwrap();
        if generation % 3 == 0 {
            driver.act_all([CLIENT, ENDPOINT].map(|from| (token, Op::Stream { from })).to_vec());
        }
        if generation % 4 == 0 {
            driver.poll();
        }
        // News is pending on both sides when the polls and streams are cancelled.
        (&client).write_all(b"up").unwrap();
        accepted.write_all(b"down").unwrap();
        driver.close(token, generation % 2 == 0);
        driver.seen.clear();
    }
    assert_eq!(open_sockets(), before);
    // While a poll holds its socket, the connection stays established in the kernel, and the
    // process cannot see that.
    let ports = [address.port(), endpoint.local_addr().unwrap().port()];
    for _ in 0..10_000 {
        if connections(ports) == 0 {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(connections(ports), 0);
}

fn open_sockets() -> usize {
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count()
}

/// TCP connections with one of these ports, except for listening ones and TIME_WAIT.
fn connections(ports: [u16; 2]) -> usize {
    const TIME_WAIT: &str = "06";
    const LISTEN: &str = "0A";
    let ports = ports.map(|port| format!(":{port:04X}"));
    let table = fs::read_to_string("/proc/self/net/tcp").unwrap();
    table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| ![TIME_WAIT, LISTEN].contains(&fields[3]))
        .filter(|fields| ports.iter().any(|p| fields[1].ends_with(p) || fields[2].ends_with(p)))
        .count()
}
