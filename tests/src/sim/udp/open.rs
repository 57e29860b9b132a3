//! Upstream sockets: from the open to the last event.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use ringway::contract::{Event, Kind, SHARED_SOCKETS, Token, Why};

use crate::sim::coverage::{Fault, State};
use crate::sim::kernel::process::parts;
use crate::sim::kernel::{Kernel, Pending, Turn};
use crate::sim::udp::upstream::Upstream;

impl Kernel {
    /// Without an address: a shared socket.
    pub(crate) fn open(&mut self, token: Token, to: Option<(SocketAddr, u32)>, turn: &mut Turn) {
        let (address, interface) = (to.map(|to| to.0), to.map_or(0, |to| to.1));
        assert_eq!(token.kind, Kind::Upstream);
        assert!(!self.upstreams.contains_key(&token.slot), "Open into a slot that is in use");
        assert!(
            parts(token.slot).1 < self.limits.flows + SHARED_SOCKETS,
            "a slot beyond the limit"
        );
        let own = self.upstreams.values().filter(|u| self.is_here(u.token.slot));
        let shared = own.filter(|u| u.address.is_none() && !u.closing);
        assert!(address.is_some() || shared.count() == 0, "more shared sockets than one");
        let (until, turn_of_it) = self.ring().no_ports;
        let allowed = self.now >= until || self.turn == turn_of_it;
        assert!(allowed, "Open without a pause after source ports ran out");
        let free: Vec<u32> = (1..=self.ports)
            .filter(|port| !self.dead_ports.contains(port))
            .filter(|port| self.upstreams.values().all(|upstream| upstream.port != *port))
            .collect();
        if free.is_empty() || self.rng.per_mille(self.faults.open_fails) {
            self.coverage.hit(State::Live, Fault::OpenFailed);
            let other = self.rng.pick(&[Why::NoPorts, Why::NoFiles, Why::NoMemory]);
            let why = if free.is_empty() { Why::NoPorts } else { other };
            if why == Why::NoPorts {
                let (now, turn) = (self.now, self.turn);
                self.ring().no_ports = (now + 9_000, turn);
            }
            self.open_failed.push(token);
            self.event(token, Event::OpenFailed { why }, turn);
            return;
        }
        self.use_slot(token);
        self.given.extend(to);
        self.open_failed.retain(|failed| *failed != token);
        let port = self.rng.pick(&free);
        self.upstreams.insert(
            token.slot,
            Upstream {
                token,
                port,
                address,
                interface,
                used: false,
                serves: None,
                pairs: BTreeMap::new(),
                armed: false,
                told: false,
                closing: false,
                halted: false,
                away: false,
                stopped: 0,
                pause_until: 0,
                refused: false,
                received: VecDeque::new(),
            },
        );
    }

    pub(super) fn upstream(&mut self, token: Token) -> &mut Upstream {
        let upstream = self.upstreams.get_mut(&token.slot).filter(|u| u.token == token);
        let upstream = upstream.expect("op on an upstream socket that is over");
        assert!(!upstream.closing, "op on an upstream socket after CloseUpstream");
        upstream
    }

    pub(crate) fn close_upstream(&mut self, token: Token) {
        if self.open_failed.contains(&token) {
            return;
        }
        assert!(!self.promoted.contains_key(&token.slot), "CloseUpstream of a promoted flow");
        let upstream = self.upstream(token);
        upstream.closing = true;
        let Upstream { port, serves, halted, away, .. } = *upstream;
        let is_last = !self.upstreams.values().any(|of| of.port == port && of.token != token);
        if let Some(exchange) = serves.filter(|_| halted && !away && is_last) {
            // The flow of a process that was killed before this one had all of it. Nobody logs it.
            self.flow_is_over(exchange.source());
        }
        if token.generation > 0 && self.rng.per_mille(self.faults.dead) {
            let dead = Token { generation: token.generation - 1, ..token };
            self.at(self.now, Pending::Dead(dead));
        }
        // A receive that is armed may still complete before the cancellation does.
        let at = self.closing_time();
        self.at(at, Pending::Closed(token));
    }

    pub(crate) fn upstream_closed(&mut self, token: Token, turn: &mut Turn) {
        self.drop_upstream(token);
        self.event(token, Event::Closed, turn);
        self.haunt(token);
    }
}
