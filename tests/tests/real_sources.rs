//! Clients by their addresses through the binary: who may come in, which route it has, and
//! what new ranges change.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::Path;

use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{
    Folder, Gateway, Launch, Server, connect_from, echo, free_address, free_port, udp_from,
    wait_until, was_reset,
};

/// What is sent comes back; the connection stays.
fn ping(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut answer = [0; 4];
    stream.write_all(b"ping")?;
    stream.read_exact(&mut answer)?;
    assert_eq!(answer, *b"ping");
    Ok(())
}

fn echoes(stream: &mut TcpStream) -> bool {
    ping(stream).is_ok()
}

/// Whether a new connection from there is served; if not, it must be reset before a byte.
fn is_admitted(source: &str, to: SocketAddr) -> bool {
    let served = ping(&mut connect_from(source, to)).map_err(|error| error.kind());
    assert!(matches!(served, Ok(()) | Err(ErrorKind::ConnectionReset)), "{source}: {served:?}");
    served.is_ok()
}

/// Sends until an answer comes: a datagram may get lost.
fn ask(socket: &UdpSocket) -> String {
    let mut answer = [0; 64];
    for _ in 0..60 {
        socket.send(b"ping").expect("sending");
        if let Ok(len) = socket.recv(&mut answer) {
            return String::from_utf8_lossy(&answer[..len]).into_owned();
        }
    }
    panic!("no answer to any of 60 datagrams");
}

fn said(source: &str, to: SocketAddr) -> String {
    let mut text = String::new();
    connect_from(source, to).read_to_string(&mut text).expect("a tag and an end");
    text
}

#[test]
fn the_longest_prefix_says_who_may_connect() {
    let server = Server::tcp(echo);
    let address = free_address();
    let ranges = "allow = [\"127.0.0.0/8\", \"127.9.9.0/24\"]\ndeny = [\"127.9.0.0/16\"]";
    let gateway = Gateway::start(&forward("TCP", address, [server.address], ranges));
    assert!(is_admitted("127.0.0.1", address));
    assert!(is_admitted("127.9.9.9", address));
    assert!(!is_admitted("127.9.8.9", address));
    assert_eq!(server.served(), 2, "nothing of the denied reached the endpoint");
    let denied = [("listener", "main"), ("reason", "source_denied")];
    assert_eq!(gateway.metrics().value("ringway_sessions_refused_total", &denied), 1);
    let lines = gateway.closes(3);
    let denied = lines.iter().filter(|line| line.text("reason") == Some("source_denied"));
    for line in denied {
        assert!(line.text("client").expect("a client").starts_with("127.9.8.9:"), "{line:?}");
        assert!(!line.has("endpoint") && line.text("event") == Some("reject"), "{line:?}");
    }
}

#[test]
fn ranges_of_ipv6_are_apart_from_those_of_ipv4() {
    let server = Server::tcp(echo);
    let port = free_port();
    let (four, six) = (
        SocketAddr::from(([127, 0, 0, 1], port)),
        SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port)),
    );
    let both = |four_ranges: &str, six_ranges: &str| {
        listener("four", "TCP", four, four_ranges)
            + &listener("six", "TCP", six, six_ranges)
            + &route("four", "four", &[("main", 1)], "")
            + &route("six", "six", &[("main", 1)], "")
            + &backend("main", [server.address], "")
    };
    let gateway = Gateway::start(&both("deny = [\"::/0\"]", "allow = [\"::1\"]"));
    assert!(is_admitted("127.0.0.1", four) && is_admitted("::1", six));
    gateway.reload(&both("allow = [\"::/0\"]", "deny = [\"::/64\"]"));
    assert!(!is_admitted("127.0.0.1", four) && !is_admitted("::1", six));
}

