//! One TCP connection's life: Opening -> Connecting -> Relaying -> Closing. What may come before a
//! ClientHello, and before an endpoint's first byte, is in `proxied.rs` (PROXY headers) and
//! `starttls.rs`.
//!
//! A session copies the few values it needs from the table when it opens, so no later table touches
//! it. It is closed when nothing is in flight: `finish` asks for that, and `Closed` frees the slot.

mod proxied;
mod starttls;

use std::net::{IpAddr, SocketAddr};

use config_sync::table::ranges::Access;
use config_sync::table::routing::{
    BackendId, EndpointId, Hosts, ListenerId, OnTruncation, Protocol, RouteId, SendProxy, Socket,
    SocketId, Timeouts,
};

use proxied::{Heading, Introduction, Proxied};

use super::cause::{Cause, Detail};
use super::client_hello::{self, Hello};
use super::counters::Counters;
use super::op::{Event, Kind, Mode, Op, Side, Stop, Token, Why};
use super::record::{CloseReason, Record, SessionRecord};
use super::relay::{Half, Next};
use super::slab::NONE;
use super::terminated::{Outcome, Postponed, Terminated};
use super::{Core, micros};
use starttls::{Ask, Asking, Requesting};

#[derive(Debug)]
pub struct Session {
    token: Token,
    state: State,
    /// What `Ready` said of the client before there was an endpoint.
    client_readable: bool,
    client_ending: bool,
    /// A `Peek` is under way, or waits for its turn.
    peeking: bool,
    socket: SocketId,
    protocol: Protocol,
    listener: Option<ListenerId>,
    entry: Entry,
    route: Option<RouteId>,
    backend: Option<BackendId>,
    /// The last endpoint tried.
    endpoint: Option<EndpointId>,
    /// It counts this session as one of its own.
    counted: bool,
    ask: Ask,
    /// The configuration leaves their congestion control to the kernel: client and endpoint.
    free: (bool, bool),
    client: SocketAddr,
    local: SocketAddr,
    server_name: Option<Box<str>>,
    timeouts: Timeouts,
    on_truncation: OnTruncation,
    opened: u64,
    /// When a byte last went either way.
    last_byte: u64,
    connect_micros: Option<u32>,
    /// One side or both speak TLS with the gateway.
    tls: Option<Box<Terminated>>,
    /// The header that an endpoint is sent first.
    send_proxy: Option<SendProxy>,
    proxied: Option<Box<Proxied>>,
    /// What there is to say of an endpoint that was given up, or of a side that has failed.
    detail: Option<Box<Detail>>,
}

/// What the client sends before it is known where to.
#[derive(Clone, Copy, Debug)]
pub struct First {
    /// A PROXY header.
    pub header: bool,
    /// Behind that, what asks for TLS.
    pub request: bool,
    /// Behind that, a ClientHello.
    pub hello: bool,
}

/// How the listener's `max_sessions` counts a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// Not: it was not let in.
    None,
    Full,
    /// One side has ended, so a client that comes back has a place. Who only half-closes could
    /// have any number of places then: of these there may be as many again, or [`ENDING`].
    Ending,
}

/// A client may come back faster than an endpoint closes.
const ENDING: u32 = 64;

#[derive(Debug)]
enum State {
    /// The PROXY header is awaited.
    Heading(Heading),
    /// The ClientHello is awaited; so many bytes were asked for.
    Opening {
        asked: u32,
    },
    /// The client's request for TLS is awaited, or being answered.
    Requesting(Requesting),
    /// The TLS handshake with the client is under way.
    Greeting,
    Connecting(Connecting),
    /// The endpoint is connected, and is being sent a PROXY header.
    Introducing(Introduction),
    /// The endpoint is connected, and is asked for TLS.
    Asking(Asking),
    /// The endpoint is connected, and the TLS handshake with it is under way.
    Securing(Connecting),
    Relaying(Relay),
    /// The ring was told to close; `Closed` is awaited, and nothing else matters.
    Closing,
}

#[derive(Clone, Copy, Debug)]
struct Connecting {
    started: u64,
    timeout: u32,
    attempts_left: u8,
    /// The attempt was given up for this reason; its `ConnectFailed` is awaited.
    given_up: Option<CloseReason>,
    /// Endpoints that this client need not be sent to again.
    tried: [EndpointId; MAX_TRIED],
    tried_count: u8,
}

/// How long an endpoint that is connected may take for what comes before the relay where
/// `connect_timeout` is off: milliseconds, its default.
const SILENCE: u32 = 5_000;

/// `connect_attempts` is at most 8: the last failure needs no remembering.
const MAX_TRIED: usize = 7;

#[derive(Debug)]
struct Relay {
    up: Half,
    down: Half,
    /// Who ended first.
    first_end: Option<Side>,
    /// Sides whose pacing has not been looked at, and may be changed: client and endpoint.
    paced: (bool, bool),
    /// The session is over; what was sent before is being delivered.
    ending: Option<Box<Ending>>,
    /// `Ready` has said that a side failed: no end may look clean any more.
    broken: bool,
}

