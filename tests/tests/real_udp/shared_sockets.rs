//! `upstream_sockets = "shared"`: many flows on one socket.

use std::collections::BTreeSet;
use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use ringway_tests::real::config::{backend, listener, route};
use ringway_tests::real::{
    Gateway, Launch, Metrics, Pattern, Server, free_address, free_port, in_own_network, now,
    program, udp_client, wait_until,
};
use socket2::SockRef;

use crate::ask;

/// A backend with shared upstream sockets, and what leads there. `options` are the listener's.
fn sharing(
    from: SocketAddr,
    to: impl IntoIterator<Item = SocketAddr>,
    source: &str,
    options: &str,
) -> String {
    // Silent flows end so long after SIGTERM.
    "lame_duck = \"100ms\"\n".to_owned()
        + &listener("main", "UDP", from, options)
        + &route("main", "main", &[("main", 1)], "")
        + &backend("main", to, &format!("upstream_sockets = \"shared\"\nsource = [\"{source}\"]"))
}

/// Many clients at once, each with its own words, and two endpoints: every answer is the client's
/// own, and endpoints see a port per worker.
#[test]
fn shared_sockets_bring_each_reply_to_its_client() {
    const CLIENTS: usize = 600;
    let (seen, sources) = mpsc::channel();
    let echo = |seen: mpsc::Sender<(SocketAddr, SocketAddr)>| {
        Server::udp(move |socket, bytes, peer| {
            let _ = seen.send((socket.local_addr().expect("bound"), peer));
            let _ = socket.send_to(bytes, peer);
        })
    };
    let servers = [echo(seen.clone()), echo(seen)];
    let address = free_address();
    let endpoints = servers.iter().map(|server| server.address);
    let gateway = Gateway::start(&sharing(address, endpoints, "127.1.0.0/16", ""));
    let sockets: Vec<_> = (0..CLIENTS).map(|_| udp_client(address)).collect();
    for round in 0..3 {
        let words = |at: usize| format!("client {at}, round {round}").into_bytes();
        for (at, socket) in sockets.iter().enumerate() {
            socket.send(&words(at)).expect("sent");
        }
        for (at, socket) in sockets.iter().enumerate() {
            let mut answer = [0; 64];
            let len = socket.recv(&mut answer).unwrap_or_else(|error| panic!("{at}: {error}"));
            assert_eq!(answer[..len], words(at));
        }
    }
    assert_eq!(gateway.metrics().value("ringway_upstream_sockets_open", &[]), 2, "one per worker");
    assert_eq!(gateway.metrics().value("ringway_upstream_pairs", &[]), CLIENTS as u64);
    drop(servers);
    let heard: Vec<_> = sources.iter().collect();
    let flows: BTreeSet<_> = heard.iter().collect();
    let ports: BTreeSet<_> = heard.iter().map(|(_, peer)| peer.port()).collect();
    assert_eq!((heard.len(), flows.len(), ports.len()), (3 * CLIENTS, CLIENTS, 2));
    // What lived is closed, and the process ends.
    let log = gateway.stop();
    assert_eq!(log.len(), CLIENTS);
}

/// Trains and sizes as on connected sockets, and an empty datagram that ends the one receive that
/// there is.
#[test]
fn shared_sockets_carry_every_size() {
    let server = Server::udp_echo();
    let address = free_address();
    let _gateway = Gateway::start(&sharing(address, [server.address], "127.1.0.0/24", ""));
    let socket = udp_client(address);
    for len in [1, 0, 1200, 0, 1473, 40_000, 65_507, 2] {
        let datagram = Pattern::new(len as u64).take(len);
        assert_eq!(ask(&socket, &datagram), datagram, "{len} bytes");
    }
    SockRef::from(&socket).set_recv_buffer_size(4 << 20).expect("a buffer size");
    let mut pattern = Pattern::new(5);
    let sent: Vec<_> =
        (0..40).map(|at| pattern.take(if at % 8 == 7 { 700 } else { 1200 })).collect();
    let mut buffer = vec![0; 65_536];
    for datagram in &sent {
        socket.send(datagram).expect("sent");
    }
    for datagram in &sent {
        let len = socket.recv(&mut buffer).expect("all come back");
        assert!(buffer[..len] == *datagram, "changed or reordered");
    }
}

