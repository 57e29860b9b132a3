//! TLS to endpoints.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};

use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{Gateway, Launch, Server, connect, free_address, limited, program};
use rustls::StreamOwned;

use crate::ends::server_connection;
use crate::{Files, secure_server, terminate};

#[test]
fn curl_reaches_plain_and_encrypted_backends_and_none_that_is_not_what_it_should_be() {
    let files = Files::new();
    let (address, plain) = (free_address(), free_address());
    let (server, _daemon) = secure_server(&files, "db.internal", &[]);
    files.issue("me", &["me.example.com"]);
    let ask = ["-Verify", "1", "-verify_return_error", "-CAfile", "ca.pem"];
    let (strict, _strict) = secure_server(&files, "strict.internal", &ask);
    files.folder.write("who", "who");
    let a = files.issue("a", &["a.example.com"]);
    let ca = files.path("ca.pem");
    let tls = |name: &str, more: &str| {
        format!("tls = {{ server_name = \"{name}\", ca = \"{ca}\"{more} }}")
    };
    let mine = format!(", cert = \"{}\", key = \"{}\"", files.path("me.pem"), files.path("me.key"));
    let good = [
        (server, tls("db.internal", "")),
        (server, tls("other.internal", ", subject_alt_names = [\"db.internal\"]")),
        (strict, tls("strict.internal", &mine)),
    ];
    let bad = [
        (server, tls("other.internal", "")),
        (server, tls("db.internal", ", subject_alt_names = [\"other.internal\"]")),
        (server, "tls = { server_name = \"db.internal\" }".to_owned()),
        (strict, tls("strict.internal", "")),
    ];
    let config = |(to, tls): &(SocketAddr, String)| {
        terminate(address, &format!("certificates = [{a}]"))
            + &listener("plain", "TCP", plain, "")
            + &route("plain", "plain", &[("main", 1)], "")
            + &backend("main", [*to], tls)
    };
    let gateway = Gateway::start(&config(&good[0]));
    let port = address.port();
    let resolve = format!("a.example.com:{port}:127.0.0.1");
    let (secure, clear) =
        (format!("https://a.example.com:{port}/who"), format!("http://{plain}/who"));
    let ways = [&["--cacert", &ca, "--resolve", &resolve, &secure][..], &[&clear]];
    let common = ["-sS", "--http1.0", "--noproxy", "*"];
    for case in &good {
        gateway.reload(&config(case));
        for way in ways {
            assert_eq!(program("curl", &[&common, way].concat()), "who", "{case:?}");
        }
    }
    for case in &bad {
        gateway.reload(&config(case));
        for way in ways {
            let done = limited("curl").args(common).args(way).output().expect("curl");
            let hangs = done.status.code().is_none_or(|code| [124, 137].contains(&code));
            assert!(!done.status.success() && !hangs, "{case:?}: {done:?}");
            assert!(done.stdout.is_empty(), "{case:?}: {done:?}");
        }
    }
    let lines = gateway.closes(14);
    let failed = lines.iter().filter(|line| line.text("reason") == Some("endpoint_tls_failed"));
    let details: Vec<_> = failed.filter_map(|line| line.text("detail")).collect();
    // Of TLS 1.3, a client certificate is judged after the client has done its part.
    assert!(details.len() >= 6, "{lines:?}");
    let said = |what: &str| details.iter().filter(|detail| detail.contains(what)).count();
    assert_eq!(said("certificate: unknown issuer"), 2, "{details:?}");
    assert_eq!(said("only valid for DnsName(\"db.internal\")"), 2, "{details:?}");
    assert_eq!(said("certificate: of another name"), 2, "{details:?}");
}

/// The handshake is over when Ringway finds that no endpoint can be had. The alert comes in the
/// connection's own keys: `internal_error` (RFC 8446, section 6.2). PostgreSQL's clients are told
/// in their own words.
#[test]
fn a_client_is_told_that_no_endpoint_can_be_had() {
    let files = Files::new();
    let (down, none, quiet, postgres) =
        (free_address(), free_address(), free_address(), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let tls = format!("tls = {{ mode = \"Terminate\", certificates = [{a}] }}\n");
    let own = |name: &str, address, to: &str, more: &str| {
        listener(name, "TLS", address, &format!("{tls}{more}endpoints = [{to}]"))
    };
    let closed = format!("\"{}\"", free_address());
    let config = own("down", down, &closed, "")
        + &own("none", none, "", "")
        + &own("quiet", quiet, &closed, "on_refusal = \"reset\"\n")
        + &own("postgres", postgres, &closed, "starttls = \"postgres\"\n");
    let gateway = Launch::default().one_worker().start(&config);
    for address in [down, none] {
        for version in ["-tls1_3", "-tls1_2"] {
            let said = files.openssl(address, &format!("{version} -servername a.example.com"));
            assert!(said.contains("alert internal error"), "{version}: {said}");
        }
    }
    let lines = gateway.closes(4);
    let said = lines.iter().map(|line| (line.text("reason"), line.text("tls_version")));
    let both = ["connect_failed", "no_endpoint"].map(Some).into_iter();
    let both = both.flat_map(|of| ["TLSv1.3", "TLSv1.2"].map(|version| (of, Some(version))));
    assert_eq!(said.collect::<Vec<_>>(), both.collect::<Vec<_>>());
    let said = files.openssl(quiet, "-servername a.example.com");
    assert!(!said.contains("alert internal error"), "{said}");

    let mut client = files.client(postgres, "a.example.com");
    let mut said = Vec::new();
    // After the message there is close_notify.
    client.0.read_to_end(&mut said).expect("a clean end");
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.starts_with('E') && said.contains("C57P03"), "{said:?}");
    assert!(said.contains("connect_failed"), "{said:?}");
}

