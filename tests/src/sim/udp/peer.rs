//! What clients and endpoints send.

use std::net::SocketAddr;

use config_sync::table::routing::Transport;
use ringway::contract::Token;

use crate::sim::coverage::{Fault, State};
use crate::sim::kernel::process::parts;
use crate::sim::kernel::{Kernel, Pending};
use crate::sim::udp::datagram::{Datagram, Exchange, Path};
use crate::sim::udp::train::Train;
use crate::sim::udp::upstream::Upstream;

/// Datagrams that fit a socket's receive queue; more are dropped, as Linux does.
const QUEUE: usize = 256;

impl Kernel {
    /// A client sends; a socket that is not there, or is being closed, hears nothing.
    pub fn client_sends(&mut self, datagram: Datagram) {
        let id = datagram.exchange.socket;
        if self.carries_up(datagram) {
            return;
        }
        let open = self.descriptors(id).filter(|(_, of)| !of.ending).map(|(own, _)| own);
        let open: Vec<_> = open.collect();
        let Some(bound) = self.bound.get_mut(&id).filter(|_| !open.is_empty()) else { return };
        assert_eq!(bound.transport, Transport::Udp);
        if bound.received.len() < QUEUE {
            bound.received.push_back((datagram, None));
            open.into_iter().for_each(|own| self.soon(Pending::Receive(Token::socket(own))));
        }
    }

    /// An endpoint answers whatever holds that source port now.
    pub fn endpoint_sends(&mut self, path: Path, datagram: Datagram) {
        if self.carries_down(path, datagram) {
            return;
        }
        let upstream = self.upstream_at(path);
        let Some(upstream) = upstream else { return };
        let pair = path.local.map(|local| (path.endpoint, local));
        if !upstream.expects(datagram.exchange, pair) {
            let state = upstream.state();
            if state != State::Live {
                self.coverage.hit(state, Fault::LateReply);
            }
        }
        let upstream = self.upstream_at(path).expect("found above");
        if upstream.received.len() < QUEUE {
            upstream.received.push_back((datagram, pair));
            let token = upstream.token;
            self.soon(Pending::Receive(token));
        }
    }

    /// An endpoint's port is closed: what was sent there comes back as ICMP.
    pub fn endpoint_refuses(&mut self, path: Path) {
        let upstream = self.upstream_at(path);
        // Of many peers' errors, a shared socket hears none.
        let Some(upstream) = upstream.filter(|u| u.address.is_some()) else { return };
        upstream.refused = true;
        let token = upstream.token;
        self.soon(Pending::Receive(token));
    }

    /// The flow of this exchange is over: its upstream socket rests from now on.
    pub fn flow_is_over(&mut self, client: SocketAddr) {
        self.forwards_no_more(client);
        // The next flow of the client may begin anywhere.
        let process = self.process;
        let is_other = |of: &(u32, Exchange)| of.0 != process || of.1.source() != client;
        self.homes.retain(|of, _| is_other(of));
        self.begun.retain(|of, _| is_other(of));
        self.moves.retain(|(exchange, ..)| exchange.source() != client);
        // In another process the client may have another flow.
        let serves = |of: &Upstream| of.serves.is_some_and(|it| it.source() == client);
        if !self.upstreams.values().any(|of| !self.is_here(of.token.slot) && serves(of)) {
            self.settled.retain(|exchange| exchange.source() != client);
            self.demotions.retain(|exchange, _| exchange.source() != client);
        }
        let is_here = |slot: u32| parts(slot).0 == process;
        let of_process = self.upstreams.values_mut().filter(|of| is_here(of.token.slot));
        for upstream in of_process {
            if upstream.serves.is_some_and(|e| e.source() == client) {
                upstream.serves = None;
                self.refused.remove(&upstream.token);
            }
        }
        let pairs = self.upstreams.values_mut().flat_map(|upstream| upstream.pairs.values_mut());
        let used = pairs.chain(self.used.values_mut()).filter(|used| is_here(used.slot));
        for used in used.filter(|used| used.exchange.source() == client) {
            used.ended.get_or_insert(self.now);
        }
    }

    pub fn proxied(&mut self, proxy: Exchange) -> Datagram {
        let train = Train::random(&mut self.rng, proxy);
        self.trains.push(train);
        let train = self.trains.last().expect("pushed just now");
        let (count, at) = (train.pieces.len() as u32, self.trains.len() - 1);
        Datagram {
            exchange: proxy,
            number: 0,
            bytes: (count - 1) * train.size + train.last,
            count,
            truncated: false,
            train: Some(at),
        }
    }

    /// The socket that takes what comes this way: a connected one, from its endpoint only.
    fn upstream_at(&mut self, path: Path) -> Option<&mut Upstream> {
        let takes = |u: &Upstream| match u.address {
            Some(address) => path.local.is_none() && address == path.endpoint,
            None => path.local.is_some(),
        };
        self.upstreams.values_mut().find(|u| u.port == path.port && !u.away && takes(u))
    }
}
