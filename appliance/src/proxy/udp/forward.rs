//! Forwards datagrams to the endpoint, and replies to the client.

use config_sync::table::routing::SocketId;

use crate::contract::{Op, Token, Why};
use crate::proxy::core::Core;
use crate::proxy::udp::flow::{Batch, Promotion, listener_of};
use crate::proxy::udp::shared_sockets::Pair;
use crate::proxy::udp::state::{Flows, Role};
use crate::stats::records::{CloseReason, DropReason};

impl Flows {
    pub fn forward(&mut self, core: &mut Core, slot: u32, batch: Batch) {
        let flow = self.flows.at_mut(slot).expect("found or made just now");
        flow.last = core.now;
        flow.sent += u64::from(batch.count);
        flow.bytes_up += u64::from(batch.bytes);
        let listener = core.counters.listener(flow.listener);
        listener.to_endpoints.add(u64::from(batch.count));
        listener.bytes_up.add(u64::from(batch.bytes));
        core.counters.endpoint(flow.endpoint).bytes_up.add(u64::from(batch.bytes));
        let is_due = match flow.promotion {
            Promotion::Again(_) => true,
            promotion => promotion.is_due(flow.sent, flow.replies),
        };
        let (upstream, buffer, mut part) = (flow.upstream, batch.buffer, batch.part);
        if let Some(proxied) = &flow.proxied {
            part.head = proxied.say(&mut core.output);
        }
        let mut op = Op::SendUp { buffer, part };
        if let Some(used) = self.upstreams.at_mut(upstream) {
            used.sent = used.sent.saturating_add(batch.count);
            if used.role == Role::Pair {
                let Pair { endpoint: peer, local } = self.pairs.get(upstream);
                let via = self.pairs.socket(peer.is_ipv4()).expect("it is open while it has pairs");
                op = Op::SendVia { buffer, part, via, peer, local };
            }
        }
        core.push(self.upstream_token(upstream), op);
        if is_due {
            self.promote(core, slot);
        }
    }

    /// `token`: the socket that received the reply. `slot`: the slot of that socket, or of the pair
    /// on it.
    pub fn forward_reply(
        &mut self,
        core: &mut Core,
        token: Token,
        slot: u32,
        batch: Batch,
        truncated: bool,
    ) {
        let upstream = self.upstreams.at(slot).expect("the caller found it");
        let Some(flow) = self.flows.at_mut(upstream.flow) else {
            // The listener of the flow is not known any more, so only the endpoint counts the late
            // reply.
            core.counters.endpoint(upstream.endpoint).late_replies.add(u64::from(batch.count));
            return core.push(token, Op::Recycle { buffer: batch.buffer });
        };
        let listener = core.counters.listener(flow.listener);
        listener.from_endpoints.add(u64::from(batch.count));
        if truncated {
            listener.dropped[DropReason::Truncated as usize].add(u64::from(batch.count));
            return core.push(token, Op::Recycle { buffer: batch.buffer });
        }
        flow.last = core.now;
        flow.replies += u64::from(batch.count);
        let (to, peer, local) = (Token::socket(flow.socket), flow.peer, flow.local);
        match flow.may_get(core, batch.bytes) {
            Ok(()) => {
                flow.bytes_down += u64::from(batch.bytes);
                listener.to_clients.add(u64::from(batch.count));
                listener.bytes_down.add(u64::from(batch.bytes));
                core.counters.endpoint(flow.endpoint).bytes_down.add(u64::from(batch.bytes));
                core.push(to, Op::SendDown { buffer: batch.buffer, from: slot, peer, local });
            }
            Err(reason) => {
                listener.dropped[reason as usize].add(u64::from(batch.count));
                core.push(token, Op::Recycle { buffer: batch.buffer });
            }
        }
        // A client with two queries under way on one socket gets both answers, because the flow
        // ends only when there are `responses` for each datagram.
        if flow.responses > 0 && flow.replies >= flow.sent * u64::from(flow.responses) {
            let slot = upstream.flow;
            self.end(core, slot, CloseReason::FlowAnswered);
        }
    }

    pub fn send_failed(&mut self, core: &mut Core, token: Token, why: Why, count: u32) {
        if why == Why::Refused {
            self.refused(core, token.slot);
        }
        let upstream = self.upstreams.at(token.slot).expect("the caller found it");
        if let Some(flow) = self.flows.at(upstream.flow) {
            let counters = core.counters.listener(flow.listener);
            counters.to_endpoints.sub(u64::from(count));
            counters.dropped[failed_send(why) as usize].add(u64::from(count));
        }
    }

    /// Counts replies that could not be sent to a client.
    pub fn reply_failed(&self, core: &Core, socket: SocketId, why: Why, count: u32) {
        let listener = listener_of(&core.tables, socket).map(|(_, listener)| listener.id);
        if let Some(listener) = listener {
            let counters = core.counters.listener(listener);
            counters.to_clients.sub(u64::from(count));
            counters.dropped[failed_send(why) as usize].add(u64::from(count));
        }
    }
}

pub fn failed_send(why: Why) -> DropReason {
    match why {
        Why::Refused => DropReason::EndpointRefused,
        Why::Blocked => DropReason::Blocked,
        Why::TooBig => DropReason::TooBig,
        Why::BadSource => DropReason::BadSource,
        _ => DropReason::SendFailed,
    }
}

/// Counts and drops a batch of a client.
pub fn dropped(core: &mut Core, socket: SocketId, batch: Batch, reason: DropReason) {
    let listener = listener_of(&core.tables, socket).map(|(_, listener)| listener.id);
    if let Some(listener) = listener {
        let dropped = &core.counters.listener(listener).dropped;
        dropped[reason as usize].add(u64::from(batch.count));
    }
    if !batch.part.more {
        core.push(Token::socket(socket), Op::Recycle { buffer: batch.buffer });
    }
}
