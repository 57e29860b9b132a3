//! Finds out, once at start, what the kernel can do, by trying each feature.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use io_uring::types::{Fd, Fixed};
use io_uring::{IoUring, cqueue, opcode, squeue};
use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::ring::error::{RingError, kernel};
use crate::ring::sys::calls;
use crate::ring::sys::memory::Memory;

const PAGE: usize = 4096;

/// Whether the kernel closes a registered file that was taken out of the table while a request for
/// another file lives. Kernels before 6.13 keep all files that were taken out since that request
/// began. Then one UDP flow would pin the sockets of later flows that have ended, and their ports.
pub const FILE_RELEASE: &str = "file_release";

/// The links by which the program of `fast_path` is attached to interfaces. Only a process that may
/// load programs can find out whether the kernel has them. So they are no part of the list, but can
/// be masked like what is.
pub const TCX: &str = "tcx";

/// How long the close of a file may take, in milliseconds. The file is closed at the end of the
/// system call. A kernel that keeps the file makes the start this much longer.
const RELEASED_WITHIN: u8 = 20;

/// One feature of the kernel's io_uring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    pub name: &'static str,
    /// The first kernel version with this feature.
    pub since: &'static str,
    /// Linux 6.1 has this feature, and Ringway does not run without it.
    pub required: bool,
    pub present: bool,
    /// The kernel has the feature, but Ringway must not use it.
    pub masked: bool,
    pub used_for: &'static str,
}

/// The features of this kernel. All features of Linux 6.1 are required. Ringway uses newer features
/// that are present and not masked.
#[derive(Clone, Debug)]
pub struct Features {
    list: Vec<Feature>,
    may_use_tcx: bool,
}

impl Features {
    /// Asks the kernel, with a ring for this purpose.
    ///
    /// # Errors
    ///
    /// There is no io_uring, or a required feature is missing.
    pub fn probe() -> Result<Self, RingError> {
        let ring = builder().build(8).map_err(RingError::setup)?;
        let mut probe = Probe::new(ring).map_err(|source| RingError::Failed {
            what: "cannot open an eventfd to probe io_uring with",
            source,
        })?;
        let list = vec![
            feature("defer_taskrun", "6.1", true, "completions run on the worker's own terms"),
            feature(
                "ext_arg",
                "5.11",
                probe.ring.params().is_feature_ext_arg(),
                "one system \
                call to submit and wait with a timeout",
            ),
            feature("multishot_accept", "5.19", probe.multishot_accept(), "accepting"),
            feature("multishot_poll", "5.13", probe.multishot_poll(), "readiness of TCP sides"),
            feature("async_cancel", "5.5", probe.async_cancel(), "ending polls and receives"),
            feature("buffer_rings", "5.19", probe.buffer_ring(), "memory for datagrams"),
            feature("multishot_recvmsg", "6.0", probe.multishot_recvmsg(), "datagrams"),
            feature("multishot_recv", "6.0", probe.multishot_recv(), "small messages of TCP sides"),
            feature(
                "registered_files",
                "5.19",
                probe.registered_files(),
                "a table of files, for file_release",
            ),
            feature(
                "cqe_skip",
                "5.17",
                probe.ring.params().is_feature_skip_cqe_on_success(),
                "sends without completions",
            ),
            feature(
                FILE_RELEASE,
                "6.13",
                probe.file_release(),
                "upstream sockets \
                without descriptors",
            ),
            feature("no_sqarray", "6.6", no_sqarray(), "one indirection less per submission"),
            feature(
                "no_iowait",
                "6.15",
                probe.ring.params().is_feature_no_iowait(),
                "an idle \
                worker does not count as waiting for a disk",
            ),
        ];
        let missing: Vec<_> = list
            .iter()
            .filter(|feature| feature.required && !feature.present)
            .map(|feature| format!("{} ({})", feature.name, feature.since))
            .collect();
        if missing.is_empty() {
            return Ok(Self { list, may_use_tcx: true });
        }
        Err(RingError::TooOld { missing: missing.join(", "), kernel: kernel() })
    }

