//! Endpoints that see clients' own addresses: a client, the gateway and a server, each in a network
//! namespace of its own. Needs root.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{
    Gateway, Launch, Namespace, Server, connect, free_port, in_own_network, program, wait_until,
    was_reset,
};

fn script(verb: &str) {
    program("sh", &[concat!(env!("CARGO_MANIFEST_DIR"), "/../tuning/transparent"), verb]);
}

/// Servers that say who asks, one for each transport and IP version, and a configuration with a
/// transparent backend for each.
fn world(servers: &Namespace) -> (Vec<Server>, Vec<(&'static str, SocketAddr)>, String) {
    let addresses = [["10.1.0.1", "10.2.0.2"], ["fd01::1", "fd02::2"]];
    let (mut running, mut listening, mut config) = (Vec::new(), Vec::new(), String::new());
    for [own, server] in addresses {
        for protocol in ["TCP", "UDP"] {
            let at = SocketAddr::new(server.parse::<IpAddr>().expect("an address"), 9_000);
            let server = servers.run(move || match protocol {
                "TCP" => Server::tcp_at(at, |mut stream| {
                    let peer = stream.peer_addr().expect("its peer");
                    let _ = stream.write_all(peer.ip().to_string().as_bytes());
                }),
                _ => Server::udp_at(at, |socket, _, peer| {
                    let _ = socket.send_to(peer.ip().to_string().as_bytes(), peer);
                }),
            });
            let address = SocketAddr::new(own.parse().expect("an address"), free_port());
            let name = format!("{protocol}-{}", if address.is_ipv4() { 4 } else { 6 });
            config += &listener(&name, protocol, address, "");
            config += &route(&name, &name, &[(&name, 1)], "");
            config += &backend(&name, [server.address], "transparent = true");
            running.push(server);
            listening.push((protocol, address));
        }
    }
    (running, listening, config)
}

/// Whom the server saw, as it says.
fn seen(protocol: &str, address: SocketAddr) -> String {
    let mut answer = String::new();
    if protocol == "TCP" {
        connect(address).read_to_string(&mut answer).expect("an answer");
        return answer;
    }
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).expect("binding");
    socket.connect(address).expect("connecting");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let mut bytes = [0; 64];
    for _ in 0..60 {
        socket.send(b"who am I?").expect("sending");
        if let Ok(len) = socket.recv(&mut bytes) {
            return String::from_utf8_lossy(&bytes[..len]).into_owned();
        }
    }
    panic!("no answer to any of 60 datagrams");
}

const NO_RULE: &str = "run `tuning/transparent up`";

#[test]
fn the_server_sees_the_clients_address() {
    in_own_network(|| {
        let (clients, servers) = (Namespace::new(), Namespace::new());
        clients.join("clients", "10.1.0", "fd01");
        servers.join("servers", "10.2.0", "fd02");
        let (_servers, listening, config) = world(&servers);
        let gateway = Gateway::start(&config);
        let warnings = || gateway.stderr().matches(NO_RULE).count();
        wait_until("a warning for each IP version", || warnings() == 2);
        script("up");
        gateway.reload(&format!("{config}\n# with rules\n"));
        assert_eq!(warnings(), 2, "{}", gateway.stderr());
        for _ in 0..3 {
            for (protocol, address) in listening.clone() {
                let expected = if address.is_ipv4() { "10.1.0.2" } else { "fd01::2" };
                assert_eq!(clients.run(move || seen(protocol, address)), expected, "{protocol}");
            }
        }
        let metrics = gateway.metrics();
        assert_eq!(metrics.value("ringway_upstream_sockets_resting", &[]), 0);
        script("down");
        gateway.reload(&config);
        wait_until("another warning for each", || warnings() == 4);
    });
}

/// Started as root, the process goes on as a user that keeps CAP_NET_ADMIN.
#[test]
fn the_server_sees_the_clients_address_behind_a_gateway_of_another_user() {
    in_own_network(|| {
        let (clients, servers) = (Namespace::new(), Namespace::new());
        clients.join("clients", "10.1.0", "fd01");
        servers.join("servers", "10.2.0", "fd02");
        let (_servers, listening, config) = world(&servers);
        script("up");
        let opened = ["sh", "-c", r#"chmod 777 "$(dirname "$3")"; exec "$0" "$@""#];
        let config = "user = \"nobody\"\n".to_owned() + &config;
        let gateway = Launch::default().under(&opened).start(&config);
        for (protocol, address) in listening {
            let expected = if address.is_ipv4() { "10.1.0.2" } else { "fd01::2" };
            assert_eq!(clients.run(move || seen(protocol, address)), expected, "{protocol}");
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid()));
        let status = status.expect("it runs");
        assert!(status.lines().any(|line| line.starts_with("Uid:\t65534\t65534")), "{status}");
        script("down");
    });
}

#[test]
fn without_the_right_to_it_it_says_so() {
    in_own_network(|| {
        let (clients, servers) = (Namespace::new(), Namespace::new());
        clients.join("clients", "10.1.0", "fd01");
        servers.join("servers", "10.2.0", "fd02");
        let (_servers, listening, config) = world(&servers);
        let drop = "--bounding-set=-net_admin,-net_raw";
        let gateway = Launch::default().under(&["setpriv", drop]).start(&config);
        gateway.says("need CAP_NET_ADMIN");
        let address = listening[0].1;
        assert!(clients.run(move || was_reset(&mut connect(address))));
        gateway.closed_for("connect_failed");
    });
}
