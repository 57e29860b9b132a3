//! The PROXY protocol in datagrams, through the binary: taken off, put on, and both.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::{Arc, Mutex};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;
use ringway_tests::real::config::{backend, forward, listener, route};
use ringway_tests::real::{
    Gateway, Server, free_address, free_port, in_own_network, program, udp_client, wait_for,
    wait_until,
};

const FROM_HERE: &str = "accept_proxy = { from = [\"127.0.0.1\"] }";
const FROM_ELSEWHERE: &str = "accept_proxy = { from = [\"127.0.0.2\"] }";
/// Bytes of a header over IPv4 without TLVs.
const HEADER: i32 = 28;
const SHARED: &str = "upstream_sockets = \"shared\"\nsource = [\"127.0.1.0/28\"]";
/// Silent flows end so long after SIGTERM.
const SHORT_DRAIN: &str = "lame_duck = \"1s\"\n";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A header of version 2 for a datagram, from this source to 198.51.100.7:53.
fn header(source: &str) -> Vec<u8> {
    let source: SocketAddrV4 = source.parse().expect("an address");
    let mut bytes = [SIGNATURE, b"\x21\x12\0\x0c"].concat();
    bytes.extend(source.ip().octets());
    bytes.extend([198, 51, 100, 7]);
    bytes.extend(source.port().to_be_bytes());
    bytes.extend(53_u16.to_be_bytes());
    bytes
}

fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut bytes = vec![0; 65_536];
    let len = socket.recv(&mut bytes).expect("a datagram");
    bytes.truncate(len);
    bytes
}

/// Hears everything, and answers nothing.
fn ear() -> (Server, Arc<Mutex<Vec<Vec<u8>>>>) {
    let heard: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let ear = Arc::clone(&heard);
    let server = Server::udp(move |_, bytes, _| ear.lock().expect("a lock").push(bytes.to_vec()));
    (server, heard)
}

#[test]
fn a_header_is_taken_off_and_tells_clients_apart() {
    let (server, address) = (Server::udp_echo(), free_address());
    let config = forward("UDP", address, [server.address], FROM_HERE);
    let gateway = Gateway::start(&(SHORT_DRAIN.to_owned() + &config));
    let proxy = udp_client(address);
    let local = [SIGNATURE, b"\x20\0\0\0"].concat();
    let sources = ["192.0.2.1:56324", "192.0.2.1:56325", "203.0.113.9:56324"];
    for header in sources.map(header).into_iter().chain([local]) {
        for payload in [&b"question"[..], b"", b"another"] {
            proxy.send(&[&header[..], payload].concat()).expect("sent");
            assert_eq!(receive(&proxy), payload, "without a header");
        }
    }
    let own = proxy.local_addr().expect("an address").to_string();
    // Not before: a flow that ends in between would be two.
    let lines = gateway.stop();
    assert_eq!(lines.len(), 4, "{lines:?}");
    for source in sources {
        let line = lines.iter().find(|line| line.text("client") == Some(source));
        let line = line.unwrap_or_else(|| panic!("no flow of {source}"));
        assert_eq!((line.text("peer"), line.number("bytes_up")), (Some(&*own), 15));
    }
    assert!(lines.iter().any(|line| line.text("client") == Some(&own)), "one is the proxy's own");
}

#[test]
fn datagrams_without_a_valid_header_are_dropped_and_counted() {
    let (server, address) = (Server::udp_echo(), free_address());
    let gateway = Gateway::start(&forward("UDP", address, [server.address], FROM_HERE));
    let proxy = udp_client(address);
    let good = header("192.0.2.1:1000");
    let mut of_version_3 = good.clone();
    of_version_3[12] = 0x31;
    let wrong: [&[u8]; 5] =
        [b"", b"plain", b"PROXY UDP4 192.0.2.1 1.2.3.4 1 2\r\n", &good[..20], &of_version_3];
    for bytes in wrong {
        proxy.send(bytes).expect("sent");
    }
    proxy.send(&[&good[..], b"right"].concat()).expect("sent");
    assert_eq!(receive(&proxy), b"right");
    let labels = [("listener", "main"), ("reason", "proxy_invalid")];
    wait_until("all are counted", || {
        gateway.metrics().value("ringway_datagrams_dropped_total", &labels) == 5
    });
    assert_eq!(server.served(), 1);
}

