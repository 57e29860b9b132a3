//! What a socket gives and takes, as a system call would have it.

use ringway::contract::{Event, Token, Why};

use crate::sim::bytes::Bytes;
use crate::sim::coverage::Fault;
use crate::sim::kernel::{Kernel, Pending, Turn};
use crate::sim::tcp::conn::{ConnId, News};

/// What reading a socket gives.
pub(crate) enum Got {
    Data(Bytes),
    Nothing,
    End,
    Failed(Why),
}

/// recv through the worker's scratch memory, or a pipe of the usual size.
pub(super) const CHUNK: u64 = 65_536;

/// The steps in which a `Peek` looks further.
const PEEKED: u64 = 4_096;

impl Kernel {
    pub(crate) fn peek(&mut self, token: Token, at_least: u32, turn: &mut Turn) {
        let client = self.live(token).client;
        let conn = &mut self.conns[client.0];
        conn.lowat = u64::from(at_least.max(1));
        conn.peeked = true;
        conn.unlooked = false;
        // A short look is a look before the rest arrived.
        let most = u64::from(at_least.max(1)).next_multiple_of(PEEKED).min(CHUNK);
        let mut len = conn.inbound.queue.len().min(most);
        let whole = len == conn.inbound.queue.len() || most == CHUNK;
        let mut more = false;
        if len > 1 && self.rng.per_mille(self.faults.short_read) {
            len = self.rng.between(1, len - 1);
            more = true;
        }
        let conn = &self.conns[client.0];
        let broken = conn.error.is_some();
        let end = (conn.inbound.fin || broken) && whole && !more;
        let start = turn.bytes.len() as u32;
        let mut left = len;
        for range in conn.inbound.queue.ranges() {
            let take = range.len.min(left);
            turn.bytes.extend((range.at..range.at + take).map(|at| conn.byte(at, range.stream)));
            left -= take;
        }
        // Setting SO_RCVLOWAT wakes if there is enough already; an arrival always does.
        let enough = conn.inbound.queue.len() >= conn.lowat;
        if enough && more {
            self.conns[client.0].unlooked = true;
            self.wake(client, News { readable: true, ..News::default() });
        } else if more && (self.conns[client.0].inbound.fin || broken) {
            self.conns[client.0].unlooked = true;
            self.wake(client, News { readable: true, ending: true, ..News::default() });
        }
        self.event(token, Event::Peeked { start, len: len as u32, end }, turn);
    }

    pub(crate) fn read(&mut self, id: ConnId, max: u64) -> Got {
        let waiting = self.conns[id.0].inbound.queue.len();
        if waiting == 0 {
            let conn = &mut self.conns[id.0];
            return match conn.error {
                Some(why) => Got::Failed(why),
                None if conn.inbound.fin => {
                    conn.inbound.fin_seen = true;
                    Got::End
                }
                None => Got::Nothing,
            };
        }
        let mut n = waiting.min(max);
        // Both are what they are on Linux: the rest arrives a moment later, with its own wake-up.
        // What a broken connection had received is all there.
        let nothing =
            self.rng.per_mille(self.faults.would_block) && self.conns[id.0].error.is_none();
        if nothing || (n > 1 && self.rng.per_mille(self.faults.short_read)) {
            self.hit_conn(id, if nothing { Fault::WouldBlock } else { Fault::ShortRead });
            n = if nothing { 0 } else { self.rng.between(1, n - 1) };
            let conn = &self.conns[id.0];
            let news = News {
                readable: true,
                ending: conn.inbound.fin || conn.error.is_some(),
                failed: conn.error.is_some(),
                ..News::default()
            };
            self.wake(id, news);
        }
        if n == 0 {
            return Got::Nothing;
        }
        let conn = &mut self.conns[id.0];
        conn.inbound.taken += n;
        Got::Data(conn.inbound.queue.take(n))
    }

    pub(crate) fn write(&mut self, id: ConnId, bytes: &mut Bytes) -> Result<u64, Why> {
        self.write_all_or(id, bytes, true)
    }

    /// `may_fall_short`: without a pipe the ring writes only what it saw space for.
    pub(super) fn write_all_or(
        &mut self,
        id: ConnId,
        bytes: &mut Bytes,
        may_fall_short: bool,
    ) -> Result<u64, Why> {
        let conn = &mut self.conns[id.0];
        assert!(!conn.outbound.fin, "bytes after a FIN");
        if let Some(why) = conn.error {
            return Err(why);
        }
        if conn.peer_closed {
            // The peer's kernel answers with a reset, a round trip later.
            let n = bytes.len();
            conn.outbound.written += n;
            *bytes = Bytes::default();
            let at = self.now + self.rng.scale(1, 500);
            self.at(at, Pending::Break(id, Why::Reset));
            return Ok(n);
        }
        let mut n = bytes.len().min(conn.outbound.space());
        let mut short = false;
        if may_fall_short && n > 0 && self.rng.per_mille(self.faults.short_write) {
            self.hit_conn(id, Fault::ShortWrite);
            n = self.rng.below(n);
            short = true;
        }
        let conn = &mut self.conns[id.0];
        conn.outbound.queue.append(bytes.take(n));
        conn.outbound.written += n;
        if !bytes.is_empty() {
            conn.nospace = true;
            if short {
                self.soon(Pending::Space(id));
            } else {
                self.hit_conn(id, Fault::Stalled);
            }
        }
        Ok(n)
    }

    pub(super) fn space_for(&self, id: ConnId) -> u64 {
        let conn = &self.conns[id.0];
        if conn.peer_closed || conn.error.is_some() { u64::MAX } else { conn.outbound.space() }
    }

    /// The space that a short write did not find is there, if the buffer is not full.
    pub(crate) fn space(&mut self, id: ConnId) {
        let conn = &mut self.conns[id.0];
        if conn.nospace && conn.outbound.space() * 3 >= conn.outbound.capacity {
            conn.nospace = false;
            self.wake(id, News { writable: true, ..News::default() });
        }
    }
}
