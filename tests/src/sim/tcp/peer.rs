//! What peers do with their end of a connection.

use std::net::SocketAddr;

use config_sync::table::routing::{SocketId, Transport};
use ringway::contract::{Side, Why};

use crate::sim::bytes::{Bytes, Range};
use crate::sim::coverage::Fault;
use crate::sim::kernel::{Kernel, Pending};
use crate::sim::proxied::OWN;
use crate::sim::tcp::conn::{Conn, ConnId, EndpointMode, News};

impl Kernel {
    /// A client begins a handshake. `window`: bytes that fit the socket buffers each way.
    pub fn peer_connect(
        &mut self,
        socket: SocketId,
        peer: SocketAddr,
        prefix: Vec<u8>,
        window: u64,
    ) -> ConnId {
        let local = self.bound.get(&socket).map_or(peer, |bound| bound.address);
        let id = self.new_conn(Side::Client, peer, local, window);
        self.conns[id.0].prefix = prefix;
        let is_open = self.descriptors(socket).any(|(_, of)| !of.ending);
        match self.bound.get_mut(&socket).filter(|_| is_open) {
            Some(bound) => {
                assert_eq!(bound.transport, Transport::Tcp);
                bound.handshakes += 1;
                self.soon(Pending::Handshake(socket, id));
            }
            None => self.conns[id.0].refused = true,
        }
        id
    }

    /// The peer writes up to `n` bytes of its stream; returns what its socket took.
    pub fn peer_write(&mut self, id: ConnId, n: u64) -> u64 {
        let conn = &mut self.conns[id.0];
        if n == 0 || conn.inbound.fin {
            return 0;
        }
        if conn.closed {
            conn.reset_seen = true;
        }
        if conn.reset_seen || conn.error.is_some() {
            return 0;
        }
        let len = n.min(conn.inbound.space());
        conn.inbound.queue.push(Range { stream: id.0 as u32, at: conn.inbound.written, len });
        conn.inbound.written += len;
        if len > 0 && conn.inbound.queue.len() >= conn.lowat {
            conn.unlooked = true;
            self.wake(id, News { readable: true, ..News::default() });
        } else if len > 0 {
            conn.below_since.get_or_insert(self.now);
            self.hit_conn(id, Fault::BelowMark);
        }
        len
    }

    /// The peer reads up to `n` bytes, and sees a FIN once it has read all before it.
    pub fn peer_read(&mut self, id: ConnId, n: u64) -> u64 {
        let conn = &mut self.conns[id.0];
        let taken = conn.outbound.queue.take(n);
        let expected = conn.partner;
        let away = expected.map_or(0, |partner| self.conns[partner.0].proxied.away);
        let conn = &mut self.conns[id.0];
        for range in taken.ranges() {
            if range.stream == OWN {
                assert_eq!(range.at, conn.outbound.taken, "a header is not what comes first");
                conn.outbound.taken += range.len;
                continue;
            }
            assert_eq!(
                Some(ConnId(range.stream as usize)),
                expected,
                "bytes crossed sessions: {id:?} was given {range:?}"
            );
            assert_eq!(
                range.at - away,
                conn.outbound.taken - conn.proxied.told(),
                "bytes lost, doubled or out of order: {id:?} was given {range:?}"
            );
            conn.outbound.taken += range.len;
        }
        if conn.outbound.queue.is_empty() && conn.outbound.fin {
            conn.outbound.fin_seen = true;
        }
        // sk_stream_is_writeable: a third free.
        if conn.nospace && conn.outbound.space() * 3 >= conn.outbound.capacity {
            conn.nospace = false;
            self.wake(id, News { writable: true, ..News::default() });
        }
        taken.len()
    }

    /// The peer shuts its sending half down.
    pub fn peer_fin(&mut self, id: ConnId) {
        let conn = &mut self.conns[id.0];
        if conn.inbound.fin || conn.error.is_some() || conn.reset_seen {
            return;
        }
        conn.inbound.fin = true;
        conn.unlooked = true;
        self.wake(id, News { readable: true, ending: true, ..News::default() });
    }

    pub fn peer_reset(&mut self, id: ConnId) {
        let side = self.conns[id.0].side;
        let fault = if side == Side::Client { Fault::ClientReset } else { Fault::EndpointReset };
        self.hit_conn(id, fault);
        self.break_conn(id, Why::Reset);
    }

    /// The peer is gone without a word; the kernel finds out after `after` microseconds.
    pub fn peer_vanish(&mut self, id: ConnId, after: u64) {
        let at = self.now + after;
        self.at(at, Pending::Break(id, Why::TimedOut));
    }

    /// The peer closes its socket: a FIN, or a reset if it leaves bytes unread; what reaches it
    /// afterwards is answered with a reset.
    pub fn peer_close(&mut self, id: ConnId) {
        let unread = !self.conns[id.0].outbound.queue.is_empty();
        self.peer_fin(id);
        self.conns[id.0].peer_closed = true;
        if unread {
            self.peer_reset(id);
        }
    }

    pub fn conn(&self, id: ConnId) -> &Conn {
        &self.conns[id.0]
    }

    pub fn conn_mut(&mut self, id: ConnId) -> &mut Conn {
        &mut self.conns[id.0]
    }

    pub fn set_endpoint(&mut self, address: SocketAddr, mode: EndpointMode) {
        self.endpoints.insert(address, mode);
    }

    /// Sets what fits the socket buffers of a connection each way.
    pub fn set_window(&mut self, id: ConnId, inbound: u64, outbound: u64) {
        self.conns[id.0].inbound.capacity = inbound;
        self.conns[id.0].outbound.capacity = outbound;
    }

    pub(crate) fn break_conn(&mut self, id: ConnId, why: Why) {
        if why == Why::TimedOut {
            let conn = &self.conns[id.0];
            let fault = match conn.side {
                Side::Client => Fault::ClientTimedOut,
                Side::Endpoint => Fault::EndpointTimedOut,
            };
            self.hit_conn(id, fault);
        }
        let conn = &mut self.conns[id.0];
        if conn.closed || conn.error.is_some() {
            return;
        }
        conn.error = Some(why);
        conn.peer_closed = true;
        conn.unlooked = true;
        // What was sent and not read is gone; what was received stays readable.
        conn.outbound.queue = Bytes::default();
        let all = News { readable: true, writable: true, ending: true, failed: true };
        self.wake(id, all);
    }
}