    /// Leaves a feature unused although the kernel has it.
    ///
    /// # Errors
    ///
    /// A sentence for the operator: there is no such feature, or it is required.
    pub fn without(&mut self, name: &str) -> Result<(), String> {
        if name == TCX {
            self.may_use_tcx = false;
            return Ok(());
        }
        let optional = || {
            let names = self.list.iter().filter(|feature| !feature.required);
            names.map(|feature| feature.name).chain([TCX]).collect::<Vec<_>>().join(", ")
        };
        let Some(index) = self.list.iter().position(|feature| feature.name == name) else {
            return Err(format!("no feature is called `{name}`; can be masked: {}", optional()));
        };
        if self.list[index].required {
            return Err(format!("`{name}` is required; can be masked: {}", optional()));
        }
        self.list[index].masked = true;
        Ok(())
    }

    pub fn list(&self) -> &[Feature] {
        &self.list
    }

    /// Whether each upstream socket takes a descriptor, which counts against RLIMIT_NOFILE.
    pub fn flows_take_descriptors(&self) -> bool {
        !self.has(FILE_RELEASE)
    }

    /// Whether `fast_path` uses [`TCX`], if the kernel has them.
    pub fn may_use_tcx(&self) -> bool {
        self.may_use_tcx
    }

    /// Whether Ringway uses the feature.
    pub fn has(&self, name: &str) -> bool {
        self.list.iter().any(|feature| feature.name == name && feature.present && !feature.masked)
    }
}

fn feature(
    name: &'static str,
    since: &'static str,
    present: bool,
    used_for: &'static str,
) -> Feature {
    let required = !matches!(name, "multishot_recv" | FILE_RELEASE | "no_sqarray" | "no_iowait");
    Feature { name, since, required, present, masked: false, used_for }
}

fn no_sqarray() -> bool {
    builder().setup_no_sqarray().build(1).is_ok()
}

/// A ring to try features with. The kernel checks the flags of a request before the file. A request
/// with an unknown flag fails with EINVAL. A request with a known flag fails because an eventfd is
/// no socket.
struct Probe {
    ring: IoUring,
    eventfd: OwnedFd,
}

impl Probe {
    fn new(ring: IoUring) -> io::Result<Self> {
        let eventfd = EventFd::from_value_and_flags(1, EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { ring, eventfd: eventfd.into() })
    }

    fn multishot_accept(&mut self) -> bool {
        let entry = opcode::AcceptMulti::new(Fd(self.eventfd.as_raw_fd())).build();
        self.result(entry) == Some(-libc::ENOTSOCK)
    }

    fn multishot_recvmsg(&mut self) -> bool {
        // SAFETY: all zero is a message without name, buffers or control data.
        let shape: libc::msghdr = unsafe { std::mem::zeroed() };
        let fd = Fd(self.eventfd.as_raw_fd());
        self.result(opcode::RecvMsgMulti::new(fd, &raw const shape, 0).build())
            == Some(-libc::ENOTSOCK)
    }

    fn multishot_recv(&mut self) -> bool {
        let fd = Fd(self.eventfd.as_raw_fd());
        self.result(opcode::RecvMulti::new(fd, 0).build()) == Some(-libc::ENOTSOCK)
    }

    fn multishot_poll(&mut self) -> bool {
        let events = libc::POLLIN.unsigned_abs().into();
        let entry = opcode::PollAdd::new(Fd(self.eventfd.as_raw_fd()), events).multi(true);
        let completion = self.complete(entry.build(), POLL);
        completion.is_some_and(|entry| entry.result() > 0 && cqueue::more(entry.flags()))
    }

    /// Cancels the poll of `multishot_poll`.
    fn async_cancel(&mut self) -> bool {
        self.result(opcode::AsyncCancel::new(POLL).build()).is_some_and(|result| result >= 0)
    }

