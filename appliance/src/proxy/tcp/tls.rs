//! Runs the handshakes of a session in which a side speaks TLS with the gateway, and their results.

use crate::contract::{Event, Side, Stop, Why};
use crate::proxy::cause::Cause;
use crate::proxy::core::Core;
use crate::proxy::tcp::accounting::count_bytes;
use crate::proxy::tcp::close::failure;
use crate::proxy::tcp::relay::within_limits;
use crate::proxy::tcp::state::{Connecting, Relay, Session, State};
use crate::proxy::tcp::tls_port::Outcome;
use crate::proxy::tcp::tls_relay::TlsRelay;
use crate::stats::detail::Detail;
use crate::stats::records::CloseReason;

impl Session {
    /// Begins the TLS handshake with the client. The backend is chosen already, and the session
    /// connects when the handshake is over.
    pub fn greet(&mut self, core: &mut Core, tls: TlsRelay) {
        self.state = State::Greeting;
        let tls = self.tls.insert(Box::new(tls));
        let outcome = tls.greet(core, self.token, Side::Client);
        self.tls_outcome(core, outcome);
    }

    /// Begins the TLS handshake with the endpoint.
    pub fn secure(&mut self, core: &mut Core, connecting: Connecting) {
        self.state = State::Securing(connecting);
        self.arm(core);
        if let Some(tls) = &mut self.tls {
            let outcome = tls.greet(core, self.token, Side::Endpoint);
            self.tls_outcome(core, outcome);
        }
    }

    pub fn greeted(&mut self, core: &mut Core) {
        if let State::Securing(connecting) = self.state {
            return self.relay(core, connecting);
        }
        self.choose_again(core);
        let backend = self.backend.and_then(|id| core.tables.backend(self.socket, id));
        let connecting = backend.map(|backend| Connecting::new(backend.connect_attempts));
        let connecting = connecting.ok_or_else(|| Cause::from(CloseReason::NoEndpoint));
        match connecting.and_then(|connecting| self.connect(core, connecting)) {
            Ok(()) => self.arm(core),
            Err(cause) => self.finish(core, cause, true),
        }
    }

    /// Handles news of a side during its handshake, or while there is no relay yet.
    pub fn tls_ready(&mut self, core: &mut Core, event: Event) {
        let Event::Ready { side, readable, writable, ending, failed } = event else { return };
        let Some(tls) = &mut self.tls else { return };
        if failed {
            let cause = CloseReason::EndpointTlsFailed.because(Detail::why(Why::Reset));
            return self.tls_outcome(core, Outcome::Failed(cause));
        }
        if writable {
            tls.writable(core, self.token, side);
        }
        if (readable || ending) && tls.greets(side) {
            tls.readable(core, self.token, side);
        }
    }

    pub fn tls_event(&mut self, core: &mut Core, event: Event, bytes: &[u8]) {
        let Some(tls) = &mut self.tls else { return };
        let outcome = match event {
            Event::Taken { from, start, len, stop } => {
                let bytes = &bytes[start as usize..][..len as usize];
                tls.taken(core, self.token, from, bytes, stop)
            }
            Event::Given { to, sent, start, len, stop } => {
                let rest = &bytes[start as usize..][..len as usize];
                tls.given(core, self.token, to, (sent, rest), stop)
            }
            _ => return,
        };
        self.tls_outcome(core, outcome);
        if let Event::Given { sent: 1.., .. } = event
            && let State::Relaying(Relay { ending: Some(ending), .. }) = &mut self.state
        {
            ending.progress = core.now;
            self.deliver(core);
        }
    }

    pub fn tls_outcome(&mut self, core: &mut Core, outcome: Outcome) {
        if let Some(cause) = self.tls_refusal(core, &outcome) {
            return self.revoke(core, cause);
        }
        match (&self.state, outcome) {
            (_, Outcome::Nothing) => {}
            (_, Outcome::Greeted) => self.greeted(core),
            (State::Relaying(_), Outcome::Moved { from, read, sent, held, stop }) => {
                self.moved(core, from, (read, sent, held), stop);
            }
            (State::Relaying(_), Outcome::Truncated { from, read, sent }) => {
                self.tls_over(core, from, (read, sent));
                let reason = self.tls.as_ref().and_then(|tls| tls.truncated());
                self.end(core, reason.expect("it was truncated").into(), None);
            }
            (State::Relaying(_), Outcome::Broken { from, read, sent, cause }) => {
                self.tls_over(core, from.other(), (0, 0));
                self.tls_over(core, from, (read, sent));
                self.end(core, cause, None);
            }
            (_, Outcome::Moved { stop, .. }) => match (&self.state, stop) {
                (State::Securing(_), Stop::Failed { side: Side::Endpoint, why }) => {
                    self.endpoint_failed(core, failure(Side::Endpoint, why));
                }
                (_, Stop::Failed { side, why }) => self.finish(core, failure(side, why), true),
                _ => {}
            },
            // The alert must reach the client, because the alert says why. A reset would overtake
            // the alert.
            (State::Greeting, Outcome::Failed(cause)) => self.finish(core, cause, false),
            (State::Securing(_), Outcome::Failed(cause)) => self.endpoint_failed(core, cause),
            (_, Outcome::Failed(cause)) => self.finish(core, cause, true),
            (_, Outcome::Truncated { .. } | Outcome::Broken { .. }) => {}
        }
    }

    /// No more bytes come this way.
    pub fn tls_over(&mut self, core: &mut Core, from: Side, (read, sent): (u32, u32)) {
        let State::Relaying(relay) = &mut self.state else { return };
        let half = relay.half(from);
        half.moved(core.now, read, sent, 0, Stop::Budget);
        half.die();
        count_bytes(core, self.listener, self.endpoint, from, u64::from(sent));
    }

    /// Gives each direction a `Move`. What an endpoint says first may be a refusal, after which the
    /// session goes on elsewhere if nothing of the client was taken. So a `Move` of the client's
    /// direction does not begin while one of the other is under way that may bring it.
    pub fn tls_pump(&mut self, core: &mut Core) {
        for side in [Side::Endpoint, Side::Client] {
            let State::Relaying(relay) = &mut self.state else { return };
            let may_bring_refusal = relay.retry.is_some()
                && relay.ending.is_none()
                && relay.up.has_brought_nothing()
                && relay.down.has_brought_nothing()
                && relay.down.queued()
                && !relay.down.is_over();
            if side == Side::Client && may_bring_refusal {
                continue;
            }
            let half = relay.half(side);
            let op = half.start(core.turn_bytes);
            if let Some(op) = op.and_then(|op| within_limits(core, &mut self.held, half, op)) {
                self.move_bytes(core, op);
            }
        }
        self.arm_for_limits(core);
    }
}
