//! Connects to an endpoint: attempts, until one is connected and ready for the client's bytes.

use config_sync::table::address::Address;
use config_sync::table::routing::{OnUnavailable, WeightedBackend};

use crate::contract::{Op, Origin, Side, Why};
use crate::proxy::cause::Cause;
use crate::proxy::core::Core;
use crate::proxy::held::Scope;
use crate::proxy::tcp::choose::enter;
use crate::proxy::tcp::state::{Asking, Connecting, Relay, SendingProxyHeader, Session, State};
use crate::proxy::tcp::tls_relay::TlsRelay;
use crate::stats::detail::Detail;
use crate::stats::records::CloseReason;

impl Session {
    /// Connects to an endpoint of the backend, or else to one of the route's other backends.
    pub fn connect(&mut self, core: &mut Core, state: Connecting) -> Result<(), Cause> {
        self.connect_within(core, state).or_else(|cause| self.pass_on(core, cause))
    }

    /// Goes on to the route's other backends, if the route asks for that. Each backend has one
    /// turn at the most. `cause`: why the session's backend has no endpoint for it.
    pub fn pass_on(&mut self, core: &mut Core, mut cause: Cause) -> Result<(), Cause> {
        use CloseReason as R;
        // A full backend is not unavailable. What the machine has not, no other backend has.
        while !matches!(cause.reason, R::EndpointsFull | R::Limit | R::LocalLimit)
            && let Some(state) = self.next_backend(core)
        {
            match self.connect_within(core, state) {
                Ok(()) => return Ok(()),
                Err(next) => cause = next,
            }
        }
        Err(cause)
    }

    /// Gives the session to another backend of its route. The route of the table in force decides,
    /// as for a client that comes now.
    fn next_backend(&mut self, core: &mut Core) -> Option<Connecting> {
        let route = core.tables.route(self.route?)?;
        if route.on_unavailable != OnUnavailable::Next {
            return None;
        }
        let failed = std::mem::take(&mut self.failed_backends).into_iter();
        self.failed_backends = failed.chain(self.backend).collect();
        let table = core.tables.current();
        let may_serve = |share: &WeightedBackend| {
            let has_endpoint = !table.backends[share.backend].turns.is_empty();
            has_endpoint && !self.failed_backends.contains(&share.id)
        };
        let next = core.balancer.other_backend(route, self.client, may_serve)?;
        let backend = &table.backends[next];
        let (id, attempts) = (backend.id, backend.connect_attempts);
        // An endpoint whose port does not exist counts the session, and has no attempt.
        if let Some(endpoint) = self.endpoint.take()
            && std::mem::take(&mut self.counted)
        {
            core.leaves(endpoint);
        }
        self.backend = Some(id);
        Some(Connecting::new(attempts))
    }

    /// Connects to an endpoint of the backend. If every endpoint is full, or other sessions wait
    /// already, the session waits in the backend's queue.
    fn connect_within(&mut self, core: &mut Core, state: Connecting) -> Result<(), Cause> {
        let backend = self.backend.and_then(|id| core.tables.backend(self.socket, id));
        let limit = backend.and_then(|backend| backend.limit.as_deref());
        enter(&mut self.held, Scope::Backend, limit, core.unix_micros())?;
        // A session that tries another endpoint had its turn.
        if state.tried_count == 0 && self.is_behind(core) {
            return self.wait(core, state);
        }
        match self.try_connect(core, state) {
            Err(Cause { reason: CloseReason::EndpointsFull, .. }) => self.wait(core, state),
            result => result,
        }
    }

