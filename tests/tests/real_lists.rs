//! The lists of what a running gateway has: listeners, routes and backends.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use ringway_tests::pki::Pki;
use ringway_tests::real::config::{backend, forward_as, listener, route};
use ringway_tests::real::{
    Folder, Gateway, Launch, Server, binary, closed_without_a_byte, connect, echo, free_address,
    session, udp_client, wait_until,
};
use serde_json::Value;

/// The row of this name.
fn row(gateway: &Gateway, list: &str, name: &str) -> Value {
    let field = list.strip_suffix('s').expect("a plural");
    let all = gateway.asks(&[list]);
    let mut rows = all.as_array().expect("a list").iter();
    rows.find(|row| row[field] == name).unwrap_or_else(|| panic!("no {name} in {all}")).clone()
}

fn names(gateway: &Gateway, list: &str) -> Vec<String> {
    let field = list.strip_suffix('s').expect("a plural");
    let all = gateway.asks(&[list]);
    let name = |row: &Value| row[field].as_str().expect("a name").to_owned();
    all.as_array().expect("a list").iter().map(name).collect()
}

/// Live sessions of `web` and flows of `dns`.
fn routes_count(gateway: &Gateway) {
    for (name, count) in [("web", 3), ("dns", 1), ("shut", 0)] {
        let route = row(gateway, "routes", name);
        let counted = ["sessions", "opened"].map(|field| route[field].as_u64());
        assert_eq!(counted, [Some(count); 2], "{route}");
    }
}

fn routes_have_counted(gateway: &Gateway) {
    wait_until("the route's sessions have ended", || {
        let of_web = row(gateway, "routes", "web");
        of_web["sessions"] == 0 && of_web["bytes_up"] == 3 && of_web["bytes_down"] == 3
    });
}

#[test]
fn listeners_routes_and_backends_are_listed_with_what_they_do() {
    let (server, datagrams) = (Server::tcp(echo), Server::udp_echo());
    let (web, dns, shut, dead) = (free_address(), free_address(), free_address(), free_address());
    let check = "health_check = { interval = \"200ms\", fall = 1 }";
    let config = listener("web", "TCP", web, "max_sessions = 100")
        + &listener("dns", "UDP", dns, "")
        + &listener("shut", "TCP", shut, "deny = [\"127.0.0.0/8\"]")
        + &route("dns", "dns", &[("dns", 1)], "")
        + &route("shut", "shut", &[("dead", 1)], "")
        + &route("web", "web", &[("web", 3), ("dead", 1)], "on_unavailable = \"next\"")
        + &backend("dns", [datagrams.address], "")
        + &backend("web", [server.address, dead], check)
        + &backend("dead", [dead], check);
    let gateway = Launch::default().socket().start(&config);
    wait_until("no worker has the dead endpoint", || {
        let taking = |name| row(&gateway, "backends", name)["taking"].as_u64();
        (taking("web"), taking("dead")) == (Some(1), Some(0))
    });
    let sessions: Vec<_> = (0..3).map(|_| session(web)).collect();
    let client = udp_client(dns);
    client.send(b"ping").expect("sending");
    client.recv(&mut [0; 16]).expect("the echo");
    assert!(closed_without_a_byte(&mut connect(shut)));

    wait_until("the refusal is counted", || row(&gateway, "listeners", "shut")["refused"] == 1);
    let of_web = row(&gateway, "listeners", "web");
    let expected = serde_json::json!({
        "listener": "web", "protocol": "TCP", "addresses": [web.to_string()], "hostnames": [],
        "state": "listening", "routes": ["web"], "sessions": 3, "opened": 3, "refused": 0,
        "bytes_up": 3, "bytes_down": 3, "max_sessions": 100,
    });
    assert_eq!(of_web, expected);
    let of_dns = row(&gateway, "listeners", "dns");
    assert_eq!((&of_dns["sessions"], &of_dns["bytes_up"]), (&1.into(), &4.into()), "{of_dns}");
    assert_eq!(of_dns["dropped"], 0, "{of_dns}");
    assert_eq!(names(&gateway, "routes"), ["shut", "dns", "web"], "what refuses comes first");
    let shut = row(&gateway, "routes", "shut");
    assert_eq!((&shut["refused"], &shut["backends"][0]["available"]), (&1.0.into(), &false.into()));
    let of_web = row(&gateway, "routes", "web");
    assert_eq!((&of_web["refused"], &of_web["on_unavailable"]), (&0.0.into(), &"next".into()));
    let share = |at: usize| {
        (of_web["backends"][at]["weight"].as_u64(), of_web["backends"][at]["share"].as_f64())
    };
    assert_eq!((share(0), share(1)), ((Some(3), Some(1.0)), (Some(1), Some(0.0))), "{of_web}");

    routes_count(&gateway);

    assert_eq!(names(&gateway, "backends"), ["dead", "web", "dns"], "the worst comes first");
    let none = row(&gateway, "backends", "dead");
    assert_eq!((&none["state"], &none["taking"]), (&"no_endpoint".into(), &0.into()), "{none}");
    let news = none["news"].as_str().expect("news");
    assert!(news.starts_with(&format!("1 of 1 down: {dead}: ")), "{news}");
    let of_web = row(&gateway, "backends", "web");
    let counted = ["endpoints", "healthy", "taking", "sessions", "bytes_down"];
    assert_eq!(counted.map(|field| of_web[field].as_u64()), [2, 1, 1, 3, 3].map(Some), "{of_web}");
    assert_eq!((&of_web["state"], &of_web["checked"]), (&"degraded".into(), &true.into()));
    let of_dns = row(&gateway, "backends", "dns");
    assert_eq!((&of_dns["state"], &of_dns["sessions"]), (&"up".into(), &1.into()), "{of_dns}");
    assert!(of_dns.get("news").is_none() && of_dns["routes"] == serde_json::json!(["dns"]));

    shows_tables(&gateway);
    drop(sessions);
    routes_have_counted(&gateway);
}

