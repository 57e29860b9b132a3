//! The end of a session: what is not acknowledged, half-closes, and the close.

use ringway::contract::{Event, Side, Token};

use crate::sim::kernel::{Kernel, Pending, Turn};
use crate::sim::tcp::conn::{ConnId, Half};
use crate::sim::tcp::session::Stream;

/// What this kernel says about each side. The proxy only passes it on.
pub const INSPECTED: [[u8; 2]; 2] = [*b"cc", *b"ee"];

impl Kernel {
    pub(crate) fn unacked(&mut self, token: Token, side: Side, turn: &mut Turn) {
        let session = self.live(token);
        session.delivering = true;
        let id = session.conn(side).expect("Unacked of a side that is not there");
        let all = self.rng.per_mille(500);
        let some = self.rng.number();
        let conn = &mut self.conns[id.0];
        let Half { written, taken, acked, .. } = &mut conn.outbound;
        let all = all || conn.error.is_some() || conn.peer_closed;
        let least = (*acked).max(*taken);
        *acked = if all { *written } else { least + some % (*written - least + 1) };
        let bytes = (*written - *acked) as u32;
        self.event(token, Event::Unacked { side, bytes }, turn);
    }

    pub(crate) fn inspect(&mut self, token: Token, side: Side, turn: &mut Turn) {
        let session = self.live(token);
        session.delivering = true;
        session.conn(side).expect("Inspect of a side that is not there");
        let start = turn.bytes.len() as u32;
        turn.bytes.extend(INSPECTED[side as usize]);
        let len = INSPECTED[0].len() as u32;
        self.event(token, Event::Inspected { side, start, len }, turn);
    }

    pub(crate) fn shutdown(&mut self, token: Token, side: Side) {
        let session = self.live(token);
        let id = session.conn(side).expect("Shutdown of a side that is not there");
        assert!(!session.shut[side as usize], "Shutdown twice");
        session.shut[side as usize] = true;
        let held = session.held[side.other() as usize].len();
        let source = session.conn(side.other());
        let unread = source.map_or(0, |s| {
            let inbound = &self.conns[s.0].inbound;
            if inbound.fin_seen { 0 } else { inbound.queue.len() + 1 }
        });
        let conn = &mut self.conns[id.0];
        conn.outbound.fin = true;
        conn.cut = held + unread > 0;
    }

    pub(crate) fn close(&mut self, token: Token, reset: bool) {
        let turn = self.turn;
        let session = self.live(token);
        session.closing = true;
        let cut = session.held.iter().any(|held| !held.is_empty());
        assert!(reset || !cut, "bytes were cut off by a clean end: {token:?}");
        let sides = [Some(session.client), session.endpoint];
        let is_frozen = self.frozen.remove(&token);
        let session = self.sessions.get_mut(&token.slot).expect("it lives");
        let relaying = session.endpoint.is_some();
        let streams = std::mem::replace(&mut session.streams, [Stream::Off; 2]);
        // The ring closes such connections together with their polls.
        let ends_at_once = relaying && !reset && streams == [Stream::Off; 2];
        if let Some(id) = session.connecting.take().and_then(|a| a.established) {
            self.close_conn(id, true);
        }
        for id in sides.into_iter().flatten() {
            let is_shared = self.other_holder(id, token).is_some();
            let conn = &mut self.conns[id.0];
            if conn.owner != Some(token) {
                assert!(!reset, "a session that went to another process is reset: {token:?}");
                continue;
            }
            conn.cut = false;
            let (then, bytes) = conn.streamed;
            conn.untold = if then == turn { bytes } else { 0 };
            if is_shared {
                assert!(!(reset && is_frozen), "a session of another process is reset: {token:?}");
                continue;
            }
            conn.outbound.fin |= ends_at_once && conn.error.is_none();
            let told = conn.error_told.is_some_and(|then| then < turn);
            assert!(
                reset || !relaying || !told || is_frozen,
                "a broken side became a clean end of the other: {id:?}"
            );
        }
        let at = self.closing_time();
        self.at(at, Pending::Close(token, reset));
    }

    /// The last completion is in: descriptors are closed, pipes emptied.
    pub(crate) fn closing_done(&mut self, token: Token, reset: bool, turn: &mut Turn) {
        let session = self.sessions.remove(&token.slot).expect("closing");
        self.frozen.remove(&token);
        for id in [Some(session.client), session.endpoint].into_iter().flatten() {
            self.close_descriptor(id, token, reset);
        }
        self.ring().pipes_used -= session.pipes.iter().filter(|p| **p).count() as u32;
        self.event(token, Event::Closed, turn);
        self.haunt(token);
    }

    pub(crate) fn close_conn(&mut self, id: ConnId, reset: bool) {
        let lost = self.rng.number();
        let conn = &mut self.conns[id.0];
        let reset = reset || conn.resets;
        assert!(!conn.closed, "{id:?} is closed twice");
        conn.closed = true;
        if conn.error.is_some() {
            return;
        }
        let unread = !conn.inbound.queue.is_empty();
        if (reset || unread) && !conn.peer_closed {
            conn.reset_seen = true;
            // The reset overtakes what was not delivered.
            let Half { queue, taken, acked, .. } = &mut conn.outbound;
            let len = queue.len();
            queue.truncate((lost % (len + 1)).max(acked.saturating_sub(*taken)));
            conn.outbound.fin = false;
        } else {
            conn.outbound.fin = true;
        }
    }
}
