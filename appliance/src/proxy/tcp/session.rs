//! Drives one TCP connection: Opening -> Connecting -> Relaying -> Closing. `proxy_header.rs` and
//! `starttls.rs` hold the steps that may come before a ClientHello and before an endpoint's first
//! byte.
//!
//! A session copies the few values it needs from the table when it opens, so no later table touches
//! the session. A session is closed when nothing is in flight: `finish` asks for the close, and
//! `Closed` frees the slot.

use config_sync::table::routing::ListenerId;

use crate::contract::{Event, Op, Side, Token};
use crate::proxy::core::{Core, Postponed, micros};
use crate::proxy::tcp::accounting::give_to;
use crate::proxy::tcp::choose::{By, admits};
use crate::proxy::tcp::direction::Half;
use crate::proxy::tcp::state::{
    Ask, Asking, AwaitingProxyHeader, First, Relay, Requesting, SendingProxyHeader, Session, State,
};
use crate::stats::detail::Detail;
use crate::stats::records::CloseReason;

/// Milliseconds, the default of `connect_timeout`. Where `connect_timeout` is off, a connected
/// endpoint has this long for the steps before the relay.
pub const SILENCE: u32 = 5_000;

impl Session {
    /// Begins: at once where the listener is known, otherwise with the client's first bytes.
    pub fn begin(
        &mut self,
        core: &mut Core,
        token: Token,
        first: First,
        listener: Option<ListenerId>,
    ) {
        self.token = token;
        if let Some(listener) = listener {
            give_to(&mut self.listener, listener, &core.counters);
        }
        if first.barred {
            self.finish(core, CloseReason::ProxyMissing, true);
        } else if first.header {
            self.state = State::AwaitingProxyHeader(AwaitingProxyHeader::new(first));
        } else {
            self.identified(core, first);
        }
        self.arm(core);
    }

    /// The client's address is known. Where listeners share the socket, the access rules of the
    /// socket apply before the ClientHello.
    pub fn identified(&mut self, core: &mut Core, first: First) {
        if !first.hello {
            return self.choose(core, &By::Socket);
        }
        if first.request {
            self.ask = Ask::ToEncrypt;
            self.state = State::Requesting(Requesting::default());
        } else {
            self.state = State::OPENING;
        }
        let access = self.socket(core).and_then(|socket| socket.access.as_deref());
        if let Err(reason) = admits(access, self.client.ip()) {
            self.finish(core, reason, true);
        }
    }

    pub fn on(&mut self, core: &mut Core, event: Event, bytes: &[u8]) {
        if let Event::Peeked { .. } = event {
            self.peeking = false;
        }
        match (&mut self.state, event) {
            (State::Closing, _) => {}
            (State::AwaitingProxyHeader(_), _) => self.heading_event(core, event, bytes),
            (State::Relaying(_), Event::Ready { .. }) => self.relay_ready(core, event),
            (State::Relaying(_), Event::Moved { from, read, sent, held, stop }) => {
                self.moved(core, from, (read, sent, held), stop);
            }
            (State::Relaying(_), Event::Unacked { side, bytes }) => {
                self.unacked(core, side, bytes);
            }
            (State::Securing(_), Event::Ready { side: Side::Endpoint, .. }) => {
                self.tls_ready(core, event);
            }
            (
                State::SendingProxyHeader(_),
                Event::Ready { side: Side::Endpoint, .. } | Event::Given { to: Side::Endpoint, .. },
            ) => self.introducing_event(core, event, bytes),
            (
                State::Requesting(_),
                Event::Peeked { .. } | Event::Taken { .. } | Event::Given { .. },
            )
            | (
                State::Asking(_),
                Event::Taken { from: Side::Endpoint, .. } | Event::Given { to: Side::Endpoint, .. },
            ) => self.starttls_event(core, event, bytes),
            (State::Asking(_), Event::Ready { side: Side::Endpoint, .. }) => {
                self.asking_ready(core, event);
            }
            // An event of an endpoint that was given up.
            (
                State::Connecting(_),
                Event::Taken { from: Side::Endpoint, .. } | Event::Given { to: Side::Endpoint, .. },
            ) => {}
            (_, Event::Taken { .. } | Event::Given { .. }) => self.tls_event(core, event, bytes),
            (_, Event::Ready { side: Side::Client, .. }) => self.client_ready(core, event),
            (State::Opening { .. }, Event::Peeked { start, len, end }) => {
                let start = start as usize;
                self.hello(core, &bytes[start..start + len as usize], end);
            }
            (State::Waiting(_) | State::Delayed, Event::Peeked { len: 0, end: true, .. }) => {
                self.gives_up(core);
            }
            (State::Connecting(_), Event::Connected) => self.connected(core),
            (State::Connecting(_), Event::ConnectFailed { why }) => self.connect_failed(core, why),
            // News of the endpoint before `Connected`, or of an attempt that is over.
            (_, _) => {}
        }
    }

