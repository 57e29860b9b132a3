//! Chooses where a session goes: listener by server name, route, and backend.

use std::net::IpAddr;

use config_sync::table::address::UNIX_CLIENT;
use config_sync::table::ranges::Access;
use config_sync::table::routing::{Hosts, Protocol, Socket};

use crate::proxy::cause::Cause;
use crate::proxy::core::Core;
use crate::proxy::tcp::accounting::give_to;
use crate::proxy::tcp::state::{Connecting, Entry, Session, State};
use crate::proxy::tcp::tls_relay::TlsRelay;
use crate::stats::detail::Detail;
use crate::stats::records::CloseReason;
use crate::wire::client_hello::{self, Hello};

/// A client may come back faster than an endpoint closes, so this many ending sessions are allowed
/// at least.
pub const ENDING: u32 = 64;

impl Session {
    pub fn hello(&mut self, core: &mut Core, bytes: &[u8], end: bool) {
        if end && bytes.is_empty() {
            return self.finish(core, CloseReason::ClientGone, true);
        }
        match client_hello::read(bytes, end) {
            Hello::NeedMore { at_least } => {
                let State::Opening { asked } = &mut self.state else { return };
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

    /// Chooses listener, route, backend and endpoint, and then connects.
    pub fn choose(&mut self, core: &mut Core) {
        if let Err(cause) = self.try_choose(core) {
            self.finish(core, cause, true);
        }
    }

    pub fn try_choose(&mut self, core: &mut Core) -> Result<(), Cause> {
        // If the hello took its time, the socket may be gone by now, and the id may be another
        // socket's.
        let here = |socket: &Socket| {
            let (bound, local) = (socket.address.ip().unwrap_or(UNIX_CLIENT), self.local);
            bound.port() == local.port()
                && (bound.ip().is_unspecified() || bound.ip() == local.ip())
        };
        let of = core.tables.of(self.socket).filter(|(_, socket)| here(socket));
        let (table, socket) = of.ok_or(CloseReason::NoRoute)?;
        self.free.0 = socket.options.congestion == [0; 16];
        // Only a request to cancel is routed before a ClientHello.
        let cancels = matches!(self.state, State::Requesting(_));
        let unknown =
            if cancels { CloseReason::StarttlsCancel } else { CloseReason::UnknownServerName };
        let name = self.server_name.as_deref().or(socket.default_hostname.as_deref());
        // A request to cancel has no server name, so it is routed only if there is one place to go.
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
        let backend = core.balancer.backend(route, self.client).ok_or(CloseReason::NoBackend)?;
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
            let tls = TlsRelay::client(core, terminator, self.on_truncation)?;
            self.greet(core, tls);
            return Ok(());
        }
        self.connect(core, Connecting::new(attempts_left))
    }
}

pub fn admits(access: Option<&Access>, client: IpAddr) -> Result<(), CloseReason> {
    match access {
        Some(access) if !access.admits(client) => Err(CloseReason::SourceDenied),
        _ => Ok(()),
    }
}
