//! Holds one direction of a session: the bytes taken from its source and not given to its
//! destination.

use crate::ring::tcp::pipes::{Pipe, Pipes};
use crate::ring::tcp::stream::Waiting;

/// One direction: the bytes taken from its source and not yet given to its destination.
#[derive(Default)]
pub struct Half {
    pub pipe: Option<Pipe>,
    /// Bytes in the pipe.
    pub held: u32,
    /// Bytes that a stream has left, behind the bytes in the pipe.
    pub waiting: Waiting,
}

impl Half {
    /// Bytes that were taken and not given.
    pub fn held(&self) -> u32 {
        self.held + self.waiting.bytes
    }

    /// Gives the pipe back if it holds no byte.
    pub fn release(&mut self, pipes: &mut Pipes) {
        if self.held == 0
            && let Some(pipe) = self.pipe.take()
        {
            pipes.give_back(pipe);
        }
    }
}