    /// Handles news of the client while there is no relay.
    pub fn client_ready(&mut self, core: &mut Core, event: Event) {
        let Event::Ready { readable, writable, ending, failed, .. } = event else { return };
        self.client_readable |= readable;
        self.client_ending |= ending;
        if failed {
            return self.finish(core, CloseReason::ClientGone, true);
        }
        if self.tls.is_some() {
            self.tls_ready(core, event);
        }
        match self.peeks().filter(|_| readable || ending) {
            Some(_) => self.peek(core),
            None => self.requesting_ready(core, readable || ending, writable),
        }
    }

    /// How many bytes to peek at, if any.
    pub fn peeks(&self) -> Option<u32> {
        match &self.state {
            State::AwaitingProxyHeader(heading) => heading.peeks(),
            State::Opening { asked, .. } => Some(*asked),
            State::Requesting(requesting) => requesting.peeks(),
            // A client that has left has no unread byte. With TLS the relay reads the bytes.
            State::Waiting(_) | State::Delayed if self.client_ending && self.tls.is_none() => {
                Some(1)
            }
            _ => None,
        }
    }

    /// Peeks at the client's bytes: now, or when there is room in memory.
    pub fn peek(&mut self, core: &mut Core) {
        if std::mem::replace(&mut self.peeking, true) {
            return;
        }
        if core.postponed.is_empty() && core.has_room() {
            self.peek_now(core);
        } else {
            core.postponed.push_back((self.token, Side::Client, Postponed::Peek));
        }
    }

    pub fn peek_now(&mut self, core: &mut Core) {
        match self.peeks() {
            Some(at_least) => {
                core.takes += 1;
                core.push(self.token, Op::Peek { at_least });
            }
            None => self.peeking = false,
        }
    }

    /// Acts on a deadline of this session that may be due.
    pub fn expire(&mut self, core: &mut Core) {
        if self.is_shared() {
            return self.postpone(core);
        }
        if self.next_look().is_some_and(|at| at <= core.now) {
            self.look(core);
        }
        // What this turn would still move would be missing in the log of a session that ends in it.
        if self.held.wakes(core.now) && !self.ends_now(core.now) {
            self.pump(core);
        }
        let Some((due, reason)) = self.deadline() else { return self.arm(core) };
        if due > core.now {
            return self.arm(core);
        }
        if reason == CloseReason::HelloTimeout
            && self.is_silent()
            && let Some(fallback) = self.socket(core).and_then(|socket| socket.silent)
        {
            return self.fall_back(core, fallback);
        }
        match (&mut self.state, reason) {
            // Bytes have come, and wait for their turn, so the session is not silent.
            (State::Relaying(relay), CloseReason::IdleTimeout | CloseReason::HalfCloseTimeout)
                if relay.has_work() =>
            {
                if self.held.next().is_some() {
                    // Otherwise the timer would fire again and again until a limit allows more.
                    self.last_byte = core.now;
                }
                self.arm(core)
            }
            // The last bytes wait for a limit, so nobody has stalled.
            (
                State::Relaying(Relay { ending: Some(ending), .. }),
                CloseReason::ClientStalled | CloseReason::EndpointStalled,
            ) if self.held.next().is_some() => {
                ending.progress = core.now;
                self.arm(core);
            }
            (State::Connecting(connecting), CloseReason::ConnectTimeout) => {
                connecting.given_up = Some(reason);
                core.push(self.token, Op::Abandon);
                self.arm(core);
            }
            (State::SendingProxyHeader(_), CloseReason::ConnectTimeout) => {
                let detail = Detail::from("connected, and the PROXY header was not taken");
                self.endpoint_failed(core, reason.because(detail));
            }
            (State::Asking(_), CloseReason::ConnectTimeout) => {
                let detail = Detail::from("connected, and no answer to SSLRequest");
                self.endpoint_failed(core, reason.because(detail));
            }
            (State::Securing(_), CloseReason::ConnectTimeout) => {
                let detail = Detail::from("connected, and the TLS handshake was not over");
                self.endpoint_failed(core, reason.because(detail));
            }
            (_, CloseReason::IdleTimeout | CloseReason::HalfCloseTimeout) => {
                self.finish(core, reason, false);
            }
            (_, CloseReason::MaxLifetime) => self.close(core, reason),
            _ => self.finish(core, reason, true),
        }
    }

