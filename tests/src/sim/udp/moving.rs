//! Sockets that receive nothing for now, and upstream sockets that go from one process to another.
//! Both processes are one process here, so an upstream socket goes from one slot to another; the
//! kernel sees to it that only one of the two receives.

use std::collections::BTreeMap;

use config_sync::table::routing::{SocketId, Transport};
use ringway::contract::{Event, Kind, Token};

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

    /// The other process has got this upstream socket. Returns its number.
    pub fn lend_upstream(&mut self, of: Token) -> u32 {
        self.lent.push(of);
        self.lent.len() as u32 - 1
    }

    pub(crate) fn attach_upstream(&mut self, token: Token, incoming: u32) {
        let of = self.lent[incoming as usize];
        assert!(!self.upstreams.contains_key(&token.slot), "Attach into a slot that is in use");
        self.use_slot(token);
        let old = self.upstream(of);
        assert!(old.halted && !old.armed && !old.away, "offered while it receives: {old:?}");
        old.away = true;
        let new = Upstream {
            token,
            port: old.port,
            address: old.address,
            interface: old.interface,
            used: old.used,
            serves: old.serves,
            pairs: BTreeMap::new(),
            armed: false,
            told: false,
            closing: false,
            halted: true,
            away: false,
            stopped: 0,
            pause_until: 0,
            refused: std::mem::take(&mut old.refused),
            received: std::mem::take(&mut old.received),
        };
        self.upstreams.insert(token.slot, new);
        if let Some(turn) = self.refused.remove(&of) {
            self.refused.insert(token, turn);
        }
        self.borrowed.insert(of, token);
    }

    /// The other process does not take the flow of this socket.
    pub fn give_back_upstream(&mut self, of: Token) {
        let Some(token) = self.borrowed.remove(&of) else { return };
        let new = self.upstream(token);
        new.away = true;
        let (refused, received) =
            (std::mem::take(&mut new.refused), std::mem::take(&mut new.received));
        let old = self.upstream(of);
        (old.away, old.refused, old.received) = (false, refused, received);
        if let Some(turn) = self.refused.remove(&token) {
            self.refused.insert(of, turn);
        }
    }
}
