//! Upstream sockets rest between two flows: no late reply may reach the wrong client.

use crate::proxy::core::Core;
use crate::proxy::slab::NONE;
use crate::proxy::udp::choose::Choice;
use crate::proxy::udp::state::{EndpointState, Flows, Role};

/// A socket that has rested, and that nobody needed for this long since, is closed.
pub const KEEP: u64 = 60_000_000;

impl Flows {
    /// The socket's flow is over: it rests, even if nobody will want it. Closed at once, its port
    /// might be the next socket's, and a late reply the next client's.
    pub fn rest(&mut self, core: &mut Core, slot: u32) {
        let Some(upstream) = self.upstreams.at_mut(slot) else { return };
        upstream.flow = NONE;
        let state = &mut self.endpoints[upstream.endpoint.index()];
        if upstream.closing {
            return;
        }
        upstream.sent = 0;
        upstream.rests_since = core.now;
        upstream.next = NONE;
        let last = std::mem::replace(&mut state.last, slot);
        match last {
            NONE => state.first = slot,
            _ => self.upstreams.at_mut(last).expect("it rests").next = slot,
        }
        if self.upstreams.at(slot).is_some_and(|upstream| upstream.role != Role::Pair) {
            core.counters.upstreams_resting.add(1);
        }
    }

    /// Takes what rests longest off the endpoint's list.
    pub fn unqueue_first(&mut self, core: &Core, endpoint: usize) {
        let state = &mut self.endpoints[endpoint];
        let upstream = self.upstreams.at_mut(state.first).expect("the list has a first");
        state.first = std::mem::replace(&mut upstream.next, NONE);
        if state.first == NONE {
            state.last = NONE;
        }
        if upstream.role != Role::Pair {
            core.counters.upstreams_resting.sub(1);
        }
    }

    /// Closes what rests longest of the endpoint's.
    pub fn close_first(&mut self, core: &mut Core, endpoint: usize) {
        let slot = self.endpoints[endpoint].first;
        self.unqueue_first(core, endpoint);
        let upstream = self.upstreams.at_mut(slot).expect("it was in the list");
        match upstream.role {
            Role::Pair => self.upstream_gone(core, slot),
            Role::Socket | Role::Own | Role::Shared => self.close_socket(core, slot),
        }
    }

    /// Whether it has rested so long that what was late for its last flow has come and was read.
    pub fn has_rested(&self, slot: u32) -> bool {
        self.upstreams.at(slot).is_some_and(|upstream| {
            let rest = self.endpoints[upstream.endpoint.index()].rest;
            let seen = match upstream.role {
                Role::Pair => self.pairs.read_until(slot),
                Role::Socket | Role::Own | Role::Shared => self.seen,
            };
            seen >= upstream.rests_since + rest
        })
    }

    /// Whether it is of the kind that the table asks for, which may have been another before.
    pub fn is_wanted(&self, slot: u32, choice: &Choice) -> bool {
        match self.upstreams.at(slot).map(|upstream| upstream.role) {
            Some(Role::Pair) => {
                choice.role == Role::Pair && self.pairs.is_in_pool(slot, choice.endpoint)
            }
            Some(Role::Own) => false,
            role => role == Some(choice.role),
        }
    }

    /// Whether nobody will want it any more, at least not soon. It has rested in any case: the next
    /// flow may have its port or address as soon as it is closed.
    pub fn is_kept_too_long(&self, core: &Core, endpoint: usize, slot: u32) -> bool {
        let Some(upstream) = self.upstreams.at(slot) else { return false };
        let EndpointState { rest, gone_since, .. } = self.endpoints[endpoint];
        let unwanted = gone_since.is_some()
            || upstream.role == Role::Own
            || self.is_scarce(upstream.role, core.now);
        self.has_rested(slot) && (unwanted || core.now >= upstream.rests_since + rest + KEEP)
    }
}