fn shows_tables(gateway: &Gateway) {
    let shown = |verb| String::from_utf8(gateway.verb(&[verb]).stdout).expect("text");
    let routes = shown("routes");
    assert!(routes.contains("web 100.0 %, dead 0.0 % (no endpoint)"), "{routes}");
    assert!(shown("backends").starts_with("BACKEND"));
}

/// A session that has carried this many bytes each way.
fn carries(address: std::net::SocketAddr, bytes: usize) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(&vec![7; bytes]).expect("sending");
    stream.read_exact(&mut vec![0; bytes]).expect("the echo");
    stream
}

#[test]
fn sessions_are_sorted_and_filtered_by_what_they_did() {
    let server = Server::tcp(echo);
    let address = free_address();
    let config = forward_as("web", "TCP", address, [server.address], "");
    let gateway = Launch::default().socket().start(&config);
    let _sessions: Vec<_> = [3_000, 1, 9_000, 700].map(|bytes| carries(address, bytes)).into();
    let bytes = |words: &[&str]| -> Vec<u64> {
        let all = gateway.asks(&[&["sessions"], words].concat());
        let rows = all.as_array().expect("a list").iter();
        rows.map(|row| row["bytes_up"].as_u64().expect("a number")).collect()
    };
    wait_until("all bytes are counted", || bytes(&["--min-bytes", "2"]).len() == 4);
    assert_eq!(bytes(&["--sort", "bytes"]), [9_000, 3_000, 700, 1]);
    assert_eq!(bytes(&["--sort", "up", "--limit", "2"]), [9_000, 3_000]);
    assert_eq!(bytes(&["--sort", "down", "--reverse", "--limit", "3"]), [1, 700, 3_000]);
    assert_eq!(bytes(&["--sort", "age"]), [3_000, 1, 9_000, 700], "the oldest first");
    assert_eq!(bytes(&["--sort", "up", "--min-bytes", "2K"]), [9_000, 3_000]);
    assert_eq!(bytes(&["--sort", "up", "--max-bytes", "1400"]), [700, 1]);
    assert_eq!(bytes(&["--sort", "up", "--state", "relaying", "--max-age", "1h"]).len(), 4);
    assert!(bytes(&["--state", "half_closed"]).is_empty());
    assert!(bytes(&["--min-age", "1h"]).is_empty() && bytes(&["--min-idle", "1h"]).is_empty());
    for column in ["id", "client", "state", "server-name", "connect", "worker", "route"] {
        assert_eq!(bytes(&["--sort", column]).len(), 4, "{column}");
    }
    let (_, page) = gateway.get("/api/v1/sessions?sort=bytes&limit=1").expect("an answer");
    let page: Value = serde_json::from_str(&page).expect("JSON");
    assert_eq!((&page["matched"], page.get("next")), (&4.into(), None), "{page}");
    for wrong in ["sort=color", "sort=bytes&cursor=0.0", "reverse=true", "state=gone"] {
        let (status, said) = gateway.get(&format!("/api/v1/sessions?{wrong}")).expect("an answer");
        assert_eq!(status, 400, "{wrong}: {said}");
    }
    assert_eq!(gateway.asks(&["kill", "--max-bytes", "1400"])["killed"], 2);
    wait_until("two are left", || bytes(&["--sort", "bytes"]) == [9_000, 3_000]);
}

