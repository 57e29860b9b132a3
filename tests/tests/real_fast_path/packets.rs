//! What becomes of a packet: trains, checksums, tags, and links that take less.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::sockopt::UdpGsoSegment;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, setsockopt, socket,
};
use ringway_tests::real::{Gateway, Namespace, Server, program, wait_until};

use crate::{Game, Player, World, carried, flows, for_both_versions, game, places};

/// How much the kernel has forwarded, once all that the player has sent and heard is counted.
/// Workers count once a second.
fn counted(gateway: &Gateway, player: &Player) -> u64 {
    wait_until("all bytes are counted", || {
        let metrics = gateway.metrics();
        let of = |side| metrics.value("ringway_endpoint_relayed_bytes_total", &[("side", side)]);
        (of("client"), of("endpoint")) == (player.up, player.down)
    });
    carried(gateway)
}

/// A train that its client hands to the kernel as one buffer (`UDP_SEGMENT`).
#[test]
fn trains_are_forwarded_whole() {
    for_both_versions(|version| trains_come_back(&mut Game::in_version(version, "", 1)));
}

fn trains_come_back(game: &mut Game) {
    let before = counted(&game.gateway, &game.player);
    setsockopt(&game.player.socket, UdpGsoSegment, &1_000).expect("Linux 4.18");
    let train: Vec<u8> = (0..4_500).map(|at: usize| (at / 7).to_le_bytes()[0]).collect();
    for round in 0..50 {
        game.player.socket.send(&train).expect("sending");
        let mut got: Vec<u8> = Vec::new();
        for _ in 0..5 {
            let mut bytes = [0; 2_000];
            let len = game.player.socket.recv(&mut bytes).expect("an answer");
            got.extend(&bytes[1..len]);
        }
        assert_eq!(got, train, "round {round}");
        game.player.up += train.len() as u64;
        // Each of the five has a mark in front.
        game.player.down += train.len() as u64 + 5;
    }
    assert!(counted(&game.gateway, &game.player) >= before + 500);
}

/// Senders leave checksums to their network card, and veth has none. Here the kernel must make them
/// before the gateway's interfaces take a packet, and receivers check them.
#[test]
fn checksums_that_the_sender_has_not_made_are_right() {
    for_both_versions(|version| {
        let mut game = Game::in_version(version, "", 1);
        for interface in ["clients", "servers"] {
            program("ethtool", &["-K", interface, "tx", "off"]);
        }
        for namespace in [&game.world.clients, &game.world.servers] {
            namespace.run(|| program("ethtool", &["-K", "eth0", "rx", "off"]));
        }
        let before = counted(&game.gateway, &game.player);
        assert_eq!(game.player.play(200), [0]);
        // All but the fragments, which are one of 50 moves, both ways.
        assert!(counted(&game.gateway, &game.player) >= before + 390);
        trains_come_back(&mut game);
    });
}

/// A link behind the gateway, and one behind a router, take smaller packets than the client's.
#[test]
fn packets_that_do_not_fit_go_through_the_worker() {
    for_both_versions(|version| {
        let mut game = Game::in_version(version, "", 1);
        let large = vec![7; 1_400];
        let mut bytes = [0; 2_000];
        let passes = |game: &mut Game, bytes: &mut [u8]| {
            game.player.ask(&large, bytes) == Some(large.len() + 1)
        };
        assert!(passes(&mut game, &mut bytes));
        program("ip", &["link", "set", "servers", "mtu", "1300"]);
        game.world.servers.run(|| program("ip", &["link", "set", "eth0", "mtu", "1300"]));
        let before = counted(&game.gateway, &game.player);
        for _ in 0..50 {
            assert!(passes(&mut game, &mut bytes));
        }
        let after = counted(&game.gateway, &game.player);
        assert_eq!(after, before, "the worker sends them in fragments");
        assert_eq!(flows(&game.gateway), 1, "and the flow stays promoted");
        game.player.play(100);
        wait_until("small ones are the kernel's", || carried(&game.gateway) > before + 100);
    });
}

