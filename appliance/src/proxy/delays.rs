//! New sessions that wait, because the limit of their listener delays what it would refuse.
//!
//! A listening socket of such a listener accepts one connection at a time, and none while there is
//! no place: whoever comes stays in the kernel's accept queue. A connection that was accepted and
//! finds no place waits in line. Few do: another worker had the place, or a PROXY header took its
//! time. When the socket closes, those who are left in its queue and in line are refused, because
//! nobody can say when there would be places.
//!
//! Another worker may free a place, and nobody tells this worker. So a worker that waits for a
//! place looks again every 10 ms, and at once when a place of its own becomes free.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use config_sync::table::routing::SocketId;

use crate::contract::Token;

/// Microseconds between two looks, at the most.
pub const LOOK: u64 = 10_000;

#[derive(Debug, Default)]
pub struct Delays {
    /// Sockets that accept nothing now.
    resting: BTreeSet<SocketId>,
    /// The sessions of each socket that wait, first in, first out.
    lines: BTreeMap<SocketId, VecDeque<Token>>,
    /// When the next look is due, in microseconds. `None`: nobody waits.
    pub next: Option<u64>,
}

impl Delays {
    /// The socket accepts nothing for some microseconds, and is looked at again after that. Returns
    /// whether the socket has accepted so far.
    pub fn rest(&mut self, id: SocketId, now: u64, wait: u64) -> bool {
        self.look_at(now + wait.min(LOOK));
        self.resting.insert(id)
    }

    /// The socket accepts again, or is given up.
    pub fn rest_no_more(&mut self, id: SocketId) {
        self.resting.remove(&id);
    }

    pub fn has_line(&self, id: SocketId) -> bool {
        self.lines.get(&id).is_some_and(|line| !line.is_empty())
    }

    /// Adds a session to the end of its socket's line.
    pub fn join(&mut self, id: SocketId, of: Token, now: u64) {
        self.lines.entry(id).or_default().push_back(of);
        self.look_at(now + LOOK);
    }

    pub fn leave(&mut self, id: SocketId, of: Token) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.retain(|token| *token != of);
        }
        self.place_freed();
    }

    /// A place may be free, so there is a look in this turn, or at once after it.
    pub fn place_freed(&mut self) {
        if let Some(next) = &mut self.next {
            *next = 0;
        }
    }

    /// The sockets with a line.
    pub fn lines(&self) -> Vec<SocketId> {
        self.lines.keys().copied().collect()
    }

    /// The first session of a line.
    pub fn first(&self, id: SocketId) -> Option<Token> {
        self.lines.get(&id)?.front().copied()
    }

    /// The first and the last session of the longest line.
    pub fn longest(&self) -> Option<(Token, Token)> {
        let line = self.lines.values().max_by_key(|line| line.len())?;
        Some((*line.front()?, *line.back()?))
    }

    /// Forgets a line if nobody is in it.
    pub fn forget(&mut self, id: SocketId) {
        if !self.has_line(id) {
            self.lines.remove(&id);
        }
    }

    pub fn resting(&self) -> Vec<SocketId> {
        self.resting.iter().copied().collect()
    }

    /// A look has begun. If sessions wait, another one follows.
    pub fn looks(&mut self, now: u64) {
        self.next = (!self.lines.is_empty()).then_some(now + LOOK);
    }

    fn look_at(&mut self, at: u64) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }
}
