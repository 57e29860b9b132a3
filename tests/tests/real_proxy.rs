//! The PROXY protocol through the binary: in every fragmentation, malformed, and spoken
//! with HAProxy and nginx on both sides.

use std::io::{Read as _, Write as _, sink};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use ringway::wire::proxy_header::Addresses;
use ringway::wire::proxy_header::read::{Header, read};
use ringway_tests::pki::Pki;
use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{
    Daemon, Folder, Gateway, Launch, LogLine, Pattern, Server, client_hello, connect, echo,
    free_address, free_port, parrot, wait_for, wait_until, was_reset, was_reset_after,
};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use socket2::{Domain, Socket, Type};

/// What the listener's clients are said to be.
const SOURCE: &str = "192.0.2.1:56324";
const V1: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n";
/// With a TLV of a private kind, and a checksum.
const V2: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x18\xc0\0\x02\x01\xc6\x33\x64\x07\xdc\x04\x01\xbb\
                    \xe0\0\x02hi\x03\0\x04";

fn v2() -> Vec<u8> {
    let mut header = V2.to_vec();
    let sum = crc32c(&[V2, &[0; 4]].concat());
    header.extend_from_slice(&sum.to_be_bytes());
    header
}

/// Bit by bit (RFC 3720, appendix B.4).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 }
        })
    })
}

fn one(protocol: &str, address: SocketAddr, of_listener: &str, to: SocketAddr, of: &str) -> String {
    listener("main", protocol, address, of_listener)
        + &route("main", "main", &[("main", 1)], "")
        + &backend("main", [to], of)
}

const FROM_HERE: &str = "accept_proxy = { from = [\"127.0.0.1\"] }";
const FROM_ELSEWHERE: &str = "accept_proxy = { from = [\"127.0.0.2\", \"10.0.0.0/8\"] }";

/// Sends the parts, each on its own, and a FIN; returns what comes back.
fn say(address: SocketAddr, parts: &[&[u8]]) -> (SocketAddr, Vec<u8>) {
    let mut stream = connect(address);
    stream.set_nodelay(true).expect("an option");
    for part in parts {
        stream.write_all(part).expect("sent");
        std::thread::sleep(Duration::from_millis(1));
    }
    stream.shutdown(Shutdown::Write).expect("shut down");
    let own = stream.local_addr().expect("an address");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("a clean end");
    (own, answer)
}

/// The line of a session by one of its addresses.
fn line_with(gateway: &Gateway, field: &str, address: SocketAddr) -> LogLine {
    let address = address.to_string();
    wait_for(&format!("a line with {field} {address}"), || {
        gateway.log().into_iter().find(|line| line.text(field) == Some(address.as_str()))
    })
}

#[test]
fn every_fragmentation_of_a_header_is_taken_off_and_what_follows_is_not_touched() {
    let (server, address) = (Server::tcp(parrot), free_address());
    let gateway = Gateway::start(&one("TCP", address, FROM_HERE, server.address, ""));
    for header in [V1.to_vec(), v2()] {
        let all = [&header[..], b"payload"].concat();
        for cut in 0..=all.len() {
            let (_, heard) = say(address, &[&all[..cut], &all[cut..]]);
            assert_eq!(heard, b"payload", "cut at {cut}");
        }
        let single: Vec<_> = all.chunks(1).collect();
        let (own, heard) = say(address, &single);
        assert_eq!(heard, b"payload");
        let line = line_with(&gateway, "peer", own);
        assert_eq!((line.text("client"), line.number("bytes_up")), (Some(SOURCE), 7));
    }
    for unknown in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"] {
        let (own, heard) = say(address, &[unknown, b"payload"]);
        assert_eq!(heard, b"payload");
        assert_eq!(line_with(&gateway, "peer", own).text("client"), Some(&*own.to_string()));
    }
}