/// The router's ICMP comes to the gateway, which the client never hears of.
#[test]
fn a_smaller_link_behind_a_router_is_learned() {
    for_both_versions(|version| {
        let world = World::new();
        let far = world.servers.run(|| {
            let far = Namespace::new();
            far.join("far", "10.3.0", "fd03");
            program("ip", &["link", "set", "far", "mtu", "1300"]);
            for of in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                program("sh", &["-c", &format!("echo 1 > /proc/sys/net/{of}")]);
            }
            far
        });
        program("ip", &["route", "add", "10.3.0.0/24", "via", "10.2.0.2"]);
        program("ip", &["-6", "route", "add", "fd03::/64", "via", "fd02::2"]);
        let endpoint = ["10.3.0.2:9000", "[fd03::2]:9000"][version];
        let _server = far.run(move || {
            let at = endpoint.parse().expect("an address");
            Server::udp_at(at, |socket, bytes, peer| {
                let _ = socket.send_to(&[&[0], &bytes[..8]].concat(), peer);
            })
        });
        let at = places()[version].0;
        let gateway = Gateway::start(&game(at, &[endpoint], "", "required"));
        let mut bytes = [0; 64];
        // A new link of IPv6 needs a while.
        let mut first = world.player(at);
        wait_until("the first answer", || first.ask(b"eight of", &mut bytes).is_some());
        let mut player = world.player(at);
        for _ in 0..100 {
            assert!(player.ask(b"eight of", &mut bytes).is_some());
        }
        assert_eq!(flows(&gateway), 1);
        player.socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        let large = vec![7; 1_400];
        wait_until("a large one arrives", || player.ask(&large, &mut bytes).is_some());
        for _ in 0..20 {
            assert!(player.ask(&large, &mut bytes).is_some());
        }
    });
}

/// The flow's addresses in a frame with a VLAN tag. A tag of no VLAN leaves the packet to the
/// sockets, and a packet of a VLAN that the gateway is not in belongs to nobody.
#[test]
fn frames_with_a_vlan_tag_are_left_alone() {
    for_both_versions(|version| {
        let world = World::new();
        let (at, endpoints) = places()[version];
        let endpoint: SocketAddr = endpoints[0].parse().expect("an address");
        let seen = Arc::new(Mutex::new(None));
        let peers = Arc::clone(&seen);
        let server = world.servers.run(move || {
            Server::udp_at(endpoint, move |socket, bytes, peer| {
                *peers.lock().expect("no panic") = Some(peer);
                let _ = socket.send_to(&[&[0], bytes].concat(), peer);
            })
        });
        let gateway = Gateway::start(&game(at, &endpoints[..1], "", "required"));
        let mut player = world.player(at);
        player.play(100);
        let before = counted(&gateway, &player);
        assert_eq!(flows(&gateway), 1);
        let own = seen.lock().expect("no panic").expect("the gateway has sent something");
        let up = Wire::new(&world.clients, "clients", (player.address(), at));
        let down = Wire::new(&world.servers, "servers", (endpoint, own));
        let hears = |wanted: &[u8]| {
            let mut bytes = [0; 64];
            player.socket.recv(&mut bytes).is_ok_and(|len| bytes[..len] == *wanted)
        };
        let served = server.served();
        // What a frame of another VLAN brings would come before the next one's.
        for _ in 0..10 {
            up.send(7, b"a move");
            up.send(0, b"a move");
            assert!(hears(b"\0a move"), "the answer");
            down.send(7, b"news");
            down.send(0, b"news");
            assert!(hears(b"news"));
        }
        player.up += 10 * 6;
        player.down += 10 * (7 + 4);
        let after = counted(&gateway, &player);
        player.socket.set_nonblocking(true).expect("a socket");
        assert!(player.socket.recv(&mut [0; 64]).is_err(), "a datagram of another VLAN");
        assert_eq!(server.served(), served + 10, "moves of another VLAN");
        assert_eq!(after, before + 10, "the answers have no tag, and nothing else");
    });
}

