//! Ends a drain: closes the sessions and flows that are left, in steps.

use crate::proxy::core::Core;
use crate::proxy::slab::Slab;
use crate::proxy::tcp::state::Session;
use crate::proxy::udp::state::Flows;
use crate::stats::records::CloseReason;

/// The end of a drain: the sessions left are closed in steps, the longest idle first.
#[derive(Debug)]
pub struct Draining {
    pub next: u64,
    pub until: u64,
    /// Sessions to close, the longest idle last. `None` until the deadline.
    pub left: Option<Vec<u32>>,
}

/// Microseconds between two steps at the end of a drain.
pub const DRAIN_STEP: u64 = 10_000;

impl Draining {
    /// After `drain_timeout`, closes the sessions left, idle ones first. The closes are spread over
    /// some time, so that clients do not all come back in one moment.
    pub fn step(&mut self, core: &mut Core, sessions: &mut Slab<Session>, flows: &mut Flows) {
        let now = core.now;
        if now < self.next {
            return;
        }
        if self.left.is_none() {
            flows.end_all(now, CloseReason::Drained);
        }
        let left = self.left.get_or_insert_with(|| {
            let mut slots: Vec<(u64, u32)> =
                sessions.iter().map(|(slot, session)| (session.last_byte(), slot)).collect();
            slots.sort_unstable_by(|a, b| b.cmp(a));
            slots.into_iter().map(|(_, slot)| slot).collect()
        });
        let steps = self.until.saturating_sub(now) / DRAIN_STEP + 1;
        let count = (left.len() as u64).div_ceil(steps);
        for slot in left.split_off(left.len() - usize::try_from(count).unwrap_or(left.len())) {
            if let Some(session) = sessions.at_mut(slot) {
                session.close(core, CloseReason::Drained);
            }
        }
        if left.is_empty() {
            // Sessions that came out of an accept queue since then are closed in the next step.
            self.left = None;
            self.until = now;
        }
        self.next = now + DRAIN_STEP;
    }
}
