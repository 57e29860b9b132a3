//! UDP through the release binary: addresses of replies, ends of flows, failing endpoints, and
//! fifty thousand flows that must not hear each other.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{
    Gateway, Launch, Pattern, Server, free_address, free_port, in_own_network, now, program,
    udp_client, wait_until,
};
use socket2::SockRef;

fn forwarding(to: SocketAddr, options: &str) -> (Gateway, SocketAddr) {
    let address = free_address();
    (Gateway::start(&forward("UDP", address, [to], options)), address)
}

/// Sends `bytes` until an answer comes, and returns it: a datagram may get lost, and while an
/// endpoint changes it will.
fn ask(socket: &UdpSocket, bytes: &[u8]) -> Vec<u8> {
    let mut answer = vec![0; 65_536];
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    for _ in 0..60 {
        let _ = socket.send(bytes);
        if let Ok(len) = socket.recv(&mut answer) {
            answer.truncate(len);
            return answer;
        }
    }
    panic!("no answer to any of 60 datagrams");
}

#[test]
fn datagrams_of_every_size_come_back_whole() {
    let server = Server::udp_echo();
    let (_gateway, address) = forwarding(server.address, "");
    let socket = udp_client(address);
    for len in [1, 2, 511, 1200, 1472, 1473, 9_000, 40_000, 65_507] {
        let datagram = Pattern::new(len as u64).take(len);
        assert_eq!(ask(&socket, &datagram), datagram, "{len} bytes");
    }
}

/// Datagrams of one sender in a row, as GRO and GSO take them together, keep their borders.
#[test]
fn trains_keep_their_borders() {
    let server = Server::udp_echo();
    let (_gateway, address) = forwarding(server.address, "");
    let socket = udp_client(address);
    SockRef::from(&socket).set_recv_buffer_size(4 << 20).expect("a buffer size");
    let mut pattern = Pattern::new(5);
    let mut buffer = vec![0; 65_536];
    let mut answered = 0;
    for round in 0..50 {
        // Equal sizes, then one that is shorter, one that is longer, and an empty one.
        let sizes = [1200, 1200, 1200, 1200, 1200, 700, 1400, 0, 1200, 1200, 1, 1];
        let sent: Vec<_> = sizes.iter().map(|len| pattern.take(*len)).collect();
        for datagram in &sent {
            socket.send(datagram).expect("sent");
        }
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        let mut back = Vec::new();
        while back.len() < sent.len() {
            let Ok(len) = socket.recv(&mut buffer) else { break };
            back.push(buffer[..len].to_vec());
        }
        answered += back.len();
        // Loopback does not reorder one flow; what is lost may be lost, nothing may be changed.
        let mut expected = sent.iter();
        for datagram in &back {
            assert!(expected.any(|sent| sent == datagram), "round {round}: changed or reordered");
        }
    }
    assert!(answered >= 50 * 12 * 95 / 100, "{answered} of 600 came back");
}

/// One empty datagram ends a multishot receive; both sockets must go on receiving.
#[test]
fn empty_datagrams_pass_both_ways_and_silence_nobody() {
    let server = Server::udp_echo();
    let (_gateway, address) = forwarding(server.address, "");
    let (first, second) = (udp_client(address), udp_client(address));
    for _ in 0..20 {
        assert_eq!(ask(&first, b""), b"");
        assert_eq!(ask(&first, b"still there"), b"still there");
        assert_eq!(ask(&second, b"and you"), b"and you");
    }
}

