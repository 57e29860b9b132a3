//! A session that goes from one process to another. The kernel sees to it that only one of the two
//! moves bytes.

use ringway::contract::Token;

use crate::sim::kernel::{Arrival, Kernel};
use crate::sim::tcp::conn::ConnId;
use crate::sim::tcp::session::{Session, Stream};

impl Kernel {
    /// The process offers a session: nobody moves its bytes until `thaw`.
    pub fn freeze(&mut self, own: Token) {
        let token = self.token(own);
        let session = self.live(token);
        let held = session.held.iter().any(|held| !held.is_empty());
        let streams = session.streams.iter().any(|stream| *stream != Stream::Off);
        assert!(!held && !streams, "offered with bytes in the gateway: {token:?}");
        self.frozen.insert(token);
    }

    /// It is decided that the session is the process's.
    pub fn thaw(&mut self, own: Token) {
        let token = self.token(own);
        if !self.frozen.remove(&token) {
            return;
        }
        let Session { client, endpoint, .. } = *self.live(token);
        let mut others = self.sessions.values().filter(|of| of.token != token && !of.closing);
        let other = others.find(|of| of.client == client && !self.frozen.contains(&of.token));
        assert!(other.is_none(), "two processes have a session: {token:?}, {other:?}");
        for id in [Some(client), endpoint].into_iter().flatten() {
            if self.conns[id.0].owner != Some(token) {
                self.watch(token, id);
            }
        }
    }

    /// The connections of an offered session go to another process. Returns their number.
    pub fn lend(&mut self, own: Token) -> u32 {
        let token = self.token(own);
        let Session { client, endpoint, shut, .. } = *self.live(token);
        let endpoint = endpoint.expect("offered without an endpoint");
        self.arrivals.push(Some(Arrival { client, endpoint, shut }));
        self.arrivals.len() as u32 - 1
    }

    /// The connections were not taken, so this copy of them is closed.
    pub fn drop_arrival(&mut self, incoming: u32) {
        let Some(of) = self.arrivals[incoming as usize].take() else { return };
        for id in [of.client, of.endpoint] {
            let conn = &self.conns[id.0];
            if conn.owner.is_none() && !conn.closed {
                self.close_conn(id, false);
            }
        }
    }

    pub(crate) fn attach(&mut self, token: Token, incoming: u32) {
        let of = self.arrivals[incoming as usize].take().expect("Attach of nothing");
        let Arrival { client, endpoint, shut } = of;
        assert!(!self.sessions.contains_key(&token.slot), "Attach into a slot that is in use");
        self.use_slot(token);
        let session = Session { endpoint: Some(endpoint), shut, ..Session::new(token, client) };
        self.sessions.insert(token.slot, session);
        self.adopted.insert((token.slot, token.generation), client);
        self.frozen.insert(token);
        for id in [client, endpoint] {
            // The process before has gone on with the session meanwhile.
            let has_gone_on = self.conns[id.0].owner.is_some_and(|of| !self.frozen.contains(&of));
            if !has_gone_on {
                self.watch(token, id);
            }
        }
    }

    pub(crate) fn watch(&mut self, by: Token, id: ConnId) {
        let conn = &mut self.conns[id.0];
        conn.owner = Some(by);
        // What the other process was told, this one may not have been told.
        conn.error_told = None;
        (conn.lowat, conn.peeked, conn.below_since) = (1, false, None);
        self.arm(id);
    }

    /// Only the process whose session it is moves bytes.
    pub(crate) fn check_may_move(&mut self, token: Token) {
        assert!(!self.frozen.contains(&token), "moves bytes of a session that is offered");
        let client = self.live(token).client;
        let owner = self.conns[client.0].owner;
        assert_eq!(owner, Some(token), "moves bytes of a session that went to another process");
    }
}
