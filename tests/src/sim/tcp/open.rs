//! New connections, and sessions that adopt them.

use std::net::SocketAddr;

use config_sync::table::routing::SocketId;
use ringway::contract::{Kind, Side, Token};

use crate::sim::kernel::process::parts;
use crate::sim::kernel::{Kernel, Pending};
use crate::sim::proxied::Proxied;
use crate::sim::tcp::conn::{Conn, ConnId, Half, News};
use crate::sim::tcp::session::Session;

impl Kernel {
    pub(super) fn new_conn(
        &mut self,
        side: Side,
        peer: SocketAddr,
        local: SocketAddr,
        window: u64,
    ) -> ConnId {
        self.conns.push(Conn {
            side,
            peer,
            local,
            owner: None,
            inbound: Half::new(window),
            outbound: Half::new(window),
            prefix: Vec::new(),
            proxied: Proxied::default(),
            partner: None,
            refused: false,
            closed: false,
            resets: false,
            reset_seen: false,
            peer_closed: false,
            error: None,
            error_told: None,
            lowat: 1,
            peeked: false,
            below_since: None,
            nospace: false,
            news: News::default(),
            ready_pending: false,
            arriving: false,
            streamed: (0, 0),
            untold: 0,
            unlooked: false,
            cut: false,
        });
        ConnId(self.conns.len() - 1)
    }

    pub(crate) fn handshake_done(&mut self, id: SocketId, conn: ConnId) {
        let Some(bound) = self.bound.get_mut(&id) else { return self.close_conn(conn, true) };
        bound.handshakes -= 1;
        bound.backlog.push_back(conn);
        let armed = self.descriptors(id).filter(|(_, of)| of.armed).map(|(own, _)| own);
        for own in armed.collect::<Vec<_>>() {
            self.soon(Pending::Accept(own));
        }
    }

    pub(crate) fn adopt(&mut self, token: Token, incoming: u32) {
        assert_eq!(token.kind, Kind::Session);
        let (_, client) = self.incoming.remove(&incoming).expect("Adopt of nothing");
        assert!(!self.sessions.contains_key(&token.slot), "Adopt into a slot that is in use");
        assert!(parts(token.slot).1 < self.limits.sessions, "a slot beyond the limit");
        self.use_slot(token);
        self.sessions.insert(token.slot, Session::new(token, client));
        self.adopted.insert((token.slot, token.generation), client);
        self.conns[client.0].owner = Some(token);
        self.arm(client);
    }

    pub(crate) fn live(&mut self, token: Token) -> &mut Session {
        let session = self.sessions.get_mut(&token.slot);
        let session = session.filter(|s| s.token == token).expect("op on a session that is over");
        assert!(!session.closing, "op on a session after its Close");
        session
    }
}
