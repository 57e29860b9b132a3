//! Tests moves of bytes between the sockets of a session.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use config_sync::table::routing::Limits;
use ringway::contract::{Event, Mode, Op, Stop, Token};
use socket2::SockRef;

use crate::harness::{CLIENT, Driver, ENDPOINT, LIMITS, noise};

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
) -> (Token, u32, TcpStream, TcpStream, Vec<u8>) {
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

/// Sends `before` bytes, an urgent one, and `behind` more.
fn send_with_mark(mut client: &TcpStream, before: usize, behind: usize) {
    client.write_all(&vec![b'a'; before]).unwrap();
    assert_eq!(SockRef::from(client).send_out_of_band(b"!").unwrap(), 1);
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
        thread::sleep(Duration::from_millis(1));
    }
    driver.close(token, true);
    reader.join().unwrap();
}

/// The kernel still counts the bytes that were on their way to a connection that is gone.
#[test]
fn nothing_is_awaited_of_a_side_that_is_gone() {
    let mut driver = Driver::new(LIMITS);
    let (token, _held, _client, endpoint, _sent) = block(&mut driver, 0, Mode::Copy);
    SockRef::from(&endpoint).set_linger(Some(Duration::ZERO)).unwrap();
    drop(endpoint);
    // On loopback the reset is there at once, or a moment later.
    let gone = (0..1_000).any(|_| {
        driver.act(token, Op::Unacked { side: ENDPOINT });
        let bytes = driver.until(|_, event| match event {
            Event::Unacked { side: ENDPOINT, bytes } => Some(*bytes),
            _ => None,
        });
        thread::sleep(Duration::from_millis(1));
        bytes == 0
    });
    assert!(gone);
    driver.close(token, true);
}
