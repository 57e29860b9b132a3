//! Decides which flows the kernel forwards. The kernel only changes addresses, and the worker does
//! all the rest: the flow's limits, log line, counters, idle time and end. So a flow can be
//! promoted and demoted at any time, and its client and endpoint notice nothing.
//!
//! A promoted flow keeps its socket, which still receives what the kernel does not forward. The
//! proxy asks the kernel about each promoted flow once a second or more often.

use config_sync::table::routing::{Listener, RoutingTable};
use config_sync::table::source_limit::SourceLimit;

use crate::contract::{Carried, Event, Op, Token};
use crate::proxy::cause::Cause;
use crate::proxy::core::Core;
use crate::proxy::udp::flow::{Due, Flow, PROMOTE_AGAIN, Promotion, Silence, Whose, listener_of};
use crate::proxy::udp::state::{Flows, One, Role};
use crate::proxy::udp::sweep::SWEEP_STEP;
use crate::proxy::udp::trial::{MOST_TRIALS, is_too_long};
use crate::stats::records::Demotion;

/// Microseconds within which the proxy asks about each promoted flow.
const ROUND: u64 = 1_000_000;

/// The maximum number of promoted flows that one step looks at.
const MOST_LOOKS: usize = 8_192;

impl Flows {
    /// Makes room for promoted flows if the table asks for them. Without that, no memory is used.
    pub fn prepare_promotions(&mut self, table: &RoutingTable) {
        self.promoted.unchecked = self.promoted.list.len();
        if table.backends.iter().any(|backend| backend.fast_path) {
            let most = (self.flows.len() + self.flows.room()) as usize;
            self.promoted.list.reserve_exact(most - self.promoted.list.len());
            self.promoted.trials.reserve_exact(MOST_TRIALS - self.promoted.trials.len());
        }
    }

    /// How a flow begins that has just got its endpoint.
    pub fn promotion_of(&self, core: &Core, flow: &Flow) -> Promotion {
        match self.bar(core, flow) {
            None => {
                let sent = after(core, flow);
                let replies = flow.replies + u64::from(sent);
                Promotion::After(Due { replies, sent, silence: Silence::default() })
            }
            Some(_) => Promotion::Never,
        }
    }

    /// Why the flow is one for the worker. `None`: its backend asks for the kernel's path, and
    /// nothing looks into the flow's datagrams or counts them one by one.
    pub fn bar(&self, core: &Core, flow: &Flow) -> Option<Demotion> {
        if core.tables.is_leaving(flow.socket) {
            return Some(Demotion::Draining);
        }
        if self.endpoints[flow.endpoint.index()].gone_since.is_some() {
            return Some(Demotion::EndpointGone);
        }
        (!self.is_plain(core, flow).unwrap_or(false)).then_some(Demotion::Configuration)
    }

    fn is_plain(&self, core: &Core, flow: &Flow) -> Option<bool> {
        let backend = core.tables.backend(flow.socket, flow.backend)?;
        let (_, listener) = listener_of(&core.tables, flow.socket)?;
        let (_, socket) = core.tables.of(flow.socket)?;
        let is_connected = self.upstreams.at(flow.upstream)?.role == Role::Socket;
        let is_plain = backend.fast_path
            && is_connected
            && asks_nothing(listener)
            && !flow.held.limits_bytes()
            && !flow.held.limits_datagrams()
            && flow.responses == 0
            && flow.proxied.is_none()
            && backend.send_proxy.is_none()
            && backend.interface == 0
            && socket.bound().interface == 0;
        Some(is_plain)
    }

