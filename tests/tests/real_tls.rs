//! TLS by server name through the binary: OpenSSL's servers and clients, and curl.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ringway::wire::client_hello::MAX_HELLO;
use ringway_tests::hello;
use ringway_tests::pki::Pki;
use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{
    Daemon, Folder, Gateway, Launch, LogLine, Server, alert, client_hello, closed_without_a_byte,
    connect, connect_from, echo, free_address, program, wait_until,
};

/// `openssl s_server` that serves the file `who`, in which its own name stands.
struct TlsServer {
    address: SocketAddr,
    _daemon: Daemon,
    _folder: Folder,
}

impl TlsServer {
    fn start(name: &str) -> Self {
        let folder = Folder::new();
        let address = free_address();
        certificate(&folder.file("key.pem"), &folder.file("cert.pem"));
        folder.write("who", name);
        let mut command = Command::new("openssl");
        command.args(["s_server", "-quiet", "-WWW", "-key", "key.pem", "-cert", "cert.pem"]);
        command.args(["-accept", &address.to_string()]).current_dir(folder.file(""));
        Self { address, _daemon: Daemon::start(address, &mut command), _folder: folder }
    }
}

fn certificate(key: &Path, certificate: &Path) {
    let (key, certificate) = (key.display().to_string(), certificate.display().to_string());
    let subject = ["-subj", "/CN=test", "-days", "2", "-nodes", "-x509"];
    let kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    let files = ["-keyout", &key, "-out", &certificate];
    program("openssl", &[&["req"], &kind[..], &subject, &files].concat());
}

/// Who answers curl under this server name.
fn who(server_name: &str, address: SocketAddr) -> String {
    let port = address.port();
    let resolve = format!("{server_name}:{port}:{}", address.ip());
    let url = format!("https://{server_name}:{port}/who");
    program("curl", &["-sSk", "--http1.0", "--noproxy", "*", "--resolve", &resolve, &url])
}

/// Answers every connection with `tag`, once something has come.
fn tagged(tag: &'static str) -> Server {
    Server::tcp(move |mut stream| {
        let mut bytes = [0; 4096];
        if stream.read(&mut bytes).is_ok_and(|len| len > 0) {
            let _ = stream.write_all(tag.as_bytes());
        }
    })
}

/// What comes back for a ClientHello with this name; empty if the connection is closed.
fn answer(address: SocketAddr, server_name: Option<&str>) -> String {
    let mut stream = connect(address);
    stream.write_all(&client_hello(server_name)).expect("sent");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    match answer[..] {
        [21, 3, 3, 0, 2, 2, alert] => format!("alert {alert}"),
        _ => String::from_utf8(answer).expect("text"),
    }
}

/// Numbers of alerts (RFC 8446, section 6; RFC 6066, section 9).
const DECODE_ERROR: u8 = 50;
const INTERNAL_ERROR: u8 = 80;
const MISSING_EXTENSION: u8 = 109;
const UNRECOGNIZED_NAME: u8 = 112;
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// The default is for clients without a name, and not for those with one that nobody has.
#[test]
fn clients_without_a_name_have_a_default() {
    let (a, b, address) = (tagged("a"), tagged("b"), free_address());
    let config = listener("tls", "TLS", address, "default_hostname = \"b.test\"")
        + &route("a", "tls", &[("a", 1)], "hostnames = [\"a.test\"]")
        + &route("b", "tls", &[("b", 1)], "hostnames = [\"b.test\"]")
        + &backend("a", [a.address], "")
        + &backend("b", [b.address], "");
    let gateway = Gateway::start(&config);
    let mut answers = Vec::new();
    for name in [Some("a.test"), Some("b.test"), None, Some("c.test")] {
        answers.push(answer(address, name));
    }
    assert_eq!(answers, ["a", "b", "b", "alert 112"]);
    let unknown = |line: &LogLine| line.text("reason") == Some("unknown_server_name");
    assert_eq!(gateway.closes(4).iter().filter(|line| unknown(line)).count(), 1);
}

