//! The program that forwards promoted flows: it runs for each packet that comes in on an interface,
//! before the kernel's own receive path.
//!
//! A packet that is not of a promoted flow, or that needs more than a new address, goes on to the
//! sockets as if there were no program. Those are: VLAN tags, IP options, extension headers,
//! fragments, a TTL that is used up, a packet that is larger than the next link takes, a next hop
//! whose link-layer address is not known, and an endpoint on this machine. Nothing of a packet is
//! changed before it is certain that the packet can be sent.
//!
//! A packet that is forwarded gets new addresses and ports, a TTL that is one less, checksums to
//! match, and the link-layer addresses of the next hop. A train of datagrams (GSO) stays a train.

use std::ffi::CStr;

use crate::ring::bpf::assembler::{Assembler, Do, Helper, If, Instruction, Label, Register, Size};

use Register::{R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10};

/// The results of a program (linux/pkt_cls.h). The packet goes on to other programs of the
/// interface, and then to the sockets (TC_ACT_UNSPEC, which is TCX_NEXT).
pub const GO_ON: i32 = -1;
/// TC_ACT_SHOT
pub const DROP: i32 = 2;
/// TC_ACT_REDIRECT
#[cfg(test)]
pub const REDIRECT: u32 = 7;

/// The kernel gives its route look-up only to programs whose license is compatible with the GPL.
/// So the program that this file emits is offered under GPL-2.0 too, beside Apache-2.0.
pub const LICENSE: &CStr = c"GPL";

/// What differs between the IP versions. Offsets are from the start of the Ethernet frame.
#[derive(Clone, Copy, Debug)]
pub struct Version {
    /// AF_INET or AF_INET6
    pub family: i32,
    /// In the order of the network.
    ethertype: i32,
    /// Bytes of the frame up to the payload.
    headers: i16,
    /// The source address. The destination address and the ports follow.
    tuple: i16,
    /// Bytes of one address.
    address: i16,
}

pub const IPV4: Version =
    Version { family: libc::AF_INET, ethertype: 0x0008, headers: 42, tuple: 26, address: 4 };
pub const IPV6: Version =
    Version { family: libc::AF_INET6, ethertype: 0xdd86, headers: 62, tuple: 22, address: 16 };

impl Version {
    /// The bytes of a key: source address, destination address, source port, destination port, as
    /// they stand in the packet.
    pub const fn key(self) -> usize {
        self.address as usize * 2 + 4
    }

    /// The bytes of a value: the key that the packet gets, and the counters.
    pub const fn value(self) -> usize {
        self.counters() as usize + 16
    }

    /// Where a value has its counters: datagrams, and their bytes.
    pub const fn counters(self) -> i16 {
        // Numbers of 64 bits stand at multiples of 8.
        (self.address * 2 + 4 + 7) / 8 * 8
    }

    fn ports(self) -> i16 {
        self.tuple + self.address * 2
    }

    fn checksum(self) -> i16 {
        self.ports() + 6
    }
}

/// Fields of `struct __sk_buff` (linux/bpf.h).
mod skb {
    pub const LEN: i16 = 0;
    pub const PKT_TYPE: i16 = 4;
    pub const PROTOCOL: i16 = 16;
    pub const VLAN_PRESENT: i16 = 20;
    pub const GSO_SIZE: i16 = 176;
}

/// Fields of `struct bpf_fib_lookup` (linux/bpf.h).
mod fib {
    pub const FAMILY: i16 = 0;
    pub const PROTOCOL: i16 = 1;
    pub const PORTS: i16 = 2;
    pub const LENGTH: i16 = 6;
    pub const INTERFACE: i16 = 8;
    pub const SOURCE: i16 = 16;
    pub const DESTINATION: i16 = 32;
    pub const OWN_MAC: i16 = 52;
    pub const NEXT_MAC: i16 = 58;
    pub const BYTES: i16 = 64;
}

// The stack, from its end down.
/// Datagrams of the packet.
const COUNT: i16 = -8;
/// Payload bytes of the packet.
const BYTES: i16 = -16;
/// The headers of the packet. Two bytes off, so that the addresses are aligned.
const FRAME: i16 = -78;
/// The question and answer about the route.
const ROUTE: i16 = -144;
/// The addresses and ports that the packet gets. They are copied at once, because the entry may
/// leave the map, and its memory may become another flow's, while the program runs.
const NEW: i16 = -184;

/// The interface by whose rules a route is looked up. The loopback interface: a route for packets
/// of this machine itself, as the sockets' datagrams have. Its `forwarding` must be on.
const LOOPBACK: i32 = 1;
const UDP: i32 = 17;
/// PACKET_HOST
const FOR_THIS_MACHINE: i32 = 0;

