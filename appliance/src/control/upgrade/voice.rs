//! Answers the other process at once, for a conversation that waits in another thread.

use std::os::fd::{AsFd as _, OwnedFd};

use crate::ring::sys::pass;
use crate::wire::hand_over::{Message, write};

/// A descriptor of the conversation's connection.
pub struct Voice(OwnedFd);

impl Voice {
    pub fn new(connection: OwnedFd) -> Self {
        Self(connection)
    }

    /// Whether the other process, which waits for this, will hear which sessions were adopted.
    pub fn says_adopted(&self, adopted: Vec<bool>) -> bool {
        // The other process has read all that was said before, so there is room.
        pass::send(self.0.as_fd(), &write(&Message::Adopted(adopted)), &[]).is_ok()
    }
}
