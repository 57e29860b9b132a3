//! Attaches the program where the kernel has no links for that (before Linux 6.6): by a filter of
//! each interface's clsact queue.
//!
//! Such a filter stays when its process has ended. So the filter is only a stub, which runs what
//! stands in an array. The kernel empties the array when the last descriptor of the array is
//! closed, in whatever way the process ends (kernel/bpf/arraymap.c, `prog_array_map_clear`). A stub
//! that finds nothing lets each packet go on. The next process removes it.
//!
//! Several processes may have a filter at an interface, as in an upgrade. The number of a filter
//! (its handle) is the port of the process's netlink socket. So a filter whose number is no port
//! belongs to a process that has ended. That holds for processes of other containers too, because
//! ports and interfaces belong to one network namespace.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use crate::ring::bpf::calls;
use crate::ring::bpf::error::BpfError;
use crate::ring::bpf::netlink::{Netlink, Target, attribute, attributes, is_taken, number};
use crate::ring::bpf::program::{LICENSE, stub};

/// The stub at interfaces. Dropping it takes the stub off.
#[derive(Debug)]
pub struct Clsact {
    /// Its port is the number of the filters, and stays this process's as long as the socket is
    /// open.
    netlink: Netlink,
    stub: OwnedFd,
    /// The only descriptor of the array with the program. No other process may have one.
    _programs: OwnedFd,
    /// Those with a filter of this process.
    interfaces: BTreeSet<u32>,
}

/// The place among the filters of an interface. It is behind those that the kernel numbers itself,
/// which go from 49152 down.
const PRIORITY: u32 = 50_000;
/// What `tc filter show` names a filter.
const NAME: &[u8] = b"ringway\0";

// Parts of an interface's queue (linux/pkt_sched.h), as traffic control names them.
const QUEUE: u32 = 0xffff_0000;
/// TC_H_CLSACT
const CLSACT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;

// Attributes of a BPF filter (linux/pkt_cls.h).
const BPF_FD: u16 = 6;
const BPF_NAME: u16 = 7;
const BPF_FLAGS: u16 = 8;
const BPF_OFFLOAD: u16 = 9;
/// The program's result says what becomes of the packet (TCA_BPF_FLAG_ACT_DIRECT).
const DIRECT_ACTION: u32 = 1;
/// No network card is asked to run the program (TCA_CLS_FLAGS_SKIP_HW).
const NOT_IN_HARDWARE: u32 = 1;

impl Clsact {
    pub fn open(program: BorrowedFd<'_>) -> Result<Self, BpfError> {
        let programs = calls::program_array("ringway_program", program);
        let programs = programs.map_err(BpfError::failed("creating a map"))?;
        let code = stub(programs.as_raw_fd());
        let stub = calls::program_load("ringway_stub", &code, LICENSE, &mut []);
        let stub = stub.map_err(BpfError::failed("loading the stub"))?;
        let netlink = Netlink::open().map_err(BpfError::failed("a netlink socket"))?;
        Ok(Self { netlink, stub, _programs: programs, interfaces: BTreeSet::new() })
    }

