//! Tells a client that is refused why: an alert of TLS, or PostgreSQL's ErrorResponse.
//!
//! A client that gets a bare reset takes the refusal for a fault of the network, and tries again.

use config_sync::table::routing::OnRefusal;

use crate::contract::{Op, Side, size};
use crate::proxy::cause::Cause;
use crate::proxy::core::Core;
use crate::proxy::tcp::choose::By;
use crate::proxy::tcp::state::Session;
use crate::stats::records::CloseReason;
use crate::wire::alert::Alert;
use crate::wire::postgres::write_error;

/// How many of its bytes are taken from a client before the client is told. The bytes were only
/// peeked, and the kernel resets a connection that is closed with unread bytes.
const TAKEN: u32 = 64 * 1024 + 1;

impl Session {
    /// Tells the client why it is refused, if its listener wants that and the client can read it.
    /// True: the end of the connection must follow as a FIN.
    pub fn tell(&self, core: &mut Core, cause: &Cause) -> bool {
        let start = core.output.len();
        match cause.alert.or_else(|| self.no_place(cause.reason)) {
            Some(alert) => core.output.extend_from_slice(&alert.record()),
            None if self.startup => {
                let Some((code, why)) = postgres_error(cause.reason) else { return false };
                let message = format!("{why} ({})", cause.reason.word());
                write_error(code, &message, &mut core.output);
            }
            None => return false,
        }
        if self.socket(core).is_none_or(|socket| socket.on_refusal != OnRefusal::Tell) {
            core.output.truncate(start);
            return false;
        }
        core.takes += 1;
        core.push(self.token, Op::Take { from: Side::Client, at_most: TAKEN, to_eof: false });
        let len = size(core.output.len() - start);
        core.push(self.token, Op::Give { to: Side::Client, start: size(start), len });
        core.push(self.token, Op::Shutdown { side: Side::Client });
        true
    }

    /// The alert for a client whose TLS passes through, and for which no endpoint can be had. Where
    /// limits turn clients away, a reset stays: floods must cost little.
    fn no_place(&self, reason: CloseReason) -> Option<Alert> {
        use CloseReason as R;
        let has_no_place = matches!(
            reason,
            R::NoBackend
                | R::NoEndpoint
                | R::EndpointsFull
                | R::QueueTimeout
                | R::ConnectFailed
                | R::ConnectTimeout
                | R::EndpointStarttlsFailed
                | R::LocalLimit
        );
        // Where TLS ends here, client and gateway have agreed on keys by now, and rustls sends no
        // alert that is not its own.
        let passes = self.greeted && self.tls.is_none();
        (has_no_place && passes).then_some(Alert::InternalError)
    }

    /// Adds the alert to the cause of a session that got no place.
    pub fn with_alert(&self, core: &Core, by: &By<'_>, cause: Cause) -> Cause {
        let By::Hello(_) = by else { return cause };
        let alert = match cause.reason {
            CloseReason::UnknownServerName | CloseReason::NoCertificate => match self.server_name {
                Some(_) => Alert::UnrecognizedName,
                None => Alert::MissingExtension,
            },
            CloseReason::NoRoute if self.asks_for_protocols(core) => Alert::NoApplicationProtocol,
            _ => return cause,
        };
        cause.telling(alert)
    }

    /// Whether routes of the listener ask for protocols.
    fn asks_for_protocols(&self, core: &Core) -> bool {
        let Some((table, _)) = core.tables.of(self.socket) else { return false };
        let mut listeners = table.listeners.iter();
        listeners.any(|of| Some(of.id) == self.listener && of.by_alpn.is_some())
    }
}

/// The code (PostgreSQL documentation, appendix A) and the words for a client that has sent a
/// StartupMessage. Clients with several hosts go on to the next one for 57P03. `None`: the client
/// has gone.
fn postgres_error(reason: CloseReason) -> Option<(&'static str, &'static str)> {
    use CloseReason as R;
    Some(match reason {
        R::ClientGone | R::ClientReset | R::ClientTimedOut | R::ClientError => return None,
        R::StarttlsMissing => {
            ("28000", "this address takes only connections with TLS, such as sslmode=require")
        }
        R::SourceDenied => ("28000", "this address does not admit the client"),
        R::ListenerLimit | R::SourceLimit | R::EndpointsFull | R::QueueTimeout | R::LocalLimit => {
            ("53300", "too many connections")
        }
        R::Drained | R::Stopped | R::Killed => ("57P01", "the connection was ended on purpose"),
        _ => ("57P03", "no server can be reached now"),
    })
}
