//! A session that goes from one process to another. Both are one process here, and the session goes
//! from one slot to another; the kernel sees to it that only one of the two moves bytes.

use ringway::contract::Token;

use crate::sim::kernel::Kernel;
use crate::sim::tcp::conn::ConnId;
use crate::sim::tcp::session::{Session, Stream};

impl Kernel {
    /// The process that has the session offers it: nobody moves its bytes until `thaw`.
    pub fn freeze(&mut self, token: Token) {
        let session = self.live(token);
        let held = session.held.iter().any(|held| !held.is_empty());
        let streams = session.streams.iter().any(|stream| *stream != Stream::Off);
        assert!(!held && !streams, "offered with bytes in the gateway: {token:?}");
        self.frozen.insert(token);
    }

    /// It is decided that the session is of this token.
    pub fn thaw(&mut self, token: Token) {
        self.frozen.remove(&token);
    }

    /// The other process has got the connections of this session. Returns their number.
    pub fn lend(&mut self, of: Token) -> u32 {
        self.arrivals.push(of);
        self.arrivals.len() as u32 - 1
    }

    pub(crate) fn attach(&mut self, token: Token, incoming: u32) {
        let of = self.arrivals[incoming as usize];
        let Session { client, endpoint, shut, .. } = *self.live(of);
        assert!(endpoint.is_some(), "offered without an endpoint: {of:?}");
        assert!(!self.sessions.contains_key(&token.slot), "Attach into a slot that is in use");
        self.use_slot(token);
        self.sessions.insert(token.slot, Session { endpoint, shut, ..Session::new(token, client) });
        self.adopted.insert((token.slot, token.generation), client);
        self.frozen.insert(token);
        self.watch_by(token, [Some(client), endpoint]);
    }

    /// The other process has not taken the session: its own process watches it again.
    pub fn give_back(&mut self, token: Token) {
        let Session { client, endpoint, .. } = *self.live(token);
        self.watch_by(token, [Some(client), endpoint]);
    }

    fn watch_by(&mut self, token: Token, sides: [Option<ConnId>; 2]) {
        for id in sides.into_iter().flatten() {
            let conn = &mut self.conns[id.0];
            conn.owner = Some(token);
            (conn.lowat, conn.peeked, conn.below_since) = (1, false, None);
            self.arm(id);
        }
    }

    /// Only the process whose session it is moves bytes.
    pub(crate) fn check_may_move(&mut self, token: Token) {
        assert!(!self.frozen.contains(&token), "moves bytes of a session that is offered");
        let client = self.live(token).client;
        let owner = self.conns[client.0].owner;
        assert_eq!(owner, Some(token), "moves bytes of a session that went to another process");
    }
}
