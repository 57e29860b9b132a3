//! Ends the sessions of endpoints that are gone.
//!
//! No session has a timer for this. A worker looks at a part of its sessions in each step, and then
//! closes the sessions that it has found: some in each step, and the longest idle first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::proxy::core::Core;
use crate::proxy::slab::Slab;
use crate::proxy::tcp::state::Session;

/// Microseconds over which a worker spreads the closes of one round. Clients that are closed do not
/// all come back in one moment.
pub const SPREAD: u64 = 2_000_000;

/// Microseconds between two steps that close sessions, and between two steps that look at sessions.
pub const CLOSE_STEP: u64 = 10_000;
pub const LOOK_STEP: u64 = 1_000;

/// The most sessions that one step looks at.
pub const MOST_LOOKS: u32 = 4_096;

/// Microseconds until the next round, for sessions that were still connecting in the last round.
pub const NEXT_ROUND: u64 = 1_000_000;

/// Ends the sessions of endpoints that are gone.
#[derive(Debug)]
pub struct Closing {
    /// When the next step is due, in microseconds. `None`: nothing is gone.
    pub next: Option<u64>,
    /// The sessions that this round has found, by their last byte and slot.
    found: BinaryHeap<Reverse<(u64, u32)>>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// The next slot to look at.
    Looking(u32),
    /// Until when the closes are spread.
    Closing(u64),
}

impl Closing {
    pub fn new() -> Self {
        Self { next: None, found: BinaryHeap::new(), phase: Phase::Looking(0) }
    }

    /// A table with other endpoints that are gone is in force.
    pub fn table_applied(&mut self, core: &Core) {
        let due = core.gone.first_due();
        self.next = match self.phase {
            Phase::Looking(0) => due.map(|due| due.max(core.now)),
            _ => Some(core.now),
        };
    }

    /// Makes one step, if one is due.
    pub fn step(&mut self, core: &mut Core, sessions: &mut Slab<Session>) {
        self.next = match self.phase {
            Phase::Looking(0) if !core.gone.has_any(&core.balancer, core.now) => {
                self.next_round(core)
            }
            Phase::Looking(slot) => self.look(core, sessions, slot),
            Phase::Closing(until) => self.close(core, sessions, until),
        };
    }

    /// Endpoints that become due later begin a round of their own.
    fn next_round(&self, core: &Core) -> Option<u64> {
        let due = core.gone.first_due()?;
        Some(due.max(core.now + NEXT_ROUND))
    }

    fn look(&mut self, core: &Core, sessions: &Slab<Session>, from: u32) -> Option<u64> {
        let end = from.saturating_add(MOST_LOOKS).min(sessions.high_water());
        let used = (from..end).filter_map(|slot| Some((slot, sessions.at(slot)?)));
        let gone = used.filter(|(_, session)| session.is_of_gone(core).is_some());
        self.found.extend(gone.map(|(slot, session)| Reverse((session.last_byte(), slot))));
        if end < sessions.high_water() {
            self.phase = Phase::Looking(end);
            return Some(core.now + LOOK_STEP);
        }
        self.phase = Phase::Closing(core.now + SPREAD);
        Some(core.now + LOOK_STEP)
    }

    fn close(&mut self, core: &mut Core, sessions: &mut Slab<Session>, until: u64) -> Option<u64> {
        let steps = until.saturating_sub(core.now) / CLOSE_STEP + 1;
        for _ in 0..(self.found.len() as u64).div_ceil(steps) {
            let Some(Reverse((_, slot))) = self.found.pop() else { break };
            // The session may have ended since, and the endpoint may be back.
            if let Some(session) = sessions.at_mut(slot)
                && let Some(reason) = session.is_of_gone(core)
            {
                session.leave(core, reason);
            }
        }
        if self.found.is_empty() {
            self.phase = Phase::Looking(0);
            return self.next_round(core);
        }
        Some(core.now + CLOSE_STEP)
    }
}
