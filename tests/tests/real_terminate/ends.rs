//! How a session ends: close_notify, FIN, and ends without close_notify.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use ringway_tests::pki::Issued;
use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{Gateway, Pattern, Server, connect, free_address, parrot};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::{Files, terminate};

/// close_notify would say that the endpoint had no more to say, and a FIN that this is all of it.
#[test]
fn a_session_that_the_gateway_ends_is_cut_off() {
    let server = Server::tcp(|mut stream| {
        while stream.write_all(b"more").is_ok() {
            thread::sleep(Duration::from_millis(50));
        }
    });
    let (files, address) = (Files::new(), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let listener = terminate(address, &format!("certificates = [{a}]"));
    let limited = "protocol = \"TLS\"\nmax_lifetime = \"1s\"";
    let config = listener.replacen("protocol = \"TLS\"", limited, 1);
    assert!(config.contains("max_lifetime"), "{config}");
    let gateway = Gateway::start(&(config + &backend("main", [server.address], "")));
    let mut client = files.client(address, "a.example.com");
    client.0.write_all(b"hello").expect("sent");
    let mut heard = Vec::new();
    let error = client.0.read_to_end(&mut heard).expect_err("it is not the whole");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(heard.starts_with(b"more"));
    assert_eq!(gateway.closes(1)[0].text("reason"), Some("max_lifetime"));
}

#[test]
fn half_close_and_large_transfers_both_ways() {
    let (files, server) = (Files::new(), Server::tcp(parrot));
    let (address, relay) = (free_address(), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let tls =
        format!("tls = {{ server_name = \"a.example.com\", ca = \"{}\" }}", files.path("ca.pem"));
    let config = terminate(address, &format!("certificates = [{a}]"))
        + &backend("main", [server.address], "")
        + &listener("relay", "TCP", relay, "")
        + &route("relay", "relay", &[("relay", 1)], "")
        + &backend("relay", [address], &tls);
    let gateway = Gateway::start(&config);
    const BYTES: usize = 24 << 20;
    let sent = Pattern::new(7).take(BYTES);
    let mut client = files.client(address, "a.example.com");
    client.0.write_all(&sent).expect("sent");
    client.end();
    assert!(client.rest() == sent, "what came back is not what was sent");
    // Through the gateway twice: encrypted to itself.
    let mut plain = connect(relay);
    plain.write_all(&sent).expect("sent");
    plain.shutdown(Shutdown::Write).expect("shut down");
    let mut back = Vec::new();
    plain.read_to_end(&mut back).expect("a clean end");
    assert!(back == sent, "what came back is not what was sent");
    for line in gateway.closes(3) {
        assert_eq!(line.text("reason"), Some("client_fin"));
        assert_eq!(line.number("bytes_up"), BYTES as u64);
        assert_eq!(line.number("bytes_down"), BYTES as u64);
    }
}

/// Both sides of a session of which one ends TLS without close_notify, with this listener's key:
/// what the other was given, and how that ended.
fn truncated(from: End, bytes: usize, on_truncation: &str) -> (Vec<u8>, Result<(), ErrorKind>) {
    let (files, address) = (Files::new(), free_address());
    let issued = files.pki.issue(&["a.example.com"]);
    let a = files.write("a", &issued);
    let (heard, hear) = mpsc::channel();
    let server = Server::tcp(move |mut stream| match from {
        End::Client => {
            let _ = heard.send(read_late(&mut stream));
        }
        End::Endpoint => {
            let mut tls = StreamOwned::new(server_connection(&issued), stream);
            tls.write_all(&Pattern::new(3).take(bytes)).expect("sent");
            tls.sock.shutdown(Shutdown::Write).expect("shut down");
            let _ = tls.sock.read(&mut [0]);
        }
    });
    let to = match from {
        End::Client => terminate(address, &format!("certificates = [{a}]")),
        End::Endpoint => {
            listener("main", "TCP", address, "") + &route("main", "main", &[("main", 1)], "")
        }
    };
    let to = to.replacen("address =", &format!("{on_truncation}\naddress ="), 1);
    let tls =
        format!("tls = {{ server_name = \"a.example.com\", ca = \"{}\" }}", files.path("ca.pem"));
    let keys = if let End::Client = from { "" } else { &tls };
    let gateway = Gateway::start(&(to + &backend("main", [server.address], keys)));
    // Dropped with unread session tickets, it would reset its connection.
    let mut kept = None;
    let (got, reason) = match from {
        End::Client => {
            let mut client = files.client(address, "a.example.com");
            client.0.write_all(&Pattern::new(3).take(bytes)).expect("sent");
            client.0.sock.shutdown(Shutdown::Write).expect("shut down");
            kept = Some(client);
            let got = hear.recv_timeout(Duration::from_secs(60)).expect("an end");
            (got, "client_truncated")
        }
        End::Endpoint => (read_late(&mut connect(address)), "endpoint_truncated"),
    };
    let line = gateway.closed_for(reason);
    let given = line.number("bytes_up") + line.number("bytes_down");
    assert_eq!(given, bytes as u64, "the log counts what was delivered");
    drop(kept);
    got
}

#[derive(Clone, Copy)]
enum End {
    Client,
    Endpoint,
}

/// When all that is on its way has had the time to be overtaken.
fn read_late(stream: &mut TcpStream) -> (Vec<u8>, Result<(), ErrorKind>) {
    thread::sleep(Duration::from_millis(300));
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes).map(|_| ()).map_err(|error| error.kind());
    (bytes, end)
}

pub fn server_connection(issued: &Issued) -> ServerConnection {
    let cert = CertificateDer::from_pem_slice(issued.cert.as_bytes()).expect("PEM");
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).expect("PEM");
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .expect("a certificate");
    ServerConnection::new(Arc::new(config)).expect("a server")
}

/// Many programs end TLS like this (Python, rsyslog, some HTTPS servers): what they sent before is
/// delivered to the last byte, and the end is what `on_truncation` says.
#[test]
fn an_end_without_close_notify_comes_after_the_last_byte() {
    let sent = Pattern::new(3).take(3_000_000);
    for from in [End::Client, End::Endpoint] {
        for (key, end) in [
            ("", Err(ErrorKind::ConnectionReset)),
            ("on_truncation = \"reset\"", Err(ErrorKind::ConnectionReset)),
            ("on_truncation = \"fin\"", Ok(())),
        ] {
            for bytes in [6, sent.len()] {
                let (got, was) = truncated(from, bytes, key);
                assert!(got == sent[..bytes], "{} of {bytes} bytes, {key}", got.len());
                assert_eq!(was, end, "{key}");
            }
        }
    }
}