#[test]
fn openssl_and_curl_reach_the_backend_of_their_name() {
    let (a, b) = (TlsServer::start("a"), TlsServer::start("b"));
    let address = free_address();
    let config = listener("tls", "TLS", address, "")
        + &route("a", "tls", &[("a", 1)], "hostnames = [\"a.example.com\"]")
        + &route("b", "tls", &[("b", 1)], "hostnames = [\"b.example.com\"]")
        + &backend("a", [a.address], "")
        + &backend("b", [b.address], "");
    let gateway = Gateway::start(&config);
    for _ in 0..5 {
        assert_eq!(who("a.example.com", address), "a");
        assert_eq!(who("b.example.com", address), "b");
        assert_eq!(who("A.EXAMPLE.com", address), "a");
    }
    let get = format!(
        "printf 'GET /who HTTP/1.0\\r\\n\\r\\n' | \
         openssl s_client -quiet -connect {address} -servername b.example.com 2>&1"
    );
    let printed = program("sh", &["-c", &get]);
    assert!(printed.ends_with("\r\n\r\nb"), "{printed}");
    for line in gateway.closes(16) {
        let name = line.text("server_name").expect("a name").to_ascii_lowercase();
        assert_eq!(name, format!("{}.example.com", line.text("backend").expect("a backend")));
    }
}

/// The alert that RFC 6066 or RFC 8446 names, and a FIN, which OpenSSL's client shows to people.
#[test]
fn unknown_and_missing_names_are_told() {
    let (server, address) = (tagged("never"), free_address());
    let hostnames = "hostnames = [\"a.example.com\"]\nalpn = [\"h2\"]";
    let config = listener("tls", "TLS", address, "")
        + &route("a", "tls", &[("a", 1)], hostnames)
        + &backend("a", [server.address], "");
    let gateway = Gateway::start(&config);
    for (name, expected) in [
        (Some("unknown.example.com"), UNRECOGNIZED_NAME),
        (Some("example.com"), UNRECOGNIZED_NAME),
        (None, MISSING_EXTENSION),
    ] {
        let mut stream = connect(address);
        stream.write_all(&client_hello(name)).expect("sent");
        assert_eq!(alert(&mut stream), Some(expected), "{name:?}");
    }
    for (option, number) in [
        ("-servername other.example.com", UNRECOGNIZED_NAME),
        ("-noservername", MISSING_EXTENSION),
        ("-servername a.example.com -alpn http/1.1", NO_APPLICATION_PROTOCOL),
    ] {
        let attempt = format!("openssl s_client -connect {address} {option} </dev/null 2>&1 || :");
        let printed = program("sh", &["-c", &attempt]);
        assert!(printed.contains(&format!("SSL alert number {number}")), "{printed}");
    }
    let lines = gateway.closes(6);
    let unknown = lines.iter().filter(|line| line.text("reason") == Some("unknown_server_name"));
    assert_eq!(unknown.count(), 5);
    assert_eq!(server.served(), 0);
}

/// A backend without endpoints.
const NOBODY: [SocketAddr; 0] = [];

/// TLS passes through, and nobody is there: an alert that says that it is not the client's fault.
#[test]
fn a_client_without_an_endpoint_is_told() {
    let (dead, none) = (free_address(), free_address());
    let config = listener("dead", "TLS", dead, "")
        + &listener("none", "TLS", none, "")
        + &route("dead", "dead", &[("dead", 1)], "")
        + &route("none", "none", &[("none", 1)], "")
        + &backend("dead", [free_address()], "")
        + &backend("none", NOBODY, "");
    let gateway = Gateway::start(&config);
    for address in [dead, none] {
        let mut stream = connect(address);
        stream.write_all(&client_hello(Some("a.example.com"))).expect("sent");
        assert_eq!(alert(&mut stream), Some(INTERNAL_ERROR));
    }
    let lines = gateway.closes(2);
    let mut reasons: Vec<_> = lines.iter().filter_map(|line| line.text("reason")).collect();
    // Two workers may write their lines in either order.
    reasons.sort_unstable();
    assert_eq!(reasons, ["connect_failed", "no_endpoint"]);
}

