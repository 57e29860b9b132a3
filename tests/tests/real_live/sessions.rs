//! Sessions and flows are listed, filtered and killed.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};

use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{
    Gateway, Launch, Server, echo, free_address, session, udp_client, was_reset,
};
use serde_json::Value;

use crate::{rows, text};

#[test]
fn the_name_of_an_endpoint_is_in_lists_and_in_the_log() {
    let servers = [Server::tcp(echo), Server::tcp(echo)];
    let ways = [free_address(), free_address()];
    let of = |second: &str| {
        let named = |name: &str| format!("{{ address = \"{}\"{name} }}", servers[0].address);
        let mut config = String::new();
        for (name, way, endpoint) in
            [("a", ways[0], named(second)), ("b", ways[1], format!("\"{}\"", servers[1].address))]
        {
            config += &listener(name, "TCP", way, "");
            config += &route(name, name, &[(name, 1)], "");
            config += &format!("[[backends]]\nname = \"{name}\"\nendpoints = [{endpoint}]\n");
        }
        config
    };
    let gateway = Launch::default().socket().start(&of(", name = \"pg-2\""));
    let sessions = ways.map(session);
    let names = || {
        let all = gateway.asks(&["sessions"]);
        let name = |row: &Value| row.get("endpoint_name").map(|name| name.to_string());
        rows(&all).iter().map(|row| (text(row, "backend").to_owned(), name(row))).collect()
    };
    let named = |name: &str| -> BTreeSet<_> {
        [("a".to_owned(), Some(format!("\"{name}\""))), ("b".to_owned(), None)].into()
    };
    let listed: BTreeSet<_> = names();
    assert_eq!(listed, named("pg-2"));
    // The session stays, and has the new name.
    gateway.reload(&of(", name = \"pg-3\""));
    let listed: BTreeSet<_> = names();
    assert_eq!(listed, named("pg-3"));
    drop(sessions);
    for line in gateway.closes(2) {
        let name = (line.text("backend") == Some("a")).then_some("pg-3");
        assert_eq!((line.text("endpoint_name"), line.has("endpoint")), (name, true), "{line:?}");
    }
    gateway.stop();
}

#[test]
fn sessions_are_listed_filtered_and_killed_one_by_one() {
    let (server, other) = (Server::tcp(echo), Server::tcp(echo));
    let (a, b) = (free_address(), free_address());
    let config = listener("a", "TCP", a, "")
        + &listener("b", "TCP", b, "")
        + &route("a", "a", &[("a", 1)], "")
        + &route("b", "b", &[("b", 1)], "")
        + &backend("a", [server.address], "")
        + &backend("b", [other.address], "");
    let gateway = Launch::default().socket().start(&config);
    let mut of_a: Vec<_> = (0..8).map(|_| session(a)).collect();
    let of_b: Vec<_> = (0..3).map(|_| session(b)).collect();
    let all = gateway.asks(&["sessions"]);
    let listed: BTreeSet<_> = rows(&all).iter().map(|row| text(row, "client").to_owned()).collect();
    assert_eq!(listed, of_a.iter().chain(&of_b).map(client).collect(), "each client once");
    assert_eq!(rows(&all).len(), 11);
    for row in rows(&all) {
        let name = text(row, "listener");
        let endpoint = if name == "a" { server.address } else { other.address };
        assert_eq!((text(row, "route"), text(row, "backend")), (name, name));
        assert_eq!(text(row, "endpoint"), endpoint.to_string());
        assert_eq!((text(row, "state"), text(row, "protocol")), ("relaying", "TCP"));
        assert_eq!((row["bytes_up"].as_u64(), row["bytes_down"].as_u64()), (Some(1), Some(1)));
    }
    let count = |words: &[&str]| rows(&gateway.asks(&[&["sessions"], words].concat())).len();
    assert_eq!(count(&["--listener", "b"]), 3);
    assert_eq!(count(&["--endpoint", &format!("a/{}", server.address)]), 8);
    assert_eq!(count(&["--endpoint", &other.address.to_string()]), 3);
    assert_eq!((count(&["--client", "127.0.0.0/8"]), count(&["--client", "10.0.0.0/8"])), (11, 0));
    assert_eq!(count(&["--backend", "a", "--client", "127.0.0.1"]), 8);

    let mut victim = of_a.pop().expect("a session");
    let row = rows(&all).iter().find(|row| text(row, "client") == client(&victim)).expect("a row");
    let id = text(row, "id");
    assert_eq!(text(&gateway.asks(&["session", id]), "client"), client(&victim));
    assert_eq!(gateway.asks(&["kill", id])["killed"], 1);
    assert!(was_reset(&mut victim));
    let line = gateway.closed_for("killed");
    assert_eq!(line.text("id"), Some(id));
    assert_eq!(line.text("client"), Some(&*client(&victim)));
    let again = gateway.verb(&["kill", id]);
    assert!(!again.status.success());
    assert!(String::from_utf8_lossy(&again.stderr).contains("has ended"), "{again:?}");
    for stream in &mut of_a {
        stream.write_all(b"y").expect("it lives");
        stream.read_exact(&mut [0]).expect("it lives");
    }
    assert_eq!(gateway.asks(&["kill", "--listener", "b"])["killed"], 3);
    assert!(of_b.into_iter().all(|mut stream| was_reset(&mut stream)));
    assert_eq!(gateway.closes(4).len(), 4, "nothing else was closed");
    assert_eq!(count(&[]), 7);
}

