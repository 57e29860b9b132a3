//! Chooses where a session goes: listener by server name, route, and backend.

use std::net::{IpAddr, SocketAddr};

use config_sync::table::address::UNIX_CLIENT;
use config_sync::table::limit::Limit;
use config_sync::table::ranges::Access;
use config_sync::table::routing::{
    Fallback, Hosts, Listener, ListenerId, Protocol, Socket, SocketId,
};
use config_sync::table::source_limit::OverLimit;

use crate::contract::{Side, Token};
use crate::proxy::cause::Cause;
use crate::proxy::core::{Core, Postponed};
use crate::proxy::delays::Delays;
use crate::proxy::held::{Held, Scope};
use crate::proxy::tcp::accounting::{give_to, lead_by};
use crate::proxy::tcp::state::{Ask, Connecting, Entry, Requesting, Session, State, Step};
use crate::proxy::tcp::tls_relay::TlsRelay;
use crate::stats::detail::Detail;
use crate::stats::records::CloseReason;
use crate::wire::alert::Alert;
use crate::wire::client_hello::{self, Hello, Protocols};

/// What tells where a session goes, beside the listening socket.
pub enum By<'h> {
    /// A ClientHello with these protocols.
    Hello(&'h Protocols),
    /// Nothing else: the listener does not read a ClientHello.
    Socket,
    /// A request to cancel. It has no server name, so it is routed only if there is one place to
    /// go.
    Cancel,
    /// No ClientHello comes. TLS does not end at the gateway then.
    Fallback(Fallback),
}

impl By<'_> {
    /// What stands under the server name.
    pub fn find(&self, hosts: &Hosts<usize>, name: Option<&str>) -> Option<usize> {
        hosts.get(name).or_else(|| hosts.only().filter(|_| matches!(self, By::Cancel)))
    }

    /// The reason to close a session for which this finds nothing.
    pub fn unknown(&self) -> CloseReason {
        match self {
            By::Cancel => CloseReason::StarttlsCancel,
            By::Hello(_) | By::Socket | By::Fallback(_) => CloseReason::UnknownServerName,
        }
    }

    /// The index of the route.
    pub fn route(
        &self,
        listener: &Listener,
        name: Option<&str>,
        client: IpAddr,
    ) -> Result<usize, CloseReason> {
        let found = match (self, &listener.by_alpn) {
            (By::Fallback(fallback), _) => return Ok(fallback.route),
            (By::Hello(offered), Some(by_alpn)) => {
                let unknown = by_alpn
                    .hosts
                    .get(name)
                    .map_or_else(|| self.unknown(), |_| CloseReason::NoRoute);
                let mut found = by_alpn.values(name, offered.iter());
                return found.find_map(|found| listener.route(found, client)).ok_or(unknown);
            }
            // The protocols of the session that is meant are not known.
            (By::Cancel, Some(_)) => None,
            (by, _) => by.find(&listener.routes, name),
        };
        let found = found.ok_or_else(|| match listener.protocol {
            Protocol::Tls => self.unknown(),
            Protocol::Tcp | Protocol::Udp => CloseReason::NoRoute,
        })?;
        listener.route(found, client).ok_or(CloseReason::NoRoute)
    }

    /// Whether a client that came to this local address came to this socket, and in this way.
    fn suits(&self, socket: &Socket, local: SocketAddr) -> bool {
        let bound = socket.address.ip().unwrap_or(UNIX_CLIENT);
        let is_here = bound.ip().is_unspecified() || bound.ip() == local.ip();
        let needs_hello = socket.reads_hello && matches!(self, Self::Socket);
        bound.port() == local.port() && is_here && !needs_hello
    }
}

impl Session {
    pub fn hello(&mut self, core: &mut Core, bytes: &[u8], end: bool) {
        if end && bytes.is_empty() {
            return self.finish(core, CloseReason::ClientGone, true);
        }
        match client_hello::read(bytes, end) {
            Hello::NeedMore { at_least } => {
                let State::Opening { asked, .. } = &mut self.state else { return };
                let at_least = u32::try_from(at_least).unwrap_or(u32::MAX);
                // The client sent fewer bytes than were asked for. The ring has set a mark, so a
                // `Ready` will come.
                if at_least > *asked {
                    *asked = at_least;
                    self.peek(core);
                }
            }
            Hello::Known(hello) => {
                self.server_name = hello.server_name.map(|name| name.as_str().into());
                self.client_readable = true;
                self.greeted = true;
                self.choose(core, &By::Hello(&hello.alpn));
                self.arm(core);
            }
            // A client that has asked for TLS must speak TLS.
            Hello::NotTls(why) if self.ask != Ask::AsAsked => {
                self.without_tls(core, invalid(bytes, why));
            }
            Hello::NotTls(why) => self.finish(core, invalid(bytes, why), true),
            Hello::Invalid { why, at } => {
                let cause = CloseReason::HelloInvalid.because(Detail::malformed(why, at));
                self.finish(core, cause.telling(Alert::DecodeError), true);
            }
            Hello::TooLarge => {
                let cause = Cause::from(CloseReason::HelloTooLarge);
                self.finish(core, cause.telling(Alert::DecodeError), true);
            }
        }
    }

