//! Clients of all kinds: versions, names, ALPN, hellos in pieces.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::thread;

use ringway_tests::pki::Pki;
use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{Folder, Gateway, Server, echo, free_address, parrot, program};
use rustls::NamedGroup;

use crate::{Client, Files, secure_server, tagged, terminate};

#[test]
fn openssl_gets_the_certificate_of_its_name_in_both_versions() {
    let (files, server, address) = (Files::new(), tagged("served"), free_address());
    let (a, b) = (files.issue("a", &["a.example.com"]), files.issue("b", &["*.b.example.com"]));
    let config = terminate(address, &format!("certificates = [{a}, {b}]"))
        + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    for version in ["-tls1_2", "-tls1_3"] {
        for name in ["a.example.com", "x.b.example.com"] {
            let check = "-verify_return_error -verify_hostname";
            let said =
                files.openssl(address, &format!("{version} -servername {name} {check} {name}"));
            assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
            assert!(said.contains("served"), "{said}");
        }
    }
    for line in gateway.closes(4) {
        assert_eq!(line.text("protocol"), Some("TLS"));
        assert_eq!(line.number("bytes_up"), 6);
        assert_eq!(line.number("bytes_down"), 6);
    }
}

/// The newest key exchange and the longest curve that the provider has, of both ends.
#[test]
fn post_quantum_key_exchange_and_p521_certificates() {
    let pki = Pki::with(&rcgen::PKCS_ECDSA_P521_SHA512);
    let folder = Folder::new();
    folder.write("ca.pem", &pki.ca());
    let (files, server, address) = (Files { pki, folder }, tagged("served"), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let keys = format!("certificates = [{a}], client_ca = \"{}\"", files.path("ca.pem"));
    let config = terminate(address, &keys) + &backend("main", [server.address], "");
    let _gateway = Gateway::start(&config);
    let own = files.pki.issue(&["me.example.com"]);
    let mut client = Client::with(&files.pki, address, "a.example.com", Some(&own));
    client.0.write_all(b"hello").expect("sent");
    client.end();
    assert_eq!(client.rest(), b"served");
    let group = client.0.conn.negotiated_key_exchange_group().expect("a full handshake");
    assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
}

/// Without a default certificate: FIN or RST, and not an alert; with one, they get that.
#[test]
fn clients_without_a_name_or_with_an_unknown_one() {
    let (files, server) = (Files::new(), tagged("served"));
    let (with, without) = (free_address(), free_address());
    let (a, other) = (files.issue("a", &["a.example.com"]), files.issue("b", &["b.example.com"]));
    let keys = format!("certificates = [{a}]");
    let config = terminate(without, &keys) + &backend("main", [server.address], "");
    let keys = format!("{keys}, default_certificate = {other}");
    let with_default = terminate(with, &keys).replace("main", "with");
    let gateway = Gateway::start(&(config + &with_default.replace("\"with\", w", "\"main\", w")));
    for option in ["-noservername", "-servername other.example.com"] {
        let said = files.openssl(without, &format!("-msg {option}"));
        let alert =
            if option == "-noservername" { "missing_extension" } else { "unrecognized_name" };
        assert!(said.contains(&format!("fatal {alert}")), "{said}");
        let said = files.openssl(with, &format!("{option} -verify_hostname b.example.com"));
        assert!(said.contains("Verify return code: 0 (ok)") && said.contains("served"), "{said}");
    }
    let lines = gateway.closes(4);
    let refused = lines.iter().filter(|line| line.text("reason") == Some("no_certificate"));
    assert_eq!(refused.count(), 2);
}

#[test]
fn openssl_in_odd_moods() {
    let (files, server, address) = (Files::new(), Server::tcp(echo), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let config = terminate(address, &format!("certificates = [{a}]"))
        + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    // A line that is a single letter is a command to openssl, if nothing came with it: each line
    // is typed once that before it has led to so many lines with a word. After the last there is a
    // moment for what must not be heard.
    let typed = |lines: &[(&str, &str, u8)], options: &str| {
        let (ca, out) = (files.path("ca.pem"), files.path("said"));
        let lines = lines.iter().map(|(line, word, count)| {
            let heard = format!("grep -c '{word}' {out}");
            format!("echo {line}; until [ $({heard}) -ge {count} ]; do sleep 0.1; done; ")
        });
        let command = format!(
            ": > {out}; ({}sleep 1) | openssl s_client -connect {address} -CAfile {ca} -servername \
             a.example.com {options} >> {out} 2>&1; cat {out}",
            lines.collect::<String>()
        );
        program("sh", &["-c", &command])
    };
    let keyed = "KEYUPDATE";
    let lines = [
        ("alpha", "alpha", 1),
        ("K", keyed, 1),
        ("beta", "beta", 1),
        ("k", keyed, 2),
        ("gamma", "gamma", 1),
    ];
    let said = typed(&lines, "-tls1_3");
    assert!(said.contains("KEYUPDATE"), "{said}");
    for heard in ["alpha", "beta", "gamma"] {
        assert!(said.contains(heard), "{heard}: {said}");
    }
    assert_eq!(gateway.closes(1)[0].number("bytes_up"), 6 + 5 + 6);
    let lines = [("alpha", "alpha", 1), ("R", "no renegotiation", 1), ("gamma", "", 0)];
    let said = typed(&lines, "-tls1_2");
    assert!(said.contains("RENEGOTIATING") && said.contains("alpha"), "{said}");
    let lines = gateway.closes(2);
    assert!(said.contains("no renegotiation") && !said.contains("gamma"), "{said}");
    assert_eq!(lines[1].text("reason"), Some("client_tls_failed"));
    for version in ["-tls1_2", "-tls1_3"] {
        let count = gateway.log().len();
        let command = format!(
            "head -c 100000 /dev/zero | openssl s_client -quiet -no_ign_eof -connect {address} \
             {version} -servername a.example.com -max_send_frag 700 -split_send_frag 600 \
             2>/dev/null || true"
        );
        program("sh", &["-c", &command]);
        assert_eq!(gateway.closes(count + 1)[count].number("bytes_up"), 100_000, "{version}");
    }
}

#[test]
fn alpn_matches_in_the_servers_order_or_the_client_is_refused() {
    let (files, server, address) = (Files::new(), tagged("served"), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let keys =
        format!("certificates = [{a}], alpn = [\"h2\", \"http/1.1\"], min_version = \"1.3\"");
    let config = terminate(address, &keys) + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    let say =
        |options: &str| files.openssl(address, &format!("-servername a.example.com {options}"));
    assert!(say("-alpn http/1.1,h2").contains("ALPN protocol: h2"));
    assert!(say("-alpn http/1.1").contains("ALPN protocol: http/1.1"));
    assert!(say("").contains("served"), "a client that offers nothing is served");
    let said = say("-alpn postgresql");
    assert!(said.contains("alert") && !said.contains("served"), "{said}");
    let said = say("-tls1_2");
    assert!(said.contains("alert") && !said.contains("served"), "below the least version: {said}");
    // Two workers log, so the lines come in any order.
    let lines = gateway.closes(5);
    let details: BTreeSet<_> = lines.iter().filter_map(|line| line.text("detail")).collect();
    assert_eq!(details, BTreeSet::from(["ALPN: no protocol in common", "no version in common"]));
}

#[test]
fn a_handshake_that_takes_too_long_is_closed() {
    let (files, server, address) = (Files::new(), Server::tcp(parrot), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let keys = format!("certificates = [{a}]");
    let config = terminate(address, &keys).replace("tls =", "hello_timeout = \"1s\"\ntls =")
        + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    let mut client = files.client(address, "a.example.com");
    let hello = client.flight();
    client.0.sock.write_all(&hello).expect("sent");
    // The gateway's part of the handshake, and nothing after it.
    let mut heard = Vec::new();
    let end = client.0.sock.read_to_end(&mut heard);
    assert!(!heard.is_empty(), "{end:?}");
    gateway.closed_for("handshake_timeout");
    assert_eq!(server.served(), 0);
}

#[test]
fn a_hello_cut_at_every_byte_is_the_same_hello() {
    let (files, server, address) = (Files::new(), Server::tcp(parrot), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let config = terminate(address, &format!("certificates = [{a}]"))
        + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    let len = files.client(address, "a.example.com").flight().len();
    for cut in 1..len {
        let mut client = files.client(address, "a.example.com");
        let hello = client.flight();
        let (front, back) = hello.split_at(cut.min(hello.len()));
        client.0.sock.set_nodelay(true).expect("no delay");
        client.0.sock.write_all(front).expect("sent");
        thread::yield_now();
        client.0.sock.write_all(back).expect("sent");
        client.0.write_all(b"hello").expect("sent");
        client.end();
        assert_eq!(client.rest(), b"hello", "cut at {cut}");
    }
    // The first client has only shown how long its hello is.
    let lines = gateway.closes(len);
    let whole = lines.iter().filter(|line| line.text("reason") == Some("client_fin"));
    assert_eq!(whole.count(), len - 1);
}

/// A listener that passes TLS through and one that ends it, on one address.
#[test]
fn both_modes_share_an_address() {
    let (files, server, address) = (Files::new(), tagged("ended"), free_address());
    let (inner, _daemon) = secure_server(&files, "pass.example.com", &[]);
    let a = files.issue("a", &["end.example.com"]);
    let tls = format!(
        "hostname = \"end.example.com\"\ntls = {{ mode = \"Terminate\", certificates = [{a}] }}"
    );
    let pass = "hostname = \"pass.example.com\"";
    let config = listener("end", "TLS", address, &tls)
        + &listener("pass", "TLS", address, pass)
        + &route("end", "end", &[("end", 1)], "")
        + &route("pass", "pass", &[("pass", 1)], "")
        + &backend("end", [server.address], "")
        + &backend("pass", [inner], "");
    let _gateway = Gateway::start(&config);
    let said = files.openssl(address, "-servername end.example.com");
    assert!(said.contains("ended"), "{said}");
    let said = files.openssl(
        address,
        "-servername pass.example.com -verify_hostname pass.example.com -brief -no_ign_eof",
    );
    assert!(said.contains("Verification: OK"), "{said}");
    let said = files.openssl(address, "-msg -servername none.example.com");
    assert!(said.contains("fatal unrecognized_name"), "{said}");
}

/// TCP and UDP beside it know nothing of all this.
#[test]
fn a_plain_listener_beside_it_stays_plain() {
    let (files, server) = (Files::new(), Server::tcp(parrot));
    let (address, plain) = (free_address(), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let tls = terminate(address, &format!("certificates = [{a}]")).replace("main", "tls");
    let config =
        tls.replace("\"tls\", w", "\"main\", w") + &forward("TCP", plain, [server.address], "");
    let _gateway = Gateway::start(&config);
    let back = ringway_tests::real::exchange(plain, b"as it is").expect("an answer");
    assert_eq!(back, b"as it is");
}
