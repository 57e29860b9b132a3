//! What an operator asks of a running gateway before and while things change.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{
    Gateway, Launch, Server, connect, echo, free_address, run_verb, session, udp_client, wait_for,
    wait_until, was_reset,
};
use serde_json::Value;

/// The exit code of `ringway diff`, what it prints, and what it says on stderr.
fn diff(gateway: &Gateway, words: &[&str]) -> (Option<i32>, String, String) {
    let output = gateway.verb(&[&["diff"], words].concat());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn diff_says_what_a_candidate_would_change_and_how_many_sessions_it_concerns() {
    let (server, other) = (Server::tcp(echo), Server::tcp(echo));
    let (a, b) = (free_address(), free_address());
    let parts = |keys: &str, endpoints: Vec<std::net::SocketAddr>| {
        listener("a", "TCP", a, keys)
            + &route("a", "a", &[("main", 1)], "")
            + &backend("main", endpoints, "balance = \"source-port-hash\"")
    };
    let only = |at: std::net::SocketAddr| backend("only", [at], "");
    let config = parts("", vec![server.address, other.address])
        + &listener("b", "TCP", b, "")
        + &route("b", "b", &[("only", 1)], "")
        + &only(server.address);
    let gateway = Launch::default().socket().start(&config);
    let sessions: Vec<_> = (0..3).map(|_| session(b)).collect();

    let same = gateway.candidate(&config).display().to_string();
    assert_eq!(diff(&gateway, &[&same]), (Some(0), "no difference\n".into(), String::new()));

    let config = parts("idle_timeout = \"1m\"", vec![server.address, free_address()])
        + &route("b", "a", &[("only", 1)], "sources = [\"10.0.0.0/8\"]")
        + &only(other.address);
    let file = gateway.candidate(&format!("drain_timeout = \"7s\"\n{config}"));
    let file = file.display().to_string();
    let (code, said, _) = diff(&gateway, &[&file]);
    assert_eq!(code, Some(1), "{said}");
    for line in [
        "setting drain_timeout: changed\n  drain_timeout: (default) -> \"7s\"\n".to_owned(),
        "listener a: changed\n  idle_timeout: (default) -> \"1m\"\n".to_owned(),
        "listener b: removed, 3 sessions or flows now\n".to_owned(),
        "route b: changed\n  listeners: [\"b\"] -> [\"a\"]\n".to_owned(),
        format!("endpoint main/{}: removed, 0 sessions or flows now\n", other.address),
        format!("endpoint only/{}: removed, 3 sessions or flows now\n", server.address),
        format!("endpoint only/{}: added\n", other.address),
        "3 sessions and flows would stay on listeners that go or move".to_owned(),
    ] {
        assert!(said.contains(&line), "{line} is not in:\n{said}");
    }
    let (code, said, _) = diff(&gateway, &[&file, "--json"]);
    let found: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((code, found["same"].as_bool()), (Some(1), Some(false)));
    assert_eq!((found["listener_sessions"].as_u64(), sessions.len()), (Some(3), 3));

    // The candidate was only looked at.
    session(b);
    let bad = gateway.candidate("colour = 1\n").display().to_string();
    let (code, said, fault) = diff(&gateway, &[&bad]);
    assert_eq!((code, said.as_str()), (Some(2), ""));
    assert!(fault.starts_with(&bad) && fault.contains("colour"), "{fault}");
    let good = gateway.candidate(&config).display().to_string();
    let nobody = run_verb(&["diff", &good], "/nonexistent/admin.sock");
    assert_eq!(nobody.status.code(), Some(2));
    let said = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(said.contains("no gateway has its socket there"), "{said}");
}

#[test]
fn the_log_level_changes_while_the_gateway_runs_and_falls_back() {
    let server = Server::tcp(echo);
    let config = forward("TCP", free_address(), [server.address], "");
    let gateway = Launch::default().socket().start(&config);
    let level = || gateway.asks(&["log-level"])["level"].as_str().map(str::to_owned);
    let tables = || gateway.stderr().matches("goes to the workers").count();
    let drain = |verb| gateway.asks(&[verb, &server.address.to_string()]);
    assert_eq!(level().as_deref(), Some("info"));
    drain("drain");
    drain("undrain");
    gateway.says("is taken back");
    assert_eq!(tables(), 0, "debug lines at the level info");
    let set = gateway.asks(&["log-level", "ringway=debug", "--for", "3s"]);
    assert_eq!(
        (set["level"].as_str(), set["then"].as_str()),
        (Some("info,ringway=debug"), Some("info"))
    );
    gateway.asks(&["drain", &server.address.to_string(), "--for", "1s"]);
    wait_until("a debug line", || tables() > 0);
    wait_until("the level is back", || level().as_deref() == Some("info"));
    gateway.says("log level: info again");

    assert_eq!(gateway.asks(&["log-level", "off"])["level"], "off");
    gateway.says("operator: off");
    let before = gateway.stderr();
    drain("drain");
    assert_eq!(gateway.stderr(), before);
    let wrong = gateway.verb(&["log-level", "loud"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("\"loud\" is none of off, error"));
    let by_address = format!("http://{}", gateway.admin);
    let refused = run_verb(&["log-level", "info"], &by_address);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("reading only"), "{said}");
    assert_eq!(level().as_deref(), Some("off"));
}

#[test]
fn a_session_shows_its_connections_and_which_side_is_slow() {
    // Sends without end once it has read a byte, and then reads no more.
    let server = Server::tcp(|mut stream: TcpStream| {
        let mut byte = [0];
        _ = stream.read_exact(&mut byte);
        match byte[0] {
            b'f' => while stream.write_all(&[0; 65_536]).is_ok() {},
            _ => {
                _ = stream.write_all(b"x");
                std::thread::sleep(Duration::from_secs(60));
            }
        }
    });
    let address = free_address();
    let config = forward("TCP", address, [server.address], "");
    let gateway = Launch::default().socket().start(&config);
    let id_of = |stream: &TcpStream| {
        let client = stream.local_addr().expect("an address").to_string();
        let all = gateway.asks(&["sessions"]);
        let row = all.as_array().into_iter().flatten().find(|row| row["client"] == *client);
        row.and_then(|row| row["id"].as_str()).expect("the session is listed").to_owned()
    };
    let (mut calm, mut deaf, mut full) = (connect(address), connect(address), connect(address));
    calm.write_all(b"c").expect("sending");
    calm.read_exact(&mut [0]).expect("an answer");
    let row = gateway.asks(&["session", &id_of(&calm)]);
    for side in ["client_tcp", "endpoint_tcp"] {
        let tcp = &row[side];
        assert!(tcp["rtt_ms"].as_f64() > Some(0.0) && tcp["cwnd"].as_u64() > Some(1), "{row}");
        // One byte, or with the SYN two, went each way.
        assert!(tcp["bytes_received"] == 1 && tcp["bytes_acked"].as_u64() <= Some(2), "{row}");
        assert!(tcp["retransmits"].is_u64() && tcp["delivery_rate"].is_u64(), "{row}");
    }
    assert!(row["slow"].as_str().is_some_and(|slow| slow.starts_with("no side is slow")), "{row}");

    deaf.write_all(b"f").expect("sending");
    let id = id_of(&deaf);
    wait_until("the client is named as slow", || {
        let row = gateway.asks(&["session", &id]);
        let slow = row["slow"].as_str().unwrap_or_default();
        slow.contains("the client is slow: it does not read")
            && slow.contains("bytes behind it are not read yet")
    });
    let said = String::from_utf8_lossy(&gateway.verb(&["session", &id]).stdout).into_owned();
    assert!(said.contains("TCP") && said.contains("rtt_ms") && said.contains("is slow"), "{said}");

    full.write_all(b"s").expect("sending");
    full.set_write_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    while full.write_all(&[0; 65_536]).is_ok() {}
    let id = id_of(&full);
    wait_until("the endpoint is named as slow", || {
        let row = gateway.asks(&["session", &id]);
        row["slow"].as_str().is_some_and(|slow| slow.contains("the endpoint is slow: it does not"))
    });
}

#[test]
fn saved_overrides_hold_after_a_restart() {
    let (server, other) = (Server::tcp(echo), Server::tcp(echo));
    let folder = ringway_tests::real::Folder::new();
    let file = folder.file("overrides.toml").display().to_string();
    let address = free_address();
    let spare = free_address();
    let config = forward("TCP", address, [server.address, other.address], "")
        + &listener("spare", "TCP", spare, "backends = [\"main\"]");
    let keys = format!("overrides_file = {file:?}");
    let gateway = Launch::default().socket().admin(&keys).start(&config);
    assert_eq!(gateway.asks(&["overrides"]), Value::Array(Vec::new()), "there is no file yet");
    gateway.asks(&["drain", &server.address.to_string()]);
    gateway.asks(&["weight", &other.address.to_string(), "9"]);
    gateway.asks(&["disable", &other.address.to_string(), "--for", "1h"]);
    gateway.asks(&["drain", "listener", "spare"]);
    let saved = gateway.asks(&["overrides", "--save", &file]);
    assert_eq!((saved["saved"].as_u64(), saved["passing"].as_u64()), (Some(3), Some(1)));
    gateway.stop();

    let gateway = Launch::default().socket().admin(&keys).start(&config);
    let all = gateway.asks(&["overrides"]);
    let mut all: Vec<_> =
        all.as_array().into_iter().flatten().filter_map(|of| of["action"].as_str()).collect();
    all.sort_unstable();
    assert_eq!(all, ["drain", "drain", "weight"]);
    assert!(TcpStream::connect(spare).is_err(), "the first table has no such socket");
    for _ in 0..6 {
        session(address);
    }
    let endpoints = gateway.asks(&["endpoints"]);
    let of_drained = endpoints.as_array().into_iter().flatten().find(|of| of["state"] == "drained");
    assert_eq!(
        of_drained.map(|of| of["endpoint"].clone()),
        Some(server.address.to_string().into())
    );
    let opened = gateway.metrics().series("ringway_endpoint_sessions_opened_total");
    let used = opened.iter().filter(|count| **count > 0).count();
    assert_eq!(used, 1, "the first table had the override already: {opened:?}");
}

#[test]
fn a_drained_listener_takes_no_new_sessions_and_its_live_ones_go_on() {
    let (server, udp_server) = (Server::tcp(echo), Server::udp_echo());
    let (address, udp) = (free_address(), free_address());
    let config = forward("TCP", address, [server.address], "")
        + &listener("datagrams", "UDP", udp, &format!("endpoints = [\"{}\"]", udp_server.address));
    let gateway = Launch::default().socket().start(&config);
    let mut live = connect(address);
    let echoes = |stream: &mut TcpStream| {
        stream.write_all(b"x").expect("sent");
        stream.read_exact(&mut [0]).expect("an echo");
    };
    echoes(&mut live);
    let state = |name: &str| {
        let all = gateway.asks(&["listeners"]);
        let row = all.as_array().into_iter().flatten().find(|row| row["listener"] == *name);
        row.map(|row| row["state"].clone())
    };
    let done = gateway.asks(&["drain", "listener", "main"]);
    assert_eq!(done["listener"], "main");
    wait_until("connections are refused", || TcpStream::connect(address).is_err());
    assert_eq!(state("main"), Some("drained".into()));
    assert_eq!(state("datagrams"), Some("listening".into()));
    assert_eq!(gateway.asks(&["status"])["overrides"], 1);
    echoes(&mut live);
    let said = gateway.verb(&["why", "192.0.2.1", "--listener", "main"]);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("an operator drains the listener"), "{said}");
    // A reload keeps the drain.
    gateway.reload(&format!("drain_timeout = \"7s\"\n{config}"));
    assert!(TcpStream::connect(address).is_err());
    echoes(&mut live);
    gateway.asks(&["undrain", "listener", "main"]);
    wait_until("connections are taken", || TcpStream::connect(address).is_ok());
    echoes(&mut connect(address));
    echoes(&mut live);

    let client = udp_client(udp);
    let echoed = |client: &UdpSocket| {
        client.send(b"x").expect("sent");
        client.recv(&mut [0; 8]).is_ok()
    };
    assert!(echoed(&client));
    gateway.asks(&["drain", "listener", "datagrams", "--for", "3s"]);
    let other = udp_client(udp);
    other.set_read_timeout(Some(Duration::from_millis(300))).expect("a socket");
    wait_until("new clients get nothing", || !echoed(&other));
    assert!(echoed(&client), "the flow goes on");
    wait_until("the drain has ended", || echoed(&other));
    assert_eq!(gateway.asks(&["overrides"]), Value::Array(Vec::new()));
}

