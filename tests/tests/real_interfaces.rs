//! Listeners of one interface, on addresses that the machine does not have yet, and on link-local
//! addresses; and backends of one interface. Needs root.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ringway_tests::real::config::{backend, route};
use ringway_tests::real::{
    Gateway, Launch, Namespace, Server, exchange, free_address, free_port, in_own_network, program,
    udp_client, wait_until,
};

/// A listener, route and backend of this name.
fn forward(name: &str, protocol: &str, address: &str, to: SocketAddr, options: &str) -> String {
    format!(
        "[[listeners]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\naddress = \"{address}\"\n\
         {options}\n"
    ) + &route(name, name, &[(name, 1)], "")
        + &backend(name, [to], "")
}

fn tcp(address: &str) -> Vec<u8> {
    let address = address.parse().expect("an address");
    exchange(address, b"").unwrap_or_else(|error| panic!("{address}: {error}"))
}

fn udp(address: &str) -> Vec<u8> {
    let socket = udp_client(address.parse().expect("an address"));
    socket.send(b"").expect("sent");
    let mut bytes = [0; 64];
    let len = socket.recv(&mut bytes).expect("an answer");
    bytes[..len].to_vec()
}

/// Two listeners on all addresses and one port: one has the clients of the other machine, one has
/// those of this machine.
#[test]
fn listeners_with_an_interface_each_share_an_address() {
    in_own_network(|| {
        let other = Namespace::new();
        other.join("eth1", "10.9.1", "fd09:1");
        let port = free_port();
        let mut servers = Vec::new();
        let mut config = "lame_duck = \"1s\"\n".to_owned();
        let mut add = |name: &str, protocol: &str, server: Server, interface: &str| {
            let options = format!("interface = \"{interface}\"");
            let address = format!("0.0.0.0:{port}");
            config += &forward(name, protocol, &address, server.address, &options);
            servers.push(server);
        };
        add("tcp-near", "TCP", Server::tcp_tag("near"), "lo");
        add("tcp-far", "TCP", Server::tcp_tag("far"), "eth1");
        add("udp-near", "UDP", Server::udp_tag("near"), "lo");
        add("udp-far", "UDP", Server::udp_tag("far"), "eth1");
        let gateway = Gateway::start(&config);
        let (near, far) = (format!("127.0.0.1:{port}"), format!("10.9.1.1:{port}"));
        assert_eq!((tcp(&near), udp(&near)), (b"near".to_vec(), b"near".to_vec()));
        let both = other.run(move || (tcp(&far), udp(&far)));
        assert_eq!(both, (b"far".to_vec(), b"far".to_vec()));
        // Without the key, a listener takes the clients of both. The old socket makes way.
        let near = format!("127.0.0.1:{port}");
        let far = format!("10.9.1.1:{port}");
        let address = format!("0.0.0.0:{port}");
        let all =
            |name, protocol, server: &Server| forward(name, protocol, &address, server.address, "");
        gateway.reload(&(all("tcp", "TCP", &servers[0]) + &all("udp", "UDP", &servers[2])));
        wait_until("the other machine's clients go there", {
            move || {
                let far = far.clone();
                other.run(move || exchange(far.parse().expect("an address"), b"").ok())
                    == Some(b"near".to_vec())
            }
        });
        assert_eq!(tcp(&near), b"near");
    });
}

#[test]
fn with_freebind_a_listener_waits_for_its_address() {
    in_own_network(|| {
        let (server, port) = (Server::tcp_tag("here"), free_port());
        let first = forward("first", "TCP", &format!("127.0.0.1:{port}"), server.address, "");
        let gateway = Gateway::start(&first);
        let later = |options: &str| {
            let (v4, v6) = (format!("10.77.0.1:{port}"), format!("[fd77::1]:{port}"));
            first.clone()
                + &forward("v4", "TCP", &v4, server.address, options)
                + &forward("v6", "TCP", &v6, server.address, options)
        };
        gateway.write(&later(""));
        gateway.says("no interface of this machine");
        gateway.reload(&later("freebind = true"));
        program("ip", &["address", "add", "10.77.0.1/32", "dev", "lo"]);
        program("ip", &["address", "add", "fd77::1/128", "dev", "lo", "nodad"]);
        assert_eq!(tcp(&format!("10.77.0.1:{port}")), b"here");
        // The kernel adds the route of an IPv6 address later than the address.
        let v6 = format!("[fd77::1]:{port}");
        wait_until("the address is reached", || TcpStream::connect(&v6).is_ok());
        assert_eq!(tcp(&v6), b"here");
    });
}

