//! Explains why flows can't be forwarded in the kernel.

use std::io;
use std::os::fd::OwnedFd;

use crate::ring::bpf::assembler::Instruction;
use crate::ring::bpf::calls;
use crate::ring::bpf::program::LICENSE;

/// Why flows can't be forwarded in the kernel. The text tells the operator what to change.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    #[error("this process may not load BPF programs ({0}): give it CAP_BPF and CAP_NET_ADMIN")]
    Forbidden(&'static str),
    #[error(
        "this kernel attaches no program to an interface: it has no links for that (tcx, Linux \
         6.6), and no clsact queue with BPF filters; have it load the modules sch_ingress and \
         cls_bpf (CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_BPF)"
    )]
    NoHook,
    #[error(
        "{0}: this process may not open netlink sockets: permit AF_NETLINK \
         (`RestrictAddressFamilies=AF_NETLINK` in a systemd unit)"
    )]
    NoNetlink(&'static str),
    #[error(
        "the kernel looks up no routes for the program: run `sysctl net.ipv4.conf.lo.forwarding=1` \
         or `sysctl net.ipv6.conf.lo.forwarding=1`, whichever IP version the flows have"
    )]
    NoRoutes,
    #[error("the kernel's checker refuses the program: {0}")]
    Refused(String),
    #[error("{what}: {source}")]
    Failed {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

impl BpfError {
    pub fn failed(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Forbidden(what),
            Some(libc::EAFNOSUPPORT) => Self::NoNetlink(what),
            _ => Self::Failed { what, source },
        }
    }
}

/// Loads again after a failed load, and explains a second failure: adds the end of what the
/// kernel's checker says.
pub fn load_again(error: io::Error, code: &[Instruction]) -> Result<OwnedFd, BpfError> {
    if matches!(error.raw_os_error(), Some(libc::EPERM)) {
        return Err(BpfError::Forbidden("loading"));
    }
    let mut log = vec![0; LOG];
    // The maps' descriptors in the code are open. So this load fails as the first did, unless what
    // was in its way has passed.
    calls::program_load("ringway", code, LICENSE, &mut log).map_err(|_| {
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.trim_end_matches('\0').lines().rev().take(LINES).collect();
        if lines.is_empty() {
            return BpfError::Failed { what: "loading the program", source: error };
        }
        BpfError::Refused(lines.into_iter().rev().collect::<Vec<_>>().join(" | "))
    })
}

/// Bytes of the checker's log. A longer log fails the load too, and its end is missing.
const LOG: usize = 1 << 20;
/// Lines of it that an error shows.
const LINES: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_change() {
        let text = |errno| {
            let error = BpfError::failed("attaching")(io::Error::from_raw_os_error(errno));
            error.to_string()
        };
        assert!(text(libc::EPERM).contains("CAP_BPF and CAP_NET_ADMIN"));
        // What `RestrictAddressFamilies=` of systemd.exec(5) answers.
        assert!(text(libc::EAFNOSUPPORT).contains("RestrictAddressFamilies=AF_NETLINK"));
        assert!(text(libc::ENOMEM).starts_with("attaching: "));
    }
}
