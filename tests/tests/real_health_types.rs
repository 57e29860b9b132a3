//! Types of health checks, against real servers and against servers that lie, stall, answer in
//! pieces or close.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringway_tests::pki::Pki;
use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{
    Daemon, Folder, Gateway, Server, accept_full, connect, free_address, wait_until,
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

/// Runs a gateway until every case has been checked three times, and compares.
fn judge(cases: &[Case<'_>]) {
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
        let healthy = gateway.metrics().value("ringway_endpoint_healthy", &labels);
        let down = format!("endpoint {endpoint} of backend {name} is down: ");
        let said = gateway.stderr();
        let said = said.lines().find(|line| line.contains(&down)).unwrap_or("nothing");
        assert_eq!(healthy, u64::from(case.bad.is_none()), "{}\n{said}", case.keys);
        let bad = case.bad.unwrap_or("nothing");
        assert!(said.contains(bad), "{}\nsaid {said}\nnot  {bad}", case.keys);
    }
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

/// Patroni's REST API: a GET of `/primary` or `/replica` is answered with 200 or 503.
fn patroni(address: SocketAddr, is_primary: Arc<AtomicBool>) -> Server {
    Server::tcp_at(address, move |mut stream| {
        let mut request = Vec::new();
        let mut part = [0; 1_024];
        while !request.ends_with(b"\r\n\r\n") {
            match stream.read(&mut part) {
                Ok(len) if len > 0 => request.extend_from_slice(&part[..len]),
                _ => return,
            }
        }
        let is_primary = is_primary.load(Ordering::SeqCst);
        let good = if is_primary { &b"GET /primary "[..] } else { b"GET /replica " };
        let status = if request.starts_with(good) { "200 OK" } else { "503 Service Unavailable" };
        let role = if is_primary { "primary" } else { "replica" };
        let body = format!("{{\"state\": \"running\", \"role\": \"{role}\"}}");
        _ = write!(stream, "HTTP/1.0 {status}\r\nContent-Type: application/json\r\n\r\n{body}");
    })
}

fn tag(address: SocketAddr) -> Option<u8> {
    let (mut stream, mut tag): (TcpStream, _) = (connect(address), [0]);
    stream.read_exact(&mut tag).ok().map(|()| tag[0])
}

#[test]
fn sessions_follow_the_primary_that_patroni_names() {
    let ips: [IpAddr; 2] = [[127, 0, 0, 1].into(), [127, 0, 0, 2].into()];
    let tags = ["a", "b"];
    let servers = [0, 1].map(|nth| {
        Server::tcp_at((ips[nth], 0).into(), move |mut stream| {
            _ = stream.write_all(tags[nth].as_bytes());
        })
    });
    let roles = [true, false].map(|is_primary| Arc::new(AtomicBool::new(is_primary)));
    let first = patroni((ips[0], 0).into(), Arc::clone(&roles[0]));
    let port = first.address.port();
    let _second = patroni((ips[1], port).into(), Arc::clone(&roles[1]));
    let (write, read) = (free_address(), free_address());
    let mut config = String::new();
    for (name, address) in [("primary", write), ("replica", read)] {
        let keys = format!("type = \"http\", port = {port}, path = \"/{name}\", status = 200");
        config += &listener(name, "TCP", address, "");
        config += &route(name, name, &[(name, 1)], "");
        config += &backend(name, servers.each_ref().map(|server| server.address), &check(&keys));
    }
    let gateway = Gateway::start(&config);
    let go_to = |address: SocketAddr, tag_of: u8| {
        wait_until("sessions go where they should", || {
            (0..8).all(|_| tag(address) == Some(tag_of))
        });
    };
    go_to(write, b'a');
    go_to(read, b'b');
    roles[0].store(false, Ordering::SeqCst);
    roles[1].store(true, Ordering::SeqCst);
    go_to(write, b'b');
    go_to(read, b'a');
    let why = format!("HTTP with 127.0.0.1:{port}: its status is 503 Service Unavailable");
    assert!(gateway.stderr().contains(&why), "{}", gateway.stderr());
    gateway.stop();
}

#[test]
fn http_servers_that_answer_lie_stall_or_close() {
    let good = answering(&["HTTP/1.1 2", "00 OK\r\nContent-Len", "gth: 2\r\n\r\no", "k"]);
    let etcd = answering(&["HTTP/1.1 200 OK\r\n\r\n{\"health\":\"true\",\"reason\":\"\"}"]);
    let lost = answering(&["HTTP/1.1 503 Service Unavailable\r\n\r\n{\"health\":\"false\"}"]);
    let lies = answering(&["SSH-2.0-OpenSSH_9.2p1\r\n"]);
    let cut = answering(&["HTTP/1.1 200 OK\r\nContent-Le"]);
    let (stalls, closes) = (silent(), closing());
    let (full, _sockets) = accept_full();
    let http = check("type = \"http\", path = \"/health\"");
    let body = check("type = \"http\", path = \"/health\", body = '\"health\":\"true\"'");
    judge(&[
        case(good.address, http.as_str(), None),
        case(
            good.address,
            check("type = \"http\", method = \"HEAD\", status = [\"200-299\"]"),
            None,
        ),
        case(good.address, check("type = \"http\", body_regex = \"^ok$\""), None),
        case(good.address, check("type = \"http\", status = 204"), Some("its status is 200 OK")),
        case(etcd.address, body.as_str(), None),
        case(lost.address, body.as_str(), Some("its status is 503 Service Unavailable")),
        case(good.address, body.as_str(), Some("its body does not have what is expected")),
        case(lies.address, http.as_str(), Some("the answer is no HTTP")),
        case(cut.address, http.as_str(), Some("the head of the answer does not end")),
        case(stalls.address, http.as_str(), Some("no answer within 500 ms")),
        case(closes.address, http.as_str(), Some("HTTP with ")),
        case(full, http.as_str(), Some("connecting to ")),
    ]);
}

/// `openssl s_server`, which serves the files of its folder by HTTP.
fn openssl(folder: &Folder, pki: &Pki, name: &str, more: &[&str]) -> (SocketAddr, Daemon) {
    let issued = pki.issue(&[name]);
    folder.write(&format!("{name}.pem"), &issued.cert);
    folder.write(&format!("{name}.key"), &issued.key);
    folder.write("ca.pem", &pki.ca());
    let address = free_address();
    let mut command = Command::new("openssl");
    command.current_dir(folder.file("")).args(["s_server", "-WWW", "-quiet"]);
    command.args(["-accept", &address.to_string()]);
    command.args(["-cert", &format!("{name}.pem"), "-key", &format!("{name}.key")]).args(more);
    (address, Daemon::start(address, &mut command))
}

#[test]
fn tls_servers_with_the_right_certificate_and_others() {
    let (folder, pki) = (Folder::new(), Pki::new());
    folder.write("ready", "yes");
    let (right, _right) = openssl(&folder, &pki, "db.internal", &[]);
    let (wrong, _wrong) = openssl(&folder, &pki, "other.internal", &[]);
    let strict = ["-Verify", "1", "-verify_return_error", "-CAfile", "ca.pem"];
    let (strict, _strict) = openssl(&folder, &pki, "strict.internal", &strict);
    let (stalls, lies) = (silent(), answering(&["HTTP/1.1 400 Bad Request\r\n\r\n"]));
    let ca = folder.file("ca.pem").display().to_string();
    let with = |name: &str, check: &str| {
        format!("tls = {{ server_name = \"{name}\", ca = \"{ca}\" }}\n{check}")
    };
    let (tls, http) = (check("type = \"tls\""), check("type = \"http\", path = \"/ready\""));
    let blind = check("type = \"tls\", verify = false");
    let beside =
        check(&format!("type = \"http\", path = \"/ready\", port = {}, tls = true", right.port()));
    judge(&[
        case(right, with("db.internal", &tls), None),
        case(wrong, with("db.internal", &tls), Some("only valid for DnsName(\"other.internal\")")),
        case(wrong, with("db.internal", &blind), None),
        case(right, blind.as_str(), None),
        case(right, with("db.internal", &http), None),
        case(wrong, beside.as_str().to_owned() + "\n" + &with("db.internal", ""), None),
        case(
            right,
            with("db.internal", &check("type = \"http\", status = 204")),
            Some("its status is 200 ok"),
        ),
        // The endpoint wants a certificate of the gateway, which has none.
        case(strict, with("strict.internal", &tls), Some("CertificateRequired")),
        case(stalls.address, with("db.internal", &tls), Some("no answer within 500 ms")),
        case(lies.address, with("db.internal", &tls), Some("TLS with ")),
    ]);
}
