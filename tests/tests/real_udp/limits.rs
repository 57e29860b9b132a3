//! What runs out: flows, sockets, source ports.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc;
use std::time::Duration;

use ringway_tests::real::config::{backend, forward, forward_as, listener, route};
use ringway_tests::real::{
    Launch, Server, free_address, in_own_network, program, udp_client, wait_until,
};

use crate::ask;

#[test]
fn flows_above_the_limit_are_refused_and_counted() {
    let server = Server::udp_echo();
    let address = free_address();
    let config = forward("UDP", address, [server.address], "flow_timeout = \"2s\"")
        + "[limits]\nflows = 16\n";
    let gateway = Launch::default().one_worker().start(&config);
    let sockets: Vec<_> = (0..40).map(|_| udp_client(address)).collect();
    for socket in &sockets {
        socket.send(b"?").expect("sent");
    }
    let dropped = || {
        let reason = [("reason", "flow_limit")];
        gateway.metrics().value("ringway_datagrams_dropped_total", &reason)
    };
    wait_until("the rest is refused", || server.served() + dropped() == 40);
    assert_eq!(server.served(), 16);
    drop(sockets);
    wait_until("the flows are over", || gateway.metrics().value("ringway_flows_active", &[]) == 0);
    assert_eq!(ask(&udp_client(address), b"room again"), b"room again");
}

/// New sources without end, whom nobody answers: who comes later gets in, and who was answered
/// stays.
#[test]
fn a_flood_of_sources_does_not_lock_new_clients_out() {
    let (seen, sources) = mpsc::channel();
    let server = Server::udp(move |socket, bytes, peer| {
        if bytes == b"first" {
            let _ = seen.send(peer);
        }
        if bytes != b"?" {
            let _ = socket.send_to(bytes, peer);
        }
    });
    let address = free_address();
    let config = listener("main", "UDP", address, "flow_timeout = \"10m\"")
        + &route("main", "main", &[("main", 1)], "")
        + &backend("main", [server.address], "upstream_rest = \"100ms\"")
        + "[limits]\nflows = 16\n";
    let gateway = Launch::default().one_worker().start(&config);
    let first = udp_client(address);
    assert_eq!(ask(&first, b"first"), b"first");
    let flood: Vec<_> = (0..40).map(|_| udp_client(address)).collect();
    for socket in &flood {
        socket.send(b"?").expect("sent");
    }
    let dropped = || {
        let reason = [("reason", "flow_limit")];
        gateway.metrics().value("ringway_datagrams_dropped_total", &reason)
    };
    wait_until("the flows are used up", || dropped() > 0);
    assert_eq!(ask(&udp_client(address), b"hello"), b"hello");
    assert_eq!(ask(&first, b"first"), b"first");
    let reason = [("reason", "flow_unanswered")];
    assert!(gateway.metrics().value("ringway_flows_closed_total", &reason) > 0);
    let sources: BTreeSet<_> = sources.try_iter().collect();
    assert_eq!(sources.len(), 1, "the first flow has not lasted: {sources:?}");
}

/// Sockets are few, flows are short, and endpoints answer when the flow is long over: refused
/// rather than mixed up.
#[test]
fn no_late_reply_reaches_another_client_while_sockets_are_short() {
    let mut count = 0;
    let server = Server::udp(move |socket, bytes, peer| {
        count += 1;
        let delay = Duration::from_millis(300 + count * 137 % 1_000);
        let (socket, bytes) = (socket.try_clone().expect("a descriptor"), bytes.to_vec());
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            let _ = socket.send_to(&bytes, peer);
        });
    });
    let address = free_address();
    let config = listener("main", "UDP", address, "flow_timeout = \"100ms\"")
        + &route("main", "main", &[("main", 1)], "")
        + &backend("main", [server.address], "upstream_rest = \"4s\"")
        + "[limits]\nflows = 64\n";
    let gateway = Launch::default().one_worker().start(&config);
    let clients: Vec<_> = (0..1_000_u32)
        .map(|tag| {
            let socket = udp_client(address);
            socket.send(&tag.to_be_bytes()).expect("sent");
            std::thread::sleep(Duration::from_millis(3));
            (tag, socket)
        })
        .collect();
    let late = || gateway.metrics().value("ringway_endpoint_late_replies_total", &[]);
    wait_until("late replies are dropped", || late() >= 60);
    let mut foreign = 0;
    for (tag, socket) in clients {
        socket.set_nonblocking(true).expect("an option");
        let mut bytes = [0; 8];
        while let Ok(len) = socket.recv(&mut bytes) {
            foreign += u32::from(bytes[..len] != tag.to_be_bytes());
        }
    }
    assert_eq!(foreign, 0);
    let refused = [("reason", "no_socket")];
    assert!(gateway.metrics().value("ringway_datagrams_dropped_total", &refused) > 0);
}

