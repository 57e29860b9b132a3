//! Holds the events of one turn of the worker's loop, and the bytes that came with them.

use crate::contract::{Event, Token};

/// The events since the last turn. The memory is reused from turn to turn.
#[derive(Debug, Default)]
pub struct Turn {
    pub events: Vec<(Token, Event)>,
    /// The bytes that `Peeked`, `Taken` and `Given` events refer to.
    pub bytes: Vec<u8>,
    /// The bytes that `Give` ops and the heads of parts refer to.
    pub output: Vec<u8>,
}

/// Bytes of memory that a turn keeps for `bytes`, and for `output`: more than all `Take`s bring.
const MOST_KEPT: usize = 4 << 20;

impl Turn {
    /// Gives back the memory that only one round in a thousand needs.
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
