//! Runs the program in the kernel (BPF_PROG_TEST_RUN) with random packets, and compares each result
//! with a model of what forwarding is. Needs CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN (for a
//! network namespace). Where one of them is missing, the tests say so and pass. Where all are
//! there, nothing is skipped.

use std::fs::File;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::process::Command;
use std::time::Duration;

use nix::net::if_::if_nametoindex;

use crate::contract::Carried;
use crate::ring::bpf::calls::{self, Ran};
use crate::ring::bpf::entry::Ways;
use crate::ring::bpf::program::{LICENSE, REDIRECT, stub};
use crate::ring::bpf::{BpfError, FastPath};
use crate::ring::sys::confine::confine_worker;

const CASES: u32 = 100_000;

const IN_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
const OUT_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
const ENDPOINT_MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];
/// Towards the endpoints.
const OUT_MTU: usize = 1_300;
const IN_MTU: usize = 1_500;

const NETWORK: &str = "
    ip link set lo up
    ip link add in0 address 02:00:00:00:01:01 type veth peer name in1
    ip link add out0 address 02:00:00:00:02:01 mtu 1300 type veth peer name out1 mtu 1300
    ip link set in0 up; ip link set in1 up; ip link set out0 up; ip link set out1 up
    ip addr add 10.1.0.1/24 dev in0; ip addr add fd01::1/64 dev in0 nodad
    ip addr add 10.2.0.1/24 dev out0; ip addr add fd02::1/64 dev out0 nodad
    ip neigh add 10.1.0.2 lladdr 02:00:00:00:01:02 dev in0 nud permanent
    ip neigh add 10.2.0.2 lladdr 02:00:00:00:02:02 dev out0 nud permanent
    ip neigh add fd01::2 lladdr 02:00:00:00:01:02 dev in0 nud permanent
    ip neigh add fd02::2 lladdr 02:00:00:00:02:02 dev out0 nud permanent
    echo 1 > /proc/sys/net/ipv4/conf/lo/forwarding
    echo 1 > /proc/sys/net/ipv6/conf/lo/forwarding
";

/// Runs `test` in a network namespace of its own, unless something is missing for that.
fn in_network(test: impl FnOnce(FastPath) + Send) {
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            // SAFETY: the call passes no memory. It changes this thread only.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
                return skip("no right to make a network namespace");
            }
            let made = Command::new("sh").args(["-e", "-c", NETWORK]).status();
            assert!(made.expect("sh").success(), "the network");
            match FastPath::open(100, true) {
                Ok(path) => test(path),
                Err(error @ BpfError::Forbidden(_)) => skip(&error.to_string()),
                Err(error) => panic!("{error}"),
            }
        });
        run.join().expect("the test's thread");
    });
}

/// Says that a test is skipped.
///
/// # Panics
///
/// The process's rights are enough for the test.
fn skip(why: &str) {
    let status = std::fs::read_to_string("/proc/self/status").expect("it is mounted");
    let rights = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("its rights");
    let rights = u64::from_str_radix(rights.trim(), 16).expect("a number");
    let needed = [CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF].map(|number| 1 << number);
    let has_rights = needed.iter().all(|right| rights & right != 0);
    assert!(!has_rights, "skipped, though nothing is missing: {why}");
    eprintln!("skipped: {why}");
}

/// capabilities(7)
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn ways(client: &str, listener: &str, own: &str, endpoint: &str) -> Ways {
    let [client, listener, own, endpoint] = [client, listener, own, endpoint].map(at);
    Ways { client, listener, own, endpoint }
}

