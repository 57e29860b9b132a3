//! Reads the data that the kernel writes beside a datagram: sender, destination, and the size of a
//! train's datagrams.

use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::ring::buffers::Received;
use crate::ring::udp::train::Train;

/// Room for an address of either family.
pub const NAME: usize = size_of::<libc::sockaddr_in6>();

/// The size of `struct in6_pktinfo`, which is larger than `in_pktinfo`.
pub const PKTINFO: usize = size_of::<libc::in6_pktinfo>();

/// CMSG_SPACE of several messages.
pub fn control_room(lengths: &[usize]) -> usize {
    lengths.iter().map(|len| CMSG_HEADER + len.next_multiple_of(CMSG_ALIGN)).sum()
}

/// The layout of cmsg(3) on 64-bit machines: length, level, type, data.
pub const CMSG_ALIGN: usize = size_of::<usize>();

pub const CMSG_HEADER: usize = size_of::<libc::cmsghdr>();

const _: () = assert!(CMSG_ALIGN == 8 && CMSG_HEADER == 16, "64-bit machines only");

/// Reads the control data: the size of a train's datagrams, and the local address.
pub fn read_control(received: &Received<'_>) -> (Train, Option<IpAddr>) {
    let mut train = Train::new(received.start, received.len);
    let mut local = None;
    for (level, kind, data) in control_messages(received.control) {
        match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                if let Some(size) = data.first_chunk() {
                    train.set_size(i32::from_ne_bytes(*size));
                }
            }
            (libc::SOL_IP, libc::IP_PKTINFO) => {
                // `ipi_addr`, the destination in the header. It stands behind the index and
                // `ipi_spec_dst`.
                let ip = data.get(8..).and_then(|data| data.first_chunk::<4>());
                local = ip.map(|ip| IpAddr::V4(Ipv4Addr::from(*ip)));
            }
            (libc::SOL_IPV6, libc::IPV6_PKTINFO) => {
                let ip = data.first_chunk::<16>();
                local = ip.map(|ip| IpAddr::V6(Ipv6Addr::from(*ip)));
            }
            _ => {}
        }
    }
    (train, local)
}

/// The messages in a control buffer, as cmsg(3) lays them out: level, type, data.
pub fn control_messages(mut rest: &[u8]) -> impl Iterator<Item = (i32, i32, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from_ne_bytes(*rest.first_chunk()?);
        let level = i32::from_ne_bytes(*rest.get(8..)?.first_chunk()?);
        let kind = i32::from_ne_bytes(*rest.get(12..)?.first_chunk()?);
        let data = rest.get(CMSG_HEADER..len)?;
        rest = rest.get(len.next_multiple_of(CMSG_ALIGN)..).unwrap_or_default();
        Some((level, kind, data))
    })
}

/// Reads an address as recvmsg(2) writes it: a `sockaddr_in` or `sockaddr_in6`. `None` for anything
/// else.
pub fn parse_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    match family {
        libc::AF_INET => {
            let ip: [u8; 4] = *bytes.get(4..)?.first_chunk()?;
            Some(SocketAddrV4::new(Ipv4Addr::from(ip), port).into())
        }
        libc::AF_INET6 => {
            let flow = u32::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
            let ip: [u8; 16] = *bytes.get(8..)?.first_chunk()?;
            let scope = u32::from_ne_bytes(*bytes.get(24..)?.first_chunk()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, flow, scope).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use socket2::SockAddr;

    use super::*;

    #[test]
    fn addresses_are_read_back_as_the_kernel_writes_them() {
        for text in ["192.0.2.7:53", "[2001:db8::7]:65535", "[fe80::1%3]:9"] {
            let address: SocketAddr = text.parse().expect("an address");
            let raw = SockAddr::from(address);
            // SAFETY: `raw` is at least `raw.len()` bytes long.
            let bytes = unsafe {
                std::slice::from_raw_parts(raw.as_ptr().cast::<u8>(), raw.len() as usize)
            };
            assert_eq!(parse_address(bytes), Some(address));
        }
        assert_eq!(parse_address(&[]), None);
        assert_eq!(parse_address(&[0; 28]), None);
    }

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut bytes = (CMSG_HEADER + data.len()).to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(control_room(&[data.len()]), 0);
        bytes
    }

    #[test]
    fn control_data_is_read_whatever_its_order() {
        let mut control =
            message(libc::SOL_IP, libc::IP_PKTINFO, &[0, 0, 0, 0, 1, 1, 1, 1, 127, 0, 0, 2]);
        control.extend(message(libc::SOL_UDP, libc::UDP_GRO, &100_i32.to_ne_bytes()));
        let received =
            Received { name: &[], control: &control, start: 0, len: 250, truncated: false };
        let (train, local) = read_control(&received);
        assert_eq!((train.count(), local), (3, Some(Ipv4Addr::new(127, 0, 0, 2).into())));
        assert_eq!(control_messages(&control[..20]).count(), 0);
    }
}
