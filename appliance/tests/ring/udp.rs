use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use config_sync::table::routing::{Limits, SocketId, Transport};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{UdpGroSegment, UdpGsoSegment};
use ringway::contract::{BufferId, Event, Kind, Op, Origin, Part, Token, Why};

use crate::harness::{Driver, LIMITS, alone, local_address, noise, open, shared, try_open};

/// The content of a `Datagrams` event.
#[derive(Clone, Copy, Debug)]
struct Got {
    token: Token,
    buffer: BufferId,
    peer: Option<SocketAddr>,
    local: Option<IpAddr>,
    bytes: u32,
    count: u32,
}

fn upstream(slot: u32, generation: u32) -> Token {
    Token { kind: Kind::Upstream, slot, generation }
}

/// A socket that waits long enough for a slow machine, but not for ever.
fn socket(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

fn read(socket: &UdpSocket) -> Vec<u8> {
    let mut bytes = vec![0; 70_000];
    let len = socket.recv(&mut bytes).expect("a datagram");
    bytes.truncate(len);
    bytes
}

impl Driver {
    fn datagrams(&mut self) -> Got {
        self.until(|token, event| match *event {
            Event::Datagrams { buffer, peer, local, bytes, count, truncated, .. } => {
                assert!(!truncated);
                Some(Got { token, buffer, peer, local, bytes, count })
            }
            _ => None,
        })
    }

    fn receiving(&mut self, address: &str) -> (Token, SocketAddr) {
        let (token, address) = self.listen(Transport::Udp, address);
        self.act(token, Op::Receive);
        (token, address)
    }

    fn opened(&mut self, slot: u32, server: &UdpSocket) -> Token {
        let token = upstream(slot, 1);
        let address = server.local_addr().unwrap();
        self.act(token, Op::Open { address, source: Origin::Any, interface: 0 });
        self.act(token, Op::Receive);
        token
    }
}

#[test]
fn a_datagram_goes_there_and_back() {
    for (listen, bind) in [("127.0.0.1:0", "127.0.0.1:0"), ("[::1]:0", "[::1]:0")] {
        let mut driver = Driver::new(LIMITS);
        let (listener, address) = driver.receiving(listen);
        let (client, server) = (socket(bind), socket(bind));
        let flow = driver.opened(0, &server);
        client.send_to(b"question", address).unwrap();
        let got = driver.datagrams();
        assert_eq!((got.token, got.peer), (listener, client.local_addr().ok()));
        assert_eq!((got.bytes, got.count, got.local), (8, 1, None));
        driver.act(flow, Op::SendUp { buffer: got.buffer, part: Part::default() });
        let mut bytes = [0; 100];
        let (len, from) = server.recv_from(&mut bytes).unwrap();
        assert_eq!(&bytes[..len], b"question");
        server.send_to(b"answer", from).unwrap();
        let back = driver.datagrams();
        assert_eq!((back.token, back.peer), (flow, None));
        let peer = got.peer.unwrap();
        let down = Op::SendDown { buffer: back.buffer, from: 0, peer, local: None };
        driver.act(listener, down);
        assert_eq!(read(&client), b"answer");
        driver.poll();
        assert_eq!(driver.counters.buffers_free.get(), u64::from(LIMITS.buffers));
        assert!(driver.seen.is_empty(), "{:?}", driver.seen);
    }
}

#[test]
fn a_train_passes_whole_both_ways() {
    let mut driver = Driver::new(LIMITS);
    let (listener, address) = driver.receiving("127.0.0.1:0");
    let (client, server) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let flow = driver.opened(5, &server);
    for one in [&client, &server] {
        setsockopt(one, UdpGsoSegment, &1200).unwrap();
    }
    setsockopt(&client, UdpGroSegment, &true).unwrap();
    let train = noise(15 * 1200 + 7, 3);
    client.send_to(&train, address).unwrap();
    let got = driver.datagrams();
    assert_eq!((got.bytes as usize, got.count), (train.len(), 16));
    driver.act(flow, Op::SendUp { buffer: got.buffer, part: Part::default() });
    // The server has not asked for GRO, so it sees each datagram.
    let singles: Vec<_> = (0..16).map(|_| read(&server)).collect();
    assert!(singles[..15].iter().all(|single| single.len() == 1200));
    assert_eq!(singles.concat(), train);
    server.connect(peer_of(&mut driver, &client, address, flow, &server)).unwrap();
    server.send(&train).unwrap();
    let back = driver.datagrams();
    assert_eq!(back.count, 16);
    let peer = client.local_addr().unwrap();
    driver.act(listener, Op::SendDown { buffer: back.buffer, from: 5, peer, local: None });
    assert_eq!(read(&client), train);
}

/// This is what happens when a query of DNS is over a limit.
#[test]
fn a_client_is_answered_in_place_of_its_datagram() {
    let mut driver = Driver::new(LIMITS);
    let (listener, address) = driver.receiving("127.0.0.1:0");
    let (client, server) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let flow = driver.opened(0, &server);
    setsockopt(&client, UdpGsoSegment, &5).unwrap();
    client.send_to(b"first2.and3rd", address).unwrap();
    let Got { buffer, count, peer, local, .. } = driver.datagrams();
    assert_eq!(count, 3);
    driver.turn.output.extend_from_slice(b"no");
    let part = |first, more| Part { first, count: 1, more, ..Part::default() };
    let answer = Part { strip: 5, head: (0, 2), ..part(1, true) };
    let peer = peer.unwrap();
    driver.act_all(vec![
        (flow, Op::SendUp { buffer, part: part(0, true) }),
        (listener, Op::Answer { buffer, part: answer, peer, local }),
        (flow, Op::SendUp { buffer, part: part(2, false) }),
    ]);
    assert_eq!([read(&server), read(&server)], [&b"first"[..], b"3rd"]);
    assert_eq!(read(&client), b"no");
    driver.poll();
    assert_eq!(driver.counters.buffers_free.get(), u64::from(LIMITS.buffers));
    assert!(driver.seen.is_empty(), "{:?}", driver.seen);
}

/// This is what happens when a PROXY header is taken off each datagram of a train and another is
/// put on, and when the datagrams of one train belong to several clients.
#[test]
fn a_train_leaves_in_parts_with_other_heads() {
    let mut driver = Driver::new(LIMITS);
    let (_, address) = driver.receiving("127.0.0.1:0");
    let (client, one, other) =
        (socket("127.0.0.1:0"), socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let (to_one, to_other) = (driver.opened(0, &one), driver.opened(1, &other));
    setsockopt(&client, UdpGsoSegment, &8).unwrap();
    client.send_to(b"<old>abc<old>def<old>ghi[old]jkl<old>m", address).unwrap();
    let Got { buffer, count, .. } = driver.datagrams();
    assert_eq!(count, 5);
    driver.turn.output.extend_from_slice(b"{new}{newer}");
    let (new, newer) = ((0, 5), (5, 7));
    let part = |first, count, head, more| Part { first, count, strip: 5, head, more };
    driver.act_all(vec![
        (to_one, Op::SendUp { buffer, part: part(0, 3, new, true) }),
        (to_other, Op::SendUp { buffer, part: part(3, 1, (0, 0), true) }),
        (to_one, Op::SendUp { buffer, part: part(4, 0, newer, false) }),
    ]);
    let at_one: Vec<_> = (0..4).map(|_| read(&one)).collect();
    assert_eq!(at_one, [&b"{new}abc"[..], b"{new}def", b"{new}ghi", b"{newer}m"]);
    assert_eq!(read(&other), b"jkl");
    driver.poll();
    assert_eq!(driver.counters.buffers_free.get(), u64::from(LIMITS.buffers));
    assert!(driver.seen.is_empty(), "{:?}", driver.seen);
}

/// One message has a head before each datagram's bytes. The server has asked for GRO, and gets the
/// train as it was sent. The datagrams with new heads are also one train, if the path takes them,
/// and also if two buffers hold them.
#[test]
fn a_train_with_other_heads_leaves_as_one() {
    let mut driver = Driver::new(LIMITS);
    let (_, address) = driver.receiving("127.0.0.1:0");
    let (client, server) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    setsockopt(&client, UdpGsoSegment, &1000).unwrap();
    setsockopt(&server, UdpGroSegment, &true).unwrap();
    let flow = driver.opened(0, &server);
    let trains = [noise(20 * 1000, 3), noise(4 * 1000 + 9, 4)];
    let received = trains.each_ref().map(|train| {
        client.send_to(train, address).unwrap();
        driver.datagrams()
    });
    assert_eq!(received.each_ref().map(|got| got.count), [20, 5]);
    driver.turn.output.extend_from_slice(b"head");
    let part = Part { strip: 1, head: (0, 4), ..Part::default() };
    let send = |got: &Got| (flow, Op::SendUp { buffer: got.buffer, part });
    driver.act_all(received.iter().map(send).collect());
    let with_heads = |train: &[u8]| {
        train.chunks(1000).flat_map(|one| [b"head", &one[1..]].concat()).collect::<Vec<_>>()
    };
    assert_eq!(read(&server), trains.map(|train| with_heads(&train)).concat());
    driver.poll();
    assert!(driver.seen.is_empty(), "{:?}", driver.seen);
}

/// The upstream socket's address, as the server sees it.
fn peer_of(
    driver: &mut Driver,
    client: &UdpSocket,
    listener: SocketAddr,
    flow: Token,
    server: &UdpSocket,
) -> SocketAddr {
    client.send_to(b"who", listener).unwrap();
    let got = driver.datagrams();
    driver.act(flow, Op::SendUp { buffer: got.buffer, part: Part::default() });
    server.recv_from(&mut [0; 10]).unwrap().1
}

#[test]
fn equal_datagrams_of_one_turn_leave_as_one() {
    let mut driver = Driver::new(LIMITS);
    let (_, address) = driver.receiving("127.0.0.1:0");
    let (client, server) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let (other_client, other_server) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    setsockopt(&server, UdpGroSegment, &true).unwrap();
    let flow = driver.opened(0, &server);
    let other_flow = driver.opened(1, &other_server);
    let sizes = [100, 100, 100, 40, 100, 200, 200];
    let datagrams: Vec<_> = (1..).zip(sizes).map(|(seed, size)| noise(size, seed)).collect();
    for datagram in &datagrams {
        client.send_to(datagram, address).unwrap();
        other_client.send_to(b"between", address).unwrap();
    }
    let from = client.local_addr().unwrap();
    let ops = (0..2 * sizes.len())
        .map(|_| {
            let got = driver.datagrams();
            let token = if got.peer == Some(from) { flow } else { other_flow };
            (token, Op::SendUp { buffer: got.buffer, part: Part::default() })
        })
        .collect();
    driver.act_all(ops);
    // Only the last datagram of a message may be shorter, and none may be longer.
    for expected in [&datagrams[..4], &datagrams[4..5], &datagrams[5..]] {
        assert_eq!(read(&server), expected.concat());
    }
    for _ in sizes {
        assert_eq!(read(&other_server), b"between");
    }
}

#[test]
fn an_empty_datagram_is_forwarded_and_silences_nobody() {
    let mut driver = Driver::new(LIMITS);
    let (listener, address) = driver.receiving("127.0.0.1:0");
    let (client, server) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let flow = driver.opened(0, &server);
    client.send_to(&[], address).unwrap();
    let got = driver.datagrams();
    assert_eq!((got.bytes, got.count), (0, 1));
    driver.event(listener, Event::Stopped { why: None });
    driver.act_all(vec![
        (flow, Op::SendUp { buffer: got.buffer, part: Part::default() }),
        (listener, Op::Receive),
    ]);
    assert_eq!(server.recv(&mut [0; 10]).unwrap(), 0);
    client.send_to(b"still here", address).unwrap();
    assert_eq!(driver.datagrams().bytes, 10);
    assert_eq!(driver.counters.rearms.get(), 1);
}

#[test]
fn running_out_of_buffers_loses_nothing() {
    let mut driver = Driver::new(Limits { buffers: 4, ..LIMITS });
    let (listener, address) = driver.receiving("127.0.0.1:0");
    driver.poll();
    let client = socket("127.0.0.1:0");
    for number in 0..40_u8 {
        client.send_to(&[number; 9], address).unwrap();
    }
    let mut received = 0;
    while received < 40 {
        assert!(driver.turn(), "after {received}");
        let mut ops = Vec::new();
        for (token, event) in std::mem::take(&mut driver.seen) {
            match event {
                Event::Datagrams { buffer, .. } => {
                    received += 1;
                    ops.push((token, Op::Recycle { buffer }));
                }
                Event::Stopped { why: None } => ops.insert(0, (listener, Op::Receive)),
                other => panic!("{other:?}"),
            }
        }
        driver.act_all(ops);
    }
    assert!(driver.counters.buffer_shortages.get() > 0);
    driver.poll();
    assert_eq!(driver.counters.buffers_free.get(), 4);
}

/// Receives datagrams of these sizes, which are then ready to be sent on.
fn received(driver: &mut Driver, address: SocketAddr, sizes: &[usize]) -> Vec<BufferId> {
    let client = socket("127.0.0.1:0");
    for size in sizes {
        client.send_to(&noise(*size, 9), address).unwrap();
    }
    sizes.iter().map(|_| driver.datagrams().buffer).collect()
}

#[test]
fn an_earlier_refusal_does_not_cost_the_next_datagram() {
    let mut driver = Driver::new(LIMITS);
    let (_, listener) = driver.receiving("127.0.0.1:0");
    let address = socket("127.0.0.1:0").local_addr().unwrap();
    let flow = upstream(0, 1);
    driver.act(flow, Op::Open { address, source: Origin::Any, interface: 0 });
    let buffers = received(&mut driver, listener, &[10, 20, 30, 40]);
    let [first, second, third, fourth] = buffers[..] else { panic!() };
    driver.act(flow, Op::SendUp { buffer: first, part: Part::default() });
    // The error of the first datagram is pending now. The second datagram meets that error. The
    // third is sent, and refused in turn, before the second is tried again.
    driver.act_all(vec![
        (flow, Op::SendUp { buffer: second, part: Part::default() }),
        (flow, Op::SendUp { buffer: third, part: Part::default() }),
    ]);
    let failed = (flow, Event::SendFailed { why: Why::Refused, count: 1 });
    assert_eq!(driver.seen, [failed]);
    let server = socket(&address.to_string());
    driver.seen.clear();
    driver.act(flow, Op::SendUp { buffer: fourth, part: Part::default() });
    assert_eq!(read(&server).len(), 40);
    assert!(driver.seen.is_empty());
    driver.poll();
    assert_eq!(driver.counters.buffers_free.get(), u64::from(LIMITS.buffers));
}

#[test]
fn a_refusal_ends_the_receive_and_is_named() {
    let mut driver = Driver::new(LIMITS);
    let (_, listener) = driver.receiving("127.0.0.1:0");
    let gone = socket("127.0.0.1:0");
    let flow = driver.opened(0, &gone);
    driver.poll();
    drop(gone);
    let buffer = received(&mut driver, listener, &[10])[0];
    driver.act(flow, Op::SendUp { buffer, part: Part::default() });
    driver.event(flow, Event::Stopped { why: Some(Why::Refused) });
}

#[test]
fn replies_leave_from_the_address_the_client_spoke_to() {
    for (wildcard, addresses) in
        [("0.0.0.0:0", &["127.0.0.1", "127.0.0.2"][..]), ("[::]:0", &["::1"][..])]
    {
        let mut driver = Driver::new(LIMITS);
        let (listener, bound) = driver.receiving(wildcard);
        for address in addresses {
            let ip: IpAddr = address.parse().unwrap();
            // A connected socket takes replies only from the address that it sent to.
            let client = socket(wildcard);
            client.connect(SocketAddr::new(ip, bound.port())).unwrap();
            client.send(b"echo").unwrap();
            let got = driver.datagrams();
            assert_eq!(got.local, Some(ip));
            let (buffer, peer) = (got.buffer, got.peer.unwrap());
            let down = Op::SendDown { buffer, from: u32::MAX, peer, local: got.local };
            driver.act(listener, down);
            assert_eq!(read(&client), b"echo");
        }
    }
}

#[test]
fn upstream_sockets_cost_no_descriptor_and_leave_nothing_behind() {
    let mut driver = Driver::with(LIMITS, alone());
    let server = socket("127.0.0.1:0");
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    for generation in 1..4 {
        for slot in 0..LIMITS.flows {
            let (token, address) = (upstream(slot, generation), server.local_addr().unwrap());
            driver.act(
                token,
                Op::Open { address, source: Origin::Local([127, 0, 0, 3].into()), interface: 0 },
            );
            driver.act(token, Op::Receive);
        }
        driver.poll();
        assert_eq!(descriptors(), before);
        assert_eq!(connected_to(&server), LIMITS.flows as usize);
        for slot in 0..LIMITS.flows {
            driver.act(upstream(slot, generation), Op::CloseUpstream);
        }
        for slot in 0..LIMITS.flows {
            driver.event(upstream(slot, generation), Event::Closed);
        }
        assert!(driver.seen.is_empty(), "{:?}", driver.seen);
    }
    // Later kernels close a registered file at once, and earlier kernels a moment later.
    for _ in 0..10_000 {
        if connected_to(&server) == 0 {
            return;
        }
        driver.poll();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(connected_to(&server), 0);
}

/// UDP sockets of this machine that are connected to `server`.
fn connected_to(server: &UdpSocket) -> usize {
    let port = format!(":{:04X}", server.local_addr().unwrap().port());
    let table = fs::read_to_string("/proc/self/net/udp").unwrap();
    table
        .lines()
        .filter(|line| line.split_whitespace().nth(2).is_some_and(|peer| peer.ends_with(&port)))
        .count()
}

#[test]
fn an_impossible_source_fails_directly_and_costs_no_slot() {
    let mut driver = Driver::new(Limits { flows: 1, ..LIMITS });
    let token = upstream(0, 1);
    let (address, source) = ("127.0.0.1:9".parse().unwrap(), "192.0.2.1".parse().unwrap());
    driver.act(token, Op::Open { address, source: Origin::Local(source), interface: 0 });
    assert_eq!(driver.seen.pop_front(), Some((token, Event::OpenFailed { why: Why::NoPorts })));
    driver.act(token, Op::Open { address, source: Origin::Any, interface: 0 });
    assert!(driver.seen.is_empty());
}

#[test]
fn a_listening_socket_is_free_once_unlistened() {
    let mut driver = Driver::new(LIMITS);
    let (listener, address) = driver.receiving("127.0.0.1:0");
    let client = socket("127.0.0.1:0");
    client.send_to(b"last", address).unwrap();
    let got = driver.datagrams();
    let peer = got.peer.unwrap();
    driver.act_all(vec![
        (listener, Op::SendDown { buffer: got.buffer, from: 0, peer, local: None }),
        (listener, Op::Unlisten),
    ]);
    driver.event(listener, Event::Unlistened);
    assert_eq!(read(&client), b"last");
    UdpSocket::bind(address).expect("the address is free");
}

#[test]
fn a_listening_socket_that_comes_back_follows_the_one_that_goes() {
    let mut driver = Driver::new(LIMITS);
    let (listener, address) = driver.receiving("127.0.0.1:0");
    driver.poll();
    let id = SocketId(listener.slot);
    let again = |driver: &mut Driver| {
        let fd = open(Transport::Udp, &address.to_string(), 1).pop().unwrap();
        driver.ring.listen(id, Transport::Udp, fd);
        driver.act(listener, Op::Receive);
    };
    driver.act(listener, Op::Unlisten);
    again(&mut driver);
    driver.event(listener, Event::Stopped { why: None });
    driver.act(listener, Op::Receive);
    let client = socket("127.0.0.1:0");
    client.send_to(b"to the new one", address).unwrap();
    let got = driver.datagrams();
    driver.act(listener, Op::Recycle { buffer: got.buffer });
    // A socket that was not told to go stays.
    again(&mut driver);
    client.send_to(b"still there", address).unwrap();
    assert_eq!(driver.datagrams().bytes, 11);
    assert!(driver.seen.is_empty(), "{:?}", driver.seen);
}

/// With SO_REUSEPORT alone, a second process of this user would share the address unnoticed.
#[test]
fn an_address_that_another_process_has_is_refused() {
    let _company = shared();
    for transport in [Transport::Tcp, Transport::Udp] {
        let first = open(transport, "127.0.0.1:0", 2);
        let address = local_address(&first[0]);
        let error = try_open(transport, address, (2, 1), false).expect_err("it is taken");
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    }
    let first = open(Transport::Udp, "127.0.0.1:0", 2);
    try_open(Transport::Udp, local_address(&first[0]), (2, 1), true).expect("it is our own");
}

/// Which of two sockets each of 200 sources reached, twice each.
fn steered(address: &str, sources: &str) -> Vec<[usize; 2]> {
    let _company = shared();
    let pair = open_pair(Transport::Udp, address);
    let to = local_address(&pair[0]);
    let receivers: Vec<UdpSocket> = pair.into_iter().map(UdpSocket::from).collect();
    (0..200_u8)
        .map(|number| {
            let client = UdpSocket::bind(sources).unwrap();
            std::array::from_fn(|_| {
                client.send_to(&[number], to).unwrap();
                let hit = |receiver: &UdpSocket| receiver.recv(&mut [0; 8]).is_ok();
                receivers.iter().position(hit).expect("delivered")
            })
        })
        .collect()
}

/// Opens two sockets of one group, on a port that was free a moment ago.
fn open_pair(transport: Transport, address: &str) -> Vec<OwnedFd> {
    let port = local_address(&open(transport, address, 1)[0]).port();
    let mut address: SocketAddr = address.parse().unwrap();
    address.set_port(port);
    open(transport, &address.to_string(), 2)
}

#[test]
fn a_source_always_reaches_the_same_worker() {
    for (address, sources) in
        [("127.0.0.1:0", "127.0.0.1:0"), ("[::1]:0", "[::1]:0"), ("0.0.0.0:0", "127.0.0.1:0")]
    {
        let hits = steered(address, sources);
        assert!(hits.iter().all(|[first, second]| first == second));
        let second = hits.iter().filter(|[first, _]| *first == 1).count();
        assert!((60..=140).contains(&second), "{second} of 200 reached the second worker");
    }
}

/// Nobody outside can tell which sources share a worker.
#[test]
fn the_worker_of_a_source_depends_on_the_seed_alone() {
    let _company = shared();
    for home in ["127.0.0.1:0", "[::1]:0"] {
        let clients: Vec<_> = (0..64).map(|_| UdpSocket::bind(home).unwrap()).collect();
        let reached = |seed| {
            let address = local_address(&open(Transport::Udp, home, 1)[0]);
            let pair = try_open(Transport::Udp, address, (2, seed), true).unwrap();
            let receivers: Vec<UdpSocket> = pair.into_iter().map(UdpSocket::from).collect();
            let hit = |client: &UdpSocket| {
                client.send_to(b"x", address).unwrap();
                let hit = |receiver: &UdpSocket| receiver.recv(&mut [0; 8]).is_ok();
                receivers.iter().position(hit).expect("delivered")
            };
            clients.iter().map(hit).collect::<Vec<_>>()
        };
        let first = reached(1);
        assert_eq!(first, reached(1), "a listener that comes anew keeps it");
        let other = reached(2);
        let moved = first.iter().zip(&other).filter(|(one, other)| one != other).count();
        assert!((12..=52).contains(&moved), "{moved} of 64 have another worker");
    }
}

#[test]
fn connections_are_spread_over_the_workers() {
    let _company = shared();
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let pair = open_pair(Transport::Tcp, address);
        let to = local_address(&pair[0]);
        let clients: Vec<_> = (0..200).map(|_| TcpStream::connect(to).unwrap()).collect();
        let listeners = pair.into_iter().map(std::net::TcpListener::from);
        let counts: Vec<usize> = listeners
            .map(|listener| listener.incoming().take_while(Result::is_ok).count())
            .collect();
        assert_eq!(counts.iter().sum::<usize>(), clients.len());
        assert!(counts.iter().all(|count| *count >= 60), "{counts:?}");
    }
}