#[test]
fn what_has_left_the_configuration_is_listed_while_it_has_sessions() {
    let (one, two) = (Server::tcp(echo), Server::tcp(echo));
    let (first, second) = (free_address(), free_address());
    let part = |name: &str, at, to| forward_as(name, "TCP", at, [to], "");
    let (a, b) = (part("a", first, one.address), part("b", second, two.address));
    let gateway = Launch::default().socket().start(&(a.clone() + &b));
    let session = session(second);
    gateway.reload(&a);
    let gone = row(&gateway, "listeners", "b");
    assert_eq!((&gone["state"], &gone["sessions"]), (&"draining".into(), &1.into()), "{gone}");
    assert!(gone.get("protocol").is_none(), "{gone}");
    let gone = row(&gateway, "backends", "b");
    assert_eq!((&gone["state"], &gone["sessions"]), (&"removed".into(), &1.into()), "{gone}");
    assert_eq!(names(&gateway, "routes"), ["a"]);
    drop(session);
    wait_until("nothing of it is left", || {
        names(&gateway, "listeners") == ["a"] && names(&gateway, "backends") == ["a"]
    });
}

/// The row of a limit, of the process or of what `of` begins with.
fn limit(gateway: &Gateway, name: &str, of: &str) -> Value {
    let all = gateway.asks(&["limits"]);
    let is_of = |row: &&Value| row["of"].as_str().unwrap_or("").starts_with(of);
    let mut rows = all.as_array().expect("a list").iter().filter(|row| row["limit"] == name);
    rows.find(is_of).unwrap_or_else(|| panic!("no {name} of {of} in {all}")).clone()
}

#[test]
fn limits_say_what_is_used_and_what_sets_them() {
    let server = Server::tcp(echo);
    let (at, full) = (free_address(), free_address());
    let config = "[limits]\nsessions = 8\n".to_owned()
        + &listener("a", "TCP", at, "limit_source = { sessions = 3 }")
        + &listener("full", "TCP", full, "max_sessions = 1")
        + &route("a", "a", &[("a", 1)], "")
        + &route("full", "full", &[("a", 1)], "")
        + &format!(
            "[[backends]]\nname = \"a\"\nqueue = 5\nendpoints = \
             [{{ address = \"{}\", max_sessions = 4 }}]\n",
            server.address
        );
    let gateway = Launch::default().socket().one_worker().start(&config);
    let _sessions = [session(at), session(at), session(full)];
    assert!(closed_without_a_byte(&mut connect(full)));
    let said = |name: &str, of: &str| {
        let row = limit(&gateway, name, of);
        let number = |field: &str| row[field].as_u64();
        let set_by = row["set_by"].as_str().expect("a text").to_owned();
        (number("used"), number("capacity"), number("reached"), set_by)
    };
    let row = |used, capacity, reached, by: &str| (Some(used), Some(capacity), reached, by.into());
    wait_until("the refusal is counted", || said("max_sessions", "listener").2 == Some(1));
    assert_eq!(said("sessions", "worker 0"), row(3, 8, Some(0), "limits.sessions"));
    let (used, _, _, set_by) = said("flows", "worker 0");
    assert_eq!((used, &*set_by), (Some(0), "limits.flows, automatic"));
    let of_listener = row(1, 1, Some(1), "listeners.max_sessions");
    assert_eq!(said("max_sessions", "listener full"), of_listener);
    let of_endpoint = row(3, 4, None, "backends.endpoints.max_sessions");
    assert_eq!(said("max_sessions", "endpoint a/"), of_endpoint);
    assert_eq!(said("queue", "backend a"), row(0, 5, None, "backends.queue"));
    let sources = limit(&gateway, "sources", "");
    assert_eq!((&sources["used"], &sources["capacity"]), (&1.into(), &(1 << 18).into()));
    let files = limit(&gateway, "files", "");
    assert!(
        files["used"].as_u64() > Some(10) && files["capacity"].as_u64() > files["used"].as_u64()
    );
    let all = gateway.asks(&["limits"]);
    let full = all.as_array().expect("a list").iter().map(|row| row["full"].as_f64());
    assert!(full.is_sorted_by(|one, other| one >= other), "the fullest first: {all}");
}