    fn buffer_ring(&mut self) -> bool {
        let Ok(memory) = Memory::new(PAGE) else { return false };
        let submitter = self.ring.submitter();
        let address = memory.at(0).as_ptr() as u64;
        // SAFETY: `memory` is a page, room for many entries, and outlives the registration.
        let registered = unsafe { submitter.register_buf_ring_with_flags(address, 1, 0, 0) };
        registered.and_then(|()| submitter.unregister_buf_ring(0)).is_ok()
    }

    fn registered_files(&self) -> bool {
        let submitter = self.ring.submitter();
        let eventfd = self.eventfd.as_raw_fd();
        submitter
            .register_files_sparse(1)
            .and_then(|()| submitter.register_files_update(0, &[eventfd]))
            .and_then(|_| submitter.unregister_files())
            .is_ok()
    }

    /// Takes a pipe's writing end out of the table while a poll of another file is under way, and
    /// looks whether the reading end reports the close.
    fn file_release(&mut self) -> bool {
        let released = self.released();
        // Ends the poll, if the poll has begun. Otherwise there is nothing to end.
        self.result(opcode::AsyncCancel::new(POLL).build());
        _ = self.ring.submitter().unregister_files();
        released.unwrap_or(false)
    }

    fn released(&mut self) -> io::Result<bool> {
        let (reading, writing) = calls::pipe()?;
        let idle = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        let submitter = self.ring.submitter();
        submitter.register_files_sparse(2)?;
        submitter.register_files_update(0, &[idle.as_fd().as_raw_fd(), writing.as_raw_fd()])?;
        drop(writing);
        let events = libc::POLLIN.unsigned_abs().into();
        let entry = opcode::PollAdd::new(Fixed(0), events).build().user_data(POLL);
        // SAFETY: the entry holds no pointer.
        unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)?;
        self.ring.submit()?;
        self.ring.submitter().register_files_update(1, &[-1])?;
        let mut ends = [PollFd::new(reading.as_fd(), PollFlags::POLLIN)];
        Ok(nix::poll::poll(&mut ends, RELEASED_WITHIN)? > 0)
    }

    fn result(&mut self, entry: squeue::Entry) -> Option<i32> {
        self.complete(entry, OTHER).map(|completion| completion.result())
    }

    /// The first completion of `entry`. Completions of a poll that still runs are passed over.
    fn complete(&mut self, entry: squeue::Entry, user_data: u64) -> Option<cqueue::Entry> {
        // SAFETY: callers keep the memory of the entry alive for this call, and no operation uses
        // memory of ours after its first completion.
        unsafe { self.ring.submission().push(&entry.user_data(user_data)) }.ok()?;
        loop {
            self.ring.submit_and_wait(1).ok()?;
            let mut completions = self.ring.completion();
            if let Some(found) = completions.find(|entry| entry.user_data() == user_data) {
                return Some(found);
            }
        }
    }
}

const POLL: u64 = 1;
const OTHER: u64 = 2;

/// The flags of all rings of this crate. With them, the kernel runs completions only when the
/// worker asks, on the worker's core, in one batch (DEFER_TASKRUN, 6.1).
pub fn builder() -> io_uring::Builder {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_submit_all()
        .setup_clamp();
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_newer_than_the_floor_can_be_masked() {
        let mut features = Features::probe().expect("io_uring");
        assert!(features.without("multishot_accept").is_err());
        assert!(features.without("nonsense").unwrap_err().contains("no_sqarray"));
        features.without("no_sqarray").expect("optional");
        assert!(!features.has("no_sqarray"));
        assert!(features.may_use_tcx());
        features.without(TCX).expect("optional");
        assert!(!features.may_use_tcx());
        assert!(features.has("multishot_accept"));
    }

    #[test]
    fn errors_say_what_to_change() {
        let text = |errno| RingError::setup(io::Error::from_raw_os_error(errno)).to_string();
        assert!(text(libc::ENOSYS).contains("6.1"));
        assert!(text(libc::ENOMEM).contains("ulimit -l"));
        assert!(text(libc::EINVAL).contains("defer_taskrun"));
        assert!(text(libc::EPERM).contains("seccomp") || text(libc::EPERM).contains("sysctl"));
    }
}
