//! Listeners as the file gives them: several addresses and server names of one listener.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr};

use ringway_tests::real::config::{backend, route};
use ringway_tests::real::{
    Folder, Gateway, Launch, LogLine, Server, binary, client_hello, connect, echo, exchange,
    free_address, in_own_network, program, udp_client, wait_until,
};

/// An address of IPv4 and an address of IPv6 with one port.
fn dual() -> [SocketAddr; 2] {
    let v4 = free_address();
    [v4, SocketAddr::new(Ipv6Addr::LOCALHOST.into(), v4.port())]
}

fn listener(protocol: &str, addresses: &[SocketAddr], options: &str) -> String {
    let addresses: Vec<_> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
    format!(
        "[[listeners]]\nname = \"main\"\nprotocol = \"{protocol}\"\naddresses = [{}]\n{options}\n",
        addresses.join(", ")
    ) + &route("main", "main", &[("main", 1)], "")
}

/// Both addresses lead to the same place, count under one name, and share the listener's limit.
#[test]
fn a_listener_on_ipv4_and_ipv6_is_one_listener() {
    let server = Server::tcp(echo);
    let [v4, v6] = dual();
    let config = |addresses: &[SocketAddr]| {
        listener("TCP", addresses, "max_sessions = 2") + &backend("main", [server.address], "")
    };
    let gateway = Launch::default().one_worker().start(&config(&[v4, v6]));
    for address in [v4, v6] {
        assert_eq!(exchange(address, b"here").expect("an echo"), b"here");
    }
    let labels = [("listener", "main")];
    let count = || gateway.metrics().value("ringway_sessions_closed_total", &labels);
    wait_until("both are counted", || count() == 2);
    let lines = gateway.closes(2);
    assert!(lines.iter().all(|line| line.text("listener") == Some("main")));

    gateway.reload(&config(&[v6]));
    assert_eq!(exchange(v6, b"here").expect("an echo"), b"here");
    wait_until("the other address is closed", || std::net::TcpStream::connect(v4).is_err());
    gateway.reload(&config(&[v4, v6]));
    assert_eq!(exchange(v4, b"here").expect("an echo"), b"here");
}

/// The limit of a listener holds over all of its addresses.
#[test]
fn addresses_share_the_limit_of_their_listener() {
    let server = Server::tcp(echo);
    let [v4, v6] = dual();
    let config = listener("TCP", &[v4, v6], "max_sessions = 1");
    let gateway =
        Launch::default().one_worker().start(&(config + &backend("main", [server.address], "")));
    let mut first = connect(v4);
    first.write_all(b"x").expect("sent");
    first.read_exact(&mut [0]).expect("an echo");
    let mut second = connect(v6);
    let _ = second.write_all(b"x");
    assert!(!second.read(&mut [0]).is_ok_and(|read| read > 0), "the listener is full");
    let line = gateway.closed_for("listener_limit");
    assert_eq!(line.text("listener"), Some("main"));
}

#[test]
fn datagrams_to_each_address_are_answered_from_it() {
    let server = Server::udp_tag("here");
    let addresses = dual();
    let config = listener("UDP", &addresses, "") + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    for address in addresses {
        let client = udp_client(address);
        client.send(b"?").expect("sent");
        let mut answer = [0; 64];
        let length = client.recv(&mut answer).expect("an answer");
        assert_eq!(&answer[..length], b"here");
    }
    let labels = [("listener", "main")];
    let count = || gateway.metrics().value("ringway_flows_created_total", &labels);
    wait_until("both are counted", || count() == 2);
}

/// The listener's name is the name of its route and backend, and its long form does the same.
#[test]
fn a_listener_with_endpoints_needs_nothing_else() {
    let server = Server::tcp(echo);
    let address = free_address();
    let short = format!(
        "[[listeners]]\nname = \"short\"\nprotocol = \"TCP\"\naddress = \"{address}\"\n\
         endpoints = [\"{}\"]\nbalance = \"least-connections\"\nhealth_check = {{}}\n",
        server.address
    );
    let folder = Folder::new();
    let file = folder.write("short.toml", &short).display().to_string();
    let long = program(&binary().display().to_string(), &["check", "--explain", &file]);
    assert!(long.contains("[[routes]]") && long.contains("[[backends]]"), "{long}");
    let gateway = Gateway::start(&short);
    let names = ["listener", "route", "backend"];
    for (round, config) in [short, long].iter().enumerate() {
        gateway.reload(config);
        assert_eq!(exchange(address, b"here").expect("an echo"), b"here");
        let lines = gateway.closes(round + 1);
        assert!(lines.iter().all(|line| names.map(|name| line.text(name)) == [Some("short"); 3]));
    }
    let healthy = [("backend", "short")];
    wait_until("the endpoint is checked", || {
        gateway.metrics().value("ringway_endpoint_healthy", &healthy) == 1
    });
}