// Flags of the helpers (linux/bpf.h).
const RECOMPUTE: i32 = 1;
const PSEUDO_HEADER: i32 = 0x10;
const ZERO_IS_NONE: i32 = 0x20;

/// The program, for the maps with these descriptors.
pub fn program(ipv4: i32, ipv6: i32) -> Vec<Instruction> {
    let mut code = Assembler::default();
    let (go_on, drop, second) = (code.label(), code.label(), code.label());
    code.set(R6, R1);
    code.load(Size::Word, R0, (R6, skb::PKT_TYPE));
    code.jump_if(R0, If::NotEqual, FOR_THIS_MACHINE, go_on);
    code.load(Size::Word, R0, (R6, skb::VLAN_PRESENT));
    code.jump_if(R0, If::NotEqual, 0, go_on);
    code.load(Size::Word, R0, (R6, skb::PROTOCOL));
    code.jump_if(R0, If::Equal, IPV6.ethertype, second);
    code.jump_if(R0, If::NotEqual, IPV4.ethertype, go_on);
    forward(&mut code, IPV4, ipv4, (go_on, drop));
    code.place(second);
    forward(&mut code, IPV6, ipv6, (go_on, drop));
    code.place(drop);
    code.set(R0, DROP);
    code.exit();
    code.place(go_on);
    code.set(R0, GO_ON);
    code.exit();
    code.finish()
}

/// Goes on with the program that stands in the array with this descriptor. If there is none, the
/// packet goes on.
pub fn stub(programs: i32) -> Vec<Instruction> {
    let mut code = Assembler::default();
    code.load_map(R2, programs);
    code.set(R3, 0);
    code.call(Helper::TailCall);
    code.set(R0, GO_ON);
    code.exit();
    code.finish()
}

/// `R6`: the packet. From `look_up` on, `R7`: the entry. `R8`: bytes from the IP header on. `R9`:
/// bytes from the UDP header on.
fn forward(code: &mut Assembler, ip: Version, map: i32, (go_on, drop): (Label, Label)) {
    read_headers(code, ip, go_on);
    look_up(code, ip, map, go_on);
    measure(code, ip, go_on);
    find_route(code, ip, go_on);
    match ip.family {
        libc::AF_INET => rewrite_ipv4(code, (go_on, drop)),
        _ => rewrite_ipv6(code, (go_on, drop)),
    }
    rewrite_ports(code, ip, drop);
    count(code, ip);
    code.load(Size::Word, R1, (R10, ROUTE + fib::INTERFACE));
    code.set(R2, 0);
    code.call(Helper::Redirect);
    code.exit();
}

fn read_headers(code: &mut Assembler, ip: Version, go_on: Label) {
    code.set(R1, R6);
    code.set(R2, 0);
    point(code, R3, FRAME);
    code.set(R4, i32::from(ip.headers));
    code.call(Helper::LoadBytes);
    code.jump_if(R0, If::NotEqual, 0, go_on);
    match ip.family {
        libc::AF_INET => {
            // Version 4, and a header of five words: no options.
            byte(code, 14);
            code.jump_if(R0, If::NotEqual, 0x45, go_on);
            byte(code, 23);
            code.jump_if(R0, If::NotEqual, UDP, go_on);
            // More fragments, or not the first one.
            network_half(code, R0, 20);
            code.calculate(Do::And, R0, 0x3fff);
            code.jump_if(R0, If::NotEqual, 0, go_on);
            byte(code, TTL);
            code.jump_if(R0, If::Less, 2, go_on);
            network_half(code, R8, 16);
            network_half(code, R9, 38);
            code.set(R0, R9);
            code.calculate(Do::Add, R0, 20);
        }
        _ => {
            byte(code, 20);
            code.jump_if(R0, If::NotEqual, UDP, go_on);
            byte(code, HOP_LIMIT);
            code.jump_if(R0, If::Less, 2, go_on);
            // IPv6 has no datagrams without a checksum.
            network_half(code, R0, 60);
            code.jump_if(R0, If::Equal, 0, go_on);
            network_half(code, R8, 18);
            network_half(code, R9, 58);
            code.set(R0, R9);
        }
    }
    // UDP's length and IP's length say one thing.
    code.jump_if(R0, If::NotEqual, R8, go_on);
    code.jump_if(R9, If::Less, 8, go_on);
    if ip.family == libc::AF_INET6 {
        code.calculate(Do::Add, R8, 40);
    }
}

const TTL: i16 = 22;
const IP_CHECKSUM: i32 = 24;
const HOP_LIMIT: i16 = 21;