/// Clients and servers behind VLANs of the gateway's. Their packets have no tag where the program
/// of the VLAN's interface sees them.
#[test]
fn flows_go_from_vlan_to_vlan() {
    for_both_versions(|version| {
        let world = World::new();
        if !has_vlans() {
            return eprintln!("skipped: this kernel has no VLANs");
        }
        let add = |dev: &'static str, id: &'static str, host: &str| {
            let name = format!("{dev}.{id}");
            let link = ["link", "add", "link", dev, "name", &name, "type", "vlan", "id", id];
            program("ip", &link);
            for address in [format!("10.{id}.0.{host}/24"), format!("fd0{id}::{host}/64")] {
                let nodad = if address.contains(':') { &["nodad"][..] } else { &[] };
                program("ip", &[&["address", "add", &address, "dev", &name], nodad].concat());
            }
            program("ip", &["link", "set", &name, "up"]);
        };
        add("clients", "7", "1");
        add("servers", "8", "1");
        world.clients.run(move || add("eth0", "7", "2"));
        world.servers.run(move || add("eth0", "8", "2"));
        let at = places()[version].0;
        let at =
            SocketAddr::new(["10.7.0.1", "fd07::1"][version].parse().expect("an IP"), at.port());
        let endpoint = ["10.8.0.2:9000", "[fd08::2]:9000"][version];
        let _server = world.server(endpoint, 0);
        let gateway = Gateway::start(&game(at, &[endpoint], "", "required"));
        let mut player = world.player(at);
        assert_eq!(player.play(100), [0]);
        assert_eq!(flows(&gateway), 1);
        let before = carried(&gateway);
        assert_eq!(player.play(200), [0]);
        wait_until("the kernel has forwarded them", || carried(&gateway) >= before + 390);
        let lines = gateway.stop();
        let line = lines.iter().find(|line| line.text("reason").is_some()).expect("its line");
        let logged = (line.number("bytes_up"), line.number("bytes_down"));
        assert_eq!(logged, (player.up, player.down));
    });
}

fn has_vlans() -> bool {
    let link = ["link", "add", "link", "clients", "name", "clients.9", "type", "vlan", "id", "9"];
    Command::new("ip").args(link).output().expect("ip").status.success()
}

/// Sends frames to the gateway that the stack of their sender would not send.
struct Wire {
    socket: OwnedFd,
    link: LinkAddr,
    /// The gateway's link-layer address, and the sender's.
    macs: [[u8; 6]; 2],
    from: SocketAddr,
    to: SocketAddr,
}

impl Wire {
    /// `interface`: the gateway's.
    fn new(namespace: &Namespace, interface: &str, (from, to): (SocketAddr, SocketAddr)) -> Self {
        let (socket, link) = namespace.run(|| {
            let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None);
            (raw.expect("a raw socket"), link("eth0"))
        });
        let macs = [self::link(interface), link].map(|of| of.addr().expect("Ethernet"));
        Self { socket, link, macs, from, to }
    }

    /// `tag`: priority and number of the VLAN.
    fn send(&self, tag: u16, payload: &[u8]) {
        let frame = frame(self.macs, tag, (self.from, self.to), payload);
        let sent = sendto(self.socket.as_raw_fd(), &frame, &self.link, MsgFlags::empty());
        assert_eq!(sent, Ok(frame.len()));
    }
}

fn link(name: &str) -> LinkAddr {
    let mut all = getifaddrs().expect("the interfaces").filter(|of| of.interface_name == name);
    let link = all.find_map(|of| of.address?.as_link_addr().copied());
    link.unwrap_or_else(|| panic!("no interface {name}"))
}

fn frame(
    macs: [[u8; 6]; 2],
    tag: u16,
    (from, to): (SocketAddr, SocketAddr),
    payload: &[u8],
) -> Vec<u8> {
    let short = |number: usize| u16::try_from(number).expect("a short packet").to_be_bytes();
    let length = payload.len() + 8;
    let mut udp = [from.port().to_be_bytes(), to.port().to_be_bytes(), short(length)].concat();
    udp.extend([0, 0]);
    udp.extend(payload);
    let (addresses, ethertype, header) = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let addresses = [from.octets(), to.octets()].concat();
            let mut header =
                [&[0x45, 0][..], &short(length + 20), &[0, 0, 0, 0, 64, 17, 0, 0]].concat();
            header.extend(&addresses);
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            (addresses, [0x08, 0], header)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let addresses = [from.octets(), to.octets()].concat();
            let header = [&[0x60, 0, 0, 0][..], &short(length), &[17, 64], &addresses].concat();
            (addresses, [0x86, 0xdd], header)
        }
        _ => panic!("{from} and {to} are of two IP versions"),
    };
    let covered = [&addresses[..], &[0, 17], &short(length), &udp].concat();
    // 0 says that there is no checksum.
    let sum = Some(checksum(&covered)).filter(|sum| *sum > 0).unwrap_or(0xffff);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    let tag = tag.to_be_bytes();
    [&macs.concat()[..], &[0x81, 0], &tag, &ethertype, &header, &udp].concat()
}

/// Ones' complement of the sum of all halves (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let half = |two: &[u8]| u32::from(two[0]) << 8 | two.get(1).map_or(0, |byte| (*byte).into());
    let mut sum: u32 = bytes.chunks(2).map(half).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}