    /// Goes on with a client whose first bytes are not those of a ClientHello. `cause`: the reason
    /// to close the session, if the socket has no backend for such clients.
    pub fn without_tls(&mut self, core: &mut Core, cause: Cause) {
        match self.socket(core).and_then(|socket| socket.not_tls) {
            Some(fallback) => {
                self.client_readable = true;
                self.fall_back(core, fallback);
            }
            None => self.finish(core, cause, true),
        }
    }

    /// The listening socket that the client came to, if the socket is open.
    pub fn socket<'c>(&self, core: &'c Core) -> Option<&'c Socket> {
        core.tables.of(self.socket).map(|(_, socket)| socket)
    }

    /// Whether the client has to send something before it has a destination.
    pub fn is_undecided(&self) -> bool {
        matches!(
            self.state,
            State::AwaitingProxyHeader(_)
                | State::Opening { .. }
                | State::Requesting(_)
                | State::Greeting
        )
    }

    /// Whether the client has sent no byte, or none behind its PROXY header.
    pub fn is_silent(&self) -> bool {
        let nothing_came = match &self.state {
            State::Opening { asked, .. } => *asked == 1 && self.ask != Ask::AsAsked,
            State::Requesting(Requesting { asked, step: Step::Awaited, gss_refused }) => {
                *asked == 1 && !gss_refused
            }
            _ => false,
        };
        // The bytes of a `Peek` that waits for its turn are not known yet.
        nothing_came && !self.peeking
    }

    /// Leads a client without a ClientHello to its backend. Its bytes wait in its socket.
    pub fn fall_back(&mut self, core: &mut Core, fallback: Fallback) {
        // Neither side has asked for TLS in the words of another protocol.
        self.ask = Ask::No;
        self.choose(core, &By::Fallback(fallback));
        self.arm(core);
    }

    /// Chooses listener, route, backend and endpoint, and then connects.
    pub fn choose(&mut self, core: &mut Core, by: &By<'_>) {
        if let Err(cause) = self.try_choose(core, by) {
            let cause = self.with_alert(core, by, cause);
            self.finish(core, cause, true);
        }
    }

    pub fn try_choose(&mut self, core: &mut Core, by: &By<'_>) -> Result<(), Cause> {
        // If the hello took its time, the socket may be gone by now, and the id may be another
        // socket's. Or a reload has brought TLS while the client waited for a place.
        let of = core.tables.of(self.socket).filter(|(_, socket)| by.suits(socket, self.local));
        let (table, socket) = of.ok_or(CloseReason::NoRoute)?;
        self.free.0 = socket.options.congestion == [0; 16];
        let name = self.server_name.as_deref().or(socket.default_hostname.as_deref());
        let listener = match by {
            By::Fallback(fallback) => fallback.listener,
            by => by.find(&socket.listeners, name).ok_or_else(|| by.unknown())?,
        };
        let listener = &table.listeners[listener];
        self.timeouts = listener.timeouts;
        self.on_truncation = listener.on_truncation;
        give_to(&mut self.listener, listener.id, &core.counters);
        let client = self.client.ip();
        admits(listener.access.as_deref(), client)?;
        let terminator = listener.tls.as_ref().filter(|_| matches!(by, By::Hello(_)));
        let has_looked = matches!(self.state, State::Opening { again: true, .. });
        if terminator.is_some() && !has_looked && core.places.is_full(listener) {
            return self.look_again(listener.id, core);
        }
        let (now, limit) = (core.unix_micros(), listener.limit.as_deref());
        let delaying = limit.filter(|_| !core.tables.is_closing(self.socket));
        let waits = (&mut self.held, &mut self.state, self.socket, self.token);
        if is_delayed(waits, delaying, &mut core.delays, (core.now, now)) {
            return Ok(());
        }
        if !core.places.enter(listener) {
            return Err(CloseReason::ListenerLimit.into());
        }
        self.entry = Entry::Full;
        if let Some(limit) = &listener.limit_source {
            let entered = limit.enter(client, now);
            self.source = entered.map_err(|OverLimit| CloseReason::SourceLimit)?;
            if let Some(record) = self.source {
                self.held.count_source(record, limit.bytes);
            }
        }
        enter(&mut self.held, Scope::Listener, limit, now)?;
        let route = by.route(listener, name, client)?;
        let route = &table.routes[route];
        lead_by(&mut self.route, route.id, &core.counters);
        admits(route.access.as_deref(), client)?;
        let of_source = self.held.enter_source(route.limit_source.as_deref(), client, now);
        of_source.map_err(|OverLimit| CloseReason::SourceLimit)?;
        enter(&mut self.held, Scope::Route, route.limit.as_deref(), now)?;
        let backend = core.balancer.backend(route, self.client).ok_or(CloseReason::NoBackend)?;
        let backend = &table.backends[backend];
        self.backend = Some(backend.id);
        let attempts_left = backend.connect_attempts;
        let cancels = matches!(by, By::Cancel);
        if cancels && listener.tls.as_ref().is_some_and(|tls| tls.client_auth) {
            return Err(CloseReason::StarttlsCancel.into());
        }
        if let Some(terminator) = terminator {
            if !terminator.certificates.has(name) {
                return Err(CloseReason::NoCertificate.into());
            }
            enter(&mut self.held, Scope::Backend, backend.limit.as_deref(), now)?;
            let tls = TlsRelay::client(core, terminator, self.on_truncation)?;
            core.handshakes.push((listener.id, Some(self.token)));
            self.greet(core, tls);
            return Ok(());
        }
        self.connect(core, Connecting::new(attempts_left))
    }

    /// Reads the ClientHello once more in the next turn: a handshake that has waited for longer
    /// makes room at the listener.
    fn look_again(&mut self, listener: ListenerId, core: &mut Core) -> Result<(), Cause> {
        core.handshakes.push((listener, None));
        core.postponed.push_back((self.token, Side::Client, Postponed::Peek));
        if let State::Opening { again, .. } = &mut self.state {
            *again = true;
        }
        self.peeking = true;
        Ok(())
    }

    /// Chooses the backend again if no endpoint of it may be picked any more. The route of the
    /// table in force decides, as for a client that comes now. Without that route, the choice
    /// stands.
    pub fn choose_again(&mut self, core: &mut Core) {
        let chosen = self.backend.and_then(|id| core.tables.backend(self.socket, id));
        if chosen.is_some_and(|backend| !backend.turns.is_empty()) {
            return;
        }
        let Some(route) = self.route.and_then(|id| core.tables.route(id)) else { return };
        if let Some(backend) = core.balancer.backend(route, self.client) {
            self.backend = Some(core.tables.current().backends[backend].id);
        }
    }
}

