//! New tables and the end of the process, under traffic: nothing that lives may notice.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use ringway_tests::real::config::{backend, forward, forward_as, listener, route};
use ringway_tests::real::{
    Gateway, Launch, LogLine, Pattern, Server, SetWhenDropped, connect, echo, exchange,
    free_address, now, seconds, udp_client, wait_until,
};

/// One hundred megabytes each way, each compared with what was sent.
const BULK: u64 = 100_000_000;

/// Reads eight bytes of seed, then sends and compares `BULK` bytes at once, and says `k`.
fn bulk_server() -> Server {
    Server::tcp(|mut stream| {
        let mut seed = [0; 8];
        if stream.read_exact(&mut seed).is_err() {
            return;
        }
        let seed = u64::from_be_bytes(seed);
        let sending = stream.try_clone().expect("a descriptor");
        let sender = std::thread::spawn(move || Pattern::new(!seed).send(&sending, BULK));
        let received = Pattern::new(seed).expect(&stream, BULK);
        let sent = sender.join().expect("no panic");
        let word = if received.is_ok() && sent.is_ok() { b"k" } else { b"x" };
        let _ = stream.write_all(word);
    })
}

fn bulk_client(address: SocketAddr, seed: u64) -> std::io::Result<()> {
    let mut stream = connect(address);
    stream.write_all(&seed.to_be_bytes())?;
    let sending = stream.try_clone()?;
    let sender = std::thread::spawn(move || {
        Pattern::new(seed).send(&sending, BULK)?;
        sending.shutdown(Shutdown::Write)
    });
    Pattern::new(!seed).expect(&stream, BULK)?;
    sender.join().expect("no panic")?;
    let mut word = Vec::new();
    stream.read_to_end(&mut word)?;
    if word == b"k" { Ok(()) } else { Err(std::io::Error::other("the server got other bytes")) }
}

