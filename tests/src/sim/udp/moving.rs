//! Sockets that receive nothing for now, and upstream sockets that go from one process to another.
//! Such a socket is in a slot of each for a while. What it receives is with one of them, which has
//! the socket; the other is `away`, until it receives or the one that has the socket is closed. The
//! kernel sees to it that only one of the two receives.

use std::collections::{BTreeMap, VecDeque};

use config_sync::table::routing::{SocketId, Transport};
use ringway::contract::{Event, Kind, Token};

use crate::sim::kernel::process::parts;
use crate::sim::kernel::{Kernel, Pending, Turn};
use crate::sim::udp::upstream::Upstream;

impl Kernel {
    pub(crate) fn halt(&mut self, token: Token, turn: &mut Turn) {
        let armed = match token.kind {
            Kind::Socket => {
                let socket = self.listening_socket(token, Transport::Udp);
                if socket.ending || socket.released {
                    return;
                }
                socket.halted = true;
                socket.armed
            }
            Kind::Upstream => {
                let upstream = self.upstream(token);
                assert!(upstream.address.is_some(), "Halt of a shared socket");
                upstream.halted = true;
                upstream.armed
            }
            Kind::Session => panic!("Halt of a session"),
        };
        match armed {
            // What comes until then still comes out.
            true => self.soon(Pending::Halted(token)),
            false => self.event(token, Event::Stopped { why: None }, turn),
        }
    }

    /// The cancellation of what receives is through. The socket may have stopped by itself, or may
    /// have been told to receive again.
    pub(crate) fn has_halted(&mut self, token: Token, turn: &mut Turn) {
        let (halted, armed) = match token.kind {
            Kind::Socket => match self.listening.get_mut(&SocketId(token.slot)) {
                Some(of) if !of.ending && !of.released => (of.halted, &mut of.armed),
                _ => return,
            },
            _ => match self.upstreams.get_mut(&token.slot).filter(|of| of.token == token) {
                Some(of) if !of.closing => (of.halted, &mut of.armed),
                _ => return,
            },
        };
        if halted && std::mem::take(armed) {
            self.event(token, Event::Stopped { why: None }, turn);
        }
    }

    /// The other process has got this upstream socket. Returns its number. `None`: the socket was
    /// closed in the meantime.
    pub fn lend_upstream(&mut self, of: Token) -> Option<u32> {
        // `of` is a token of the kernel's, because the process that has it is another one.
        self.upstreams.get(&of.slot).filter(|upstream| upstream.token == of)?;
        self.lent.push(of);
        Some(self.lent.len() as u32 - 1)
    }

    /// The other process receives nothing before it is told to, so the one that lends the socket
    /// still has it.
    pub(crate) fn attach_upstream(&mut self, token: Token, incoming: u32) {
        let of = self.lent[incoming as usize];
        assert!(!self.upstreams.contains_key(&token.slot), "Attach into a slot that is in use");
        self.use_slot(token);
        let old = self.upstreams.get(&of.slot).filter(|old| old.token == of);
        let old = old.expect("it was there when it was lent, just now");
        let new = Upstream {
            token,
            port: old.port,
            address: old.address,
            interface: old.interface,
            used: old.used,
            serves: None,
            pairs: BTreeMap::new(),
            armed: false,
            told: false,
            closing: false,
            halted: true,
            away: true,
            stopped: 0,
            pause_until: 0,
            refused: false,
            received: VecDeque::new(),
        };
        self.upstreams.insert(token.slot, new);
    }

    /// A copy of a socket that another slot may have so far has it from now on, with all that it
    /// has received.
    pub(super) fn fetch(&mut self, token: Token) {
        let upstream = self.upstream(token);
        if !std::mem::take(&mut upstream.away) {
            return;
        }
        let port = upstream.port;
        let mut others = self.upstreams.values_mut();
        let before = others.find(|of| of.port == port && of.token != token && !of.away);
        let before = before.expect("somebody has the socket");
        assert!(before.halted && !before.armed, "two receive from one socket: {before:?}");
        before.away = true;
        let before = before.token;
        self.move_socket(before, token);
    }

    /// The slot that has a socket is about to be empty. A copy in another slot has it then.
    pub(super) fn leave_to_others(&mut self, token: Token) {
        let Some(old) = self.upstreams.get(&token.slot).filter(|of| !of.away) else { return };
        let port = old.port;
        let mut others = self.upstreams.values_mut();
        if let Some(next) = others.find(|of| of.port == port && of.token != token) {
            next.away = false;
            let next = next.token;
            self.move_socket(token, next);
        }
    }

    /// A process has closed its copy of an upstream socket, or was killed.
    pub(crate) fn drop_upstream(&mut self, token: Token) {
        self.leave_to_others(token);
        let Some(upstream) = self.upstreams.remove(&token.slot) else { return };
        self.refused.remove(&token);
        let port = upstream.port;
        if upstream.away || self.upstreams.values().any(|of| of.port == port) {
            return;
        }
        let serves = upstream.serves.into_iter();
        let pairs = upstream.pairs.values().filter(|used| used.ended.is_none());
        let lost: Vec<_> = serves.chain(pairs.map(|used| used.exchange)).collect();
        // Nobody logs the end of a flow whose process was killed.
        lost.into_iter().for_each(|exchange| self.flow_is_over(exchange.source()));
    }

    fn move_socket(&mut self, from: Token, to: Token) {
        let Some(old) = self.upstreams.get_mut(&from.slot) else { return };
        let (refused, received) =
            (std::mem::take(&mut old.refused), std::mem::take(&mut old.received));
        let (serves, used, port) = (old.serves, old.used, old.port);
        for ((_, _), last) in self.used.iter_mut().filter(|((of, _), _)| *of == port) {
            last.slot = if last.slot == from.slot { to.slot } else { last.slot };
        }
        if let Some(new) = self.upstreams.get_mut(&to.slot) {
            (new.refused, new.received, new.serves, new.used) = (refused, received, serves, used);
        }
        if let Some(exchange) = serves {
            let of = |token: Token| (parts(token.slot).0, exchange);
            if let Some(way) = self.ways.remove(&of(from)) {
                self.ways.insert(of(to), way);
            }
            if let Some(home) = self.homes.remove(&of(from)) {
                self.homes.insert(of(to), home);
            }
            if let Some(begun) = self.begun.remove(&of(from)) {
                self.begun.insert(of(to), begun);
            }
        }
        if let Some(turn) = self.refused.remove(&from) {
            self.refused.insert(to, turn);
        }
    }
}
