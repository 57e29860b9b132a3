//! No reply reaches another client.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{Gateway, Server, free_address, in_own_network, now};

/// What one client thread of the test below has seen.
#[derive(Debug, Default)]
struct Heard {
    /// Answers that carried the asking flow's own tag.
    own: u64,
    /// Flows that were answered at least once.
    answered: u64,
    /// Datagrams that were meant for another.
    foreign: u64,
}

/// Each flow has its own socket and tag. Endpoints answer at once and again a little later, when
/// the flow is over and its upstream socket rests; while endpoints come and go. No datagram may
/// reach a client that it is not for.
#[test]
fn no_reply_reaches_another_client() {
    in_own_network(fifty_thousand_flows);
}

fn fifty_thousand_flows() {
    const FLOWS: u64 = 50_000;
    const THREADS: u64 = 2;
    let servers: Vec<_> = (0..3).map(|_| late_repeater()).collect();
    let endpoints: Vec<_> = servers.iter().map(|server| server.address).collect();
    let address = free_address();
    let config = |left_out: usize| {
        let rest = endpoints.iter().enumerate().filter(|(at, _)| *at != left_out);
        // Longer than answers are late; with the default there would be too few ports.
        let backend =
            backend("main", rest.map(|(_, endpoint)| *endpoint), "upstream_rest = \"200ms\"");
        "lame_duck = \"1s\"\n".to_owned()
            + &listener("main", "UDP", address, "responses = 1")
            + &route("main", "main", &[("main", 1)], "")
            + &backend
    };
    let gateway = Gateway::start(&config(0));
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..THREADS)
        .map(|thread| std::thread::spawn(move || short_flows(address, thread, FLOWS / THREADS)))
        .collect();
    let mut reloads = 0;
    let heard = std::thread::scope(|scope| {
        let done = Arc::clone(&over);
        let waiter = scope.spawn(move || {
            let heard: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
            done.store(true, Ordering::SeqCst);
            heard
        });
        while !over.load(Ordering::SeqCst) {
            reloads += 1;
            gateway.write(&config(reloads % 3));
            gateway.signal(nix::sys::signal::Signal::SIGHUP);
            std::thread::sleep(Duration::from_millis(200));
        }
        waiter.join().expect("no panic")
    });
    let mut sum = Heard::default();
    for heard in heard {
        let heard = heard.expect("no panic");
        sum.own += heard.own;
        sum.answered += heard.answered;
        sum.foreign += heard.foreign;
    }
    let late = gateway.metrics().value("ringway_endpoint_late_replies_total", &[]);
    eprintln!("{sum:?}, {late} late replies dropped, {reloads} reloads");
    assert_eq!(sum.foreign, 0);
    assert!(sum.answered >= FLOWS * 98 / 100, "{sum:?}");
    assert!(late > FLOWS / 10, "the late replies were not late");
}

/// Answers at once, and again 5 to 100 ms later.
fn late_repeater() -> Server {
    let (later, due) = mpsc::channel::<(Instant, Vec<u8>, SocketAddr, UdpSocket)>();
    std::thread::spawn(move || {
        let mut waiting: BTreeMap<(Instant, SocketAddr), (Vec<u8>, UdpSocket)> = BTreeMap::new();
        loop {
            match due.recv_timeout(Duration::from_millis(1)) {
                Ok((at, bytes, peer, socket)) => drop(waiting.insert((at, peer), (bytes, socket))),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            while let Some(first) = waiting.first_entry()
                && first.key().0 <= now()
            {
                let ((_, peer), (bytes, socket)) = first.remove_entry();
                let _ = socket.send_to(&bytes, peer);
            }
        }
    });
    let mut count = 0;
    Server::udp(move |socket, bytes, peer| {
        let _ = socket.send_to(bytes, peer);
        count += 1;
        let delay = Duration::from_millis(5 + count * 37 % 96);
        let socket = socket.try_clone().expect("a descriptor");
        let _ = later.send((now() + delay, bytes.to_vec(), peer, socket));
    })
}

/// Opens `count` flows, at most 500 at a time; each listens on while 500 others come after it.
fn short_flows(address: SocketAddr, thread: u64, count: u64) -> Heard {
    let mut heard = Heard::default();
    let mut open: std::collections::VecDeque<(u64, UdpSocket, bool)> = Default::default();
    let mut buffer = [0; 64];
    for at in 0..count {
        let tag = (thread << 32) | at;
        // Ports that come again soon, so that a client has the address of one before it; and not
        // from the range that the gateway needs for its own sockets.
        let port = u16::try_from(2_000 + thread * 4_000 + at % 1_000).expect("a port");
        let socket = UdpSocket::bind(("127.0.0.1", port)).expect("the port is free again");
        socket.connect(address).expect("connecting");
        let mut asked = 0;
        let answered = loop {
            socket.send(&tag.to_be_bytes()).expect("sent");
            socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
            if listen(&socket, tag, &mut buffer, &mut heard) {
                break true;
            }
            asked += 1;
            if asked == 5 {
                break false;
            }
        };
        heard.answered += u64::from(answered);
        socket.set_nonblocking(true).expect("an option");
        open.push_back((tag, socket, answered));
        if open.len() > 500
            && let Some((tag, socket, _)) = open.pop_front()
        {
            while listen(&socket, tag, &mut buffer, &mut heard) {}
        }
    }
    for (tag, socket, _) in open {
        while listen(&socket, tag, &mut buffer, &mut heard) {}
    }
    heard
}

/// Whether a datagram was there. Datagrams are counted by client.
fn listen(socket: &UdpSocket, tag: u64, buffer: &mut [u8], heard: &mut Heard) -> bool {
    match socket.recv(buffer) {
        Ok(len) => {
            if buffer[..len] == tag.to_be_bytes() {
                heard.own += 1;
            } else {
                heard.foreign += 1;
            }
            true
        }
        Err(_) => false,
    }
}
