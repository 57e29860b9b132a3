use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use config_sync::table::routing::{Limits, Transport};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ringway::contract::{Event, Mode, Op, Origin, Side, Stop, Why};

use crate::harness::{Driver, LIMITS, OPTIONS, alone, noise, session_token};

const CLIENT: Side = Side::Client;
const ENDPOINT: Side = Side::Endpoint;

fn carries_both_ways(mode: Mode, limits: Limits, budget: u32) -> Driver {
    let mut driver = Driver::new(limits);
    let (token, client, endpoint) = driver.session(3, 7);
    let up = noise(10 << 20, 1);
    let down = noise(10 << 20, 2);
    let mut threads = Vec::new();
    for (stream, sends, expects) in [(client, up.clone(), down.clone()), (endpoint, down, up)] {
        let mut writer = stream.try_clone().unwrap();
        threads.push(thread::spawn(move || {
            writer.write_all(&sends).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        }));
        let mut reader = stream;
        threads.push(thread::spawn(move || {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).unwrap();
            assert!(got == expects, "{} of {} bytes, or others", got.len(), expects.len());
        }));
    }
    assert_eq!(driver.relay(token, mode, budget), None);
    driver.close(token, false);
    for thread in threads {
        thread.join().unwrap();
    }
    driver.poll();
    assert_eq!(driver.counters.pipes_used.get(), 0);
    driver
}

#[test]
fn copies_both_ways() {
    let driver = carries_both_ways(Mode::Copy, LIMITS, 1 << 20);
    assert_eq!(driver.counters.pipe_shortages.get(), 0);
}

#[test]
fn splices_both_ways() {
    carries_both_ways(Mode::Splice, LIMITS, 1 << 20);
}

#[test]
fn carries_both_ways_with_a_tiny_budget() {
    carries_both_ways(Mode::Splice, LIMITS, 5_000);
    carries_both_ways(Mode::Copy, LIMITS, 5_000);
}

#[test]
fn carries_both_ways_without_any_pipe() {
    for mode in [Mode::Copy, Mode::Splice] {
        let driver = carries_both_ways(mode, Limits { pipes: 0, ..LIMITS }, 1 << 20);
        assert!(driver.counters.pipe_shortages.get() > 0);
    }
}