#[test]
fn where_only_proxies_may_come_in_nobody_else_gets_a_byte() {
    let (server, plain, tls) = (Server::tcp(parrot), free_address(), free_address());
    let only = "accept_proxy = { from = [\"127.0.0.1\"], only = true }";
    let config = one("TCP", plain, only, server.address, "")
        + &listener("tls", "TLS", tls, only)
        + &route("tls", "tls", &[("main", 1)], "");
    let gateway = Gateway::start(&config);
    for address in [plain, tls] {
        let stranger = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        stranger.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).expect("bound");
        stranger.connect(&address.into()).expect("connected");
        let mut stranger = TcpStream::from(stranger);
        let own = stranger.local_addr().expect("an address");
        let header = [&v2()[..], b"payload"].concat();
        // The gateway may have reset already, whatever the stranger says. Then the write has the
        // error, and the read has an end.
        let mut answer = Vec::new();
        let sent = stranger.write_all(&header);
        let end = stranger.read_to_end(&mut answer);
        let is_reset = sent.is_err() || end.is_err();
        assert!(is_reset && answer.is_empty(), "{sent:?} {end:?} {answer:?}");
        let line = line_with(&gateway, "client", own);
        assert_eq!(line.text("reason"), Some("proxy_missing"));
    }
    let (own, heard) = say(plain, &[&v2(), b"payload"]);
    assert_eq!(heard, b"payload");
    assert_eq!(line_with(&gateway, "peer", own).text("client"), Some(SOURCE));
    let labels = [("listener", "main"), ("reason", "proxy_missing")];
    assert_eq!(gateway.metrics().value("ringway_sessions_refused_total", &labels), 1);
    assert_eq!(server.served(), 1);
}

#[test]
fn malformed_missing_and_late_headers_are_closed_with_their_reasons() {
    let (server, address, impatient) = (Server::tcp(parrot), free_address(), free_address());
    let options = format!("{FROM_HERE}\nhello_timeout = \"300ms\"");
    let config = one("TCP", address, FROM_HERE, server.address, "")
        + &listener("impatient", "TCP", impatient, &options)
        + &route("impatient", "impatient", &[("main", 1)], "");
    let gateway = Gateway::start(&config);
    let mut wrong_sum = v2();
    *wrong_sum.last_mut().expect("a header") ^= 1;
    let endless = [b"PROXY UNKNOWN ", &[b'f'; 200][..]].concat();
    let wrong: [&[u8]; 8] = [
        b"GET / HTTP/1.1\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 99999\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x31",
        &client_hello(Some("a.example.com")),
        &wrong_sum,
        &endless,
        // What can't be one any more is not waited for.
        b"PROXY TCP4 999",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x05",
    ];
    for bytes in wrong {
        assert!(was_reset_after(&mut connect(address), bytes), "{}", bytes.escape_ascii());
    }
    // It ends within its header.
    let mut stream = connect(address);
    stream.write_all(&V1[..20]).expect("sent");
    stream.shutdown(Shutdown::Write).expect("shut down");
    assert!(was_reset(&mut stream));
    for late in [&b""[..], &V1[..20], &v2()[..15]] {
        assert!(was_reset_after(&mut connect(impatient), late));
    }
    let lines = gateway.closes(12);
    let metrics = gateway.metrics();
    for (name, reason, expected) in
        [("main", "proxy_invalid", 9), ("impatient", "proxy_timeout", 3)]
    {
        let of = lines.iter().filter(|line| line.text("listener") == Some(name));
        let reasons: Vec<_> = of.map(|line| line.text("reason")).collect();
        assert_eq!(reasons, vec![Some(reason); expected], "{lines:?}");
        let refused = metrics.value("ringway_sessions_refused_total", &[("reason", reason)]);
        assert_eq!(refused, expected as u64, "{reason}");
    }
    assert_eq!(server.served(), 0, "an endpoint heard of one of them");
}

#[test]
fn sources_outside_need_no_header_and_none_is_looked_for() {
    let (server, address) = (Server::tcp_tag("220 at your service"), free_address());
    let gateway = Gateway::start(&one("TCP", address, FROM_ELSEWHERE, server.address, ""));
    // The server speaks first, and this client never does.
    let mut banner = String::new();
    connect(address).read_to_string(&mut banner).expect("a clean end");
    assert_eq!(banner, "220 at your service");
    drop(gateway);
    let server = Server::tcp(parrot);
    let gateway = Gateway::start(&one("TCP", address, FROM_ELSEWHERE, server.address, ""));
    let (own, heard) = say(address, &[V1, b"payload"]);
    assert_eq!(heard, [V1, b"payload"].concat(), "what it sends is its own");
    assert!(!line_with(&gateway, "client", own).has("peer"));
    // One that is inside is waited for, beside these.
    let inside = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    inside.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).expect("bound");
    inside.connect(&address.into()).expect("connected");
    let mut inside = TcpStream::from(inside);
    inside.write_all(&[V1, b"inside"].concat()).expect("sent");
    inside.shutdown(Shutdown::Write).expect("shut down");
    let mut heard = Vec::new();
    inside.read_to_end(&mut heard).expect("a clean end");
    assert_eq!(heard, b"inside");
}

