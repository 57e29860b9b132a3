//! Gives a session to another process, or takes one over.
//!
//! A session that is to leave pauses: it receives nothing new, and what is held goes out. When no
//! byte is in the gateway it is still, and is offered to the other process. From then on both have
//! its connections, and neither receives, until it is clear whose the session is.
//!
//! Where a side does not take what is held for it, that takes long. Until it has taken all, only
//! the direction towards it pauses, which stands still anyway.

use config_sync::table::moving::Moving;
use config_sync::table::routing::{EndpointId, ListenerId};

use crate::contract::{Op, Side, Why};
use crate::proxy::core::Core;
use crate::proxy::held::Scope;
use crate::proxy::tcp::accounting::{give_to, lead_by};
use crate::proxy::tcp::close::failure;
use crate::proxy::tcp::direction::Half;
use crate::proxy::tcp::state::{Entry, HeaderFacts, Pause, Relay, Session, State};

/// Milliseconds after which the timer of a session looks again that nobody has decided about.
const UNDECIDED: u64 = 100;

/// How far a session that pauses is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stillness {
    /// No byte is in the gateway.
    Still,
    /// Of sides from which nothing is received no byte is held any more, so the others may pause.
    Emptied,
    Pausing,
}

impl Session {
    /// Whether the session could go to another process. Where TLS ends here, its keys are here.
    pub fn may_leave(&self) -> bool {
        let State::Relaying(relay) = &self.state else { return false };
        let is_whole = relay.ending.is_none() && !relay.has_failed() && relay.pause == Pause::No;
        is_whole && self.tls.is_none() && self.listener.is_some() && self.endpoint.is_some()
    }

    /// Receives nothing more. While bytes of a side are held, only that side stops.
    pub fn pause(&mut self, core: &mut Core) {
        let State::Relaying(relay) = &mut self.state else { return };
        let holds = [relay.up.held() > 0, relay.down.held() > 0];
        relay.pause = if holds == [false; 2] { Pause::Begun } else { Pause::Emptying(holds) };
        for from in [Side::Client, Side::Endpoint] {
            if !relay.is_paused(from) {
                continue;
            }
            relay.unmark(core, self.token, from);
            if relay.half(from).streaming() {
                let op = relay.half(from).unstream();
                core.push(self.token, op);
            }
        }
        self.pump(core);
    }

    /// Whether only one direction pauses so far.
    pub fn is_emptying(&self) -> bool {
        matches!(&self.state, State::Relaying(Relay { pause: Pause::Emptying(_), .. }))
    }

    /// How far a session that pauses is. `None`: it does not pause any more, because it has ended
    /// or is about to.
    pub fn stillness(&self) -> Option<Stillness> {
        let State::Relaying(relay) = &self.state else { return None };
        let is_empty = |half: &Half| half.held() == 0 && !half.queued();
        Some(match relay.pause {
            Pause::Begun if relay.up.is_still() && relay.down.is_still() => Stillness::Still,
            Pause::Begun => Stillness::Pausing,
            Pause::Emptying([up, down])
                if (!up || is_empty(&relay.up)) && (!down || is_empty(&relay.down)) =>
            {
                Stillness::Emptied
            }
            Pause::Emptying(_) => Stillness::Pausing,
            Pause::No | Pause::Offered | Pause::Arrived { .. } => return None,
        })
    }

    /// Offers a still session to another process.
    pub fn offer(&mut self) -> Option<Moving> {
        let (listener, endpoint) = (self.listener?, self.endpoint?);
        let State::Relaying(relay) = &mut self.state else { return None };
        relay.pause = Pause::Offered;
        let proxied = self.proxied.as_deref();
        Some(Moving {
            socket: self.socket,
            protocol: self.protocol,
            listener,
            route: self.route,
            backend: self.backend,
            endpoint,
            client: self.client,
            local: self.local,
            peer: proxied.and_then(|facts| facts.peer),
            destination: proxied.and_then(|facts| facts.destination),
            unique_id: proxied.and_then(|facts| facts.unique_id),
            server_name: self.server_name.clone(),
            timeouts: self.timeouts,
            opened: self.opened,
            last_byte: self.last_byte,
            connect: self.connect_micros,
            bytes: [relay.up.bytes, relay.down.bytes],
            ended: [relay.up.ended(), relay.down.ended()],
            client_first: relay.first_end.map(|side| side == Side::Client),
            ending: self.entry == Entry::Ending,
            paced: [relay.paced.0, relay.paced.1],
        })
    }

