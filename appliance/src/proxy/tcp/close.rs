//! Ends a session: delivers all bytes that were sent in good order, then counts and logs the
//! session under one reason, and closes it.

use crate::contract::{Op, Side, Why};
use crate::proxy::cause::Cause;
use crate::proxy::core::Core;
use crate::proxy::tcp::accounting::{count_bytes, make_room};
use crate::proxy::tcp::state::{Ending, Pause, Relay, Session, State};
use crate::stats::detail::Detail;
use crate::stats::records::CloseReason;

/// Microseconds. If a byte went either way within this time, the session is taken to be in the
/// middle of a transfer.
pub const MOVING: u64 = 5_000_000;

/// The longest pause between looks at unacknowledged bytes, in microseconds.
pub const LAST_LOOK: u64 = 100_000;

impl Session {
    /// Closes at once. Both sides get clean ends only if no byte went either way for a while.
    /// Otherwise a peer that reads to the end would take a part for the whole.
    pub fn close(&mut self, core: &mut Core, reason: CloseReason) {
        if self.is_shared() {
            // Another process may be about to go on with the session. A process that stops leaves
            // the session to it.
            return if reason == CloseReason::Stopped {
                self.forget(core)
            };
        }
        let reset = match &self.state {
            State::Relaying(relay) => {
                let silent = core.now - self.last_byte >= MOVING;
                relay.has_work() || (relay.up.bytes + relay.down.bytes > 0 && !silent)
            }
            _ => true,
        };
        self.finish(core, reason, reset);
    }

    /// Why the session must leave its endpoint now. `None`: the endpoint is not gone, the session
    /// has not begun to relay, or only the client still gets bytes.
    pub fn is_of_gone(&self, core: &Core) -> Option<CloseReason> {
        let State::Relaying(relay) = &self.state else { return None };
        if relay.is_shared() {
            return None;
        }
        let is_over = |ending: &Ending| ending.gone[Side::Endpoint as usize];
        if relay.ending.as_ref().is_some_and(|ending| is_over(ending)) {
            return None;
        }
        core.gone.reason(self.endpoint?, core.now)
    }

    /// Ends the session because its endpoint is gone. If the endpoint is down, the client gets a
    /// reset: nobody knows what the endpoint would still have sent.
    pub fn leave(&mut self, core: &mut Core, reason: CloseReason) {
        match reason {
            CloseReason::EndpointDown => self.finish(core, reason, true),
            _ => self.close(core, reason),
        }
    }

    /// One side is broken. The bytes that the side sent before are still read and delivered. For
    /// example, an endpoint may answer and then reset, because it does not want the rest of the
    /// request. The client has a use for that answer.
    pub fn failed(&mut self, core: &mut Core, from: Side, side: Side, why: Why) {
        let State::Relaying(relay) = &mut self.state else { return };
        let half = relay.half(from);
        if side == from && half.held() == 0 {
            half.die();
        }
        self.end(core, failure(side, why), Some(side));
    }

    /// The session is over, but first delivers all bytes that were sent in good order. `gone`: a
    /// side that takes no more bytes. The first cause counts.
    pub fn end(&mut self, core: &mut Core, cause: Cause, gone: Option<Side>) {
        let State::Relaying(relay) = &mut self.state else { return };
        relay.pause = Pause::No;
        let now = core.now;
        make_room(core, self.listener, &mut self.entry);
        let ending = relay.ending.get_or_insert_with(|| Box::new(Ending::new(cause, now)));
        if let Some(side) = gone {
            ending.gone[side as usize] = true;
            relay.half(side.other()).die();
        }
        for from in [Side::Client, Side::Endpoint] {
            let State::Relaying(relay) = &mut self.state else { return };
            if let Some(op) = relay.half(from).flush(core.turn_bytes) {
                self.move_bytes(core, op);
            }
        }
        self.deliver(core);
    }

    /// Goes on with the end of a session. When the sockets have taken all bytes, looks whether the
    /// peers have acknowledged them, because a reset would overtake unacknowledged bytes.
    pub fn deliver(&mut self, core: &mut Core) {
        let State::Relaying(relay) = &mut self.state else { return };
        let Some(ending) = &relay.ending else { return };
        if ending.gone == [true; 2] {
            let cause = ending.cause.clone();
            return self.finish(core, cause, true);
        }
        let giving = |side| self.tls.as_ref().is_some_and(|tls| tls.is_giving(side));
        let mut left = ending.left();
        if left.any(|side| !relay.half(side.other()).is_over() || giving(side)) {
            return self.arm(core);
        }
        self.look(core);
    }