/// Whether a session waits for a place within the limit of its listener, which delays. Otherwise
/// the session has its place. `limit`: none if the socket closes, because then nobody waits, and
/// who finds no place is refused. `now`: microseconds of this worker, and since 1970.
fn is_delayed(
    (held, state, socket, token): (&mut Held, &mut State, SocketId, Token),
    limit: Option<&Limit>,
    delays: &mut Delays,
    (now, unix): (u64, u64),
) -> bool {
    let Some(limit) = limit.filter(|limit| limit.delays) else { return false };
    let is_new = !matches!(state, State::Delayed);
    let is_behind = is_new && delays.has_line(socket);
    let waits = is_behind || held.enter(Scope::Listener, Some(limit), unix).is_err();
    if waits && is_new {
        delays.join(socket, token, now);
        *state = State::Delayed;
    }
    waits
}

/// Takes a place for a session within a limit.
pub fn enter(held: &mut Held, scope: Scope, limit: Option<&Limit>, now: u64) -> Result<(), Cause> {
    held.enter(scope, limit, now).map_err(|over| scope.refusal(over))
}

/// The cause for a client that sends no ClientHello.
pub fn invalid(bytes: &[u8], why: &'static str) -> Cause {
    CloseReason::HelloInvalid.because(Detail::from(client_hello::stranger(bytes).unwrap_or(why)))
}

pub fn admits(access: Option<&Access>, client: IpAddr) -> Result<(), CloseReason> {
    match access {
        Some(access) if !access.admits(client) => Err(CloseReason::SourceDenied),
        _ => Ok(()),
    }
}