/// A session that will be reset once all that its sides sent in good order has reached the other.
#[derive(Debug)]
struct Ending {
    cause: Cause,
    /// By side: its connection has failed, so it takes nothing more.
    gone: [bool; 2],
    /// By side: what it has not acknowledged, by the last look...
    unacked: [u32; 2],
    /// ...which is under way.
    looking: [bool; 2],
    /// When the next look is due, and how long after it another; microseconds.
    next: u64,
    pause: u64,
    /// When a side last took something.
    progress: u64,
}

/// Pauses between looks at what a side has not acknowledged, microseconds: each twice the one
/// before, up to the longest.
const FIRST_LOOK: u64 = 1_000;
const LAST_LOOK: u64 = 100_000;

/// A session in which a byte went either way within this time is taken for one in the middle of a
/// transfer, microseconds.
const MOVING: u64 = 5_000_000;

impl Ending {
    fn new(cause: Cause, now: u64) -> Self {
        Self {
            cause,
            gone: [false; 2],
            unacked: [0; 2],
            looking: [false; 2],
            next: u64::MAX,
            pause: FIRST_LOOK,
            progress: now,
        }
    }

    /// Sides that can still be given something.
    fn left(&self) -> impl Iterator<Item = Side> + use<> {
        let gone = self.gone;
        [Side::Client, Side::Endpoint].into_iter().filter(move |side| !gone[*side as usize])
    }
}

impl Connecting {
    fn new(attempts: u8) -> Self {
        Self {
            started: 0,
            timeout: 0,
            attempts_left: attempts,
            given_up: None,
            tried: [EndpointId(u32::MAX); MAX_TRIED],
            tried_count: 0,
        }
    }
}

impl Relay {
    fn half(&mut self, from: Side) -> &mut Half {
        match from {
            Side::Client => &mut self.up,
            Side::Endpoint => &mut self.down,
        }
    }

    /// Sets the mark of a direction that has become bulk, and sees to its deadline.
    fn mark(&mut self, core: &mut Core, token: Token, from: Side, stop: Stop) {
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
            // It has turned back to copying: without a deadline it must have no mark.
            Stop::Drained if half.mark() > 0 => self.unmark(core, token, from),
            _ if half.mark() > 0 => core.marks.hold(token, from),
            _ => {}
        }
    }

    /// Has the pacing taken off the way of a direction that has become bulk.
    fn unpace(&mut self, core: &mut Core, token: Token, from: Side) {
        let (half, paced) = match from {
            Side::Client => (&self.up, &mut self.paced.1),
            Side::Endpoint => (&self.down, &mut self.paced.0),
        };
        if *paced && half.is_bulk(core.bulk_bytes) {
            *paced = false;
            core.push(token, Op::Unpace { side: from.other() });
        }
    }

    /// A run of this direction's bytes is over: whatever comes next wakes at once.
    fn unmark(&mut self, core: &mut Core, token: Token, from: Side) {
        let half = self.half(from);
        half.end_run();
        if half.mark() > 0 {
            half.set_mark(0);
            core.marks.remove(token, from);
            core.push(token, Op::Mark { from, at_least: 1 });
        }
    }

    /// Bytes are held that nobody will get now, or a side has failed.
    fn is_cut(&self) -> bool {
        self.broken || self.ending.is_some() || self.up.held() > 0 || self.down.held() > 0
    }

    /// Bytes wait for their turn.
    fn has_work(&self) -> bool {
        self.up.has_work() || self.down.has_work()
    }
}

impl Session {
    pub fn new(
        (socket, protocol): (SocketId, Protocol),
        client: SocketAddr,
        local: SocketAddr,
        now: u64,
        timeouts: Timeouts,
    ) -> Self {
        Self {
            // Known once the session has a slot: see `begin`.
            token: Token { kind: Kind::Session, slot: NONE, generation: 0 },
            state: State::Opening { asked: 1 },
            client_readable: false,
            client_ending: false,
            peeking: false,
            socket,
            protocol,
            listener: None,
            entry: Entry::None,
            route: None,
            backend: None,
            endpoint: None,
            counted: false,
            ask: Ask::No,
            free: (false, false),
            client,
            local,
            server_name: None,
            timeouts,
            on_truncation: OnTruncation::Reset,
            opened: now,
            last_byte: now,
            connect_micros: None,
            tls: None,
            send_proxy: None,
            proxied: None,
            detail: None,
        }
    }

