//! Lets upstream sockets rest between two flows, so that no late reply reaches the wrong client.

use config_sync::table::routing::EndpointId;

use crate::proxy::core::Core;
use crate::proxy::slab::NONE;
use crate::proxy::udp::choose::Choice;
use crate::proxy::udp::state::{EndpointState, Flows, Role};

/// Microseconds. A rested socket that nobody needed for this long is closed.
pub const KEEP: u64 = 60_000_000;

impl Flows {
    /// Ends the socket's service for its flow, and lets the socket rest, even if no flow will want
    /// it. If the socket were closed at once, the next socket might get its port, and the next
    /// client a late reply.
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
        // Late replies must be read, or the next client would get them.
        self.unhalt(core, slot);
    }

    /// Takes the longest resting socket or pair off the endpoint's list.
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

    /// Closes the longest resting socket or pair of the endpoint.
    pub fn close_first(&mut self, core: &mut Core, endpoint: usize) {
        let slot = self.endpoints[endpoint].first;
        self.unqueue_first(core, endpoint);
        let upstream = self.upstreams.at_mut(slot).expect("it was in the list");
        match upstream.role {
            Role::Pair => self.upstream_gone(core, slot),
            Role::Socket | Role::Own | Role::Shared => self.close_socket(core, slot),
        }
    }

    /// Whether this socket or pair has rested so long that late replies to its last flow came and
    /// were read.
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

    /// Whether this socket or pair is of the kind that the table asks for now.
    pub fn is_wanted(&self, slot: u32, choice: &Choice) -> bool {
        match self.upstreams.at(slot).map(|upstream| upstream.role) {
            Some(Role::Pair) => {
                choice.role == Role::Pair && self.pairs.is_in_pool(slot, choice.endpoint)
            }
            Some(Role::Own) => false,
            role => role == Some(choice.role),
        }
    }

    /// These endpoints are reached through another interface from now on. The sockets that there
    /// are stay with their flows, and serve no other flow.
    pub fn leave_interfaces(&mut self, endpoints: &[EndpointId]) {
        if endpoints.is_empty() {
            return;
        }
        for slot in 0..self.upstreams.high_water() {
            if let Some(upstream) = self.upstreams.at_mut(slot)
                && upstream.role == Role::Socket
                && endpoints.contains(&upstream.endpoint)
            {
                upstream.role = Role::Own;
            }
        }
    }

    /// Whether no flow will want this socket or pair any more, or not soon. In any case it must
    /// have rested, because the next flow may get its port or address as soon as it is closed.
    pub fn is_kept_too_long(&self, core: &Core, endpoint: usize, slot: u32) -> bool {
        let Some(upstream) = self.upstreams.at(slot) else { return false };
        let EndpointState { rest, gone_since, .. } = self.endpoints[endpoint];
        let unwanted = gone_since.is_some()
            || upstream.role == Role::Own
            || self.is_scarce(upstream.role, core.now);
        self.has_rested(slot) && (unwanted || core.now >= upstream.rests_since + rest + KEEP)
    }
}
