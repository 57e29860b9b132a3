//! Lists the interfaces whose packets have Ethernet headers.

use std::collections::BTreeSet;
use std::io;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// The numbers of all Ethernet-like interfaces: cards, bonds, bridges, VLANs, veth.
pub fn ethernet() -> io::Result<BTreeSet<u32>> {
    let found = getifaddrs()?.filter(|at| !at.flags.contains(InterfaceFlags::IFF_LOOPBACK));
    let links = found.filter_map(|at| at.address?.as_link_addr().copied());
    let ethernet = links.filter(|link| link.hatype() == libc::ARPHRD_ETHER);
    Ok(ethernet.filter_map(|link| u32::try_from(link.ifindex()).ok()).collect())
}