/// Flows that can be forwarded, and two of each version that can't.
fn flows() -> Vec<Ways> {
    vec![
        ways("10.1.0.2:4000", "10.1.0.1:53", "10.2.0.1:40000", "10.2.0.2:5353"),
        ways("10.1.0.2:65535", "10.1.0.1:53", "10.2.0.1:1", "10.2.0.2:65535"),
        ways("[fd01::2]:4000", "[fd01::1]:53", "[fd02::1]:40000", "[fd02::2]:5353"),
        ways("[fd01::2]:1", "[fd01::1]:65535", "[fd02::1]:7", "[fd02::2]:1"),
        // No link-layer address is known.
        ways("10.1.0.2:4001", "10.1.0.1:53", "10.2.0.1:40001", "10.2.0.99:5353"),
        ways("[fd01::2]:4001", "[fd01::1]:53", "[fd02::1]:40001", "[fd02::99]:5353"),
        // The endpoint is on this machine.
        ways("10.1.0.2:4002", "10.1.0.1:53", "10.2.0.1:40002", "10.1.0.1:5353"),
        ways("[fd01::2]:4002", "[fd01::1]:53", "[fd02::1]:40002", "[fd01::1]:5353"),
    ]
}

/// Flows from here on have no route.
const FORWARDED: usize = 4;

/// splitmix64
struct Random(u64);

impl Random {
    /// Each run has the same packets, unless `RINGWAY_LONG` asks for others, or
    /// `RINGWAY_PACKETS_SEED` says which.
    fn from_outside() -> Self {
        let seed = match std::env::var("RINGWAY_PACKETS_SEED") {
            Ok(seed) => seed.parse().expect("RINGWAY_PACKETS_SEED is a number"),
            Err(_) if std::env::var_os("RINGWAY_LONG").is_some() => {
                let mut bytes = [0; 8];
                let mut source = File::open("/dev/urandom").expect("it is mounted");
                source.read_exact(&mut bytes).expect("it has no end");
                u64::from_ne_bytes(bytes)
            }
            Err(_) => 0x5eed,
        };
        eprintln!("replay these packets with RINGWAY_PACKETS_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("small")
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }
}

/// What is odd about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Odd {
    Nothing,
    Vlan,
    /// IPv4 options, or a hop-by-hop header.
    Options,
    Fragment,
    /// Must not be fragmented, which says nothing against forwarding.
    DontFragment,
    Tcp,
    OldTtl,
    LastTtl,
    OtherMac,
    Length,
    ShortUdp,
    Cut,
    NoChecksum,
    BadChecksum,
    Padded,
    Train,
}

const ODDITIES: [Odd; 15] = [
    Odd::Vlan,
    Odd::Options,
    Odd::Fragment,
    Odd::DontFragment,
    Odd::Tcp,
    Odd::OldTtl,
    Odd::LastTtl,
    Odd::OtherMac,
    Odd::Length,
    Odd::ShortUdp,
    Odd::Cut,
    Odd::NoChecksum,
    Odd::BadChecksum,
    Odd::Padded,
    Odd::Train,
];

/// The facts of a packet, from which it is built.
#[derive(Clone, Debug)]
struct Packet {
    source: SocketAddr,
    destination: SocketAddr,
    macs: [[u8; 6]; 2],
    tos: u8,
    ttl: u8,
    id: u16,
    payload: Vec<u8>,
    odd: Odd,
    gso_size: usize,
}

impl Packet {
    fn random(random: &mut Random, flow: &Ways, up: bool) -> Self {
        let (mut source, destination) =
            if up { (flow.client, flow.listener) } else { (flow.endpoint, flow.own) };
        if random.one_in(8) {
            source.set_port(source.port() ^ 0x100);
        }
        let odd = match random.one_in(2) {
            true => Odd::Nothing,
            false => ODDITIES[random.below(ODDITIES.len())],
        };
        let most = if random.one_in(2) { 40 } else { 1_450 };
        let mut payload = vec![0; random.below(most)];
        payload.fill_with(|| random.next().to_le_bytes()[0]);
        let mac = if up { IN_MAC } else { OUT_MAC };
        Self {
            source,
            destination,
            macs: [mac, [6, 6, 6, 6, 6, 6]],
            tos: random.next().to_le_bytes()[0],
            ttl: 3 + random.next().to_le_bytes()[0] % 250,
            id: random.next().to_le_bytes()[0].into(),
            gso_size: if odd == Odd::Train { 1 + random.below(1_400) } else { 0 },
            payload,
            odd,
        }
        .with_odd_fields()
    }

