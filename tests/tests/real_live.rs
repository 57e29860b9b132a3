//! A running gateway that is looked into and acted on: the admin API's socket, and the verbs.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{
    Gateway, Launch, Server, client_hello, connect, echo, free_address, run_verb, udp_client,
    wait_until, was_reset,
};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

/// A session that relays: a byte has gone both ways.
fn session(address: std::net::SocketAddr) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(b"x").expect("sending");
    stream.read_exact(&mut [0]).expect("the echo");
    stream
}

fn text<'v>(row: &'v Value, field: &str) -> &'v str {
    row.get(field).and_then(Value::as_str).unwrap_or_else(|| panic!("no {field} in {row}"))
}

fn rows(list: &Value) -> &[Value] {
    list.as_array().expect("a list")
}

fn client(stream: &TcpStream) -> String {
    stream.local_addr().expect("an address").to_string()
}

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
fn status_says_how_the_gateway_fares_and_why_a_configuration_was_refused() {
    let server = Server::tcp(echo);
    let address = free_address();
    let config = forward("TCP", address, [server.address], "");
    let gateway = Launch::default().socket().start(&config);
    let sessions: Vec<_> = (0..3).map(|_| session(address)).collect();
    let status = || gateway.asks(&["status"]);
    let first = status();
    assert_eq!((&first["ready"], &first["draining"]), (&true.into(), &false.into()), "{first}");
    assert_eq!((text(&first, "source"), first["sessions"].as_u64()), ("files", Some(3)), "{first}");
    assert!(first["sessions_most"].as_u64() >= Some(3) && first["table"].as_u64() >= Some(1));
    assert!(first.get("refused").is_none() && text(&first, "since").ends_with('Z'), "{first}");

    gateway.write(&format!("{config}color = 1\n"));
    wait_until("the file is refused", || status().get("refused").is_some());
    let refused = status();
    assert!(text(&refused, "refused").contains("color"), "{refused}");
    assert_eq!(refused["reloads_failed"], 1, "{refused}");
    for same in ["generation", "since"] {
        assert_eq!(refused[same], first[same], "the earlier configuration stays: {refused}");
    }
    let shown = gateway.verb(&["status"]);
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.contains("state                ready\n") && shown.contains("color"), "{shown}");

    gateway.write(&format!("{config}connect_timeout = \"4s\"\n"));
    wait_until("the file is taken", || status().get("refused").is_none());
    let later = status();
    assert!(text(&later["last_refused"], "why").contains("color"), "{later}");
    assert!(text(&later["last_refused"], "at") > text(&first, "since"), "{later}");
    assert_eq!(later["workers_behind"], 0, "{later}");
    assert!(later["generation"].as_u64() > first["generation"].as_u64(), "{later}");
    assert_eq!(later["sessions"], 3, "{later}");
    drop(sessions);
    wait_until("no session is left", || status()["sessions"] == 0);
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

fn port(socket: &std::net::UdpSocket) -> String {
    socket.local_addr().expect("an address").port().to_string()
}

#[test]
fn only_the_socket_and_the_token_may_change_things() {
    let server = Server::tcp(echo);
    let address = free_address();
    let folder = ringway_tests::real::Folder::new();
    let token = folder.write("token", "0123456789abcdef0123\n").display().to_string();
    let config = forward("TCP", address, [server.address], "");
    let closed = Launch::default().socket().start(&config);
    let mode = fs::symlink_metadata(closed.socket()).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut stream = session(address);
    let refused = |gateway: &Gateway, more: &[&str]| {
        let words = [&["kill", "--listener", "main"], more].concat();
        let output = run_verb(&words, &format!("http://{}", gateway.admin));
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (done, said) = refused(&closed, &[]);
    assert!(!done && said.contains("reading only") && said.contains("admin.socket"), "{said}");
    let (done, said) = refused(&closed, &["--token-file", &token]);
    assert!(!done && said.contains("reading only"), "nobody asked for a token: {said}");
    stream.write_all(b"y").expect("it lives");
    stream.read_exact(&mut [0]).expect("it lives");
    let path = closed.socket();
    drop(stream);
    closed.stop();
    assert!(!path.exists(), "the socket's file is left");

    let launch = Launch::default().admin(&format!("token_file = {token:?}"));
    let open = launch.start(&config);
    let mut stream = session(address);
    let (done, said) = refused(&open, &[]);
    assert!(!done && said.contains("token"), "{said}");
    let wrong = folder.write("wrong", "0123456789abcdef0124").display().to_string();
    let (done, said) = refused(&open, &["--token-file", &wrong]);
    assert!(!done && said.contains("is not that of"), "{said}");
    let (done, said) = refused(&open, &["--token-file", &token]);
    assert!(done, "{said}");
    assert!(was_reset(&mut stream));
}

#[test]
fn a_stale_socket_is_replaced_and_bad_requests_are_explained() {
    let server = Server::tcp(echo);
    let config = forward("TCP", free_address(), [server.address], "");
    let folder = ringway_tests::real::Folder::new();
    let socket = folder.file("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"));
    let gateway = Launch::default()
        .admin(&format!("socket = {:?}", socket.display().to_string()))
        .start(&config);
    let output = run_verb(&["sessions"], &socket.display().to_string());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "no sessions\n", "{output:?}");
    for (path, status, said) in [
        ("sessions?colour=1", 400, "colour"),
        ("sessions?client=10.0.0.0%2F99", 400, "no address or prefix"),
        ("sessions?limit=5001", 400, "5000 at the most"),
        ("sessions?cursor=9.9", 400, "cursor"),
        ("sessions?listener=nope", 400, "no listener is called"),
        ("sessions?endpoint=127.0.0.1:1", 400, "no endpoint is called"),
        ("session/nonsense", 400, "no id of a session"),
        ("session/s0-0-0-00000000", 404, "has ended"),
        ("nope", 404, "no such path"),
    ] {
        let (found, body) = gateway.get(&format!("/api/v1/{path}")).expect("an answer");
        assert!(found == status && body.contains(said), "{path}: {found} {body}");
    }
    wait_until("the gateway is ready", || {
        gateway.get("/readyz").is_some_and(|(status, _)| status == 200)
    });
}

