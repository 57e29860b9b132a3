//! What all sessions of a part may have together, through the binary, over two workers.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringway_tests::real::config::{backend, forward, forward_as, listener, route};
use ringway_tests::real::{
    Cgroup, Gateway, Launch, Server, connect, echo, free_address, has_answer, now, udp_from,
    wait_until,
};

/// The connection, if the gateway lets it in.
fn served(to: SocketAddr) -> Option<TcpStream> {
    let mut stream = connect(to);
    let served = stream.write_all(b"ping");
    served.and_then(|()| stream.read_exact(&mut [0; 4])).is_ok().then_some(stream)
}

fn served_of(to: SocketAddr, count: usize) -> Vec<TcpStream> {
    (0..count).filter_map(|_| served(to)).collect()
}

fn refused(gateway: &Gateway, of: &str) -> u64 {
    let reason = [("reason", "limit"), ("listener", of)];
    gateway.metrics().value("ringway_sessions_refused_total", &reason)
}

/// Two listeners. The routes of both lead to one backend, `b`. `of_listener`, `of_route` and
/// `of_backend` are further lines of each.
fn two(
    (one, other): (SocketAddr, SocketAddr),
    server: SocketAddr,
    [top, of_listener, of_route, of_backend]: [&str; 4],
) -> String {
    format!("{top}\n")
        + &listener("one", "TCP", one, of_listener)
        + &listener("other", "TCP", other, of_listener)
        + &route("r1", "one", &[("b", 1)], of_route)
        + &route("r2", "other", &[("b", 1)], of_route)
        + &backend("b", [server], of_backend)
}

#[test]
fn parts_have_so_many_sessions_over_all_workers() {
    let server = Server::tcp(echo);
    let at = (free_address(), free_address());
    let limit = "limit = { sessions = 3 }";
    for (keys, each, all, detail) in [
        (["", limit, "", ""], 3, 6, "the listener's limit.sessions"),
        (["", "", limit, ""], 3, 6, "the route's limit.sessions"),
        (["", "", "", limit], 3, 3, "the backend's limit.sessions"),
        (["limits.total_sessions = 3", "", "", ""], 3, 3, "the process has limits.total_sessions"),
    ] {
        let gateway = Gateway::start(&two(at, server.address, keys));
        let mut held = served_of(at.0, 20);
        assert_eq!(held.len(), each, "{keys:?}");
        held.extend(served_of(at.1, 20));
        assert_eq!(held.len(), all, "{keys:?}");
        let refusals = refused(&gateway, "one") + refused(&gateway, "other");
        assert_eq!(refusals, 40 - all as u64, "{keys:?}");
        wait_until("the log says which limit", || {
            gateway.log().iter().any(|line| line.text("detail") == Some(detail))
        });
        drop(held.pop());
        wait_until("the place of an ended session is free", || served(at.1).is_some());
        // The drain would wait for them.
        drop(held);
        gateway.stop();
    }
}

#[test]
fn a_reload_changes_a_limit_and_ends_no_session() {
    let server = Server::tcp(echo);
    let at = (free_address(), free_address());
    let config = |top: &str, of_backend: &str| two(at, server.address, [top, "", "", of_backend]);
    let gateway = Gateway::start(&config("limits.total_sessions = 4", ""));
    let mut held = served_of(at.0, 10);
    assert_eq!(held.len(), 4);
    gateway.reload(&config("limits.total_sessions = 6", ""));
    held.extend(served_of(at.1, 10));
    assert_eq!(held.len(), 6, "those before count");
    gateway.reload(&config("limits.total_sessions = 2", ""));
    assert!(served(at.0).is_none());
    // Sessions from before this limit do not count in it.
    gateway.reload(&config("", "limit = { sessions = 1 }"));
    held.extend(served_of(at.0, 5));
    assert_eq!(held.len(), 7);
    for stream in &mut held {
        stream.write_all(b"ping").and_then(|()| stream.read_exact(&mut [0; 4])).expect("it lives");
    }
    assert!(!gateway.stderr().contains("after a restart"), "{}", gateway.stderr());
}