    /// Asks how many bytes are not acknowledged, unless such a look is under way.
    pub fn look(&mut self, core: &mut Core) {
        let State::Relaying(relay) = &mut self.state else { return };
        let Some(ending) = &mut relay.ending else { return };
        ending.next = u64::MAX;
        for side in ending.left() {
            if !std::mem::replace(&mut ending.looking[side as usize], true) {
                core.push(self.token, Op::Unacked { side });
            }
        }
    }

    pub fn unacked(&mut self, core: &mut Core, side: Side, bytes: u32) {
        let State::Relaying(relay) = &mut self.state else { return };
        let Some(ending) = &mut relay.ending else { return };
        let before = std::mem::replace(&mut ending.unacked[side as usize], bytes);
        if bytes < before {
            ending.progress = core.now;
        }
        ending.looking[side as usize] = false;
        if ending.left().any(|side| ending.looking[side as usize]) {
            return;
        }
        if ending.left().all(|side| ending.unacked[side as usize] == 0) {
            let cause = ending.cause.clone();
            return self.finish(core, cause, true);
        }
        ending.next = core.now + ending.pause;
        ending.pause = (2 * ending.pause).min(LAST_LOOK);
        self.arm(core);
    }

    /// When the next look at unacknowledged bytes is due.
    pub fn next_look(&self) -> Option<u64> {
        let State::Relaying(Relay { ending: Some(ending), .. }) = &self.state else { return None };
        (ending.next < u64::MAX).then_some(ending.next)
    }

    /// Counts and logs the session, and has the ring close it. A client that is refused may be told
    /// why. In that case there is no reset.
    pub fn finish(&mut self, core: &mut Core, cause: impl Into<Cause>, reset: bool) {
        let cause = cause.into();
        let state = std::mem::replace(&mut self.state, State::Closing);
        let mut relay = match state {
            State::Closing => return,
            State::Relaying(relay) => Some(relay),
            State::Waiting(line) => {
                self.leave_line(core, line.ticket);
                None
            }
            State::Delayed => {
                core.delays.leave(self.socket, self.token);
                None
            }
            State::AwaitingProxyHeader(_)
            | State::Opening { .. }
            | State::Requesting(_)
            | State::Greeting
            | State::Connecting(_)
            | State::SendingProxyHeader(_)
            | State::Asking(_)
            | State::Securing(_) => None,
        };
        core.timers.cancel(self.token.slot);
        if let Some(relay) = &relay {
            for (half, from) in [(&relay.up, Side::Client), (&relay.down, Side::Endpoint)] {
                if half.mark() > 0 {
                    core.marks.remove(self.token, from);
                }
            }
        }
        // A FIN says that all bytes were delivered.
        let cut = || self.tls.as_ref().is_some_and(|tls| tls.is_cut());
        let reset = reset || relay.as_ref().is_some_and(|relay| relay.is_cut() || cut());
        if reset && relay.as_ref().is_some_and(|of| of.up.queued() || of.down.queued()) {
            // What this turn would still move would be missing in the log.
            let token = self.token;
            core.ops.retain(|(of, op)| *of != token || !matches!(op, Op::Move { .. }));
        }
        let told = if reset && relay.is_none() { self.words(core, &cause) } else { None };
        for side in [Side::Client, Side::Endpoint] {
            if let (Some(relay), Some(tls)) = (&mut relay, &mut self.tls) {
                let sent = u64::from(tls.unreported(side));
                relay.half(side.other()).bytes += sent;
                count_bytes(core, self.listener, self.endpoint, side.other(), sent);
            }
        }
        if let Some(relay) = &relay
            && !reset
        {
            // A FIN sent by close() would wait until the poll is cancelled.
            for (half, side) in [(&relay.up, Side::Endpoint), (&relay.down, Side::Client)] {
                if !half.ended() {
                    // No close_notify: the peer has not said that it ends, so the gateway must not
                    // say so.
                    core.push(self.token, Op::Shutdown { side });
                }
            }
        }
        // The log has facts about the client's TLS, which the last words end.
        self.account(core, cause, relay.as_ref());
        let reset = reset && !told.is_some_and(|words| self.tell(core, words));
        core.push(self.token, Op::Close { reset });
    }
}

pub fn failure(side: Side, why: Why) -> Cause {
    let reason = match (side, why) {
        (Side::Client, Why::Reset) => CloseReason::ClientReset,
        (Side::Client, Why::TimedOut) => CloseReason::ClientTimedOut,
        (Side::Client, _) => return CloseReason::ClientError.because(Detail::why(why)),
        (Side::Endpoint, Why::Reset) => CloseReason::EndpointReset,
        (Side::Endpoint, Why::TimedOut) => CloseReason::EndpointTimedOut,
        (Side::Endpoint, _) => return CloseReason::EndpointError.because(Detail::why(why)),
    };
    reason.into()
}