/// A new table every 100 ms for 20 s, with a listener that comes and goes and another endpoint each
/// time, while bulk sessions and short ones go on: none is lost.
#[test]
fn sessions_live_through_a_reload_every_100_ms() {
    let (bulk, small) = (bulk_server(), Server::tcp(echo));
    let (address, short, extra) = (free_address(), free_address(), free_address());
    let config = |round: u64| {
        let mut config = forward("TCP", address, [bulk.address], "")
            + &listener("short", "TCP", short, "")
            + &route("short", "short", &[("small", 1)], "");
        let spare = SocketAddr::from(([127, 0, 0, 1], 1000 + u16::try_from(round % 50).expect("")));
        config += &backend("small", [small.address], "");
        config += &backend("spare", [spare], "");
        if round % 2 == 1 {
            config += &listener("extra", "TCP", extra, "");
            config += &route("extra", "extra", &[("spare", 1)], "");
        }
        config
    };
    let gateway = Gateway::start(&config(0));
    let (over, counts) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
    let going = |at: usize| !over.load(Ordering::SeqCst) || counts[at].load(Ordering::SeqCst) == 0;
    let tables = || gateway.metrics().value("ringway_reloads_total", &[]);
    std::thread::scope(|scope| {
        let _over = SetWhenDropped(&over);
        for seed in 0..3 {
            let (going, counts) = (&going, &counts);
            scope.spawn(move || {
                while going(0) {
                    bulk_client(address, seed).expect("a bulk session was lost");
                    counts[0].fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        scope.spawn(|| {
            while going(1) {
                let word = exchange(short, b"short").expect("a short session was lost");
                assert_eq!(word, b"short");
                counts[1].fetch_add(1, Ordering::SeqCst);
            }
        });
        let (start, mut round) = (now(), 0);
        let mut publish = || {
            round += 1;
            gateway.write(&config(round));
            gateway.signal(Signal::SIGHUP);
            std::thread::sleep(Duration::from_millis(100));
        };
        while start.elapsed() < Duration::from_secs(seconds(20)) {
            publish();
        }
        // However short that was, and however busy the machine.
        wait_until("more than ten tables", || {
            publish();
            tables() > 10
        });
    });
    let counts = counts.map(AtomicU64::into_inner);
    eprintln!("{} bulk and {} short sessions over {} tables", counts[0], counts[1], tables());
    let lines = gateway.closes(usize::try_from(counts[0] + counts[1]).expect("not so many"));
    for line in lines {
        assert!(line.text("reason").is_some_and(|reason| reason.ends_with("_fin")), "{line:?}");
    }
}

/// Weights of 70, 30 and 0 hold within 2 %, over TCP sessions and over UDP flows, with two workers.
#[test]
fn weights_hold() {
    let gateway_and_counts = split(false);
    assert_split(&gateway_and_counts);
}

/// The same while a new table comes every 20 ms: the cursors are not set back by it.
#[test]
fn weights_hold_over_new_tables() {
    let gateway_and_counts = split(true);
    assert_split(&gateway_and_counts);
}

const PICKS: u64 = 1_000;

fn assert_split(counts: &[[u64; 3]; 2]) {
    for (what, [a, b, c]) in ["TCP", "UDP"].iter().zip(counts) {
        eprintln!("{what}: {a} {b} {c}");
        assert_eq!(a + b + c, PICKS, "{what}");
        assert!(a.abs_diff(PICKS * 70 / 100) <= PICKS * 2 / 100, "{what}: {a} of {PICKS}");
        assert_eq!(*c, 0, "{what}: weight 0");
    }
}

/// How often each backend was picked, over TCP and over UDP.
fn split(publish: bool) -> [[u64; 3]; 2] {
    let tags = ["a", "b", "c"];
    let (tcp, udp) = (tags.map(Server::tcp_tag), tags.map(Server::udp_tag));
    let address = free_address();
    let config = |round: u16| {
        let mut config = String::new();
        for (protocol, servers) in [("TCP", &tcp), ("UDP", &udp)] {
            let names = tags.map(|tag| format!("{protocol}-{tag}"));
            let weights: Vec<_> = names.iter().map(String::as_str).zip([70, 30, 0]).collect();
            config += &listener(protocol, protocol, address, "");
            config += &route(protocol, protocol, &weights, "");
            for (name, server) in names.iter().zip(servers) {
                config += &backend(name, [server.address], "");
            }
        }
        config + &backend("spare", [SocketAddr::from(([127, 0, 0, 1], 1000 + round))], "")
    };
    let gateway = Gateway::start(&config(0));
    let counts = std::thread::scope(|scope| {
        let picking = scope.spawn(|| [pick_over_tcp(address), pick_over_udp(address)]);
        let mut round = 0;
        while publish && !picking.is_finished() {
            round = (round + 1) % 500;
            gateway.write(&config(round));
            gateway.signal(Signal::SIGHUP);
            std::thread::sleep(Duration::from_millis(20));
        }
        picking.join().expect("no panic")
    });
    let tables = gateway.metrics().value("ringway_reloads_total", &[]);
    eprintln!("{tables} tables");
    assert!(!publish || tables > 20);
    counts
}

fn pick_over_tcp(address: SocketAddr) -> [u64; 3] {
    let mut counts = [0; 3];
    for _ in 0..PICKS {
        let mut tag = [0];
        connect(address).read_exact(&mut tag).expect("a tag");
        counts[usize::from(tag[0] - b'a')] += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    counts
}

fn pick_over_udp(address: SocketAddr) -> [u64; 3] {
    let mut counts = [0; 3];
    for _ in 0..PICKS {
        let (socket, mut tag) = (udp_client(address), [0]);
        socket.send(b"?").expect("sent");
        socket.recv(&mut tag).expect("a tag");
        counts[usize::from(tag[0] - b'a')] += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    counts
}

#[test]
fn file_is_watched_however_it_is_written() {
    let (old, new) = (Server::tcp_tag("old"), Server::tcp_tag("new"));
    let address = free_address();
    let config = |to: &Server| forward("TCP", address, [to.address], "");
    let gateway = Gateway::start(&config(&old));
    let says = |word: &str| {
        let mut said = String::new();
        connect(address).read_to_string(&mut said).is_ok() && said == word
    };
    assert!(says("old"));
    // By a rename, as editors do, and with no signal.
    gateway.write(&config(&new));
    wait_until("the renamed file is in force", || says("new"));
    gateway.write_in_place(&config(&old));
    wait_until("the file written in place is in force", || says("old"));
}

/// Written in place and slowly, or cut off: no listener goes away.
#[test]
fn half_a_file_takes_no_listener_away() {
    let server = Server::tcp(echo);
    let (first, second) = (free_address(), free_address());
    let all = |name: &str, address| {
        listener(name, "TCP", address, "") + &route(name, name, &[("main", 1)], "")
    };
    let half = backend("main", [server.address], "") + &all("first", first);
    let rest = all("second", second);
    let gateway = Gateway::start(&format!("{half}{rest}"));
    let both = || {
        for address in [first, second] {
            assert_eq!(exchange(address, b"still").expect("an echo"), b"still");
        }
    };
    both();
    let mut file = gateway.rewrite();
    file.write_all(half.as_bytes()).expect("half of it");
    std::thread::sleep(Duration::from_millis(500));
    both();
    gateway.signal(Signal::SIGHUP);
    std::thread::sleep(Duration::from_millis(200));
    both();
    file.write_all(rest.as_bytes()).expect("the rest");
    drop(file);
    // Cut off and closed: nothing is left of what listens.
    drop(gateway.rewrite());
    gateway.says("--allow-empty");
    both();
    gateway.reload(&half);
    assert_eq!(exchange(first, b"still").expect("an echo"), b"still");
}

/// Cut off in the middle, where what is left is a whole configuration.
#[test]
fn a_file_that_has_lost_most_listeners_must_be_confirmed() {
    let server = Server::tcp(echo);
    let addresses: Vec<_> = (0..5).map(|_| free_address()).collect();
    let config = |n: usize| {
        let listeners = addresses[..n].iter().enumerate().map(|(nth, address)| {
            listener(&format!("l{nth}"), "TCP", *address, "backends = [\"main\"]")
        });
        backend("main", [server.address], "") + &listeners.collect::<String>()
    };
    let gateway = Launch::default().socket().start(&config(5));
    let serves = |n: usize| {
        for (nth, address) in addresses.iter().enumerate() {
            match nth < n {
                true => assert_eq!(exchange(*address, b"still").expect("an echo"), b"still"),
                false => wait_until("it is gone", || TcpStream::connect(*address).is_err()),
            }
        }
    };
    let failures = || gateway.metrics().value("ringway_reload_failures_total", &[]);
    gateway.write(&config(2));
    wait_until("the watch has seen it", || failures() > 0);
    gateway.says("only 2 are left of 5");
    serves(5);
    let before = failures();
    gateway.signal(Signal::SIGHUP);
    wait_until("SIGHUP is refused too", || failures() > before);
    let refused = gateway.verb(&["reload"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("`ringway reload --confirm` puts the file in force"), "{said}");
    serves(5);
    let confirmed = gateway.verb(&["reload", "--confirm"]);
    assert!(confirmed.status.success(), "{confirmed:?}");
    serves(2);
    // Half of them may go, and all only with a word.
    gateway.reload(&config(1));
    serves(1);
    gateway.write(&config(0));
    assert_eq!(gateway.verb(&["reload"]).status.code(), Some(1));
    serves(1);
    assert!(gateway.verb(&["reload", "--confirm"]).status.success());
    serves(0);
}

#[test]
fn bad_file_keeps_the_old_table() {
    let server = Server::tcp(echo);
    let address = free_address();
    let good = forward("TCP", address, [server.address], "");
    let gateway = Gateway::start(&good);
    let mut open = connect(address);
    gateway.write(&good.replace("weight = 1", "weight = \"heavy\"").replace("name", "nmae"));
    gateway.signal(Signal::SIGHUP);
    wait_until("the failure is counted", || {
        gateway.metrics().value("ringway_reload_failures_total", &[]) > 0
    });
    wait_until("the fault and its place are logged", || {
        gateway.stderr().lines().any(|line| line.contains("ringway.toml:") && line.contains("nmae"))
    });
    assert_eq!(exchange(address, b"still").expect("an echo"), b"still");
    open.write_all(b"x").expect("sent");
    open.read_exact(&mut [0]).expect("an echo");
    gateway.reload(&(good + &backend("more", [server.address], "")));
    assert_eq!(exchange(address, b"still").expect("an echo"), b"still");
}

/// One listener of the new table can't be bound: nothing of that table is in force.
#[test]
fn bind_failure_keeps_the_whole_old_table() {
    let (old, new) = (Server::tcp_tag("old"), Server::tcp_tag("new"));
    let (address, second) = (free_address(), free_address());
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().map(|address| (taken, address)).expect("its address");
    let gateway = Gateway::start(&forward("TCP", address, [old.address], ""));
    let config = forward("TCP", address, [new.address], "")
        + &listener("second", "TCP", second, "")
        + &route("second", "second", &[("main", 1)], "")
        + &listener("taken", "TCP", taken.1, "")
        + &route("taken", "taken", &[("main", 1)], "");
    gateway.write(&config);
    gateway.signal(Signal::SIGHUP);
    wait_until("the failure is counted", || {
        gateway.metrics().value("ringway_reload_failures_total", &[]) > 0
    });
    wait_until("the address is logged", || gateway.stderr().contains(&taken.1.to_string()));
    assert_eq!(exchange(address, b"").expect("a tag"), b"old");
    let refused = TcpStream::connect(second).expect_err("the second listener must not be there");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    // With the port free again the same file is good, and is tried again without a word.
    let address_again = taken.1;
    drop(taken);
    wait_until("the table is in force", || {
        exchange_quietly(address).is_some_and(|tag| tag == b"new")
    });
    for address in [second, address_again] {
        assert_eq!(exchange(address, b"").expect("a tag"), b"new");
    }
}

/// What a server that closes by itself says; `None` if that does not end with a FIN.
fn exchange_quietly(address: SocketAddr) -> Option<Vec<u8>> {
    let mut said = Vec::new();
    connect(address).read_to_end(&mut said).ok()?;
    Some(said)
}

#[test]
fn sessions_outlive_their_listener_and_their_endpoint() {
    let (old, new) = (Server::tcp(echo), Server::tcp(echo));
    let (kept, removed, added) = (free_address(), free_address(), free_address());
    let two = |second: SocketAddr, to: &Server| {
        forward("TCP", kept, [to.address], "")
            + &listener("second", "TCP", second, "")
            + &route("second", "second", &[("main", 1)], "")
    };
    let gateway = Gateway::start(&two(removed, &old));
    let mut sessions = [connect(kept), connect(removed)];
    let still_alive = |sessions: &mut [TcpStream]| {
        for session in sessions {
            session.write_all(b"alive").expect("sent");
            let mut answer = [0; 5];
            session.read_exact(&mut answer).expect("an echo");
            assert_eq!(&answer, b"alive");
        }
    };
    still_alive(&mut sessions);
    assert_eq!(old.served(), 2);
    gateway.reload(&two(added, &new));
    wait_until("the removed listener is gone", || TcpStream::connect(removed).is_err());
    still_alive(&mut sessions);
    assert_eq!(exchange(added, b"hello").expect("an echo"), b"hello");
    assert_eq!(exchange(kept, b"hello").expect("an echo"), b"hello");
    still_alive(&mut sessions);
    assert_eq!((old.served(), new.served()), (2, 2));
}

/// What became of connects in a row, from threads that stop at the first refusal.
#[derive(Debug, Default)]
struct Burst {
    served: AtomicU64,
    lost: AtomicU64,
}

impl Burst {
    /// Connects until the listener is gone. One that was let in must be served.
    fn run(&self, address: SocketAddr) {
        loop {
            match TcpStream::connect(address) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => return,
                connected => {
                    if !self.count(connected.and_then(Self::ping)) {
                        return;
                    }
                }
            }
        }
    }

    /// Whether a connection was served, which no refusal excuses.
    fn connect(&self, address: SocketAddr) -> bool {
        self.count(TcpStream::connect(address).and_then(Self::ping))
    }

    fn count(&self, outcome: std::io::Result<()>) -> bool {
        let count = if outcome.is_ok() { &self.served } else { &self.lost };
        count.fetch_add(1, Ordering::SeqCst);
        if let Err(error) = &outcome {
            eprintln!("a session was lost: {error}");
        }
        outcome.is_ok()
    }

    fn ping(mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(b"ping")?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        if answer == b"ping" { Ok(()) } else { Err(std::io::Error::other("no echo")) }
    }
}

#[test]
fn no_connect_is_reset_while_its_listener_is_removed() {
    let server = Server::tcp(echo);
    let (kept, removed) = (free_address(), free_address());
    let one = forward("TCP", kept, [server.address], "");
    let two = one.clone()
        + &listener("second", "TCP", removed, "")
        + &route("second", "second", &[("main", 1)], "");
    let gateway = Gateway::start(&two);
    for _ in 0..10 {
        let burst = Arc::new(Burst::default());
        let threads: Vec<_> = (0..6)
            .map(|_| {
                let burst = Arc::clone(&burst);
                std::thread::spawn(move || burst.run(removed))
            })
            .collect();
        wait_until("the burst is under way", || burst.served.load(Ordering::SeqCst) > 100);
        gateway.write(&one);
        gateway.signal(Signal::SIGHUP);
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert_eq!(burst.lost.load(Ordering::SeqCst), 0, "{burst:?}");
        gateway.reload(&two);
        wait_until("the listener is back", || TcpStream::connect(removed).is_ok());
    }
}

/// From every address to one and back: who connects meanwhile is served, by the old socket or the
/// new one, and no UDP client waits for the old socket's flows to be over.
#[test]
fn a_listener_moves_between_every_address_and_one() {
    let (tcp, udp) = (Server::tcp(echo), Server::udp_echo());
    for (everywhere, one) in [("0.0.0.0", "127.0.0.1"), ("[::]", "[::1]")] {
        let port = free_address().port();
        let address = |ip: &str| format!("{ip}:{port}").parse::<SocketAddr>().expect("an address");
        let to = address(one);
        let config = |ip: &str| {
            forward("TCP", address(ip), [tcp.address], "")
                + &forward_as("udp", "UDP", address(ip), [udp.address], "")
        };
        let gateway = Gateway::start(&config(everywhere));
        let (burst, over) = (Burst::default(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let _over = SetWhenDropped(&over);
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut goes_on = true;
                    while goes_on && !over.load(Ordering::SeqCst) {
                        goes_on = burst.connect(to);
                    }
                });
            }
            let old = udp_client(to);
            let asks = |client: &std::net::UdpSocket| {
                let mut answer = [0; 8];
                client.send(b"question").is_ok() && client.recv(&mut answer).is_ok()
            };
            wait_until("the first datagram is answered", || asks(&old));
            for ip in [one, everywhere, one, everywhere] {
                gateway.reload(&config(ip));
                let before = burst.served.load(Ordering::SeqCst);
                for client in (0..8).map(|_| udp_client(to)).chain([old.try_clone().expect("")]) {
                    assert!(asks(&client), "a UDP client is left out when it moves to {ip}");
                }
                wait_until("connections are served", || {
                    let lost = burst.lost.load(Ordering::SeqCst) > 0;
                    lost || burst.served.load(Ordering::SeqCst) > before + 100
                });
            }
        });
        assert_eq!(burst.lost.into_inner(), 0);
        assert_eq!(gateway.metrics().value("ringway_datagrams_dropped_total", &[]), 0);
    }
}

#[test]
fn no_connect_is_reset_at_sigterm() {
    for _ in 0..5 {
        let server = Server::tcp(echo);
        let address = free_address();
        let gateway = Gateway::start(&forward("TCP", address, [server.address], ""));
        let burst = Arc::new(Burst::default());
        let threads: Vec<_> = (0..6)
            .map(|_| {
                let burst = Arc::clone(&burst);
                std::thread::spawn(move || burst.run(address))
            })
            .collect();
        wait_until("the burst is under way", || burst.served.load(Ordering::SeqCst) > 100);
        let log = gateway.stop();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert_eq!(burst.lost.load(Ordering::SeqCst), 0, "{burst:?}");
        let served = burst.served.load(Ordering::SeqCst);
        assert_eq!(log.len() as u64, served, "one close line for each session");
    }
}

/// SIGTERM: nobody is let in, who is there may finish, and then the process ends.
#[test]
fn drain_waits_for_the_last_session() {
    let server = Server::tcp(echo);
    let address = free_address();
    let mut gateway = Gateway::start(&forward("TCP", address, [server.address], ""));
    let mut session = connect(address);
    let client = session.local_addr().expect("its address").to_string();
    session.write_all(b"before").expect("sent");
    session.read_exact(&mut [0; 6]).expect("an echo");
    gateway.signal(Signal::SIGTERM);
    wait_until("nobody is let in", || TcpStream::connect(address).is_err());
    assert_eq!(gateway.get("/readyz").map(|(status, _)| status), Some(503));
    assert_eq!(gateway.get("/healthz").map(|(status, _)| status), Some(200));
    for _ in 0..20 {
        session.write_all(b"during").expect("sent");
        session.read_exact(&mut [0; 6]).expect("an echo");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(gateway.ended().is_none(), "it must wait for the session");
    drop(session);
    assert_eq!(reason_of(&client, &gateway.wait()), "client_fin");
}

#[test]
fn drain_timeout_closes_what_is_left() {
    let server = Server::tcp(echo);
    let address = free_address();
    let config = "drain_timeout = \"1s\"\n".to_owned();
    let gateway = Gateway::start(&(config + &forward("TCP", address, [server.address], "")));
    let mut sessions: Vec<_> = (0..20).map(|_| connect(address)).collect();
    for session in &mut sessions {
        session.write_all(b"x").expect("sent");
        session.read_exact(&mut [0]).expect("an echo");
    }
    let log = gateway.stop();
    assert_eq!(log.len(), 20);
    assert!(log.iter().all(|line| line.text("reason") == Some("drained")), "{log:?}");
}

#[test]
fn second_sigterm_ends_everything_at_once() {
    let server = Server::tcp(echo);
    let address = free_address();
    let config = "drain_timeout = \"10m\"\n".to_owned();
    let mut gateway = Gateway::start(&(config + &forward("TCP", address, [server.address], "")));
    let mut session = connect(address);
    let client = session.local_addr().expect("its address").to_string();
    session.write_all(b"x").expect("sent");
    session.read_exact(&mut [0]).expect("an echo");
    gateway.signal(Signal::SIGTERM);
    wait_until("nobody is let in", || TcpStream::connect(address).is_err());
    gateway.signal(Signal::SIGTERM);
    assert_eq!(reason_of(&client, &gateway.wait()), "stopped");
}

/// Why the only session of this client ended.
fn reason_of<'a>(client: &str, log: &'a [LogLine]) -> &'a str {
    let mut of = log.iter().filter(|line| line.text("client") == Some(client));
    let line = of.next().expect("a line");
    assert!(of.next().is_none(), "a second line for one session");
    line.text("reason").expect("a reason")
}

/// Removed UDP listeners drain too: a flow that is there is answered, a new client is not.
#[test]
fn flows_outlive_their_listener_for_a_while() {
    let server = Server::udp_echo();
    let (kept, removed) = (free_address(), free_address());
    let one = forward("UDP", kept, [server.address], "");
    let two = one.clone()
        + &listener("second", "UDP", removed, "flow_timeout = \"3s\"")
        + &route("second", "second", &[("main", 1)], "");
    let gateway = Launch::default().one_worker().start(&two);
    let ask = |socket: &std::net::UdpSocket| {
        let mut answer = [0; 8];
        socket.send(b"question").is_ok() && socket.recv(&mut answer).is_ok()
    };
    let (old, new) = (udp_client(removed), udp_client(removed));
    assert!(ask(&old));
    gateway.reload(&one);
    assert!(ask(&old), "the flow lives on");
    new.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    assert!(!ask(&new), "nobody new is let in");
    drop(old);
    // Once its last flow is over the address is free.
    wait_until("the address is free", || std::net::UdpSocket::bind(removed).is_ok());
    assert!(ask(&udp_client(kept)));
}
