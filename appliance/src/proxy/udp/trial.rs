//! Finds flows that the kernel's path breaks. Somewhere the datagrams of such a flow get addresses
//! that the kernel's path does not know (NAT), so the kernel hears one side alone. But a side may
//! also be silent because it has nothing to say.
//!
//! So if one side of a flow goes on alone, the flow is demoted, and the worker listens. If the
//! silent side is heard there at once, although the kernel never heard it, the kernel's path is to
//! blame, and the worker keeps the flow. Otherwise the flow is promoted again, and the kernel waits
//! longer.

use crate::contract::Side;
use crate::proxy::core::Core;
use crate::proxy::udp::flow::{Due, Flow, PROMOTE_AGAIN, Promotion, Silence};
use crate::proxy::udp::state::{Flows, One, Trial};

/// Microseconds for which one side of a promoted flow may go on alone, and which the worker listens
/// after that.
const ALONE: u64 = 3_000_000;

/// How often that time is doubled at the most, so that it grows up to 48 s.
const MOST_DOUBLINGS: u8 = 4;

/// Once both sides of a flow are heard again, so many replies promote the flow.
const AGAIN: u64 = 16;

/// So many datagrams of a side that the kernel did not hear show that the kernel's path is broken,
/// although it has worked before.
const ENOUGH: u64 = 3;

/// The maximum number of flows that the worker tries out at a time.
pub const MOST_TRIALS: usize = 4_096;

/// Takes in a count of a promoted flow. `before`: the flow's datagrams at the count before that.
/// Returns whether one side has gone on alone for too long.
pub fn is_too_long(one: &mut One, before: (u64, u64), now: u64) -> bool {
    let side = match (one.ways.0 > before.0, one.ways.1 > before.1) {
        (false, false) => return false,
        (true, true) => {
            one.alone = None;
            return false;
        }
        (true, false) => Side::Client,
        (false, true) => Side::Endpoint,
    };
    let goes_on = one.alone.filter(|(talks, _)| *talks == side);
    let (_, since) = *one.alone.insert(goes_on.unwrap_or((side, now)));
    now - since >= ALONE << one.silence.times.min(MOST_DOUBLINGS)
}

impl Flows {
    /// How a flow goes on that was demoted because one side was silent.
    pub fn try_out(&mut self, core: &Core, slot: u32, one: &One) -> Promotion {
        let Some(flow) = self.flows.at(slot) else { return Promotion::Never };
        let Some((talks, _)) = one.alone else {
            // The last count has both sides.
            let silence = Silence { both_heard: true, ..one.silence };
            return Promotion::After(Due { replies: flow.replies + AGAIN, sent: 0, silence });
        };
        let was_heard = match talks {
            Side::Client => one.seen.down > 0,
            Side::Endpoint => one.seen.up > 0,
        };
        let silence = Silence {
            both_heard: one.silence.both_heard || was_heard,
            times: one.silence.times.saturating_add(1),
        };
        if self.promoted.trials.len() >= MOST_TRIALS {
            let replies = flow.replies + PROMOTE_AGAIN;
            return Promotion::After(Due { replies, sent: 0, silence });
        }
        self.promoted.trials.push(Trial {
            slot,
            generation: self.flows.generation(slot),
            talks,
            ways: (flow.sent, flow.replies),
            until: core.now + ALONE,
            was_heard,
            silence,
        });
        Promotion::Trial
    }

    /// Looks at the flows that are tried out.
    pub fn look_at_trials(&mut self, core: &mut Core) {
        let mut at = 0;
        while let Some(trial) = self.promoted.trials.get(at).copied() {
            let is_it = self.flows.generation(trial.slot) == trial.generation;
            let flow = self.flows.at(trial.slot).filter(|_| is_it);
            // Otherwise the flow has ended, or goes on elsewhere.
            let flow = flow.filter(|flow| flow.promotion == Promotion::Trial);
            let outcome = flow.map(|flow| self.outcome(core, flow, &trial));
            if outcome == Some(None) {
                at += 1;
                continue;
            }
            self.promoted.trials.swap_remove(at);
            if let Some(promotion) = outcome.flatten() {
                self.set_promotion(trial.slot, promotion);
                let flow = self.flows.at(trial.slot);
                if flow.is_some_and(|flow| flow.promotion.is_due(flow.sent, flow.replies)) {
                    self.promote(core, trial.slot);
                }
            }
        }
    }

    /// How a flow goes on that is tried out, once that is known.
    fn outcome(&self, core: &Core, flow: &Flow, trial: &Trial) -> Option<Promotion> {
        let (sent, replies) = (flow.sent - trial.ways.0, flow.replies - trial.ways.1);
        let (has_talked, heard) = match trial.talks {
            Side::Client => (sent > 0, replies),
            Side::Endpoint => (replies > 0, sent),
        };
        let (silence, is_over) = (trial.silence, core.now >= trial.until);
        // Where the path is known to have worked, a keepalive between promotions proves nothing.
        let enough = if silence.both_heard { ENOUGH } else { 1 };
        // For a while, both sides may be silent. A flow whose endpoint's port is closed moves with
        // its client's next datagram.
        if flow.refused || heard == 0 && !(has_talked && is_over) || heard < enough && !is_over {
            return None;
        }
        let is_broken = heard >= enough && !trial.was_heard;
        if is_broken || self.bar(core, flow).is_some() {
            return Some(Promotion::Never);
        }
        // The kernel's path is known to work, so the flow need not wait for the silent side.
        let at_once = heard == 0 && silence.both_heard;
        let replies = if at_once { 0 } else { flow.replies + AGAIN };
        Some(Promotion::After(Due { replies, sent: 0, silence }))
    }
}

#[cfg(test)]
mod tests;