/// The client and the endpoint have link-local addresses, and so has the gateway.
#[test]
fn link_local_addresses_have_their_interface() {
    in_own_network(|| {
        let other = Namespace::new();
        other.join("eth1", "10.9.2", "fd09:2");
        program("ip", &["address", "add", "fe80::1/64", "dev", "eth1", "nodad"]);
        let port = free_port();
        let server = other.run(move || {
            program("ip", &["address", "add", "fe80::2/64", "dev", "eth0", "nodad"]);
            let scope = nix::net::if_::if_nametoindex("eth0").expect("the interface");
            let address = format!("[fe80::2%{scope}]:{port}").parse().expect("an address");
            (Server::tcp_at(address, ringway_tests::real::echo), scope)
        });
        let (_server, scope) = server;
        let config = format!(
            "[[listeners]]\nname = \"main\"\nprotocol = \"TCP\"\n\
             address = \"[fe80::1%eth1]:{port}\"\n\
             [[backends]]\nname = \"main\"\nendpoints = [\"[fe80::2%eth1]:{port}\"]\n"
        ) + &route("main", "main", &[("main", 1)], "");
        let gateway = Gateway::start(&config);
        let heard = other.run(move || {
            let address = format!("[fe80::1%{scope}]:{port}").parse().expect("an address");
            exchange(address, b"to and fro").expect("an echo")
        });
        assert_eq!(heard, b"to and fro");
        let line = gateway.closes(1).remove(0);
        let endpoint = format!("[fe80::2%eth1]:{port}");
        assert_eq!(line.text("endpoint"), Some(&*endpoint));
        let status = gateway.metrics();
        let labels = [("backend", "main"), ("endpoint", &*endpoint)];
        assert_eq!(status.value("ringway_endpoint_sessions_opened_total", &labels), 1);
    });
}

/// Two machines have the same address, each behind an interface of its own. The machine's routes
/// lead to the first.
#[test]
fn a_backend_with_an_interface_is_reached_through_it() {
    in_own_network(|| {
        let port = free_port();
        let shared: SocketAddr = format!("10.99.0.1:{port}").parse().expect("an address");
        let machine = |interface: &'static str, v4: &'static str, v6: &'static str, metric| {
            let other = Namespace::new();
            other.join(interface, v4, v6);
            let via = format!("{v4}.2");
            let to = ["route", "add", "10.99.0.1/32", "via", &via, "dev", interface, "metric"];
            program("ip", &[&to[..], &[metric]].concat());
            let servers = other.run(move || {
                program("ip", &["address", "add", "10.99.0.1/32", "dev", "lo"]);
                let tcp = Server::tcp_at(shared, move |mut stream| {
                    let _ = stream.write_all(interface.as_bytes());
                });
                let udp = Server::udp_at(shared, move |socket, _, peer| {
                    let _ = socket.send_to(interface.as_bytes(), peer);
                });
                (tcp, udp)
            });
            (other, servers)
        };
        let _first = machine("eth1", "10.9.1", "fd09:1", "10");
        let (_second, second) = machine("eth2", "10.9.2", "fd09:2", "20");
        let check = "health_check = { interval = \"100ms\", rise = 1, fall = 1 }\n";
        let (mut config, mut at) = (String::new(), Vec::new());
        for (name, interface) in [("any", None), ("one", Some("eth1")), ("two", Some("eth2"))] {
            let key = interface.map(|name| format!("interface = \"{name}\"\n"));
            let key = key.unwrap_or_default();
            let (tcp, udp) = (format!("127.0.0.1:{}", free_port()), format!("{name}-udp"));
            config += &(forward(name, "TCP", &tcp, shared, "") + &key + check);
            config += &forward(&udp, "UDP", &tcp, shared, "responses = 1");
            config += &(key + "upstream_rest = \"100ms\"\n");
            at.push(tcp);
        }
        let gateway = Gateway::start(&config);
        for (address, tag) in at.iter().zip([b"eth1", b"eth1", b"eth2"]) {
            assert_eq!((tcp(address), udp(address)), (tag.to_vec(), tag.to_vec()), "{address}");
        }
        let endpoint = shared.to_string();
        let healthy = |backend: &str| {
            let labels = [("backend", backend), ("endpoint", endpoint.as_str())];
            gateway.metrics().value("ringway_endpoint_healthy", &labels)
        };
        let all = || ["any", "one", "two"].map(healthy);
        wait_until("each endpoint has been checked", || all() == [1; 3]);
        // A check goes the way of sessions.
        drop(second.0);
        wait_until("the second machine's endpoint is down", || healthy("two") == 0);
        assert_eq!((healthy("any"), healthy("one")), (1, 1));
        // The next flow goes the other way, though a socket has rested that goes the first.
        gateway.reload(&config.replace("\"eth1\"", "\"eth2\""));
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(udp(&at[1]), b"eth2");
    });
}

