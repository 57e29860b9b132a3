//! Tests streams on real sockets: small messages go from side to side without an op for each.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use config_sync::table::routing::Limits;
use ringway::contract::{Event, Mode, Op, Side, Stop, Token, Why};

use crate::harness::{CLIENT, Driver, ENDPOINT, LIMITS, noise};

/// The next `Moved` of a direction.
fn moved(driver: &mut Driver, token: Token, way: Side) -> (u32, u32, u32, Stop) {
    driver.until(|at, event| match event {
        Event::Moved { from, read, sent, held, stop } if at == token && *from == way => {
            Some((*read, *sent, *held, *stop))
        }
        _ => None,
    })
}

/// Begins a stream. Returns false if streams are masked on this kernel.
fn begin(driver: &mut Driver, token: Token, from: Side) -> bool {
    driver.seen.clear();
    driver.act(token, Op::Stream { from });
    driver.seen.is_empty()
}

/// The last `Moved` of a stream, with the sums of bytes read and sent by all of them.
fn until_over(driver: &mut Driver, token: Token, way: Side) -> (u32, u32, u32, Stop) {
    let (mut read_all, mut sent_all) = (0, 0);
    loop {
        let (read, sent, held, stop) = moved(driver, token, way);
        read_all += read;
        sent_all += sent;
        assert_eq!(held, read_all - sent_all);
        if stop != Stop::Drained {
            return (read_all, sent_all, held, stop);
        }
    }
}

#[test]
fn small_messages_stream_both_ways_and_end_with_a_half_close() {
    // With two buffers, a buffer that does not come back is soon missed.
    let mut driver = Driver::new(Limits { buffers: 2, ..LIMITS });
    let (token, mut client, mut endpoint) = driver.session(0, 1);
    if !begin(&mut driver, token, CLIENT) || !begin(&mut driver, token, ENDPOINT) {
        return;
    }
    let mut got = [0; 100];
    for round in 1..100 {
        let message = noise(round, 1);
        for way in [CLIENT, ENDPOINT] {
            let (from, to) = match way {
                CLIENT => (&mut client, &mut endpoint),
                ENDPOINT => (&mut endpoint, &mut client),
            };
            from.write_all(&message).unwrap();
            let len = u32::try_from(round).unwrap();
            assert_eq!(moved(&mut driver, token, way), (len, len, 0, Stop::Drained));
            to.read_exact(&mut got[..round]).unwrap();
            assert_eq!(got[..round], message);
        }
    }
    assert!(driver.seen.is_empty(), "no Ready beside the stream: {:?}", driver.seen);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(moved(&mut driver, token, CLIENT), (0, 0, 0, Stop::Eof));
    driver.act(token, Op::Shutdown { side: ENDPOINT });
    assert_eq!(endpoint.read(&mut got).unwrap(), 0);
    endpoint.write_all(b"answer").unwrap();
    assert_eq!(moved(&mut driver, token, ENDPOINT), (6, 6, 0, Stop::Drained));
    driver.close(token, false);
    assert_eq!(driver.counters.streams.get(), 2);
    assert_eq!(driver.counters.buffer_shortages.get(), 0);
}

