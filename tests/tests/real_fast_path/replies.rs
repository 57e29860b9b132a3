//! No reply reaches another client.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{Gateway, Server, in_own_network, now, wait_until};

use crate::{World, places, promotions};

const ROUNDS: usize = 4;

/// Flows of a round. In each round they come from the same addresses.
const FLOWS: usize = 100;

/// Datagrams each way of a flow. The second one promotes the flow.
const MOVES: usize = 4;

/// Later than the end of a flow that is silent, and sooner than its socket serves another flow.
const LATE: Duration = Duration::from_millis(2_500);

/// `real_udp/replies.rs` has short flows through the worker. Here the kernel forwards each flow,
/// and one server of three says everything again when the flow is over. By then the flow's client
/// has another flow, and later its socket serves another client.
#[test]
fn no_reply_reaches_another_client() {
    in_own_network(|| {
        let world = World::new();
        let at = places()[0].0;
        let sources = Arc::new(Mutex::new(BTreeSet::new()));
        let servers: Vec<_> = (0..3).map(|n| server(&world, 9_000 + n, n == 0, &sources)).collect();
        let endpoints = servers.iter().map(|server| server.address);
        let options = "fast_path = \"required\"\nfast_path_after = 1\nupstream_rest = \"4s\"";
        let gateway = Gateway::start(
            &(listener("main", "UDP", at, "flow_timeout = \"300ms\"")
                + &route("main", "main", &[("main", 1)], "")
                + &backend("main", endpoints, options)),
        );
        for round in 0..ROUNDS {
            let clients: Vec<_> = (0..FLOWS).map(|n| client(&world, at, n)).collect();
            for (flow, client) in clients.iter().enumerate() {
                (0..MOVES).for_each(|nth| moves(client, [round, flow, nth]));
            }
            let live = || gateway.metrics().value("ringway_flows_active", &[]);
            wait_until("all flows are over", || live() == 0);
            for (flow, client) in clients.iter().enumerate() {
                client.set_nonblocking(true).expect("a socket");
                let mut bytes = [0; 64];
                while let Ok(len) = client.recv(&mut bytes) {
                    assert_eq!(bytes[..len][..2], tag([round, flow, 0])[..2], "another's datagram");
                }
            }
        }
        std::thread::sleep(LATE);
        let metrics = gateway.metrics();
        let late = metrics.value("ringway_endpoint_late_replies_total", &[]);
        let sockets = sources.lock().expect("no panic").len();
        eprintln!("{late} late replies, {sockets} sockets");
        assert!(promotions(&metrics) >= (ROUNDS * FLOWS) as u64, "{}", promotions(&metrics));
        assert!(late > (ROUNDS * FLOWS / 3) as u64, "{late} replies were late");
        assert!(sockets < ROUNDS * FLOWS, "no socket has served two flows");
    });
}

/// What a flow's datagram says: its round, flow and number.
fn tag(of: [usize; 3]) -> [u8; 3] {
    of.map(|number| u8::try_from(number).expect("small"))
}

/// Sends a datagram and gets its answer.
fn moves(client: &UdpSocket, of: [usize; 3]) {
    client.send(&tag(of)).expect("sending");
    let mut bytes = [0; 64];
    let len = client.recv(&mut bytes).expect("an answer");
    assert_eq!(bytes[..len], tag(of), "another's answer");
}

fn client(world: &World, gateway: SocketAddr, nth: usize) -> UdpSocket {
    world.clients.run(move || {
        let port = u16::try_from(3_000 + nth).expect("a port");
        let socket = UdpSocket::bind(("10.1.0.2", port)).expect("the port is free again");
        socket.connect(gateway).expect("connecting");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        socket
    })
}

/// Answers at once. One that repeats itself answers once more when the flow is over.
fn server(
    world: &World,
    port: u16,
    repeats: bool,
    sources: &Arc<Mutex<BTreeSet<(u16, SocketAddr)>>>,
) -> Server {
    let (later, due) = channel::<(Instant, Vec<u8>, SocketAddr, UdpSocket)>();
    std::thread::spawn(move || {
        for (at, bytes, peer, socket) in due {
            std::thread::sleep(at.saturating_duration_since(now()));
            let _ = socket.send_to(&bytes, peer);
        }
    });
    let sources = Arc::clone(sources);
    world.servers.run(move || {
        Server::udp_at(([10, 2, 0, 2], port).into(), move |socket, bytes, peer| {
            sources.lock().expect("no panic").insert((port, peer));
            let _ = socket.send_to(bytes, peer);
            if repeats {
                let socket = socket.try_clone().expect("a descriptor");
                let _ = later.send((now() + LATE, bytes.to_vec(), peer, socket));
            }
        })
    })
}
