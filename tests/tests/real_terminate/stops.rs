//! Peers that stop in the middle leave nothing behind.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{Gateway, Launch, Server, connect, free_address, parrot, wait_until};

use crate::{Client, Files, tagged, terminate};

/// Says something, and hears it again.
fn talk(mut client: Client) {
    client.0.write_all(b"hello").expect("sent");
    client.end();
    assert_eq!(client.rest(), b"hello");
}

fn leave(stream: TcpStream, reset: bool) {
    if reset {
        let socket = socket2::SockRef::from(&stream);
        socket.set_linger(Some(Duration::ZERO)).expect("linger");
    }
}

/// What `stop` begins and does not end, by FIN or by reset, costs the gateway nothing afterwards.
fn leaves_nothing_behind(gateway: &Gateway, serve: impl Fn(), stop: impl Fn(bool)) {
    let held = || {
        let metrics = gateway.metrics();
        let value = |name| usize::try_from(metrics.value(name, &[])).expect("few");
        [value("ringway_session_slots_used"), value("ringway_pipes_used"), files_of(gateway)]
    };
    let free = || gateway.metrics().value("ringway_receive_buffers_free", &[]);
    serve();
    wait_until("an idle gateway", || held()[0] == 0);
    let (before, buffers) = (held(), free());
    stop(false);
    stop(true);
    // Connections of those who ask for metrics come and go too.
    let given_back =
        || held().iter().zip(before).all(|(now, before)| *now <= before) && free() >= buffers;
    wait_until("every session, pipe, file and receive buffer to be given back", given_back);
    serve();
}

/// Open files of a process.
fn files_of(gateway: &Gateway) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).expect("its files").count()
}