#[test]
fn parts_get_so_many_sessions_in_a_second() {
    let server = Server::tcp(echo);
    let at = (free_address(), free_address());
    let keys = ["", "", "", "limit = { new_per_second = 2, burst = 5 }"];
    let gateway = Gateway::start(&two(at, server.address, keys));
    let start = now();
    let came_in = (served_of(at.0, 20).len() + served_of(at.1, 20).len()) as u64;
    let more = 2 * start.elapsed().as_secs() + 2;
    assert!((5..=5 + more).contains(&came_in), "{came_in} of 40");
    assert_eq!(refused(&gateway, "one") + refused(&gateway, "other"), 40 - came_in);
    wait_until("there is a place a second later", || served(at.0).is_some());
}

/// A client that says when it was let in.
fn waits(to: SocketAddr, let_in: &Sender<TcpStream>) -> JoinHandle<()> {
    let let_in = let_in.clone();
    std::thread::spawn(move || {
        let stream = served(to).expect("nobody is refused");
        let_in.send(stream).expect("the test is there");
    })
}

/// Over two workers, each with an accept queue.
#[test]
fn clients_over_a_limit_that_delays_wait_for_their_turn() {
    let server = Server::tcp(echo);
    let address = free_address();
    let config = |keys: &str| forward("TCP", address, [server.address], keys);
    let gateway = Gateway::start(&config("limit = { sessions = 2 }"));
    gateway.reload(&config("limit = { sessions = 2, over = \"delay\" }"));
    let (sender, let_in) = channel();
    let mut clients: Vec<_> = (0..6).map(|_| waits(address, &sender)).collect();
    let (long, short) = (Duration::from_secs(20), Duration::from_millis(300));
    let next = || let_in.recv_timeout(long).expect("a place is free");
    let mut held: Vec<_> = (0..2).map(|_| next()).collect();
    for _ in 0..2 {
        assert!(let_in.recv_timeout(short).is_err(), "two have places");
        drop(held.pop());
        held.push(next());
    }
    // Two wait, and four more come. A reload lets all of them in.
    clients.extend((0..4).map(|_| waits(address, &sender)));
    assert!(let_in.recv_timeout(short).is_err(), "two have places");
    let delays = gateway.metrics().value("ringway_accept_delays_total", &[]);
    gateway.reload(&config(""));
    held.extend((0..6).map(|_| next()));
    clients.into_iter().for_each(|client| client.join().expect("it was served"));
    assert!(delays >= 2, "{delays}");
    let reason = [("reason", "limit")];
    assert_eq!(gateway.metrics().value("ringway_sessions_refused_total", &reason), 0);
    drop(held);
    gateway.stop();
}

/// Nobody could say when there would be a place, and a table with the address could not come back.
#[test]
fn a_listener_that_goes_refuses_who_waits() {
    let server = Server::tcp(echo);
    let (address, other) = (free_address(), free_address());
    let config = |at, keys: &str| forward("TCP", at, [server.address], keys);
    let delays = "limit = { sessions = 2, over = \"delay\" }";
    let gateway = Gateway::start(&config(address, delays));
    let clients: Vec<_> = (0..6).map(|_| std::thread::spawn(move || served(address))).collect();
    let sessions = || gateway.metrics().value("ringway_sessions_active", &[]);
    wait_until("two have places", || sessions() >= 2);
    gateway.reload(&config(other, ""));
    let served: Vec<_> =
        clients.into_iter().filter_map(|client| client.join().expect("an answer")).collect();
    assert_eq!(served.len(), 2);
    wait_until("they have a reason", || {
        gateway.metrics().value("ringway_sessions_refused_total", &[("reason", "limit")]) == 4
    });
    gateway.reload(&config(address, ""));
    assert_eq!(served_of(address, 3).len(), 3);
    drop(served);
    gateway.stop();
}