/// A connected socket takes nothing but replies from the address that it spoke to.
#[test]
fn wildcard_listener_replies_from_the_address_that_was_asked() {
    in_own_network(|| {
        program("ip", &["address", "add", "fd00::1/128", "dev", "lo"]);
        program("ip", &["address", "add", "fd00::2/128", "dev", "lo"]);
        let server = Server::udp_echo();
        let port = free_port();
        let config = listener("v4", "UDP", SocketAddr::from(([0, 0, 0, 0], port)), "")
            + &listener("v6", "UDP", SocketAddr::from(([0u16; 8], port)), "")
            + &route("v4", "v4", &[("echo", 1)], "")
            + &route("v6", "v6", &[("echo", 1)], "")
            + &backend("echo", [server.address], "");
        let _gateway = Gateway::start(&config);
        for address in ["127.0.0.1", "127.0.0.2", "127.8.8.8", "fd00::1", "fd00::2", "::1"] {
            let address: IpAddr = address.parse().expect("an address");
            let socket = udp_client((address, port).into());
            assert_eq!(
                ask(&socket, address.to_string().as_bytes()),
                address.to_string().as_bytes()
            );
        }
        // One client socket that speaks to two addresses has two flows.
        let socket = UdpSocket::bind("127.0.0.1:0").expect("binding");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        for address in ["127.0.0.1", "127.0.0.2"] {
            let address = SocketAddr::new(address.parse().expect("an address"), port);
            let mut answer = [0; 16];
            socket.send_to(b"to you", address).expect("sent");
            let (len, from) = socket.recv_from(&mut answer).expect("an answer");
            assert_eq!((&answer[..len], from), (&b"to you"[..], address));
        }
    });
}

/// ICMP port unreachable ends no flow: the client is served again when the endpoint is back.
#[test]
fn endpoint_that_was_down_is_used_again() {
    let server = Server::udp_echo();
    let endpoint = server.address;
    let (gateway, address) = forwarding(endpoint, "");
    let socket = udp_client(address);
    assert_eq!(ask(&socket, b"up"), b"up");
    drop(server);
    wait_until("a refusal was counted", || {
        let _ = socket.send(b"down");
        gateway.metrics().value("ringway_endpoint_refusals_total", &[]) > 0
    });
    let _server = Server::udp_at(endpoint, |socket, bytes, peer| {
        let _ = socket.send_to(bytes, peer);
    });
    assert_eq!(ask(&socket, b"up again"), b"up again");
    assert_eq!(gateway.metrics().value("ringway_flows_active", &[]), 1, "it was one flow");
}

