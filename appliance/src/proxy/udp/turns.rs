//! Bounds the flows that begin in a turn. To open a socket costs as much as to forward tens of
//! datagrams, so in a flood of new clients those who have a session or flow would wait for all
//! sockets of a turn.
//!
//! The datagrams of clients without a flow stay in their buffers until it is their turn. Then all
//! that a client has sent comes in, in its order. Datagrams of flows do not wait, nor what the
//! listener has no place for. Behind PROXY headers nobody waits: only the headers say who has a
//! flow.
//!
//! Half of the buffers for clients are enough for those who wait. Without buffers the kernel would
//! drop datagrams of other listeners and of flows. So in a burst, who finds no room to wait comes
//! in at once. A flood that lasts would make every turn long, so after a while the newcomers of a
//! listening socket that has many waiting are dropped.

use config_sync::table::routing::{DnsGuard, Listener, SocketId};

use crate::contract::{Event, Kind, Part, Token};
use crate::proxy::core::Core;
use crate::proxy::udp::choose::admits;
use crate::proxy::udp::dns_guard::datagram;
use crate::proxy::udp::flow::{Batch, Sender, listener_of};
use crate::proxy::udp::forward::dropped;
use crate::proxy::udp::state::Flows;
use crate::stats::records::DropReason;
use crate::wire::dns::read_query;

impl Flows {
    /// Keeps an event of a listening socket for later, if it has to wait for its turn. Of no use
    /// while nobody must wait: see [`crate::proxy::udp::newcomers::Newcomers::must_wait`].
    #[cold]
    #[inline(never)]
    pub fn puts_off(&mut self, core: &mut Core, token: Token, event: Event, bytes: &[u8]) -> bool {
        match event {
            Event::Datagrams { .. } => self.puts_datagrams_off(core, token, event, bytes),
            Event::Stopped { .. } if self.newcomers.has(token) && is_left_alone(core, token) => {
                if !self.newcomers.has_stopped(token) {
                    self.newcomers.put_off(token, event);
                }
                true
            }
            Event::Unlistened if self.newcomers.has(token) => {
                self.drop_newcomers(core, token);
                false
            }
            _ => false,
        }
    }

    fn puts_datagrams_off(
        &mut self,
        core: &mut Core,
        token: Token,
        event: Event,
        payload: &[u8],
    ) -> bool {
        debug_assert_eq!(token.kind, Kind::Socket, "clients send to listening sockets");
        if !self.may_open(core, SocketId(token.slot), event, payload) {
            return false;
        }
        // Behind what the client has sent before.
        if !self.newcomers.are_enough() || self.newcomers.has_of_client(token, event) {
            self.newcomers.put_off(token, event);
        } else if self.newcomers.is_flood(token) {
            drop_newcomer(core, token, event, DropReason::NewFlows);
        } else {
            return false;
        }
        true
    }

    /// Whether a socket may have to be opened for these datagrams of a client.
    fn may_open(&self, core: &Core, socket: SocketId, event: Event, payload: &[u8]) -> bool {
        let Event::Datagrams { peer: Some(peer), local, size, count, truncated, .. } = event else {
            return false;
        };
        let Some((table, bound)) = core.tables.of(socket).filter(|_| !truncated) else {
            return false;
        };
        let Some(listener) = bound.listeners.any().map(|at| &table.listeners[at]) else {
            return false;
        };
        if bound.accept_proxy.expects_header(peer.ip()) {
            return false;
        }
        let is_query = |_: DnsGuard| {
            (0..count).any(|number| read_query(datagram(payload, size, number)).is_ok())
        };
        if !listener.dns_guard.is_none_or(is_query) || self.has_no_place(core, listener) {
            return false;
        }
        let sender = Sender { peer, local, said: None };
        let hash = self.hasher.hash_one((socket, sender.client(), sender.local));
        let admitted = admits(listener.access.as_deref(), peer).is_ok();
        admitted && self.found(socket, &sender, hash).is_none()
    }

    /// Whether a new flow of this listener would be refused, whoever the client is.
    fn has_no_place(&self, core: &Core, listener: &Listener) -> bool {
        let limit = listener.limit.as_deref();
        self.flows.is_full()
            || core.places.is_full(listener)
            || limit.is_some_and(|limit| limit.over(core.unix_micros()).is_some())
    }

    /// The socket is closed, so nobody could answer those who wait.
    fn drop_newcomers(&mut self, core: &mut Core, of: Token) {
        for event in self.newcomers.take_out(of) {
            drop_newcomer(core, of, event, DropReason::Draining);
        }
    }
}

/// Whether another process goes on with this socket or its flows, once all is handled that was
/// received here.
fn is_left_alone(core: &Core, token: Token) -> bool {
    let id = SocketId(token.slot);
    core.hearing.is_deaf(id) || core.tables.is_released(id)
}

/// Counts and drops the datagrams of an event.
fn drop_newcomer(core: &mut Core, token: Token, event: Event, reason: DropReason) {
    let Event::Datagrams { buffer, bytes, count, .. } = event else { return };
    let socket = SocketId(token.slot);
    if let Some((_, listener)) = listener_of(&core.tables, socket) {
        core.counters.listener(listener.id).from_clients.add(u64::from(count));
    }
    let batch = Batch { buffer, bytes, count, part: Part::default() };
    dropped(core, socket, batch, reason);
}
