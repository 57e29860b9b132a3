//! What happened in one turn of the worker's loop, and the bytes that came with it.

use crate::contract::{Event, Token};

/// What happened since the last turn; reused from turn to turn.
#[derive(Debug, Default)]
pub struct Turn {
    pub events: Vec<(Token, Event)>,
    /// What `Peeked`, `Taken` and `Given` events refer to.
    pub bytes: Vec<u8>,
    /// What `Give` ops and the heads of parts refer to.
    pub output: Vec<u8>,
}

/// Memory that a turn keeps for its bytes and for its output: above what `Take`s come to.
const MOST_KEPT: usize = 4 << 20;

impl Turn {
    /// Gives back what one round in a thousand needs.
    pub fn trim(&mut self) {
        if self.bytes.is_empty() {
            self.bytes.shrink_to(MOST_KEPT);
        }
        if self.output.is_empty() {
            self.output.shrink_to(MOST_KEPT);
        }
    }

    pub fn push(&mut self, token: Token, event: Event) {
        self.events.push((token, event));
    }
}

/// A count of bytes of one turn, as events have it.
pub fn size(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a turn looks at less than 4 GiB")
}