#[test]
fn sources_outside_send_no_header_and_none_is_looked_for() {
    let (server, address) = (Server::udp_echo(), free_address());
    let _gateway = Gateway::start(&forward("UDP", address, [server.address], FROM_ELSEWHERE));
    let client = udp_client(address);
    let looks_like_one = [&header("192.0.2.1:1000")[..], b"payload"].concat();
    client.send(&looks_like_one).expect("sent");
    assert_eq!(receive(&client), looks_like_one);
}

#[test]
fn where_only_proxies_may_send_all_other_datagrams_are_dropped() {
    let (server, address) = (Server::udp_echo(), free_address());
    let only = "accept_proxy = { from = [\"127.0.0.2\"], only = true }";
    let config = forward("UDP", address, [server.address], only);
    let gateway = Gateway::start(&(SHORT_DRAIN.to_owned() + &config));
    let stranger = udp_client(address);
    let datagram = [&header("192.0.2.1:1000")[..], b"payload"].concat();
    stranger.send(&datagram).expect("sent");
    let proxy = UdpSocket::bind("127.0.0.2:0").expect("a socket");
    proxy.connect(address).expect("connected");
    proxy.send(&datagram).expect("sent");
    assert_eq!(receive(&proxy), b"payload");
    let labels = [("listener", "main"), ("reason", "proxy_missing")];
    wait_until("the stranger's datagram is counted", || {
        gateway.metrics().value("ringway_datagrams_dropped_total", &labels) == 1
    });
    let own = stranger.local_addr().expect("an address").to_string();
    let lines = gateway.stop();
    let line = lines.iter().find(|line| line.text("client") == Some(&own)).expect("its line");
    assert_eq!(line.text("reason"), Some("proxy_missing"));
    assert_eq!(server.served(), 1);
}

/// The kernel hands a train of datagrams over as one; their clients may differ all the same.
#[test]
fn the_datagrams_of_a_train_may_be_of_several_clients() {
    let ((server, heard), address) = (ear(), free_address());
    let options = format!("{FROM_HERE}\nflow_timeout = \"300ms\"");
    let gateway = Gateway::start(&forward("UDP", address, [server.address], &options));
    let proxy = udp_client(address);
    let (one, other) = (header("192.0.2.1:1000"), header("192.0.2.2:1000"));
    let datagram = |header: &[u8], payload: &[u8]| [header, payload].concat();
    let train = [
        datagram(&one, b"one-1"),
        datagram(&one, b"one-2"),
        datagram(&other, b"two-1"),
        vec![b'x'; one.len() + 5],
        datagram(&one, b"one-3"),
        datagram(&other, b"end"),
    ];
    setsockopt(&proxy, UdpGsoSegment, &(HEADER + 5)).expect("an option");
    proxy.send(&train.concat()).expect("sent");
    wait_until("five have arrived", || server.served() == 5);
    let mut heard = heard.lock().expect("a lock").clone();
    heard.sort();
    assert_eq!(heard, [&b"end"[..], b"one-1", b"one-2", b"one-3", b"two-1"]);
    let lines = gateway.closes(2);
    let bytes = |client| {
        let line = lines.iter().find(|line| line.text("client") == Some(client));
        line.map(|line| line.number("bytes_up"))
    };
    assert_eq!((bytes("192.0.2.1:1000"), bytes("192.0.2.2:1000")), (Some(15), Some(8)));
    let labels = [("listener", "main"), ("reason", "proxy_invalid")];
    assert_eq!(gateway.metrics().value("ringway_datagrams_dropped_total", &labels), 1);
}