/// Tags of this many sessions, one after the other.
fn tags(address: std::net::SocketAddr, count: usize) -> Vec<u8> {
    let tag = |_| {
        let mut byte = [0];
        connect(address).read_exact(&mut byte).expect("a tag");
        byte[0]
    };
    (0..count).map(tag).collect()
}

/// Says its tag, and echoes then.
fn tagged(tag: u8) -> Server {
    Server::tcp(move |mut stream| {
        stream.write_all(&[tag]).expect("the tag");
        echo(stream);
    })
}

fn count_of(tags: &[u8], tag: u8) -> usize {
    tags.iter().filter(|of| **of == tag).count()
}

/// The row of the endpoint.
fn endpoint(gateway: &Gateway, of: &Server) -> Value {
    let all = gateway.asks(&["endpoints"]);
    let found = rows(&all).iter().find(|row| text(row, "endpoint") == of.address.to_string());
    found.expect("a row").clone()
}

#[test]
fn a_drained_endpoint_keeps_its_sessions_and_gets_no_new_ones() {
    let (a, b) = (tagged(b'a'), tagged(b'b'));
    let address = free_address();
    let config = forward("TCP", address, [a.address, b.address], "");
    let gateway = Launch::default().socket().start(&config);
    let mut live = loop {
        let mut stream = connect(address);
        let mut tag = [0];
        stream.read_exact(&mut tag).expect("a tag");
        if tag == *b"a" {
            break stream;
        }
    };
    let name = a.address.to_string();
    // Others come all the while.
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut served = 0;
            // A test that fails says no stop.
            for _ in 0..10_000 {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                served += tags(address, 10).len();
            }
            served
        });
        gateway.asks(&["drain", &name]);
        wait_until("no new session goes there", || count_of(&tags(address, 20), b'a') == 0);
        assert_eq!(count_of(&tags(address, 100), b'a'), 0);
        let row = endpoint(&gateway, &a);
        assert_eq!((text(&row, "state"), row["weight"].as_u64()), ("drained", Some(1)));
        assert_eq!(row["weight_in_force"].as_f64(), Some(0.0));
        live.write_all(b"y").expect("it lives");
        live.read_exact(&mut [0]).expect("it lives");
        gateway.reload(&format!("{config}# Another text.\n"));
        assert_eq!(count_of(&tags(address, 40), b'a'), 0, "a reload forgets nothing");
        assert_eq!(rows(&gateway.asks(&["overrides"])).len(), 1);
        gateway.asks(&["undrain", &name]);
        wait_until("it is used again", || count_of(&tags(address, 20), b'a') > 0);
        stop.store(true, Ordering::Relaxed);
        assert!(load.join().expect("nobody was refused") > 0);
    });
    assert_eq!(gateway.asks(&["overrides"]), Value::Array(Vec::new()));
    assert_eq!(text(&endpoint(&gateway, &a), "state"), "up");
    live.write_all(b"y").expect("it lives");
    live.read_exact(&mut [0]).expect("it lives");
}