/// Whoever knows a flow's address and port can send there. What does not come from the endpoint
/// goes nowhere.
#[test]
fn reply_of_a_stranger_is_dropped_and_counted() {
    let server = Server::udp(|socket, bytes, peer| {
        let elsewhere = |port| UdpSocket::bind(("127.0.0.1", port)).expect("a port");
        let _ = elsewhere(0).send_to(b"from another port", peer);
        let _ = elsewhere(0).send_to(b"", peer);
        let another = UdpSocket::bind(("127.0.0.9", socket.local_addr().expect("bound").port()));
        let _ = another.expect("the same port").send_to(b"from another address", peer);
        let _ = socket.send_to(b"to another flow", ("127.1.0.200", peer.port()));
        let _ = socket.send_to(bytes, peer);
    });
    let address = free_address();
    let gateway = Gateway::start(&sharing(address, [server.address], "127.1.0.0/24", ""));
    let socket = udp_client(address);
    let mut answer = [0; 64];
    for _ in 0..10 {
        socket.send(b"mine").expect("sent");
        let len = socket.recv(&mut answer).expect("an answer");
        assert_eq!(&answer[..len], b"mine");
    }
    let strangers = || gateway.metrics().value("ringway_upstream_strangers_total", &[]);
    assert_eq!(strangers(), 4 * server.served());
}

#[test]
fn flows_above_the_addresses_are_refused_and_counted() {
    let server = Server::udp_echo();
    let address = free_address();
    let config = sharing(address, [server.address], "127.1.0.0/30", "flow_timeout = \"2s\"");
    let gateway = Launch::default().one_worker().start(&config);
    let sockets: Vec<_> = (0..10).map(|_| udp_client(address)).collect();
    for socket in &sockets {
        socket.send(b"?").expect("sent");
    }
    let dropped =
        |reason| gateway.metrics().value("ringway_datagrams_dropped_total", &[("reason", reason)]);
    wait_until("the rest is refused", || server.served() + dropped("no_source") == 10);
    assert_eq!(server.served(), 4);
    drop(sockets);
    wait_until("the flows are over", || gateway.metrics().value("ringway_flows_active", &[]) == 0);
    assert_eq!(ask(&udp_client(address), b"room again"), b"room again");
}

/// IPv6 from a prefix that is only routed to the machine; and addresses that are not its own.
#[test]
fn shared_sockets_use_the_addresses_that_the_machine_has() {
    in_own_network(|| {
        program("ip", &["-6", "route", "add", "local", "fd01::/64", "dev", "lo"]);
        program("sysctl", &["-qw", "net.ipv6.ip_nonlocal_bind=1"]);
        let address = free_address();
        let (seen, sources) = mpsc::channel();
        let server =
            Server::udp_at("[::1]:7000".parse().expect("an address"), move |socket, b, peer| {
                let _ = seen.send(peer.ip());
                let _ = socket.send_to(b, peer);
            });
        let gateway = Gateway::start(&sharing(address, [server.address], "fd01::/64", ""));
        for _ in 0..20 {
            assert_eq!(ask(&udp_client(address), b"six"), b"six");
        }
        gateway.stop();
        drop(server);
        let inside = |ip: &IpAddr| ip.to_string().starts_with("fd01::");
        assert!(sources.iter().all(|ip| inside(&ip)));

        let server = Server::udp_echo();
        let gateway = Gateway::start(&sharing(address, [server.address], "10.99.0.0/16", ""));
        let socket = udp_client(address);
        for _ in 0..3 {
            socket.send(b"not ours").expect("sent");
        }
        let dropped = || {
            let reason = [("reason", "bad_source")];
            gateway.metrics().value("ringway_datagrams_dropped_total", &reason)
        };
        wait_until("all are dropped", || dropped() == 3);
        assert_eq!(server.served(), 0);
    });
}

/// A hundred thousand flows at once on one worker: a socket, not one open file more, and no more
/// sockets in the kernel. Each client has a local address of its own, and hears what is its own.
#[test]
fn a_hundred_thousand_flows_share_a_socket() {
    in_own_network(hundred_thousand_flows);
}

/// A gateway of one worker that has room for so many flows, and clients for as many.
fn sharing_for(flows: u32) -> (Server, Gateway, ManyClients) {
    let server = Server::udp_echo();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let config = sharing(address, [server.address], "127.16.0.0/12", "flow_timeout = \"1h\"")
        + &format!("[limits]\nflows = {flows}\n");
    (server, Launch::default().one_worker().start(&config), ManyClients::new(address))
}

