//! Relays bytes between client and endpoint: each direction by itself, until both have ended.

use crate::contract::{Event, Mode, Op, Side, Stop, Token, Why};
use crate::proxy::core::Core;
use crate::proxy::held::Held;
use crate::proxy::tcp::accounting::{count_bytes, make_room};
use crate::proxy::tcp::close::failure;
use crate::proxy::tcp::direction::{Half, Next};
use crate::proxy::tcp::state::{Connecting, Pause, Relay, Session, State};
use crate::stats::records::{CloseReason, Record};

impl Session {
    pub fn relay(&mut self, core: &mut Core, connecting: Connecting) {
        let took = core.now - connecting.started;
        self.connect_micros = Some(u32::try_from(took).unwrap_or(u32::MAX));
        if let Some(endpoint) = self.endpoint {
            core.balancer.succeeded(endpoint);
            let counters = core.counters.endpoint(endpoint);
            counters.opened.add(1);
            counters.connect.record(took);
        }
        self.last_byte = core.now;
        let mut up = Half::new(Side::Client);
        // Bytes that came behind a handshake may be here already.
        let has_tls = self.tls.is_some();
        if has_tls || self.client_readable || self.client_ending {
            up.source_ready(self.client_ending);
        }
        let mut down = Half::new(Side::Endpoint);
        if has_tls {
            down.source_ready(false);
        }
        if self.client_ending {
            make_room(core, self.listener, &mut self.entry);
        }
        let retry = self.may_be_refused().then(|| Box::new(connecting));
        self.state = State::Relaying(Relay { paced: self.free, retry, ..Relay::new(up, down) });
        // A session that goes on to another endpoint has begun already.
        if core.tables.current().log_opens && !std::mem::replace(&mut self.log_has_open, true) {
            let record = self.record(core, None);
            core.records.push(Record::Opened(record));
        }
        self.arm(core);
        self.pump(core);
    }

    /// Handles news of a side.
    pub fn relay_ready(&mut self, core: &mut Core, event: Event) {
        let Event::Ready { side, readable, writable, ending, failed } = event else { return };
        let ends = ending || failed;
        // The end may be a refusal, after which the session goes on.
        let may_go_on = ends && side == Side::Endpoint && self.may_be_revocable(core);
        let State::Relaying(relay) = &mut self.state else { return };
        relay.failed[side as usize] |= failed;
        if readable || ends {
            relay.half(side).source_ready(ends);
        }
        if ends && !may_go_on {
            make_room(core, self.listener, &mut self.entry);
        }
        if writable {
            relay.half(side.other()).destination_ready();
            if let Some(tls) = &mut self.tls {
                tls.writable(core, self.token, side);
            }
        }
        // No read would report the failure: the end of this side was delivered, or the side is not
        // being read.
        let is_unread = relay.half(side).is_over() || relay.half(side).blocked();
        if failed && is_unread && !relay.is_shared() {
            self.end(core, failure(side, Why::Reset), Some(side));
        }
        self.pump(core);
    }

    /// Gives each direction a `Move`, if the direction has a reason for one.
    pub fn pump(&mut self, core: &mut Core) {
        let State::Relaying(relay) = &mut self.state else { return };
        if self.tls.is_some() {
            return self.tls_pump(core);
        }
        if relay.pause != Pause::No {
            return self.pump_the_other(core);
        }
        for (half, from) in [(&mut relay.up, Side::Client), (&mut relay.down, Side::Endpoint)] {
            match half.start(core.turn_bytes) {
                None => {}
                // A splice goes behind all small moves, because it takes the longest and a delay
                // costs it the least.
                Some(Op::Move { mode: Mode::Splice, .. }) => {
                    core.resumable.push_back((self.token, from));
                }
                Some(op) if !self.held.limits_bytes() => core.push(self.token, op),
                Some(op) => push_within_limits(core, self.token, &mut self.held, half, op),
            }
        }
        if !self.held.is_empty() {
            self.arm_for_limits(core);
        }
    }

