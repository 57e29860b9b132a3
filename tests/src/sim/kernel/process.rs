//! Processes: whose turn it is, whose a token is, and what becomes of all that a process has had
//! when it is killed.

use config_sync::table::routing::{RoutingTable, SocketId};
use ringway::contract::Token;

use crate::sim::kernel::{Kernel, Pending, Ring};
use crate::sim::tcp::conn::ConnId;

/// The slots of process `p` begin at `p << SLOTS`. A process knows nothing of that.
const SLOTS: u32 = 20;

/// The process that has a slot, and the slot as the process knows it.
pub(crate) fn parts(slot: u32) -> (u32, u32) {
    (slot >> SLOTS, slot & ((1 << SLOTS) - 1))
}

/// The listening socket of a descriptor.
pub(crate) fn of_all(id: SocketId) -> SocketId {
    SocketId(parts(id.0).1)
}

impl Kernel {
    /// A process begins. Returns its number.
    pub fn begin_process(&mut self) -> u32 {
        self.rings.push(Ring::default());
        self.rings.len() as u32 - 1
    }

    /// How many have begun.
    pub fn processes(&self) -> usize {
        self.rings.len()
    }

    /// The process has its turn.
    pub fn switch_to(&mut self, process: u32) {
        self.process = process;
    }

    pub(crate) fn ring(&mut self) -> &mut Ring {
        &mut self.rings[self.process as usize]
    }

    /// A slot of the process whose turn it is.
    pub(crate) fn here(&self, slot: u32) -> u32 {
        slot | self.process << SLOTS
    }

    pub(crate) fn is_here(&self, slot: u32) -> bool {
        parts(slot).0 == self.process
    }

    /// The token of the process whose turn it is, as the kernel knows it.
    pub fn token(&self, own: Token) -> Token {
        Token { slot: self.here(own.slot), ..own }
    }

    /// The token as its process knows it.
    pub(crate) fn as_own(&self, token: Token) -> Token {
        let (process, slot) = parts(token.slot);
        assert_eq!(process, self.process, "an event of another process: {token:?}");
        Token { slot, ..token }
    }

    /// The process has put a table in force.
    pub fn table_applied(&mut self, table: &RoutingTable) {
        let now = self.now;
        self.ring().may_promote.table_applied(table, now);
    }

    /// What the process whose turn it is has alone.
    pub fn own(&self) -> &Ring {
        &self.rings[self.process as usize]
    }

    /// The process to which something happens by itself. `None`: nobody need be told.
    pub(crate) fn process_of(&self, pending: &Pending) -> Option<u32> {
        let slot = match pending {
            Pending::Handshake(..) | Pending::Space(_) | Pending::Break(..) => return None,
            Pending::Ready(conn) | Pending::Arrive(conn) => self.conns[conn.0].owner?.slot,
            Pending::Accept(id) | Pending::Unlisten(id) | Pending::Released(id) => id.0,
            Pending::StreamOver(token, _)
            | Pending::Establish(token, _)
            | Pending::Connected(token, _)
            | Pending::ConnectFailed(token, ..)
            | Pending::Abandoned(token)
            | Pending::Close(token, _)
            | Pending::Receive(token)
            | Pending::Halted(token)
            | Pending::SendFailed(token, ..)
            | Pending::Closed(token)
            | Pending::Dead(token) => token.slot,
        };
        Some(parts(slot).0)
    }

    /// Sessions of the process, and its upstream sockets.
    pub fn has(&self) -> (u64, u64) {
        let count = |slots: &mut dyn Iterator<Item = &u32>| {
            slots.filter(|slot| self.is_here(**slot)).count() as u64
        };
        (count(&mut self.sessions.keys()), count(&mut self.upstreams.keys()))
    }

    /// The process whose upstream socket has this source port.
    pub fn process_at(&self, port: u32) -> Option<u32> {
        let mut all = self.upstreams.iter();
        let found = all.find(|(_, upstream)| upstream.port == port && !upstream.away);
        found.map(|(slot, _)| parts(*slot).0)
    }

    /// Whether another process has a descriptor of this listening socket.
    pub fn is_held_elsewhere(&self, id: SocketId) -> bool {
        self.listening.keys().any(|held| of_all(*held) == id && !self.is_here(held.0))
    }

    /// A token of another process, or a message between processes, that has the connection.
    pub(crate) fn other_holder(&self, id: ConnId, than: Token) -> Option<Option<Token>> {
        let has = |client: ConnId, endpoint: Option<ConnId>| client == id || endpoint == Some(id);
        let session = self
            .sessions
            .values()
            .find(|of| of.token != than && !of.closing && has(of.client, of.endpoint));
        if let Some(session) = session {
            return Some(Some(session.token));
        }
        let mut messages = self.arrivals.iter().flatten();
        messages.any(|of| has(of.client, Some(of.endpoint))).then_some(None)
    }

    /// A holder closes its descriptor of a connection. The last one closes the connection, with a
    /// reset if any of them has asked for that (SO_LINGER, socket(7)).
    pub(crate) fn close_descriptor(&mut self, id: ConnId, of: Token, reset: bool) {
        self.conns[id.0].resets |= reset;
        let is_owner = self.conns[id.0].owner == Some(of);
        match self.other_holder(id, of) {
            Some(Some(other)) if is_owner => self.watch(other, id),
            Some(None) if is_owner => self.conns[id.0].owner = None,
            Some(_) => {}
            None if is_owner || self.conns[id.0].owner.is_none() => self.close_conn(id, reset),
            // The session that has it is closing too, and closes it.
            None => {}
        }
    }

    /// The process is killed: the kernel closes all that it has. Nobody is told but the peers.
    pub fn kill(&mut self) {
        for (token, reset) in self.closes() {
            let Some(session) = self.sessions.get(&token.slot) else { continue };
            for id in [Some(session.client), session.endpoint].into_iter().flatten() {
                self.conns[id.0].resets |= reset && self.conns[id.0].owner == Some(token);
            }
        }
        self.forget_pending();
        let sessions: Vec<u32> =
            self.sessions.keys().copied().filter(|slot| self.is_here(*slot)).collect();
        for slot in sessions {
            let session = self.sessions.remove(&slot).expect("it is there");
            self.frozen.remove(&session.token);
            let attempt = session.connecting.as_ref().and_then(|attempt| attempt.established);
            for id in [Some(session.client), session.endpoint, attempt].into_iter().flatten() {
                if !self.conns[id.0].closed {
                    self.conns[id.0].cut = false;
                    self.close_descriptor(id, session.token, false);
                }
            }
        }
        let upstreams: Vec<u32> =
            self.upstreams.keys().copied().filter(|slot| self.is_here(*slot)).collect();
        for slot in upstreams {
            self.promoted.remove(&slot);
            let (token, port) = (self.upstreams[&slot].token, self.upstreams[&slot].port);
            if self.dead_ports.insert(port) {
                self.ports += 1;
            }
            self.drop_upstream(token);
        }
        let listening: Vec<SocketId> =
            self.listening.keys().copied().filter(|id| self.is_here(id.0)).collect();
        for id in listening {
            self.listening.remove(&id);
            self.unbind_if_last(of_all(id));
        }
        *self.ring() = Ring::default();
    }
}