fn hundred_thousand_flows() {
    const FLOWS: u32 = 100_000;
    let (_server, gateway, clients) = sharing_for(FLOWS);
    assert_eq!(clients.ask(&[0]), 1, "the first flow opens the socket");
    let files = || {
        let folder = format!("/proc/{}/fd", gateway.pid());
        std::fs::read_dir(folder).expect("its files").count()
    };
    let before = (files(), sockets_in_kernel(), memory(gateway.pid()));
    // Twice: a new flow each, and the same again.
    for _ in 0..2 {
        clients.open(FLOWS);
    }
    let metrics = gateway.metrics();
    assert_eq!(metrics.value("ringway_flows_active", &[]), u64::from(FLOWS));
    assert_eq!(metrics.value("ringway_upstream_sockets_open", &[]), 1);
    assert_eq!(metrics.value("ringway_upstream_pairs", &[]), u64::from(FLOWS));
    let after = (files(), sockets_in_kernel(), memory(gateway.pid()));
    let per_flow = (after.2 - before.2) * 1024 / u64::from(FLOWS);
    eprintln!(
        "{FLOWS} flows: {} open files before, {} after; {} UDP sockets before, {} after; \
         {} KiB before, {} KiB after: {per_flow} bytes a flow",
        before.0, after.0, before.1, after.1, before.2, after.2
    );
    assert!(after.0 <= before.0 + 4, "open files: {before:?}, {after:?}");
    assert_eq!(after.1, before.1, "sockets in the kernel");
    assert!(per_flow <= 1024, "{per_flow} bytes a flow");
}

/// The p99 of a worker's turn while 50,000 flows are listed in a loop, and without: a client asks
/// all the while. Flows on shared sockets, because sessions would need 100,000 open files.
#[test]
#[ignore = "it measures, and asserts little"]
fn fifty_thousand_flows_are_listed_in_a_loop() {
    in_own_network(listed_in_a_loop);
}

#[test]
fn lists_of_sixty_thousand_flows_take_little_memory() {
    in_own_network(listed_in_little_memory);
}

fn listed_in_little_memory() {
    const FLOWS: u32 = 60_000;
    let (_server, gateway, clients) = sharing_for(FLOWS);
    clients.open(FLOWS);
    let page = |words: &str| -> serde_json::Value {
        let path = format!("/api/v1/flows?limit=5000&{words}");
        serde_json::from_str(&gateway.get(&path).expect("a page").1).expect("JSON")
    };
    page("sort=client");
    let before = memory(gateway.pid());
    for words in ["sort=client", "sort=bytes&reverse=true", "sort=age_ms", "sort=idle_ms"] {
        let sorted = page(words);
        assert_eq!(sorted["matched"], FLOWS, "{words}");
        assert_eq!(sorted["flows"].as_array().map(Vec::len), Some(5_000), "{words}");
    }
    let clients = page("sort=client");
    let clients = clients["flows"].as_array().expect("a list").iter();
    let clients = clients.map(|row| row["client"].as_str().and_then(|at| at.parse().ok()));
    let clients: Vec<SocketAddr> = clients.map(|at| at.expect("an address")).collect();
    assert!(clients.is_sorted(), "from the first address on");
    assert_eq!(clients[0].ip(), Ipv4Addr::new(127, 100, 0, 0));
    for _ in 0..2 {
        assert_eq!(list(&gateway).len(), FLOWS as usize, "each flow once");
    }
    let grown = memory(gateway.pid()).saturating_sub(before);
    eprintln!("{FLOWS} flows, listed: {grown} KiB more");
    assert!(grown < 48 << 10, "{grown} KiB");
}

