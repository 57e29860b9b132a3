//! Forwards promoted UDP flows in the kernel: a program at each interface, and maps that say which
//! packets get which addresses.
//!
//! One process has one program and one pair of maps, which all workers share. The kernel removes
//! the program from the interfaces when the process has ended, however it ended, because only the
//! process has the links.

mod assembler;
mod calls;
mod entry;
mod error;
mod interfaces;
mod program;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use crate::contract::Carried;
use crate::ring::bpf::entry::{Count, Entry, Map};
use crate::ring::bpf::error::load_again;
use crate::ring::bpf::program::{IPV4, IPV6, LICENSE, program};

pub use self::entry::Ways;
pub use self::error::{BpfError, SINCE};

/// The number of an interface that no machine has.
const NO_INTERFACE: u32 = i32::MAX.unsigned_abs();

/// The program and its maps. All workers of the process share them.
#[derive(Debug)]
pub struct FastPath {
    ipv4: Map,
    ipv6: Map,
    program: OwnedFd,
    /// Whether the kernel looks up routes for the program: IPv4, IPv6.
    routes: [bool; 2],
    /// By the number of the interface. Dropping a link takes the program off the interface.
    links: Mutex<BTreeMap<u32, OwnedFd>>,
}

impl FastPath {
    /// Loads the program, with room for this many flows, and attaches the program to all
    /// interfaces.
    ///
    /// # Errors
    ///
    /// The kernel is too old, or the process lacks a right.
    pub fn open(flows: u32) -> Result<Self, BpfError> {
        let opened = Self::load(flows)?;
        opened.attach()?;
        Ok(opened)
    }

    /// Whether [`Self::open`] would succeed. Nothing stays.
    ///
    /// # Errors
    ///
    /// Those of [`Self::open`].
    pub fn probe() -> Result<(), BpfError> {
        Self::load(1)?.link(NO_INTERFACE)?;
        Ok(())
    }

    fn load(flows: u32) -> Result<Self, BpfError> {
        // An entry for each way.
        let entries = flows.saturating_mul(2).max(1);
        let ipv4 = Map::create("ringway_ipv4", IPV4, entries)?;
        let ipv6 = Map::create("ringway_ipv6", IPV6, entries)?;
        let code = program(ipv4.as_raw_fd(), ipv6.as_raw_fd());
        let program = calls::program_load("ringway", &code, LICENSE, &mut []);
        let program = program.or_else(|error| load_again(error, &code))?;
        let routes = ["ipv4", "ipv6"].map(looks_up_routes);
        if routes == [false, false] {
            return Err(BpfError::NoRoutes);
        }
        Ok(Self { ipv4, ipv6, program, routes, links: Mutex::default() })
    }

    /// Attaches the program to interfaces that have come since the last call. Interfaces that have
    /// gone took their links' effect with them.
    ///
    /// # Errors
    ///
    /// The kernel refuses a link to an interface that is there.
    pub fn attach(&self) -> Result<(), BpfError> {
        let found = interfaces::ethernet().map_err(BpfError::failed("the interfaces"))?;
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|interface, _| found.contains(interface));
        for interface in found {
            if !links.contains_key(&interface)
                && let Some(link) = self.link(interface)?
            {
                links.insert(interface, link);
            }
        }
        Ok(())
    }

    /// `None`: there is no such interface, or none any more.
    fn link(&self, interface: u32) -> Result<Option<OwnedFd>, BpfError> {
        match calls::link_create(self.program.as_fd(), interface) {
            Ok(link) => Ok(Some(link)),
            Err(error) => match error.raw_os_error() {
                Some(libc::ENODEV) => Ok(None),
                Some(libc::EINVAL) => Err(BpfError::TooOld),
                _ => Err(BpfError::failed("attaching the program")(error)),
            },
        }
    }

    /// Forwards a flow in the kernel from now on.
    ///
    /// # Errors
    ///
    /// The addresses are not of one IP version, the kernel looks up no routes of that version, a
    /// map is full, or another flow has the addresses.
    pub fn promote(&self, ways: &Ways) -> io::Result<()> {
        if !self.routes[usize::from(ways.endpoint.is_ipv6())] {
            return Err(io::ErrorKind::NetworkUnreachable.into());
        }
        let (map, up, down) = self.entries(ways)?;
        map.insert(&up)?;
        map.insert(&down).inspect_err(|_| _ = map.take(&up))
    }

    /// Ends what `promote` began, and returns what was carried since then. A packet that is on its
    /// way through the program at this moment may be missing.
    pub fn demote(&self, ways: &Ways) -> Carried {
        let Ok((map, up, down)) = self.entries(ways) else { return Carried::default() };
        carried(map.take(&up), map.take(&down))
    }

    /// What was carried since `promote`.
    pub fn carried(&self, ways: &Ways) -> Carried {
        let Ok((map, up, down)) = self.entries(ways) else { return Carried::default() };
        carried(map.look_up(&up), map.look_up(&down))
    }

    fn entries(&self, ways: &Ways) -> io::Result<(&Map, Entry, Entry)> {
        let (up, down) = ways.entries().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((if ways.endpoint.is_ipv4() { &self.ipv4 } else { &self.ipv6 }, up, down))
    }
}

/// Whether the kernel's route look-up answers programs that ask for packets of this machine itself.
fn looks_up_routes(version: &str) -> bool {
    let file = format!("/proc/sys/net/{version}/conf/lo/forwarding");
    std::fs::read_to_string(file).is_ok_and(|text| text.trim() != "0")
}

fn carried(up: Count, down: Count) -> Carried {
    Carried { up: up.datagrams, bytes_up: up.bytes, down: down.datagrams, bytes_down: down.bytes }
}
