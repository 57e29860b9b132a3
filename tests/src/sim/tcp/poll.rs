//! Readiness: marks, wake-ups, and the events that they become.

use ringway::contract::{Event, Side, Token};

use crate::sim::coverage::Fault;
use crate::sim::kernel::{Kernel, Pending, Turn};
use crate::sim::tcp::conn::{ConnId, News};

impl Kernel {
    /// A poll that is armed completes at once if there is something to say.
    pub(crate) fn arm(&mut self, id: ConnId) {
        let conn = &self.conns[id.0];
        let awaited = conn.owner.and_then(|token| self.sessions.get(&token.slot));
        let awaited = awaited.is_some_and(|session| session.blocked[conn.side.other() as usize]);
        let news = News {
            readable: !conn.inbound.queue.is_empty() || conn.inbound.fin,
            writable: !conn.nospace && (awaited || self.rng.per_mille(500)),
            ending: conn.inbound.fin,
            failed: conn.error.is_some(),
        };
        if news.readable || news.writable || news.failed {
            self.wake(id, news);
        }
    }

    pub(crate) fn mark(&mut self, token: Token, from: Side, at_least: u32) {
        let id = self.live(token).conn(from).expect("Mark of a side that is not there");
        let conn = &mut self.conns[id.0];
        // The kernel lets nobody ask for more than half of what the buffer holds.
        conn.lowat = u64::from(at_least).min(conn.inbound.capacity / 2).max(1);
        if conn.lowat == 1 {
            conn.below_since = None;
        }
        let waiting = conn.inbound.queue.len();
        if waiting >= conn.lowat {
            self.wake(id, News { readable: true, ..News::default() });
        } else if waiting > 0 {
            self.hit_conn(id, Fault::BelowMark);
            let now = self.now;
            self.conns[id.0].below_since.get_or_insert(now);
        }
    }

    pub(crate) fn wake(&mut self, id: ConnId, news: News) {
        let conn = &mut self.conns[id.0];
        conn.news.readable |= news.readable;
        conn.news.writable |= news.writable;
        conn.news.ending |= news.ending;
        conn.news.failed |= news.failed;
        let watched = conn.owner.is_some() && !conn.closed;
        if self.stream_of(id).is_some() {
            if news.readable || news.ending || news.failed {
                self.arrive_soon(id);
            }
            return;
        }
        let conn = &mut self.conns[id.0];
        if watched && !std::mem::replace(&mut conn.ready_pending, true) {
            self.soon(Pending::Ready(id));
        }
    }

    /// The poll's completion: the wake-up's own bits, and perhaps all else that is true now.
    pub(crate) fn ready(&mut self, id: ConnId, turn: &mut Turn) {
        let levels = self.rng.per_mille(500);
        let late = self.rng.per_mille(500);
        let again = self.rng.per_mille(self.faults.spurious);
        let streams = self.stream_of(id).is_some();
        let conn = &mut self.conns[id.0];
        conn.ready_pending = false;
        if streams && late {
            // The poll was cancelled; what it had seen is seen again when it is armed.
            return;
        }
        let News { mut readable, mut writable, mut ending, mut failed } =
            std::mem::take(&mut conn.news);
        if levels {
            readable |= conn.inbound.queue.len() >= conn.lowat || conn.inbound.fin;
            writable |= !conn.nospace;
            ending |= conn.inbound.fin;
            failed |= conn.error.is_some();
        }
        let Some(token) = conn.owner.filter(|_| !conn.closed) else { return };
        // A mark does not keep news away that is not about new bytes; a look that is awaited does.
        let (side, looks) = (conn.side, conn.lowat > 1 && conn.peeked);
        if failed {
            conn.error_told.get_or_insert(self.turn);
            ending = true;
        }
        let session = &self.sessions[&token.slot];
        if session.conn(side) != Some(id) || (session.closing && late) {
            return;
        }
        if writable {
            let session = self.sessions.get_mut(&token.slot).expect("just looked at");
            session.blocked[side.other() as usize] = false;
        }
        self.event(token, Event::Ready { side, readable, writable, ending, failed }, turn);
        if again && !looks {
            self.hit_conn(id, Fault::WouldBlock);
            self.wake(id, News { readable: true, writable: true, ..News::default() });
        }
    }
}
