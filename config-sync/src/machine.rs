//! Facts of the machine that a configuration depends on.

use std::net::IpAddr;

use nix::net::if_::{InterfaceFlags, if_indextoname, if_nameindex, if_nametoindex};

/// Facts of this machine that decide whether a value can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Cores that this process may run on.
    pub cores: Vec<usize>,
    /// Congestion controls that the kernel has loaded.
    pub congestion: Vec<String>,
}

impl Machine {
    pub fn this() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let congestion =
            std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control");
        Self {
            cores: allowed.map(core_list).unwrap_or_default(),
            congestion: congestion
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
        }
    }
}

/// The addresses by which other machines may reach this machine, sorted, IPv4 first. These are the
/// addresses of interfaces that are up, without loopback and link-local addresses. The list is
/// empty if the addresses can't be read.
pub fn addresses() -> Vec<IpAddr> {
    let mut found = Vec::new();
    for interface in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        let Some(address) = interface.address else { continue };
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        let v6 = address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip()));
        let local = |address: &IpAddr| match address {
            IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
        };
        let up = interface.flags.contains(InterfaceFlags::IFF_UP);
        found.extend(v4.or(v6).filter(|address| up && !local(address)));
    }
    found.sort_by_key(|address| (address.is_ipv6(), *address));
    found.dedup();
    found
}

/// The names of the network interfaces.
pub(crate) fn interfaces() -> Vec<String> {
    let all = if_nameindex().into_iter().flat_map(|all| {
        all.iter().map(|one| one.name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    });
    all.collect()
}

/// The name and the number of the network interface that has this name, or this number.
pub(crate) fn interface(text: &str) -> Option<(String, u32)> {
    if let Ok(index) = text.parse::<u32>() {
        return Some((interface_name(index)?, index));
    }
    Some((text.to_owned(), interface_number(text)?))
}

/// The name of the network interface that has this number now.
pub(crate) fn interface_name(index: u32) -> Option<String> {
    Some(if_indextoname(index).ok()?.to_string_lossy().into_owned())
}

/// The number of the network interface that has this name now.
pub(crate) fn interface_number(name: &str) -> Option<u32> {
    if_nametoindex(name).ok()
}

/// Reads the kernel's form of a set of cores, such as `0-3,8` (proc(5), `Cpus_allowed_list`).
fn core_list(text: &str) -> Vec<usize> {
    let mut cores = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse(), last.parse::<usize>()) {
            cores.extend(first..=last);
        }
    }
    cores
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lists_of_cores() {
        assert_eq!(core_list("\t0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(core_list("3"), [3]);
        assert_eq!(core_list(""), [] as [usize; 0]);
    }

    #[test]
    fn this_machine_has_a_core_and_a_congestion_control() {
        let machine = Machine::this();
        assert!(!machine.cores.is_empty() && !machine.congestion.is_empty(), "{machine:?}");
    }
}