#[test]
fn what_a_stream_does_not_get_rid_of_keeps_its_order() {
    for pipes in [0, 16] {
        let mut driver = Driver::new(Limits { pipes, ..LIMITS });
        let (token, client, mut endpoint) = driver.session(0, 1);
        if !begin(&mut driver, token, CLIENT) {
            return;
        }
        // Nobody reads. Buffers that were full when the cancellation came are still delivered.
        client.set_nonblocking(true).unwrap();
        let (mut sent, mut read) = (Vec::new(), 0);
        let held = loop {
            let more = noise(60_000, sent.len() as u64);
            match (&client).write(&more) {
                Ok(n) => sent.extend_from_slice(&more[..n]),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            let (taken, given, held, stop) = moved(&mut driver, token, CLIENT);
            read += taken as usize;
            assert_eq!(stop, Stop::Drained, "more than 64 buffers at once: {given}");
            if held > 0 {
                break held;
            }
        };
        client.set_nonblocking(false).unwrap();
        let (late, _, left, stop) = rest(&mut driver, token);
        read += late as usize;
        assert_eq!((stop, left), (Stop::Budget, held + late));
        assert!(read <= sent.len());
        let step = driver.step(token, CLIENT, Mode::Copy, 1 << 20);
        assert!(matches!(step, Event::Moved { stop: Stop::Blocked, .. }), "{step:?}");

        let expected = sent.len();
        let reader = thread::spawn(move || {
            let mut got = Vec::new();
            endpoint.read_to_end(&mut got).unwrap();
            assert!(got == sent, "{} of {} bytes, or others", got.len(), sent.len());
        });
        drop(client);
        let mut given = 0;
        loop {
            let Event::Moved { sent, held, stop, .. } =
                driver.step(token, CLIENT, Mode::Copy, 1 << 20)
            else {
                unreachable!("that is what a Move answers")
            };
            given += sent as usize;
            assert!(given <= expected);
            match stop {
                Stop::Eof => break assert_eq!(held, 0),
                Stop::Budget => {}
                _ => drop(driver.turn()),
            }
        }
        driver.close(token, false);
        reader.join().unwrap();
        driver.poll();
        assert_eq!(driver.counters.pipes_used.get(), 0);
    }
}

/// The sums of the `Moved`s between the first held bytes and the end.
fn rest(driver: &mut Driver, token: Token) -> (u32, u32, u32, Stop) {
    let mut all = 0;
    loop {
        let (read, sent, held, stop) = moved(driver, token, CLIENT);
        assert_eq!(sent, 0, "what is behind must wait");
        all += read;
        if stop != Stop::Drained {
            return (all, sent, held, stop);
        }
    }
}

#[test]
fn running_out_of_buffers_ends_a_stream_and_loses_nothing() {
    let mut driver = Driver::new(Limits { buffers: 2, ..LIMITS });
    let (token, mut client, mut endpoint) = driver.session(0, 1);
    let sent = noise(100_000, 5);
    client.write_all(&sent).unwrap();
    if !begin(&mut driver, token, CLIENT) {
        return;
    }
    let (read, given, held, stop) = until_over(&mut driver, token, CLIENT);
    assert_eq!((given, held, stop), (read, 0, Stop::Budget));
    assert!((read as usize) < sent.len(), "two buffers do not hold all of it");
    assert_eq!(driver.counters.buffer_shortages.get(), 1);
    client.shutdown(Shutdown::Write).unwrap();
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        endpoint.read_to_end(&mut got).unwrap();
        assert!(got == sent, "{} of {} bytes, or others", got.len(), sent.len());
    });
    loop {
        match driver.step(token, CLIENT, Mode::Copy, 1 << 20) {
            Event::Moved { stop: Stop::Eof, .. } => break,
            Event::Moved { stop: Stop::Budget, .. } => {}
            Event::Moved { .. } => drop(driver.turn()),
            other => panic!("{other:?}"),
        }
    }
    driver.close(token, false);
    reader.join().unwrap();
    // The buffers are back, so another session can stream.
    let (token, mut client, _endpoint) = driver.session(1, 1);
    assert!(begin(&mut driver, token, CLIENT));
    client.write_all(b"x").unwrap();
    assert_eq!(moved(&mut driver, token, CLIENT), (1, 1, 0, Stop::Drained));
}

#[test]
fn a_stream_that_was_asked_to_end_does_and_its_side_is_watched_again() {
    let mut driver = Driver::new(LIMITS);
    let (token, mut client, _endpoint) = driver.session(0, 1);
    for round in 0..50 {
        if !begin(&mut driver, token, CLIENT) {
            return;
        }
        if round % 2 == 0 {
            client.write_all(b"message").unwrap();
        }
        if round % 3 == 0 {
            driver.poll();
        }
        driver.act(token, Op::Unstream { from: CLIENT });
        driver.act(token, Op::Unstream { from: CLIENT });
        let (read, sent, held, stop) = until_over(&mut driver, token, CLIENT);
        assert_eq!((read, held, stop), (sent, 0, Stop::Budget));
        if let Event::Moved { read: more, stop, .. } =
            driver.step(token, CLIENT, Mode::Copy, 1 << 20)
        {
            assert_eq!((read + more, stop), (if round % 2 == 0 { 7 } else { 0 }, Stop::Drained));
        }
        driver.seen.clear();
        client.write_all(b"!").unwrap();
        driver.until(|_, event| {
            matches!(event, Event::Ready { side: CLIENT, readable: true, .. }).then_some(())
        });
        driver.step(token, CLIENT, Mode::Copy, 1 << 20);
    }
    driver.act(token, Op::Unstream { from: CLIENT });
    driver.close(token, false);
}

fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