#[test]
fn handshakes_that_stop_at_any_step_leave_nothing_behind() {
    let (files, server, address) = (Files::new(), Server::tcp(parrot), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let config = terminate(address, &format!("certificates = [{a}]"))
        + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    let serve = || talk(files.client(address, "a.example.com"));
    let stop = |reset| {
        for step in 0..6 {
            let mut client = files.client(address, "a.example.com");
            let hello = client.flight();
            let cut = [0, 1, hello.len() / 2, hello.len() - 1].get(step).copied();
            client.0.sock.write_all(&hello[..cut.unwrap_or(hello.len())]).expect("sent");
            if cut.is_none() {
                client.hear();
                let finished = client.flight();
                let some = if step == 4 { 0 } else { finished.len() / 2 };
                client.0.sock.write_all(&finished[..some]).expect("sent");
            }
            leave(client.0.sock, reset);
        }
    };
    leaves_nothing_behind(&gateway, serve, stop);
}

#[test]
fn client_certificates_that_stop_in_the_middle_leave_nothing_behind() {
    let (files, server, address) = (Files::new(), Server::tcp(parrot), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let own = files.pki.issue(&["me.example.com"]);
    let keys = format!("certificates = [{a}], client_ca = \"{}\"", files.path("ca.pem"));
    let config = terminate(address, &keys) + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    let client = || Client::with(&files.pki, address, "a.example.com", Some(&own));
    let stop = |reset| {
        for eighths in 0..8 {
            let mut client = client();
            let hello = client.flight();
            client.0.sock.write_all(&hello).expect("sent");
            client.hear();
            let shown = client.flight();
            client.0.sock.write_all(&shown[..shown.len() * eighths / 8]).expect("sent");
            leave(client.0.sock, reset);
        }
    };
    leaves_nothing_behind(&gateway, || talk(client()), stop);
}

#[test]
fn what_stops_before_tls_leaves_nothing_behind() {
    const HEADER: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n";
    const REQUEST: &[u8] = &[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    let (files, server, address) = (Files::new(), Server::tcp(parrot), free_address());
    let a = files.issue("a", &["a.example.com"]);
    let before = "accept_proxy = { from = [\"127.0.0.1\"] }\nstarttls = \"postgres\"\ntls =";
    let config = terminate(address, &format!("certificates = [{a}]")).replace("tls =", before)
        + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    let begun = || {
        let mut client = files.client(address, "a.example.com");
        client.0.sock.write_all(&[HEADER, REQUEST].concat()).expect("sent");
        let mut answer = [0];
        client.0.sock.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"S");
        client
    };
    let stop = |reset| {
        let all = [HEADER, REQUEST].concat();
        for cut in 0..=all.len() {
            let mut stream = connect(address);
            stream.write_all(&all[..cut]).expect("sent");
            leave(stream, reset);
        }
        for cut in [0, 1, 50] {
            let mut client = begun();
            let hello = client.flight();
            client.0.sock.write_all(&hello[..cut]).expect("sent");
            leave(client.0.sock, reset);
        }
    };
    leaves_nothing_behind(&gateway, || talk(begun()), stop);
}

/// Endpoints that leave at once, after the hello, or in the middle of their answer; and clients
/// that leave one that says nothing.
#[test]
fn handshakes_with_endpoints_that_stop_leave_nothing_behind() {
    let (files, good) = (Files::new(), Server::tcp(parrot));
    let (plain, secret) = (free_address(), free_address());
    // Not how many were accepted: the habit of each is to be settled before the next one comes.
    let met = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&met);
    let bad = Server::tcp(move |mut stream| {
        let mut hello = [0; 4096];
        let habit = count.fetch_add(1, Ordering::SeqCst) % 4;
        if habit > 0 && stream.read(&mut hello).is_ok() && habit == 2 {
            let _ = stream.write_all(b"\x16\x03\x03\x00\x50\x02half of it");
        }
        if habit == 3 {
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    let ca = files.path("ca.pem");
    let tls = format!("tls = {{ server_name = \"a.example.com\", ca = \"{ca}\" }}");
    let config = forward("TCP", plain, [good.address], "")
        + &listener("secret", "TCP", secret, "")
        + &route("secret", "secret", &[("secret", 1)], "")
        + &backend("secret", [bad.address], &tls);
    let gateway = Gateway::start(&config);
    let serve = || {
        let back = ringway_tests::real::exchange(plain, b"hello").expect("an answer");
        assert_eq!(back, b"hello");
    };
    let stop = |reset| {
        let before = met.load(Ordering::SeqCst);
        for number in 1..=8 {
            let mut stream = connect(secret);
            // An endpoint that leaves at once may have ended the session by now.
            let _ = stream.write_all(b"hello");
            wait_until("the endpoint was reached", || {
                met.load(Ordering::SeqCst) == before + number
            });
            if number % 4 > 0 {
                assert!(!matches!(stream.read(&mut [0]), Ok(1..)), "an answer");
            }
            leave(stream, reset);
        }
    };
    leaves_nothing_behind(&gateway, serve, stop);
    wait_until("twelve failures in the access log", || {
        let lines = gateway.log();
        let reasons = lines.iter().filter_map(|line| line.text("reason"));
        reasons.filter(|reason| *reason == "endpoint_tls_failed").count() >= 12
    });
}

/// Clients that stop after their ClientHello have places of the listener for a short time only.
#[test]
fn handshakes_that_stop_keep_nobody_out() {
    let (files, server) = (Files::new(), tagged("served"));
    let certificate = files.issue("a", &["a.example.com"]);
    for limit in ["max_sessions = 32", "limit = { sessions = 32 }"] {
        let address = free_address();
        let tls = format!("tls = {{ mode = \"Terminate\", certificates = [{certificate}] }}");
        let keys = format!("{tls}\nhello_timeout = \"1h\"\n{limit}");
        let config = forward("TLS", address, [server.address], &keys);
        let gateway = Launch::default().one_worker().start(&config);
        let mut stopped = Vec::new();
        for round in 0..8 {
            for _ in 0..16 {
                let mut client = files.client(address, "a.example.com");
                let hello = client.flight();
                client.0.sock.write_all(&hello).expect("sent");
                stopped.push(client);
            }
            let mut honest = files.client(address, "a.example.com");
            let sent = honest.0.write_all(b"hello");
            assert!(sent.is_ok(), "{limit}: {sent:?} in round {round}");
            honest.end();
            assert_eq!(honest.rest(), b"served", "{limit}, in round {round}");
        }
        let refused = |reason: &str| {
            let reason = [("reason", reason)];
            gateway.metrics().value("ringway_sessions_refused_total", &reason)
        };
        let made_room = refused("crowded_out");
        assert!(made_room >= 90, "{limit}: {made_room} have made room");
        // The drain would wait for them.
        drop(stopped);
        gateway.stop();
    }
}
