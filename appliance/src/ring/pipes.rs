//! Pipes: what carries spliced bytes, and what holds bytes that their destination did not take.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::sys;

/// Bytes that a pipe holds, and so the most that one step of a `Move` reads.
pub(super) const CAPACITY: usize = 64 * 1024;

/// How often a pipe is done without, after the kernel has refused one, before it is asked again.
const PATIENCE: u32 = 1_000;

pub(super) struct Pipe {
    reading: OwnedFd,
    writing: OwnedFd,
}

impl Pipe {
    /// A pipe of at least [`CAPACITY`]. The kernel makes smaller ones for users above
    /// `fs.pipe-user-pages-soft`; those are of no use here.
    fn new() -> io::Result<Self> {
        let (reading, writing) = sys::pipe()?;
        if sys::pipe_capacity(writing.as_fd())? < CAPACITY {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        Ok(Self { reading, writing })
    }

    pub(super) fn reading(&self) -> BorrowedFd<'_> {
        self.reading.as_fd()
    }

    pub(super) fn writing(&self) -> BorrowedFd<'_> {
        self.writing.as_fd()
    }
}

/// The worker's pipes. All that lie here are empty: a pipe with bytes in it would hand them to
/// another session.
pub(super) struct Pipes {
    idle: Vec<Pipe>,
    /// Made and not closed, idle or not.
    made: u32,
    limit: u32,
    patience: u32,
}

impl Pipes {
    pub(super) fn new(limit: u32) -> Self {
        Self { idle: Vec::with_capacity(limit as usize), made: 0, limit, patience: 0 }
    }

    /// Makes sure that the next `take` succeeds.
    pub(super) fn ready(&mut self) -> bool {
        if !self.idle.is_empty() {
            return true;
        }
        if self.made >= self.limit {
            return false;
        }
        if self.patience > 0 {
            self.patience -= 1;
            return false;
        }
        match Pipe::new() {
            Ok(pipe) => {
                self.made += 1;
                self.idle.push(pipe);
                true
            }
            Err(_) => {
                self.patience = PATIENCE;
                false
            }
        }
    }

    pub(super) fn take(&mut self) -> Option<Pipe> {
        if self.ready() { self.idle.pop() } else { None }
    }

    /// Takes an empty pipe back.
    pub(super) fn give_back(&mut self, pipe: Pipe) {
        self.idle.push(pipe);
    }

    /// Closes a pipe that still holds bytes.
    pub(super) fn discard(&mut self, pipe: Pipe) {
        drop(pipe);
        self.made -= 1;
    }

    pub(super) fn used(&self) -> u64 {
        u64::from(self.made) - self.idle.len() as u64
    }
}