#[test]
fn weights_move_the_split_and_overrides_end() {
    let (a, b) = (tagged(b'a'), tagged(b'b'));
    let address = free_address();
    let config = forward("TCP", address, [a.address, b.address], "");
    let gateway = Launch::default().socket().start(&config);
    let name = a.address.to_string();
    let share = |percent: usize| {
        let found = count_of(&tags(address, 200), b'a');
        found.abs_diff(2 * percent) <= 4
    };
    gateway.asks(&["weight", &format!("main/{name}"), "3"]);
    wait_until("three of four go there", || share(75));
    let row = endpoint(&gateway, &a);
    assert_eq!((row["weight"].as_u64(), row["weight_in_force"].as_f64()), (Some(1), Some(3.0)));
    gateway.asks(&["disable", &name, "--for", "2s"]);
    wait_until("it is as if down", || count_of(&tags(address, 20), b'a') == 0);
    assert_eq!(text(&endpoint(&gateway, &a), "state"), "disabled");
    assert!(rows(&gateway.asks(&["overrides"])).iter().any(|row| row["left_ms"].is_u64()));
    wait_until("the disable ends", || text(&endpoint(&gateway, &a), "state") == "up");
    wait_until("the weight is still in force", || share(75));
    gateway.asks(&["weight", &name, "--configured"]);
    wait_until("one of two goes there", || share(50));
    assert_eq!(gateway.asks(&["overrides"]), Value::Array(Vec::new()));
}

