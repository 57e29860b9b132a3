//! One direction of a session, by direct calls on non-blocking sockets.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags, splice};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use nix::unistd::pipe2;

use super::Way;

/// Bytes of the scratch memory, and of a pipe.
pub const CHUNK: usize = 64 << 10;

#[derive(Default)]
pub struct Mover {
    way: Way,
    /// Made when the direction first splices.
    pipe: Option<(OwnedFd, OwnedFd)>,
    /// Bytes in the pipe, or copied and not yet sent.
    held: usize,
    unsent: Vec<u8>,
    pub ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The source has no more for now.
    Drained,
    /// The destination takes no more for now.
    Blocked,
    /// The source has ended, and the destination was told.
    Ended,
}

impl Mover {
    /// Moves bytes until something stops it.
    ///
    /// # Errors
    /// One of the sockets is broken.
    pub fn run(
        &mut self,
        from: &impl AsFd,
        to: &impl AsFd,
        scratch: &mut [u8],
    ) -> nix::Result<Stop> {
        let mut moved = 0;
        loop {
            if !self.deliver(to)? {
                // A slow receiver makes bulk no less bulk.
                self.way.note(moved);
                return Ok(Stop::Blocked);
            }
            match self.take(from, to, scratch) {
                Ok(0) => {
                    self.ended = true;
                    shutdown(to.as_fd().as_raw_fd(), Shutdown::Write)?;
                    return Ok(Stop::Ended);
                }
                Ok(bytes) => moved += bytes,
                Err(Errno::EAGAIN) => {
                    self.way.note(moved);
                    return Ok(Stop::Drained);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// False if the destination took not all of what was held.
    fn deliver(&mut self, to: &impl AsFd) -> nix::Result<bool> {
        while !self.unsent.is_empty() {
            match send(to.as_fd().as_raw_fd(), &self.unsent, FLAGS) {
                Ok(bytes) => drop(self.unsent.drain(..bytes)),
                Err(Errno::EAGAIN) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        while self.held > 0 {
            let (reading, _) = self.pipe.as_ref().expect("what is held is in a pipe");
            match splice(reading, None, to, None, self.held, SPLICE) {
                Ok(bytes) => self.held -= bytes,
                Err(Errno::EAGAIN) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Bytes taken from the source, 0 at its end.
    fn take(&mut self, from: &impl AsFd, to: &impl AsFd, scratch: &mut [u8]) -> nix::Result<usize> {
        if !self.way.splices() {
            let bytes = recv(from.as_fd().as_raw_fd(), scratch, MsgFlags::MSG_DONTWAIT)?;
            let sent = match send(to.as_fd().as_raw_fd(), &scratch[..bytes], FLAGS) {
                Err(Errno::EAGAIN) => 0,
                sent => sent?,
            };
            self.unsent.extend_from_slice(&scratch[sent..bytes]);
            return Ok(bytes);
        }
        if self.pipe.is_none() {
            self.pipe = Some(pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?);
        }
        let (_, writing) = self.pipe.as_ref().expect("just made");
        self.held = splice(from, None, writing, None, CHUNK, SPLICE)?;
        Ok(self.held)
    }
}

const FLAGS: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_NOSIGNAL);
const SPLICE: SpliceFFlags = SpliceFFlags::SPLICE_F_NONBLOCK.union(SpliceFFlags::SPLICE_F_MOVE);