#[test]
fn denied_datagrams_are_dropped_and_make_no_flow() {
    let server = Server::udp_tag("pong");
    let address = free_address();
    let config = forward("UDP", address, [server.address], "deny = [\"127.9.0.0/16\"]");
    let gateway = Gateway::start(&config);
    let denied = udp_from("127.9.0.1", address);
    for _ in 0..5 {
        denied.send(b"ping").expect("sending");
    }
    assert_eq!(ask(&udp_from("127.8.0.1", address)), "pong");
    let dropped = [("listener", "main"), ("reason", "source_denied")];
    let count = |name: &str| gateway.metrics().value(name, &dropped);
    wait_until("all are dropped", || count("ringway_datagrams_dropped_total") == 5);
    assert_eq!(count("ringway_flows_refused_total"), 5);
    assert_eq!(gateway.metrics().value("ringway_flows_active", &[]), 1);
    assert!(denied.recv(&mut [0; 9]).is_err(), "no answer comes to whom is denied");
}

/// Nothing is read of who is denied: a client that waits with its ClientHello is reset all the
/// same.
#[test]
fn tls_clients_are_denied_before_their_hello() {
    let server = Server::tcp(echo);
    let address = free_address();
    let tls = |name: &str, ranges: &str| {
        let host = format!("hostname = \"{name}.test\"\n{ranges}");
        listener(name, "TLS", address, &host) + &route(name, name, &[("main", 1)], "")
    };
    let deny = "deny = [\"127.9.0.0/16\"]";
    let config = tls("a", deny) + &tls("b", deny) + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    assert!(was_reset(&mut connect_from("127.9.0.1", address)));
    gateway.closed_for("source_denied");
    // Where they differ, the name must be known first.
    let config = tls("a", deny) + &tls("b", "") + &backend("main", [server.address], "");
    gateway.reload(&config);
    for (name, denied) in [("a.test", true), ("b.test", false)] {
        let count = gateway.closes(1).len();
        let mut stream = connect_from("127.9.0.1", address);
        let hello = ringway_tests::real::client_hello(Some(name));
        stream.write_all(&hello).expect("sending");
        if denied {
            assert!(was_reset(&mut stream));
            let lines = gateway.closes(count + 1);
            assert_eq!(lines[count].text("reason"), Some("source_denied"));
            assert_eq!(lines[count].text("listener"), Some("a"));
        } else {
            let mut back = vec![0; hello.len()];
            stream.read_exact(&mut back).expect("the echo of the hello");
        }
    }
}

#[test]
fn the_longest_source_has_the_route() {
    let (tcp, udp) = (free_address(), free_address());
    let tags = ["wide", "narrow", "rest"];
    let servers = tags.map(|tag| (tag, Server::tcp_tag(tag), Server::udp_tag(tag)));
    let mut config = listener("tcp", "TCP", tcp, "") + &listener("udp", "UDP", udp, "");
    for (tag, by_tcp, by_udp) in &servers {
        let sources = match *tag {
            "wide" => "sources = [\"127.1.0.0/16\"]",
            "narrow" => "sources = [\"127.1.2.0/24\", \"127.3.0.0/16\"]\ndeny = [\"127.1.2.9\"]",
            _ => "",
        };
        for (kind, server) in [("tcp", by_tcp), ("udp", by_udp)] {
            let name = format!("{tag}-{kind}");
            config += &route(&name, kind, &[(&name, 1)], sources);
            config += &backend(&name, [server.address], "");
        }
    }
    let gateway = Gateway::start(&config);
    for (client, expected) in [
        ("127.1.9.1", "wide"),
        ("127.1.2.1", "narrow"),
        ("127.3.0.1", "narrow"),
        ("127.7.7.7", "rest"),
    ] {
        assert_eq!(said(client, tcp), expected, "{client}");
        assert_eq!(ask(&udp_from(client, udp)), expected, "{client}");
    }
    // Whom the route denies has no other route.
    assert!(was_reset(&mut connect_from("127.1.2.9", tcp)));
    let denied = [("listener", "tcp"), ("reason", "source_denied")];
    assert_eq!(gateway.metrics().value("ringway_sessions_refused_total", &denied), 1);
}

