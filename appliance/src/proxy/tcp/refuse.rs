//! Tells a client that is refused why: an alert of TLS, or PostgreSQL's ErrorResponse.
//!
//! A client that gets a bare reset takes the refusal for a fault of the network, and tries again.

use config_sync::table::routing::OnRefusal;

use crate::contract::{Op, Side, size};
use crate::proxy::cause::Cause;
use crate::proxy::core::Core;
use crate::proxy::tcp::choose::By;
use crate::proxy::tcp::state::{Ask, Session};
use crate::proxy::tcp::tls_connection::Conn;
use crate::proxy::tcp::tls_relay::TlsRelay;
use crate::stats::records::CloseReason;
use crate::wire::alert::Alert;
use crate::wire::postgres::write_error;

/// How many of its bytes are taken from a client before the client is told. The bytes were only
/// peeked, and the kernel resets a connection that is closed with unread bytes.
const TAKEN: u32 = 64 * 1024 + 1;

/// The last words to a client that is refused.
#[derive(Clone, Copy, Debug)]
pub enum Words {
    Alert(Alert),
    /// PostgreSQL's ErrorResponse: its code and text.
    Error {
        code: &'static str,
        why: &'static str,
        reason: CloseReason,
    },
}

impl Session {
    /// What the client is told, if its listener wants that and the client can read it.
    pub fn words(&self, core: &Core, cause: &Cause) -> Option<Words> {
        let reason = cause.reason;
        self.socket(core).filter(|socket| socket.on_refusal == OnRefusal::Tell)?;
        let ends_here = |tls: &TlsRelay| tls.speaks_with(Side::Client);
        let is_greeting = |tls: &TlsRelay| tls.greets(Side::Client);
        let tls = self.tls.as_deref();
        // The faults of a handshake have alerts of their own.
        if tls.is_some_and(is_greeting) {
            return None;
        }
        // A client of such a listener speaks PostgreSQL once it has TLS.
        let speaks_postgres = self.ask != Ask::No && tls.is_some_and(ends_here);
        match cause.alert {
            Some(alert) => Some(Words::Alert(alert)),
            None if self.startup || speaks_postgres => {
                let (code, why) = postgres_error(reason)?;
                Some(Words::Error { code, why, reason })
            }
            None => (self.greeted && has_no_place(reason)).then_some(Words::Alert(INTERNAL)),
        }
    }

    /// Tells the client why it is refused. True: the end of the connection must follow as a FIN.
    pub fn tell(&mut self, core: &mut Core, words: Words) -> bool {
        let start = core.output.len();
        // Bytes of the handshake may be on their way. A client has one `Give` at a time.
        let ends = |op: &Op| match op {
            Op::Give { to: Side::Client, start: at, len } => at + len == size(start),
            _ => false,
        };
        let before = match &self.tls {
            Some(tls) if tls.is_giving(Side::Client) => {
                core.ops.iter().rposition(|(of, op)| *of == self.token && ends(op))
            }
            _ => None,
        };
        let is_said = match &mut self.tls {
            Some(tls) if tls.speaks_with(Side::Client) => {
                let conn = tls.last_words(before.is_some());
                conn.is_some_and(|conn| say_encrypted(conn, words, &mut core.output))
            }
            _ => {
                say(words, &mut core.output);
                true
            }
        };
        if !is_said {
            core.output.truncate(start);
            return false;
        }
        core.takes += 1;
        core.push(self.token, Op::Take { from: Side::Client, at_most: TAKEN, to_eof: false });
        let added = size(core.output.len() - start);
        if let Some(at) = before
            && let Op::Give { len, .. } = &mut core.ops[at].1
        {
            *len += added;
        } else {
            let start = size(start);
            core.push(self.token, Op::Give { to: Side::Client, start, len: added });
        }
        core.push(self.token, Op::Shutdown { side: Side::Client });
        true
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

/// The server has a fault that is not the client's.
const INTERNAL: Alert = Alert::InternalError;

/// Whether no endpoint can be had. Where limits turn clients away, a reset stays: floods must cost
/// little.
fn has_no_place(reason: CloseReason) -> bool {
    use CloseReason as R;
    matches!(
        reason,
        R::NoBackend
            | R::NoEndpoint
            | R::EndpointsFull
            | R::QueueTimeout
            | R::ConnectFailed
            | R::ConnectTimeout
            | R::EndpointStarttlsFailed
            | R::EndpointTlsFailed
            | R::EndpointReset
            | R::EndpointTimedOut
            | R::EndpointError
            | R::LocalLimit
    )
}

fn say(words: Words, out: &mut Vec<u8>) {
    match words {
        Words::Alert(alert) => out.extend_from_slice(&alert.record()),
        Words::Error { code, why, reason } => {
            write_error(code, &format!("{why} ({})", reason.word()), out);
        }
    }
}

/// False: nothing can be said.
fn say_encrypted(mut conn: Conn, words: Words, out: &mut Vec<u8>) -> bool {
    if let Words::Alert(alert) = words {
        return conn.refuse(alert, out);
    }
    let mut plain = Vec::new();
    say(words, &mut plain);
    let is_said = conn.send(&plain, out).is_ok();
    conn.end(out);
    is_said
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
        R::ListenerLimit
        | R::Limit
        | R::SourceLimit
        | R::EndpointsFull
        | R::QueueTimeout
        | R::LocalLimit => ("53300", "too many connections"),
        R::Drained | R::Stopped | R::Killed => ("57P01", "the connection was ended on purpose"),
        _ => ("57P03", "no server can be reached now"),
    })
}
