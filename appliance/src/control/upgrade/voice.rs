//! Answers the other process at once, for a conversation that waits in another thread.

use std::os::fd::{AsFd as _, OwnedFd};

use crate::ring::sys::pass;
use crate::wire::hand_over::{Message, write};

/// Sessions were offered, and no answer came. The other process hears this before the sessions go
/// on: once this process has ended, the other one could not know that it did not end before.
pub const GO_ON: &str = "the sessions that were offered go on in the process before";

/// The most characters of a reason.
pub const MOST_REASON: usize = 1_000;

/// A descriptor of the conversation's connection.
pub struct Voice(OwnedFd);

impl Voice {
    pub fn new(connection: OwnedFd) -> Self {
        Self(connection)
    }

    /// Tells the other process why there is no upgrade. A process that does not read is not told.
    pub fn refuses(&self, why: &str) {
        let refused = Message::Refused { why: why.chars().take(MOST_REASON).collect() };
        _ = pass::send_now(self.0.as_fd(), &write(&refused));
    }

    /// Whether the other process, which waits for this, will hear which sessions were adopted.
    pub fn says_adopted(&self, adopted: Vec<bool>) -> bool {
        // The other process has read all that was said before, so there is room.
        pass::send(self.0.as_fd(), &write(&Message::Adopted(adopted)), &[]).is_ok()
    }
}