#[test]
fn new_ranges_are_for_new_sessions_and_flows_only() {
    let (tcp_server, udp_server) = (Server::tcp(echo), Server::udp_tag("pong"));
    let (tcp, udp) = (free_address(), free_address());
    let folder = Folder::new();
    let file = folder.write("ranges.txt", "# nobody yet\n192.0.2.0/24\n");
    let deny = format!("deny = {{ file = \"{}\" }}", file.display());
    let config = listener("tcp", "TCP", tcp, &deny)
        + &listener("udp", "UDP", udp, &deny)
        + &route("tcp", "tcp", &[("tcp", 1)], "")
        + &route("udp", "udp", &[("udp", 1)], "")
        + &backend("tcp", [tcp_server.address], "")
        + &backend("udp", [udp_server.address], "");
    let gateway = Gateway::start(&config);
    let (mut session, flow) = (connect_from("127.5.0.1", tcp), udp_from("127.5.0.1", udp));
    assert!(echoes(&mut session));
    assert_eq!(ask(&flow), "pong");
    folder.write("ranges.txt", "127.5.0.0/16\n");
    wait_until("the changed file is in force", || !is_admitted("127.5.0.1", tcp));
    assert!(echoes(&mut session), "it was there before");
    assert_eq!(ask(&flow), "pong");
    let other = udp_from("127.5.0.1", udp);
    let dropped = [("listener", "udp"), ("reason", "source_denied")];
    let count = || gateway.metrics().value("ringway_datagrams_dropped_total", &dropped);
    wait_until("a datagram of a new flow is dropped", || {
        other.send(b"ping").expect("sending");
        count() > 0
    });
    folder.write("ranges.txt", "127.5.0.0/16\n127.5.0.0/40\n");
    let failures = || gateway.metrics().value("ringway_reload_failures_total", &[]);
    wait_until("the bad file is refused", || failures() > 0);
    let fault = "ranges.txt:2:1: listeners[0].deny: ";
    gateway.says(fault);
    assert!(!is_admitted("127.5.0.1", tcp) && is_admitted("127.6.0.1", tcp));
    folder.write("ranges.txt", "192.0.2.0/24\n");
    wait_until("the good file is in force", || is_admitted("127.5.0.1", tcp));
}

const MANY: u32 = 300_000;

/// Ranges of eight addresses, each followed by eight that are in none.
fn write_ranges(folder: &Folder, first: u32, name: &str) {
    let mut text = String::with_capacity(20 << 20);
    for n in 0..MANY {
        let address = std::net::Ipv4Addr::from(first + (n << 4));
        writeln!(text, "{address}/29").expect("a string");
    }
    folder.write(name, &text);
}

#[test]
fn three_hundred_thousand_ranges_and_other_ones() {
    let server = Server::tcp(echo);
    let address = free_address();
    let folder = Folder::new();
    let first = u32::from(std::net::Ipv4Addr::new(127, 0, 1, 0));
    write_ranges(&folder, first, "ranges.txt");
    let path: &Path = &folder.file("ranges.txt");
    let without = forward("TCP", address, [server.address], "");
    let gateway = Launch::default().one_worker().start(&without);
    let before = gateway.anonymous();
    let deny = format!("deny = {{ file = \"{}\" }}", path.display());
    gateway.reload(&forward("TCP", address, [server.address], &deny));
    // 16 bytes each in the table, and what it took to read the file is given back.
    let most = before + u64::from(MANY) * 24 / 1024;
    let comes_down = |what| {
        wait_until(what, || gateway.anonymous() <= most);
        eprintln!("{} KiB {what}, at most {most}", gateway.anonymous());
    };
    eprintln!("{before} KiB before");
    comes_down("with three hundred thousand ranges");
    assert!(!is_admitted("127.0.1.7", address) && is_admitted("127.0.1.8", address));
    assert!(!is_admitted("127.50.3.17", address) && is_admitted("127.50.3.31", address));
    write_ranges(&folder, first + 8, "ranges.txt");
    wait_until("the other ranges are in force", || is_admitted("127.0.1.7", address));
    assert!(!is_admitted("127.0.1.8", address) && is_admitted("127.50.3.17", address));
    comes_down("after they were replaced");
}