#[test]
fn clients_who_come_too_fast_are_let_in_one_after_the_other() {
    let server = Server::tcp(echo);
    let address = free_address();
    let keys = "limit = { new_per_second = 20, burst = 5, over = \"delay\" }";
    let gateway = Gateway::start(&forward("TCP", address, [server.address], keys));
    let (sender, let_in) = channel();
    let start = now();
    let clients: Vec<_> = (0..45).map(|_| waits(address, &sender)).collect();
    clients.into_iter().for_each(|client| client.join().expect("it was served"));
    let took = start.elapsed().as_secs_f64();
    assert_eq!(let_in.try_iter().count(), 45);
    // All that is more than the burst, at the rate.
    assert!((1.9..=3.5).contains(&took), "{took} s");
    let reason = [("reason", "limit")];
    assert_eq!(gateway.metrics().value("ringway_sessions_refused_total", &reason), 0);
    gateway.stop();
}

#[test]
fn tcp_and_udp_share_a_limit() {
    let (tcp, udp) = (Server::tcp(echo), Server::udp_echo());
    let (one, other) = (free_address(), free_address());
    let keys = "limit = \"all\"\n";
    let config = listener("t", "TCP", one, keys)
        + &listener("u", "UDP", other, "flow_timeout = \"60s\"\nlimit = \"all\"")
        + &route("t", "t", &[("t", 1)], "")
        + &route("u", "u", &[("u", 1)], "")
        // The route's limit is the listener's too, and counts a session once.
        + &backend("t", [tcp.address], keys)
        + &backend("u", [udp.address], "")
        + "[[shared_limits]]\nname = \"all\"\nsessions = 4\n";
    let gateway = Launch::default().socket().start(&config);
    let held = served_of(one, 3);
    let clients: Vec<_> = (0..3).map(|_| udp_from("127.0.0.1", other)).collect();
    assert_eq!(clients.iter().filter(|client| has_answer(client)).count(), 1);
    assert_eq!((held.len(), served_of(one, 2).len()), (3, 0));
    let metrics = gateway.metrics();
    let labels = [("kind", "shared"), ("name", "all")];
    assert_eq!(metrics.value("ringway_limit_sessions", &labels), 4);
    assert_eq!(metrics.value("ringway_limit_sessions_max", &labels), 4);
    let dropped = metrics.value("ringway_datagrams_dropped_total", &[("reason", "limit")]);
    let refused = metrics.value("ringway_flows_refused_total", &[("reason", "limit")]);
    assert_eq!((dropped, refused), (6, 6), "each datagram asks again");
    assert_eq!(metrics.value("ringway_limit_refused_total", &labels), 8);
    let limits = gateway.asks(&["limits"]);
    let mut rows = limits.as_array().expect("a list").iter();
    let row = rows.find(|row| row["limit"] == "limit").expect("a row");
    assert_eq!((&row["of"], &row["used"]), (&"shared limit all".into(), &4.into()));
    assert_eq!((&row["capacity"], &row["reached"]), (&4.into(), &8.into()));
    let why = gateway.asks(&["why", "127.0.0.1", "--listener", "t"]);
    assert_eq!(why["reason"], "limit", "{why}");
    drop(held);
    wait_until("the flow has a place", || has_answer(&clients[2]));
}

#[test]
fn a_full_process_lets_no_slow_client_keep_others_out() {
    let server = Server::tcp(echo);
    let address = free_address();
    let keys = "accept_proxy = { from = [\"127.0.0.1\"] }\nhello_timeout = \"60s\"";
    let config =
        format!("limits.total_sessions = 20\n{}", forward("TCP", address, [server.address], keys));
    let gateway = Gateway::start(&config);
    // They send no header.
    let slow: Vec<_> = (0..40).map(|_| connect(address)).collect();
    let header = b"PROXY TCP4 192.0.2.1 192.0.2.9 4000 80\r\nping";
    wait_until("a client that says where to go is let in", || {
        let mut stream = connect(address);
        let sent = stream.write_all(header);
        sent.and_then(|()| stream.read_exact(&mut [0; 4])).is_ok()
    });
    let crowded = [("reason", "crowded_out")];
    assert!(gateway.metrics().value("ringway_sessions_refused_total", &crowded) > 0);
    drop(slow);
}