    /// Begins: at once where the listener is known, else with what comes first.
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
        if first.header {
            self.state = State::Heading(Heading::new(first));
        } else {
            self.identified(core, first);
        }
        self.arm(core);
    }

    /// The client's address is known. Where listeners share the socket, what they all say of it is
    /// said before the ClientHello.
    fn identified(&mut self, core: &mut Core, first: First) {
        if !first.hello {
            return self.choose(core);
        }
        if first.request {
            self.ask = Ask::ToEncrypt;
            self.state = State::Requesting(Requesting::new());
        } else {
            self.state = State::Opening { asked: 1 };
        }
        let socket = core.tables.of(self.socket).map(|(_, socket)| socket);
        let access = socket.and_then(|socket| socket.access.as_deref());
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
            (State::Heading(_), _) => self.heading_event(core, event, bytes),
            (State::Relaying(relay), Event::Ready { side, readable, writable, ending, failed }) => {
                relay.broken |= failed;
                if readable || ending || failed {
                    relay.half(side).source_ready(ending || failed);
                }
                if ending || failed {
                    make_room(core, self.listener, &mut self.entry);
                }
                if writable {
                    relay.half(side.other()).destination_ready();
                    if let Some(tls) = &mut self.tls {
                        tls.writable(core, self.token, side);
                    }
                }
                if failed && (relay.half(side).is_over() || relay.half(side).blocked()) {
                    // No read would report it: its end was delivered, or it is not being read.
                    self.end(core, failure(side, Why::Reset), Some(side));
                }
                self.pump(core);
            }
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
                State::Introducing(_),
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
            // Of an endpoint that was given up.
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
            (State::Connecting(_), Event::Connected) => self.connected(core),
            (State::Connecting(_), Event::ConnectFailed { why }) => self.connect_failed(core, why),
            // The endpoint's news before `Connected`, or of an attempt that is over.
            (_, _) => {}
        }
    }

    /// News of the client while there is no relay.
    fn client_ready(&mut self, core: &mut Core, event: Event) {
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

    /// How many bytes are to be peeked at, if any.
    fn peeks(&self) -> Option<u32> {
        match &self.state {
            State::Heading(heading) => heading.peeks(),
            State::Opening { asked } => Some(*asked),
            State::Requesting(requesting) => requesting.peeks(),
            _ => None,
        }
    }

    /// Has what the client has sent looked at: now, or once there is room for it in memory.
    fn peek(&mut self, core: &mut Core) {
        if std::mem::replace(&mut self.peeking, true) {
            return;
        }
        if core.postponed.is_empty() && core.has_room() {
            self.peek_now(core);
        } else {
            core.postponed.push_back((self.token, Side::Client, Postponed::Peek));
        }
    }

    fn peek_now(&mut self, core: &mut Core) {
        match self.peeks() {
            Some(at_least) => {
                core.takes += 1;
                core.push(self.token, Op::Peek { at_least });
            }
            None => self.peeking = false,
        }
    }

    /// A deadline of this session may be due.
    pub fn expire(&mut self, core: &mut Core) {
        if self.next_look().is_some_and(|at| at <= core.now) {
            self.look(core);
        }
        let Some((due, reason)) = self.deadline() else { return self.arm(core) };
        if due > core.now {
            return self.arm(core);
        }
        match (&mut self.state, reason) {
            // Bytes have come, and wait for their turn: this is no silence.
            (State::Relaying(relay), CloseReason::IdleTimeout | CloseReason::HalfCloseTimeout)
                if relay.has_work() =>
            {
                self.arm(core)
            }
            (State::Connecting(connecting), CloseReason::ConnectTimeout) => {
                connecting.given_up = Some(reason);
                core.push(self.token, Op::Abandon);
                self.arm(core);
            }
            (State::Introducing(_), CloseReason::ConnectTimeout) => {
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

    /// Closes at once. Both sides get clean ends only where nothing was on its way for a while:
    /// whoever reads to the end would else take a part for the whole.
    pub fn close(&mut self, core: &mut Core, reason: CloseReason) {
        let reset = match &self.state {
            State::Relaying(relay) => {
                let silent = core.now - self.last_byte >= MOVING;
                relay.has_work() || (relay.up.bytes + relay.down.bytes > 0 && !silent)
            }
            _ => true,
        };
        self.finish(core, reason, reset);
    }

    /// A direction's turn has come again after its budget ran out.
    pub fn resume(&mut self, core: &mut Core, from: Side) {
        if let State::Relaying(relay) = &mut self.state
            && let Some(op) = relay.half(from).resume(core.turn_bytes)
        {
            self.move_bytes(core, op);
        }
    }

    /// Less than its mark has come for too long: the run is over, and what there is wakes.
    pub fn mark_due(&mut self, core: &mut Core, from: Side) {
        if let State::Relaying(relay) = &mut self.state {
            relay.unmark(core, self.token, from);
        }
    }

    pub fn last_byte(&self) -> u64 {
        self.last_byte
    }

    /// The first deadline, in microseconds, and what it means.
    fn deadline(&self) -> Option<(u64, CloseReason)> {
        let after = |since: u64, timeout: u32, reason| {
            (timeout > 0).then(|| (since + micros(timeout), reason))
        };
        let timeouts = &self.timeouts;
        let lifetime = after(self.opened, timeouts.lifetime, CloseReason::MaxLifetime);
        let specific = match &self.state {
            State::Heading(_) => after(self.opened, timeouts.hello, CloseReason::ProxyTimeout),
            State::Opening { .. } | State::Requesting(_) => {
                after(self.opened, timeouts.hello, CloseReason::HelloTimeout)
            }
            State::Greeting => after(self.opened, timeouts.hello, CloseReason::HandshakeTimeout),
            State::Connecting(connecting) if connecting.given_up.is_some() => None,
            State::Connecting(connecting) => {
                after(connecting.started, connecting.timeout, CloseReason::ConnectTimeout)
            }
            State::Introducing(Introduction { connecting, .. })
            | State::Asking(Asking { connecting, .. })
            | State::Securing(connecting) => {
                // Without a timeout the kernel gives a connection up, but never a silent endpoint.
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

    /// Makes sure that the timer fires no later than the first deadline. One that fires too early
    /// finds nothing due and is set again: so bytes need not touch the timer.
    fn arm(&self, core: &mut Core) {
        let deadline = self.deadline().map(|(due, _)| due);
        if let Some(due) = [deadline, self.next_look()].into_iter().flatten().min() {
            let due = due.div_ceil(1_000);
            if due < core.timers.when(self.token.slot) {
                core.timers.set(self.token.slot, due);
            }
        }
    }

    fn hello(&mut self, core: &mut Core, bytes: &[u8], end: bool) {
        if end && bytes.is_empty() {
            return self.finish(core, CloseReason::ClientGone, true);
        }
        match client_hello::read(bytes, end) {
            Hello::NeedMore { at_least } => {
                let State::Opening { asked } = &mut self.state else { return };
                let at_least = u32::try_from(at_least).unwrap_or(u32::MAX);
                // Fewer bytes than were asked for: the ring has set its mark, a `Ready` will come.
                if at_least > *asked {
                    *asked = at_least;
                    self.peek(core);
                }
            }
            Hello::Known(hello) => {
                self.server_name = hello.server_name.map(|name| name.as_str().into());
                self.client_readable = true;
                self.choose(core);
                self.arm(core);
            }
            Hello::Invalid(why) => {
                let detail = Detail::from(client_hello::stranger(bytes).unwrap_or(why));
                self.finish(core, CloseReason::HelloInvalid.because(detail), true);
            }
            Hello::TooLarge => self.finish(core, CloseReason::HelloTooLarge, true),
        }
    }

    /// Listener, route, backend and endpoint; then connects.
    fn choose(&mut self, core: &mut Core) {
        if let Err(cause) = self.try_choose(core) {
            self.finish(core, cause, true);
        }
    }

    fn try_choose(&mut self, core: &mut Core) -> Result<(), Cause> {
        // Its socket may be gone since, and the id another's by now, if the hello took its time.
        let here = |socket: &Socket| {
            let (bound, local) = (socket.address, self.local);
            bound.port() == local.port()
                && (bound.ip().is_unspecified() || bound.ip() == local.ip())
        };
        let of = core.tables.of(self.socket).filter(|(_, socket)| here(socket));
        let (table, socket) = of.ok_or(CloseReason::NoRoute)?;
        self.free.0 = socket.options.congestion == [0; 16];
        // Only a request to cancel is routed before there was a hello.
        let cancels = matches!(self.state, State::Requesting(_));
        let unknown =
            if cancels { CloseReason::StarttlsCancel } else { CloseReason::UnknownServerName };
        let name = self.server_name.as_deref().or(socket.default_hostname.as_deref());
        // It has no name; but there may be only one place to go.
        let meant =
            |hosts: &Hosts<usize>| hosts.get(name).or_else(|| hosts.only().filter(|_| cancels));
        let listener = meant(&socket.listeners).ok_or(unknown)?;
        let listener = &table.listeners[listener];
        self.timeouts = listener.timeouts;
        self.on_truncation = listener.on_truncation;
        give_to(&mut self.listener, listener.id, &core.counters);
        self.entry = Entry::Full;
        core.active[listener.id.index()] += 1;
        let client = self.client.ip();
        admits(listener.access.as_deref(), client)?;
        let (most, full) = (listener.max_sessions, core.active[listener.id.index()]);
        let all = full + core.ending[listener.id.index()];
        if most > 0 && (full > most || all > most.saturating_add(most.max(ENDING))) {
            return Err(CloseReason::ListenerLimit.into());
        }
        let found = meant(&listener.routes).ok_or(match listener.protocol {
            Protocol::Tls => unknown,
            Protocol::Tcp | Protocol::Udp => CloseReason::NoRoute,
        })?;
        let route = listener.route(found, client).ok_or(CloseReason::NoRoute)?;
        let route = &table.routes[route];
        self.route = Some(route.id);
        admits(route.access.as_deref(), client)?;
        let backend = core.balancer.backend(route).ok_or(CloseReason::NoBackend)?;
        let backend = &table.backends[backend];
        self.backend = Some(backend.id);
        let attempts_left = backend.connect_attempts;
        if cancels && listener.tls.as_ref().is_some_and(|tls| tls.client_auth) {
            return Err(CloseReason::StarttlsCancel.into());
        }
        if let Some(terminator) = listener.tls.as_ref().filter(|_| !cancels) {
            if !terminator.certificates.has(name) {
                return Err(CloseReason::NoCertificate.into());
            }
            let tls = Terminated::client(core, terminator, self.on_truncation)?;
            self.greet(core, tls);
            return Ok(());
        }
        self.connect(core, Connecting::new(attempts_left))
    }

    /// Connects to an endpoint of the backend as it stands now: in the table in force, or, where
    /// that has it no more, in the one that the listening socket left with.
    fn connect(&mut self, core: &mut Core, mut state: Connecting) -> Result<(), Cause> {
        let backend = self.backend.and_then(|id| core.tables.backend(self.socket, id));
        let backend = backend.ok_or(CloseReason::NoEndpoint)?;
        let tried = &state.tried[..usize::from(state.tried_count)];
        let endpoint = core.balancer.session_endpoint(backend, self.client, tried, core.now);
        let endpoint = endpoint.ok_or(match state.tried_count {
            0 => CloseReason::NoEndpoint,
            _ => CloseReason::ConnectFailed,
        })?;
        if let Some(originator) = &backend.tls {
            let plain = || Box::new(Terminated::plain(self.on_truncation));
            let tls = self.tls.get_or_insert_with(plain);
            tls.originate(core, originator)?;
        }
        let source = core.balancer.origin(backend, endpoint.address, self.client);
        let options = backend.options;
        self.free.1 = options.congestion == [0; 16];
        self.send_proxy = backend.send_proxy;
        state.timeout = backend.connect_timeout;
        state.started = core.now;
        state.attempts_left -= 1;
        self.endpoint = Some(endpoint.id);
        self.counted = true;
        self.state = State::Connecting(state);
        core.balancer.opened(endpoint.id);
        core.push(self.token, Op::Connect { address: endpoint.address, source, options });
        Ok(())
    }

    fn connect_failed(&mut self, core: &mut Core, why: Why) {
        let State::Connecting(mut next) = self.state else { return };
        let given_up = next.given_up.take();
        let detail = match why {
            Why::Abandoned => self.detail.take().map(|detail| *detail),
            why => Some(Detail::why(why)),
        };
        let reason = match why {
            Why::Abandoned => given_up.unwrap_or(CloseReason::ConnectTimeout),
            Why::TimedOut => CloseReason::ConnectTimeout,
            Why::NoPorts | Why::NoFiles | Why::NoMemory => CloseReason::LocalLimit,
            _ => CloseReason::ConnectFailed,
        };
        if let Some(endpoint) = self.endpoint {
            self.counted = false;
            core.balancer.closed(endpoint);
            core.counters.endpoint(endpoint).connect_failures.add(1);
            if reason != CloseReason::LocalLimit {
                core.balancer.failed(endpoint, core.now);
            }
            if let Some(place) = next.tried.get_mut(usize::from(next.tried_count)) {
                *place = endpoint;
                next.tried_count += 1;
            }
        }
        if next.attempts_left == 0 || reason == CloseReason::LocalLimit {
            return self.finish(core, reason.because(detail), true);
        }
        match self.connect(core, next) {
            Ok(()) => self.arm(core),
            // No endpoint is left to try: the last one's reason stands.
            Err(Cause { reason: CloseReason::ConnectFailed, .. }) => {
                self.finish(core, reason.because(detail), true);
            }
            Err(cause) => self.finish(core, cause, true),
        }
    }

    fn connected(&mut self, core: &mut Core) {
        let State::Connecting(connecting) = self.state else {
            unreachable!("only called while connecting")
        };
        if connecting.given_up.is_some() {
            // `Abandon` crossed with success; its `ConnectFailed` comes.
            return;
        }
        match self.send_proxy {
            Some(how) => self.introduce(core, connecting, how),
            None => self.speak(core, connecting),
        }
    }

    /// The endpoint is there, for what the client says or for TLS, which may have to be asked for.
    fn speak(&mut self, core: &mut Core, connecting: Connecting) {
        if self.asks() {
            return self.ask(core, connecting);
        }
        self.proceed(core, connecting);
    }

    /// The endpoint is connected, and ready for TLS if that was to be asked for.
    fn proceed(&mut self, core: &mut Core, connecting: Connecting) {
        if self.tls.as_ref().is_some_and(|tls| tls.greets(Side::Endpoint)) {
            return self.secure(core, connecting);
        }
        self.relay(core, connecting);
    }

    fn relay(&mut self, core: &mut Core, connecting: Connecting) {
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
        if self.client_readable || self.client_ending {
            up.source_ready(self.client_ending);
        }
        let mut down = Half::new(Side::Endpoint);
        if self.tls.is_some() {
            // What came behind a handshake may be here already.
            up.source_ready(self.client_ending);
            down.source_ready(false);
        }
        if self.client_ending {
            make_room(core, self.listener, &mut self.entry);
        }
        self.state = State::Relaying(Relay {
            up,
            down,
            first_end: None,
            paced: self.free,
            ending: None,
            broken: false,
        });
        if core.tables.current().log_opens {
            let record = self.record(core, None);
            core.records.push(Record::Opened(record));
        }
        self.arm(core);
        self.pump(core);
    }

    /// The endpoint is connected, and no relay can come of it. Nothing of the client's was sent to
    /// it, so its connection is given up like an attempt, and another endpoint is tried.
    fn endpoint_failed(&mut self, core: &mut Core, cause: Cause) {
        let mut connecting = match &self.state {
            State::Introducing(Introduction { connecting, .. })
            | State::Asking(Asking { connecting, .. })
            | State::Securing(connecting) => *connecting,
            _ => return,
        };
        connecting.given_up = Some(cause.reason);
        self.detail = cause.detail.map(Box::new);
        self.state = State::Connecting(connecting);
        if let Some(tls) = &mut self.tls {
            tls.give_up(core, self.token);
        }
        core.push(self.token, Op::Abandon);
    }

    /// Gives each direction that has a reason for it its `Move`.
    fn pump(&mut self, core: &mut Core) {
        let State::Relaying(relay) = &mut self.state else { return };
        if self.tls.is_some() {
            return self.tls_pump(core);
        }
        for (half, from) in [(&mut relay.up, Side::Client), (&mut relay.down, Side::Endpoint)] {
            match half.start(core.turn_bytes) {
                None => {}
                // Behind whatever small there is to move: it takes the longest, and minds least.
                Some(Op::Move { mode: Mode::Splice, .. }) => {
                    core.resumable.push_back((self.token, from));
                }
                Some(op) => core.push(self.token, op),
            }
        }
    }

    fn moved(&mut self, core: &mut Core, from: Side, bytes: (u32, u32, u32), stop: Stop) {
        let State::Relaying(relay) = &mut self.state else { return };
        let (read, sent, held) = bytes;
        if read > 0 || sent > 0 {
            self.last_byte = core.now;
            relay.unmark(core, self.token, from.other());
        }
        count_bytes(core, self.listener, self.endpoint, from, u64::from(sent));
        let next = relay.half(from).moved(core.now, read, sent, held, stop);
        relay.unpace(core, self.token, from);
        if self.tls.is_none() {
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
                // There is no more, and no end of it that looks clean.
                half.die();
                return self.deliver(core);
            }
        }
        match next {
            Next::Wait => {}
            Next::Again => {}
            // The ring can't read TLS.
            Next::Stream if self.tls.is_some() => {}
            Next::Stream => {
                // What is blocked waits for the poll that a stream does without, and a `Move` that
                // is under way may be.
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
            Next::Later => core.resumable.push_back((self.token, from)),
            Next::Ended => {
                make_room(core, self.listener, &mut self.entry);
                // Its own FIN does not come late: `half_close_timeout` counts from here.
                self.last_byte = core.now;
                relay.first_end.get_or_insert(from);
                core.push(self.token, Op::Shutdown { side: from.other() });
                if relay.up.ended() && relay.down.ended() {
                    let fin = match relay.first_end {
                        Some(Side::Client) => CloseReason::ClientFin,
                        _ => CloseReason::EndpointFin,
                    };
                    let truncated = self.tls.as_ref().and_then(|tls| tls.truncated());
                    return self.finish(core, truncated.unwrap_or(fin), false);
                }
            }
        }
        if next != Next::Wait || stop == Stop::Blocked {
            self.arm(core);
        }
        self.pump(core);
    }

    /// One side is broken. What it sent before that is still read and delivered: an answer that
    /// came just before a reset (the endpoint did not care for the rest of the request) is worth
    /// something to its reader.
    fn failed(&mut self, core: &mut Core, from: Side, side: Side, why: Why) {
        let State::Relaying(relay) = &mut self.state else { return };
        let half = relay.half(from);
        if side == from && half.held() == 0 {
            half.die();
        }
        self.end(core, failure(side, why), Some(side));
    }

    /// The session is over, but not before all that was sent in good order is where it was sent to.
    /// `gone`: a side that takes nothing more. The first cause counts.
    fn end(&mut self, core: &mut Core, cause: Cause, gone: Option<Side>) {
        let State::Relaying(relay) = &mut self.state else { return };
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

    /// Goes on with the end of a session: once sockets were given all there is, looks whether it
    /// has arrived. A reset would overtake what has not.
    fn deliver(&mut self, core: &mut Core) {
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

    /// Asks what has not been acknowledged, unless that is under way.
    fn look(&mut self, core: &mut Core) {
        let State::Relaying(relay) = &mut self.state else { return };
        let Some(ending) = &mut relay.ending else { return };
        ending.next = u64::MAX;
        for side in ending.left() {
            if !std::mem::replace(&mut ending.looking[side as usize], true) {
                core.push(self.token, Op::Unacked { side });
            }
        }
    }

    fn unacked(&mut self, core: &mut Core, side: Side, bytes: u32) {
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

    /// When the next look at what has not been acknowledged is due.
    fn next_look(&self) -> Option<u64> {
        let State::Relaying(Relay { ending: Some(ending), .. }) = &self.state else { return None };
        (ending.next < u64::MAX).then_some(ending.next)
    }

    /// Begins the TLS handshake with the client. Who serves it is known, and is connected to once
    /// it is over.
    fn greet(&mut self, core: &mut Core, tls: Terminated) {
        self.state = State::Greeting;
        let tls = self.tls.insert(Box::new(tls));
        let outcome = tls.greet(core, self.token, Side::Client);
        self.tls_outcome(core, outcome);
    }

    /// Begins the TLS handshake with the endpoint.
    fn secure(&mut self, core: &mut Core, connecting: Connecting) {
        self.state = State::Securing(connecting);
        self.arm(core);
        if let Some(tls) = &mut self.tls {
            let outcome = tls.greet(core, self.token, Side::Endpoint);
            self.tls_outcome(core, outcome);
        }
    }

    fn greeted(&mut self, core: &mut Core) {
        if let State::Securing(connecting) = self.state {
            return self.relay(core, connecting);
        }
        let backend = self.backend.and_then(|id| core.tables.backend(self.socket, id));
        let connecting = backend.map(|backend| Connecting::new(backend.connect_attempts));
        let connecting = connecting.ok_or_else(|| Cause::from(CloseReason::NoEndpoint));
        match connecting.and_then(|connecting| self.connect(core, connecting)) {
            Ok(()) => self.arm(core),
            Err(cause) => self.finish(core, cause, true),
        }
    }

    /// News of a side during its handshake, or while there is no relay yet.
    fn tls_ready(&mut self, core: &mut Core, event: Event) {
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

    fn tls_event(&mut self, core: &mut Core, event: Event, bytes: &[u8]) {
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

    fn tls_outcome(&mut self, core: &mut Core, outcome: Outcome) {
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
            // The alert that says why must reach the client, and a reset would overtake it.
            (State::Greeting, Outcome::Failed(cause)) => self.finish(core, cause, false),
            (State::Securing(_), Outcome::Failed(cause)) => self.endpoint_failed(core, cause),
            (_, Outcome::Failed(cause)) => self.finish(core, cause, true),
            (_, Outcome::Truncated { .. } | Outcome::Broken { .. }) => {}
        }
    }

    /// Nothing more comes this way.
    fn tls_over(&mut self, core: &mut Core, from: Side, (read, sent): (u32, u32)) {
        let State::Relaying(relay) = &mut self.state else { return };
        let half = relay.half(from);
        half.moved(core.now, read, sent, 0, Stop::Budget);
        half.die();
        count_bytes(core, self.listener, self.endpoint, from, u64::from(sent));
    }

    fn tls_pump(&mut self, core: &mut Core) {
        for side in [Side::Client, Side::Endpoint] {
            let State::Relaying(relay) = &mut self.state else { return };
            if let Some(op) = relay.half(side).start(core.turn_bytes) {
                self.move_bytes(core, op);
            }
        }
    }

    /// What had to wait for room in memory has its turn.
    pub fn postponed(&mut self, core: &mut Core, side: Side, what: Postponed) {
        if let Postponed::Peek = what {
            self.peek_now(core);
        } else if let Some(tls) = &mut self.tls
            && !matches!(self.state, State::Closing)
        {
            tls.turn(core, self.token, side, what);
        }
    }

    /// Has the ring carry a `Move` out, or does it here if a side speaks TLS.
    fn move_bytes(&mut self, core: &mut Core, op: Op) {
        let Some(tls) = &mut self.tls else { return core.push(self.token, op) };
        let Op::Move { from, budget, to_eof, .. } = op else { return };
        let outcome = tls.begin(core, self.token, from, (budget, to_eof));
        self.tls_outcome(core, outcome);
    }

    /// Accounts for the session, and has the ring close it.
    fn finish(&mut self, core: &mut Core, cause: impl Into<Cause>, reset: bool) {
        let state = std::mem::replace(&mut self.state, State::Closing);
        let mut relay = match state {
            State::Closing => return,
            State::Relaying(relay) => Some(relay),
            State::Heading(_)
            | State::Opening { .. }
            | State::Requesting(_)
            | State::Greeting
            | State::Connecting(_)
            | State::Introducing(_)
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
        // A FIN says that all was delivered.
        let cut = || self.tls.as_ref().is_some_and(|tls| tls.is_cut());
        let reset = reset || relay.as_ref().is_some_and(|relay| relay.is_cut() || cut());
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
            // A FIN sent by close() would wait for the poll's cancellation.
            for (half, side) in [(&relay.up, Side::Endpoint), (&relay.down, Side::Client)] {
                if !half.ended() {
                    // No close_notify: it would be the word of a peer that has not said it.
                    core.push(self.token, Op::Shutdown { side });
                }
            }
        }
        core.push(self.token, Op::Close { reset });
        self.account(core, cause.into(), relay.as_ref());
    }

    fn account(&mut self, core: &mut Core, cause: Cause, relay: Option<&Relay>) {
        let reason = cause.reason;
        if let Some(endpoint) = self.endpoint
            && std::mem::take(&mut self.counted)
        {
            core.balancer.closed(endpoint);
            if relay.is_some() {
                let counters = core.counters.endpoint(endpoint);
                counters.closed.add(1);
                if reason == CloseReason::EndpointReset {
                    counters.resets.add(1);
                }
            }
        }
        let Some(listener) = self.listener else {
            core.counters.unmatched[reason as usize].add(1);
            return self.log(core, cause, None);
        };
        match self.entry {
            Entry::None => {}
            Entry::Full => core.active[listener.index()] -= 1,
            Entry::Ending => core.ending[listener.index()] -= 1,
        }
        let counters = core.counters.listener(listener);
        if relay.is_some() {
            counters.closed[reason as usize].add(1);
            counters.duration.record(core.now - self.opened);
        } else {
            counters.refused[reason as usize].add(1);
        }
        self.log(core, cause, relay);
    }

    fn log(&mut self, core: &mut Core, cause: Cause, relay: Option<&Relay>) {
        let mut record = self.record(core, Some(cause.reason));
        record.detail = cause.detail;
        if let Some(relay) = relay {
            (record.bytes_up, record.bytes_down) = (relay.up.bytes, relay.down.bytes);
        }
        core.log(record);
    }

    fn record(&mut self, core: &Core, reason: Option<CloseReason>) -> SessionRecord {
        SessionRecord {
            listener: self.listener,
            route: self.route,
            backend: self.backend,
            endpoint: self.endpoint,
            server_name: match reason {
                Some(_) => self.server_name.take(),
                None => self.server_name.clone(),
            },
            connect: self.connect_micros,
            refused: reason.is_some() && self.connect_micros.is_none(),
            reason,
            peer: self.proxied.as_ref().and_then(|proxied| proxied.peer),
            unique_id: self.proxied.as_ref().and_then(|proxied| proxied.unique_id),
            ..SessionRecord::new(
                self.protocol,
                self.socket,
                (self.client, self.local),
                self.opened,
                core.now,
            )
        }
    }
}

/// A session has begun to end.
fn make_room(core: &mut Core, listener: Option<ListenerId>, entry: &mut Entry) {
    if let (Some(listener), Entry::Full) = (listener, *entry) {
        *entry = Entry::Ending;
        core.active[listener.index()] -= 1;
        core.ending[listener.index()] += 1;
    }
}

/// A session is this listener's, and is counted so until it ends.
fn give_to(of: &mut Option<ListenerId>, listener: ListenerId, counters: &Counters) {
    let before = of.replace(listener);
    if before != Some(listener) {
        if let Some(before) = before {
            // The address has become another listener's since the session was accepted.
            counters.listener(before).opened.sub(1);
        }
        counters.listener(listener).opened.add(1);
    }
}

fn admits(access: Option<&Access>, client: IpAddr) -> Result<(), CloseReason> {
    match access {
        Some(access) if !access.admits(client) => Err(CloseReason::SourceDenied),
        _ => Ok(()),
    }
}

fn count_bytes(
    core: &Core,
    listener: Option<ListenerId>,
    endpoint: Option<EndpointId>,
    from: Side,
    bytes: u64,
) {
    let (Some(listener), Some(endpoint)) = (listener, endpoint) else { return };
    let (listener, endpoint) = (core.counters.listener(listener), core.counters.endpoint(endpoint));
    match from {
        Side::Client => {
            listener.bytes_up.add(bytes);
            endpoint.bytes_up.add(bytes);
        }
        Side::Endpoint => {
            listener.bytes_down.add(bytes);
            endpoint.bytes_down.add(bytes);
        }
    }
}

fn failure(side: Side, why: Why) -> Cause {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use config_sync::table::routing::Limits;

    use super::super::Proxy;
    use super::super::counters::Counters;
    use super::*;

    /// A direction that has turned back to copying has no deadline, so it may have no mark.
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
        let mut relay = Relay {
            up: Half::new(Side::Client),
            down: Half::new(Side::Endpoint),
            first_end: None,
            paced: (false, true),
            ending: None,
            broken: false,
        };
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
        // A second run: its pacing has been looked at.
        assert!((0..20).any(|_| wake(core, 60_000).is_some()));
        assert_eq!(looked, 1);
    }

    /// With the ring's 96 bytes and the timer's 24: what an idle session costs, promised to be
    /// under 512.
    #[test]
    fn a_session_is_small() {
        assert!(size_of::<Session>() <= 344, "{} bytes", size_of::<Session>());
    }
}
