//! Flows that the kernel forwards: it changes addresses, counts, and tells nobody.

use std::net::SocketAddr;

use ringway::contract::{Carried, Event, Token};

use crate::sim::coverage::{Fault, State};
use crate::sim::kernel::{Kernel, Turn};
use crate::sim::udp::datagram::{Datagram, Path};
use crate::sim::udp::upstream::Promoted;

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
        let done = !self.rng.per_mille(self.faults.promote_fails);
        if done {
            let promoted = Promoted { exchange, path, carried: Carried::default() };
            let before = self.promoted.insert(token.slot, promoted);
            assert!(before.is_none(), "Promote of a promoted flow");
        }
        let fault = if done { Fault::Promoted } else { Fault::NotPromoted };
        self.coverage.hit(State::Live, fault);
        self.event(token, Event::Promoted { done }, turn);
    }

    pub(crate) fn tally(&mut self, token: Token, turn: &mut Turn) {
        self.upstream(token);
        let carried = self.promoted.get(&token.slot).map(|of| of.carried).unwrap_or_default();
        self.event(token, Event::Carried(carried), turn);
    }

    pub(crate) fn demote(&mut self, token: Token, turn: &mut Turn) {
        self.upstream(token);
        let carried = self.promoted.remove(&token.slot).map(|of| of.carried).unwrap_or_default();
        self.coverage.hit(State::Live, Fault::Demoted);
        self.event(token, Event::Demoted(carried), turn);
    }

    /// Forwards a client's datagrams, if their flow is promoted. Some are of a kind that the kernel
    /// leaves to the sockets.
    pub(super) fn carries_up(&mut self, datagram: Datagram) -> bool {
        let plain = datagram.train.is_none() && !self.rng.per_mille(50);
        let of_client = |of: &&mut Promoted| of.exchange == datagram.exchange;
        let Some(of) = self.promoted.values_mut().find(of_client).filter(|_| plain) else {
            return false;
        };
        of.carried.up += u64::from(datagram.count);
        of.carried.bytes_up += u64::from(datagram.bytes);
        self.carried += u64::from(datagram.count);
        let path = of.path;
        self.sent_up.push((path, datagram));
        true
    }

    /// Forwards an endpoint's datagrams, if they come to the socket of a promoted flow.
    pub(super) fn carries_down(&mut self, path: Path, datagram: Datagram) -> bool {
        let plain = !self.rng.per_mille(50);
        let of_path = |of: &&mut Promoted| of.path == path;
        let Some(of) = self.promoted.values_mut().find(of_path).filter(|_| plain) else {
            return false;
        };
        assert_eq!(datagram.exchange, of.exchange, "a reply reaches another client (quarantine)");
        of.carried.down += u64::from(datagram.count);
        of.carried.bytes_down += u64::from(datagram.bytes);
        self.carried += u64::from(datagram.count);
        self.sent_down.push(datagram);
        true
    }

    /// No flow ends, and no socket rests or closes, while the kernel forwards through it.
    pub(super) fn forwards_no_more(&self, client: SocketAddr) {
        let promoted = self.promoted.values().find(|of| of.exchange.source() == client);
        assert!(promoted.is_none(), "an ended flow is forwarded: {promoted:?}");
    }
}