fn look_up(code: &mut Assembler, ip: Version, map: i32, go_on: Label) {
    code.load_map(R1, map);
    point(code, R2, FRAME + ip.tuple);
    code.call(Helper::MapLookup);
    code.jump_if(R0, If::Equal, 0, go_on);
    code.set(R7, R0);
    copy(code, (R10, NEW), (R7, 0), ip.address / 2 + 1);
}

/// Finds out how many datagrams the packet has, and asks for a route for the largest.
fn measure(code: &mut Assembler, ip: Version, go_on: Label) {
    let (single, measured) = (code.label(), code.label());
    // The route look-up takes lengths of 16 bits.
    code.jump_if(R8, If::Greater, 0xffff, go_on);
    // The packet has all bytes that its headers tell of.
    code.load(Size::Word, R0, (R6, skb::LEN));
    code.set(R1, R8);
    code.calculate(Do::Add, R1, 14);
    code.jump_if(R1, If::Greater, R0, go_on);
    code.set(R1, R9);
    code.calculate(Do::Subtract, R1, 8);
    code.store(Size::Double, (R10, BYTES), R1);
    for offset in (0..fib::BYTES).step_by(8) {
        code.store(Size::Double, (R10, ROUTE + offset), 0);
    }
    code.load(Size::Word, R2, (R6, skb::GSO_SIZE));
    code.jump_if(R2, If::Equal, 0, single);
    code.calculate(Do::Add, R1, R2);
    code.calculate(Do::Subtract, R1, 1);
    code.calculate(Do::Divide, R1, R2);
    code.store(Size::Double, (R10, COUNT), R1);
    code.calculate(Do::Add, R2, i32::from(ip.headers) - 14);
    code.store(Size::Half, (R10, ROUTE + fib::LENGTH), R2);
    code.jump(measured);
    code.place(single);
    code.store(Size::Double, (R10, COUNT), 1);
    code.store(Size::Half, (R10, ROUTE + fib::LENGTH), R8);
    code.place(measured);
}

fn find_route(code: &mut Assembler, ip: Version, go_on: Label) {
    let words = ip.address / 4;
    code.store(Size::Byte, (R10, ROUTE + fib::FAMILY), ip.family);
    code.store(Size::Byte, (R10, ROUTE + fib::PROTOCOL), UDP);
    for port in [0, 2] {
        code.load(Size::Half, R0, (R10, NEW + ip.address * 2 + port));
        code.store(Size::Half, (R10, ROUTE + fib::PORTS + port), R0);
    }
    code.store(Size::Word, (R10, ROUTE + fib::INTERFACE), LOOPBACK);
    copy(code, (R10, ROUTE + fib::SOURCE), (R10, NEW), words);
    copy(code, (R10, ROUTE + fib::DESTINATION), (R10, NEW + ip.address), words);
    code.set(R1, R6);
    point(code, R2, ROUTE);
    code.set(R3, i32::from(fib::BYTES));
    code.set(R4, 0);
    code.call(Helper::FibLookup);
    code.jump_if(R0, If::NotEqual, 0, go_on);
    // The frame's own bytes are in the order destination, source.
    for part in [0, 2, 4] {
        code.load(Size::Half, R0, (R10, ROUTE + fib::NEXT_MAC + part));
        code.store(Size::Half, (R10, FRAME + part), R0);
        code.load(Size::Half, R0, (R10, ROUTE + fib::OWN_MAC + part));
        code.store(Size::Half, (R10, FRAME + 6 + part), R0);
    }
}

/// The IP checksum covers the addresses, so a sum over the whole packet (CHECKSUM_COMPLETE) stays
/// as the helpers leave it.
fn rewrite_ipv4(code: &mut Assembler, (go_on, drop): (Label, Label)) {
    code.load(Size::Half, R8, (R10, FRAME + TTL));
    byte(code, TTL);
    code.calculate(Do::Subtract, R0, 1);
    code.store(Size::Byte, (R10, FRAME + TTL), R0);
    address_difference(code, IPV4);
    copy(code, (R10, FRAME + IPV4.tuple), (R10, NEW), 2);
    store_frame(code, (0, 34), 0, go_on);
    // The TTL stands in one half with the protocol.
    code.set(R1, R6);
    code.set(R2, IP_CHECKSUM);
    code.set(R3, R8);
    code.load(Size::Half, R4, (R10, FRAME + TTL));
    code.set(R5, 2);
    code.call(Helper::ReplaceIpChecksum);
    code.jump_if(R0, If::NotEqual, 0, drop);
    code.set(R1, R6);
    code.set(R2, IP_CHECKSUM);
    code.set(R3, 0);
    code.set(R4, R9);
    code.set(R5, 0);
    code.call(Helper::ReplaceIpChecksum);
    code.jump_if(R0, If::NotEqual, 0, drop);
}

