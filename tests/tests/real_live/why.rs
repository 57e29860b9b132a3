//! `ringway why` says where a client would go, and the client goes there.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ringway_tests::real::config::{backend, forward, forward_as, listener, route};
use ringway_tests::real::{
    Gateway, Launch, Server, client_hello, connect, echo, free_address, wait_until,
};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::{rows, tagged, tags, text};

/// The answer for a client of this address, and the answer as text.
fn why(gateway: &Gateway, client: &str, words: &[&str]) -> (Value, String) {
    let words = [&["why", client], words].concat();
    (gateway.asks(&words), String::from_utf8_lossy(&gateway.verb(&words).stdout).into_owned())
}

#[test]
fn why_says_where_a_session_goes_and_the_session_goes_there() {
    let servers = [b'a', b'b', b'c', b'd'].map(tagged);
    let (address, taken) = (free_address(), free_address());
    let config = forward("TCP", address, servers.iter().map(|server| server.address), "")
        + "balance = \"source-port-hash\"\n"
        + &forward_as(
            "turns",
            "TCP",
            taken,
            servers.iter().take(2).map(|server| server.address),
            "",
        );
    let gateway = Launch::default().socket().start(&config);
    for _ in 0..8 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let own = SocketAddr::from(([127, 0, 0, 1], 0));
        socket.bind(&own.into()).expect("a port");
        let own = socket.local_addr().expect("an address").as_socket().expect("of IPv4");
        let client = own.to_string();
        let (answer, said) = why(&gateway, &client, &["--listener", "main"]);
        assert_eq!((text(&answer, "outcome"), text(&answer, "route")), ("endpoint", "main"));
        assert!(said.contains(&format!("{client} goes to 127.0.0.1:")), "{said}");
        socket.connect(&address.into()).expect("a connection");
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let mut tag = [0];
        stream.read_exact(&mut tag).expect("a tag");
        let at = b"abcd".iter().position(|of| *of == tag[0]).expect("a server");
        assert_eq!(text(&answer, "endpoint"), servers[at].address.to_string(), "{said}");
    }
    let (answer, said) = why(&gateway, "127.0.0.1", &["--listener", "turns"]);
    assert_eq!(text(&answer, "outcome"), "one_of");
    assert_eq!(said.matches("50.0 %").count(), 2, "{said}");
    gateway.asks(&["drain", &format!("turns/{}", servers[0].address)]);
    let (answer, said) = why(&gateway, "127.0.0.1", &["--listener", "turns"]);
    assert_eq!(text(&answer, "endpoint"), servers[1].address.to_string(), "{said}");
    assert!(said.contains("drained"), "{said}");
    assert_eq!(tags(taken, 10), [b'b'; 10]);
    let (status, said) = gateway.get("/api/v1/why?client=::1&listener=nope").expect("an answer");
    assert!(status == 400 && said.contains("there are: main, turns"), "{said}");
    let udp = gateway.verb(&["why", "127.0.0.1", "--listener", "main", "--udp"]);
    assert!(String::from_utf8_lossy(&udp.stderr).contains("not for UDP"), "{udp:?}");
}

/// A backend without endpoints.
const NOBODY: [SocketAddr; 0] = [];

#[test]
fn why_says_which_endpoint_comes_last_and_each_backends_reason() {
    let (server, dead) = (tagged(b'a'), free_address());
    let (address, shut) = (free_address(), free_address());
    let config = forward("TCP", address, [server.address, dead], "")
        + &listener("shut", "TCP", shut, "")
        + &route("shut", "shut", &[("none", 1), ("void", 1)], "")
        + &backend("none", NOBODY, "")
        + &backend("void", NOBODY, "");
    let gateway = Launch::default().one_worker().socket().start(&config);
    let rests = || {
        let (answer, said) = why(&gateway, "127.0.0.1", &["--listener", "main"]);
        let rows = answer["backends"][0]["endpoints"].as_array().expect("a list").clone();
        let row = rows.into_iter().find(|row| row["endpoint"] == dead.to_string());
        (row.expect("it is configured")["rests"].clone(), said)
    };
    assert_eq!(rests().0, Value::Null, "nobody has tried it");
    assert_eq!(tags(address, 2), [b'a'; 2], "one of them was tried there first");
    let (found, said) = rests();
    assert_eq!((&found["on"], &found["of"]), (&1.into(), &1.into()), "{said}");
    assert!(found["left_ms"].as_u64().is_some_and(|left| left <= 10_000), "{found}");
    assert!(said.contains("comes last on 1 of 1 workers for "), "{said}");
    let (answer, said) = why(&gateway, "127.0.0.1", &["--listener", "shut"]);
    assert_eq!(answer["refusals"].as_array().map(Vec::len), Some(2), "{answer}");
    let each = "is refused: no_endpoint by \"none\", no_endpoint by \"void\"";
    assert!(said.contains(each), "{said}");
}

#[test]
fn why_gives_the_reason_for_which_a_client_is_then_refused() {
    let server = Server::tcp(echo);
    let (denied, names, dead) = (free_address(), free_address(), free_address());
    let down = free_address();
    let config = listener("denied", "TCP", denied, "deny = [\"127.0.0.0/8\"]")
        + &listener("names", "TLS", names, "")
        + &listener("dead", "TCP", dead, "")
        + &route("denied", "denied", &[("good", 1)], "")
        + &route("names", "names", &[("good", 1)], "hostnames = [\"*.example.com\"]")
        + &route("dead", "dead", &[("dead", 1)], "")
        + &backend("good", [server.address], "")
        + &backend("dead", [down], "health_check = { interval = \"100ms\", timeout = \"100ms\" }");
    let gateway = Launch::default().socket().start(&config);
    // The table follows the state within some 100 ms.
    wait_until("the endpoint is down", || {
        let all = gateway.asks(&["endpoints"]);
        rows(&all).iter().any(|row| row["state"] == "down" && row["weight_in_force"] == 0.0)
    });
    let (client_hello, mut closed) = (client_hello(Some("db.example.org")), 0);
    for (listener, words, address, bytes, reason, said) in [
        ("denied", &[][..], denied, &b"x"[..], "source_denied", "denies 127.0.0.0/8"),
        (
            "names",
            &["--sni", "db.example.org"],
            names,
            &client_hello,
            "unknown_server_name",
            "only *.example.com",
        ),
        ("dead", &[], dead, b"x", "no_endpoint", "no endpoint may be picked: no_endpoint"),
    ] {
        let words = [&["--listener", listener], words].concat();
        let (answer, text_of) = why(&gateway, "127.0.0.1:4000", &words);
        assert_eq!((text(&answer, "outcome"), text(&answer, "reason")), ("refused", reason));
        assert!(text_of.contains(said), "{text_of}");
        let mut stream = connect(address);
        // The gateway may be faster.
        _ = stream.write_all(bytes);
        closed += 1;
        let line = gateway.closes(closed).pop().expect("a line");
        assert_eq!(line.text("reason"), Some(reason));
        assert_eq!(line.text("local"), Some(&*address.to_string()), "the session that was meant");
    }
    let (answer, said) = why(&gateway, "127.0.0.1", &["--listener", "dead"]);
    let endpoint = &answer["backends"][0]["endpoints"][0];
    assert_eq!(text(endpoint, "state"), "down");
    assert!(text(endpoint, "why").contains("refused"), "the last check's reason: {said}");
    let words = ["--listener", "names", "--sni", "DB.Example.com"];
    let (answer, said) = why(&gateway, "127.0.0.1", &words);
    assert_eq!(text(&answer, "endpoint"), server.address.to_string(), "{said}");
}