/// Sends so many bytes at once, and returns the seconds until the last has come back.
fn echoed(stream: TcpStream, bytes: usize) -> f64 {
    let start = now();
    let mut to = stream.try_clone().expect("another handle");
    let sending = std::thread::spawn(move || {
        let piece = vec![7; 1 << 16];
        let mut left = bytes;
        while left > 0 {
            let n = left.min(piece.len());
            to.write_all(&piece[..n]).expect("sending");
            left -= n;
        }
    });
    let mut from = stream;
    let (mut piece, mut left) = (vec![0; 1 << 16], bytes);
    while left > 0 {
        let n = from.read(&mut piece).expect("receiving");
        assert!(n > 0, "{left} bytes are missing");
        left -= n;
    }
    sending.join().expect("all is sent");
    start.elapsed().as_secs_f64()
}

/// An endpoint whose sessions come too fast is passed over for another one. Where all are, clients
/// wait in the queue, or are refused.
#[test]
fn an_endpoint_gets_so_many_sessions_in_a_second() {
    let (slow, fast) = (Server::tcp(echo), Server::tcp(echo));
    let address = free_address();
    let config = |endpoints: &str, keys: &str| {
        listener("main", "TCP", address, "backends = [\"b\"]")
            + &format!("[[backends]]\nname = \"b\"\nendpoints = [{endpoints}]\n{keys}\n")
    };
    let limit = "limit = { new_per_second = 1, burst = 4 }";
    let one = format!("{{ address = \"{}\", {limit} }}", slow.address);
    let gateway = Gateway::start(&config(&format!("{one}, \"{}\"", fast.address), ""));
    let start = now();
    let held: Vec<_> = (0..40).map(|_| served(address).expect("nobody is refused")).collect();
    let more = start.elapsed().as_secs() + 1;
    let served_by_slow = slow.served();
    assert!((4..=4 + more).contains(&served_by_slow), "{served_by_slow} of 40");
    assert_eq!(fast.served(), 40 - served_by_slow);
    drop(held);
    // Now each endpoint has the limit, and there is no other.
    let two = format!("\"{}\", \"{}\"", slow.address, fast.address);
    gateway.reload(&config(&two, "endpoint_limit = { new_per_second = 1, burst = 2 }"));
    let start = now();
    let served_now = (0..20).filter(|_| served(address).is_some()).count() as u64;
    let more = 2 * (start.elapsed().as_secs() + 1);
    assert!((2..=4 + more).contains(&served_now), "{served_now} of 20");
    let reason = [("reason", "endpoints_full")];
    let refused = || gateway.metrics().value("ringway_sessions_refused_total", &reason);
    assert_eq!(refused(), 20 - served_now);
    let before = refused();
    let queue = "endpoint_limit = { new_per_second = 2 }\nqueue = 10\nqueue_timeout = \"30s\"";
    gateway.reload(&config(&two, queue));
    assert_eq!((0..8).filter(|_| served(address).is_some()).count(), 8, "they wait");
    assert_eq!(refused(), before);
}