    /// Whether a deadline is over that holds whether or not bytes wait.
    fn ends_now(&self, now: u64) -> bool {
        use CloseReason::{HalfCloseTimeout, IdleTimeout};
        let due = self.deadline().filter(|(due, _)| *due <= now);
        due.is_some_and(|(_, reason)| !matches!(reason, IdleTimeout | HalfCloseTimeout))
    }

    pub fn last_byte(&self) -> u64 {
        self.last_byte
    }

    /// The first deadline in microseconds, and the reason that the session then ends for.
    pub fn deadline(&self) -> Option<(u64, CloseReason)> {
        let after = |since: u64, timeout: u32, reason| {
            (timeout > 0).then(|| (since + micros(timeout), reason))
        };
        let timeouts = &self.timeouts;
        let lifetime = after(self.opened, timeouts.lifetime, CloseReason::MaxLifetime);
        let specific = match &self.state {
            State::AwaitingProxyHeader(_) => {
                after(self.opened, timeouts.hello, CloseReason::ProxyTimeout)
            }
            State::Opening { .. } | State::Requesting(_) => {
                after(self.opened, timeouts.hello, CloseReason::HelloTimeout)
            }
            State::Greeting => after(self.opened, timeouts.hello, CloseReason::HandshakeTimeout),
            State::Waiting(line) => after(line.since, line.timeout, CloseReason::QueueTimeout),
            // As long as in the accept queue.
            State::Delayed => None,
            State::Connecting(connecting) if connecting.given_up.is_some() => None,
            State::Connecting(connecting) => {
                after(connecting.started, connecting.timeout, CloseReason::ConnectTimeout)
            }
            State::SendingProxyHeader(SendingProxyHeader { connecting, .. })
            | State::Asking(Asking { connecting, .. })
            | State::Securing(connecting) => {
                // Without a timeout, the kernel gives a connection up, but never a silent endpoint.
                let timeout = match connecting.timeout {
                    0 => SILENCE,
                    timeout => timeout,
                };
                after(connecting.started, timeout, CloseReason::ConnectTimeout)
            }
            State::Relaying(Relay { ending: Some(ending), .. }) => {
                let endpoint = Side::Endpoint as usize;
                let reason = match !ending.gone[endpoint] && ending.unacked[endpoint] > 0 {
                    true => CloseReason::EndpointStalled,
                    false => CloseReason::ClientStalled,
                };
                let stalled = after(ending.progress, timeouts.write_stall, reason);
                let idle = after(self.last_byte, timeouts.idle, CloseReason::IdleTimeout);
                [stalled, idle].into_iter().flatten().min_by_key(|(due, _)| *due)
            }
            State::Relaying(relay) => {
                let stalled = |half: &Half, reason| {
                    half.stalled_since()
                        .and_then(|since| after(since, timeouts.write_stall, reason))
                };
                let half_closed = relay.first_end.and_then(|_| {
                    after(self.last_byte, timeouts.half_close, CloseReason::HalfCloseTimeout)
                });
                [
                    stalled(&relay.up, CloseReason::EndpointStalled),
                    stalled(&relay.down, CloseReason::ClientStalled),
                    half_closed,
                    after(self.last_byte, timeouts.idle, CloseReason::IdleTimeout),
                ]
                .into_iter()
                .flatten()
                .min_by_key(|(due, _)| *due)
            }
            State::Closing => return None,
        };
        [specific, lifetime].into_iter().flatten().min_by_key(|(due, _)| *due)
    }

    /// Makes sure that the timer fires no later than the first deadline. A timer that fires too
    /// early finds no deadline due and is set again, so the relay need not touch the timer for each
    /// byte.
    pub fn arm(&self, core: &mut Core) {
        let deadline = self.deadline().map(|(due, _)| due);
        let next = [deadline, self.next_look(), self.held.next()];
        if let Some(due) = next.into_iter().flatten().min() {
            let due = due.div_ceil(1_000);
            if due < core.timers.when(self.token.slot) {
                core.timers.set(self.token.slot, due);
            }
        }
    }

    /// Carries out a step that waited for room in memory.
    pub fn postponed(&mut self, core: &mut Core, side: Side, what: Postponed) {
        if let Postponed::Peek = what {
            self.peek_now(core);
        } else if let Some(tls) = &mut self.tls
            && !matches!(self.state, State::Closing)
        {
            tls.turn(core, self.token, side, what);
        }
    }
}