    /// A session that was another process's so far, and is not this one's yet.
    pub fn arrived(moving: Moving) -> Self {
        let [up, down] = moving.bytes;
        let [up_ended, down_ended] = moving.ended;
        let halves = (
            Half::taken_over(Side::Client, up, up_ended),
            Half::taken_over(Side::Endpoint, down, down_ended),
        );
        let first_end = moving.client_first.map(|first| match first {
            true => Side::Client,
            false => Side::Endpoint,
        });
        let relay = Relay {
            first_end,
            paced: (moving.paced[0], moving.paced[1]),
            pause: Pause::Arrived { ending: moving.ending },
            ..Relay::new(halves.0, halves.1)
        };
        let facts = HeaderFacts {
            peer: moving.peer,
            destination: moving.destination,
            unique_id: moving.unique_id,
        };
        let is_proxied = facts.peer.is_some() || facts.unique_id.is_some();
        let place = (moving.socket, moving.protocol);
        Self {
            state: State::Relaying(relay),
            listener: Some(moving.listener),
            route: moving.route,
            backend: moving.backend,
            endpoint: Some(moving.endpoint),
            server_name: moving.server_name,
            last_byte: moving.last_byte,
            connect_micros: moving.connect,
            proxied: is_proxied.then(|| Box::new(facts)),
            ..Self::new(place, moving.client, moving.local, moving.opened, moving.timeouts)
        }
    }

    /// The session is this process's, and moves bytes again.
    pub fn go_on(&mut self, core: &mut Core) {
        let State::Relaying(relay) = &mut self.state else { return };
        let before = std::mem::replace(&mut relay.pause, Pause::No);
        // A failure of a side from which nothing more is read is not reported again.
        let failed = [Side::Client, Side::Endpoint]
            .into_iter()
            .find(|side| relay.failed[*side as usize] && relay.half(*side).is_over());
        if let Pause::Arrived { ending } = before {
            let ending = ending || relay.up.is_ending() || relay.down.is_ending();
            self.entry = if ending { Entry::Ending } else { Entry::Full };
            self.count_in(core);
        }
        if let Some(side) = failed {
            self.end(core, failure(side, Why::Reset), Some(side));
        }
        self.arm(core);
        self.pump(core);
    }

    fn count_in(&mut self, core: &mut Core) {
        self.arrive(core);
        if let Some(listener) = self.listener.take() {
            give_to(&mut self.listener, listener, &core.counters);
            core.places.arrive(listener, self.entry == Entry::Ending);
            self.count_source(core, listener);
        }
        if let Some(route) = self.route.take() {
            lead_by(&mut self.route, route, &core.counters);
        }
        if let Some(endpoint) = self.endpoint {
            core.balancer.arrived(endpoint);
            core.counters.endpoint(endpoint).opened.add(1);
            self.counted = true;
        }
    }

    /// Counts the session for its client's source, which may have one too many now.
    fn count_source(&mut self, core: &Core, id: ListenerId) {
        let mut listeners = core.tables.current().listeners.iter();
        let limit = listeners.find(|of| of.id == id).and_then(|of| of.limit_source.as_ref());
        let Some(limit) = limit else { return };
        self.source = limit.arrive(self.client.ip(), core.unix_micros());
        if let Some(record) = self.source {
            self.held.count_source(record, limit.bytes);
        }
    }

    /// Takes places within the limits of the table in force, however many sessions there are.
    fn arrive(&mut self, core: &Core) {
        let table = core.tables.current();
        let listener = table.listeners.iter().find(|of| Some(of.id) == self.listener);
        let route = self.route.and_then(|id| core.tables.route(id));
        let backend = self.backend.and_then(|id| core.tables.backend(self.socket, id));
        let held = &mut self.held;
        held.arrive(Scope::Process, table.total.as_deref());
        held.arrive(Scope::Listener, listener.and_then(|of| of.limit.as_deref()));
        held.arrive(Scope::Route, route.and_then(|of| of.limit.as_deref()));
        held.arrive(Scope::Backend, backend.and_then(|of| of.limit.as_deref()));
        let of_source = route.and_then(|of| of.limit_source.as_deref());
        held.arrive_source(of_source, self.client.ip(), core.unix_micros());
        if let Some(endpoint) = self.endpoint {
            held.count_endpoint(core, endpoint);
        }
    }

    /// Another process goes on with the session. Nobody is told here, and no line is logged: the
    /// last line is the other process's.
    pub fn forget(&mut self, core: &mut Core) {
        let State::Relaying(relay) = &self.state else { return };
        let is_ours = relay.pause == Pause::Offered;
        self.state = State::Closing;
        core.timers.cancel(self.token.slot);
        core.push(self.token, Op::Close { reset: false });
        if !is_ours {
            return;
        }
        core.leave_source(self.source.take());
        self.held.clear(core);
        if let Some(endpoint) = self.endpoint {
            self.leave_endpoint(core, endpoint);
        }
        if let Some(route) = self.route {
            core.counters.route(route).opened.sub(1);
        }
        let Some(listener) = self.listener else { return };
        core.counters.listener(listener).opened.sub(1);
        match self.entry {
            Entry::None => {}
            Entry::Full => core.places.leave(listener),
            Entry::Ending => core.places.leave_ending(listener),
        }
    }

    fn leave_endpoint(&mut self, core: &mut Core, endpoint: EndpointId) {
        if std::mem::take(&mut self.counted) {
            core.leaves(endpoint);
            core.counters.endpoint(endpoint).opened.sub(1);
        }
    }

    /// A deadline of a session that two processes have waits until it is clear whose the session
    /// is.
    pub fn postpone(&self, core: &mut Core) {
        core.timers.set(self.token.slot, core.now / 1_000 + UNDECIDED);
    }
}
