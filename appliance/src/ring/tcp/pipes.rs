//! Holds the pipes, which carry spliced bytes, and which hold bytes that a destination did not
//! take.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::contract::size;
use crate::ring::sys::calls;

/// The minimum capacity of a pipe, in bytes.
pub const CAPACITY: usize = 64 * 1024;

/// The capacity of a pipe for splicing, in bytes, if the kernel allows it: as many as the highest
/// mark.
const LARGE: usize = 256 * 1024;

/// After the kernel has refused a pipe, this many requests go without one before the kernel is
/// asked again.
const PATIENCE: u32 = 1_000;

pub struct Pipe {
    reading: OwnedFd,
    writing: OwnedFd,
    /// 32 bits, because each session has room for two pipes.
    capacity: u32,
}

impl Pipe {
    /// Makes a pipe of at least [`CAPACITY`]. The kernel makes smaller pipes for users above
    /// `fs.pipe-user-pages-soft`, and these are of no use here.
    fn new() -> io::Result<Self> {
        let (reading, writing) = calls::pipe()?;
        let capacity = calls::pipe_capacity(writing.as_fd())?;
        if capacity < CAPACITY {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        Ok(Self { reading, writing, capacity: size(capacity) })
    }

    /// The capacity of the pipe in bytes. The kernel counts whole pages, so small segments fill the
    /// pipe with fewer bytes.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    pub fn reading(&self) -> BorrowedFd<'_> {
        self.reading.as_fd()
    }

    pub fn writing(&self) -> BorrowedFd<'_> {
        self.writing.as_fd()
    }
}

/// The worker's pipes. All idle pipes are empty, because a pipe with bytes would hand them to
/// another session.
pub struct Pipes {
    idle: Vec<Pipe>,
    /// Pipes that were made and not closed, idle or not.
    made: u32,
    limit: u32,
    patience: u32,
    /// `patience` for large pipes: this user may have too many pages in pipes for now.
    large_patience: u32,
}

impl Pipes {
    /// The most bytes by which memory grows with this limit. The kernel has what is in the pipes.
    pub const fn growth(limit: u32) -> usize {
        limit as usize * size_of::<Pipe>()
    }

    pub fn new(limit: u32) -> Self {
        Self {
            idle: Vec::with_capacity(limit as usize),
            made: 0,
            limit,
            patience: 0,
            large_patience: 0,
        }
    }

    /// Makes sure that the next `take` succeeds.
    pub fn ready(&mut self) -> bool {
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

    pub fn take(&mut self) -> Option<Pipe> {
        if self.ready() { self.idle.pop() } else { None }
    }

    /// Takes a pipe to splice through. The pipe is made large at its first use, and stays large.
    pub fn take_large(&mut self) -> Option<Pipe> {
        let mut pipe = self.take()?;
        if pipe.capacity() < LARGE {
            if self.large_patience > 0 {
                self.large_patience -= 1;
                return Some(pipe);
            }
            match calls::set_pipe_capacity(pipe.writing(), LARGE) {
                Ok(capacity) => pipe.capacity = size(capacity),
                Err(_) => self.large_patience = PATIENCE,
            }
        }
        Some(pipe)
    }

    /// Takes an empty pipe back.
    pub fn give_back(&mut self, pipe: Pipe) {
        self.idle.push(pipe);
    }

    /// Closes a pipe that still holds bytes.
    pub fn discard(&mut self, pipe: Pipe) {
        drop(pipe);
        self.made -= 1;
    }

    pub fn used(&self) -> u64 {
        u64::from(self.made) - self.idle.len() as u64
    }
}
