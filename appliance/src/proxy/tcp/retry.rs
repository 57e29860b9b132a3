//! Gives up a relay that has not carried a byte, and has the session try another endpoint.
//!
//! An endpoint that refuses a PROXY header, or a TLS client's certificate in TLS 1.3, closes only
//! after the session began to relay: neither protocol has an answer to wait for. As long as no byte
//! of the client was taken and none of the endpoint came, the client can't tell one endpoint from
//! another.

use config_sync::table::routing::{EndpointId, OnUnavailable, Route};

use crate::contract::{Side, Stop};
use crate::proxy::cause::Cause;
use crate::proxy::core::{Core, micros};
use crate::proxy::tcp::close::failure;
use crate::proxy::tcp::session::SILENCE;
use crate::proxy::tcp::state::{Connecting, MAX_TRIED, Relay, Session, State};
use crate::proxy::tcp::tls_port::Outcome;
use crate::proxy::tcp::tls_relay::TlsRelay;
use crate::stats::detail::Detail;
use crate::stats::records::CloseReason;

impl Session {
    /// Whether the endpoint can refuse the session once the relay has begun. An endpoint that gets
    /// the client's bytes alone has nothing to refuse.
    pub fn may_be_refused(&self) -> bool {
        let speaks_tls = |tls: &TlsRelay| tls.speaks_with(Side::Endpoint);
        self.send_proxy.is_some() || self.tls.as_deref().is_some_and(speaks_tls)
    }

    /// Why the `Moved` of a side is a refusal of the session. `None`: it is none, or nobody else
    /// could have the session.
    pub fn refusal(
        &self,
        core: &Core,
        from: Side,
        (_, sent, held): (u32, u32, u32),
        stop: Stop,
    ) -> Option<Cause> {
        let cause = match (from, stop) {
            (Side::Endpoint, Stop::Eof) => {
                let detail = Detail::from("connected, and it ended without a byte");
                CloseReason::ConnectFailed.because(detail)
            }
            (Side::Endpoint, Stop::Failed { side: Side::Endpoint, why }) => {
                failure(Side::Endpoint, why)
            }
            _ => return None,
        };
        (sent == 0 && held == 0 && self.is_revocable(core)).then_some(cause)
    }

    /// As `refusal`, for an endpoint that speaks TLS and ends other than in good order. What was
    /// read may be an alert.
    pub fn tls_refusal(&self, core: &Core, outcome: &Outcome) -> Option<Cause> {
        let cause = match outcome {
            Outcome::Broken { from: Side::Endpoint, sent: 0, cause, .. } => cause.clone(),
            Outcome::Truncated { from: Side::Endpoint, sent: 0, .. } => {
                let detail = Detail::from("connected, and it ended behind its handshake");
                CloseReason::EndpointTlsFailed.because(detail)
            }
            _ => return None,
        };
        self.is_revocable(core).then_some(cause)
    }

    /// Whether another endpoint can have the session, and no peer would notice.
    pub fn is_revocable(&self, core: &Core) -> bool {
        let State::Relaying(relay) = &self.state else { return false };
        !relay.up.queued() && self.may_be_revocable(core)
    }

    /// As `is_revocable`, unless a `Move` that is under way brings something of the client.
    pub fn may_be_revocable(&self, core: &Core) -> bool {
        let State::Relaying(Relay { retry: Some(retry), up, down, ending: None, .. }) = &self.state
        else {
            return false;
        };
        let is_silent = up.has_brought_nothing() && !up.is_ending() && !up.is_over();
        is_silent && down.has_brought_nothing() && self.has_alternative(core, retry)
    }

    /// Whether another endpoint would have the session: one of its backend, or else of the route's
    /// other backends.
    fn has_alternative(&self, core: &Core, retry: &Connecting) -> bool {
        let backend = self.backend.and_then(|id| core.tables.backend(self.socket, id));
        let Some(backend) = backend else { return false };
        let timeout = match backend.connect_timeout {
            0 => SILENCE,
            timeout => timeout,
        };
        // No byte has gone since the relay began. An endpoint that ends later has given up waiting
        // for the client, which is no refusal.
        let began = self.last_byte - u64::from(self.connect_micros.unwrap_or(0));
        if core.now > began + micros(timeout) {
            return false;
        }
        let tried = self.tried_with_this(retry);
        let tried = &tried[..=usize::from(retry.tried_count)];
        match retry.attempts_left {
            1.. if core.balancer.has_free(backend, tried, core.now) => true,
            // A full backend is not unavailable, so the route would not go on.
            1.. if core.balancer.were_full(backend, tried) => false,
            _ => self.has_other_backend(core),
        }
    }

    /// The endpoints that failed for this session, with its own.
    fn tried_with_this(&self, retry: &Connecting) -> [EndpointId; MAX_TRIED + 1] {
        let none = EndpointId(u32::MAX);
        let mut tried = [none; MAX_TRIED + 1];
        tried[..MAX_TRIED].copy_from_slice(&retry.tried);
        tried[usize::from(retry.tried_count)] = self.endpoint.unwrap_or(none);
        tried
    }

    /// Whether the route goes on to another backend that has an endpoint for the session.
    fn has_other_backend(&self, core: &Core) -> bool {
        let route = self.route.and_then(|id| core.tables.route(id));
        let passes_on = |route: &&Route| route.on_unavailable == OnUnavailable::Next;
        let Some(route) = route.filter(passes_on) else { return false };
        let table = core.tables.current();
        let mut shares = route.backends.iter().filter(|share| {
            let is_tried =
                Some(share.id) == self.backend || self.failed_backends.contains(&share.id);
            share.weight > 0 && !is_tried
        });
        shares.any(|share| core.balancer.has_free(&table.backends[share.backend], &[], core.now))
    }

    /// Gives the relay and its endpoint up.
    pub fn revoke(&mut self, core: &mut Core, cause: Cause) {
        if let Some(endpoint) = self.endpoint {
            core.counters.endpoint(endpoint).closed.add(1);
        }
        self.connect_micros = None;
        // Bytes that came meanwhile have told so already.
        self.client_readable = true;
        self.endpoint_failed(core, cause);
    }
}