/// What a parrot behind `send_proxy` has heard: the header's length and addresses, and the rest.
fn header_of(heard: &[u8]) -> (&[u8], Addresses, &[u8]) {
    let Header::Known { len, addresses: Some(addresses) } = read(heard) else {
        panic!("no header: {}", heard.escape_ascii())
    };
    (&heard[..len], addresses, &heard[len..])
}

#[test]
fn endpoints_are_sent_a_header_of_either_version_before_anything_else() {
    let (server, address) = (Server::tcp(parrot), free_address());
    for version in ["v1", "v2"] {
        let options = format!("send_proxy = \"{version}\"");
        let gateway = Gateway::start(&one("TCP", address, "", server.address, &options));
        let (own, heard) = say(address, &[b"payload"]);
        let (header, addresses, payload) = header_of(&heard);
        assert_eq!(header.starts_with(b"PROXY TCP4 127.0.0.1 127.0.0.1 "), version == "v1");
        assert_eq!(addresses, Addresses { source: own, destination: address });
        assert_eq!(payload, b"payload");
        let line = line_with(&gateway, "client", own);
        assert_eq!((line.number("bytes_up"), line.has("unique_id")), (7, false));
    }
    let options = "send_proxy = \"v2\"\nproxy_tlvs = [\"unique-id\", \"crc32c\"]";
    let gateway = Gateway::start(&one("TCP", address, FROM_HERE, server.address, options));
    let (own, heard) = say(address, &[V1, b"payload"]);
    let (header, addresses, payload) = header_of(&heard);
    let text = |text: &str| text.parse::<SocketAddr>().expect("an address");
    let passed_on = Addresses { source: text(SOURCE), destination: text("198.51.100.7:443") };
    assert_eq!((addresses, payload), (passed_on, &b"payload"[..]));
    let line = line_with(&gateway, "peer", own);
    let id = line.text("unique_id").expect("an id");
    assert_eq!(header[28..31], [5, 0, 32]);
    assert_eq!(&header[31..63], id.as_bytes());
    assert_eq!(header[63..66], [3, 0, 4]);
}

/// Bulk is spliced as it would be without: while the server does not read, a pipe holds what it has
/// yet to get.
#[test]
fn bulk_behind_headers_arrives_whole_both_ways() {
    const BYTES: u64 = 32 << 20;
    let (go, wait) = mpsc::channel();
    let wait = Mutex::new(wait);
    let server = Server::tcp(move |mut stream| {
        let mut header = [0; 28];
        let whole = stream.read_exact(&mut header).is_ok();
        assert!(whole && header.starts_with(b"\r\n\r\n\0\r\nQUIT\n"), "{header:?}");
        let mut sent = Pattern::new(1);
        sent.expect(&stream, BYTES / 4).expect("the client's bytes");
        wait.lock().expect("a lock").recv().expect("the test goes on");
        sent.expect(&stream, BYTES / 4 * 3).expect("the client's bytes");
        Pattern::new(2).send(&stream, BYTES).expect("sent");
    });
    let address = free_address();
    let options = "send_proxy = \"v2\"";
    let gateway = Gateway::start(&one("TCP", address, FROM_HERE, server.address, options));
    let mut stream = connect(address);
    stream.write_all(&v2()).expect("sent");
    let pipes = || gateway.metrics().value("ringway_pipes_used", &[]);
    std::thread::scope(|scope| {
        // Gone if this fails: then the server ends, and with it the client that writes to it.
        let go = go;
        scope.spawn(|| Pattern::new(1).send(&stream, BYTES).expect("sent"));
        wait_until("a pipe holds what the server does not read", || pipes() > 0);
        go.send(()).expect("the server waits");
    });
    Pattern::new(2).expect(&stream, BYTES).expect("the server's bytes");
    drop(stream);
    let line = gateway.closes(1).remove(0);
    assert_eq!((line.number("bytes_up"), line.number("bytes_down")), (BYTES, BYTES));
    assert!(gateway.metrics().value("ringway_bulk_runs_total", &[]) > 0);
    wait_until("every pipe is free again", || pipes() == 0);
}

