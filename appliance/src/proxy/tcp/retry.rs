//! Gives up a relay that has not carried a byte, and has the session try another endpoint.
//!
//! An endpoint that refuses a PROXY header, or a TLS client's certificate in TLS 1.3, closes only
//! after the session began to relay: neither protocol has an answer to wait for. As long as no byte
//! of the client was taken and none of the endpoint came, the client can't tell one endpoint from
//! another.

use config_sync::table::routing::Endpoint;

use crate::contract::{Side, Stop};
use crate::proxy::cause::Cause;
use crate::proxy::core::{Core, micros};
use crate::proxy::tcp::close::failure;
use crate::proxy::tcp::session::SILENCE;
use crate::proxy::tcp::state::{Connecting, Relay, Session, State};
use crate::proxy::tcp::tls_relay::Outcome;
use crate::stats::detail::Detail;
use crate::stats::records::CloseReason;

impl Session {
    /// Attempts that are left if the endpoint refuses the session. An endpoint that gets the
    /// client's bytes alone has nothing to refuse.
    pub fn refusals_left(&self, connecting: Connecting) -> u8 {
        let refusable = self.send_proxy.is_some()
            || self.tls.as_ref().is_some_and(|tls| tls.speaks_with(Side::Endpoint));
        if refusable { connecting.attempts_left } else { 0 }
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
        let State::Relaying(Relay { attempts_left: 1.., up, down, ending: None, .. }) = &self.state
        else {
            return false;
        };
        up.is_untouched() && down.has_brought_nothing() && self.has_alternative(core)
    }

    /// Whether the backend has another endpoint for the session, which has not just failed.
    fn has_alternative(&self, core: &Core) -> bool {
        let backend = self.backend.and_then(|id| core.tables.backend(self.socket, id));
        let Some(backend) = backend else { return false };
        let timeout = match backend.connect_timeout {
            0 => SILENCE,
            timeout => timeout,
        };
        // No byte has gone since the relay began. An endpoint that ends later has given up waiting
        // for the client, which is no refusal.
        let began = self.last_byte - u64::from(self.connect_micros.unwrap_or(0));
        let may_take = |of: &Endpoint| {
            Some(of.id) != self.endpoint
                && of.weight > 0
                && core.balancer.rests(of.id, core.now).is_none()
        };
        core.now <= began + micros(timeout) && backend.endpoints.iter().any(may_take)
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