fn listed_in_a_loop() {
    const FLOWS: u32 = 50_000;
    let (_server, gateway, clients) = sharing_for(FLOWS);
    clients.open(FLOWS);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for client in (0..FLOWS).cycle() {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                clients.ask(&[client]);
            }
        });
        for lists in [false, true, false, true] {
            measure_turns(&gateway, FLOWS, lists);
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

/// Prints how long the turns of 20 s are. With `lists`, all flows are listed again and again.
fn measure_turns(gateway: &Gateway, flows: u32, lists: bool) {
    const TURN: &str = "ringway_worker_turn_seconds";
    let (before, began, mut listed) = (gateway.metrics(), now(), 0);
    while began.elapsed() < Duration::from_secs(20) {
        match lists {
            true => {
                let found = list(gateway);
                assert_eq!(found.len(), flows as usize, "each flow once");
                listed += 1;
            }
            false => std::thread::sleep(Duration::from_millis(100)),
        }
    }
    let after = gateway.metrics();
    let micros = |share| after.quantile_since(&before, TURN, share) * 1e6;
    let turns = |page: &Metrics| page.value("ringway_worker_turns_total", &[]);
    eprintln!(
        "{flows} flows, listed {listed} times: {} turns, p99 {:.0} us, p99.9 {:.0} us",
        turns(&after) - turns(&before),
        micros(0.99),
        micros(0.999),
    );
}

/// The ids of all flows, page by page.
fn list(gateway: &Gateway) -> BTreeSet<String> {
    let (mut found, mut cursor) = (BTreeSet::new(), String::new());
    loop {
        let page = gateway.get(&format!("/api/v1/flows?limit=5000{cursor}")).expect("a page").1;
        let page: serde_json::Value = serde_json::from_str(&page).expect("JSON");
        let ids = page["flows"].as_array().expect("a list").iter();
        found.extend(ids.map(|row| row["id"].as_str().expect("an id").to_owned()));
        let Some(next) = page["next"].as_str() else { return found };
        cursor = format!("&cursor={next}");
    }
}

/// UDP sockets of this network namespace.
fn sockets_in_kernel() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/sockstat").expect("readable");
    let line = text.lines().find_map(|line| line.strip_prefix("UDP: inuse "));
    let count = line.and_then(|line| line.split(' ').next());
    count.and_then(|count| count.parse().ok()).expect("a count")
}

/// Resident memory in KiB.
fn memory(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("readable");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let size = line.and_then(|line| line.trim().split(' ').next());
    size.and_then(|size| size.parse().ok()).expect("a size")
}

/// Clients that differ by their local addresses, on one socket: IP_PKTINFO says from which one a
/// datagram is sent, and which one it came to.
struct ManyClients {
    socket: UdpSocket,
    gateway: SocketAddrV4,
}

impl ManyClients {
    fn new(gateway: SocketAddr) -> Self {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true).expect("an option");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        let SocketAddr::V4(gateway) = gateway else { panic!("an IPv4 gateway") };
        Self { socket, gateway }
    }

    /// Has each of so many clients ask. Few may go without an answer: it is UDP.
    fn open(&self, count: u32) {
        let all: Vec<_> = (0..count).collect();
        // So few that no queue of the kernel is full.
        let answered: usize = all.chunks(50).map(|some| self.ask(some)).sum();
        let least = all.len() - all.len() / 1_000;
        assert!(answered >= least, "{answered} of {count} were answered");
    }

    /// Sends the numbers of these clients, and waits for them. Returns how many came.
    fn ask(&self, clients: &[u32]) -> usize {
        clients.iter().for_each(|client| self.send(*client));
        let mut left: BTreeSet<_> = clients.iter().copied().collect();
        while !left.is_empty()
            && let Some(heard) = self.hear()
        {
            left.remove(&heard);
        }
        clients.len() - left.len()
    }

    fn send(&self, client: u32) {
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(127, 100, 0, 0).to_bits() + client);
        let info = libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr { s_addr: u32::from(address).to_be() },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let to = SockaddrIn::from(self.gateway);
        let fd = self.socket.as_raw_fd();
        let number = client.to_be_bytes();
        let control = [ControlMessage::Ipv4PacketInfo(&info)];
        let bytes = [IoSlice::new(&number)];
        sendmsg(fd, &bytes, &control, MsgFlags::empty(), Some(&to)).expect("sent");
    }

    /// The next number, which must be that of the client that it came to. `None`: none comes.
    fn hear(&self) -> Option<u32> {
        let mut answer = [0; 64];
        let mut control = nix::cmsg_space!(libc::in_pktinfo);
        let mut bytes = [IoSliceMut::new(&mut answer)];
        let fd = self.socket.as_raw_fd();
        let got = recvmsg::<SockaddrIn>(fd, &mut bytes, Some(&mut control), MsgFlags::empty());
        let got = got.ok()?;
        let came_to = got.cmsgs().expect("whole").find_map(|message| match message {
            ControlMessageOwned::Ipv4PacketInfo(info) => Some(info.ipi_addr.s_addr),
            _ => None,
        });
        let came_to = Ipv4Addr::from_bits(u32::from_be(came_to.expect("PKTINFO")));
        let heard = u32::from_be_bytes(*answer.first_chunk().expect("four bytes"));
        let own = Ipv4Addr::from_bits(Ipv4Addr::new(127, 100, 0, 0).to_bits() + heard);
        assert_eq!(came_to, own, "another client's answer");
        Some(heard)
    }
}