/// Two sessions of one limit at once, over two workers: the burst, and then the rate. Nothing is
/// lost, and large pieces are spliced as without a limit.
#[test]
fn bytes_of_sessions_wait_for_their_limit() {
    const RATE: usize = 4_000_000;
    const BYTES: usize = 6_000_000;
    let server = Server::tcp(echo);
    let at = (free_address(), free_address());
    let bytes = format!("bytes_per_second = {RATE} }}");
    let (own, source) = (format!("limit = {{ {bytes}"), format!("limit_source = {{ {bytes}"));
    let of_endpoint = format!("endpoint_limit = {{ {bytes}");
    let shared = format!("[[shared_limits]]\nname = \"all\"\nbytes_per_second = {RATE}\n");
    for (keys, tail, detail) in [
        (["", "", "", own.as_str()], "", "a backend's limit"),
        (["", "limit = \"all\"", "", ""], shared.as_str(), "a limit of two listeners"),
        (["", source.as_str(), "", ""], "", "a limit of sources for each listener"),
        (["", "", source.as_str(), ""], "", "a limit of sources for each route"),
        (["", "", "", of_endpoint.as_str()], "", "an endpoint's limit"),
    ] {
        let gateway = Gateway::start(&(two(at, server.address, keys) + tail));
        let streams = [at.0, at.1].map(|to| served(to).expect("it is let in"));
        let streams = streams.map(|stream| std::thread::spawn(|| echoed(stream, BYTES)));
        let took = streams.map(|thread| thread.join().expect("no panic"));
        let took = took.into_iter().fold(0.0, f64::max);
        let shares = if detail.contains("each") { 0.5 } else { 2.0 };
        // All that is more than the burst, at the rate.
        assert!(took >= shares * 0.95 && took <= shares + 1.5, "{detail}: {took} s");
        let metrics = gateway.metrics();
        assert!(metrics.value("ringway_byte_delays_total", &[]) > 10, "{detail}");
        let spliced = metrics.value("ringway_spliced_bytes_total", &[]);
        assert!(spliced > 2 * BYTES as u64, "{detail}: {spliced} of {} bytes", 4 * BYTES);
        gateway.stop();
    }
}

/// The bytes that come back in three seconds, after two, to a client that always has more to send.
fn share(stream: TcpStream, start: Instant) -> u64 {
    let mut to = stream.try_clone().expect("another handle");
    let sending = std::thread::spawn(move || while to.write_all(&[7; 1 << 16]).is_ok() {});
    let (mut from, mut piece, mut bytes) = (&stream, vec![0; 1 << 16], 0);
    while start.elapsed() < Duration::from_secs(5) {
        let n = from.read(&mut piece).expect("receiving");
        if start.elapsed() >= Duration::from_secs(2) {
            bytes += n as u64;
        }
    }
    stream.shutdown(Shutdown::Both).expect("it is open");
    sending.join().expect("no panic");
    bytes
}

/// Twenty sessions of one limit at once, over two workers. Who has waited longest is served first,
/// so all have about the same.
#[test]
fn sessions_that_wait_for_one_limit_of_bytes_share_it() {
    const RATE: u64 = 4_000_000;
    let server = Server::tcp(echo);
    let address = free_address();
    let keys = format!("limit = {{ bytes_per_second = {RATE} }}");
    let gateway = Gateway::start(&forward("TCP", address, [server.address], &keys));
    let streams: Vec<_> = (0..20).map(|_| served(address).expect("it is let in")).collect();
    let delays = || gateway.metrics().value("ringway_byte_delays_total", &[]);
    let (start, before) = (now(), delays());
    let share = |stream| std::thread::spawn(move || share(stream, start));
    let threads: Vec<_> = streams.into_iter().map(share).collect();
    let shares: Vec<u64> = threads.into_iter().map(|of| of.join().expect("no panic")).collect();
    let (all, woken) = (shares.iter().sum::<u64>(), delays() - before);
    assert!((RATE * 5 / 2..=RATE * 7 / 2).contains(&all), "{all}: {shares:?}");
    let (least, most) = (shares.iter().min().expect("20"), shares.iter().max().expect("20"));
    assert!(*least * 10 >= *most * 6, "{shares:?}");
    // Each way some 180 in a second.
    assert!(woken <= 5 * 2 * 250, "{woken} delays");
    gateway.stop();
}