/// A listener takes each of its names on each of its addresses, and no other name.
#[test]
fn a_listener_has_several_server_names() {
    let server = Server::tcp(echo);
    let [v4, v6] = dual();
    let names = "hostnames = [\"a.test\", \"*.b.test\"]";
    let config = listener("TLS", &[v4, v6], names) + &backend("main", [server.address], "");
    let gateway = Gateway::start(&config);
    for address in [v4, v6] {
        for name in ["a.test", "x.b.test"] {
            let hello = client_hello(Some(name));
            assert_eq!(exchange(address, &hello).expect("an echo"), hello, "{name}");
        }
    }
    let answer = exchange(v6, &client_hello(Some("b.test"))).expect("an alert");
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 112]);
    let lines = gateway.closes(5);
    let refused = |line: &&LogLine| line.text("reason") == Some("unknown_server_name");
    let listeners = lines.iter().filter(|line| line.text("listener") == Some("main"));
    assert_eq!((lines.iter().filter(refused).count(), listeners.count()), (1, 4));
}

/// As many ports as the range has, and one listener: each port leads to the same port of the
/// endpoint, or to the port that is shifted.
#[test]
fn each_port_of_a_range_leads_to_its_port() {
    in_own_network(|| {
        let tag = |port: u16| -> &'static str { Box::leak(port.to_string().into_boxed_str()) };
        let mut servers = Vec::new();
        for port in [20_000, 20_055, 20_099, 21_000, 21_099] {
            let at = SocketAddr::from(([127, 0, 0, 2], port));
            let tag = tag(port);
            servers.push(Server::tcp_at(at, move |mut stream| {
                let _ = stream.write_all(tag.as_bytes());
            }));
            servers.push(Server::udp_at(at, move |socket, _, client| {
                let _ = socket.send_to(tag.as_bytes(), client);
            }));
        }
        let config = |shift: u16| {
            let mut config = "lame_duck = \"1s\"\n".to_owned();
            for protocol in ["TCP", "UDP"] {
                config += &format!(
                    "[[listeners]]\nname = \"{protocol}\"\nprotocol = \"{protocol}\"\n\
                     address = \"127.0.0.1:20000-20099\"\n\
                     [[backends]]\nname = \"{protocol}\"\nendpoints = [\"127.0.0.2:+{shift}\"]\n"
                );
                config += &route(protocol, protocol, &[(protocol, 1)], "");
            }
            config
        };
        let gateway = Gateway::start(&config(0));
        let tcp = |port: u16| {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            String::from_utf8(exchange(address, b"").expect("an answer")).expect("text")
        };
        let udp = |port: u16| {
            let socket = udp_client(SocketAddr::from(([127, 0, 0, 1], port)));
            socket.send(b"").expect("sent");
            let mut bytes = [0; 16];
            let len = socket.recv(&mut bytes).expect("an answer");
            String::from_utf8(bytes[..len].to_vec()).expect("text")
        };
        for port in [20_000, 20_055, 20_099, 20_000] {
            assert_eq!((tcp(port), udp(port)), (port.to_string(), port.to_string()));
        }
        let metrics = gateway.metrics();
        let labels = [("listener", "TCP")];
        assert_eq!(metrics.value("ringway_sessions_opened_total", &labels), 4);
        let series = metrics.series("ringway_endpoint_sessions_opened_total");
        assert_eq!(series.len(), 2, "one for each backend");
        gateway.reload(&config(1_000));
        for port in [20_000, 20_099] {
            let expected = (port + 1_000).to_string();
            assert_eq!(tcp(port), expected);
            assert_eq!(udp(port), expected);
        }
        let lines = gateway.stop();
        let line = lines.iter().find(|line| line.text("endpoint") == Some("127.0.0.2:+1000"));
        assert!(line.is_some(), "{lines:?}");
    });
}
