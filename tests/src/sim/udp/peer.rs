//! What clients and endpoints send.

use std::net::SocketAddr;

use config_sync::table::routing::Transport;
use ringway::contract::Token;

use crate::sim::coverage::{Fault, State};
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
        let Some(socket) = self.listening.get_mut(&id).filter(|s| !s.ending) else { return };
        assert_eq!(socket.transport, Transport::Udp);
        if socket.received.len() < QUEUE {
            socket.received.push_back((datagram, None));
            self.soon(Pending::Receive(Token::socket(id)));
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
        self.homes.retain(|exchange, _| exchange.source() != client);
        self.begun.retain(|exchange, _| exchange.source() != client);
        self.settled.retain(|exchange| exchange.source() != client);
        self.demotions.retain(|exchange, _| exchange.source() != client);
        self.moves.retain(|(exchange, ..)| exchange.source() != client);
        for upstream in self.upstreams.values_mut() {
            if upstream.serves.is_some_and(|e| e.source() == client) {
                upstream.serves = None;
                self.refused.remove(&upstream.token);
            }
        }
        let pairs = self.upstreams.values_mut().flat_map(|upstream| upstream.pairs.values_mut());
        let used = pairs.chain(self.used.values_mut());
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