#[test]
fn certificates_are_listed_with_their_ends_and_sources() {
    let (server, folder, pki) = (Server::tcp(echo), Folder::new(), Pki::new());
    let issued = pki.issue_until(&["db.example.com", "*.db.example.com"], 2090);
    let (cert, key) = (folder.write("a.pem", &issued.cert), folder.write("a.key", &issued.key));
    let tls = format!(
        "tls = {{ mode = \"Terminate\", certificates = [{{ cert = {cert:?}, key = {key:?} }}] }}"
    );
    let config = forward_as("db", "TLS", free_address(), [server.address], &tls);
    let gateway = Launch::default().socket().start(&config);
    let all = gateway.asks(&["certificates"]);
    let [row] = all.as_array().expect("a list").as_slice() else { panic!("one: {all}") };
    assert_eq!((&row["listener"], &row["kind"]), (&"db".into(), &"certificate".into()), "{row}");
    assert_eq!(row["names"], serde_json::json!(["db.example.com", "*.db.example.com"]), "{row}");
    assert_eq!(row["source"], cert.display().to_string(), "{row}");
    assert!(row["not_after"].as_str().is_some_and(|end| end.starts_with("2090-")), "{row}");
    assert!(row["days_left"].as_i64() > Some(10_000) && row.get("warning").is_none(), "{row}");
    let shown = gateway.verb(&["certificates"]);
    let shown = String::from_utf8(shown.stdout).expect("text");
    assert!(shown.starts_with("LISTENER") && shown.contains("*.db.example.com"), "{shown}");
}

#[test]
fn a_watch_shows_a_list_again_and_ends_when_nobody_reads() {
    let server = Server::tcp(echo);
    let address = free_address();
    let config = forward_as("a", "TCP", address, [server.address], "");
    let gateway = Launch::default().socket().start(&config);
    let mut watch = Command::new(binary())
        .args(["listeners", "--watch", "--json", "--admin"])
        .arg(gateway.socket())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut lines = BufReader::new(watch.stdout.take().expect("a pipe")).lines();
    let mut sessions = || {
        let line = lines.next().expect("a line").expect("text");
        let rows: Value = serde_json::from_str(&line).expect("JSON");
        rows[0]["sessions"].as_u64().expect("a count")
    };
    assert_eq!(sessions(), 0);
    let _session = session(address);
    assert!((0..5).any(|_| sessions() == 1));
    drop(lines);
    wait_until("the command ends", || watch.try_wait().expect("its status").is_some());
    // Of one session, each look has its age.
    let rows = gateway.asks(&["sessions"]);
    let id = rows[0]["id"].as_str().expect("an id");
    let mut watch = Command::new(binary())
        .args(["session", id, "--watch", "--json", "--admin"])
        .arg(gateway.socket())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut lines = BufReader::new(watch.stdout.take().expect("a pipe")).lines();
    let mut age = || {
        let line = lines.next().expect("a line").expect("text");
        let session: Value = serde_json::from_str(&line).expect("JSON");
        session["age_ms"].as_u64().expect("an age")
    };
    let first = age();
    assert!(age() > first);
    drop(lines);
    wait_until("the command ends", || watch.try_wait().expect("its status").is_some());
}

#[test]
fn metrics_of_endpoints_can_be_sums_of_a_backend() {
    let servers = [Server::tcp(echo), Server::tcp(echo)];
    let (address, dead) = (free_address(), free_address());
    let check = "health_check = { interval = \"200ms\", fall = 1 }";
    let endpoints = servers.iter().map(|server| server.address).chain([dead]);
    let config = listener("web", "TCP", address, "")
        + &route("web", "web", &[("web", 1)], "")
        + &backend("web", endpoints, check);
    let gateway = Launch::default().socket().admin("endpoint_labels = false").start(&config);
    wait_until("the dead endpoint is down", || {
        gateway.metrics().value("ringway_endpoint_healthy", &[("backend", "web")]) == 2
    });
    let live: Vec<_> = (0..4).map(|_| session(address)).collect();
    let opened = |labels: &[(&str, &str)]| {
        gateway.metrics().value("ringway_endpoint_sessions_opened_total", labels)
    };
    assert_eq!(opened(&[("backend", "web")]), 4);
    let (_, text) = gateway.get("/metrics").expect("metrics");
    let of_endpoints = text.lines().filter(|line| line.starts_with("ringway_endpoint_"));
    for line in of_endpoints {
        assert!(!line.contains("endpoint=\""), "{line}");
    }
    drop(live);
    // The API still tells endpoints apart.
    assert_eq!(gateway.asks(&["endpoints"]).as_array().map(Vec::len), Some(3));
}