    pub fn promote(&mut self, core: &mut Core, slot: u32) {
        let ours = [Whose::Ours, Whose::Announced, Whose::Refused];
        let is_ours = |flow: &&Flow| ours.contains(&flow.whose);
        let Some(flow) = self.flows.at(slot).filter(is_ours) else { return };
        if core.now < self.promoted.again_from {
            // One of its next datagrams promotes the flow.
            return;
        }
        if self.bar(core, flow).is_some() {
            // A new table bars the flow.
            return self.set_promotion(slot, Promotion::Never);
        }
        let (client, listener) = (flow.peer, flow.bound(core));
        let token = self.upstream_token(flow.upstream);
        let place = u32::try_from(self.promoted.list.len()).expect("no more than flows");
        let silence = match flow.promotion {
            Promotion::After(Due { silence, .. }) | Promotion::Again(silence) => silence,
            _ => Silence::default(),
        };
        self.promoted.list.push(One {
            slot,
            seen: Carried::default(),
            ways: (flow.sent, flow.replies),
            alone: None,
            silence,
            is_taken: false,
            leaves: None,
            end: None,
        });
        self.set_promotion(slot, Promotion::Kernel(place));
        core.counters.promoted.set(self.promoted.list.len() as u64);
        core.push(token, Op::Promote { client, listener });
    }

    /// Gives a promoted flow back to the worker, soon.
    pub fn demote(&mut self, core: &mut Core, slot: u32, why: Demotion) {
        let Some(Promotion::Kernel(place)) = self.flows.at(slot).map(|flow| flow.promotion) else {
            return;
        };
        let one = &mut self.promoted.list[place as usize];
        if one.leaves.is_none() {
            one.leaves = Some(why);
            let upstream = self.flows.at(slot).expect("found above").upstream;
            core.push(self.upstream_token(upstream), Op::Demote);
        }
    }

    /// Whether the flow ends only when it has been demoted, because the kernel still counts.
    pub fn ends_later(&mut self, core: &mut Core, slot: u32, cause: &Cause) -> bool {
        let Some(Promotion::Kernel(place)) = self.flows.at(slot).map(|flow| flow.promotion) else {
            return false;
        };
        self.promoted.list[place as usize].end.get_or_insert_with(|| cause.clone());
        self.demote(core, slot, Demotion::Ended);
        true
    }

    /// Whether the flow's end has begun.
    pub fn is_ending(&self, slot: u32) -> bool {
        let promotion = self.flows.at(slot).map(|flow| flow.promotion);
        let Some(Promotion::Kernel(place)) = promotion else { return false };
        self.promoted.list[place as usize].end.is_some()
    }

    /// Takes in what the kernel says of the flow of an upstream socket.
    pub fn on_kernel(&mut self, core: &mut Core, token: Token, event: Event) {
        let Some(slot) = self.upstreams.at(token.slot).map(|upstream| upstream.flow) else {
            return;
        };
        let Some(flow) = self.flows.at(slot) else { return };
        let Promotion::Kernel(place) = flow.promotion else { return };
        let one = &mut self.promoted.list[place as usize];
        match event {
            Event::Promoted { done: true } => {
                one.is_taken = true;
                core.counters.promotions.add(1);
            }
            Event::Promoted { done: false } => {
                core.counters.promotions_failed.add(1);
                // A flow that leaves is told so too, which then ends its place in the list.
                if one.leaves.is_none() {
                    self.is_demoted(core, slot, place);
                }
            }
            Event::Carried(carried) => {
                let is_one_sided = self.count(core, place, carried);
                let over = self.flows.at(slot).and_then(|flow| flow.over(core, false));
                if let Some(reason) = over {
                    self.end(core, slot, reason);
                } else if is_one_sided {
                    self.demote(core, slot, Demotion::OneSided);
                }
            }
            Event::Demoted(carried) => {
                self.count(core, place, carried);
                let end = self.is_demoted(core, slot, place);
                if let Some(cause) = end {
                    self.end(core, slot, cause);
                }
            }
            _ => {}
        }
    }