/// A port that does not show that it speaks TLS.
#[test]
fn unknown_and_missing_names_are_closed_without_an_alert_if_that_is_asked() {
    let server = tagged("never");
    let address = free_address();
    let config = listener("tls", "TLS", address, "on_refusal = \"reset\"")
        + &route("a", "tls", &[("a", 1)], "hostnames = [\"a.example.com\"]")
        + &backend("a", [server.address], "");
    let gateway = Gateway::start(&config);
    for name in [Some("unknown.example.com"), Some("example.com"), None] {
        let mut stream = connect(address);
        stream.write_all(&client_hello(name)).expect("sent");
        assert!(closed_without_a_byte(&mut stream), "{name:?} got an answer");
    }
    let attempt = format!(
        "openssl s_client -msg -connect {address} -servername other.example.com </dev/null 2>&1 \
         || true"
    );
    let printed = program("sh", &["-c", &attempt]);
    assert!(printed.contains(">>> TLS"), "{printed}");
    assert!(!printed.contains("<<< TLS"), "the gateway answered: {printed}");

    let lines = gateway.closes(4);
    let mut names: Vec<_> = lines.iter().map(|line| line.text("server_name")).collect();
    names.sort_unstable();
    let expected =
        [None, Some("example.com"), Some("other.example.com"), Some("unknown.example.com")];
    assert_eq!(names, expected);
    assert!(lines.iter().all(|line| line.text("reason") == Some("unknown_server_name")));
    let reason = [("reason", "unknown_server_name")];
    assert_eq!(gateway.metrics().value("ringway_sessions_refused_total", &reason), 4);
    assert_eq!(server.served(), 0);
}

#[test]
fn exact_name_beats_the_longest_wildcard() {
    let tags = ["exact", "short", "long", "rest"];
    let servers = tags.map(tagged);
    let address = free_address();
    let hostnames = [
        "hostnames = [\"db.example.com\"]",
        "hostnames = [\"*.example.com\"]",
        "hostnames = [\"*.eu.example.com\"]",
        "",
    ];
    let mut config = listener("tls", "TLS", address, "");
    for ((tag, server), hostnames) in tags.iter().zip(&servers).zip(hostnames) {
        config += &route(tag, "tls", &[(tag, 1)], hostnames);
        config += &backend(tag, [server.address], "");
    }
    let _gateway = Gateway::start(&config);
    assert_eq!(answer(address, Some("db.example.com")), "exact");
    assert_eq!(answer(address, Some("DB.Example.Com")), "exact");
    assert_eq!(answer(address, Some("x.example.com")), "short");
    assert_eq!(answer(address, Some("y.x.example.com")), "short");
    assert_eq!(answer(address, Some("x.eu.example.com")), "long");
    assert_eq!(answer(address, Some("y.x.eu.example.com")), "long");
    assert_eq!(answer(address, Some("eu.example.com")), "short");
    assert_eq!(answer(address, Some("example.com")), "rest");
    assert_eq!(answer(address, Some("example.org")), "rest");
    assert_eq!(answer(address, None), "rest");
}

/// Only the routes of the most specific listener count, even where none of them matches.
#[test]
fn listeners_with_different_hostnames_share_a_port() {
    let (wide, narrow) = (tagged("wide"), tagged("narrow"));
    let address = free_address();
    let config = listener("wide", "TLS", address, "hostname = \"*.example.com\"")
        + &listener("narrow", "TLS", address, "hostname = \"db.example.com\"")
        + &route("wide", "wide", &[("wide", 1)], "")
        + &route("narrow", "narrow", &[("narrow", 1)], "")
        + &backend("wide", [wide.address], "")
        + &backend("narrow", [narrow.address], "");
    let gateway = Gateway::start(&config);
    assert_eq!(answer(address, Some("web.example.com")), "wide");
    assert_eq!(answer(address, Some("db.example.com")), "narrow");
    assert_eq!(answer(address, Some("db.example.org")), "alert 112");
    assert_eq!(answer(address, None), "alert 109");
    let lines = gateway.closes(4);
    let mut listeners: Vec<_> = lines.iter().map(|line| line.text("listener")).collect();
    listeners.sort_unstable();
    assert_eq!(listeners, [None, None, Some("narrow"), Some("wide")]);
}

