//! One session with its peers, and what these do.

use std::collections::VecDeque;
use std::net::SocketAddr;

use ringway::contract::{Event, Side, Token};
use ringway::stats::records::SessionRecord;

use crate::pki::Issued;
use crate::sim::rng::Rng;
use crate::sim::tls::case::{Case, Fault};
use crate::sim::tls::peer::TlsPeer;

/// One session with its peers.
pub(super) struct Life {
    pub(super) case: Case,
    pub(super) address: SocketAddr,
    pub(super) token: Option<Token>,
    pub(super) wires: [Wire; 2],
    pub(super) connected: bool,
    pub(super) peers: [TlsPeer; 2],
    /// Who answers the second connection to an endpoint.
    pub(super) spare: Option<TlsPeer>,
    /// The first endpoint was given up for it.
    pub(super) replaced: bool,
    acts: u64,
    /// When the fault strikes: after so many acts of peers.
    strike: u64,
    /// The turn in which there was news of a client during its handshake, since it was
    /// last looked at.
    pub(super) told: Option<u64>,
    pub(super) closing: bool,
    pub(super) closed: bool,
    pub(super) record: Option<SessionRecord>,
    /// How much a side had said when its connection ended early, if all of that was on its way.
    pub(super) said: Option<(Side, usize)>,
}

/// One connection as the ring has it.
#[derive(Default)]
pub(super) struct Wire {
    pub(super) inbound: VecDeque<u8>,
    pub(super) outbound: VecDeque<u8>,
    pub(super) capacity: usize,
    /// The peer has sent its FIN; the proxy has.
    pub(super) fin_in: bool,
    pub(super) fin_out: bool,
    pub(super) failed: bool,
    pub(super) was_reset: bool,
    pub(super) lowat: usize,
    /// A `Give` was cut short.
    pub(super) blocked: bool,
    pub(super) news: bool,
    pub(super) writable: bool,
}

/// What a worker's turn has in its hands.
pub(super) struct Turn {
    pub(super) rng: Rng,
    pub(super) number: u64,
    pub(super) events: VecDeque<(Token, Event)>,
    pub(super) bytes: Vec<u8>,
    pub(super) output: Vec<u8>,
}

impl Life {
    pub(super) fn new(rng: &mut Rng, case: Case, number: u32, most: u64, issued: &Issued) -> Self {
        // No two sessions say the same, so bytes that cross from one to another show.
        let mut data = |stream: u32| -> Vec<u8> {
            let len = rng.scale(1, most) as u32;
            let byte = |at: u32| (at ^ (2 * number + stream) << 16).wrapping_mul(0x9E37_79B1) >> 24;
            (0..len).map(|at| byte(at) as u8).collect()
        };
        let (up, down) = (data(0), data(1));
        let good = Case { fault: Fault::None, ..case };
        let spare = case.spare.then(|| good.peers(rng, issued, up.clone(), down.clone()));
        let spare = spare.map(|[_, endpoint]| endpoint);
        let peers = case.peers(rng, issued, up, down);
        // A hello is looked at where it is, so a socket has room for a whole one: with a
        // post-quantum key share it has 1.7 kB.
        let mut wire =
            || Wire { capacity: rng.scale(1 << 12, 1 << 18) as usize, ..Wire::default() };
        let mut wires = [wire(), wire()];
        if case.fault == Fault::Silence {
            wires[1].capacity = 0;
        }
        Self {
            case,
            address: SocketAddr::from(([10, 9, 0, 0], 1_000 + number as u16)),
            token: None,
            wires,
            connected: false,
            peers,
            spare,
            replaced: false,
            acts: 0,
            strike: rng.scale(1, 200),
            told: None,
            closing: false,
            closed: false,
            record: None,
            said: None,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.closed && self.wires.iter().all(|wire| wire.outbound.is_empty())
    }

    /// A peer does something.
    pub(super) fn act(&mut self, rng: &mut Rng) {
        self.acts += 1;
        let side = rng.below(if self.connected { 2 } else { 1 }) as usize;
        if self.acts > self.strike && !self.closing && self.strike_now() {
            self.strike = u64::MAX;
            return;
        }
        if side == 1 && self.case.fault == Fault::Silence && !self.replaced {
            return;
        }
        let (wire, peer) = (&mut self.wires[side], &mut self.peers[side]);
        if rng.per_mille(500) {
            let some = (rng.scale(1, 1 << 16) as usize).min(wire.outbound.len());
            let heard: Vec<_> = wire.outbound.drain(..some).collect();
            peer.hear(&heard);
            if wire.blocked && wire.outbound.len() * 3 <= wire.capacity * 2 {
                wire.blocked = false;
                wire.writable = true;
            }
            return;
        }
        if wire.fin_in || wire.failed || wire.was_reset || self.closed {
            return;
        }
        let room = wire.capacity.saturating_sub(wire.inbound.len());
        let said = peer.speak(rng, room);
        wire.news |= !said.is_empty();
        wire.inbound.extend(said);
        if peer.is_done() {
            wire.fin_in = true;
            wire.news = true;
        }
    }

    fn strike_now(&mut self) -> bool {
        let (side, fault) = match self.case.fault {
            Fault::None | Fault::Words(_) | Fault::Silence => return true,
            Fault::Truncation(side) | Fault::Reset(side) | Fault::Corruption(side) => {
                (side as usize, self.case.fault)
            }
        };
        let wire = &mut self.wires[side];
        if side == 1 && self.replaced {
            return true;
        }
        if (side == 1 && !self.connected) || wire.fin_in {
            return false;
        }
        if let Fault::Truncation(side) | Fault::Reset(side) = fault {
            let peer = &self.peers[side as usize];
            self.said = peer.said_all().map(|said| (side, said));
        }
        match fault {
            Fault::Truncation(_) => wire.fin_in = true,
            Fault::Reset(_) => wire.failed = true,
            _ => match wire.inbound.back_mut() {
                Some(byte) => *byte ^= 1,
                None => return false,
            },
        }
        wire.news = true;
        true
    }

    /// What polls would say.
    pub(super) fn tell(&mut self, turn: &mut Turn) {
        let Some(token) = self.token.filter(|_| !self.closing) else { return };
        for side in [Side::Client, Side::Endpoint] {
            let wire = &mut self.wires[side as usize];
            let ending = wire.fin_in || wire.failed;
            let readable = wire.news && (wire.inbound.len() >= wire.lowat || ending);
            if (readable || wire.writable) && turn.rng.per_mille(700) {
                let (failed, writable) = (wire.failed, wire.writable);
                wire.news &= !readable;
                wire.writable = false;
                if readable && side == Side::Client {
                    self.told.get_or_insert(turn.number);
                }
                let ready = Event::Ready { side, readable, writable, ending, failed };
                turn.events.push_back((token, ready));
            }
        }
    }
}