    /// As `pump`, while a direction pauses or both do. Of those only what is held is delivered.
    #[cold]
    #[inline(never)]
    fn pump_the_other(&mut self, core: &mut Core) {
        let State::Relaying(relay) = &mut self.state else { return };
        for from in [Side::Client, Side::Endpoint] {
            let is_paused = relay.is_paused(from);
            let half = relay.half(from);
            if is_paused {
                let op = half.deliver_held();
                core.ops.extend(op.map(|op| (self.token, op)));
                continue;
            }
            match half.start(core.turn_bytes) {
                None => {}
                Some(Op::Move { mode: Mode::Splice, .. }) => {
                    core.resumable.push_back((self.token, from));
                }
                Some(op) => push_within_limits(core, self.token, &mut self.held, half, op),
            }
        }
        if !self.held.is_empty() {
            self.arm_for_limits(core);
        }
    }

    /// A direction's turn has come again after its budget ran out.
    pub fn resume(&mut self, core: &mut Core, from: Side) {
        let State::Relaying(relay) = &mut self.state else { return };
        if relay.is_paused(from) {
            relay.half(from).put_off();
            return self.pump(core);
        }
        let half = relay.half(from);
        let op = half.resume(core.turn_bytes);
        if let Some(op) = op.and_then(|op| within_limits(core, &mut self.held, half, op)) {
            self.move_bytes(core, op);
        }
        if !self.held.is_empty() {
            self.arm_for_limits(core);
        }
    }

    /// Makes sure that the timer fires once a direction may move bytes that waits for a limit.
    #[cold]
    #[inline(never)]
    pub fn arm_for_limits(&self, core: &mut Core) {
        if self.held.next().is_some() {
            self.arm(core);
        }
    }

    /// No full mark arrived within 1 ms, so the bulk run ends: clear the mark, and wake for
    /// whatever is there.
    pub fn mark_due(&mut self, core: &mut Core, from: Side) {
        if let State::Relaying(relay) = &mut self.state {
            relay.unmark(core, self.token, from);
        }
    }

    pub fn moved(&mut self, core: &mut Core, from: Side, bytes: (u32, u32, u32), stop: Stop) {
        self.held.settle(core, from, bytes.0, stop == Stop::Budget);
        let ends = matches!(stop, Stop::Eof | Stop::Failed { .. });
        if ends && let Some(cause) = self.refusal(core, from, bytes, stop) {
            return self.revoke(core, cause);
        }
        let State::Relaying(relay) = &mut self.state else { return };
        let (read, sent, held) = bytes;
        let is_limited = self.held.limits_bytes();
        if read > 0 || sent > 0 {
            self.last_byte = core.now;
            relay.unmark(core, self.token, from.other());
        }
        count_bytes(core, self.listener, self.endpoint, from, u64::from(sent));
        let next = relay.half(from).moved(core.now, read, sent, held, stop);
        relay.unpace(core, self.token, from);
        if self.tls.is_none() && !is_limited && !relay.is_paused(from) {
            relay.mark(core, self.token, from, stop);
        }
        if let Stop::Failed { side, why } = stop {
            return self.failed(core, from, side, why);
        }
        if let Some(ending) = &mut relay.ending {
            if sent > 0 {
                ending.progress = core.now;
            }
            let drained = matches!(next, Next::Wait | Next::Stream) && stop == Stop::Drained;
            let half = relay.half(from);
            if half.is_over() || next == Next::Ended || (drained && !half.streaming()) {
                // No more bytes come, and this direction must not end cleanly.
                half.die();
                return self.deliver(core);
            }
        }
        match next {
            Next::Wait | Next::Again => {}
            // The ring can't read TLS, and knows no limits. A session that pauses receives nothing.
            Next::Stream if self.tls.is_some() || is_limited || relay.pause != Pause::No => {}
            Next::Stream => {
                // A blocked direction waits for the poll, and a stream does without the poll. A
                // `Move` that is under way may become blocked.
                let other = relay.half(from.other());
                if !other.blocked() && !other.queued() {
                    let op = relay.half(from).stream();
                    core.push(self.token, op);
                }
            }
            Next::Unstream => {
                let op = relay.half(from).unstream();
                core.push(self.token, op);
            }
            Next::Later if relay.is_paused(from) => relay.half(from).put_off(),
            Next::Later => core.resumable.push_back((self.token, from)),
            Next::Ended => {
                if let Some(reason) = self.direction_ended(core, from) {
                    return self.finish(core, reason, false);
                }
            }
        }
        if next != Next::Wait || stop == Stop::Blocked {
            self.arm(core);
        }
        self.pump(core);
    }

