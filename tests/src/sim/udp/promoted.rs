//! Flows that the kernel forwards: it changes addresses, counts, and tells nobody.

use std::net::SocketAddr;

use ringway::contract::{Carried, Event, Token};

use crate::sim::coverage::{Fault, State};
use crate::sim::kernel::process::parts;
use crate::sim::kernel::{Kernel, Turn};
use crate::sim::udp::datagram::{Datagram, Path};
use crate::sim::udp::upstream::Promoted;

/// Microseconds for which one side of a flow may go on alone; it doubles each time, up to four
/// times.
const ALONE: u64 = 3_000_000;

impl Kernel {
    pub(crate) fn promote(
        &mut self,
        token: Token,
        (client, listener): (SocketAddr, SocketAddr),
        turn: &mut Turn,
    ) {
        let upstream = self.upstream(token);
        let exchange = upstream.serves.expect("Promote of a flow that has sent nothing");
        let endpoint = upstream.address.expect("Promote on a shared socket");
        assert_eq!(upstream.interface, 0, "Promote of a socket of one interface");
        let path = Path { port: upstream.port, endpoint, local: None };
        assert_eq!((exchange.client, exchange.local), (client, listener.ip()), "another's flow");
        assert_eq!(exchange.says, None, "Promote of a flow behind a proxy");
        let may_promote = &self.own().may_promote;
        assert!(may_promote.has(&exchange, endpoint), "Promote of a flow that the table bars");
        let begun = self.begun[&(self.process, exchange)];
        let since = may_promote.total_bytes_since;
        assert!(since.is_none_or(|since| begun <= since), "Promote of a flow whose bytes count");
        let done = !self.rng.per_mille(self.faults.promote_fails);
        if done {
            let promoted = Promoted {
                exchange,
                path,
                carried: Carried::default(),
                told: Carried::default(),
                is_broken: self.rng.per_mille(self.faults.promoted_breaks),
                alone: None,
                has_other_way: false,
                is_overdue: false,
            };
            let before = self.promoted.insert(token.slot, promoted);
            assert!(before.is_none(), "Promote of a promoted flow");
        }
        if self.settled.remove(&exchange) && done {
            self.coverage.hit(State::Live, Fault::PromotedAgain);
        }
        let fault = if done { Fault::Promoted } else { Fault::NotPromoted };
        self.coverage.hit(State::Live, fault);
        self.event(token, Event::Promoted { done }, turn);
    }

    pub(crate) fn tally(&mut self, token: Token, turn: &mut Turn) {
        self.upstream(token);
        let carried = match self.promoted.get_mut(&token.slot) {
            Some(of) => {
                let times = self.demotions.get(&of.exchange).copied().unwrap_or(0);
                of.is_told(self.now, ALONE << times.min(4));
                of.carried
            }
            None => Carried::default(),
        };
        self.event(token, Event::Carried(carried), turn);
    }

    pub(crate) fn demote(&mut self, token: Token, turn: &mut Turn) {
        self.upstream(token);
        let promoted = self.promoted.remove(&token.slot);
        if let Some(of) = &promoted {
            *self.demotions.entry(of.exchange).or_default() += 1;
        }
        let carried = promoted.map(|of| of.carried).unwrap_or_default();
        self.event(token, Event::Demoted(carried), turn);
    }

    /// The flow of an upstream socket has settled.
    pub fn has_settled(&mut self, token: Token, was_promoted: bool) {
        let upstream = self.upstreams.get(&token.slot).filter(|upstream| upstream.token == token);
        if was_promoted && let Some(exchange) = upstream.and_then(|upstream| upstream.serves) {
            self.settled.insert(exchange);
        }
    }

    /// The proxy has forwarded datagrams of a flow, which may be promoted.
    pub(super) fn went_through_sockets(&mut self, slot: u32) {
        if let Some(of) = self.promoted.get_mut(&slot) {
            of.has_other_way = true;
        }
    }

    /// After a turn in which all was carried out that the tables asked for: the table allows what
    /// the kernel forwards, both sides are heard, and no endpoint has said that its port is closed.
    pub fn check_promoted(&self) {
        let may_promote = &self.own().may_promote;
        for (slot, of) in self.promoted.iter().filter(|(slot, _)| self.is_here(**slot)) {
            let is_allowed = may_promote.has(&of.exchange, of.path.endpoint);
            assert!(is_allowed, "the table bars a flow that the kernel forwards: {of:?}");
            assert!(!of.is_overdue, "one side of a promoted flow is not heard: {of:?}");
            let token = self.upstreams[slot].token;
            let is_refused = self.refused.contains_key(&token);
            assert!(!is_refused, "the kernel forwards to a closed port: {of:?}");
        }
    }

    /// Forwards a client's datagrams, if their flow is promoted. Some are of a kind that the kernel
    /// leaves to the sockets.
    pub(super) fn carries_up(&mut self, datagram: Datagram) -> bool {
        let plain = datagram.train.is_none() && !self.rng.per_mille(50);
        let of_client = |of: &Promoted| of.exchange == datagram.exchange;
        let found = self.promoted.iter_mut().find(|(_, of)| of_client(of)).filter(|_| plain);
        let Some((slot, of)) = found else { return false };
        of.carried.up += u64::from(datagram.count);
        of.carried.bytes_up += u64::from(datagram.bytes);
        let ring = &mut self.rings[parts(*slot).0 as usize];
        ring.carried += u64::from(datagram.count);
        if !of.is_broken {
            self.sent_up.push((of.path, datagram));
        }
        true
    }

    /// Forwards an endpoint's datagrams, if they come to the socket of a promoted flow.
    pub(super) fn carries_down(&mut self, path: Path, datagram: Datagram) -> bool {
        let plain = !self.rng.per_mille(50);
        let of_path = |of: &Promoted| of.path == path;
        let found = self.promoted.iter_mut().find(|(_, of)| of_path(of)).filter(|_| plain);
        let Some((slot, of)) = found else { return false };
        assert_eq!(datagram.exchange, of.exchange, "a reply reaches another client (quarantine)");
        of.carried.down += u64::from(datagram.count);
        of.carried.bytes_down += u64::from(datagram.bytes);
        let ring = &mut self.rings[parts(*slot).0 as usize];
        ring.carried += u64::from(datagram.count);
        self.sent_down.push(datagram);
        true
    }

    /// No flow ends, and no socket rests or closes, while the kernel forwards through it.
    pub(super) fn forwards_no_more(&self, client: SocketAddr) {
        let mut here = self.promoted.iter().filter(|(slot, _)| self.is_here(**slot));
        let promoted = here.find(|(_, of)| of.exchange.source() == client);
        assert!(promoted.is_none(), "an ended flow is forwarded: {promoted:?}");
    }
}

impl Promoted {
    /// The proxy gets to know what was carried. `most`: microseconds for which one side may go on
    /// alone.
    fn is_told(&mut self, now: u64, most: u64) {
        let told = std::mem::replace(&mut self.told, self.carried);
        let (up, down) = (self.carried.up > told.up, self.carried.down > told.down);
        if up && down || std::mem::take(&mut self.has_other_way) {
            self.alone = None;
        } else if up || down {
            let goes_on = self.alone.filter(|(is_client, _)| *is_client == up);
            let (_, since) = *self.alone.insert(goes_on.unwrap_or((up, now)));
            self.is_overdue = now - since >= most;
        }
    }
}