#[test]
fn datagrams_above_a_limit_of_bytes_are_dropped() {
    let server = Server::udp_echo();
    let address = free_address();
    for (part, key, reason) in [
        ("listeners", "limit", "limit"),
        ("listeners", "limit_source", "source_limit"),
        ("routes", "limit_source", "source_limit"),
        ("backends", "endpoint_limit", "limit"),
    ] {
        let keys = |of: &str| match of == part {
            true => format!("{key} = {{ bytes_per_second = 20_000 }}"),
            false => String::new(),
        };
        let config = "lame_duck = \"100ms\"\n".to_owned()
            + &listener("main", "UDP", address, &keys("listeners"))
            + &route("main", "main", &[("main", 1)], &keys("routes"))
            + &backend("main", [server.address], &keys("backends"));
        let gateway = Launch::default().one_worker().start(&config);
        let (client, start) = (udp_from("127.0.0.1", address), now());
        for _ in 0..100 {
            client.send(&[7; 1_000]).expect("sending");
        }
        let mut answers = 0;
        while client.recv(&mut [0; 2_000]).is_ok() {
            answers += 1;
        }
        let more = 20 * (start.elapsed().as_secs() + 1);
        assert!((10..=20 + more).contains(&answers), "{key}: {answers} answers");
        let dropped =
            gateway.metrics().value("ringway_datagrams_dropped_total", &[("reason", reason)]);
        assert!(dropped >= 80 - more && dropped <= 90, "{key}: {dropped} dropped");
        wait_until("the client may send again", || has_answer(&client));
        gateway.stop();
    }
}

/// Near the limit of memory nothing new begins, and all that lives goes on. That ends by itself.
#[test]
fn new_work_is_refused_while_the_memory_is_nearly_used_up() {
    let Some(cgroup) = Cgroup::new() else {
        return eprintln!("skipped: no cgroup of memory can be made here");
    };
    let (tcp, udp) = (Server::tcp(echo), Server::udp_echo());
    let (one, other) = (free_address(), free_address());
    let config = "limits = { memory_percent = 70, memory_readiness = true }\n\
                  lame_duck = \"100ms\"\n"
        .to_owned()
        + &forward_as("t", "TCP", one, [tcp.address], "")
        + &forward_as("u", "UDP", other, [udp.address], "flow_timeout = \"60s\"");
    let join = cgroup.join();
    let gateway = Launch::default().under(&["sh", "-c", &join]).socket().start(&config);
    let is_ready = || gateway.get("/readyz").is_some_and(|(status, _)| status == 200);
    let mut live = served(one).expect("there is memory");
    let client = udp_from("127.0.0.1", other);
    assert!(has_answer(&client) && is_ready());
    let overloaded = |gateway: &Gateway| gateway.metrics().value("ringway_overloaded", &[]);
    assert_eq!(overloaded(&gateway), 0);
    // Four fifths of the memory are in use now.
    assert!(cgroup.set(&(cgroup.used() * 5 / 4).to_string()));
    wait_until("the gateway is overloaded", || overloaded(&gateway) == 1);
    assert!(served(one).is_none() && !has_answer(&udp_from("127.0.0.1", other)));
    assert!(!is_ready(), "by memory_readiness");
    live.write_all(b"ping").and_then(|()| live.read_exact(&mut [0; 4])).expect("it lives");
    assert!(has_answer(&client), "its flow lives");
    wait_until("the log says why", || {
        gateway.log().iter().any(|line| line.text("reason") == Some("overload"))
    });
    let metrics = gateway.metrics();
    let of = |name: &str| metrics.value(name, &[("reason", "overload")]);
    assert!(of("ringway_sessions_refused_total") >= 1);
    assert!(of("ringway_datagrams_dropped_total") >= 3);
    let limit = metrics.value("ringway_memory_limit_bytes", &[]);
    assert!(metrics.value("ringway_memory_used_bytes", &[]) * 10 > limit * 6);
    let limits = gateway.asks(&["limits"]);
    let mut rows = limits.as_array().expect("a list").iter();
    let row = rows.find(|row| row["limit"] == "memory").expect("a row");
    assert_eq!(row["capacity"].as_u64(), Some(limit));
    assert!(cgroup.set("1000000000"));
    wait_until("a new session is served again", || served(one).is_some());
    assert!(has_answer(&udp_from("127.0.0.1", other)) && is_ready());
    gateway.says("overload: ");
    gateway.says("the overload is over");
    // The drain would wait for it.
    drop(live);
    gateway.stop();
}

