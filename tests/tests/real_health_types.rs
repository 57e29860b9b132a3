//! Types of health checks, against real servers and against servers that lie, stall, answer in
//! pieces or close.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringway_tests::pki::Pki;
use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{
    Daemon, Folder, Gateway, MariaDb, Postgres, Server, accept_full, connect, free_address,
    program, wait_until,
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
        let healthy = gateway.metrics().value("ringway_endpoint_healthy", &labels);
        let down = format!("endpoint {endpoint} of backend {name} is down: ");
        let said = gateway.stderr();
        let said = said.lines().find(|line| line.contains(&down)).unwrap_or("nothing");
        assert_eq!(healthy, u64::from(case.bad.is_none()), "{}\n{said}", case.keys);
        let bad = case.bad.unwrap_or("nothing");
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
    let own = |keys: &str| check(&format!("type = \"tls\", {keys}"));
    let stranger = folder.write("stranger.pem", &Pki::new().ca()).display().to_string();
    let beside =
        check(&format!("type = \"http\", path = \"/ready\", port = {}, tls = true", right.port()));
    judge(&[
        case(right, with("db.internal", &tls), None),
        case(wrong, with("db.internal", &tls), Some("only valid for DnsName(\"other.internal\")")),
        case(wrong, with("db.internal", &blind), None),
        // The check names its own authority, or its own name, or both.
        case(wrong, with("db.internal", &own("server_name = \"other.internal\"")), None),
        case(
            right,
            with("db.internal", &own("server_name = \"other.internal\"")),
            Some("only valid for DnsName(\"db.internal\")"),
        ),
        case(
            right,
            with("db.internal", &own(&format!("ca = \"{stranger}\""))),
            Some("BadSignature"),
        ),
        case(
            right,
            format!("tls = {{ server_name = \"db.internal\", ca = \"{stranger}\" }}\n")
                + &own(&format!("ca = \"{ca}\"")),
            None,
        ),
        case(right, own(&format!("ca = \"{ca}\", server_name = \"db.internal\"")), None),
        case(
            wrong,
            check(&format!(
                "type = \"http\", path = \"/ready\", tls = true, ca = \"{ca}\", \
                 server_name = \"db.internal\""
            )),
            Some("only valid for DnsName(\"other.internal\")"),
        ),
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

#[test]
fn redis_by_its_role_and_its_password() {
    let (folder, address, replica) = (Folder::new(), free_address(), free_address());
    let dir = folder.file("").display().to_string();
    let start = |address: SocketAddr, more: &[&str]| {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string()]);
        command.args(["--dir", &dir, "--save", "", "--requirepass", "secret"]).args(more);
        Daemon::start(address, &mut command)
    };
    let _primary = start(address, &[]);
    let of = ["--replicaof", "127.0.0.1", &address.port().to_string(), "--masterauth", "secret"];
    let _replica = start(replica, &of);
    let password = folder.write("password", "secret\n").display().to_string();
    let wrong = folder.write("wrong", "guess").display().to_string();
    let redis = |keys: &str| check(&format!("type = \"redis\"{keys}"));
    let with = |keys: &str| redis(&format!(", password_file = \"{password}\"{keys}"));
    let lies = answering(&["-LOADING Redis is loading the dataset in memory\r\n"]);
    let pieces = answering(&["+", "PO", "NG\r", "\n"]);
    let (stalls, closes) = (silent(), closing());
    judge(&[
        case(address, with(""), None),
        case(address, with(", user = \"default\""), None),
        case(address, with(", role = \"primary\""), None),
        case(address, with(", role = \"replica\""), Some("its role is \"master\"")),
        case(replica, with(", role = \"replica\""), None),
        case(replica, with(", role = \"primary\""), Some("its role is \"slave\"")),
        case(address, redis(""), Some("NOAUTH Authentication required.")),
        case(address, redis(&format!(", password_file = \"{wrong}\"")), Some("WRONGPASS")),
        case(lies.address, redis(""), Some("LOADING Redis is loading")),
        case(pieces.address, redis(""), None),
        case(stalls.address, redis(""), Some("no answer within 500 ms")),
        case(closes.address, redis(""), Some("Redis at ")),
    ]);
}

/// A server with the users that [`Postgres::with_tls`] knows, whose password is "secret".
fn postgres(pki: &Pki) -> Postgres {
    let server = Postgres::with_tls("primary", &pki.issue(&["db.internal"]));
    let port = server.address.port();
    let login = format!("host=127.0.0.1 port={port} user=postgres sslmode=disable");
    let users = "create role scram login password 'secret'; \
                 create role clear login password 'secret'; \
                 set password_encryption = 'md5'; create role md5 login password 'secret'";
    program("psql", &["-qX", "-c", users, &login]);
    server
}

#[test]
fn postgres_by_its_role_and_its_password() {
    let (folder, pki) = (Folder::new(), Pki::new());
    let ca = folder.write("ca.pem", &pki.ca()).display().to_string();
    let server = postgres(&pki);
    let (replica, cold) = (server.replica(&["ssl=off"]), server.replica(&["hot_standby=off"]));
    let password = folder.write("password", "secret\n").display().to_string();
    let wrong = folder.write("wrong", "guess").display().to_string();
    let asks = |keys: &str| check(&format!("type = \"postgres\"{keys}"));
    let by = |user: &str| {
        asks(&format!(", user = \"{user}\", password_file = \"{password}\", role = \"primary\""))
    };
    let role = |role: &str| asks(&format!(", user = \"postgres\", role = \"{role}\""));
    let tls =
        |check: &str| format!("tls = {{ server_name = \"db.internal\", ca = \"{ca}\" }}\n{check}");
    let address = server.address;
    let cases = [
        case(address, asks(""), None),
        case(address, tls(&asks("")), None),
        case(address, asks(", user = \"postgres\""), None),
        case(address, role("primary"), None),
        case(address, role("replica"), Some("it is not in recovery, so it is a primary")),
        case(address, by("scram"), None),
        case(address, by("md5"), None),
        case(address, by("clear"), Some("it asks for the password in clear text")),
        case(address, tls(&by("clear")), None),
        case(address, tls(&by("scram")), None),
        case(address, asks(", user = \"scram\""), Some("the check has no `password_file`")),
        case(
            address,
            asks(&format!(", user = \"scram\", password_file = \"{wrong}\"")),
            Some("(28P01)"),
        ),
        case(address, asks(", user = \"nobody\""), Some("role \\\"nobody\\\" does not exist")),
        case(replica.address, asks(""), None),
        case(replica.address, asks(", tls = true, verify = false"), Some("it grants no TLS")),
        case(replica.address, role("replica"), None),
        case(replica.address, role("primary"), Some("it is in recovery, so it is a replica")),
        case(cold.address, role("replica"), Some("(57P03)")),
    ];
    judge_and(&cases, || {
        let logs = [server.log(), replica.log(), cold.log()];
        assert!(logs[0].contains("authentication failed"), "{logs:?}");
        // The checks leave no trace in a log, unless something is wrong with a login.
        for trace in ["could not", "incomplete", "unexpected", "protocol"] {
            assert!(logs.iter().all(|log| !log.contains(trace)), "{logs:?}");
        }
    });
}

#[test]
fn postgres_servers_that_lie_stall_or_close() {
    let user = |keys: &str| check(&format!("type = \"postgres\", user = \"me\"{keys}"));
    let bare = |keys: &str| check(&format!("type = \"postgres\"{keys}"));
    let pieces = answering(&["R\0\0", "\0\x08\0\0\0\0S\0\0\0\x08a", "\0b\0Z\0\0", "\0\x05I"]);
    let early = answering(&["SR\0\0\0\x08\0\0\0\0"]);
    let (grants, refuses) = (answering(&["S"]), answering(&["N"]));
    let lies = answering(&["HTTP/1.1 400 Bad Request\r\n\r\n"]);
    let starts =
        answering(&["E\0\0\0\x39SFATAL\0C57P03\0Mthe database system is shutting down\0\0"]);
    let cut = answering(&["R\0\0\0"]);
    let huge = answering(&["R\x7f\0\0\0", "more"]);
    let (stalls, closes) = (silent(), closing());
    judge(&[
        case(pieces.address, user(""), None),
        case(pieces.address, bare(""), Some("the answer is no PostgreSQL: \"R")),
        case(early.address, bare(", tls = true, verify = false"), Some("more before TLS begins")),
        // What comes after the grant is the server's affair, if nobody needs TLS.
        case(grants.address, bare(""), None),
        case(grants.address, bare(", tls = true, verify = false"), Some("TLS with ")),
        case(refuses.address, bare(""), None),
        case(lies.address, bare(""), Some("the answer is no PostgreSQL: \"HTTP/1.1")),
        case(lies.address, user(""), Some("the answer is no PostgreSQL: \"HTTP/1.1")),
        case(starts.address, user(""), Some("the database system is shutting down\" (57P03)")),
        case(cut.address, user(""), Some("the answer does not end: \"R")),
        case(huge.address, user(""), Some("the answer is no PostgreSQL: ")),
        case(stalls.address, bare(""), Some("no answer within 500 ms")),
        case(stalls.address, user(""), Some("no answer within 500 ms")),
        case(closes.address, bare(""), Some("PostgreSQL at ")),
    ]);
}

#[test]
fn mysql_by_its_role_and_its_password() {
    let (folder, pki) = (Folder::new(), Pki::new());
    let ca = folder.write("ca.pem", &pki.ca()).display().to_string();
    let issued = pki.issue(&["db.internal"]);
    // A host with two broken handshakes is shut out. Only 127.0.0.1 is exempt.
    let server = MariaDb::start(&issued, &["--max-connect-errors=2"]);
    let replica = MariaDb::start(&issued, &["--read-only=1", "--skip-ssl"]);
    let password = folder.write("password", "secret\n").display().to_string();
    let wrong = folder.write("wrong", "guess").display().to_string();
    let asks = |keys: &str| {
        format!("source = [\"127.0.0.2\"]\n{}", check(&format!("type = \"mysql\"{keys}")))
    };
    let me = |keys: &str| asks(&format!(", user = \"me\", password_file = \"{password}\"{keys}"));
    let tls =
        |check: &str| format!("tls = {{ server_name = \"db.internal\", ca = \"{ca}\" }}\n{check}");
    let (address, second) = (server.address, replica.address);
    judge_and(
        &[
            case(address, asks(""), None),
            case(address, tls(&asks("")), None),
            case(address, me(""), None),
            case(address, tls(&me("")), None),
            case(address, asks(", user = \"open\""), None),
            case(address, me(", role = \"primary\""), None),
            case(address, tls(&me(", role = \"primary\"")), None),
            case(
                address,
                me(", role = \"replica\""),
                Some("it is not read-only, so it is a primary"),
            ),
            case(second, me(", role = \"replica\""), None),
            case(second, me(", role = \"primary\""), Some("it is read-only, so it is a replica")),
            case(second, me(", tls = true, verify = false"), Some("it grants no TLS")),
            case(
                address,
                asks(&format!(", user = \"me\", password_file = \"{wrong}\"")),
                Some("(using password: YES)\" (1045)"),
            ),
        ],
        || {
            let broken = "select ifnull(sum(sum_connect_errors + count_handshake_errors), 0) \
                          from performance_schema.host_cache where ip = '127.0.0.2'";
            assert_eq!(server.ask(broken), "0");
            let aborted = "show global status like 'Aborted_clients'";
            assert_eq!(server.ask(aborted), "Aborted_clients\t0");
        },
    );
    // A user who logs in leaves nothing at all behind.
    let aborted = "show global status like 'Aborted_%'";
    let before = server.ask(aborted);
    judge_and(&[case(address, me(", role = \"primary\""), None)], || {
        assert_eq!(server.ask(aborted), before);
    });
}

#[test]
fn mysql_servers_that_lie_stall_or_close() {
    let bare = |keys: &str| check(&format!("type = \"mysql\"{keys}"));
    let speaking = |pieces: &'static [&'static [u8]]| {
        Server::tcp(move |mut stream| {
            for piece in pieces {
                _ = stream.write_all(piece);
                std::thread::sleep(Duration::from_millis(10));
            }
            _ = std::io::copy(&mut stream, &mut std::io::sink());
        })
    };
    const GREETING: &[u8] =
        b"\x4a\0\0\0\x0a8.0.36\0\x07\0\0\0abcdefgh\0\xff\xff\x2d\x02\0\xff\xff\x15\
        \0\0\0\0\0\0\0\0\0\0abcdefghijkl\0caching_sha2_password\0";
    let pieces = speaking(&[&[0x4a, 0], &[0], &[0, 0x0a], b"8.0.36\0"]);
    let denies = speaking(&[GREETING, b"\x09\0\0\x02\xff\x15\x04#28000", b""]);
    let many = speaking(&[b"\x17\0\0\0\xff\x10\x04Too many connections"]);
    let full = speaking(&[GREETING, b"\x02\0\0\x02\x01\x04", b"\x03\0\0\x04\xff\x15\x04"]);
    let early = Server::tcp(|mut stream| {
        _ = stream.write_all(&[GREETING, b"\x16\x03"].concat());
        _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let lies = speaking(&[b"220 mail.example ESMTP\r\n"]);
    let (stalls, closes) = (silent(), closing());
    let user = bare(", user = \"me\"");
    judge(&[
        case(denies.address, bare(""), None),
        case(pieces.address, bare(""), Some("no answer within 500 ms")),
        case(many.address, bare(""), Some("\"Too many connections\" (1040)")),
        case(full.address, user.as_str(), Some("it asks for the password in clear text")),
        case(early.address, bare(", tls = true, verify = false"), Some("more before TLS begins")),
        case(lies.address, bare(""), Some("the answer is no MySQL: \"220 mail.example")),
        case(stalls.address, bare(""), Some("no answer within 500 ms")),
        case(closes.address, user.as_str(), Some("MySQL at ")),
    ]);
}

#[test]
fn an_exchange_of_steps() {
    let mail = Server::tcp(|mut stream| {
        let mut asked = [0; 100];
        _ = stream.write_all(b"220 mail.test\r\n");
        while stream.read(&mut asked).is_ok_and(|len| len > 0) {
            for piece in ["250-mail.te", "st\r\n250 HE", "LP\r\n"] {
                _ = stream.write_all(piece.as_bytes());
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    let greeting = "{ expect_regex = \"^220 .*\\r\\n\" }";
    let steps = |more: &str| check(&format!("type = \"exchange\", steps = [{greeting}{more}]"));
    let hello = ", { send = \"EHLO me\\r\\n\", expect_regex = \"(?m)^250 \" }";
    let hex = ", { send_hex = \"0d 0a\", expect_hex = \"48454c50\" }, { send = \"QUIT\\r\\n\" }";
    let never = ", { send = \"EHLO me\\r\\n\", expect = \"354\" }";
    let busy = Server::tcp(|mut stream| _ = stream.write_all(b"421 too busy\r\n"));
    let endless = Server::tcp(|mut stream| while stream.write_all(&[b'x'; 4_096]).is_ok() {});
    judge(&[
        case(mail.address, steps(hello), None),
        case(mail.address, steps(hex), None),
        case(mail.address, steps(never), Some("no answer within 500 ms")),
        case(busy.address, steps(""), Some("but is \"421 too busy\\r\\n\"")),
        case(endless.address, steps(""), Some("the answer of step 1 does not have a match")),
    ]);
}

#[test]
fn an_agent_says_what_its_endpoint_gets() {
    let said = Arc::new(AtomicBool::new(true));
    let says = Arc::clone(&said);
    let agent = Server::tcp(move |mut stream| {
        let line = if says.load(Ordering::SeqCst) { "up 75%\n" } else { "drain # for an hour\n" };
        _ = stream.write_all(line.as_bytes());
    });
    let echo = Server::tcp_tag("a");
    let address = free_address();
    let config = listener("main", "TCP", address, "")
        + &route("main", "main", &[("main", 1)], "")
        + &backend(
            "main",
            [echo.address],
            &check(&format!("type = \"agent\", port = {}", agent.address.port())),
        );
    let gateway = Gateway::start(&config);
    assert_eq!(tag(address), Some(b'a'));
    said.store(false, Ordering::SeqCst);
    wait_until("the endpoint drains", || tag(address).is_none());
    said.store(true, Ordering::SeqCst);
    wait_until("the endpoint is back", || tag(address) == Some(b'a'));
    assert!(gateway.stderr().contains("asks for 0 % of its weight"), "{}", gateway.stderr());
    gateway.stop();
    let down = Server::tcp_tag("stopped # disk full\n");
    let stalls = silent();
    judge(&[
        case(down.address, check("type = \"agent\""), Some("it says stopped: \"disk full\"")),
        case(stalls.address, check("type = \"agent\""), Some("no answer within 500 ms")),
    ]);
}

/// An address where nothing listens for UDP.
fn nothing() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("its address")
}

#[test]
fn udp_servers_that_answer_or_say_nothing() {
    let pong = Server::udp_tag("pong");
    let mute = Server::udp(|_, _, _| {});
    let gone = nothing();
    let udp = |keys: &str| check(&format!("type = \"udp\", send = \"ping\"{keys}"));
    let sip = Server::udp(|socket, asked, peer| {
        let asked = String::from_utf8_lossy(asked);
        let same: String = asked
            .lines()
            .filter(|line| {
                ["Via", "From", "To", "Call", "CSeq"].iter().any(|w| line.starts_with(w))
            })
            .fold(String::new(), |text, line| text + line + "\r\n");
        _ = socket.send_to(format!("SIP/2.0 200 OK\r\n{same}\r\n").as_bytes(), peer);
    });
    let options = check("type = \"sip\"");
    judge(&[
        case(pong.address, udp(""), None),
        case(pong.address, udp(", expect = \"pong\""), None),
        case(pong.address, udp(", expect_regex = \"^x\""), Some("but is \"pong\"")),
        case(mute.address, udp(""), None),
        case(mute.address, udp(", silence = \"down\""), Some("no answer within 500 ms")),
        case(mute.address, udp(", expect = \"pong\""), Some("no answer within 500 ms")),
        case(gone, udp(""), Some("Connection refused")),
        case(sip.address, options.as_str(), None),
        case(sip.address, check("type = \"sip\", status = 503"), Some("its status is 200 OK")),
        case(pong.address, options.as_str(), Some("SIP at ")),
        case(gone, options.as_str(), Some("Connection refused")),
    ]);
}

#[test]
fn dns_servers_that_know_the_name_and_others() {
    let (folder, address) = (Folder::new(), free_address());
    let zone = folder.write(
        "zone",
        "@ 60 SOA ns admin 1 60 60 60 60\n@ 60 NS ns\nns 60 A 127.0.0.1\ndb 60 A 10.0.0.1\n",
    );
    let conf = format!(
        "server:\n  ip-address: 127.0.0.1\n  port: {}\n  username: \"\"\n  chroot: \"\"\n  \
         database: \"\"\n  zonesdir: \"{dir}\"\n  pidfile: \"\"\n  xfrdfile: \"\"\n  \
         xfrdir: \"{dir}\"\n  zonelistfile: \"{dir}/list\"\nremote-control:\n  \
         control-enable: no\nzone:\n  name: example.com\n  zonefile: \"{}\"\n",
        address.port(),
        zone.display(),
        dir = folder.file("").display(),
    );
    let conf = folder.write("nsd.conf", &conf).display().to_string();
    let _nsd = Daemon::start(address, Command::new("nsd").args(["-d", "-c", &conf]));
    let dns = |keys: &str| check(&format!("type = \"dns\", {keys}"));
    let lies = Server::udp_tag("this is no DNS, but long enough");
    judge(&[
        case(address, dns("query = \"db.example.com\""), None),
        case(address, dns("query = \"Example.COM.\", record = \"SOA\", transport = \"tcp\""), None),
        case(address, dns("query = \"no.example.com\""), Some("its code is NXDOMAIN")),
        case(address, dns("query = \"no.example.com\", rcode = [\"NOERROR\", \"NXDOMAIN\"]"), None),
        case(address, dns("query = \"example.org\""), Some("its code is REFUSED")),
        case(lies.address, dns("query = \"example.org\""), Some("to another question")),
        case(nothing(), dns("query = \"example.org\""), Some("Connection refused")),
    ]);
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
