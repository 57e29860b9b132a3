//! The sessions that wait for a place at an endpoint, because every endpoint of their backend is
//! full: a line for each backend, first in, first out.
//!
//! Another worker may free a place, and nobody tells this worker. So a worker with sessions in line
//! looks again every 10 ms, and at once when a place of its own becomes free.

use std::collections::BTreeMap;
use std::sync::Arc;

use config_sync::table::load::Line;
use config_sync::table::routing::{BackendId, Queue};

use crate::contract::Token;

/// Microseconds between two looks.
pub const LOOK: u64 = 10_000;

/// The sessions of this worker that wait.
#[derive(Debug, Default)]
pub struct Waiting {
    lines: BTreeMap<BackendId, OwnLine>,
    /// When the next look is due, in microseconds. `None`: nobody waits.
    pub next: Option<u64>,
}

#[derive(Debug)]
struct OwnLine {
    shared: Arc<Line>,
    /// By ticket.
    sessions: BTreeMap<u64, Token>,
}

impl Waiting {
    /// Adds a session to the end of the backend's line, and returns its ticket. `None`: the line
    /// has as many sessions as it takes.
    pub fn join(&mut self, backend: BackendId, queue: &Queue, of: Token, now: u64) -> Option<u64> {
        let new = || OwnLine { shared: Arc::clone(&queue.line), sessions: BTreeMap::new() };
        let line = self.lines.entry(backend).or_insert_with(new);
        let ticket = line.shared.join(queue.most);
        if let Some(ticket) = ticket {
            line.sessions.insert(ticket, of);
            line.show();
            self.next.get_or_insert(now + LOOK);
        } else if line.sessions.is_empty() {
            self.lines.remove(&backend);
        }
        ticket
    }

    pub fn leave(&mut self, backend: BackendId, ticket: u64) {
        let Some(line) = self.lines.get_mut(&backend) else { return };
        if line.sessions.remove(&ticket).is_some() {
            line.shared.leave(ticket);
            line.show();
        }
        if line.sessions.is_empty() {
            self.lines.remove(&backend);
        }
    }

    /// Whether a session that has just come must go behind others: sessions of this worker that
    /// wait, or sessions of another worker that have waited for long.
    pub fn is_behind(&self, backend: BackendId, queue: &Queue) -> bool {
        self.lines.contains_key(&backend) || !queue.line.may_go(queue.line.tickets())
    }

    /// Whether the session with this ticket may take a place now.
    pub fn may_go(&self, backend: BackendId, ticket: u64) -> bool {
        self.lines.get(&backend).is_some_and(|line| line.shared.may_go(ticket))
    }

    /// A place may be free, so the lines are looked at in this turn, or at once after it.
    pub fn place_freed(&mut self) {
        if let Some(next) = &mut self.next {
            *next = 0;
        }
    }

    /// The backends that sessions wait for.
    pub fn backends(&self) -> Vec<BackendId> {
        self.lines.keys().copied().collect()
    }

    /// The first session of a line.
    pub fn first(&self, backend: BackendId) -> Option<Token> {
        self.lines.get(&backend)?.sessions.first_key_value().map(|(_, token)| *token)
    }

    /// The lines were looked at. The other workers are told who is first in each.
    pub fn looked(&mut self, now: u64) {
        self.lines.values().for_each(OwnLine::show);
        self.next = (!self.lines.is_empty()).then_some(now + LOOK);
    }
}

impl OwnLine {
    /// Tells the other workers who is first in this line.
    fn show(&self) {
        if let Some((ticket, _)) = self.sessions.first_key_value() {
            self.shared.show(*ticket);
        }
    }
}