#[test]
fn pages_have_each_session_once() {
    let server = Server::tcp(echo);
    let address = free_address();
    let gateway = Gateway::start(&forward("TCP", address, [server.address], ""));
    let sessions: Vec<_> = (0..50).map(|_| session(address)).collect();
    let (mut seen, mut cursor, mut pages) = (BTreeSet::new(), String::new(), 0);
    loop {
        // Others come and go while the list is read.
        drop(session(address));
        let (status, page) =
            gateway.get(&format!("/api/v1/sessions?limit=7{cursor}")).expect("a page");
        assert_eq!(status, 200, "{page}");
        let page: Value = serde_json::from_str(&page).expect("JSON");
        pages += 1;
        for row in rows(&page["sessions"]) {
            assert!(seen.insert(text(row, "id").to_owned()), "twice: {row}");
        }
        assert!(rows(&page["sessions"]).len() <= 7);
        let Some(next) = page.get("next").and_then(Value::as_str) else { break };
        cursor = format!("&cursor={next}");
    }
    assert!((8..30).contains(&pages), "{pages}");
    let clients: BTreeSet<_> = sessions.iter().map(client).collect();
    let (_, all) = gateway.get("/api/v1/sessions").expect("a list");
    let all: Value = serde_json::from_str(&all).expect("JSON");
    for row in rows(&all["sessions"]).iter().filter(|row| clients.contains(text(row, "client"))) {
        assert!(seen.contains(text(row, "id")), "missing: {row}");
    }
}

#[test]
fn a_flow_is_listed_and_killed() {
    let server = Server::udp_echo();
    let address = free_address();
    let config = forward("UDP", address, [server.address], "");
    let gateway = Launch::default().socket().start(&config);
    let socket = udp_client(address);
    let ask = || {
        socket.send(b"ping").expect("sending");
        socket.recv(&mut [0; 16]).expect("the echo");
    };
    ask();
    let flows = gateway.asks(&["flows", "--listener", "main"]);
    let [flow] = rows(&flows) else { panic!("one flow: {flows}") };
    assert_eq!(text(flow, "client").split(':').nth(1), Some(&*port(&socket)));
    assert_eq!((text(flow, "state"), text(flow, "protocol")), ("answered", "UDP"));
    let id = text(flow, "id").to_owned();
    assert_eq!(gateway.asks(&["kill", &id])["killed"], 1);
    assert_eq!(gateway.closed_for("killed").text("id"), Some(&*id));
    assert_eq!(gateway.asks(&["flows"]), Value::Array(Vec::new()));
    ask();
    let flows = gateway.asks(&["flows"]);
    let [flow] = rows(&flows) else { panic!("the next datagram begins a flow: {flows}") };
    assert_ne!(text(flow, "id"), id);
    assert_eq!(gateway.asks(&["kill", "--flows", "--client", "127.0.0.1"])["killed"], 1);
}

fn port(socket: &UdpSocket) -> String {
    socket.local_addr().expect("an address").port().to_string()
}

fn client(stream: &TcpStream) -> String {
    stream.local_addr().expect("an address").to_string()
}