    /// Passes the end of a direction on. Returns the reason if both directions have ended: then the
    /// close passes the last end on.
    fn direction_ended(&mut self, core: &mut Core, from: Side) -> Option<CloseReason> {
        let State::Relaying(relay) = &mut self.state else { return None };
        make_room(core, self.listener, &mut self.entry);
        // The gateway's own FIN is sent now, so `half_close_timeout` counts from here.
        self.last_byte = core.now;
        relay.first_end.get_or_insert(from);
        if !(relay.up.ended() && relay.down.ended()) {
            core.push(self.token, Op::Shutdown { side: from.other() });
            return None;
        }
        let fin = match relay.first_end {
            Some(Side::Client) => CloseReason::ClientFin,
            _ => CloseReason::EndpointFin,
        };
        Some(self.tls.as_ref().and_then(|tls| tls.truncated()).unwrap_or(fin))
    }

    /// Has the ring carry out a `Move`, or carries it out here if a side speaks TLS.
    pub fn move_bytes(&mut self, core: &mut Core, op: Op) {
        let Some(tls) = &mut self.tls else { return core.push(self.token, op) };
        let Op::Move { from, budget, to_eof, .. } = op else { return };
        let outcome = tls.begin(core, self.token, from, (budget, to_eof));
        self.tls_outcome(core, outcome);
    }
}

/// Out of the way of sessions without limits.
#[cold]
#[inline(never)]
fn push_within_limits(core: &mut Core, token: Token, held: &mut Held, half: &mut Half, op: Op) {
    if let Some(op) = within_limits(core, held, half, op) {
        core.push(token, op);
    }
}

/// The `Move` with as many bytes as limits allow now. `None`: the direction has to wait.
#[inline]
pub fn within_limits(core: &Core, held: &mut Held, half: &mut Half, op: Op) -> Option<Op> {
    if !held.limits_bytes() {
        return Some(op);
    }
    let Op::Move { from, mode, budget, to_eof } = op else { return Some(op) };
    let Some(budget) = held.reserve(core, from, budget) else {
        half.put_off();
        // What is held was taken of the limits when it was read.
        return half.deliver_held();
    };
    Some(Op::Move { from, mode, budget, to_eof })
}

impl Relay {
    pub fn half(&mut self, from: Side) -> &mut Half {
        match from {
            Side::Client => &mut self.up,
            Side::Endpoint => &mut self.down,
        }
    }

    /// Sets the mark of a direction that has become bulk, and keeps the deadline of that mark.
    pub fn mark(&mut self, core: &mut Core, token: Token, from: Side, stop: Stop) {
        let half = self.half(from);
        match stop {
            Stop::Drained if half.is_bulk(core.bulk_bytes) => {
                if let Some(mark) = core.marks.wait(core.now, token, from)
                    && mark != half.mark()
                {
                    core.counters.bulk_runs.add(u64::from(half.mark() == 0));
                    half.set_mark(mark);
                    core.push(token, Op::Mark { from, at_least: mark });
                }
            }
            // The direction has turned back to copying. It has no deadline then, so it must have no
            // mark.
            Stop::Drained if half.mark() > 0 => self.unmark(core, token, from),
            _ if half.mark() > 0 => core.marks.hold(token, from),
            _ => {}
        }
    }

