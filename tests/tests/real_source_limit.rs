//! What each source of clients may have, through the binary, over two workers.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{
    Gateway, Launch, Server, client_hello, connect_from, echo, free_address, has_answer, now,
    udp_from, wait_until,
};

/// The connection, if the gateway lets it in.
fn served(source: &str, to: SocketAddr, first: &str) -> Option<TcpStream> {
    let mut stream = connect_from(source, to);
    let served = stream.write_all(format!("{first}ping").as_bytes());
    served.and_then(|()| stream.read_exact(&mut [0; 4])).is_ok().then_some(stream)
}

fn refused(gateway: &Gateway) -> u64 {
    let reason = [("reason", "source_limit")];
    gateway.metrics().value("ringway_sessions_refused_total", &reason)
}

#[test]
fn sources_have_so_many_sessions_over_all_workers() {
    let server = Server::tcp(echo);
    let address = free_address();
    let config = |keys: &str| forward("TCP", address, [server.address], keys);
    let three = "limit_source = { sessions = 3, except = [\"127.0.0.9\"] }";
    let gateway = Gateway::start(&config(three));
    let clients = |source: &'static str, n: usize| -> Vec<TcpStream> {
        (0..n).filter_map(|_| served(source, address, "")).collect()
    };
    let mut held = clients("127.0.0.1", 30);
    assert_eq!((held.len(), refused(&gateway)), (3, 27));
    assert_eq!(clients("127.0.0.2", 1).len(), 1, "another source has its own");
    assert_eq!(clients("127.0.0.9", 8).len(), 8, "an exception has no limit");
    let log = gateway.closes(27 + 9);
    let refusals: Vec<_> =
        log.iter().filter(|line| line.text("reason") == Some("source_limit")).collect();
    assert_eq!(refusals.len(), 27);
    assert!(refusals.iter().all(|line| {
        line.text("client").is_some_and(|client| client.starts_with("127.0.0.1:"))
    }));
    drop(held.pop());
    wait_until("the place of an ended session is free", || {
        let again = served("127.0.0.1", address, "");
        let came_in = again.is_some();
        held.extend(again);
        came_in
    });
    // A lower limit counts those that are there, and ends none.
    gateway.reload(&config("limit_source = { sessions = 1 }"));
    assert_eq!(clients("127.0.0.1", 2).len(), 0);
    assert_eq!(held.len(), 3);
    for stream in &mut held {
        stream.write_all(b"ping").and_then(|()| stream.read_exact(&mut [0; 4])).expect("it lives");
    }
    gateway.reload(&config(""));
    assert_eq!(clients("127.0.0.1", 5).len(), 5);
}