    /// Connects to an endpoint of the backend in the table in force. If that table no longer has
    /// the backend, the session uses the table that the listening socket left with.
    pub fn try_connect(&mut self, core: &mut Core, mut state: Connecting) -> Result<(), Cause> {
        let backend = self.backend.and_then(|id| core.tables.backend(self.socket, id));
        let backend = backend.ok_or(CloseReason::NoEndpoint)?;
        let tried = &state.tried[..usize::from(state.tried_count)];
        let endpoint = core.balancer.session_endpoint(backend, self.client, tried, core.now);
        let endpoint = endpoint.ok_or_else(|| match state.tried_count {
            _ if core.balancer.were_full(backend, tried) => CloseReason::EndpointsFull,
            0 => CloseReason::NoEndpoint,
            _ => CloseReason::ConnectFailed,
        })?;
        self.endpoint = Some(endpoint.id);
        self.counted = true;
        self.held.count_endpoint(core, endpoint.id);
        let address = endpoint.address.for_client_of(self.local.port());
        let address = address.ok_or(CloseReason::NoEndpoint)?;
        match &backend.tls {
            Some(originator) => {
                let plain = || Box::new(TlsRelay::plain(self.on_truncation));
                let tls = self.tls.get_or_insert_with(plain);
                tls.originate(core, originator)?;
            }
            // The endpoints of a backend before may have spoken TLS.
            None => self.tls = self.tls.take().and_then(TlsRelay::with_plain_endpoint),
        }
        let source = match address {
            Address::Ip(to) => core.balancer.origin(backend, to, self.client),
            Address::Unix(_) => Origin::Any,
        };
        let options = backend.options;
        self.free.1 = options.congestion == [0; 16];
        self.send_proxy = backend.send_proxy;
        state.timeout = backend.connect_timeout;
        state.started = core.now;
        state.attempts_left -= 1;
        self.state = State::Connecting(state);
        let interface = backend.interface;
        core.push(self.token, Op::Connect { address, source, interface, options });
        Ok(())
    }

    pub fn connect_failed(&mut self, core: &mut Core, why: Why) {
        let State::Connecting(mut next) = self.state else { return };
        if why == Why::NoFiles {
            core.counters.file_shortages.add(1);
        }
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
            core.leaves(endpoint);
            core.counters.endpoint(endpoint).connect_failures.add(1);
            if reason != CloseReason::LocalLimit {
                core.counters.endpoint(endpoint).failures.add(1);
                core.balancer.failed(endpoint, core.now);
            }
            if let Some(place) = next.tried.get_mut(usize::from(next.tried_count)) {
                *place = endpoint;
                next.tried_count += 1;
            }
        }
        let cause = reason.because(detail);
        let result = match next.attempts_left {
            0 => Err(cause),
            _ if reason == CloseReason::LocalLimit => Err(cause),
            // If no endpoint is left to try, the reason of the last one stands.
            _ => self.connect_within(core, next).map_err(|none| match none.reason {
                CloseReason::ConnectFailed => cause,
                _ => none,
            }),
        };
        match result.or_else(|cause| self.pass_on(core, cause)) {
            Ok(()) => self.arm(core),
            Err(cause) => self.finish(core, cause, true),
        }
    }

    pub fn connected(&mut self, core: &mut Core) {
        let State::Connecting(connecting) = self.state else {
            unreachable!("only called while connecting")
        };
        if connecting.given_up.is_some() {
            // `Abandon` crossed with success, so `ConnectFailed` will come.
            return;
        }
        match self.send_proxy {
            Some(how) => self.introduce(core, connecting, how),
            None => self.speak(core, connecting),
        }
    }

    /// The endpoint is ready for the client's bytes or for TLS. Some endpoints must be asked for
    /// TLS first.
    pub fn speak(&mut self, core: &mut Core, connecting: Connecting) {
        if self.asks() {
            return self.ask(core, connecting);
        }
        self.proceed(core, connecting);
    }

    /// The endpoint is connected, and is ready for TLS if the session had to ask for TLS.
    pub fn proceed(&mut self, core: &mut Core, connecting: Connecting) {
        if self.tls.as_ref().is_some_and(|tls| tls.greets(Side::Endpoint)) {
            return self.secure(core, connecting);
        }
        self.relay(core, connecting);
    }

    /// The endpoint is connected, but no relay can begin or go on. The endpoint got no byte of the
    /// client, so the session gives the connection up like an attempt, and tries another endpoint.
    pub fn endpoint_failed(&mut self, core: &mut Core, cause: Cause) {
        let mut connecting = match &self.state {
            State::SendingProxyHeader(SendingProxyHeader { connecting, .. })
            | State::Asking(Asking { connecting, .. })
            | State::Securing(connecting) => *connecting,
            State::Relaying(Relay { retry: Some(retry), .. }) => **retry,
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
}
