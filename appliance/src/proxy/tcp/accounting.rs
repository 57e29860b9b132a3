//! Counts a session and reports it: the bytes, the place with the listener, the record.

use config_sync::table::request::{Handle, Of};
use config_sync::table::routing::{EndpointId, ListenerId, RouteId};

use crate::contract::{Side, Token};
use crate::proxy::cause::Cause;
use crate::proxy::core::Core;
use crate::proxy::tcp::state::{Entry, Relay, Session};
use crate::stats::counters::Counters;
use crate::stats::records::{CloseReason, SessionRecord};

impl Session {
    pub fn account(&mut self, core: &mut Core, cause: Cause, relay: Option<&Relay>) {
        let reason = cause.reason;
        if let Some(endpoint) = self.endpoint
            && std::mem::take(&mut self.counted)
        {
            core.leaves(endpoint);
            if let Some(relay) = relay {
                let counters = core.counters.endpoint(endpoint);
                counters.closed.add(1);
                if reason == CloseReason::EndpointReset {
                    counters.resets.add(1);
                    counters.failures.add(u64::from(relay.down.bytes == 0));
                }
            }
        }
        if let Some(route) = self.route {
            let bytes = relay.map_or((0, 0), |relay| (relay.up.bytes, relay.down.bytes));
            core.counters.route(route).ended(relay.is_none(), bytes);
        }
        core.leave_source(self.source.take());
        if !self.held.is_empty() {
            self.held.clear(core);
            core.delays.place_freed();
        }
        let Some(listener) = self.listener else {
            core.counters.unmatched[reason as usize].add(1);
            return self.log(core, cause, None);
        };
        match self.entry {
            Entry::None => {}
            Entry::Full => core.places.leave(listener),
            Entry::Ending => core.places.leave_ending(listener),
        }
        let counters = core.counters.listener(listener);
        if relay.is_some() {
            counters.closed[reason as usize].add(1);
            counters.duration.record(core.now - self.opened);
        } else {
            counters.refused[reason as usize].add(1);
        }
        self.log(core, cause, relay);
    }

    pub fn log(&mut self, core: &mut Core, cause: Cause, relay: Option<&Relay>) {
        let mut record = self.record(core, Some(cause.reason));
        record.detail = cause.detail;
        if let Some(relay) = relay {
            (record.bytes_up, record.bytes_down) = (relay.up.bytes, relay.down.bytes);
        }
        core.log(record);
    }

    pub fn handle(&self) -> Handle {
        let Token { slot, generation, .. } = self.token;
        Handle { of: Of::Sessions, slot, generation }
    }

    pub fn record(&mut self, core: &Core, reason: Option<CloseReason>) -> SessionRecord {
        SessionRecord {
            handle: Some(self.handle()),
            listener: self.listener,
            route: self.route,
            backend: self.backend,
            endpoint: self.endpoint,
            server_name: match reason {
                Some(_) => self.server_name.take(),
                None => self.server_name.clone(),
            },
            tls: self.tls.as_ref().and_then(|tls| tls.client_conn()?.facts()).map(Box::new),
            connect: self.connect_micros,
            refused: reason.is_some() && self.connect_micros.is_none(),
            reason,
            peer: self.proxied.as_ref().and_then(|proxied| proxied.peer),
            unique_id: self.proxied.as_ref().and_then(|proxied| proxied.unique_id),
            ..SessionRecord::new(
                self.protocol,
                self.socket,
                (self.client, self.local),
                self.opened,
                core.now,
            )
        }
    }
}

/// Frees the place of a session that has begun to end.
pub fn make_room(core: &mut Core, listener: Option<ListenerId>, entry: &mut Entry) {
    if let (Some(listener), Entry::Full) = (listener, *entry) {
        *entry = Entry::Ending;
        core.places.begins_to_end(listener);
    }
}

/// Counts the session for this listener until the session ends.
pub fn give_to(of: &mut Option<ListenerId>, listener: ListenerId, counters: &Counters) {
    let before = of.replace(listener);
    if before != Some(listener) {
        if let Some(before) = before {
            // The address became another listener's after the session was accepted.
            counters.listener(before).opened.sub(1);
        }
        counters.listener(listener).opened.add(1);
    }
}

/// Counts the session for this route until the session ends.
pub fn lead_by(of: &mut Option<RouteId>, route: RouteId, counters: &Counters) {
    let before = of.replace(route);
    if before != Some(route) {
        if let Some(before) = before {
            counters.route(before).opened.sub(1);
        }
        counters.route(route).opened.add(1);
    }
}

pub fn count_bytes(
    core: &Core,
    listener: Option<ListenerId>,
    endpoint: Option<EndpointId>,
    from: Side,
    bytes: u64,
) {
    let (Some(listener), Some(endpoint)) = (listener, endpoint) else { return };
    let (listener, endpoint) = (core.counters.listener(listener), core.counters.endpoint(endpoint));
    match from {
        Side::Client => {
            listener.bytes_up.add(bytes);
            endpoint.bytes_up.add(bytes);
        }
        Side::Endpoint => {
            listener.bytes_down.add(bytes);
            endpoint.bytes_down.add(bytes);
        }
    }
}