/// A full table refuses what is new, and datagrams wait for a buffer. The log says so once, and
/// once that it is over.
#[test]
fn the_log_says_at_both_ends_that_tables_and_buffers_are_full() {
    let (tcp, udp) = (Server::tcp(echo), Server::udp_echo());
    let (one, other) = (free_address(), free_address());
    let config = "limits = { sessions = 4, flows = 4, buffers = 2 }\n".to_owned()
        + &forward_as("t", "TCP", one, [tcp.address], "")
        + &forward_as("u", "UDP", other, [udp.address], "flow_timeout = \"60s\"");
    let gateway = Launch::default().one_worker().socket().start(&config);
    let says = |words: &str| gateway.stderr().matches(words).count();
    let full = |table: &str| says(&format!("overload: the {table} table of a worker is full"));
    let mut held: Vec<_> = (0..4).map(|_| served(one).expect("a place")).collect();
    let flows: Vec<_> = (0..4).map(|_| udp_from("127.0.0.1", other)).collect();
    assert!(flows.iter().all(has_answer));
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!([full("session"), full("flow")], [0, 0], "nothing has been refused");
    let begun = now();
    while [full("session"), full("flow")] != [1, 1] {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", gateway.stderr());
        assert!(served(one).is_none());
        let client = udp_from("127.0.0.1", other);
        client.send(b"x").expect("sending");
        std::thread::sleep(Duration::from_millis(100));
    }
    for stream in &mut held {
        stream.write_all(b"ping").and_then(|()| stream.read_exact(&mut [0; 4])).expect("it lives");
    }
    assert!(flows.iter().all(has_answer), "they live");
    // Clients have one buffer.
    wait_until("the log says that no buffer was left", || {
        (0..50).for_each(|_| assert!(flows[0].send(b"ping").is_ok()));
        says("overload: a worker had no receive buffer left") == 1
    });
    wait_until("the shortages are over", || {
        let over = |of| says(&format!("the shortage of {of} is over: "));
        ["sessions", "flows", "buffers"].map(over) == [1; 3]
    });
    assert_eq!([full("session"), full("flow")], [1, 1]);
    let metrics = gateway.metrics();
    let counted = |of| metrics.value("ringway_shortages_total", &[("of", of)]);
    let [sessions, flows] = ["sessions", "flows"].map(counted);
    let buffers = metrics.value("ringway_buffer_shortages_total", &[]);
    assert!(sessions > 0 && flows > 0 && buffers > 0, "{sessions} {flows} {buffers}");
    // The rows of `ringway limits` count the same.
    let limits = gateway.asks(&["limits"]);
    let rows = limits.as_array().expect("a list");
    let reached = |limit: &str| rows.iter().find(|row| row["limit"] == limit)?["reached"].as_u64();
    let rows = ["sessions", "flows", "buffers"].map(reached);
    assert_eq!(rows, [sessions, flows, buffers].map(Some));
}

/// Near the limit of a table, a gateway tells load balancers, and goes on serving.
#[test]
fn a_gateway_is_not_ready_while_a_limit_is_nearly_reached() {
    let server = Server::tcp(echo);
    let address = free_address();
    let config = "limits = { sessions = 20, readiness_percent = 80 }\n".to_owned()
        + &forward("TCP", address, [server.address], "");
    let gateway = Launch::default().one_worker().start(&config);
    let is_ready = || gateway.get("/readyz").is_some_and(|(status, _)| status == 200);
    let mut held: Vec<_> = (0..15).map(|_| served(address).expect("a place")).collect();
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(is_ready(), "15 of 20 are below 80 per cent");
    held.push(served(address).expect("a place"));
    wait_until("the gateway is not ready", || !is_ready());
    held.push(served(address).expect("nothing is refused"));
    held.truncate(15);
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(!is_ready(), "75 per cent are not 5 per cent less");
    held.truncate(14);
    wait_until("the gateway is ready again", is_ready);
    gateway.says("not ready: 16 of 20 are in use of the limit sessions");
    gateway.says("ready again: no limit is nearly reached");
}