    fn with_odd_fields(mut self) -> Self {
        match self.odd {
            Odd::OldTtl => self.ttl %= 2,
            Odd::LastTtl => self.ttl = 2,
            Odd::OtherMac => self.macs[0] = [2, 9, 9, 9, 9, 9],
            _ => {}
        }
        self
    }

    fn is_ipv4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// Bytes from the IP header on.
    fn length(&self) -> usize {
        self.payload.len() + if self.is_ipv4() { 28 } else { 48 }
    }

    /// Builds the bytes, with checksums made from nothing.
    fn bytes(&self) -> Vec<u8> {
        let mut udp = Vec::new();
        udp.extend(self.source.port().to_be_bytes());
        udp.extend(self.destination.port().to_be_bytes());
        let len = match self.odd {
            Odd::ShortUdp => 7,
            _ => self.payload.len() + 8,
        };
        udp.extend(u16::try_from(len).expect("short").to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(&self.payload);
        let checksum = match self.odd {
            Odd::NoChecksum => 0,
            Odd::BadChecksum => match !self.checksum(&udp) {
                0 => 1,
                bad => bad,
            },
            _ => self.checksum(&udp),
        };
        udp[6..8].copy_from_slice(&checksum.to_be_bytes());
        let mut frame = self.macs.concat();
        if self.odd == Odd::Vlan {
            frame.extend([0x81, 0, 0, 7]);
        }
        frame.extend(if self.is_ipv4() { [0x08, 0] } else { [0x86, 0xdd] });
        frame.extend(self.ip_header(len));
        frame.extend(&udp);
        match self.odd {
            Odd::Cut => frame.truncate(frame.len() - 1),
            Odd::Padded => frame.extend([0; 18]),
            _ => {}
        }
        frame
    }

    fn ip_header(&self, udp: usize) -> Vec<u8> {
        let protocol = if self.odd == Odd::Tcp { 6 } else { 17 };
        let wrong = usize::from(self.odd == Odd::Length);
        let options = self.odd == Odd::Options;
        let length = |bytes: usize| u16::try_from(bytes).expect("short").to_be_bytes();
        let (IpAddr::V4(source), IpAddr::V4(destination)) =
            (self.source.ip(), self.destination.ip())
        else {
            let mut header = vec![0x60, self.tos & 0x0f, 0, 0];
            header.extend(length(udp + wrong + if options { 8 } else { 0 }));
            header.push(match self.odd {
                Odd::Options => 0,
                Odd::Fragment => 44,
                _ => protocol,
            });
            header.push(self.ttl);
            for ip in [self.source.ip(), self.destination.ip()] {
                if let IpAddr::V6(ip) = ip {
                    header.extend(ip.octets());
                }
            }
            if options {
                header.extend([17, 0, 1, 4, 0, 0, 0, 0]);
            }
            return header;
        };
        let words = if options { 6 } else { 5 };
        let mut header = vec![0x40 | words, self.tos];
        header.extend(length(usize::from(words) * 4 + udp + wrong));
        header.extend(self.id.to_be_bytes());
        header.extend(match self.odd {
            Odd::Fragment if self.id.is_multiple_of(2) => [0x20, 0],
            Odd::Fragment => [0, 9],
            Odd::DontFragment => [0x40, 0],
            _ => [0, 0],
        });
        header.extend([self.ttl, protocol, 0, 0]);
        header.extend(source.octets());
        header.extend(destination.octets());
        if options {
            header.extend([1, 1, 1, 1]);
        }
        let sum = !folded(sum(&header));
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }

    /// The checksum of a UDP header and payload whose checksum field is zero.
    fn checksum(&self, udp: &[u8]) -> u16 {
        let mut pseudo = Vec::new();
        for ip in [self.source.ip(), self.destination.ip()] {
            match ip {
                IpAddr::V4(ip) => pseudo.extend(ip.octets()),
                IpAddr::V6(ip) => pseudo.extend(ip.octets()),
            }
        }
        pseudo.extend([0, 17, udp[4], udp[5]]);
        match !folded(sum(&pseudo) + sum(udp)) {
            0 => 0xffff,
            checksum => checksum,
        }
    }
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|two| u64::from(two[0]) << 8 | two.get(1).map_or(0, |b| (*b).into())).sum()
}

fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}

/// What forwarding makes of a packet. `None`: the sockets get it as it came.
fn model(packet: &Packet, flow: usize, up: bool) -> Option<Packet> {
    let ways = flows()[flow];
    let expected = if up { ways.client } else { ways.endpoint };
    let mtu = if up { OUT_MTU } else { IN_MTU };
    let largest = match packet.gso_size {
        0 => packet.length(),
        size => size + packet.length() - packet.payload.len(),
    };
    let stays = match packet.odd {
        Odd::Vlan | Odd::Options | Odd::Fragment | Odd::Tcp | Odd::OldTtl | Odd::OtherMac => true,
        Odd::Length | Odd::ShortUdp | Odd::Cut => true,
        Odd::NoChecksum => !packet.is_ipv4(),
        Odd::DontFragment | Odd::LastTtl | Odd::BadChecksum | Odd::Padded => false,
        Odd::Nothing | Odd::Train => false,
    };
    // Replies of all flows find their client.
    let has_route = flow < FORWARDED || !up;
    if stays || packet.source != expected || !has_route || largest > mtu {
        return None;
    }
    let (source, destination, macs) = match up {
        true => (ways.own, ways.endpoint, [ENDPOINT_MAC, OUT_MAC]),
        false => (ways.listener, ways.client, [CLIENT_MAC, IN_MAC]),
    };
    Some(Packet { source, destination, macs, ttl: packet.ttl - 1, ..packet.clone() })
}

/// Whether the kernel can check the sum over the whole packet after a run.
fn can_check_sum(path: &FastPath, interface: u32) -> bool {
    calls::test_run(path.program.as_fd(), (interface, 0), &[0; 64], true).is_ok()
}

#[test]
fn a_confined_worker_promotes_asks_and_demotes() {
    in_network(|path| {
        confine_worker().expect("this kernel has filters");
        let flow = flows()[0];
        for _ in 0..2 {
            path.promote(&flow).expect("the addresses are free");
            assert_eq!(path.carried(&flow), Carried::default());
            path.demote(&flow);
        }
    });
}

#[test]
fn packets_are_forwarded_as_the_model_says() {
    in_network(|path| {
        let flows = flows();
        for flow in &flows {
            path.promote(flow).expect("promoting");
        }
        let interface = |name| if_nametoindex(name).expect("an interface");
        let interfaces = [interface("out0"), interface("in0")];
        let checks_sum = can_check_sum(&path, interfaces[0]);
        let mut random = Random::from_outside();
        let mut expected = vec![Carried::default(); flows.len()];
        for case in 0..CASES {
            let (flow, up) = (random.below(flows.len()), random.one_in(2));
            let packet = Packet::random(&mut random, &flows[flow], up);
            let interface = interfaces[usize::from(up)];
            let bytes = packet.bytes();
            // A train's packets are checked by their own checksums.
            let checks_sum = checks_sum && packet.gso_size == 0;
            let gso_size = u32::try_from(packet.gso_size).expect("small");
            let ran =
                calls::test_run(path.program.as_fd(), (interface, gso_size), &bytes, checks_sum);
            let ran = ran.unwrap_or_else(|error| {
                panic!("case {case}, {} bytes: {packet:?}: {error}", bytes.len())
            });
            let model = model(&packet, flow, up);
            check(&ran, &packet, model.as_ref(), case);
            if model.is_some() {
                count(&mut expected[flow], &packet, up);
            }
        }
        for (flow, expected) in flows.iter().zip(expected) {
            assert_eq!(path.demote(flow), expected, "{flow:?}");
            assert_eq!(path.carried(flow), Carried::default());
        }
    });
}