#[test]
fn an_address_that_somebody_has_taken_keeps_its_listener_drained() {
    let (server, address) = (Server::tcp(echo), free_address());
    let config = forward("TCP", address, [server.address], "");
    let gateway = Launch::default().socket().start(&config);
    gateway.asks(&["drain", "listener", "main"]);
    let mut taken = None;
    wait_until("the address is free", || {
        taken = TcpListener::bind(address).ok();
        taken.is_some()
    });
    // The control thread hears from the workers a moment after they have closed their sockets, and
    // puts an undrain off until then.
    let refused = wait_for("the undrain is refused", || {
        let output = gateway.verb(&["undrain", "listener", "main"]);
        if output.status.success() {
            gateway.asks(&["drain", "listener", "main"]);
        }
        (!output.status.success()).then_some(output)
    });
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("main stays drained: cannot listen"), "{said}");
    assert_eq!(gateway.asks(&["overrides"])[0]["listener"], "main");
    drop(taken);
    gateway.asks(&["undrain", "listener", "main"]);
    wait_until("connections are taken", || TcpStream::connect(address).is_ok());
}

#[test]
fn a_drained_backend_gets_no_new_sessions() {
    let (server, other) = (Server::tcp(echo), Server::tcp(echo));
    let address = free_address();
    let config = forward("TCP", address, [server.address, other.address], "");
    let gateway = Launch::default().socket().start(&config);
    let mut live = connect(address);
    live.write_all(b"x").expect("sent");
    live.read_exact(&mut [0]).expect("an echo");
    let done = gateway.verb(&["drain", "backend", "main"]);
    assert_eq!(String::from_utf8_lossy(&done.stdout), "backend main: done\n");
    let states = || {
        let all = gateway.asks(&["endpoints"]);
        let states = all.as_array().into_iter().flatten().map(|of| of["state"].clone());
        states.collect::<Vec<_>>()
    };
    assert_eq!(states(), ["drained", "drained"]);
    wait_until("a refusal", || {
        let mut refused = connect(address);
        was_reset(&mut refused)
    });
    assert_eq!(gateway.closes(1)[0].text("reason"), Some("no_endpoint"));
    live.write_all(b"x").expect("sent");
    live.read_exact(&mut [0]).expect("an echo");
    let wrong = gateway.verb(&["drain", "backend", "none"]);
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(said.contains("no backend is called \"none\"; there are: main"), "{said}");
    gateway.asks(&["undrain", "backend", "main"]);
    wait_until("both are back", || states() == ["up", "up"]);
}