#[test]
fn an_endpoint_that_is_unknown_or_unclear_is_an_error_with_the_candidates() {
    let (server, other) = (Server::tcp(echo), Server::tcp(echo));
    let (shared, own) = (server.address, other.address);
    let first = free_address();
    let plain = listener("a", "TCP", first, "")
        + &route("a", "a", &[("a", 1), ("b", 1)], "")
        + &backend("a", [shared], "");
    let names = format!("endpoints = [\"{shared}\", {{ address = \"{own}\", name = \"own\" }}]\n");
    let config = format!("{plain}[[backends]]\nname = \"b\"\n{names}");
    let gateway = Launch::default().socket().start(&config);
    let refused = |words: &[&str]| {
        let output = gateway.verb(words);
        assert!(!output.status.success(), "{words:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refused(&["drain", &shared.to_string()]);
    assert!(said.contains(&format!("a/{shared}, b/{shared}")), "{said}");
    let said = refused(&["drain", "nobody"]);
    assert!(said.contains("no endpoint is called") && said.contains(&own.to_string()), "{said}");
    let said = refused(&["weight", "own", "257"]);
    assert!(said.contains("0 to 256"), "{said}");
    let said = refused(&["enable", "own"]);
    assert!(said.contains("no disable override"), "{said}");
    assert_eq!(gateway.asks(&["drain", "b/own"])["endpoint"], format!("b/{own}"));
    gateway.asks(&["disable", &format!("b/{shared}")]);
    assert_eq!(rows(&gateway.asks(&["overrides"])).len(), 2);
    wait_until("the metric says so", || gateway.metrics().value("ringway_overrides", &[]) == 2);
    // Everybody may read, and only the socket may change.
    let output = run_verb(&["drain", "own"], &format!("http://{}", gateway.admin));
    assert!(String::from_utf8_lossy(&output.stderr).contains("reading only"), "{output:?}");
    // The endpoint leaves the configuration, and its override with it.
    gateway.reload(&(plain + &backend("b", [shared], "")));
    let left = gateway.asks(&["overrides"]);
    assert_eq!(rows(&left).len(), 1, "{left}");
    assert!(gateway.stderr().contains(&format!("endpoint b/{own} is gone: drain")));
}

#[test]
fn the_list_of_endpoints_says_why_one_is_down_and_which_stand_by() {
    let server = tagged(b'a');
    let (address, dead, spare) = (free_address(), free_address(), free_address());
    let up = server.address;
    let endpoints = format!(
        "\"{up}\", \"{dead}\", {{ address = \"{spare}\", backup = true, name = \"spare\" }}"
    );
    let config = listener("main", "TCP", address, "")
        + &route("main", "main", &[("main", 1)], "")
        + &format!("[[backends]]\nname = \"main\"\nendpoints = [{endpoints}]\n")
        + "health_check = { type = \"tcp\", interval = \"100ms\" }\n";
    let gateway = Launch::default().socket().start(&config);
    let row = |of: std::net::SocketAddr| {
        let all = gateway.asks(&["endpoints"]);
        let found = rows(&all).iter().find(|row| text(row, "endpoint") == of.to_string());
        found.expect("a row").clone()
    };
    wait_until("the check has failed", || text(&row(dead), "state") == "down");
    assert!(text(&row(dead), "why").contains("refused"), "{}", row(dead));
    let mut streams: Vec<_> = (0..3).map(|_| connect(address)).collect();
    streams.iter_mut().for_each(|stream| stream.read_exact(&mut [0]).expect("a tag"));
    assert_eq!((text(&row(up), "state"), row(up)["sessions"].as_u64()), ("up", Some(3)));
    let stands_by = row(spare);
    // Nobody is at the spare endpoint either.
    wait_until("the spare is checked", || text(&row(spare), "state") == "down");
    assert_eq!(text(&stands_by, "name"), "spare");
    assert_eq!(stands_by["weight_in_force"].as_f64(), Some(0.0));
}

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
        + &listener("turns", "TCP", taken, "")
        + &route("turns", "turns", &[("turns", 1)], "")
        + &backend("turns", servers.iter().take(2).map(|server| server.address), "");
    let gateway = Launch::default().socket().start(&config);
    for _ in 0..8 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let own = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        socket.bind(&own.into()).expect("a port");
        let own = socket.local_addr().expect("an address").as_socket().expect("of IPv4");
        let client = own.to_string();
        let (answer, said) = why(&gateway, &client, &["--listener", "main"]);
        assert_eq!((text(&answer, "outcome"), text(&answer, "route")), ("endpoint", "main"));
        assert!(said.contains(&format!("{client} goes to 127.0.0.1:")), "{said}");
        socket.connect(&address.into()).expect("a connection");
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).expect("a timeout");
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
const NOBODY: [std::net::SocketAddr; 0] = [];

#[test]
fn why_says_which_endpoint_comes_last_and_each_backends_reason() {
    let (server, dead) = (tagged(b'a'), free_address());
    let (address, shut) = (free_address(), free_address());
    let config = listener("main", "TCP", address, "")
        + &route("main", "main", &[("main", 1)], "")
        + &backend("main", [server.address, dead], "")
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

#[test]
fn top_counts_listeners_endpoints_and_clients() {
    let server = Server::tcp(echo);
    let (open, denied) = (free_address(), free_address());
    let config = listener("open", "TCP", open, "")
        + &listener("denied", "TCP", denied, "deny = [\"127.0.0.0/8\"]")
        + &route("open", "open", &[("web", 1)], "")
        + &route("denied", "denied", &[("web", 1)], "")
        + &backend("web", [server.address], "");
    let gateway = Launch::default().socket().start(&config);
    let live = session(open);
    (0..4).for_each(|_| drop(session(open)));
    _ = connect(denied).write_all(b"x");
    gateway.closes(5);
    let top = gateway.asks(&["top"]);
    let of = |list: &str, key: &str, name: &str| {
        let row = rows(&top[list]).iter().find(|row| row[key] == name);
        row.unwrap_or_else(|| panic!("no {name} in {top}")).clone()
    };
    let row = of("listeners", "listener", "open");
    assert_eq!(
        (&row["sessions"], &row["opened"], &row["refused"]),
        (&1.into(), &5.into(), &0.into())
    );
    assert_eq!(of("listeners", "listener", "denied")["refused"], 1);
    let row = of("endpoints", "endpoint", &server.address.to_string());
    assert_eq!((&row["sessions"], &row["opened"]), (&1.into(), &5.into()));
    // The first window is not over, or has just ended: it has all that has ended.
    for (list, count) in [("ended", 4), ("bytes", 8), ("refused", 1)] {
        let client = &top["clients"][list][0];
        let expected = serde_json::json!({ "client": "127.0.0.1", "count": count, "error": 0 });
        assert_eq!(client, &expected, "{list}: {top}");
    }
    let once = gateway.verb(&["top", "--once", "--by", "sessions", "--interval", "1s"]);
    let said = String::from_utf8_lossy(&once.stdout);
    assert!(once.status.success() && !said.contains('\x1b'), "{said}");
    for words in ["LISTENER", "open", "web", "127.0.0.1", "ended sessions"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    drop(live);
}

/// Who has more than its share is among those that are refused most.
#[test]
fn top_counts_sources_over_their_limit() {
    let server = Server::tcp(echo);
    let address = free_address();
    let limit = "limit_source = { sessions = 2 }";
    let gateway =
        Launch::default().socket().start(&forward("TCP", address, [server.address], limit));
    let held = [(); 2].map(|()| session(address));
    for _ in 0..5 {
        let mut client = connect(address);
        let served = client.write_all(b"x").and_then(|()| client.read_exact(&mut [0]));
        assert!(served.is_err(), "the source has two sessions");
    }
    gateway.closes(5);
    let top = gateway.asks(&["top"]);
    let expected = serde_json::json!({ "client": "127.0.0.1", "count": 5, "error": 0 });
    assert_eq!(top["clients"]["refused"][0], expected, "{top}");
    let once = gateway.verb(&["top", "--once", "--by", "refused", "--interval", "1s"]);
    let said = String::from_utf8_lossy(&once.stdout);
    assert!(once.status.success() && said.contains("127.0.0.1"), "{said}");
    drop(held);
}
