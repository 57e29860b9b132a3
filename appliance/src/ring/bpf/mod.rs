//! Forwards promoted UDP flows in the kernel: a program at each interface, and maps that say which
//! packets get which addresses.
//!
//! One process has one program and one pair of maps, which all workers share. When the process has
//! ended, however it ended, no program forwards: only the process has the links that hold the
//! program at the interfaces (tcx, Linux 6.6), or, on older kernels, the array from which filters
//! take the program (clsact).

mod assembler;
mod calls;
mod clsact;
mod entry;
mod error;
mod interfaces;
mod netlink;
mod program;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::contract::Carried;
use crate::ring::bpf::clsact::Clsact;
use crate::ring::bpf::entry::{Count, Entry, Map};
use crate::ring::bpf::error::load_again;
use crate::ring::bpf::program::{IPV4, IPV6, LICENSE, program};

pub use self::entry::Ways;
pub use self::error::BpfError;

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
    hook: Mutex<Hook>,
}

/// What holds the program at interfaces.
#[derive(Debug)]
enum Hook {
    /// Links, by the number of the interface. Dropping a link takes the program off.
    Tcx(BTreeMap<u32, OwnedFd>),
    Clsact(Clsact),
}

impl FastPath {
    /// Loads the program, with room for this many flows, and attaches the program to all
    /// interfaces: by tcx if the kernel has it and `may_use_tcx`, else by clsact.
    ///
    /// # Errors
    ///
    /// The kernel lacks something, or the process lacks a right.
    pub fn open(flows: u32, may_use_tcx: bool) -> Result<Self, BpfError> {
        let opened = Self::load(flows, may_use_tcx)?;
        opened.attach()?;
        Ok(opened)
    }

    /// Whether [`Self::open`] would succeed, and by what the program would be attached. Nothing
    /// stays.
    ///
    /// # Errors
    ///
    /// Those of [`Self::open`].
    pub fn probe(may_use_tcx: bool) -> Result<&'static str, BpfError> {
        let loaded = Self::load(1, may_use_tcx)?;
        find_interfaces()?;
        Ok(match &*loaded.hook() {
            Hook::Tcx(_) => "tcx",
            Hook::Clsact(_) => "clsact",
        })
    }

    fn load(flows: u32, may_use_tcx: bool) -> Result<Self, BpfError> {
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
        let hook = Mutex::new(Hook::open(program.as_fd(), may_use_tcx)?);
        Ok(Self { ipv4, ipv6, program, routes, hook })
    }

    /// Attaches the program to interfaces that have come since the last call. Interfaces that have
    /// gone took what held the program along.
    ///
    /// # Errors
    ///
    /// The kernel refuses the program at an interface that is there.
    pub fn attach(&self) -> Result<(), BpfError> {
        let found = find_interfaces()?;
        let mut hook = self.hook();
        hook.retain(&found);
        let mut all = Ok(());
        for interface in found {
            // One that refuses keeps the program off no other.
            let attached = hook.attach(self.program.as_fd(), interface);
            all = all.and(attached);
        }
        all
    }

    /// Takes the program off all interfaces.
    pub fn detach(&self) {
        match &mut *self.hook() {
            Hook::Tcx(links) => links.clear(),
            Hook::Clsact(clsact) => clsact.detach(),
        }
    }

    fn hook(&self) -> MutexGuard<'_, Hook> {
        self.hook.lock().unwrap_or_else(PoisonError::into_inner)
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

impl Hook {
    /// Tries an interface that is not there, so what is missing shows before anything is attached.
    /// Modules for clsact do not: the kernel looks for the interface first.
    fn open(program: BorrowedFd<'_>, may_use_tcx: bool) -> Result<Self, BpfError> {
        let has_links = || match calls::link_create(program, NO_INTERFACE) {
            Ok(_) => true,
            Err(error) => error.raw_os_error() != Some(libc::EINVAL),
        };
        let mut hook = match may_use_tcx && has_links() {
            true => Self::Tcx(BTreeMap::new()),
            false => Self::Clsact(Clsact::open(program)?),
        };
        hook.attach(program, NO_INTERFACE)?;
        Ok(hook)
    }

    fn retain(&mut self, found: &BTreeSet<u32>) {
        match self {
            Self::Tcx(links) => links.retain(|interface, _| found.contains(interface)),
            Self::Clsact(clsact) => clsact.retain(found),
        }
    }

    /// Does nothing for an interface that is not there.
    fn attach(&mut self, program: BorrowedFd<'_>, interface: u32) -> Result<(), BpfError> {
        let attached = match self {
            Self::Tcx(links) if links.contains_key(&interface) => Ok(()),
            Self::Tcx(links) => {
                calls::link_create(program, interface).map(|link| _ = links.insert(interface, link))
            }
            Self::Clsact(clsact) => clsact.attach(interface),
        };
        attached.or_else(|error| match error.raw_os_error() {
            Some(libc::ENODEV) => Ok(()),
            Some(libc::ENOENT) => Err(BpfError::NoHook),
            _ => Err(BpfError::failed("attaching the program")(error)),
        })
    }
}

fn find_interfaces() -> Result<BTreeSet<u32>, BpfError> {
    interfaces::ethernet().map_err(BpfError::failed("the interfaces"))
}

/// Whether the kernel's route look-up answers programs that ask for packets of this machine itself.
fn looks_up_routes(version: &str) -> bool {
    let file = format!("/proc/sys/net/{version}/conf/lo/forwarding");
    std::fs::read_to_string(file).is_ok_and(|text| text.trim() != "0")
}

fn carried(up: Count, down: Count) -> Carried {
    Carried { up: up.datagrams, bytes_up: up.bytes, down: down.datagrams, bytes_down: down.bytes }
}
