//! Keeps the upstream sockets: among the ring's registered files, where they take no descriptor, or
//! as plain descriptors, if the kernel does not release registered files in time.

use std::os::fd::{AsRawFd, OwnedFd};
use std::{io, mem};

use nix::sys::resource::{Resource, getrlimit};

use crate::ring::error::RingError;
use crate::ring::features::{FILE_RELEASE, Features};
use crate::ring::queue::{Queue, Target};

/// `IORING_MAX_FIXED_FILES`
const MAX_FILES: u32 = 1 << 20;

pub struct Files {
    /// Places that hold no file.
    free: Vec<u32>,
    kept: Kept,
}

enum Kept {
    Registered,
    /// By place.
    Plain(Box<[Option<OwnedFd>]>),
}

impl Files {
    /// Makes room for this many sockets. The kernel allows no more registered files than
    /// RLIMIT_NOFILE, so flows beyond that number find no socket. Plain descriptors count against
    /// that limit too, with all other descriptors of the process.
    pub fn new(sockets: u32, features: &Features, queue: &Queue) -> Result<Self, RingError> {
        let limit = getrlimit(Resource::RLIMIT_NOFILE);
        let limit = limit.map_or(1024, |(soft, _)| u32::try_from(soft).unwrap_or(u32::MAX));
        let places = sockets.min(limit).min(MAX_FILES);
        let kept = if features.has(FILE_RELEASE) {
            if places > 0 {
                queue.submitter().register_files_sparse(places).map_err(RingError::setup)?;
            }
            Kept::Registered
        } else {
            Kept::Plain((0..places).map(|_| None).collect())
        };
        Ok(Self { free: (0..places).rev().collect(), kept })
    }

    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Keeps an open socket, and returns its place.
    ///
    /// # Errors
    ///
    /// Errors of io_uring_register(2), and EMFILE if each place is taken. The socket is then
    /// closed.
    pub fn put(&mut self, fd: OwnedFd, queue: &Queue) -> io::Result<u32> {
        let full = || io::Error::from_raw_os_error(libc::EMFILE);
        let place = *self.free.last().ok_or_else(full)?;
        match &mut self.kept {
            Kept::Registered => {
                queue.submitter().register_files_update(place, &[fd.as_raw_fd()])?;
            }
            Kept::Plain(files) => files[place as usize] = Some(fd),
        }
        self.free.pop();
        Ok(place)
    }

    pub fn target(&self, place: u32) -> Target {
        match &self.kept {
            Kept::Registered => Target::Registered(place),
            Kept::Plain(files) => {
                let fd = files[place as usize].as_ref().expect("a file is closed once");
                Target::Plain(fd.as_raw_fd())
            }
        }
    }

    /// A descriptor of the file of a place. `None`: the process may have no more.
    pub fn copy(&self, place: u32, queue: &mut Queue) -> Option<OwnedFd> {
        match &self.kept {
            Kept::Registered => queue.install(place),
            Kept::Plain(files) => files[place as usize].as_ref()?.try_clone().ok(),
        }
    }

    /// Closes the file of a place. No request for the file may be in flight, or about to be
    /// submitted.
    pub fn close(&mut self, place: u32, queue: &Queue) {
        match &mut self.kept {
            // Emptying a slot of the table can't fail.
            Kept::Registered => _ = queue.submitter().register_files_update(place, &[-1]),
            Kept::Plain(files) => drop(mem::take(&mut files[place as usize])),
        }
        self.free.push(place);
    }
}