    /// Counts what the kernel has forwarded since the last count, as `forward` and `forward_reply`
    /// do. Returns whether one side has gone on for too long while the other was silent.
    fn count(&mut self, core: &Core, place: u32, carried: Carried) -> bool {
        let one = &mut self.promoted.list[place as usize];
        let seen = std::mem::replace(&mut one.seen, carried);
        let flow = self.flows.at_mut(one.slot).expect("a promoted flow lives");
        let up = carried.up.saturating_sub(seen.up);
        let down = carried.down.saturating_sub(seen.down);
        let bytes_up = carried.bytes_up.saturating_sub(seen.bytes_up);
        let bytes_down = carried.bytes_down.saturating_sub(seen.bytes_down);
        flow.sent += up;
        flow.replies += down;
        // Some of them went through the worker.
        let ways = std::mem::replace(&mut one.ways, (flow.sent, flow.replies));
        let is_one_sided = is_too_long(one, ways, core.now);
        flow.bytes_up += bytes_up;
        flow.bytes_down += bytes_down;
        if up + down > 0 {
            // They may have come at any time since the last count, up to a second ago.
            flow.last = core.now;
        }
        let listener = core.counters.listener(flow.listener);
        listener.from_clients.add(up);
        listener.to_endpoints.add(up);
        listener.bytes_up.add(bytes_up);
        listener.from_endpoints.add(down);
        listener.to_clients.add(down);
        listener.bytes_down.add(bytes_down);
        let endpoint = core.counters.endpoint(flow.endpoint);
        endpoint.bytes_up.add(bytes_up);
        endpoint.bytes_down.add(bytes_down);
        core.counters.carried.add(up + down);
        is_one_sided
    }

    /// The kernel forwards the flow no longer. Returns why the flow ends, if it does.
    fn is_demoted(&mut self, core: &Core, slot: u32, place: u32) -> Option<Cause> {
        let one = self.promoted.list.swap_remove(place as usize);
        if let Some(moved) = self.promoted.list.get(place as usize) {
            self.set_promotion(moved.slot, Promotion::Kernel(place));
        }
        core.counters.promoted.set(self.promoted.list.len() as u64);
        if let Some(why) = one.leaves.filter(|_| one.is_taken) {
            core.counters.demotions[why as usize].add(1);
        }
        let flow = self.flows.at(slot)?;
        let again = if self.bar(core, flow).is_some() {
            Promotion::Never
        } else if one.leaves == Some(Demotion::OneSided) && one.end.is_none() {
            self.try_out(core, slot, &one)
        } else if flow.whose == Whose::Stopping {
            Promotion::Again(one.silence)
        } else {
            let replies = flow.replies + PROMOTE_AGAIN;
            Promotion::After(Due { replies, sent: 0, silence: one.silence })
        };
        self.set_promotion(slot, again);
        one.end
    }

    pub fn set_promotion(&mut self, slot: u32, promotion: Promotion) {
        if let Some(flow) = self.flows.at_mut(slot) {
            flow.promotion = promotion;
        }
    }

    /// One step of the round over all promoted flows: demotes those that may not stay, and asks
    /// about the others. After a new table, one step looks at all, as far as it may, and asks about
    /// none.
    pub fn look_at_promoted(&mut self, core: &mut Core) {
        let all = self.promoted.list.len();
        let steps = usize::try_from(ROUND / SWEEP_STEP).unwrap_or(1);
        let is_table_new = self.promoted.unchecked > 0;
        let share = if is_table_new { self.promoted.unchecked } else { all.div_ceil(steps) };
        let share = share.min(all).min(MOST_LOOKS);
        self.promoted.unchecked = self.promoted.unchecked.min(all).saturating_sub(share);
        for _ in 0..share {
            let place = self.promoted.next % all;
            self.promoted.next = place + 1;
            let One { slot, leaves, .. } = self.promoted.list[place];
            let Some(flow) = self.flows.at(slot).filter(|_| leaves.is_none()) else { continue };
            if let Some(why) = self.bar(core, flow) {
                self.demote(core, slot, why);
            } else if !is_table_new {
                core.push(self.upstream_token(flow.upstream), Op::Tally);
            }
        }
    }
}

/// The datagrams each way after which a flow is promoted.
fn after(core: &Core, flow: &Flow) -> u32 {
    let backend = core.tables.backend(flow.socket, flow.backend);
    backend.map_or(u32::MAX, |backend| backend.fast_path_after)
}

/// Whether the listener asks nothing of each datagram.
fn asks_nothing(listener: &Listener) -> bool {
    let limit = listener.limit_source.as_ref();
    let is_silent = |limit: &SourceLimit| limit.datagrams.is_none() && limit.bytes.is_none();
    listener.dns_guard.is_none() && limit.is_none_or(|limit| is_silent(limit))
}