/// What endpoints are told is what the proxy in front has said, in whichever version.
#[test]
fn headers_come_and_go_over_ipv6() {
    let home = |port| SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port);
    let (server, address) = (Server::tcp_at(home(0), parrot), home(free_port()));
    let v1 = b"PROXY TCP6 2001:db8::1 2001:db8::7 56324 443\r\n".to_vec();
    let mut v2 = V2[..13].to_vec();
    v2.extend_from_slice(b"\x21\0\x24");
    for last in [1, 7] {
        v2.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    v2.extend_from_slice(b"\xdc\x04\x01\xbb");
    for (version, told) in [("v1", &v1), ("v2", &v2)] {
        let options = format!("send_proxy = \"{version}\"");
        let from_here = "accept_proxy = { from = [\"::1\"] }";
        let gateway = Gateway::start(&one("TCP", address, from_here, server.address, &options));
        for header in [&v1, &v2] {
            let (own, heard) = say(address, &[header, b"payload"]);
            assert_eq!(heard, [&told[..], b"payload"].concat(), "{version}");
            let line = line_with(&gateway, "peer", own);
            assert_eq!(line.text("client"), Some("[2001:db8::1]:56324"));
        }
        // Without one in front, it is the client's own address.
        gateway.reload(&one("TCP", address, "", server.address, &options));
        let (own, heard) = say(address, &[b"payload"]);
        let (_, addresses, payload) = header_of(&heard);
        assert_eq!(addresses, Addresses { source: own, destination: address });
        assert_eq!(payload, b"payload");
    }
}

#[test]
fn a_header_comes_before_a_client_hello_that_passes_through() {
    let (server, address) = (Server::tcp(parrot), free_address());
    let options = "send_proxy = \"v2\"";
    let gateway = Gateway::start(&one("TLS", address, FROM_HERE, server.address, options));
    let hello = client_hello(Some("db.example.com"));
    let all = [&v2()[..], &hello].concat();
    for cut in [1, 12, 16, 40, all.len() - hello.len(), all.len() - 20, all.len()] {
        let (own, heard) = say(address, &[&all[..cut], &all[cut..]]);
        let (header, addresses, rest) = header_of(&heard);
        assert_eq!(addresses.source.to_string(), SOURCE, "cut at {cut}");
        assert_eq!(rest, hello, "cut at {cut}");
        assert_eq!(header[28..], *b"\x02\0\x0edb.example.com");
        let line = line_with(&gateway, "peer", own);
        assert_eq!(line.text("server_name"), Some("db.example.com"));
    }
}

/// Certificates in files, as a configuration names them.
fn issued(folder: &Folder, pki: &Pki, name: &str) -> String {
    let issued = pki.issue(&[name]);
    let cert = folder.write(&format!("{name}.pem"), &issued.cert);
    let key = folder.write(&format!("{name}.key"), &issued.key);
    folder.write(&format!("{name}.both"), &(issued.cert + &issued.key));
    folder.write("ca.pem", &pki.ca());
    format!("{{ cert = \"{}\", key = \"{}\" }}", cert.display(), key.display())
}

#[test]
fn endpoints_of_terminated_listeners_are_told_of_the_clients_tls() {
    const NAME: &[u8] = b"\x22\0\x16rcgen self signed cert";
    let (folder, pki, server, address) =
        (Folder::new(), Pki::new(), Server::tcp(parrot), free_address());
    let certificate = issued(&folder, &pki, "db.example.com");
    let ca = folder.file("ca.pem");
    let tls = format!(
        "{FROM_HERE}\ntls = {{ mode = \"Terminate\", certificates = [{certificate}], client_ca = \
         \"{}\", client_auth = \"optional\", alpn = [\"h2\"] }}",
        ca.display()
    );
    let options = "send_proxy = \"v2\"";
    let gateway = Gateway::start(&one("TLS", address, &tls, server.address, options));
    let (with, without) = (client_config(&pki, true), client_config(&pki, false));
    // A certificate in this connection and session; in the session that is resumed; none.
    for (config, flags, unverified, name) in
        [(&with, 1 | 2 | 4, 0, NAME), (&with, 1 | 4, 0, NAME), (&without, 1, 1, &[])]
    {
        let mut stream = connect(address);
        stream.write_all(V1).expect("sent");
        let mut client = StreamOwned::new(client_of(config), stream);
        client.write_all(b"payload").expect("sent");
        client.conn.send_close_notify();
        client.flush().expect("sent");
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).expect("a clean end");
        let (header, addresses, payload) = header_of(&heard);
        assert_eq!((addresses.source.to_string().as_str(), payload), (SOURCE, &b"payload"[..]));
        let tls = [
            &[flags, 0, 0, 0, unverified],
            &b"\x21\0\x07TLSv1.3"[..],
            name,
            b"\x23\0\x16TLS_AES_256_GCM_SHA384",
        ]
        .concat();
        let len = u8::try_from(tls.len()).expect("short");
        let expected = [&b"\x01\0\x02h2\x02\0\x0edb.example.com\x20\0"[..], &[len], &tls].concat();
        assert_eq!(header[28..].escape_ascii().to_string(), expected.escape_ascii().to_string());
    }
    let lines = gateway.closes(3);
    let own = |line: &LogLine| line.has("peer") && line.text("client") == Some(SOURCE);
    assert!(lines.iter().any(own), "{lines:?}");
}