/// A flow without a single reply stays one flow as long as datagrams come, whatever `responses`.
#[test]
fn one_way_flow_is_kept() {
    let (seen, sources) = mpsc::channel();
    let server = Server::udp(move |_, _, peer| {
        let _ = seen.send(peer);
    });
    let (gateway, address) = forwarding(server.address, "responses = 1\nflow_timeout = \"1s\"");
    let socket = udp_client(address);
    for _ in 0..40 {
        socket.send(b"tick").expect("sent");
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(server);
    let mut sources: Vec<_> = sources.iter().collect();
    assert!(sources.len() >= 38, "{} of 40 arrived", sources.len());
    sources.dedup();
    assert_eq!(sources.len(), 1, "the flow changed its socket: {sources:?}");
    // And it ends when nothing comes any more.
    let line = gateway.closed_for("flow_timeout");
    assert_eq!(line.number("bytes_down"), 0);
}

#[test]
fn flow_ends_when_every_datagram_is_answered() {
    let server = Server::udp_echo();
    let (gateway, address) = forwarding(server.address, "responses = 1");
    let socket = udp_client(address);
    assert_eq!(ask(&socket, b"question"), b"question");
    let line = gateway.closed_for("flow_answered");
    assert_eq!((line.number("bytes_up"), line.number("bytes_down")), (8, 8));
}

/// Two questions from one socket before the first answer: both are answered, as resolvers need it.
#[test]
fn pipelined_questions_are_both_answered() {
    let server = Server::udp(|socket, bytes, peer| {
        // Late, so that both are under way.
        std::thread::sleep(Duration::from_millis(20));
        let _ = socket.send_to(bytes, peer);
    });
    let (_gateway, address) = forwarding(server.address, "responses = 1");
    for _ in 0..50 {
        let socket = udp_client(address);
        socket.send(b"A").expect("sent");
        socket.send(b"AAAA").expect("sent");
        let mut answers = Vec::new();
        for _ in 0..2 {
            let mut answer = [0; 16];
            let len = socket.recv(&mut answer).expect("both answers");
            answers.push(answer[..len].to_vec());
        }
        assert_eq!(answers, [b"A".to_vec(), b"AAAA".to_vec()]);
    }
}

/// Steady one-way traffic would feed a removed endpoint for ever.
#[test]
fn flow_of_a_removed_endpoint_moves_after_lame_duck() {
    let (old, new) = (Server::udp_echo(), Server::udp_echo());
    let address = free_address();
    let config = |endpoint: &Server| {
        "lame_duck = \"1s\"\n".to_owned() + &forward("UDP", address, [endpoint.address], "")
    };
    let gateway = Gateway::start(&config(&old));
    let socket = udp_client(address);
    assert_eq!(ask(&socket, b"one"), b"one");
    assert_eq!(new.served(), 0);
    gateway.reload(&config(&new));
    wait_until("the flow has moved", || {
        let _ = socket.send(b"two");
        new.served() > 0
    });
    // From then on nothing goes to the old one.
    let before = (old.served(), new.served());
    for _ in 0..20 {
        socket.send(b"three").expect("sent");
    }
    wait_until("all have arrived at the new one", || new.served() >= before.1 + 20);
    assert_eq!(old.served(), before.0);
}

#[test]
fn backend_without_endpoints_drops_its_share() {
    let server = Server::udp_tag("a");
    let address = free_address();
    let config = listener("main", "UDP", address, "")
        + &route("main", "main", &[("full", 1), ("empty", 1)], "")
        + &backend("full", [server.address], "")
        + &backend("empty", [], "");
    let gateway = Launch::default().one_worker().start(&config);
    let sockets: Vec<_> = (0..100).map(|_| udp_client(address)).collect();
    for socket in &sockets {
        socket.send(b"?").expect("sent");
    }
    let dropped = || {
        let reason = [("reason", "no_endpoint")];
        gateway.metrics().value("ringway_datagrams_dropped_total", &reason)
    };
    wait_until("half is served and half is dropped", || server.served() + dropped() == 100);
    assert_eq!(dropped(), 50);
}

#[test]
fn flows_above_the_limit_are_refused_and_counted() {
    let server = Server::udp_echo();
    let address = free_address();
    let config = forward("UDP", address, [server.address], "flow_timeout = \"2s\"")
        + "[limits]\nflows = 16\n";
    let gateway = Launch::default().one_worker().start(&config);
    let sockets: Vec<_> = (0..40).map(|_| udp_client(address)).collect();
    for socket in &sockets {
        socket.send(b"?").expect("sent");
    }
    let dropped = || {
        let reason = [("reason", "flow_limit")];
        gateway.metrics().value("ringway_datagrams_dropped_total", &reason)
    };
    wait_until("the rest is refused", || server.served() + dropped() == 40);
    assert_eq!(server.served(), 16);
    drop(sockets);
    wait_until("the flows are over", || gateway.metrics().value("ringway_flows_active", &[]) == 0);
    assert_eq!(ask(&udp_client(address), b"room again"), b"room again");
}

/// Fifty source ports for two hundred flows: what cannot be had is counted, and comes back.
#[test]
fn source_ports_that_run_out_are_counted_and_come_back() {
    in_own_network(|| {
        program("sysctl", &["-qw", "net.ipv4.ip_local_port_range=40000 40049"]);
        let endpoint = SocketAddr::from(([127, 0, 0, 1], 9_999));
        let server = Server::udp_at(endpoint, |socket, bytes, peer| {
            let _ = socket.send_to(bytes, peer);
        });
        let (gateway, address) = forwarding(server.address, "flow_timeout = \"2s\"");
        let client = |port: u16| {
            let socket = UdpSocket::bind(("127.0.0.1", port)).expect("a port");
            socket.connect(address).expect("connecting");
            socket
        };
        let sockets: Vec<_> = (0..200).map(|at| client(50_000 + at)).collect();
        for socket in &sockets {
            socket.send(b"?").expect("sent");
        }
        let dropped = || {
            let reason = [("reason", "no_socket")];
            gateway.metrics().value("ringway_datagrams_dropped_total", &reason)
        };
        wait_until("the rest is refused", || server.served() + dropped() == 200);
        assert!(dropped() >= 150, "{} dropped of 200 with 50 ports", dropped());
        assert!(server.served() > 0);
        drop(sockets);
        assert_eq!(ask(&client(60_000), b"again"), b"again");
    });
}

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
        "lame_duck = \"1s\"\n".to_owned()
            + &forward("UDP", address, rest.map(|(_, endpoint)| *endpoint), "responses = 1")
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

/// Whether a datagram was there; it is counted by whose it was.
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
