//! What the ring does for the proxy in a session.

use ringway::contract::{Event, Op, Side, Stop, Token, Why};

use crate::sim::tls::life::{Life, Turn, Wire};

impl Life {
    pub(super) fn carry_out(&mut self, turn: &mut Turn, token: Token, op: Op) {
        match op {
            Op::Adopt { .. } => {}
            Op::Peek { at_least } => self.peek(turn, token, at_least as usize),
            Op::Connect { .. } => {
                self.connected = true;
                turn.events.push_back((token, Event::Connected));
            }
            Op::Abandon => {
                assert!(
                    self.connected && self.peers[1].heard.is_empty(),
                    "it has a client's bytes"
                );
                self.connected = false;
                // Nobody reads what was on its way to an endpoint that is given up.
                self.wires[1].outbound.clear();
                // What the client has said since then waited for the endpoint, not for a turn.
                self.told = None;
                if let Some(spare) = self.spare.take() {
                    let capacity = turn.rng.scale(1_024, 1 << 18) as usize;
                    self.wires[1] = Wire { capacity, ..Wire::default() };
                    self.peers[1] = spare;
                    self.replaced = true;
                }
                turn.events.push_back((token, Event::ConnectFailed { why: Why::Abandoned }));
            }
            Op::Take { from, at_most, to_eof } => {
                self.take(turn, token, (from, at_most as usize, to_eof))
            }
            Op::Move { from, budget, to_eof, .. } => {
                self.move_bytes(turn, token, (from, budget as usize, to_eof));
            }
            // No buffer is free.
            Op::Stream { from } => moved(turn, token, from, 0, Stop::Budget),
            Op::Mark { from, at_least } => {
                let wire = &mut self.wires[from as usize];
                wire.lowat = at_least as usize;
                wire.news |= !wire.inbound.is_empty();
            }
            Op::Unpace { .. } => {}
            Op::Give { to, start, len } => {
                self.give(turn, token, (to, start as usize, len as usize));
            }
            Op::Unacked { side } => {
                let wire = &self.wires[side as usize];
                let bytes = if wire.failed { 0 } else { wire.outbound.len() as u32 };
                turn.events.push_back((token, Event::Unacked { side, bytes }));
            }
            Op::Shutdown { side } => {
                let wire = &mut self.wires[side as usize];
                assert!(!wire.fin_out, "Shutdown twice");
                wire.fin_out = true;
            }
            Op::Close { reset } => self.close(turn, token, reset),
            other => panic!("{other:?} in a session of two connections"),
        }
    }

    fn peek(&mut self, turn: &mut Turn, token: Token, at_least: usize) {
        self.told = None;
        let wire = &mut self.wires[0];
        wire.lowat = at_least;
        let room = at_least.max(1).next_multiple_of(64);
        let start = turn.bytes.len() as u32;
        turn.bytes.extend(wire.inbound.iter().take(room));
        let len = turn.bytes.len() as u32 - start;
        let end = wire.fin_in && len as usize == wire.inbound.len();
        turn.events.push_back((token, Event::Peeked { start, len, end }));
    }

    fn take(
        &mut self,
        turn: &mut Turn,
        token: Token,
        (from, at_most, to_eof): (Side, usize, bool),
    ) {
        let wire = &mut self.wires[from as usize];
        wire.lowat = 0;
        let mut len = at_most.min(wire.inbound.len());
        if len > 1 && turn.rng.per_mille(100) {
            // The rest comes a moment later.
            len = turn.rng.between(1, len as u64 - 1) as usize;
            wire.news = true;
        }
        let start = turn.bytes.len();
        turn.bytes.extend(wire.inbound.drain(..len));
        let more = to_eof || wire.fin_in || wire.failed;
        let stop = match len {
            0 if wire.failed => Stop::Failed { side: from, why: Why::Reset },
            0 if wire.fin_in => Stop::Eof,
            _ if len > 0 && (len == at_most || more) => Stop::Budget,
            _ => Stop::Drained,
        };
        let (start, len) = (start as u32, len as u32);
        turn.events.push_back((token, Event::Taken { from, start, len, stop }));
    }

    /// Where TLS passes through.
    fn move_bytes(
        &mut self,
        turn: &mut Turn,
        token: Token,
        (from, budget, to_eof): (Side, usize, bool),
    ) {
        assert!(self.case.passes_through(), "Move in a session that speaks TLS");
        let [client, endpoint] = &mut self.wires;
        let (source, destination) = match from {
            Side::Client => (client, endpoint),
            Side::Endpoint => (endpoint, client),
        };
        source.lowat = 0;
        let there = source.inbound.len().min(budget);
        let room = destination.capacity.saturating_sub(destination.outbound.len());
        let len = there.min(room);
        if destination.failed {
            let stop = Stop::Failed { side: from.other(), why: Why::Reset };
            return moved(turn, token, from, 0, stop);
        }
        destination.outbound.extend(source.inbound.drain(..len));
        destination.blocked |= len < there;
        let stop = match len {
            _ if len < there => Stop::Blocked,
            0 if source.failed => Stop::Failed { side: from, why: Why::Reset },
            0 if source.fin_in => Stop::Eof,
            _ if len > 0 && (len == budget || to_eof || source.fin_in) => Stop::Budget,
            _ => Stop::Drained,
        };
        moved(turn, token, from, len as u32, stop);
    }

    fn give(&mut self, turn: &mut Turn, token: Token, (to, start, len): (Side, usize, usize)) {
        let wire = &mut self.wires[to as usize];
        assert!(!wire.fin_out, "bytes after a FIN");
        let bytes = &turn.output[start..][..len];
        let at = turn.bytes.len() as u32;
        if wire.failed {
            let stop = Stop::Failed { side: to, why: Why::Reset };
            let given = Event::Given { to, sent: 0, start: at, len: 0, stop };
            return turn.events.push_back((token, given));
        }
        let sent = len.min(wire.capacity.saturating_sub(wire.outbound.len()));
        wire.outbound.extend(&bytes[..sent]);
        wire.blocked |= sent < len;
        turn.bytes.extend(&bytes[sent..]);
        let stop = if sent < len { Stop::Blocked } else { Stop::Drained };
        let (sent, len) = (sent as u32, (len - sent) as u32);
        turn.events.push_back((token, Event::Given { to, sent, start: at, len, stop }));
    }

    fn close(&mut self, turn: &mut Turn, token: Token, reset: bool) {
        assert!(!std::mem::replace(&mut self.closing, true), "Close twice");
        for wire in &mut self.wires {
            wire.was_reset = reset;
            wire.fin_out = true;
            if reset {
                wire.outbound.clear();
            }
        }
        self.closed = true;
        turn.events.push_back((token, Event::Closed));
    }
}

fn moved(turn: &mut Turn, token: Token, from: Side, len: u32, stop: Stop) {
    let moved = Event::Moved { from, read: len, sent: len, held: 0, stop };
    turn.events.push_back((token, moved));
}
