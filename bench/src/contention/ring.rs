//! Sockets that are opened and closed through an io_uring: as descriptors, or among the ring's
//! registered files, where they take no descriptor.

#![expect(unsafe_code, reason = "an entry may hold pointers, so pushing one is unsafe")]

use std::io;

use anyhow::Context as _;
use io_uring::types::{DestinationSlot, Fd, Fixed};
use io_uring::{IoUring, opcode, squeue};
use nix::libc;

/// Where a socket is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kept {
    /// In the descriptor table.
    Descriptor,
    /// Among the registered files: a direct descriptor.
    Direct,
}

pub struct Ring(IoUring);

impl Ring {
    /// A ring of the calling thread.
    pub fn new() -> anyhow::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun();
        let ring = builder.build(4).context("io_uring")?;
        ring.submitter().register_files_sparse(4).context("registered files")?;
        Ok(Self(ring))
    }

    /// Opens a socket and closes it, each with a system call.
    pub fn open_and_close(&mut self, kept: Kept) -> io::Result<()> {
        let socket = |kind| opcode::Socket::new(libc::AF_INET, kind, 0);
        let close = match kept {
            Kept::Descriptor => {
                let fd = self.run(&socket(libc::SOCK_STREAM | libc::SOCK_CLOEXEC).build())?;
                opcode::Close::new(Fd(fd)).build()
            }
            Kept::Direct => {
                let place = Some(DestinationSlot::auto_target());
                let place = self.run(&socket(libc::SOCK_STREAM).file_index(place).build())?;
                opcode::Close::new(Fixed(place.unsigned_abs())).build()
            }
        };
        self.run(&close).map(drop)
    }

    fn run(&mut self, entry: &squeue::Entry) -> io::Result<i32> {
        // SAFETY: the entries of socket and close hold no pointer.
        unsafe { self.0.submission().push(entry) }.map_err(io::Error::other)?;
        self.0.submit_and_wait(1)?;
        let completion = self.0.completion().next();
        let result = completion.ok_or_else(|| io::Error::other("no completion"))?.result();
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
    }
}