/// An interface is deleted and made anew: it has another number then. Sessions and flows to the
/// backend, and clients of the listener, find it again by themselves.
#[test]
fn an_interface_that_is_made_anew_is_used_again() {
    in_own_network(|| {
        let port = free_port();
        let at: SocketAddr = format!("10.9.3.2:{port}").parse().expect("an address");
        let machine = move || {
            let other = Namespace::new();
            other.join("eth1", "10.9.3", "fd09:3");
            let servers = other.run(move || {
                let tcp = Server::tcp_at(at, |mut stream| {
                    let _ = stream.write_all(b"far");
                });
                let udp = Server::udp_at(at, |socket, _, peer| {
                    let _ = socket.send_to(b"far", peer);
                });
                (tcp, udp)
            });
            (other, servers)
        };
        let number = || nix::net::if_::if_nametoindex("eth1").expect("the interface");
        let (first, before) = (machine(), number());
        let near = Server::tcp_tag("near");
        let (tcp_at, udp_at) = (free_address().to_string(), free_address().to_string());
        let keys = "interface = \"eth1\"\n";
        let open = free_port();
        let only = format!("0.0.0.0:{open}");
        let config = forward("main", "TCP", &tcp_at, at, "")
            + keys
            + "connect_timeout = \"500ms\"\n"
            + "health_check = { interval = \"200ms\", rise = 1, fall = 1 }\n"
            + &forward("udp", "UDP", &udp_at, at, "responses = 1")
            + keys
            + &forward("only", "TCP", &only, near.address, "interface = \"eth1\"");
        let gateway = Gateway::start(&config);
        assert_eq!((tcp(&tcp_at), udp(&udp_at)), (b"far".to_vec(), b"far".to_vec()));
        let far: SocketAddr = format!("10.9.3.1:{open}").parse().expect("an address");
        assert_eq!(first.0.run(move || exchange(far, b"").ok()), Some(b"near".to_vec()));

        // The namespace goes with the last that is in it.
        drop(first);
        program("sh", &["-c", "ip link delete eth1 2>/dev/null || true"]);
        let second = machine();
        assert_ne!(number(), before);
        let address = tcp_at.parse().expect("an address");
        wait_until("sessions reach the endpoint", || {
            exchange(address, b"").is_ok_and(|heard| heard == b"far")
        });
        assert_eq!(udp(&udp_at), b"far");
        let other = second.0;
        wait_until("the listener has clients", || {
            other.run(move || exchange(far, b"").ok()) == Some(b"near".to_vec())
        });
        gateway.says("interface eth1 is a new one");
        assert_eq!(gateway.metrics().value("ringway_reloads_total", &[]), 1);
    });
}

/// The interface of link-local addresses is deleted and made anew.
#[test]
fn link_local_addresses_follow_their_interface() {
    in_own_network(|| {
        let port = free_port();
        let machine = move || {
            let other = Namespace::new();
            other.join("eth1", "10.9.4", "fd09:4");
            program("ip", &["address", "add", "fe80::1/64", "dev", "eth1", "nodad"]);
            let (server, scope) = other.run(move || {
                program("ip", &["address", "add", "fe80::2/64", "dev", "eth0", "nodad"]);
                let scope = nix::net::if_::if_nametoindex("eth0").expect("the interface");
                let address = format!("[fe80::2%{scope}]:{port}").parse().expect("an address");
                (Server::tcp_at(address, ringway_tests::real::echo), scope)
            });
            (other, server, scope)
        };
        let hears = |other: &Namespace, scope: u32| {
            other.run(move || {
                let address = format!("[fe80::1%{scope}]:{port}");
                let address: SocketAddr = address.parse().expect("an address");
                // Refused until the listener has found its interface.
                exchange(address, b"to and fro").is_ok_and(|heard| heard == b"to and fro")
            })
        };
        let number = || nix::net::if_::if_nametoindex("eth1").expect("the interface");
        let ((other, server, scope), before) = (machine(), number());
        let config = format!(
            "[[listeners]]\nname = \"main\"\nprotocol = \"TCP\"\n\
             address = \"[fe80::1%eth1]:{port}\"\n\
             endpoints = [\"[fe80::2%eth1]:{port}\"]\nconnect_timeout = \"500ms\"\n"
        );
        let gateway = Launch::default().socket().start(&config);
        assert!(hears(&other, scope));

        drop((other, server));
        program("sh", &["-c", "ip link delete eth1 2>/dev/null || true"]);
        let (other, _server, scope) = machine();
        assert_ne!(number(), before);
        wait_until("the client is served", || hears(&other, scope));
        let endpoint = gateway.asks(&["endpoints"])[0]["endpoint"].clone();
        assert_eq!(endpoint, format!("[fe80::2%eth1]:{port}"));
        assert_eq!(gateway.metrics().value("ringway_reloads_total", &[]), 1);
    });
}