/// IPv6 has no checksum of its own. The helper for UDP's checksum corrects a sum over the whole
/// packet (CHECKSUM_COMPLETE) by the addresses, as is right for IPv4. So the addresses are written
/// with their own correction, and both are one nothing.
fn rewrite_ipv6(code: &mut Assembler, (go_on, drop): (Label, Label)) {
    byte(code, HOP_LIMIT);
    code.calculate(Do::Subtract, R0, 1);
    code.store(Size::Byte, (R10, FRAME + HOP_LIMIT), R0);
    address_difference(code, IPV6);
    copy(code, (R10, FRAME + IPV6.tuple), (R10, NEW), 8);
    store_frame(code, (0, 14), 0, go_on);
    store_frame(code, (14, 40), RECOMPUTE, drop);
}

/// `R9` = what a checksum changes by with the addresses.
fn address_difference(code: &mut Assembler, ip: Version) {
    let bytes = i32::from(ip.address) * 2;
    point(code, R1, FRAME + ip.tuple);
    code.set(R2, bytes);
    point(code, R3, NEW);
    code.set(R4, bytes);
    code.set(R5, 0);
    code.call(Helper::ChecksumDifference);
    code.set(R9, R0);
}

/// Puts the ports and UDP's checksum right. The addresses are part of the pseudo header, and the
/// ports are not: of a packet whose checksum the network card has still to make, the field has only
/// the sum over the pseudo header (CHECKSUM_PARTIAL).
fn rewrite_ports(code: &mut Assembler, ip: Version, drop: Label) {
    let checksum = i32::from(ip.checksum());
    code.set(R1, R6);
    code.set(R2, checksum);
    code.set(R3, 0);
    code.set(R4, R9);
    code.set(R5, PSEUDO_HEADER | ZERO_IS_NONE);
    code.call(Helper::ReplaceTransportChecksum);
    code.jump_if(R0, If::NotEqual, 0, drop);
    code.set(R1, R6);
    code.set(R2, checksum);
    code.load(Size::Word, R3, (R10, FRAME + ip.ports()));
    code.load(Size::Word, R4, (R10, NEW + ip.address * 2));
    code.set(R5, 4 | ZERO_IS_NONE);
    code.call(Helper::ReplaceTransportChecksum);
    code.jump_if(R0, If::NotEqual, 0, drop);
    // Without a checksum, nothing makes up for the new ports in a sum over the whole packet.
    let with_checksum = code.label();
    code.set(R5, 0);
    code.load(Size::Half, R0, (R10, FRAME + ip.checksum()));
    code.jump_if(R0, If::NotEqual, 0, with_checksum);
    code.set(R5, RECOMPUTE);
    code.place(with_checksum);
    code.set(R1, R6);
    code.set(R2, i32::from(ip.ports()));
    point(code, R3, NEW + ip.address * 2);
    code.set(R4, 4);
    code.call(Helper::StoreBytes);
    code.jump_if(R0, If::NotEqual, 0, drop);
}

fn count(code: &mut Assembler, ip: Version) {
    code.load(Size::Double, R0, (R10, COUNT));
    code.add_atomically((R7, ip.counters()), R0);
    code.load(Size::Double, R0, (R10, BYTES));
    code.add_atomically((R7, ip.counters() + 8), R0);
}

/// Writes a part of the frame back into the packet.
fn store_frame(code: &mut Assembler, (start, len): (i16, i32), flags: i32, failed: Label) {
    code.set(R1, R6);
    code.set(R2, i32::from(start));
    point(code, R3, FRAME + start);
    code.set(R4, len);
    code.set(R5, flags);
    code.call(Helper::StoreBytes);
    code.jump_if(R0, If::NotEqual, 0, failed);
}

/// `into` = a place on the stack.
fn point(code: &mut Assembler, into: Register, offset: i16) {
    code.set(into, R10);
    code.calculate(Do::Add, into, i32::from(offset));
}

/// `R0` = a byte of the frame.
fn byte(code: &mut Assembler, offset: i16) {
    code.load(Size::Byte, R0, (R10, FRAME + offset));
}

fn network_half(code: &mut Assembler, into: Register, offset: i16) {
    code.load(Size::Half, into, (R10, FRAME + offset));
    code.read_network(into);
}

fn copy(code: &mut Assembler, to: (Register, i16), from: (Register, i16), words: i16) {
    for word in 0..words {
        code.load(Size::Word, R0, (from.0, from.1 + 4 * word));
        code.store(Size::Word, (to.0, to.1 + 4 * word), R0);
    }
}