/// Over a socket of the flow's own, and over a shared one.
#[test]
fn endpoints_are_told_whose_each_datagram_is() {
    for options in ["", SHARED] {
        let ((server, heard), address) = (ear(), free_address());
        let config = SHORT_DRAIN.to_owned()
            + &listener("main", "UDP", address, "")
            + &route("main", "main", &[("main", 1)], "")
            + &backend("main", [server.address], &format!("send_proxy = \"v2\"\n{options}"));
        let gateway = Gateway::start(&config);
        let client = udp_client(address);
        let SocketAddr::V4(own) = client.local_addr().expect("an address") else { panic!("IPv4") };
        let SocketAddr::V4(to) = address else { panic!("IPv4") };
        let mut expected = [SIGNATURE, b"\x21\x12\0\x0c"].concat();
        expected.extend(own.ip().octets());
        expected.extend(to.ip().octets());
        expected.extend(own.port().to_be_bytes());
        expected.extend(to.port().to_be_bytes());

        client.send(b"").expect("sent");
        client.send(b"single").expect("sent");
        wait_until("two have arrived", || server.served() == 2);
        setsockopt(&client, UdpGsoSegment, &1200).expect("an option");
        let train: Vec<u8> =
            (0..20 * 1200 + 7_u32).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
        client.send(&train).expect("sent");
        wait_until("all have arrived", || server.served() == 23);
        let heard = heard.lock().expect("a lock").clone();
        let payloads = heard.iter().map(|datagram| {
            datagram.strip_prefix(&expected[..]).expect("each begins with the header")
        });
        let payloads: Vec<_> = payloads.collect();
        assert_eq!((payloads[0], payloads[1]), (&b""[..], &b"single"[..]));
        assert!(payloads[2..22].iter().all(|payload| payload.len() == 1200));
        assert_eq!(payloads[2..].concat(), train);
        // What it answers with is nobody's but the client's.
        assert_eq!(gateway.stop()[0].number("bytes_up"), 6 + train.len() as u64);
    }
}

/// A datagram that grows beyond what there is in one is dropped, and its flow lives.
#[test]
fn datagrams_that_grow_too_large_are_counted() {
    let ((server, _), address) = (ear(), free_address());
    let config = listener("main", "UDP", address, "")
        + &route("main", "main", &[("main", 1)], "")
        + &backend("main", [server.address], "send_proxy = \"v2\"");
    let gateway = Gateway::start(&config);
    let client = udp_client(address);
    client.send(&[7; 65_507]).expect("sent");
    client.send(b"small").expect("sent");
    wait_until("the small one has arrived", || server.served() == 1);
    let labels = [("listener", "main"), ("reason", "too_big")];
    wait_until("the other is counted", || {
        gateway.metrics().value("ringway_datagrams_dropped_total", &labels) == 1
    });
}

/// On a path of 1,500 bytes, as most are: what its header makes too large for one packet arrives in
/// fragments and is counted, but for what clients had sent in fragments. Needs root.
#[test]
fn datagrams_that_grow_beyond_the_mtu_arrive_and_are_counted() {
    in_own_network(|| {
        program("ip", &["link", "set", "lo", "mtu", "1500"]);
        for options in ["", SHARED] {
            let ((server, heard), address) = (ear(), free_address());
            let config = listener("main", "UDP", address, "")
                + &route("main", "main", &[("main", 1)], "")
                + &backend("main", [server.address], &format!("send_proxy = \"v2\"\n{options}"));
            let gateway = Gateway::start(&config);
            let client = udp_client(address);
            let counted = |count| {
                wait_until("they are counted", || {
                    let labels = [("listener", "main")];
                    gateway.metrics().value("ringway_datagrams_fragmented_total", &labels) == count
                });
            };
            // 28 bytes are the headers of IPv4 and UDP, 28 that of the PROXY protocol.
            for (number, (size, count)) in
                (1..).zip([(1_444, 0), (1_445, 1), (1_472, 2), (1_473, 2)])
            {
                client.send(&vec![7; size]).expect("sent");
                wait_until("it has arrived", || server.served() == number);
                counted(count);
            }
            // All of these but the last; the second train is not tried as one any more.
            setsockopt(&client, UdpGsoSegment, &1_460).expect("an option");
            for train in 1..=2 {
                client.send(&[8; 9 * 1_460 + 100]).expect("sent");
                wait_until("they have arrived", || server.served() == 4 + 10 * train);
                counted(2 + 9 * train);
            }
            let sizes = heard.lock().expect("a lock").iter().map(Vec::len).collect::<Vec<_>>();
            assert_eq!(sizes[..4], [1_472, 1_473, 1_500, 1_501]);
            assert_eq!(sizes[4..14], [&[1_488; 9][..], &[128]].concat());
        }
    });
}