    /// Attaches the program to an interface, unless it is there, and removes what ended processes
    /// have left. ENODEV: there is no such interface. ENOENT: the kernel has no such queues, or no
    /// such filters.
    pub fn attach(&mut self, interface: u32) -> io::Result<()> {
        self.make_queue(interface)?;
        let handles = self.handles(interface)?;
        let port = self.netlink.port;
        let is_there = self.interfaces.contains(&interface) && handles.contains(&port);
        for handle in handles {
            // A process before this one may have had the same port.
            let is_left = if handle == port { !is_there } else { !is_taken(handle) };
            if is_left {
                self.remove(interface, handle)?;
            }
        }
        if is_there {
            return Ok(());
        }
        let options = [
            attribute(BPF_FD, &self.stub.as_raw_fd().to_ne_bytes()),
            attribute(BPF_NAME, NAME),
            attribute(BPF_FLAGS, &DIRECT_ACTION.to_ne_bytes()),
            attribute(BPF_OFFLOAD, &NOT_IN_HARDWARE.to_ne_bytes()),
        ];
        let asked = [kind(b"bpf\0"), attribute(libc::TCA_OPTIONS, &options.concat())].concat();
        let new = (libc::RTM_NEWTFILTER, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        self.netlink.change(new, filter(interface, port), &asked)?;
        self.interfaces.insert(interface);
        Ok(())
    }

    /// Forgets the interfaces that are not among these. What hung there has gone with them.
    pub fn retain(&mut self, found: &BTreeSet<u32>) {
        self.interfaces.retain(|interface| found.contains(interface));
    }

    /// Takes the stub off all interfaces. The queues stay, which do nothing: the kernel can't be
    /// asked to remove a queue only if it is empty, and somebody may be about to use it.
    pub fn detach(&mut self) {
        for interface in std::mem::take(&mut self.interfaces) {
            if let Err(error) = self.remove(interface, self.netlink.port) {
                tracing::debug!(
                    "interface {interface}: the filter stays, and does nothing: {error}"
                );
            }
        }
    }

    fn make_queue(&mut self, interface: u32) -> io::Result<()> {
        let new = (libc::RTM_NEWQDISC, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        match self.netlink.change(new, queue(interface), &kind(b"clsact\0")) {
            // This one, or the older queue `ingress`, which has the same place for filters.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            result => result,
        }
    }

    /// The numbers of Ringway's filters at an interface.
    fn handles(&mut self, interface: u32) -> io::Result<Vec<u32>> {
        let all = Target { interface, handle: 0, parent: INGRESS, info: 0 };
        let found = self.netlink.dump(libc::RTM_GETTFILTER, all)?;
        Ok(found.iter().filter_map(|body| handle(body)).collect())
    }

    fn remove(&mut self, interface: u32, handle: u32) -> io::Result<()> {
        let gone = (libc::RTM_DELTFILTER, 0);
        match self.netlink.change(gone, filter(interface, handle), &kind(b"bpf\0")) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result,
        }
    }
}

impl Drop for Clsact {
    fn drop(&mut self) {
        self.detach();
    }
}

fn queue(interface: u32) -> Target {
    Target { interface, handle: QUEUE, parent: CLSACT, info: 0 }
}

fn filter(interface: u32, handle: u32) -> Target {
    let all_protocols = u16::try_from(libc::ETH_P_ALL).expect("16 bits").to_be();
    let info = PRIORITY << 16 | u32::from(all_protocols);
    Target { interface, handle, parent: INGRESS, info }
}

fn kind(name: &[u8]) -> Vec<u8> {
    attribute(libc::TCA_KIND, name)
}

/// The number of a filter, if it is Ringway's. `body`: one message of a list of filters.
fn handle(body: &[u8]) -> Option<u32> {
    let (handle, info) = (number(body, 8)?, number(body, 16)?);
    let value = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted);
    let all = body.get(20..)?;
    let (_, kind) = value(all, libc::TCA_KIND)?;
    let (_, options) = value(all, libc::TCA_OPTIONS)?;
    let (_, name) = value(options, BPF_NAME)?;
    (info >> 16 == PRIORITY && kind == b"bpf\0" && name == NAME).then_some(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as Linux 6.1 and 6.18 list a filter.
    fn listed(kind_of: &[u8], name: &[u8]) -> Vec<u8> {
        let Target { interface, handle, parent, info } = filter(7, 0x1234);
        let mut body: Vec<_> =
            [0, interface, handle, parent, info].into_iter().flat_map(u32::to_ne_bytes).collect();
        // The chain, whose number is 0.
        let chain = attribute(11, &[0; 4]);
        let options = [attribute(BPF_NAME, name), attribute(BPF_FLAGS, &[1, 0, 0, 0])].concat();
        let nested = attribute(libc::TCA_OPTIONS | 0x8000, &options);
        body.extend([kind(kind_of), chain, nested].concat());
        body
    }

    #[test]
    fn own_filters_are_known_by_kind_name_and_place() {
        let own = listed(b"bpf\0", NAME);
        assert_eq!(handle(&own), Some(0x1234));
        assert_eq!(handle(&listed(b"u32\0", NAME)), None);
        assert_eq!(handle(&listed(b"bpf\0", b"ringways\0")), None);
        let mut elsewhere = own.clone();
        elsewhere[18..20].copy_from_slice(&49_152_u16.to_ne_bytes());
        assert_eq!(handle(&elsewhere), None);
        assert!((0..own.len()).all(|len| handle(&own[..len]).is_none()), "cut messages");
    }
}