    /// Asks the ring to stop pacing the destination of a direction that has become bulk.
    pub fn unpace(&mut self, core: &mut Core, token: Token, from: Side) {
        let (half, paced) = match from {
            Side::Client => (&self.up, &mut self.paced.1),
            Side::Endpoint => (&self.down, &mut self.paced.0),
        };
        if *paced && half.is_bulk(core.bulk_bytes) {
            *paced = false;
            core.push(token, Op::Unpace { side: from.other() });
        }
    }

    /// Ends the run of this direction: the next byte wakes at once.
    pub fn unmark(&mut self, core: &mut Core, token: Token, from: Side) {
        let half = self.half(from);
        half.end_run();
        if half.mark() > 0 {
            half.set_mark(0);
            core.marks.remove(token, from);
            core.push(token, Op::Mark { from, at_least: 1 });
        }
    }

    /// One of the connections has failed.
    pub fn has_failed(&self) -> bool {
        self.failed != [false; 2]
    }

    /// Bytes are held that nobody will get, or a side has failed.
    pub fn is_cut(&self) -> bool {
        self.has_failed() || self.ending.is_some() || self.up.held() > 0 || self.down.held() > 0
    }

    /// Bytes wait for their turn.
    pub fn has_work(&self) -> bool {
        self.up.has_work() || self.down.has_work()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use config_sync::table::routing::Limits;

    use crate::contract::Kind;

    use super::*;
    use crate::proxy::Proxy;
    use crate::stats::counters::Counters;

    /// A direction that has turned back to copying has no deadline, so it must have no mark.
    #[test]
    fn a_mark_does_not_outlive_bulk() {
        let limits = Limits {
            sessions: 1,
            flows: 1,
            buffers: 1,
            pipes: 1,
            turn_bytes: 1 << 18,
            bulk_bytes: 1 << 18,
        };
        let mut proxy = Proxy::new(limits, 1, Arc::new(Counters::new()));
        let core = &mut proxy.core;
        let token = Token { kind: Kind::Session, slot: 0, generation: 0 };
        let (up, down) = (Half::new(Side::Client), Half::new(Side::Endpoint));
        let mut relay = Relay { paced: (false, true), ..Relay::new(up, down) };
        let mut looked = 0;
        let mut wake = |core: &mut Core, bytes| {
            relay.up.source_ready(false);
            assert!(relay.up.start(core.turn_bytes).is_some());
            relay.up.moved(core.now, bytes, bytes, 0, Stop::Drained);
            relay.unpace(core, token, Side::Client);
            relay.mark(core, token, Side::Client, Stop::Drained);
            let ops = std::mem::take(&mut core.ops).into_iter().map(|(_, op)| op);
            let (unpaced, mut ops): (Vec<_>, Vec<_>) =
                ops.partition(|op| *op == Op::Unpace { side: Side::Endpoint });
            looked += unpaced.len();
            ops.pop()
        };
        let mark = (0..20).find_map(|_| wake(core, 60_000));
        assert_eq!(mark, Some(Op::Mark { from: Side::Client, at_least: 256 << 10 }));
        assert!(core.marks.next().is_some());
        let cleared = (0..20).find_map(|_| wake(core, 0));
        assert_eq!(cleared, Some(Op::Mark { from: Side::Client, at_least: 1 }));
        assert_eq!(core.marks.next(), None);
        // A second run: the pacing was looked at in the first.
        assert!((0..20).any(|_| wake(core, 60_000).is_some()));
        assert_eq!(looked, 1);
    }

    /// A session, the ring's 96 bytes and the timer's 24 are the cost of an idle session, which is
    /// promised to be under 512 bytes.
    #[test]
    fn a_session_is_small() {
        assert!(size_of::<Session>() <= 376, "{} bytes", size_of::<Session>());
    }
}