/// It remembers sessions, and resumes them.
fn client_config(pki: &Pki, with_certificate: bool) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(pki.ca().as_bytes()).expect("PEM");
    roots.add(ca).expect("a CA");
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = if with_certificate {
        let own = pki.issue(&["client.example.com"]);
        let chain = CertificateDer::from_pem_slice(own.cert.as_bytes()).expect("PEM");
        let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).expect("PEM");
        config.with_client_auth_cert(vec![chain], key).expect("a certificate")
    } else {
        config.with_no_client_auth()
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

fn client_of(config: &Arc<ClientConfig>) -> ClientConnection {
    let name = "db.example.com".try_into().expect("a name");
    ClientConnection::new(Arc::clone(config), name).expect("a client")
}

/// HAProxy, forwarding from one address to another.
fn haproxy(
    folder: &Folder,
    bind: SocketAddr,
    of_bind: &str,
    to: SocketAddr,
    of_server: &str,
) -> Daemon {
    let text = format!(
        "defaults\n mode tcp\n timeout connect 10s\n timeout client 1m\n timeout server 1m\n\
         listen all\n bind {bind} {of_bind}\n server only {to} {of_server}\n"
    );
    let file = folder.write(&format!("haproxy-{}.cfg", bind.port()), &text);
    Daemon::start(bind, Command::new("/usr/sbin/haproxy").arg("-db").arg("-f").arg(file))
}

/// nginx with these servers in its stream module, of which the first listens at `address`.
fn nginx(folder: &Folder, address: SocketAddr, servers: &str) -> Daemon {
    let text = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\n\
         worker_processes 1;\npid {};\nerror_log stderr crit;\n\
         events {{ worker_connections 256; }}\nstream {{ {servers} }}\n",
        folder.file("nginx.pid").display()
    );
    let file = folder.write("nginx.conf", &text);
    let mut command = Command::new("/usr/sbin/nginx");
    Daemon::start(address, command.args(["-e", "stderr", "-c"]).arg(file))
}

#[test]
fn haproxy_and_nginx_in_front_tell_who_the_client_is() {
    let (folder, server, address) = (Folder::new(), Server::tcp(parrot), free_address());
    let gateway = Gateway::start(&one("TCP", address, FROM_HERE, server.address, ""));
    let from_haproxy = |options| {
        let bind = free_address();
        (bind, haproxy(&folder, bind, "", address, options))
    };
    let bind = free_address();
    let forward = format!(
        "server {{ listen {bind}; proxy_pass {address}; proxy_protocol on; proxy_half_close on; }}"
    );
    let fronts = [
        from_haproxy("send-proxy"),
        from_haproxy("send-proxy-v2"),
        from_haproxy("send-proxy-v2 proxy-v2-options crc32c,unique-id"),
        (bind, nginx(&folder, bind, &forward)),
    ];
    for (front, _) in &fronts {
        let (own, heard) = say(*front, &[b"pay", b"load"]);
        assert_eq!(heard, b"payload");
        let line = line_with(&gateway, "client", own);
        let peer: SocketAddr = line.text("peer").expect("a peer").parse().expect("an address");
        assert!(peer != own && peer.ip() == Ipv4Addr::LOCALHOST, "{line:?}");
    }
}