/// Fills the endpoint's socket until a `Move` is blocked. Returns all bytes that the client has
/// sent.
fn block(
    driver: &mut Driver,
    slot: u32,
    mode: Mode,
) -> (ringway::contract::Token, u32, TcpStream, TcpStream, Vec<u8>) {
    let (token, client, endpoint) = driver.session(slot, 1);
    client.set_nonblocking(true).unwrap();
    let mut sent = Vec::new();
    loop {
        let more = noise(200_000, sent.len() as u64);
        match (&client).write(&more) {
            Ok(n) => sent.extend_from_slice(&more[..n]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        if let Event::Moved { held, stop: Stop::Blocked, .. } =
            driver.step(token, CLIENT, mode, u32::MAX)
        {
            client.set_nonblocking(false).unwrap();
            return (token, held, client, endpoint, sent);
        }
    }
}

#[test]
fn what_the_destination_leaves_is_held_and_goes_first() {
    for mode in [Mode::Copy, Mode::Splice] {
        let mut driver = Driver::new(Limits { pipes: 1, ..LIMITS });
        let (token, held, client, mut endpoint, sent) = block(&mut driver, 0, mode);
        assert!(held > 0, "{mode:?} keeps what it took");
        driver.poll();
        assert_eq!(driver.counters.pipes_used.get(), 1);

        // The only pipe is taken, so another session goes on without a pipe, and holds nothing.
        let (other, other_held, _client, _endpoint, _) = block(&mut driver, 1, mode);
        assert_eq!(other_held, 0);
        assert!(driver.counters.pipe_shortages.get() > 0);
        driver.close(other, true);

        let expected = sent.len();
        let reader = thread::spawn(move || {
            let mut got = Vec::new();
            endpoint.read_to_end(&mut got).unwrap();
            assert!(got == sent, "{} of {} bytes, or others", got.len(), sent.len());
        });
        client.shutdown(Shutdown::Write).unwrap();
        drop(client);
        let mut read = 0;
        loop {
            match driver.step(token, CLIENT, mode, u32::MAX) {
                Event::Moved { stop: Stop::Eof, held, .. } => break assert_eq!(held, 0),
                Event::Moved { sent, .. } => read += sent as usize,
                other => panic!("{other:?}"),
            }
            assert!(read <= expected);
            driver.turn();
        }
        driver.close(token, false);
        reader.join().unwrap();
        driver.poll();
        assert_eq!(driver.counters.pipes_used.get(), 0);
    }
}

#[test]
fn a_pipe_with_bytes_in_it_never_reaches_another_session() {
    let mut driver = Driver::new(Limits { pipes: 1, ..LIMITS });
    let (token, held, _client, _endpoint, _) = block(&mut driver, 0, Mode::Copy);
    assert!(held > 0);
    driver.close(token, true);
    driver.poll();
    assert_eq!(driver.counters.pipes_used.get(), 0);

    let (token, mut client, mut endpoint) = driver.session(0, 2);
    client.write_all(b"mine").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    endpoint.shutdown(Shutdown::Write).unwrap();
    assert_eq!(driver.relay(token, Mode::Splice, 1 << 20), None);
    driver.close(token, false);
    let mut got = Vec::new();
    endpoint.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"mine");
}

#[test]
fn half_close_lets_the_answer_through() {
    let mut driver = Driver::new(LIMITS);
    let (token, mut client, mut endpoint) = driver.session(0, 1);
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let answering = thread::spawn(move || {
        let mut question = String::new();
        endpoint.read_to_string(&mut question).unwrap();
        endpoint.write_all(question.to_uppercase().as_bytes()).unwrap();
    });
    assert_eq!(driver.relay(token, Mode::Copy, 1 << 20), None);
    driver.close(token, false);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "QUESTION");
    answering.join().unwrap();
}

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
        socket2::SockRef::from(&broken).set_linger(Some(std::time::Duration::ZERO)).unwrap();
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
fn peek_takes_nothing_and_fewer_bytes_wake_nobody() {
    let mut driver = Driver::new(LIMITS);
    let (token, mut client, mut endpoint) = driver.session(0, 1);
    client.write_all(b"abc").unwrap();
    let peeked = |driver: &mut Driver, at_least| {
        driver.act(token, Op::Peek { at_least });
        let position = driver.seen.iter().position(|(_, e)| matches!(e, Event::Peeked { .. }));
        let (_, event) = driver.seen.remove(position.unwrap()).unwrap();
        let Event::Peeked { start, len, end } = event else { unreachable!() };
        (driver.turn.bytes[start as usize..][..len as usize].to_vec(), end)
    };
    driver.until(|_, event| {
        matches!(event, Event::Ready { side: CLIENT, readable: true, .. }).then_some(())
    });
    assert_eq!(peeked(&mut driver, 5), (b"abc".to_vec(), false));
    driver.poll();
    driver.seen.clear();
    client.write_all(b"d").unwrap();
    // The endpoint's byte is sent after the client's byte and is seen. The client's byte causes no
    // wake-up.
    endpoint.write_all(b"x").unwrap();
    driver.until(|_, event| {
        matches!(event, Event::Ready { side: ENDPOINT, readable: true, .. }).then_some(())
    });
    let client_woke = driver
        .seen
        .iter()
        .any(|(_, event)| matches!(event, Event::Ready { side: CLIENT, readable: true, .. }));
    assert!(!client_woke, "{:?}", driver.seen);
    client.write_all(b"e").unwrap();
    driver.until(|_, event| {
        matches!(event, Event::Ready { side: CLIENT, readable: true, .. }).then_some(())
    });
    assert_eq!(peeked(&mut driver, 5), (b"abcde".to_vec(), false));
    // When bytes move, each byte wakes again.
    driver.step(token, CLIENT, Mode::Copy, 1 << 20);
    client.write_all(b"f").unwrap();
    driver.until(|_, event| {
        matches!(event, Event::Ready { side: CLIENT, readable: true, .. }).then_some(())
    });
    client.write_all(&[b'f'; 9_999]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    driver.until(|_, event| {
        matches!(event, Event::Ready { side: CLIENT, ending: true, .. }).then_some(())
    });
    // `Peek` looks no further than it was asked to, in steps of 4 KiB. The end shows behind the
    // last byte.
    for (at_least, len, end) in [(100, 4_096, false), (4_097, 8_192, false), (8_193, 10_000, true)]
    {
        assert_eq!(peeked(&mut driver, at_least), (vec![b'f'; len], end));
    }
    let mut got = [0; 5];
    endpoint.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"abcde");
}