fn check(ran: &Ran, packet: &Packet, model: Option<&Packet>, case: u32) {
    let Some(model) = model else {
        assert_eq!(ran.result, u32::MAX, "case {case}: {packet:?} goes on");
        assert_eq!(ran.packet, packet.bytes(), "case {case}: {packet:?} is as it came");
        return;
    };
    assert_eq!(ran.result, REDIRECT, "case {case}: {packet:?} is forwarded");
    let (mut got, mut expected) = (ran.packet.clone(), model.bytes());
    if model.odd == Odd::BadChecksum {
        // What was wrong stays wrong.
        let right = Packet { odd: Odd::Nothing, ..model.clone() }.bytes();
        let at = if model.is_ipv4() { 40..42 } else { 60..62 };
        assert_ne!(got[at.clone()], right[at.clone()], "case {case}: {packet:?}");
        got[at.clone()].fill(0);
        expected[at].fill(0);
    }
    assert_eq!(got, expected, "case {case}: {packet:?}");
}

fn count(carried: &mut Carried, packet: &Packet, up: bool) {
    let bytes = packet.payload.len();
    let count = match packet.gso_size {
        0 => 1,
        size => bytes.div_ceil(size) as u64,
    };
    let (datagrams, sum) = match up {
        true => (&mut carried.up, &mut carried.bytes_up),
        false => (&mut carried.down, &mut carried.bytes_down),
    };
    *datagrams += count;
    *sum += bytes as u64;
}

/// So a filter that outlives its process does nothing (`clsact.rs`).
#[test]
fn a_stub_forwards_as_long_as_its_array_has_a_descriptor() {
    in_network(|path| {
        let flow = flows()[0];
        path.promote(&flow).expect("promoting");
        let array = calls::program_array("test", path.program.as_fd()).expect("an array");
        let code = stub(array.as_raw_fd());
        let stub = calls::program_load("test", &code, LICENSE, &mut []).expect("the checker");
        let packet = Packet {
            source: flow.client,
            destination: flow.listener,
            macs: [IN_MAC, CLIENT_MAC],
            tos: 0,
            ttl: 64,
            id: 1,
            payload: vec![7; 100],
            odd: Odd::Nothing,
            gso_size: 0,
        };
        let interface = if_nametoindex("in0").expect("an interface");
        let result = |program: &OwnedFd| {
            let ran = calls::test_run(program.as_fd(), (interface, 0), &packet.bytes(), false);
            ran.expect("a run").result
        };
        assert_eq!(result(&stub), REDIRECT);
        drop(array);
        // A thread of the kernel empties the array.
        let mut waits = 0;
        while result(&stub) == REDIRECT {
            waits += 1;
            assert!(waits < 10_000, "the stub forwards for seconds");
            std::thread::sleep(Duration::from_millis(1));
        }
        eprintln!("the stub stopped forwarding within {waits} ms");
        assert_eq!(result(&stub), u32::MAX, "the packet goes on");
        assert_eq!(result(&path.program), REDIRECT, "the program itself forwards still");
    });
}

#[test]
fn addresses_belong_to_one_flow() {
    in_network(|path| {
        let flow = flows()[0];
        path.promote(&flow).expect("promoting");
        let error = path.promote(&flow).expect_err("the flow is there");
        assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
        // Another client behind the same socket: the way up is taken back.
        let other = Ways { client: at("10.1.0.2:9"), ..flow };
        path.promote(&other).expect_err("the way down is there");
        path.demote(&flow);
        path.promote(&other).expect("nothing is left");
        for endpoint in ["127.0.0.1:9", "10.2.0.1:9", "0.0.0.0:9"] {
            assert!(path.promote(&Ways { endpoint: at(endpoint), ..flow }).is_err(), "{endpoint}");
        }
        let mixed = Ways { endpoint: at("[fd02::2]:9"), ..flow };
        assert!(path.promote(&mixed).is_err());
    });
}