#[test]
fn resets_are_seen_by_streams_and_passed_on() {
    for from in [CLIENT, ENDPOINT] {
        let mut driver = Driver::new(LIMITS);
        let (token, client, endpoint) = driver.session(0, 1);
        if !begin(&mut driver, token, CLIENT) || !begin(&mut driver, token, ENDPOINT) {
            return;
        }
        let (broken, mut other) = match from {
            CLIENT => (client, endpoint),
            ENDPOINT => (endpoint, client),
        };
        (&broken).write_all(b"last words").unwrap();
        assert_eq!(moved(&mut driver, token, from), (10, 10, 0, Stop::Drained));
        reset(broken);
        let stop = Stop::Failed { side: from, why: Why::Reset };
        assert_eq!(moved(&mut driver, token, from), (0, 0, 0, stop));
        driver.close(token, true);
        other.read_exact(&mut [0; 10]).unwrap();
        assert_eq!(other.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

#[test]
fn a_destination_that_fails_is_said_once() {
    let mut driver = Driver::new(LIMITS);
    let (token, mut client, endpoint) = driver.session(0, 1);
    if !begin(&mut driver, token, CLIENT) {
        return;
    }
    driver.poll();
    reset(endpoint);
    client.write_all(b"to nobody").unwrap();
    let stop = Stop::Failed { side: ENDPOINT, why: Why::Reset };
    assert_eq!(moved(&mut driver, token, CLIENT), (9, 0, 0, stop));
    client.write_all(b"more").unwrap();
    // The client is watched again when the stream is over, and no other event reports the end.
    driver.until(|_, event| matches!(event, Event::Ready { side: CLIENT, .. }).then_some(()));
    assert!(!driver.seen.iter().any(|(_, event)| matches!(event, Event::Moved { .. })));
    driver.close(token, true);
}

#[test]
fn a_direction_that_is_blocked_ends_the_stream_of_its_destination() {
    let mut driver = Driver::new(LIMITS);
    let (token, client, mut endpoint) = driver.session(0, 1);
    if !begin(&mut driver, token, ENDPOINT) {
        return;
    }
    client.set_nonblocking(true).unwrap();
    loop {
        if let Err(error) = (&client).write(&noise(200_000, 3)) {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
        }
        if let Event::Moved { stop: Stop::Blocked, .. } =
            driver.step(token, CLIENT, Mode::Copy, u32::MAX)
        {
            break;
        }
    }
    assert_eq!(moved(&mut driver, token, ENDPOINT), (0, 0, 0, Stop::Budget));
    driver.poll();
    driver.seen.clear();
    endpoint.set_nonblocking(true).unwrap();
    let mut bytes = vec![0; 1 << 20];
    while endpoint.read(&mut bytes).is_ok() {}
    driver.until(|_, event| {
        matches!(event, Event::Ready { side: ENDPOINT, writable: true, .. }).then_some(())
    });
    driver.close(token, true);
}

#[test]
fn what_was_eaten_and_not_delivered_makes_the_close_a_reset() {
    let mut driver = Driver::new(LIMITS);
    let (token, mut client, _endpoint) = driver.session(0, 1);
    if !begin(&mut driver, token, CLIENT) {
        return;
    }
    // The receive is under way, and completes before the cancellation.
    driver.poll();
    client.write_all(b"unheard").unwrap();
    driver.act(token, Op::Close { reset: false });
    driver.event(token, Event::Closed);
    assert!(driver.seen.is_empty(), "Closed is all that is said: {:?}", driver.seen);
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn without_the_feature_there_is_no_stream_and_all_else_works() {
    let mut driver = Driver::without(&["multishot_recv"]);
    let (token, mut client, mut endpoint) = driver.session(0, 1);
    driver.seen.clear();
    driver.act(token, Op::Stream { from: CLIENT });
    let refused = Event::Moved { from: CLIENT, read: 0, sent: 0, held: 0, stop: Stop::Budget };
    assert_eq!(driver.seen.pop_front(), Some((token, refused)));
    client.write_all(b"plain").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    endpoint.shutdown(Shutdown::Write).unwrap();
    assert_eq!(driver.relay(token, Mode::Copy, 1 << 20), None);
    driver.close(token, false);
    let mut got = Vec::new();
    endpoint.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"plain");
}

#[test]
fn urgent_data_does_not_stop_a_stream() {
    let mut driver = Driver::new(LIMITS);
    let (token, mut client, mut endpoint) = driver.session(0, 1);
    if !begin(&mut driver, token, CLIENT) {
        return;
    }
    client.write_all(&[b'a'; 300]).unwrap();
    assert_eq!(socket2::SockRef::from(&client).send_out_of_band(b"!").unwrap(), 1);
    client.write_all(&[b'b'; 500]).unwrap();
    let mut read_all = 0;
    while read_all < 800 {
        let (read, _, held, stop) = moved(&mut driver, token, CLIENT);
        read_all += read;
        assert_eq!((held, stop), (0, Stop::Drained), "after {read_all} bytes");
    }
    endpoint.read_exact(&mut [0; 800]).unwrap();
    driver.close(token, true);
}