/// Nothing of the client's was sent to it, so the other endpoint serves; and it is tried once.
#[test]
fn an_endpoint_with_a_wrong_certificate_costs_nobody_a_session() {
    let (files, address) = (Files::new(), free_address());
    let (wrong, _wrong) = secure_server(&files, "other.internal", &[]);
    let (right, _right) = secure_server(&files, "db.internal", &[]);
    files.folder.write("who", "who");
    let ca = files.path("ca.pem");
    let tls = format!("tls = {{ server_name = \"db.internal\", ca = \"{ca}\" }}");
    let config = listener("main", "TCP", address, "")
        + &route("main", "main", &[("main", 1)], "")
        + &backend("main", [wrong, right], &tls);
    let gateway = Launch::default().one_worker().start(&config);
    let url = format!("http://{address}/who");
    for _ in 0..6 {
        let said = program("curl", &["-sS", "--http1.0", "--noproxy", "*", &url]);
        assert_eq!(said, "who");
    }
    let failures = gateway.metrics().value("ringway_endpoint_connect_failures_total", &[]);
    assert_eq!(failures, 1);
}

/// Each backend of the route speaks its own way with its endpoints, also to a session that comes
/// from another backend. The client's bytes are still unread then.
#[test]
fn a_session_goes_on_to_a_backend_with_other_tls() {
    let (files, dead) = (Files::new(), free_address());
    let (wrong, _wrong) = secure_server(&files, "other.internal", &[]);
    let (right, _right) = secure_server(&files, "db.internal", &[]);
    files.folder.write("who", "who");
    let plain = Server::tcp(|mut stream| {
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nwho");
    });
    let ca = files.path("ca.pem");
    let tls = format!("tls = {{ server_name = \"db.internal\", ca = \"{ca}\" }}");
    let next = "on_unavailable = \"next\"";
    for (first, second) in
        [(("a", wrong, &*tls), ("b", plain.address, "")), (("a", dead, ""), ("b", right, &*tls))]
    {
        let address = free_address();
        let of = |(name, endpoint, keys): (&str, SocketAddr, &str)| backend(name, [endpoint], keys);
        let config = listener("main", "TCP", address, "")
            + &route("main", "main", &[("a", 1), ("b", 1)], next)
            + &of(first)
            + &of(second);
        let gateway = Launch::default().one_worker().start(&config);
        let url = format!("http://{address}/who");
        for _ in 0..6 {
            let said = program("curl", &["-sS", "--http1.0", "--noproxy", "*", &url]);
            assert_eq!(said, "who");
        }
        for line in gateway.closes(6) {
            assert_eq!(line.text("backend"), Some("b"));
        }
    }
}

/// An endpoint that accepts and then closes, or speaks no TLS, is a failed attempt, as if it could
/// not be connected to.
#[test]
fn endpoints_that_close_or_speak_no_tls_cost_nobody_a_session() {
    let (files, address) = (Files::new(), free_address());
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let closing = Server::tcp_at(anywhere, drop);
    let babbling = Server::tcp_at(anywhere, |mut stream| {
        let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n");
    });
    let (right, _right) = secure_server(&files, "db.internal", &[]);
    files.folder.write("who", "who");
    let ca = files.path("ca.pem");
    let tls = format!("tls = {{ server_name = \"db.internal\", ca = \"{ca}\" }}");
    let config = listener("main", "TCP", address, "")
        + &route("main", "main", &[("main", 1)], "")
        + &backend("main", [closing.address, babbling.address, right], &tls);
    let gateway = Launch::default().one_worker().start(&config);
    let url = format!("http://{address}/who");
    for _ in 0..6 {
        let said = program("curl", &["-sS", "--http1.0", "--noproxy", "*", &url]);
        assert_eq!(said, "who");
    }
    let failures = gateway.metrics().value("ringway_endpoint_connect_failures_total", &[]);
    assert_eq!(failures, 2, "each once; then it comes last");
}

/// With TLS 1.3 an endpoint that wants a certificate says so only behind the handshake. A client
/// that waits for the server's first words gets those of the other endpoint.
#[test]
fn an_endpoint_that_refuses_behind_its_handshake_costs_nobody_a_session() {
    let (files, address) = (Files::new(), free_address());
    let ask = ["-tls1_3", "-Verify", "1", "-verify_return_error", "-CAfile", "ca.pem"];
    let (strict, _strict) = secure_server(&files, "db.internal", &ask);
    let issued = files.pki.issue(&["db.internal"]);
    let greets = Server::tcp(move |stream| {
        let mut tls = StreamOwned::new(server_connection(&issued), stream);
        let _ = tls.write_all(b"220 ");
        let _ = tls.flush();
        let _ = std::io::copy(&mut tls, &mut std::io::sink());
    });
    let ca = files.path("ca.pem");
    let tls = format!("tls = {{ server_name = \"db.internal\", ca = \"{ca}\" }}");
    let config = listener("main", "TCP", address, "")
        + &route("main", "main", &[("main", 1)], "")
        + &backend("main", [strict, greets.address], &tls);
    let gateway = Launch::default().one_worker().start(&config);
    for _ in 0..6 {
        let (mut client, mut greeting) = (connect(address), [0; 4]);
        client.read_exact(&mut greeting).expect("a greeting");
        assert_eq!(&greeting, b"220 ");
    }
    let failures = gateway.metrics().value("ringway_endpoint_connect_failures_total", &[]);
    assert_eq!(failures, 1, "then it comes last");
}