/// Makes an adopted session without an endpoint.
fn client_only(driver: &mut Driver) -> (ringway::contract::Token, TcpStream) {
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
    driver.act(
        token,
        Op::Connect { address: gone.into(), source: Origin::Any, interface: 0, options: OPTIONS },
    );
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
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let _filler = TcpStream::connect(address).unwrap();
    let connect = Op::Connect {
        address: address.into(),
        source: Origin::Any,
        interface: 0,
        options: OPTIONS,
    };
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
fn no_client_is_reset_when_a_listener_goes() {
    let mut driver = Driver::new(Limits { sessions: 4096, ..LIMITS });
    let (socket, address) = driver.listen(Transport::Tcp, "127.0.0.1:0");
    driver.act(socket, Op::Accept);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let burst: Vec<_> = (0..4)
        .map(|_| {
            let stop = stop.clone();
            thread::spawn(move || {
                let mut connected = Vec::new();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) && connected.len() < 500 {
                    let timeout = std::time::Duration::from_millis(300);
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
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
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
        let address = endpoint.local_addr().unwrap();
        driver.act(
            token,
            Op::Connect {
                address: address.into(),
                source: Origin::Any,
                interface: 0,
                options: OPTIONS,
            },
        );
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
        thread::sleep(std::time::Duration::from_millis(1));
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

#[test]
fn a_write_to_the_eventfd_ends_the_wait_each_time() {
    let mut driver = Driver::new(LIMITS);
    for _ in 0..3 {
        driver.wake.write(1).unwrap();
        assert!(driver.ring.wait(None, &mut driver.turn).unwrap());
        assert!(!driver.ring.wait(Some(std::time::Duration::ZERO), &mut driver.turn).unwrap());
    }
}

/// Sends `before` bytes, an urgent one, and `behind` more.
fn send_with_mark(mut client: &TcpStream, before: usize, behind: usize) {
    client.write_all(&vec![b'a'; before]).unwrap();
    assert_eq!(socket2::SockRef::from(client).send_out_of_band(b"!").unwrap(), 1);
    client.write_all(&vec![b'b'; behind]).unwrap();
}

/// A receive stops at the mark of TCP's urgent data. At the mark, splice(2) says that nothing
/// waits, or that the stream has ended.
#[test]
fn urgent_data_neither_stops_a_direction_nor_ends_it() {
    for (mode, pipes) in [(Mode::Copy, 16), (Mode::Splice, 16), (Mode::Copy, 0)] {
        for ends in [false, true] {
            let mut driver = Driver::new(Limits { pipes, ..LIMITS });
            let (token, client, mut endpoint) = driver.session(0, 1);
            for _ in 0..3 {
                send_with_mark(&client, 3_000, 5_000);
                if ends {
                    client.shutdown(Shutdown::Write).unwrap();
                }
                let (mut moved, mut ended) = (0, false);
                // The waiting bytes are moved without another event of the kernel.
                while moved < 8_000 || (ends && !ended) {
                    let event = driver.step(token, CLIENT, mode, 1 << 20);
                    let Event::Moved { read, held: 0, stop, .. } = event else {
                        panic!("{mode:?} {pipes} {ends}: {event:?} behind {moved} bytes")
                    };
                    moved += read;
                    ended = stop == Stop::Eof;
                    assert!(!ended || moved == 8_000, "{mode:?} {pipes}: ended after {moved}");
                    assert!(read > 0 || ended, "{mode:?} {pipes}: stopped after {moved}");
                }
                let mut got = vec![0; 8_000];
                endpoint.read_exact(&mut got).unwrap();
                assert!(got[..3_000].iter().all(|byte| *byte == b'a'));
                assert!(got[3_000..].iter().all(|byte| *byte == b'b'));
                if ends {
                    break;
                }
            }
            driver.close(token, true);
        }
    }
}

#[test]
fn urgent_data_does_not_stop_who_reads_it_himself() {
    let mut driver = Driver::new(LIMITS);
    let (token, client, _endpoint) = driver.session(0, 1);
    send_with_mark(&client, 3_000, 5_000);
    let mut taken = Vec::new();
    while taken.iter().sum::<u32>() < 8_000 {
        driver.act(token, Op::Take { from: CLIENT, at_most: 10_000, to_eof: false });
        taken.push(driver.until(|_, event| match event {
            Event::Taken { len, stop, .. } => {
                assert!(*stop == Stop::Budget || *len == 5_000, "{len} {stop:?}");
                Some(*len)
            }
            _ => None,
        }));
    }
    assert_eq!(taken, [3_000, 5_000]);
    driver.close(token, true);
}

/// Until the peer's kernel has all bytes, a reset would overtake some of them.
#[test]
fn what_a_side_has_not_acknowledged_is_told() {
    let mut driver = Driver::new(LIMITS);
    let (token, held, client, mut endpoint, sent) = block(&mut driver, 0, Mode::Copy);
    let unacked = |driver: &mut Driver| {
        driver.act(token, Op::Unacked { side: ENDPOINT });
        driver.until(|_, event| match event {
            Event::Unacked { side: ENDPOINT, bytes } => Some(*bytes),
            _ => None,
        })
    };
    let before = unacked(&mut driver);
    assert!(held > 0 && before > 0 && (before as usize) < sent.len(), "{before}");
    let reader = thread::spawn(move || {
        let mut got = vec![0; sent.len()];
        endpoint.read_exact(&mut got).unwrap();
        assert!(got == sent);
        let end = endpoint.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(end, Err(ErrorKind::ConnectionReset));
    });
    client.shutdown(Shutdown::Write).unwrap();
    while !matches!(
        driver.step(token, CLIENT, Mode::Copy, u32::MAX),
        Event::Moved { stop: Stop::Eof, .. }
    ) {
        driver.turn();
    }
    while unacked(&mut driver) > 0 {
        thread::sleep(std::time::Duration::from_millis(1));
    }
    driver.close(token, true);
    reader.join().unwrap();
}

/// The kernel still counts the bytes that were on their way to a connection that is gone.
#[test]
fn nothing_is_awaited_of_a_side_that_is_gone() {
    let mut driver = Driver::new(LIMITS);
    let (token, _held, _client, endpoint, _sent) = block(&mut driver, 0, Mode::Copy);
    socket2::SockRef::from(&endpoint).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(endpoint);
    // On loopback the reset is there at once, or a moment later.
    let gone = (0..1_000).any(|_| {
        driver.act(token, Op::Unacked { side: ENDPOINT });
        let bytes = driver.until(|_, event| match event {
            Event::Unacked { side: ENDPOINT, bytes } => Some(*bytes),
            _ => None,
        });
        thread::sleep(std::time::Duration::from_millis(1));
        bytes == 0
    });
    assert!(gone);
    driver.close(token, true);
}