/// A header of version 2 between addresses of IPv6, from this source to [2001:db8::7]:53.
fn header_v6(source: [u8; 16], port: u16) -> Vec<u8> {
    let mut bytes = [SIGNATURE, b"\x21\x22\0\x24"].concat();
    bytes.extend(source);
    bytes.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    bytes.extend(port.to_be_bytes());
    bytes.extend(53_u16.to_be_bytes());
    bytes
}

/// What endpoints are told is what the proxy in front has said, of either IP version.
#[test]
fn headers_come_and_go_over_ipv6() {
    let home = |port| SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port);
    let heard: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let ear = Arc::clone(&heard);
    let server = Server::udp_at(home(0), move |socket, bytes, peer| {
        ear.lock().expect("a lock").push(bytes.to_vec());
        socket.send_to(b"answer", peer).expect("sent");
    });
    let address = home(free_port());
    let config = listener("main", "UDP", address, "accept_proxy = { from = [\"::1\"] }")
        + &route("main", "main", &[("main", 1)], "")
        + &backend("main", [server.address], "send_proxy = \"v2\"");
    let gateway = Gateway::start(&config);
    let proxy = udp_client(address);
    let [mut one, mut other] = [[0; 16]; 2];
    one[..4].copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
    other[..4].copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
    other[15] = 9;
    let headers = [header_v6(one, 1_000), header_v6(other, 1_000), header("192.0.2.1:1000")];
    for header in &headers {
        proxy.send(&[&header[..], b"question"].concat()).expect("sent");
        assert_eq!(receive(&proxy), b"answer");
    }
    let expected = headers.map(|header| [&header[..], b"question"].concat());
    assert_eq!(*heard.lock().expect("a lock"), expected);
    // Without one in front, it is the client's own address.
    drop(gateway);
    let _gateway = Gateway::start(&config.replace("\"::1\"", "\"::2\""));
    proxy.send(b"question").expect("sent");
    assert_eq!(receive(&proxy), b"answer");
    let last = heard.lock().expect("a lock")[3].clone();
    let own = proxy.local_addr().expect("an address").port().to_be_bytes();
    let home = Ipv6Addr::LOCALHOST.octets();
    let port = address.port().to_be_bytes();
    let expected = [SIGNATURE, b"\x21\x22\0\x24", &home, &home, &own, &port, b"question"].concat();
    assert_eq!(last, expected);
}

/// Two gateways in a row: the second knows the client by what the first says.
#[test]
fn one_gateway_tells_the_other_and_replies_find_their_way_back() {
    let (server, first, second) = (Server::udp_echo(), free_address(), free_address());
    let options = format!("{FROM_HERE}\nflow_timeout = \"300ms\"");
    let behind = Gateway::start(&forward("UDP", second, [server.address], &options));
    let config = listener("main", "UDP", first, "")
        + &route("main", "main", &[("main", 1)], "")
        + &backend(
            "main",
            [second],
            "send_proxy = \"v2\"\nproxy_tlvs = [\"unique-id\", \"crc32c\"]",
        );
    let _before = Gateway::start(&config);
    let clients: Vec<_> = (0..5).map(|_| udp_client(first)).collect();
    for (number, client) in clients.iter().enumerate() {
        client.send(format!("of {number}").as_bytes()).expect("sent");
    }
    for (number, client) in clients.iter().enumerate() {
        assert_eq!(receive(client), format!("of {number}").as_bytes());
    }
    for client in &clients {
        let own = client.local_addr().expect("an address").to_string();
        let line = wait_for(&format!("the second's line of {own}"), || {
            behind.log().into_iter().find(|line| line.text("client") == Some(&own))
        });
        assert!(line.has("peer"), "who has sent the header");
    }
}