/// The bytes that were read to find the name reach the backend unchanged and once, however they
/// come and however many they are.
#[test]
fn hellos_in_pieces_arrive_unchanged() {
    let server = Server::tcp(echo);
    let address = free_address();
    let config = listener("tls", "TLS", address, "")
        + &route("a", "tls", &[("a", 1)], "hostnames = [\"a.example.com\"]")
        + &backend("a", [server.address], "");
    let gateway = Gateway::start(&config);
    // The largest has some 120 bytes around its padding, and four record headers.
    let largest = u16::try_from(MAX_HELLO - 200).expect("a length");
    for (padding, piece) in [(100, 1), (largest, 5_000), (largest, 60_000)] {
        let hello = hello::client_hello(Some("a.example.com"), padding, 1 << 14);
        let stream = connect(address);
        stream.set_nodelay(true).expect("an option");
        let mut back = vec![0; hello.len()];
        std::thread::scope(|scope| {
            scope.spawn(|| (&stream).read_exact(&mut back).expect("an answer"));
            for piece in hello.chunks(piece) {
                (&stream).write_all(piece).expect("sent");
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        assert!(back == hello, "{padding} {piece}");
    }
    let lens: Vec<_> = gateway.closes(3).iter().map(|line| line.number("bytes_up")).collect();
    assert_eq!(lens.iter().filter(|len| **len > 65_000).count(), 2, "{lens:?}");

    let too_large = hello::client_hello(Some("a.example.com"), u16::MAX - 40, 1 << 14);
    let mut stream = connect(address);
    // The answer comes as soon as the length is known, and the rest meets a closed connection.
    stream.write_all(&too_large[..1_000]).expect("sent");
    assert_eq!(alert(&mut stream), Some(DECODE_ERROR));
    assert_eq!(gateway.closes(4)[3].text("reason"), Some("hello_too_large"));
}

/// Validation of certificates has a server of its own, whichever name is asked for.
#[test]
fn openssl_reaches_the_backend_of_its_protocol() {
    let (web, acme) = (TlsServer::start("web"), TlsServer::start("acme"));
    let address = free_address();
    let config = listener("tls", "TLS", address, "")
        + &route("acme", "tls", &[("acme", 1)], "alpn = [\"acme-tls/1\"]")
        + &route("web", "tls", &[("web", 1)], "")
        + &backend("web", [web.address], "")
        + &backend("acme", [acme.address], "");
    let gateway = Gateway::start(&config);
    for (offered, expected) in [
        ("-alpn acme-tls/1", "acme"),
        ("-alpn h2,acme-tls/1", "acme"),
        ("-alpn h2,http/1.1", "web"),
        ("", "web"),
    ] {
        let get = format!(
            "printf 'GET /who HTTP/1.0\\r\\n\\r\\n' | openssl s_client -quiet {offered} \
             -connect {address} -servername any.example.com 2>&1"
        );
        let printed = program("sh", &["-c", &get]);
        assert!(printed.ends_with(&format!("\r\n\r\n{expected}")), "{offered}: {printed}");
    }
    let routes: Vec<_> = routes(&gateway, 4).iter().map(|line| line[..3].to_owned()).collect();
    assert_eq!(routes, ["acm", "acm", "web", "web"]);
}

/// The log's route and reason of each session.
fn routes(gateway: &Gateway, count: usize) -> Vec<String> {
    let words = |line: &LogLine| {
        let route = line.text("route").unwrap_or("-");
        format!("{route} {}", line.text("reason").unwrap_or("-"))
    };
    let mut said: Vec<_> = gateway.closes(count).iter().map(words).collect();
    said.sort_unstable();
    said
}

/// A server that speaks first, as those of SSH do, and then sends back what comes.
fn speaks_first() -> Server {
    Server::tcp(|mut stream| {
        if stream.write_all(b"SSH-2.0-server\r\n").is_ok() {
            echo(stream);
        }
    })
}

fn exchange_line(stream: &mut TcpStream, line: &[u8]) {
    let mut back = vec![0; line.len()];
    stream.write_all(line).expect("sent");
    stream.read_exact(&mut back).expect("an answer");
    assert_eq!(back, line);
}

/// SSH clients that speak and that wait, an RDP client, and TLS, on one port.
#[test]
fn clients_that_do_not_speak_tls_have_backends_of_their_own() {
    let (web, ssh, rdp) = (TlsServer::start("web"), speaks_first(), Server::tcp(echo));
    let address = free_address();
    let keys = "hello_timeout = \"1s\"\nnot_tls = \"rdp\"\nsilent = \"ssh\"";
    let config = listener("tls", "TLS", address, keys)
        + &route("web", "tls", &[("web", 1)], "")
        + &backend("web", [web.address], "")
        + &backend("ssh", [ssh.address], "")
        + &backend("rdp", [rdp.address], "");
    let gateway = Gateway::start(&config);

    let mut waits = connect(address);
    // X.224 Connection Request, in pieces, and bulk behind it.
    let request = b"\x03\0\0\x13\x0e\xe0\0\0\0\0\0\x01\0\x08\0\x03\0\0\0";
    let mut speaks = connect(address);
    exchange_line(&mut speaks, &request[..1]);
    exchange_line(&mut speaks, &request[1..]);
    let bulk: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    std::thread::scope(|scope| {
        let mut writer = speaks.try_clone().expect("a descriptor");
        let bulk = &bulk;
        scope.spawn(move || writer.write_all(bulk).expect("sent"));
        let mut back = vec![0; bulk.len()];
        speaks.read_exact(&mut back).expect("an answer");
        assert!(back == *bulk);
    });
    let mut banner = [0; 16];
    waits.read_exact(&mut banner).expect("the server's first words");
    assert_eq!(&banner, b"SSH-2.0-server\r\n");
    exchange_line(&mut waits, b"SSH-2.0-client\r\n");
    assert_eq!(who("web.example.com", address), "web");
    let mut stalls = connect(address);
    stalls.write_all(&client_hello(Some("web.example.com"))[..20]).expect("sent");
    assert!(closed_without_a_byte(&mut stalls));
    let mut broken = connect(address);
    broken.write_all(&[22, 3, 1, 0, 0, 1]).expect("sent");
    assert_eq!(alert(&mut broken), Some(DECODE_ERROR));
    drop((waits, speaks));

    let expected =
        ["- hello_invalid", "- hello_timeout", "tls/not_tls client_fin", "tls/silent client_fin"];
    let said = routes(&gateway, 5);
    assert_eq!(said[..4], expected);
    assert!(said[4].starts_with("web "), "{said:?}");
    assert_eq!((ssh.served(), rdp.served()), (1, 1));
}

/// Where TLS ends at the gateway, a client without TLS is passed on as it is, and under TLS to an
/// endpoint that wants TLS.
#[test]
fn clients_that_do_not_speak_tls_pass_where_tls_ends_here() {
    let (folder, pki) = (Folder::new(), Pki::new());
    let issued = pki.issue(&["a.test"]);
    let write = |name: &str, pem: &str| folder.write(name, pem).display().to_string();
    let (cert, key) = (write("cert.pem", &issued.cert), write("key.pem", &issued.key));
    let ca = write("ca.pem", &pki.ca());
    let tls = format!(
        "tls = {{ mode = \"Terminate\", certificates = [{{ cert = \"{cert}\", key = \"{key}\" }}], \
         client_auth = \"required\", client_ca = \"{ca}\" }}\n"
    );
    let (plain, secret) = (speaks_first(), free_address());
    folder.write("who", "secret");
    let mut command = Command::new("openssl");
    command.args(["s_server", "-quiet", "-WWW", "-key", &key, "-cert", &cert]);
    command.args(["-accept", &secret.to_string()]).current_dir(folder.file(""));
    let _server = Daemon::start(secret, &mut command);
    let [a, b] = [free_address(), free_address()];
    let origination = format!("tls = {{ server_name = \"a.test\", ca = \"{ca}\" }}");
    let config =
        listener("a", "TLS", a, &format!("{tls}not_tls = \"plain\"\nstarttls = \"postgres\""))
            + &listener("b", "TLS", b, &format!("{tls}not_tls = \"secret\""))
            + &route("a", "a", &[("plain", 1)], "")
            + &route("b", "b", &[("secret", 1)], "")
            + &backend("plain", [plain.address], "")
            + &backend("secret", [secret], &origination);
    let gateway = Gateway::start(&config);
    let mut client = connect(a);
    client.write_all(b"SSH-2.0-client\r\n").expect("sent");
    let mut both = [0; 32];
    client.read_exact(&mut both).expect("an answer");
    assert_eq!(&both, b"SSH-2.0-server\r\nSSH-2.0-client\r\n");
    drop(client);
    let mut client = connect(b);
    client.write_all(b"GET /who HTTP/1.0\r\n\r\n").expect("sent");
    let mut answer = String::new();
    let _ = client.read_to_string(&mut answer);
    assert!(answer.ends_with("secret"), "{answer}");
    drop(client);
    // A client of TLS must still show its certificate.
    program(
        "sh",
        &[
            "-c",
            &format!("openssl s_client -quiet -servername a.test -connect {a} </dev/null || true"),
        ],
    );
    let said = routes(&gateway, 3);
    assert!(said.iter().any(|line| line == "a client_tls_failed"), "{said:?}");
    let others = said.iter().filter(|line| line.contains("/not_tls ")).count();
    assert_eq!(others, 2, "{said:?}");
}

/// More than twice as many silent clients as there are places.
#[test]
fn clients_that_send_no_hello_keep_nobody_out() {
    let server = tagged("a");
    let address = free_address();
    let config = listener("tls", "TLS", address, "hello_timeout = \"1h\"")
        + &route("a", "tls", &[("a", 1)], "")
        + &backend("a", [server.address], "")
        + "[limits]\nsessions = 512\n";
    let gateway = Launch::default().one_worker().start(&config);
    let mut silent = Vec::new();
    for round in 0..40 {
        silent.extend((0..32).map(|_| connect(address)));
        // So that those who made room are gone.
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(answer(address, Some("a.example.com")), "a", "in round {round}");
    }
    let crowded_out = [("reason", "crowded_out")];
    let crowded_out = gateway.metrics().value("ringway_sessions_refused_total", &crowded_out);
    assert!(crowded_out > 500, "{crowded_out} have made room");
}

/// A flood at one listener, in bursts that are larger than the part of the session table that was
/// kept free for all. The clients of another listener are served meanwhile.
#[test]
fn a_flood_of_silent_clients_leaves_places_for_other_listeners() {
    let server = tagged("a");
    let (flooded, other) = (free_address(), free_address());
    let keys = "hello_timeout = \"1h\"";
    let config = listener("flooded", "TLS", flooded, keys)
        + &listener("other", "TLS", other, keys)
        + &route("a", "flooded", &[("a", 1)], "")
        + &route("b", "other", &[("a", 1)], "")
        + &backend("a", [server.address], "")
        + "[limits]\nsessions = 128\n";
    let gateway = Launch::default().one_worker().start(&config);
    let mut silent = Vec::new();
    for round in 0..20 {
        silent.extend((0..32).map(|_| connect(flooded)));
        assert_eq!(answer(other, Some("a.example.com")), "a", "in round {round}");
    }
    let refused = |reason: &str| {
        let labels = [("reason", reason)];
        gateway.metrics().value("ringway_sessions_refused_total", &labels)
    };
    wait_until("half of the places are left", || refused("crowded_out") == 20 * 32 - 64);
    assert_eq!(refused("session_limit"), 0);
}

/// Behind a proxy, the source is the client that the header names.
#[test]
fn a_source_behind_a_proxy_has_no_more_silent_clients_than_sessions() {
    let server = tagged("a");
    let address = free_address();
    let keys = "hello_timeout = \"1h\"\nlimit_source = { sessions = 4 }\n\
                accept_proxy = { from = [\"127.0.0.0/8\"] }";
    let config = listener("tls", "TLS", address, keys)
        + &route("a", "tls", &[("a", 1)], "")
        + &backend("a", [server.address], "");
    let gateway = Launch::default().one_worker().start(&config);
    let client = |said: u8| {
        let mut stream = connect(address);
        let header = format!("PROXY TCP4 192.0.2.{said} 192.0.2.9 4000 443\r\n");
        stream.write_all(header.as_bytes()).expect("sent");
        stream
    };
    let reason = [("reason", "crowded_out")];
    let crowded_out = || gateway.metrics().value("ringway_sessions_refused_total", &reason);
    // The proxy has any number of connections that have said nothing yet.
    let _early: Vec<_> = (0..20).map(|_| connect(address)).collect();
    let silent: Vec<_> = (0..20).map(|_| client(1)).collect();
    wait_until("sixteen have made room", || crowded_out() == 16);
    // A connection is counted a moment before it is closed.
    wait_until("sixteen are closed", || silent.iter().filter(|of| is_closed(of)).count() == 16);
    let mut other = client(2);
    other.write_all(&client_hello(Some("a.example.com"))).expect("sent");
    let mut tag = [0];
    other.read_exact(&mut tag).expect("another source has its own");
    assert_eq!((tag, crowded_out()), (*b"a", 16));
}

/// Whether the gateway has closed the connection by now.
fn is_closed(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("an option");
    let peeked = stream.peek(&mut [0]);
    !peeked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

/// Of a source, no more clients may be silent than it may have sessions. The oldest go first.
#[test]
fn a_source_has_no_more_silent_clients_than_sessions() {
    let server = tagged("a");
    let address = free_address();
    let keys = "hello_timeout = \"1h\"\nlimit_source = { sessions = 4 }";
    let config = listener("tls", "TLS", address, keys)
        + &route("a", "tls", &[("a", 1)], "")
        + &backend("a", [server.address], "");
    let gateway = Launch::default().one_worker().start(&config);
    let mut silent: Vec<_> = (0..20).map(|_| connect_from("127.0.0.2", address)).collect();
    let reason = [("reason", "crowded_out")];
    let crowded_out = || gateway.metrics().value("ringway_sessions_refused_total", &reason);
    wait_until("sixteen have made room", || crowded_out() == 16);
    assert!(silent[..16].iter_mut().all(closed_without_a_byte));
    assert_eq!(answer(address, Some("a.example.com")), "a");
    assert_eq!(crowded_out(), 16, "another source has its own");
    wait_until("four are left", || gateway.metrics().value("ringway_session_slots_used", &[]) == 4);
}

#[test]
fn client_without_a_hello_is_closed() {
    let server = tagged("never");
    let address = free_address();
    let config = listener("tls", "TLS", address, "hello_timeout = \"1s\"")
        + &route("a", "tls", &[("a", 1)], "")
        + &backend("a", [server.address], "");
    let gateway = Gateway::start(&config);
    let mut silent = connect(address);
    assert!(closed_without_a_byte(&mut silent));
    let mut slow = connect(address);
    slow.write_all(&client_hello(Some("a.example.com"))[..20]).expect("sent");
    assert!(closed_without_a_byte(&mut slow));
    let mut other = connect(address);
    other.write_all(b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n").expect("sent");
    assert!(closed_without_a_byte(&mut other));

    let lines = gateway.closes(3);
    let mut reasons: Vec<_> = lines.iter().filter_map(|line| line.text("reason")).collect();
    // Two workers write lines, so these have no order among them.
    reasons.sort_unstable();
    assert_eq!(reasons, ["hello_invalid", "hello_timeout", "hello_timeout"]);
    assert_eq!(server.served(), 0);
}