/// Sockets that were closed are gone, with their ports, though an older one is open: kernels before
/// 6.13 keep registered files as long as a request for an older one lives.
#[test]
fn sockets_of_ended_flows_are_closed_while_an_older_flow_lives() {
    const FLOWS: usize = 20;
    let [long, short, next] = [(); 3].map(|()| Server::udp_echo());
    let [to_long, to_short] = [(); 2].map(|()| free_address());
    let config = |endpoint| {
        forward_as("long", "UDP", to_long, [long.address], "flow_timeout = \"1h\"")
            + &forward_as("short", "UDP", to_short, [endpoint], "responses = 1")
    };
    let gateway = Launch::default().one_worker().start(&config(short.address));
    let old = udp_client(to_long);
    ask(&old, b"old");
    // Many clients, so that each flow needs a socket of its own.
    for flow in 0..FLOWS {
        ask(&udp_client(to_short), &[u8::try_from(flow).expect("few")]);
    }
    gateway.closes(FLOWS);
    assert!(sockets_towards(short.address.port()) > 0, "none rests");
    // Nobody will want what rests towards an endpoint that is gone.
    gateway.reload(&config(next.address));
    wait_until("closed sockets to be gone", || sockets_towards(short.address.port()) == 0);
    assert_eq!(ask(&old, b"still there"), b"still there");
}

/// UDP sockets of this machine that are connected to a port.
fn sockets_towards(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/udp").expect("the kernel's sockets");
    let port = format!(":{port:04X}");
    let remote = |line: &str| line.split_whitespace().nth(2).map(str::to_owned);
    table.lines().skip(1).filter_map(remote).filter(|remote| remote.ends_with(&port)).count()
}

/// Fifty source ports for two hundred flows: what cannot be had is counted, and comes back.
#[test]
fn source_ports_that_run_out_are_counted_and_come_back() {
    in_own_network(|| {
        program("sysctl", &["-qw", "net.ipv4.ip_local_port_range=40000 40049"]);
        let endpoint = SocketAddr::from(([127, 0, 0, 1], 9_999));
        let server = Server::udp_at(endpoint, |socket, bytes, peer| {
            let _ = socket.send_to(bytes, peer);
        });
        // Of two workers one can have all the ports, and who comes again be the other's.
        let address = free_address();
        let config = forward("UDP", address, [server.address], "flow_timeout = \"2s\"");
        let gateway = Launch::default().one_worker().start(&config);
        let client = |port: u16| {
            let socket = UdpSocket::bind(("127.0.0.1", port)).expect("a port");
            socket.connect(address).expect("connecting");
            socket
        };
        let sockets: Vec<_> = (0..200).map(|at| client(50_000 + at)).collect();
        for socket in &sockets {
            socket.send(b"?").expect("sent");
        }
        let dropped = || {
            let reason = [("reason", "no_socket")];
            gateway.metrics().value("ringway_datagrams_dropped_total", &reason)
        };
        wait_until("the rest is refused", || server.served() + dropped() == 200);
        assert!(dropped() >= 150, "{} dropped of 200 with 50 ports", dropped());
        let shortages = gateway.metrics().value("ringway_source_port_shortages_total", &[]);
        assert!((1..=75).contains(&shortages), "asked {shortages} times for a port");
        assert!(server.served() > 0);
        drop(sockets);
        assert_eq!(ask(&client(60_000), b"again"), b"again");
    });
}
