//! Ends expired flows and closes unneeded sockets in a sweep, some in each step.

use crate::proxy::core::Core;
use crate::proxy::slab::NONE;
use crate::proxy::udp::flow::Flow;
use crate::proxy::udp::state::{Flows, Role};
use crate::stats::records::CloseReason;

pub const SWEEP_STEP: u64 = 100_000;

/// Microseconds between two steps while all flows end.
pub const ENDING_STEP: u64 = 1_000;

/// The maximum number of sockets of one endpoint that one step closes, and of flows that one step
/// ends while all flows end.
pub const MOST_CLOSES: u32 = 256;

/// The maximum number of flows, and of endpoints, that one step looks at.
pub const MOST_LOOKS: u32 = 16_384;

pub const LONGEST_SWEEP: u64 = 15_000_000;

impl Flows {
    /// Makes one step of the sweep: ends flows that were silent too long, closes sockets that
    /// nobody needs.
    pub fn expire(&mut self, core: &mut Core) {
        self.seen = core.now;
        self.pairs.turn_over(core.now);
        self.receive_again(core);
        if self.is_empty() {
            return;
        }
        if core.tables.are_over() && self.flows.is_empty() {
            // No client can ask here any more, so no socket has to rest. But another process that
            // goes on with the clients may get the port of one that is closed.
            let has_heir = !core.tables.current().handed_over.is_empty();
            self.close_some(core, has_heir);
        }
        if core.now < self.sweep.next {
            return;
        }
        if let Some(reason) = self.ending {
            return self.end_some(core, reason);
        }
        let share = |high_water: u32, period: u64| {
            let steps = u32::try_from(period / SWEEP_STEP).unwrap_or(1).max(1);
            high_water.div_ceil(steps).min(MOST_LOOKS)
        };
        // While draining, in a shortage, and while flows must leave an endpoint, a round takes a
        // second at most, whatever the timeouts.
        let crowded = self.is_crowded(core.now);
        let leaving = core.tables.leaving().next().is_some();
        let gone = core.gone.is_any_due(core.now);
        let hurry = leaving || crowded || gone || self.is_scarce(Role::Pair, core.now);
        let period = if hurry { self.sweep.period.min(1_000_000) } else { self.sweep.period };
        for _ in 0..share(self.flows.high_water(), period) {
            let slot = self.sweep.flow;
            self.sweep.flow = (slot + 1) % self.flows.high_water();
            let is_free = |flow: &&Flow| !flow.is_promoted() && !flow.is_shared();
            let flow = self.flows.at(slot).filter(is_free);
            if let Some(reason) = flow.and_then(|flow| flow.over(core, crowded)) {
                self.end(core, slot, reason);
            }
        }
        let endpoints = u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX);
        for _ in 0..share(endpoints, period) {
            let endpoint = self.sweep.endpoint as usize;
            self.sweep.endpoint = (self.sweep.endpoint + 1) % endpoints;
            for _ in 0..MOST_CLOSES {
                let first = self.endpoints[endpoint].first;
                if !self.is_kept_too_long(core, endpoint, first) {
                    break;
                }
                self.close_first(core, endpoint);
            }
        }
        self.look_at_promoted(core);
        self.look_at_trials(core);
        self.sweep.next = core.now + SWEEP_STEP;
    }

    pub fn next_sweep(&self) -> Option<u64> {
        let resumes = self.paused.front().map_or(u64::MAX, |(until, _)| *until);
        (!self.is_empty()).then_some(self.sweep.next.min(resumes))
    }

    /// Ends all flows and closes all upstream sockets, some in each step. Sessions that live on
    /// must not wait for tens of thousands of these.
    pub fn end_all(&mut self, now: u64, reason: CloseReason) {
        // A drain that is over goes on to ask for the end of what rests, also after a stop.
        if self.ending != Some(CloseReason::Stopped) {
            self.ending = Some(reason);
        }
        self.sweep.next = now;
    }

    pub fn end_some(&mut self, core: &mut Core, reason: CloseReason) {
        let mut ends = 0;
        for _ in 0..self.flows.high_water().min(MOST_LOOKS) {
            let slot = self.sweep.flow;
            self.sweep.flow = (slot + 1) % self.flows.high_water();
            // What another process may have ends when it is decided whose it is.
            if self.flows.at(slot).is_some_and(|flow| !flow.is_shared()) {
                self.end(core, slot, reason);
                ends += 1;
                if ends == MOST_CLOSES {
                    break;
                }
            }
        }
        self.sweep.next = core.now + ENDING_STEP;
        if self.flows.is_empty() {
            let has_heir = !core.tables.current().handed_over.is_empty();
            self.close_some(core, has_heir && reason == CloseReason::Drained);
        }
    }

    /// Closes some resting sockets and pairs: only `rested` ones, or also those that have not
    /// rested long enough.
    pub fn close_some(&mut self, core: &mut Core, rested: bool) {
        let mut left = MOST_CLOSES;
        let endpoints = u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX);
        for _ in 0..endpoints {
            let endpoint = self.sweep.endpoint as usize;
            while self.endpoints[endpoint].first != NONE {
                if left == 0 {
                    self.sweep.next = core.now + ENDING_STEP;
                    return;
                }
                if rested && !self.has_rested(self.endpoints[endpoint].first) {
                    self.sweep.next = self.sweep.next.min(core.now + SWEEP_STEP);
                    break;
                }
                left -= 1;
                self.close_first(core, endpoint);
            }
            self.sweep.endpoint = (self.sweep.endpoint + 1) % endpoints;
        }
    }
}