/// Each route counts by itself, and the listener's limit counts beside it. The server name decides
/// which route a client has.
#[test]
fn sources_have_so_many_sessions_of_a_route() {
    let server = Server::tcp(|mut stream| {
        _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let address = free_address();
    let named = |name: &str, keys: &str| {
        route(name, "tls", &[("all", 1)], &format!("hostnames = [\"{name}.test\"]\n{keys}"))
    };
    let config = listener("tls", "TLS", address, "limit_source = { sessions = 5 }")
        + &named("few", "limit_source = { sessions = 2, except = [\"127.0.0.9\"] }")
        + &named("many", "")
        + &backend("all", [server.address], "");
    let gateway = Gateway::start(&config);
    let open = |source: &str, name: &str, n: usize| -> Vec<TcpStream> {
        let come = |_| {
            let mut stream = connect_from(source, address);
            stream.write_all(&client_hello(Some(name))).expect("sent");
            stream
        };
        (0..n).map(come).collect()
    };
    let live = || gateway.metrics().value("ringway_sessions_active", &[]);
    let mut few = open("127.0.0.1", "few.test", 6);
    wait_until("four are refused", || refused(&gateway) == 4);
    wait_until("two live", || live() == 2);
    let many = open("127.0.0.1", "many.test", 6);
    wait_until("the listener's limit holds too", || refused(&gateway) == 4 + 3);
    let _others = (open("127.0.0.2", "few.test", 2), open("127.0.0.9", "few.test", 4));
    wait_until("other sources have their own", || live() == 2 + 3 + 2 + 4);
    let refusals: Vec<_> = gateway.closes(7);
    let of_few = refusals.iter().filter(|line| line.text("route") == Some("few"));
    assert_eq!((of_few.count(), refused(&gateway)), (4, 7));
    drop(many);
    few.clear();
    wait_until("the places are free", || live() == 2 + 4);
    let _again = open("127.0.0.1", "few.test", 3);
    wait_until("two came in again", || refused(&gateway) == 8);
    wait_until("two live again", || live() == 2 + 4 + 2);
}

#[test]
fn sources_open_so_many_sessions_in_a_second() {
    let server = Server::tcp(echo);
    let address = free_address();
    let keys = "limit_source = { new_per_second = 2, burst = 5, prefix_v4 = 24 }";
    let gateway = Gateway::start(&forward("TCP", address, [server.address], keys));
    let start = now();
    // All of one prefix.
    let sources = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"];
    let came_in = sources.iter().cycle().take(40).filter(|of| served(of, address, "").is_some());
    let came_in = came_in.count() as u64;
    let more = 2 * start.elapsed().as_secs() + 2;
    assert!((5..=5 + more).contains(&came_in), "{came_in} of 40");
    assert_eq!(refused(&gateway), 40 - came_in);
    assert!(served("127.0.1.1", address, "").is_some(), "of another prefix");
    wait_until("a source may come back", || served("127.0.0.1", address, "").is_some());
}

#[test]
fn the_source_is_the_client_that_a_proxy_names() {
    let server = Server::tcp(echo);
    let address = free_address();
    let keys = "accept_proxy = { from = [\"127.0.0.1\"] }\nlimit_source = { sessions = 1 }";
    let gateway = Gateway::start(&forward("TCP", address, [server.address], keys));
    let header = |client: &str| format!("PROXY TCP4 {client} 192.0.2.9 4000 80\r\n");
    let one = served("127.0.0.1", address, &header("192.0.2.1"));
    let other = served("127.0.0.1", address, &header("192.0.2.2"));
    assert!(one.is_some() && other.is_some());
    assert!(served("127.0.0.1", address, &header("192.0.2.2")).is_none());
    assert_eq!(refused(&gateway), 1);
}

#[test]
fn sources_have_so_many_flows() {
    let server = Server::udp_echo();
    let address = free_address();
    let keys = "limit_source = { sessions = 2 }\nflow_timeout = \"4s\"";
    let gateway = Gateway::start(&forward("UDP", address, [server.address], keys));
    let clients: Vec<_> = (0..4).map(|_| udp_from("127.0.0.1", address)).collect();
    let answered = clients.iter().filter(|client| has_answer(client)).count();
    assert_eq!(answered, 2);
    assert!(has_answer(&udp_from("127.0.0.2", address)));
    let dropped = [("reason", "source_limit")];
    assert!(gateway.metrics().value("ringway_datagrams_dropped_total", &dropped) >= 2);
    let refused = gateway.metrics().value("ringway_flows_refused_total", &dropped);
    assert!(refused >= 2, "{refused} refused");
    wait_until("ended flows free their places", || {
        gateway.metrics().value("ringway_flows_active", &[]) == 0
    });
    assert!(has_answer(&clients[3]));
}

/// Sessions of TCP and flows of UDP take the places of one limit.
#[test]
fn listeners_share_what_a_source_may_have() {
    let (tcp, udp) = (Server::tcp(echo), Server::udp_echo());
    let (streams, datagrams) = (free_address(), free_address());
    let shared = "limit_source = { shared = \"all\", sessions = 3 }";
    let config = listener("tcp", "TCP", streams, shared)
        + &listener("udp", "UDP", datagrams, shared)
        + &route("tcp", "tcp", &[("tcp", 1)], "")
        + &route("udp", "udp", &[("udp", 1)], "")
        + &backend("tcp", [tcp.address], "")
        + &backend("udp", [udp.address], "");
    let _gateway = Gateway::start(&config);
    let client = |source: &str| udp_from(source, datagrams);
    let flows = [client("127.0.0.1"), client("127.0.0.1")];
    assert!(flows.iter().all(has_answer));
    let held = served("127.0.0.1", streams, "");
    assert!(held.is_some(), "the third place");
    assert!(served("127.0.0.1", streams, "").is_none() && !has_answer(&client("127.0.0.1")));
    assert!(served("127.0.0.2", streams, "").is_some(), "another source has its own");
    drop(held);
    wait_until("the place of the session is free for a flow", || has_answer(&client("127.0.0.1")));
}

#[test]
fn sources_send_so_many_datagrams_in_a_second() {
    few_datagrams("limit_source = { datagrams_per_second = 10 }", "");
}

#[test]
fn sources_send_so_many_datagrams_of_a_route_in_a_second() {
    few_datagrams("", "limit_source = { datagrams_per_second = 10 }");
}

fn few_datagrams(of_listener: &str, of_route: &str) {
    let server = Server::udp_echo();
    let address = free_address();
    let config = listener("main", "UDP", address, of_listener)
        + &route("main", "main", &[("main", 1)], of_route)
        + &backend("main", [server.address], "");
    let gateway = Launch::default().one_worker().start(&config);
    let client = udp_from("127.0.0.1", address);
    let start = now();
    for _ in 0..100 {
        client.send(b"ping").expect("sending");
    }
    let mut answers = 0;
    while client.recv(&mut [0; 64]).is_ok() {
        answers += 1;
    }
    let more = 10 * (start.elapsed().as_secs() + 1);
    assert!((1..=10 + more).contains(&answers), "{answers} answers");
    let dropped = [("reason", "source_limit")];
    let dropped = gateway.metrics().value("ringway_datagrams_dropped_total", &dropped);
    assert!(dropped >= 100 - 10 - more && dropped <= 99, "{dropped} dropped");
    assert!(has_answer(&udp_from("127.0.0.2", address)), "another source has its own");
    wait_until("the source may send again", || has_answer(&client));
}
