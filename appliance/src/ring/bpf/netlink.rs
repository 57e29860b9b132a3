//! Asks the kernel's traffic control (rtnetlink(7)). The kernel answers a request before send(2)
//! returns, so no receive waits.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname,
    recv, send, socket,
};

/// A socket to the kernel.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    /// A number that no other netlink socket of this network namespace has, as long as this one is
    /// open. The kernel chooses the number, mostly that of the process.
    pub port: u32,
    sequence: u32,
}

/// What a request is about (`struct tcmsg`).
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub interface: u32,
    pub handle: u32,
    pub parent: u32,
    pub info: u32,
}

/// The longest packet that the kernel makes for a dump (`netlink_dump`).
const PACKET: usize = 32_768;
/// `struct nlmsghdr`
const HEADER: usize = 16;
/// Bits of an attribute's type that are no part of the type (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
const FLAGS: u16 = 0xc000;

impl Netlink {
    pub fn open() -> io::Result<Self> {
        let socket = bound(0)?;
        let port = getsockname::<NetlinkAddr>(socket.as_raw_fd())?.pid();
        Ok(Self { socket, port, sequence: 0 })
    }

    /// Makes, changes or removes something. `kind`: one of RTM_NEWQDISC and its like.
    pub fn change(
        &mut self,
        (kind, flags): (u16, c_int),
        target: Target,
        attributes: &[u8],
    ) -> io::Result<()> {
        self.ask((kind, flags | libc::NLM_F_ACK), target, attributes, |_| ())
    }

    /// Lists what there is. Returns the body of each message: `struct tcmsg`, and attributes.
    pub fn dump(&mut self, kind: u16, target: Target) -> io::Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        self.ask((kind, libc::NLM_F_DUMP), target, &[], |body| found.push(body.to_vec()))?;
        Ok(found)
    }

    fn ask(
        &mut self,
        (kind, flags): (u16, c_int),
        target: Target,
        attributes: &[u8],
        mut found: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let flags = flags | libc::NLM_F_REQUEST;
        let request = request((kind, flags), self.sequence, target, attributes);
        send(self.socket.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut packet = vec![0; PACKET];
        loop {
            let len = recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::empty())?;
            // What is left of an answer that nobody has read to its end has another number.
            let answers = messages(&packet[..len]).filter(|one| one.sequence == self.sequence);
            for Message { kind, body, .. } in answers {
                match c_int::from(kind) {
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => return result(body),
                    _ => found(body),
                }
            }
        }
    }
}

/// Whether a netlink socket of this network namespace has the port. If the kernel does not say, it
/// is taken.
pub fn is_taken(port: u32) -> bool {
    bound(port).is_err()
}

/// A socket with this port, or with one that the kernel chooses, if the port is 0.
fn bound(port: u32) -> io::Result<OwnedFd> {
    let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
    let socket = socket(AddressFamily::Netlink, kind, flags, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(port, 0))?;
    Ok(socket)
}

fn request(
    (kind, flags): (u16, c_int),
    sequence: u32,
    target: Target,
    attributes: &[u8],
) -> Vec<u8> {
    let Target { interface, handle, parent, info } = target;
    let mut body = Vec::new();
    // The address family, which is none, with its padding.
    for word in [0, interface, handle, parent, info] {
        body.extend(word.to_ne_bytes());
    }
    body.extend(attributes);
    let mut bytes = Vec::new();
    bytes.extend(u32::try_from(HEADER + body.len()).expect("a request is short").to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(u16::try_from(flags).expect("flags have 16 bits").to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // The port of the sender, which the kernel knows.
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes
}

/// An attribute of a request, with its padding.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(u16::try_from(4 + value.len()).expect("a value is short").to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

struct Message<'p> {
    kind: u16,
    sequence: u32,
    body: &'p [u8],
}

/// The messages of a packet, up to the first that is not whole.
fn messages(packet: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = packet;
    std::iter::from_fn(move || {
        let len = usize::try_from(number(rest, 0)?).ok()?;
        let (kind, sequence) = (half(rest, 4)?, number(rest, 8)?);
        let body = rest.get(HEADER..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, sequence, body })
    })
}

/// The types and values of attributes, up to the first that is not whole.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let len = usize::from(half(rest, 0)?);
        let kind = half(rest, 2)? & !FLAGS;
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The 32-bit number at this offset.
pub fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The end of an answer: 0, or an error's number, negative.
fn result(body: &[u8]) -> io::Result<()> {
    match number(body, 0).map(u32::cast_signed) {
        Some(error @ ..0) => Err(Errno::from_raw(error.saturating_neg()).into()),
        Some(_) => Ok(()),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two messages, of which the second has two attributes.
    fn packet() -> Vec<u8> {
        let target = Target { interface: 7, handle: 8, parent: 9, info: 10 };
        let attributes = [attribute(1, b"bpf\0"), attribute(2 | FLAGS, &[5; 3])].concat();
        [request((44, 2), 1, target, &[]), request((45, 2), 2, target, &attributes)].concat()
    }

    #[test]
    fn messages_and_attributes_are_read_as_they_were_written() {
        let packet = packet();
        let read: Vec<_> = messages(&packet).map(|one| (one.kind, one.sequence)).collect();
        assert_eq!(read, [(44, 1), (45, 2)]);
        let body = messages(&packet).last().expect("two messages").body;
        assert_eq!([4, 8, 12, 16].map(|at| number(body, at)), [7, 8, 9, 10].map(Some));
        let read: Vec<_> = attributes(&body[20..]).collect();
        assert_eq!(read, [(1, &b"bpf\0"[..]), (2, &[5; 3])]);
    }

    #[test]
    fn what_is_not_whole_ends_the_list() {
        let packet = packet();
        let first = HEADER + 20;
        for len in 0..packet.len() {
            let whole = usize::from(len >= first);
            assert_eq!(messages(&packet[..len]).count(), whole, "{len} bytes");
        }
        for len in 0..20_u8 {
            // A length that does not cover the header leads nowhere, and so not in a circle.
            let bytes = [[len, 0, 0, 0], [0; 4], [0; 4], [0; 4]].concat();
            assert_eq!(messages(&bytes).count(), usize::from(len == 16), "{len}");
            assert!(attributes(&bytes).count() <= 4, "{len}");
        }
        assert!(result(&[]).is_err() && result(&[0; 4]).is_ok());
        let refused = result(&(-libc::EPERM).to_ne_bytes()).expect_err("a negative number");
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        assert!(result(&i32::MIN.to_ne_bytes()).is_err());
    }
}