#[test]
fn haproxy_and_nginx_behind_are_told_who_the_client_is() {
    let (folder, server) = (Folder::new(), Server::tcp(parrot));
    let accepts = free_address();
    let _haproxy = haproxy(&folder, accepts, "accept-proxy", server.address, "send-proxy");
    let reads = free_address();
    let say_who = format!(
        "server {{ listen {reads} proxy_protocol; \
         return \"$proxy_protocol_addr:$proxy_protocol_port $proxy_protocol_server_port\"; }}"
    );
    let _nginx = nginx(&folder, reads, &say_who);
    for told in [
        "send_proxy = \"v1\"",
        "send_proxy = \"v2\"",
        "send_proxy = \"v2\"\nproxy_tlvs = [\"unique-id\", \"crc32c\"]",
    ] {
        let address = free_address();
        let gateway = Gateway::start(&one("TCP", address, "", accepts, told));
        let (own, heard) = say(address, &[b"payload"]);
        // HAProxy says on what it was told.
        let (_, addresses, payload) = header_of(&heard);
        assert_eq!((addresses.source, addresses.destination), (own, address), "{told}");
        assert_eq!(payload, b"payload");
        gateway.reload(&one("TCP", address, "", reads, told));
        let mut stream = connect(address);
        let own = stream.local_addr().expect("an address");
        let mut heard = String::new();
        stream.read_to_string(&mut heard).expect("a clean end");
        assert_eq!(heard, format!("{own} {}", address.port()), "{told}");
    }
}

#[test]
fn a_header_to_an_endpoint_comes_before_tls_to_it() {
    let (folder, pki, server) = (Folder::new(), Pki::new(), Server::tcp(parrot));
    issued(&folder, &pki, "db.example.com");
    let accepts = free_address();
    let both = folder.file("db.example.com.both");
    let bind = format!("accept-proxy ssl crt {}", both.display());
    let _haproxy = haproxy(&folder, accepts, &bind, server.address, "send-proxy");
    for version in ["v1", "v2"] {
        let options = format!(
            "send_proxy = \"{version}\"\ntls = {{ server_name = \"db.example.com\", ca = \"{}\" }}",
            folder.file("ca.pem").display()
        );
        let address = free_address();
        let gateway = Gateway::start(&one("TCP", address, "", accepts, &options));
        let (own, heard) = say(address, &[b"payload"]);
        let (_, addresses, payload) = header_of(&heard);
        assert_eq!((addresses.source, payload), (own, &b"payload"[..]));
        assert_eq!(line_with(&gateway, "client", own).text("reason"), Some("client_fin"));
    }
    wait_until("every session of the last gateway is over", || server.served() >= 2);
}

/// Two of three endpoints take the header and want nothing of this gateway: one closes, one resets.
/// A client that waits for the server's first words gets those of the third.
#[test]
fn an_endpoint_that_refuses_its_header_costs_nobody_a_session() {
    let header = V1.len() as u64;
    let closes =
        Server::tcp(move |stream| _ = std::io::copy(&mut stream.take(header), &mut sink()));
    // What is not read makes the close a reset.
    let resets = Server::tcp(|stream| {
        _ = stream.peek(&mut [0]);
    });
    let greets = Server::tcp(|mut stream| {
        _ = stream.write_all(b"220 ");
        echo(stream);
    });
    let address = free_address();
    let endpoints = [closes.address, resets.address, greets.address];
    let config = listener("main", "TCP", address, FROM_HERE)
        + &route("main", "main", &[("main", 1)], "")
        + &backend("main", endpoints, "send_proxy = \"v1\"");
    let gateway = Launch::default().one_worker().start(&config);
    for _ in 0..6 {
        let mut client = connect(address);
        client.write_all(V1).expect("sent");
        let mut greeting = [0; 4];
        client.read_exact(&mut greeting).expect("a greeting");
        client.write_all(b"HELO").expect("sent");
        client.shutdown(Shutdown::Write).expect("shut down");
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).expect("a clean end");
        assert_eq!((&greeting, &heard[..]), (b"220 ", &[V1, b"HELO"].concat()[..]));
    }
    assert!(gateway.closes(6).iter().all(|line| line.text("reason") == Some("client_fin")));
    for server in [&closes, &resets] {
        let endpoint = server.address.to_string();
        let labels = [("backend", "main"), ("endpoint", &*endpoint)];
        let metrics = gateway.metrics();
        // Each comes last for 10 s then.
        assert_eq!(metrics.value("ringway_endpoint_connect_failures_total", &labels), 1);
        assert_eq!(metrics.value("ringway_endpoint_sessions_opened_total", &labels), 1);
        assert_eq!(server.served(), 1);
    }
}
