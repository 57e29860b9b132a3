//! Types of health checks, against real servers and against servers that lie, stall, answer in
//! pieces or close.

mod exchange;
mod http;
mod mysql;
mod postgres;
mod redis;
mod sip;
mod tls;
mod udp;

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{
    Gateway, Server, accept_full, connect, free_address, wait_for, wait_until,
};

/// One backend of one endpoint, and what its checks come to: `None` if the endpoint is well, or a
/// part of the reason in the log.
struct Case<'c> {
    endpoint: SocketAddr,
    /// Keys of the backend.
    keys: String,
    bad: Option<&'c str>,
}

fn case<'c>(endpoint: SocketAddr, keys: impl Into<String>, bad: Option<&'c str>) -> Case<'c> {
    Case { endpoint, keys: keys.into(), bad }
}

/// The key `health_check` with these keys, and short times.
fn check(keys: &str) -> String {
    format!("health_check = {{ {keys}, interval = \"500ms\", fall = 3, rise = 1 }}")
}

/// The same for a server whose answer takes work: a busy machine may hold it up for a second.
fn patient_check(keys: &str) -> String {
    check(keys).replace("500ms", "2s")
}

/// Runs a gateway until every case has been checked three times, and compares.
fn judge(cases: &[Case<'_>]) {
    judge_and(cases, || {});
}

/// The same, and looks at something before the gateway ends: that cuts checks off.
fn judge_and(cases: &[Case<'_>], look: impl FnOnce()) {
    let name = |nth: usize| format!("case-{nth}");
    let mut config =
        listener("main", "TCP", free_address(), "") + &route("main", "main", &[("case-0", 1)], "");
    for (nth, case) in cases.iter().enumerate() {
        _ = write!(config, "{}", backend(&name(nth), [case.endpoint], &case.keys));
    }
    let gateway = Gateway::start(&config);
    for (nth, case) in cases.iter().enumerate() {
        let (name, endpoint) = (name(nth), case.endpoint.to_string());
        let count = |result| {
            let labels = [("backend", name.as_str()), ("result", result)];
            gateway.metrics().value("ringway_health_checks_total", &labels)
        };
        wait_until("the endpoint is checked", || count("ok") + count("failed") >= 3);
        assert_eq!(count("not_made"), 0, "{name}: {}", case.keys);
        let labels = [("backend", name.as_str()), ("endpoint", endpoint.as_str())];
        let down = format!("endpoint {endpoint} of backend {name} is down: ");
        let said = || gateway.stderr().lines().find(|line| line.contains(&down)).map(str::to_owned);
        // A thread of its own writes the log.
        let said = match case.bad {
            Some(_) => wait_for(&format!("{name} is down: {}", case.keys), said),
            None => said().unwrap_or_default(),
        };
        let healthy = gateway.metrics().value("ringway_endpoint_healthy", &labels);
        assert_eq!(healthy, u64::from(case.bad.is_none()), "{}\n{said}", case.keys);
        let bad = case.bad.unwrap_or_default();
        assert!(said.contains(bad), "{}\nsaid {said}\nnot  {bad}", case.keys);
    }
    look();
    gateway.stop();
}

/// Answers each connection with the pieces, once something has come.
fn answering(pieces: &'static [&'static str]) -> Server {
    Server::tcp(move |mut stream| {
        let mut asked = [0; 4_096];
        if !stream.read(&mut asked).is_ok_and(|len| len > 0) {
            return;
        }
        for piece in pieces {
            _ = stream.write_all(piece.as_bytes());
            std::thread::sleep(Duration::from_millis(10));
        }
    })
}

/// Takes connections and says nothing.
fn silent() -> Server {
    Server::tcp(|mut stream| _ = std::io::copy(&mut stream, &mut std::io::sink()))
}

/// The end of a connection before any answer.
fn closing() -> Server {
    Server::tcp(drop)
}

/// Passes everything on to a server, and its answers in pieces of a few bytes.
fn in_pieces(server: SocketAddr) -> Server {
    Server::tcp(move |mut stream| {
        let Ok(mut answers) = TcpStream::connect(server) else { return };
        let copies = (stream.try_clone(), answers.try_clone());
        let (Ok(mut asks), Ok(mut to)) = copies else { return };
        std::thread::spawn(move || {
            _ = std::io::copy(&mut asks, &mut to);
            _ = to.shutdown(Shutdown::Write);
        });
        let mut piece = [0; 90];
        while let Ok(len @ 1..) = answers.read(&mut piece) {
            if stream.write_all(&piece[..len]).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        _ = stream.shutdown(Shutdown::Both);
        _ = answers.shutdown(Shutdown::Both);
    })
}

fn tag(address: SocketAddr) -> Option<u8> {
    let (mut stream, mut tag): (TcpStream, _) = (connect(address), [0]);
    stream.read_exact(&mut tag).ok().map(|()| tag[0])
}

/// The address of the check, the name that is told to the endpoint, and refusals.
#[test]
fn endpoints_with_ipv6_addresses() {
    let any: SocketAddr = "[::1]:0".parse().expect("an address");
    let host = Server::tcp_at(any, |mut stream| {
        let mut asked = [0; 4_096];
        let len = stream.read(&mut asked).unwrap_or(0);
        let asked = String::from_utf8_lossy(&asked[..len]).to_lowercase();
        let host = asked.lines().find_map(|line| line.strip_prefix("host: "));
        let is_address = host.is_some_and(|host| host.starts_with("[::1]:"));
        let status = if is_address { "200 OK" } else { "400 Bad Request" };
        _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
    });
    let pong = Server::udp_at(any, |socket, _, peer| _ = socket.send_to(b"pong", peer));
    let free = || {
        let listener = std::net::TcpListener::bind(any).expect("a port");
        listener.local_addr().expect("its address")
    };
    let (refuses, silent) = (free(), UdpSocket::bind(any).expect("a port"));
    let closed = silent.local_addr().expect("its address");
    drop(silent);
    let udp = check("type = \"udp\", send = \"ping\", expect = \"pong\"");
    judge(&[
        case(host.address, check("type = \"tcp\""), None),
        case(host.address, check("type = \"http\""), None),
        case(pong.address, udp.as_str(), None),
        case(refuses, check("type = \"tcp\""), Some("Connection refused")),
        case(closed, udp.as_str(), Some("Connection refused")),
    ]);
}

/// A check that sends no byte asks for none: only who does not take the connection is down.
#[test]
fn tcp_servers_that_say_nothing_or_close_and_one_that_is_full() {
    let (stalls, closes) = (silent(), closing());
    let (full, _sockets) = accept_full();
    let tcp = check("type = \"tcp\"");
    judge(&[
        case(stalls.address, tcp.as_str(), None),
        case(closes.address, tcp.as_str(), None),
        case(full, tcp.as_str(), Some("connecting to ")),
    ]);
}
